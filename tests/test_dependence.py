"""Estimators against Hermite expansions, quadrature and Schur complements; error bars against
independent repeats."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import cdelta
from cdelta import dependence, gaussian, jacobian
from cdelta.dependence import (
    feature_covariance,
    filtered_moment,
    held_moment,
    sample_moment,
    wiggle_moment,
)
from tests import laws

KEY = jax.random.key(0)

# Features with a known Hermite expansion: f_i = sum_n a[n, i] He_n(u_i . x) with unit vectors u_i,
# so that E[He_n(u.x) He_m(v.x)] = [n = m] n! (u.v)^n gives every moment in closed form.
U = np.array(jax.random.normal(jax.random.key(1), (3, 4)))
U /= np.linalg.norm(U, axis=1, keepdims=True)
A = np.array([[1.0, -0.8, 0.5], [0.3, 0.4, -0.5], [0.1, 0.0, 0.15]])  # orders 1, 2, 3
FACTORIALS = np.array([1.0, 2.0, 6.0])
COMPONENTS = (
    FACTORIALS[:, None, None]
    * A[:, :, None]
    * A[:, None, :]
    * (U @ U.T) ** np.array([1, 2, 3])[:, None, None]
)
COVARIANCE = COMPONENTS.sum(0)
WIGGLE = (np.array([1, 2, 3])[:, None, None] * COMPONENTS).sum(0)


def hermite(x):
    s = U @ x
    return A[0] * s + A[1] * (s**2 - 1) + A[2] * (s**3 - 3 * s)


def linear(x):
    return jnp.asarray(U) @ x.ravel()


def scores(moment, exact):
    """z-scores of the distinct entries."""
    upper = np.triu_indices(len(exact))
    return ((moment.matrix - exact) / moment.stderr)[upper]


@pytest.mark.parametrize("method", ["rows", "jvp", "finite_difference"])
@pytest.mark.parametrize("antithetic", [False, True])
def test_moments_of_polynomials_are_those_of_their_hermite_expansions(method, antithetic):
    for estimator, exact in ((wiggle_moment, WIGGLE), (feature_covariance, COVARIANCE)):
        moment = estimator(hermite, KEY, (4,), 20_000, method, eps=1e-5, antithetic=antithetic)
        assert np.abs(scores(moment, exact)).max() < 4
        assert moment.stderr.max() < 0.1
        assert moment.samples == 20_000
    assert np.abs(scores(moment, WIGGLE)).max() > 10  # and the two are far apart


def test_covariance_is_that_of_samples():
    x = jax.random.normal(jax.random.key(7), (200_000, 4))
    features = np.asarray(jax.vmap(hermite)(x))
    products = np.einsum("si,sj->sij", features - features.mean(0), features - features.mean(0))
    error = np.sqrt(products.var(0) / len(x))
    np.testing.assert_array_less(np.abs(products.mean(0) - COVARIANCE), 4 * error)


@pytest.mark.parametrize("probes", [1, 2, 4])
def test_probes_are_unbiased_and_as_many_as_dimensions_are_exact(probes):
    moment = wiggle_moment(linear, KEY, (2, 2), 4000, "jvp", probes=probes)
    exact = U @ U.T
    if probes == 4:
        np.testing.assert_allclose(moment.matrix, exact, rtol=0, atol=1e-13)
    else:
        assert np.abs(scores(moment, exact)).max() < 4
    products = dependence._Products((2, 2), "float64", "jvp", probes=probes)
    z = products.directions(KEY).reshape(probes, 4)
    np.testing.assert_allclose(z @ z.T, 4 * np.eye(probes), rtol=0, atol=1e-13)


def test_a_linear_map_is_exact_and_its_partial_moment_is_the_held_one():
    moment = wiggle_moment(linear, KEY, (4,), 50)
    np.testing.assert_allclose(moment.matrix, U @ U.T, rtol=0, atol=1e-14)
    assert moment.stderr.max() < 1e-14
    assert moment.effective_samples == pytest.approx(50)
    for held in (1, (0, 2)):
        # independently: regress the rows on the held ones
        rest = U - U @ np.linalg.pinv(U[np.atleast_1d(held)]) @ U[np.atleast_1d(held)]
        for weighting, method in itertools.product(("inverse_norm", "uniform"), ("rows", "jvp")):
            found = held_moment(
                linear,
                KEY,
                (4,),
                50,
                held,
                weighting,
                method=method,
                probes=4 if method == "jvp" else 1,
            )
            np.testing.assert_allclose(found.matrix, rest @ rest.T, rtol=0, atol=1e-13)
        partial = moment.partial(held)
        np.testing.assert_allclose(partial.matrix, rest @ rest.T, rtol=0, atol=1e-13)
        assert partial.held == tuple(np.atleast_1d(held))
        assert np.isnan(partial.correlation[list(partial.held)]).all()


def test_wiggles_of_a_gaussian_flow_recover_its_covariance():
    source, target = cdelta.Gaussian.standard(3), laws.gaussian(jax.random.key(5), 3)
    flow = cdelta.Flow(lambda t, x: gaussian.velocity(t, x, source, target), "rk4", 40)
    for estimator in (wiggle_moment, feature_covariance):
        moment = estimator(flow, KEY, (3,), 10)
        np.testing.assert_allclose(moment.matrix, target.cov, rtol=1e-6)
        sd = np.sqrt(np.diagonal(target.cov))
        np.testing.assert_allclose(
            moment.correlation, target.cov / np.outer(sd, sd), rtol=1e-6, atol=1e-7
        )


def bent(x):
    return jnp.stack([x[0] + 0.5 * x[1] ** 2, jnp.sin(x[0]) + 1.5 * x[1], x[0] * x[1]])


def bent_rows(x, y):
    """The Jacobian of ``bent``, by hand."""
    return np.array([[1, y], [np.cos(x), 1.5], [y, x]])


@pytest.mark.parametrize("weighting", ["inverse_norm", "uniform"])
@pytest.mark.parametrize("method", ["rows", "jvp"])
def test_held_moment_is_its_formula_by_quadrature(weighting, method):
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    total, mass = 0, 0
    for (x, wx), (y, wy) in itertools.product(zip(nodes, weights, strict=True), repeat=2):
        rows = bent_rows(x, y)
        a = rows[1]
        w = wx * wy * (1 / np.linalg.norm(a) if weighting == "inverse_norm" else 1)
        total += w * rows @ (np.eye(2) - np.outer(a, a) / (a @ a)) @ rows.T
        mass += w
    moment = held_moment(bent, KEY, (2,), 40_000, 1, weighting, method=method)
    exact = total / mass
    keep = np.ix_([0, 2], [0, 2])
    assert np.abs((moment.matrix - exact)[keep] / moment.stderr[keep]).max() < 4
    assert (moment.matrix[1] == 0).all() and (moment.matrix[:, 1] == 0).all()
    assert np.isnan(moment.correlation[1]).all() and np.isfinite(moment.correlation[keep]).all()


SLOPE, BEND = 0.5, 0.4


def exponentials(x):
    """Two features to hold, whose gradients lean on one another and vary in length, and two that
    move with the third and fourth latent besides."""
    first, second = jnp.exp(SLOPE * x[0]) / SLOPE, jnp.exp(SLOPE * x[1]) / SLOPE
    swell = jnp.exp(BEND * (x[0] + x[1]))
    return jnp.stack([first, second + 2 * x[0], swell * x[2], jnp.exp(BEND * x[1]) * x[2] + x[3]])


@pytest.mark.parametrize("method", ["rows", "jvp"])
def test_several_held_features_have_the_weight_of_their_gram_determinant(method):
    """The held gradients are (e^{sx₀}, 0) and (2, e^{sx₁}): w = e^{-s(x₀+x₁)}, not the product of
    inverse lengths, and what is left are moves of x₂ and x₃. All averages are of exponentials of
    normal numbers, E[e^{ax}] = e^{a²/2}."""

    def average(p, q):  # E[w e^{p x₀ + q x₁}] / E[w]
        return np.exp(((p - SLOPE) ** 2 + (q - SLOPE) ** 2) / 2 - SLOPE**2)

    exact = np.array(
        [
            [average(2 * BEND, 2 * BEND), average(BEND, 2 * BEND)],
            [average(BEND, 2 * BEND), average(0, 2 * BEND) + 1],
        ]
    )
    moment = held_moment(exponentials, KEY, (4,), 40_000, (0, 1), method=method).select([2, 3])
    assert np.abs(scores(moment, exact)).max() < 4
    assert (moment.stderr / exact).max() < 0.05
    # the same at another power of w, and with the lengths of the gradients for their determinant
    uniform = held_moment(exponentials, KEY, (4,), 40_000, (0, 1), "uniform", method=method)
    assert uniform.matrix[2, 2] > 1.5 * exact[0, 0]
    x = np.array(jax.random.normal(KEY, (40_000, 2)))
    w = np.exp(-SLOPE * x[:, 0]) / np.sqrt(4 + np.exp(2 * SLOPE * x[:, 1]))
    lengths = (w * np.exp(2 * BEND * x.sum(1))).mean() / w.mean()
    assert abs(lengths - exact[0, 0]) > 4 * moment.stderr[0, 0]


def test_the_filter_tends_to_the_held_moment():
    keys = jax.random.split(jax.random.key(3), 2)
    x, z = (jax.random.normal(key, (400_000, 2)) for key in keys)
    wiggles = jax.vmap(lambda x, z: jacobian.jvp(bent, x, z))(x, z)
    filtered = filtered_moment(wiggles, 1, 0.05)
    held = held_moment(bent, KEY, (2,), 100_000, 1)
    assert 5_000 < filtered.samples < 20_000
    z = (filtered.matrix - held.matrix)[::2, ::2] / np.hypot(filtered.stderr, held.stderr)[::2, ::2]
    assert np.abs(z).max() < 4
    kept = np.asarray(wiggles)[np.abs(np.asarray(wiggles)[:, 1]) < 0.05]
    np.testing.assert_allclose(filtered.matrix, kept.T @ kept / len(kept), rtol=1e-10)
    both = filtered_moment(wiggles, (0, 1), 0.3)
    assert both.samples == (np.abs(np.asarray(wiggles)[:, :2]) < 0.3).all(1).sum()


def test_a_wiggle_as_large_as_the_threshold_is_thrown_away():
    """K is of those that are smaller: of whole numbers some are at it."""
    wiggles = np.array([[1.0, 0], [5, 1], [7, -1], [2, 2], [3, -0.5]])
    kept = filtered_moment(wiggles, 1, 1.0)
    assert kept.samples == 2 and kept.matrix[0, 0] == (1 + 9) / 2
    with pytest.raises(ValueError, match="keeps none of the 4 wiggles"):
        filtered_moment(wiggles[1:], 1, 0.5)


@pytest.mark.parametrize("method", ["rows", "jvp"])
def test_a_gradient_that_is_not_a_number_is_no_degenerate_one(method):
    """Values are finite, and half of the gradients of a root that is cut off by where are NaN: the
    run stops there as where nothing is held, and does not average the other half."""

    def cut(x):
        return jnp.stack([x[0] + x[1], jnp.where(x[1] > 0, jnp.sqrt(x[1]), 0.0), x[2]])

    whole = r"f, or a derivative of it, is NaN or infinite at sample \d+ of 50"
    for estimate in (
        lambda: wiggle_moment(cut, KEY, 3, 50),  # products in forward mode are 0 there
        lambda: held_moment(cut, KEY, 3, 50, 1, method=method),
        lambda: held_moment(cut, KEY, 3, 50, (2, 1), "uniform", method=method),
        # nothing else moves: the weight alone tells
        lambda: held_moment(lambda x: cut(x).at[::2].set(1.0), KEY, 3, 50, 1, method=method),
        lambda: dependence.do_moment(cut, KEY, 3, 50, 1, method=method),
        lambda: dependence.do_moment(cut, KEY, 3, 50, 0, 1, method=method),
        lambda: cdelta.causal.frame_turn(cut, KEY, 3, 50, [0, 1]),
    ):
        with pytest.raises(ValueError, match=whole):
            estimate()


def test_latents_where_nothing_can_be_held_are_left_out_and_counted():
    def saturating(x):  # feature 1 does not move where x[0] < 0
        return jnp.stack([x[0] + x[1], jax.nn.relu(x[0]), x[2] * (1 + jnp.sign(x[0]))])

    moment = held_moment(saturating, KEY, (3,), 20_000, 1)
    assert moment.degenerate == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(20_000))
    assert moment.samples == round(20_000 * (1 - moment.degenerate))
    np.testing.assert_allclose(moment.matrix, np.diag([1.0, 0, 4]), rtol=0, atol=1e-12)
    doubled = held_moment(lambda x: jnp.stack([x[0], x[1], 2 * x[1]]), KEY, (2,), 10, 1)
    assert doubled.degenerate == 0
    with pytest.raises(
        ValueError, match=r"features \[1, 2\] cannot be held: .* every one of 10 latents"
    ):
        held_moment(lambda x: jnp.stack([x[0], x[1], 2 * x[1]]), KEY, (3,), 10, (1, 2))
    # as many as dimensions: what is left to move is rounding
    with pytest.raises(ValueError, match="held must be fewer than the latent's dimensions 2"):
        held_moment(lambda x: jnp.stack([x[0], x[1], x[0] + x[1]]), KEY, (2,), 10, (1, 0))


def test_sample_moment_is_the_covariance_of_the_rows_and_of_the_rows_left():
    rows = np.array(jax.vmap(heavy)(jax.random.normal(KEY, (130, 3)))) + 1e3
    moment = sample_moment(rows)
    np.testing.assert_allclose(moment.matrix, np.cov(rows.T), rtol=1e-10)
    np.testing.assert_allclose(moment.correlation, np.corrcoef(rows.T), rtol=1e-10)
    assert moment.samples == 130 and 1 < moment.effective_samples < 130
    for block in (0, 1, 2, 63):  # 64 groups, of three or of two rows
        kept = np.delete(rows, np.s_[block::64], axis=0)
        np.testing.assert_allclose(moment.replicates[block], np.cov(kept.T), rtol=1e-10)
        assert moment.shares[block] == pytest.approx(1 - len(kept) / 130)
    assert sample_moment(rows[:3]).stderr.shape == (3, 3)


def test_standard_error_of_a_sample_correlation_is_the_normal_theory_one():
    rho, n = 0.8, 100_000
    x, y = jax.random.normal(KEY, (2, n))
    moment = sample_moment(jnp.stack([x, rho * x + np.sqrt(1 - rho**2) * y], 1))
    # 64 groups know a standard error to 9 %
    assert moment.correlation_stderr[0, 1] == pytest.approx((1 - rho**2) / np.sqrt(n), rel=4 * 0.09)
    assert moment.stderr[0, 0] == pytest.approx(np.sqrt(2 / n), rel=4 * 0.09)


# Held features whose gradients vary like a log-normal number, and a free one whose slope squared is
# 1/w: w J P Jᵀ is 1 at every latent, and the moment is 1/E[w] in closed form. With w², or another
# function of the norms, it is another power of e.


def one_steep(x):  # a = eˣ, J P Jᵀ = eˣ: 1/E[e⁻ˣ]
    return jnp.stack([jnp.exp(x[0] / 2) * x[2], jnp.exp(x[0]), 0 * x[1]])


def two_steep(
    x,
):  # det(B Bᵀ)^½ = e^(x+y), neither the least norm nor the norms' product: 1/E[e^-(x+y)]
    return jnp.stack(
        [jnp.exp((x[0] + x[1]) / 2) * x[2], jnp.exp(x[0]), jnp.exp(x[0]) + jnp.exp(x[1])]
    )


@pytest.mark.parametrize("method", ["rows", "jvp"])
@pytest.mark.parametrize(
    ("features", "held", "limit", "uniform"),
    [(one_steep, 1, np.exp(-0.5), np.exp(0.5)), (two_steep, (1, 2), np.exp(-1), np.exp(1))],
)
def test_the_weight_of_the_filters_limit_where_norms_vary(features, held, limit, uniform, method):
    options = {"method": method, "probes": 3 if method == "jvp" else 1, "batch": 700}
    moment = held_moment(features, KEY, (3,), 5000, held, **options)
    assert abs(moment.matrix[0, 0] - limit) < 4 * moment.stderr[0, 0] < 0.2 * limit
    if method == "rows":  # every latent adds the same, in whichever batch
        assert moment.effective_samples == pytest.approx(5000, rel=1e-9)
    plain = held_moment(features, KEY, (3,), 5000, held, "uniform", **options)
    assert abs(plain.matrix[0, 0] - uniform) < 4 * plain.stderr[0, 0] < 0.4 * uniform


@pytest.mark.parametrize("method", ["rows", "jvp"])
def test_gradients_are_dependent_up_to_rounding_and_no_further(method):
    """Of two held gradients the second may be left with rounding alone, or with very little."""
    u, v = np.array([0.3, -0.7, 1.1, 0.2]), np.array([0.9, 0.1, -0.4, 0.5])

    def features(x, apart):
        return jnp.stack([x @ v, x @ u, 0.7 * (x @ u) + 0.1 * (x @ u) + apart * (x @ v)])

    with pytest.raises(ValueError, match=r"features \[1, 2\] cannot be held"):
        held_moment(lambda x: features(x, 0.0), KEY, (4,), 10, (1, 2), method=method)
    found = held_moment(lambda x: features(x, 1e-11), KEY, (4,), 10, (1, 2), method=method)
    assert found.degenerate == 0


@pytest.mark.parametrize("method", ["rows", "jvp"])
def test_of_several_gradients_it_does_not_matter_which_one_vanishes(method):
    """The first at half of the latents, the other ones nowhere: there nothing is held, whatever the
    last one adds; and a feature's own path is none where its causes depend on one another."""

    def half(x):
        flat = jnp.maximum(x[0], 0)
        return jnp.stack([flat, x[1], x[2], x[1] + x[2] * jnp.where(x[0] > 0, 1.0, 7.0)])

    latents = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(KEY, i))[0])(jnp.arange(200))
    shape = (4,)
    share = np.mean([float(jax.random.normal(key, shape)[0]) < 0 for key in latents])
    for moment in (
        held_moment(half, KEY, shape, 200, (0, 1), "uniform", method=method, probes=4),
        dependence.do_moment(half, KEY, shape, 200, 1, 0, method=method, probes=4),
        dependence.do_moment(half, KEY, shape, 200, 2, (0, 1), method=method, probes=4),
    ):
        assert moment.degenerate == pytest.approx(share, abs=1e-12) and 0.3 < share < 0.7
    assert moment.matrix[3, 3] == pytest.approx(1, abs=1e-12)  # of the half that counts
    # the second cause repeats the first but for rounding
    twice = lambda x: jnp.stack([x @ U[0], 0.7 * (x @ U[0]) + 0.1 * (x @ U[0]), x @ U[1]])  # noqa: E731
    with pytest.raises(ValueError, match="cannot be held"):
        dependence.do_moment(twice, KEY, shape, 10, 2, (0, 1), method=method)


def test_the_covariance_averages_over_every_correlation_of_its_two_latents():
    """Slopes of sin 3x at latents with correlation α have the mean product 9 e⁻⁹ cosh 9α: .05 at
    α = ½, and over [0, 1] the variance, ½."""
    moment = feature_covariance(lambda x: jnp.sin(3 * x), KEY, 1, 20_000)
    assert abs(moment.matrix[0, 0] - (1 - np.exp(-18)) / 2) < 4 * moment.stderr[0, 0] < 0.2


def test_a_matrix_of_dependence_is_symmetric_for_every_sample():
    for method in ("rows", "jvp"):
        matrix = feature_covariance(bent, KEY, (2,), 1, method).matrix
        np.testing.assert_allclose(matrix, matrix.T, rtol=1e-13)
        assert np.abs(matrix).min() > 1e-3


def test_an_antithetic_pair_cancels_what_is_odd():
    """Of x and x²/2 the product of the slopes is x: nothing is left of it in any pair."""
    pair = wiggle_moment(lambda x: jnp.stack([x[0], x[0] ** 2 / 2]), KEY, 1, 3, antithetic=True)
    assert pair.matrix[0, 1] == 0 and pair.matrix[0, 0] == 1 and pair.matrix[1, 1] > 0


def test_differences_are_taken_at_the_step_asked_for():
    """Along z = ±1 the difference of x²/2 is x z + ε/2: its square has mean 1 + ε²/4."""
    for eps in (2.0, -1.0):
        moment = wiggle_moment(lambda x: x**2 / 2, KEY, 1, 4000, "finite_difference", eps=eps)
        assert abs(moment.matrix[0, 0] - 1 - eps**2 / 4) < 4 * moment.stderr[0, 0] < 0.2


def test_moments_of_wiggles_and_samples_count_as_many_as_their_traces_say():
    wiggles = np.array(jax.vmap(heavy)(jax.random.normal(KEY, (200, 3))))

    def effective(rows):
        traces = np.array([row @ row for row in rows])
        return traces.sum() ** 2 / (traces**2).sum()

    kept = wiggles[np.abs(wiggles[:, 1]) < 1]
    filtered = filtered_moment(wiggles, 1, 1.0)
    assert filtered.samples == len(kept) < 200
    assert filtered.effective_samples == pytest.approx(effective(kept), rel=1e-12)
    centred = wiggles - wiggles.mean(0)
    found = sample_moment(wiggles).effective_samples
    assert found == pytest.approx(effective(centred), rel=1e-12)
    # and those of an estimator, from each latent's Jacobian
    rows = jax.vmap(lambda i: jacobian.rows(heavy, first_latent(i)).ravel())(jnp.arange(50))
    found = wiggle_moment(heavy, KEY, 3, 50, batch=20).effective_samples
    traces = (np.asarray(rows) ** 2).sum(1)
    assert found == pytest.approx(traces.sum() ** 2 / (traces**2).sum(), rel=1e-9)


def first_latent(i):
    """Latent i of the estimators with KEY, drawn by hand."""
    return jax.random.normal(jax.random.split(jax.random.fold_in(KEY, i))[0], (3,))


def test_replicates_are_the_moments_without_a_group_of_latents():
    """Sample i is in group i modulo 64; each replicate averages the others."""
    rows = np.asarray(jax.vmap(lambda i: jacobian.rows(heavy, first_latent(i)))(jnp.arange(100)))
    products = rows @ np.swapaxes(rows, 1, 2)
    moment = wiggle_moment(heavy, KEY, 3, 100, batch=30)
    np.testing.assert_allclose(moment.matrix, products.mean(0), rtol=1e-9)
    for group in (0, 35, 36, 63):  # of two latents, and of one
        others = np.delete(products, np.s_[group::64], axis=0)
        np.testing.assert_allclose(moment.replicates[group], others.mean(0), rtol=1e-9)
        assert moment.shares[group] == pytest.approx(1 - len(others) / 100)
    deviations = (moment.replicates - moment.matrix) ** 2
    expected = np.sqrt(((1 - moment.shares)[:, None, None] * deviations).sum(0))
    np.testing.assert_allclose(moment.stderr, expected, rtol=1e-12)


REPEATS = 400


def spread(errors, stderrs):
    """z-scores must have mean square 1: its own z-score, from the repeats' fourth moment."""
    squares = (np.asarray(errors) / np.asarray(stderrs)) ** 2
    return squares.mean(), (squares.mean() - 1) / (squares.std() / np.sqrt(len(squares)))


def heavy(x):  # S(x0) has log-normal tails: kurtosis about 40
    return jnp.stack(
        [jnp.exp(0.45 * x[0]), x[0] + x[1] + 0.3 * x[1] ** 2, jnp.sin(x[1]) + x[2] + 0.5 * x[0]]
    )


@pytest.mark.parametrize(
    "estimator",
    [
        lambda key: wiggle_moment(heavy, key, (3,), 2000),
        lambda key: wiggle_moment(heavy, key, (3,), 2000, "jvp"),
        lambda key: feature_covariance(heavy, key, (3,), 2000),
        lambda key: held_moment(heavy, key, (3,), 2000, 1),
        lambda key: sample_moment(jax.vmap(heavy)(jax.random.normal(key, (2000, 3)))),
    ],
    ids=["wiggle", "jvp", "covariance", "held", "samples"],
)
def test_standard_errors_are_calibrated(estimator):
    """Over independent repeats errors have the size that each repeat reports: entries, correlation,
    partial moment."""
    moments = [estimator(key) for key in jax.random.split(jax.random.key(11), REPEATS)]
    functions = {
        "variance": lambda m: (m.matrix[0, 0], m.stderr[0, 0]),
        "covariance": lambda m: (m.matrix[0, 2], m.stderr[0, 2]),
        "correlation": lambda m: (m.correlation[0, 2], m.correlation_stderr[0, 2]),
        "partial": lambda m: (m.partial(2).matrix[0, 0], m.partial(2).stderr[0, 0]),
        "function": lambda m: m.estimate(lambda matrix: matrix[0, 0] / matrix[2, 2]),
    }
    for name, function in functions.items():
        values, errors = np.array([function(moment) for moment in moments]).T
        mean_square, z = spread(values - values.mean(), errors)
        assert abs(z) < 4, (name, mean_square, z)
        # and the mean of the reported variances is the variance found, heavy tails or not
        ratio = (errors**2).mean() / values.var(ddof=1)
        kurtosis = scipy.stats.kurtosis(values, fisher=False)
        noise = np.sqrt(
            (kurtosis - 1) / REPEATS + (errors**2).var() / (errors**2).mean() ** 2 / REPEATS
        )
        assert abs(ratio - 1) < 4 * noise, (name, ratio, noise)


@pytest.mark.parametrize("samples", [5, 100])
def test_few_samples_have_calibrated_errors_too(samples):
    moments = [
        wiggle_moment(linear, key, (4,), samples, "jvp")
        for key in jax.random.split(jax.random.key(2), 1000)
    ]
    values = np.array([moment.matrix[0, 1] for moment in moments])
    variances = np.array([moment.stderr[0, 1] ** 2 for moment in moments])
    noise = np.hypot(
        variances.std() / variances.mean(), np.sqrt(scipy.stats.kurtosis(values, fisher=False) - 1)
    )
    assert abs(variances.mean() / values.var(ddof=1) - 1) < 4 * noise / np.sqrt(len(moments))


DIFFERENCES = np.array(jax.random.normal(KEY, (50, 3)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: wiggle_moment(linear, KEY, (4,), 0), "samples must be a positive integer, got 0"),
        (
            lambda: wiggle_moment(linear, KEY, (4,), -3),
            "samples must be a positive integer, got -3",
        ),
        (
            lambda: wiggle_moment(linear, KEY, (4,), 10.0),
            "samples must be a positive integer, got 10.0",
        ),
        (
            lambda: wiggle_moment(linear, KEY, (4,), 10, "vjp"),
            "method must be 'rows', 'jvp' or .*'vjp'",
        ),
        (lambda: wiggle_moment(linear, KEY, (4, 0), 10), "shape must be a positive integer, got 0"),
        (
            lambda: wiggle_moment(linear, KEY, (4,), 10, eps=0.0),
            "eps must be a finite number other than 0",
        ),
        (
            lambda: wiggle_moment(linear, KEY, (4,), 10, probes=0),
            "probes must be a positive integer",
        ),
        (
            lambda: wiggle_moment(linear, KEY, (4,), 10, "jvp", probes=5),
            "probes must not exceed .* 4, got 5",
        ),
        (lambda: wiggle_moment(linear, KEY, (4,), 10, batch=0), "batch must be a positive integer"),
        (lambda: wiggle_moment(linear, KEY, (4,), 10, dtype=int), "dtype must be floating-point"),
        (
            lambda: wiggle_moment(linear, 0, (4,), 10),
            "key must be one key from jax.random.key, got 0",
        ),
        (
            lambda: wiggle_moment(linear, jax.random.split(KEY), (4,), 10),
            r"key must be one key, got keys of shape \(2,\)",
        ),
        (
            lambda: jax.jit(lambda key: wiggle_moment(linear, key, (4,), 10).matrix)(KEY),
            "key is traced: an estimator streams from the host",
        ),
        (lambda: wiggle_moment("f", KEY, (4,), 10), "f must be a function of one latent, got str"),
        (
            lambda: wiggle_moment(lambda x: x[None], KEY, (4,), 10),
            r"f must return a vector of features \[n\].*got \(1, 4\)",
        ),
        (lambda: wiggle_moment(lambda x: (x, "x"), KEY, (4,), 10), "got str"),
        (lambda: wiggle_moment(lambda x: {}, KEY, (4,), 10), "got nothing"),
        (lambda: wiggle_moment(lambda x: x[:0], KEY, (4,), 10), r"got \(0,\)"),
        (
            lambda: wiggle_moment(jnp.argsort, KEY, (4,), 10),
            "f must return real floating-point numbers",
        ),
        (
            lambda: held_moment(linear, KEY, (4,), 10, 3),
            "held must be different indices in 0, …, 2, got 3",
        ),
        (lambda: held_moment(linear, KEY, (4,), 10, -1), "held must be different indices"),
        (lambda: held_moment(linear, KEY, (4,), 10, (1, 1)), "held must be different indices"),
        (
            lambda: held_moment(linear, KEY, (4,), 10, 0.5),
            "held must be a feature's index or several, got 0.5",
        ),
        (
            lambda: held_moment(linear, KEY, (4,), 10, 1, "norm"),
            "weighting must be 'inverse_norm' or 'uniform'",
        ),
        (
            lambda: held_moment(linear, KEY, (4,), 10, 1, method="finite_difference"),
            "method must be 'rows' or 'jvp'",
        ),
        (
            lambda: filtered_moment(DIFFERENCES, 1, 1e-9),
            "threshold 1e-09 keeps none of the 50 wiggles",
        ),
        (lambda: filtered_moment(DIFFERENCES, 1, 0.0), "threshold must be positive, got 0"),
        (lambda: filtered_moment(DIFFERENCES, 3, 0.1), "held must be different indices in 0, …, 2"),
        (
            lambda: filtered_moment(DIFFERENCES[0], 0, 0.1),
            r"differences must be a matrix \[N, n\].*got shape \(3,\)",
        ),
        (lambda: filtered_moment(DIFFERENCES[:0], 0, 0.1), "differences must be a matrix"),
        (lambda: filtered_moment(DIFFERENCES * np.nan, 0, 0.1), "differences must be finite"),
        (
            lambda: sample_moment(DIFFERENCES[0]),
            r"features must be a matrix \[N, n\].*got shape \(3,\)",
        ),
        (
            lambda: sample_moment(DIFFERENCES[:2]),
            "features must hold at least three samples, got 2",
        ),
        (lambda: sample_moment(DIFFERENCES * np.nan), "features must be finite"),
        (
            lambda: wiggle_moment(linear, KEY, (4,), 9).partial(3),
            "k must be different indices in 0, …, 2, got 3",
        ),
        (
            lambda: wiggle_moment(linear, KEY, (4,), 9).select([]),
            "indices must be a feature's index or several",
        ),
    ],
)
def test_bad_input_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wiggles_of_neighbours_correlate_as_the_pixels_do_where_the_flow_is_affine():
    """E5's measurement on a flow in closed form: the covariance of ready wiggles along random
    directions of length one. Where features of the flow bend it is another."""
    source, target = cdelta.Gaussian.standard(6), laws.pair(8, 6)[1]
    count = 20_000
    x0, probes = jax.random.normal(KEY, (2, count, 6))
    probes /= jnp.linalg.norm(probes, axis=1, keepdims=True)

    def flow(x):
        return gaussian.flow_map(1.0, x, source, target)

    def bent(x):  # what is of second order counts twice
        return flow(x).at[:2].add(jnp.array([1, -1]) * (x[0] ** 2 - 1))

    def off(f):
        wiggles = jax.jit(jax.vmap(lambda x, z: jacobian.jvp(f, x, z)))(x0, probes)
        found, pixels = sample_moment(np.asarray(wiggles)), sample_moment(jax.vmap(f)(x0))
        stderr = np.hypot(found.correlation_stderr, pixels.correlation_stderr)
        return ((found.correlation - pixels.correlation) / stderr)[np.triu_indices(6, 1)]

    assert np.abs(off(flow)).max() < 4
    assert np.abs(off(bent)).max() > 10


def test_ready_wiggles_and_rows_give_what_the_estimator_gives():
    """The same Jacobians, computed outside: the same matrix; errors and counts by hand."""
    key, n = jax.random.key(5), 300
    latents = jax.vmap(
        lambda i: jax.random.normal(jax.random.split(jax.random.fold_in(key, i))[0], (2, 2))
    )(jnp.arange(n))
    mix = jax.random.normal(jax.random.key(6), (3, 4))

    def f(x):
        return jnp.tanh(mix @ x.ravel())

    rows = np.asarray(jax.vmap(lambda x: cdelta.jacobian.rows(f, x))(latents))
    found, want = dependence.from_rows(rows), wiggle_moment(f, key, (2, 2), n)
    np.testing.assert_allclose(found.matrix, want.matrix, rtol=1e-10)
    np.testing.assert_allclose(found.stderr, want.stderr, rtol=1e-8)
    assert found.samples == n
    assert found.effective_samples == pytest.approx(want.effective_samples, rel=1e-10)

    probes = np.random.default_rng(0).standard_normal((n, 2, 2))
    wiggles = np.einsum("sijk,sjk->si", rows, probes)
    along = dependence.from_wiggles(wiggles, names=["a", "b", "c"])
    np.testing.assert_allclose(along.matrix, wiggles.T @ wiggles / n, rtol=1e-12)
    products = wiggles[:, 0] * wiggles[:, 1]
    assert along["a", "b"] == pytest.approx((products.mean(), products.std() / np.sqrt(n)), rel=0.2)
    z = (along.matrix - found.matrix) / np.hypot(along.stderr, found.stderr)
    assert np.abs(z).max() < 4
    # the null: unit directions give 1/d of it, far outside the error
    short = dependence.from_wiggles(wiggles / np.linalg.norm(probes, axis=(1, 2))[:, None])
    assert np.abs((short.matrix - found.matrix) / short.stderr).max() > 10


def test_what_is_already_there_in_single_precision_is_summed_in_double():
    """Rounded once, where it was computed: sums and means of far numbers add nothing."""
    rng = np.random.default_rng(2)
    rows = (rng.standard_normal((300, 2, 3)) * [1, 1e3, 1e-3]).astype(np.float32)
    exact = np.einsum("sim,sjm->ij", rows.astype(float), rows.astype(float)) / 300
    np.testing.assert_allclose(dependence.from_rows(rows).matrix, exact, rtol=1e-12)
    values = (1e4 + rng.standard_normal((300, 2))).astype(np.float32)
    exact = np.cov(values.astype(float).T)
    np.testing.assert_allclose(sample_moment(values).matrix, exact, rtol=1e-9)
    moves = (rng.standard_normal((300, 2)) * [1, 1e3]).astype(np.float32)
    exact = moves.astype(float).T @ moves.astype(float) / 300
    np.testing.assert_allclose(dependence.from_wiggles(moves).matrix, exact, rtol=1e-12)
    np.testing.assert_allclose(filtered_moment(moves, 0, 1e9).matrix, exact, rtol=1e-12)


@pytest.mark.parametrize("rows, message", [
    (np.ones((4, 3)), "Jacobians .*wiggles"),
    (np.full((4, 3, 2), np.nan), "NaN or infinity at 4 latents of 4, the first of them 0"),
    (np.where(np.arange(24).reshape(4, 3, 2) == 17, np.inf, 1), "1 latents of 4, .* of them 2"),
    (np.ones((4, 3, 2), bool), "real numbers"),
])  # fmt: skip
def test_rows_that_are_none(unchecked, rows, message):
    with pytest.raises(ValueError, match=message):
        dependence.from_rows(rows)
