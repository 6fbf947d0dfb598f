"""Models to try things on, and one of them by hand."""

import jax.numpy as jnp
import numpy as np
from jax.nn import softplus
from jax.scipy.stats import norm

from cdelta.causal import SCM, LinearSCM


def random_scm(seed, n):
    """A dense graph on shuffled features, so that the causal order is not the order of the
    indices."""
    rng = np.random.default_rng(seed)
    place = rng.permutation(n)
    weights = np.tril(rng.normal(size=(n, n)), -1)[np.ix_(place, place)]
    return LinearSCM(weights, rng.uniform(0.5, 1.5, n), rng.normal(size=n))


def curved():
    """A nonlinear common cause, its noise scaled by the cause, and a collider."""
    return SCM(
        {
            "z": lambda x, e: e,
            "a": lambda x, e: jnp.sin(x["z"]) + (0.5 + 0.2 * x["z"] ** 2) * e,
            "b": lambda x, e: x["z"] ** 2 - jnp.sinh(0.5 * e),
            "c": lambda x, e: jnp.tanh(x["a"]) * x["b"] + e + 0.1 * e**3,
        }
    )


def by_hand(noise):
    z, u, v, w = noise
    a = np.sin(z) + (0.5 + 0.2 * z**2) * u
    b = z**2 - np.sinh(0.5 * v)
    return np.array([z, a, b, np.tanh(a) * b + w + 0.1 * w**3])


def large_backdoor():
    """Nine nodes of the Causal-NF benchmark, their uniform noises made of standard normal ones."""

    def both(x, y):
        return softplus(x + 1) + softplus(y + 0.5) - 3

    def laplace(u, location, scale):
        return location + scale * jnp.where(u < 0.5, jnp.log(2 * u), -jnp.log(2 * (1 - u)))

    equations = {
        "x1": lambda x, u: softplus(1.8 * u) - 1,
        "x2": lambda x, u: 1.5 * both(x["x1"], 0.0) + u / 4,
        "x3": lambda x, u: both(x["x1"], u),
        "x4": lambda x, u: both(x["x2"], u),
        "x5": lambda x, u: both(x["x3"], u),
        "x6": lambda x, u: both(x["x4"], u),
        "x7": lambda x, u: both(x["x5"], u),
        "x8": lambda x, u: softplus(x["x6"] + 1) - 1 + 0.3 * u,
        "x9": lambda x, u: laplace(u, 2 - softplus(1 + (1.3 * x["x7"] + x["x8"]) / 3), 0.6),
    }

    def uniform(equation):
        return lambda x, e: equation(x, norm.cdf(e))

    return SCM({name: uniform(equation) for name, equation in equations.items()})
