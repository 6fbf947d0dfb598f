"""What Python code reads besides its arguments, as a key that differs once that has changed.

``jax.jit`` knows a function by its identity, traces it once and never looks at it again; a closure,
a global or an attribute that changes afterwards would go unseen. The key of a function holds what
it can read: its code, defaults and closure, the globals that its code loads, the attributes of
objects and of the user's own classes and modules, and so on from there. Numbers, strings, buffers,
containers and small NumPy arrays count by value, all else by identity (or by its own ``==`` where
it is hashable). Installed packages are constant: the walk stops there, but follows what their
functions close over, since ``jax.vmap(v)`` reads what ``v`` reads.

The key holds references to what it names, so no identity is used twice.
"""

import argparse
import array
import collections
import dis
import functools
import hashlib
import os
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.tree_util import PyTreeDef

# bytes of a NumPy array beyond which it counts by identity: hashing takes a millisecond
LARGE = 2**20
MANY = 10_000  # objects beyond which the walk stops and the rest counts by identity

_PLAIN = {type(None), bool, int, str, bytes, type(...)}
_BARE = {float, complex, list, tuple, dict, set, frozenset, np.ndarray}  # without attributes
_Buffer = bytearray | array.array
_Container = list | tuple | set | frozenset | collections.deque
_NAMESPACES = (types.SimpleNamespace, argparse.Namespace)
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_LIBRARY = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib"))


class Held:
    """An object by identity, or by its own ``==`` where it is hashable."""

    __slots__ = ("_hash", "by_value", "value")

    def __init__(self, value: Any):
        self.value = value
        if isinstance(value, jax.Array):  # says slowly that it cannot be hashed
            self._hash, self.by_value = id(value), False
            return
        try:
            self._hash, self.by_value = hash(value), True
        except TypeError:
            self._hash, self.by_value = id(value), False

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Held) or self._hash != other._hash:
            return False
        if self.value is other.value:
            return True
        alike = self.by_value and other.by_value and type(self.value) is type(other.value)
        return alike and bool(self.value == other.value)


def key(*roots: Any) -> tuple:
    """The key of everything that can be read from the roots: equal while nothing has changed."""
    return tuple(token for token, _ in _walk(roots))


def objects(*roots: Any) -> list:
    """All objects that can be read from the roots."""
    return [value for _, value in _walk(roots)]


def _walk(roots: tuple) -> Iterator[tuple[Any, Any]]:
    """Every object within reach, once, with the token that stands for it (a worklist: Python's own
    stack would bound the depth)."""
    met: dict[int, int] = {}
    alive = []  # some objects are made on the way (bound methods): their ids must not be used again
    todo = list(roots)
    while todo:
        value = todo.pop()
        if type(value) in _PLAIN:
            yield (type(value), value), value
        elif id(value) in met:
            yield ("again", met[id(value)]), value
        elif len(met) >= MANY:
            yield Held(value), value
        else:
            met[id(value)] = len(met)
            alive.append(value)
            token, children = _look(value)
            todo.extend(children)
            yield (token, len(children)), value


def _look(value: Any) -> tuple[Any, list]:
    """The token of one object, and the objects that it leads to."""
    kind = type(value)
    if isinstance(value, jax.Array | types.ModuleType):
        return Held(value), []
    if isinstance(value, PyTreeDef):
        return _look_at_structure(value)
    if isinstance(value, types.FunctionType):
        return _look_at_function(value)
    if isinstance(value, types.MethodType):
        return kind, [value.__func__, value.__self__]
    if isinstance(value, property):
        return kind, [value.fget]
    if isinstance(value, functools.cached_property):
        return kind, [value.func]
    if isinstance(value, type):
        return _look_at_class(value)
    content = _content(value)
    if content is not None:
        token, children = content
        return token, children + _attributes(value)
    if not jax.tree_util.all_leaves([value]):
        leaves, structure = jax.tree.flatten(value)
        return kind, [structure, *leaves]
    return _look_at_instance(value)


def _content(value):
    """The token of an object that counts by what it holds, and that; None for any other object."""
    kind = type(value)
    if isinstance(value, float | complex):
        return (kind, repr(value)), []  # as text: NaN equals itself, and 0.0 is not -0.0
    if isinstance(value, np.generic):
        return (kind, value.tobytes()), []
    if isinstance(value, np.ndarray):
        return _look_at_array(value)
    if isinstance(value, _Buffer):
        return (kind, getattr(value, "typecode", ""), bytes(value)), []
    if isinstance(value, functools.partial):
        return kind, [value.func, value.args, value.keywords]
    if isinstance(value, Mapping | _Container):
        if len(value) > MANY:
            return Held(value), []
        items = value.items() if isinstance(value, Mapping) else [value]
        return kind, [part for parts in items for part in parts]
    return None


def _attributes(value):
    """What an object has besides its content: attributes, and a class of the user's own."""
    kind = type(value)
    if kind in _BARE:
        return []
    own = [kind, *_slots(value)] if _own_class(kind) else []
    state = getattr(value, "__dict__", None) if own or kind is functools.partial else None
    return [*own, state] if state else own


def _slots(value):
    return [
        getattr(value, name, None)
        for base in type(value).__mro__
        for name in (base.__dict__.get("__slots__") or ())
        if name != "__dict__"
    ]


def _look_at_array(values):
    if values.dtype.hasobject:
        return (np.ndarray, values.shape), values.ravel().tolist()
    if values.nbytes > LARGE:
        return Held(values), []
    digest = hashlib.blake2b(np.ascontiguousarray(values).tobytes()).digest()
    return (np.ndarray, values.dtype, values.shape, digest), []


def _look_at_function(function):
    """Its cells and, in the user's own code, defaults, attributes and the globals that it names."""
    cells = [_contents(cell) for cell in function.__closure__ or ()]
    code = function.__code__
    if _installed(code.co_filename):
        return Held(function), cells
    (names, members), scope = _names(code), function.__globals__
    known = tuple(name for name in names if name in scope)
    read = [part for name in known for part in _opened(scope[name], members)]
    cells = [part for cell in cells for part in _opened(cell, members)]
    state = [function.__defaults__, function.__kwdefaults__, vars(function)]
    return (Held(function), code, known), [*cells, *read, *state]


def _contents(cell):
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


_GLOBALS, _MEMBERS = {"LOAD_GLOBAL", "LOAD_NAME"}, {"LOAD_ATTR", "LOAD_METHOD"}


@functools.lru_cache(4096)
def _names(code):
    """The names of globals and those of attributes that the code loads, also in the functions that
    it defines."""
    names, members = {}, {}
    for instruction in dis.get_instructions(code):
        if instruction.opname in _GLOBALS:
            names[instruction.argval] = None
        elif instruction.opname in _MEMBERS:
            members[instruction.argval] = None
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner_names, inner_members = _names(constant)
            names.update(dict.fromkeys(inner_names))
            members.update(dict.fromkeys(inner_members))
    return tuple(names), tuple(members)


def _opened(value, names, outer=()):
    """A module of the user's own with those of its members that are named; any other object as it
    is."""
    if not isinstance(value, types.ModuleType) or value in outer or not _own_module(value):
        return [value]
    named = [vars(value)[name] for name in names if name in vars(value)]
    return [value] + [part for one in named for part in _opened(one, names, (*outer, value))]


def _look_at_class(cls):
    """The methods and attributes of a class of the user's own, and of its bases."""
    if not _own_class(cls):
        return Held(cls), []
    names = [name for name in vars(cls) if not name.startswith("__") or callable(vars(cls)[name])]
    members = [getattr(cls, name, None) for name in names]
    return (Held(cls), tuple(names)), [*members, *cls.__bases__]


def _look_at_instance(value):
    """The attributes of an object of the user's own class; what any other object wraps."""
    state = getattr(value, "__dict__", None)
    if not _own_class(type(value)) and not isinstance(value, _NAMESPACES):
        return Held(value), [state["__wrapped__"]] if state and "__wrapped__" in state else []
    return Held(value), [type(value), state, *_slots(value)]


def _look_at_structure(structure):
    """The structure of a pytree: by its own ``==``, or by content where that cannot be hashed."""
    try:
        return (PyTreeDef, structure), list(_watched(structure))
    except TypeError:  # its hash is asked for first of all
        node = structure.node_data()
        children = structure.children()
        return (PyTreeDef, node is None), [*(node or ()), len(children), *children]


@functools.lru_cache(1024)
def _watched(structure):
    """What can change inside a structure that stays equal: code, and objects with state."""
    found, todo = {}, [structure]
    while todo:
        value = todo.pop()
        if isinstance(value, PyTreeDef):
            todo.extend([*(value.node_data() or ()), *value.children()])
        elif isinstance(value, Mapping):
            todo.extend(value.values())
        elif isinstance(value, _Container):
            todo.extend(value)
        elif not (isinstance(value, type) and not _own_class(value)) and hasattr(value, "__dict__"):
            found[id(value)] = value
    return tuple(found.values())


def _own_class(cls):
    module = sys.modules.get(cls.__module__)
    return module is None or _own_module(module)


def _own_module(module):
    file = getattr(module, "__file__", None)
    return module.__name__ not in sys.builtin_module_names if file is None else not _installed(file)


@functools.lru_cache(4096)
def _installed(file):
    return (
        file.startswith((_HERE, "<frozen", *_LIBRARY))
        or f"{os.sep}site-packages{os.sep}" in file
        or f"{os.sep}dist-packages{os.sep}" in file
    )
