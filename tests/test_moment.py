"""The result of an estimator: what it refuses, what is left of it, and that it is a pytree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdelta.dependence import wiggle_moment
from tests.test_dependence import KEY, hermite


def test_a_map_that_does_not_depend_on_x0_says_so():
    moment = wiggle_moment(lambda x: jnp.stack([x[0], jnp.ones(()), x[1]]), KEY, (2,), 10)
    with pytest.raises(
        ValueError, match=r"correlation of features \[1\] is undefined.*does not depend on x0"
    ):
        _ = moment.correlation
    with pytest.raises(ValueError, match=r"features \[1\]"):
        _ = moment.correlation_stderr
    with pytest.raises(ValueError, match=r"features \[1\] cannot be held"):
        moment.partial(1)
    np.testing.assert_array_equal(moment.select([2, 0]).correlation, np.eye(2))
    np.testing.assert_array_equal(np.asarray(moment), np.diag([1.0, 0, 1]))


def test_a_moment_is_a_pytree_and_one_sample_has_no_error():
    moment = wiggle_moment(hermite, KEY, (4,), 20)
    twice = jax.tree.map(lambda leaf: leaf * 2, moment)
    np.testing.assert_allclose(twice.matrix, 2 * moment.matrix)
    assert np.isnan(wiggle_moment(hermite, KEY, (4,), 1).stderr).all()
    assert "replicates" not in repr(moment)


def test_selecting_features_keeps_which_are_held():
    """In the new numbers; and what is held later joins what was held before."""
    moment = wiggle_moment(hermite, KEY, (4,), 50).partial(1)
    for indices, held in (([2, 1], (1,)), ([1, 0], (0,)), ([0, 2], ())):
        chosen = moment.select(indices)
        assert chosen.held == held
        np.testing.assert_array_equal(chosen.matrix, moment.matrix[np.ix_(indices, indices)])
        undefined = [i in held for i in range(2)]
        np.testing.assert_array_equal(np.isnan(np.diag(chosen.correlation)), undefined)
        np.testing.assert_allclose(
            chosen.stderr, moment.stderr[np.ix_(indices, indices)], rtol=1e-12
        )
    assert moment.partial(0).held == (1, 0)


def test_errors_of_a_partial_moment_are_those_of_its_replicates():
    moment = wiggle_moment(hermite, KEY, (4,), 200)

    def regressed(matrix):  # entry 0, 0 with features 1 and 2 held, from the inverse
        return 1 / np.linalg.inv(matrix)[0, 0]

    value, stderr = moment.estimate(regressed)
    partial = moment.partial((1, 2))
    assert abs(partial.matrix[0, 0] / value - 1) < 1e-12
    assert abs(partial.stderr[0, 0] / stderr - 1) < 1e-9
