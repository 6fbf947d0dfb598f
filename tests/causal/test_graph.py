"""A graph in every form that people have: the same arrows, whatever the order of its rows."""

import itertools

import jax
import jax.numpy as jnp
import networkx
import numpy as np
import pandas
import pytest

import cdelta
from cdelta._features import Labels
from cdelta.causal import SCM, CausalFlow, LinearSCM, _graph, find_order

NAMES = ("a", "b", "c")
KEY = jax.random.key(0)
MATRIX = np.zeros((3, 3), bool)  # a → b → c
MATRIX[1, 0] = MATRIX[2, 1] = True
FRAME = pandas.DataFrame(MATRIX.astype(int), index=list(NAMES), columns=list(NAMES))
ARROWS = [("a", "b"), ("b", "c")]


def shuffled():
    for rows, columns in itertools.product(itertools.permutations(NAMES), repeat=2):
        yield FRAME.loc[list(rows), list(columns)]


FORMS = {
    "matrix": MATRIX,
    "lists": MATRIX.astype(int).tolist(),
    "bytes": MATRIX.astype(np.uint8),
    "causes": {"b": "a", "c": ["b"]},
    "arrays of causes": {"b": np.array(["a"]), "c": pandas.Index(["b"])},
    "pairs": ARROWS,
    "networkx": networkx.DiGraph(ARROWS),
    "several arrows": networkx.MultiDiGraph([*ARROWS, ("a", "b")]),
}


@pytest.mark.parametrize("name", FORMS)
def test_graphs_of_any_form_are_one(name):
    np.testing.assert_array_equal(_graph.parents(FORMS[name], Labels(3, NAMES)), MATRIX)
    np.testing.assert_array_equal(_graph.discovered(FORMS[name], NAMES)[0], MATRIX)


def test_a_data_frame_is_read_by_name(unchecked):
    """Rows and columns in any order, each in its own: by place 35 of the 36 say other arrows."""
    for frame in shuffled():
        np.testing.assert_array_equal(_graph.parents(frame, Labels(3, NAMES)), MATRIX)
        np.testing.assert_array_equal(CausalFlow(frame, NAMES).graph, MATRIX)
        own = CausalFlow(frame)
        assert own.names == tuple(frame.columns)
        arrows = [(own.names[j], own.names[i]) for i, j in np.argwhere(own.graph)]
        assert sorted(arrows) == ARROWS
    weights = 0.5 * FRAME.loc[["c", "a", "b"]]
    np.testing.assert_array_equal(LinearSCM(weights, np.ones(3)).weights, 0.5 * MATRIX)
    numbered = FRAME.set_axis([0, 1, 2]).set_axis([0, 1, 2], axis=1).loc[[2, 0, 1]]
    np.testing.assert_array_equal(_graph.parents(numbered, Labels(3)), MATRIX)
    np.testing.assert_array_equal(CausalFlow(numbered).graph, MATRIX)


def chain(x):
    return {"a": x[0], "b": x[0] + x[1], "c": x[0] + x[1] + x[2]}


def test_a_report_of_a_shuffled_frame_is_that_of_the_graph():
    frame = FRAME.loc[["b", "c", "a"], ["c", "a", "b"]]
    made, plain = (
        cdelta.report(chain, KEY, 3, graph=graph, budget=64) for graph in (frame, MATRIX)
    )
    assert list(made.moments) == list(plain.moments) and "do(b)" in made.moments
    np.testing.assert_array_equal(made.moments["do(b)"].matrix, plain.moments["do(b)"].matrix)
    # under do(b) of a constant a keeps its variance and c only its own noise
    np.testing.assert_allclose(
        made.moments["do(b)"].matrix, [[1, 0, 0], [0, 0, 0], [0, 0, 1]], rtol=0, atol=1e-12
    )


def test_features_in_pandas_containers_are_names(unchecked):
    labels = Labels(3, NAMES)
    assert labels.indices("order", pandas.Index(["c", "a"])) == (2, 0)
    assert labels.indices("order", pandas.Series(["c", "a"], index=[7, 8])) == (2, 0)
    assert labels.indices("held", pandas.Series([2, 0])) == (2, 0)
    found = cdelta.dependence.do_moment(chain, KEY, 3, 16, "c", pandas.Index(["b"]))
    by_name = cdelta.dependence.do_moment(chain, KEY, 3, 16, "c", "b")
    np.testing.assert_array_equal(found.matrix, by_name.matrix)
    with pytest.raises(
        ValueError, match=r"parents must be features, got a series of numbers under"
    ):
        cdelta.dependence.do_moment(chain, KEY, 3, 16, "c", FRAME.loc["c"])


def test_samples_in_a_data_frame_are_read_by_name(unchecked):
    """In the order of the columns a model of a → b would be fitted to b → a."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal(400)
    frame = pandas.DataFrame({"b": 2 * a + 0.1 * rng.standard_normal(400), "other": a, "a": a})
    flow = CausalFlow([("a", "b")], width=4, solver_steps=4)
    data = flow._data("x", frame)
    np.testing.assert_allclose(data, np.stack([a, frame["b"]], 1), rtol=1e-6)
    with pytest.raises(ValueError, match=r"x must have the features \['b'\], got \['a', 'c'\]"):
        flow._data("x", frame.set_axis(["c", "z", "a"], axis=1)[["a", "c"]])
    model = SCM({"a": lambda x, e: e, "b": lambda x, e: 2 * x["a"] + e})
    row = pandas.Series({"b": 5.0, "a": 1.0})
    np.testing.assert_allclose(model.noises(row), [1, 3])
    np.testing.assert_allclose(model.counterfactual(row, {"a": 2.0}), [2, 7])
    assert find_order(frame[["b", "a"]] + rng.standard_normal((400, 2)), KEY, waves=8).names == (
        "b",
        "a",
    )


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (
            FRAME.astype(float).replace(0, np.nan),
            r"true or false everywhere, got NaN .* at \[0, 0\]",
        ),
        ([[0, np.nan], [0, 0]], "got NaN"),
        (np.array([[False, None], [False, False]]), "got NaN"),
        (
            FRAME.set_axis([0, 1, 2]),
            r"index \[0, 1, 2\] and columns \['a', 'b', 'c'\]; where the rows",
        ),
        (FRAME.set_axis(["a", "a", "c"]), "name the same features, each once"),
        ([[0, 1], [0]], "a mapping from features to their causes; or a networkx.DiGraph.*; got"),
        (np.array([["0", "1"], ["0", "0"]]), "graph must be a square matrix"),
        ({"a": None}, r"graph\['a'\] must be a feature or several, its causes .*, got None"),
        ({"a": {"b": {}}}, "networkx's adjacency goes from causes"),
        ({"a": True}, r"graph\['a'\] must be a feature"),
        ({"b": FRAME.loc["b"]}, r"graph\['b'\] must be features, got a series of numbers"),
        (networkx.Graph(ARROWS), "graph must be directed: .*, got Graph"),
        ({"a": "a"}, r"a feature among its own causes: \['a'\]"),
        ({"a": "b", "b": "a"}, r"got a cycle among features \['\w', '\w'\]"),
        (3, "graph must be a square matrix"),
    ],
)
def test_what_is_no_graph_is_refused_wherever_one_is_taken(unchecked, graph, message):
    for take in (
        lambda: _graph.discovered(graph, None),
        lambda: _graph.parents(graph, Labels(3, NAMES)),
        lambda: CausalFlow(graph),
    ):
        with pytest.raises(ValueError, match=message):
            take()


def test_one_cause_may_be_given_alone():
    for causes in ({1: np.int64(0)}, {1: 0}, {1: [np.int32(0)]}):
        assert _graph.parents(causes, Labels(2)).tolist() == [[False, False], [True, False]]
    # a name of two letters is one feature, not two
    flow = CausalFlow({"b": "ab", "a": []})
    assert flow.names == ("b", "a", "ab") and flow.graph[0].tolist() == [False, False, True]
    weighted = _graph.parents([[0, 0], [-0.5, 0]], Labels(2))
    assert weighted.tolist() == [[False, False], [True, False]]
    with pytest.raises(ValueError, match="0 and 1"):
        CausalFlow([[0, 0], [-0.5, 0]])
    assert jnp.asarray(weighted).sum() == 1
