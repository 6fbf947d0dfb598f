r"""What a wiggle of the latent says about the features: moments over :math:`x_0 \sim N(0, I)`.

``f`` maps one latent to a vector of n features and J(x₀) is its Jacobian. Every estimator averages
a statistic of independent latents, with a standard error; latent i is drawn from
``fold_in(key, i)``, so the set of latents depends on the key alone, not on the batch, the number of
devices or of processes, nor on an interruption in between. The options of a run (:class:`Run`) are
given by name: ``batch``, ``devices``, ``dtype``, ``progress``, ``resume``.

Two hypotheses are not checked, and no output shows that they fail. f must have no jumps: all of it
must be in its Jacobian. The wiggles' moment must exist: :math:`E\|J\|^2` can be infinite for the
exact flow onto a smooth law (C14).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from cdelta import _check, _features, _roles, jacobian
from cdelta._features import Feature, Labels, Several
from cdelta._precision import working
from cdelta._pytree import as_pytree
from cdelta._stream import Run, Sample, Sums, average, power_of_two
from cdelta.moment import Moment

Features = Callable[[Array], Any]  # a vector [n], or scalars and vectors by name
Shape = int | np.integer | Sequence[int | np.integer]

# What is estimated, where several estimators have it in common (``Moment.kind``)
WIGGLES, COVARIANCE = "wiggles", "covariance"
METHODS = ("rows", "jvp", "finite_difference")


# ------------------------------------------------------------------------------ what a latent adds


@dataclasses.dataclass(frozen=True)
class _Products:
    """How a Jacobian is seen at one latent: all its rows, or its products with random probes.

    Latents, probes and all that is made of products are in at least single precision; f alone is
    computed in ``dtype``, and may be in half.
    """

    shape: tuple[int, ...]
    dtype: str
    method: str = "rows"
    eps: float = 1e-3
    probes: int = 1

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def precision(self) -> Any:
        return working(self.dtype)

    def latent(self, key: PRNGKeyArray) -> Array:
        return jax.random.normal(key, self.shape, self.precision)

    def directions(self, key: PRNGKeyArray) -> Array:
        """Random orthogonal probes of length √d, ``[probes, *shape]``.

        E[z zᵀ] = I as for N(0, I), without the spread of the length.
        """
        normal = jax.random.normal(key, (self.size, self.probes), self.precision)
        directions = jnp.linalg.qr(normal)[0].T
        return (math.sqrt(self.size) * directions).reshape(self.probes, *self.shape)

    def rows(self, f: Features, x0: Array) -> tuple[Array, Array]:
        """f(x₀), and J ``[n, d]``."""
        values, gradients = jacobian.values_and_rows(self._rounding(f), x0)
        return values, gradients.reshape(-1, self.size).astype(self.precision)

    def along(self, f: Features, x0: Array, probes: Array) -> tuple[Array, Array]:
        """f(x₀), and J z over √probes for each probe z, ``[n, probes]``."""
        f = self._rounding(f)
        if self.method == "finite_difference":
            # a value that is not finite makes the difference so too
            products = values = jacobian.finite_difference(f, x0, probes, self.eps)
        else:
            values, products = jacobian.values_and_jvp(f, x0, probes)
        return values, products.T.astype(self.precision) / math.sqrt(self.probes)

    def factor(self, f: Features, x0: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        """f(x₀), and F with E[F Fᵀ] = J Jᵀ."""
        if self.method == "rows":
            return self.rows(f, x0)
        return self.along(f, x0, self.directions(key))

    def _rounding(self, f: Features) -> Features:
        return lambda x: f(x.astype(self.dtype))


class _Statistic:
    """The average's view of a statistic: see :mod:`cdelta._stream`."""

    products: _Products
    shape = property(lambda self: self.products.shape)
    size = property(lambda self: self.products.size)
    dtype = property(lambda self: self.products.dtype)


@dataclasses.dataclass(frozen=True)
class _Wiggle(_Statistic):
    """J Jᵀ at one latent: exact, or J z zᵀ Jᵀ averaged over probes z."""

    products: _Products

    def __call__(self, f, key):
        key_latent, key_probe = jax.random.split(key)
        values, factor = self.products.factor(f, self.products.latent(key_latent), key_probe)
        return Sample(values, (factor,))


@dataclasses.dataclass(frozen=True)
class _Covariance(_Statistic):
    """J(X) J(X_α)ᵀ, made symmetric, at one pair of latents and one uniform α.

    More values of α at the same pair, or quadrature over them, cost more than they gain: between
    pairs the spread is far larger than along α.
    """

    products: _Products

    def __call__(self, f, key):
        key_latent, key_copy, key_probe, key_alpha = jax.random.split(key, 4)
        x0, copy = self.products.latent(key_latent), self.products.latent(key_copy)
        alpha = jax.random.uniform(key_alpha, (), self.products.precision)
        near = alpha * x0 + jnp.sqrt(1 - alpha**2) * copy
        # the same probes at both latents: E[J(X) z zᵀ J(X_α)ᵀ] = E[J(X) J(X_α)ᵀ]
        both = jax.vmap(lambda x: self.products.factor(f, x, key_probe))
        values, (first, second) = both(jnp.stack([x0, near]))
        return Sample(values, (first, second))


@dataclasses.dataclass(frozen=True)
class _Sandwich(_Statistic):
    """J(X) times two averages of J(X_α) over a few α, side by side: ``[2n, 2n]``, of which the two
    diagonal blocks are wanted."""

    products: _Products
    nodes: int

    def __call__(self, f, key):
        key_latent, key_copy, key_probe = jax.random.split(key, 3)
        x0, copy = self.products.latent(key_latent), self.products.latent(key_copy)
        alphas, below, above = (jnp.asarray(part, x0.dtype) for part in _rules(self.nodes))
        across = jnp.sqrt(1 - alphas**2)
        near = jnp.multiply.outer(alphas, x0) + jnp.multiply.outer(across, copy)
        values, factors = jax.vmap(lambda x: self.products.factor(f, x, key_probe))(near)
        first = factors[-1]  # the last α is 1
        means = [jnp.tensordot(weight, factors, 1) for weight in (below, above)]
        return Sample(values, (jnp.concatenate([first, first]), jnp.concatenate(means)))


def _rules(nodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of [0, 1], the last of them 1, with the weights of Gauss's rule (as many nodes) and of
    Lobatto's (one more, both ends among them).

    Of a function whose derivatives are all positive the one gives no more than the integral, the
    other no less, and both all of it for polynomials of degree 2 nodes - 1.
    """
    inner, gauss = np.polynomial.legendre.leggauss(nodes)
    legendre = np.polynomial.legendre.Legendre.basis(nodes)
    outer = np.array([-1.0, *legendre.deriv().roots(), 1.0])
    lobatto = 2 / (nodes * (nodes + 1) * legendre(outer) ** 2)
    points = (np.concatenate([inner, outer]) + 1) / 2
    return (
        points,
        np.concatenate([gauss, np.zeros_like(lobatto)]) / 2,
        np.concatenate([np.zeros_like(gauss), lobatto]) / 2,
    )


@dataclasses.dataclass(frozen=True)
class _Held(_Statistic):
    """w J P Jᵀ at one latent, P the projection along which the held features do not change."""

    products: _Products
    held: tuple[int, ...]
    weighting: str

    def __call__(self, f, key):
        key_latent, key_probe = jax.random.split(key)
        x0, held = self.products.latent(key_latent), jnp.asarray(self.held)
        if self.products.method == "rows":
            values, rows = self.products.rows(f, x0)
            gradients, unit = _in_units(rows[held])
            basis, triangle = jnp.linalg.qr(gradients.T)
            factor = _project(rows, basis)  # J P, as P is symmetric and P² = P
        else:
            gradients, unit = _in_units(self.products.rows(lambda x: f(x)[held], x0)[1])
            basis, triangle = jnp.linalg.qr(gradients.T)
            probes = self.products.directions(key_probe).reshape(self.products.probes, -1)
            probes = _project(probes, basis).reshape(-1, *self.products.shape)
            values, factor = self.products.along(f, x0, probes)
        # |R_ii| is what gradient i adds to those before it, and their product √det(B Bᵀ). Where one
        # depends on the others what is left of it is rounding, and so is its direction.
        added = jnp.abs(jnp.diagonal(triangle))
        free = _independent(added, x0, gradients)
        # a logarithm, as a product of several small or large lengths would leave single precision
        log_weight = -(jnp.log(added) + jnp.log(unit)).sum()
        if self.weighting == "uniform":
            log_weight = jnp.zeros_like(log_weight)
        factor = jnp.where(free, factor.at[held].set(0), 0)
        return Sample(values, (factor,), jnp.where(free, log_weight, -jnp.inf))


@dataclasses.dataclass(frozen=True)
class _Intervened(_Statistic):
    """(J - m aᵀ)(J - m aᵀ)ᵀ at one latent, m = J q / a·q, q what is left of a = ∇y_k across the
    gradients of k's parents."""

    products: _Products
    index: int
    parents: tuple[int, ...]

    def __call__(self, f, key):
        key_latent, key_probe = jax.random.split(key)
        x0, chosen = self.products.latent(key_latent), jnp.asarray((*self.parents, self.index))
        if self.products.method == "rows":
            values, factor = self.products.rows(f, x0)
            gradients = _in_units(factor[chosen])[0]
            basis, triangle = jnp.linalg.qr(gradients.T)
            moved = jnp.matmul(factor, basis[:, -1], precision="highest")
            change = gradients[-1]
        else:
            gradients = _in_units(self.products.rows(lambda x: f(x)[chosen], x0)[1])[0]
            basis, triangle = jnp.linalg.qr(gradients.T)
            probes = self.products.directions(key_probe).reshape(self.products.probes, -1)
            paths = jnp.concatenate([basis[:, -1:].T, probes]).reshape(-1, *self.products.shape)
            values, products = self.products.along(f, x0, paths)
            moved, factor = products[:, 0], products[:, 1:]
            change = jnp.matmul(probes, gradients[-1], precision="highest")
        # the unit of the last gradient cancels in m aᵀ
        factor = factor - jnp.outer(moved / triangle[-1, -1], change)
        free = _independent(jnp.abs(jnp.diagonal(triangle)), x0, gradients)
        factor = jnp.where(free, factor.at[self.index].set(0), 0)
        return Sample(values, (factor,), jnp.where(free, 0.0, -jnp.inf).astype(factor.dtype))


def _independent(added: Array, x0: Array, gradients: Array) -> Array:
    """Whether each gradient has ``added`` more than rounding to those before it.

    Gradients that are not finite count as independent: what is made of them is not finite either,
    and stops the run. Nothing would tell their latents from those where nothing can be held.
    """
    return (added > _rounding(x0, gradients)).all() | ~jnp.isfinite(gradients).all()


def _rounding(x0: Array, gradients: Array) -> Array:
    """What is left of each gradient by rounding alone, where it depends on those before it."""
    lengths = jnp.linalg.norm(gradients, axis=1)
    return x0.size * jnp.finfo(gradients.dtype).eps * lengths


def _in_units(gradients: Array) -> tuple[Array, Array]:
    """Rows in units of their size, whose squares stay in range, and the units ``[n]``."""
    unit = power_of_two(jax.lax.stop_gradient(jnp.abs(gradients).max(1)))
    return gradients / unit[:, None], unit


def _project(vectors: Array, basis: Array) -> Array:
    """The rows of ``vectors`` without their part in the span of the columns of ``basis``."""
    inside = jnp.matmul(vectors, basis, precision="highest")
    return vectors - jnp.matmul(inside, basis.T, precision="highest")


# ----------------------------------------------------------------------------------- the estimators


def wiggle_moment(
    f: Features,
    key: PRNGKeyArray,
    shape: Shape,
    samples: int,
    method: str = "rows",
    eps: float = 1e-3,
    *,
    probes: int = 1,
    antithetic: bool = False,
    names: Sequence[str] | None = None,
    **run: Any,
) -> Moment:
    r"""The second moment of wiggles, the paper's measure of dependence (C3).

    .. math:: E\bigl[J(x_0) J(x_0)^{\mathsf T}\bigr] = \sum_n n \operatorname{Cov} f_n
              \succeq \operatorname{Cov} f(x_0)

    with :math:`f_n` the n-th Hermite component of f; equality holds exactly for affine f. Both
    hold for a weakly differentiable f (locally Lipschitz is enough) with :math:`E\|f\|^2` and
    :math:`E\|J\|^2` finite.

    **A feature that jumps is not weakly differentiable**: a threshold, a sign, an argmax, a rounded
    number. Its derivative almost everywhere is 0, and the answer is 0 ± 0, whatever its variance.
    Measure its logit or its smooth score instead. And :math:`E\|J\|^2` may be infinite (C14); then
    nothing is estimated, and a few ``effective_samples`` are the only sign.

    ``method``: "rows", the exact :math:`J J^{\mathsf T}` at each latent; "jvp",
    :math:`J z z^{\mathsf T} J^{\mathsf T}` averaged over ``probes`` random orthogonal z of length
    √d; "finite_difference", the same with differences at ``eps``, as in the paper.

    ``shape`` is the latent's; f returns ``[n]``, or scalars and vectors in a dict, a NamedTuple, a
    dataclass or another pytree, whose keys become the features' names (``a``, ``a.b``, of a vector
    ``a[0]``, in the order in which f has them); ``names`` gives them to a plain vector. ``samples``
    latents are drawn. With ``antithetic``
    a sample is the average over x₀ and −x₀, at twice the cost. That cancels the products of f's odd
    part with its even part in J Jᵀ and nothing else: it pays where these vary more over the latents
    than the rest, and is lost where f is odd, or even. ``run`` takes the options of :class:`Run`.
    However a run is stopped, the exception's ``moment`` holds the estimate so far (None in the
    first batch). "rows" differentiates f in reverse, "jvp" in forward mode: a diffrax solve of your
    own takes the latter with its ``DirectAdjoint`` or ``ForwardMode``.

    Raises ValueError for samples < 1, an unknown method, a map that does not return a vector, or
    NaN or infinity in its values or its derivative; TypeError for an option that is not there.
    """
    options = Run.of(run)
    f, labels, products = _looked_at(f, shape, method, eps, probes, options, names)
    return average(
        _Wiggle(products), f, key, samples, labels.n, options,
        antithetic=antithetic, names=labels.names, kind=WIGGLES,
    )  # fmt: skip


def feature_covariance(
    f: Features,
    key: PRNGKeyArray,
    shape: Shape,
    samples: int,
    method: str = "rows",
    eps: float = 1e-3,
    *,
    probes: int = 1,
    antithetic: bool = False,
    names: Sequence[str] | None = None,
    **run: Any,
) -> Moment:
    r"""The covariance of the features, from Jacobians alone, for every f (C3').

    .. math:: \operatorname{Cov} f(X) = \int_0^1 E\bigl[J(X) J(X_\alpha)^{\mathsf T}\bigr] d\alpha,
              \qquad X_\alpha = \alpha X + \sqrt{1 - \alpha^2}\, X'

    with independent X and X'. Each of the ``samples`` draws X, X' and a uniform α and uses two
    Jacobians, so that the average is unbiased for every weakly differentiable f with
    :math:`E\|f\|^2` and :math:`E\|J\|^2` finite: locally Lipschitz is enough, and **a feature that
    jumps is not** (a threshold, a sign, an argmax: the answer is 0 ± 0, see :func:`wiggle_moment`).
    With "rows", or with as many probes as dimensions, an affine f has its covariance from every
    single sample, without variance.

    Methods, shapes, options and errors as in :func:`wiggle_moment`; "jvp" takes the same probes at
    both latents.
    """
    options = Run.of(run)
    f, labels, products = _looked_at(f, shape, method, eps, probes, options, names)
    return average(
        _Covariance(products), f, key, samples, labels.n, options,
        antithetic=antithetic, names=labels.names, kind=COVARIANCE,
    )  # fmt: skip


class Bounds(NamedTuple):
    """What the features' covariance lies between, in the order of matrices: two moments from the
    same latents. Each has its own standard error, and ``effective_samples`` of both together."""

    lower: Moment
    upper: Moment


def covariance_bounds(
    f: Features,
    key: PRNGKeyArray,
    shape: Shape,
    samples: int,
    method: str = "rows",
    eps: float = 1e-3,
    *,
    nodes: int = 1,
    probes: int = 1,
    antithetic: bool = False,
    names: Sequence[str] | None = None,
    **run: Any,
) -> Bounds:
    r"""Two moments of Jacobians with the features' covariance between them (C13).

    .. math:: E\bigl[J(X) J(X_{1/2})^{\mathsf T}\bigr] &\preceq \operatorname{Cov} f(X) \\
              &\preceq \tfrac12 \bigl(E[J J^{\mathsf T}] + E[J] E[J]^{\mathsf T}\bigr)

    with equality, on either side, exactly where f has no Hermite component above order 2. They are
    the midpoint and the trapezoidal rule for the integral of C3', whose integrand is convex in α;
    ``nodes`` takes Gauss's rule with as many for the lower side and Lobatto's with one more for the
    upper, both exact up to order 2 ``nodes``. How far the sides are apart is how much of the
    features lies beyond that order, and bounds the bias of the wiggles' moment without a truth.

    A sample takes 2 ``nodes`` + 1 Jacobians at latents made from one pair X, X'. The sides are
    estimates with standard errors of their own, and in few samples may be out of order. Conditions
    on f, methods, shapes, options and errors as in :func:`feature_covariance`.
    """
    options = Run.of(run)
    f, labels, products = _looked_at(f, shape, method, eps, probes, options, names)
    nodes, n = _check.count("nodes", nodes), labels.n
    statistic = _Sandwich(products, nodes)
    both = average(statistic, f, key, samples, 2 * n, options, antithetic=antithetic)
    lower, upper = both.select(range(n)), both.select(range(n, 2 * n))
    return Bounds(
        lower.named(labels.names, kind=bound("lower", nodes)),
        upper.named(labels.names, kind=bound("upper", nodes)),
    )


def bound(side: str, nodes: int = 1) -> str:
    """The kind of one of :func:`covariance_bounds`."""
    return f"{side} bound of the covariance, {nodes} nodes"


def correlation_interval(
    wiggles: Moment | Float[ArrayLike, "n n"], variances: Float[ArrayLike, " n"]
) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]]:
    r"""Where the features' correlations can lie, given their wiggles and their variances (C13).

    .. math:: \bigl| \rho^{\mathrm w}_{ij} \sqrt{\bar n_i \bar n_j} - \rho_{ij} \bigr| \le
              \sqrt{(\bar n_i - 1)(\bar n_j - 1)}, \qquad
              \bar n_i = E\|\nabla f_i\|^2 / \operatorname{Var} f_i

    ``wiggles``: :math:`E[J J^{\mathsf T}]`, a :class:`Moment` or its matrix, with the correlations
    :math:`\rho^{\mathrm w}`; ``variances`` ``[n]``: the features' own, as from their samples.
    Returns the lower and upper ends ``[n, n]``, within [-1, 1]: where both have one sign, so has
    the correlation. A mean order :math:`\bar n_i` below 1, which only noise or rounding
    gives, counts as 1. For standard errors: ``moment.estimate(lambda m: correlation_interval(m,
    variances))``.

    Raises ValueError for a matrix that is not square, and for variances that do not fit it or are
    not positive.
    """
    wiggles, variances = np.asarray(wiggles, np.float64), np.asarray(variances, np.float64)
    if wiggles.ndim != 2 or wiggles.shape[0] != wiggles.shape[1]:
        raise ValueError(f"wiggles must be a square matrix, got shape {wiggles.shape}")
    if variances.shape != wiggles.shape[:1]:
        raise ValueError(
            f"variances must be one number for each of the {len(wiggles)} features, "
            f"got shape {variances.shape}"
        )
    if not (np.isfinite(variances).all() and (variances > 0).all()):
        raise ValueError(f"variances must be positive, got {variances}")
    scale = np.sqrt(variances)
    scaled = wiggles / np.outer(scale, scale)  # ρ^w √(n̄ᵢ n̄ⱼ)
    bend = np.sqrt(np.maximum(np.diagonal(scaled) - 1, 0))
    radius = np.outer(bend, bend)
    np.fill_diagonal(scaled, 1)  # a feature's correlation with itself is known
    np.fill_diagonal(radius, 0)
    return np.clip(scaled - radius, -1, 1), np.clip(scaled + radius, -1, 1)


def held_moment(
    f: Features,
    key: PRNGKeyArray,
    shape: Shape,
    samples: int,
    held: Several,
    weighting: str = "inverse_norm",
    *,
    method: str = "rows",
    probes: int = 1,
    names: Sequence[str] | None = None,
    **run: Any,
) -> Moment:
    r"""The wiggles' moment with features held: the limit of the paper's filter (C4).

    .. math:: \frac{E\bigl[w\, J P J^{\mathsf T}\bigr]}{E[w]}, \qquad
              P = I - B^{\mathsf T} (B B^{\mathsf T})^{-1} B, \qquad
              w = \det(B B^{\mathsf T})^{-1/2}

    B holds the gradients of the ``held`` features (one or several, by index or name). As the
    threshold τ vanishes, the probes with :math:`|Bz| < \tau` at x₀ have probability
    :math:`\propto \tau^{|B|} w` and covariance → P. For one feature w is the inverse norm of its
    gradient; ``weighting="uniform"`` takes w = 1, the plain projection.

    This needs :math:`E[w] < \infty` and :math:`E[w \|J\|^2] < \infty`. A held feature that is flat
    on a surface, as x², has E[w] = ∞: then the filter ends on that surface, but only like
    1 / log τ, and this average goes there like 1 / log samples with a standard error that means
    nothing. (Several held features: also where their gradients are parallel on a surface.)

    Where the held gradients are zero or linearly dependent nothing can be held: such latents are
    left out (the filter would let every probe of a saturated feature pass, at every τ) and their
    share is ``degenerate``. The rows and columns of held features are zero, their correlations
    undefined. Where the gradient comes near zero, w has heavy tails: look at ``effective_samples``.

    ``method="rows"`` takes all n gradients and the exact :math:`J P J^{\mathsf T}`; "jvp" takes the
    held gradients and products with projected probes, cheaper when n is large. Otherwise as
    :func:`wiggle_moment`. Raises ValueError also for an index out of range, when all features are
    held or as many as the latent has dimensions, and when no latent is left.
    """
    if weighting not in ("inverse_norm", "uniform"):
        raise ValueError(f"weighting must be 'inverse_norm' or 'uniform', got {weighting!r}")
    if method == "finite_difference":
        raise ValueError("method must be 'rows' or 'jvp': held features need their exact gradients")
    options = Run.of(run)
    f, labels, products = _looked_at(f, shape, method, 1.0, probes, options, names)
    held = labels.held("held", held)
    if len(held) >= products.size:
        raise ValueError(
            f"held must be fewer than the latent's dimensions {products.size}, or nothing is left "
            f"to move, got {labels.shown(held)}"
        )
    statistic, kind = _Held(products, held, weighting), f"wiggles, {list(held)} held, {weighting}"
    return average(
        statistic, f, key, samples, labels.n, options, held=held, names=labels.names, kind=kind
    )


def do_moment(
    f: Features,
    key: PRNGKeyArray,
    shape: Shape,
    samples: int,
    index: Feature,
    parents: Several = (),
    *,
    method: str = "rows",
    probes: int = 1,
    names: Sequence[str] | None = None,
    **run: Any,
) -> Moment:
    r"""The wiggles' moment under an intervention on one feature, to first order at each latent
    (C9).

    .. math:: E\bigl[(J - m a^{\mathsf T})(J - m a^{\mathsf T})^{\mathsf T}\bigr], \qquad
              a = \nabla y_k, \qquad m = \frac{J q}{a^{\mathsf T} q}, \qquad
              q = a - \Pi_{\text{parents}}\, a

    ``index`` is k, ``parents`` its causes among the features, by index or name; q is what is left
    of the gradient of k once the span of its parents' is taken out, and m the *effect* of k on
    every feature (:func:`cdelta.causal.effect`). :func:`held_moment` takes the *regression* on k
    instead, :math:`J a/\|a\|^2`: the two agree exactly where k has no cause among the features. In
    a linear structural model it is the covariance under do(k) of any constant. At a latent
    the model is a linear one with normal noises, where adjusting for a set of features that
    satisfies the back-door criterion for (k, i) is a regression (Pearl, Causality, theorem 3.3.2):
    any such set serves as parents for the effect on i; all features before k do.

    On a learned flow this is an intervention only as far as its frame does not turn
    (:func:`cdelta.causal.frame_turn`, C11).

    This needs :math:`E[\|m\|^2 \|a\|^2] < \infty`, which fails where q vanishes on a surface, as m
    grows there like :math:`1/\|q\|`: then the standard errors mean nothing, and a few
    ``effective_samples`` are the only sign.

    Every latent counts alike. Where the gradient of k is zero, or depends linearly on its
    parents' (or these on one another), there is no q: such latents are left out, and their share is
    ``degenerate``. The row and the column of k are zero, its correlations undefined. ``method`` and
    options as in :func:`held_moment`. Raises ValueError for an index out of range, a feature among
    its own parents, and when no latent is left.
    """
    if method == "finite_difference":
        raise ValueError("method must be 'rows' or 'jvp': an effect needs exact gradients")
    options = Run.of(run)
    f, labels, products = _looked_at(f, shape, method, 1.0, probes, options, names)
    index = labels.index("index", index)
    parents = labels.indices("parents", parents) if np.size(parents) else ()
    if index in parents:
        shown, (own,) = tuple(labels.shown(parents)), labels.shown([index])
        raise ValueError(f"parents must be other features than index {own!r}, got {shown}")
    if len(parents) >= products.size:
        raise ValueError(
            f"parents must be fewer than the latent's dimensions {products.size}, "
            f"got {len(parents)}"
        )
    statistic = _Intervened(products, index, parents)
    kind = f"wiggles under do({index}), parents {sorted(parents)}"
    return average(
        statistic, f, key, samples, labels.n, options, held=(index,), names=labels.names, kind=kind
    )


def filtered_moment(
    differences: Float[ArrayLike, "N n"] | Any,
    held: Several,
    threshold: float,
    *,
    names: Sequence[str] | None = None,
) -> Moment:
    r"""The paper's conditioning: the moment of wiggles that hardly move the held feature (E6).

    .. math:: \frac{1}{|K|} \sum_{s \in K} \Delta_s \Delta_s^{\mathsf T}, \qquad
              K = \{s : |\Delta_{s,k}| < \tau\}

    ``differences`` ``[N, n]``, one wiggle of all features a row (or a data frame, or a mapping from
    names to ``[N]``); several held features must all
    stay below the threshold. ``samples`` of the result is the number kept. Raises ValueError for an
    index out of range, a threshold that is not positive, and one that keeps nothing.
    """
    differences, labels = _feature_rows("differences", differences, names)
    held = labels.held("held", held)
    if not threshold > 0:
        raise ValueError(f"threshold must be positive, got {threshold}")
    sizes = np.abs(differences[:, held]).max(axis=1)
    kept = differences[sizes < threshold]
    if not len(kept):
        raise ValueError(
            f"threshold {threshold:g} keeps none of the {len(differences)} wiggles: the smallest "
            f"change of features {labels.shown(held)} is {sizes.min():.3g}"
        )
    kind = f"wiggles that move {sorted(held)} by less than {float(threshold):g}"
    return _second_moment(kept[:, :, None], labels, kind)


def from_wiggles(
    wiggles: Float[ArrayLike, "N n"] | Any, *, names: Sequence[str] | None = None
) -> Moment:
    r"""The wiggles' moment from wiggles that are already there, computed by whatever program.

    .. math:: \frac{1}{N} \sum_s \Delta_s \Delta_s^{\mathsf T}, \qquad \Delta_s = J(x_s)\, z_s

    ``wiggles`` ``[N, n]``, one a row: the change of all features along one random direction z
    with E[z zᵀ] = I, at one random latent x ~ N(0, I), both drawn anew for each row; or a data
    frame, or a mapping from names to ``[N]``. Differences at a step ε are to be divided by ε;
    directions of unit length give 1/d of the moment. Rows that share a latent are not independent,
    and the standard errors then too small. With features held: :func:`filtered_moment`.

    Raises ValueError for arrays of another shape, and for entries that are not finite.
    """
    wiggles, labels = _feature_rows("wiggles", wiggles, names)
    return _second_moment(wiggles[:, :, None], labels, WIGGLES)


def from_rows(
    rows: Float[ArrayLike, "N n *shape"], *, names: Sequence[str] | None = None
) -> Moment:
    r"""The wiggles' moment from Jacobians that are already there, computed by whatever program.

    .. math:: \frac{1}{N} \sum_s J_s J_s^{\mathsf T}

    ``rows`` ``[N, n, *shape]``: at each of N independent latents x ~ N(0, I) the gradients of all n
    features. Raises ValueError for arrays of another shape, and for entries that are not finite.
    """
    if not _check.concrete(rows):
        raise ValueError("rows is traced: moments of samples are taken on the host")
    rows = np.asarray(rows)
    if rows.ndim < 3 or not rows.size:
        raise ValueError(
            f"rows must be Jacobians [N, n, *shape], n gradients of the latent's shape for each of "
            f"N latents, got shape {rows.shape}; wiggles [N, n] go to from_wiggles"
        )
    if not (jnp.issubdtype(rows.dtype, jnp.floating) or rows.dtype.kind in "iu"):
        raise ValueError(f"rows must hold real numbers, got dtype {rows.dtype}")
    bad = [i for i, row in enumerate(rows) if not np.isfinite(row).all()]
    if bad:
        raise ValueError(
            f"rows must be finite, got NaN or infinity at {len(bad)} latents of {len(rows)}, the "
            f"first of them {bad[0]}"
        )
    factors = rows.reshape(*rows.shape[:2], -1)
    return _second_moment(factors, Labels.of(rows.shape[1], names), WIGGLES)


def _second_moment(factors: Float[np.ndarray, "N n m"], labels: Labels, kind: str) -> Moment:
    """The average of F Fᵀ over samples."""
    sums = Sums.zero(labels.n)
    blocks, squares = len(sums.count), 0.0
    for block in range(min(blocks, len(factors))):
        group = factors[block::blocks].astype(np.float64)  # a part at a time: rows can be large
        sums.count[block] = sums.weight[block] = len(group)
        sums.matrix[block] = np.tensordot(group, group, ([0, 2], [0, 2]))
        squares += np.sum(np.sum(group**2, axis=(1, 2)) ** 2)
    sums = sums._replace(trace_squared=np.asarray(squares))
    return sums.moment(names=labels.names, kind=kind)


def sample_moment(
    features: Float[ArrayLike, "N n"] | Any, *, names: Sequence[str] | None = None
) -> Moment:
    r"""The sample covariance of features that are already there: of data, or of a flow's outputs.

    .. math:: \frac{1}{N - 1} \sum_s (y_s - \bar y)(y_s - \bar y)^{\mathsf T}

    ``features`` ``[N, n]``, one independent sample a row; or a data frame, or a mapping from names
    to ``[N]`` (or ``[N, k]``), as of a map under ``vmap`` (which sorts a dict's keys). Standard
    errors, also of its correlations, are those of the jackknife over groups of rows, each replicate
    about its own mean. Raises ValueError for fewer than three samples, or features that are not
    finite.
    """
    features, labels = _feature_rows("features", features, names)
    if len(features) < 3:
        raise ValueError(f"features must hold at least three samples, got {len(features)}")
    blocks = min(len(Sums.zero(features.shape[1]).count), len(features))
    centred = features - features.mean(0)
    groups = [centred[block::blocks] for block in range(blocks)]
    sums = np.stack([group.sum(0) for group in groups])
    squares = np.stack([group.T @ group for group in groups])
    total, left = squares.sum(0), len(features) - np.array([len(group) for group in groups])
    # the other groups sum to -sums, which moves their mean away from zero
    others = total - squares - sums[:, :, None] * sums[:, None, :] / left[:, None, None]
    traces = (centred**2).sum(1)
    with np.errstate(invalid="ignore"):
        effective = traces.sum() ** 2 / (traces**2).sum()
    return Moment(
        matrix=total / (len(features) - 1),
        replicates=others / (left - 1)[:, None, None],
        shares=1 - left / len(features),
        samples=len(features),
        effective_samples=float(effective),
        names=labels.names,
        kind=COVARIANCE,
    )


# ---------------------------------------------------------------------------------------- refusals


def _looked_at(
    f: Features, shape: Any, method: str, eps: float, probes: int, run: Run, names: Any = None
) -> tuple[Features, Labels, _Products]:
    """f as a pytree that gives a vector, its features, and how its Jacobian is seen."""
    if method not in METHODS:
        raise ValueError(f"method must be 'rows', 'jvp' or 'finite_difference', got {method!r}")
    if not callable(f):
        raise ValueError(f"f must be a function of one latent, got {type(f).__name__}")
    _check.no_torch("f", f, "cdelta.torch.features(module)")
    _roles.refuse_more("f", f, "latent")
    if not (np.isfinite(eps) and eps != 0):
        raise ValueError(f"eps must be a finite number other than 0, got {eps}")
    sizes = np.atleast_1d(np.asarray(shape, dtype=object)).tolist()
    shape = tuple(_check.count("shape", size) for size in sizes)
    probes = _check.count("probes", probes)
    products = _Products(shape, run.dtype.name, method, float(eps), probes)
    if probes > products.size:
        raise ValueError(
            f"probes must not exceed the latent's dimension {products.size}, got {probes}; "
            "method='rows' is exact"
        )
    f, labels = _features.as_vector(as_pytree(f), shape, run.dtype, names)
    return f, labels, products


def _feature_rows(name: str, features: Any, names: Any) -> tuple[np.ndarray, Labels]:
    """Samples by features, in double precision also where jax's is single, and the features."""
    if not _check.concrete(*jax.tree.leaves(features)):
        raise ValueError(f"{name} is traced: moments of samples are taken on the host")
    try:
        features, own = _features.table(name, features)
        features = np.asarray(features)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a matrix [N, n] of numbers ({error})") from error
    # bfloat16 is a number to jax, an unknown kind to numpy
    if not (jnp.issubdtype(features.dtype, jnp.floating) or features.dtype.kind in "iu"):
        raise ValueError(f"{name} must hold real numbers, got dtype {features.dtype}")
    features = features.astype(np.float64)
    if features.ndim != 2 or not features.size:
        raise ValueError(
            f"{name} must be a matrix [N, n], one sample a row, got shape {features.shape}"
        )
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features)).sum())
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite entries")
    labels = Labels.of(features.shape[1], own)
    if names is not None:  # of columns as of anything else
        labels = Labels.of(features.shape[1], names)
    return features, labels
