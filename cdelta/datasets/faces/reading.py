"""The painter read backwards: the attributes of a picture that the painter may not have made."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from cdelta import _check
from cdelta.datasets._reading import fitted
from cdelta.datasets.faces.painter import NUISANCES, picture
from cdelta.datasets.faces.structure import ATTRIBUTES


class Reading(NamedTuple):
    """Attributes and nuisances of the painted face that fits best, and how well: the root mean
    square of the difference of the pictures, whose range is 2."""

    attributes: Float[Array, "n attributes"]
    nuisances: Float[Array, "n nuisances"]
    distance: Float[Array, " n"]


def read(
    images: Float[ArrayLike, "n height width 3"],
    start: Float[ArrayLike, "n parameters"],
    iterations: int = 8,
    prior: float = 0.02,
) -> Reading:
    r"""The attributes and nuisances p of the painted face that fits each image best: a local
    minimum of

    .. math:: \|\mathrm{render}(p) - \text{image}\|^2 + \text{prior}\, \|p - \text{start}\|^2 .

    Levenberg and Marquardt's method with exact derivatives, from ``start`` (attributes, then
    nuisances). No classifier takes part, so that what was done to please one is not mistaken for
    what was done to the picture. ``prior`` keeps a parameter that the picture does not show (the
    eyes' colour at its end, say) from running away, and draws all others to ``start`` a little:
    start where nothing has changed, and a change is rather missed than invented.

    Raises ValueError when a shape is wrong, values are not finite, iterations not positive, or
    prior negative.
    """
    images, start = _check.as_single("images", images), _check.as_single("start", start)
    if images.ndim != 4 or not images.size or images.shape[-1] != 3:
        raise ValueError(f"images must have shape (n, height, width, 3), got {images.shape}")
    expected = len(images), len(ATTRIBUTES) + len(NUISANCES)
    _check.shape("start", start, expected, ", attributes and nuisances of each image")
    _check.finite("images", images)
    _check.finite("start", start)
    iterations = _check.count("iterations", iterations)
    if not prior >= 0:
        raise ValueError(f"prior must not be negative, got {prior}")
    p, distance = _read(
        images, start.astype(images.dtype), iterations, jnp.asarray(prior, images.dtype)
    )
    return Reading(p[:, : len(ATTRIBUTES)], p[:, len(ATTRIBUTES) :], distance)


@functools.partial(jax.jit, static_argnums=2)
def _read(images: Array, start: Array, iterations: int, prior: Array) -> tuple[Array, Array]:
    height, width = images.shape[1:3]
    return fitted(lambda p: picture(p, height, width), images, start, iterations, prior)
