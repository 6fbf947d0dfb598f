"""Faces from their noises, their derivatives, and samples of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdelta.causal import SCM
from cdelta.datasets import faces
from tests.datasets.faces.common import CHEEKS, MAKEUP, A, N, small


@pytest.fixture(scope="module")
def jacobian():
    return jax.jit(lambda noise: faces.jacobian(noise, faces.model(), 24, 24))


def test_jacobian_is_the_limit_of_differences(jacobian):
    """Of image and attributes, in double precision, at faces all over the latent space: no kink
    anywhere."""
    model, h = faces.model(), 1e-5
    for key in range(3):
        noise = 1.3 * jax.random.normal(jax.random.key(key), (N,))
        image, attributes = jacobian(noise)
        assert image.shape == (24, 24, 3, N) and attributes.shape == (A, N)
        for k, e in enumerate(np.eye(N)):
            up, down = small(noise + h * e), small(noise - h * e)
            np.testing.assert_allclose(
                image[..., k], (up.image - down.image) / (2 * h), atol=1.5e-7
            )
        np.testing.assert_allclose(attributes[:, :A], model.structural_map, rtol=0, atol=1e-14)
        np.testing.assert_array_equal(attributes[:, A:], 0)


def test_reverse_mode_agrees_with_forward_mode(jacobian):
    noise = jax.random.normal(jax.random.key(5), (N,))
    direction = jax.random.normal(jax.random.key(6), (N,))
    weights = jax.random.normal(jax.random.key(7), (24, 24, 3))
    forward = jacobian(noise).image @ direction
    backward = jax.grad(lambda z: (weights * small(z).image).sum())(noise)
    np.testing.assert_allclose((weights * forward).sum(), backward @ direction, rtol=1e-11)


def test_attributes_of_a_nonlinear_structure():
    def equation(name):
        if name == "Rosy_Cheeks":
            return lambda x, e: jnp.tanh(x["Heavy_Makeup"]) + 0.5 * e
        return lambda x, e: e

    structure = SCM({name: equation(name) for name in faces.ATTRIBUTES})
    noise = jnp.zeros(N).at[MAKEUP].set(0.8).at[CHEEKS].set(-0.4)
    attributes = faces.face(noise, structure, 24, 24).attributes
    np.testing.assert_allclose(attributes[CHEEKS], np.tanh(0.8) - 0.2, rtol=0, atol=1e-14)
    rendered = faces.render(attributes, noise[A:], 24, 24)
    np.testing.assert_array_equal(faces.face(noise, structure, 24, 24).image, rendered)


def test_samples_are_the_faces_of_their_noises():
    key, model = jax.random.key(3), faces.model("collider")
    images, attributes = faces.sample(key, 3, model, 16, 16)
    noise = faces.noises(key, 3)
    assert images.dtype == attributes.dtype == noise.dtype == jnp.float32
    np.testing.assert_allclose(
        attributes, noise[:, :A] @ np.asarray(model.structural_map).T, atol=1e-6
    )
    np.testing.assert_allclose(
        images[1], faces.render(attributes[1], noise[1, A:], 16, 16), atol=1e-5
    )
    np.testing.assert_array_equal(faces.noises(key, 2), noise[:2])
    np.testing.assert_array_equal(faces.noises(key, 1, start=2), noise[2:])


def test_a_dataset_to_train_on():
    images, labels = faces.dataset("train", "independent", 40)
    again = faces.sample(jax.random.key(0), 40, faces.model("independent"))
    np.testing.assert_allclose(images, again.image, atol=1e-6)
    np.testing.assert_allclose(
        np.log(labels / (1 - labels)), 2 * again.attributes, rtol=1e-4, atol=1e-5
    )
    others = faces.dataset("held_out", "independent", 40)
    assert len(others.images) == len(others.labels) == 4
    assert np.abs(others.labels[:, None] - labels).max(-1).min() > 0.01  # no face is in both
    with pytest.raises(ValueError, match=r'split must be "train" or "held_out", got \'test\''):
        faces.dataset("test")


def test_noises_are_standard_normal_and_independent():
    n = 20_000
    noise = np.asarray(faces.noises(jax.random.key(4), n), np.float64)
    assert np.abs(noise.mean(0) * np.sqrt(n)).max() < 4
    z = np.sqrt(n) * (noise.T @ noise / n - np.eye(N)) / np.sqrt(1 + np.eye(N))
    assert np.abs(z).max() < 4.5 and 0.8 < z[np.triu_indices(N)].std() < 1.2


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_painted_in_single(dtype):
    """Half precision holds no pixel's place: the picture is that of the rounded noise."""
    noise = (0.5 * jax.random.normal(jax.random.key(6), (N,))).astype(dtype)
    half, single = (faces.face(z, None, 16, 16) for z in (noise, noise.astype(jnp.float32)))
    for a, b in zip(half, single, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)
    attributes = noise[:A]
    np.testing.assert_array_equal(
        faces.render(attributes, None, 16, 16),
        faces.render(attributes.astype(jnp.float32), None, 16, 16),
    )


def test_under_strict_promotion():
    noise = 0.5 * jax.random.normal(jax.random.key(6), (N,))
    plain = faces.face(noise, None, 16, 16)
    with jax.numpy_dtype_promotion("strict"):
        strict = faces.face(noise, None, 16, 16)
    assert strict.image.dtype == jnp.float64
    np.testing.assert_array_equal(strict.image, plain.image)


def test_calls_refused(unchecked):
    with pytest.raises(ValueError, match=rf"noise must have shape \({N},\)"):
        faces.face(jnp.zeros(A))
    with pytest.raises(ValueError, match=rf"attributes must have shape \({A},\)"):
        faces.render(jnp.zeros(N))
    with pytest.raises(ValueError, match=r"nuisances must have shape"):
        faces.render(jnp.zeros(A), jnp.zeros(A))
    key = jax.random.key(0)
    for call in (
        lambda: faces.sample(key, 0),
        lambda: faces.noises(key, 0),
        lambda: faces.dataset("held_out", n=0),
    ):
        with pytest.raises(ValueError, match="n must be a positive integer, got 0"):
            call()
    with pytest.raises(ValueError, match="height must be a positive integer, got 0"):
        faces.sample(key, 1, height=0)
    with pytest.raises(ValueError, match="width must be a positive integer, got 0"):
        faces.render(jnp.zeros(A), width=0)
