"""Distances between sets of samples against closed forms and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.stats import linregress

from cdelta import quality

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def test_in_one_dimension_it_is_the_best_assignment():
    x, y = RNG.normal(size=(12, 1)), RNG.normal(2.0, 3.0, size=(8, 1))
    # 24 copies of each: the best assignment between equal numbers is the transport between unequal
    # ones
    a, b = np.repeat(x, 2, 0), np.repeat(y, 3, 0)
    cost = (a - b.T) ** 2
    best = np.sqrt(cost[linear_sum_assignment(cost)].mean())
    found = quality.sliced_wasserstein(x, y, KEY)
    assert abs(found.value - best) < 1e-12 and found.stderr < 1e-12


def test_of_a_shift():
    x, shift = RNG.normal(size=(50, 2, 3)), RNG.normal(size=(2, 3))
    found = quality.sliced_wasserstein(x, x + shift, KEY, directions=20_000)
    # E (θ·s)² = |s|²/d
    assert abs(found.value - np.linalg.norm(shift) / np.sqrt(6)) < 4 * found.stderr
    assert quality.sliced_wasserstein(x, x[::-1], KEY) == (0.0, 0.0)


def test_of_two_normals():
    x, y = RNG.normal(size=(200_000, 2)), 3 * RNG.normal(size=(150_000, 2))
    found = quality.sliced_wasserstein(x, y, KEY, directions=8)
    # W2(N(0,1), N(0,9)) = 3 - 1; the samples' own error is about 1/√n
    assert abs(found.value - 2) < 0.02


def test_value_and_error_are_those_of_the_slices():
    """Slice by slice: the mean square over directions, and the delta method for its root."""
    x, y = RNG.normal(size=(20, 3)), RNG.normal(1.0, 2.0, size=(20, 3))
    theta = np.asarray(jax.random.normal(KEY, (3, 16)))
    squares = np.array(
        [
            ((np.sort(x @ direction) - np.sort(y @ direction)) ** 2).mean()
            for direction in (theta / np.linalg.norm(theta, axis=0)).T
        ]
    )
    found = quality.sliced_wasserstein(x, y, KEY, directions=16)
    assert found.value == pytest.approx(np.sqrt(squares.mean()), rel=1e-12)
    stderr = squares.std(ddof=1) / 4 / (2 * found.value)
    assert found.stderr == pytest.approx(stderr, rel=1e-12)


def test_in_single_precision():
    x, y = (RNG.normal(size=(300, 28, 28)).astype(np.float32) for _ in range(2))
    single = quality.sliced_wasserstein(x, y, KEY)
    double = quality.sliced_wasserstein(x.astype(np.float64), y.astype(np.float64), KEY)
    assert abs(single.value - double.value) < 0.1 * double.value  # other directions are drawn
    assert single.stderr > 0


@pytest.mark.parametrize("batch", [3, 100])
def test_nearest_against_brute_force(batch):
    x, data = RNG.normal(size=(10, 4, 2)), RNG.normal(size=(30, 4, 2))
    distances = np.sqrt(((x[:, None] - data[None]) ** 2).sum((2, 3)))
    found = quality.nearest(x, data, batch)
    np.testing.assert_array_equal(found.indices, distances.argmin(1))
    np.testing.assert_allclose(found.distances, distances.min(1), rtol=1e-12)


def test_a_copy_is_its_own_neighbour_at_distance_zero():
    data = (1e3 + RNG.normal(size=(20, 50))).astype(np.float64)
    found = quality.nearest(data, data)
    np.testing.assert_array_equal(found.indices, np.arange(20))
    np.testing.assert_array_equal(found.distances, 0)


@pytest.mark.parametrize("offset", [100, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_neighbour_does_not_depend_on_where_zero_is(offset, dtype):
    """Data far from zero, and two clouds far apart: squares of a thousand in single precision
    would hide what is nearer than .1."""
    data = RNG.normal(size=(2500, 2)) + offset * np.arange(2500)[:, None] % (3 * offset)
    data = (offset + data).astype(dtype)
    x = data[::40] + RNG.normal(size=(63, 2)).astype(dtype) / 1000
    apart = np.sqrt(((x[:, None].astype(np.float64) - data) ** 2).sum(2))
    for samples, rows in ((x, data), (jnp.asarray(x), jnp.asarray(data))):
        found = quality.nearest(samples, rows, batch=50)
        np.testing.assert_array_equal(found.indices, apart.argmin(1))
        np.testing.assert_allclose(found.distances, apart.min(1), rtol=1e-12)
    y = (offset + RNG.normal(size=(400, 2))).astype(dtype)
    here = [(z.astype(np.float64) - offset).astype(dtype) for z in (data[:400], y)]
    there, value = (quality.sliced_wasserstein(*z, KEY).value for z in ((data[:400], y), here))
    assert there == pytest.approx(value, rel=20 * float(np.finfo(dtype).eps))


def test_double_precision_of_the_host_is_kept_where_that_of_jax_is_single():
    values = 1e8 + np.arange(4.0)
    before, after, truth = (1e6 + np.full((2, 3), part) for part in (0.0, 0.01, 0.02))
    with jax.enable_x64(False):
        found = quality.average(values)
        share = quality.change(before, after, truth).share
        errors = quality.pixel_error(before, truth)
    assert found.value == 1e8 + 1.5
    assert found.stderr == pytest.approx(3.182446305 / 2 * np.sqrt(5 / 3 / 4), rel=1e-7)
    np.testing.assert_allclose(share, 0.5, rtol=1e-7)
    np.testing.assert_allclose(errors, 0.01, rtol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_measured_in_single(dtype):
    """What is rounded are the samples, not weights of 1/n or distances."""
    x, y = (jnp.asarray(RNG.normal(size=(300, 20)), dtype) for _ in range(2))
    single = [z.astype(jnp.float32) for z in (x, y)]
    assert quality.sliced_wasserstein(x, y, KEY) == quality.sliced_wasserstein(*single, KEY)
    half, expected = quality.nearest(x, y), quality.nearest(*single)
    np.testing.assert_array_equal(half.distances, expected.distances)
    np.testing.assert_array_equal(half.indices, expected.indices)


def test_sets_of_two_dtypes_under_strict_promotion():
    x, y = RNG.normal(size=(30, 4)).astype(np.float32), RNG.normal(size=(20, 4))
    plain = quality.sliced_wasserstein(x, y, KEY), quality.nearest(x, y).distances
    with jax.numpy_dtype_promotion("strict"):
        strict = quality.sliced_wasserstein(x, y, KEY), quality.nearest(x, y).distances
    assert strict[0] == plain[0] and strict[1].dtype == np.float64
    np.testing.assert_array_equal(strict[1], plain[1])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: quality.sliced_wasserstein(np.ones((0, 2)), np.ones((3, 2)), KEY),
            "x must hold samples",
        ),
        (lambda: quality.sliced_wasserstein(np.ones((3, 2)), np.ones((3, 4)), KEY), "one shape"),
        (
            lambda: quality.sliced_wasserstein(np.ones((3, 2)), np.ones((3, 2)), KEY, 1),
            "directions must be at least 2",
        ),
        (
            lambda: quality.sliced_wasserstein(np.array([[np.nan]]), np.ones((3, 1)), KEY),
            "x must be finite",
        ),
        (lambda: quality.nearest(jnp.ones((2, 3)), jnp.ones((2, 4))), "one shape"),
        (lambda: quality.nearest(jnp.ones((2, 3)), jnp.ones(3)), "data must hold samples"),
        (
            lambda: quality.nearest(jnp.ones((2, 3)), jnp.ones((2, 3)), 0),
            "batch must be a positive",
        ),
        (lambda: quality.nearest(jnp.ones((2, 3)), jnp.ones((0, 3))), "data must hold samples"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_mean_and_its_error():
    found = quality.average(np.array([1.0, 2.0, 4.0, 5.0]))
    # the 97.5 % quantile of Student's law with three degrees of freedom is 3.1824
    assert found.value == 3
    assert found.stderr == pytest.approx(3.18245 / 2 * np.sqrt(10 / 3 / 4), rel=1e-5)
    many = np.arange(100.0)
    assert quality.average(many).stderr == pytest.approx(many.std(ddof=1) / 10)


@pytest.mark.parametrize("n", [3, 8, 30])
def test_twice_the_error_of_few_values_covers_95_percent(n):
    draws = RNG.normal(size=(4_000, n))
    means, errors = np.transpose([quality.average(x) for x in draws])
    covered = (abs(means) <= 2 * errors).mean()
    assert covered == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / 4_000))
    value, error = quality.jackknife(lambda w: draws[0] @ w / w.sum(), n)
    assert (value, error) == pytest.approx(quality.average(draws[0]))


def test_leaving_one_out_gives_the_error_of_a_mean_and_of_a_ratio():
    x, y = RNG.normal(size=(2, 50)) + 5
    value, stderr = quality.jackknife(lambda w: np.array([x @ w, y @ w]) / w.sum(), 50)
    np.testing.assert_allclose(value, [x.mean(), y.mean()])
    np.testing.assert_allclose(stderr, [quality.average(x).stderr, quality.average(y).stderr])
    # of a ratio: how far it scatters
    draws = RNG.normal(size=(400, 2, 50)) + 5
    found = [quality.jackknife(lambda w, p=p: p[0] @ w / (p[1] @ w), 50) for p in draws]
    values, stderrs = np.transpose(found)
    assert abs(stderrs.mean() / values.std() - 1) < 0.1
    with pytest.raises(ValueError, match="n must be two"):
        quality.jackknife(np.sum, 1)


def test_slopes_and_their_errors():
    """Those of least squares; over many samples they are right, and err as they are said to."""
    true = np.array([[1.0, -2.0], [0.5, 0.0], [3.0, 1.0]])
    scores = []
    for _ in range(300):
        x = RNG.normal(size=(40, 2)) @ [[1.0, 0.4], [0.0, 1.0]] + 3
        y = 7 + x @ true.T + RNG.normal(size=(40, 3)) * [0.1, 1.0, 2.0]
        found = quality.regression(x, y)
        scores.append((found.value - true) / found.stderr)
    design = np.column_stack([np.ones(40), x])
    np.testing.assert_allclose(found.value.T, np.linalg.lstsq(design, y)[0][1:], rtol=1e-10)
    assert np.abs(np.mean(scores, 0)).max() < 0.25
    # Student's t of 37 degrees of freedom
    np.testing.assert_allclose(np.std(scores, 0), np.sqrt(37 / 35), rtol=0, atol=0.15)


def test_errors_of_slopes_are_those_of_the_textbook():
    """Few rows and causes that lean on one another: the rest over n - p - 1, and the diagonal of
    the inverse of the normal equations with their constant; of one cause by SciPy too."""
    x = RNG.normal(size=(7, 3)) @ [[1.0, 0.9, -2.0], [0.0, 0.3, 1.0], [0.0, 0.0, 5.0]] + 20
    y = RNG.normal(size=(7, 2))
    found = quality.regression(x, y)
    design = np.column_stack([np.ones(7), x])
    inverse = np.linalg.inv(design.T @ design)
    slopes = inverse @ design.T @ y
    variance = ((y - design @ slopes) ** 2).sum(0) / (7 - 3 - 1)
    np.testing.assert_allclose(found.value, slopes[1:].T, rtol=1e-7)
    expected = np.sqrt(np.outer(variance, np.diag(inverse)[1:]))
    np.testing.assert_allclose(found.stderr, expected, rtol=1e-7)
    one, theirs = quality.regression(x[:, :1], y[:, :1]), linregress(x[:, 0], y[:, 0])
    assert (one.value, one.stderr) == pytest.approx((theirs.slope, theirs.stderr), rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(40, 41), (3, 3)])
def test_too_few_rows_for_slopes_are_refused(n, m, unchecked):
    with pytest.raises(ValueError, match=f"equally many rows, more than 3, got {n} and {m}"):
        quality.regression(RNG.normal(size=(n, 2)), RNG.normal(size=(m, 1)))


@pytest.mark.parametrize(
    ("columns", "bad"),
    [
        (lambda x: [x[0], x[1], np.full(50, 0.1)], r"\[2\]"),
        (lambda x: [x[0], 3 * x[0] + 1e3, x[1]], r"\[1\]"),
        (lambda x: [x[0], x[1], x[0] - 2 * x[1], x[2], x[2]], r"\[2, 4\]"),
    ],
    ids=["constant", "of one other", "of two others"],
)
def test_columns_that_have_no_slope_are_named(columns, bad, unchecked):
    x, y = RNG.normal(size=(3, 50)), RNG.normal(size=(50, 1))
    with pytest.raises(ValueError, match=f"neither constant nor linear functions.*but {bad} are"):
        quality.regression(np.column_stack(columns(x)), y)


def test_slopes_of_columns_far_apart_in_unit_and_near_each_other():
    x, y = RNG.normal(size=(2, 50)), RNG.normal(size=(50, 1))
    design = np.column_stack([x[0], x[0] + 1e-6 * x[1]])  # near, and yet not the same
    found = quality.regression(design * [1e12, 1e-12] + [0, 1e-9], y).value * [1e12, 1e-12]
    expected = np.linalg.lstsq(np.column_stack([np.ones(50), design]), y)[0][1:].T
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_pixels_as_a_share_of_their_span():
    x = RNG.uniform(-1, 1, size=(3, 4, 5, 2))
    y = x.copy()
    y[1] += 0.1
    y[2, 0, 0, 0] -= 0.4
    np.testing.assert_allclose(
        quality.pixel_error(x, y), [0, 0.05, 0.4 / 40 / 2], rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(quality.pixel_error(x, y, 1.0)[1], 0.1, rtol=0, atol=1e-12)


def test_a_change_is_its_share_and_the_rest():
    before, truth = RNG.normal(size=(2, 4, 5, 3))
    wanted = (truth - before).reshape(4, -1)
    aside = RNG.normal(size=wanted.shape)
    aside -= ((aside * wanted).sum(1) / (wanted**2).sum(1))[:, None] * wanted
    s, size = np.array([0.0, 0.4, 1.0, -2.0]), np.array([0.0, 0.0, 0.7, 1.5])
    lengths = np.linalg.norm(wanted, axis=1) / np.linalg.norm(aside, axis=1)
    moved = s[:, None] * wanted + (size * lengths)[:, None] * aside
    after = before + moved.reshape(before.shape)
    found = quality.change(before, after, truth)
    np.testing.assert_allclose(found.share, s, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.stray, size, atol=1e-7)
    off = np.linalg.norm((after - truth).reshape(4, -1), axis=1) / np.linalg.norm(wanted, axis=1)
    np.testing.assert_allclose(np.hypot(found.share - 1, found.stray), off, rtol=0, atol=1e-12)


def test_composition_counts_what_a_cycle_adds():
    x = RNG.uniform(size=(3, 4, 4))
    np.testing.assert_allclose(quality.composition(lambda x: x, x, 10), 0)
    once = quality.composition(lambda x: x + 0.02, x)
    np.testing.assert_allclose(once, 255 * 0.01, rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        quality.composition(lambda x: x + 0.02, x, 10), once, rtol=0, atol=1e-9
    )
    # what cancels is not counted, what is there once is shared out
    np.testing.assert_allclose(quality.composition(lambda x: -x, x, 2), 0)
    to_zero = quality.composition(lambda x: 0 * x, x, 4, span=1.0)
    np.testing.assert_allclose(to_zero, 255 / 4 * x.mean((1, 2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quality.average(np.ones(1)), "values must be two or more"),
        (lambda: quality.average(np.array([1.0, np.nan])), "values must be finite"),
        (lambda: quality.pixel_error(np.ones((2, 3)), np.ones((3, 3))), "equally many"),
        (lambda: quality.pixel_error(np.ones((2, 3)), np.ones((2, 3)), 0.0), "span must be"),
        (lambda: quality.composition(lambda x: x, np.ones((2, 3)), 0), "cycles must be"),
        (lambda: quality.change(*np.ones((3, 2, 3))), "truth must differ from before, but image 0"),
        (lambda: quality.change(np.ones((2, 3)), np.ones((1, 3)), np.zeros((2, 3))), "equally"),
        (lambda: quality.change(np.ones((2, 3)), np.ones((2, 4)), np.zeros((2, 3))), "one shape"),
    ],
)
def test_refusals_of_errors_of_images(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_median_has_the_error_that_repeated_draws_have():
    draws = RNG.exponential(size=(200, 300))
    found = np.array([quality.median(row) for row in draws])
    np.testing.assert_allclose(found[:, 0], np.median(draws, axis=1))
    assert 0.85 < found[:, 1].mean() / found[:, 0].std() < 1.15
    # of a large sample of a law with density f: 1 / (2 f √n), and f = 1/2 at the median of this one
    assert found[:, 1].mean() == pytest.approx(1 / np.sqrt(300), rel=0.15)


def test_concentration_counts_equal_samples_and_finds_the_largest():
    assert quality.concentration(np.full(200, 3.0)) == (200, pytest.approx(0.01))
    # k equal ones and nothing else
    assert quality.concentration(np.repeat([2.0, 0.0], [5, 295]))[0] == 5
    weights = RNG.permutation(np.repeat([1.0, 100.0], [297, 3]))
    effective, top = quality.concentration(weights)
    assert effective == pytest.approx(597**2 / (297 + 30_000))
    assert top == pytest.approx(300 / 597)
    assert quality.concentration(weights, 0.5).top == pytest.approx((300 + 147) / 597)
    assert quality.concentration(np.arange(5.0), 1e-6).top == 0.4  # one at least


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("weights", "top", "message"),
    [
        ([1.0], 0.01, "weights must be two or more"),
        ([1.0, -1.0], 0.01, "weights must not be negative"),
        ([0.0, 0.0], 0.01, "their sum not 0"),
        ([1.0, np.nan], 0.01, "weights"),
        ([1.0, 2.0], 0.0, "top must be a share"),
        ([1.0, 2.0], 1.5, "top must be a share"),
    ],
)
def test_weights_that_say_nothing_are_refused(weights, top, message):
    with pytest.raises(ValueError, match=message):
        quality.concentration(np.array(weights), top)


def test_the_share_explained_is_the_squared_correlation_with_the_fit(unchecked):
    """NumPy's least squares, more columns than fit into one block, one of them constant, and causes
    of which one is the sum of two others; the null is a cause left out."""
    x = RNG.normal(size=(50, 3)) + 7
    y = (x @ RNG.uniform(1, 2, (3, 1100)) + RNG.normal(size=(50, 1100))).astype(np.float32)
    y[:, 5] = 2
    found = quality.explained(np.c_[x, x[:, 0] + x[:, 1]], y)
    for i in (0, 700, 1099):
        fitted = np.c_[np.ones(50), x] @ np.linalg.lstsq(np.c_[np.ones(50), x], y[:, i])[0]
        assert found[i] == pytest.approx(np.corrcoef(fitted, y[:, i])[0, 1] ** 2, rel=1e-6)
        assert quality.explained(x[:, ::2], y)[i] < found[i] - 1e-3
    assert found[5] == 0
    np.testing.assert_allclose(quality.explained(x, x @ np.ones((3, 1))), 1, rtol=1e-12)
    for n, m in ((1, 1), (5, 4)):
        with pytest.raises(ValueError, match=f"equally many rows, two at least, got {n} and {m}"):
            quality.explained(np.ones((n, 1)), np.ones((m, 1)))
