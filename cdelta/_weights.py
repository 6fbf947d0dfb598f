"""The arrays of a network by name, and one file that holds them."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdelta import _files

_FORMAT = 1  # a later one, which this version cannot read, is refused

# What the format calls the dtypes that it has (those that all its versions have which the package
# allows), and, of files that others wrote, the later ones. The rest is written as bytes.
_OWN = {
    "BOOL": "bool",
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}  # fmt: skip
_LATER = {
    "C64": "complex64",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
_BYTES = "cdelta.dtypes"  # where a file's header says what the arrays are that lie there as bytes
_METADATA = "__metadata__"  # a name that the format keeps for itself


# ------------------------------------------------------------------------------------------ names


def name(path: tuple) -> str:
    """Of a leaf, by where it is."""
    parts = [
        str(getattr(entry, key))
        for entry in path
        for key in ("key", "name", "idx")
        if hasattr(entry, key)
    ]
    # nnx: the array of a variable is its .value, which the files of trained networks do not say
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "value" else parts)


def leaves(state: Any) -> dict[str, Any]:
    """The leaves of a pytree, by their names.

    Raises ValueError where two have one name, or one that the format keeps for itself, and for
    leaves that are no arrays or numbers.
    """
    found: dict[str, Any] = {}
    places: dict[str, str] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        one, place = name(path), jax.tree_util.keystr(path)
        if one in found:
            raise ValueError(
                f"network must have arrays whose names differ, but those at {places[one]} and at "
                f"{place} would both be called {one!r}: rename one"
            )
        if one == _METADATA:
            raise ValueError(
                f"network must have no array called {one!r}, which the format keeps for itself: "
                f"rename the one at {place}"
            )
        if not isinstance(leaf, _ARRAYS) or isinstance(leaf, jax.core.Tracer):
            raise ValueError(f"network must hold arrays, got {type(leaf).__name__} at {place}")
        found[one], places[one] = leaf, place
    return found


_ARRAYS = jax.Array | np.ndarray | np.generic | bool | int | float | complex | jax.ShapeDtypeStruct


def difference(got: Mapping[str, Any], wanted: Mapping[str, Any], exact: bool = False) -> str:
    """In what the arrays ``got`` differ from those ``wanted``; empty when in nothing.

    Another precision is no difference, as long as no value is beyond it; with ``exact`` none may be
    rounded either. Another kind of numbers is one.
    """
    for one in sorted({*got, *wanted}):
        if one not in got:
            return f"the weights at {one} are missing"
        if one not in wanted:
            return f"there are weights at {one}, where the recipe's network has none"
        mine, theirs = _shape_and_dtype(got[one]), _shape_and_dtype(wanted[one])
        if mine[0] != theirs[0]:
            return f"the weights at {one} have shape {mine[0]}, not {theirs[0]}"
        if _kind(mine[1]) != _kind(theirs[1]):
            return f"the weights at {one} are {mine[1]}, not {theirs[1]}"
        if mine[1] != theirs[1] and (lost := _lost(np.asarray(got[one]), theirs[1], exact)):
            return f"the weights at {one} are {mine[1]}, and {lost} in {theirs[1]}"
    return ""


def _shape_and_dtype(leaf: Any) -> tuple[tuple[int, ...], Any]:
    array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    dtype = array.dtype
    return array.shape, dtype.newbyteorder("=") if isinstance(dtype, np.dtype) else dtype


def _kind(dtype: Any) -> Any:
    """What can stand for each other but for precision; of random keys, those of one generator."""
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return dtype
    kinds = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    return next((kind for kind in kinds if jnp.issubdtype(dtype, kind)), dtype)


def _lost(array: np.ndarray, dtype: Any, exact: bool) -> str:
    """What happens to numbers in another dtype of their kind; empty when nothing that matters."""
    if jnp.issubdtype(dtype, jnp.integer):
        wide = array if array.dtype.kind == "u" else array.astype(np.int64)
        ends = [int(end) for end in (wide.min(initial=0), wide.max(initial=0))]
        limits = jnp.iinfo(dtype)
        return "" if limits.min <= ends[0] and ends[1] <= limits.max else "some are too large"
    parts = np.stack([array.real, array.imag]) if np.iscomplexobj(array) else array
    sizes = np.abs(parts.astype(np.float64))
    if (sizes[np.isfinite(sizes)] > float(jnp.finfo(dtype).max)).any():
        return "some are too large"
    same = array.astype(dtype).astype(array.dtype) == array
    rounded = not (same | (array != array)).all()  # NaN is not equal to itself
    return "some would be rounded" if exact and rounded else ""


# ------------------------------------------------------------------------------------------ bytes


def serialise(arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Arrays in the format safetensors, with texts in its header.

    Any dtype and any layout; random keys too. What is returned has been read back, bit for bit.
    Raises ValueError for what holds no numbers.
    """
    from safetensors.numpy import save

    stored, dtypes = {}, {}
    for one, array in arrays.items():
        stored[one], dtype = _stored(one, array)
        if dtype:
            dtypes[one] = dtype
    header = {**metadata, **({_BYTES: json.dumps(dtypes)} if dtypes else {})}
    content = save(stored, header or None)
    again, said = parse(content)
    kinds = [[(*_shape_and_dtype(a[one]),) for one in sorted(a)] for a in (again, arrays)]
    if kinds[0] != kinds[1] or digest(again) != digest(arrays) or said != {**metadata}:
        raise OSError("the arrays could not be written so that they can be read back")
    return content


def parse(content: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """Arrays and texts of what :func:`serialise` made. Raises ValueError for anything else."""
    from safetensors import SafetensorError, deserialize

    try:
        parts, texts = deserialize(content), metadata(content)
        dtypes = {**json.loads(texts.pop(_BYTES, "{}"))}
        arrays = {
            one: _read(np.ndarray(part["shape"], _dtype(part["dtype"]), part["data"]), one, dtypes)
            for one, part in parts
        }
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    return arrays, texts


def metadata(content: bytes) -> dict[str, str]:
    """The texts in a file's header. Raises ValueError when there is none."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    texts = header.get(_METADATA, {}) if isinstance(header, dict) else None
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("its header holds no texts by name")
    return texts


def digest(arrays: Mapping[str, Any]) -> str:
    """A checksum of the arrays' bytes, in the order of their names."""
    whole = hashlib.sha256()
    for one in sorted(arrays):
        whole.update(_stored(one, arrays[one])[0].tobytes())
    return whole.hexdigest()


def _stored(one: str, leaf: Any) -> tuple[np.ndarray, str]:
    """An array as the format takes it, row after row; when that is its bytes, what it was."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        generator = jax.random.key_impl(leaf)
        if not isinstance(generator, str):
            raise ValueError(
                f"network must have keys of a generator of jax, got {leaf.dtype} at {one}"
            )
        return np.asarray(jax.random.key_data(leaf)), f"key of {generator}"
    array = np.asarray(leaf)
    if not hasattr(jnp, array.dtype.name):  # texts, objects; long doubles, which machines differ in
        raise ValueError(f"network must hold numbers, got an array of {array.dtype} at {one}")
    array = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
    if array.dtype.name in _OWN.values():
        return array, ""
    size = array.dtype.itemsize
    return np.ndarray((*array.shape, size), np.uint8, array.tobytes()), array.dtype.name


def _read(array: np.ndarray, one: str, dtypes: Mapping[str, str]) -> Any:
    """The array that :func:`_stored` stored."""
    if one not in dtypes:
        return array
    if dtypes[one].startswith("key of "):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=dtypes[one][len("key of ") :])
    return np.ndarray(array.shape[:-1], np.dtype(dtypes[one]), array.tobytes())


def _dtype(called: str) -> np.dtype:
    """A dtype by its name in the format."""
    known = {**_OWN, **_LATER}
    if called not in known:
        raise ValueError(f"it holds numbers of the kind {called}, which this version does not know")
    return np.dtype(known[called])


# ------------------------------------------------------------------------------------------ files


def write(path: str | os.PathLike, state: Any, kind: str, facts: Mapping[str, Any]) -> None:
    """One safetensors file, whole or not at all, with what it is in its header as JSON."""
    arrays = leaves(state)
    about = {"format": _FORMAT, "network": kind, "sha256": digest(arrays), "facts": {**facts}}
    _files.write(path, serialise(arrays, {"cdelta": json.dumps(about)}))


def read(path: str | os.PathLike, like: Any, kind: str) -> Any:
    """The state ``like`` with the arrays of a file.

    Raises OSError for a damaged file, ValueError for one of another network.
    """
    content, where = Path(path).read_bytes(), os.fspath(path)
    try:
        (arrays, _), about = parse(content), header(content)
    except ValueError as error:
        raise OSError(f"{where} is no file that save wrote: {error}") from error
    if digest(arrays) != about["sha256"]:
        raise OSError(f"{where} is damaged: its checksum is another")
    if about["network"] != kind:
        raise ValueError(f"network must be a {about['network']}, as was saved, got a {kind}")
    wrong = difference(arrays, leaves(like))
    if wrong:
        raise ValueError(
            f"network must be built as the one in {where}: of that one, "
            f"{wrong.replace('the recipe', 'this')}"
        )
    return filled(like, arrays)


def filled(like: Any, arrays: Mapping[str, Any]) -> Any:
    """The state ``like`` with other arrays, each as what stood in its place."""
    paths, tree = jax.tree_util.tree_flatten_with_path(like)
    return jax.tree.unflatten(tree, [_in_place(arrays[name(path)], leaf) for path, leaf in paths])


def _in_place(array: Any, leaf: Any) -> Any:
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return jnp.asarray(array, leaf.dtype)
    if isinstance(leaf, np.ndarray):
        return np.array(array, leaf.dtype)
    # a number of NumPy or of Python
    return (leaf.dtype.type if isinstance(leaf, np.generic) else type(leaf))(array.item())


def header(content: bytes) -> dict[str, Any]:
    """What a file says of itself. Raises ValueError when it says nothing that can be read."""
    try:
        about = json.loads(metadata(content)["cdelta"])
        kinds = {"format": int, "network": str, "sha256": str, "facts": dict}
        if not all(isinstance(about[fact], kind) for fact, kind in kinds.items()):
            raise ValueError("its header is another's")
    except (KeyError, TypeError) as error:
        raise ValueError("its header does not say which network it holds") from error
    if about["format"] > _FORMAT:
        raise ValueError(
            f"it has format {about['format']}, and this version of cdelta reads up to {_FORMAT}"
        )
    return about
