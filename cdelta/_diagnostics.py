r"""What decides whether an estimate is to be believed, from its numbers alone: tails, jumps, flat
features, a solver's steps, rows against products."""

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

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
