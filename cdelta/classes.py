r"""Samples of several classes: what varies within a class, and two classes with a border between
them, in closed form (C8)."""

from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float

GRID = np.linspace(-9, 9, 400_001)  # of a normal variable, for quadrature
_DENSITY = np.exp(-(GRID**2) / 2) / np.sqrt(2 * np.pi) * (GRID[1] - GRID[0])
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
    return float(_DENSITY @ np.tanh(u) ** 2), float(_DENSITY @ _sech2(u) ** 2 / width**2)


def sign_covariance(
    width: float | int, within: Float[ArrayLike, "n n"], jump: Float[ArrayLike, " n"]
) -> Float[np.ndarray, "2 2"]:
    r"""The spatial sign covariance of the wiggles at such a border, for two features: the second
    moment of their directions, in which each latent has the same vote (C8).

    .. math:: E\,\frac{w w^{\mathsf T}}{|w|^2} =
        E\,\frac{C + \sqrt{\det C}\, I}{\operatorname{tr} C + 2 \sqrt{\det C}},
        \qquad w = J z, \quad C = J J^{\mathsf T} = A A^{\mathsf T}
        + \delta^{-2} \operatorname{sech}^4(\xi/\delta)\, \Delta \Delta^{\mathsf T}

    with ``within`` :math:`A A^{\mathsf T}` and ``jump`` Δ; the map, ξ and :math:`A e_1 = 0` are
    those of :func:`border`, latent and probe z independent and standard normal, features in the
    units in which directions are taken. Given ξ, w is normal, and in the plane the directions of a
    normal vector have the second moment :math:`C^{1/2} / \operatorname{tr} C^{1/2}`. By quadrature
    over ξ; an infinite width is no border. Raises ValueError unless the width is positive, and the
    others are a positive definite matrix and a vector of two features.
    """
    within, jump = np.asarray(within, float), np.asarray(jump, float)
    if within.shape != (2, 2) or jump.shape != (2,):
        raise ValueError(
            f"within and jump must be of two features, got shapes {within.shape} and {jump.shape}"
        )
    symmetric = np.allclose(within, within.T)
    if not (symmetric and np.trace(within) > 0 and np.linalg.det(within) > 0):
        raise ValueError(f"within must be positive definite, got {within.tolist()}")
    steep = slope(GRID, width) ** 2
    # det (W + s b bᵀ) = det W (1 + s bᵀ W⁻¹ b)
    root = np.sqrt(np.linalg.det(within) * (1 + steep * (jump @ np.linalg.solve(within, jump))))
    share = _DENSITY / (np.trace(within) + steep * (jump @ jump) + 2 * root)
    return share.sum() * within + share @ steep * np.outer(jump, jump) + share @ root * np.eye(2)


def _sech2(u: Any) -> Any:
    return 1 / np.cosh(np.minimum(np.abs(u), FARTHEST)) ** 2


def _positive(width: float | int) -> float | int:
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    return width
