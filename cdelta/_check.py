"""Refusals of bad input, where it enters: what was given, and what is expected.

Shapes are static, so they are checked always; values are checked when they are concrete (a value
traced by ``jit`` or ``vmap`` cannot be looked at).
"""

import operator
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def concrete(*arrays: Any) -> bool:
    """Whether all the values can be looked at now (none is being traced)."""
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)


def as_float(name: str, value: Any) -> jax.Array:
    """``value`` as a floating-point array; integers are promoted, anything else is refused."""
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be an array of numbers, got {type(value).__name__}"
        ) from error
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array
    if jnp.issubdtype(array.dtype, jnp.integer):
        return array.astype(jnp.result_type(float))
    raise ValueError(f"{name} must hold real numbers, got dtype {array.dtype}")


def as_double(name: str, value: Any) -> np.ndarray:
    """``value`` on the host in double precision, also where jax's is single: there :func:`as_float`
    rounds NumPy's doubles, and with them all that is small beside a mean."""
    try:
        array = np.asarray(value)
        if array.dtype.kind in "OSU":
            raise TypeError(f"dtype {array.dtype}")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be an array of numbers, got {type(value).__name__}"
        ) from error
    # bfloat16 is a number to jax, an unknown kind to numpy
    if not (jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.kind in "iu"):
        raise ValueError(f"{name} must hold real numbers, got dtype {array.dtype}")
    return array.astype(np.float64)


def finite(name: str, array: jax.Array | np.ndarray) -> None:
    """Refuse NaN and infinity."""
    if concrete(array) and not np.isfinite(np.asarray(array)).all():
        bad = int((~np.isfinite(np.asarray(array))).sum())
        raise ValueError(
            f"{name} must be finite, got {bad} NaN or infinite entries of {array.size}"
        )


def vector(name: str, f: Any, shape: tuple[int, ...], dtype: Any) -> int:
    """How many features the function ``f`` of one latent gives; anything but a vector is
    refused."""
    out = jax.eval_shape(f, jax.ShapeDtypeStruct(shape, dtype))
    if not isinstance(out, jax.ShapeDtypeStruct) or len(out.shape) != 1:
        raise ValueError(
            f"{name} must return a vector of features [n] for a latent of shape {shape}"
        )
    return out.size


def shape(name: str, array: jax.Array, expected: tuple[int, ...], because: str = "") -> None:
    """Refuse an array of another shape."""
    if array.shape != expected:
        raise ValueError(f"{name} must have shape {expected}{because}, got {array.shape}")


def count(name: str, value: Any) -> int:
    """``value``, a positive integer of Python, NumPy or JAX, as Python's."""
    try:
        number = 0 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:  # of a value that is no integer, or is being traced
        number = 0
    if number < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return number


def index(name: str, value: Any, n: int) -> int:
    """``value`` as one index in 0, …, n - 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < n:
        raise ValueError(f"{name} must be an index in 0, …, {n - 1}, got {value!r}")
    return int(value)


def indices(name: str, value: Any, n: int) -> tuple[int, ...]:
    """One index or several different ones, each in 0, …, n - 1."""
    array = np.atleast_1d(np.asarray(value))
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be a feature's index or several, got {value!r}")
    if ((array < 0) | (array >= n)).any() or len(set(array.tolist())) < array.size:
        raise ValueError(f"{name} must be different indices in 0, …, {n - 1}, got {value!r}")
    return tuple(array.tolist())


def time(t: Any) -> jax.Array:
    """``t`` as a scalar array in [0, 1]."""
    t = as_float("t", t)
    if t.shape != ():
        raise ValueError(f"t must be a scalar, got shape {t.shape}; batch with jax.vmap")
    if concrete(t) and not 0 <= float(t) <= 1:
        raise ValueError(f"t must lie in [0, 1], got {float(t)}")
    return t


def spd(name: str, matrix: jax.Array) -> None:
    """Refuse matrices ``[..., d, d]`` that are not symmetric positive definite (to the rounding of
    their dtype)."""
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"{name} must be square, got shape {matrix.shape}")
    finite(name, matrix)
    if not concrete(matrix):
        return
    values = np.asarray(matrix, dtype=np.float64)
    size = np.abs(values).max(initial=0.0)
    asymmetry = np.abs(values - np.swapaxes(values, -1, -2)).max(initial=0.0)
    # what products of matrices leave; in half precision that would be anything
    if asymmetry > min(1e3 * float(jnp.finfo(matrix.dtype).eps), 0.03) * size:
        raise ValueError(f"{name} must be symmetric, got an asymmetry of {asymmetry:.3g}")
    # coordinates may be in units far apart: then its own eigenvalues drown in rounding
    variances = np.diagonal(values, axis1=-2, axis2=-1)
    unit = np.sqrt(np.where(variances > 0, variances, 1.0))
    correlations = values / unit[..., :, None] / unit[..., None, :]
    smallest = np.linalg.eigvalsh(correlations).min(initial=np.inf)
    if not smallest > 0:
        smallest = min(smallest, np.linalg.eigvalsh(values).min())
        raise ValueError(
            f"{name} must be positive definite, got a smallest eigenvalue of {smallest:.3g}"
        )


_FEATURES = "cdelta.torch.features(module)"
_EITHER = f"cdelta.torch.velocity(module) for a velocity, {_FEATURES} for features"


def no_torch(name: str, value: Any, wrapper: str = _EITHER) -> None:
    """Refuse a PyTorch module, or a method of one: it takes tensors. PyTorch is not imported: who
    has a module has done it."""
    torch = sys.modules.get("torch")
    module = getattr(getattr(torch, "nn", None), "Module", None)
    one = getattr(value, "__self__", value)  # of a method
    if isinstance(module, type) and isinstance(one, module):
        raise ValueError(
            f"{name} must be a function of jax's arrays, got a PyTorch module, "
            f"{type(one).__name__}: wrap it, {wrapper}"
        )


def met_torch(error: BaseException) -> str:
    """Advice, where PyTorch could not take what jax gave it: empty for any other error."""
    trace, called = error.__traceback__, []
    while trace is not None:
        called.append(str(trace.tb_frame.f_globals.get("__name__")))
        trace = trace.tb_next
    if "cdelta.torch" in called or not any(f"{name}.".startswith("torch.") for name in called):
        return ""
    return f"It calls PyTorch, which does not take jax's arrays: wrap the module, {_EITHER}"


def key(name: str, value: Any) -> jax.Array:
    """``value`` as one random key, of the new kind also where it is two words of the old one."""
    try:
        if not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.wrap_key_data(value)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} must be one key from jax.random.key, got {value!r}") from error
    if value.shape != ():
        raise ValueError(f"{name} must be one key, got keys of shape {value.shape}")
    return value


def as_single(name: str, value: Any) -> jax.Array:
    """As :func:`as_float`, and half precision as single: sums of many terms lose theirs in half."""
    array = as_float(name, value)
    return array.astype(jnp.float32) if jnp.finfo(array.dtype).bits < 32 else array
