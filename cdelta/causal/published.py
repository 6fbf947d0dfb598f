r"""Structural models that others have published, to be measured on.

The equations are those of the benchmark of Causal Normalizing Flows (Javaloy, Sánchez-Martín and
Valera, NeurIPS 2023). Beware of names: the Simpson models of CSuite, and the triangle and the fork
of DCM and VACA, have other equations under the same names; their tables are not comparable.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax.numpy as jnp
from jax.nn import sigmoid, softplus
from jax.scipy.stats import norm
from jaxtyping import Array

from cdelta.causal.models import SCM, Equation


def _both(x: Array, y: Array | float) -> Array:
    return softplus(x + 1) + softplus(y + 0.5) - 3


def _laplace(u: Array, location: Array, scale: float) -> Array:
    """Quantile of the Laplace distribution."""
    return location + scale * jnp.where(u < 0.5, jnp.log(2 * u), -jnp.log(2 * (1 - u)))


def _uniform(equation: Equation) -> Equation:
    """An equation in a noise of U(0, 1) as one in a standard normal noise."""
    return lambda x, e: equation(x, norm.cdf(e))


_CHAIN = {
    "x1": lambda x, e: e,
    "x2": lambda x, e: 10 * x["x1"] - e,
    "x3": lambda x, e: x["x2"] / 4 + 2 * e,
}

_MODELS: Mapping[str, Mapping[str, Callable]] = MappingProxyType(
    {
        "chain3-lin": _CHAIN,
        "chain4-lin": {
            "x1": lambda x, e: e,
            "x2": lambda x, e: 5 * x["x1"] - e,
            "x3": lambda x, e: -x["x2"] / 2 - 1.5 * e,
            "x4": lambda x, e: x["x3"] + e,
        },
        "chain5-lin": {
            **_CHAIN,
            "x4": lambda x, e: x["x3"] + e,
            "x5": lambda x, e: -x["x4"] + e,
        },
        "chain3-nlin": {
            "x1": lambda x, e: e,
            "x2": lambda x, e: jnp.exp(x["x1"] / 2) + e / 4,
            "x3": lambda x, e: (x["x2"] - 5) ** 3 / 15 + e,
        },
        "triangle-lin": {
            "x1": lambda x, e: e + 1,
            "x2": lambda x, e: 10 * x["x1"] - e,
            "x3": lambda x, e: x["x2"] / 2 + x["x1"] + e,
        },
        "triangle-nlin": {
            "x1": lambda x, e: e + 1,
            "x2": lambda x, e: 2 * x["x1"] ** 2 + e,
            "x3": lambda x, e: 20 * sigmoid(x["x2"] ** 2 - x["x1"]) + e,
        },
        "collider-lin": {
            "x1": lambda x, e: e,
            "x2": lambda x, e: 2 - e,
            "x3": lambda x, e: x["x2"] / 4 - x["x1"] / 2 + e / 2,
        },
        "fork-lin": {
            "x1": lambda x, e: e,
            "x2": lambda x, e: 2 - e,
            "x3": lambda x, e: x["x2"] / 4 - 1.5 * x["x1"] + e / 2,
            "x4": lambda x, e: x["x3"] + e / 4,
        },
        "fork-nlin": {
            "x1": lambda x, e: e,
            "x2": lambda x, e: e,
            "x3": lambda x, e: 4 * sigmoid(x["x1"] + x["x2"]) - x["x2"] ** 2 + e / 2,
            "x4": lambda x, e: 20 * sigmoid(x["x3"] - x["x3"] ** 2 / 2) + e,
        },
        # x4 divides by a number that can come near 0: report medians
        "diamond": {
            "x1": lambda x, e: e,
            "x2": lambda x, e: x["x1"] ** 2 + e / 2,
            "x3": lambda x, e: x["x2"] ** 2 - 2 * sigmoid(x["x1"]) + e / 2,
            "x4": lambda x, e: x["x3"] / (jnp.abs(x["x2"] + 2) + x["x3"] + 0.5) + e / 10,
        },
        "simpson-nlin": {
            "x1": lambda x, e: e,
            "x2": lambda x, e: softplus(1 - x["x1"]) + jnp.sqrt(0.15) * e,
            "x3": lambda x, e: jnp.tanh(2 * x["x2"]) + 1.5 * x["x1"] - 1 + jnp.tanh(e),
            "x4": lambda x, e: (x["x3"] - 4) / 5 + 3 + e / jnp.sqrt(10),
        },
        "simpson-symprod": {
            "x1": lambda x, e: e,
            "x2": lambda x, e: 2 * jnp.tanh(2 * x["x1"]) + e / jnp.sqrt(10),
            "x3": lambda x, e: x["x1"] * x["x2"] / 2 + e / jnp.sqrt(2),
            "x4": lambda x, e: jnp.tanh(1.5 * x["x1"]) + jnp.sqrt(0.3) * e,
        },
        "large-backdoor": {
            "x1": _uniform(lambda x, u: softplus(1.8 * u) - 1),
            "x2": _uniform(lambda x, u: 1.5 * _both(x["x1"], 0.0) + u / 4),
            "x3": _uniform(lambda x, u: _both(x["x1"], u)),
            "x4": _uniform(lambda x, u: _both(x["x2"], u)),
            "x5": _uniform(lambda x, u: _both(x["x3"], u)),
            "x6": _uniform(lambda x, u: _both(x["x4"], u)),
            "x7": _uniform(lambda x, u: _both(x["x5"], u)),
            "x8": _uniform(lambda x, u: softplus(x["x6"] + 1) - 1 + 0.3 * u),
            "x9": _uniform(
                lambda x, u: _laplace(u, 2 - softplus(1 + (1.3 * x["x7"] + x["x8"]) / 3), 0.6)
            ),
        },
    }
)

PUBLISHED = tuple(_MODELS)


def published(name: str) -> SCM:
    r"""A published structural model by its name, one of ``PUBLISHED``, features x1, x2, … in causal
    order.

    Noises are standard normal; where the publication has :math:`u \sim U(0, 1)`
    (``"large-backdoor"``), u is :math:`\Phi(\varepsilon)`. ``"triangle-nlin"`` has
    :math:`x_1 = \varepsilon + 1`, as in the publication's table; its code has
    :math:`x_1 = \varepsilon`.

    Raises ValueError for another name.
    """
    if name not in _MODELS:
        raise ValueError(f"name must be one of {', '.join(PUBLISHED)}, got {name!r}")
    return SCM(_MODELS[name])
