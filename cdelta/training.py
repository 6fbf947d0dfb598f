r"""Learning a velocity from samples: the flow-matching loss and the loop that minimises it.

``fit`` trains any network of ``cdelta.networks`` (or of flax or Equinox) on an array, on an endless
sampler, or on a stream of batches, with an explicit key: the same key gives the same weights, also
when the run is killed and started again.
"""

import contextlib
import functools
import inspect
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int, Integer, PRNGKeyArray, PyTree, Shaped

from cdelta import _check, _checkpoints, _reads, _roles, _weights
from cdelta._pytree import Static
from cdelta.flow import _equinox_in_training
from cdelta.networks import BATCH

Objective = Callable[[Any, PRNGKeyArray, Any], Float[Array, ""]]
Coupling = Callable[[PRNGKeyArray, Array, Array], tuple[Array, Array]]  # pairs, or their rows
Weight = ArrayLike | Callable[[Float[Array, ""]], ArrayLike]  # of each coordinate, or that at t


# --------------------------------------------------------------------------------------- objectives


def stratified_times(key: PRNGKeyArray, n: int, dtype: Any = None) -> Float[Array, " n"]:
    r"""One uniform time in each of ``n`` equal parts of [0, 1], :math:`t_i = (i + u_i)/n`.

    Their average has less noise than that of independent uniforms. Half precision has too few
    numbers for the parts, so the times are drawn in float32 at least and rounded at the end.
    """
    drawn = jnp.promote_types(jnp.result_type(float) if dtype is None else dtype, jnp.float32)
    t = (jnp.arange(n, dtype=drawn) + jax.random.uniform(key, (n,), drawn)) / n
    return t if dtype is None else t.astype(dtype)


def standard_normal(key: PRNGKeyArray, like: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """The source N(0, I), in the shape and dtype of ``like``."""
    return jax.random.normal(key, like.shape, like.dtype)


def loss(
    network: Callable,
    key: PRNGKeyArray,
    x1: Float[Array, "n ..."] | tuple[Array, PyTree],
    source: Callable = standard_normal,
    coupling: Coupling | None = None,
    weight: Weight | None = None,
) -> Float[Array, ""]:
    r"""Flow-matching loss of a velocity, one stratified ``t`` a sample.

    .. math:: L = E\,|v(t, (1-t) x_0 + t x_1) - (x_1 - x_0)|^2 / d

    Its minimiser is the velocity :math:`E[x_1 - x_0 \mid x_t]` (T3, T6). ``network(t, x)`` takes
    one sample; ``source(key, x1)`` draws the x0 of a batch. Half precision is how ``x1`` is stored:
    the loss is computed in float32 then.

    A batch ``(x1, conditions)`` is one of labels or other conditions, an array or a tree of them
    with one row a sample: the network is ``network(t, x, condition)`` then. x0 and x1 are
    independent, or paired by ``coupling(key, x0, x1)`` (:func:`optimal_pairs`), which returns the
    pairs, ``(x0, x1)``, or the rows that make them, integers ``(i, j)``: the pairs x0[i], x1[j],
    and each x1's condition with it. Where there are conditions, pairs must have the x1 that was
    given itself, and not in another order, which would leave the conditions behind.

    ``weight``, an array that broadcasts to the shape of one sample or a function of ``t`` that
    gives one, multiplies the square of each coordinate. Positive weights leave the minimiser as it
    is, and decide what a network of finite size and training learns first.

    Raises ValueError when ``x1`` is no array or holds integers, for a source or network of another
    shape, a network that does not take what it is called with, a coupling that returns anything
    else, and a weight of another shape, or one that is not positive.
    """
    t, x0, x1, x, conditions = _interpolated(key, x1, source, coupling)
    return _weighted((_answers(network, t, x, *conditions) - (x1 - x0)) ** 2, t, weight)


def target_loss(
    network: Callable,
    key: PRNGKeyArray,
    x1: Float[Array, "n ..."] | tuple[Array, PyTree],
    source: Callable = standard_normal,
    coupling: Coupling | None = None,
    weight: Weight | None = None,
) -> Float[Array, ""]:
    r"""Loss of a network that predicts the target (the paper's E2).

    .. math:: L = E\,|g(t, x_t) - x_1|^2 / d

    Its minimiser is :math:`E[x_1 \mid x_t]`, not a velocity: ``networks.VelocityFromTarget(g)`` is
    one. Conditions, couplings and weights as in :func:`loss`.
    """
    t, _, x1, x, conditions = _interpolated(key, x1, source, coupling)
    return _weighted((_answers(network, t, x, *conditions) - x1) ** 2, t, weight)


def target_velocity_loss(
    network: Callable,
    key: PRNGKeyArray,
    x1: Float[Array, "n ..."] | tuple[Array, PyTree],
    source: Callable = standard_normal,
    last: float = 0.95,
    coupling: Coupling | None = None,
    weight: Weight | None = None,
) -> Float[Array, ""]:
    r"""Loss of a network that predicts the target, in units of ``VelocityFromTarget``'s velocity.

    .. math:: L = E\,\frac{|g(t, x_t) - x_1|^2}{(1 - s)^2} \Big/ d, \qquad s = \min(t, \text{last})

    Up to ``last`` it is ``loss`` of the velocity that ``networks.VelocityFromTarget`` makes, and
    has the minimiser of ``target_loss``. Against ``target_loss`` it weighs late times more, where
    x is nearly x1 and the details of an image are decided. Conditions, couplings and weights as in
    :func:`loss`.
    """
    t, _, x1, x, conditions = _interpolated(key, x1, source, coupling)
    scale = 1 - jnp.minimum(t, last).reshape(-1, *[1] * (x1.ndim - 1))
    return _weighted(((_answers(network, t, x, *conditions) - x1) / scale) ** 2, t, weight)


def cross_entropy(
    network: Callable, key: PRNGKeyArray, batch: tuple[Float[Array, "n ..."], Integer[Array, " n"]]
) -> Float[Array, ""]:
    """Loss of a classifier with one label a sample; ``batch`` is ``(images, labels)``.

    The key is not used. Raises ValueError for a batch that is no such pair, and for labels that are
    not one integer a sample.
    """
    images, labels = _labelled(batch)
    if labels.shape != images.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must be one integer for each of {len(images)} samples, got {labels.dtype} of "
            f"shape {labels.shape}"
        )
    return optax.softmax_cross_entropy_with_integer_labels(batched(network)(images), labels).mean()


def binary_cross_entropy(
    network: Callable,
    key: PRNGKeyArray,
    batch: tuple[Float[Array, "n ..."], Float[Array, "n labels"]],
) -> Float[Array, ""]:
    """Loss of a classifier with many labels a sample, each 0 or 1.

    ``batch`` is ``(images, labels)``. The key is not used. Raises ValueError for a batch that is no
    such pair, and for labels that are not as many as the network's logits.
    """
    images, labels = _labelled(batch)
    logits = batched(network)(images)
    if labels.shape != logits.shape:
        raise ValueError(
            f"labels must have the shape of the network's logits {logits.shape}, got {labels.shape}"
        )
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean()


def _labelled(batch: Any) -> tuple[Array, Array]:
    """The images and labels of a classifier's batch."""
    pair = isinstance(batch, tuple) and len(batch) == 2
    if not (pair and all(isinstance(part, jax.Array | np.ndarray) for part in batch)):
        raise ValueError(
            f"a classifier's data must be (images, labels), two arrays, got {_said(batch)}"
        )
    return batch


def _said(batch: Any) -> str:
    """A batch in words: of each part its shape, or its type."""
    if isinstance(batch, tuple):
        return f"({', '.join(map(_said, batch))})"
    shape = getattr(batch, "shape", None)
    return type(batch).__name__ if shape is None else f"an array of shape {shape}"


def optimal_pairs(
    key: PRNGKeyArray, x0: Float[Array, "n ..."], x1: Float[Array, "n ..."]
) -> tuple[Float[Array, "n ..."], Float[Array, "n ..."]]:
    r"""Pairs of a batch with the least sum of squared distances, a coupling for :func:`loss`.

    .. math:: \min_\pi \sum_i |x_0^{\pi(i)} - x_1^i|^2

    (Tong et al., TMLR 2024.) By SciPy's solver of the assignment, on the host, in O(n³): some 1 ms
    for 128 samples. x1 keeps its order. Paths become straighter, so that fewer steps are needed;
    with conditions the noise is no longer independent of them within a batch. The key is not used.
    (No extra for ott-jax: its entropic plans are no pairs, and jaxopt would come along.)
    """
    from scipy.optimize import linear_sum_assignment as solve

    def assigned(cost: Any) -> np.ndarray:
        rows, columns = solve(np.asarray(cost, np.float64))
        order = np.empty(len(rows), np.int32)
        order[columns] = rows
        return order

    flat0, flat1 = (x.reshape(len(x), -1) for x in (x0, x1))
    # |x0 - x1|² without what depends on one of the two alone
    cost = -jnp.matmul(flat0, flat1.T, precision="highest")
    order = jax.pure_callback(
        assigned, jax.ShapeDtypeStruct((len(x0),), jnp.int32), cost, vmap_method="sequential"
    )
    return x0[order], x1


def _interpolated(
    key: PRNGKeyArray, batch: Any, source: Callable, coupling: Coupling | None = None
) -> tuple[Array, Array, Array, Array, tuple]:
    """``t``, ``x0``, ``x1`` and the point between them, in float32 at least; the conditions."""
    x1, *conditions = batch if isinstance(batch, tuple) and batch else (batch,)
    if not isinstance(x1, jax.Array | np.ndarray):
        raise ValueError(
            "the data of a flow must be one array [n, ...], or (x1, conditions) with one, got "
            f"{_said(batch)}"
        )
    if not jnp.issubdtype(x1.dtype, jnp.floating):
        raise ValueError(
            f"the data of a flow must be floating-point, got {x1.dtype}: convert it before, at the "
            "scale of the source; of images 0..255 images.astype(np.float32) / 127.5 - 1"
        )
    x1 = x1.astype(jnp.promote_types(x1.dtype, jnp.float32))
    key_t, key_x = jax.random.split(key)
    t = stratified_times(key_t, len(x1), x1.dtype)
    x0 = source(key_x, x1)
    if jnp.shape(x0) != x1.shape:  # one that broadcasts would be the same noise for several samples
        raise ValueError(
            f"source must return x0 in the shape of x1 {x1.shape}, got {jnp.shape(x0)}"
        )
    if coupling is not None:
        key = jax.random.fold_in(key, _COUPLING)
        x0, x1, conditions = _paired(coupling, key, x0, x1, conditions)
    s = t.reshape(-1, *[1] * (x1.ndim - 1))
    return t, x0, x1, (1 - s) * x0 + s * x1, tuple(conditions)


def _weighted(
    squares: Float[Array, "n ..."], t: Float[Array, " n"], weight: Weight | None
) -> Float[Array, ""]:
    """The mean of the squares, each times its weight."""
    if weight is None:
        return jnp.mean(squares)
    if not callable(weight):
        weight = jnp.asarray(weight, squares.dtype)
        if not isinstance(weight, jax.core.Tracer) and not (weight > 0).all():
            raise ValueError("weight must be positive: of what weighs nothing nothing is learned")
    one = jax.eval_shape(weight, t[0]).shape if callable(weight) else weight.shape
    shape = squares.shape[1:]
    fits = all(size in (1, n) for size, n in zip(one[::-1], shape[::-1], strict=False))
    if len(one) > len(shape) or not fits:
        raise ValueError(f"weight must broadcast to one sample's shape {shape}, got {one}")
    if callable(weight):
        weight = jax.vmap(lambda t: jnp.broadcast_to(weight(t), shape))(t)
    return jnp.mean(weight * squares)


def _paired(
    coupling: Coupling, key: PRNGKeyArray, x0: Array, x1: Array, conditions: list
) -> tuple[Array, Array, list]:
    """x0 and x1 in pairs, and each x1's conditions."""
    if conditions and isinstance(coupling, jax.stages.Wrapped):
        coupling = coupling.__wrapped__  # jit would hide that x1 is the one that was given
    pair = coupling(key, x0, x1)
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        raise ValueError(
            "coupling must return the pairs (x0, x1), or the rows (i, j) that make them, got "
            f"{_said(pair)}"
        )
    one, two = map(jnp.asarray, pair)
    if all(jnp.issubdtype(part.dtype, jnp.integer) for part in (one, two)):
        if not one.shape == two.shape == x1.shape[:1]:
            raise ValueError(
                f"coupling must return one row of x0 and one of x1 for each of {len(x1)} pairs, "
                f"got rows of shapes {one.shape} and {two.shape}"
            )
        # a row that is not there becomes NaN, which stops a training; it would become the last one
        rows = [x.at[row].get(mode="fill", fill_value=jnp.nan) for x, row in ((x0, one), (x1, two))]
        return *rows, jax.tree.map(lambda condition: jnp.asarray(condition)[two], conditions)
    if (one.shape, two.shape) != (x0.shape, x1.shape):
        raise ValueError(
            f"coupling must return x0 and x1 in their shapes {x0.shape, x1.shape}, got {one.shape} "
            f"and {two.shape}"
        )
    if conditions and pair[1] is not x1:
        raise ValueError(
            "coupling must return the x1 that it was given where there are conditions, which would "
            "not follow another order: permute x0 alone, or return the rows (i, j), two vectors of "
            "integers, of the pairs x0[i], x1[j]"
        )
    return one, two, conditions


def _answers(network: Any, t: Array, x: Array, *conditions: Any) -> Array:
    """What the network says of a batch, which must have the shape of x: others would broadcast."""
    asked = network.network if isinstance(network, _Weights) else network
    try:
        inspect.signature(asked).bind(t, x, *conditions)
    except TypeError as error:
        condition = ", condition" * len(conditions)
        hint = "conditions are given" if conditions else "no conditions are given"
        raise ValueError(
            f"network must take (t, x{condition}), as {hint}: {type(asked).__name__} does not "
            f"({error})"
        ) from error
    except ValueError:  # built in
        pass
    _roles.refuse_state_first(
        "network", asked, "write it as (t, x), or train adapters.time_last(network)"
    )
    out = batched(network)(t, x, *conditions)
    if jnp.shape(out) != x.shape:
        raise ValueError(
            f"network must return one sample's shape {x.shape[1:]}, got {jnp.shape(out)[1:]}"
        )
    return out


# folded into a step's key: unlike what a split of it into two gives
_COUPLING, _UNLABELLED = 7, 8


def _some_unlabelled(
    network: Any, key: PRNGKeyArray, batch: Any, *, objective: Objective, null: Any, share: float
) -> Float[Array, ""]:
    """An objective of ``(x1, conditions)``, some of whose samples have ``null`` for theirs."""
    if not (isinstance(batch, tuple) and len(batch) == 2):
        raise ValueError(
            "null stands for a condition, and these batches have none: give conditions, or a "
            "sampler or stream of (x1, conditions)"
        )
    x1, conditions = batch
    without = jax.random.bernoulli(jax.random.fold_in(key, _UNLABELLED), share, (len(x1),))

    def replaced(condition: Array, null: np.ndarray) -> Array:
        one = without.reshape(-1, *[1] * (condition.ndim - 1))
        return jnp.where(one, null.astype(condition.dtype), condition)

    conditions = jax.tree.map(replaced, conditions, _null(null, conditions))
    return objective(network, key, (x1, conditions))


def _null(null: PyTree, conditions: PyTree) -> PyTree:
    """``null`` as arrays that fit one sample's conditions. Raises ValueError where it does not."""
    like = jax.tree.map(lambda part: (tuple(part.shape[1:]), part.dtype), conditions)
    wanted, structure = jax.tree.flatten(like, is_leaf=lambda part: isinstance(part, tuple))
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(null)]
    shapes = [leaf.shape for leaf in leaves]
    if jax.tree.structure(null) != jax.tree.structure(conditions) or shapes != [
        shape for shape, _ in wanted
    ]:
        raise ValueError(
            f"null must be like the conditions of one sample, of shapes {[s for s, _ in wanted]}, "
            f"got {shapes}"
        )
    for leaf, (_, dtype) in zip(leaves, wanted, strict=True):
        exact = jnp.issubdtype(dtype, jnp.inexact) or (leaf.astype(dtype) == leaf).all()
        if not exact:
            raise ValueError(f"null must be a value of the conditions' dtype {dtype}, got {leaf}")
    return jax.tree.unflatten(structure, leaves)


def batched(network: Callable) -> Callable:
    """``network`` over a batch, as one forward pass of all samples: what an objective calls.

    Each sample has random streams of its own. State that the pass changes is brought back out of
    the ``vmap``: running averages, counters, the counts of the streams. (A plain ``jax.vmap`` of
    such a network is refused by flax.) Any other function is a ``jax.vmap`` of itself.

    Raises ValueError for state that becomes another for each sample.
    """
    if not isinstance(network, nnx.Module):
        return jax.vmap(network)

    def call(*arguments: Array) -> Array:
        graph, keys, rest = nnx.split(network, nnx.RngKey, ...)

        def one(index: Array, *sample: Array) -> tuple[Array, dict[str, Array]]:
            state = _folded(keys, index), rest
            copy = nnx.merge(graph, *state, copy=True)
            return copy(*sample), _changes(copy, nnx.merge(graph, *state))

        samples = (jnp.arange(len(arguments[0])), *arguments)
        try:
            out, changes = jax.vmap(one, out_axes=(0, None), axis_name=BATCH)(*samples)
        except ValueError as error:
            if "out_axes" not in str(error):
                raise
            raise ValueError(
                f"the network's state {', '.join(_varying(one, samples))} becomes another for each "
                f"sample of a batch, and one is carried on; average it: jax.lax.pmean(value, "
                f"{BATCH!r})"
            ) from error
        flat = nnx.to_flat_state(nnx.state(network, _CARRIED))
        new = [(p, _with_value(v, changes[_name(p)])) for p, v in flat if _name(p) in changes]
        if new:
            nnx.update(network, nnx.from_flat_state(new))
        return out

    return call


def _varying(one: Callable, samples: tuple) -> list[str]:
    """Which of the changes that ``one`` returns are not the same for all samples."""

    def varies(name: str) -> bool:
        change = jax.vmap(lambda *s: one(*s)[1][name], out_axes=None, axis_name=BATCH)
        try:
            jax.eval_shape(change, *samples)
        except ValueError:
            return True
        return False

    return [*filter(varies, jax.eval_shape(jax.vmap(one, axis_name=BATCH), *samples)[1])]


# --------------------------------------------------------------------------- the state of a network

# Weights are the optimizer's; keys of random streams follow from the step; intermediates are there
# to be looked at, and nothing depends on them. What is left a forward pass may change.
_CARRIED = nnx.Not(nnx.Any(nnx.Param, nnx.RngKey, nnx.Intermediate))


def _folded(keys: Any, data: Integer[Array, ""]) -> Any:
    """The keys of random streams, each with ``data`` folded into it."""

    def fold(key: Array) -> Array:
        one = functools.partial(jax.random.fold_in, data=data)
        for _ in range(key.ndim):  # streams that nnx has split hold an array of keys
            one = jax.vmap(one)
        return one(key)

    return jax.tree.map(fold, keys)


def _changes(network: nnx.Module, before: nnx.Module) -> dict[str, Array]:
    """The state in which ``network`` differs from what it was before a forward pass, by its path.

    Raises ValueError for changes that cannot be carried to the next step.
    """
    old, new = ({**_attributes(n)} for n in (before, network))
    changed = [name for name in {**old, **new} if old.get(name, old) != new.get(name, new)]
    if changed:
        raise ValueError(
            f"the forward pass changes or makes {', '.join(changed)} of the network, which cannot "
            "be carried to the next step: only an nnx.Variable that exists from the start can"
        )
    kept = dict(nnx.to_flat_state(nnx.state(before, _CARRIED)))
    return {
        _name(path): _value(leaf)
        for path, leaf in nnx.to_flat_state(nnx.state(network, _CARRIED))
        if _value(leaf) is not _value(kept[path])
    }


def _attributes(network: nnx.Module) -> dict[str, Any]:
    """Static attributes by their value, and what holds arrays by its type, each under its path."""
    return {
        _name((*path, name)): type(value) if isinstance(value, _ARRAYS) else value
        for path, module in nnx.iter_modules(network)
        for name, value in vars(module).items()
        if not name.startswith("_pytree") and not isinstance(value, nnx.Intermediate)
    }


_ARRAYS = (jax.Array, np.ndarray, nnx.Variable, nnx.Pytree)


def _name(path: tuple) -> str:
    return ".".join(map(str, path))


def _value(leaf: Any) -> Any:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _with_value(leaf: Any, value: Array) -> Any:
    return leaf.replace(value) if isinstance(leaf, nnx.Variable) else value


def _carried(new: Any, old: Any) -> Any:
    """The state ``new`` for the next step, in the shapes and dtypes of ``old``."""

    def carried(path: tuple, before: Array, value: Array) -> Array:
        real = all(jnp.issubdtype(a.dtype, jnp.floating) for a in (before, value))
        if value.shape != before.shape or not (real or value.dtype == before.dtype):
            name = "".join(f".{entry.key}" for entry in path if hasattr(entry, "key"))[1:]
            raise ValueError(
                f"the forward pass turns the network's state {name} from {before.dtype} "
                f"{before.shape} into {value.dtype} {value.shape}; it must keep shape and dtype"
            )
        return value.astype(before.dtype) if real else value

    return jax.tree_util.tree_map_with_path(carried, old, new)


# --------------------------------------------------------------------------------------------- data


class Stream:
    """Batches made on the host, ``batch_at(step)``, of whatever does not fit into one array.

    ``batch_at`` must give the same batch for the same step, or a resumed run would see other data.
    """

    def __init__(self, batch_at: Callable[[int], PyTree]):
        self.batch_at = batch_at


def _array_batches(data: PyTree, key: PRNGKeyArray, batch: int) -> Callable[[int], PyTree]:
    """Batch number ``step`` of an endless sequence of permutations, each from a seed of its own."""
    n = len(jax.tree.leaves(data)[0])
    seed = np.asarray(jax.random.key_data(key)).ravel().tolist()

    @functools.lru_cache(maxsize=4)
    def permutation(epoch: int) -> np.ndarray:
        return np.random.default_rng([*seed, epoch]).permutation(n)

    def batch_at(step: int) -> PyTree:
        places = np.arange(step * batch, (step + 1) * batch)
        epochs = np.unique(places // n).tolist()  # more than two when the data is less than a batch
        rows = np.concatenate([permutation(e)[places[places // n == e] % n] for e in epochs])
        return jax.tree.map(lambda array: array[rows], data)

    return batch_at


def _checked(data: PyTree) -> PyTree:
    """``data`` as NumPy arrays of one length, with at least one row, of finite numbers."""
    for part in jax.tree.leaves(data, is_leaf=lambda part: isinstance(part, list)):
        if isinstance(part, list):  # of samples, or of arrays? one of the two would be wrong
            raise ValueError(
                "data must be an array [n, ...] or a tuple of such arrays, got a list of "
                f"{len(part)}; np.stack makes one array of samples of one shape"
            )
    data = jax.tree.map(np.asarray, data)
    leaves = jax.tree.leaves(data)
    shapes = [leaf.shape for leaf in leaves]
    if not leaves or any(leaf.ndim == 0 or len(leaf) == 0 for leaf in leaves):
        raise ValueError(f"data must hold at least one sample, got shapes {shapes}")
    if len({len(leaf) for leaf in leaves}) > 1:
        raise ValueError(f"the arrays of data must have one length, got shapes {shapes}")
    for leaf in leaves:
        if not (jnp.issubdtype(leaf.dtype, np.number) or leaf.dtype == bool):
            raise ValueError(f"data must hold numbers, got dtype {leaf.dtype}")
        # block by block: a mask of a memory-mapped array need not fit into memory; jnp's issubdtype
        # knows bfloat16, NumPy's does not
        inexact = jnp.issubdtype(leaf.dtype, np.inexact)
        if inexact and not all(np.isfinite(block).all() for block in _blocks(leaf)):
            raise ValueError(
                f"data must be finite, got NaN or infinity in an array of shape {leaf.shape}"
            )
    return data


def _blocks(array: np.ndarray, size: int = 4096) -> Iterator[np.ndarray]:
    return (array[i : i + size] for i in range(0, len(array), size))


# ----------------------------------------------------------------------------------------- the loop


@functools.cache  # the same object for the same numbers: compiled training steps are reused
def adamw(
    rate: float,
    steps: int | None = None,
    warmup: int = 0,
    decay: float = 1e-4,
    clip: float | None = 1.0,
) -> optax.GradientTransformation:
    """AdamW with gradients clipped to norm ``clip``.

    Given ``steps``, the rate warms up from 0 for ``warmup`` steps and follows a cosine to 0.
    """
    # steps in floating point: optax would make them so inside the schedule when it is first traced,
    # and a step that reads something new is compiled again
    schedule = (
        rate
        if steps is None
        else optax.warmup_cosine_decay_schedule(0.0, rate, warmup, float(steps))
    )
    step = optax.adamw(schedule, weight_decay=decay)
    return step if clip is None else optax.chain(optax.clip_by_global_norm(clip), step)


class Fit(NamedTuple):
    """What ``fit`` returns.

    The network with averaged weights, in eval mode; the loss of every step; seconds of this call.
    """

    network: Any
    losses: Float[np.ndarray, " steps"]
    seconds: float


class _State(NamedTuple):
    """All that a step changes."""

    step: Int[Array, ""]
    params: Any
    rest: Any
    slots: Any
    average: Any


class _Weights(nnx.Module):
    """Any callable pytree as a module whose parameters are its floating-point arrays."""

    def __init__(self, network: Any):
        leaves, structure = jax.tree.flatten(network)
        trained = [_trained(leaf) for leaf in leaves]
        self.weights = nnx.List(
            [
                nnx.Param(jnp.asarray(leaf))
                for leaf, chosen in zip(leaves, trained, strict=True)
                if chosen
            ]
        )
        rest = [_WEIGHT if chosen else leaf for leaf, chosen in zip(leaves, trained, strict=True)]
        self.static = Static(structure, rest)

    @property
    def network(self) -> Any:
        """The pytree with the weights as they are now."""
        weights = iter(self.weights)
        return self.static.structure.unflatten(
            next(weights).get_value() if leaf is _WEIGHT else leaf for leaf in self.static.leaves
        )

    def __call__(self, *arguments: Any) -> Any:
        return self.network(*arguments)


_WEIGHT = "a weight"  # where a static list leaves room for one


def _trained(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating)


def _as_module(network: Any) -> nnx.Module:
    """An nnx module as it is; any other network by its arrays."""
    if isinstance(network, nnx.Module):
        return network
    if not callable(network) or not any(map(_trained, jax.tree.leaves(network))):
        raise ValueError(
            "network must be a flax nnx.Module, or a callable pytree with weights (an Equinox "
            "module, or jax.tree_util.Partial(module.apply, variables) of a linen one), got "
            f"{type(network).__name__}"
        )
    if layers := _equinox_in_training(network):
        raise ValueError(
            f"{', '.join(layers)} in training mode would need keys or state, which fit has for nnx "
            "modules alone: pass equinox.nn.inference_mode(network), or leave the layers out"
        )
    return _Weights(network)


def fit(
    network: nnx.Module | Callable,
    data: PyTree | Callable[[PRNGKeyArray], PyTree] | Stream,
    key: PRNGKeyArray,
    *,
    steps: int | Integer[ArrayLike, ""],
    batch: int | Integer[ArrayLike, ""] = 128,
    objective: Objective = loss,
    conditions: PyTree | None = None,
    null: PyTree | None = None,
    unlabelled: float | Shaped[ArrayLike, ""] = 0.1,
    coupling: Coupling | None = None,
    optimizer: optax.GradientTransformation | None = None,
    ema: float | Shaped[ArrayLike, ""] = 0.995,
    chunk: int | Integer[ArrayLike, ""] = 1,
    checkpoints: str | Path | None = None,
    every: int | Integer[ArrayLike, ""] = 1000,
    progress: bool = True,
) -> Fit:
    r"""Train a copy of ``network`` for ``steps`` steps; the network given is left as it is.

    ``network`` is an nnx module, or any callable pytree whose floating-point arrays are its
    weights, and comes back as what it was: an Equinox module, or of a linen one
    ``jax.tree_util.Partial(module.apply, variables)``.

    ``data`` is one of: an array ``[n, ...]`` (or a tuple of arrays of one length, for classifiers),
    of which each step takes ``batch`` rows, every row once an epoch; a function ``key -> batch``
    (traced, for endless toy data); a ``Stream``. ``objective(network, key, batch)`` is ``loss``,
    ``target_loss``, ``cross_entropy`` or your own, which takes the batch through
    ``batched(network)`` as they do. ``conditions``, an array or a tree of arrays with one row for
    each of ``data``, makes the batch ``(x1, conditions)``, of a network ``(t, x, condition)``;
    samplers and streams give such batches themselves. ``coupling(key, x0, x1)`` pairs noise and
    data within a batch (:func:`optimal_pairs`, :func:`loss`); an objective of your own is given it
    by name.

    ``null``, like the conditions of one sample, stands for no condition: every sample has it
    instead of its own with probability ``unlabelled``, drawn anew at each step. The network's
    velocity at a condition remains what it was, :math:`E[x_1 - x_0 \mid x_t, c]`, and at ``null``
    it becomes that of all data, :math:`E[x_1 - x_0 \mid x_t]`, whatever the probability: the two
    of classifier-free guidance (Ho and Salimans, 2022), ``adapters.labelled(v, c, guidance=,
    null=)``. A label of the data is no ``null``: of ten digits take 10, in a network of eleven.

    The weights returned are a running average
    :math:`\bar w_{k+1} = a_k \bar w_k + (1 - a_k) w_{k+1}`,
    :math:`a_k = \min(\text{ema}, (1 + k)/(10 + k))`; ``ema=0`` returns the last ones. ``chunk``
    steps run in one compiled call (small networks gain; a UNet on a CPU loses).

    State that the forward pass changes (running averages, any ``nnx.Variable`` that is no
    ``nnx.Param``) is carried from step to step. Random streams, as of ``nnx.Dropout``, get the
    step's key folded into theirs, and the objectives above fold in the sample's index: every step
    and every sample draws anew, and a resumed run draws the same.

    With ``checkpoints`` (a folder), the state is saved each ``every`` steps and at the end, and a
    later call with the same arguments goes on from the last one: to the same weights, bit for bit,
    as an uninterrupted run. A call with more ``steps`` goes on as well; one in which anything else
    that decides the result has changed (data, initial weights, objective, optimizer, ...) is
    refused. Two things are not seen: of a ``Stream`` only the batch of step 0 and the last one
    before the checkpoint are compared, and single numbers, such as a learning rate, count as the
    same when they agree to six digits. A damaged checkpoint is passed over, with a warning, for the
    one before it.

    Fits of one kind share a compilation, until something has changed that objective, optimizer,
    sampler or network reads (a closure, a global): each call computes with what they read by then.

    Raises ValueError for empty or non-finite data, conditions that are not one row a sample, sizes
    that are not positive, what is no key, objective, optimizer or coupling, a coupling for an
    objective that takes none, a null that is not like the conditions, state that cannot be carried,
    or a folder that holds another run; OSError when no checkpoint in it is whole, or it is no
    folder; FloatingPointError when the loss is NaN or infinite, naming the step.
    """
    steps, batch = _check.count("steps", steps), _check.count("batch", batch)
    chunk, every = _check.count("chunk", chunk), _check.count("every", every)
    _check.key("key", key)
    ema = float(ema)
    whole, network = network, _as_module(network)
    _check_settings(ema, chunk, every)
    if conditions is not None:
        if callable(data) or isinstance(data, Stream):
            raise ValueError(
                "conditions belong to an array of data; a sampler or a stream gives batches of "
                "(x1, conditions) itself"
            )
        data = _with_conditions(data, conditions)
    _check_parts(objective, optimizer, coupling)
    if coupling is not None:
        objective = functools.partial(objective, coupling=coupling)
    if null is not None:
        unlabelled = float(unlabelled)
        if not 0 < unlabelled < 1:
            raise ValueError(
                "unlabelled must be a probability inside (0, 1), or one of the two velocities is "
                f"never learned; got {unlabelled:g}"
            )
        objective = functools.partial(
            _some_unlabelled, objective=objective, null=null, share=unlabelled
        )
    optimizer = adamw(1e-3) if optimizer is None else optimizer
    sampler = data if callable(data) else None
    batch_at = None if callable(data) else _batch_at(data, key, batch)

    graph, keys, state = _start(network, optimizer)
    advance = functools.partial(
        _advance,
        keys=keys,
        key=key,
        graph=graph,
        objective=objective,
        optimizer=optimizer,
        ema=ema,
        sampler=sampler,
        reads=_one_for(_reads.key(objective, optimizer, sampler, *_code(network))),
    )

    def batches(steps: Sequence[int]) -> PyTree:
        parts = [batch_at(step) for step in steps] if batch_at else [None]
        return jax.tree.map(lambda *arrays: np.stack(arrays), *parts)

    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        store, losses = None, []
        if checkpoints is not None:
            # traced with the first batch over and over: a stream may have no chunk of them
            some = {"batches": batches([0] * chunk), "length": chunk, **advance.keywords}
            identity = {
                **{"batch": batch, "ema": ema, "chunk": chunk},
                "key": np.asarray(jax.random.key_data(key)).tolist(),
                **_looks_at_data(data, key),
                **_looks_at_network(state, keys),
                **_checkpoints.program(_advance.trace(state, **some).jaxpr),
            }
            seen = _looks_at_stream(data) if isinstance(data, Stream) else None
            store = stack.enter_context(_checkpoints.Store(checkpoints, identity, seen))
            state, found = store.latest(state)
            losses = [found] if len(found) else []
        done = int(state.step)
        if done > steps:
            raise ValueError(f"checkpoints holds a run of {done} steps, more than steps = {steps}")

        bar = stack.enter_context(_progress(steps, done, progress))
        unread = None  # the losses of the chunk before: read while the next one is being computed
        while done < steps:
            length = min(chunk, steps - done)
            state, new = advance(state, batches=batches(range(done, done + length)), length=length)
            if unread is not None:
                losses.append(_finite(unread, done))
                recent = np.concatenate(losses[-50:])[-50:].mean()
                bar.set_postfix_str(f"loss {recent:.4g}", refresh=False)
            unread, done = new, done + length
            bar.update(length)
            if done % every == 0 or done == steps:
                losses, unread = [np.concatenate([*losses, _finite(unread, done)])], None
                if store is not None:
                    store.save(done, state, losses[0])
    weights = state.params
    if ema:
        weights = jax.tree.map(lambda a, w: a.astype(w.dtype), state.average, state.params)
    trained = nnx.merge(graph, weights, keys, state.rest)
    trained.eval()
    trained = trained if network is whole else trained.network
    return Fit(trained, losses[0], time.monotonic() - start)


def _with_conditions(data: PyTree, conditions: PyTree) -> tuple:
    """The data of a flow with its conditions, row by row."""
    if isinstance(data, tuple | list | dict):
        raise ValueError(
            "conditions belong to one array of data, and data is a "
            f"{type(data).__name__} of {len(data)}; the labels of a classifier are a part of its "
            "data, (images, labels)"
        )
    parts = jax.tree.leaves(conditions, is_leaf=lambda part: isinstance(part, list))
    shapes = ["a list" if isinstance(part, list) else np.shape(part) for part in parts]
    if not shapes or any(shape[:1] != np.shape(data)[:1] for shape in shapes):
        raise ValueError(
            f"conditions must be an array, or a tree of arrays, with one row for each of "
            f"{len(data)} samples, got {shapes}; np.stack makes one array of a list"
        )
    return data, conditions


def _check_parts(objective: Any, optimizer: Any, coupling: Any) -> None:
    """Refuse what cannot play its part."""
    if not callable(objective):
        raise ValueError(
            "objective must be a function (network, key, batch), such as training.loss, got "
            f"{objective!r}"
        )
    parts = (getattr(optimizer, name, None) for name in ("init", "update"))
    if optimizer is not None and not all(map(callable, parts)):
        raise ValueError(
            "optimizer must be a transformation of optax, such as training.adamw(1e-3) or "
            f"optax.adam(1e-3), got {optimizer!r}"
        )
    if coupling is None:
        return
    if not callable(coupling):
        raise ValueError(
            "coupling must be a function (key, x0, x1), such as training.optimal_pairs, got "
            f"{coupling!r}"
        )
    try:
        known = inspect.signature(objective).parameters
    except (TypeError, ValueError):  # built in
        return
    if "coupling" not in known and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        called = getattr(objective, "__name__", type(objective).__name__)
        raise ValueError(
            f"coupling pairs noise with data, and the objective {called} takes none: it has no "
            "parameter called coupling"
        )


def _check_settings(ema: float, chunk: int, every: int) -> None:
    if not 0 <= ema < 1:
        raise ValueError(f"ema must lie in [0, 1), got {ema}")
    if every % chunk:
        raise ValueError(
            "every must be a multiple of chunk, or a resumed run would differ; got "
            f"{every} and {chunk}"
        )


def _start(network: nnx.Module, optimizer: optax.GradientTransformation) -> tuple[Any, Any, _State]:
    """A copy of ``network`` in train mode: its graph, its random streams, its state at step 0."""
    network = nnx.clone(network)
    network.train()
    nnx.pop(network, nnx.Intermediate)
    graph, params, keys, rest = nnx.split(network, nnx.Param, nnx.RngKey, ...)
    return graph, keys, _at_step_0(params, rest, optimizer)


@functools.partial(jax.jit, static_argnums=2)
def _at_step_0(params: Any, rest: Any, optimizer: optax.GradientTransformation) -> _State:
    """One program for all of it: by itself every shape of a weight would be compiled for."""
    # in half precision the average would stand still: its increments are below its last bit
    average = jax.tree.map(lambda w: w.astype(jnp.promote_types(w.dtype, jnp.float32)), params)
    state = _State(jnp.zeros((), jnp.int32), params, rest, optimizer.init(params), average)
    return jax.tree.map(jnp.array, state)  # copied: a step reuses its state's memory


def _batch_at(data: PyTree, key: PRNGKeyArray, batch: int) -> Callable[[int], PyTree]:
    if isinstance(data, Stream):
        return data.batch_at
    return _array_batches(_checked(data), key, batch)


def _code(network: nnx.Module) -> list:
    """What the forward pass consists of besides arrays: classes, and static attributes."""
    return [type(network), _attributes(network)]


@functools.lru_cache(256)
def _one_for(key: tuple) -> object:
    """The same object for equal keys: every step compares it, and a key can be long."""
    return object()


@functools.partial(
    jax.jit,
    static_argnames=("graph", "objective", "optimizer", "ema", "sampler", "reads", "length"),
    donate_argnames="state",
)
def _advance(
    state: _State,
    keys: Any,
    key: PRNGKeyArray,
    batches: PyTree,
    *,
    graph: Any,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    ema: float,
    sampler: Callable | None,
    reads: object,
    length: int,
) -> tuple[_State, Float[Array, " length"]]:
    """``length`` steps.

    A function of its arguments alone, so that fits of the same kind share one compilation. ``jit``
    knows callables by identity; ``reads`` is another object once they read something else.
    """

    def step(state: _State, batch: PyTree) -> tuple[_State, Array]:
        key_step = jax.random.fold_in(key, state.step)
        key_batch, key_loss = jax.random.split(key_step)
        batch = sampler(key_batch) if sampler is not None else batch
        streams = keys
        for word in jax.random.key_data(jax.random.fold_in(key_step, _STREAMS)).ravel():
            streams = _folded(streams, word)

        def value(params: Any) -> tuple[Array, Any]:
            network = nnx.merge(graph, params, streams, state.rest, copy=True)
            error = objective(network, key_loss, batch)
            _changes(network, nnx.merge(graph, params, streams, state.rest))
            return error, _carried(nnx.state(network, _CARRIED), state.rest)

        (error, rest), gradient = jax.value_and_grad(value, has_aux=True)(state.params)
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            updates, slots = optimizer.update(gradient, state.slots, state.params)
        params = optax.apply_updates(state.params, updates)
        done = state.step.astype(float)  # whole numbers are divided in single precision
        keep = jnp.minimum(ema, (1 + done) / (10 + done))
        average = jax.tree.map(functools.partial(_averaged, keep), state.average, params)
        return _State(state.step + 1, params, rest, slots, average), error

    if length == 1:  # no loop: XLA's convolutions on a CPU are slower inside one
        state, error = step(state, jax.tree.map(lambda array: array[0], batches))
        return state, error[None]
    return jax.lax.scan(step, state, batches, length=length)


_STREAMS = 4  # folded into the step's key: unlike any that a split of it into two gives


def _averaged(keep: Array, old: Array, new: Array) -> Array:
    with jax.numpy_dtype_promotion("standard"):
        wide = jnp.promote_types(keep.dtype, old.dtype)
    return (
        keep.astype(wide) * old.astype(wide) + (1 - keep).astype(wide) * new.astype(wide)
    ).astype(old.dtype)


def _finite(errors: Array, done: int) -> np.ndarray:
    values = np.asarray(errors)
    if not np.isfinite(values).all():
        place = int(np.argmin(np.isfinite(values)))
        raise FloatingPointError(
            f"the loss is {values[place]} at step {done - len(values) + place}: training has "
            "diverged; try a lower rate, clipped gradients, or look for extreme values in the data"
        )
    return values


def _progress(steps: int, done: int, show: bool) -> Any:
    import sys

    from tqdm import tqdm

    quiet = {} if show else {"disable": True}  # left out, TQDM_DISABLE decides
    pause = 0.5 if sys.stderr.isatty() else 30.0  # in a log file a line now and then is enough
    return tqdm(total=steps, initial=done, desc="fit", unit="step", mininterval=pause, **quiet)


# ------------------------------------------------------------------------- what a run is made of


def _looks_at_data(data: Any, key: PRNGKeyArray) -> dict[str, Any]:
    """What tells the data of one run from that of another: all of an array, else one batch."""
    if isinstance(data, Stream):
        return _checkpoints.looks("data at step 0", data.batch_at(0))
    if callable(data):
        traced_anew = jax.jit(lambda key: data(key))  # jit has kept how it once traced ``data``
        return _checkpoints.looks("data for a fixed key", traced_anew(key))
    return _checkpoints.looks("data", data)


def _looks_at_stream(stream: Stream) -> Callable[[int], dict[str, Any]]:
    """The batch that was the last before a checkpoint: a stream may differ only later on."""

    def seen(step: int) -> dict[str, Any]:
        return _checkpoints.looks(f"data at step {step - 1}", stream.batch_at(step - 1))

    return seen


def _looks_at_network(state: _State, keys: Any) -> dict[str, Any]:
    """The weights and the other state that a run starts from, and the kind of its optimizer."""
    leaves = [leaf for part in (state.params, keys, state.rest) for leaf in nnx.to_flat_state(part)]
    slots = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(state.slots)]
    looks = {f"network at {_name(path)}": _checkpoints.look(_value(leaf)) for path, leaf in leaves}
    return {**looks, "optimizer's state": slots}


# ------------------------------------------------------------------------------------------- files


def save(path: str | os.PathLike, network: Any, /, **facts: Any) -> None:
    """Write the arrays of any network to one file, in the format safetensors: no pickle.

    ``network`` is an nnx module, an Equinox module or another pytree, with arrays of any dtype that
    jax or NumPy has for numbers, or of random keys; the random streams of nnx are left out. The
    file is written whole or not at all, and says in its header, as JSON, which class was saved, a
    checksum, and ``facts``: whatever JSON can hold, for instance the arguments of the constructor
    (:func:`saved_facts` reads them). Of what is in the file nothing is rounded. Raises ValueError
    for facts that JSON cannot hold, for a network without arrays, and for one of whose arrays two
    would have one name (``{"a.b": x, "a": {"b": y}}``).
    """
    state = _saved(network)[0]
    if not jax.tree.leaves(state):
        raise ValueError(f"network must have arrays to save, got {type(network).__name__}")
    try:
        json.dumps(facts)
    except TypeError as error:
        raise ValueError(f"facts must be what JSON can hold: {error}") from error
    _weights.write(path, state, type(network).__name__, facts)


def load(path: str | os.PathLike, network: Any) -> Any:
    """A network with the arrays of a file that :func:`save` wrote.

    ``network`` is one that was built in the same way, and is left as it is: the file holds no code.
    Each array comes back in the dtype that it has there, rounded where that is of less precision;
    nnx modules in eval mode. Raises OSError for a file that is damaged or is none of these,
    ValueError naming the array where the network is another: in its names, a shape, the kind of its
    numbers, or a dtype that some of them are too large for.
    """
    state, whole = _saved(network)
    loaded = whole(_weights.read(path, state, type(network).__name__))
    if isinstance(loaded, nnx.Module):
        loaded.eval()
    return loaded


def saved_facts(path: str | os.PathLike) -> dict[str, Any]:
    """The facts that were saved with a network. Raises OSError for a file that has none."""
    try:
        return _weights.header(Path(path).read_bytes())["facts"]
    except ValueError as error:
        raise OSError(f"{os.fspath(path)} is no file that save wrote: {error}") from error


def _saved(network: Any) -> tuple[Any, Callable]:
    """The arrays of a network as a pytree, and what makes a network of such a pytree again."""
    if isinstance(network, nnx.Module):
        graph, streams, state = nnx.split(network, nnx.RngState, ...)
        return state, lambda state: nnx.merge(graph, streams, state, copy=True)
    leaves, structure = jax.tree.flatten(network)
    chosen = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    arrays = jax.tree.unflatten(
        structure, [leaf if kept else None for leaf, kept in zip(leaves, chosen, strict=True)]
    )

    def whole(state: Any) -> Any:
        new = iter(jax.tree.leaves(state))
        return jax.tree.unflatten(
            structure,
            [next(new) if kept else leaf for leaf, kept in zip(leaves, chosen, strict=True)],
        )

    return arrays, whole
