"""A graph in any of the forms that people have, as a matrix of parents: ``[i, j]`` is true where j
is a cause of i."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cdelta._features import Labels, listed
from cdelta.causal.acyclic import causal_order

_FORMS = (
    "a square matrix, true at [i, j] where j is a cause of i; a data frame of that kind, whose "
    "index and columns name the features; pairs [(cause, effect), ...] of names; a mapping from "
    "features to their causes; or a networkx.DiGraph, arrows from causes"
)


class Arrows(NamedTuple):
    """A graph that names its features: those, in its order, and (cause, effect) of every arrow."""

    features: list[Any]
    arrows: list[tuple[Any, Any]]


def read(graph: Any, weighted: bool = False) -> Arrows | np.ndarray:
    """What a graph says by name, or its truth values ``[n, n]`` where it is a plain matrix.

    ``weighted``: whether its numbers may be others than 0 and 1; what is not 0 is an arrow. Raises
    ValueError for what is no graph, for an undirected one and for NaN.
    """
    if hasattr(graph, "edges") and hasattr(graph, "nodes"):  # networkx's, not imported
        if not getattr(graph, "is_directed", lambda: True)():
            raise ValueError(
                "graph must be directed: a networkx.DiGraph, arrows from causes to effects, got "
                f"{type(graph).__name__}"
            )
        return Arrows(list(graph.nodes), [tuple(edge[:2]) for edge in graph.edges])
    if isinstance(graph, Mapping):
        pairs = [(cause, effect) for effect in graph for cause in _causes(effect, graph[effect])]
        return Arrows(list(dict.fromkeys([*graph, *(cause for cause, _ in pairs)])), pairs)
    if _is_frame(graph):
        rows, columns = _labels("graph", graph)
        places = np.argwhere(_matrix(graph.to_numpy(), weighted))
        return Arrows(columns, [(columns[j], rows[i]) for i, j in places.tolist()])
    if _are_pairs(graph):
        pairs = [tuple(pair) for pair in graph]
        return Arrows(list(dict.fromkeys(feature for pair in pairs for feature in pair)), pairs)
    return _matrix(graph, weighted)


def parents(graph: Any, labels: Labels) -> np.ndarray:
    """The matrix of a graph of known features. Raises ValueError for a graph of others, or with a
    cycle, and as :func:`read`, which takes weights here."""
    n, found = labels.n, read(graph, weighted=True)
    if isinstance(found, np.ndarray):
        if len(found) != n:
            raise ValueError(
                f"graph must be [{n}, {n}], one row and one column for each feature, got "
                f"{list(found.shape)}"
            )
        matrix = found
    else:
        matrix = np.zeros((n, n), bool)
        for feature in found.features:
            labels.index("graph", feature)
        for cause, effect in found.arrows:
            matrix[labels.index("graph", effect), labels.index("graph", cause)] = True
    return acyclic(matrix, labels.shown(range(n)))


def discovered(graph: Any, names: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """The matrix of a graph that brings its features along, and their names (none: they go by
    index), in the order of ``names`` or of their first appearance."""
    if names is not None:
        names = tuple(names)
        bad = [name for name in names if not isinstance(name, str)]
        if bad or len(set(names)) < len(names):
            raise ValueError(f"names must be different strings, got {names}")
    read_ = read(graph)
    if isinstance(read_, np.ndarray):
        if names is not None and len(names) != len(read_):
            raise ValueError(f"names must be {len(read_)}, one a feature, got {len(names)}")
        return acyclic(read_, names), names or ()
    found, numbered = read_.features, False
    if found and all(isinstance(feature, (int, np.integer)) for feature in found):
        if sorted(found) != list(range(len(found))):
            raise ValueError(f"graph must have features 0, …, n - 1 or names, got {found}")
        found, numbered = list(range(len(found))), True
    if names is None and not numbered:
        names = tuple(found)
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"graph must name features by strings, got {found}")
    known = found if numbered else list(names)
    unknown = [feature for feature in found if feature not in known]
    if unknown or (numbered and names is not None and len(names) != len(found)):
        raise ValueError(f"names must hold every feature of the graph, {found}, got {names}")
    matrix = np.zeros((len(known), len(known)), bool)
    for cause, effect in read_.arrows:
        matrix[known.index(effect), known.index(cause)] = True
    return acyclic(matrix, names), names or ()


def acyclic(matrix: np.ndarray, shown: Sequence[Any] | None = None) -> np.ndarray:
    """The same matrix. Raises ValueError for none, a feature among its own causes, or a cycle,
    named as ``shown``."""
    if not len(matrix):
        raise ValueError("graph must have at least one feature, got none")
    own = np.flatnonzero(matrix.diagonal()).tolist()
    if own:
        own = own if shown is None else [shown[i] for i in own]
        raise ValueError(f"graph must be acyclic, got a feature among its own causes: {own}")
    causal_order(matrix, "graph", shown)
    return matrix


def aligned(name: str, matrix: Any) -> Any:
    """A data frame as a matrix, its rows in the order of its columns, by their names; anything else
    as it is."""
    if not _is_frame(matrix):
        return matrix
    rows, columns = _labels(name, matrix)
    return matrix.to_numpy()[[rows.index(column) for column in columns]]


def _is_frame(graph: Any) -> bool:
    return hasattr(graph, "columns") and hasattr(graph, "to_numpy")  # pandas' or another's


def _labels(name: str, frame: Any) -> tuple[list, list]:
    """What a data frame calls its rows and its columns; where it has no index, both alike."""
    columns = list(frame.columns)
    rows = list(getattr(frame, "index", columns))
    if len(set(columns)) < len(columns) or set(rows) != set(columns) or len(rows) != len(columns):
        raise ValueError(
            f"{name} must be a data frame whose index and columns name the same features, each "
            f"once, got index {rows} and columns {columns}; where the rows come as the columns do: "
            f"{name}.set_axis({name}.columns)"
        )
    return rows, columns


def _causes(effect: Any, causes: Any) -> list:
    wrong = isinstance(causes, Mapping) or not isinstance(causes, str | Iterable | int | np.integer)
    if wrong or isinstance(causes, bool):
        hint = ": networkx's adjacency goes from causes, give the DiGraph"
        raise ValueError(
            f"graph[{effect!r}] must be a feature or several, its causes ([] where it has none), "
            f"got {causes!r}{hint if isinstance(causes, Mapping) else ''}"
        )
    return listed(f"graph[{effect!r}]", causes)


def _are_pairs(graph: Any) -> bool:
    return (
        isinstance(graph, Sequence)
        and len(graph) > 0
        and all(
            isinstance(pair, Sequence)
            and not isinstance(pair, str)
            and len(pair) == 2
            and all(isinstance(name, str) for name in pair)
            for pair in graph
        )
    )


def _matrix(graph: Any, weighted: bool) -> np.ndarray:
    try:
        given = np.asarray(graph)
        numbers = given.astype(float)
    except (TypeError, ValueError) as error:  # rows of different lengths, or no numbers
        raise ValueError(f"graph must be {_FORMS}; got {_short(graph)}") from error
    if given.dtype.kind not in "biufO" or given.ndim == 0:
        raise ValueError(f"graph must be {_FORMS}; got {_short(graph)}")
    if given.ndim != 2 or given.shape[0] != given.shape[1] or not given.size:
        raise ValueError(f"graph must be square [n, n] with n >= 1, got shape {given.shape}")
    if np.isnan(numbers).any():
        place = np.argwhere(np.isnan(numbers))[0].tolist()
        raise ValueError(f"graph must be true or false everywhere, got NaN (or none) at {place}")
    if not weighted and not np.isin(numbers, (0, 1)).all():
        raise ValueError("graph must hold truth values, or 0 and 1; got other numbers")
    return numbers != 0


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
