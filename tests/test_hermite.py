"""A map's orders by projection and its moments by quadrature: against each other, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdelta import hermite
from cdelta.dependence import covariance_bounds, feature_covariance

KEY = jax.random.key(0)


def bent(x):
    """x + (y² - 1) + xy, and x - 3/8 (y² - 1): orders 1 and 2, of the bend √2 h₂(y)."""
    bend = x[1] ** 2 - 1
    return jnp.stack([x[0] + bend + x[0] * x[1], x[0] - 3 / 8 * bend])


def waves(x):
    """No polynomials."""
    return jnp.stack([jnp.sin(1.3 * x[0] - 0.7 * x[1] + 0.4), jnp.exp(0.6 * x[0] + 0.3 * x[1])])


FIRST = np.ones((2, 2))
SECOND = np.array([[2 + 1, -3 / 4], [-3 / 4, 9 / 32]])


def test_polynomials_are_orthonormal_and_those_of_the_books():
    x, w = hermite.quadrature(1, 20)
    h = np.asarray(hermite.polynomials(x[:, 0], 12))
    np.testing.assert_allclose((h * w) @ h.T, np.eye(13), rtol=0, atol=1e-12)
    for k in (2, 3, 7):
        monic = np.polynomial.HermiteE.basis(k)(x[:, 0])
        scale = np.sqrt(float(np.prod(np.arange(1, k + 1))))
        np.testing.assert_allclose(h[k], monic / scale, rtol=0, atol=1e-12 * np.abs(h[k]).max())


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_quadrature_is_exact_for_polynomials(dim):
    x, w = hermite.quadrature(dim, 5)
    assert x.shape == (5**dim, dim)
    moments = [w @ x[:, -1] ** power for power in range(10)]
    np.testing.assert_allclose(moments, [1, 0, 1, 0, 3, 0, 15, 0, 105, 0], rtol=0, atol=1e-11)
    if dim > 1:
        assert w @ (x[:, 0] ** 4 * x[:, 1] ** 2) == pytest.approx(3)


def test_a_lattice_is_a_rule_for_what_is_smooth():
    x, w = hermite.lattice(2, reach=8.0, step=0.4)
    assert x.shape == (41**2, 2) and x.min() == pytest.approx(-8) == -x.max()
    frequency = np.array([0.7, -1.1])
    wave = np.cos(x @ frequency + 0.3)
    assert w @ wave == pytest.approx(np.cos(0.3) * np.exp(-(frequency @ frequency) / 2), abs=1e-13)
    # what lies beyond the reach is left out
    assert hermite.lattice(1, 2.0, 0.01)[1].sum() == pytest.approx(0.9545, abs=1e-3)


def test_moments_by_a_rule_of_ones_own_and_in_portions():
    rule = hermite.lattice(2, 9.0, 0.25)  # beyond 8 the exponential's square has 5e-12
    found, exact = hermite.moments(waves, 2, rule=rule, batch=500), hermite.moments(waves, 2)
    for a, b in zip(found, exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
    coarse = hermite.moments(waves, 2, rule=hermite.lattice(2, 8.0, 2.5))
    assert np.abs(coarse.cov - exact.cov).max() > 1e-3


def test_orders_by_hand():
    parts = hermite.orders(bent, 2, order=4, nodes=12)
    exact = np.stack([0 * FIRST, FIRST, SECOND, 0 * FIRST, 0 * FIRST])
    np.testing.assert_allclose(parts, exact, rtol=0, atol=1e-13)
    # of three latents, and with what is beyond the last order in the last
    shifted = hermite.orders(lambda x: bent(x[1:]) + 5, 3, order=4, nodes=12)
    np.testing.assert_allclose(shifted, exact, rtol=0, atol=1e-13)
    cut = hermite.orders(lambda x: jnp.stack([x[0] * x[1]]), 2, order=1, nodes=5)
    np.testing.assert_allclose(cut[:, 0, 0], [0, 1], rtol=0, atol=1e-14)


def test_moments_by_hand_and_as_sums_of_the_orders():
    cov, wiggle, slope = hermite.moments(bent, 2, nodes=12)
    np.testing.assert_allclose(cov, FIRST + SECOND, rtol=0, atol=1e-13)
    np.testing.assert_allclose(wiggle, FIRST + 2 * SECOND, rtol=0, atol=1e-13)
    np.testing.assert_allclose(slope, [[1, 0], [1, 0]], rtol=0, atol=1e-13)

    parts, found = hermite.orders(waves, 2), hermite.moments(waves, 2)
    n = np.arange(len(parts))[:, None, None]
    np.testing.assert_allclose(parts.sum(0), found.cov, rtol=0, atol=1e-13)
    np.testing.assert_allclose((n * parts).sum(0), found.wiggle, rtol=0, atol=1e-13)
    np.testing.assert_allclose(parts[1], found.slope @ found.slope.T, rtol=0, atol=1e-13)
    assert np.abs(parts.sum(0) - found.wiggle).max() > 0.1


def test_the_product_of_two_latents_goes_from_the_mean_slope_to_the_wiggle():
    _, wiggle, slope = hermite.moments(waves, 2)
    at = {alpha: np.asarray(hermite.product(waves, alpha, 2)) for alpha in (0.0, 0.5, 1.0)}
    np.testing.assert_allclose(at[0.0], slope @ slope.T, rtol=0, atol=1e-13)
    np.testing.assert_allclose(at[1.0], wiggle, rtol=0, atol=1e-13)
    parts = hermite.orders(waves, 2)
    n = np.arange(1, len(parts))[:, None, None]
    series = (n * 0.5 ** (n - 1.0) * parts[1:]).sum(0)
    np.testing.assert_allclose(at[0.5], series, rtol=0, atol=1e-13)


def test_what_samples_give_is_what_quadrature_gives():
    cov, *_ = hermite.moments(waves, 2)
    sampled = feature_covariance(waves, KEY, (2,), 20_000, progress=False)
    assert np.abs(sampled.z_scores(cov)).max() < 4
    middle = hermite.product(waves, 0.5, 2)
    lower = covariance_bounds(waves, KEY, (2,), 20_000, progress=False).lower
    assert np.abs(lower.z_scores(middle)).max() < 4 < np.abs(lower.z_scores(cov + 0.1)).max()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hermite.orders(bent, 2, order=8, nodes=8), "order must be below the 8 nodes"),
        (lambda: hermite.orders(jnp.sum, 2), r"f must return a vector \[n\], got shape \(\)"),
        (lambda: hermite.moments(jnp.sum, 2), r"f must return a vector \[n\], got shape \(\)"),
        (lambda: hermite.polynomials(0.5, 0), "order must be a positive integer, got 0"),
        (lambda: hermite.quadrature(0, 3), "dim must be a positive integer, got 0"),
        (lambda: hermite.lattice(0), "dim must be a positive integer, got 0"),
        (lambda: hermite.lattice(2, step=0.0), "step must be positive and finite, got 0.0"),
        (lambda: hermite.lattice(2, np.inf), "reach must be positive and finite, got inf"),
        (lambda: hermite.moments(bent, 2, batch=0), "batch must be a positive integer, got 0"),
        (lambda: hermite.quadrature(2, 0), "nodes must be a positive integer, got 0"),
    ],
)
def test_bad_input_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
