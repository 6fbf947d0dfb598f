"""Counterfactuals of images: a linear generator, where all ways are closed forms; a bent one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdelta
from cdelta import causal
from cdelta.causal.images import ImageModel, Noises
from tests.causal.examples import random_scm

SHAPE, D, N = (2, 4), 8, 5
MIX = 0.6 * np.asarray(jax.random.normal(jax.random.key(0), (D, D)))
IMAGES = np.asarray(jax.random.normal(jax.random.key(1), (N, *SHAPE)))
TO = np.array([0.5, -1.0, 2.0, 0.0, 1.5])
# coarse on purpose: its inverse is not that of its steps
FLOW = cdelta.Flow(lambda t, x: (MIX @ x.ravel()).reshape(x.shape), "midpoint", steps=3)
MATRIX = np.asarray(jax.jacobian(lambda z: FLOW(z.reshape(SHAPE)).ravel())(jnp.zeros(D)))
READ = np.asarray(jax.random.normal(jax.random.key(2), (3, D)))


def linear(read=READ):
    return ImageModel(FLOW, lambda image: jnp.asarray(read) @ image.ravel(), batch=2)


def bent(image):
    y = jnp.asarray(READ) @ image.ravel()
    return jnp.stack([y[0], y[1] + 0.3 * y[0] ** 2, jnp.sinh(0.5 * y[2]) + 0.2 * y[1]])


def flat(x):
    return np.asarray(x).reshape(len(x), -1)


def test_noises_make_the_image_again_whatever_the_solver():
    model = linear()
    noises = model.abduct(IMAGES)
    latents = flat(jax.vmap(FLOW.inverse)(IMAGES))
    np.testing.assert_allclose(flat(noises.latents), latents, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        flat(noises.rest), flat(IMAGES) - latents @ MATRIX.T, rtol=0, atol=1e-12
    )
    assert np.abs(noises.rest).max() > 0.01  # something was lost on the way
    np.testing.assert_allclose(model.images(noises), IMAGES, rtol=0, atol=1e-12)
    np.testing.assert_allclose(model.values(IMAGES), flat(IMAGES) @ READ.T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        model.rows(noises).reshape(N, 3, D), [READ @ MATRIX] * N, rtol=0, atol=1e-12
    )


def test_in_a_linear_model_each_way_is_a_closed_form():
    model, rows = linear(), READ @ MATRIX
    noises = model.abduct(IMAGES)
    z, y = flat(noises.latents), flat(IMAGES) @ READ.T

    steered = model.steer(noises, {2: TO, 0: TO[::-1]}, steps=1, corrections=0)
    change = np.stack([TO - y[:, 2], TO[::-1] - y[:, 0]], 1)
    exact = z + change @ np.linalg.pinv(rows[[2, 0]]).T
    np.testing.assert_allclose(flat(steered.latents), exact, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(steered.rest, noises.rest)

    lower, frame = causal.local_effects(rows, [1, 2, 0])
    followed = model.follow(noises, 2, [1, 2, 0], TO, steps=1, corrections=0)
    exact = z + np.outer(TO - y[:, 2], frame[1] / lower[1, 1])
    np.testing.assert_allclose(flat(followed.latents), exact, rtol=0, atol=1e-9)

    direction = np.asarray(jax.random.normal(jax.random.key(3), SHAPE))
    pushed = model.push(noises, direction, 1, TO)
    exact = z + np.outer((TO - y[:, 1]) / (rows[1] @ direction.ravel()), direction.ravel())
    np.testing.assert_allclose(flat(pushed.latents), exact, rtol=0, atol=1e-9)


def test_the_ways_agree_with_the_truth_in_a_linear_structural_model():
    """Attributes of a linear SCM whose noises the latent plays: frame and shortest path are the
    counterfactual, the mean gradient only at a root."""
    scm = random_scm(5, 3)
    order = scm.order
    turn = np.linalg.qr(np.asarray(jax.random.normal(jax.random.key(4), (D, D))))[0]
    b = np.asarray(jax.jacobian(scm)(jnp.zeros(3)))
    read = b @ turn[:3] @ np.linalg.inv(MATRIX)  # of an image: the attributes of its latent
    model = linear(read)
    noises = model.abduct(IMAGES)
    z, y = flat(noises.latents), flat(IMAGES) @ read.T
    for k in (order[0], order[1]):
        true = np.asarray(jax.vmap(lambda y, to, k=k: scm.counterfactual(y, k, to))(y, TO))
        latents = z + np.linalg.solve(b, (true - y).T).T @ turn[:3]
        exact = (latents @ MATRIX.T).reshape(IMAGES.shape) + np.asarray(noises.rest)
        steered = model.images(model.steer(noises, {i: true[:, i] for i in range(3)}))
        followed = model.images(model.follow(noises, k, order, TO))
        gradient = model.rows(noises)[:, k].mean(0)
        pushed = model.images(model.push(noises, gradient / (gradient**2).sum(), k, TO))
        np.testing.assert_allclose(steered, exact, rtol=0, atol=1e-8)
        np.testing.assert_allclose(followed, exact, rtol=0, atol=1e-8)
        error = np.abs(pushed - exact).max()
        assert error < 1e-8 if k == order[0] else error > 0.05


def test_many_steps_are_the_equation():
    model = ImageModel(FLOW, bent, batch=N)
    noises = model.abduct(IMAGES)
    y = model.values(IMAGES)
    target = {0: y[:, 0] + 0.4, 2: y[:, 2] - 0.6}
    few, many = (model.steer(noises, target, steps) for steps in (1, 40))
    for i in range(2):
        exact = causal.steer(
            lambda z, i=i: bent(FLOW(z) + noises.rest[i]),
            noises.latents[i],
            {k: value[i] for k, value in target.items()},
        )
        error = np.abs(many.latents[i] - exact).max()
        assert error < 0.01 and error < 0.1 * np.abs(few.latents[i] - exact).max()
    # but the values are met by few steps as well
    for moved in (few, many):
        values = model.values(model.images(moved))
        np.testing.assert_allclose(values[:, 0], target[0], rtol=0, atol=1e-8)
        np.testing.assert_allclose(values[:, 2], target[2], rtol=0, atol=1e-8)


def test_corrections_keep_what_is_held_and_bring_the_rest_there():
    model = ImageModel(FLOW, bent, batch=3)
    noises = model.abduct(IMAGES)
    y = model.values(IMAGES)
    to, aims = y[:, 2] + 0.2, y + jnp.array([0, 0, 0.2])
    values = model.values(model.images(model.follow(noises, 2, [0, 1, 2], to, 1)))
    np.testing.assert_allclose(values, aims, rtol=0, atol=1e-8)
    rough = model.follow(noises, 2, [0, 1, 2], to, steps=1, corrections=0)
    assert np.abs(model.values(model.images(rough)) - aims).max() > 1e-3
    direction = jnp.asarray(READ[1].reshape(SHAPE))
    pushed = model.push(noises, direction / 9, 1, y[:, 1] + 0.5)
    values = model.values(model.images(pushed))
    np.testing.assert_allclose(values[:, 1], y[:, 1] + 0.5, atol=1e-5)


def test_there_and_back_and_nothing():
    """Composition and reversibility."""
    model = ImageModel(FLOW, bent, batch=3)
    noises = model.abduct(IMAGES)
    y = model.values(IMAGES)
    same = model.steer(noises, {k: y[:, k] for k in range(3)})
    np.testing.assert_allclose(same.latents, noises.latents, rtol=0, atol=1e-12)
    there = model.steer(noises, {1: y[:, 1] + 0.4, 2: y[:, 2] - 0.6}, 20)
    back = model.steer(there, {1: y[:, 1], 2: y[:, 2]}, 20)
    moved = np.abs(there.latents - noises.latents).max()
    assert np.abs(back.latents - noises.latents).max() < 1e-2 * moved


def test_known_gradients_are_taken_for_the_first_step():
    model = ImageModel(FLOW, bent, batch=2)
    noises = model.abduct(IMAGES)
    rows, y = model.rows(noises), model.values(IMAGES)
    for steps in (1, 3):
        alone = model.steer(noises, {2: TO}, steps)
        given = model.steer(noises, {2: TO}, steps, rows=rows)
        np.testing.assert_allclose(given.latents, alone.latents, rtol=0, atol=1e-12)
    # they are what the first step goes by: along wrong ones the path is another
    wrong = model.steer(noises, {2: y[:, 2] + 0.1}, 1, rows=rows[:, ::-1])
    right = model.steer(noises, {2: y[:, 2] + 0.1}, 1, rows=rows)
    assert np.abs(wrong.latents - right.latents).max() > 0.01
    followed = model.follow(noises, 2, [0, 1, 2], TO, 1, rows=rows)
    np.testing.assert_allclose(
        followed.latents, model.follow(noises, 2, [0, 1, 2], TO, 1).latents, rtol=0, atol=1e-12
    )


def test_a_batch_is_its_images():
    model = linear()
    noises = model.abduct(IMAGES)
    whole = model.steer(noises, {1: TO})
    alone = model.steer(Noises(noises.latents[3:4], noises.rest[3:4]), {1: TO[3:4]})
    np.testing.assert_allclose(whole.latents[3:4], alone.latents, rtol=0, atol=1e-12)


def test_what_cannot_be_reached_is_said():
    model = ImageModel(FLOW, lambda image: jnp.tanh(image.ravel()[:2]), batch=2)
    noises = model.abduct(IMAGES)
    y = model.values(IMAGES)
    near = y[:, 0] + 0.01
    with pytest.raises(ValueError, match="cannot be reached from image 3"):
        model.steer(noises, {0: near.at[3].set(1.5)})
    with pytest.raises(ValueError, match="cannot be reached from image 4"):
        model.push(noises, model.rows(noises)[0, 0], 0, near.at[4].set(1.5))
    twice = ImageModel(FLOW, lambda image: jnp.stack([image[0, 0], image[0, 0]]))
    with pytest.raises(ValueError, match="cannot be reached from image 0"):
        twice.steer(noises, {0: TO, 1: -TO})


SHOWS = np.asarray(jax.random.normal(jax.random.key(5), (D, 2)))
WERE, THEN = np.asarray(jax.random.normal(jax.random.key(6), (2, N, 2)))


def normal(a):
    """Given its attributes an image is normal: its mean, and the size of its noise."""
    return (SHOWS @ a).reshape(SHAPE), jnp.exp(0.5 * a[1])


def velocity_of_normal(t, x, a):
    mean, size = normal(a)
    spread = (1 - t) ** 2 + (t * size) ** 2
    return mean + (t * size**2 - (1 - t)) / spread * (x - t * mean)


def test_an_image_under_other_attributes_keeps_its_noise():
    """T(ε | a) = m(a) + s(a) ε, in closed form, there and back."""
    found = causal.counterfactual_images(
        velocity_of_normal, IMAGES, WERE, THEN, batch=2, solver="tsit5", rtol=1e-10
    )
    (mean, size), (other, wide) = (jax.vmap(normal)(jnp.asarray(a)) for a in (WERE, THEN))
    noise = (IMAGES - mean) / size[:, None, None]
    np.testing.assert_allclose(found, other + wide[:, None, None] * noise, rtol=0, atol=1e-8)
    back = causal.counterfactual_images(
        velocity_of_normal, found, THEN, WERE, solver="tsit5", rtol=1e-10
    )
    np.testing.assert_allclose(back, IMAGES, rtol=0, atol=1e-8)
    # images in single precision, attributes in double
    single = causal.counterfactual_images(velocity_of_normal, IMAGES.astype("float32"), WERE, THEN)
    np.testing.assert_allclose(single, found, rtol=0, atol=1e-2)


def test_attributes_that_stay_leave_the_image_whatever_the_solver():
    coarse = dict(solver="midpoint", times=np.array([0, 0.4, 1]))
    same = causal.counterfactual_images(velocity_of_normal, IMAGES, WERE, WERE, **coarse)
    np.testing.assert_allclose(same, IMAGES, rtol=0, atol=1e-14)
    # the rest is a picture's own: it is there, and it is added to the other picture
    flows = [
        cdelta.Flow(lambda t, x, a=a: velocity_of_normal(t, x, a), **coarse)
        for a in (WERE[0], THEN[0])
    ]
    z = flows[0].inverse(IMAGES[0])
    rest = IMAGES[0] - flows[0](z)
    assert np.abs(rest).max() > 1e-3
    moved = causal.counterfactual_images(velocity_of_normal, IMAGES, WERE, THEN, **coarse)
    np.testing.assert_allclose(moved[0], flows[1](z) + rest, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("images", "attributes", "to", "message"),
    [
        (IMAGES[:0], WERE[:0], THEN[:0], "images must be a stack"),
        (IMAGES, WERE[:2], THEN, r"attributes must have shape \(5, 2\), a row an image"),
        (IMAGES, WERE, THEN[:, :1], r"to must have shape \(5, 2\), a row an image"),
        (IMAGES, WERE[:, 0], THEN[:, 0], "attributes must have shape"),
        (IMAGES, WERE, np.full_like(THEN, np.nan), "to must be finite"),
    ],
)
def test_attributes_that_are_not_an_images(images, attributes, to, message, unchecked):
    with pytest.raises(ValueError, match=message):
        causal.counterfactual_images(velocity_of_normal, images, attributes, to)


def test_a_solver_that_does_not_arrive_is_said():
    far = np.where(np.arange(N)[:, None] == 3, 30.0, THEN)  # a noise of e^15
    options = dict(solver="tsit5", rtol=1e-9, max_steps=60)
    near = causal.counterfactual_images(velocity_of_normal, IMAGES, WERE, THEN, **options)
    assert np.isfinite(near).all()
    with pytest.raises(ValueError, match="image 3 comes out with values that are not finite"):
        causal.counterfactual_images(velocity_of_normal, IMAGES, WERE, far, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, z: m.steer(z, {}), "targets must name"),
        (lambda m, z: m.steer(z, {3: TO}), "targets must be different"),
        (lambda m, z: m.steer(z, {1: TO[:2]}), r"targets\[1\] must have shape \(5,\)"),
        (lambda m, z: m.steer(z, {1: TO / 0}), r"targets\[1\] must be finite"),
        (lambda m, z: m.steer(z, {1: TO}, steps=0), "steps must be"),
        (lambda m, z: m.follow(z, 1, [0, 2], TO), "order must hold the attribute k = 1"),
        (lambda m, z: m.steer(z, {1: TO}, rows=z.latents), r"rows must have shape \(5, 3, 2, 4\)"),
        (lambda m, z: m.push(z, jnp.ones(3), 1, TO), "direction must have shape"),
        (lambda m, z: m.abduct(IMAGES[:0]), "images must be a stack"),
        (lambda m, z: m.abduct(IMAGES / 0), "images must be finite"),
        (lambda m, z: ImageModel(FLOW, jnp.sum).steer(z, {0: TO}), "readout must return"),
        (lambda m, z: ImageModel(FLOW, jnp.sum, batch=0), "batch must be"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_refusals(call, message, unchecked):
    model = linear()
    with pytest.raises(ValueError, match=message):
        call(model, model.abduct(IMAGES))
