"""Frozen dataclasses as JAX pytrees."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def pytree(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen dataclass and a pytree whose leaves are its fields.

    ``vmap`` and ``tree.map`` rebuild instances from leaves of other shapes, or from no arrays at
    all; so rebuilding does not go through ``__init__``, and only users' input is checked there.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    names = tuple(field.name for field in dataclasses.fields(cls))
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in names)

    def flatten(instance):
        return tuple(getattr(instance, name) for name in names), None

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


def as_pytree(function: Callable) -> Callable:
    """The function itself when it is a pytree (jit then takes its arrays as arguments), else one
    without leaves."""
    if not jax.tree_util.all_leaves([function]):
        return function
    try:
        hash(function)
    except TypeError:
        function = functools.partial(function)  # hashed by identity
    return jax.tree_util.Partial(function)
