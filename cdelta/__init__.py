"""Causality–Δ as code: exact flows, their Jacobians, and what a wiggle says about the features.

Submodules load on first use, so ``import cdelta`` costs nothing that is not asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers see; a test holds it to the names below
    from cdelta import (
        adapters as adapters,
        attributes as attributes,
        causal as causal,
        classes as classes,
        conditioning as conditioning,
        datasets as datasets,
        dependence as dependence,
        disentangle as disentangle,
        ensemble as ensemble,
        figures as figures,
        flow as flow,
        gaps as gaps,
        gaussian as gaussian,
        hermite as hermite,
        jacobian as jacobian,
        ledger as ledger,
        linear as linear,
        mixture as mixture,
        moment as moment,
        networks as networks,
        patterns as patterns,
        posterior as posterior,
        pretrained as pretrained,
        profiles as profiles,
        quality as quality,
        reporting as reporting,
        torch as torch,
        training as training,
    )
    from cdelta.flow import Flow as Flow
    from cdelta.gaussian import Gaussian as Gaussian
    from cdelta.mixture import GaussianMixture as GaussianMixture
    from cdelta.moment import Moment as Moment
    from cdelta.posterior import Empirical as Empirical
    from cdelta.reporting import Report as Report, report as report

__version__ = "0.1.0"

_EXPORTS = {
    "Gaussian": "gaussian",
    "GaussianMixture": "mixture",
    "Empirical": "posterior",
    "Flow": "flow",
    "Moment": "moment",
    "Report": "reporting",
    "report": "reporting",
}
_SUBMODULES = (
    "linear",
    "gaussian",
    "mixture",
    "posterior",
    "flow",
    "adapters",
    "torch",
    "jacobian",
    "hermite",
    "gaps",
    "moment",
    "dependence",
    "conditioning",
    "reporting",
    "ensemble",
    "causal",
    "networks",
    "training",
    "disentangle",
    "pretrained",
    "datasets",
    "attributes",
    "quality",
    "classes",
    "patterns",
    "figures",
    "ledger",
    "profiles",
)
__all__ = [*_EXPORTS, *_SUBMODULES]


if not TYPE_CHECKING:  # else a checker would take every misspelt name for one of these

    def __getattr__(name: str) -> Any:
        if name in _EXPORTS:
            return getattr(importlib.import_module(f"cdelta.{_EXPORTS[name]}"), name)
        if name in _SUBMODULES:
            return importlib.import_module(f"cdelta.{name}")
        raise AttributeError(f"module 'cdelta' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
