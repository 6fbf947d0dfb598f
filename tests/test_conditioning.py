"""Three conditionings against closed forms, against wiggles that are drawn and thrown away, and
against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from cdelta import conditioning, dependence, jacobian
from cdelta.conditioning import (
    Observed,
    keep_flat,
    keep_samples,
    keep_wiggles,
    kept_share,
    observe,
    sensitivity,
    strip,
)

KEY = jax.random.key(0)
B = jnp.asarray([[0.8, 0.6, 0.0], [0.7, 0.0, 0.5], [2.0, 0.0, 0.0]])  # a common cause, held: 2


def linear(x):
    return B @ x


def bent(x):
    return jnp.stack([x[0] + jnp.sin(2 * x[1]), x[0] * x[1], x[0] + 0.3 * x[0] ** 3 + x[1] / 2])


def common(g):
    """Two features that a shared latent causes, and a third that shows it through g."""
    return lambda x: jnp.stack([x[0] + x[1], x[0] + x[2], g(x[0])])


def normal(n, d=3, seed=0):
    return jax.random.normal(jax.random.key(seed), (n, d))


def averaged(weight):
    """The mean of x² under the density of N(0, 1) times the weight."""
    x = np.linspace(-12, 12, 1_000_001)
    mass = scipy.stats.norm.pdf(x) * weight(x)
    return (mass @ x**2) / mass.sum()


@pytest.mark.parametrize("r", [1e-6, 1e-2, 0.999999, 1.000001, 2.5])
def test_a_strips_probability_and_variance_are_its_integrals(r):
    density = lambda x: np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)  # noqa: E731
    mass = 2 * scipy.integrate.quad(density, 0, r, epsabs=0)[0]
    second = 2 * scipy.integrate.quad(lambda x: x**2 * density(x), 0, r, epsabs=0)[0]
    probability, variance = strip(r)
    np.testing.assert_allclose([probability, variance], [mass, second / mass], rtol=1e-12)


def test_a_strip_of_no_width_and_of_all_the_line():
    probability, variance = strip(np.array([0.0, 1e-9, 1e4, np.inf]))
    np.testing.assert_allclose(probability, [0, np.sqrt(2 / np.pi) * 1e-9, 1, 1], rtol=1e-12)
    np.testing.assert_allclose(variance, [0, 1e-18 / 3, 1, 1], rtol=1e-12)


def test_in_a_linear_model_only_kept_wiggles_lose_a_correlation():
    seen = observe(linear, normal(5000))
    whole = np.cov(seen.values.T)
    gram = np.asarray(B @ B.T)
    regressed = np.outer(gram[:, 2], gram[2]) / gram[2, 2]
    for threshold in (0.5, 2.0, 10.0):
        inside = strip(threshold / 2.0)[1]
        wiggles = keep_wiggles(seen, 2, threshold)
        np.testing.assert_allclose(
            wiggles.matrix, gram - (1 - inside) * regressed, rtol=0, atol=1e-12
        )
        np.testing.assert_allclose(
            keep_samples(seen, 2, threshold).matrix, whole, rtol=0, atol=1e-12
        )
    np.testing.assert_allclose(keep_wiggles(seen, 2).matrix, gram - regressed, rtol=0, atol=1e-12)
    np.testing.assert_allclose(keep_samples(seen, 2).matrix, whole, rtol=0, atol=1e-12)
    np.testing.assert_allclose(keep_flat(seen, 2, 2.001).matrix, whole, rtol=0, atol=1e-12)
    assert abs(keep_wiggles(seen, 2).correlation[0, 1]) < 1e-12
    assert keep_samples(seen, 2).correlation[0, 1] > 0.5


@pytest.mark.parametrize(
    ("g", "slope", "up"),
    [(jnp.tanh, lambda x: np.cosh(x) ** -2, True), (jnp.sinh, np.cosh, False)],
)
def test_kept_samples_of_a_bent_feature_gain_or_lose_what_its_weight_says(g, slope, up):
    """Only the shared latent's variance changes: to that under 1/g', or where g' is small."""
    seen = observe(common(g), normal(40_000), batch=4000)
    limit = np.median(slope(np.asarray(normal(40_000))[:, 0]))
    for moment, weight in (
        (keep_samples(seen, 2), lambda x: 1 / slope(x)),
        (keep_samples(seen, 2, 0.3), lambda x: strip(0.3 / slope(x))[0]),
        (keep_flat(seen, 2, limit), lambda x: 1.0 * (slope(x) < limit)),
    ):
        variance = averaged(weight)
        assert (variance > 1) == up
        exact = variance / (variance + 1)
        found, error = moment.correlation[0, 1], moment.correlation_stderr[0, 1]
        assert abs(found - exact) < 4 * error < 0.06
        assert abs(found - 0.5) > 4 * error  # as it was
    assert abs(keep_wiggles(seen, 2).correlation[0, 1]) < 1e-12


@pytest.mark.parametrize("threshold", [0.1, 1.0])
def test_what_is_kept_in_expectation_is_what_a_filter_keeps(threshold):
    x, z = normal(200_000, 2), normal(200_000, 2, seed=1)
    values, products = jax.vmap(lambda x, z: jacobian.values_and_jvp(bent, x, z))(x, z)
    products = np.asarray(products)
    kept = np.abs(products[:, 2]) < threshold
    seen = observe(bent, normal(40_000, 2, seed=2), batch=4000)
    filtered = dependence.filtered_moment(products, 2, threshold)
    subset = dependence.sample_moment(np.asarray(values)[kept])
    for exact, drawn in (
        (keep_wiggles(seen, 2, threshold), filtered),
        (keep_samples(seen, 2, threshold), subset),
    ):
        z = (exact.matrix - drawn.matrix) / np.hypot(exact.stderr, drawn.stderr)
        assert np.abs(z[np.triu_indices(3)]).max() < 4
        assert (exact.stderr / drawn.stderr)[:2, :2].max() < 5  # the error is of a fair size
    share = kept_share(seen, 2, threshold)
    error = np.hypot(share.stderr, kept.std() / np.sqrt(len(kept)))
    assert abs(share.value - kept.mean()) < 4 * error


def test_the_limit_is_held_moment_at_the_same_latents():
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(KEY, i))[0])(jnp.arange(500))
    latents = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
    limit = keep_wiggles(observe(bent, latents), 2)
    held = dependence.held_moment(bent, KEY, 2, 500, 2)
    np.testing.assert_allclose(limit.matrix, held.matrix, rtol=0, atol=1e-12)
    np.testing.assert_allclose(limit.stderr, held.stderr, rtol=0, atol=1e-12)
    assert limit.held == held.held == (2,)
    assert limit.effective_samples == pytest.approx(held.effective_samples)
    small = keep_wiggles(observe(bent, latents), 2, 1e-6)
    np.testing.assert_allclose(small.matrix, limit.matrix, rtol=0, atol=1e-10)


def test_the_distance_to_the_limit_is_its_coefficient_times_the_threshold_squared():
    seen = observe(bent, normal(2000, 2))
    found, limit = sensitivity(seen, 2).value, keep_wiggles(seen, 2).matrix
    for threshold in (1e-2, 1e-3):
        quotient = (keep_wiggles(seen, 2, threshold).matrix - limit) / threshold**2
        np.testing.assert_allclose(quotient, found, rtol=0, atol=3 * threshold**1.5 + 1e-9)
    assert np.abs(found).max() > 0.1


def test_the_coefficients_error_is_that_of_repeats():
    repeats = [sensitivity(observe(bent, normal(400, 2, seed), 400), 2) for seed in range(60)]
    spread = np.std([r.value for r in repeats], axis=0, ddof=1)
    told = np.mean([r.stderr for r in repeats], axis=0)
    free = np.s_[:2, :]  # the held feature's own is the same at every latent
    assert np.all(np.abs(np.log(told[free] / spread[free])) < 0.5)


def test_in_a_linear_model_the_coefficient_is_in_closed_form():
    """The outer product of the regression over 3, in units of the held length."""
    gram = np.asarray(B @ B.T)
    found = sensitivity(observe(linear, normal(7)), 2).value
    np.testing.assert_allclose(found, np.outer(gram[:, 2], gram[2]) / gram[2, 2] ** 2 / 3)


def test_a_covariance_of_kept_samples_has_the_factor_of_a_samples_covariance():
    r"""1 / (n - 1), and with weights that of :math:`1 - \sum w^2 / (\sum w)^2`."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 3, 5))
    seen = Observed(rng.normal(size=(40, 3)), rows @ rows.swapaxes(1, 2))
    lengths = np.sqrt(seen.grams[:, 1, 1])
    limit = np.median(lengths)
    kept = dependence.sample_moment(seen.values[lengths < limit])
    found = keep_flat(seen, 1, limit)
    np.testing.assert_allclose(found.matrix, kept.matrix, rtol=1e-12)
    whole, plain = keep_flat(seen, 1, np.inf), dependence.sample_moment(seen.values)
    np.testing.assert_allclose(whole.matrix, plain.matrix, rtol=1e-12)
    np.testing.assert_allclose(whole.stderr, plain.stderr, rtol=1e-10)
    two = keep_flat(seen, 1, np.sort(lengths)[2])
    pair = seen.values[np.argsort(lengths)[:2]]
    np.testing.assert_allclose(two.matrix, np.cov(pair.T), rtol=1e-12)
    far = keep_flat(seen._replace(values=seen.values + 1e6), 1, limit)
    np.testing.assert_allclose(far.matrix, kept.matrix, rtol=0, atol=1e-8)
    weighed = np.cov(seen.values.T, aweights=strip(0.3 / lengths)[0])
    np.testing.assert_allclose(keep_samples(seen, 1, 0.3).matrix, weighed, rtol=1e-12)


def test_the_errors_and_counts_of_what_is_kept_are_their_formulas():
    """By hand from the lengths of the gradients: the share's error is that of a mean, and latents
    count as Kish says."""
    seen, threshold = observe(bent, normal(50, 2)), 0.7
    lengths = np.sqrt(seen.grams[:, 2, 2])
    p = scipy.special.erf(threshold / np.sqrt(2) / lengths)
    share = kept_share(seen, 2, threshold)
    assert share.value == pytest.approx(p.mean(), rel=1e-12)
    assert share.stderr == pytest.approx(p.std(ddof=1) / np.sqrt(50), rel=1e-12)
    for moment, weights in (
        (keep_samples(seen, 2, threshold), p),
        (keep_samples(seen, 2), 1 / lengths),
        (keep_flat(seen, 2, np.median(lengths)), 1.0 * (lengths < np.median(lengths))),
    ):
        kish = weights.sum() ** 2 / (weights**2).sum()
        assert moment.effective_samples == pytest.approx(kish, rel=1e-12)
    assert moment.effective_samples == moment.samples == 25


def test_flat_latents_are_left_out_of_the_limit_and_kept_by_every_threshold():
    def saturated(x):
        return jnp.stack([x[0] + x[1], x[1], jnp.maximum(x[0], 0)])

    x = normal(1000, 2)
    seen, flat = observe(saturated, x), np.asarray(x)[:, 0] < 0
    limit, near = keep_wiggles(seen, 2), keep_wiggles(seen, 2, 1e-6)
    assert limit.degenerate == pytest.approx(flat.mean()) and near.degenerate == 0
    # where it is held both move with x[1] alone; where it is flat the filter holds nothing
    assert limit.correlation[0, 1] == pytest.approx(1)
    assert near.correlation[0, 1] == pytest.approx(1 / np.sqrt(2), abs=1e-5)
    assert kept_share(seen, 2, 1e-6).value == pytest.approx(flat.mean(), abs=1e-5)
    assert keep_flat(seen, 2, 0.5).samples == flat.sum()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda seen: keep_wiggles(seen, 3), "k must be an index in 0, …, 2, got 3"),
        (lambda seen: keep_wiggles(seen, 2, -1.0), "threshold must not be negative, got -1"),
        (lambda seen: keep_samples(seen, 2, np.nan), "threshold must not be negative, got nan"),
        (lambda seen: keep_flat(seen, 2, 0.1), "below must leave at least two latents, got 0.1"),
        (lambda seen: kept_share(seen, 2, 0.0), "threshold must be positive, got 0"),
        (lambda seen: strip(-1.0), "r must not be negative or NaN, got -1"),
        (lambda seen: observe(linear, jnp.zeros(3)), r"latents must have shape \[N, \*shape\]"),
        (lambda seen: observe(lambda x: x[0], normal(4)), r"f must return a vector of features"),
        (
            lambda seen: observe(lambda x: x / x[0], normal(4).at[2, 0].set(0)),
            "f's values must be finite, got NaN or infinity at latent 2",
        ),
        (
            lambda seen: keep_wiggles(seen._replace(grams=0 * seen.grams), 2),
            "feature 2 cannot be held: its gradient is zero at every latent",
        ),
    ],
)
def test_bad_input_is_refused_by_name(unchecked, call, message):
    with pytest.raises(ValueError, match=message):
        call(observe(linear, normal(4)))


def test_single_precision_and_any_shape():
    seen = observe(lambda x: linear(x.ravel()), jnp.ones((4, 1, 3), jnp.float32))
    assert seen.values.dtype == seen.grams.dtype == np.float64
    np.testing.assert_allclose(seen.grams[0], B @ B.T, rtol=1e-6)
    assert conditioning.keep_wiggles(seen, 0).samples == 4
