r"""Patterns of correlations, over all pairs of features: how far two of them agree, how far noise
alone lets them, and where one lies between two others."""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from jaxtyping import ArrayLike, Float

from cdelta import _check
from cdelta.moment import Moment


def correlations(matrix: Moment | Float[ArrayLike, "n n"]) -> Float[np.ndarray, " pairs"]:
    r"""The correlations :math:`M_{ij}/\sqrt{M_{ii} M_{jj}}` of the pairs i < j in a matrix of
    moments, row by row; 0 with a feature that never changes, or whose estimated variance is not
    positive (an unbiased estimate from few samples).

    Raises ValueError unless the matrix is square, of two features at least.
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or not matrix.shape[0] == matrix.shape[1] > 1:
        raise ValueError(f"matrix must be [n, n] of n > 1 features, got shape {matrix.shape}")
    varies = np.diagonal(matrix) > 0
    size = np.sqrt(np.where(varies, np.diagonal(matrix), 1.0))
    found = np.where(varies & varies[:, None], matrix / size / size[:, None], 0.0)
    return found[np.triu_indices(len(matrix), 1)]


def agreement(
    a: Moment, b: Moment | Float[ArrayLike, "n n"], samples: Sequence[Hashable] = (0, 1)
) -> tuple[float, float]:
    """Pearson coefficient, over all pairs of features, of the correlations in two moments; with its
    standard error, from the jackknife.

    ``samples`` says which samples each is of: two of one label, ``(0, 0)``, are of the same, row by
    row, and leave them out together. ``b`` may be a matrix, which then counts as known. Noise in
    either lowers the coefficient: :func:`halves` says how far. Raises ValueError where moments of
    one label have other groups, and for two features, whose single pair is no pattern.
    """
    if not isinstance(b, Moment):
        known = correlations(b)
        value, error = a.estimate(lambda matrix: _pearson(correlations(matrix), known))
        return float(value), float(error)
    return _jackknife(_pearson, (a, b), samples)


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
    than four samples, and for fewer than three features.
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


def between(
    mine: Moment, start: Moment, end: Moment, samples: Sequence[Hashable] = (0, 1, 2)
) -> tuple[float, float]:
    r"""Where a pattern lies on the way from one to another: b in :math:`\text{mine} =
    \text{start} + b\,(\text{end} - \text{start})`, by least squares over the correlations of all
    pairs, and its standard error, from the jackknife.

    0 where it is the one, 1 where it is the other; what lies off the way does not count.
    ``samples`` and errors as in :func:`agreement`; class means that were taken from the samples
    are not taken again, which leaves the error on the large side.
    """
    return _jackknife(_between, (mine, start, end), samples)


def _jackknife(
    function: Callable[..., float], moments: Sequence[Moment], samples: Sequence[Hashable]
) -> tuple[float, float]:
    """A function of the correlations in several moments, and its standard error: the moments of the
    same samples lose a group of them together, those of others are independent."""
    if len(samples) != len(moments):
        raise ValueError(f"samples must be a label for each of {len(moments)}, got {samples!r}")
    known = [correlations(moment.matrix) for moment in moments]
    square = 0.0
    for label in dict.fromkeys(samples):
        mine = [i for i, own in enumerate(samples) if own == label]
        first = moments[mine[0]]
        if any(not np.array_equal(moments[i].shares, first.shares) for i in mine):
            raise ValueError(
                f"samples must name moments of the same samples alike, but those of {label!r} have "
                "other groups"
            )
        found = []
        for parts in zip(*(moments[i].replicates for i in mine), strict=True):
            less = {i: correlations(part) for i, part in zip(mine, parts, strict=True)}
            found.append(function(*(dict(enumerate(known)) | less).values()))
        square += float(first._stderr(np.asarray(function(*known)), np.array(found))) ** 2
    return float(function(*known)), float(np.sqrt(square))


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 2:
        raise ValueError("a pattern must be of three features or more: two have a single pair")
    return np.corrcoef(a, b)[0, 1]


def _between(mine: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    way = end - start
    return (mine - start) @ way / (way @ way)
