r"""Flows from a Gaussian to a Gaussian mixture: a mixture at every time, with closed velocity and
Jacobian.

Throughout, :math:`x_1` comes from component k with probability :math:`\pi_k` and is then
:math:`N(\mu_k, \Sigma_k)`. Given k, everything of :mod:`cdelta.gaussian` holds:
:math:`x_t \sim N(m_k, S_k)` with

.. math:: m_k = (1-t)\,\mu_0 + t\,\mu_k, \qquad S_k = (1-t)^2\,\Sigma_0 + t^2\,\Sigma_k

and the rest is Bayes' rule for the label.
"""

import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from cdelta import _check
from cdelta._precision import common, one_dtype, working
from cdelta._pytree import pytree, unchecked
from cdelta.gaussian import Gaussian, Time, velocity as gaussian_velocity


@pytree
class GaussianMixture:
    r"""Mixture :math:`\sum_k \pi_k N(\mu_k, \Sigma_k)`.

    ``GaussianMixture(weights [K], means [K, d], covs [K, d, d])``. Raises ValueError when the
    weights are negative or do not sum to one, a covariance is not symmetric positive definite, or
    the shapes disagree.
    """

    weights: Float[Array, " K"]
    means: Float[Array, "K d"]
    covs: Float[Array, "K d d"]

    def __init__(self, weights: ArrayLike, means: ArrayLike, covs: ArrayLike):
        weights = _check.as_float("weights", weights)
        means, covs = _check.as_float("means", means), _check.as_float("covs", covs)
        if weights.ndim != 1 or weights.size == 0:
            raise ValueError(f"weights must be a vector [K] with K >= 1, got shape {weights.shape}")
        if means.ndim != 2 or means.shape[0] != weights.size or means.shape[1] == 0:
            raise ValueError(
                f"means must have shape (K, d) with K = {weights.size} weights, got {means.shape}"
            )
        _check.shape("covs", covs, (*means.shape, means.shape[1]), f" to fit means {means.shape}")
        _check.finite("weights", weights)
        _check.finite("means", means)
        _check.spd("covs", covs)
        if _check.concrete(weights):
            values = np.asarray(weights, dtype=np.float64)
            if (values < 0).any():
                raise ValueError(f"weights must not be negative, got {values}")
            # each was rounded by half of eps at most
            if abs(values.sum() - 1) > max(1e-5, float(jnp.finfo(weights.dtype).eps)):
                raise ValueError(f"weights must sum to one, got a sum of {values.sum():.6g}")
        dtype = common(weights, means, covs)
        weights = weights.astype(working(dtype))
        object.__setattr__(self, "weights", (weights / weights.sum()).astype(dtype))
        object.__setattr__(self, "means", means.astype(dtype))
        object.__setattr__(self, "covs", covs.astype(dtype))

    @property
    def dim(self) -> int:
        return self.means.shape[-1]

    @property
    @one_dtype
    def mean(self) -> Float[Array, " d"]:
        return self.weights @ self.means

    @property
    @one_dtype
    def cov(self) -> Float[Array, "d d"]:
        """Covariance: mean of the covariances plus covariance of the means."""
        centred = self.means - self.mean
        return jnp.einsum(
            "k,kij->ij", self.weights, self.covs + centred[:, :, None] * centred[:, None, :]
        )

    @one_dtype
    def sample(self, key: PRNGKeyArray, n: int) -> Float[Array, "n d"]:
        """``n`` independent draws. Raises ValueError when n is not a positive integer."""
        n, key = _check.count("n", n), _check.key("key", key)
        key_label, key_noise = jax.random.split(key)
        labels = jax.random.choice(key_label, self.weights.size, (n,), p=self.weights)
        noise = jax.random.normal(key_noise, (n, self.dim), self.means.dtype)
        return self.means[labels] + jnp.einsum(
            "nij,nj->ni", jnp.linalg.cholesky(self.covs)[labels], noise
        )


class _Components(NamedTuple):
    """The K affine flows at one (t, x), and the label's posterior."""

    roots: Array  # [K, d, d], Cholesky factors of S_k
    rates: Array  # [K, d, d], tΣ_k - (1-t)Σ₀
    log_ratio: Array  # [K], log N(x; m_k, S_k), relative to the component nearest to x
    responsibilities: Array  # [K]
    scores: Array  # [K, d], S_k⁻¹(m_k - x), gradients of the log densities
    velocities: Array  # [K, d], μ_k - μ₀ + A_k(x - m_k)
    log_density: Array  # log Σ_k π_k N(x; m_k, S_k)

    def solve(self, rhs):
        """S_k⁻¹ rhs_k for every k."""
        return jax.vmap(lambda root, b: cho_solve((root, True), b))(self.roots, rhs)

    @property
    def score_differences(self):
        """Scores relative to the mixture's own score, [K, d]; their γ-average is zero."""
        return self.scores - self.responsibilities @ self.scores


def _components(t, x, source: Gaussian, target: GaussianMixture) -> _Components:
    t, x = _inputs(t, source, target, x=x)
    means = (1 - t) * source.mean + t * target.means
    roots, rates = _roots_and_rates(t, source, target)
    off = x - means
    # each solve needs the one before: of two at once on a large batch, each may wait for a thread
    # that the other holds
    whitened = jax.vmap(lambda root, b: solve_triangular(root, b, lower=True))(roots, off)
    nearest = _nearest(whitened, target.weights)
    # in a unit of its own where x is so far out that products of two would leave the range
    unit = jax.lax.stop_gradient(jnp.maximum(1.0, jnp.abs(off[nearest]).max() / 2**30))
    from_nearest = jax.vmap(lambda root: solve_triangular(root, off[nearest] / unit, lower=True))
    solved = jax.vmap(lambda root, b: solve_triangular(root, b, lower=True, trans="T"))(
        roots, jnp.stack([whitened, from_nearest(roots)], -1)
    )
    scores = -solved[..., 0]
    log_det = jnp.log(jnp.diagonal(roots, axis1=1, axis2=2)).sum(1)
    excess = _excess(t, unit, whitened, scores, solved[..., 1], target, nearest)
    log_ratio = log_det[nearest] - log_det - 0.5 * excess
    log_nearest = -0.5 * (whitened[nearest] ** 2).sum() - log_det[nearest]
    log_nearest -= 0.5 * source.dim * jnp.log(2 * jnp.pi)
    # weights stay outside the logarithm: its slope at zero is infinite, a weight's is not
    present = target.weights > 0
    log_joint = jnp.where(present, jnp.log(jnp.where(present, target.weights, 1.0)), -jnp.inf)
    largest = jax.lax.stop_gradient((log_joint + log_ratio).max())
    # where a component of weight zero would be far likelier, only its slope is as large as can be
    bound = jnp.log(jnp.finfo(x.dtype).max) / 2
    relative = jnp.where(present, log_ratio - largest, jnp.minimum(log_ratio - largest, bound))
    joint = target.weights * jnp.exp(relative)
    total = joint.sum()
    velocities = target.means - source.mean - jnp.einsum("kij,kj->ki", rates, scores)
    return _Components(
        roots, rates, log_ratio, joint / total, scores, velocities,
        log_nearest + largest + jnp.log(total),
    )  # fmt: skip


def _nearest(whitened, weights):
    """The component that x is nearest to, of those with a weight; also where squares overflow."""
    sizes = jnp.abs(whitened).max(1)
    scaled = whitened / jnp.where(sizes > 0, sizes, 1.0)[:, None]
    return jnp.argmin(jnp.where(weights > 0, sizes * jnp.sqrt((scaled**2).sum(1)), jnp.inf))


def _excess(t, unit, whitened, scores, solved, target, nearest):
    """How much larger each (x - m_k)·S_k⁻¹(x - m_k) is than the nearest component's r, [K].

    With d = x - m it is -t²(S_k⁻¹d_r)·(Σ_k - Σ_r)(S_r⁻¹d_r) - (m_k - m_r)·S_k⁻¹(d_r + d_k). What
    the components share is not in it, and so neither is its rounding, which grows as the square of
    x; but between a tight component and a wide one near by the two terms cancel, and the
    difference as it stands is the better one. ``solved`` is S_k⁻¹d_r in the unit given.
    """
    bent = solved[:, :, None] * (target.covs - target.covs[nearest]) * solved[nearest]
    apart = t * (target.means - target.means[nearest]) / unit
    straight = apart * (solved - scores / unit)
    parts = jnp.concatenate([t**2 * bent.reshape(len(bent), -1), straight], 1)
    squares = (whitened**2).sum(1)
    sizes = squares + squares[nearest], unit * (unit * jnp.abs(parts).sum(1))
    return jnp.where(sizes[0] < sizes[1], squares - squares[nearest], -unit * (unit * parts.sum(1)))


def _roots_and_rates(t, source, target):
    cov = source.cov
    roots = jnp.linalg.cholesky((1 - t) ** 2 * cov + t**2 * target.covs)
    return roots, t * target.covs - (1 - t) * cov


def _inputs(t, source, target, **points):
    """``t`` and the points, checked and in one dtype."""
    if not isinstance(source, Gaussian):
        raise ValueError(f"source must be a cdelta.Gaussian, got {type(source).__name__}")
    if not isinstance(target, GaussianMixture):
        raise ValueError(f"target must be a cdelta.GaussianMixture, got {type(target).__name__}")
    if source.dim != target.dim:
        raise ValueError(
            f"source and target must agree in dimension, got {source.dim} and {target.dim}"
        )
    arrays = [_check.as_float(name, point) for name, point in points.items()]
    for name, array in zip(points, arrays, strict=True):
        _check.shape(name, array, (source.dim,), " to fit source and target")
    dtype = jnp.result_type(source.mean, target.means, *arrays)
    return [_check.time(t).astype(dtype), *(array.astype(dtype) for array in arrays)]


@one_dtype
def law_at(t: Time, source: Gaussian, target: GaussianMixture) -> GaussianMixture:
    r"""The law of :math:`x_t`, a mixture as well (T4).

    .. math:: p_t = \sum_k \pi_k\, N(m_k, S_k), \qquad m_k = (1-t)\,\mu_0 + t\,\mu_k, \qquad
              S_k = (1-t)^2\,\Sigma_0 + t^2\,\Sigma_k

    Raises ValueError when source and target do not fit or ``t`` leaves [0, 1].
    """
    (t,) = _inputs(t, source, target)
    return unchecked(
        GaussianMixture,
        target.weights,
        (1 - t) * source.mean + t * target.means,
        (1 - t) ** 2 * source.cov + t**2 * target.covs,
    )


@one_dtype
def log_density(
    t: Time, x: Float[ArrayLike, " d"], source: Gaussian, target: GaussianMixture
) -> Float[Array, ""]:
    r"""Log density of :math:`x_t` (T4).

    .. math:: \log p_t(x) = \log \sum_k \pi_k\, N(x; m_k, S_k)

    summed without leaving the logarithm, so that it is finite where every density underflows.

    Shapes: ``x`` ``[d]``, the result a scalar. Raises ValueError when ``x`` does not fit or ``t``
    leaves [0, 1].
    """
    return _components(t, x, source, target).log_density


@one_dtype
def responsibilities(
    t: Time, x: Float[ArrayLike, " d"], source: Gaussian, target: GaussianMixture
) -> Float[Array, " K"]:
    r"""Posterior of the component's label given :math:`x_t = x` (T5).

    .. math:: \gamma_k(t, x) = \frac{\pi_k N(x; m_k, S_k)}{\sum_j \pi_j N(x; m_j, S_j)}

    Far out the rounding of ``x`` alone is seen: the logarithm of :math:`\gamma_j / \gamma_k` moves
    by :math:`(s_j - s_k)^{\mathsf T} dx` with the scores :math:`s_k = S_k^{-1}(m_k - x)`, so that
    it is known to about :math:`\varepsilon \lVert x \rVert \lVert s_j - s_k \rVert` and no better.
    The derivative in a weight is finite where that is zero.

    Shapes: ``x`` ``[d]``, the result ``[K]``. Raises ValueError when ``x`` does not fit or ``t``
    leaves [0, 1].
    """
    return _components(t, x, source, target).responsibilities


@one_dtype
def responsibility_gradients(
    t: Time, x: Float[ArrayLike, " d"], source: Gaussian, target: GaussianMixture
) -> Float[Array, "K d"]:
    r"""Gradients of the responsibilities with respect to x (T7).

    .. math:: \nabla \gamma_k
              = \gamma_k \Bigl( S_k^{-1}(m_k - x) - \sum_j \gamma_j S_j^{-1}(m_j - x) \Bigr)

    Shapes: ``x`` ``[d]``, the result ``[K, d]``. Raises ValueError when ``x`` does not fit or ``t``
    leaves [0, 1].
    """
    parts = _components(t, x, source, target)
    return parts.responsibilities[:, None] * parts.score_differences


@one_dtype
def velocity(
    t: Time, x: Float[ArrayLike, " d"], source: Gaussian, target: GaussianMixture
) -> Float[Array, " d"]:
    r"""Optimal velocity towards a mixture, the components' affine velocities blended by
    responsibility (T6).

    .. math:: v(t, x) = \sum_k \gamma_k(t, x) \bigl[ \mu_k - \mu_0 + A_k(t)\,(x - m_k) \bigr]

    Shapes: ``x`` and the result ``[d]``. Raises ValueError when ``x`` does not fit or ``t`` leaves
    [0, 1].
    """
    parts = _components(t, x, source, target)
    return parts.responsibilities @ parts.velocities


@one_dtype
def velocity_jacobian(
    t: Time, x: Float[ArrayLike, " d"], source: Gaussian, target: GaussianMixture
) -> Float[Array, "d d"]:
    r"""Jacobian of the optimal velocity, the paper's observational Jacobian (T8).

    .. math:: \nabla v &= \sum_k \gamma_k A_k(t) \\
              &\quad + \sum_k \bigl[\mu_k - \mu_0 + A_k(t)(x - m_k)\bigr]
              (\nabla \gamma_k)^{\mathsf T}

    The first sum keeps the label's posterior fixed; the second is what x tells about the label.
    Since the gradients sum to zero, component velocities enter only through their differences: they
    are taken relative to v, which keeps the second sum small where one component explains x.

    Shapes: ``x`` ``[d]``, the result ``[d, d]``. Raises ValueError when ``x`` does not fit or ``t``
    leaves [0, 1].
    """
    parts = _components(t, x, source, target)
    gamma = parts.responsibilities
    blend = jnp.einsum("k,kij->ij", gamma, _affine_jacobians(parts))
    differences = parts.velocities - gamma @ parts.velocities
    return blend + jnp.einsum("k,ki,kj->ij", gamma, differences, parts.score_differences)


@one_dtype
def velocity_jvp(
    t: Time,
    x: Float[ArrayLike, " d"],
    tangent: Float[ArrayLike, " d"],
    source: Gaussian,
    target: GaussianMixture,
) -> Float[Array, " d"]:
    r"""Product of :func:`velocity_jacobian` with a vector, without forming a Jacobian (T8).

    Shapes: ``x``, ``tangent`` and the result ``[d]``. Raises ValueError as
    :func:`velocity_jacobian` does.
    """
    _, tangent = _inputs(t, source, target, tangent=tangent)
    parts = _components(t, x, source, target)
    gamma = parts.responsibilities
    through_x = jnp.einsum(
        "kij,kj->ki", parts.rates, parts.solve(jnp.broadcast_to(tangent, parts.scores.shape))
    )
    through_label = (parts.score_differences @ tangent)[:, None] * (
        parts.velocities - gamma @ parts.velocities
    )
    return gamma @ (through_x + through_label)


@one_dtype
def component_jacobians(
    t: Time, source: Gaussian, target: GaussianMixture
) -> Float[Array, "K d d"]:
    r"""Jacobians of the components' affine velocities (T6, T9).

    .. math:: A_k(t) = \bigl(t\,\Sigma_k - (1-t)\,\Sigma_0\bigr) S_k^{-1}

    Entry K is the paper's interventional Jacobian for the label K: hold the label, and the velocity
    is affine.

    Shapes: the result ``[K, d, d]``. Raises ValueError when ``t`` leaves [0, 1].
    """
    (t,) = _inputs(t, source, target)
    roots, rates = _roots_and_rates(t, source, target)
    return jnp.swapaxes(jax.vmap(lambda root, b: cho_solve((root, True), b))(roots, rates), 1, 2)


@one_dtype
def component_velocities(
    t: Time, x: Float[ArrayLike, " d"], source: Gaussian, target: GaussianMixture
) -> Float[Array, "K d"]:
    r"""The components' own velocities, each that of a Gaussian target (T3, T6).

    .. math:: v_k(t, x) = \mu_k - \mu_0 + A_k(t)\,(x - m_k)

    Entry K is the velocity with the label held at K (T9), whose Jacobian is entry K of
    :func:`component_jacobians`.

    Shapes: ``x`` ``[d]``, the result ``[K, d]``. Raises ValueError when ``x`` does not fit or ``t``
    leaves [0, 1].
    """
    t, x = _inputs(t, source, target, x=x)
    held = jax.vmap(lambda mean, cov: gaussian_velocity(t, x, source, Gaussian(mean, cov)))
    return held(target.means, target.covs)


@one_dtype
def blend(
    t: Time, x: Float[ArrayLike, " d"], source: Gaussian, target: GaussianMixture
) -> Float[Array, "d d"]:
    r"""The components' Jacobians weighted by responsibility: the first sum of T8, what the velocity
    would have for a Jacobian if x told nothing of the label.

    .. math:: \sum_k \gamma_k(t, x)\, A_k(t)

    It is neither observation (:func:`velocity_jacobian`) nor intervention
    (:func:`component_jacobians`).

    Shapes: ``x`` ``[d]``, the result ``[d, d]``. Raises ValueError when ``x`` does not fit or ``t``
    leaves [0, 1].
    """
    gamma = responsibilities(t, x, source, target)
    return jnp.einsum("k,kij->ij", gamma, component_jacobians(t, source, target))


def _affine_jacobians(parts: _Components):
    return jnp.swapaxes(parts.solve(parts.rates), 1, 2)


@one_dtype
def border(
    t: Time, source: Gaussian, target: GaussianMixture, first: int, second: int
) -> Float[Array, " d"]:
    r"""Where two components are equally likely on the line between their means.

    .. math:: x = m_j + s\,(m_k - m_j), \qquad \gamma_j(t, x) = \gamma_k(t, x), \qquad 0 \le s \le 1

    with j the ``first`` and k the ``second``: of the log-odds, a quadratic function of s, the zero.
    NaN where there is none, as one of the two is likelier all the way: where their means are near,
    and at t = 0.

    Shapes: the result ``[d]``. Raises ValueError when the two are not different components, or
    ``t`` leaves [0, 1].
    """
    _check_component(first, target)
    _check_component(second, target)
    if first == second:
        raise ValueError(f"first and second must differ, got component {first} for both")
    means = law_at(t, source, target).means
    ahead = means[second] - means[first]
    at_first, at_second = (_components(t, means[k], source, target) for k in (first, second))
    prior = jnp.log(target.weights[first]) - jnp.log(target.weights[second])
    start, end = (
        prior + parts.log_ratio[first] - parts.log_ratio[second] for parts in (at_first, at_second)
    )
    slope = -at_first.scores[second] @ ahead  # at the first mean, where its own score is zero
    bend = end - start - slope
    # in the form that does not cancel: the slope is negative
    share = 2 * start / (jnp.sqrt(slope**2 - 4 * start * bend) - slope)
    return jnp.where((start >= 0) & (end <= 0), means[first] + share * ahead, jnp.nan)


@one_dtype
def affinity_bound(
    t: Time, x: Float[ArrayLike, " d"], source: Gaussian, target: GaussianMixture, component: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""How far the field can be from one component's affine map (T10 as an inequality).

    With :math:`v_k` the affine velocities, :math:`s_k = S_k^{-1}(m_k - x)` the scores and
    :math:`\bar s = \sum_k \gamma_k s_k`,

    .. math:: \lVert v - v_k \rVert &\le \sum_{j \ne k} \gamma_j \lVert v_j - v_k \rVert \\
              \lVert \nabla v - A_k \rVert_F
              &\le \sum_{j \ne k} \gamma_j \bigl( \lVert A_j - A_k \rVert_F \\
              &\quad + \lVert v_j - v_k \rVert\, \lVert s_j - \bar s \rVert \bigr)

    Both follow from :math:`\sum_j \gamma_j = 1` and :math:`\sum_j \nabla\gamma_j = 0` by the
    triangle inequality. They vanish where :math:`\gamma_k \to 1`; how fast, and where that happens,
    says :func:`affinity_on_ball`. With two components the first is an equality, with two of equal
    covariance the second as well.

    Shapes: ``x`` ``[d]``; the result two scalars, for the velocity and for its Jacobian. Raises
    ValueError when ``component`` is not one of the K, ``x`` does not fit or ``t`` leaves [0, 1].
    """
    _check_component(component, target)
    parts = _components(t, x, source, target)
    jacobians = _affine_jacobians(parts)
    apart = jnp.linalg.norm(parts.velocities - parts.velocities[component], axis=1)
    jacobians_apart = jnp.linalg.norm(jacobians - jacobians[component], axis=(1, 2))
    score_apart = jnp.linalg.norm(parts.score_differences, axis=1)
    gamma = parts.responsibilities
    return gamma @ apart, gamma @ (jacobians_apart + apart * score_apart)


class Affinity(NamedTuple):
    """Of each component: how unsure the label is, how far the field and its Jacobian are from the
    component's, and what :func:`affinity_bound` bounds these by."""

    doubt: Float[Array, " K"]
    velocity: Float[Array, " K"]
    jacobian: Float[Array, " K"]
    velocity_bound: Float[Array, " K"]
    jacobian_bound: Float[Array, " K"]


@one_dtype
def affinity(
    t: Time, x: Float[ArrayLike, " d"], source: Gaussian, target: GaussianMixture
) -> Affinity:
    r"""Local affinity at one point, measured and bounded (T10): :math:`1 - \gamma_k`,
    :math:`\lVert v - v_k \rVert` and :math:`\lVert \nabla v - A_k \rVert_F`, and the two bounds of
    :func:`affinity_bound`.

    The doubt is the sum of the other responsibilities, so that it is known where it is far below
    the rounding of 1.

    Shapes: ``x`` ``[d]``, the results ``[K]``. Raises ValueError when ``x`` does not fit or ``t``
    leaves [0, 1].
    """
    laws, count = (source, target), target.weights.size
    off = velocity(t, x, *laws) - component_velocities(t, x, *laws)
    jacobian_off = velocity_jacobian(t, x, *laws) - component_jacobians(t, *laws)
    gamma = responsibilities(t, x, *laws)
    doubt = jnp.stack([jnp.delete(gamma, k).sum() for k in range(count)])
    bounds = zip(*(affinity_bound(t, x, *laws, k) for k in range(count)), strict=True)
    lengths = jnp.linalg.norm(off, axis=1), jnp.linalg.norm(jacobian_off, axis=(1, 2))
    return Affinity(doubt, *lengths, *map(jnp.stack, bounds))


@one_dtype
def affinity_on_ball(
    t: Time,
    radius: Float[ArrayLike, ""],
    source: Gaussian,
    target: GaussianMixture,
    component: int,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    r"""Constants of local affinity on the ball :math:`\lVert x - m_k \rVert \le R` (T10).

    .. math:: \lVert v - v_k \rVert &\le C_k(R)\,(1 - \gamma_k) \\
              \lVert \nabla v - A_k \rVert_F &\le C_k'(R)\,(1 - \gamma_k) \\
              1 - \gamma_k &\le D_k(R)

    Differences of component velocities and of scores are affine in x,
    :math:`v_j - v_k = b_j + M_j (x - m_k)` and
    :math:`s_j - s_i = c_{ji} + N_{ji}(x - m_k)`, so that

    .. math:: \beta_j &= \lVert b_j \rVert + R \lVert M_j \rVert \\
              C_k(R) &= \max_{j \ne k} \beta_j \\
              C_k'(R) &= \max_{j \ne k} \bigl( \lVert M_j \rVert_F
              + \beta_j \max_i (\lVert c_{ji} \rVert + R \lVert N_{ji} \rVert) \bigr) \\
              D_k(R) &= \frac{\eta}{1 + \eta} \\
              \eta &= \sum_{j \ne k} \frac{\pi_j N(m_k; m_j, S_j)}{\pi_k N(m_k; m_k, S_k)} \\
              &\qquad \exp\bigl( R \lVert c_{jk} \rVert + \tfrac12 R^2 \lambda^+(N_{jk}) \bigr)

    with :math:`\lambda^+` the largest eigenvalue, or 0 when that is negative: :math:`\eta` bounds
    the sum of :math:`\gamma_j / \gamma_k`, whose logarithms are quadratic in x. As the means part,
    the quotients fall like Gaussians in their distance, and everything else grows more slowly.

    Shapes: the result three scalars, :math:`C_k, C_k', D_k`. Components of weight zero do not
    count. Raises ValueError when ``component`` is not one of the K or has weight zero,
    ``radius`` is negative, or ``t`` leaves [0, 1].
    """
    _check_component(component, target)
    radius = _check.as_float("radius", radius)
    _check.shape("radius", radius, ())
    if _check.concrete(radius) and not 0 <= float(radius) < np.inf:
        raise ValueError(f"radius must be finite and not negative, got {float(radius)}")
    if _check.concrete(target.weights) and not float(target.weights[component]) > 0:
        raise ValueError(f"component must have a positive weight, got component {component}")
    (t,) = _inputs(t, source, target)
    radius = radius.astype(t.dtype)
    mean = (1 - t) * source.mean + t * target.means[component]
    parts = _components(t, mean, source, target)
    others = (jnp.arange(target.weights.size) != component) & (target.weights > 0)
    jacobians = _affine_jacobians(parts)
    jacobians_apart = jacobians - jacobians[component]
    apart = jnp.linalg.norm(parts.velocities - parts.velocities[component], axis=1)
    apart += radius * _spectral_norm(jacobians_apart)
    eye = jnp.broadcast_to(jnp.eye(source.dim, dtype=t.dtype), parts.roots.shape)
    precisions = parts.solve(eye)
    scores_apart = jnp.linalg.norm(parts.scores[:, None] - parts.scores, axis=2)
    bends = precisions - precisions[:, None]  # [j, i]: S_i⁻¹ - S_j⁻¹
    farthest = jnp.where(
        target.weights > 0, scores_apart + radius * _spectral_norm(bends), 0.0
    ).max(1)
    jacobian = jnp.linalg.norm(jacobians_apart, axis=(1, 2)) + apart * farthest
    curvature = jnp.linalg.eigvalsh(bends[:, component])[:, -1]
    exponent = (
        jnp.log(target.weights / target.weights[component])
        + parts.log_ratio
        - parts.log_ratio[component]
        + radius * scores_apart[:, component]
        + radius**2 / 2 * jnp.maximum(curvature, 0.0)
    )
    doubt = 1 / (1 + 1 / jnp.where(others, jnp.exp(exponent), 0.0).sum())  # exact at infinity, too
    velocity, jacobian = (jnp.where(others, value, 0.0).max() for value in (apart, jacobian))
    return velocity, jacobian, doubt


def _spectral_norm(matrices):
    return jnp.linalg.norm(matrices, 2, axis=(-2, -1))


def _check_component(component, target):
    count = target.weights.size
    try:
        fits = 0 <= operator.index(component) < count
    except TypeError:  # of a value that is no integer, or is being traced
        fits = False
    if not fits:
        raise ValueError(f"component must be one of 0 ... {count - 1}, got {component}")
