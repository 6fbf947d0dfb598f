"""Several trainings: each with rows of its own, and two errors, of the recipe and of these."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdelta import ensemble
from cdelta.dependence import sample_moment
from cdelta.flow import Flow
from cdelta.ledger import across

RNG = np.random.default_rng(0)


def scaled(factor, x, y):
    return {"sum": factor * x + y, "product": (x * y).sum()}


@pytest.mark.parametrize("batch", [1, 3, 7, 8, 20])
def test_each_row_is_what_the_function_says_of_it(batch):
    """Whatever the batch: divisors of the number of rows, others, and more than there are."""
    x, y = RNG.normal(size=(2, 7, 4)).astype(np.float32)
    found = ensemble.each(lambda x, y: scaled(2.0, x, y), x, y, batch=batch)
    np.testing.assert_allclose(found["sum"], 2 * x + y, rtol=1e-6)
    np.testing.assert_allclose(found["product"], (x * y).sum(1), rtol=1e-5)


def grown(rate, t, x):
    return rate * x


def test_a_flow_is_compiled_once_for_all_trainings():
    rates = map(jnp.float32, (0, 1))
    flows = [Flow(jax.tree_util.Partial(grown, rate), "euler", 2) for rate in rates]
    x, compiled = np.ones((4, 2), np.float32), []
    for flow, expected in zip(flows, (1, 1.5**2), strict=True):
        np.testing.assert_allclose(ensemble.each(flow, x), expected)
        compiled.append(ensemble._each._cache_size())
    assert compiled[0] == compiled[1]


def test_trainings_share_the_rows_in_their_order():
    x, y = RNG.normal(size=(2, 7, 4)).astype(np.float32)
    factors = [jnp.float32(1), jnp.float32(10), jnp.float32(100)]
    found = ensemble.shared(scaled, factors, x, y, batch=2)
    expected = np.array([1, 1, 1, 10, 10, 100, 100])[:, None] * x + y
    np.testing.assert_allclose(found["sum"], expected, rtol=1e-5)
    assert isinstance(found["sum"], np.ndarray) and found["product"].shape == (7,)
    rows = ensemble.shares(7, 3)
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(7))
    assert [len(share) for share in rows] == [3, 2, 2]


def test_what_is_refused():
    with pytest.raises(ValueError, match="equally many rows, got \\[3, 2\\]"):
        ensemble.each(jnp.add, np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="rows must be arrays"):
        ensemble.each(jnp.ones)
    with pytest.raises(ValueError, match="batch must be"):
        ensemble.each(jnp.sin, np.ones(3), batch=0)
    with pytest.raises(ValueError, match="a row for each of 4 trainings, got 3"):
        ensemble.shared(jnp.multiply, [1.0] * 4, np.ones(3))
    with pytest.raises(ValueError, match="parts must be the moment of each"):
        ensemble.Moments([])


def first(matrix):
    return matrix[0, 0]


def test_an_estimate_knows_how_far_trainings_differ_and_a_mean_does_not():
    samples = RNG.normal(size=(300, 2)) * np.repeat([1.0, 2.0, 3.0], 100)[:, None]
    shares = ensemble.shares(300, 3)
    found = ensemble.Moments.of_samples(samples, shares)
    parts = [sample_moment(samples[share]).estimate(first) for share in shares]
    values, errors = np.array(parts).T
    value, error = ensemble.Moments(found.parts).estimate(first)
    assert (value, error) == across(values, errors)
    mean, own = found.mean(first)
    assert mean == pytest.approx(value) and own == pytest.approx(np.sqrt((errors**2).sum()) / 3)
    assert error > 4 * own
    # of all samples together the value, and the error that is larger
    whole = sample_moment(samples).estimate(first)
    assert found.estimate(first) == (pytest.approx(float(whole[0])), error)
    alike = ensemble.Moments.of_samples(RNG.normal(size=(300, 2)), shares)
    narrow = ensemble.Moments([alike.parts[0]] * 3, sample_moment(samples[:20]))
    assert narrow.estimate(first)[1] == pytest.approx(float(narrow.whole.estimate(first)[1]))
    matrix, stderr = found.mean(np.asarray)
    assert matrix.shape == stderr.shape == (2, 2)
    np.testing.assert_allclose(ensemble.Moments(found.parts).matrix, matrix)
    np.testing.assert_array_equal(found.matrix, found.whole.matrix)
    counts = [moment.effective_samples for moment in found.parts]
    assert found.effective_samples == pytest.approx(sum(counts))


def test_an_identity_that_holds_training_by_training_is_tested_with_the_means():
    """Two estimates of each training's own variance: their difference over its error is a standard
    normal variable, although the trainings have variances from 1 to 100."""
    rng = np.random.default_rng(0)
    scales, shares, z = np.repeat([1.0, 3.0, 10.0], 40)[:, None], ensemble.shares(120, 3), []
    for _ in range(100):
        pair = [
            ensemble.Moments.of_samples(rng.normal(size=(120, 1)) * scales, shares) for _ in "ab"
        ]
        (a, a_error), (b, b_error) = (moments.mean(first) for moments in pair)
        z.append((a - b) / np.hypot(a_error, b_error))
    assert abs(np.mean(z)) < 4 / np.sqrt(100) and 0.8 < np.std(z) < 1.3
