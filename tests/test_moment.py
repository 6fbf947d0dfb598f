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
