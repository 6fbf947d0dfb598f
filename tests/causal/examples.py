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


def random_additive(seed, n, samples, linear=False):
    """Samples of a random model with additive normal noises, every feature of variance 1, and its
    graph (``graph[i, j]``: j causes i); the same before each feature is scaled.

    An edge with probability .6, at least one; a mechanism is a sum over its causes of a sine, a
    line and a square (or of the line alone); noises have standard deviations of .4 to .7.
    """
    rng = np.random.default_rng(seed)
    place = rng.permutation(n)
    upper = np.zeros((n, n), bool)
    while not upper.any():
        upper = np.tril(rng.random((n, n)) < 0.6, -1)
    x, raw, graph = np.zeros((samples, n)), np.zeros((samples, n)), np.zeros((n, n), bool)
    for at, i in enumerate(place):
        raw[:, i] = rng.uniform(0.4, 0.7) * rng.standard_normal(samples)
        for j in place[:at][upper[at, :at]]:
            graph[i, j] = True
            high, often, slope, bent = rng.uniform((0.6, 1, -1, -0.5), (1.5, 2.5, 1, 0.5))
            if linear:
                raw[:, i] += (slope + 0.3 * np.sign(slope)) * x[:, j]
            else:
                sign = rng.choice([-1, 1])
                wave = sign * high * np.sin(often * x[:, j])
                raw[:, i] += wave + slope * x[:, j] + bent * x[:, j] ** 2
        x[:, i] = (raw[:, i] - raw[:, i].mean()) / raw[:, i].std()
    return x, graph, raw


def admits(order, graph):
    """Whether every cause comes before its effects."""
    place = np.argsort(order)
    effects, causes = np.nonzero(graph)
    return bool((place[causes] < place[effects]).all())
