r"""Learning a velocity from samples: the flow-matching loss and the loop that minimises it.

``fit`` trains any network of ``cdelta.networks`` (or any nnx module) on an array, on an endless
sampler, or on a stream of batches, with an explicit key: the same key gives the same weights, also
when the run is killed and started again.
"""

import functools
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from cdelta.networks import BATCH

Objective = Callable[[Any, PRNGKeyArray, Any], Float[Array, ""]]


# --------------------------------------------------------------------------------------- objectives


def stratified_times(key: PRNGKeyArray, n: int, dtype: Any = None) -> Float[Array, " n"]:
    r"""One uniform time in each of ``n`` equal parts of [0, 1]: :math:`t_i = (i + u_i)/n`: less
    noise than uniforms."""
    return (jnp.arange(n) + jax.random.uniform(key, (n,), dtype)).astype(dtype) / n


def standard_normal(key: PRNGKeyArray, like: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """The source N(0, I), in the shape and dtype of ``like``."""
    return jax.random.normal(key, like.shape, like.dtype)


def loss(
    network: Callable,
    key: PRNGKeyArray,
    x1: Float[Array, "n ..."],
    source: Callable = standard_normal,
) -> Float[Array, ""]:
    r"""Flow-matching loss of a velocity, with independent coupling and one stratified ``t`` a
    sample.

    .. math:: L = E\,|v(t, (1-t) x_0 + t x_1) - (x_1 - x_0)|^2 / d

    Its minimiser is the velocity :math:`E[x_1 - x_0 \mid x_t]` (T3, T6). ``network(t, x)`` takes
    one sample; ``source(key, x1)`` draws the x0 of a batch.
    """
    t, x0, x = _interpolated(key, x1, source)
    return jnp.mean((_batched(network)(t, x) - (x1 - x0)) ** 2)


def target_loss(
    network: Callable,
    key: PRNGKeyArray,
    x1: Float[Array, "n ..."],
    source: Callable = standard_normal,
) -> Float[Array, ""]:
    r"""Loss of a network that predicts the target (the paper's E2),
    :math:`E\,|g(t, x_t) - x_1|^2 / d`.

    Its minimiser is :math:`E[x_1 \mid x_t]`, not a velocity: ``networks.VelocityFromTarget(g)`` is
    one.
    """
    t, _, x = _interpolated(key, x1, source)
    return jnp.mean((_batched(network)(t, x) - x1) ** 2)


def target_velocity_loss(
    network: Callable,
    key: PRNGKeyArray,
    x1: Float[Array, "n ..."],
    source: Callable = standard_normal,
    last: float = 0.95,
) -> Float[Array, ""]:
    r"""Loss of a network that predicts the target, in units of the velocity that
    ``networks.VelocityFromTarget`` makes.

    .. math:: L = E\,\frac{|g(t, x_t) - x_1|^2}{(1 - s)^2} \Big/ d, \qquad s = \min(t, \text{last})

    Up to ``last`` it is ``loss`` of that velocity, and has the minimiser of ``target_loss``.
    Against ``target_loss`` it weighs late times more, where x is nearly x1 and the details of an
    image are decided.
    """
    t, _, x = _interpolated(key, x1, source)
    scale = 1 - jnp.minimum(t, last).reshape(-1, *[1] * (x1.ndim - 1))
    return jnp.mean(((_batched(network)(t, x) - x1) / scale) ** 2)


def cross_entropy(
    network: Callable, key: PRNGKeyArray, batch: tuple[Float[Array, "n ..."], Int[Array, " n"]]
) -> Float[Array, ""]:
    """Loss of a classifier with one label a sample; ``batch`` is ``(images, labels)``. The key is
    not used."""
    images, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(_batched(network)(images), labels).mean()


def binary_cross_entropy(
    network: Callable,
    key: PRNGKeyArray,
    batch: tuple[Float[Array, "n ..."], Float[Array, "n labels"]],
) -> Float[Array, ""]:
    """Loss of a classifier with many labels a sample, each 0 or 1; ``batch`` is
    ``(images, labels)``."""
    images, labels = batch
    return optax.sigmoid_binary_cross_entropy(_batched(network)(images), labels).mean()


def _interpolated(key: PRNGKeyArray, x1: Array, source: Callable) -> tuple[Array, Array, Array]:
    key_t, key_x = jax.random.split(key)
    t = stratified_times(key_t, len(x1), x1.dtype)
    x0 = source(key_x, x1)
    s = t.reshape(-1, *[1] * (x1.ndim - 1))
    return t, x0, (1 - s) * x0 + s * x1


def _batched(network: Callable) -> Callable:
    """``network`` over a batch; the running averages of batch normalisation are brought back out of
    the ``vmap``."""
    if not isinstance(network, nnx.Module):
        return jax.vmap(network)

    def call(*arguments: Array) -> Array:
        graph, averages, rest = nnx.split(network, nnx.BatchStat, ...)

        def one(*sample: Array) -> tuple[Array, Any]:
            copy = nnx.merge(graph, averages, rest, copy=True)
            return copy(*sample), nnx.state(copy, nnx.BatchStat)

        out, averages = jax.vmap(one, out_axes=(0, None), axis_name=BATCH)(*arguments)
        nnx.update(network, averages)
        return out

    return call


# --------------------------------------------------------------------------------------------- data


class Stream:
    """Batches made on the host, ``batch_at(step)``: files, augmentations, whatever does not fit
    into one array.

    ``batch_at`` must give the same batch for the same step, or a resumed run would see other data.
    """

    def __init__(self, batch_at: Callable[[int], PyTree]):
        self.batch_at = batch_at


def _array_batches(data: PyTree, key: PRNGKeyArray, batch: int) -> Callable[[int], PyTree]:
    """Batch number ``step`` of an endless sequence of permutations of the data, each from its own
    seed."""
    n = len(jax.tree.leaves(data)[0])
    seed = np.asarray(jax.random.key_data(key)).ravel().tolist()

    @functools.lru_cache(maxsize=4)
    def permutation(epoch: int) -> np.ndarray:
        return np.random.default_rng([*seed, epoch]).permutation(n)

    def batch_at(step: int) -> PyTree:
        places = np.arange(step * batch, (step + 1) * batch)
        rows = np.concatenate(
            [permutation(e)[places[places // n == e] % n] for e in np.unique(places // n).tolist()]
        )
        return jax.tree.map(lambda array: array[rows], data)

    return batch_at


def _checked(data: PyTree) -> PyTree:
    data = jax.tree.map(np.asarray, data)
    leaves = jax.tree.leaves(data)
    if not leaves or any(leaf.ndim == 0 or len(leaf) == 0 for leaf in leaves):
        raise ValueError(
            f"data must hold at least one sample, got shapes {[leaf.shape for leaf in leaves]}"
        )
    if len({len(leaf) for leaf in leaves}) > 1:
        raise ValueError(
            f"the arrays of data must have one length, got shapes {[leaf.shape for leaf in leaves]}"
        )
    for leaf in leaves:
        # block by block: a mask of a memory-mapped array need not fit into memory
        if np.issubdtype(leaf.dtype, np.floating) and not all(
            np.isfinite(b).all() for b in _blocks(leaf)
        ):
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
    """AdamW with gradients clipped to norm ``clip``; given ``steps``, the rate warms up and follows
    a cosine to 0."""
    schedule = (
        rate if steps is None else optax.warmup_cosine_decay_schedule(0.0, rate, warmup, steps)
    )
    step = optax.adamw(schedule, weight_decay=decay)
    return step if clip is None else optax.chain(optax.clip_by_global_norm(clip), step)


class Fit(NamedTuple):
    """What ``fit`` returns: the network with averaged weights, the loss of every step, seconds
    spent in this call."""

    network: Any
    losses: Float[np.ndarray, " steps"]
    seconds: float


class _State(NamedTuple):
    step: Int[Array, ""]
    params: Any
    stats: Any
    slots: Any
    average: Any


def fit(
    network: nnx.Module,
    data: PyTree | Callable[[PRNGKeyArray], PyTree] | Stream,
    key: PRNGKeyArray,
    *,
    steps: int,
    batch: int = 128,
    objective: Objective = loss,
    optimizer: optax.GradientTransformation | None = None,
    ema: float | int = 0.995,
    chunk: int = 1,
    checkpoints: str | Path | None = None,
    every: int = 1000,
    progress: bool = True,
) -> Fit:
    r"""Train a copy of ``network`` for ``steps`` steps; the network given is left as it is.

    ``data`` is one of: an array ``[n, ...]`` (or a tuple of arrays of one length, for classifiers),
    of which each step takes ``batch`` rows, every row once an epoch; a function ``key -> batch``
    (traced, for endless toy data); a ``Stream``. ``objective(network, key, batch)`` is ``loss``,
    ``target_loss``, ``cross_entropy`` or your own.

    The weights returned are a running average
    :math:`\bar w_{k+1} = a_k \bar w_k + (1 - a_k) w_{k+1}`,
    :math:`a_k = \min(\text{ema}, (1 + k)/(10 + k))`; ``ema=0`` returns the last ones. ``chunk``
    steps run in one compiled call (small networks gain; a UNet on a CPU loses).

    With ``checkpoints`` (a folder), the state is saved each ``every`` steps and at the end, and a
    later call with the same arguments goes on from the last one: to the same weights, bit for bit,
    as an uninterrupted run.

    Raises ValueError for empty or non-finite data, sizes that are not positive, or a folder that
    holds another run; FloatingPointError when the loss is NaN or infinite, naming the step.
    """
    for name, value in (("steps", steps), ("batch", batch), ("chunk", chunk), ("every", every)):
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    if not 0 <= ema < 1:
        raise ValueError(f"ema must lie in [0, 1), got {ema}")
    if every % chunk:
        raise ValueError(
            f"every must be a multiple of chunk, or a resumed run would differ; got {every} and {chunk}"
        )

    sampler = data if callable(data) else None
    if sampler is None:
        batch_at = (
            data.batch_at
            if isinstance(data, Stream)
            else _array_batches(data := _checked(data), key, batch)
        )

    optimizer = adamw(1e-3) if optimizer is None else optimizer
    network = nnx.clone(network)
    network.train()
    graph, params, stats, rest = nnx.split(network, nnx.Param, nnx.BatchStat, ...)
    state = jax.tree.map(  # a copy: the compiled step reuses its argument's memory
        jnp.array, _State(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params), params)
    )
    losses: list[np.ndarray] = []

    store = None
    if checkpoints is not None:
        store = _Store(Path(checkpoints), _identity(data, key, batch, ema))
        state, losses = store.latest(state)
        losses = [losses] if len(losses) else []
    done = int(state.step)
    if done > steps:
        raise ValueError(f"checkpoints holds a run of {done} steps, more than steps = {steps}")

    advance = functools.partial(
        _advance,
        graph=graph,
        objective=objective,
        optimizer=optimizer,
        ema=float(ema),
        sampler=sampler,
    )
    start = time.monotonic()
    with _progress(steps, done, progress) as bar:
        pending = None  # the losses of the chunk before: read while the next one is being computed
        while done < steps:
            length = min(chunk, steps - done)
            batches = None
            if sampler is None:
                parts = [batch_at(done + i) for i in range(length)]
                batches = jax.tree.map(lambda *arrays: np.stack(arrays), *parts)
            state, new = advance(state, rest, key, batches, length=length)
            if pending is not None:
                losses.append(_finite(pending, done))
                bar.set_postfix_str(
                    f"loss {np.mean(np.concatenate(losses[-50:])[-50:]):.4g}", refresh=False
                )
            pending, done = new, done + length
            bar.update(length)
            if store is not None and (done % every == 0 or done == steps):
                losses.append(_finite(pending, done))
                pending = None
                losses = [np.concatenate(losses)]
                store.save(done, state, losses[0])
        if pending is not None:
            losses.append(_finite(pending, done))
    weights = state.average if ema else state.params
    trained = nnx.merge(graph, weights, state.stats, rest)
    trained.eval()
    return Fit(trained, np.concatenate(losses), time.monotonic() - start)


@functools.partial(
    jax.jit,
    static_argnames=("graph", "objective", "optimizer", "ema", "sampler", "length"),
    donate_argnames="state",
)
def _advance(
    state: _State,
    rest: Any,
    key: PRNGKeyArray,
    batches: PyTree,
    *,
    graph: Any,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    ema: float,
    sampler: Callable | None,
    length: int,
) -> tuple[_State, Float[Array, " length"]]:
    """``length`` steps; a function of its arguments alone, so that fits of the same kind share one
    compilation."""

    def step(state: _State, batch: PyTree) -> tuple[_State, Array]:
        key_batch, key_loss = jax.random.split(jax.random.fold_in(key, state.step))
        batch = sampler(key_batch) if sampler is not None else batch

        def value(params: Any) -> tuple[Array, Any]:
            network = nnx.merge(graph, params, state.stats, rest, copy=True)
            return objective(network, key_loss, batch), nnx.state(network, nnx.BatchStat)

        (error, stats), gradient = jax.value_and_grad(value, has_aux=True)(state.params)
        updates, slots = optimizer.update(gradient, state.slots, state.params)
        params = optax.apply_updates(state.params, updates)
        keep = jnp.minimum(ema, (1 + state.step) / (10 + state.step))
        average = jax.tree.map(
            lambda old, new: (keep * old + (1 - keep) * new).astype(old.dtype),
            state.average,
            params,
        )
        return _State(state.step + 1, params, stats, slots, average), error

    if length == 1:  # no loop: XLA's convolutions on a CPU are slower inside one
        state, error = step(state, jax.tree.map(lambda array: array[0], batches))
        return state, error[None]
    return jax.lax.scan(step, state, batches, length=length)


def _finite(errors: Array, done: int) -> np.ndarray:
    values = np.asarray(errors)
    if not np.isfinite(values).all():
        first = done - len(values) + int(np.argmin(np.isfinite(values)))
        raise FloatingPointError(
            f"the loss is {values[~np.isfinite(values)][0]} at step {first}: training has diverged; try a lower rate, "
            "clipped gradients, or look for extreme values in the data"
        )
    return values


def _progress(steps: int, done: int, show: bool) -> Any:
    import sys

    from tqdm import tqdm

    quiet = {} if show else {"disable": True}  # left out, TQDM_DISABLE decides
    pause = 0.5 if sys.stderr.isatty() else 30.0  # in a log file a line now and then is enough
    return tqdm(total=steps, initial=done, desc="fit", unit="step", mininterval=pause, **quiet)


# -------------------------------------------------------------------------------------- checkpoints


def _identity(data: Any, key: PRNGKeyArray, batch: int, ema: float) -> dict[str, Any]:
    """What must agree for a checkpoint to be this run's; the data by shape and a checksum of up to
    64 of its rows."""
    if isinstance(data, Stream) or callable(data):
        seen = "endless"
    else:
        seen = [
            [
                list(leaf.shape),
                zlib.crc32(np.ascontiguousarray(leaf[:: max(1, len(leaf) // 64)]).tobytes()),
            ]
            for leaf in jax.tree.leaves(data)
        ]
    return {
        "data": seen,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "batch": batch,
        "ema": ema,
    }


class _Store:
    """Checkpoints in ``folder`` (orbax: written beside, then renamed), the last two kept."""

    def __init__(self, folder: Path, identity: dict[str, Any]):
        import orbax.checkpoint as ocp

        self.ocp, self.identity = ocp, identity
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, create=True, enable_async_checkpointing=False
        )
        self.manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def save(self, step: int, state: _State, losses: np.ndarray) -> None:
        parts = self.ocp.args.Composite(
            state=self.ocp.args.StandardSave({"leaves": jax.tree.leaves(state), "losses": losses}),
            identity=self.ocp.args.JsonSave(self.identity),
        )
        self.manager.save(step, args=parts, force=True)
        self.manager.wait_until_finished()

    def latest(self, state: _State) -> tuple[_State, np.ndarray]:
        step = self.manager.latest_step()
        if step is None:
            return state, np.zeros(0)
        args = self.ocp.args
        identity = self.manager.restore(step, args=args.Composite(identity=args.JsonRestore()))[
            "identity"
        ]
        for name, ours in self.identity.items():
            if identity[name] != ours:
                raise ValueError(
                    f"checkpoints holds another run: its {name} is {identity[name]}, ours is {ours}"
                )
        leaves, tree = jax.tree.flatten(state)
        like = {"leaves": leaves, "losses": np.zeros(step, np.float32)}
        try:
            found = self.manager.restore(
                step, args=args.Composite(state=args.StandardRestore(like))
            )["state"]
        except ValueError as error:
            raise ValueError(
                "checkpoints holds another run: its network or its optimizer differs"
            ) from error
        return jax.tree.unflatten(tree, found["leaves"]), np.asarray(found["losses"])
