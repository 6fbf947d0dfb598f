"""Structural models against sums over paths, Monte Carlo and equations solved by hand; abduction."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdelta import causal
from cdelta.causal import SCM, LinearSCM
from tests.causal.examples import by_hand, curved, large_backdoor, random_scm


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
