"""T1, T17, T18 against conditioning of joint Gaussians, pseudo-inverses and Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdelta import jacobian, linear

TIMES = [0.0, 0.3, 0.8, 1.0]


def matrix(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape) + 0.5 * jnp.eye(*shape)


@pytest.mark.parametrize("t", TIMES[:-1])
@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 4)])
def test_conditional_mean_is_regression_on_the_joint_law(t, shape):
    a = np.asarray(matrix(0, shape))
    x = np.asarray(jax.random.normal(jax.random.key(1), shape[:1]))
    # (x1, xt) as one linear map of the 2 independent noises (z, z~): condition its joint covariance
    noise = np.block([[np.zeros((shape[0], shape[0])), a], [(1 - t) * np.eye(shape[0]), t * a]])
    joint = noise @ noise.T
    cross, marginal = joint[: shape[0], shape[0] :], joint[shape[0] :, shape[0] :]
    np.testing.assert_allclose(
        linear.conditional_mean(t, x, a), cross @ np.linalg.inv(marginal) @ x, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (4, 2)])
def test_conditional_mean_at_the_ends(shape):
    a = matrix(2, shape)
    x = jax.random.normal(jax.random.key(3), shape[:1])
    np.testing.assert_array_equal(linear.conditional_mean(0.0, x, a), jnp.zeros_like(x))
    # at t = 1 nothing but the part that A reaches: all of x when A has full row rank
    reached = np.asarray(a) @ np.linalg.pinv(a) @ x
    np.testing.assert_allclose(linear.conditional_mean(1.0, x, a), reached, rtol=0, atol=1e-13)
    if shape[0] <= shape[1]:
        np.testing.assert_allclose(reached, x, rtol=0, atol=1e-13)


def test_conditional_mean_of_a_singular_square_matrix_at_one():
    a = jnp.outer(jnp.array([1.0, 2.0, -1.0]), jnp.array([0.5, 1.0, 1.5]))
    x = jnp.array([1.0, 0.0, 0.0])
    expected = np.asarray(a) @ np.linalg.pinv(a) @ x
    np.testing.assert_allclose(linear.conditional_mean(1.0, x, a), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("unit", [1e-30, 1e-20, 1e20, 1e30])
def test_conditional_mean_of_a_matrix_whose_squares_leave_the_range(dtype, unit):
    a, x = np.array([[1, 2], [0, 1], [1, 1]], dtype), np.array([1, -2, 3], dtype)
    reached = a @ np.linalg.pinv(a) @ x
    close = {"rtol": 0, "atol": 100 * np.finfo(dtype).eps}
    np.testing.assert_allclose(linear.conditional_mean(1.0, x, a * dtype(unit)), reached, **close)
    # in so large a unit the noise tells nothing of what A reaches: x / t; in so small a one, all
    expected = reached / 0.25 if unit > 1 else np.zeros(3)
    np.testing.assert_allclose(linear.conditional_mean(0.25, x, a * dtype(unit)), expected, **close)
    np.testing.assert_array_equal(linear.conditional_mean(0.0, x, a * dtype(unit)), np.zeros(3))


def regression(t, x, matrix):
    """T1 by a solve, which is differentiable also where singular values coincide; t < 1."""
    spread = matrix @ matrix.T
    return t * spread @ jnp.linalg.solve((1 - t) ** 2 * jnp.eye(len(x)) + t**2 * spread, x)


@pytest.mark.parametrize("t", [0.0, 0.8])
@pytest.mark.parametrize(
    "a",
    [jnp.eye(3), jnp.eye(3)[:, :2], jnp.eye(2, 4), jnp.ones((3, 2)), matrix(7, (3, 3))],
    ids=["equal", "tall", "wide", "of rank one", "any"],
)
def test_conditional_mean_is_differentiable_where_singular_values_coincide(t, a):
    at = (jnp.float64(t), jax.random.normal(jax.random.key(8), (len(a),)), a)
    to = [jax.random.normal(jax.random.key(9 + i), jnp.shape(one)) for i, one in enumerate(at)]
    moved = [jax.jvp(f, at, tuple(to))[1] for f in (linear.conditional_mean, regression)]
    np.testing.assert_allclose(*moved, rtol=0, atol=1e-12)
    slopes = [
        jax.grad(lambda *at, f=f: (f(*at) ** 3).sum(), (0, 1, 2))(*at)
        for f in (linear.conditional_mean, regression)
    ]
    for slope, expected in zip(*slopes, strict=True):
        np.testing.assert_allclose(slope, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 4)])
def test_conditional_mean_at_one_moves_as_the_projection_does(shape):
    a, to = matrix(10, shape), matrix(11, shape)
    x = jax.random.normal(jax.random.key(12), shape[:1])
    moved = jax.jvp(lambda a: linear.conditional_mean(1.0, x, a), (a,), (to,))[1]
    ends = [a + step * to for step in (-1e-5, 1e-5)]
    before, after = (np.asarray(end) @ np.linalg.pinv(end) @ x for end in ends)
    np.testing.assert_allclose(moved, (after - before) / 2e-5, rtol=0, atol=1e-8)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_probe_covariance_is_the_schur_complement(k):
    b = np.asarray(matrix(4, (k, 5)))
    joint = np.block([[np.eye(5), b.T], [b, b @ b.T]])  # of (v, Bv)
    schur = joint[:5, :5] - joint[:5, 5:] @ np.linalg.inv(joint[5:, 5:]) @ joint[5:, :5]
    result = linear.probe_covariance(b)
    np.testing.assert_allclose(result, schur, rtol=0, atol=1e-14)
    np.testing.assert_allclose(b @ result, 0, rtol=0, atol=1e-14)
    assert np.trace(result) == pytest.approx(5 - k, abs=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("units", [(1, 1e8), (1e30, 1e-30), (1e38, 1e-37)])
def test_probe_covariance_does_not_know_the_units_of_rows(dtype, units):
    b, units = np.array([[1, 2, 1], [0, 1, 1]]), np.array(units)[:, None]
    joint = np.linalg.inv(b @ b.T)
    expected = np.eye(3) - b.T @ joint @ b
    eps = np.finfo(dtype).eps
    held = jnp.asarray(b * units, dtype)
    np.testing.assert_allclose(linear.probe_covariance(held), expected, rtol=0, atol=10 * eps)
    # of B+ B: B+ dB (I - B+ B) and its transpose, with dB in the unit of its row
    to = units * np.array([[1.0, 0, 2], [3, -1, 1]])
    turned = b.T @ joint @ (to / units) @ expected
    moved = jax.jvp(linear.probe_covariance, (held,), (jnp.asarray(to, dtype),))[1]
    np.testing.assert_allclose(moved, -turned - turned.T, rtol=0, atol=40 * eps)


def test_probe_covariance_of_one_row():
    a = jnp.array([3.0, 0.0, 4.0])
    np.testing.assert_allclose(
        linear.probe_covariance(a), jnp.eye(3) - jnp.outer(a, a) / 25, rtol=0, atol=1e-15
    )


def test_probe_covariance_matches_filtered_probes():
    a = jnp.array([1.0, -2.0, 0.5])
    probes = np.asarray(jax.random.normal(jax.random.key(5), (2_000_000, 3)))
    kept = probes[np.abs(probes @ a) < 0.02]
    products = kept[:, :, None] * kept[:, None, :]
    error = (products.mean(0) - linear.probe_covariance(a)) / (products.std(0) / np.sqrt(len(kept)))
    assert len(kept) > 10_000
    assert np.abs(error).max() < 4.0


def test_a_squared_feature_is_invisible_at_the_origin():
    def square(z):
        return z**2

    np.testing.assert_array_equal(jacobian.rows(square, jnp.zeros(4)), np.zeros((4, 4)))
    np.testing.assert_array_equal(jacobian.rows(square, jnp.ones(4)), 2 * np.eye(4))
    samples = np.asarray(jax.random.normal(jax.random.key(6), (200_000,))) ** 2
    stderr = np.sqrt(((samples - samples.mean()) ** 2).var() / samples.size)
    assert abs(samples.var() - 2) < 4 * stderr


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: linear.conditional_mean(1.5, jnp.ones(2), jnp.eye(2)),
            r"t must lie in \[0, 1\], got 1.5",
        ),
        (
            lambda: linear.conditional_mean(0.5, jnp.ones(3), jnp.eye(2)),
            r"x must have shape \(2,\).*got \(3,\)",
        ),
        (
            lambda: linear.conditional_mean(0.5, jnp.ones(2), jnp.ones(2)),
            "matrix must have two axes",
        ),
        (
            lambda: linear.conditional_mean(0.5, jnp.ones(2), jnp.full((2, 2), jnp.nan)),
            "matrix must be finite",
        ),
        (
            lambda: linear.probe_covariance(jnp.ones((2, 3))),
            "linearly independent rows, got 2 rows of rank 1",
        ),
        (lambda: linear.probe_covariance(jnp.zeros(3)), "rank 0"),
        (lambda: linear.probe_covariance(jnp.ones((1, 2, 3))), "held must be a row"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_conditional_mean_does_not_depend_on_the_unit_of_the_matrix_at_one():
    """Which directions A reaches is told relative to its largest singular value."""
    a, x = matrix(7, (4, 2)), jax.random.normal(jax.random.key(8), (4,))
    for unit in (1e-30, 1e30):
        np.testing.assert_allclose(
            linear.conditional_mean(1.0, x, unit * a),
            linear.conditional_mean(1.0, x, a),
            rtol=0,
            atol=1e-13,
        )
