r"""Attributes of a drawn digit, as closed-form and differentiable functions of its image: no
classifier's bias.

An image ``[h, w]`` holds paper at -1 and ink at 1; :math:`u = (1 + \text{image})/2` is its ink.
Places are in pixels from the image's middle, :math:`p = (x, y)` with x to the right and y **up**.
Moments weigh a place by the *square* of its ink: a weight that is never negative, where a generated
image strays below paper too, and under which the faint grey that a generated background has hardly
counts. Doubling the ink changes none of them. An image in half precision is measured in single.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from cdelta import _check

NAMES = ("ink", "x", "y", "width", "height", "slant", "balance", "thickness")
# a change of ink from one pixel to the next that is small against this is no edge of a stroke
EDGE = 0.05


def digit(image: Float[ArrayLike, "h w"]) -> Float[Array, " attributes"]:
    """All attributes of one image, in the order of :data:`NAMES`.

    Raises ValueError as the functions below do: for an image that is no matrix or not finite,
    without ink, or with all its ink in one row or one column. Values are looked at outside ``jit``
    only; inside, such an image gives NaN.
    """
    (x, y), cov = centre(image), covariance(image)
    return jnp.stack(
        [
            ink(image),
            x,
            y,
            jnp.sqrt(cov[0, 0]),
            jnp.sqrt(cov[1, 1]),
            cov[0, 1] / cov[1, 1],
            balance(image),
            thickness(image),
        ]
    )


def ink(image: Float[ArrayLike, "h w"]) -> Float[Array, ""]:
    r"""Total ink, :math:`\sum_p u_p`: the area of the strokes, in pixels."""
    return _ink(image).sum()


def centre(image: Float[ArrayLike, "h w"]) -> Float[Array, "2"]:
    r"""The ink's centre, :math:`c = \sum_p u_p^2\, p \big/ \sum_p u_p^2`, as (x, y) in pixels from
    the middle."""
    weight, x, y = _weights(_ink(image))
    return jnp.stack([(weight * x).sum(), (weight * y).sum()])


def covariance(image: Float[ArrayLike, "h w"]) -> Float[Array, "2 2"]:
    r"""How the ink spreads,
    :math:`C = \sum_p u_p^2\, (p - c)(p - c)^{\mathsf T} \big/ \sum_p u_p^2`, in pixels².

    Raises ValueError also when the ink lies in one row or one column, where neither slant nor
    balance mean anything.
    """
    weight, x, y = _centred(_ink(image))
    xx, xy, yy = (weight * x * x).sum(), (weight * x * y).sum(), (weight * y * y).sum()
    if _check.concrete(xx, yy) and not min(float(xx), float(yy)) > 0:
        raise ValueError("image must have ink in more than one row and more than one column")
    return jnp.stack([jnp.stack([xx, xy]), jnp.stack([xy, yy])])


def width(image: Float[ArrayLike, "h w"]) -> Float[Array, ""]:
    r"""Standard deviation of the ink across, :math:`\sqrt{C_{xx}}`, in pixels."""
    return jnp.sqrt(covariance(image)[0, 0])


def height(image: Float[ArrayLike, "h w"]) -> Float[Array, ""]:
    r"""Standard deviation of the ink upwards, :math:`\sqrt{C_{yy}}`, in pixels."""
    return jnp.sqrt(covariance(image)[1, 1])


def slant(image: Float[ArrayLike, "h w"]) -> Float[Array, ""]:
    r"""Slope of the regression of x on y, :math:`C_{xy} / C_{yy}`: pixels to the right for one up.

    Positive for a hand that leans to the right. A shear :math:`x \to x + s y` adds s to it.
    """
    cov = covariance(image)
    return cov[0, 1] / cov[1, 1]


def balance(image: Float[ArrayLike, "h w"]) -> Float[Array, ""]:
    r"""Skewness of the ink's height,
    :math:`\sum_p u_p^2 (y - c_y)^3 \big/ \bigl( C_{yy}^{3/2} \sum_p u_p^2 \bigr)`.

    Positive when the ink sits low and a little of it reaches far up, as in a six; negative for a
    nine. No unit.
    """
    weight, _, y = _centred(_ink(image))
    return (weight * y**3).sum() / covariance(image)[1, 1] ** 1.5


def thickness(image: Float[ArrayLike, "h w"]) -> Float[Array, ""]:
    r"""Thickness of the strokes, twice their area over the length of their edges, in pixels.

    .. math:: \frac{2 \sum_p u_p}{\sum_q h(\lVert \nabla u_q \rVert)}, \qquad
        h(g) = \frac{g^2}{\sqrt{g^2 + \epsilon^2}}

    with :math:`\nabla u` the mean difference in each square of four pixels (outside the image is
    paper), and :math:`\epsilon` = :data:`EDGE`. For :math:`g \gg \epsilon` the denominator is the
    total variation, which is the length of the edges times the ink's step there, sharp or soft. So
    a stroke of width b and length :math:`\ell` gives :math:`b/(1 + b/\ell)`, a ring of width b
    exactly b, a disc its radius, each up to the pixels' resolution.
    """
    u = _ink(image)
    area = u.sum()
    _has_ink(area)
    u = jnp.pad(u, 1)
    across, up = jnp.diff(u, axis=1), jnp.diff(u, axis=0)
    squared = ((across[1:] + across[:-1]) / 2) ** 2 + ((up[:, 1:] + up[:, :-1]) / 2) ** 2
    return 2 * area / (squared / jnp.sqrt(squared + EDGE**2)).sum()


def _ink(image: ArrayLike) -> Array:
    image = _check.as_single("image", image)
    if image.ndim != 2 or not image.size:
        raise ValueError(
            f"image must be a matrix [h, w] of pixels, got shape {image.shape}; batch with jax.vmap"
        )
    _check.finite("image", image)
    return (1 + image) / 2


def _has_ink(total: Array) -> None:
    if _check.concrete(total) and not float(total) > 0:
        raise ValueError(
            f"image must hold some ink (paper is -1, ink is 1), got a total of {float(total):.3g}"
        )


def _weights(u: Array) -> tuple[Array, Array, Array]:
    """u² normalised, and the places x ``[1, w]`` and y ``[h, 1]``."""
    h, w = u.shape
    total = (u**2).sum()
    _has_ink(total)
    x, y = np.arange(w)[None, :] - (w - 1) / 2, (h - 1) / 2 - np.arange(h)[:, None]
    return u**2 / total, jnp.asarray(x, u.dtype), jnp.asarray(y, u.dtype)


def _centred(u: Array) -> tuple[Array, Array, Array]:
    """As :func:`_weights`, with the places counted from the ink's centre."""
    weight, x, y = _weights(u)
    return weight, x - (weight * x).sum(), y - (weight * y).sum()
