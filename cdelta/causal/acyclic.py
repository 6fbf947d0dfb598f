"""Directed graphs in which no effect leads back to its cause: their order, or the cycle that
forbids one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Shaped


def causal_order(
    weights: Shaped[ArrayLike, "n n"],
    name: str = "weights",
    shown: Sequence[Any] | None = None,
) -> tuple[int, ...]:
    """The features of a graph from first cause to last effect, ``weights[i, j] != 0`` meaning that
    j acts on i; of a data frame the features are its columns, and its rows are found by name.

    Takes away, again and again, the first feature whose causes are all gone. Raises ValueError
    naming a cycle, of features as they are ``shown``, and for what is not square.
    """
    from cdelta.causal import _graph  # which uses this function

    weights = np.asarray(_graph.aligned(name, weights))
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1]:
        raise ValueError(f"{name} must be square [n, n], got shape {weights.shape}")
    left, order = list(range(len(weights))), []
    while left:
        free = [i for i in left if not weights[i, left].any()]
        if not free:
            cycle = _cycle(weights, left)
            named = cycle if shown is None else [shown[i] for i in cycle]
            raise ValueError(f"{name} must be acyclic, got a cycle among features {named}")
        order.append(free[0])
        left.remove(free[0])
    return tuple(order)


def _cycle(weights: np.ndarray, left: list[int]) -> list[int]:
    """One cycle, cause before effect: each feature left has a cause that is left, so going back
    must meet itself."""
    path = [left[0]]
    while path.count(path[-1]) == 1:
        path.append(next(j for j in left if weights[path[-1], j]))
    return path[path.index(path[-1]) : -1][::-1]
