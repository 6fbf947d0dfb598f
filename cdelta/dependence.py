r"""What a wiggle of the latent says about the features: moments over :math:`x_0 \sim N(0, I)`, with
standard errors.

``f`` maps one latent to a vector of n features and J(x₀) is its Jacobian. Every estimator averages
a statistic of independent latents; latent i is drawn from ``fold_in(key, i)``, so the set of
latents depends on the key alone, not on the batch, the number of devices or of processes, nor on an
interruption in between.
"""

import dataclasses
import functools
import json
import math
import os
import time
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray
from tqdm import tqdm

from cdelta import _check, jacobian
from cdelta._pytree import as_pytree
from cdelta.flow import CPU_OPTIONS

Features = Callable[[Array], Array]
_BLOCKS = 64  # groups of the jackknife: a standard error is then known to 9 %


@dataclasses.dataclass(frozen=True, eq=False)
class Moment:
    r"""An estimated matrix of dependence with its uncertainty.

    ``matrix`` ``[n, n]``; ``samples``, the latents (or probes) that it averages;
    ``effective_samples``, as how many they count, :math:`(\sum_s T_s)^2 / \sum_s T_s^2` with
    :math:`T_s` the trace that sample s adds (few when a handful of latents carry everything);
    ``degenerate``, the share of latents left out because nothing could be held there.

    Standard errors are those of the delete-one-group jackknife: ``replicates`` are the matrices
    without one group of samples each, ``shares`` the groups' shares of all samples, and for any
    function of the matrix

    .. math:: \operatorname{stderr}^2 = \sum_b (1 - s_b)\,(\theta_{(b)} - \theta)^2

    which is unbiased for a mean, whatever the tails. :meth:`estimate` does it for a function of
    yours. Features in ``held`` have zero rows; their correlations are undefined (NaN).
    ``numpy.asarray`` gives ``matrix``.
    """

    matrix: Float[np.ndarray, "n n"]
    replicates: Float[np.ndarray, "blocks n n"] = dataclasses.field(repr=False)
    shares: Float[np.ndarray, " blocks"] = dataclasses.field(repr=False)
    samples: int
    effective_samples: float
    held: tuple[int, ...] = ()
    degenerate: float = 0.0

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.matrix, dtype=dtype)

    def estimate(
        self, function: Callable[[np.ndarray], ArrayLike]
    ) -> tuple[np.ndarray, np.ndarray]:
        """A function of the matrix, and its standard error (of the same shape)."""
        value = np.asarray(function(self.matrix))
        return value, np.asarray(
            self._stderr(
                value, np.stack([np.asarray(function(matrix)) for matrix in self.replicates])
            )
        )

    def _stderr(self, value, replicates):
        if len(self.shares) < 2:
            return np.full_like(value, np.nan)  # one sample says nothing about its spread
        return np.sqrt(np.einsum("b,b...->...", 1 - self.shares, (replicates - value) ** 2))

    @property
    def stderr(self) -> Float[np.ndarray, "n n"]:
        """Standard errors of the entries of ``matrix``."""
        return self._stderr(self.matrix, self.replicates)

    @property
    def correlation(self) -> Float[np.ndarray, "n n"]:
        r""":math:`M_{ij} / \sqrt{M_{ii} M_{jj}}`; NaN for held features.

        Raises ValueError, naming them, when other features have no moment (a map that does not
        depend on x0).
        """
        self._refuse_constant()
        return _correlation(self.matrix)

    @property
    def correlation_stderr(self) -> Float[np.ndarray, "n n"]:
        """Standard errors of ``correlation``."""
        self._refuse_constant()
        return self._stderr(_correlation(self.matrix), _correlation(self.replicates))

    def _refuse_constant(self) -> None:
        constant = [
            int(i) for i in np.flatnonzero(~(np.diagonal(self.matrix) > 0)) if i not in self.held
        ]
        if constant:
            raise ValueError(
                f"the correlation of features {constant} is undefined: their moment is not positive, as for a map that "
                "does not depend on x0; .matrix holds what was measured, .select(indices) leaves features out"
            )

    def partial(self, k: int | Sequence[int]) -> "Moment":
        r"""The moment with features k (one or several) regressed out: their Schur complement.

        .. math:: M_{ij} - M_{ik} M_{kk}^{-1} M_{kj}

        ``[n, n]`` with zero rows and columns at k. Raises ValueError for an index out of range or a
        singular :math:`M_{kk}`.
        """
        k = _check.indices("k", k, len(self.matrix))
        if not np.linalg.matrix_rank(self.matrix[np.ix_(k, k)], hermitian=True) == len(k):
            raise ValueError(f"features {list(k)} cannot be held: their own moment is singular")
        return dataclasses.replace(
            self,
            matrix=_schur(self.matrix, k),
            replicates=_schur(self.replicates, k),
            held=(*self.held, *k),
        )

    def select(self, indices: Sequence[int]) -> "Moment":
        """The moment of some of the features, in the given order."""
        chosen = list(_check.indices("indices", indices, len(self.matrix)))
        return dataclasses.replace(
            self,
            matrix=self.matrix[np.ix_(chosen, chosen)],
            replicates=self.replicates[:, chosen][:, :, chosen],
            held=tuple(new for new, old in enumerate(chosen) if old in self.held),
        )


jax.tree_util.register_dataclass(
    Moment,
    ["matrix", "replicates", "shares", "samples", "effective_samples", "degenerate"],
    ["held"],
)


def _correlation(matrices):
    variance = np.diagonal(matrices, axis1=-2, axis2=-1)
    scale = np.sqrt(np.where(variance > 0, variance, np.nan))
    correlation = matrices / scale[..., :, None] / scale[..., None, :]
    n = matrices.shape[-1]
    correlation[..., np.arange(n), np.arange(n)] = np.where(variance > 0, 1.0, np.nan)
    return correlation


def _schur(matrices, k):
    columns = matrices[..., :, k]
    held = np.take(columns, k, axis=-2)
    result = matrices - columns @ np.linalg.solve(held, np.swapaxes(columns, -1, -2))
    result[..., k, :] = 0.0
    result[..., :, k] = 0.0
    return (result + np.swapaxes(result, -1, -2)) / 2


# The estimators. Each statistic is a small frozen object, equal to another with the same settings,
# so that jit compiles it once; called with f and the key of one sample, it gives the sample's
# weight and weighted matrix.


@dataclasses.dataclass(frozen=True)
class _Wiggle:
    """J Jᵀ at one latent: exact, or J z zᵀ Jᵀ averaged over probes z."""

    shape: tuple[int, ...]
    dtype: str
    method: str
    eps: float
    probes: int

    def __call__(self, f, key):
        key_latent, key_probe = jax.random.split(key)
        x0 = jax.random.normal(key_latent, self.shape, self.dtype)
        values, factor = _products(f, x0, key_probe, self)
        return _one_if_finite(values), _gram(factor, factor)


@dataclasses.dataclass(frozen=True)
class _Covariance:
    """J(X) J(X_α)ᵀ, made symmetric, at one pair of latents and one uniform α.

    More values of α at the same pair, or quadrature over them, cost more than they gain: between
    pairs the spread is far larger than along α.
    """

    shape: tuple[int, ...]
    dtype: str
    method: str
    eps: float
    probes: int

    def __call__(self, f, key):
        key_latent, key_copy, key_probe, key_alpha = jax.random.split(key, 4)
        x0 = jax.random.normal(key_latent, self.shape, self.dtype)
        copy = jax.random.normal(key_copy, self.shape, self.dtype)
        alpha = jax.random.uniform(key_alpha, (), self.dtype)
        near = alpha * x0 + jnp.sqrt(1 - alpha**2) * copy
        values, (first, second) = jax.vmap(lambda x: _products(f, x, key_probe, self))(
            jnp.stack([x0, near])
        )
        matrix = _gram(first, second)
        return _one_if_finite(values), (matrix + matrix.T) / 2


@dataclasses.dataclass(frozen=True)
class _Held:
    """w J P Jᵀ at one latent, P the projection that leaves the held features unchanged to first
    order."""

    shape: tuple[int, ...]
    dtype: str
    method: str
    probes: int
    held: tuple[int, ...]
    weighting: str

    def __call__(self, f, key):
        key_latent, key_probe = jax.random.split(key)
        x0 = jax.random.normal(key_latent, self.shape, self.dtype)
        held = jnp.asarray(self.held)
        if self.method == "rows":
            values, factor = jacobian.values_and_rows(f, x0)
            factor = factor.reshape(-1, x0.size)
            basis, size = jnp.linalg.qr(factor[held].T)
            factor = factor - jnp.matmul(
                jnp.matmul(factor, basis, precision="highest"), basis.T, precision="highest"
            )
        else:
            gradients = jacobian.rows(lambda x: f(x)[held], x0).reshape(len(self.held), -1)
            basis, size = jnp.linalg.qr(gradients.T)
            probes = _probes(key_probe, self).reshape(self.probes, -1)
            probes = probes - jnp.matmul(
                jnp.matmul(probes, basis, precision="highest"), basis.T, precision="highest"
            )
            values, factor = jacobian.values_and_jvp(
                f, x0, probes.reshape(self.probes, *self.shape)
            )
            factor = factor.T / math.sqrt(self.probes)
        factor = factor.at[held].set(0.0)
        lengths = jnp.abs(jnp.diagonal(size))
        # what is left of a row that depends on the others is rounding, as is its direction
        free = lengths.min() > (
            0 if len(self.held) == 1 else x0.size * jnp.finfo(x0.dtype).eps * lengths.max()
        )
        weight = 1 / jnp.prod(lengths) if self.weighting == "inverse_norm" else 1.0
        weight = jnp.where(free, weight, 0.0) * _one_if_finite(values)
        return weight, jnp.where(free, weight * _gram(factor, factor), 0.0)


def _one_if_finite(values):
    """The weight of a sample; NaN, which stops the run, where f itself is not finite though its
    derivative may be."""
    return jnp.where(jnp.isfinite(values).all(), 1, jnp.nan).astype(values.dtype)


def _gram(left, right):
    return jnp.matmul(left, right.T, precision="highest")


def _probes(key, settings):
    """Random orthogonal directions of length √d: E[z zᵀ] = I as for N(0, I), without the spread of
    the length."""
    size = math.prod(settings.shape)
    directions = jnp.linalg.qr(jax.random.normal(key, (size, settings.probes), settings.dtype))[0].T
    return (math.sqrt(size) * directions).reshape(settings.probes, *settings.shape)


def _products(f, x0, key, settings):
    """f(x₀), and F with E[F Fᵀ] = J Jᵀ: J itself ``[n, d]``, or products with probes over √probes
    ``[n, probes]``."""
    if settings.method == "rows":
        values, gradients = jacobian.values_and_rows(f, x0)
        return values, gradients.reshape(-1, x0.size)
    probes = _probes(key, settings)
    if settings.method == "jvp":
        values, products = jacobian.values_and_jvp(f, x0, probes)
    else:  # a value that is not finite makes the difference so too
        products = values = jacobian.finite_difference(f, x0, probes, settings.eps)
    return values, products.T / math.sqrt(settings.probes)


def wiggle_moment(
    f: Features,
    key: PRNGKeyArray,
    shape: int | Sequence[int],
    samples: int,
    method: str = "rows",
    eps: float = 1e-3,
    *,
    probes: int = 1,
    antithetic: bool = False,
    **run: Any,
) -> Moment:
    r"""The second moment of wiggles, the paper's measure of dependence (C3).

    .. math:: E\bigl[J(x_0) J(x_0)^{\mathsf T}\bigr] = \sum_n n \operatorname{Cov} f_n \succeq \operatorname{Cov} f(x_0)

    with :math:`f_n` the n-th Hermite component of f; equality holds exactly for affine f.
    ``method``: "rows", the exact :math:`J J^{\mathsf T}` at each latent; "jvp",
    :math:`J z z^{\mathsf T} J^{\mathsf T}` averaged over ``probes`` random orthogonal z of length
    √d; "finite_difference", the same with differences at ``eps``, as in the paper.

    ``shape`` is the latent's; f returns ``[n]``; ``samples`` latents are drawn. With ``antithetic``
    a sample is the average over x₀ and −x₀: it pays where f has a large even part, and doubles the
    cost for nothing where f is odd. Options of every estimator (``run``): ``batch``, latents at a
    time (chosen from the sizes when not given); ``devices``, by default all; ``dtype``;
    ``progress``, True or False, by default a bar once a run has taken five seconds; ``resume``, a
    file that keeps what was accumulated: the same call with the same or more samples goes on from
    there. However a run is stopped, the exception's ``moment`` holds the estimate so far.

    Raises ValueError for samples < 1, an unknown method, a map that does not return a vector, or
    NaN in its values.
    """
    n, f, settings = _settings(f, shape, method, eps, probes, run)
    return _average(_Wiggle(**settings), f, key, samples, n, antithetic=antithetic, **run)


def feature_covariance(
    f: Features,
    key: PRNGKeyArray,
    shape: int | Sequence[int],
    samples: int,
    method: str = "rows",
    eps: float = 1e-3,
    *,
    probes: int = 1,
    antithetic: bool = False,
    **run: Any,
) -> Moment:
    r"""The covariance of the features, from Jacobians alone, for every f (C3').

    .. math:: \operatorname{Cov} f(X) = \int_0^1 E\bigl[J(X) J(X_\alpha)^{\mathsf T}\bigr] d\alpha,
              \qquad X_\alpha = \alpha X + \sqrt{1 - \alpha^2}\, X'

    with independent X and X'. Each of the ``samples`` draws X, X' and a uniform α and uses two
    Jacobians, so that the average is unbiased for every f. Methods, shapes, options and errors as
    in :func:`wiggle_moment`; "jvp" takes the same probes at both latents.
    """
    n, f, settings = _settings(f, shape, method, eps, probes, run)
    return _average(_Covariance(**settings), f, key, samples, n, antithetic=antithetic, **run)


def held_moment(
    f: Features,
    key: PRNGKeyArray,
    shape: int | Sequence[int],
    samples: int,
    held: int | Sequence[int],
    weighting: str = "inverse_norm",
    *,
    method: str = "rows",
    probes: int = 1,
    **run: Any,
) -> Moment:
    r"""The wiggles' moment with features held: the limit of the paper's filter as its threshold
    vanishes (C4).

    .. math:: \frac{E\bigl[w\, J P J^{\mathsf T}\bigr]}{E[w]}, \qquad P = I - B^{\mathsf T} (B B^{\mathsf T})^{-1} B,
              \qquad w = \det(B B^{\mathsf T})^{-1/2}

    B holds the gradients of the ``held`` features (one index or several). Given x₀ the probes with
    :math:`|Bz| < \tau` have probability :math:`\propto \tau^{|B|} w` for small τ and covariance →
    P. For one feature w is the inverse norm of its gradient; ``weighting="uniform"`` takes w = 1,
    the plain projection.

    Where the held gradients are zero or linearly dependent nothing can be held: such latents are
    left out (the filter would let every probe of a saturated feature pass, at every τ) and their
    share is ``degenerate``. The rows and columns of held features are zero, their correlations
    undefined. Where the gradient comes near zero, w has heavy tails: look at ``effective_samples``.

    ``method="rows"`` takes all n gradients and the exact :math:`J P J^{\mathsf T}`; "jvp" takes the
    held gradients and products with projected probes, cheaper when n is large. Otherwise as
    :func:`wiggle_moment`. Raises ValueError also for an index out of range, and when no latent is
    left.
    """
    if weighting not in ("inverse_norm", "uniform"):
        raise ValueError(f"weighting must be 'inverse_norm' or 'uniform', got {weighting!r}")
    if method == "finite_difference":
        raise ValueError("method must be 'rows' or 'jvp': held features need their exact gradients")
    n, f, settings = _settings(f, shape, method, 1.0, probes, run)
    del settings["eps"]
    statistic = _Held(**settings, held=_check.indices("held", held, n), weighting=weighting)
    return _average(statistic, f, key, samples, n, **run)


def filtered_moment(
    differences: Float[ArrayLike, "N n"], held: int | Sequence[int], threshold: float
) -> Moment:
    r"""The paper's conditioning: the second moment of those wiggles that hardly move the held
    feature (E6).

    .. math:: \frac{1}{|K|} \sum_{s \in K} \Delta_s \Delta_s^{\mathsf T}, \qquad K = \{s : |\Delta_{s,k}| < \tau\}

    ``differences`` ``[N, n]``, one wiggle of all features a row; several held features must all
    stay below the threshold. ``samples`` of the result is the number kept. Raises ValueError for an
    index out of range, a threshold that is not positive, and one that keeps nothing.
    """
    differences = _feature_rows("differences", differences)
    held = _check.indices("held", held, differences.shape[1])
    if not threshold > 0:
        raise ValueError(f"threshold must be positive, got {threshold}")
    sizes = np.abs(differences[:, held]).max(axis=1)
    kept = differences[sizes < threshold]
    if not len(kept):
        raise ValueError(
            f"threshold {threshold:g} keeps none of the {len(differences)} wiggles: the smallest change of features "
            f"{list(held)} is {sizes.min():.3g}"
        )
    n = kept.shape[1]
    blocks = _block_count(n)
    sums = _Sums.zero(blocks, n)
    for block in range(min(blocks, len(kept))):
        group = kept[block::blocks]
        sums.count[block] = sums.weight[block] = len(group)
        sums.matrix[block] = group.T @ group
    return _moment(sums._replace(trace_squared=np.sum(np.sum(kept**2, axis=1) ** 2)), ())


def sample_moment(features: Float[ArrayLike, "N n"]) -> Moment:
    r"""The sample covariance of features that are already there: of data, or of a flow's outputs.

    .. math:: \frac{1}{N - 1} \sum_s (y_s - \bar y)(y_s - \bar y)^{\mathsf T}

    ``features`` ``[N, n]``, one independent sample a row. Standard errors, also of its
    correlations, are those of the jackknife over groups of rows, each replicate about its own mean.
    Raises ValueError for fewer than three samples, or features that are not finite.
    """
    features = _feature_rows("features", features)
    if len(features) < 3:
        raise ValueError(f"features must hold at least three samples, got {len(features)}")
    blocks = min(_block_count(features.shape[1]), len(features))
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
    )


def _feature_rows(name: str, features: Any) -> np.ndarray:
    """Samples by features, in double precision."""
    features = _check.as_float(name, features)
    if features.ndim != 2 or not features.size:
        raise ValueError(
            f"{name} must be a matrix [N, n], one sample a row, got shape {features.shape}"
        )
    _check.finite(name, features)
    return np.asarray(features, dtype=np.float64)


# Streaming.


class _Sums(NamedTuple):
    """What was accumulated, by group of the jackknife (sample i is in group i modulo their
    number)."""

    count: np.ndarray  # [blocks]
    weight: np.ndarray  # [blocks]
    matrix: np.ndarray  # [blocks, n, n]
    trace_squared: np.ndarray  # []
    degenerate: np.ndarray  # []

    @classmethod
    def zero(cls, blocks: int, n: int) -> "_Sums":
        return cls(
            np.zeros(blocks), np.zeros(blocks), np.zeros((blocks, n, n)), np.zeros(()), np.zeros(())
        )

    @property
    def drawn(self) -> int:
        """How many samples were drawn: those that count and those where nothing could be held."""
        return int(self.count.sum() + self.degenerate)

    def __add__(self, other: Any) -> "_Sums":
        return _Sums(
            *(
                mine + np.asarray(theirs, dtype=np.float64)
                for mine, theirs in zip(self, other, strict=True)
            )
        )


def _block_count(n: int) -> int:
    return max(8, min(_BLOCKS, 2**24 // n**2))


def _moment(sums: _Sums, held: tuple[int, ...]) -> Moment:
    total, samples, degenerate = sums.matrix.sum(0), sums.count.sum(), float(sums.degenerate)
    if not samples:
        raise ValueError(
            f"features {list(held)} cannot be held: their gradients are zero or linearly dependent at every one of "
            f"{degenerate:.0f} latents"
        )
    used = sums.count > 0
    weight = sums.weight.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        others = (total - sums.matrix[used]) / (weight - sums.weight[used])[:, None, None]
        effective = np.trace(total) ** 2 / sums.trace_squared
    return Moment(
        matrix=total / weight,
        replicates=others,
        shares=sums.count[used] / samples,
        samples=int(samples),
        effective_samples=float(effective),
        held=held,
        degenerate=degenerate / (int(samples) + degenerate),
    )


def _batch_sums(*arguments, mesh, **settings):
    """The sums over samples start, …, start + batch - 1 that are below stop, and the first one that
    is not finite."""
    return _compiled(mesh.devices.flat[0].platform)(*arguments, mesh=mesh, **settings)


@functools.cache
def _compiled(platform: str) -> Callable:
    names = ("statistic", "antithetic", "blocks", "batch", "mesh", "impl")
    return jax.jit(
        _sum_batch,
        static_argnames=names,
        compiler_options=CPU_OPTIONS if platform == "cpu" else None,
    )


def _sum_batch(f, key_data, start, stop, *, statistic, antithetic, blocks, batch, mesh, impl):
    def on_one_device(f, key_data, start, stop):
        here = batch // mesh.size
        index = start + jax.lax.axis_index("samples") * here + jnp.arange(here, dtype=start.dtype)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.wrap_key_data(key_data, impl=impl), index
        )
        weights, matrices = jax.vmap(lambda key: statistic(f, key))(keys)
        if antithetic:
            mirrored = jax.vmap(lambda key: statistic(lambda x: f(-x), key))(keys)
            weights, matrices = (weights + mirrored[0]) / 2, (matrices + mirrored[1]) / 2
        asked = index < stop
        finite = jnp.isfinite(weights) & jnp.isfinite(matrices).all((1, 2))
        usable = asked & (weights > 0)
        matrices = jnp.where(usable[:, None, None], matrices, 0)
        group = jax.nn.one_hot(index % blocks, blocks, dtype=weights.dtype) * usable[:, None]
        sums = (
            group.sum(0),
            jnp.where(usable, weights, 0) @ group,
            jnp.einsum("sb,sij->bij", group, matrices, precision="highest"),
            (jnp.trace(matrices, axis1=1, axis2=2) ** 2).sum(),
            (asked & (weights == 0)).sum(dtype=weights.dtype),
        )
        bad = jnp.where(asked & ~finite, index, stop).min()
        return jax.lax.psum(sums, "samples"), jax.lax.pmin(bad, "samples")

    replicated = PartitionSpec()
    split = jax.shard_map(
        on_one_device, mesh=mesh, in_specs=replicated, out_specs=replicated, check_vma=False
    )
    return split(f, key_data, start, stop)


def _average(
    statistic: Any,
    f: Features,
    key: PRNGKeyArray,
    samples: int,
    n: int,
    *,
    antithetic: bool = False,
    batch: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: bool | None = None,
    resume: str | os.PathLike | None = None,
) -> Moment:
    """Stream a statistic over samples; see :func:`wiggle_moment` for the options."""
    samples = _check.count("samples", samples)
    key_data, impl = _key("key", key)
    mesh = Mesh(np.asarray(jax.devices() if devices is None else devices), ("samples",))
    if batch is None:
        size = math.prod(statistic.shape)
        batch = max(1, min(4096, 2**22 // (n * n + n * size + 8 * size))) * mesh.size
    batch = -(-min(_check.count("batch", batch), samples) // mesh.size) * mesh.size
    held = getattr(statistic, "held", ())
    blocks = _block_count(n)
    store = None if resume is None else _Store(resume, statistic, antithetic, f, key_data)
    sums = _Sums.zero(blocks, n) if store is None else store.read(blocks, n, samples)
    leader = jax.process_index() == 0
    # not disable=False otherwise: that would overrule TQDM_DISABLE
    silent = {"disable": True} if progress is False or not leader else {}
    bar = tqdm(
        total=samples, initial=sums.drawn, unit="latent", delay=0 if progress else 5, **silent
    )
    try:
        while sums.drawn < samples:
            new, bad = _batch_sums(
                f, key_data, np.uint32(sums.drawn), np.uint32(samples),
                statistic=statistic, antithetic=antithetic, blocks=blocks, batch=batch, mesh=mesh, impl=impl,
            )  # fmt: skip
            if int(bad) < samples:
                raise ValueError(
                    f"f, or a derivative of it, is NaN or infinite at sample {int(bad)} of {samples} (the key of that "
                    "sample is fold_in(key, index)): a velocity or network that returns NaN, or a flow that diverges"
                )
            sums += new
            bar.update(sums.drawn - bar.n)
            if store is not None and leader:
                store.write(sums, last=sums.drawn == samples)
    except BaseException as stopped:
        if sums.count.sum():
            stopped.moment = _moment(sums, held)
            where = "in this exception's .moment"
            if store is not None and leader:
                store.write(sums, last=True)
                where += f" and in {store.path}, from where the same call goes on"
            stopped.add_note(f"what {sums.drawn} of {samples} samples gave is kept {where}")
        raise
    finally:
        bar.close()
    return _moment(sums, held)


class _Store:
    """The file behind ``resume``: the sums, how many samples they hold, and of what they are the
    sums."""

    _EVERY = 20.0  # seconds between two writes

    def __init__(
        self,
        path: str | os.PathLike,
        statistic: Any,
        antithetic: bool,
        f: Features,
        key_data: np.ndarray,
    ):
        self.path = os.fspath(path)
        self.setting = {
            "statistic": f"{statistic}, antithetic={antithetic}",
            "key": key_data.tolist(),
        }
        # a function has no name that survives a restart; its value at one point tells it from
        # another well enough
        point = jax.random.normal(jax.random.key(0), statistic.shape, statistic.dtype)
        self.features = np.asarray(f(point), dtype=np.float64)
        self.written = time.monotonic()

    def read(self, blocks: int, n: int, samples: int) -> _Sums:
        """The sums of the samples drawn so far; ValueError when the file belongs to another run."""
        empty = _Sums.zero(blocks, n)
        sums = self._read(empty, samples) if jax.process_index() == 0 else empty
        if jax.process_count() == 1:
            return sums
        # as 32-bit words, which no setting of jax's precision rounds
        words = np.concatenate([np.ravel(part) for part in sums]).view(np.uint32)
        parts = np.asarray(multihost_utils.broadcast_one_to_all(words)).view(np.float64)
        ends = np.cumsum([part.size for part in sums])[:-1]
        return _Sums(
            *(
                part.reshape(like.shape)
                for part, like in zip(np.split(parts, ends), sums, strict=True)
            )
        )

    def _read(self, empty, samples):
        if not os.path.exists(self.path):
            return empty
        try:
            with np.load(self.path, allow_pickle=False) as file:
                setting, features = json.loads(str(file["setting"])), file["features"]
                sums = _Sums(*(file[name] for name in _Sums._fields))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"resume: {self.path} is not a file of accumulated samples ({error})"
            ) from error
        for name, mine in self.setting.items():
            if setting.get(name) != mine:
                raise ValueError(
                    f"resume: {self.path} belongs to another run: its {name} is {setting.get(name)}, here it is {mine}"
                )
        if features.shape != self.features.shape or not np.allclose(
            features, self.features, rtol=1e-3, atol=1e-6
        ):
            raise ValueError(
                f"resume: {self.path} belongs to another f: its features at one latent differ"
            )
        if sums.drawn > samples:
            raise ValueError(
                f"resume: {self.path} already holds {sums.drawn} samples, more than samples={samples}"
            )
        return sums

    def write(self, sums: _Sums, last: bool) -> None:
        """Write the file whole, at the end or when the last time is long ago."""
        if not last and time.monotonic() - self.written < self._EVERY:
            return
        temporary = f"{self.path}.{os.getpid()}.tmp"
        with open(temporary, "wb") as file:
            np.savez(
                file, setting=json.dumps(self.setting), features=self.features, **sums._asdict()
            )
        os.replace(temporary, self.path)
        self.written = time.monotonic()


# Refusals.


def _settings(f, shape, method, eps, probes, run):
    """The number of features, f as a pytree, and the settings that all statistics share."""
    if method not in ("rows", "jvp", "finite_difference"):
        raise ValueError(f"method must be 'rows', 'jvp' or 'finite_difference', got {method!r}")
    if not callable(f):
        raise ValueError(f"f must be a function of one latent, got {type(f).__name__}")
    if not (np.isfinite(eps) and eps != 0):
        raise ValueError(f"eps must be a finite number other than 0, got {eps}")
    shape = tuple(
        _check.count("shape", size) for size in ((shape,) if isinstance(shape, int) else shape)
    )
    probes, size = _check.count("probes", probes), math.prod(shape)
    if probes > size:
        raise ValueError(
            f"probes must not exceed the latent's dimension {size}, got {probes}; method='rows' is exact"
        )
    dtype = jnp.dtype(run.pop("dtype", None) or jnp.result_type(float))
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be floating-point, got {dtype}")
    f = as_pytree(f)
    out = jax.eval_shape(f, jax.ShapeDtypeStruct(shape, dtype))
    if not isinstance(out, jax.ShapeDtypeStruct) or len(out.shape) != 1 or not out.size:
        got = out.shape if isinstance(out, jax.ShapeDtypeStruct) else type(out).__name__
        raise ValueError(
            f"f must return a vector of features [n] for a latent of shape {shape}, got {got}"
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"f must return real floating-point numbers, got dtype {out.dtype}")
    return (
        out.size,
        f,
        {
            "shape": shape,
            "dtype": dtype.name,
            "method": method,
            "eps": float(eps),
            "probes": probes,
        },
    )


def _key(name: str, key: Any) -> tuple[np.ndarray, str]:
    """A key's words and its generator."""
    if not _check.concrete(key):
        raise ValueError(
            f"{name} is traced: the estimators stream from the host and cannot run under jit or vmap"
        )
    try:
        key = (
            key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} must be one key from jax.random.key, got {key!r}") from error
    if key.shape != ():
        raise ValueError(f"{name} must be one key, got keys of shape {key.shape}")
    return np.asarray(jax.random.key_data(key)), str(jax.random.key_impl(key))
