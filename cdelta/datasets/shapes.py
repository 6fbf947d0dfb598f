r"""Small painted pictures whose causes are known: a disc, a bar or a ring, larger or smaller,
brighter or darker.

.. math:: \text{size} = \varepsilon_1, \qquad \text{light} = 0.8\, \text{size} + 0.6\,\varepsilon_2,
    \qquad \text{image} = \mathrm{paint}(\text{kind}, \text{size}, \text{light}, \text{place})
    + 0.01\,\text{grain}

The kind is drawn by itself; all noises are standard normal and independent. ``across`` and ``down``
say where the shape stands; grain is of each pixel. :func:`made` makes pictures of noises, after an
intervention too: of the same noises these are the true counterfactuals. :func:`read` is the painter
read backwards.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from cdelta import _check
from cdelta.datasets._reading import fitted

KINDS = ("disc", "bar", "ring")
SIDE = 12  # pixels of a picture's side, which is the interval [-1, 1]
GRAIN = 0.01  # standard deviation of a pixel's own noise
SHARES = (0.4, 0.3, 0.3)  # of the kinds
SOFTNESS = 0.06  # of an edge: 1.6 pixels from 10 % to 90 %
NUMBERS = ("size", "light", "across", "down")  # what a picture shows besides its kind


class Noises(NamedTuple):
    """What pictures are made of."""

    kind: Int[Array, " n"]
    numbers: Float[Array, "n 4"]  # those of size, light, across, down
    grain: Float[Array, "n side side"]


class Reading(NamedTuple):
    """What pictures show: the kind whose best picture is nearest, its numbers ``[n]`` by name, and
    how near it is: the root mean square of the difference."""

    kind: Int[Array, " n"]
    numbers: dict[str, Float[Array, " n"]]
    distance: Float[Array, " n"]


def noises(key: PRNGKeyArray, n: int) -> Noises:
    """The noises of ``n`` pictures. Raises ValueError when n is not positive."""
    n, key = _check.count("n", n), _check.key("key", key)
    kind, numbers, grain = jax.random.split(key, 3)
    return Noises(
        jax.random.choice(kind, len(KINDS), (n,), p=jnp.asarray(SHARES)).astype(jnp.int32),
        jax.random.normal(numbers, (n, len(NUMBERS)), jnp.float32),
        jax.random.normal(grain, (n, SIDE, SIDE), jnp.float32),
    )


def made(noises: Noises, do: Mapping[str, ArrayLike] | None = None) -> dict[str, Array]:
    """What noises make, each ``[n, ...]`` by name: kind, size, light, across, down, image.

    ``do``: values, one for all or ``[n]``, that are set instead of what the equations say. Raises
    ValueError for a name that is none of the first five, values of another shape, numbers that are
    not finite, or kinds that are not 0, 1, 2.
    """
    n, values = len(noises.kind), {}
    for name, value in (do or {}).items():
        if name not in ("kind", *NUMBERS):
            raise ValueError(f"do must be of kind, {', '.join(NUMBERS)}, got {name!r}")
        values[name] = _set(f"do[{name!r}]", value, n, name == "kind")
    size, light, across, down = noises.numbers.T
    x = {"kind": values.get("kind", noises.kind), "size": values.get("size", size)}
    x["light"] = values.get("light", 0.8 * x["size"] + 0.6 * light)
    x |= {"across": values.get("across", across), "down": values.get("down", down)}
    x["image"] = _painted(x["kind"], jnp.stack([x[name] for name in NUMBERS], 1))
    x["image"] += GRAIN * noises.grain
    return x


def picture(kind: ArrayLike, numbers: Float[ArrayLike, "4"]) -> Float[Array, "side side"]:
    r"""A picture without grain: of the kind, with size, light, across and down.

    Dark is 0. The shape is :math:`0.55\, e^{\text{light}/4}` bright and
    :math:`R = 0.5\, e^{0.18\,\text{size}}` large: a disc of radius R; a bar that is 2R high and
    0.8R wide; a ring between the radii 0.6R and R. Its centre is at (across, down)/10. The picture
    is [-1, 1] wide and high.
    """
    kind, numbers = jnp.asarray(kind), _check.as_single("numbers", numbers)
    _check.shape("numbers", numbers, (len(NUMBERS),), f", {', '.join(NUMBERS)}")
    return _picture(kind, numbers)


def _picture(kind: Array, numbers: Array) -> Array:
    size, light, across, down = numbers
    span = (2 * jnp.arange(SIDE, dtype=numbers.dtype) + 1) / SIDE - 1
    x, y = span[None, :] - across / 10, span[:, None] - down / 10
    # without the kink at the centre
    radius, x, y = (jnp.sqrt(q + 1e-4) for q in (x**2 + y**2, x**2, y**2))
    R = 0.5 * jnp.exp(0.18 * size)
    disc = _inside(radius - R)
    bar = _inside(y - R) * _inside(x - 0.4 * R)
    ring = disc * _inside(0.6 * R - radius)
    shape = jnp.stack([disc, jnp.broadcast_to(bar, disc.shape), ring])
    return 0.55 * jnp.exp(light / 4) * shape[kind]


def _inside(distance: Array) -> Array:
    return jax.nn.sigmoid(-distance / SOFTNESS)


@jax.jit
def _painted(kind: Array, numbers: Array) -> Array:
    return jax.vmap(_picture)(kind, numbers)


def read(images: Float[ArrayLike, "n side side"], iterations: int = 12) -> Reading:
    r"""What pictures show that the painter may not have made: of each kind the numbers p that are
    likeliest, a local minimum of

    .. math:: \|\mathrm{paint}(\text{kind}, p) - \text{image}\|^2 + \text{grain}^2\, \|p - p_0\|^2

    from the picture's centre of gravity :math:`p_0`; then the kind that fits best.

    No flow and no classifier takes part. Raises ValueError for another shape, values that are not
    finite, or iterations that are not positive.
    """
    images = _check.as_single("images", images)
    if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE) or not images.size:
        raise ValueError(f"images must have shape (n, {SIDE}, {SIDE}), got {images.shape}")
    _check.finite("images", images)
    kind, numbers, distance = _read(images, _check.count("iterations", iterations))
    return Reading(kind, dict(zip(NUMBERS, numbers.T, strict=True)), distance)


@functools.partial(jax.jit, static_argnums=1)
def _read(images: Array, iterations: int) -> tuple[Array, Array, Array]:
    span = (2 * jnp.arange(SIDE, dtype=images.dtype) + 1) / SIDE - 1
    weight = jnp.clip(images, 0.1) - 0.1  # grain is no shape
    whole = weight.sum((1, 2)) + jnp.finfo(images.dtype).tiny
    centre = [10 * (weight.sum(axis) @ span) / whole for axis in (1, 2)]
    start = jnp.stack([jnp.zeros_like(whole), jnp.zeros_like(whole), *centre], 1)
    prior = jnp.asarray(GRAIN**2, images.dtype)

    def of_kind(kind):
        paint = functools.partial(_picture, kind)
        return fitted(paint, images, start, iterations, prior, batch=50)

    numbers, distance = jax.vmap(of_kind)(jnp.arange(len(KINDS)))
    kind, all_of_them = distance.argmin(0).astype(jnp.int32), jnp.arange(len(images))
    return kind, numbers[kind, all_of_them], distance[kind, all_of_them]


def _set(name: str, value: ArrayLike, n: int, label: bool) -> Array:
    if label:
        value = jnp.asarray(value)
        allowed = jnp.issubdtype(value.dtype, jnp.integer) and bool(
            ((value >= 0) & (value < len(KINDS))).all()
        )
        if not allowed:
            raise ValueError(f"{name} must be 0, 1 or 2, for {', '.join(KINDS)}, got {value}")
        value = value.astype(jnp.int32)
    else:
        value = _check.as_float(name, value)
        _check.finite(name, value)
        value = value.astype(jnp.float32)
    if value.shape not in ((), (n,)):
        raise ValueError(f"{name} must be one value, or one for each of {n}, got {value.shape}")
    return jnp.broadcast_to(value, (n,))
