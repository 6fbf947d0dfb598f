"""Shapes and types of every call into cdelta are checked during the tests, and theory runs in
float64."""

import os
from collections.abc import Iterator

import jaxtyping
import pytest

# Thousands of programs are compiled here and run once or twice: compiled fast (no optimization by
# LLVM, and the older of two ways to write a fused kernel), not to run fast.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)

# Before cdelta is imported for the first time: each annotation becomes a check.
jaxtyping.install_import_hook("cdelta", "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_enable_x64", True)  # float32 is tested with arrays that say so
for _name in ("CDELTA_LEDGER", "CDELTA_CLAIMS"):
    os.environ.pop(_name, None)  # no test may write into the records of a build


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the annotations' checks, so that a test of bad input meets cdelta's own refusal, as a
    user would."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
