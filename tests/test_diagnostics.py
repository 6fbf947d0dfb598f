"""What decides whether an estimate is to be believed: each against a law that is known, once where
it must speak and once where it must not."""

import math

import numpy as np
import pytest
import scipy.stats

from cdelta import _diagnostics
from cdelta.dependence import sample_moment


def scatter(matrices):
    """In three parts, as a pilot sees them."""
    sums = _diagnostics.Sums.zero(matrices.shape[1])
    for part in np.array_split(matrices, [1, len(matrices) // 2]):
        sums = sums.plus(part)
    return sums.scatter()


def pareto(index, size, seed=0):
    return np.random.default_rng(seed).random(size) ** (-1 / index)


@pytest.mark.parametrize("index", [0.8, 1.5, 3.0])
def test_the_tail_of_a_power_law_is_its_index(index):
    """Over 200 samples: unbiased to a per cent, and the errors are what they are said to be."""
    found = [_diagnostics.tail(pareto(index, 2000, seed)) for seed in range(200)]
    scores = [(tail.index - index) / tail.stderr for tail in found]
    assert abs(np.mean([tail.index for tail in found]) / index - 1) < 0.03
    assert 0.8 < np.std(scores) < 1.2
    shapes = [(tail.shape - 1 / index) / tail.shape_stderr for tail in found]
    assert abs(np.mean(shapes)) < 0.5 and 0.8 < np.std(shapes) < 1.2
    assert found[0].used == 100


def test_light_tails_are_no_powers_whatever_hill_says():
    """x⁴ of a normal x has all moments. Hill's index is below 2 at any such size, the shape is not
    surely above one half; for a power of index 1.2 it is."""
    normal = np.random.default_rng(0).standard_normal(2000)
    light = _diagnostics.tail(normal**4)
    assert light.index < 2 and light.shape - 2 * light.shape_stderr < 0.5
    heavy = _diagnostics.tail(pareto(1.2, 2000))
    assert heavy.index < 2 and heavy.shape - 2 * heavy.shape_stderr > 0.5
    assert _diagnostics.tail(normal**2).index - 2 > 0  # and this is not even near


def test_numbers_without_a_tail():
    assert _diagnostics.tail(np.ones(100)).index == math.inf
    assert _diagnostics.tail(1 + 1e-12 * np.random.default_rng(0).random(100)).index == math.inf
    assert math.isnan(_diagnostics.tail(np.ones(30)).index)
    assert math.isnan(_diagnostics.tail(np.eye(100)[0]).index)


def test_roundings_count_what_solving_loses():
    """Of systems with a known solution the error is below one such unit for each entry, whatever
    the condition; an error of a millionth is millions of them."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((20, 3, 3)))[0]
    matrices = (basis * [1, 1e-3, 1e-6]) @ np.swapaxes(basis, 1, 2)
    truth = rng.standard_normal((20, 3, 1))
    found = np.linalg.solve(matrices, matrices @ truth)
    condition, size = np.linalg.cond(matrices), np.linalg.norm(truth, axis=(1, 2))
    assert 1e-3 < _diagnostics.in_roundings(found - truth, condition, size) < 3
    assert _diagnostics.in_roundings(found - truth * (1 + 1e-6), 1.0, size) > 1e6
    # one of each, of one result: sign and shape do not matter, the largest quotient counts
    two = np.finfo(float).eps * np.array([[6.0, 1.0], [-8.0, 0.0]])
    assert _diagnostics.in_roundings(two, np.array([2.0, 4.0]), 1.0) == 3
    assert _diagnostics.in_roundings(two[:, 0], 2.0, np.array([3.0, 2.0])) == 2


@pytest.mark.parametrize("copies", [1, 4])
def test_calibration_is_that_of_student(copies):
    """z of groups that are normal, entries independent or all alike: the mean is the lemma's, as
    SciPy has it, and its scatter over sets of repeats what is said, whatever they share."""
    groups, sets, repeats, entries = 8, 400, 50, 4
    law = scipy.stats.t(groups - 1)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((sets, repeats, entries // copies, groups))
    z = x.mean(-1) / (x.std(-1, ddof=1) / math.sqrt(groups))
    signs = np.array([1, -1, -1, 1])  # which squares do not have
    found = [_diagnostics.calibration(signs * np.repeat(one, copies, 1), groups) for one in z]
    assert found[0].expected == pytest.approx(law.moment(2))
    values, scatter = (np.array([getattr(c, name) for c in found]) for name in ("value", "scatter"))
    assert abs(values.mean() - law.moment(2)) < 4 * values.std() / math.sqrt(sets)
    one = math.sqrt((law.moment(4) - law.moment(2) ** 2) / repeats)
    few = 1 if copies == 4 else math.sqrt(1 / 4)
    assert scatter.mean() == pytest.approx(one * few, rel=0.1)
    assert values.std() == pytest.approx(scatter.mean(), rel=0.25)
    assert found[0].value == pytest.approx((z[0] ** 2).mean())
    with pytest.raises(ValueError, match="more than 5"):
        _diagnostics.calibration(z[0], 5)
    # a factor in the errors shows
    assert _diagnostics.calibration(z[0] * 2, groups).value == pytest.approx(4 * found[0].value)


def moments(variance, seed=0):
    """Of 2000 normal samples, two features, the second with this variance."""
    rows = np.random.default_rng(seed).standard_normal((2000, 2)) * [1, math.sqrt(variance)]
    return sample_moment(rows)


def test_a_variance_that_jacobians_miss_is_seen_and_one_that_they_do_not_is_not():
    scores, jumping = _diagnostics.jumps(moments(1.3), moments(1.0, seed=1))
    assert jumping.tolist() == [False, True] and scores[1] > 4
    false = [_diagnostics.jumps(moments(1, s), moments(1, 1000 + s))[1].any() for s in range(200)]
    assert sum(false) <= 1
    # both without error, as of a constant: no score, no alarm
    exact = sample_moment(np.zeros((10, 2)))
    scores, jumping = _diagnostics.jumps(exact, exact)
    assert scores.tolist() == [0, 0] and not jumping.any()


def test_a_feature_is_flat_where_its_gradient_is_a_thousandth_of_its_usual_length():
    lengths = np.ones((100, 3))
    lengths[:, 1] = 0
    lengths[:25, 2] = 1e-5
    assert _diagnostics.flat(lengths).tolist() == [0, 1, 0.25]
    normal = np.abs(np.random.default_rng(0).standard_normal((5000, 1)))
    assert _diagnostics.flat(normal)[0] < 0.003  # x², whose gradient is 0 at one point


@pytest.mark.parametrize("probes", [1, 2, 4])
def test_the_variance_of_products_is_the_formula(probes):
    """Chapter 18's, against 40 000 draws of orthogonal probes at Jacobians of four kinds."""
    rng = np.random.default_rng(probes)
    d, kinds = 5, rng.standard_normal((4, 3, 5))
    matrices = np.einsum("snd,smd->snm", kinds, kinds)
    ranked = {(one.method, one.probes): one for one in _diagnostics.methods(scatter(matrices), d)}
    normal = rng.standard_normal((40_000, d, probes))
    bases = np.linalg.qr(normal)[0] * math.sqrt(d)
    factors = kinds[rng.integers(4, size=40_000)] @ bases
    estimates = np.einsum("snp,smp->snm", factors, factors) / probes
    mean = matrices.mean(0)
    squares = ((estimates - mean) ** 2).sum((1, 2)) / (mean**2).sum()
    error = squares.std() / 200
    assert abs(squares.mean() - ranked["jvp", probes].variance) < 4 * error
    exact = ((matrices - mean) ** 2).sum((1, 2)).mean() / (mean**2).sum()
    assert ranked["rows", 1].variance == pytest.approx(exact)


def test_the_cheapest_method_for_an_error_comes_first():
    same = np.repeat(np.array([[[2.0, 1.0], [1.0, 3.0]]]), 10, axis=0)
    assert _diagnostics.methods(scatter(same), 6)[0].method == "rows"  # exact, at every latent
    # forty features whose size varies: one product costs 2, rows 82, and the latents' spread stays
    sizes = np.random.default_rng(0).pareto(2, 500)
    wild = sizes[:, None, None] * np.eye(40)
    assert _diagnostics.methods(scatter(wild), 100)[0].method == "jvp"
    prices = [one.price for one in _diagnostics.methods(scatter(wild), 100)]
    assert prices == sorted(prices)


def test_sums_over_latents_are_the_averages_of_all_matrices():
    """Alike at all latents, nothing is left of their spread: not even rounding."""
    factors = np.random.default_rng(0).standard_normal((50, 4, 3))
    matrices = factors @ np.swapaxes(factors, 1, 2)
    found, mean = scatter(matrices), matrices.mean(0)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-13)
    assert found.spread == pytest.approx(((matrices - mean) ** 2).sum((1, 2)).mean())
    assert found.squared == pytest.approx((matrices**2).sum((1, 2)).mean())
    assert found.trace_squared == pytest.approx((np.trace(matrices.T) ** 2).mean())
    assert scatter(np.repeat(matrices[:1] / 3, 9, 0)).spread == 0
    assert _diagnostics.Sums.zero(2).plus(np.ones((1, 2, 2))).scatter() is None


def test_a_bias_is_measured_against_the_noise_that_is_to_come():
    rng = np.random.default_rng(0)
    fine = 1 + 0.1 * rng.standard_normal((50, 1, 1))
    found = _diagnostics.doubling(fine * 1.005, fine, 100)
    assert found.change == pytest.approx(0.01, rel=1e-6) and found.stderr < 1e-3
    assert found.ratio == pytest.approx(0.01 / 0.01, rel=0.2)  # 0.1/√100
    more = _diagnostics.doubling(fine * 1.005, fine, 2500)
    assert more.ratio == pytest.approx(5 * found.ratio, rel=1e-6)
    # no noise at all: a thousandth of the size stands for it
    exact = np.ones((8, 1, 1))
    assert _diagnostics.doubling(exact * 1.0005, exact, 100).ratio == pytest.approx(1)


def test_errors_of_a_ratio_of_independent_moments_are_the_delta_methods():
    first, second = moments(1.0), moments(2.0, seed=1)
    value, error = _diagnostics.jointly(lambda a, b: a[1, 1] / b[1, 1], first, second)
    relative = [m.stderr[1, 1] / m.matrix[1, 1] for m in (first, second)]
    assert value == first.matrix[1, 1] / second.matrix[1, 1]
    assert error == pytest.approx(value * math.hypot(*relative), rel=0.02)


def bent(x):
    """Two features of each of the points, in single precision, with second derivatives."""
    return np.stack([x[:, 0] ** 2, 3 * x[:, 0] * x[:, 1]], 1).astype(np.float32)


def test_second_differences_are_the_bend_where_they_are_wide():
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((2, 6, 2))
    h = np.array([2.0, 4.0, 8.0])
    found = _diagnostics.second_differences(bent, x, z, h)
    exact = (2 * z[:, 0] ** 2) ** 2 + (6 * z[:, 0] * z[:, 1]) ** 2
    np.testing.assert_allclose(found, h[:, None] ** 4 * exact, rtol=1e-4)


def test_roundings_are_those_of_a_difference():
    """Of a bent map whose two values are rounded to multiples of u as if at random: u²/12 each, two
    of them in a first difference. Where roundings coincide at the smallest steps, the reading near
    the best step does not follow, and the bend is not in it."""
    unit = 2.0**-20

    def rounded(x):
        values = x @ np.array([[1.0, 0.3], [0.2, -1.7]])
        values[:, 0] += x[:, 0] ** 2 / 2
        return np.round(values / unit) * unit

    rng = np.random.default_rng(1)
    x, z = rng.standard_normal((2, 4000, 2))
    bend = z[:, 0] ** 4
    expected = 2 * 2 * unit**2 / 12
    smallest, read = _diagnostics.roundings(rounded, x, z, bend, 2.0 ** -np.arange(13, 17))
    np.testing.assert_allclose([smallest.mean(), read.mean()], expected, rtol=0.03)
    # steps within a unit leave less
    smallest, read = _diagnostics.roundings(rounded, x, z, bend, 2.0 ** -np.arange(21, 25))
    assert smallest.mean() < 0.7 * expected
    np.testing.assert_allclose(read.mean(), expected, rtol=0.03)


def test_branches_of_the_theorem_cross_where_it_says():
    """Of errors that obey it; with rounding four times as large as it was said to be, or a bend
    four times as small, at twice of ε*, with a larger bend at half of it."""
    e, d = 2.0 ** -np.arange(2, 23), 2.0 ** -np.arange(6, 33)
    bend, sigma, fine = 3.0, 1e-7, 1e-16

    def seen(more=1.0, bent=1.0):
        def law(e, sigma):
            return np.hypot(e * bent * bend / 2, sigma / e)

        return _diagnostics.branches(
            _diagnostics.Sweep(e, law(e, more * sigma), sigma),
            _diagnostics.Sweep(d, law(d, fine), fine),
            bend,
        )

    right = seen()
    assert right.best == math.sqrt(2 * sigma / bend)
    np.testing.assert_allclose(right[:4], [1, 1, -1, 1], rtol=0, atol=3e-3)
    assert seen(more=4.0).crossing == pytest.approx(2, rel=3e-3) and seen(more=4.0).ratio > 1.5
    assert seen(bent=4.0).crossing == pytest.approx(0.5, rel=0.03)
    assert seen(bent=0.25).crossing == pytest.approx(2, rel=3e-3) and seen(bent=0.25).ratio < 0.9


def test_means_and_powers_on_a_log_scale():
    assert _diagnostics.geometric_mean(np.array([1.0, 4.0, 16.0])) == pytest.approx(4)
    x = np.array([1.0, 2.0, 5.0])
    assert _diagnostics.power(x, 7 * x**-2.5) == pytest.approx(-2.5)
