"""Structural models against sums over paths, Monte Carlo, Gaussian conditioning and autodiff; C6
and C7."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdelta
from cdelta import causal
from cdelta.causal import SCM, LinearSCM

FIRST, SECOND, THIRD = 0, 1, 2  # the i, j and k of C6


def random_scm(seed, n):
    """A dense graph on shuffled features, so that the causal order is not the order of the
    indices."""
    rng = np.random.default_rng(seed)
    place = rng.permutation(n)
    weights = np.tril(rng.normal(size=(n, n)), -1)[np.ix_(place, place)]
    return LinearSCM(weights, rng.uniform(0.5, 1.5, n), rng.normal(size=n))


def partial_correlation(cov, held):
    """From the inverse covariance of the pair and the held feature, not from a Schur complement."""
    precision = np.linalg.inv(np.asarray(cov)[np.ix_([FIRST, SECOND, held], [FIRST, SECOND, held])])
    return -precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1])


def correlation(x, y):
    """Of samples, with its z-score against no correlation (robust: no normality assumed)."""
    products = (x - x.mean()) * (y - y.mean())
    return products.mean() / (x.std() * y.std()), products.mean() / (
        products.std() / np.sqrt(len(products))
    )


# ------------------------------------------------------------------------------------------- linear


@pytest.mark.parametrize("n", [1, 2, 5])
def test_total_effects_are_sums_over_paths(n):
    model = random_scm(n, n)
    weights = np.asarray(model.weights)
    paths = np.eye(n)
    for length in range(1, n):
        for path in itertools.permutations(range(n), length + 1):  # cause first
            paths[path[-1], path[0]] += np.prod(
                [weights[i, j] for j, i in itertools.pairwise(path)]
            )
    np.testing.assert_allclose(model.total_effects, paths, atol=1e-12)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_features_solve_their_equations(n):
    model = random_scm(10 + n, n)
    noise = jax.random.normal(jax.random.key(n), (n,))
    x = np.zeros(n)
    for i in model.order:  # one equation after the other
        x[i] = model.shift[i] + np.asarray(model.weights)[i] @ x + model.noise[i] * noise[i]
    np.testing.assert_allclose(model(noise), x, atol=1e-13)
    np.testing.assert_allclose(model.noises(x), noise, atol=1e-13)
    np.testing.assert_allclose(model.jacobian(noise), model.structural_map, atol=1e-13)
    np.testing.assert_allclose(model(jnp.zeros(n)), model.mean, atol=1e-13)


def test_order_puts_causes_first():
    model = random_scm(3, 7)
    place = np.argsort(model.order)
    effects, causes = np.nonzero(model.weights)
    assert (place[causes] < place[effects]).all() and sorted(model.order) == list(range(7))
    assert LinearSCM(jnp.zeros((3, 3)), jnp.ones(3)).order == (0, 1, 2)


def test_moments_are_those_of_the_samples():
    model, n = random_scm(4, 4), 200_000
    x = np.asarray(model.sample(jax.random.key(0), n))
    assert x.shape == (n, 4)
    z = (x.mean(0) - model.mean) / (x.std(0) / np.sqrt(n))
    assert np.abs(z).max() < 4
    centred = x - np.asarray(model.mean)
    products = centred[:, :, None] * centred[:, None, :]
    z = (products.mean(0) - model.cov) / (products.std(0) / np.sqrt(n))
    assert np.abs(z).max() < 4


def test_do_is_the_surgery_on_the_graph():
    model, n = random_scm(5, 4), 100_000
    target = model.order[1]
    done = model.do(target, 1.7)
    # by hand: the equations in order, one of them replaced
    noise = np.asarray(jax.random.normal(jax.random.key(1), (n, 4)))
    x = np.zeros((n, 4))
    for i in model.order:
        x[:, i] = (
            model.shift[i]
            + x @ np.asarray(model.weights)[i]
            + np.asarray(model.noise)[i] * noise[:, i]
        )
        if i == target:
            x[:, i] = 1.7
    np.testing.assert_allclose(jax.vmap(done)(noise), x, atol=1e-12)
    assert np.abs((x.mean(0) - done.mean) / np.maximum(x.std(0) / np.sqrt(n), 1e-12)).max() < 4
    np.testing.assert_allclose(done.cov[target], 0, atol=0)
    earlier = [model.order[0]]
    np.testing.assert_allclose(
        done.cov[np.ix_(earlier, earlier)], model.cov[np.ix_(earlier, earlier)], rtol=1e-14
    )
    # the effect of an intervention is the derivative of the mean in its value
    effect = jax.jacfwd(lambda value: model.do(target, value).mean)(0.3)
    np.testing.assert_allclose(effect, model.total_effects[:, target], atol=1e-13)


def test_do_twice_and_refused_noise_after_it():
    model = causal.mediator(0.8, -1.2)
    both = model.do(FIRST, 1.0).do(THIRD, 2.0)
    np.testing.assert_allclose(both.mean, [1.0, -2.4, 2.0], atol=1e-13)
    np.testing.assert_allclose(both.noises(both(jnp.array([3.0, 4.0, 5.0]))), [0, 4, 0], atol=1e-13)


def test_counterfactual_keeps_the_noises():
    model = random_scm(6, 5)
    x = model.sample(jax.random.key(2), 3)[1]
    target = model.order[2]
    # in a linear model only the difference in the cause travels
    expected = x + model.total_effects[:, target] * (2.5 - x[target])
    np.testing.assert_allclose(model.counterfactual(x, target, 2.5), expected, atol=1e-12)
    np.testing.assert_allclose(model.counterfactual(x, target, x[target]), x, atol=1e-12)


# ----------------------------------------------------------------------------------------------- C6


@pytest.mark.parametrize("graph", [causal.common_cause, causal.mediator])
@pytest.mark.parametrize("effects", [(1.0, 1.0), (-0.7, 1.6)])
def test_holding_a_common_cause_or_a_mediator_removes_the_correlation(graph, effects):
    model = graph(*effects, noise=jnp.array([0.8, 1.1, 0.6]))
    assert abs(model.cov[FIRST, SECOND]) > 0.2
    assert abs(partial_correlation(model.cov, THIRD)) < 1e-14


def test_a_direct_effect_survives_holding_the_mediator():
    model = causal.mediator(0.9, 0.5, direct=0.4)
    # the regression coefficient of j on i and k is the direct effect
    both = np.asarray(model.cov)[np.ix_([FIRST, THIRD], [FIRST, THIRD])]
    np.testing.assert_allclose(
        np.linalg.solve(both, np.asarray(model.cov)[[FIRST, THIRD], SECOND])[0], 0.4, atol=1e-13
    )


def test_holding_a_collider_makes_a_correlation_and_do_does_not():
    a, b = 0.9, -1.3
    model = causal.collider(a, b)
    assert model.cov[FIRST, SECOND] == 0
    expected = -a * b / np.sqrt((a**2 + 1) * (b**2 + 1))  # i and j given k, unit noises
    np.testing.assert_allclose(partial_correlation(model.cov, THIRD), expected, atol=1e-14)
    done = model.do(THIRD, 0.7)
    np.testing.assert_array_equal(done.cov[:2, :2], model.cov[:2, :2])


@pytest.mark.parametrize(
    ("graph", "seen", "held", "set_"),
    [
        (causal.common_cause, True, False, False),
        (causal.mediator, True, False, False),
        (causal.collider, False, True, False),
    ],
)
def test_what_samples_show(graph, seen, held, set_):
    """Correlation of i and j: as seen; with k in a narrow band (no formula); with k set."""
    model, n = graph(), 400_000
    x = np.asarray(model.sample(jax.random.key(3), n))
    # so narrow that k's spread in it correlates i and j by less than 1e-3
    band = x[np.abs(x[:, THIRD] - 0.5) < 0.05]
    done = np.asarray(model.do(THIRD, 0.5).sample(jax.random.key(4), len(band)))
    for rows, dependent in ((x, seen), (band, held), (done, set_)):
        r, z = correlation(rows[:, FIRST], rows[:, SECOND])
        assert (abs(z) > 20) if dependent else (abs(z) < 4), (r, z)
    r, _ = correlation(band[:, FIRST], band[:, SECOND])
    exact = partial_correlation(model.cov, THIRD)
    assert abs(r - exact) < 4 * (1 - exact**2) / np.sqrt(len(band)) + 1e-3


def test_a_mediator_and_a_common_cause_can_have_one_law():
    """Nothing observed tells them apart: a mediator whose first feature has the variance that the
    other graph gives."""
    fork = causal.common_cause(0.8, 0.6)
    back = 0.8 / (0.8**2 + 1)  # regression of k on i
    chain = causal.mediator(
        back, 0.6, noise=jnp.array([np.sqrt(0.8**2 + 1), 1.0, np.sqrt(1 - 0.8 * back)])
    )
    np.testing.assert_allclose(chain.cov, fork.cov, atol=1e-14)
    # an intervention on i does
    assert (
        fork.do(FIRST, 1.0).mean[SECOND] == 0
        and abs(chain.do(FIRST, 1.0).mean[SECOND] - back * 0.6) < 1e-14
    )


# ---------------------------------------------------------------------------------------- nonlinear


def curved():
    """A nonlinear common cause, its noise scaled by the cause, and a collider."""
    return SCM(
        {
            "z": lambda x, e: e,
            "a": lambda x, e: jnp.sin(x["z"]) + (0.5 + 0.2 * x["z"] ** 2) * e,
            "b": lambda x, e: x["z"] ** 2 - jnp.sinh(0.5 * e),
            "c": lambda x, e: jnp.tanh(x["a"]) * x["b"] + e + 0.1 * e**3,
        }
    )


def by_hand(noise):
    z, u, v, w = noise
    a = np.sin(z) + (0.5 + 0.2 * z**2) * u
    b = z**2 - np.sinh(0.5 * v)
    return np.array([z, a, b, np.tanh(a) * b + w + 0.1 * w**3])


def test_equations_one_after_the_other():
    model = curved()
    noise = np.asarray(jax.random.normal(jax.random.key(5), (6, 4)))
    np.testing.assert_allclose(
        jax.jit(jax.vmap(model))(noise), [by_hand(row) for row in noise], atol=1e-13
    )
    assert model.names == ("z", "a", "b", "c") and model.order == (0, 1, 2, 3)
    same = model.sample(jax.random.key(6), 4)
    np.testing.assert_array_equal(same, model.sample(jax.random.key(6), 4))


def test_jacobian_is_the_limit_of_differences():
    model, h = curved(), 1e-6
    noise = np.array([0.4, -1.2, 0.7, 1.5])
    differences = np.stack(
        [(by_hand(noise + h * e) - by_hand(noise - h * e)) / (2 * h) for e in np.eye(4)], 1
    )
    jacobian = model.jacobian(noise)
    np.testing.assert_allclose(jacobian, differences, atol=1e-8)
    np.testing.assert_array_equal(jnp.triu(jacobian, 1), 0)


@pytest.mark.parametrize("seed", range(3))
def test_abduction_inverts_the_map_and_its_derivative(seed):
    model = curved()
    noise = 1.5 * jax.random.normal(jax.random.key(seed), (4,))
    x = model(noise)
    np.testing.assert_allclose(model.noises(x), noise, atol=1e-11)
    inverse = jax.jacfwd(model.noises)(x)
    np.testing.assert_allclose(inverse @ model.jacobian(noise), np.eye(4), atol=1e-9)
    np.testing.assert_allclose(jax.jacrev(model.noises)(x), inverse, atol=1e-12)
    np.testing.assert_allclose(jax.jit(model.noises)(x), noise, atol=1e-11)


def test_abduction_in_single_precision():
    model = curved()
    noise = jnp.array([0.3, -0.8, 1.1, 0.2], jnp.float32)
    found = model.noises(model(noise))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, noise, atol=3e-6)


def test_counterfactual_is_the_model_run_again():
    model = curved()
    noise = np.array([0.4, -1.2, 0.7, 1.5])
    z, _, v, w = noise
    b = z**2 - np.sinh(0.5 * v)
    expected = [z, 2.0, b, np.tanh(2.0) * b + w + 0.1 * w**3]
    x = model(noise)
    np.testing.assert_allclose(model.counterfactual(x, 1, 2.0), expected, atol=1e-11)
    np.testing.assert_allclose(model.do("a", 2.0)(noise), expected, atol=1e-13)
    # the derivative in the value: the local effect of do(a), c alone comes after a
    effect = jax.jacfwd(lambda value: model.counterfactual(x, 1, value))(2.0)
    np.testing.assert_allclose(effect, [0, 1, 0, b / np.cosh(2.0) ** 2], atol=1e-11)


def test_both_kinds_of_model_agree():
    linear = causal.common_cause(0.7, -0.4, noise=jnp.array([0.5, 0.6, 1.3])).do(THIRD, 0.2)
    curved = SCM(
        {
            "k": lambda x, e: 1.3 * e,
            "i": lambda x, e: 0.7 * x["k"] + 0.5 * e,
            "j": lambda x, e: -0.4 * x["k"] + 0.6 * e,
        }
    ).do("k", 0.2)
    noise = jnp.array([0.3, -1.0, 0.6])
    order = np.array([THIRD, FIRST, SECOND])
    np.testing.assert_allclose(curved(noise[order]), linear(noise)[order], atol=1e-14)
    x = linear(noise)
    np.testing.assert_allclose(curved.noises(x[order]), linear.noises(x)[order], atol=1e-13)


# ----------------------------------------------------------------------------------------------- C7


def test_local_effects_are_the_cholesky_factor():
    rows = jax.random.normal(jax.random.key(7), (4, 2, 5))
    order = [2, 0, 3, 1]
    lower, directions = causal.local_effects(rows, order)
    flat, q = np.asarray(rows)[order].reshape(4, 10), np.asarray(directions).reshape(4, 10)
    np.testing.assert_allclose(lower, np.linalg.cholesky(flat @ flat.T), atol=1e-13)
    np.testing.assert_allclose(q @ q.T, np.eye(4), atol=1e-13)
    np.testing.assert_allclose(lower @ q, flat, atol=1e-13)
    assert directions.shape == (4, 2, 5)


@pytest.mark.parametrize("seed", range(3))
def test_local_effects_of_a_linear_model_are_its_structural_map(seed):
    """However the latent is rotated, and with more latent dimensions than features."""
    model = random_scm(seed, 4)
    rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(seed), (9, 9)))[0][:4]
    rows = cdelta.jacobian.rows(lambda latent: model(rotation @ latent), jnp.ones(9))
    order = np.array(model.order)
    lower, directions = causal.local_effects(rows, model.order)
    np.testing.assert_allclose(lower, model.structural_map[np.ix_(order, order)], atol=1e-12)
    np.testing.assert_allclose(directions, rotation[order], atol=1e-12)
    effects = lower / jnp.diag(lower)
    np.testing.assert_allclose(effects, model.total_effects[np.ix_(order, order)], atol=1e-12)


def test_following_a_direction_moves_a_feature_and_what_comes_after_it():
    model = curved()
    noise = jnp.array([0.4, -1.2, 0.7, 1.5])
    lower, directions = causal.local_effects(model.jacobian(noise), range(4))
    moved = jax.jvp(model, (noise,), (directions[1],))[1]
    np.testing.assert_allclose(moved, lower[:, 1], atol=1e-13)
    assert moved[0] == 0 and moved[1] > 0
    # as the counterfactual says: the derivative under do(a), from abduction and not from the
    # Jacobian
    x = model(noise)
    effect = jax.jacfwd(lambda value: model.counterfactual(x, 1, value))(x[1])
    np.testing.assert_allclose(lower[:, 1] / lower[1, 1], effect, atol=1e-10)


def test_local_effects_of_some_features_batched_and_in_single_precision():
    rows = jax.random.normal(jax.random.key(8), (6, 5, 20), jnp.float32)
    each = [causal.local_effects(row, [3, 1]) for row in rows]
    lower, directions = jax.jit(jax.vmap(functools.partial(causal.local_effects, order=[3, 1])))(
        rows
    )
    assert lower.shape == (6, 2, 2) and directions.dtype == jnp.float32
    np.testing.assert_allclose(lower, [pair[0] for pair in each], atol=3e-6)
    np.testing.assert_allclose(
        jnp.einsum("bkl,blx->bkx", lower, directions), rows[:, [3, 1]], atol=3e-6
    )


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("weights", "noise", "message"),
    [
        (
            [[0, 1], [1, 0]],
            [1, 1],
            r"acyclic, got a cycle among features \[0, 1\]|acyclic.*\[1, 0\]",
        ),
        ([[0, 0, 1], [1, 0, 0], [0, 1, 0]], [1, 1, 1], r"acyclic.*\[(0, 1, 2|1, 2, 0|2, 0, 1)\]"),
        ([[0, 0], [0, 0.5]], [1, 1], r"acyclic.*\[1\]"),
        ([[0, 1]], [1], r"square.*\(1, 2\)"),
        (np.zeros((0, 0)), [], r"square"),
        (np.zeros((2, 2)), [1, 1, 1], r"noise must have shape \(2,\).*\(3,\)"),
        (np.zeros((2, 2)), [1, 0], r"noise must be positive"),
        (np.zeros((2, 2)), [1, -2], r"noise must be positive"),
        ([[0, 0], [np.nan, 0]], [1, 1], r"weights must be finite"),
        (np.zeros((2, 2)), [1, np.inf], r"noise must be finite"),
    ],
)
def test_linear_models_refused(unchecked, weights, noise, message):
    with pytest.raises(ValueError, match=message):
        LinearSCM(weights, noise)


def test_calls_refused(unchecked):
    model = causal.collider()
    for index in (3, -1, 1.0, True, "k"):
        with pytest.raises(ValueError, match=r"index must hold feature indices in 0\.\.2"):
            model.do(index, 0.0)
    with pytest.raises(ValueError, match="value must be finite"):
        model.do(0, np.nan)
    with pytest.raises(ValueError, match=r"value must have shape \(\)"):
        model.do(0, [1.0, 2.0])
    with pytest.raises(ValueError, match="n must be positive"):
        model.sample(jax.random.key(0), 0)
    with pytest.raises(ValueError, match=r"noise must have shape \(3,\)"):
        model(jnp.zeros(2))
    with pytest.raises(ValueError, match=r"x must have shape \(3,\)"):
        model.noises(jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"noise must be a scalar or have shape \(3,\)"):
        causal.mediator(noise=jnp.ones(2))


def test_nonlinear_models_refused(unchecked):
    with pytest.raises(ValueError, match="at least one"):
        SCM({})
    late = SCM({"a": lambda x, e: x["b"] + e, "b": lambda x, e: e})
    with pytest.raises(ValueError, match="equation of 'a' asks for 'b'"):
        late(jnp.zeros(2))
    with pytest.raises(ValueError, match=r"the value of 'a' must have shape \(\)"):
        SCM({"a": lambda x, e: jnp.array([e, e])})(jnp.zeros(1))
    positive = SCM({"a": lambda x, e: jnp.exp(e)})
    with pytest.raises(ValueError, match=r"can take, got \{'a': -1.0\}"):
        positive.noises(jnp.array([-1.0]))
    with pytest.raises(ValueError, match="name one of"):
        positive.do("b", 1.0)


@pytest.mark.parametrize(
    ("rows", "order", "message"),
    [
        (np.eye(3), [0, 0, 1], "each feature once"),
        (np.eye(3), [0, 3], r"order must hold feature indices in 0..2, got 3"),
        (np.eye(3), [-1, 0], r"order must hold"),
        (np.eye(3), [], "each feature once"),
        (
            np.ones((3, 2)) + np.eye(3, 2),
            [0, 1, 2],
            "outnumber the latent's dimensions, got 3 of 2",
        ),
        ([[1.0, 0, 0], [2, 0, 0]], [0, 1], r"independent; feature 1 adds nothing"),
        ([[1.0, 0, 0], [0, 0, 0]], [1, 0], r"independent; feature 1 adds nothing"),
        (np.ones(3), [0], r"rows must have shape"),
        ([[np.nan, 1.0]], [0], "finite"),
    ],
)
def test_local_effects_refused(unchecked, rows, order, message):
    with pytest.raises(ValueError, match=message):
        causal.local_effects(rows, order)
