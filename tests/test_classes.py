"""Within and between classes, and a border between two of them, against quadrature and autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, linalg, stats

from cdelta import classes
from cdelta.dependence import feature_covariance, wiggle_moment

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("kinds", [np.arange(4), np.array(["a", "b", "x", "y"])])
def test_the_total_is_what_is_within_and_what_is_between(kinds):
    labels = kinds[RNG.integers(3, size=200)]  # the last of the kinds is never seen
    values = RNG.normal(size=(200, 2)) + (labels == kinds[0])[:, None] * [3.0, -2.0]
    inside = classes.centred(values, labels)
    for kind in kinds[:3]:
        np.testing.assert_allclose(inside[labels == kind].mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(
            np.cov(inside[labels == kind].T), np.cov(values[labels == kind].T), rtol=1e-12
        )
    whole = classes.centred(values)
    between = np.cov((values - inside).T)
    np.testing.assert_allclose(np.cov(whole.T), np.cov(inside.T) + between, rtol=1e-12, atol=1e-12)
    assert between[0, 1] < -0.5 < np.cov(inside.T)[0, 1]
    with pytest.raises(ValueError, match="one for each of 200 rows"):
        classes.centred(values, labels[:-1])


@pytest.mark.parametrize("width", [0.01, 0.4, 3.0])
def test_the_slope_is_that_of_the_border(width):
    x = np.linspace(-2, 2, 41)
    expected = jax.vmap(jax.grad(lambda x: jnp.tanh(x / width)))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(classes.slope(x, width), expected, rtol=1e-4, atol=1e-4 / width)
    assert classes.slope(1e9, width) < 1e-250 and classes.slope(0, width) == 1 / width


@pytest.mark.parametrize("width", [1e-3, 0.05, 0.4, 1.0, 20.0])
def test_a_border_by_adaptive_quadrature(width):
    def mean(f):
        ends = (-12 * width, 12 * width) if width < 1 else (-9, 9)
        inside = integrate.quad(lambda x: f(x) * stats.norm.pdf(x), *ends, epsabs=1e-14, limit=500)[
            0
        ]
        return inside, 2 * stats.norm.sf(ends[1])

    tau, omega = classes.border(width)
    inside, outside = mean(lambda x: np.tanh(x / width) ** 2)
    assert tau == pytest.approx(inside + outside, rel=1e-7)
    inside, _ = mean(lambda x: classes.slope(x, width) ** 2)
    assert omega == pytest.approx(inside, rel=1e-7)


def test_a_border_is_what_the_estimators_find():
    A, jump = np.linalg.cholesky(np.array([[1, -0.6], [-0.6, 1]])), np.ones(2)

    def f(x):
        return jump * jnp.tanh(x[0] / 0.4) + A @ x[1:]

    tau, omega = classes.border(0.4)
    for estimator, coefficient, other in (
        (wiggle_moment, omega, tau), (feature_covariance, tau, omega),
    ):  # fmt: skip
        found = estimator(f, jax.random.key(0), (3,), 4000)
        z = (found.matrix - A @ A.T - coefficient * np.outer(jump, jump)) / found.stderr
        assert np.abs(z).max() < 4
        assert np.abs((found.matrix - A @ A.T - other) / found.stderr).max() > 8


WITHIN, JUMP = np.array([[1.0, -0.5], [-0.5, 0.7]]), np.array([1.2, 0.4])


@pytest.mark.parametrize("width", [0.003, 0.3, 2.0, np.inf])
def test_each_wiggle_has_one_vote_at_a_border(width):
    """Against wiggles that are drawn, and scaled one by one."""
    x, z = RNG.normal(size=(2, 200_000))
    wiggles = (classes.slope(x, width) * z)[:, None] * JUMP
    wiggles += RNG.normal(size=(len(x), 2)) @ np.linalg.cholesky(WITHIN).T
    square = (wiggles**2).sum(1)
    found = classes.sign_covariance(width, WITHIN, JUMP)
    assert np.trace(found) == pytest.approx(1, rel=1e-9)
    for i, j in ((0, 0), (0, 1), (1, 1)):
        drawn = wiggles[:, i] * wiggles[:, j] / square
        assert abs(drawn.mean() - found[i, j]) < 4 * drawn.std() / np.sqrt(len(x))


def test_without_a_border_directions_have_the_root_of_the_covariance():
    root = linalg.sqrtm(WITHIN)
    found = classes.sign_covariance(np.inf, WITHIN, JUMP)
    np.testing.assert_allclose(found, root / np.trace(root), rtol=1e-9)
    sharper = [classes.sign_covariance(width, WITHIN, JUMP) for width in (1e-2, 1e-3)]
    far, near = (np.abs(some - found).max() for some in sharper)
    assert near < far / 5 and far < 0.02  # as the border sharpens, fewer latents vote for it


def test_a_sign_covariance_is_of_two_features():
    with pytest.raises(ValueError, match="of two features"):
        classes.sign_covariance(1.0, np.eye(3), np.ones(3))
    skew = np.array([[1, 0.9], [0, 1]])
    for within in (-WITHIN, np.ones((2, 2)), np.diag([1.0, np.nan]), skew):
        with pytest.raises(ValueError, match="within must be positive definite"):
            classes.sign_covariance(1.0, within, JUMP)


@pytest.mark.parametrize("width", [0, -1.0, np.nan])
def test_a_width_is_positive(width):
    for function in (
        classes.border,
        lambda width: classes.slope(1.0, width),
        lambda width: classes.sign_covariance(width, WITHIN, JUMP),
    ):
        with pytest.raises(ValueError, match="width must be positive"):
            function(width)
