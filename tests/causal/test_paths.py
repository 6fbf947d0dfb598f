"""Moved latents: against counterfactuals by abduction, straight lines, paths of least velocity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdelta
from cdelta import causal
from tests.causal.examples import curved, random_scm

NOISE = np.array([0.4, -1.2, 0.7, 1.5])
TURN = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (6, 6)))[0]
LATENT = np.asarray(jax.random.normal(jax.random.key(1), (6,)))


def rotated(model):
    return lambda x: model(TURN[: model.features] @ x)


@pytest.mark.parametrize(("k", "to"), [(0, 1.0), (1, -0.4), (2, 2.5), (3, 0.0)])
def test_following_the_frame_is_the_counterfactual_where_it_does_not_turn(k, to):
    model = curved()
    f = rotated(model)
    moved = causal.follow(f, LATENT, k, range(4), to)
    exact = model.counterfactual(f(LATENT), k, to)
    np.testing.assert_allclose(f(moved), exact, atol=2e-5)
    # what the features do not see has not moved
    np.testing.assert_allclose(TURN[4:] @ moved, TURN[4:] @ LATENT, rtol=0, atol=1e-10)


def test_features_before_stay_and_features_after_are_not_asked():
    model = random_scm(3, 4)
    f, order = rotated(model), model.order
    k = order[2]
    moved = causal.follow(f, LATENT, k, order, 3.0)
    before, after = f(LATENT), f(moved)
    np.testing.assert_allclose(after[k], 3.0, atol=1e-6)
    for other in order[:2]:
        np.testing.assert_allclose(after[other], before[other], atol=1e-6)
    same = causal.follow(f, LATENT, k, order[:3], 3.0)
    np.testing.assert_allclose(same, moved, rtol=0, atol=1e-12)
    wrong = causal.follow(f, LATENT, k, order[2:], 3.0)  # its causes left out: they move with it
    assert np.abs(f(wrong) - before)[list(order[:2])].max() > 0.01


def test_steering_meets_several_values_by_the_shortest_path():
    """Linear features: the foot of the perpendicular, by the pseudo-inverse."""
    rows = jax.random.normal(jax.random.key(2), (3, 6))
    moved = causal.steer(lambda x: rows @ x, LATENT, {0: 1.0, 2: -2.0})
    some = np.asarray(rows)[[0, 2]]
    exact = LATENT + np.linalg.pinv(some) @ (np.array([1.0, -2.0]) - some @ LATENT)
    np.testing.assert_allclose(moved, exact, rtol=0, atol=1e-9)


def test_values_belong_to_their_features():
    rows = jax.random.normal(jax.random.key(2), (3, 6))
    moved = causal.steer(lambda x: rows @ x, LATENT, {2: -2.0, 0: 1.0})
    np.testing.assert_allclose((rows @ moved)[jnp.array([0, 2])], [1.0, -2.0], rtol=0, atol=1e-9)


def test_steering_curved_features_moves_them_on_straight_lines_across_their_level_sets():
    f = rotated(curved())
    start = f(LATENT)
    half = causal.steer(f, LATENT, {1: start[1] + 0.25, 2: start[2] - 0.5})
    moved = causal.steer(f, LATENT, {1: start[1] + 0.5, 2: start[2] - 1.0})
    np.testing.assert_allclose(f(moved)[1:3], start[1:3] + np.array([0.5, -1.0]), atol=1e-6)
    # half of the way is on the way
    onward = causal.steer(f, half, {1: start[1] + 0.5, 2: start[2] - 1.0})
    np.testing.assert_allclose(onward, moved, atol=1e-6)
    # and each piece of it goes along the gradients
    tiny = causal.steer(f, LATENT, {1: start[1] + 1e-5, 2: start[2]}, rtol=1e-10)
    rows = np.asarray(cdelta.jacobian.rows(f, LATENT))[1:3]
    step = np.asarray(tiny - LATENT)
    outside = step - np.linalg.pinv(rows) @ (rows @ step)
    assert np.linalg.norm(outside) < 1e-4 * np.linalg.norm(step)


def test_a_value_that_is_there_already_moves_nothing():
    f = rotated(curved())
    start = f(LATENT)
    np.testing.assert_array_equal(causal.steer(f, LATENT, {0: start[0], 3: start[3]}), LATENT)
    np.testing.assert_array_equal(causal.follow(f, LATENT, 1, range(4), start[1]), LATENT)


def test_many_latents_at_once_and_images_in_single_precision():
    latents = jax.random.normal(jax.random.key(3), (5, 2, 3), jnp.float32)

    def f(x):
        x = TURN.astype(jnp.float32) @ x.ravel()
        return jnp.stack([x[0], x[1] + 0.3 * x[0] ** 2, jnp.sinh(x[2]) + x[1]])

    steered = jax.vmap(lambda x: causal.steer(f, x, {1: 0.5, 2: 1.0}))(latents)
    assert steered.shape == latents.shape and steered.dtype == jnp.float32
    np.testing.assert_allclose(jax.vmap(f)(steered)[:, 1:], [[0.5, 1.0]] * 5, atol=2e-3)
    followed = jax.vmap(lambda x: causal.follow(f, x, 1, [0, 1, 2], 0.5))(latents)
    np.testing.assert_allclose(jax.vmap(f)(followed)[:, 1], 0.5, atol=2e-3)
    alone = causal.steer(f, latents[2], {1: 0.5, 2: 1.0})
    np.testing.assert_allclose(steered[2], alone, atol=1e-4)


def bounded(x):
    return jnp.stack([jnp.tanh(x[0]), x[1]])


def test_what_cannot_be_reached_is_said():
    x = jnp.array([0.3, 0.2])
    with pytest.raises(ValueError, match=r"cannot be brought to \{0: 1.5\} from here"):
        causal.steer(bounded, x, {0: 1.5})
    with pytest.raises(ValueError, match=r"cannot be brought to \{0: -1.25\}"):
        causal.follow(bounded, x, 0, [0, 1], -1.25, max_steps=200)
    both = jax.vmap(lambda to: causal.steer(bounded, x, {0: to}))(jnp.array([0.9, 1.5]))
    np.testing.assert_allclose(both[0, 0], np.arctanh(0.9), atol=1e-5)
    assert np.isnan(both[1]).all()


def test_a_path_counts_by_where_it_ends():
    """A jump that no gradient sees carries the feature past its value."""

    def f(x):
        return jnp.stack([x[0] + jnp.where(x[0] > 1, 5.0, 0.0), x[1]])

    np.testing.assert_allclose(causal.steer(f, jnp.zeros(2), {0: 0.9}), [0.9, 0], atol=1e-6)
    with pytest.raises(ValueError, match=r"cannot be brought to \{0: 3.0\} from here"):
        causal.steer(f, jnp.zeros(2), {0: 3.0})


@pytest.mark.parametrize("offset", [0.0, 300.0, -1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_where_a_path_ends_does_not_hang_on_where_zero_is(offset, dtype):
    def jumps(x):
        return jnp.stack([offset + x[0] + jnp.where(x[0] > 1, 2.0, 0.0), x[1]])

    x = np.array([0.0, 0.3], dtype)
    for way in (
        lambda to: causal.steer(jumps, x, {0: offset + to}),
        lambda to: causal.follow(jumps, x, 0, [1, 0], offset + to),
    ):
        np.testing.assert_allclose(way(0.5), [0.5, 0.3], rtol=0, atol=2e-3)
        with pytest.raises(ValueError, match="cannot be brought to"):
            way(1.5)


def test_where_all_values_are_there_already_no_gradient_is_asked():
    def saturated(x):
        return jnp.stack([jax.nn.relu(x[0]), x[1]])

    x = np.array([-1.0, 0.2])
    np.testing.assert_array_equal(causal.steer(saturated, x, {0: 0.0, 1: 0.2}), x)
    np.testing.assert_array_equal(causal.follow(saturated, x, 0, [0], 0.0), x)
    with pytest.raises(ValueError, match="cannot be brought to"):
        causal.steer(saturated, x, {0: 0.1, 1: 0.2})


def test_a_cause_that_is_saturated_leaves_no_direction():
    """Held features have no gradient to leave out: what a direction does to them is not told."""

    def f(x):
        return jnp.stack([jax.nn.relu(x[1]), x[0] + x[1], x[0]])

    with pytest.raises(ValueError, match="cannot be brought to"):
        causal.follow(f, np.array([0.0, -1.0]), 1, [0, 1], 1.0)
    np.testing.assert_allclose(
        causal.follow(f, np.array([0.0, 1.0]), 1, [0, 1], 2.0), [1, 1], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("unit", [1e-9, 1e-3, 1.0, 1e9])
def test_where_a_path_ends_is_judged_in_the_features_unit(unit):
    def jumps(x):
        return unit * jnp.stack([x[0] + jnp.where(x[0] > 0, 10.0, 0.0), x[1]])

    x = jnp.array([-0.5, 0.6])
    ways = (
        lambda to: causal.steer(jumps, x, {0: unit * to}),
        lambda to: causal.follow(jumps, x, 0, [0], unit * to),
    )
    for way in ways:
        np.testing.assert_allclose(way(-0.2), [-0.2, 0.6], rtol=0, atol=1e-6)
        with pytest.raises(ValueError, match="cannot be brought to"):
            way(5.0)
    # a feature that is asked to stay at zero, beside one that moves
    still = causal.steer(lambda x: unit * jnp.stack([x[0] * x[1], x[1]]), jnp.array([0.0, 0.6]),
                         {0: 0.0, 1: 3.0 * unit})  # fmt: skip
    np.testing.assert_allclose(still, [0, 3], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: causal.steer(bounded, jnp.zeros(2), {}), "targets must name"),
        (lambda: causal.steer(bounded, jnp.zeros(2), {2: 0.5}), "targets must be different"),
        (
            lambda: causal.steer(bounded, jnp.zeros(2), {0: jnp.ones(1)}),
            r"targets\[0\] must have shape",
        ),
        (lambda: causal.steer(bounded, jnp.zeros(1), {0: 0.1, 1: 0.1}), "targets must not outnum"),
        (lambda: causal.follow(bounded, jnp.zeros(1), 1, [0, 1], 0.5), "order up to k must not"),
        (lambda: causal.follow(bounded, jnp.zeros(2), 0, [0], np.nan), "to must be finite"),
        (lambda: causal.follow(bounded, jnp.zeros(2), 1, [0], 0.5), "order must hold the feature"),
        (lambda: causal.follow(bounded, jnp.zeros(2) / 0, 0, [0], 0.5), "x0 must"),
        (lambda: causal.follow(jnp.sum, jnp.zeros(2), 0, [0], 0.5), "f must return a vector"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
