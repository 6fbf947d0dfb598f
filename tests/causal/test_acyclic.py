"""Orders of graphs, and the cycles that forbid one."""

import jax.numpy as jnp
import numpy as np
import pandas
import pytest

from cdelta.causal import LinearSCM, causal_order
from tests.causal.examples import random_scm


def test_order_puts_causes_first():
    model = random_scm(3, 7)
    place = np.argsort(model.order)
    effects, causes = np.nonzero(model.weights)
    assert (place[causes] < place[effects]).all() and sorted(model.order) == list(range(7))
    assert LinearSCM(jnp.zeros((3, 3)), jnp.ones(3)).order == (0, 1, 2)


@pytest.mark.parametrize("kind", [bool, float])
def test_a_graph_is_true_or_not_zero_where_there_is_an_arrow(kind):
    graph = np.zeros((4, 4), kind)
    for cause, effect in ((3, 1), (1, 0), (0, 2)):
        graph[effect, cause] = 1
    assert causal_order(graph) == (3, 1, 0, 2)


def test_a_graph_may_be_lists_and_must_be_square(unchecked):
    assert causal_order([[0, 1, 0], [0, 0, 0], [0, 1, 0]]) == (1, 0, 2)
    frame = pandas.DataFrame([[1, 0], [0, 0]], index=["b", "a"], columns=["a", "b"])  # a -> b
    assert causal_order(frame) == (0, 1)
    for graph in ([[0, 1]], [0, 1]):
        with pytest.raises(ValueError, match=r"weights must be square \[n, n\], got shape"):
            causal_order(graph)


@pytest.mark.parametrize(
    ("arrows", "cycle"),
    [
        ([(0, 1), (1, 0)], {0, 1}),
        ([(0, 1), (1, 2), (2, 0)], {0, 1, 2}),
        ([(1, 1)], {1}),
        ([(3, 0), (0, 2), (2, 4), (4, 0), (1, 3)], {0, 2, 4}),  # the rest is no part of it
    ],
)
def test_a_cycle_is_named_cause_before_effect(arrows, cycle):
    graph = np.zeros((5, 5))
    for cause, effect in arrows:
        graph[effect, cause] = 1
    with pytest.raises(ValueError, match=r"acyclic, got a cycle among features \[") as error:
        causal_order(graph)
    named = [int(digit) for digit in str(error.value).split("[")[1].strip("]").split(",")]
    assert set(named) == cycle and len(named) == len(cycle)
    assert all((a, b) in arrows for a, b in zip(named, [*named[1:], named[0]], strict=True))
