"""One rule for precision: computed in the arguments' common dtype, but at least in float32; the
result is rounded to the common dtype.

Half precision is for storing (LAPACK does not know it, and sums in it lose their terms), and strict
promotion refuses to mix dtypes: so they are made one where arguments come in.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from cdelta import _check

F = TypeVar("F", bound=Callable)


def common(*arrays: Any) -> np.dtype:
    """The dtype to which arrays (or dtypes) are promoted, also where JAX is told to be strict."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*arrays)


def working(dtype: Any) -> np.dtype:
    """The dtype in which to compute: float32 for half precision."""
    return common(dtype, jnp.float32)


def one_dtype(function: F) -> F:
    """``function`` with its arrays, and the arrays inside its laws, in one dtype.

    An argument ``t`` follows the others and has no say in the dtype; a ``key`` is left alone.
    """
    names = tuple(inspect.signature(function).parameters)

    @functools.wraps(function)
    def in_one_dtype(*args, **kwargs):
        given = dict(zip(names, args, strict=False)) | kwargs
        if len(given) != len(args) + len(kwargs):
            return function(*args, **kwargs)  # too many, or twice: Python says so
        chosen = {name: value for name, value in given.items() if name not in ("t", "key")}
        chosen = {name: _arrays(name, value) for name, value in chosen.items()}
        floats = [leaf for leaf in jax.tree.leaves(chosen) if _floating(leaf)]
        if not floats:
            return function(**given)
        dtype = common(*floats)
        work = working(dtype)
        chosen = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, work) if _floating(leaf) else leaf, chosen
        )
        result = function(**{**given, **chosen})
        return jax.tree.map(lambda array: array.astype(dtype), result) if work != dtype else result

    return in_one_dtype


def _arrays(name, value):
    """Lists, and arrays of integers, as arrays of floats."""
    if isinstance(value, list | tuple) or (
        isinstance(value, np.ndarray | jax.Array)
        and value.ndim
        and jnp.issubdtype(value.dtype, jnp.integer)
    ):
        return _check.as_float(name, value)
    return value


def _floating(leaf):
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
