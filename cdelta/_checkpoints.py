"""Checkpoints of a training run: what makes a run the same run, and the folder that keeps it.

A checkpoint goes on only as the run that wrote it. What a run is made of is described by values
that another process, and another machine, find again: arrays by a ``look``, a compiled function by
its ``program``. Neither depends on addresses or on the last bits of a number.
"""

import contextlib
import errno
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import PyTree

from cdelta import _files

FORMAT = 2
PROGRAM = "training step (objective, optimizer and its rate, network)"
_LIBRARIES = ("jax", "flax", "optax")
_BLOCK = 2**16
_MOST = 2**26  # entries of an array that are looked at: of larger ones, rows spread evenly
_ROUNDING = 1e-5  # of an array's root mean square; initial weights differ by 1e-7 between machines


# ---------------------------------------------------------------------------------- what a run is


def looks(name: str, tree: PyTree) -> dict[str, Any]:
    """A ``look`` at each array of ``tree``, by its name."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {f"{name}{jax.tree_util.keystr(path)}": look(leaf) for path, leaf in leaves}


def look(array: Any) -> dict[str, Any]:
    r"""The shape of an array and three numbers that tell it from others of its shape.

    They are the root mean square, the mean, and a projection
    :math:`\sum_i \cos(i \sqrt 3)\, x_i / \sqrt n`, which sees the order: a hash would tell apart
    what differs by rounding alone.
    """
    array = _as_numpy(array)
    shape = list(array.shape)
    if np.iscomplexobj(array):
        array = np.stack([array.real, array.imag], -1)
    if array.size > _MOST:
        rows = max(2, len(array) * _MOST // array.size)
        array = array[np.linspace(0, len(array) - 1, rows).astype(int)]
    flat, weights = array.reshape(-1), np.cos(np.arange(_BLOCK) * np.sqrt(3))
    squares = total = projection = 0.0
    for i in range(0, flat.size, _BLOCK):
        x = np.nan_to_num(flat[i : i + _BLOCK].astype(np.float64), posinf=1e30, neginf=-1e30)
        squares, total = squares + x @ x, total + x.sum()
        projection += np.cos(i // _BLOCK * np.sqrt(2)) * (x @ weights[: x.size])
    n = max(flat.size, 1)
    return {
        "shape": shape,
        "numbers": [float(np.sqrt(squares / n)), float(total / n), float(projection / np.sqrt(n))],
    }


def program(jaxpr: Any) -> dict[str, Any]:
    """What a traced function computes: a hash of its operations, and looks at its constants.

    The operations are written out anew, since JAX's own text depends on what was traced before (it
    names parts that are shared) and on the order of sets; floating-point scalars to six digits.
    """
    constants: list[Any] = []

    def constant(value: Any) -> str:
        value = _as_numpy(value)
        if value.ndim:
            constants.append(value)
            return f"constant {len(constants)}"
        inexact = jnp.issubdtype(value.dtype, jnp.floating)
        return f"{value.dtype} {float(value):.6g}" if inexact else f"{value.dtype} {value.item()}"

    def function(inner: Any, values: Any) -> str:
        numbers: dict[Any, str] = {}

        def name(variable: Any) -> str:
            if isinstance(variable, core.Literal):
                return constant(variable.val)
            return numbers.setdefault(variable, f"{len(numbers)} {variable.aval}")

        captured = [
            f"{name(variable)} = {constant(value)}"
            for variable, value in zip(inner.constvars, values, strict=True)
        ]
        inputs = [name(variable) for variable in inner.invars]
        lines = [
            f"{[name(v) for v in e.outvars]} = {e.primitive} {text(e.params)} "
            f"{[name(v) for v in e.invars]}"
            for e in inner.eqns
        ]
        return "\n".join([*captured, *inputs, *lines, *map(name, inner.outvars)])

    def text(value: Any) -> str:
        if isinstance(value, core.ClosedJaxpr):
            return function(value.jaxpr, value.consts)
        if isinstance(value, core.Jaxpr):
            return function(value, ())
        if isinstance(value, (np.ndarray, jax.Array)):
            return constant(value)
        if isinstance(value, Mapping):
            return text([(str(key), value[key]) for key in sorted(value, key=str)])
        if isinstance(value, (set, frozenset)):
            return text(sorted(value, key=str))
        if isinstance(value, (tuple, list)):
            return f"({', '.join(map(text, value))})"
        return re.sub("0x[0-9a-f]+", "", repr(value))

    operations = hashlib.sha256(text(jaxpr).encode()).hexdigest()[:16]
    return {PROGRAM: operations, **looks(f"{PROGRAM}, constants", constants)}


def _agree(one: Any, other: Any) -> bool:
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return one == other
    size = max(one["numbers"][0], other["numbers"][0])
    return one["shape"] == other["shape"] and np.allclose(
        one["numbers"], other["numbers"], rtol=0, atol=_ROUNDING * size
    )


# ------------------------------------------------------------------------------------- the folder


class Damaged(OSError):
    """A checkpoint that cannot be read whole."""


class Store:
    """The last two checkpoints of a run in ``folder`` (orbax: written beside, then renamed).

    ``identity`` describes the run, a value a name. ``seen(step)`` adds what only the run up to
    ``step`` tells of it. Raises OSError when the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        identity: dict[str, Any],
        seen: Callable[[int], dict[str, Any]] | None = None,
    ):
        import orbax.checkpoint as ocp

        self.ocp, self.identity = ocp, identity
        self.seen = seen or (lambda step: {})
        self.folder = Path(folder).resolve()
        there = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        if not there.is_dir():
            raise NotADirectoryError(
                errno.ENOTDIR, "checkpoints must be a folder, and this is a file", str(there)
            )
        self.versions = {library: version(library) for library in _LIBRARIES}
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, create=True, enable_async_checkpointing=False
        )
        self.manager = ocp.CheckpointManager(self.folder, options=options)
        _files.probe(self.folder / "checkpoint")  # now, not after the first thousand steps

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.manager.close()

    def save(self, step: int, state: PyTree, losses: np.ndarray) -> None:
        """Write ``state`` and the losses of the ``step`` steps that led to it."""
        leaves = [_as_numpy(leaf) for leaf in jax.tree.leaves(state)]
        record = {
            "format": FORMAT,
            "versions": self.versions,
            "identity": self.identity | self.seen(step),
            "losses": str(losses.dtype),
            "state": _digest([*leaves, losses]),
        }
        parts = self.ocp.args.Composite(
            state=self.ocp.args.StandardSave({"leaves": leaves, "losses": losses}),
            record=self.ocp.args.JsonSave({"record": record, "sha256": _digest_of_json(record)}),
        )
        self.manager.save(step, args=parts, force=True)
        self.manager.wait_until_finished()

    def latest(self, state: PyTree) -> tuple[PyTree, np.ndarray]:
        """The last checkpoint that is whole, in the structure of ``state``, and its losses.

        ``state`` itself and no losses when there is none yet. A damaged one is passed over with a
        warning, and removed once an earlier one is found. Raises ValueError when the folder holds
        another run, OSError when all it holds is damaged.
        """
        damaged: dict[int, Damaged] = {}
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                found = self._read(step, state)
            except Damaged as error:
                damaged[step] = error
                continue
            for broken, why in damaged.items():
                warnings.warn(
                    f"the checkpoint of step {broken} in {self.folder} is damaged ({why}); it is "
                    f"removed, and training goes on from step {step}",
                    stacklevel=3,
                )
                self.manager.delete(broken)
            return found
        if damaged:
            reasons = "; ".join(f"step {step}: {why}" for step, why in damaged.items())
            raise OSError(
                f"no checkpoint in {self.folder} is whole ({reasons}); delete this folder or give "
                "another to train from the start"
            ) from next(iter(damaged.values()))
        return state, np.zeros(0)

    def _read(self, step: int, state: PyTree) -> tuple[PyTree, np.ndarray]:
        folder = self.folder / str(step)
        if (folder / "identity").is_dir():
            raise ValueError(
                f"{self.folder} was written by an earlier version of cdelta, which did not record "
                "enough to tell whether it is this run; give another folder, or delete this one"
            )
        args = self.ocp.args
        with _damage():
            kept = self.manager.restore(step, args=args.Composite(record=args.JsonRestore()))
            record = kept["record"]["record"]
            if _digest_of_json(record) != kept["record"]["sha256"]:
                raise ValueError("its record has another checksum")
        self._compare(record, step)
        leaves, tree = jax.tree.flatten(state)
        like = {
            "leaves": [np.zeros_like(_as_numpy(leaf)) for leaf in leaves],
            "losses": np.zeros(step, record["losses"]),
        }
        with _damage():
            found = self.manager.restore(
                step, args=args.Composite(state=args.StandardRestore(like))
            )["state"]
            if _digest([*found["leaves"], found["losses"]]) != record["state"]:
                raise ValueError("its arrays have another checksum")
        # as arrays of no particular device, like those of a run that was never interrupted
        leaves = [_like(value, leaf) for value, leaf in zip(found["leaves"], leaves, strict=True)]
        return jax.tree.unflatten(tree, leaves), np.asarray(found["losses"])

    def _compare(self, record: dict[str, Any], step: int) -> None:
        """Refuse a record of another run."""
        if record["format"] != FORMAT:
            raise ValueError(
                f"{self.folder} was written by another version of cdelta (format "
                f"{record['format']}, this one reads {FORMAT}); give another folder"
            )
        ours, theirs = self.identity | self.seen(step), record["identity"]
        same = record["versions"] == self.versions
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            if name.startswith(PROGRAM) and not same:  # other versions write the same otherwise
                continue
            if name not in ours or name not in theirs or not _agree(theirs[name], ours[name]):
                raise ValueError(
                    f"{self.folder} holds another run: its {name} is {theirs.get(name, 'absent')}, "
                    f"ours is {ours.get(name, 'absent')}; give another folder, or delete this one"
                )
        if not same:
            warnings.warn(
                f"{self.folder} was written with {record['versions']}, this is {self.versions}: "
                "that objective and optimizer are the same could not be checked",
                stacklevel=5,
            )


@contextlib.contextmanager
def _damage() -> Any:
    """Whatever goes wrong while a checkpoint is read is damage: its readers raise many kinds."""
    try:
        yield
    except Exception as error:
        why = str(error).splitlines()
        raise Damaged(f"{type(error).__name__}: {why[0] if why else ''}") from error


def _as_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _like(value: np.ndarray, leaf: Any) -> jax.Array:
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.array(value), impl=jax.random.key_impl(leaf))
    return jnp.array(value, leaf.dtype)


def _digest(arrays: list[Any]) -> str:
    digest = hashlib.sha256()
    for array in map(np.ascontiguousarray, arrays):
        digest.update(f"{array.shape} {array.dtype} ".encode() + array.tobytes())
    return digest.hexdigest()


def _digest_of_json(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
