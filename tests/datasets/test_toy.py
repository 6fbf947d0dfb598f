"""Toy densities against moments worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdelta.datasets import toy

N = 100_000


def z_scores(values, mean):
    return (values.mean(0) - mean) / (values.std(0) / np.sqrt(len(values)))


def test_moons_moments():
    x = np.asarray(toy.moons(jax.random.key(0), N, noise=0.2))
    # the halves' means are (0, 2/π) and (1, ½ - 2/π)
    assert np.abs(z_scores(x, [0.5, 0.25])).max() < 4
    # E x² = ½ (½ + 3/2) + noise²; E y² = ½ (½ + ¼ - 2/π + ½) + noise²
    second = [1 + 0.04, 0.5 * (1.25 - 2 / np.pi) + 0.04]
    assert np.abs(z_scores(x**2, second)).max() < 4


def test_checkerboard_stays_on_dark_squares_and_fills_them():
    x = np.asarray(toy.checkerboard(jax.random.key(1), N))
    column, row = np.floor(x).astype(int).T
    assert ((column + row) % 2 == 0).all() and np.abs(x).max() <= 2
    counts = np.unique(np.stack([column, row]), axis=1, return_counts=True)[1]
    assert len(counts) == 8
    assert np.abs((counts - N / 8) / np.sqrt(N / 8 * 7 / 8)).max() < 4


def test_rings_radii():
    x = np.asarray(toy.rings(jax.random.key(2), N, radii=(1.0, 3.0), noise=0.1))
    assert np.abs(z_scores((x**2).sum(1), 5 + 2 * 0.1**2)) < 4
    assert np.abs(z_scores(x, [0, 0])).max() < 4


def test_blur_and_radii_unless_told():
    """Of the moons E x² is 1 and of the blur .1²; off the circles 1 and 2 points scatter by .1 in
    every direction."""
    x = np.asarray(toy.moons(jax.random.key(3), 4 * N))
    assert np.abs(z_scores(x**2, [1.01, 0.5 * (1.25 - 2 / np.pi) + 0.01])).max() < 4
    # E xy is 0 of the upper moon and 1/2 - 2/π of the lower: the blurs of x and y are independent
    assert abs(z_scores(x.prod(1), 0.25 - 1 / np.pi)) < 4
    x = np.asarray(toy.rings(jax.random.key(4), 4 * N))
    radius = np.linalg.norm(x, axis=1)
    near = np.abs(radius[:, None] - [1, 2]).min(1)
    assert np.abs(np.mean(radius > 1.5) - 0.5) < 5 * 0.5 / np.sqrt(4 * N)
    # of the second order in the blur, a circle's bend adds 3 σ⁴ / 4 r² to the radial variance
    assert abs(near.var() + near.mean() ** 2 - 0.01) < 3e-4
    assert abs(z_scores(x.prod(1), 0)) < 4


@pytest.mark.parametrize("density", [toy.moons, toy.checkerboard, toy.rings])
def test_shape_and_reproducibility(density):
    a, b, c = (density(jax.random.key(seed), 7) for seed in (0, 0, 1))
    assert a.shape == (7, 2)
    assert jnp.array_equal(a, b) and not jnp.array_equal(a, c)
    with pytest.raises(ValueError, match="n must be a positive integer, got 0"):
        density(jax.random.key(0), 0)


def test_boards_and_rings_refused():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="cells must be even, got 3"):
        toy.checkerboard(key, 3, cells=3)
    with pytest.raises(ValueError, match="cells must be a positive integer, got 0"):
        toy.checkerboard(key, 3, cells=0)
    with pytest.raises(ValueError, match="radii must name at least one circle"):
        toy.rings(key, 3, radii=())
