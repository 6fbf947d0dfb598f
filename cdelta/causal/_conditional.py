r"""The flow of one feature given the values of its causes: a scalar equation, played forwards and
backwards."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Layers = tuple[tuple[Array, Array], ...]  # weights and offsets of each layer


class Nodes(NamedTuple):
    """The pieces of every feature's flow; each array's first axis is the feature. Its columns
    are the features and, in a model of other nodes as well, those of which a feature is made."""

    parents: Array  # [n, columns], 1 where it is a cause
    own: Array  # [n, columns], the identity: which of the columns it is
    center: Array  # [n]
    scale: Array  # [n]
    linear: Array  # [n, columns]
    constant: Array  # [n]
    spread: Array  # [n]
    affine: Layers  # causes -> nonlinear mean, log scale
    velocity: Layers  # t, point, causes -> velocity beyond N(0, 1)'s


def untrained(
    parents: np.ndarray,
    center: np.ndarray,
    scale: np.ndarray,
    linear: np.ndarray,
    constant: np.ndarray,
    spread: np.ndarray,
    sizes: tuple[int, int],
) -> Nodes:
    """Linear regressions with normal residuals: all networks are 0."""
    n, columns = parents.shape

    def zeros(inputs: int, outputs: int) -> Layers:
        width, layers = sizes
        widths = [inputs, *[width] * layers, outputs]
        return tuple((jnp.zeros((n, a, b), jnp.float32), jnp.zeros((n, b), jnp.float32))
                     for a, b in itertools.pairwise(widths))  # fmt: skip

    own = np.eye(n, columns)
    arrays = [jnp.asarray(a, jnp.float32)
              for a in (parents, own, center, scale, linear, constant, spread)]  # fmt: skip
    return Nodes(*arrays, zeros(columns, 2), zeros(2 + columns, 1))


def network(layers: Layers, inputs: Float[Array, "*N inputs"]) -> Float[Array, "*N outputs"]:
    for w, b in layers[:-1]:
        inputs = jax.nn.silu(inputs @ w + b)
    return inputs @ layers[-1][0] + layers[-1][1]


def causes(mask: Float[Array, " n"], z: Float[Array, " n"]) -> Float[Array, " n"]:
    """The causes as a network sees them: far values, as of a heavy tail, drawn in."""
    return mask * jnp.arcsinh(z)


def standardised(left: Array, out: Array) -> tuple[Array, Array]:
    """A residual of the regression less its nonlinear mean, over its scale; and that scale's log,
    which is bounded."""
    log_scale = spreads(out)
    return (left - out[..., 0]) * jnp.exp(-log_scale), log_scale


def spreads(out: Float[Array, "... 2"]) -> Float[Array, "..."]:
    """The log scale of a residual, bounded."""
    return 5 * jnp.tanh(out[..., 1] / 5)


def play(node: Nodes, z: Float[Array, " n"], noise: Float[Array, ""], steps: int) -> Array:
    """The value of one feature (standardised) that a noise makes, given the features before it."""
    residual, _ = solved(node, z, noise, steps, 0.0, 1.0)
    out = network(node.affine, causes(node.parents, z))
    left = residual * jnp.exp(spreads(out)) + out[0]
    return _predicted(node, z) + node.spread * left


def noise(node: Nodes, z: Float[Array, " n"], steps: int) -> tuple[Array, Array]:
    r"""The noise that made one feature, and :math:`\log |d\varepsilon/dx|` in the feature's own
    units."""
    left = (jnp.sum(node.own * z) - _predicted(node, z)) / node.spread
    out = network(node.affine, causes(node.parents, z))
    residual, log_scale = standardised(left, out)
    found, stretched = solved(node, z, residual, steps, 1.0, 0.0)
    return found, stretched - log_scale - jnp.log(node.spread) - jnp.log(node.scale)


def _predicted(node: Nodes, z: Array) -> Array:
    return jnp.sum(node.linear * z) + node.constant


def solved(
    node: Nodes, z: Array, start: Array, steps: int, t0: float, t1: float
) -> tuple[Array, Array]:
    r"""Runge–Kutta for :math:`u = x_t/s`, :math:`s^2 = (1-t)^2 + t^2`: in it the flow of N(0, 1)
    stands still, so that what was not learned is exact. With it goes the log of the slope."""
    given = causes(node.parents, z)

    def velocity(t: Array, u: Array) -> Array:
        inputs = jnp.concatenate([jnp.stack([t, u]), given])
        return network(node.velocity, inputs)[0] / jnp.sqrt((1 - t) ** 2 + t**2)

    def both(t: Array, u: Array) -> tuple[Array, Array]:
        return jax.jvp(lambda u: velocity(t, u), (u,), (jnp.ones_like(u),))

    h = jnp.asarray((t1 - t0) / steps, start.dtype)

    def step(state: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        u, log_slope = state
        t = t0 + i.astype(u.dtype) * h
        k1, d1 = both(t, u)
        k2, d2 = both(t + h / 2, u + h / 2 * k1)
        k3, d3 = both(t + h / 2, u + h / 2 * k2)
        k4, d4 = both(t + h, u + h * k3)
        u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return (u, log_slope + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)), None

    (u, log_slope), _ = jax.lax.scan(step, (start, jnp.zeros_like(start)), jnp.arange(steps))
    return u, log_slope
