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

_FORMAT = 1


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
    """The leaves of a pytree, by their names."""
    return {name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def difference(got: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """In what the arrays ``got`` differ from those ``wanted``; empty when in nothing."""
    for one in sorted({*got, *wanted}):
        if one not in got:
            return f"the weights at {one} are missing"
        if one not in wanted:
            return f"there are weights at {one}, where the recipe's network has none"
        if got[one].shape != wanted[one].shape:
            return f"the weights at {one} have shape {got[one].shape}, not {wanted[one].shape}"
    return ""


def write(path: str | os.PathLike, state: Any, kind: str, facts: Mapping[str, Any]) -> None:
    """One safetensors file, whole or not at all, with what it is in its header as JSON."""
    from safetensors.numpy import save

    arrays = {key: np.asarray(value) for key, value in leaves(state).items()}
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(arrays[key].tobytes())
    about = {"format": _FORMAT, "network": kind, "sha256": digest.hexdigest(), "facts": {**facts}}
    _files.write(path, save(arrays, {"cdelta": json.dumps(about)}))


def read(path: str | os.PathLike, like: Any, kind: str) -> Any:
    """The state ``like`` with the arrays of a file.

    Raises OSError for a damaged file, ValueError for one of another network.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = Path(path).read_bytes()
    try:
        arrays, about = load(content), header(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise OSError(f"{os.fspath(path)} is no file that save wrote: {error}") from error
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(arrays[key].tobytes())
    if digest.hexdigest() != about.get("sha256"):
        raise OSError(f"{os.fspath(path)} is damaged: its checksum is another")
    if about["network"] != kind:
        raise ValueError(f"network must be a {about['network']}, as was saved, got a {kind}")
    wrong = difference(arrays, leaves(like))
    if wrong:
        raise ValueError(
            f"network must be built as the one in {os.fspath(path)}: of that one, "
            f"{wrong.replace('the recipe', 'this')}"
        )
    paths, tree = jax.tree_util.tree_flatten_with_path(like)
    return jax.tree.unflatten(
        tree, [jnp.asarray(arrays[name(path)], leaf.dtype) for path, leaf in paths]
    )


def header(content: bytes) -> dict[str, Any]:
    """What a file says of itself."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["cdelta"])
