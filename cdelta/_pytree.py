"""Frozen dataclasses, and callables of any kind, as JAX pytrees."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from cdelta import _check, _reads

T = TypeVar("T")


def pytree(cls: type[T], repr: bool = True) -> type[T]:
    """Make ``cls`` a frozen dataclass and a pytree whose leaves are its fields.

    ``vmap`` and ``tree.map`` rebuild instances from leaves of other shapes, or from no arrays at
    all; so rebuilding does not go through ``__init__``, and only users' input is checked there. A
    callable among the fields (:func:`as_pytree`) is looked at anew whenever the instance is
    flattened: what it reads may have changed.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=repr)(cls)
    names = tuple(field.name for field in dataclasses.fields(cls))
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in names)

    def now(part):
        return part.now() if isinstance(part, Traceable) else part

    def flatten(instance):
        return tuple(now(getattr(instance, name)) for name in names), None

    def flatten_with_keys(instance):
        return tuple(zip(keys, flatten(instance)[0], strict=True)), None

    def unflatten(_, leaves):
        return unchecked(cls, *leaves)

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def unchecked(cls: type[T], *leaves: Any) -> T:
    """An instance made of its fields' values, without the checks of ``__init__``."""
    instance = object.__new__(cls)
    for field, leaf in zip(dataclasses.fields(cls), leaves, strict=True):
        object.__setattr__(instance, field.name, leaf)
    return instance


def as_pytree(function: Callable) -> "Traceable":
    """Any callable as a pytree: its arrays and floats are leaves, everything else is static.

    A function, a bound method or an object that is no pytree has no leaves. Static parts are
    compared as in :mod:`cdelta._reads`: jit traces again once anything has changed that the
    callable reads, as of the time of this call. Raises ValueError for a PyTorch module.
    """
    if isinstance(function, Traceable):
        return function
    _check.no_torch("a function", function)
    leaves, structure = jax.tree.flatten(function)
    static = [_TRACED if _traced(leaf) else leaf for leaf in leaves]
    whole = Traceable([leaf for leaf in leaves if _traced(leaf)], Static(structure, static))
    whole.function = function  # need not be put together again
    return whole


_TRACED = object()  # where a static list leaves room for an array


def _traced(leaf: Any) -> bool:
    if isinstance(leaf, np.generic):  # a NumPy integer is a size, as a Python one is
        return jnp.issubdtype(leaf.dtype, jnp.inexact)
    return isinstance(leaf, float | complex | np.ndarray | jax.Array | jax.ShapeDtypeStruct)


class Static:
    """What of a callable is not traced: its structure, and leaves that are not arrays."""

    def __init__(self, structure: Any, leaves: list):
        self.structure, self.leaves = structure, leaves
        self.key = _reads.key(structure, *leaves)
        self._hash = hash(self.key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Static) and self._hash == other._hash and self.key == other.key


class Traceable:
    """A callable in two parts, ``leaves`` and what is ``static``; ``function`` is the whole."""

    def __init__(self, leaves: Sequence[Any], static: Static):
        self.leaves, self.static = tuple(leaves), static

    @functools.cached_property
    def function(self) -> Any:
        rest = iter(self.leaves)
        return self.static.structure.unflatten(
            next(rest) if leaf is _TRACED else leaf for leaf in self.static.leaves
        )

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def now(self) -> "Traceable":
        """The same leaves, with what the callable reads by now."""
        return Traceable(self.leaves, Static(self.static.structure, self.static.leaves))


jax.tree_util.register_pytree_node(
    Traceable,
    lambda whole: (whole.leaves, whole.static),
    lambda static, leaves: Traceable(leaves, static),
)
