"""Interventions and counterfactuals, in both kinds of model, against equations replaced by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdelta import causal
from cdelta.causal import SCM, LinearSCM, Shift
from tests.causal.examples import by_hand, curved, random_scm


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
