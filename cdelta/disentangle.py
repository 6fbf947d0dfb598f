r"""Attributes whose gradients in the latent are orthogonal: how far they are from it, a training
objective that asks for it, and what moving one does to the others (L7).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, Shaped

from cdelta import _check, jacobian, training
from cdelta._stream import power_of_two
from cdelta.flow import Flow


def overlap(rows: Float[ArrayLike, "n ..."]) -> Float[Array, ""]:
    r"""How far the features' gradients at a latent are from orthogonal: the mean squared cosine
    between two of them.

    .. math:: \frac{2}{n(n-1)} \sum_{i < j} \frac{(\nabla y_i \cdot \nabla y_j)^2}
        {\|\nabla y_i\|^2 \|\nabla y_j\|^2}

    0 where they are orthogonal, 1 where all are parallel, 1/d on average for random directions in d
    dimensions; a turn of the latent changes nothing. ``rows``: one gradient a feature
    (:func:`cdelta.jacobian.rows`). A gradient that is zero counts as orthogonal to all. Raises
    ValueError for fewer than two features.
    """
    rows = _check.as_float("rows", rows)
    if rows.ndim < 2 or len(rows) < 2:
        raise ValueError(f"rows must hold at least two gradients [n, *shape], got {rows.shape}")
    n, flat = len(rows), rows.reshape(len(rows), -1)
    # each in units of its size first, so that its square stays in range; a row of zeros is divided
    # by 1, so that the derivative is finite as well
    flat = flat / power_of_two(jax.lax.stop_gradient(jnp.abs(flat).max(1)))[:, None]
    squares = (flat**2).sum(1)
    flat = flat / jnp.sqrt(jnp.where(squares > 0, squares, 1))[:, None]
    cosines = jnp.matmul(flat, flat.T, precision="highest") ** 2
    return (cosines.sum() - jnp.trace(cosines)) / (n * (n - 1))


@dataclasses.dataclass(frozen=True)
class OrthogonalGradients:
    r"""An objective for :func:`cdelta.training.fit`: flow matching, and a penalty on the overlap of
    the attributes' gradients.

    .. math:: L(v) + \lambda\, E\bigl[\operatorname{overlap} \nabla_{x_0}\, h(f_v(x_0))\bigr]

    with the flow-matching loss L (:func:`cdelta.training.loss`), the flow map :math:`f_v` of the
    velocity (midpoint, ``steps`` steps), the attributes ``readout`` :math:`h(x_1)`, a function of
    one sample that gives ``[n]``, and λ = ``weight``. The average is over ``latents`` latents from
    N(0, I), new ones at every step.

    Flow matching has one minimiser, so that any weight above 0 moves the flow away from it unless
    the overlap is stationary there (attributes that are orthogonal already are one such case, and
    gradients that are all parallel another): quality is what the penalty costs. Meant for small
    flows: a step differentiates the flow's Jacobian.

    Raises ValueError for a weight that is negative or not finite, and counts that are not positive.
    """

    readout: Callable[[Array], Array]
    weight: float | int = 1.0
    latents: int = 64
    steps: int = 4

    def __post_init__(self) -> None:
        weight = float(self.weight)
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight must be finite and not negative, got {self.weight}")
        object.__setattr__(self, "weight", weight)
        for name in ("latents", "steps"):
            object.__setattr__(self, name, _check.count(name, getattr(self, name)))

    def __call__(
        self, network: Any, key: PRNGKeyArray, x1: Float[Array, "n ..."]
    ) -> Float[Array, ""]:
        key_loss, key_latents = jax.random.split(key)
        matching = training.loss(network, key_loss, x1)
        flow = Flow(network, "midpoint", self.steps)
        x0 = jax.random.normal(key_latents, (self.latents, *x1.shape[1:]), matching.dtype)
        rows = jax.vmap(lambda x: jacobian.rows(lambda x: self.readout(flow(x)), x))(x0)
        return matching + self.weight * jax.vmap(overlap)(rows).mean()


def along(
    f: Callable[[Array], Array],
    x0: Float[ArrayLike, "*shape"],
    direction: Float[ArrayLike, "*shape"],
    k: int,
    to: Shaped[ArrayLike, ""],
    *,
    reach: float | int = 8.0,
    points: int = 256,
) -> Float[Array, "*shape"]:
    r"""The latent on a straight line at which feature k has the value ``to``:
    :math:`x_0 + s\,u`, at the smallest :math:`|s|` that has it.

    The line is looked at ``points`` times in :math:`|s| \le \text{reach}` lengths of ``direction``;
    on either side of x0 the nearest interval with a crossing is halved. Shapes: x0's. NaN where the
    value is not met: no crossing, or one at a jump or a pole, where no value near ``to`` is taken.
    The straight latent direction of common practice, beside :func:`cdelta.causal.follow` and
    :func:`cdelta.causal.steer`. Raises ValueError when shapes disagree, k is out of range, ``to``
    is no scalar, or f gives no vector.
    """
    x0, direction = _check.as_float("x0", x0), _check.as_float("direction", direction)
    _check.shape("direction", direction, x0.shape, " of x0")
    k = _check.index("k", k, _check.vector("f", f, x0.shape, x0.dtype))
    to = _check.as_float("to", to)
    _check.shape("to", to, ())
    s = jnp.linspace(-float(reach), float(reach), _check.count("points", points)).astype(x0.dtype)

    def excess(s: Array) -> Array:
        value = f(x0 + s * direction)[k]
        return value - to.astype(value.dtype)

    values = jax.vmap(excess)(s)
    # signs, as a product of two small numbers would be zero
    crossed = jnp.sign(values[1:]) * jnp.sign(values[:-1]) <= 0
    rounding = 64 * jnp.finfo(values.dtype).eps * (jnp.nanmax(jnp.abs(values)) + jnp.abs(to))

    def crossing(side: Array) -> tuple[Array, Array]:
        """Where the value is met on one side, and whether it is."""
        distance = jnp.where(crossed & side, jnp.abs(s[1:] + s[:-1]), jnp.inf)
        i = distance.argmin()
        ends = s[i], s[i + 1], values[i], values[i + 1]
        low, high, at_low, at_high = jax.lax.fori_loop(0, 20, narrow, ends)
        gap = at_high - at_low
        place = low - at_low * (high - low) / jnp.where(gap == 0, 1, gap)
        # what is left is compared with the interval's values before it was halved
        left, before = jnp.abs(excess(place)), jnp.abs(values[i]) + jnp.abs(values[i + 1])
        return place, (distance[i] < jnp.inf) & (left <= before / 64 + rounding)

    def narrow(_: Any, ends: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, at_low, at_high = ends
        middle = (low + high) / 2
        at = excess(middle)
        left = jnp.sign(at_low) * jnp.sign(at) <= 0  # the crossing is in the left half
        return (
            jnp.where(left, low, middle),
            jnp.where(left, middle, high),
            jnp.where(left, at_low, at),
            jnp.where(left, at, at_high),
        )

    places, met = jax.vmap(crossing)(jnp.stack([s[:-1] < 0, s[1:] > 0]))
    place = places[jnp.where(met, jnp.abs(places), jnp.inf).argmin()]
    return jnp.where(met.any(), x0 + place * direction, jnp.nan)
