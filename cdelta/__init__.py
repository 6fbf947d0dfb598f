"""Causality–Δ as code: exact flows, their Jacobians, and what a wiggle of the latent says about the
features.

Submodules load on first use, so ``import cdelta`` costs nothing that is not asked for.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "Gaussian": "gaussian",
    "GaussianMixture": "mixture",
    "Empirical": "posterior",
    "Flow": "flow",
    "Moment": "moment",
}
_SUBMODULES = (
    "linear",
    "gaussian",
    "mixture",
    "posterior",
    "flow",
    "jacobian",
    "moment",
    "dependence",
    "causal",
    "networks",
    "training",
    "pretrained",
    "datasets",
    "attributes",
    "quality",
    "figures",
    "ledger",
)
__all__ = [*_EXPORTS, *_SUBMODULES]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"cdelta.{_EXPORTS[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"cdelta.{name}")
    raise AttributeError(f"module 'cdelta' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
