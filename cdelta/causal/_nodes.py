"""Models whose nodes are numbers, vectors and labels: their samples by name, and the map from their
noises, forwards and backwards."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from cdelta import _check
from cdelta._precision import common
from cdelta.causal import _conditional, _vectors
from cdelta.causal._conditional import Nodes
from cdelta.causal._vectors import Own, Vector
from cdelta.causal.models import Shift

Sample = Mapping[str, Any]  # arrays by name, of one sample or of many


class Pieces(NamedTuple):
    """What is fitted of a model's nodes."""

    numbers: Nodes | None  # all numbers together, in the order of the nodes
    vectors: dict[str, Vector | Own]
    frequencies: dict[str, Array]  # [labels] each

    def cast(self, dtype: Any) -> "Pieces":
        """In another precision; a user's network stays in its own."""

        def one(piece: Any) -> Any:
            if isinstance(piece, Own):
                return piece._replace(
                    center=piece.center.astype(dtype), scale=piece.scale.astype(dtype)
                )
            return jax.tree.map(lambda array: array.astype(dtype), piece)

        return Pieces(one(self.numbers), {k: one(v) for k, v in self.vectors.items()},
                      one(self.frequencies))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which of a model's nodes are numbers, vectors and labels.

    ``shapes`` are those of a value: () for a number or a label, None where only the data will say.
    ``labels``: how many, 0 for what is no label. ``causes`` of each node, in the order of nodes.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    labels: tuple[int, ...]
    causes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls,
        names: tuple[str, ...],
        parents: Bool[np.ndarray, "n n"],
        shapes: Mapping[str, Sequence[int]],
        labels: Mapping[str, int],
    ) -> "Layout":
        """Raises ValueError for a node that is not there, is both, or is a label with causes."""
        for argument, given in (("shapes", shapes), ("labels", labels)):
            known(argument, given, names)
        both = [name for name in names if name in shapes and name in labels]
        if both:
            raise ValueError(f"shapes and labels must be of different nodes, got {both} in both")
        found = [
            () if name in labels else _shape(name, shapes[name]) if name in shapes else None
            for name in names
        ]
        counts = [_count(name, labels[name]) if name in labels else 0 for name in names]
        causes = [tuple(np.flatnonzero(row).tolist()) for row in parents]
        for name, count, own in zip(names, counts, causes, strict=True):
            if count and own:
                raise ValueError(
                    f"labels must be roots of the graph, but {name!r} has causes "
                    f"{[names[j] for j in own]}: which label a noise makes is not known then"
                )
        return cls(names, tuple(found), tuple(counts), tuple(causes))

    def with_shapes(self, x: Sample) -> "Layout":
        """Shapes that were not given are those of the data."""
        named("x", x, self.names)
        found = tuple(
            np.shape(x[name])[1:] if shape is None else shape
            for name, shape in zip(self.names, self.shapes, strict=True)
        )
        for name, shape in zip(self.names, found, strict=True):
            if 0 in shape:
                raise ValueError(f"x[{name!r}] must hold numbers, got shape {np.shape(x[name])}")
        return dataclasses.replace(self, shapes=found)

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(k for k in range(len(self.names)) if self.is_number(k))

    @property
    def vectors(self) -> tuple[int, ...]:
        return tuple(k for k in range(len(self.names)) if self.shapes[k])

    @property
    def labelled(self) -> tuple[int, ...]:
        return tuple(k for k in range(len(self.names)) if self.labels[k])

    def is_number(self, k: int) -> bool:
        return not (self.labels[k] or self.shapes[k])

    def columns(self, k: int) -> int:
        """In which others see the node."""
        return self.labels[k] or int(np.prod(self.shapes[k]))

    def given(self, k: int) -> int:
        """Columns of all its causes."""
        return sum(self.columns(j) for j in self.causes[k])

    @property
    def seen_by_numbers(self) -> tuple[int, ...]:
        """The numbers, then what else is a cause of one."""
        causes = {j for k in self.numbers for j in self.causes[k]}
        return (*self.numbers, *sorted(causes.difference(self.numbers)))

    @property
    def parents_of_numbers(self) -> Bool[np.ndarray, "numbers columns"]:
        blocks = [
            [np.full(self.columns(j), j in self.causes[k]) for j in self.seen_by_numbers]
            for k in self.numbers
        ]
        return np.array([np.concatenate(row) for row in blocks], bool)


def untrained(layout: Layout, sizes: tuple[int, int], own: Mapping[str, Any]) -> Pieces:
    """Pieces of the right shapes; ``own`` are networks of the user's."""
    numbers = None
    if layout.numbers:
        parents = layout.parents_of_numbers
        n = len(parents)
        numbers = _conditional.untrained(
            parents, *np.zeros((2, n)), np.zeros(parents.shape), *np.zeros((2, n)), sizes
        )
    zero = jnp.zeros((), jnp.float32)
    vectors = {
        name: Own(zero, zero, own[name])
        if name in own
        else _vectors.untrained(layout.columns(k), layout.given(k), sizes)
        for k, name in _named(layout, layout.vectors)
    }
    frequencies = {
        name: jnp.zeros(layout.labels[k], jnp.float32)
        for k, name in _named(layout, layout.labelled)
    }
    return Pieces(numbers, vectors, frequencies)


def _named(layout: Layout, places: Sequence[int]) -> list[tuple[int, str]]:
    return [(k, layout.names[k]) for k in places]


# --------------------------------------------------------------------------------- what is refused


def known(argument: str, given: Any, names: tuple[str, ...]) -> None:
    """Refuse what is not by the names of nodes."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{argument} must be a mapping from a node's name, got {given!r}")
    if given and not names:
        raise ValueError(f"{argument} go by name: give the nodes names")
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ValueError(f"{argument} must be of the nodes {names}, got {unknown}")


def named(argument: str, x: Any, names: tuple[str, ...]) -> None:
    """Refuse samples that are not arrays of exactly the nodes."""
    if not isinstance(x, Mapping):
        raise ValueError(
            f"{argument} must be a mapping from the nodes {names} to arrays, for these are not all "
            f"numbers, or were fitted by name; got {type(x).__name__}"
        )
    missing = [name for name in names if name not in x]
    unknown = [name for name in x if name not in names]
    if missing or unknown:
        raise ValueError(
            f"{argument} must hold the nodes {names}; missing {missing}, unknown {unknown}"
        )


def sample(argument: str, x: Any, layout: Layout, many: bool | None = None) -> tuple[dict, bool]:
    """Checked arrays of one sample, or of many, and which of the two; numbers and vectors in one
    dtype. ``many``: which of the two they must be."""
    named(argument, x, layout.names)
    arrays: dict[str, Array] = {}
    lengths: dict[str, int | None] = {}
    for k, name in enumerate(layout.names):
        entry = f"{argument}[{name!r}]"
        if layout.labels[k]:
            array = label(entry, x[name], layout.labels[k])
        else:
            array = _check.as_float(entry, x[name])
            _check.finite(entry, array)
        shape = layout.shapes[k]
        extra = array.ndim - len(shape)
        if array.shape[max(extra, 0) :] != shape or extra not in (0, 1):
            raise ValueError(
                f"{entry} must have shape {shape}, or {('N', *shape)} for N samples, got "
                f"{array.shape}"
            )
        arrays[name], lengths[name] = array, len(array) if extra else None
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"{argument} must hold one sample, or as many of every node; got (None for one) "
            f"{lengths}"
        )
    found = next(iter(lengths.values())) is not None
    if many is not None and found != many:
        raise ValueError(f"{argument} must hold {'many samples' if many else 'one sample'}")
    floats = [a.dtype for a in arrays.values() if jnp.issubdtype(a.dtype, jnp.floating)]
    dtype = common(*floats) if floats else jnp.result_type(float)
    return {
        name: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a
        for name, a in arrays.items()
    }, found


def label(name: str, value: Any, count: int) -> Array:
    """``value`` as labels 0, …, count - 1."""
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name} must hold labels, integers, got dtype {array.dtype}")
    if _check.concrete(array) and not ((array >= 0) & (array < count)).all():
        raise ValueError(f"{name} must hold labels in 0, …, {count - 1}, got {_some(array)}")
    return array.astype(jnp.int32)


def _some(array: Array) -> str:
    values = np.unique(np.asarray(array))
    return f"{values[0]} to {values[-1]}" if values.size > 1 else str(values[0])


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    return tuple(_check.count(f"shapes[{name!r}]", size) for size in sizes)


def _count(name: str, count: Any) -> int:
    count = _check.count(f"labels[{name!r}]", count)
    if count < 2:
        raise ValueError(f"labels[{name!r}] must be 2 or more, got {count}")
    return count


# ------------------------------------------------------------------------------------------ the map


def encoded(layout: Layout, pieces: Pieces, k: int, value: Array, dtype: Any) -> Array:
    """A node's value as its effects see it, in one row: standardised, a label by ones and zeros."""
    if layout.labels[k]:
        return jax.nn.one_hot(value, layout.labels[k], dtype=dtype)
    if layout.shapes[k]:
        return _vectors.encoded(pieces.vectors[layout.names[k]], value)
    i = layout.numbers.index(k)
    return ((value - pieces.numbers.center[i]) / pieces.numbers.scale[i])[None]


def _given(layout: Layout, k: int, seen: Mapping[int, Array], dtype: Any) -> Array:
    return jnp.concatenate([jnp.zeros(0, dtype), *(seen[j] for j in layout.causes[k])])


def _of_numbers(layout: Layout, seen: Mapping[int, Array], dtype: Any) -> Array:
    """Those that are not known yet are no causes: 0."""
    return jnp.concatenate(
        [seen.get(j, jnp.zeros(layout.columns(j), dtype)) for j in layout.seen_by_numbers]
    )


def forwards(flow: Any, noise: Mapping[str, Array]) -> dict[str, Array]:
    """The values of one sample that noises make."""
    layout = flow.layout
    dtype = _dtype(noise)
    pieces = flow.nodes.cast(dtype)
    x: dict[str, Array] = {}
    seen: dict[int, Array] = {}
    for k in flow.order:
        name = layout.names[k]
        x[name] = _played(flow, pieces, k, x, seen, noise[name], dtype)
        seen[k] = encoded(layout, pieces, k, x[name], dtype)
    return {name: x[name] for name in layout.names}


def _played(
    flow: Any, pieces: Pieces, k: int, x: Mapping, seen: Mapping, noise: Array, dtype: Any
) -> Array:
    layout, change = flow.layout, flow.changes.get(k)
    if layout.labels[k]:
        return noise if change is None else change
    if flow._own(change):
        return flow._by_equation(k, change, x, noise, layout.shapes[k])
    if not (change is None or isinstance(change, Shift)):
        return change.astype(dtype)
    steps = flow.sizes[2]
    if layout.shapes[k]:
        given = _given(layout, k, seen, dtype)
        return _vectors.play(pieces.vectors[layout.names[k]], given, noise, steps)
    i = layout.numbers.index(k)
    node = jax.tree.map(lambda array: array[i], pieces.numbers)
    value = _conditional.play(node, _of_numbers(layout, seen, dtype), noise, steps)
    value = value * node.scale + node.center
    return value if change is None else value + change.amount.astype(dtype)


def backwards(
    flow: Any, x: Mapping[str, Array], density: bool
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The noises that made one sample, and of each node the log of its density's slope (of a label
    the log of its frequency); of what an intervention has set both are 0, and a label stays."""
    layout = flow.layout
    dtype = _dtype(x)
    pieces = flow.nodes.cast(dtype)
    seen = {k: encoded(layout, pieces, k, x[name], dtype) for k, name in enumerate(layout.names)}
    noise: dict[str, Array] = {}
    slopes: dict[str, Array] = {}
    if layout.numbers:
        found = _noises_of_numbers(flow, pieces, _of_numbers(layout, seen, dtype), dtype)
        for k, e, slope in zip(layout.numbers, *found, strict=True):
            noise[layout.names[k]], slopes[layout.names[k]] = e, slope
    for k, name in _named(layout, layout.vectors):
        given = _given(layout, k, seen, dtype)
        noise[name], slopes[name] = _vectors.noise(
            pieces.vectors[name], given, x[name], flow.sizes[2], density
        )
    for _, name in _named(layout, layout.labelled):
        noise[name], slopes[name] = x[name], jnp.log(pieces.frequencies[name][x[name]])
    for k, name in enumerate(layout.names):
        if flow._fixed(k) is not None:
            slopes[name] = jnp.zeros_like(slopes[name])
            noise[name] = x[name] if layout.labels[k] else jnp.zeros_like(noise[name])
    return {name: noise[name] for name in layout.names}, slopes


def _noises_of_numbers(flow: Any, pieces: Pieces, z: Array, dtype: Any) -> tuple[Array, Array]:
    moved = jnp.stack(
        [s.amount.astype(dtype) if isinstance(s := flow.changes.get(k), Shift)
         else jnp.zeros((), dtype) for k in flow.layout.numbers]
    )  # fmt: skip
    nodes = pieces.numbers
    # a shift moves what a number is for its effects, but not what its own noise made of it
    own = z - nodes.own * (moved / nodes.scale)[:, None]
    return jax.vmap(lambda node, z: _conditional.noise(node, z, flow.sizes[2]))(nodes, own)


def log_density(flow: Any, noise: Mapping, slopes: Mapping) -> Array:
    """Of one sample, from what :func:`backwards` gives."""
    layout = flow.layout
    total = sum(slopes.values())
    for k, name in enumerate(layout.names):
        if not layout.labels[k] and flow._fixed(k) is None:
            e = noise[name]
            total = total - jnp.sum(e**2) / 2 - e.size * jnp.log(2 * jnp.pi).astype(e.dtype) / 2
    return total


def draw(flow: Any, key: Any, n: int) -> dict[str, Array]:
    """Noises of ``n`` samples."""
    layout, pieces = flow.layout, flow.nodes
    numbers = jax.random.normal(key, (n, len(layout.numbers)), jnp.float32)
    noise = {layout.names[k]: numbers[:, i] for i, k in enumerate(layout.numbers)}
    for k in (*layout.vectors, *layout.labelled):
        name, own = layout.names[k], jax.random.fold_in(key, k)
        if layout.labels[k]:
            logs = jnp.log(pieces.frequencies[name])
            noise[name] = jax.random.categorical(own, logs, shape=(n,)).astype(jnp.int32)
        else:
            noise[name] = jax.random.normal(own, (n, *layout.shapes[k]), jnp.float32)
    return {name: noise[name] for name in layout.names}


def _dtype(x: Mapping[str, Array]) -> Any:
    floats = [a.dtype for a in x.values() if jnp.issubdtype(a.dtype, jnp.floating)]
    return floats[0] if floats else jnp.float32


# -------------------------------------------------------------------------------------------- a fit


def data(argument: str, x: Any, layout: Layout) -> dict[str, np.ndarray]:
    """Checked samples, in NumPy."""
    named(argument, x, layout.names)
    for k, name in enumerate(layout.names):
        if not layout.labels[k] and jnp.issubdtype(jnp.asarray(x[name]).dtype, jnp.integer):
            raise ValueError(
                f"{argument}[{name!r}] holds integers: numbers are floating-point, and labels are "
                f"named by labels={{{name!r}: how many}}"
            )
    arrays, _ = sample(argument, x, layout, many=True)
    # in double also where JAX's precision is single: what is taken off may be large
    return {name: np.asarray(array) if array.dtype == jnp.int32 else _check.as_double(name, x[name])
            for name, array in arrays.items()}  # fmt: skip


def split(x: dict, at: int) -> tuple[dict, dict]:
    return {k: a[:at] for k, a in x.items()}, {k: a[at:] for k, a in x.items()}


def check_fit(layout: Layout, x: Mapping, held_out: Mapping, own: Mapping) -> None:
    """Refuse what nothing can be learned from."""
    most = max(
        (1 + layout.given(k) for k in range(len(layout.names)) if layout.names[k] not in own),
        default=1,
    )
    least = 10 * max(most, len(layout.names))
    lengths = [len(next(iter(part.values()))) for part in (x, held_out)]
    if lengths[0] < least or lengths[1] < 2:
        raise ValueError(
            f"x must hold at least {least} samples besides those held out, ten for each column of "
            f"a node's causes, and held_out 2; got {lengths[0]} and {lengths[1]}"
        )
    for k, name in enumerate(layout.names):
        if layout.labels[k]:
            missing = np.setdiff1d(np.arange(layout.labels[k]), x[name]).tolist()
            if missing:
                raise ValueError(
                    f"x[{name!r}] must hold every one of its {layout.labels[k]} labels, but "
                    f"{missing} do not occur"
                )
        elif not x[name].std(0).any():
            raise ValueError(f"x[{name!r}] must vary, but it is constant")


def fit(
    layout: Layout,
    x: Mapping[str, np.ndarray],
    held_out: Mapping[str, np.ndarray],
    key: Any,
    settings: Mapping[str, Any],
    own: Mapping[str, Any],
) -> Pieces:
    """All pieces, ``settings`` for each node by name. Numbers are fitted with ``key`` itself, as
    where there is nothing else."""
    from cdelta.causal import _fitting, _vector_fitting  # networks and an optimizer are not light

    seen: dict[int, list[np.ndarray]] = {}
    for k, name in enumerate(layout.names):
        parts = x[name], held_out[name]
        if layout.labels[k]:
            seen[k] = [np.eye(layout.labels[k])[part] for part in parts]
            continue
        flat = [part.reshape(len(part), -1) for part in parts]
        if layout.is_number(k):
            center, scale = _fitting.location(flat[0])
        elif name in own:
            center, scale = flat[0].mean(), flat[0].std()
        else:
            center, scale = _vector_fitting.location(flat[0])
        seen[k] = [(part - center) / scale for part in flat]

    def of(places: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        empty = [np.zeros((len(next(iter(part.values()))), 0)) for part in (x, held_out)]
        return tuple(
            np.concatenate([empty[i], *(seen[j][i] for j in places)], 1) for i in (0, 1)
        )  # fmt: skip

    numbers = None
    if layout.numbers:
        names = [layout.names[k] for k in layout.numbers]
        parts = (np.stack([part[name] for name in names], 1) for part in (x, held_out))
        others = of(layout.seen_by_numbers[len(names) :])
        numbers = _fitting.fitted(
            layout.parents_of_numbers, *parts, key, settings[""], others, names
        )
    vectors = {}
    for k, name in _named(layout, layout.vectors):
        given, of_node = of(layout.causes[k]), jax.random.fold_in(key, k)
        if name in own:
            vectors[name] = _vector_fitting.of_own(
                own[name], x[name], given[0], of_node, settings.get(name, settings[""])
            )
        else:
            flat = tuple(part[name].reshape(len(part[name]), -1) for part in (x, held_out))
            vectors[name] = _vector_fitting.fitted(
                flat, given, of_node, settings.get(name, settings[""]), name
            )
    frequencies = {
        name: jnp.asarray(np.bincount(x[name], minlength=layout.labels[k]) / len(x[name]),
                          jnp.float32)
        for k, name in _named(layout, layout.labelled)
    }  # fmt: skip
    return Pieces(numbers, vectors, frequencies)
