"""No random key is used twice: jax follows each key through the program of whatever draws."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.errors import KeyReuseError

from cdelta import (
    Empirical,
    Gaussian,
    GaussianMixture,
    causal,
    dependence,
    networks,
    quality,
    training,
)
from cdelta.causal import _nodes
from cdelta.datasets import faces, shapes, toy

KEY = jax.random.key(0)
EYES = jnp.stack([jnp.eye(2)] * 3)


# a label, a number and two vectors; what is fitted of them does not matter
LAYOUT = _nodes.Layout.of(tuple("kavw"), np.zeros((4, 4), bool), {"v": (2,), "w": (2,)}, {"k": 3})
LAYOUT = LAYOUT.with_shapes({"k": np.zeros(1), "a": np.zeros(1), "v": 0, "w": 0})
FLOW = SimpleNamespace(layout=LAYOUT, nodes=_nodes.Pieces(None, {}, {"k": jnp.ones(3) / 3}))


def draws_twice(key):
    return jax.random.normal(key, (3,)) + jax.random.uniform(key, (3,))


def velocity(t, x):
    return t * x


DRAWING = {
    "a Gaussian": lambda key: Gaussian(jnp.zeros(2), jnp.eye(2)).sample(key, 4),
    "a mixture": lambda key: GaussianMixture(jnp.ones(3) / 3, jnp.ones((3, 2)), EYES).sample(
        key, 4
    ),
    "a dataset": lambda key: Empirical(jnp.ones((5, 2)), 0.1).sample(key, 4),
    "moons": lambda key: toy.moons(key, 4),
    "a board": lambda key: toy.checkerboard(key, 4),
    "rings": lambda key: toy.rings(key, 4),
    "noises of shapes": lambda key: shapes.noises(key, 3),
    "noises of faces": lambda key: faces.noises(key, 3),
    "a linear model": lambda key: causal.collider().sample(key, 4),
    "a loss": lambda key: training.loss(velocity, key, jnp.ones((4, 2))),
    "a target's loss": lambda key: training.target_loss(velocity, key, jnp.ones((4, 2))),
    "a loss of some without a label": lambda key: training._some_unlabelled(
        lambda t, x, c: c * x,
        key,
        (jnp.ones((4, 2)), jnp.ones(4)),
        objective=training.loss,
        null=0.0,
        share=0.3,
    ),
    "nodes of a causal flow": lambda key: _nodes.draw(FLOW, key, 4),
}


@pytest.mark.parametrize("name", DRAWING)
def test_what_draws_uses_a_key_once(name):
    with jax.debug_key_reuse(True):
        jax.eval_shape(jax.jit(DRAWING[name]), KEY)


def test_a_key_used_twice_is_seen():
    with jax.debug_key_reuse(True), pytest.raises(KeyReuseError):
        jax.eval_shape(jax.jit(draws_twice), KEY)


SAMPLES = np.random.default_rng(0).normal(size=(100, 2))
INNER = {name for name in DRAWING if "loss" in name or "nodes" in name}  # who calls them has looked
OF_A_KEY = {name: draw for name, draw in DRAWING.items() if name not in INNER} | {
    "a model": lambda key: causal.SCM({"a": lambda x, e: e}).sample(key, 4),
    "an order": lambda key: causal.find_order(SAMPLES, key),
    "a fit": lambda key: causal.CausalFlow([[0, 0], [1, 0]]).fit(SAMPLES, key),
    "a distance": lambda key: quality.sliced_wasserstein(SAMPLES, SAMPLES, key),
}


@pytest.mark.parametrize("name", OF_A_KEY)
def test_a_seed_in_place_of_a_key_is_named(name, unchecked):
    for wrong in (0, jax.random.split(KEY, 2)):
        with pytest.raises(ValueError, match="key must be one key"):
            OF_A_KEY[name](wrong)


@pytest.mark.parametrize("name", [name for name in DRAWING if "loss" not in name])
def test_a_key_of_the_old_kind_draws_the_same(name):
    old, new = DRAWING[name](jax.random.PRNGKey(3)), DRAWING[name](jax.random.key(3))
    for one, other in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
        np.testing.assert_array_equal(one, other)


def sine(x):
    return jnp.sin(x)


@pytest.mark.parametrize(
    "estimate",
    [
        lambda: dependence.wiggle_moment(sine, KEY, 2, 2, "jvp"),
        lambda: dependence.feature_covariance(sine, KEY, 2, 2, "jvp"),
        lambda: dependence.held_moment(sine, KEY, 2, 2, 0, method="jvp"),
    ],
    ids=["wiggle", "covariance", "held"],
)
def test_latents_and_probes_of_an_estimator_have_keys_of_their_own(estimate):
    with jax.debug_key_reuse(True):
        estimate()


def test_sampler_and_objective_of_a_step_have_keys_of_their_own():
    def objective(network, key, batch):
        return training.loss(network, key, batch)

    with jax.debug_key_reuse(True):
        fit = training.fit(
            networks.MLP(1, width=2, layers=1, rngs=nnx.Rngs(0)),
            lambda key: jax.random.normal(key, (2, 1)),
            KEY,
            steps=1,
            objective=objective,
            progress=False,
        )
    assert np.isfinite(fit.losses).all()
