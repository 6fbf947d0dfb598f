"""What one sees of a face."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdelta.datasets import faces
from cdelta.datasets.faces import painter
from tests.datasets.faces.common import CHEEKS, A, N, small


def test_each_attribute_shows_and_they_can_be_told_apart():
    """Over [-2, 2] each changes some pixel by a tenth of black to white, and no two change the same
    pixels alike."""
    step = 1.0
    sweeps = []
    for k in range(N):
        sweep = np.stack([small(jnp.zeros(N).at[k].set(v)).image for v in np.arange(-2, 2.1, step)])
        assert np.abs(sweep[-1] - sweep[0]).max() > 0.2, (faces.ATTRIBUTES + faces.NUISANCES)[k]
        assert min(np.abs(b - a).max() for a, b in itertools.pairwise(sweep)) > 0.01
        sweeps.append((sweep[-1] - sweep[0]).ravel())
    # in noises, Heavy_Makeup moves its effects as well: undo the structure
    sweeps = np.array(sweeps)
    sweeps[:A] = np.linalg.solve(np.asarray(faces.model().structural_map).T, sweeps[:A])
    sweeps /= np.linalg.norm(sweeps, axis=1, keepdims=True)
    assert np.linalg.svd(sweeps, compute_uv=False)[-1] > 0.2


def test_blush_is_red_and_on_the_cheeks():
    at = {
        value: np.asarray(faces.render(jnp.zeros(A, jnp.float32).at[CHEEKS].set(value)))
        for value in (-2.0, 2.0)
    }
    change = at[2.0] - at[-2.0]
    y, x = np.unravel_index(np.abs(change).sum(-1).argmax(), (64, 64))
    assert 34 < y < 50 and (x < 28 or x > 35)
    assert change[y, x, 1] < -0.2 and change[y, x, 2] < -0.2  # green and blue go, red stays


# Where an attribute may show: the least and the largest height (y downwards, in [-1, 1]), and the
# largest distance from the middle. The others, of skin, hair and age, show all over.
PLACES = {
    "Heavy_Makeup": (-0.42, 0.2, 0.55),
    "Rosy_Cheeks": (-0.1, 0.68, 0.65),
    "Pointy_Nose": (-0.25, 0.45, 0.3),
    "Smiling": (0.38, 0.95, 0.42),
    "Eyeglasses": (-0.32, 0.3, 0.68),
    "Wearing_Lipstick": (0.38, 0.95, 0.42),
    "Arched_Eyebrows": (-0.5, 0.0, 0.55),
    "Bangs": (-0.7, 0.32, 0.7),
    "Narrow_Eyes": (-0.42, 0.2, 0.55),
    "Big_Lips": (0.38, 0.95, 0.42),
    "Chubby": (-0.45, 1.0, 0.7),
}


@pytest.mark.parametrize("name", PLACES)
def test_an_attribute_shows_in_its_own_place_alone(name):
    """Make-up paints no cheeks: what an attribute causes elsewhere, the graph says, not the
    painter."""
    upper, lower, side = PLACES[name]
    middles = (2 * np.arange(24) + 1 - 24) / 24
    inside = (upper < middles[:, None]) & (middles[:, None] < lower) & (np.abs(middles) < side)
    one = jnp.zeros(A).at[faces.ATTRIBUTES.index(name)].set(1)
    # with everything else at its middle, and on a face that has all of it: blush, glasses, bangs
    for face in (jnp.zeros(A), jnp.full(A, 1.5)):
        low, high = (faces.render(jnp.where(one, v, face), None, 24, 24) for v in (-2.0, 2.0))
        change = np.abs(high - low).max(-1)
        assert change[~inside].max() < 0.01 < 0.1 < change[inside].max()


@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_pictures_are_finite_and_in_range(scale):
    p = scale * jax.random.normal(jax.random.key(1), (32, N), jnp.float32)
    images = np.stack([faces.render(row[:A], row[A:]) for row in p])
    assert images.dtype == np.float32 and images.shape == (32, 64, 64, 3)
    assert images.min() >= -1 and images.max() <= 1
    assert images.std() > 0.2


def test_one_picture_at_all_resolutions():
    p = 0.5 * jax.random.normal(jax.random.key(2), (N,), jnp.float32)
    tall = faces.render(p[:A], p[A:], 98, 64)
    low, high = (np.asarray(faces.render(p[:A], p[A:], size, size)) for size in (64, 128))
    np.testing.assert_allclose(tall[17:81], low, atol=1e-6)
    halved = high.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.sqrt(((halved - low) ** 2).mean()) < 0.02


@pytest.mark.parametrize("seed", range(2))
def test_makeup_leaves_cheeks_and_nose_alone(seed):
    """What make-up paints and what a blush or a nose paints do not overlap: the cosine of the sizes
    of their derivatives over the pixels. Lipstick and lips, which share the mouth, are the null."""
    attributes = np.random.default_rng(seed).normal(size=len(faces.ATTRIBUTES))
    jacobian = jax.jacfwd(faces.render)(jnp.asarray(attributes, jnp.float32))
    touched = np.abs(np.asarray(jacobian)).max(2).reshape(-1, len(faces.ATTRIBUTES))
    touched = (touched / np.linalg.norm(touched, axis=0)).T
    touched = dict(zip(faces.ATTRIBUTES, touched, strict=True))
    for part in ("Rosy_Cheeks", "Pointy_Nose"):
        assert touched["Heavy_Makeup"] @ touched[part] < 0.02
    assert touched["Wearing_Lipstick"] @ touched["Big_Lips"] > 0.2


def test_shapes_have_no_kink():
    """What stands for |x| and max(x, 0) is smooth at 0, and near them elsewhere."""
    x = jnp.linspace(-1, 1, 9)
    for smooth, exact in ((painter._abs, jnp.abs(x)), (painter._positive, jnp.maximum(x, 0))):
        np.testing.assert_allclose(smooth(x), exact, atol=painter.SOFTNESS)
        slopes = [float(jax.grad(smooth)(h)) for h in (-1e-4, 1e-4)]
        assert 0 < slopes[1] - slopes[0] < 0.1
