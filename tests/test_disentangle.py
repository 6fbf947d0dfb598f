"""Overlaps and the penalty by hand, a penalty that does what it is for, and straight lines to a
value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cdelta import Flow, disentangle, jacobian, networks, training
from cdelta.disentangle import OrthogonalGradients, along, overlap

KEY = jax.random.key(0)


def readout(x):
    return jnp.stack([x[0], x[1] + x[0] ** 2])


def test_overlap_is_the_mean_squared_cosine():
    rows = jax.random.normal(KEY, (4, 2, 3))
    flat = np.asarray(rows).reshape(4, 6)
    unit = flat / np.linalg.norm(flat, axis=1)[:, None]
    cosines = [(unit[i] @ unit[j]) ** 2 for i in range(4) for j in range(i)]
    np.testing.assert_allclose(overlap(rows), np.mean(cosines), rtol=1e-12)
    # lengths and turns of the latent do not count
    turn = np.linalg.qr(np.asarray(jax.random.normal(jax.random.key(1), (6, 6))))[0]
    np.testing.assert_allclose(overlap(flat * [[1], [5], [0.1], [2]] @ turn), np.mean(cosines))
    np.testing.assert_allclose(overlap(jnp.eye(3)), 0, rtol=0, atol=1e-15)
    np.testing.assert_allclose(overlap(jnp.ones((3, 2))), 1)
    np.testing.assert_allclose(overlap(jnp.eye(3).at[0].set(0)), 0, rtol=0, atol=1e-15)


def test_the_objective_is_matching_and_weighed_overlap():
    network = networks.MLP(2, width=8, layers=1, rngs=nnx.Rngs(0))
    x1 = jax.random.normal(KEY, (16, 2))
    objective = OrthogonalGradients(readout, weight=3.0, latents=5, steps=2)
    first, second = jax.random.split(KEY)
    flow = Flow(network, "midpoint", 2)
    drawn = jax.random.normal(second, (5, 2))
    overlaps = []
    for x in drawn:
        a, b = np.asarray(jacobian.rows(lambda x: readout(flow(x)), x))
        overlaps.append((a @ b) ** 2 / ((a @ a) * (b @ b)))
    expected = training.loss(network, first, x1) + 3.0 * np.mean(overlaps)
    np.testing.assert_allclose(objective(network, KEY, x1), expected, rtol=1e-6)
    free = OrthogonalGradients(readout, weight=0.0, latents=5, steps=2)
    np.testing.assert_allclose(free(network, KEY, x1), training.loss(network, first, x1), rtol=1e-6)


def test_training_on_the_penalty_makes_gradients_orthogonal():
    # far from orthogonal: the target is stretched along a diagonal
    data = np.asarray(jax.random.normal(KEY, (500, 2)) @ jnp.array([[1.0, 0.9], [0.0, 0.4]]))
    start = networks.MLP(2, width=16, layers=1, rngs=nnx.Rngs(0))
    penalty = OrthogonalGradients(lambda x: x, 10.0, latents=16, steps=2)
    overlaps = {}
    for weight, objective in ((0.0, training.loss), (10.0, penalty)):
        fit = training.fit(
            start, data, KEY, steps=100, batch=64, chunk=50, ema=0.9, progress=False,
            optimizer=training.adamw(1e-2), objective=objective,
        )  # fmt: skip
        flow = Flow(fit.network, "midpoint", 4)
        x = jax.random.normal(jax.random.key(2), (100, 2))
        rows = jax.vmap(lambda x, flow=flow: jacobian.rows(flow, x))(x)
        overlaps[weight] = float(jax.vmap(overlap)(rows).mean())
    assert overlaps[0.0] > 0.1 > 5 * overlaps[10.0]


def test_a_straight_line_to_a_value_ends_at_the_nearest_place_that_has_it():
    def f(x):
        return jnp.stack([x[0], jnp.sin(x[0] + x[1])])

    x0, to = jnp.array([0.3, 0.0]), 0.9
    found = along(f, x0, jnp.array([2.0, 0.0]), 1, to)
    np.testing.assert_allclose(found, [np.arcsin(0.9), 0], atol=1e-6)
    back = along(f, found, jnp.array([0.0, 1.0]), 1, float(f(x0)[1]))
    np.testing.assert_allclose(f(back)[1], f(x0)[1], atol=1e-6)
    assert jnp.isnan(along(f, x0, jnp.array([1.0, 0.0]), 1, 1.5)).all()
    many = jax.vmap(lambda to: along(f, x0, jnp.array([1.0, 1.0]), 0, to))(jnp.array([-1.0, 2.0]))
    np.testing.assert_allclose(many[:, 0], [-1, 2], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: overlap(jnp.ones((1, 3))), "rows must hold at least two gradients"),
        (lambda: OrthogonalGradients(readout, -1.0), "weight must be finite and not negative"),
        (lambda: OrthogonalGradients(readout, latents=0), "latents must be a positive integer"),
        (lambda: along(readout, jnp.zeros(2), jnp.zeros(3), 0, 1.0), "direction must have shape"),
        (lambda: along(readout, jnp.zeros(2), jnp.ones(2), 2, 1.0), "k must be an index in 0, "),
    ],
)
def test_bad_input_is_refused(unchecked, call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_objectives_of_the_same_settings_are_one():
    """So that fits share a compilation."""
    assert OrthogonalGradients(readout, 2) == disentangle.OrthogonalGradients(readout, 2.0)
    assert hash(OrthogonalGradients(readout, 2)) != hash(OrthogonalGradients(readout, 3))
