"""Features by name: what a map returns as one vector, and a feature wherever one is asked for."""

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdelta import _check
from cdelta._precision import common

Feature = int | np.integer | str
Several = Feature | Sequence[Feature] | np.ndarray


_NUMBERS = jax.Array | np.ndarray | np.generic | int | float


class UnknownFeature(KeyError, ValueError):
    """There is no feature of that name: a bad argument, and a key that is not there."""

    __str__ = Exception.__str__  # KeyError's would put the sentence in quotation marks


@dataclasses.dataclass(frozen=True)
class Labels:
    """How many features there are, and their names, where they have some."""

    n: int
    names: tuple[str, ...] | None = None

    @classmethod
    def of(cls, n: int, names: Any, argument: str = "names") -> "Labels":
        """Raises ValueError unless ``names`` is None or n different texts."""
        if names is None:
            return cls(n)
        if isinstance(names, str) or not isinstance(names, Sequence | np.ndarray):
            raise ValueError(f"{argument} must be a list of names, got {names!r}")
        names = [str(name) if isinstance(name, np.str_) else name for name in names]
        if not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"{argument} must be texts that are not empty, got {names}")
        twice = [name for number, name in enumerate(names) if name in names[:number]]
        if twice:
            raise ValueError(f"{argument} must be different, got {twice[0]!r} more than once")
        if len(names) != n:
            raise ValueError(
                f"{argument} must be one for each of the {n} features, got {len(names)}: {names}"
            )
        return cls(n, tuple(names))

    def number(self, argument: str, value: Any) -> Any:
        """The index of a name; what is no name is left as it is."""
        if not isinstance(value, str):
            return value
        if self.names is None:
            raise UnknownFeature(
                f"{argument} must be an index in 0, …, {self.n - 1}, got {value!r}: these features "
                "have no names, an estimator gives them with names=[...]"
            )
        if value not in self.names:
            near = difflib.get_close_matches(value, self.names, 1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            known = ", ".join(map(repr, self.names[:20])) + (", …" if self.n > 20 else "")
            raise UnknownFeature(
                f"{argument} must name one of the features {known}, got {value!r}{hint}"
            )
        return self.names.index(value)

    def index(self, argument: str, value: Any) -> int:
        """One feature, by its index or its name."""
        return _check.index(argument, self.number(argument, value), self.n)

    def indices(self, argument: str, value: Any) -> tuple[int, ...]:
        """One feature or several different ones, each by its index or its name."""
        if hasattr(value, "to_numpy") or (
            isinstance(value, np.ndarray) and value.dtype.kind in "UTO"
        ):
            value = listed(argument, value)
        if isinstance(value, str):
            value = self.number(argument, value)
        elif isinstance(value, list | tuple):
            value = [self.number(argument, one) for one in value]
        return _check.indices(argument, value, self.n)

    def held(self, argument: str, value: Any) -> tuple[int, ...]:
        """The features to hold: with all of them held there is nothing left."""
        held = self.indices(argument, value)
        if len(held) == self.n:
            raise ValueError(
                f"{argument} must leave at least one feature free, got all {self.n} of them"
            )
        return held

    def shown(self, indices: Sequence[int]) -> list:
        """Features as a message says them: by their names, where they have some."""
        return [i if self.names is None else self.names[i] for i in indices]


def listed(argument: str, value: Any) -> list:
    """One feature or several, in whatever holds them, as a list.

    Raises ValueError for a series of numbers under names, such as a row of a data frame: whether
    these are indices, or say which of the names are meant, cannot be told.
    """
    if isinstance(value, str | int | np.integer):
        return [value]
    if not hasattr(value, "to_numpy"):
        return np.atleast_1d(value).tolist() if isinstance(value, np.ndarray) else list(value)
    found = value.tolist()  # pandas' index or series
    under = list(getattr(value, "index", range(len(found))))
    if under != list(range(len(found))) and not all(isinstance(one, str) for one in found):
        raise ValueError(
            f"{argument} must be features, got a series of numbers under the names {under}: give "
            "the names that are meant, list(row.index[row != 0])"
        )
    return found


def by_name(argument: str, x: Any, names: Sequence[str]) -> Any:
    """Of a data frame its columns, of a series its entries, in the order of ``names``; anything
    else, and what has numbers for names, as it is.

    Raises ValueError where some of the names are missing.
    """
    if not hasattr(x, "to_numpy") or not names:
        return x
    frame = hasattr(x, "columns")
    there = list(x.columns if frame else getattr(x, "index", ()))
    if not any(isinstance(name, str) for name in there):
        return _values(argument, x) if frame else x.to_numpy()
    missing = [name for name in names if name not in there]
    if missing:
        raise ValueError(f"{argument} must have the features {missing}, got {there}")
    return _values(argument, x[list(names)]) if frame else x[list(names)].to_numpy()


def _values(argument: str, frame: Any) -> np.ndarray:
    """A data frame as a matrix; where pandas makes one of objects, as of its nullable dtypes, its
    columns are read one by one. Raises ValueError naming those that hold no numbers."""
    whole = frame.to_numpy()
    if whole.dtype != object:
        return whole
    columns = {name: np.asarray(frame[name].to_numpy()) for name in frame.columns}
    bad = [name for name, column in columns.items() if column.dtype.kind not in "iuf"]
    if bad:
        told = ", ".join(f"{name!r} ({columns[name].dtype})" for name in bad)
        raise ValueError(
            f"{argument} must hold real numbers in every column, got {told}: leave these out, or "
            "make numbers of them (truth values: .astype(float))"
        )
    return np.column_stack(list(columns.values()))


def as_vector(f: Callable, shape: tuple[int, ...], dtype: Any, names: Any) -> tuple[Any, Labels]:
    """f (a pytree) as a map from a latent to one vector, and what its features are called.

    Raises ValueError for a map that returns anything but real scalars and vectors, and for names
    that do not fit or that its features have already.
    """
    seen: list[tuple[str, Any]] = []

    def look(x):
        value = f(x)
        seen[:] = _parts(value)
        real = all(isinstance(part, _NUMBERS) for _, part in seen)
        return [jnp.asarray(part) for _, part in seen] if real else None, ()

    try:
        outs, _ = jax.eval_shape(look, jax.ShapeDtypeStruct(shape, dtype))
    except Exception as error:
        error.add_note(f"while f was looked at with one latent of shape {shape}, {dtype.name}")
        if advice := _check.met_torch(error):
            error.add_note(advice)
        raise
    kinds = [type(part).__name__ for _, part in seen if not isinstance(part, _NUMBERS)]
    shapes = [getattr(out, "shape", None) for out in outs or ()]
    if not outs or not all(len(shape) < 2 and np.prod(shape) > 0 for shape in shapes):
        odd = [shape for shape in shapes if len(shape) > 1 or not np.prod(shape)]
        got = kinds[0] if kinds else odd[0] if odd else "nothing"
        raise ValueError(
            f"f must return a vector of features [n] for a latent of shape {shape}, or scalars and "
            f"vectors in a dict, a NamedTuple or another pytree, got {got}"
        )
    for out in outs:
        if not jnp.issubdtype(out.dtype, jnp.floating):
            raise ValueError(f"f must return real floating-point numbers, got dtype {out.dtype}")
    own = None
    if not all(name.startswith("[") or not name for name, _ in seen):
        own = [
            name if not shape else f"{name}[{i}]"
            for (name, _), shape in zip(seen, shapes, strict=True)
            for i in range(shape[0] if shape else 1)
        ]
        own = Labels.of(len(own), own, "the names of what f returns").names
    labels = Labels.of(int(sum(np.prod(shape) for shape in shapes)), names)
    if own and labels.names not in (None, own):
        raise ValueError(
            f"names must be left out for a map whose features are named, {list(own)}, "
            f"got {list(labels.names)}"
        )
    one_vector = len(seen) == 1 and not seen[0][0] and len(shapes[0]) == 1
    return f if one_vector else _Vector(f), Labels(labels.n, own or labels.names)


class _Vector:
    """A map whose scalars and vectors have become one vector."""

    def __init__(self, f: Callable):
        self.f = f

    def __call__(self, x: jax.Array) -> jax.Array:
        parts = [jnp.asarray(part) for _, part in _parts(self.f(x))]
        dtype = common(*parts)
        return jnp.concatenate([jnp.ravel(part).astype(dtype) for part in parts])


jax.tree_util.register_pytree_node(
    _Vector, lambda vector: ((vector.f,), None), lambda _, children: _Vector(*children)
)


def _parts(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a pytree by name, in the order in which they were written: ``a``, ``a.b``,
    ``a[0]``; of a plain vector or a tuple ``""``, ``[0]``."""
    children = _children(value)
    if children is None:
        yield name, value
        return
    for key, child in children:
        joint = "." if name and not key.startswith("[") else ""
        yield from _parts(child, name + joint + key)


def _children(value: Any) -> list[tuple[str, Any]] | None:
    """What a container holds, by name; None for a leaf."""
    if isinstance(value, Mapping):  # in its own order: jax would sort it
        return [(str(key), part) for key, part in value.items()]
    if jax.tree_util.all_leaves([value]):
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = [field.name for field in dataclasses.fields(value)]
            return [(field, getattr(value, field)) for field in fields]
        return None
    pairs, _ = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda part: part is not value)
    return [(_key(path[0]), part) for path, part in pairs]


def _key(key: Any) -> str:
    for kind in ("name", "idx", "key"):  # of an attribute, a sequence, anything else
        if hasattr(key, kind):
            part = getattr(key, kind)
            return part if kind == "name" else f"[{part}]"
    return str(key)


def table(name: str, features: Any) -> tuple[Any, Any]:
    """Samples ``[N, n]`` and the names that they carry: of a data frame its columns, of a mapping
    (of vectors ``[N]`` or matrices ``[N, k]``) its keys, of anything else none."""
    if hasattr(features, "columns") and hasattr(features, "to_numpy"):
        return _values(name, features), [str(column) for column in features.columns]
    if not isinstance(features, Mapping):
        return features, None
    columns, names = [], []
    for key, values in features.items():
        values = np.asarray(values)
        if values.ndim not in (1, 2) or (columns and len(values) != len(columns[0])):
            raise ValueError(
                f"{name} must hold one number, or one vector, for each sample, got shape "
                f"{values.shape} for {key!r}"
            )
        wide = values.ndim == 2
        columns.append(values if wide else values[:, None])
        names += [f"{key}[{i}]" for i in range(values.shape[1])] if wide else [str(key)]
    if not columns:
        raise ValueError(f"{name} must hold at least one feature, got none")
    return np.concatenate(columns, axis=1), names
