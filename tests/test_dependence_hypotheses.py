"""What the estimators' statements need and what they give: bounds on the covariance (C13), moments
that do not exist (C14), features that jump, and what probes, pairs and projections are worth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdelta
from cdelta import dependence, gaps, mixture
from cdelta.dependence import (
    correlation_interval,
    covariance_bounds,
    feature_covariance,
    held_moment,
    wiggle_moment,
)
from tests.test_dependence import KEY, U, linear, scores

# ------------------------------------------------------------------------------- C13: the sandwich


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_rules_bound_the_integral_of_powers_and_are_exact_where_they_should(nodes):
    alphas, below, above = dependence._rules(nodes)
    assert alphas[-1] == 1 and (np.count_nonzero(below), np.count_nonzero(above)) == (
        nodes,
        nodes + 1,
    )
    for power in range(2 * nodes):
        for weights in (below, above):
            assert weights @ alphas**power == pytest.approx(1 / (power + 1), abs=1e-14)
    for power in range(2 * nodes, 40):
        gap = np.array([below, above]) @ alphas**power - 1 / (power + 1)
        assert gap[0] < -1e-12 and gap[1] > 1e-12


C = np.array([[1.0, 1.0], [0.5, -0.5], [1.0, -0.7]])  # of h₁, h₂, h₃ of one latent of two


def to_order_three(x):
    square, cube = (x[1] ** 2 - 1) / np.sqrt(2), (x[1] ** 3 - 3 * x[1]) / np.sqrt(6)
    return C[0] * x[1] + C[1] * square + C[2] * cube


def weighing(*orders):
    return np.einsum("o,oi,oj->ij", orders, C, C)


@pytest.mark.parametrize(
    ("method", "antithetic"), [("rows", False), ("rows", True), ("jvp", False)]
)
def test_bounds_weigh_each_order_as_their_rules_do(method, antithetic):
    bounds = covariance_bounds(to_order_three, KEY, (2,), 20_000, method, antithetic=antithetic)
    # n α^{n-1} for the orders 1, 2, 3: at the midpoint, and the mean of its values at 0 and 1
    lower, upper = weighing(1, 1, 0.75), weighing(1, 1, 1.5)
    for moment, truth, other in ((bounds.lower, lower, upper), (bounds.upper, upper, lower)):
        assert np.abs(scores(moment, truth)).max() < 4
        assert np.abs(scores(moment, other)).max() > 8


def test_two_nodes_see_the_third_and_fourth_order_too():
    for moment in covariance_bounds(to_order_three, KEY, (2,), 20_000, nodes=2):
        assert np.abs(scores(moment, weighing(1, 1, 1))).max() < 4
        assert np.abs(scores(moment, weighing(1, 1, 1.5))).max() > 8


def test_bounds_of_an_affine_map_are_its_covariance_without_error():
    for moment in covariance_bounds(linear, KEY, (4,), 50, nodes=2):
        np.testing.assert_allclose(moment.matrix, U @ U.T, rtol=0, atol=1e-14)
        assert moment.stderr.max() < 1e-14


def bent_pair(x):
    """Variance 3 and 41/32, covariance 1/4; the wiggles say 5, 25/16 and -1/2."""
    bend = x[1] ** 2 - 1
    return jnp.stack([x[0] + bend, x[0] - 3 / 8 * bend])


def test_the_interval_of_a_correlation_is_sharp_for_one_common_bend():
    wiggles = np.array([[5, -0.5], [-0.5, 25 / 16]])
    low, high = correlation_interval(wiggles, np.array([3, 41 / 32]))
    rho = 0.25 / np.sqrt(3 * 41 / 32)
    assert high[0, 1] == pytest.approx(rho, abs=1e-12)  # the truth is at the end
    assert low[0, 1] == pytest.approx(-2 * rho - np.sqrt(2 / 3 * 9 / 41), abs=1e-12)
    np.testing.assert_array_equal([low.diagonal(), high.diagonal()], 1)


def test_the_interval_holds_the_correlation_and_is_a_point_for_affine_maps():
    rng = np.random.default_rng(0)
    for _ in range(100):  # orders 1, 2, 5 with covariances at random
        parts = [a @ a.T for a in rng.standard_normal((3, 3, 2))]
        covariance = sum(parts)
        wiggles = sum(n * part for n, part in zip((1, 2, 5), parts, strict=True))
        scale = np.sqrt(np.diagonal(covariance))
        low, high = correlation_interval(wiggles, scale**2)
        correlation = covariance / np.outer(scale, scale)
        assert (low <= correlation + 1e-12).all() and (correlation <= high + 1e-12).all()
    scale = np.sqrt(np.diagonal(U @ U.T))
    moment = wiggle_moment(linear, KEY, (4,), 10)
    for end in correlation_interval(moment, scale**2):
        np.testing.assert_allclose(end, U @ U.T / np.outer(scale, scale), atol=1e-7)
    ends, errors = moment.estimate(lambda m: correlation_interval(m, scale**2))
    assert ends.shape == errors.shape == (2, 3, 3)


def test_an_interval_ends_at_one_and_an_order_below_one_counts_as_one():
    """Both by hand: orders 4 and 9 leave √(3·8) on either side, more than a correlation can be; an
    order of .25, which noise makes, leaves the wiggles' own value and no width."""
    low, high = correlation_interval(np.array([[4.0, 3.0], [3.0, 9.0]]), np.ones(2))
    np.testing.assert_array_equal([low[0, 1], high[0, 1]], [-1, 1])
    low, high = correlation_interval(np.array([[0.25, 0.3], [0.3, 9.0]]), np.ones(2))
    np.testing.assert_allclose([low[0, 1], high[0, 1]], 0.3, rtol=1e-14)
    low, high = correlation_interval(np.array([[4.0, -3.0], [-3.0, 3.0]]), np.ones(2))
    np.testing.assert_allclose([low[0, 1], high[0, 1]], [-1, -3 + np.sqrt(6)], rtol=1e-14)


# ------------------------------------------------------------------------- C3, C3': hypotheses


def test_a_feature_that_jumps_has_variance_that_no_jacobian_sees():
    """f = sign: variance 1, derivative 0 almost everywhere. What the docstrings warn of."""
    for estimator in (wiggle_moment, feature_covariance):
        jump = estimator(lambda x: jnp.sign(x), KEY, (1,), 1000)
        assert jump.matrix == 0 and jump.stderr == 0
    # a kink is no jump: E|x| has variance 1 - 2/π, and E[J Jᵀ] = 1
    kink = feature_covariance(lambda x: jnp.abs(x), KEY, (1,), 100_000)
    assert abs(kink.matrix[0, 0] - (1 - 2 / np.pi)) < 4 * kink.stderr[0, 0]


def test_smoothing_a_jump_lets_the_covariance_see_it_and_the_wiggle_diverge():
    """f = Φ(kx) has Var = arcsin(k²/(1+k²))/2π and E f'² = k²/(2π√(1+2k²)), which grows like k."""
    from jax.scipy.stats import norm

    k = 4.0
    variance = np.arcsin(k**2 / (1 + k**2)) / (2 * np.pi)
    wiggle = k**2 / (2 * np.pi * np.sqrt(1 + 2 * k**2))
    for estimator, truth in ((feature_covariance, variance), (wiggle_moment, wiggle)):
        moment = estimator(lambda x: norm.cdf(k * x), KEY, (1,), 100_000)
        assert abs(moment.matrix[0, 0] - truth) < 4 * moment.stderr[0, 0]
        assert moment.stderr[0, 0] < 0.02 * truth


def test_the_covariance_of_an_affine_map_has_no_variance():
    for method, probes in (("rows", 1), ("jvp", 4)):
        moment = feature_covariance(linear, KEY, (4,), 20, method, probes=probes)
        np.testing.assert_allclose(moment.matrix, U @ U.T, rtol=0, atol=1e-13)
        assert moment.stderr.max() < 1e-13
    assert feature_covariance(linear, KEY, (4,), 20, "jvp").stderr.max() > 0.05


def test_pairs_cancel_only_what_is_odd_times_even():
    """S = J Jᵀ is the same at x and -x where f is odd or even: pairs add nothing to the estimate.
    For f = x + c (x² - 1)/√2, S = 1 + 2√2 c x + 2c²x², of which they cancel the middle term."""
    for f in (lambda x: x**2, lambda x: x + x**3):
        single, pairs = (
            wiggle_moment(f, KEY, (2,), 500, antithetic=antithetic) for antithetic in (False, True)
        )
        np.testing.assert_allclose(single.matrix, pairs.matrix, rtol=1e-12)
    c = 0.3
    f = lambda x: x + c * (x**2 - 1) / np.sqrt(2)  # noqa: E731
    single, pairs = (
        wiggle_moment(f, KEY, (1,), 40_000, antithetic=antithetic) for antithetic in (False, True)
    )
    ratio = (single.stderr / pairs.stderr)[0, 0] ** 2
    # 64 groups know a variance to 18 %, here twice
    assert abs(np.log(ratio) - np.log(1 + 1 / c**2)) < 4 * 0.18 * np.sqrt(2)


@pytest.mark.parametrize(("d", "probes"), [(2, 1), (5, 1), (5, 3), (5, 5)])
def test_the_spread_of_orthogonal_probes_is_its_formula(d, probes):
    """(d - P) / (P (d - 1)(d + 2)) · (d (tr S)² + (d - 2) |S|²), with S = J Jᵀ."""
    J = np.random.default_rng(d).standard_normal((3, d)) * np.array([[3.0], [1.0], [0.5]])
    S = J @ J.T
    products = dependence._Products((d,), "float64", "jvp", probes=probes)

    def error(key):
        factor = products.along(lambda x: J @ x, jnp.zeros(d), products.directions(key))[1]
        return ((factor @ factor.T - S) ** 2).sum()

    errors = np.asarray(jax.vmap(error)(jax.random.split(KEY, 20_000)))
    whole = d * np.trace(S) ** 2 + (d - 2) * (S**2).sum()
    exact = (d - probes) / (probes * (d - 1) * (d + 2)) * whole
    assert abs(errors.mean() - exact) < 4 * errors.std() / np.sqrt(len(errors)) + 1e-12


def spread_of_one(moment):
    """What a single latent, or sample, contributes to the mean squared error, from the reported
    errors."""
    return (moment.stderr**2).sum() * moment.samples


def price(matrix, d=np.inf):
    """(tr M)² + ‖M‖²: of a normal sample or of a wiggle; with probes of length √d less."""
    trace, square = np.trace(matrix) ** 2, (matrix**2).sum()
    return trace + square if d == np.inf else (d * trace + (d - 2) * square) / (d + 2)


def test_one_probe_a_latent_scatters_as_samples_do_and_two_latents_rows_not_at_all():
    """thm-price, on a linear map of six latents, where all of it is an equality; a bend makes the
    wiggle dearer."""
    B, d, n = np.random.default_rng(4).standard_normal((3, 6)) / 2, 6, 40_000
    C = B @ B.T
    wiggle = wiggle_moment(lambda x: B @ x, KEY, (d,), n, "jvp", probes=1)
    samples = dependence.sample_moment(np.random.default_rng(5).standard_normal((n, d)) @ B.T)
    # 64 groups know a variance to 18 %; summed over entries that move together to about 15 %
    assert spread_of_one(wiggle) == pytest.approx(price(C, d), rel=0.5)
    assert spread_of_one(samples) == pytest.approx(price(C), rel=0.5)
    assert price(C, d) >= price(C) / 2
    exact = feature_covariance(lambda x: B @ x, KEY, (d,), 4)
    assert spread_of_one(exact) < 1e-12 * price(C)

    def bent(x):
        y = B @ x
        return y + y**2

    dear = wiggle_moment(bent, KEY, (d,), n, "jvp", probes=1)
    assert spread_of_one(dear) > 2 * price(
        dear.matrix, d
    )  # Jensen's inequality, and far from equal


def square_errors(vectors, mean):
    """|y yᵀ - M|² of each vector y."""
    gaps = np.asarray(vectors)[:, :, None] * np.asarray(vectors)[:, None, :] - mean
    return (gaps**2).sum((1, 2))


def above(found, expected):
    """By how many standard errors a mean exceeds what is expected."""
    return (found.mean() - expected) * np.sqrt(len(found)) / found.std()


@pytest.mark.parametrize("bend", [0.0, 2.0])
def test_a_wiggle_is_off_by_no_less_than_a_normal_sample(bend):
    """thm-price, from draws alone: the error's square is (tr W)² + |W|² or more, as much only where
    f is affine. It is of normal probes: signs for them, or the rows, are below the bound; probes of
    length √d meet another one, which is below it as well."""
    d, n = 6, 40_000
    B, A = np.random.default_rng(6).standard_normal((2, 3, d)) / 2
    A = bend * A

    def f(x):  # of Hermite's orders one and two
        return B @ x + A @ (x**2 - 1) / np.sqrt(2)

    C, W = B @ B.T + A @ A.T, B @ B.T + 2 * A @ A.T
    x, z = jax.random.normal(KEY, (2, n, d))
    push = jax.jit(jax.vmap(lambda x, z: cdelta.jacobian.jvp(f, x, z)))
    normal, signs = square_errors(push(x, z), W), square_errors(push(x, jnp.sign(z)), W)
    long = np.sqrt(d) * z / jnp.linalg.norm(z, axis=1, keepdims=True)
    sphere = square_errors(push(x, long), W)
    samples = square_errors(jax.vmap(f)(x), C)
    if bend:
        assert above(normal, price(W)) > 10 and price(W) > price(C)
        assert above(sphere, price(W, d)) > 10
    else:
        for found, exact in ((normal, price(C)), (samples, price(C)), (sphere, price(C, d))):
            assert abs(above(found, exact)) < 4
        rows = jax.vmap(lambda x: cdelta.jacobian.rows(f, x))(x[:9])
        assert np.abs(rows @ rows.mT - W).max() < 1e-14  # of rows the theorem does not speak
        assert above(signs, price(W)) < -10 and above(sphere, price(W)) < -10
    half = price(C) / 2
    assert price(C, d) >= half and price(np.diag([1.0, 0.0]), 2) < price(np.diag([1.0, 0.0])) / 2


# --------------------------------------------------------------- C8: a wiggle, and the label of it


def test_the_average_wiggle_contains_two_classes_and_a_typical_one_does_not():
    """f = Δ tanh(ξ/δ) + A x: E[JJᵀ] = AAᵀ + ω ΔΔᵀ and Cov f = AAᵀ + τ ΔΔᵀ, by quadrature. As the
    border sharpens the average turns to Δ, wiggles of length one to those of a class."""
    A, jump = np.linalg.cholesky(np.array([[1, -0.6], [-0.6, 1]])), np.ones(2)

    def classes(x, delta):
        return jump * jnp.tanh(x[0] / delta) + A @ x[1:]

    grid = np.linspace(-9, 9, 200_001)
    density = np.exp(-(grid**2) / 2)
    tanh = np.tanh(grid / 0.4)
    omega, tau = (density @ y / density.sum() for y in ((1 - tanh**2) ** 2 / 0.16, tanh**2))
    exact = {wiggle_moment: omega, feature_covariance: tau}
    for estimator, coefficient in exact.items():
        found = estimator(lambda x: classes(x, 0.4), KEY, (3,), 20_000)
        assert np.abs(scores(found, A @ A.T + coefficient * np.outer(jump, jump))).max() < 4
        for other in {omega, tau, 0.0} - {coefficient}:
            assert np.abs(scores(found, A @ A.T + other * np.outer(jump, jump))).max() > 10

    def correlation(rows):
        return np.corrcoef(rows.T)[0, 1]

    x, z = jax.random.normal(KEY, (2, 20_000, 3))
    push = jax.jit(jax.vmap(lambda x, z: cdelta.jacobian.jvp(lambda x: classes(x, 0.005), x, z)))
    wiggles, within = np.asarray(push(x, z)), np.asarray(z[:, 1:]) @ A.T
    one, alone = (w / np.linalg.norm(w, axis=1)[:, None] for w in (wiggles, within))
    assert correlation(wiggles) > 0.9 and correlation(within) < -0.5
    assert abs(correlation(one) - correlation(alone)) < 0.05


# ------------------------------------------------------------------------------ C4: what is held


def test_a_projection_is_a_schur_complement_where_the_regression_is_the_same():
    """y = (x₁ + x₂², x₁ - x₂², x₁), the last held: J varies, the regression on the held feature
    does not."""

    def f(x):
        return jnp.stack([x[0] + x[1] ** 2, x[0] - x[1] ** 2, x[0]])

    partial = wiggle_moment(f, KEY, (2,), 200).partial(2)
    for weighting in ("uniform", "inverse_norm"):
        held = held_moment(f, KEY, (2,), 200, 2, weighting)
        np.testing.assert_allclose(held.matrix, partial.matrix, rtol=0, atol=1e-12)
    assert abs(partial.correlation[0, 1] + 1) < 1e-12
    assert np.abs(np.std([jax.jacobian(f)(x) for x in jnp.eye(2)], 0)).max() > 0.5


def test_a_schur_complement_exceeds_the_projection_by_the_spread_of_regressions():
    J = np.random.default_rng(0).standard_normal((50, 3, 4))
    S = np.einsum("sij,skj->ik", J, J) / len(J)
    schur = S - np.outer(S[:, 2], S[2]) / S[2, 2]
    a = J[:, 2]
    beta = np.einsum("sij,sj->si", J, a) / (a**2).sum(1)[:, None]
    rest = J - beta[:, :, None] * a[:, None]
    off = beta - S[:, 2] / S[2, 2]
    spread = np.einsum("s,si,sj->ij", (a**2).sum(1), off, off) / len(J)
    np.testing.assert_allclose(
        schur, np.einsum("sij,skj->ik", rest, rest) / len(J) + spread, rtol=0, atol=1e-12
    )


# ---------------------------------------------------- C14: slopes that no average tames, or a bound


def test_slopes_between_two_crossing_gaussians_grow_like_the_exponential_of_a_square():
    source, radius = cdelta.Gaussian.standard(2), np.array([0.0, 1.0, 2.0])
    for rho in (0.5, 0.9):
        target = gaps.crossed(rho)
        flow = cdelta.Flow(
            lambda t, x, target=target: mixture.velocity(t, x, source, target), "rk4", 100
        )
        J = jax.jit(jax.vmap(jax.jacfwd(flow)))(jnp.stack([0 * radius, radius], 1))
        across, along = gaps.crossed_slope(rho, radius), gaps.crossed_slope(rho, np.zeros(3))
        exact = np.stack([across, along], 1)[:, None] * np.eye(2)
        np.testing.assert_allclose(J, exact, atol=1e-12, rtol=1e-4)


def test_slopes_onto_a_strongly_log_concave_law_stay_below_its_width():
    """Two modes at ±μ of width σ with r = μ/σ < 1 have -(log p)'' ≥ (1 - r²)/σ²: no slope above
    σ/√(1 - r²)."""
    source, r = cdelta.Gaussian.standard(1), 0.8
    target = cdelta.GaussianMixture(
        jnp.full(2, 0.5), r * jnp.array([[-1.0], [1.0]]), jnp.ones((2, 1, 1))
    )
    flow = cdelta.Flow(lambda t, x: mixture.velocity(t, x, source, target), "rk4", 100)
    slopes = jax.jit(jax.vmap(jax.jacobian(flow)))(jnp.linspace(-4, 4, 81)[:, None])
    assert slopes.max() == pytest.approx(np.exp(r**2 / 2), rel=1e-5)  # φ(0)/p(0)
    assert slopes.max() < 1 / np.sqrt(1 - r**2)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: covariance_bounds(linear, KEY, (4,), 10, nodes=0),
            "nodes must be a positive integer, got 0",
        ),
        (
            lambda: correlation_interval(np.ones((2, 3)), [1, 1]),
            r"wiggles must be a square matrix, got shape \(2, 3\)",
        ),
        (
            lambda: correlation_interval(np.eye(2), [1, 1, 1]),
            r"variances must be one number for each of the 2 features, got shape \(3,\)",
        ),
        (
            lambda: correlation_interval(np.eye(2), [1, 0]),
            "variances must be positive, got",
        ),
    ],
)
def test_bad_input_of_bounds_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
