r"""What decides whether an estimate is to be believed, from its numbers alone: tails, jumps, flat
features, a solver's steps, rows against products, rounding, and errors over repeats."""

import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from cdelta import quality
from cdelta.moment import Moment


class Tail(NamedTuple):
    """The tail of positive numbers: ``index`` α with :math:`P(T > t) \\sim t^{-α}`, and ``shape``
    γ, which is 1/α where there is such an α and 0 where all moments exist; each with its standard
    error. ``used``: how many of the largest numbers they are taken from."""

    index: float
    stderr: float
    shape: float
    shape_stderr: float
    used: int


def tail(values: Float[np.ndarray, " N"], share: float = 0.05) -> Tail:
    r"""Hill's estimator of the tail index, and the moment estimator of Dekkers, Einmahl and de Haan
    (1989), from the k largest of N numbers.

    .. math:: \hat\alpha^{-1} = M_1, \qquad \hat\gamma = M_1 + 1 - \tfrac12
              \Bigl(1 - \frac{M_1^2}{M_2}\Bigr)^{-1}, \qquad
              M_r = \frac1k \sum_{i \le k} \Bigl(\log \frac{T_{(i)}}{T_{(k+1)}}\Bigr)^r

    Standard errors :math:`\hat\alpha/\sqrt k` and :math:`\sqrt{(1 + \gamma^2)/k}` (of γ ≥ 0).
    Hill's takes every tail for a power, at any finite N also a light one; the second tells them
    apart, and scatters more. A mean has a standard error where α > 2, and exists where α > 1.

    Of numbers that are all alike the index is infinite, and NaN where the largest are none (fewer
    than 40 numbers, or zeros but for a few).
    """
    ordered = np.sort(np.asarray(values, np.float64))[::-1]
    k = math.ceil(share * len(ordered))
    if len(ordered) < 40 or not ordered[k] > 0:
        return Tail(math.nan, math.nan, math.nan, math.nan, k)
    logs = np.log(ordered[:k] / ordered[k])
    first, second = logs.mean(), (logs**2).mean()
    if first < 1e-9:  # rounding
        return Tail(math.inf, 0.0, -math.inf, 0.0, k)
    ratio = first**2 / second
    shape = -math.inf if ratio > 1 - 1e-9 else first + 1 - 0.5 / (1 - ratio)
    spread = math.sqrt((1 + max(shape, 0) ** 2) / k)
    return Tail(float(1 / first), float(1 / first / math.sqrt(k)), float(shape), spread, k)


def jumps(
    samples: Moment, covariance: Moment, chance: float = 1e-3
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    r"""By how many standard errors each feature's variance over samples exceeds, or misses, the one
    that its Jacobians give (C3'), and where that is no accident.

    The second is right only for a feature without jumps: its derivative must be all of it. With n
    features one of them is taken for such a feature by accident with probability ``chance``.
    """
    difference = np.diagonal(samples.matrix - covariance.matrix)
    error = np.hypot(np.diagonal(samples.stderr), np.diagonal(covariance.stderr))
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.where(difference == 0, 0.0, difference / error)
    bound = statistics.NormalDist().inv_cdf(1 - chance / (2 * len(scores)))
    # what is smaller than this is rounding, whatever the errors say
    least = 1e-3 * np.diagonal(samples.matrix)
    return scores, (np.abs(scores) > max(bound, 4)) & (np.abs(difference) > least)


def flat(lengths: Float[np.ndarray, "N n"], least: float = 1e-3) -> Float[np.ndarray, " n"]:
    """The share of latents at which a feature hardly moves: its gradient is shorter than ``least``
    of its root mean square. 1 for a feature that never moves."""
    size = np.sqrt((lengths**2).mean(0))
    return (lengths <= least * size).mean(0)


class Method(NamedTuple):
    """How Jacobians are seen: ``method`` and ``probes`` as an estimator takes them; ``cost`` of one
    latent, ``variance`` that it leaves, relative to the squared size of the moment."""

    method: str
    probes: int
    cost: float
    variance: float

    @property
    def price(self) -> float:
        """Cost for a given error."""
        return self.cost * self.variance


class Scatter(NamedTuple):
    """S = J Jᵀ over latents: its mean, E‖S - E S‖², E(tr S)² and E‖S‖²."""

    mean: np.ndarray  # [n, n]
    spread: float
    trace_squared: float
    squared: float


class Sums(NamedTuple):
    """What :class:`Scatter` is made of, summed over latents, as differences from the first one:
    where all are alike nothing is left of their squares."""

    count: int
    first: np.ndarray | None  # [n, n]
    difference: np.ndarray  # [n, n]
    difference_squared: float
    trace_squared: float
    squared: float

    @classmethod
    def zero(cls, n: int) -> "Sums":
        return cls(0, None, np.zeros((n, n)), 0.0, 0.0, 0.0)

    def plus(self, matrices: Float[np.ndarray, "N n n"]) -> "Sums":
        if not len(matrices):
            return self
        first = matrices[0].copy() if self.first is None else self.first
        apart = matrices - first
        return Sums(
            self.count + len(matrices),
            first,
            self.difference + apart.sum(0),
            self.difference_squared + float(np.vdot(apart, apart)),
            self.trace_squared + float((np.trace(matrices, axis1=1, axis2=2) ** 2).sum()),
            self.squared + float(np.vdot(matrices, matrices)),
        )

    def scatter(self) -> Scatter | None:
        """None of fewer than two latents."""
        if self.count < 2:
            return None
        apart = self.difference / self.count
        spread = max(self.difference_squared / self.count - float(np.vdot(apart, apart)), 0.0)
        parts = self.trace_squared / self.count, self.squared / self.count
        return Scatter(self.first + apart, spread, *parts)


def methods(scatter: Scatter, d: int, dearer: float = 1.0) -> list[Method]:
    r"""Rows, and products along 1, 2, 4, … probes, cheapest for a given error first.

    .. math:: E\|\hat S - ES\|^2 = E\|S - ES\|^2 + \frac1P \frac{d - P}{d - 1}
              \frac{d\,E(\operatorname{tr} S)^2 + (d - 2)\,E\|S\|^2}{d + 2}

    with S = J Jᵀ at one latent of d dimensions, and P orthogonal probes of length √d (chapter 18).
    Costs are counted in evaluations: a solution and P tangents are 1 + P, rows of n features
    2 + 2n, times how much ``dearer`` they were measured to be than that. Where two prices are
    within rounding of each other (both 0, for an affine map), rows.
    """
    n, size = len(scatter.mean), (scatter.mean**2).sum() or 1.0
    term = (d * scatter.trace_squared + (d - 2) * scatter.squared) / (d + 2)
    found = [Method("rows", 1, dearer * (2.0 + 2 * n), float(scatter.spread / size))]
    probes = 1
    while probes <= min(d, 64):
        left = (d - probes) / (d - 1) / probes if d > 1 else 0.0
        variance = float((scatter.spread + left * term) / size)
        found.append(Method("jvp", probes, 1.0 + probes, variance))
        probes *= 2
    return sorted(found, key=lambda one: (round(one.price, 12), one.method != "rows"))


def in_roundings(
    error: Float[ArrayLike, "N ..."],
    condition: Float[ArrayLike, "..."],
    size: Float[ArrayLike, "..."],
) -> float:
    r"""The largest error of N results, in units of what rounding leaves of a linear system's
    solution, :math:`\epsilon\,\kappa\,s`: machine epsilon of double precision times the condition
    number times the size, which are numbers, or one for each of the N."""
    worst = np.abs(np.asarray(error)).reshape(len(error), -1).max(1)
    return float((worst / (np.finfo(float).eps * np.multiply(condition, size))).max())


class Calibration(NamedTuple):
    """Mean z² of repeated estimates with its standard error, what it should be, and the
    standard error that it should have."""

    value: float
    stderr: float
    expected: float
    scatter: float


def calibration(z: Float[np.ndarray, "repeats entries"], groups: int = 64) -> Calibration:
    r"""Whether standard errors are honest: z-scores of independent repeats, each with an error from
    so many ``groups``. Where the groups' means are normal, z has Student's distribution with
    G - 1 degrees of freedom (chapter 06),

    .. math:: E z^2 = \frac{G - 1}{G - 3}, \qquad
              \operatorname{Var} z^2 = \frac{2 (G-1)^2 (G-2)}{(G-3)^2 (G-5)}

    and the mean over e entries of one repeat, whose errors have correlations ρ, the standard error
    :math:`(\operatorname{Var} z^2 \sum_{ij} \rho_{ij}^2 / e^2)^{1/2}`, up to order 1/G; over N
    repeats :math:`N^{-1/2}` of it. The correlations are those of z: their squares are too
    large by 1/N.

    Raises ValueError for five groups or fewer, which have no such error.
    """
    if groups <= 5:
        raise ValueError(f"groups must be more than 5, got {groups}")
    expected = (groups - 1) / (groups - 3)
    variance = 2 * expected**2 * (groups - 2) / (groups - 5)
    shared = (np.corrcoef(z.T) ** 2).mean()
    value, stderr = quality.average((z**2).mean(1))
    return Calibration(value, stderr, expected, float(np.sqrt(variance * shared / len(z))))


class Doubling(NamedTuple):
    """What half the steps change: ``ratio``, the largest change of an entry over the noise that is
    to be expected; ``change``, that of the matrix relative to its size, and its standard error."""

    ratio: float
    change: float
    stderr: float


def doubling(
    coarse: Float[np.ndarray, "N n n"], fine: Float[np.ndarray, "N n n"], samples: int
) -> Doubling:
    r"""A solver's bias against the standard error of ``samples`` latents, from J Jᵀ at the same few
    latents with some steps and with twice as many.

    A solver of order p errs by :math:`|M_h - M_{h/2}|\,2^p / (2^p - 1)`, at most twice the change
    whatever p ≥ 1. Noise below a thousandth of the entries' size is not asked for.
    """
    change = 2 * (coarse - fine)
    mean = fine.mean(0)
    scale = np.sqrt(np.outer(np.diagonal(mean), np.diagonal(mean)))
    noise = np.maximum(fine.std(0, ddof=1) / math.sqrt(samples), 1e-3 * scale)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(noise > 0, np.abs(change.mean(0)) / noise, 0.0)
    size = np.linalg.norm(mean) or 1.0
    moved = np.linalg.norm(change.mean(0)) / size
    error = np.sqrt((change.var(0, ddof=1) / len(change)).sum()) / size
    return Doubling(float(ratio.max()), float(moved), float(error))


def values_along(f: Callable, x: Any, z: Any, shifts: Any) -> Float[np.ndarray, "m N n"]:
    """f(x + s z) for each shift s: of a batch of points and of probes, in double precision once f
    has been computed in its own."""
    return np.stack([np.asarray(f(x + float(shift) * z), float) for shift in shifts])


def second_differences(f: Callable, x: Any, z: Any, h: Any) -> Float[np.ndarray, "m N"]:
    r"""Squares of :math:`f(x + hz) - 2 f(x) + f(x - hz)`, for each h and each point: where h is
    large, of the bend, :math:`(h^2 \partial_z^2 f)^2`; where it is small, of three independent
    roundings with weights 1, -2, 1, three times what rounding leaves of a first difference."""
    parts = (k * values_along(f, x, z, e) for k, e in ((1, h), (-2, 0 * h[:1]), (1, -h)))
    return (sum(parts) ** 2).sum(-1)


def roundings(
    f: Callable, x: Any, z: Any, bend: Float[np.ndarray, " N"], smallest: Float[np.ndarray, " m"]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    r"""What rounding leaves of :math:`f(x + \varepsilon z) - f(x)`, squared, at each point: read at
    the ``smallest`` steps, and read where it matters.

    At the smallest steps intermediate values round alike at neighbouring points, and less is left
    than at the best step :math:`\varepsilon^\star = \sqrt{2 \sigma / F}`. (σ is the root mean
    square of rounding, F that of :math:`\partial_z^2 f`, of which ``bend`` holds the squares.) So
    the second is read at a fourth, an eighth and a sixteenth of the best step (where the bend adds
    a 192nd), which the first gives and the second corrects, once more.
    """
    first = square = second_differences(f, x, z, smallest).mean(0) / 3
    for _ in range(2):
        best = np.sqrt(2 * np.sqrt(square.sum() / bend.sum()))
        h = 2.0 ** np.round(np.log2(best) - np.arange(2, 5))
        square = second_differences(f, x, z, h).mean(0) / 3
    return first, square


class Sweep(NamedTuple):
    """Root mean square errors of a difference over its steps, and σ, what rounding leaves of the
    numerator."""

    steps: Float[np.ndarray, " m"]
    errors: Float[np.ndarray, " m"]
    sigma: float


class Branches(NamedTuple):
    """What errors over ε say of the theorem: where their two branches cross, over
    :math:`\\varepsilon^\\star`; the error over the theorem's, in the mean over the steps within a
    factor of four of it; the orders left and right of it; :math:`\\varepsilon^\\star` itself."""

    crossing: float
    ratio: float
    left: float
    right: float
    best: float


def branches(sweep: Sweep, finer: Sweep, bend: float) -> Branches:
    r"""Errors of forward differences against :math:`E(\varepsilon)^2 = (\varepsilon F / 2)^2 +
    (\sigma / \varepsilon)^2`, least at :math:`\varepsilon^\star = \sqrt{2 \sigma / F}` with the
    ``bend`` F.

    Truncation is that of the exact map, whatever the precision: it is read off in a ``finer``
    precision, right of 32 of its best steps and left of 2⁻⁷; rounding at a fourth to a 32nd of
    :math:`\varepsilon^\star`, where :func:`roundings` reads it.
    """
    (e, error, sigma), d = sweep, finer.steps
    best = np.sqrt(2 * sigma / bend)
    near, left = np.abs(np.log2(e / best)) <= 2, e < best / 4
    beside = left & (e > best / 32)
    right = (d > 32 * np.sqrt(2 * finer.sigma / bend)) & (d < 2.0**-7)
    truncation = finer.errors[right]
    sigma_seen = geometric_mean(error[beside] * e[beside])
    bend_seen = geometric_mean(2 * truncation / d[right])
    crossing = np.sqrt(sigma_seen / bend_seen * bend / sigma)
    ratio = geometric_mean((error / np.hypot(e * bend / 2, sigma / e))[near])
    return Branches(crossing, ratio, power(e[left], error[left]), power(d[right], truncation), best)


def geometric_mean(values: Float[np.ndarray, " n"]) -> Any:
    return np.exp(np.log(values).mean())


def power(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> Any:
    """The power of x with which y grows: the slope of their logarithms, by least squares."""
    return np.polyfit(np.log(x), np.log(y), 1)[0]


def together(function: Callable, *moments: Moment) -> tuple[np.ndarray, np.ndarray]:
    """A function of the matrices of moments from the same latents, and its standard error: of their
    replicates, which leave out the same groups."""
    value = np.asarray(function(*(moment.matrix for moment in moments)))
    pairs = zip(*(moment.replicates for moment in moments), strict=True)
    replicates = np.stack([np.asarray(function(*matrices)) for matrices in pairs])
    return value, np.asarray(moments[0]._stderr(value, replicates))


def jointly(function: Callable, *moments: Moment) -> tuple[np.ndarray, np.ndarray]:
    """A function of the matrices of independent moments, and its standard error: the squares of
    what each of them adds."""
    matrices = [moment.matrix for moment in moments]
    value, variance = np.asarray(function(*matrices)), 0.0
    for number, moment in enumerate(moments):
        rest = matrices.copy()

        def varied(matrix, rest=rest, number=number):
            rest[number] = matrix
            return function(*rest)

        variance = variance + moment.estimate(varied)[1] ** 2
    return value, np.asarray(np.sqrt(variance))
