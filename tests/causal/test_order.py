"""The order from a velocity's Jacobian (C10): densities known in closed form, the fit against
least squares by simulation, and what the data cannot tell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdelta
from cdelta import causal, posterior
from cdelta.causal import _waves, order
from tests.causal.examples import admits, random_additive

KEY = jax.random.key(0)
SIGMA = 0.5


def sine(n, seed=0):
    """x causes y = sin 2x + e/2."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n)
    return np.stack([x, np.sin(2 * x) + SIGMA * rng.standard_normal(n)], 1)


def exact_sine():
    """Its law, as a mixture along the curve: finer than the noise that is left at t."""
    at = jnp.linspace(-4.5, 4.5, 226)
    widths = jnp.diag(jnp.array([(at[1] - at[0]) ** 2, SIGMA**2]))
    weights = jnp.exp(-(at**2) / 2)
    means = jnp.stack([at, jnp.sin(2 * at)], 1)
    return cdelta.GaussianMixture(weights / weights.sum(), means, jnp.tile(widths, (226, 1, 1)))


def exact_velocity(t, x):
    return posterior.velocity(t, x, cdelta.Gaussian.standard(2), exact_sine())


def noisy(x, t, seed=1):
    return t * x + (1 - t) * np.random.default_rng(seed).standard_normal(x.shape)


# ------------------------------------------------------------------------------------------- scores


def test_the_leaf_of_an_exact_density_scores_0_near_the_end():
    x, leaf = sine(2000), []
    for t in (0.9, 0.95, 0.98):
        scores, _ = causal.leaf_scores(exact_velocity, noisy(x, t), t)
        assert scores[1] < scores[0] / 3
        leaf.append(scores[1])
    # what is left at .98 is the width of the mixture's components
    assert leaf[0] > 2 * leaf[1] > 3 * leaf[2] and leaf[2] < 0.015


def test_the_cause_of_an_exact_density_scores_what_its_second_derivative_varies():
    r"""∂²ₓ log p = -1 + (-f'² + (y - f) f'')/σ², taken from the density by hand."""
    x = sine(6000)
    f, slope, bent = np.sin(2 * x[:, 0]), 2 * np.cos(2 * x[:, 0]), -4 * np.sin(2 * x[:, 0])
    entry = -1 + (-(slope**2) + (x[:, 1] - f) * bent) / SIGMA**2
    low, high = np.quantile(entry, [0.02, 0.98])
    entry = np.clip(entry, low, high)
    truth = entry.std() / abs(entry.mean())
    scores, stderr = causal.leaf_scores(exact_velocity, noisy(x, 0.98), 0.98)
    assert abs(scores[0] - truth) < 4 * stderr[0] < 0.1 * truth


def test_tails_are_clipped_at_two_and_98_percent():
    """Of 101 points these are the third from either end."""
    x, t = np.linspace(-1, 2, 101), 0.9
    x[0], x[-1] = -50, 100
    found = causal.leaf_scores(lambda t, x: x**2, x[::-1, None] * np.ones(2), t)
    entry = (2 * x - 1 / t) * t / (1 - t)
    entry[:2], entry[-2:] = entry[2], entry[-3]
    np.testing.assert_allclose(found.scores, entry.std() / abs(entry.mean()), rtol=1e-6)


def test_every_entry_of_a_normal_law_is_constant():
    model = causal.collider()
    target = cdelta.Gaussian(jnp.zeros(3), model.cov)
    x = model.sample(KEY, 200)

    def velocity(t, x):
        return cdelta.gaussian.velocity(t, x, cdelta.Gaussian.standard(3), target)

    scores, stderr = causal.leaf_scores(velocity, x)
    assert (scores < 1e-12).all() and (stderr < 1e-12).all()


def test_scores_are_taken_at_nine_tenths_unless_told():
    x = noisy(sine(64), 0.9)
    at_usual, early = (causal.leaf_scores(exact_velocity, x, t) for t in (0.9, 0.8))
    found = causal.leaf_scores(exact_velocity, x)
    np.testing.assert_array_equal(found.scores, at_usual.scores)
    assert (np.abs(found.scores / early.scores - 1) > 0.05).all()


def test_entries_are_those_of_the_log_density():
    r"""H = (∇v - I/t) t/(1 - t), against two derivatives of log p_t."""
    t, x = 0.8, jnp.asarray(noisy(sine(64), 0.8))
    source = cdelta.Gaussian.standard(2)
    hessian = jax.hessian(lambda x: cdelta.mixture.log_density(t, x, source, exact_sine()))
    entries = np.diagonal(np.asarray(jax.vmap(hessian)(x)), axis1=1, axis2=2)
    slopes = order._slopes(order.as_pytree(exact_velocity), jnp.asarray(t), x)
    np.testing.assert_allclose(order._curvatures(np.asarray(slopes), t), entries, rtol=1e-7)


def test_standard_errors_of_scores_are_the_spread_of_repeated_ones():
    def velocity(t, x):
        return x / t - jnp.array([0.3, 0.2]) * jnp.sinh(x)

    draws = np.random.default_rng(3).standard_normal((60, 400, 2))
    found = [causal.leaf_scores(velocity, x, 0.9) for x in draws]
    spread = np.std([scores for scores, _ in found], axis=0, ddof=1)
    mean = np.sqrt(np.mean([stderr**2 for _, stderr in found], axis=0))
    # 59 degrees of freedom: a standard deviation is known to 9 %
    np.testing.assert_allclose(mean / spread, 1, atol=0.36)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "arguments, words",
    [
        ((lambda t, x: x, np.zeros((40, 2)), 1.0), "t must lie inside"),
        ((lambda t, x: x, np.zeros((40, 2)), 1.5), "t must lie in"),
        ((lambda t, x: x[:1], np.ones((40, 2))), r"velocity\(t, x\) must have shape"),
        ((lambda t, x: jnp.sqrt(x), -np.ones((40, 2))), "finite Jacobian"),
        ((3, np.ones((40, 2))), "velocity must be a function"),
        ((lambda x, t: -t * x, np.ones((40, 2))), r"velocity must take the time first, .*\(x, t\)"),
        ((lambda t, x: x, np.ones((20, 2))), "groups must be"),
        ((lambda t, x: x, np.ones(40)), "x must have shape"),
        ((lambda t, x: x, np.full((40, 2), np.nan)), "x must be finite"),
    ],
)
def test_bad_points_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        causal.leaf_scores(*arguments)


# ------------------------------------------------------------------------------------- the velocity


def simulated(x, waves, t, rounds):
    """Normal equations with noises drawn, [rounds, waves, waves] and [rounds, waves, d]."""
    rng, grams, rights = np.random.default_rng(5), [], []
    for _ in range(rounds):
        noise = rng.standard_normal(x.shape)
        at = t * x + (1 - t) * noise
        cosines = np.cos(at @ waves.frequencies.T + waves.phases)
        grams.append(cosines.T @ cosines / len(x))
        rights.append(cosines.T @ (x - noise) / len(x))
    return np.array(grams), np.array(rights)


def test_the_noise_is_integrated_out_exactly():
    x, t = order._standard(sine(300)), 0.7
    waves = _waves.draw_waves(np.random.default_rng(0), 2, 12)
    gram, _, with_x1, with_x0, *_ = (
        part.sum(0) / 300 for part in _waves.Sums.of(x, waves, t, 3).parts
    )
    grams, rights = simulated(x, waves, t, 400)
    for exact, drawn in ((gram, grams), (with_x1 - with_x0, rights)):
        z = (exact - drawn.mean(0)) / (drawn.std(0) / np.sqrt(len(drawn)))
        assert np.abs(z).max() < 5 and 0.5 < z.std() < 1.5


def test_the_velocity_is_a_regression_with_a_ridge():
    """Written as one regression on 1, x_t and the cosines, the ridge on these alone."""
    x, t, ridge = order._standard(sine(400)), 0.8, np.array([0.01, 0.1])
    waves = _waves.draw_waves(np.random.default_rng(0), 2, 20)
    sums = _waves.Sums.of(x, waves, t, 4)
    gram, cosines, with_x1, with_x0, mean, square = (part.sum(0) / 400 for part in sums.parts)
    at_t = t * t * square + (1 - t) ** 2 * np.eye(2)
    with_xt = t * with_x1 + (1 - t) * with_x0
    whole = np.block(
        [
            [np.ones((1, 1)), t * mean[None], cosines[None]],
            [t * mean[:, None], at_t, with_xt.T],
            [cosines[:, None], with_xt, gram],
        ]
    )
    right = np.concatenate([mean[None], t * square - (1 - t) * np.eye(2), with_x1 - with_x0])
    only = np.diag([0.0] * 3 + [1.0] * len(cosines))
    point = np.array([0.3, -0.8])
    inputs = np.concatenate([[1], point, np.cos(waves.frequencies @ point + waves.phases)])
    expected = [
        inputs @ np.linalg.solve(whole + value * only, right[:, j]) for j, value in enumerate(ridge)
    ]
    normal = sums._normal(np.ones(4, bool))
    weights = _waves._Solver(normal)(normal.right, ridge)
    np.testing.assert_allclose(sums._velocity(normal, weights)(t, point), expected, rtol=1e-8)


def test_a_marginal_is_the_fit_of_its_features_alone():
    x = order._standard(random_additive(1, 3, 300)[0])
    waves = _waves.draw_waves(np.random.default_rng(0), 3, 60)
    part = _waves.Sums.of(x, waves, 0.9, 4).marginal([2, 0])
    alone = _waves.Sums.of(x[:, [2, 0]], part.waves, 0.9, 4)
    assert 0 < len(part.waves.phases) < 60
    for one, other in zip(part.parts, alone.parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


def test_without_a_group_it_is_fitted_again():
    x = order._standard(sine(800))
    sums = _waves.Sums.of(x, _waves.draw_waves(np.random.default_rng(0), 2, 60), 0.9, 8)
    ridge = sums._ridge()
    _, without = sums.velocities()
    for group in (0, 5):
        normal = sums._normal(np.arange(8) != group)
        weights = _waves._Solver(normal)(normal.right, ridge)
        scale = np.abs(weights - without[group - 1].weights).max()
        np.testing.assert_allclose(without[group].weights, weights, atol=0.02 * scale)


def test_slopes_are_those_of_the_velocity_and_of_leaf_scores():
    x = order._standard(sine(800))
    sums = _waves.Sums.of(x, _waves.draw_waves(np.random.default_rng(0), 2, 60), 0.9, 8)
    velocity, _ = sums.velocities()
    falls = -np.sin(x @ velocity.frequencies.T + velocity.phases)
    diagonal, mean = velocity.slopes(falls)
    jacobians = jax.vmap(jax.jacfwd(lambda x: velocity(0.9, x)))(jnp.asarray(x))
    np.testing.assert_allclose(
        np.diagonal(jacobians, axis1=1, axis2=2), diagonal, rtol=0, atol=1e-10
    )
    np.testing.assert_allclose(jacobians.mean(0), mean, rtol=0, atol=1e-10)
    scores, _ = causal.leaf_scores(velocity, x, 0.9)
    np.testing.assert_allclose(scores, order._spread(order._curvatures(diagonal, 0.9)), rtol=1e-9)


def test_the_fit_is_near_the_exact_velocity():
    x = sine(4000)
    centre, scale = x.mean(0), x.std(0)
    drawn = _waves.draw_waves(np.random.default_rng(0), 2, 240)
    sums = _waves.Sums.of((x - centre) / scale, drawn, 0.9, 8)
    velocity, _ = sums.velocities()
    scores, _ = causal.leaf_scores(velocity, noisy((x - centre) / scale, 0.9), 0.9)
    exact, _ = causal.leaf_scores(exact_velocity, noisy(x, 0.9), 0.9)
    assert abs(scores[0] / exact[0] - 1) < 0.1
    assert exact[1] < scores[1] < exact[0] / 3  # the fit's noise adds to a leaf's spread


def test_coupling_is_the_partial_correlation_of_a_normal_law_at_any_time():
    cov = np.asarray(causal.mediator(1.2, 0.7, 0.4).cov)
    precision = np.linalg.inv(cov)
    partial = precision / np.sqrt(np.outer(np.diag(precision), np.diag(precision)))
    for t in (0.5, 0.9):
        jacobian = cdelta.gaussian.velocity_jacobian(
            t, cdelta.Gaussian.standard(3), cdelta.Gaussian(jnp.zeros(3), cov)
        )
        np.testing.assert_allclose(
            order._coupling(np.asarray(jacobian), t), partial, rtol=0, atol=1e-10
        )


# ---------------------------------------------------------------------------------------- the order


def test_rivals_are_features_that_may_come_last_as_well_and_have_an_edge():
    """The last one's score is 0. In turn: less than a tenth above it; three standard errors are
    more than what is between; as high as a normal sample's; and as such a one's by its own error.
    Then one that is told, and one without an edge."""
    scores = np.array([0, 0.05, 0.3, 1, 1, 1, 0.05])
    stderr, null_stderr = np.full((2, 7), 0.01)
    stderr[2], null_stderr[4] = 0.12, 0.2
    null = np.array([0, 0, 0, 0.95, 0.7, 0, 0])
    coupling, coupling_stderr = np.ones((7, 7)), np.full((7, 7), 0.01)
    coupling[0, 6] = 0.02
    found = order._Look(scores, stderr, coupling, coupling_stderr)
    beside = order._Look(null, null_stderr, coupling, coupling_stderr)
    assert order._rivals(found, beside, 0) == [1, 2, 3, 4]


def find(x, key=KEY, **options):
    return causal.find_order(x, key, **{"waves": 160, **options})


@pytest.mark.parametrize("seed", range(3))
def test_nonlinear_models_are_decided_and_right(seed):
    x, graph, _ = random_additive(seed, 3, 3000)
    found = find(x)
    assert found.decided and not found.unclear and admits(found.order, graph)
    assert found.scores.shape == found.null_stderr.shape == (2, 3)
    taken = found.order[::-1]
    assert np.isnan(found.scores[1, taken[0]]) and np.isfinite(found.scores[0]).all()
    assert np.nanargmin(found.scores, axis=1).tolist() == list(taken[:2])


@pytest.mark.parametrize("seed", range(3))
def test_linear_models_are_undecided(seed):
    x, _, _ = random_additive(seed, 3, 3000, linear=True)
    found = find(x)
    assert not found.decided and found.unclear


@pytest.mark.parametrize(("n", "seed", "key"), [(4000, 100, 3), (1000, 111, 111), (1000, 127, 127)])
def test_a_fit_that_bends_by_chance_decides_nothing(n, seed, key):
    """Under the ridge that loses least on these samples one of the two scores is four times the
    other, or more."""
    rng = np.random.default_rng(seed)
    slope = rng.choice([-1, 1], size=(2, 2))[1, 0] * rng.uniform(0.3, 0.9, size=(2, 2))[1, 0]
    noise = rng.normal(size=(n, 2)) * rng.uniform(0.5, 1.5, 2)
    x = np.stack([noise[:, 0], noise[:, 1] + slope * noise[:, 0]], 1)[:, rng.permutation(2)]
    assert not causal.find_order(x, jax.random.key(key)).decided


def test_two_leaves_are_a_tie_and_no_doubt():
    rng = np.random.default_rng(0)
    z, *noise = rng.standard_normal((3, 6000))
    leaves = np.stack([np.sin(2 * z) + noise[0] / 2, np.cos(2 * z) + z / 2 + noise[1] / 2], 1)
    x = np.column_stack([leaves[:, 0], z, leaves[:, 1]])
    found = find(x)
    assert found.decided and found.order[0] == 1
    assert abs(found.scores[0, 0] - found.scores[0, 2]) < 0.1 < found.scores[0, 1] / 3


@pytest.mark.parametrize("seed", range(3))
def test_a_straight_cause_that_ties_with_a_leaf_is_unclear(seed):
    """x1 goes straight into x2, which bends into x3: x1 scores as low as a leaf, for the law is
    that of x2 into x1 as well. Where x1 bends into x2, all is told; and where x3 is its effect,
    too, however straight, for then it cannot come between the two."""
    rng = np.random.default_rng(seed)
    x1, *noise = rng.standard_normal((3, 6000))
    found = {}
    for kind, mechanism in (("straight", 0.8 * x1), ("bent", np.sin(1.5 * x1))):
        x2 = mechanism + 0.6 * noise[0]
        found[kind] = find(np.column_stack([x1, x2, np.sin(1.5 * x2) + noise[1] / 2]))
    assert not found["straight"].decided
    assert {frozenset(pair) for pair in found["straight"].unclear} == {frozenset({0, 1})}
    assert found["bent"].decided and found["bent"].order == (0, 1, 2)
    both = find(np.column_stack([x1, x2, np.sin(1.5 * x2) + 0.6 * x1 + noise[1] / 2]))
    assert both.decided and both.order == (0, 1, 2)


def test_what_may_come_sooner_stands_behind_the_last_it_has_an_edge_with():
    """3 has edges with 0 and 1, and none with 2; 4 has one with 3, just before it, and 5 none."""
    edges = {1: {0}, 2: {1}, 3: {0, 1}, 4: {0, 3}, 5: set()}
    assert list(order._sooner(range(6), edges)) == [(3, (0, 1, 3))]


def test_independent_features_have_no_wrong_order():
    found = find(np.random.default_rng(0).standard_normal((4000, 3)))
    assert found.decided


def test_a_straight_effect_of_a_bent_one_is_what_is_unclear():
    """x bends into y, y goes straight into z: that x comes first is told, y and z are not."""
    rng = np.random.default_rng(0)
    x, *noise = rng.standard_normal((3, 6000))
    y = np.sin(2 * x) + noise[0] / 2
    z = 0.8 * y + noise[1] / 2
    found = find({"z": z, "x": x, "y": y})
    assert found.names == ("z", "x", "y") and found.order[0] == 1
    assert not found.decided and {frozenset(pair) for pair in found.unclear} == {frozenset({0, 2})}


def test_scale_and_key_decide_nothing_and_the_same_key_gives_the_same():
    x, graph, _ = random_additive(5, 3, 3000)
    one = find(x)
    again = find(x)
    np.testing.assert_array_equal(one.scores, again.scores)
    scaled = find(x * [100.0, 0.01, 1.0] + [5.0, 0.0, -3.0])
    np.testing.assert_allclose(scaled.scores, one.scores, rtol=1e-6)
    for unit in (1e-200, 1e200):  # squares of which are 0, or infinite
        np.testing.assert_allclose(find(x * unit).scores, one.scores, rtol=1e-6)
    other = find(x, jax.random.key(1), names=["a", "b", "c"])
    assert other.order == one.order and other.names == ("a", "b", "c")
    assert (other.scores != one.scores)[~np.isnan(one.scores)].all()
    assert admits(one.order, graph)


def test_an_offset_decides_nothing_where_jax_is_single():
    x, names = sine(400), ["a", "b"]
    with jax.enable_x64(False):
        one = find(x, waves=40)
        moved = x + np.array([1e8, 0])
        for samples in (moved, dict(zip(names, moved.T, strict=True))):
            found = find(samples, waves=40)
            np.testing.assert_allclose(found.scores, one.scores, rtol=1e-5)
            assert found.order == one.order


def test_standard_errors_know_the_fit():
    """Of the scores of new samples, and of new frequencies."""
    found = [find(sine(1200, seed), jax.random.key(seed), waves=80) for seed in range(24)]
    spread = np.std([one.scores[0] for one in found], axis=0, ddof=1)
    mean = np.sqrt(np.mean([one.stderr[0] ** 2 for one in found], axis=0))
    # 23 degrees of freedom: a standard deviation is known to 15 %
    assert ((mean / spread > 0.5) & (mean / spread < 2)).all(), mean / spread


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "samples, options, words",
    [
        (np.ones((200, 2)), {}, "must vary in every feature"),
        (np.random.default_rng(0).normal(size=(99, 2)), {}, "samples must be"),
        (np.random.default_rng(0).normal(size=(200, 1)), {}, "samples must be"),
        (np.random.default_rng(0).normal(size=200), {}, "samples must be"),
        (np.full((200, 2), np.inf), {}, "samples must be finite"),
        (np.random.default_rng(0).normal(size=(200, 2)), {"t": 1.0}, "t must lie inside"),
        (np.random.default_rng(0).normal(size=(200, 2)), {"waves": 0}, "waves must be a positive"),
        (np.random.default_rng(0).normal(size=(200, 2)), {"names": ["a"]}, "names must be"),
        (np.random.default_rng(0).normal(size=(200, 2)), {"names": ["a", "a"]}, "be different"),
        (np.random.default_rng(0).normal(size=(200, 2)), {"names": "ab"}, "a list of names"),
        ({"a": np.ones(200), "b": np.ones(199)}, {}, "columns of one length"),
        ({"a": np.ones(200), "b": np.ones(200)}, {"names": ["a", "b"]}, "names are the mapping's"),
        ({"a": ["x"] * 200, "b": np.ones(200)}, {}, r"samples\['a'\] must be"),
        ({}, {}, "columns of one length"),
    ],
)
def test_bad_samples_are_refused(samples, options, words):
    with pytest.raises(ValueError, match=words):
        causal.find_order(samples, KEY, **options)
