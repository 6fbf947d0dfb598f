r"""Two exact flows from N(0, I) onto laws with a gap, where wiggles are long: two modes on the line
(C3), and two Gaussians of the plane that cross like an X (C14).

What a sampled moment of their Jacobians tends to is known here, and which latents carry it.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float
from scipy.special import ndtr, ndtri

from cdelta import _check, jacobian, mixture
from cdelta.flow import Flow
from cdelta.gaussian import Gaussian
from cdelta.mixture import GaussianMixture

# ------------------------------------------------------------------------- two modes on the line


@dataclasses.dataclass(frozen=True)
class TwoModes:
    r"""The flow from N(0, 1) onto two equal modes at ±μ of width σ: the increasing map

    .. math:: f = F^{-1} \circ \Phi, \qquad f'(x) = \varphi(x) / p(f(x)),

    with the target's distribution function F and density p. ``separation`` is r = μ/σ; without a
    ``width`` the target has variance 1, σ = (1 + r²)^(-1/2). Arrays are NumPy's, of any shape.

    Raises ValueError for a separation or a width that is not positive.
    """

    separation: float | int
    width: float | int | None = None

    def __post_init__(self):
        if self.width is None:
            object.__setattr__(self, "width", float(1 / np.sqrt(1 + self.separation**2)))
        for name in ("separation", "width"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    def target(self) -> GaussianMixture:
        """The law, of variance (1 + r²) σ²."""
        places = jnp.asarray(self._places)[:, None]
        return GaussianMixture(jnp.full(2, 0.5), places, jnp.full((2, 1, 1), self.width**2))

    @property
    def _places(self):
        return self.separation * self.width * np.array([-1, 1])

    def density(self, y: Float[ArrayLike, "..."]) -> Float[ArrayLike, "..."]:
        """p(y)."""
        return _pdf(self._to_each(y)).mean(-1) / self.width

    def tail(self, y: Float[ArrayLike, "..."]) -> Float[ArrayLike, "..."]:
        """1 - F(y), accurate far to the right."""
        return _sf(self._to_each(y)).mean(-1)

    def _to_each(self, y):
        return (np.asarray(y)[..., None] - self._places) / self.width

    def latents(self, y: Float[ArrayLike, "..."]) -> Float[ArrayLike, "..."]:
        """x with f(x) = y: equal steps of y are short steps of x where f is steep."""
        return np.sign(y) * _isf(self.tail(np.abs(y)))

    def at(
        self, x: Float[ArrayLike, "..."]
    ) -> tuple[Float[ArrayLike, "..."], Float[ArrayLike, "..."]]:
        """f(x) and f'(x), by bisection, for f(x) within 12 standard deviations of 0."""
        x = np.asarray(x, float)
        low = np.zeros_like(x)
        high = np.full_like(x, 12.0 * self.width * np.sqrt(1 + self.separation**2))
        for _ in range(60):
            middle = (low + high) / 2
            right = self.tail(middle) > _sf(np.abs(x))
            low, high = np.where(right, middle, low), np.where(right, high, middle)
        y = np.sign(x) * (low + high) / 2
        return y, _pdf(x) / self.density(y)

    def carried(
        self, points: int = 20001
    ) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
        r"""Latents x ≥ 0, and what of :math:`E f'^2` those between -x and x carry.

        .. math:: \int_{|y| \le f(x)} \frac{\varphi(\Phi^{-1}(F(y)))^2}{p(y)}\, dy

        In y it is a harmless integral, by the trapezoidal rule in so many ``points``.
        """
        from scipy.integrate import cumulative_trapezoid

        y = np.linspace(0, (self.separation + 8) * self.width, _check.count("points", points))
        x, p = _isf(self.tail(y)), self.density(y)
        return x, 2 * cumulative_trapezoid(_pdf(x) ** 2 / p, y, initial=0)

    def factor(self) -> float:
        r""":math:`E f'^2 / \operatorname{Var} f`, by which the wiggles exceed the variance. It
        depends on r alone, and grows like :math:`\sqrt{\pi/2}\, e^{r^2/2} / r (1 + r^2)`."""
        return float(self.carried()[1][-1] / ((1 + self.separation**2) * self.width**2))

    @cached_property
    def value(self) -> Callable[[ArrayLike], np.ndarray]:
        """f, from a table: quicker than :meth:`at`, for separations of up to 6."""
        return self._spline(lambda x, y: y)

    @cached_property
    def slope(self) -> Callable[[ArrayLike], np.ndarray]:
        """f', from a table, for separations of up to 6."""
        return self._spline(lambda x, y: _pdf(x) / self.density(y))

    def _spline(self, of):
        from scipy.interpolate import CubicSpline

        y = (self.separation + 10.6) * self.width * np.linspace(-1, 1, 4001)
        x = self.latents(y)
        return CubicSpline(x, of(x, y))

    def product(self, g: Callable[[np.ndarray], np.ndarray], alpha: float | int) -> float:
        r""":math:`E[g(X)\, g(X_\alpha)]` of two latents of correlation α, for an even or an odd
        function such as :attr:`value` or :attr:`slope`.

        The first latent in steps of y = f(x), in the right half, the other in equal ones: fine
        enough, for nine digits, where the separation is at most 2.5.
        """
        step = 0.078 * self.width
        y = step * (np.arange(int((self.separation + 7) / 0.078)) + 0.5)
        first, mass = self.latents(y), 2 * self.density(y) * step
        other, dx = np.linspace(-6.5, 6.5, 1801, retstep=True)
        near = alpha * first[:, None] + np.sqrt(1 - alpha**2) * other
        return float(mass @ (g(first) * (g(near) @ (_pdf(other) * dx))))

    def accumulated(self, alpha: float | int, nodes: int = 24) -> float:
        r""":math:`\int_0^\alpha E[f'(X)\, f'(X_a)]\, da`, over the angle arcsin a, which C3' says
        is :math:`E[f(X)\, f(X_\alpha)]`."""
        angle, w = np.polynomial.legendre.leggauss(nodes)
        end = np.arcsin(alpha)
        angle = (angle + 1) / 2 * end
        heights = np.array([self.product(self.slope, np.sin(a)) for a in angle])
        return float(end / 2 * w @ (np.cos(angle) * heights))


def _pdf(x):
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


def _sf(x):
    return ndtr(-x)


def _isf(q):
    return -ndtri(q)


# ------------------------------------------------------------------ two Gaussians like an X (C14)


def crossed(rho: Float[ArrayLike, ""]) -> GaussianMixture:
    """Two equal Gaussians of the plane with variances 1 and correlations ρ and -ρ."""
    covs = jnp.array([[[1, sign * rho], [sign * rho, 1]] for sign in (1, -1)])
    return GaussianMixture(jnp.full(2, 0.5), jnp.zeros((2, 2)), covs)


def crossed_growth(rho: Float[ArrayLike, ""]) -> Any:
    r""":math:`\kappa = \tfrac12 ((1 - \rho^2)^{-1/2} - 1)`, at which slopes on the axes grow:
    :math:`E\|J\|^2` is infinite from κ = ½ on, ρ = .87, and the fourth moment from κ = 1/6."""
    return ((1 - rho**2) ** -0.5 - 1) / 2


def crossed_slope(rho: float | int, radius: Float[ArrayLike, "..."]) -> Float[ArrayLike, "..."]:
    r"""The flow's slope across an axis at this distance from the centre,
    :math:`(1 - \rho^2)^{1/4} e^{\kappa R^2}`; along the axis it is the first factor alone."""
    return _shrinking(rho) * np.exp(crossed_growth(rho) * np.square(radius))


def crossed_flow(rho: Float[ArrayLike, ""], steps: int = 200) -> Callable[[Array], Array]:
    r"""The flow onto :func:`crossed`, ``[2]`` to ``[2]``: :math:`(1 - \rho^2)^{1/4}\, \xi` of

    .. math:: \frac{d\xi}{ds} = \tfrac14 \tanh\bigl( \sinh(s/2)\, \xi_1 \xi_2 \bigr)
              \begin{pmatrix} \xi_2 \\ \xi_1 \end{pmatrix}, \qquad
              0 \le s \le \log \frac{1 + \rho}{1 - \rho},

    in so many steps of rk4.
    """
    inner, scale = _angles(rho, steps), _shrinking(rho)
    return lambda x: scale * inner(x)


def _shrinking(rho):
    return (1 - rho**2) ** 0.25


def _angles(rho, steps=200):
    end = jnp.log((1 + rho) / (1 - rho))

    def velocity(t, x):
        return end / 4 * jnp.tanh(jnp.sinh(end * t / 2) * x[0] * x[1]) * x[::-1]

    return Flow(velocity, solver="rk4", steps=steps)


def crossed_part(radius: Float[ArrayLike, ""], rho: Float[ArrayLike, ""]) -> Float[Array, ""]:
    r"""What :math:`E\|J\|^2` (squares of all entries) gets from latents on the hyperbolas
    :math:`|x_2^2 - x_1^2| = R^2`, as a density in R.

    .. math:: \|J\|^2 = \|B\|^2 / \det(B)^2, \qquad \varphi(x) = p(y) / |\det B|

    with the inverse map's Jacobian B: a sum over where latents end, in steps that are small where
    the ridges are narrow.
    """
    inner, scale = _angles(rho), _shrinking(rho)
    place, step = np.linspace(0, 1, 401, retstep=True)
    sharp = rho / jnp.sqrt(1 - rho**2) * radius**2  # ridges are 1 / sharp wide
    top = jnp.arcsinh(sharp * jnp.arcsinh(9 / radius))
    angle = jnp.sinh(place * top) / sharp
    spacing = jnp.cosh(place * top) * top / sharp * step
    y = radius * jnp.stack([jnp.sinh(angle), jnp.cosh(angle)], 1)
    x = jax.vmap(inner.inverse)(y)
    B = jax.vmap(lambda y: jacobian.jvp(inner.inverse, y, jnp.eye(2)).T)(y)
    plane, law = Gaussian.standard(2), crossed(rho)
    log_p = jax.vmap(lambda y: mixture.log_density(1.0, scale * y, plane, law))(y)
    density = jnp.exp(-(x**2).sum(1) - log_p) / (2 * jnp.pi) ** 2
    values = spacing * density * (B**2).sum((1, 2)) * radius
    return 8 * (values.sum() - values[0] / 2)
