r"""Flows between two Gaussians: the optimal velocity, the flow that it generates, and the transport
path.

Throughout, :math:`x_t = (1-t)\,x_0 + t\,x_1` with independent :math:`x_0 \sim N(m_0, \Sigma_0)` and
:math:`x_1 \sim N(m_1, \Sigma_1)`, so that :math:`x_t \sim N(m(t), S(t))`.
"""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, Shaped

from cdelta import _check
from cdelta._precision import common, one_dtype
from cdelta._pytree import pytree

Time = Shaped[ArrayLike, ""]


@pytree
class Gaussian:
    r"""Normal law :math:`N(m, \Sigma)`.

    ``Gaussian(mean [d], cov [d, d])``; a scalar ``cov`` stands for that variance times the identity
    and is kept as a scalar, so that images need no d×d matrix. Raises ValueError when ``cov`` is
    not symmetric positive definite or does not fit ``mean``.
    """

    mean: Float[Array, " d"]
    covariance: Float[Array, "d d"] | Float[Array, ""]  # as stored; .cov is always the matrix

    def __init__(self, mean: Float[ArrayLike, " d"], cov: ArrayLike):
        mean, cov = _check.as_float("mean", mean), _check.as_float("cov", cov)
        if mean.ndim != 1 or mean.size == 0:
            raise ValueError(f"mean must be a vector [d] with d >= 1, got shape {mean.shape}")
        _check.finite("mean", mean)
        if cov.ndim != 0:
            _check.shape("cov", cov, (mean.size, mean.size), f" to fit mean {mean.shape}")
        _check.spd("cov", cov if cov.ndim else cov[None, None])
        dtype = common(mean, cov)
        object.__setattr__(self, "mean", mean.astype(dtype))
        object.__setattr__(self, "covariance", cov.astype(dtype))

    @classmethod
    def standard(cls, d: int, dtype: DTypeLike | None = None) -> "Gaussian":
        """:math:`N(0, I)` in ``d`` dimensions, a positive integer (else ValueError)."""
        return cls(jnp.zeros(_check.count("d", d), dtype), jnp.ones((), dtype))

    @property
    def dim(self) -> int:
        return self.mean.shape[-1]

    @property
    def isotropic(self) -> bool:
        """Whether the covariance is kept as a scalar times the identity."""
        return self.covariance.ndim == 0

    @property
    @one_dtype
    def cov(self) -> Float[Array, "d d"]:
        """The covariance as a matrix."""
        return (
            self.covariance * jnp.eye(self.dim, dtype=self.mean.dtype)
            if self.isotropic
            else self.covariance
        )

    @one_dtype
    def sample(self, key: PRNGKeyArray, n: int) -> Float[Array, "n d"]:
        """``n`` independent draws. Raises ValueError when n is not a positive integer."""
        n, key = _check.count("n", n), _check.key("key", key)
        z = jax.random.normal(key, (n, self.dim), self.mean.dtype)
        root = jnp.sqrt(self.covariance) if self.isotropic else jnp.linalg.cholesky(self.covariance)
        return self.mean + (z * root if self.isotropic else z @ root.T)


def _inputs(t, source: Gaussian, target: Gaussian, **points):
    """``t`` and the points, checked and in one dtype."""
    for name, law in (("source", source), ("target", target)):
        if not isinstance(law, Gaussian):
            raise ValueError(f"{name} must be a cdelta.Gaussian, got {type(law).__name__}")
    if source.dim != target.dim:
        raise ValueError(
            f"source and target must agree in dimension, got {source.dim} and {target.dim}"
        )
    arrays = [_check.as_float(name, point) for name, point in points.items()]
    for name, array in zip(points, arrays, strict=True):
        _check.shape(name, array, (source.dim,), " to fit the Gaussians")
    dtype = jnp.result_type(source.mean, target.mean, *arrays)
    return [_check.time(t).astype(dtype), *(array.astype(dtype) for array in arrays)]


@one_dtype
def mean_at(t: Time, source: Gaussian, target: Gaussian) -> Float[Array, " d"]:
    r"""Mean of :math:`x_t`, :math:`m(t) = (1-t)\,m_0 + t\,m_1` (T3)."""
    (t,) = _inputs(t, source, target)
    return (1 - t) * source.mean + t * target.mean


@one_dtype
def cov_at(t: Time, source: Gaussian, target: Gaussian) -> Float[Array, "d d"]:
    r"""Covariance of :math:`x_t`, :math:`S(t) = (1-t)^2 \Sigma_0 + t^2 \Sigma_1` (T3)."""
    (t,) = _inputs(t, source, target)
    return (1 - t) ** 2 * source.cov + t**2 * target.cov


@one_dtype
def conditional_mean(
    t: Time, x: Float[ArrayLike, " d"], source: Gaussian, target: Gaussian
) -> Float[Array, " d"]:
    r"""Posterior mean of the target point, by conditioning the joint Gaussian of :math:`(x_1, x_t)`
    (T1, T3).

    .. math:: E[x_1 \mid x_t = x] = m_1 + t\,\Sigma_1 S(t)^{-1} (x - m(t))

    Shapes: ``x`` and the result ``[d]``. Raises ValueError when ``x`` does not fit the Gaussians or
    ``t`` leaves [0, 1].
    """
    t, x = _inputs(t, source, target, x=x)
    return target.mean + t * target.cov @ _solve(
        cov_at(t, source, target), x - mean_at(t, source, target)
    )


@one_dtype
def velocity(
    t: Time, x: Float[ArrayLike, " d"], source: Gaussian, target: Gaussian
) -> Float[Array, " d"]:
    r"""Optimal velocity between two Gaussians, :math:`v(t, x) = E[x_1 - x_0 \mid x_t = x]` (T2,
    T3).

    .. math:: v(t, x) = m_1 - m_0 + A(t)\,(x - m(t))

    with :math:`A(t)` from :func:`velocity_jacobian`.

    Shapes: ``x`` and the result ``[d]``. Raises ValueError when ``x`` does not fit the Gaussians or
    ``t`` leaves [0, 1].
    """
    t, x = _inputs(t, source, target, x=x)
    score = _solve(cov_at(t, source, target), x - mean_at(t, source, target))
    return target.mean - source.mean + _covariance_rate(t, source, target) @ score


@one_dtype
def velocity_jacobian(t: Time, source: Gaussian, target: Gaussian) -> Float[Array, "d d"]:
    r"""Jacobian of the optimal velocity; it does not depend on x (T2, T3).

    .. math:: A(t) = \bigl(t\,\Sigma_1 - (1-t)\,\Sigma_0\bigr)\, S(t)^{-1}

    Shapes: the result ``[d, d]``. Raises ValueError when ``t`` leaves [0, 1].
    """
    (t,) = _inputs(t, source, target)
    return _solve(cov_at(t, source, target), _covariance_rate(t, source, target)).T


def _covariance_rate(t, source, target):
    """Cov(x₁ - x₀, x_t) = tΣ₁ - (1-t)Σ₀, half the derivative of S(t)."""
    return t * target.cov - (1 - t) * source.cov


@one_dtype
def flow_map(
    t: Time, x0: Float[ArrayLike, " d"], source: Gaussian, target: Gaussian
) -> Float[Array, " d"]:
    r"""The flow of the optimal velocity, in closed form (C1).

    .. math:: \varphi_t(x_0) = m(t) + Y(t)\,(x_0 - m_0)

    solves :math:`\dot\varphi_t = v(t, \varphi_t)`, :math:`\varphi_0 = \mathrm{id}`, for every pair
    of Gaussians, with :math:`Y(t)` from :func:`flow_jacobian`.

    Shapes: ``x0`` and the result ``[d]``. Raises ValueError when ``x0`` does not fit the Gaussians
    or ``t`` leaves [0, 1].
    """
    t, x0 = _inputs(t, source, target, x0=x0)
    return mean_at(t, source, target) + flow_jacobian(t, source, target) @ (x0 - source.mean)


@one_dtype
def flow_jacobian(t: Time, source: Gaussian, target: Gaussian) -> Float[Array, "d d"]:
    r"""Jacobian of the flow of the optimal velocity (C1).

    .. math:: Y(t) = P \operatorname{diag}\sqrt{(1-t)^2 + t^2 d_i}\; P^{-1}, \qquad
              \text{where }\; \Sigma_0 = P P^{\mathsf T},\;
              \Sigma_1 = P \operatorname{diag}(d)\, P^{\mathsf T}

    It pushes the covariance forward, :math:`Y \Sigma_0 Y^{\mathsf T} = S(t)`, and solves
    :math:`\dot Y = A(t)\,Y`. With any roots :math:`\Sigma_0 = H H^{\mathsf T}`,
    :math:`S(t) = K K^{\mathsf T}` it reads :math:`H\,(F^{\mathsf T} F)^{1/2} H^{-1}`,
    :math:`F = K^{\mathsf T} H^{-\mathsf T}`, which is how it is computed, with Cholesky factors: by
    the rotation nearest to F, smooth also where the :math:`d_i` coincide, and good to rounding
    where features are of very different units, as a power of :math:`F^{\mathsf T} F` is not.

    Shapes: the result ``[d, d]``. Raises ValueError when ``t`` leaves [0, 1].
    """
    (t,) = _inputs(t, source, target)
    root, stretch = _stretch(source, cov_at(t, source, target))
    return solve_triangular(root, stretch.T @ root.T, lower=True, trans="T").T


@one_dtype
def transport_map(
    t: Time, x0: Float[ArrayLike, " d"], source: Gaussian, target: Gaussian
) -> Float[Array, " d"]:
    r"""The paper's "diffeomorphism": an exponential path to the optimal transport map (T14).

    .. math:: \varphi_t(x_0) = m(t) + e^{tL} (x_0 - m_0)

    with :math:`e^{tL}` from :func:`transport_jacobian`. A flow from source to target, but not the
    flow of the optimal velocity: :func:`flow_map` is.

    Shapes: ``x0`` and the result ``[d]``. Raises ValueError when ``x0`` does not fit the Gaussians
    or ``t`` leaves [0, 1].
    """
    t, x0 = _inputs(t, source, target, x0=x0)
    return mean_at(t, source, target) + transport_jacobian(t, source, target) @ (x0 - source.mean)


@one_dtype
def transport_jacobian(t: Time, source: Gaussian, target: Gaussian) -> Float[Array, "d d"]:
    r"""Jacobian of the exponential path, :math:`e^{tL}` (T14).

    .. math:: e^{L} = \Sigma_0^{-1/2} \bigl(\Sigma_0^{1/2} \Sigma_1 \Sigma_0^{1/2}\bigr)^{1/2}
              \Sigma_0^{-1/2}, \qquad e^{tL} = (e^L)^t

    :math:`e^L` is the one symmetric positive definite matrix with
    :math:`e^L \Sigma_0 e^L = \Sigma_1` (the optimal transport map). With any roots
    :math:`\Sigma_0 = H H^{\mathsf T}`, :math:`\Sigma_1 = K K^{\mathsf T}`, here the Cholesky
    factors, it is :math:`H^{-\mathsf T} Q^{\mathsf T} K^{\mathsf T}` with the rotation Q nearest to
    :math:`K^{\mathsf T} H`.

    Shapes: the result ``[d, d]``. Raises ValueError when ``t`` leaves [0, 1].
    """
    (t,) = _inputs(t, source, target)
    root, other = jnp.linalg.cholesky(source.cov), jnp.linalg.cholesky(target.cov)
    turned = (other @ _rotation(other.T @ root)).T
    return _spd_power(solve_triangular(root, turned, lower=True, trans="T"), t)


@one_dtype
def bend(source: Gaussian, target: Gaussian) -> Float[Array, ""]:
    r"""How bent the flow of the optimal velocity is, its mean squared deviation from straight lines
    (chapter 10).

    .. math:: B &= E \int_0^1 \|v(t, \varphi_t(x_0)) - (\varphi_1(x_0) - x_0)\|^2\, dt \\
              &= \Bigl(2 - \frac\pi2\Bigr) \operatorname{tr}(\Sigma_0 \mathbin{\#} \Sigma_1)

    with the geometric mean :math:`\Sigma_0 \mathbin{\#} \Sigma_1 = H\,\bigl(H^{-1} \Sigma_1
    H^{-\mathsf T}\bigr)^{1/2} H^{\mathsf T}` for any root :math:`\Sigma_0 = H H^{\mathsf T}`, here
    the Cholesky factor. It does not depend on the means.

    The result is a scalar. Raises ValueError when the dimensions disagree.
    """
    _inputs(0.0, source, target)
    root, stretch = _stretch(source, target.cov)
    return (2 - jnp.pi / 2) * jnp.trace(root @ stretch @ root.T)


def _stretch(source, cov):
    """H and (H⁻¹ Σ H⁻ᵀ)^(1/2), with Σ₀ = H Hᵀ by Cholesky."""
    root = jnp.linalg.cholesky(source.cov)
    whitened = solve_triangular(root, jnp.linalg.cholesky(cov), lower=True)
    return root, whitened @ _rotation(whitened.T)


def _solve(matrix, rhs):
    """Solve with a symmetric positive definite matrix."""
    return cho_solve((jnp.linalg.cholesky(matrix), True), rhs)


@jax.custom_jvp
def _rotation(matrix):
    """The orthogonal factor Q of ``matrix`` = Q P, P symmetric positive definite: no product of the
    matrix with itself is taken, whose small directions would drown in the rounding of the large."""
    left, _, right = jnp.linalg.svd(matrix)
    return left @ right


@_rotation.defjvp
def _rotation_jvp(primals, tangents):
    # of Q, with U and V, is the part of Uᵀ dF V that is no stretch: where singular values coincide,
    # too, as the derivative of svd is not
    left, sizes, right = jnp.linalg.svd(*primals)
    moved = left.T @ tangents[0] @ right.T
    turned = (moved - moved.T) / (sizes[:, None] + sizes)
    return left @ right, left @ turned @ right


@jax.custom_jvp
def _spd_power(matrix, power):
    """``matrix ** power`` of a symmetric positive definite matrix."""
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * values**power) @ vectors.T


@_spd_power.defjvp
def _spd_power_jvp(primals, tangents):
    # Daleckii–Krein: in the eigenbasis the derivative multiplies entry ij by the divided difference
    # of λ ↦ λᵖ. Written with sinh it has no cancellation, and needs no exception where eigenvalues
    # coincide, as eigh does.
    (matrix, power), (matrix_dot, power_dot) = primals, tangents
    values, vectors = jnp.linalg.eigh(matrix)
    logs = jnp.log(values)
    half = (logs[:, None] - logs[None, :]) / 2
    apart = half != 0
    ratio = jnp.where(apart, jnp.sinh(power * half) / jnp.where(apart, jnp.sinh(half), 1.0), power)
    slope = ratio * jnp.exp((power - 1) * (logs[:, None] + logs[None, :]) / 2)
    inner = slope * (vectors.T @ matrix_dot @ vectors) + jnp.diag(power_dot * values**power * logs)
    return (vectors * values**power) @ vectors.T, vectors @ inner @ vectors.T
