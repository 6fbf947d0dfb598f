r"""Patterns of correlations, over all pairs of features: how far two of them agree, how far noise
alone lets them, and where one lies between two others."""

from collections.abc import Callable

import numpy as np
from jaxtyping import ArrayLike, Float

from cdelta import _check
from cdelta.moment import Moment


def correlations(matrix: Moment | Float[ArrayLike, "n n"]) -> Float[np.ndarray, " pairs"]:
    r"""The correlations :math:`M_{ij}/\sqrt{M_{ii} M_{jj}}` of the pairs i < j in a matrix of
    moments, row by row; 0 with a feature that never changes.

    Raises ValueError unless the matrix is square, of two features at least.
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or not matrix.shape[0] == matrix.shape[1] > 1:
        raise ValueError(f"matrix must be [n, n] of n > 1 features, got shape {matrix.shape}")
    size = np.sqrt(np.diagonal(matrix))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = matrix / size / size[:, None]
    return np.nan_to_num(found[np.triu_indices(len(matrix), 1)], posinf=0.0, neginf=0.0)


def agreement(a: Moment, b: Moment | Float[ArrayLike, "n n"]) -> tuple[float, float]:
    """Pearson coefficient, over all pairs of features, of the correlations in two moments; with its
    standard error, from the jackknife of each.

    The two are of independent samples; ``b`` may be a matrix, which then counts as known. Noise in
    either lowers the coefficient: :func:`halves` says how far.
    """
    known = b.matrix if isinstance(b, Moment) else np.asarray(b)
    mine, theirs = correlations(a.matrix), correlations(known)
    value, error = a.estimate(lambda matrix: _pearson(correlations(matrix), theirs))
    if isinstance(b, Moment):
        other = b.estimate(lambda matrix: _pearson(mine, correlations(matrix)))[1]
        error = np.hypot(error, other)
    return float(value), float(error)


def distance(a: Moment, b: Moment) -> tuple[float, float]:
    r"""Root mean square difference of the correlations in two moments, over all pairs of features;
    and what noise alone would make it, :math:`\bigl( \overline{s_a^2 + s_b^2} \bigr)^{1/2}` with
    the standard errors of their correlations."""
    pairs = np.triu_indices(len(a.matrix), 1)
    apart = correlations(a.matrix) - correlations(b.matrix)
    noise = a.correlation_stderr[pairs] ** 2 + b.correlation_stderr[pairs] ** 2
    return float(np.sqrt(np.mean(apart**2))), float(np.sqrt(np.mean(noise)))


def halves(samples: Float[ArrayLike, "N n"], repeats: int = 10) -> float:
    r"""Agreement of the pattern from one half of the samples with that from the other: the mean
    over ``repeats`` ways to halve them, r.

    By the Spearman–Brown formula all the samples then agree with the truth to
    :math:`\sqrt{2r/(1+r)}`, if noise is all that keeps them from it. Raises ValueError for fewer
    than four samples.
    """
    samples, repeats = np.asarray(samples), _check.count("repeats", repeats)
    if samples.ndim != 2 or len(samples) < 4:
        raise ValueError(f"samples must be four rows or more, got shape {samples.shape}")
    orders = [np.random.default_rng(seed).permutation(len(samples)) for seed in range(repeats)]
    both = [
        [correlations(np.cov(samples[half].T)) for half in (order[::2], order[1::2])]
        for order in orders
    ]
    return float(np.mean([_pearson(*pair) for pair in both]))


def between(mine: Moment, start: Moment, end: Moment) -> tuple[float, float]:
    r"""Where a pattern lies on the way from one to another: b in :math:`\text{mine} =
    \text{start} + b\,(\text{end} - \text{start})`, by least squares over the correlations of all
    pairs, and its standard error, from the jackknife of each of the three.

    0 where it is the one, 1 where it is the other; what lies off the way does not count.
    """
    patterns = [correlations(moment.matrix) for moment in (mine, start, end)]
    varied: list[Callable] = [
        lambda matrix: _between(correlations(matrix), patterns[1], patterns[2]),
        lambda matrix: _between(patterns[0], correlations(matrix), patterns[2]),
        lambda matrix: _between(patterns[0], patterns[1], correlations(matrix)),
    ]
    errors = [
        moment.estimate(vary)[1] for moment, vary in zip((mine, start, end), varied, strict=True)
    ]
    return float(_between(*patterns)), float(np.sqrt(np.square(errors).sum()))


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    return np.corrcoef(a, b)[0, 1]


def _between(mine: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    way = end - start
    return (mine - start) @ way / (way @ way)
