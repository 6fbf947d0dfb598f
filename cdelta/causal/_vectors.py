r"""The flow of one vector given the values of its causes: an equation of d dimensions, played
forwards and backwards."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cdelta._pytree import Traceable
from cdelta.causal._conditional import Layers, causes, network, spreads, standardised

EXACT = 256  # numbers up to which a density is computed: its divergence takes one product each


class Vector(NamedTuple):
    """The pieces of a vector's flow; ``c`` columns are its causes."""

    center: Array  # [d]
    scale: Array  # [d]
    linear: Array  # [d, c]
    constant: Array  # [d]
    root: Array  # [d, d], of what the regression leaves: the symmetric root of its covariance
    unroot: Array  # [d, d], its inverse
    affine: Layers  # causes -> nonlinear mean, log scale
    velocity: Layers  # t, point, causes -> velocity beyond N(0, I)'s


class Own(NamedTuple):
    """The pieces of a flow whose velocity is a network of the user's."""

    center: Array  # []
    scale: Array  # []
    network: Traceable  # t, value, causes -> velocity


def untrained(d: int, c: int, sizes: tuple[int, int]) -> Vector:
    """The standard normal, whatever the causes: all networks are 0."""

    def zeros(inputs: int, outputs: int) -> Layers:
        width, layers = sizes
        widths = [inputs, *[width] * layers, outputs]
        return tuple((jnp.zeros((a, b), jnp.float32), jnp.zeros(b, jnp.float32))
                     for a, b in itertools.pairwise(widths))  # fmt: skip

    arrays = (np.zeros(d), np.ones(d), np.zeros((d, c)), np.zeros(d), np.eye(d), np.eye(d))
    return Vector(*(jnp.asarray(a, jnp.float32) for a in arrays), zeros(c, 2 * d),
                  zeros(1 + d + c, d))  # fmt: skip


def encoded(piece: Vector | Own, value: Float[Array, "..."]) -> Float[Array, " d"]:
    """A value as those see it that it is a cause of: standardised, in one row."""
    return (value.reshape(-1) - piece.center) / piece.scale


def play(
    piece: Vector | Own, given: Float[Array, " c"], noise: Float[Array, "..."], steps: int
) -> Float[Array, "..."]:
    """The value that a noise makes, given the causes as :func:`encoded`."""
    if isinstance(piece, Own):
        value, _ = _solved(_velocity_of_own(piece, given), noise, steps, 0.0, 1.0, False)
        return piece.center + piece.scale * value
    residual, _ = _solved(_velocity(piece, given), noise.reshape(-1), steps, 0.0, 1.0, False)
    mean, log_scale = _affine(piece, given)
    left = mean + jnp.exp(log_scale) * residual
    value = piece.linear @ given + piece.constant + piece.root @ left
    return (piece.center + piece.scale * value).reshape(noise.shape)


def noise(
    piece: Vector | Own, given: Float[Array, " c"], value: Float[Array, "..."], steps: int,
    density: bool,
) -> tuple[Float[Array, "..."], Float[Array, ""]]:  # fmt: skip
    r"""The noise that made a value and, where a density is wanted, :math:`\log |\det
    d\varepsilon/dx|`, else 0."""
    size = jnp.sum(jnp.log(jnp.broadcast_to(piece.scale, (value.size,))))
    if isinstance(piece, Own):
        start = (value - piece.center) / piece.scale
        velocity = _velocity_of_own(piece, given)
        found, stretched = _solved(velocity, start, steps, 1.0, 0.0, density)
        return found, stretched - size if density else stretched
    left = encoded(piece, value) - piece.linear @ given - piece.constant
    residual, log_scale = standardised(piece.unroot @ left, _outputs(piece, given))
    found, stretched = _solved(_velocity(piece, given), residual, steps, 1.0, 0.0, density)
    if density:
        turned = jnp.linalg.slogdet(piece.unroot)[1]
        stretched = stretched - jnp.sum(log_scale) + turned - size
    return found.reshape(value.shape), stretched


def _outputs(piece: Vector, given: Array) -> Float[Array, "d 2"]:
    return network(piece.affine, causes(jnp.ones_like(given), given)).reshape(-1, 2)


def _affine(piece: Vector, given: Array) -> tuple[Array, Array]:
    out = _outputs(piece, given)
    return out[:, 0], spreads(out)


def _velocity(piece: Vector, given: Array) -> Callable:
    r"""That of :math:`u = x_t/s`, :math:`s^2 = (1-t)^2 + t^2`: in it the flow of N(0, I) stands
    still."""
    seen = causes(jnp.ones_like(given), given)

    def velocity(t: Array, u: Float[Array, " d"]) -> Float[Array, " d"]:
        inputs = jnp.concatenate([t[None], u, seen])
        return network(piece.velocity, inputs) / jnp.sqrt((1 - t) ** 2 + t**2)

    return velocity


def _velocity_of_own(piece: Own, given: Array) -> Callable:
    """In float32, in which it was trained."""
    condition = [causes(jnp.ones_like(given), given).astype(jnp.float32)] if given.size else []

    def velocity(t: Array, x: Array) -> Array:
        narrow = t.astype(jnp.float32), x.astype(jnp.float32)
        return piece.network(*narrow, *condition).astype(x.dtype)

    return velocity


def _solved(
    velocity: Callable, start: Array, steps: int, t0: float, t1: float, density: bool
) -> tuple[Array, Array]:
    """Runge–Kutta, with the integral of the divergence where it is wanted."""

    def divergence(t: Array, x: Array) -> Array:
        if not density:
            return jnp.zeros((), x.dtype)
        rows = jax.jacfwd(lambda flat: velocity(t, flat.reshape(x.shape)).reshape(-1))
        return jnp.trace(rows(x.reshape(-1)))

    h = jnp.asarray((t1 - t0) / steps, start.dtype)

    def step(state: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        x, log_det = state
        t = t0 + i.astype(x.dtype) * h
        slopes, divergences = [], []
        for share in (0.0, 0.5, 0.5, 1.0):
            at = x + share * h * slopes[-1] if slopes else x
            # rounding must not carry a time out of [0, 1]
            now = jnp.clip(t + share * h, 0, 1).astype(x.dtype)
            slopes.append(velocity(now, at))
            divergences.append(divergence(now, at))
        (a, b, c, d), (e, f, g, k) = slopes, divergences
        new = x + h / 6 * (a + 2 * b + 2 * c + d)
        return (new, log_det + h / 6 * (e + 2 * f + 2 * g + k)), None

    state = start, jnp.zeros((), start.dtype)
    (x, log_det), _ = jax.lax.scan(step, state, jnp.arange(steps))
    return x, log_det
