r"""Three conditionings that the paper calls one (C15), at any threshold, from one look at each
latent.

Keeping the wiggles that hardly move feature k, keeping the *samples* whose wiggle hardly moves it,
and keeping the samples at which its gradient is short are three different things. All three, at
every threshold, are weighted averages of what :func:`observe` sees: the features y and the products
:math:`G = J J^{\mathsf T}` of their gradients, so that no wiggle is drawn and none is discarded.
Throughout :math:`a = \nabla y_k`, :math:`\|a\|^2 = G_{kk}`, and a wiggle is
:math:`J z`, :math:`z \sim N(0, I)`.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped

from cdelta import _check, jacobian
from cdelta._precision import working
from cdelta._pytree import as_pytree
from cdelta._stream import Sums
from cdelta.dependence import Features
from cdelta.moment import Moment


class Observed(NamedTuple):
    """What was seen of a map at N independent latents: its features, and J Jᵀ."""

    values: Float[np.ndarray, "N n"]
    grams: Float[np.ndarray, "N n n"]


class Estimate(NamedTuple):
    """A number or an array of them, and the standard errors."""

    value: Any
    stderr: Any


def observe(f: Features, latents: Float[ArrayLike, "N ..."], batch: int = 8) -> Observed:
    r"""The features and :math:`J J^{\mathsf T}` at each of the latents, ``batch`` at a time.

    ``f`` maps one latent ``[*shape]`` to features ``[n]``. The products are taken in the map's
    precision and kept in double. Raises ValueError when f does not give a vector, or what it gives
    is not finite.
    """
    latents, batch = _check.as_float("latents", latents), _check.count("batch", batch)
    if latents.ndim < 2 or not len(latents):
        raise ValueError(f"latents must have shape [N, *shape], got {latents.shape}")
    f = as_pytree(f)
    _check.vector("f", f, latents.shape[1:], latents.dtype)
    parts = [_seen(f, latents[i : i + batch]) for i in range(0, len(latents), batch)]
    values, grams = (np.concatenate(part).astype(np.float64) for part in zip(*parts, strict=True))
    for name, array in (("f's values", values), ("f's gradients", grams)):
        if not np.isfinite(array).all():
            bad = int((~np.isfinite(array.reshape(len(array), -1)).all(1)).argmax())
            raise ValueError(f"{name} must be finite, got NaN or infinity at latent {bad}")
    return Observed(values, grams)


@jax.jit
def _seen(f: Features, latents: Array) -> tuple[Array, Array]:
    def one(x: Array) -> tuple[Array, Array]:
        values, rows = jacobian.values_and_rows(f, x)
        rows = rows.reshape(len(rows), -1).astype(working(rows.dtype))
        return values, jnp.matmul(rows, rows.T, precision="highest")

    return jax.vmap(one)(latents)


def strip(
    r: Shaped[ArrayLike, "..."],
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    r"""A standard normal number between -r and r: the probability, and the variance there.

    .. math:: p &= \Pr(|\zeta| < r) = \operatorname{erf}(r/\sqrt 2), \\
        s^2 &= E\bigl[\zeta^2 \bigm| |\zeta| < r\bigr] \\
            &= 1 - \sqrt{2/\pi}\; \frac{r\, e^{-r^2/2}}{p} = \frac{r^2}{3} + O(r^4)

    For any array of r, infinity included. Raises ValueError for an r that is negative or NaN.
    """
    r = np.asarray(r, np.float64)
    if not (r >= 0).all():
        raise ValueError(f"r must not be negative or NaN, got {r.min() if r.size else r}")
    probability = np.vectorize(math.erf, otypes=[float])(r / math.sqrt(2))
    # the two terms cancel where r is small; there the ratio of two series, whose terms are those of
    # the integrals of ζ² e^{-ζ²/2} and of e^{-ζ²/2}
    x = np.minimum(r, 1.0) ** 2 / 2
    series = [(-1) ** n / math.factorial(n) for n in range(16)]
    inner = np.polynomial.polynomial.polyval(x, [c / (1 + 2 * n) for n, c in enumerate(series)])
    second = np.polynomial.polynomial.polyval(x, [c / (3 + 2 * n) for n, c in enumerate(series)])
    near = 2 * x * second / inner
    wide = np.clip(r, 1, 1e3)
    far = 1 - math.sqrt(2 / math.pi) * wide * np.exp(-(wide**2) / 2) / np.maximum(probability, 0.5)
    return probability, np.where(r < 1, near, far)


def keep_wiggles(seen: Observed, k: int, threshold: Shaped[ArrayLike, ""] = 0.0) -> Moment:
    r"""(a) The moment of the wiggles that move feature k by less than ``threshold``: the paper's
    filter (E6), in expectation over the wiggles.

    .. math:: &E\bigl[J z z^{\mathsf T} J^{\mathsf T} \bigm| |a^{\mathsf T} z| < \tau\bigr]
        = \frac{E\bigl[p \bigl(J P J^{\mathsf T}
            + s^2\, \tfrac{J a a^{\mathsf T} J^{\mathsf T}}{\|a\|^2}\bigr)\bigr]}{E[p]}, \\
        &P = I - \tfrac{a a^{\mathsf T}}{\|a\|^2}

    with p and s² of :func:`strip` at :math:`r = \tau/\|a\|`. At threshold 0, the default, it is the
    limit, where p becomes :math:`1/\|a\|` and s² becomes 0 (C4,
    :func:`cdelta.dependence.held_moment`); latents where a is zero are then left out, and their
    share is ``degenerate``. At any other threshold all of their wiggles are kept, as the filter
    keeps them.

    Raises ValueError for an index out of range, a threshold that is negative or NaN, and where
    nothing is kept.
    """
    k, lengths, weights, threshold = _kept(seen, k, threshold)
    grams = seen.grams
    column = grams[:, :, k] / np.where(lengths > 0, lengths, 1)[:, None]  # J a / |a|
    left = strip(threshold / np.where(lengths > 0, lengths, 1))[1] if threshold else 0.0
    outer = column[:, :, None] * column[:, None, :]
    matrices = grams - outer * np.reshape(1 - np.asarray(left), (-1, 1, 1))
    if not threshold:
        matrices[:, k] = matrices[:, :, k] = 0
    kind = f"wiggles that move {[k]} by less than {threshold:g}"
    if not threshold:
        kind = f"wiggles, {[k]} held, inverse_norm"
    return _average(matrices, weights, (k,) if not threshold else (), kind)


def keep_samples(seen: Observed, k: int, threshold: Shaped[ArrayLike, ""] = 0.0) -> Moment:
    r"""(b) The covariance of the *samples* whose wiggle moves feature k by less than ``threshold``
    (E6's first matrix, in expectation over the wiggles).

    Each latent counts with the probability p that its wiggle is kept (:func:`strip`), in the limit
    with :math:`1/\|a\|`: the law of y is reweighted and nothing is held, y_k least of all. In a
    linear model nothing changes. Latents with a = 0, ``degenerate`` and errors as in
    :func:`keep_wiggles`.
    """
    k, _, weights, threshold = _kept(seen, k, threshold)
    kind = f"covariance where wiggles move {[k]} by less than {threshold:g}"
    return _covariance(seen.values, weights, kind)


def keep_flat(seen: Observed, k: int, below: Shaped[ArrayLike, ""]) -> Moment:
    r"""(c) The covariance of the samples at which feature k has a short gradient,
    :math:`\|a\| < \text{below}`: the words of the paper's abstract (E8).

    They are the latents where the feature is insensitive; of a probability, those where it is
    saturated. ``samples`` of the result is the number kept. Raises ValueError for an index out of
    range, and for a length below which there are fewer than two latents.
    """
    k = _check.index("k", k, seen.values.shape[1])
    weights = (np.sqrt(seen.grams[:, k, k]) < float(below)).astype(np.float64)
    if weights.sum() < 2:
        raise ValueError(
            f"below must leave at least two latents, got {float(below):g}: the shortest gradient "
            f"of feature {k} is {np.sqrt(seen.grams[:, k, k].min()):.3g}"
        )
    kind = f"covariance where the gradient of {[k]} is below {float(below):g}"
    return _covariance(seen.values, weights, kind)


def kept_share(seen: Observed, k: int, threshold: Shaped[ArrayLike, ""]) -> Estimate:
    r"""The share of wiggles that the filter keeps, :math:`E[p] = E\operatorname{erf}(\tau / \sqrt 2
    \|a\|)`, and its standard error; for small thresholds :math:`\sqrt{2/\pi}\, \tau\, E[1/\|a\|]`.

    Raises ValueError for an index out of range and a threshold that is not positive.
    """
    if not float(threshold) > 0:
        raise ValueError(f"threshold must be positive, got {float(threshold)}")
    _, _, weights, _ = _kept(seen, k, threshold)
    error = weights.std(ddof=1) / math.sqrt(len(weights)) if len(weights) > 1 else math.nan
    return Estimate(float(weights.mean()), float(error))


def sensitivity(seen: Observed, k: int) -> Estimate:
    r"""What the filter's moment is off its limit, over :math:`\tau^2`, as the threshold goes to
    zero (L1).

    .. math:: &\lim_{\tau \to 0} \frac{M_\tau - M_0}{\tau^2} \\
        &\quad = \frac{E\bigl[w^3 \bigl(2\, J a a^{\mathsf T} J^{\mathsf T} / \|a\|^2
        - J P J^{\mathsf T} + M_0 \bigr)\bigr]}{6\, E[w]}, \\
        &w = 1/\|a\|

    A matrix ``[n, n]`` with its standard errors. It needs :math:`E[w^3] < \infty` and
    :math:`E[w^3 \|J\|^2] < \infty`; where a vanishes on a set of codimension m these fail for
    :math:`m \le 3`, and the filter comes to its limit more slowly. Latents with a = 0 are left out.
    Raises ValueError for an index out of range.
    """
    k, lengths, weights, _ = _kept(seen, k, 0.0)
    w = np.where(lengths > 0, weights, 0)
    column = seen.grams[:, :, k] * w[:, None]
    outer = column[:, :, None] * column[:, None, :]
    rest = seen.grams - outer
    rest[:, k] = rest[:, :, k] = 0
    n = seen.values.shape[1]
    # the four averages that the quotient is made of, side by side
    parts = [w, w**3, w[:, None, None] * rest, w[:, None, None] ** 3 * (2 * outer - rest)]
    table = np.concatenate([np.reshape(part, (len(w), -1)) for part in parts], 1)

    def quotient(sums: np.ndarray) -> np.ndarray:
        matrices = sums[2:].reshape(2, n, n)
        return (matrices[1] + sums[1] * matrices[0] / sums[0]) / (6 * sums[0])

    # blocks of a jackknife, as everywhere: latent i is in block i modulo their number
    blocks = min(len(Sums.zero(n).count), len(w))
    groups = np.stack([table[block::blocks].sum(0) for block in range(blocks)])
    value = quotient(table.sum(0))
    others = np.stack([quotient(table.sum(0) - group) for group in groups])
    if blocks < 2:
        return Estimate(value, np.full_like(value, np.nan))
    return Estimate(value, np.sqrt((1 - 1 / blocks) * ((others - value) ** 2).sum(0)))


def _kept(seen: Observed, k: int, threshold: Any) -> tuple[int, np.ndarray, np.ndarray, float]:
    """k, the lengths of its gradients, the weight of each latent, and the threshold."""
    k, threshold = _check.index("k", k, seen.values.shape[1]), float(threshold)
    if not threshold >= 0:
        raise ValueError(f"threshold must not be negative, got {threshold}")
    lengths = np.sqrt(seen.grams[:, k, k])
    moves = lengths > 0
    safe = np.where(moves, lengths, 1)
    if threshold:
        return k, lengths, np.where(moves, strip(threshold / safe)[0], 1.0), threshold
    if not moves.any():
        raise ValueError(f"feature {k} cannot be held: its gradient is zero at every latent")
    return k, lengths, np.where(moves, 1 / safe, 0.0), threshold


def _average(
    matrices: np.ndarray, weights: np.ndarray, held: tuple[int, ...] = (), kind: str | None = None
) -> Moment:
    """The weighted average of symmetric matrices, with the jackknife of :class:`Moment`."""
    sums = Sums.zero(matrices.shape[1])
    block = np.arange(len(weights)) % len(sums.count)
    np.add.at(sums.count, block, weights > 0)
    np.add.at(sums.weight, block, weights)
    np.add.at(sums.matrix, block, matrices * weights[:, None, None])
    traces = weights * np.trace(matrices, axis1=1, axis2=2)
    unused = np.sum(weights == 0, dtype=float)
    sums = sums._replace(trace_squared=np.sum(traces**2), degenerate=unused)
    return sums.moment(held, kind=kind)


def _covariance(values: np.ndarray, weights: np.ndarray, kind: str) -> Moment:
    r"""The weighted covariance about the weighted mean, of each replicate about its own, over
    :math:`1 - \sum w^2 / (\sum w)^2`: n - 1 instead of n where n latents count alike."""
    n = values.shape[1]
    centred = values - weights @ values / weights.sum()
    # with a feature 1 beside them the mean is a covariance, and to hold that feature takes it out
    beside = np.concatenate([centred, np.ones((len(values), 1))], 1)
    moment = _average(beside[:, :, None] * beside[:, None, :], weights)
    moment = moment.partial(n).select(range(n))
    total, squares = weights.sum(), (weights**2).sum()
    blocks = len(Sums.zero(n + 1).count)
    groups = [weights[block::blocks] for block in range(blocks)]
    left = np.array([(total - g.sum(), squares - (g**2).sum()) for g in groups if (g > 0).any()])
    with np.errstate(divide="ignore", invalid="ignore"):  # of one latent there is no variance
        free = 1 - left[:, 1] / left[:, 0] ** 2
        replicates = moment.replicates / free[:, None, None]
    return dataclasses.replace(
        moment,
        matrix=moment.matrix / (1 - squares / total**2),
        replicates=replicates,
        effective_samples=float(total**2 / squares),
        kind=kind,
    )
