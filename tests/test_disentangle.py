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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("size", [1e-25, 1e-6, 1e6, 1e25])
def test_an_overlap_and_its_gradient_do_not_know_the_unit(size, dtype):
    rows = jax.random.normal(KEY, (3, 5), dtype)
    eps = float(jnp.finfo(dtype).eps)
    units = jnp.asarray([size, 1.0, size**0.5], dtype)[:, None]
    np.testing.assert_allclose(overlap(rows * units), overlap(rows), rtol=20 * eps)
    slope, moved = (jax.grad(overlap)(rows * unit) * unit for unit in (1, units))
    np.testing.assert_allclose(moved, slope, rtol=0, atol=20 * eps)
    # the slope is that of the mean squared cosine, by differences in double
    flat, step = np.asarray(rows, np.float64), np.random.default_rng(0).normal(size=(3, 5))

    def mean(rows):
        unit = rows / np.linalg.norm(rows, axis=1)[:, None]
        return ((unit @ unit.T)[np.triu_indices(3, 1)] ** 2).mean()

    difference = (mean(flat + 1e-5 * step) - mean(flat - 1e-5 * step)) / 2e-5
    np.testing.assert_allclose((slope * step).sum(), difference, rtol=1e-8 + 200 * eps)


def test_a_gradient_of_zeros_is_orthogonal_to_all_and_pulls_at_none():
    """A readout that is flat at a latent, as a relu is at half of them."""
    rows = jax.random.normal(KEY, (3, 5)).at[0].set(0)
    np.testing.assert_allclose(overlap(rows), overlap(rows[1:]) / 3, rtol=1e-12)
    slope = jax.grad(overlap)(rows)
    np.testing.assert_allclose(slope[1:], jax.grad(overlap)(rows[1:]) / 3, rtol=1e-12)
    np.testing.assert_array_equal(slope[0], 0)

    network = networks.MLP(2, width=8, layers=1, rngs=nnx.Rngs(0))
    objective = OrthogonalGradients(
        lambda x: jnp.stack([jax.nn.relu(x[0]), x[1], x[0] + x[1]]), latents=16, steps=2
    )
    x1 = jax.random.normal(KEY, (16, 2))
    graph, state = nnx.split(network)
    slopes = jax.grad(lambda state: objective(nnx.merge(graph, state), KEY, x1))(state)
    plain = jax.grad(lambda state: training.loss(nnx.merge(graph, state), KEY, x1))(state)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    assert (
        max(
            float(jnp.abs(a - b).max())
            for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(plain), strict=True)
        )
        > 1e-3
    )  # and the penalty pulls


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
    plain, told = OrthogonalGradients(readout), OrthogonalGradients(readout, 1.0, 64, 4)
    np.testing.assert_allclose(plain(network, KEY, x1), told(network, KEY, x1), rtol=1e-9)
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


def test_a_line_is_looked_at_for_eight_lengths_unless_told():
    """Of its direction, on both sides."""
    for to, reach, met in ((7.9, {}, True), (8.1, {}, False), (8.1, {"reach": 9}, True)):
        for sign in (1, -1):
            direction = jnp.array([2.0 * sign])
            found = along(lambda x: x / 2, jnp.zeros(1), direction, 0, to, **reach)
            assert np.isfinite(found).all() == met
            if met:
                np.testing.assert_allclose(found, [2 * to], rtol=1e-9)


@pytest.mark.parametrize("side", [1, -1])
def test_of_two_places_in_the_first_intervals_the_nearer_one_is_taken(side):
    """The intervals on either side of x0 are equally far; the places in them are not."""

    def f(x):
        return jnp.stack([(side * x[0] + 0.09) * (side * x[0] - 0.04)])

    np.testing.assert_allclose(
        along(f, jnp.zeros(1), jnp.ones(1), 0, 0.0), [side * 0.04], atol=1e-6
    )


@pytest.mark.parametrize(
    ("f", "to"),
    [
        (lambda x: jnp.where(x > 0.3, 1.0, 0.0), 0.5),  # a jump
        (lambda x: 1 / (x - 1.03), 0.0),  # a pole
        (lambda x: 1e-20 * jnp.exp(0.1 * x), -1e-20),  # none, and products of values underflow
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_value_that_is_not_taken_is_not_met(f, to, dtype):
    assert jnp.isnan(along(f, jnp.zeros(1, dtype), jnp.ones(1, dtype), 0, to)).all()


def test_a_value_is_met_in_any_unit():
    """Products of values this small are zero, and every interval would seem to have a crossing."""
    line = along(
        lambda x: 1e-25 * (x - 3), jnp.zeros(1, jnp.float32), jnp.ones(1, jnp.float32), 0, 0
    )
    np.testing.assert_allclose(line, [3], rtol=0, atol=1e-5)


def test_a_steep_step_is_met_on_its_slope():
    def f(x):
        return 1e-3 * jnp.tanh(2e3 * (x - 0.3))

    found = along(f, jnp.zeros(1), jnp.ones(1), 0, 5e-4)
    np.testing.assert_allclose(found, 0.3 + np.arctanh(0.5) / 2e3, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: overlap(jnp.ones((1, 3))), "rows must hold at least two gradients"),
        (lambda: OrthogonalGradients(readout, -1.0), "weight must be finite and not negative"),
        (lambda: OrthogonalGradients(readout, latents=0), "latents must be a positive integer"),
        (lambda: along(readout, jnp.zeros(2), jnp.zeros(3), 0, 1.0), "direction must have shape"),
        (lambda: along(readout, jnp.zeros(2), jnp.ones(2), 2, 1.0), "k must be an index in 0, "),
        (lambda: along(readout, jnp.zeros(2), jnp.ones(2), 0, [1.0]), r"to must have shape \(\)"),
        (lambda: along(lambda x: {"a": x[0]}, [0.0], [1.0], 0, 1.0), "f must return a vector"),
    ],
)
def test_bad_input_is_refused(unchecked, call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_objectives_of_the_same_settings_are_one():
    """So that fits share a compilation."""
    assert OrthogonalGradients(readout, 2) == disentangle.OrthogonalGradients(readout, 2.0)
    assert hash(OrthogonalGradients(readout, 2)) != hash(OrthogonalGradients(readout, 3))
