r"""How an average over latents runs: in batches, over devices and processes, with a file to go on.

A *statistic* is what one latent adds to an average: a hashable object (jit compiles it once) that,
called with f and the key of one sample, gives a :class:`Sample`. With ``parts`` of p its factors
are p of n rows each, one below the other, and their p moments are averaged together: the same
latents, a p-th of the memory that one moment of all rows would take.
"""

import contextlib
import contextvars
import dataclasses
import difflib
import functools
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from cdelta import _check, _files
from cdelta._features import Labels
from cdelta._precision import working
from cdelta.flow import CPU_OPTIONS
from cdelta.moment import Moment, fingerprint

BLOCKS = 64  # groups of the jackknife: a standard error is then known to 9 %
LARGEST = 2**31  # samples: their numbers, and those of the batch after the last, are 32-bit words


@dataclasses.dataclass(frozen=True)
class Run:
    """The options of every estimator, given to it by name.

    ``batch``: latents at a time, chosen from the sizes when not given. ``devices``: those to use,
    by default all. ``dtype``: the latents' precision, by default jax's; where it is half precision
    f alone is computed in it. ``progress``: a bar, yes or no; by default one appears once a run has
    taken five seconds. ``resume``: a file that keeps what was accumulated; the same call with the
    same or more samples goes on from there.

    The estimate depends on none of them beyond rounding, but on ``dtype``, which draws other
    latents. Raises TypeError for an option that is not one of these, ValueError for a value that
    makes no sense.
    """

    batch: int | None = None
    devices: Sequence[jax.Device] | None = None
    dtype: Any = None
    progress: bool | None = None
    resume: str | os.PathLike | None = None

    def __post_init__(self) -> None:
        if self.batch is not None:
            object.__setattr__(self, "batch", _check.count("batch", self.batch))
        devices = jax.devices() if self.devices is None else list(np.ravel(self.devices))
        if not devices or not all(isinstance(device, jax.Device) for device in devices):
            raise ValueError(f"devices must be some of jax.devices(), got {self.devices!r}")
        if len(set(devices)) < len(devices):
            raise ValueError(f"devices must name each device once, got {devices}")
        object.__setattr__(self, "devices", tuple(devices))
        dtype = jnp.dtype(jnp.result_type(float) if self.dtype is None else self.dtype)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"dtype must be floating-point, got {dtype}")
        object.__setattr__(self, "dtype", dtype)
        if self.progress not in (None, True, False):
            raise ValueError(f"progress must be True, False or None, got {self.progress!r}")
        if self.resume is not None:
            object.__setattr__(self, "resume", os.fspath(self.resume))

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Run":
        """The run that the keyword arguments of an estimator ask for."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise TypeError(f"unknown option {name!r}: {hint}there are {', '.join(known)}")
        return cls(**options)


class Sample(NamedTuple):
    r"""What a statistic makes of one latent.

    With the weight w and the factors F and G, ``[n, m]`` each (G = F where there is one), the
    sample adds w to the total weight and :math:`w\,(F G^{\mathsf T} + G F^{\mathsf T})/2` to the
    matrix. A weight of 0 says that nothing could be held there. The values of f are looked at only
    for NaN and infinity, which stop the run there as they do in the factors.
    """

    values: jax.Array
    factors: tuple[jax.Array, ...]
    log_weight: jax.Array | None = None  # None stands for w = 1


class Sums(NamedTuple):
    """What was accumulated, by group of the jackknife: sample i is in group i modulo their number.

    In double precision on the host, so that neither size nor number of the samples matters.
    """

    count: np.ndarray  # [blocks]
    weight: np.ndarray  # [blocks]
    matrix: np.ndarray  # [blocks, parts * n, n]
    trace_squared: np.ndarray  # [], of all parts together
    degenerate: np.ndarray  # []

    @classmethod
    def zero(cls, n: int, parts: int = 1) -> "Sums":
        # fewer where their matrices would be large
        blocks = max(8, min(BLOCKS, 2**24 // (parts * n**2)))
        matrix = np.zeros((blocks, parts * n, n))
        return cls(np.zeros(blocks), np.zeros(blocks), matrix, np.zeros(()), np.zeros(()))

    @property
    def drawn(self) -> int:
        """How many samples were drawn: those that count and those where nothing could be held."""
        return int(self.count.sum() + self.degenerate)

    def __add__(self, other: Any) -> "Sums":
        return Sums(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def moment(
        self,
        held: tuple[int, ...] = (),
        names: tuple[str, ...] | None = None,
        keys: np.ndarray | None = None,
        kind: str | None = None,
    ) -> Moment:
        """The average, its replicates without one group each, and as how many samples it counts.

        Raises ValueError when nothing could be held at any sample.
        """
        total, samples, degenerate = self.matrix.sum(0), self.count.sum(), float(self.degenerate)
        if not samples:
            shown = Labels(len(total), names).shown(held)
            raise ValueError(
                f"features {shown} cannot be held: their gradients are zero or linearly "
                f"dependent at every one of {degenerate:.0f} latents"
            )
        used = self.count > 0
        weight = self.weight.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            others = (total - self.matrix[used]) / (weight - self.weight[used])[:, None, None]
            effective = np.trace(total) ** 2 / self.trace_squared
        return Moment(
            matrix=total / weight,
            replicates=others,
            shares=self.count[used] / samples,
            samples=int(samples),
            effective_samples=float(effective),
            held=held,
            degenerate=degenerate / float(samples + degenerate),
            names=names,
            kind=kind,
            **({} if keys is None else {"keys": keys}),
        )

    def averages(self, parts: int, **about: Any) -> Any:
        """The moment, or one of each part. These are of one set of latents: their groups are the
        same, and as how many samples they count is said of all of them together."""
        if parts == 1:
            return self.moment(**about)
        n = self.matrix.shape[2]
        matrices = [self.matrix[:, k * n : (k + 1) * n] for k in range(parts)]
        trace = sum(np.trace(matrix.sum(0)) for matrix in matrices)
        with np.errstate(divide="ignore", invalid="ignore"):
            effective = float(trace**2 / self.trace_squared)
        return tuple(
            dataclasses.replace(
                self._replace(matrix=matrix).moment(**about), effective_samples=effective
            )
            for matrix in matrices
        )


_ENOUGH: contextvars.ContextVar[Callable[[int], bool]] = contextvars.ContextVar(
    "enough", default=lambda drawn: False
)


@contextlib.contextmanager
def ending(enough: Callable[[int], bool]) -> Iterator[None]:
    """Averages inside end early, after the batch with which ``enough`` is true of the samples
    drawn: as if so many had been asked for."""
    token = _ENOUGH.set(enough)
    try:
        yield
    finally:
        _ENOUGH.reset(token)


def enough(drawn: int) -> bool:
    """Whether an average is to end here, after so many samples: never before the first batch."""
    return drawn > 0 and _ENOUGH.get()(drawn)


def average(
    statistic: Any,
    f: Callable,
    key: jax.Array,
    samples: int,
    n: int,
    run: Run,
    *,
    antithetic: bool = False,
    held: tuple[int, ...] = (),
    names: tuple[str, ...] | None = None,
    kind: str | None = None,
) -> Any:
    """The average of a statistic of n features over ``samples`` latents, sample i from
    ``fold_in(key, i)``: a Moment, or one for each of the statistic's parts.

    However it is stopped, the exception's ``moment`` holds the estimate so far, None before the
    first batch has ended.
    """
    samples, parts = _check.count("samples", samples), getattr(statistic, "parts", 1)
    if samples > LARGEST:
        raise ValueError(
            f"samples must be at most 2**31 = {LARGEST}, got {samples}: average the moments of "
            "several keys instead"
        )
    if not _check.concrete(key):
        raise ValueError(f"key is traced: {_TRACED}")
    mesh = Mesh(np.asarray(run.devices), ("samples",))
    with outside_transformations(mesh):
        key_data, impl = _words("key", key)
        about = {"held": held, "names": names, "kind": kind}
        about["keys"] = fingerprint(impl, key_data)
        f = _on_every_device(f, mesh)
        store = None
        if run.resume is not None:
            setting = {
                "statistic": f"{statistic}, antithetic={antithetic}",
                "key": [impl, *key_data.ravel().tolist()],
            }
            store = _Store(run.resume, setting, statistic, f)
        sums = Sums.zero(n, parts) if store is None else store.read(n, samples)
        batch = _batch_size(run.batch, statistic.size, n, samples, mesh.size, parts)
        leader = jax.process_index() == 0
        # not disable=False otherwise: that would overrule TQDM_DISABLE
        silent = {"disable": True} if run.progress is False or not leader else {}
        delay = 0 if run.progress else 5
        bar = tqdm(total=samples, initial=sums.drawn, unit="latent", delay=delay, **silent)
        try:
            while sums.drawn < samples and not enough(sums.drawn):
                sums += _batch_sums(
                    f, key_data, sums.drawn, samples, statistic=statistic, antithetic=antithetic,
                    blocks=len(sums.count), batch=batch, mesh=mesh, impl=impl,
                )  # fmt: skip
                bar.update(sums.drawn - bar.n)
                if store is not None and leader:
                    store.write(sums, last=sums.drawn == samples)
        except BaseException as stopped:
            stopped.moment = None
            if sums.count.sum():
                stopped.moment = sums.averages(parts, **about)
                where = "in this exception's .moment"
                if store is not None and leader and store.write(sums, last=True):
                    where += f" and in {store.path}, from where the same call goes on"
                stopped.add_note(f"what {sums.drawn} of {samples} samples gave is kept {where}")
            raise
        finally:
            bar.close()
    return sums.averages(parts, **about)


def _batch_size(
    asked: int | None, size: int, n: int, samples: int, devices: int, parts: int = 1
) -> int:
    """Samples at a time, a multiple of the number of devices; some 16 MB a device unless asked."""
    if asked is None:
        asked = max(1, min(4096, 2**22 // (parts * n * (n + size) + 8 * size))) * devices
    return -(-min(asked, samples) // devices) * devices


def _batch_sums(f, key_data, start, stop, **settings) -> Sums:
    """The sums over the samples start, start + 1, …, one batch of them, all below stop.

    Raises ValueError naming the first sample that is not finite.
    """
    platform = settings["mesh"].devices.flat[0].platform
    leaves, structure = jax.tree.flatten(f)
    program = _compiled(platform, structure)
    batch = program(leaves, key_data, np.uint32(start), np.uint32(stop), **settings)
    if not _check.concrete(*batch):
        raise ValueError(_TRACED)
    if int(batch.bad) < stop:
        raise ValueError(
            f"f, or a derivative of it, is NaN or infinite at sample {int(batch.bad)} of {stop} "
            "(the key of that sample is fold_in(key, index)): a velocity or network that returns "
            "NaN, a flow that diverges, or an adaptive solver that fails there"
        )
    batch = _Batch(*(np.array(part, np.float64) for part in batch))
    # undo the units and the largest weight, now that nothing can overflow
    weight, units = np.exp(batch.log_weight), batch.unit.reshape(-1, batch.matrix.shape[2])
    matrix = batch.matrix  # in place: it may be large
    matrix *= weight
    matrix *= (units[:, :, None] * units[:, None, :]).reshape(matrix.shape[1:])
    return Sums(
        batch.count,
        batch.weight * weight,
        matrix,
        batch.trace_squared * (weight * batch.unit.max() ** 2) ** 2,
        batch.degenerate,
    )


class _Batch(NamedTuple):
    """The sums of one batch, the features in units of ``unit`` and weights of exp(log_weight)."""

    count: jax.Array  # [blocks]
    weight: jax.Array  # [blocks]
    matrix: jax.Array  # [blocks, parts * n, n]
    trace_squared: jax.Array  # [], also in units of the largest unit
    degenerate: jax.Array  # []
    unit: jax.Array  # [parts * n], powers of two
    log_weight: jax.Array  # []
    bad: jax.Array  # [], the first sample that is not finite, or stop


@functools.lru_cache(64)
def _compiled(platform: str, structure: Any) -> Callable:
    """The program for all f of one structure: what is no longer used takes its constants along."""

    def sum_batch(leaves, *arguments, **settings):
        return _sum_batch(structure.unflatten(leaves), *arguments, **settings)

    names = ("statistic", "antithetic", "blocks", "batch", "mesh", "impl")
    options = CPU_OPTIONS if platform == "cpu" else None
    return jax.jit(sum_batch, static_argnames=names, compiler_options=options)


def _sum_batch(f, key_data, start, stop, *, statistic, antithetic, blocks, batch, mesh, impl):
    index = start + jnp.arange(batch, dtype=start.dtype)
    # The one thing that is split over the devices; XLA splits what is computed from it. (shard_map
    # would do it by hand, but reverse passes of diffrax's solvers are refused inside it.)
    index = jax.lax.with_sharding_constraint(index, NamedSharding(mesh, PartitionSpec("samples")))
    key = jax.random.wrap_key_data(key_data, impl=impl)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    sample = jax.vmap(functools.partial(statistic, f))(keys)
    if antithetic:  # J Jᵀ at both, as a product of factors side by side
        mirrored = jax.vmap(functools.partial(statistic, lambda x: f(-x)))(keys)
        sample = jax.tree.map(lambda *parts: jnp.concatenate(parts, -1), sample, mirrored)

    # A sample is out of bounds in the last batch, degenerate where its weight is 0, or bad.
    sizes = functools.reduce(jnp.maximum, [abs(part).max(2) for part in sample.factors])
    asked = index < stop
    values = sample.values.reshape(batch, -1)
    finite = jnp.isfinite(values).all(1) & jnp.isfinite(sizes).all(1)  # max passes NaN on
    usable = asked & finite
    if sample.log_weight is not None:
        finite &= sample.log_weight < jnp.inf  # NaN is not
        usable &= finite & (sample.log_weight > -jnp.inf)

    # Squares and squares of squares of large features would overflow single precision, those of
    # small ones vanish: count each feature in a unit of its size, a power of two, which rounds
    # nothing, and weights in the largest one. The host puts them back in double precision.
    precision = working(sizes.dtype)
    unit = power_of_two(jnp.where(usable[:, None], sizes, 0).max(0))
    factors = [
        jnp.where(usable[:, None, None], part / unit[:, None], 0).astype(precision)
        for part in sample.factors
    ]
    parts = getattr(statistic, "parts", 1)
    apart = [part.reshape(batch * parts, -1, part.shape[-1]) for part in factors]
    matrices = jnp.einsum("sim,sjm->sij", apart[0], apart[-1], precision="highest")
    matrices = matrices / 2 if antithetic else matrices
    if len(factors) > 1:
        matrices = (matrices + matrices.mT) / 2
    diagonals = matrices.diagonal(axis1=1, axis2=2).reshape(batch, -1)
    matrices = matrices.reshape(batch, -1, matrices.shape[-1])
    weights, log_weight = usable.astype(precision), jnp.zeros((), precision)
    if sample.log_weight is not None:
        log_weights = jnp.where(usable, sample.log_weight, -jnp.inf)
        log_weight = jnp.where(usable.any(), log_weights.max(), 0)
        weights = jnp.exp(log_weights - log_weight).astype(precision)
        matrices, diagonals = matrices * weights[:, None, None], diagonals * weights[:, None]
    # Σᵢ unitᵢ² Mᵢᵢ, in units of the largest one
    traces = diagonals @ (unit / unit.max()).astype(precision) ** 2

    member = (index[:, None] % blocks == jnp.arange(blocks, dtype=index.dtype)) & usable[:, None]
    sums = _Batch(
        count=member.sum(0, dtype=jnp.int32),
        weight=weights @ member.astype(precision),
        matrix=jnp.einsum("sb,sij->bij", member.astype(precision), matrices, precision="highest"),
        trace_squared=(traces**2).sum(),
        degenerate=(asked & finite & ~usable).sum(dtype=jnp.int32),
        unit=unit,
        log_weight=log_weight,
        bad=jnp.where(asked & ~finite, index, stop).min(),
    )
    # every process reads the whole
    return jax.lax.with_sharding_constraint(sums, NamedSharding(mesh, PartitionSpec()))


def power_of_two(sizes: jax.Array) -> jax.Array:
    """The powers of two just below the sizes; 1 for 0."""
    # the bits of infinity are those of the exponent
    exponent = np.asarray(np.inf, sizes.dtype).view(f"uint{8 * sizes.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(sizes, exponent.dtype) & exponent
    powers = jax.lax.bitcast_convert_type(bits, sizes.dtype)
    return jnp.where(powers > 0, powers, 1)


def _on_every_device(f: Callable, mesh: Mesh) -> Callable:
    """f with a copy of its arrays on each device, wherever a checkpoint or a mesh put them."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(leaf):
        array = isinstance(leaf, jax.Array | np.ndarray)
        return jax.device_put(leaf, everywhere) if array else leaf

    return jax.tree.map(place, f)


_TRACED = (
    "an estimator streams from the host and cannot run under jit, vmap or grad; to differentiate "
    "an average, write it with cdelta.jacobian over a batch of latents of your own"
)


def outside_transformations(mesh: Mesh) -> Any:
    """A context in which jax computes on ``mesh``, whatever mesh the caller has set.

    Raises ValueError when the caller is being traced.
    """
    try:
        return jax.set_mesh(mesh)
    except ValueError as error:  # what it says of any transformation is that it is not allowed
        raise ValueError(_TRACED) from error


class _Store:
    """The file behind ``resume``: the sums, and of what they are the sums."""

    _EVERY = 20.0  # seconds between two writes

    def __init__(self, path: str, setting: dict[str, Any], statistic: Any, f: Callable):
        self.path, self.setting = path, setting
        # a function has no name that survives a restart; its value at one point tells it from
        # another well enough, in units of each feature from two: they may be far apart, and one of
        # its values near 0
        points = jnp.stack([jax.random.normal(jax.random.key(i), statistic.shape) for i in (0, 1)])
        both = np.asarray(jax.vmap(f)(points.astype(statistic.dtype))).astype(np.float64)
        unit = np.fmax(*np.abs(both))
        self.features, self.unit = both[0], np.where((unit > 0) & np.isfinite(unit), unit, 1.0)
        self.written = time.monotonic()

    def read(self, n: int, samples: int) -> Sums:
        """The sums of the samples drawn so far.

        Raises ValueError when the file belongs to another run, OSError when it could not be written
        later: both before anything is computed, and in every process.
        """
        sums, refusal = Sums.zero(n), None
        if jax.process_index() == 0:
            try:
                sums = self._read(sums, samples)
            except (OSError, ValueError) as error:
                refusal = error
        if jax.process_count() > 1:
            # as 32-bit words, which no setting of jax's precision rounds
            parts = [np.array(float(refusal is not None)), *sums]
            words = np.concatenate([np.ravel(part) for part in parts]).view(np.uint32)
            heard = np.asarray(multihost_utils.broadcast_one_to_all(words)).view(np.float64)
            if heard[0] and refusal is None:
                refusal = ValueError(f"resume: the first process cannot go on from {self.path}")
            ends = np.cumsum([part.size for part in sums])[:-1]
            parts = zip(np.split(heard[1:], ends), sums, strict=True)
            sums = Sums(*(part.reshape(like.shape) for part, like in parts))
        if refusal is not None:
            raise refusal
        return sums

    def _read(self, empty: Sums, samples: int) -> Sums:
        _files.probe(self.path)
        if not os.path.exists(self.path):
            return empty
        try:
            with np.load(self.path, allow_pickle=False) as file:
                setting, features = json.loads(str(file["setting"])), file["features"]
                sums = Sums(*(file[name] for name in Sums._fields))
            if not isinstance(setting, dict):
                raise ValueError(f"its setting is {setting!r}")
            for name, part, like in zip(Sums._fields, sums, empty, strict=True):
                if part.shape != like.shape or not np.isfinite(part).all():
                    raise ValueError(f"its {name} is not finite or not of shape {like.shape}")
        except _files.DAMAGED as error:
            raise ValueError(
                f"resume: {self.path} is not a file of accumulated samples ({error})"
            ) from error
        for name, mine in self.setting.items():
            if setting.get(name) != mine:
                raise ValueError(
                    f"resume: {self.path} belongs to another run: "
                    f"its {name} is {setting.get(name)}, here it is {mine}"
                )
        alike = features.shape == self.features.shape and np.allclose(
            features / self.unit, self.features / self.unit, rtol=1e-3, atol=1e-3
        )
        if not alike:
            raise ValueError(
                f"resume: {self.path} belongs to another f: its features at one latent differ"
            )
        if sums.drawn > samples:
            raise ValueError(
                f"resume: {self.path} already holds {sums.drawn} samples, "
                f"more than samples={samples}"
            )
        return sums

    def write(self, sums: Sums, last: bool) -> bool:
        """Write the file whole, at the end or when the last time is long ago; is it written?

        A disk that cannot take it costs the file, not the estimate: a warning says so.
        """
        if not last and time.monotonic() - self.written < self._EVERY:
            return False
        self.written = time.monotonic()
        try:
            with _files.whole(self.path) as file:
                setting = json.dumps(self.setting)
                np.savez(file, setting=setting, features=self.features, **sums._asdict())
        except OSError as error:
            warnings.warn(f"resume: {self.path} could not be written ({error})", stacklevel=3)
            return False
        return True


def _words(name: str, key: Any) -> tuple[np.ndarray, str]:
    """A key's words and its generator."""
    key = _check.key(name, key)
    return np.asarray(jax.random.key_data(key)), str(jax.random.key_impl(key))
