"""How good generated samples are: a distance between two sets of samples, and how near each is to
the training data; how far images are from those that they should be."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from cdelta import _check

_BLOCK = 1024  # rows of data that are taken in double at a time


class Distance(NamedTuple):
    """A distance and its standard error over random directions."""

    value: float
    stderr: float


class Average(NamedTuple):
    """A mean over samples and its standard error."""

    value: float
    stderr: float


class Slopes(NamedTuple):
    """Slopes of q numbers on p numbers, and their standard errors."""

    value: Float[np.ndarray, "q p"]
    stderr: Float[np.ndarray, "q p"]


class Median(NamedTuple):
    """A median over samples and its standard error."""

    value: float
    stderr: float


class Concentration(NamedTuple):
    """How far a few samples carry a sum: as how many equal ones all of them count, and the share
    that the largest have."""

    effective: float
    top: float


class Change(NamedTuple):
    """Of each image: the share of a true change that was made, and the size of what else changed,
    over the size of the true change."""

    share: Float[np.ndarray, " n"]
    stray: Float[np.ndarray, " n"]


class Neighbours(NamedTuple):
    """For each sample, the Euclidean distance to its nearest row of the data, and that row's
    index."""

    distances: Float[np.ndarray, " n"]
    indices: Int[np.ndarray, " n"]


def sliced_wasserstein(
    x: Float[ArrayLike, "n ..."],
    y: Float[ArrayLike, "m ..."],
    key: PRNGKeyArray,
    directions: int = 512,
) -> Distance:
    r"""Sliced Wasserstein distance of two sets of samples, :math:`\bigl(E_\theta\,
    W_2^2(\theta^{\mathsf T} x, \theta^{\mathsf T} y)\bigr)^{1/2}`, θ uniform on the sphere.

    In one dimension :math:`W_2^2` is the integral of the squared difference of the two quantile
    functions; it is exact here for sets of any two sizes. Two finite sets from one law are not at
    distance 0: compare with the distance between two sets of real samples of those sizes.

    Raises ValueError for empty sets, samples of different shapes, values that are not finite, or
    ``directions`` < 2.
    """
    # said here, for those who have told JAX to promote nothing by itself
    dtype = np.promote_types(_check.as_single("x", x).dtype, _check.as_single("y", y).dtype)
    x, y = _pair("x", x, "y", y)
    directions, key = _check.count("directions", directions), _check.key("key", key)
    if directions < 2:
        raise ValueError(f"directions must be at least 2, for a standard error, got {directions}")
    theta = jax.random.normal(key, (x.shape[1], directions), dtype)
    # a distance does not know where zero is, and rounding does
    middle = y.mean(0, dtype=np.float64)
    x, y = (jnp.asarray(z - middle, dtype) for z in (x, y))
    squared = np.asarray(_squared_slices(x, y, theta), np.float64)
    value = np.sqrt(squared.mean())
    stderr = squared.std(ddof=1) / np.sqrt(directions) / (2 * value) if value > 0 else 0.0
    return Distance(float(value), float(stderr))


@jax.jit
def _squared_slices(x: Array, y: Array, theta: Array) -> Array:
    theta = theta / jnp.linalg.norm(theta, axis=0)
    n, m = len(x), len(y)
    # both quantile functions are constant between neighbouring multiples of 1/n and 1/m
    # in units of 1/(n m), so that none is rounded
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    weights = np.diff(ends, prepend=0) / (n * m)
    at_x, at_y = (jnp.sort(z @ theta, axis=0)[(ends - 1) // unit] for z, unit in ((x, m), (y, n)))
    return jnp.asarray(weights, x.dtype) @ (at_x - at_y) ** 2


def nearest(
    x: Float[ArrayLike, "n ..."], data: Float[ArrayLike, "m ..."], batch: int = 256
) -> Neighbours:
    """The nearest row of ``data`` for each sample of ``x``, in double precision,
    ``batch`` samples and a thousand rows at a time.

    A generator that memorises puts its samples much nearer to its training data than held-out
    samples lie to them.

    Raises ValueError for empty sets, samples of different shapes, or values that are not finite.
    """
    x, data = _pair("x", x, "data", data)
    batch = _check.count("batch", batch)
    # |x - y|² = |x|² + |y|² - 2 x·y finds the row, from the middle of the data and in double, or
    # the squares would hide small distances; the distance is then taken from the difference
    middle = data.mean(0, dtype=np.float64)
    least, indices = np.full(len(x), np.inf), np.zeros(len(x), int)
    for first in range(0, len(data), _BLOCK):  # of which alone a copy is made
        rows = data[first : first + _BLOCK] - middle
        squares = (rows**2).sum(1)
        for i in range(0, len(x), batch):
            some = slice(i, i + batch)
            apart = squares - 2 * (x[some] - middle) @ rows.T
            nearer = apart.min(1) < least[some]
            least[some] = np.where(nearer, apart.min(1), least[some])
            indices[some] = np.where(nearer, first + apart.argmin(1), indices[some])
    distances = [
        np.linalg.norm(one.astype(np.float64) - data[row])
        for one, row in zip(x, indices, strict=True)
    ]
    return Neighbours(np.array(distances), indices)


def average(values: Float[ArrayLike, " n"]) -> Average:
    r"""The mean of independent values and its standard error.

    .. math:: \bar v, \qquad \max\bigl(1, \tfrac12\, t_{.975, n-1}\bigr)\, \frac{s}{\sqrt n}

    Twice it covers 95 % of normal values although few of them tell their spread poorly
    (:math:`t_{.975, 3} = 3.2`); from 62 on the factor is 1.

    Raises ValueError for fewer than two values, or values that are not finite.
    """
    values = _two_or_more(values)
    n = len(values)
    return Average(float(values.mean()), float(_few(n) * values.std(ddof=1) / np.sqrt(n)))


def jackknife(statistic: Callable[[np.ndarray], Any], n: int) -> tuple[Any, Any]:
    r"""A statistic of n samples and its standard error, of the values without one of them.

    .. math:: s^2 = c^2\, \frac{n-1}{n} \sum_i (\theta_{(i)} - \bar\theta)^2, \qquad
        c = \max\bigl(1, \tfrac12\, t_{.975, n-1}\bigr)

    with the factor c of :func:`average` for few samples. ``statistic`` takes the weights of the
    samples ``[n]``, one each, and 0 for the one left out. It returns a number or an array.

    Raises ValueError for fewer than two samples.
    """
    if (n := _check.count("n", n)) < 2:
        raise ValueError(f"n must be two samples or more, got {n}")
    without = np.array([statistic(1 - row) for row in np.eye(n)])
    spread = ((without - without.mean(0)) ** 2).sum(0)
    return statistic(np.ones(n)), _few(n) * np.sqrt((n - 1) / n * spread)


def regression(x: Float[ArrayLike, "n p"], y: Float[ArrayLike, "n q"]) -> Slopes:
    r"""Least squares of y on x and a constant: the slopes and their standard errors, with one
    variance of the rest for each column of y.

    .. math:: y = a + B x + e, \qquad s_{ij}^2 = \hat\sigma_i^2 \bigl[(X^\top X)^{-1}\bigr]_{jj}

    Raises ValueError when x and y are not equally many rows, more than p + 1, or not finite, and
    where a column of x is constant or a linear function of those before it, naming it.
    """
    x, y = (_rows(name, rows).astype(np.float64) for name, rows in (("x", x), ("y", y)))
    if not len(x) == len(y) > x.shape[1] + 1:
        raise ValueError(
            f"x and y must be equally many rows, more than {x.shape[1] + 1}, got {len(x)} and "
            f"{len(y)}"
        )
    sizes = np.linalg.norm(x, axis=0)
    x, y = x - x.mean(0), y - y.mean(0)  # the constant's part
    basis, triangle = np.linalg.qr(x)
    # |R_jj| is what column j adds to those before it; what a dependent one adds is rounding
    added = np.abs(np.diagonal(triangle))
    if (bad := added <= len(x) * np.finfo(float).eps * sizes).any():
        raise ValueError(
            "x must have columns that are neither constant nor linear functions of those before "
            f"them, but {np.flatnonzero(bad).tolist()} are: leave them out"
        )
    slopes = np.linalg.solve(triangle, basis.T @ y)
    variance = ((y - x @ slopes) ** 2).sum(0) / (len(x) - x.shape[1] - 1)
    inverse = np.linalg.solve(triangle, np.eye(len(triangle)))  # (X^T X)^-1 = R^-1 R^-T
    return Slopes(slopes.T, np.sqrt(np.outer(variance, (inverse**2).sum(1))))


def explained(x: Float[ArrayLike, "n p"], y: Float[ArrayLike, "n q"]) -> Float[np.ndarray, " q"]:
    r"""The share of the variance of each column of y that least squares on x and a constant
    explains (the coefficient of determination).

    .. math:: R_i^2 = 1 - \sum_s \hat e_{si}^2 \Big/ \sum_s (y_{si} - \bar y_i)^2

    Columns of x may depend on each other. 0 where y does not vary. Raises ValueError when x and y
    are not equally many rows, two at least, or not finite.
    """
    x, y = _rows("x", x).astype(np.float64), _rows("y", y)
    if not len(x) == len(y) > 1:
        raise ValueError(
            f"x and y must be equally many rows, two at least, got {len(x)} and {len(y)}"
        )
    left, lengths, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    basis = left[:, lengths > max(x.shape) * np.finfo(float).eps * lengths[0]]
    shares = []
    for first in range(0, y.shape[1], 1024):  # all pixels of many images in double would be large
        some = y[:, first : first + 1024].astype(np.float64)
        some -= some.mean(0)
        found, whole = ((part**2).sum(0) for part in (basis.T @ some, some))
        shares.append(np.divide(found, whole, out=np.zeros_like(whole), where=whole > 0))
    return np.concatenate(shares)


def median(values: Float[ArrayLike, " n"], repeats: int = 500) -> Median:
    """The median of independent values and its standard error, by the bootstrap: the spread of the
    medians of ``repeats`` draws with replacement.

    Raises ValueError for fewer than two values, or values that are not finite.
    """
    values = _two_or_more(values)
    draws = np.random.default_rng(0).choice(values, (_check.count("repeats", repeats), len(values)))
    return Median(float(np.median(values)), float(np.median(draws, axis=1).std()))


def concentration(weights: Float[ArrayLike, " n"], top: float = 0.01) -> Concentration:
    r"""How far a few samples carry the sum of what each adds, ``weights`` :math:`w_s \ge 0`: as how
    many equal ones they count, :math:`(\sum_s w_s)^2 / \sum_s w_s^2` (Kish), and what share of the
    sum the largest ones have, a ``top`` share of all in number (one at least).

    Raises ValueError for fewer than two weights, one that is negative or not finite, a sum that is
    0, or a share outside (0, 1].
    """
    if not 0 < top <= 1:
        raise ValueError(f"top must be a share in (0, 1], got {top}")
    weights = _two_or_more(weights, "weights")
    total = weights.sum()
    if weights.min() < 0 or not total > 0:
        raise ValueError(
            f"weights must not be negative and their sum not 0, got {weights.min():.3g} to "
            f"{weights.max():.3g}"
        )
    largest = np.sort(weights)[-max(1, int(round(top * len(weights), 9))) :]
    return Concentration(float(total**2 / (weights**2).sum()), float(largest.sum() / total))


def _few(n: int) -> float:
    """What the error of n values is multiplied by, so that twice it covers 95 % where they are too
    few to tell their spread, as across trainings: max(1, t / 2), which is 1 from 62 on."""
    if n >= 62:
        return 1.0
    from scipy.special import stdtrit  # half a second

    return max(1.0, float(stdtrit(n - 1, 0.975)) / 2)


def _two_or_more(values: ArrayLike, name: str = "values") -> np.ndarray:
    array = _host(name, values).astype(np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"{name} must be two or more numbers, got shape {array.shape}")
    return array


def pixel_error(
    x: Float[ArrayLike, "n ..."], y: Float[ArrayLike, "n ..."], span: float = 2.0
) -> Float[np.ndarray, " n"]:
    r"""Mean absolute difference of each pair of images, :math:`\overline{|x - y|}`, as a share of
    the ``span`` of their values (2 for images in [-1, 1]).

    Raises ValueError for empty stacks, images of different shapes, values that are not finite, or
    a span that is not positive.
    """
    if not span > 0:
        raise ValueError(f"span must be positive, got {span}")
    x, y = (side.astype(np.float64) for side in _pair("x", x, "y", y))
    if len(x) != len(y):
        raise ValueError(f"x and y must be equally many images, got {len(x)} and {len(y)}")
    return np.abs(x - y).mean(1) / span


def composition(
    again: Callable, images: Float[ArrayLike, "n ..."], cycles: int = 1, span: float = 2.0
) -> Float[np.ndarray, " n"]:
    r"""How far null interventions carry each image: :math:`255/m` times :func:`pixel_error` between
    it and what ``again``, which takes a stack of images and should give it back, has made of it
    after m = ``cycles`` calls. The composition error of the literature on counterfactual images
    (Monteiro et al., ICLR 2023), in 255ths a cycle.

    Raises ValueError as :func:`pixel_error`, and when cycles is not positive.
    """
    cycles, end = _check.count("cycles", cycles), images
    for _ in range(cycles):
        end = again(end)
    return 255 / cycles * pixel_error(images, end, span)


def change(
    before: Float[ArrayLike, "n ..."],
    after: Float[ArrayLike, "n ..."],
    truth: Float[ArrayLike, "n ..."],
) -> Change:
    r"""How much of the change from ``before`` to ``truth`` was made, and what else: with
    :math:`\Delta` the change to ``after`` and :math:`\Delta^*` the true one, of each image

    .. math:: \Delta = s\, \Delta^* + r, \quad r \perp \Delta^*, \qquad
        \text{share} = s, \quad \text{stray} = \|r\| / \|\Delta^*\| .

    The distance from the truth is both: :math:`\|\Delta - \Delta^*\|^2 = \bigl((s-1)^2 +
    \text{stray}^2\bigr) \|\Delta^*\|^2`. Who does nothing has share 0 and stray 0.

    Raises ValueError for empty stacks, images of different shapes, values that are not finite, or
    where nothing was to change.
    """
    start, truth = _pair("before", before, "truth", truth)
    start, after = _pair("before", start, "after", after)
    if not len(start) == len(truth) == len(after):
        raise ValueError(
            "before, after and truth must be equally many images, got "
            f"{len(start)}, {len(after)} and {len(truth)}"
        )
    start, after, truth = (part.astype(np.float64) for part in (start, after, truth))
    wanted, made = truth - start, after - start
    size = (wanted**2).sum(1)
    if not size.all():
        raise ValueError(f"truth must differ from before, but image {size.argmin()} is the same")
    share = (made * wanted).sum(1) / size
    rest = made - share[:, None] * wanted
    return Change(share, np.sqrt((rest**2).sum(1) / size))


def _pair(name: str, x: ArrayLike, other: str, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both sets as rows ``[n, d]`` on the host."""
    x, y = _rows(name, x), _rows(other, y)
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"{name} and {other} must hold samples of one shape, got {x.shape} and {y.shape} "
            f"(flattened)"
        )
    return x, y


def _rows(name: str, samples: ArrayLike) -> np.ndarray:
    samples = _host(name, samples)
    if samples.ndim < 2 or samples.size == 0:
        raise ValueError(
            f"{name} must hold samples along its first axis, got shape {samples.shape}"
        )
    return samples.reshape(len(samples), -1)


def _host(name: str, values: ArrayLike) -> np.ndarray:
    """Finite real numbers on the host, in the precision that they have."""
    _check.finite(name, _check.as_float(name, values))
    # read once more, as jax has rounded what is not its own; half precision is single from here on
    array = np.asarray(values)
    return array if array.dtype.itemsize > 2 else array.astype(np.float32)
