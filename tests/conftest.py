"""Shapes and types of every call into cdelta are checked during the tests, and theory runs in
float64."""

import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
from threads import THREADS

# Thousands of programs are compiled here and run once or twice: compiled fast (no optimization by
# LLVM, and the older of two ways to write a fused kernel), not to run fast.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)

for _name, _value in THREADS.items():
    os.environ.setdefault(_name, _value)

# What one process compiled, another need not: the workers, and what tests start, share a folder
# that lives as long as the run. The first process to come here makes it, the others inherit it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="compiled-", ignore_cleanup_errors=True)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": _compiled.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }

# Before cdelta is imported for the first time: each annotation becomes a check.
jaxtyping.install_import_hook("cdelta", "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_enable_x64", True)  # float32 is tested with arrays that say so
for _name in ("CDELTA_LEDGER", "CDELTA_CLAIMS"):
    os.environ.pop(_name, None)  # no test may write into the records of a build


# Every compiled program holds mappings of memory, of which Linux grants a process 65 530: LLVM does
# not ask whether it got one, and a worker that compiles for a thousand tests dies of the signal 11.
_MAPPINGS = Path("/proc/self/maps")
_MOST_MAPPINGS = 20_000
_finished = itertools.count(1)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    if next(_finished) % 10 == 0 and mappings() > _MOST_MAPPINGS:
        jax.clear_caches()


def mappings() -> int:
    """Of memory, by this process; 0 where the system does not tell."""
    return _MAPPINGS.read_bytes().count(b"\n") if _MAPPINGS.exists() else 0


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the annotations' checks, so that a test of bad input meets cdelta's own refusal, as a
    user would."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
