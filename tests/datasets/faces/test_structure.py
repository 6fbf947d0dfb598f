"""The graph of the attributes."""

import jax.numpy as jnp
import numpy as np
import pytest

from cdelta.datasets import faces
from tests.datasets.faces.common import CHEEKS, MAKEUP, NOSE, A


@pytest.mark.parametrize(
    ("graph", "correlation", "given_makeup"),
    [
        ("common_cause", 0.5**2, 0.0),
        ("mediator", 0.5**2, 0.0),
        # -ab / sqrt((1 - a²)(1 - b²)) for standardised effects
        ("collider", 0.0, -(0.5**2) / (1 - 0.5**2)),
        ("independent", 0.0, 0.0),
    ],
)
def test_graphs_have_the_correlations_that_their_paths_give(graph, correlation, given_makeup):
    cov = np.asarray(faces.model(graph, 0.5).cov)
    np.testing.assert_allclose(np.diag(cov), 1, rtol=0, atol=1e-14)
    np.testing.assert_allclose(cov[CHEEKS, NOSE], correlation, rtol=0, atol=1e-14)
    precision = np.linalg.inv(cov)
    held = -precision[CHEEKS, NOSE] / np.sqrt(precision[CHEEKS, CHEEKS] * precision[NOSE, NOSE])
    np.testing.assert_allclose(held, given_makeup, rtol=0, atol=1e-14)
    others = [i for i in range(A) if i not in (MAKEUP, CHEEKS, NOSE)]
    np.testing.assert_array_equal(cov[np.ix_(others, others)], np.eye(A - 3))
    assert not cov[np.ix_(others, [MAKEUP, CHEEKS, NOSE])].any()


def test_a_graph_of_ones_own():
    edges = {
        ("Young", "Smiling"): 0.5,
        ("Smiling", "Narrow_Eyes"): -0.8,
        ("Young", "Narrow_Eyes"): 0.3,
    }
    cov = faces.model(edges).cov
    young, smiling, narrow = (
        faces.ATTRIBUTES.index(n) for n in ("Young", "Smiling", "Narrow_Eyes")
    )
    np.testing.assert_allclose(jnp.diag(cov), 1, rtol=0, atol=1e-14)
    np.testing.assert_allclose(cov[young, smiling], 0.5, rtol=0, atol=1e-14)
    np.testing.assert_allclose(cov[young, narrow], 0.3 - 0.8 * 0.5, rtol=0, atol=1e-14)
    np.testing.assert_allclose(cov[smiling, narrow], -0.8 + 0.3 * 0.5, rtol=0, atol=1e-14)


def test_variances_are_one_where_causes_depend_on_each_other_through_others():
    edges = {
        ("Young", "Smiling"): 0.5,
        ("Smiling", "Narrow_Eyes"): -0.8,
        ("Young", "Chubby"): 0.6,
        ("Narrow_Eyes", "Chubby"): 0.5,
    }
    np.testing.assert_allclose(jnp.diag(faces.model(edges).cov), 1, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("graph", "strength", "message"),
    [
        ("chain", 0.6, "graph must be one of common_cause, mediator, collider, independent"),
        ({("Young", "Hats"): 0.5}, 0.6, "got 'Hats'"),
        ({("Young", "Bangs"): 0.5, ("Bangs", "Young"): 0.5}, 0.6, "acyclic"),
        ("collider", 0.75, r"effects on Heavy_Makeup must explain a variance below 1, got 1\.1"),
        ("common_cause", 1.0, "below 1, got 1"),
    ],
)
def test_graphs_refused(unchecked, graph, strength, message):
    with pytest.raises(ValueError, match=message):
        faces.model(graph, strength)
