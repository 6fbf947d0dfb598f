"""The painter read backwards, on faces that it made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdelta.datasets import faces

N = len(faces.ATTRIBUTES)
TRUE = np.clip(np.asarray(faces.noises(jax.random.key(3), 3)), -1.2, 1.2)
SIDE = 32
SHIFT = 0.3 * np.asarray(jax.random.normal(jax.random.key(4), TRUE.shape, jnp.float32))


@pytest.fixture(scope="module")
def images():
    return jnp.stack([faces.render(p[:N], p[N:], SIDE, SIDE) for p in TRUE])


def test_a_painted_face_is_read_from_nearby(images):
    reading = faces.read(images, TRUE + SHIFT, prior=0.0)
    np.testing.assert_allclose(reading.attributes, TRUE[:, :N], atol=5e-3)
    np.testing.assert_allclose(reading.nuisances, TRUE[:, N:], atol=5e-3)
    assert reading.distance.max() < 1e-3


def test_the_prior_draws_to_the_start(images):
    free, drawn = (
        np.concatenate(faces.read(images, TRUE + SHIFT, prior=prior)[:2], 1) - TRUE
        for prior in (0.0, 0.02)
    )
    strong = np.concatenate(faces.read(images, TRUE + SHIFT, prior=1e6)[:2], 1) - TRUE
    assert np.abs(free).mean() < np.abs(drawn).mean() < 0.2 * np.abs(SHIFT).mean()
    np.testing.assert_allclose(strong, SHIFT, atol=1e-2)


def test_what_is_read_is_a_minimum_of_the_stated_sum():
    """Of pictures that are not square and no faces, with the prior that nobody asked for: the pull
    of the start is the other side of the picture's gradient."""
    height, width = 16, 20
    painted = jnp.stack([faces.render(p[:N], p[N:], height, width) for p in TRUE])
    images = painted + 0.1 * jax.random.normal(jax.random.key(6), painted.shape)
    start = TRUE + SHIFT
    p = jnp.concatenate(faces.read(images, start)[:2], 1)

    def squares(p, image):
        return ((faces.render(p[:N], p[N:], height, width) - image) ** 2).sum()

    gradient = jax.vmap(jax.grad(squares))(p, images)
    pull = 2 * 0.02 * (p - start)
    assert np.linalg.norm(gradient + pull) < 0.1 * np.linalg.norm(pull)


def test_the_distance_is_what_no_face_explains(images):
    noise = 0.05 * jax.random.normal(jax.random.key(5), images.shape)
    reading = faces.read(images + noise, TRUE)
    size = np.sqrt(np.mean(noise**2, (1, 2, 3)))
    # as many degrees of freedom as there are pixels' colours, less the parameters
    expected = size * np.sqrt(1 - TRUE.shape[1] / noise[0].size)
    np.testing.assert_allclose(reading.distance, expected, rtol=5e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: faces.read(x[0], TRUE), "images must have shape"),
        (lambda x: faces.read(x, TRUE[:2]), "start must have shape"),
        (lambda x: faces.read(x * jnp.nan, TRUE), "images must be finite"),
        (lambda x: faces.read(x, TRUE, 0), "iterations must be"),
        (lambda x: faces.read(x, TRUE, prior=-1.0), "prior must not be negative"),
    ],
)
def test_refusals(call, message, unchecked, images):
    with pytest.raises(ValueError, match=message):
        call(images)
