r"""Any target: the velocity's Jacobian is the posterior covariance of the target point (C5).

For a Gaussian source :math:`N(m_0, \Sigma_0)` and any target law,

.. math:: v(t, x) = \frac{E[x_1 \mid x_t = x] - x}{1 - t}, \qquad
          \nabla v(t, x) = \frac{t}{(1-t)^3} \operatorname{Cov}[x_1 \mid x_t = x]\, \Sigma_0^{-1}
          - \frac{I}{1-t}

The target may be a Gaussian, a mixture, or a finite dataset, whose posterior is a softmax over its
points. All three stay finite at :math:`t = 1`, where the formulas above read 0/0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from cdelta import _check, gaussian as _gaussian, mixture
from cdelta._precision import one_dtype
from cdelta._pytree import pytree, unchecked
from cdelta.gaussian import Gaussian, Time
from cdelta.mixture import GaussianMixture


@pytree
class Empirical:
    r"""A finite dataset as a law: :math:`\frac1n \sum_i N(y_i, h^2 I)`, with point masses at
    bandwidth :math:`h = 0`.

    ``Empirical(points [n, ...], bandwidth=0.0)``: points of any shape. Raises ValueError when there
    are none, one is not finite, or the bandwidth is negative.
    """

    points: Float[Array, "n ..."]
    bandwidth: Float[Array, ""]

    def __init__(self, points: ArrayLike, bandwidth: ArrayLike = 0.0):
        points = _check.as_float("points", points)
        bandwidth = _check.as_float("bandwidth", bandwidth)
        if points.ndim < 2 or points.size == 0:
            raise ValueError(f"points must have shape (n, ...) with n >= 1, got {points.shape}")
        _check.finite("points", points)
        _check.shape("bandwidth", bandwidth, ())
        if _check.concrete(bandwidth) and not 0 <= float(bandwidth) < np.inf:
            raise ValueError(f"bandwidth must be finite and not negative, got {float(bandwidth)}")
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "bandwidth", bandwidth.astype(points.dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one point."""
        return self.points.shape[1:]

    @property
    def flat(self) -> Float[Array, "n d"]:
        """The points as vectors."""
        return self.points.reshape(self.points.shape[0], -1)

    @property
    def dim(self) -> int:
        return int(np.prod(self.shape))

    @property
    @one_dtype
    def mean(self) -> Float[Array, "..."]:
        return self.points.mean(0)

    @property
    @one_dtype
    def cov(self) -> Float[Array, "d d"]:
        """Covariance of the flattened points, widened by the bandwidth."""
        centred = self.flat - self.flat.mean(0)
        return centred.T @ centred / len(centred) + self.bandwidth**2 * jnp.eye(
            self.dim, dtype=self.points.dtype
        )

    @one_dtype
    def sample(self, key: PRNGKeyArray, n: int) -> Float[Array, "n ..."]:
        """``n`` independent draws: a point each, moved by the bandwidth's noise. Raises ValueError
        when n is not a positive integer."""
        n, key = _check.count("n", n), _check.key("key", key)
        key_point, key_noise = jax.random.split(key)
        drawn = jax.random.choice(key_point, self.points, (n,))
        return drawn + self.bandwidth * jax.random.normal(key_noise, drawn.shape, drawn.dtype)


Target = Gaussian | GaussianMixture | Empirical


@one_dtype
def mean(
    t: Time, x: Float[ArrayLike, "..."], source: Gaussian, target: Target
) -> Float[Array, "..."]:
    r"""Posterior mean :math:`E[x_1 \mid x_t = x]`, the denoiser (C5).

    Shapes: ``x`` and the result as one point of the target. At :math:`t = 1` it is x. Raises
    ValueError when ``x`` does not fit or ``t`` leaves [0, 1].
    """
    if isinstance(target, Empirical):
        t, x, post = _softmax(t, x, source, target)
        widened = t * target.bandwidth**2 * post.solve(post.residual)
        return jnp.where(post.degenerate, x.ravel(), post.centre + widened).reshape(x.shape)
    t, x, target = _closed(t, x, source, target)
    parts = mixture._components(t, x, source, target)
    return parts.responsibilities @ _component_means(t, parts, target)


@one_dtype
def cov(
    t: Time, x: Float[ArrayLike, "..."], source: Gaussian, target: Target
) -> Float[Array, "d d"]:
    r"""Posterior covariance :math:`\operatorname{Cov}[x_1 \mid x_t = x]`, within the components and
    between them (C5).

    .. math:: \operatorname{Cov}[x_1 \mid x_t = x]
              &= \sum_k \gamma_k \Bigl( (1-t)^2\, \Sigma_k S_k^{-1} \Sigma_0 \\
              &\quad + (\hat\mu_k - \hat\mu)(\hat\mu_k - \hat\mu)^{\mathsf T} \Bigr)

    with :math:`\hat\mu_k` the posterior mean given component k. On a dataset the components are the
    points.

    Shapes: ``x`` as one point of the target, the result ``[d, d]`` over flattened points. At
    :math:`t = 1` it is 0. Raises ValueError when ``x`` does not fit or ``t`` leaves [0, 1].
    """
    if isinstance(target, Empirical):
        t, x, post = _softmax(t, x, source, target)
        eye = jnp.eye(x.size, dtype=x.dtype)
        # (1-t)² S⁻¹Σ₀, by symmetry of both factors
        shrink = (1 - t) ** 2 * post.times_source(post.solve(eye)).T
        inner = shrink.T @ _weighted_cov(post.weights, post.points) @ shrink
        return jnp.where(post.degenerate, 0.0, _symmetric(target.bandwidth**2 * shrink + inner))
    t, x, target = _closed(t, x, source, target)
    parts = mixture._components(t, x, source, target)
    within = (1 - t) ** 2 * jnp.swapaxes(parts.solve(target.covs), 1, 2) @ source.cov
    # the components' means are x + (1-t) v_k: close to t = 1 they differ by less than x's rounding
    between = (1 - t) ** 2 * _weighted_cov(parts.responsibilities, parts.velocities)
    return _symmetric(jnp.einsum("k,kij->ij", parts.responsibilities, within) + between)


@one_dtype
def velocity(
    t: Time, x: Float[ArrayLike, "..."], source: Gaussian, target: Target
) -> Float[Array, "..."]:
    r"""Optimal velocity towards any target, :math:`v(t, x) = (E[x_1 \mid x_t = x] - x)/(1 - t)`
    (T3, T6, C5).

    Shapes: ``x`` and the result as one point of the target. At :math:`t = 1` it is :math:`x - m_0`
    (T12), which on a dataset of bandwidth 0 is the value at the data points; elsewhere the velocity
    grows as :math:`1/(1-t)` without a limit. Raises ValueError when ``x`` does not fit or ``t``
    leaves [0, 1].
    """
    if isinstance(target, Empirical):
        t, x, post = _softmax(t, x, source, target)
        moved = post.centre - source.mean + post.times_rate(post.solve(post.residual))
        return jnp.where(post.degenerate, x.ravel() - source.mean, moved).reshape(x.shape)
    if isinstance(target, Gaussian):
        return _gaussian.velocity(t, x, source, target)
    return mixture.velocity(t, x, source, target)


@one_dtype
def velocity_jacobian(
    t: Time, x: Float[ArrayLike, "..."], source: Gaussian, target: Target
) -> Float[Array, "d d"]:
    r"""Jacobian of the velocity: the posterior covariance, up to an affine map (C5).

    .. math:: \nabla v(t, x)
              = \frac{t}{(1-t)^3} \operatorname{Cov}[x_1 \mid x_t = x]\, \Sigma_0^{-1}
              - \frac{I}{1-t}

    evaluated without the cancellation at :math:`t \to 1`; for a dataset of bandwidth h, with
    weighted covariance :math:`C_w` of the points, it is
    :math:`(t h^2 I - (1-t)\Sigma_0) S^{-1} + t(1-t)\,\Sigma_0 S^{-1} C_w S^{-1}`.

    Shapes: ``x`` as one point of the target, the result ``[d, d]`` over flattened points. Raises
    ValueError as :func:`velocity` does.
    """
    if isinstance(target, Empirical):
        t, x, post = _softmax(t, x, source, target)
        inverse = post.solve(jnp.eye(x.size, dtype=x.dtype))
        spread = post.times_source(inverse @ _weighted_cov(post.weights, post.points) @ inverse)
        jacobian = post.times_rate(inverse) + t * (1 - t) * spread
        return jnp.where(post.degenerate, jnp.eye(x.size, dtype=x.dtype), jacobian)
    if isinstance(target, Gaussian):
        _closed(t, x, source, target)
        return _gaussian.velocity_jacobian(t, source, target)
    return mixture.velocity_jacobian(t, x, source, target)


@one_dtype
def velocity_jvp(
    t: Time,
    x: Float[ArrayLike, "..."],
    tangent: Float[ArrayLike, "..."],
    source: Gaussian,
    target: Target,
) -> Float[Array, "..."]:
    r"""Product of :func:`velocity_jacobian` with a vector, without the d×d matrix (C5).

    On a dataset it costs four products with the points: two for the weights and the mean, two for
    :math:`C_w S^{-1} p = \sum_i w_i\,(z_i - \bar z)\,y_i` with
    :math:`z_i = y_i^{\mathsf T} S^{-1} p`.

    Shapes: ``x``, ``tangent`` and the result as one point of the target. Raises ValueError as
    :func:`velocity` does.
    """
    if isinstance(target, Empirical):
        tangent = _check.as_float("tangent", tangent)
        _check.shape("tangent", tangent, target.shape, " to fit the points of target")
        t, x, post = _softmax(t, x, source, target)
        probe = tangent.ravel().astype(x.dtype)
        solved = post.solve(probe)
        along = post.points @ solved
        pulled = (post.weights * (along - post.weights @ along)) @ post.points
        product = post.times_rate(solved) + t * (1 - t) * post.times_source(post.solve(pulled))
        return jnp.where(post.degenerate, probe, product).reshape(x.shape)
    t, x, closed = _closed(t, x, source, target)
    return mixture.velocity_jvp(t, x, tangent, source, closed)


class _Softmax(NamedTuple):
    """A dataset's posterior at one (t, x). Covariances are matrices, or scalars for multiples of
    the identity."""

    weights: Array  # [n], posterior of the index
    points: Array  # [n, d], the points relative to their mean: their place has no rounding here
    centre: Array  # [d], weighted mean of the points
    residual: Array  # [d], x - (1-t)m₀ - t centre
    marginal: Array  # S = (1-t)²Σ₀ + t²h²I
    source_cov: Array  # Σ₀
    rate: Array  # th²I - (1-t)Σ₀
    degenerate: Array  # whether S = 0: t = 1 and no bandwidth

    def solve(self, rhs):
        return _solve(self.marginal, rhs)

    def times_source(self, rhs):
        return _times(self.source_cov, rhs)

    def times_rate(self, rhs):
        return _times(self.rate, rhs)


def _softmax(t, x, source, target):
    """Checked ``t`` and ``x``, and the posterior over the points.

    Logits are taken relative to the data's mean c: with e = y - c and u = x - (1-t)m₀ - tc they are
    t e·S⁻¹u - t² e·S⁻¹e / 2, and only the first term needs x. Rounding is then that of the small u
    and e, not of x and y.
    """
    if not isinstance(source, Gaussian):
        raise ValueError(f"source must be a cdelta.Gaussian, got {type(source).__name__}")
    if source.dim != target.dim:
        raise ValueError(
            f"source and target must agree in dimension, got {source.dim} and {target.dim}"
        )
    x = _check.as_float("x", x)
    _check.shape("x", x, target.shape, " to fit the points of target")
    dtype = jnp.result_type(source.mean, target.points, x)
    t, x = _check.time(t).astype(dtype), x.astype(dtype)
    points, h2 = target.flat, target.bandwidth**2
    eye = jnp.ones((), dtype) if source.isotropic else jnp.eye(source.dim, dtype=dtype)
    marginal = (1 - t) ** 2 * source.covariance + t**2 * h2 * eye
    degenerate = (t == 1) & (h2 == 0)
    marginal = jnp.where(degenerate, eye, marginal)
    middle = points.mean(0)
    points, u = points - middle, x.ravel() - (1 - t) * source.mean - t * middle
    weights = jax.nn.softmax(
        t * (points @ _solve(marginal, u)) - 0.5 * t**2 * _squares(marginal, points)
    )
    moved = weights @ points
    rate = t * h2 * eye - (1 - t) * source.covariance
    post = _Softmax(
        weights, points, middle + moved, u - t * moved,
        marginal, source.covariance, rate, degenerate,
    )  # fmt: skip
    return t, x, post


def _solve(matrix, rhs):
    return rhs / matrix if matrix.ndim == 0 else cho_solve((jnp.linalg.cholesky(matrix), True), rhs)


def _squares(matrix, points):
    """Squared norms y·S⁻¹y of the points, [n]; nothing larger than the data, also for a batch of
    scalar S."""
    if matrix.ndim == 0:
        return (points**2).sum(1) / matrix
    return (points * _solve(matrix, points.T).T).sum(1)


def _times(matrix, rhs):
    return matrix * rhs if matrix.ndim == 0 else matrix @ rhs


def _weighted_cov(weights, points):
    centred = points - weights @ points
    return (centred * weights[:, None]).T @ centred


def _symmetric(matrix):
    return (matrix + matrix.T) / 2


def _closed(t, x, source, target):
    """Checked ``t`` and ``x``, and a Gaussian target as a mixture of one."""
    if isinstance(target, Gaussian):
        target = unchecked(
            GaussianMixture, jnp.ones(1, target.mean.dtype), target.mean[None], target.cov[None]
        )
    elif not isinstance(target, GaussianMixture):
        raise ValueError(
            f"target must be a Gaussian, GaussianMixture or Empirical, got {type(target).__name__}"
        )
    return *mixture._inputs(t, source, target, x=x), target


def _component_means(t, parts, target):
    """E[x₁ | x_t = x, k] = μ_k + tΣ_k S_k⁻¹(x - m_k), [K, d]."""
    return target.means - t * jnp.einsum("kij,kj->ki", target.covs, parts.scores)
