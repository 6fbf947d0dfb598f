r"""Samples of several classes: what varies within a class, and two classes with a border between
them, in closed form (C8)."""

from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float

GRID = np.linspace(-9, 9, 400_001)  # of a normal variable, for quadrature
FARTHEST = 300  # widths from the border: its slope is below 1e-258 there, and cosh would overflow


def centred(
    values: Float[ArrayLike, "N n"], labels: ArrayLike | None = None
) -> Float[np.ndarray, "N n"]:
    r"""Values minus their mean, or, with ``labels`` ``[N]``, minus the mean of their class.

    Their second moments are the total :math:`\operatorname{Cov} y` and, of the latter, what is
    within a class, :math:`W = E \operatorname{Cov}[y \mid k]`. Raises ValueError unless there is a
    label for each row.
    """
    values = np.asarray(values)
    if labels is None:
        return values - values.mean(0)
    labels = np.asarray(labels)
    if labels.shape != values.shape[:1]:
        raise ValueError(f"labels must be one for each of {len(values)} rows, got {labels.shape}")
    kinds, kind = np.unique(labels, return_inverse=True)
    return values - np.stack([values[labels == k].mean(0) for k in kinds])[kind]


def slope(x: ArrayLike, width: float | int) -> Float[np.ndarray, "..."]:
    r"""How steep a border of this width is, :math:`\frac{d}{dx} \tanh(x/\delta) = \delta^{-1}
    \operatorname{sech}^2(x/\delta)`. Raises ValueError unless the width is positive."""
    return np.asarray(_sech2(np.asarray(x, float) / _positive(width)) / width)


def border(width: float | int) -> tuple[float, float]:
    r"""What a border of width δ between two classes adds to the covariance of the features, and to
    the moment of their wiggles: the coefficients τ and ω of :math:`\Delta \Delta^{\mathsf T}` (C8).

    .. math:: f(x_0) = \Delta \tanh(\xi/\delta) + A x_0, \quad \xi = x_{0,1}, \quad A e_1 = 0 :
        \qquad \tau = E \tanh^2(\xi/\delta), \quad
        \omega = \delta^{-2}\, E \operatorname{sech}^4(\xi/\delta)

    By quadrature, for widths down to 10⁻³. As δ → 0, τ → 1 and :math:`\delta\,\omega \to
    4/(3\sqrt{2\pi})`: the sharper the border, the more the average wiggle exaggerates it. Raises
    ValueError unless the width is positive.
    """
    u = GRID / _positive(width)
    density = np.exp(-(GRID**2) / 2) / np.sqrt(2 * np.pi) * (GRID[1] - GRID[0])
    return float(density @ np.tanh(u) ** 2), float(density @ _sech2(u) ** 2 / width**2)


def _sech2(u: Any) -> Any:
    return 1 / np.cosh(np.minimum(np.abs(u), FARTHEST)) ** 2


def _positive(width: float | int) -> float | int:
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    return width
