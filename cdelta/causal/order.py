r"""The causal order of features, from how the diagonal of a velocity's Jacobian varies (C10).

In a model with additive normal noises a feature that causes none of the others, a *leaf*, is told
by the velocity of a flow onto the features: its entry of :math:`\nabla^2 \log p_t`, which is an
entry of the velocity's Jacobian, does not vary. Taking leaves away one after the other gives the
order.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from cdelta import _check, _roles
from cdelta._features import Labels, table
from cdelta._pytree import as_pytree
from cdelta.causal._waves import Sums, WaveVelocity, draw_waves

Velocity = Callable[[Array, Array], Array]

CLIP = 0.02  # of the entries at either end, before their spread is taken: tails are badly learned
GROUPS = 16  # of samples, for the jackknife
SURE = 3.0  # standard errors that tell two scores apart, or show an edge: many are compared
LEAST = 0.1  # between two scores besides: at t = .9 even the exact leaf of a sine scores .06
_POINTS = 1024  # evaluated at once
_LEAST = 100  # samples: fewer leave the groups too few


class LeafScores(NamedTuple):
    """How much each feature's entry of the log density's Hessian varies, ``[d]``, and its standard
    error."""

    scores: Float[np.ndarray, " d"]
    stderr: Float[np.ndarray, " d"]


def leaf_scores(
    velocity: Velocity, x: Float[ArrayLike, "n d"], t: float = 0.9, *, groups: int = GROUPS
) -> LeafScores:
    r"""How far each feature is from being a leaf, by the Jacobian of a velocity from N(0, I) (C10).

    .. math:: s_j = \frac{\operatorname{sd} H_{jj}(t, X)}{|E\, H_{jj}(t, X)|}, \qquad
        H_{jj} = \partial_j^2 \log p_t = \Bigl( \partial_j v_j - \frac1t \Bigr) \frac{t}{1 - t}

    0 at t = 1 for a leaf of a model with additive normal noises, and for no other feature there,
    unless all mechanisms that it enters are straight in it. Near t = 1 the leaf's is the smallest.
    :math:`H_{jj}` is clipped at 2 and 98 % of its values, whose tails a network learns badly.

    ``velocity(t, x)`` takes one sample, its source is N(0, I), and its features should be of one
    scale (standardised): the noise left at t is the same for all. ``x``: the points ``[n, d]`` at
    which it is looked at, draws of :math:`x_t` (the data themselves are near enough for a t near
    1). Costs one product of the Jacobian a feature and point. Standard errors are those of the
    jackknife over ``groups`` of points; that the velocity was learned, they do not know.

    Raises ValueError when t is not inside (0, 1), there are fewer than two points a group, or the
    velocity returns another shape or no finite numbers.
    """
    x, groups = _points(x, groups)
    _roles.refuse_state_first("velocity", velocity, "pass lambda t, x: v(x, t)")
    t = float(_check.time(t))
    if not 0 < t < 1:
        raise ValueError(
            f"t must lie inside (0, 1), got {t}: at its ends the entries are undefined"
        )
    try:
        made = jax.eval_shape(velocity, jax.ShapeDtypeStruct((), x.dtype), x[0])
    except TypeError as error:
        raise ValueError(f"velocity must be a function of (t, x), got {velocity!r}") from error
    if getattr(made, "shape", None) != x[0].shape:
        raise ValueError(f"velocity(t, x) must have shape {x[0].shape} (that of x), got {made}")
    velocity, time = as_pytree(velocity), jnp.asarray(t, x.dtype)
    parts = [_slopes(velocity, time, x[at : at + _POINTS]) for at in range(0, len(x), _POINTS)]
    slopes = np.concatenate([np.asarray(part, float) for part in parts])
    if not np.isfinite(slopes).all():
        raise ValueError("velocity must have a finite Jacobian, got NaN or infinity")
    curvatures, group = _curvatures(slopes, t), _groups(len(x), groups)
    replicates = [_spread(curvatures[group != g]) for g in range(groups)]
    return LeafScores(_spread(curvatures), _jackknife(replicates))


@jax.jit
def _slopes(velocity: Velocity, t: Array, x: Array) -> Array:
    r""":math:`\partial_j v_j`, ``[n, d]``: of each product one number is kept."""

    def along(x: Array, j: Array) -> Array:
        unit = jnp.zeros_like(x).at[j].set(1)
        return jax.jvp(lambda x: velocity(t, x), (x,), (unit,))[1][j]

    return jax.vmap(lambda x: jax.lax.map(lambda j: along(x, j), jnp.arange(len(x))))(x)


def _groups(n: int, groups: int) -> Int[np.ndarray, " n"]:
    """Of consecutive points, as np.array_split makes them."""
    return np.repeat(
        np.arange(groups), [len(part) for part in np.array_split(np.arange(n), groups)]
    )


def _curvatures(slopes: np.ndarray, t: float) -> np.ndarray:
    return (slopes - 1 / t) * t / (1 - t)


def _spread(h: np.ndarray) -> np.ndarray:
    low, high = np.quantile(h, [CLIP, 1 - CLIP], axis=0)
    h = np.clip(h, low, high)
    return h.std(0) / np.abs(h.mean(0))


def _jackknife(replicates: Sequence[np.ndarray]) -> np.ndarray:
    replicates = np.asarray(replicates)
    return np.sqrt((len(replicates) - 1) * replicates.var(0))


# ---------------------------------------------------------------------------------- the whole order


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
    """What :func:`find_order` found.

    ``order``: feature indices, first cause first; ``decided``: whether the data tell it (of leaves
    any order will do). ``scores``, ``stderr`` ``[rounds, d]``: the leaf scores before each feature
    is taken away, last effect first, NaN for those already taken; ``null``, ``null_stderr``: what a
    normal sample of the same covariance gets. ``unclear``: the pairs of features whose order
    nothing tells. ``names``, when the samples had some, are those of the columns.
    """

    order: tuple[int, ...]
    decided: bool
    scores: Float[np.ndarray, "rounds d"] = dataclasses.field(repr=False)
    stderr: Float[np.ndarray, "rounds d"] = dataclasses.field(repr=False)
    null: Float[np.ndarray, "rounds d"] = dataclasses.field(repr=False)
    null_stderr: Float[np.ndarray, "rounds d"] = dataclasses.field(repr=False)
    unclear: tuple[tuple[int, int], ...] = ()
    names: tuple[str, ...] = ()


def find_order(
    samples: Float[ArrayLike, "n d"] | Mapping[str, Float[ArrayLike, " n"]],
    key: PRNGKeyArray,
    *,
    names: Sequence[str] | None = None,
    t: float = 0.9,
    waves: int = 480,
) -> Order:
    r"""The causal order of features with additive normal noises, from samples alone (C10).

    The velocity at t is fitted, the feature with the lowest leaf score (:func:`leaf_scores`) is the
    last effect, it is taken away, and so on with the velocity of those left. The fit is a ridge
    regression on ``waves`` cosines of random frequencies around the Gaussian velocity of the
    samples' covariance, in closed form: the noise of the source is integrated out, and one pass
    over the samples serves all rounds.

    Two scores that differ by less than three standard errors, or by less than .1 (what the noise
    left at t does to a leaf's), do not tell which of two features comes last, nor does a higher one
    that a normal sample of the same covariance, fitted likewise, reaches as nearly. That matters
    only if there is an edge between the two: of two leaves either may come first. At two features
    whose own entries are constant an edge shows in the entry between them,
    :math:`\partial_j \partial_l \log p`, which is 0 for two leaves. So ``decided`` is false when in
    some round the lowest score is not told from that of a feature with which that entry is not 0
    (three standard errors): where mechanisms are linear, whose order nothing in the law tells, but
    for the few draws that bend by chance. A cause whose mechanisms are all straight scores as low
    as a leaf elsewhere. So a feature that has no edge with those just before it is also looked at
    without them, as the last of those that are left. An edge that is too weak to be seen, or whose
    slope is 0 in the mean (a square's, a wave's), counts as none: ``decided`` can then be true of
    an order that is wrong. Standard errors are those of the jackknife over groups of samples, each
    fitted again.

    ``samples``: ``[n, d]``, with ``names`` if wanted, a data frame, or a mapping from names to
    columns; at least 100 samples of two features or more, whose scales do not matter. ``key``
    shuffles the samples and draws frequencies and the normal sample: the same key gives the same
    result. Ten thousand samples of five features take some four CPU seconds.

    What it supposes is not checked by it: no hidden common cause, additive noises, normal, and
    mechanisms that bend. Raises ValueError for samples that are not finite, too few or constant,
    names that do not fit, and a t that is not inside (0, 1).
    """
    x, names = _columns(samples, names)
    key = _check.key("key", key)
    t = float(_check.time(t))
    if not 0 < t < 1:
        raise ValueError(f"t must lie inside (0, 1), got {t}")
    waves, d = _check.count("waves", waves), x.shape[1]
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    x = _standard(draw.permutation(x))
    root = np.linalg.cholesky(np.corrcoef(x.T) + 1e-9 * np.eye(d))
    normal = _standard(draw.standard_normal(x.shape) @ root.T)
    drawn = draw_waves(draw, d, waves)
    noise = (1 - t) * draw.standard_normal(x.shape)
    data, null = (_Fitted(Sums.of(y, drawn, t, GROUPS), t * y + noise) for y in (x, normal))

    left, order, unclear, edges = list(range(d)), [], [], {}
    tables = np.full((4, d - 1, d), np.nan)
    for number in range(d - 1):
        found, beside = data.look(left), null.look(left)
        tables[:, number, left] = *found[:2], *beside[:2]
        last = int(np.argmin(found.scores))
        edges[left[last]] = {left[j] for j in np.flatnonzero(_edges(found, last))}
        for rival in _rivals(found, beside, last):
            unclear.append((left[last], left[rival]))
        order.append(left.pop(last))
    order = (*left, *order[::-1])
    for feature, some in _sooner(order, edges):
        found, beside = data.look(some), null.look(some)
        unclear += [(feature, some[j]) for j in _rivals(found, beside, len(some) - 1)]
    return Order(order, not unclear, *tables, tuple(dict.fromkeys(unclear)), names)


class _Look(NamedTuple):
    """Scores of the features left and their couplings, with standard errors."""

    scores: np.ndarray
    stderr: np.ndarray
    coupling: np.ndarray
    coupling_stderr: np.ndarray


def _sooner(
    order: Sequence[int], edges: Mapping[int, set[int]]
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Each feature that could as well come sooner, for it has no edge with those just before it:
    with all up to the last that it has one with, and itself at their end."""
    for place, feature in enumerate(order):
        joined = [at for at in range(place) if order[at] in edges.get(feature, ())]
        if joined and joined[-1] < place - 1:
            yield feature, (*order[: joined[-1] + 1], feature)


def _edges(found: _Look, last: int) -> np.ndarray:
    """Which features have an edge with the last one, where all others are held."""
    return np.abs(found.coupling[last]) > SURE * found.coupling_stderr[last]


def _rivals(found: _Look, beside: _Look, last: int) -> list[int]:
    """The features that may as well come last, with an edge to the one taken to."""

    def sure(above, one, other):
        return above > np.maximum(SURE * np.hypot(one, other), LEAST)

    told = sure(found.scores - found.scores[last], found.stderr, found.stderr[last])
    bends = sure(found.scores - beside.scores, found.stderr, beside.stderr)
    unsure = ~(told & bends) & _edges(found, last)
    return [j for j in np.flatnonzero(unsure).tolist() if j != last]


class _Fitted(NamedTuple):
    """Samples, ready to be fitted, and the points at which the velocity is looked at."""

    sums: Sums
    points: Float[np.ndarray, "n d"]

    def look(self, left: Sequence[int]) -> _Look:
        """The features left, by their own velocity, and by that without each of the groups."""
        sums, group = self.sums.marginal(left), _groups(len(self.points), GROUPS)
        falls = -np.sin(self.points[:, left] @ sums.waves.frequencies.T + sums.waves.phases)

        def looked_at(velocity: WaveVelocity, falls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            slopes, jacobian = velocity.slopes(falls)
            return _spread(_curvatures(slopes, sums.t)), _coupling(jacobian, sums.t)

        velocity, others = sums.velocities()
        scores, coupling = looked_at(velocity, falls)
        without = [looked_at(other, falls[group != g]) for g, other in enumerate(others)]
        errors = [_jackknife(part) for part in zip(*without, strict=True)]
        if not all(np.isfinite(part).all() for part in (scores, coupling, *errors)):
            raise ValueError("samples must have scores that are finite: features may be copies")
        return _Look(scores, errors[0], coupling, errors[1])


def _coupling(jacobian: np.ndarray, t: float) -> np.ndarray:
    r"""The mean Hessian's entries between features, over the roots of their own. What the noise at
    t has blurred is taken back, as is exact for a normal law:
    :math:`P_t^{-1} = t^2 P_1^{-1} + (1 - t)^2 I`."""
    eye = np.eye(len(jacobian))
    precision = (eye / t - (jacobian + jacobian.T) / 2) * t / (1 - t)
    precision = np.linalg.solve(eye - (1 - t) ** 2 * precision, precision)
    scale = np.sqrt(np.abs(np.diagonal(precision)))
    return precision / scale / scale[:, None]


# ---------------------------------------------------------------------------------------- the input


def _points(x: ArrayLike, groups: int) -> tuple[Array, int]:
    x = _check.as_single("x", x)
    groups = _check.count("groups", groups)
    if x.ndim != 2 or not x.shape[1]:
        raise ValueError(f"x must have shape (points, features), got {x.shape}")
    if groups < 2 or len(x) < 2 * groups:
        raise ValueError(
            f"groups must be 2 or more, of two points or more, got {groups} of {len(x)} points"
        )
    _check.finite("x", x)
    return x, groups


def _columns(samples: ArrayLike | Mapping, names: Sequence[str] | None) -> tuple:
    if isinstance(samples, Mapping):
        if names is not None:
            raise ValueError("names are the mapping's own where samples is one, got names as well")
        names = tuple(samples)
        columns = [_check.as_double(f"samples[{name!r}]", samples[name]) for name in names]
        if {column.ndim for column in columns} != {1} or len({len(c) for c in columns}) != 1:
            shapes = {name: column.shape for name, column in zip(names, columns, strict=True)}
            raise ValueError(f"samples must hold columns of one length, got shapes {shapes}")
        x = np.stack(columns, axis=1)
    else:
        columns = list(getattr(samples, "columns", ()))  # a data frame's
        if names is None and columns and all(isinstance(column, str) for column in columns):
            names = columns
        x = _check.as_double("samples", table("samples", samples)[0])
    if x.ndim != 2 or x.shape[1] < 2 or len(x) < _LEAST:
        raise ValueError(
            f"samples must be [n, d] with n >= {_LEAST} and d >= 2, got shape {x.shape}"
        )
    if not isinstance(samples, Mapping):
        names = Labels.of(x.shape[1], names).names or ()
    _check.finite("samples", x)
    constant = [int(j) for j in np.flatnonzero(np.ptp(x, axis=0) == 0)]
    if constant:
        raise ValueError(f"samples must vary in every feature, got constant features {constant}")
    return x, names


def _standard(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    x = x / np.abs(x).max(0)  # whose squares neither overflow nor vanish
    return (x - x.mean(0)) / x.std(0)
