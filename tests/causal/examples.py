"""Models to try things on, and one of them by hand."""

import jax.numpy as jnp
import numpy as np

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
