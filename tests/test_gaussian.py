"""T2, T3, T12, T14–T16 and C1 against joint conditioning, regression, ODE solvers and matrix
functions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

from cdelta import Gaussian, gaussian
from tests import laws

TIMES = [0.0, 0.2, 0.7, 1.0]
DIMS = [1, 2, 5]


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("d", DIMS)
def test_velocity_and_conditional_mean_are_regressions_on_the_joint_law(t, d):
    source, target = laws.pair(d, d)
    x = jax.random.normal(jax.random.key(9), (d,))
    # the joint covariance of (x0, x1) through the linear map to (x1 - x0, x1, xt), conditioned on
    # the last block
    eye, zero = np.eye(d), np.zeros((d, d))
    to = np.block([[-eye, eye], [zero, eye], [(1 - t) * eye, t * eye]])
    joint = to @ scipy.linalg.block_diag(source.cov, target.cov) @ to.T
    mean = to @ np.concatenate([source.mean, target.mean])
    regressed = mean[: 2 * d] + joint[: 2 * d, 2 * d :] @ np.linalg.inv(joint[2 * d :, 2 * d :]) @ (
        x - mean[2 * d :]
    )
    np.testing.assert_allclose(
        gaussian.velocity(t, x, source, target), regressed[:d], rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(
        gaussian.conditional_mean(t, x, source, target), regressed[d:], rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(
        gaussian.mean_at(t, source, target), mean[2 * d :], rtol=0, atol=1e-14
    )
    np.testing.assert_allclose(
        gaussian.cov_at(t, source, target), joint[2 * d :, 2 * d :], rtol=0, atol=1e-14
    )


def test_velocity_is_the_regression_of_samples():
    source, target = laws.pair(3, 2)
    t, n = 0.4, 200_000
    key0, key1 = jax.random.split(jax.random.key(1))
    x0, x1 = np.asarray(source.sample(key0, n)), np.asarray(target.sample(key1, n))
    xt = (1 - t) * x0 + t * x1
    design = np.column_stack([np.ones(n), xt])
    solution, _, _, _ = np.linalg.lstsq(design, x1 - x0, rcond=None)
    residual = x1 - x0 - design @ solution
    inverse = np.linalg.inv(design.T @ design)
    x = np.array([0.5, -1.0])
    probe = np.array([1.0, *x])
    stderr = np.sqrt(residual.var(0) * (probe @ inverse @ probe))
    assert np.abs((probe @ solution - gaussian.velocity(t, x, source, target)) / stderr).max() < 4
    slope_stderr = np.sqrt(np.outer(residual.var(0), np.diag(inverse)[1:]))
    assert (
        np.abs(
            (solution[1:].T - gaussian.velocity_jacobian(t, source, target)) / slope_stderr
        ).max()
        < 4
    )


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("d", DIMS)
def test_velocity_jacobian_is_the_derivative_everywhere(t, d):
    source, target = laws.pair(10 + d, d)
    for seed in range(2):
        x = 3 * jax.random.normal(jax.random.key(seed), (d,))
        derivative = jax.jacfwd(lambda x: gaussian.velocity(t, x, source, target))(x)
        np.testing.assert_allclose(
            gaussian.velocity_jacobian(t, source, target), derivative, rtol=0, atol=1e-12
        )


def test_endpoints():
    source, target = laws.pair(4, 3)
    x = jnp.array([0.3, -2.0, 1.0])
    np.testing.assert_allclose(
        gaussian.velocity(0.0, x, source, target), target.mean - x, rtol=0, atol=1e-13
    )
    np.testing.assert_allclose(
        gaussian.velocity(1.0, x, source, target), x - source.mean, rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("d", DIMS)
def test_flow_map_solves_the_equation_of_the_velocity(d):
    source, target = laws.pair(20 + d, d)
    x0 = np.asarray(source.mean + 1.5 * jax.random.normal(jax.random.key(2), (d,)))
    velocity = jax.jit(lambda t, x: gaussian.velocity(t, x, source, target))
    solution = scipy.integrate.solve_ivp(
        velocity, (0, 1), x0, method="DOP853", rtol=1e-12, atol=1e-12, t_eval=[0.25, 0.5, 1.0]
    )
    for t, x in zip(solution.t, solution.y.T, strict=True):
        np.testing.assert_allclose(gaussian.flow_map(t, x0, source, target), x, rtol=0, atol=2e-11)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("d", DIMS)
def test_flow_jacobian_pushes_the_covariance_forward_and_follows_the_velocity(t, d):
    source, target = laws.pair(30 + d, d)
    flow = gaussian.flow_jacobian(t, source, target)
    np.testing.assert_allclose(
        flow @ source.cov @ flow.T, gaussian.cov_at(t, source, target), rtol=0, atol=1e-13
    )
    rate = jax.jacfwd(lambda t: gaussian.flow_jacobian(t, source, target))(t)
    np.testing.assert_allclose(
        rate, gaussian.velocity_jacobian(t, source, target) @ flow, rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("t", TIMES)
def test_flow_jacobian_in_the_generalised_eigenbasis(t):
    source, target = laws.pair(5, 4)
    ratios, vectors = scipy.linalg.eigh(target.cov, source.cov)
    basis = np.linalg.inv(vectors).T  # Σ₀ = P Pᵀ, Σ₁ = P diag(d) Pᵀ
    expected = basis @ np.diag(np.sqrt((1 - t) ** 2 + t**2 * ratios)) @ np.linalg.inv(basis)
    np.testing.assert_allclose(
        gaussian.flow_jacobian(t, source, target), expected, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("d", DIMS)
def test_transport_jacobian_is_the_papers_exponential(t, d):
    source, target = laws.pair(40 + d, d)
    root = scipy.linalg.sqrtm(source.cov)
    inverse = np.linalg.inv(root)
    generator = scipy.linalg.logm(inverse @ scipy.linalg.sqrtm(root @ target.cov @ root) @ inverse)
    result = gaussian.transport_jacobian(t, source, target)
    np.testing.assert_allclose(
        result, scipy.linalg.expm(t * np.real(generator)), rtol=0, atol=1e-11
    )
    if t == 1.0:
        np.testing.assert_allclose(result @ source.cov @ result.T, target.cov, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", TIMES)
def test_transport_map_is_the_papers_path_between_means_apart_and_has_its_rate(t):
    source, target = laws.pair(43, 3)
    root = scipy.linalg.sqrtm(source.cov)
    inverse = np.linalg.inv(root)
    generator = scipy.linalg.logm(inverse @ scipy.linalg.sqrtm(root @ target.cov @ root) @ inverse)
    x0 = np.array([0.5, 2.0, -1.0])
    moved = scipy.linalg.expm(t * np.real(generator)) @ (x0 - source.mean)
    path, rate = jax.jvp(
        lambda t: gaussian.transport_map(t, x0, source, target), (jnp.asarray(t),), (jnp.ones(()),)
    )
    np.testing.assert_allclose(
        path, (1 - t) * source.mean + t * target.mean + moved, rtol=0, atol=1e-11
    )
    np.testing.assert_allclose(
        rate, target.mean - source.mean + np.real(generator) @ moved, rtol=0, atol=1e-10
    )


def test_where_the_papers_product_is_the_covariance_by_chance():
    # T16's exception: from N(0, I) to N(0, I) at (1 ± √(√5 - 2))/2
    law = Gaussian.standard(2)
    for sign in (-1, 1):
        t = (1 + sign * np.sqrt(np.sqrt(5) - 2)) / 2
        rate = gaussian.velocity_jacobian(t, law, law)
        np.testing.assert_allclose(rate @ rate.T, gaussian.cov_at(t, law, law), rtol=0, atol=1e-14)
    rate = gaussian.velocity_jacobian(0.5, law, law)
    assert np.abs(rate @ rate.T - gaussian.cov_at(0.5, law, law)).max() > 0.4


def test_the_two_paths_agree_at_one_only_when_the_covariances_commute():
    source, target = laws.pair(6, 3)
    values, vectors = np.linalg.eigh(source.cov)
    commuting = Gaussian(target.mean, vectors @ np.diag(values[::-1] ** 2) @ vectors.T)
    np.testing.assert_allclose(
        gaussian.flow_jacobian(1.0, source, commuting),
        gaussian.transport_jacobian(1.0, source, commuting),
        rtol=0,
        atol=1e-12,
    )
    for t, other in [(0.5, commuting), (0.5, target), (1.0, target)]:
        gap = gaussian.flow_jacobian(t, source, other) - gaussian.transport_jacobian(
            t, source, other
        )
        assert np.abs(gap).max() > 0.02, (t, gap)


@pytest.mark.parametrize("t", [0.3, 1.0])
def test_finite_differences_of_an_affine_map_are_its_jacobian(t):
    source, target = laws.pair(7, 3)
    x0, probe = source.mean + 1.0, jnp.array([0.2, -1.0, 0.7])
    for path, jacobian in [
        (gaussian.flow_map, gaussian.flow_jacobian),
        (gaussian.transport_map, gaussian.transport_jacobian),
    ]:
        for eps in (1e-3, 1.0):
            difference = (
                path(t, x0 + eps * probe, source, target) - path(t, x0, source, target)
            ) / eps
            np.testing.assert_allclose(
                difference, jacobian(t, source, target) @ probe, rtol=0, atol=1e-11
            )


def test_from_the_standard_normal_wiggles_have_the_marginal_covariance_but_the_velocity_has_not():
    source, target = Gaussian.standard(2), laws.pair(8, 2)[1]
    t, n = 0.6, 200_000
    probes = jax.random.normal(jax.random.key(3), (n, 2))
    wiggles = np.asarray(probes @ gaussian.flow_jacobian(t, source, target).T)
    products = wiggles[:, :, None] * wiggles[:, None, :]
    marginal = gaussian.cov_at(t, source, target)
    assert np.abs((products.mean(0) - marginal) / (products.std(0) / np.sqrt(n))).max() < 4
    velocity_jacobian = gaussian.velocity_jacobian(t, source, target)
    # T16 as written is false
    assert np.abs(velocity_jacobian @ velocity_jacobian.T - marginal).max() > 0.1


def test_derivatives_with_respect_to_covariances_where_eigenvalues_coincide():
    target = Gaussian(jnp.zeros(2), 2.0 * jnp.eye(2))
    direction = jnp.array([[0.3, 0.5], [0.5, -0.2]])

    for jacobian in (gaussian.flow_jacobian, gaussian.transport_jacobian):

        def along(s, jacobian=jacobian):
            return jacobian(
                0.7, Gaussian.standard(2), Gaussian(target.mean, target.cov + s * direction)
            )

        _, tangent = jax.jvp(along, (0.0,), (1.0,))
        central = (along(1e-5) - along(-1e-5)) / 2e-5
        np.testing.assert_allclose(tangent, central, rtol=0, atol=1e-9)
        reverse = jax.grad(lambda s, along=along: along(s)[0, 1])(0.0)
        np.testing.assert_allclose(reverse, central[0, 1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("units", [(1e-3, 1e3, 1.0), (1e3, 1.0, 1e-3), (1e12,) * 3, (1e-12,) * 3])
def test_features_in_very_different_units_keep_their_digits(units):
    # in single precision; from N(0, I), or a source in the same units
    units, single = np.array(units), functools.partial(np.asarray, dtype=np.float32)
    cov = np.array([[1.0, 0.6, -0.3], [0.6, 1.5, 0.2], [-0.3, 0.2, 0.8]])
    target = Gaussian(single(np.zeros(3)), single(cov * np.outer(units, units)))
    standard = Gaussian(target.mean, np.float32(1.0))

    def is_the_root(root, of):  # the one that is symmetric and positive definite
        def as_correlations(matrix):
            size = np.sqrt(np.diag(matrix))
            return matrix / np.outer(size, size)

        root = np.float64(root)
        shown = as_correlations(root)
        np.testing.assert_allclose(shown, shown.T, rtol=0, atol=1e-3)
        assert (np.linalg.eigvalsh(shown) > 0).all()
        np.testing.assert_allclose(
            as_correlations(root @ root.T), as_correlations(of), rtol=0, atol=1e-5
        )

    for t in (0.5, 1.0):
        marginal = (1 - t) ** 2 * np.eye(3) + t**2 * np.float64(target.cov)
        is_the_root(gaussian.flow_jacobian(t, standard, target), marginal)
    if units.min() == units.max():  # else its power t has the rounding of the largest
        is_the_root(gaussian.transport_jacobian(1.0, standard, target), np.float64(target.cov))
    np.testing.assert_allclose(
        gaussian.bend(standard, target),
        (2 - np.pi / 2) * np.trace(gaussian.transport_jacobian(1.0, standard, target)),
        rtol=1e-6,
    )

    # diagonal in units of its own: 1 along every axis
    source = Gaussian(target.mean, single(np.diag(units**2)))
    other = Gaussian(target.mean, single(np.diag((3 * units) ** 2)))
    for jacobian in (gaussian.flow_jacobian, gaussian.transport_jacobian):
        np.testing.assert_allclose(jacobian(1.0, source, other), 3 * np.eye(3), atol=2e-6)


def test_sampling():
    dense = laws.gaussian(jax.random.key(11), 3)
    for law in (dense, Gaussian(dense.mean, 2.0)):
        draws = np.asarray(law.sample(jax.random.key(0), 100_000))
        stderr = np.sqrt(np.diag(law.cov) / len(draws))
        assert np.abs((draws.mean(0) - law.mean) / stderr).max() < 4
        products = (draws - law.mean)[:, :, None] * (draws - law.mean)[:, None, :]
        assert (
            np.abs((products.mean(0) - law.cov) / (products.std(0) / np.sqrt(len(draws)))).max() < 4
        )
        np.testing.assert_array_equal(draws, law.sample(jax.random.key(0), 100_000))


def test_scalar_covariance_stands_for_a_multiple_of_the_identity():
    target = laws.gaussian(jax.random.key(12), 3)
    scalar, matrix = Gaussian(jnp.ones(3), 0.7), Gaussian(jnp.ones(3), 0.7 * jnp.eye(3))
    x = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(scalar.cov, matrix.cov)
    np.testing.assert_array_equal(
        gaussian.velocity(0.3, x, scalar, target), gaussian.velocity(0.3, x, matrix, target)
    )
    assert Gaussian.standard(100_000).covariance.shape == ()


def test_single_precision_stays_single_and_transforms_compose():
    source, target = (
        Gaussian(np.asarray(law.mean, np.float32), np.asarray(law.cov, np.float32))
        for law in laws.pair(13, 3)
    )
    xs = jax.random.normal(jax.random.key(0), (4, 3), jnp.float32)
    for function in (
        gaussian.velocity,
        gaussian.conditional_mean,
        gaussian.flow_map,
        gaussian.transport_map,
    ):
        batched = jax.jit(jax.vmap(lambda x, f=function: f(0.3, x, source, target)))(xs)
        assert batched.dtype == jnp.float32
        np.testing.assert_allclose(batched[2], function(0.3, xs[2], source, target), atol=2e-6)
        gradient = jax.grad(lambda t, f=function: f(t, xs[0], source, target).sum())(0.3)
        assert np.isfinite(gradient)


@pytest.mark.parametrize("unit", [1e-6, 1e-12, 1e-60])
def test_a_covariance_may_have_any_units(unit):
    """What is positive definite stays so: the eigenvalues alone would say no, lost in rounding."""
    units = jnp.array([unit, 1.0, 1 / unit])
    correlation = jnp.array([[1.0, 0.9, 0.5], [0.9, 1.0, 0.5], [0.5, 0.5, 1.0]])
    one = Gaussian(jnp.zeros(3), correlation * jnp.outer(units, units))
    draws = one.sample(jax.random.key(0), 4000) / units
    np.testing.assert_allclose(jnp.corrcoef(draws.T), correlation, atol=0.08)
    impossible = correlation.at[0, 1].set(1.1).at[1, 0].set(1.1)
    with pytest.raises(ValueError, match="positive definite"):
        Gaussian(jnp.zeros(3), impossible * jnp.outer(units, units))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Gaussian(jnp.zeros(2), jnp.array([[1.0, 0.5], [0.0, 1.0]])),
            "cov must be symmetric, got an asymm",
        ),
        (
            lambda: Gaussian(jnp.zeros(2), jnp.array([[1.0, 2.0], [2.0, 1.0]])),
            "positive definite.*-1",
        ),
        (lambda: Gaussian(jnp.zeros(2), jnp.zeros((2, 2))), "positive definite"),
        (lambda: Gaussian(jnp.zeros(2), -1.0), "positive definite"),
        (lambda: Gaussian(jnp.zeros(2), jnp.eye(3)), r"cov must have shape \(2, 2\).*got \(3, 3\)"),
        (lambda: Gaussian(jnp.zeros((2, 2)), jnp.eye(2)), r"mean must be a vector"),
        (lambda: Gaussian(jnp.array([0.0, jnp.nan]), jnp.eye(2)), "mean must be finite"),
        (lambda: Gaussian(jnp.zeros(2), jnp.full((2, 2), jnp.inf)), "cov must be finite"),
        (lambda: Gaussian(["a"], jnp.eye(1)), "mean must be an array of numbers"),
        (lambda: Gaussian(jnp.zeros(1) + 1j, jnp.eye(1)), "mean must hold real numbers"),
        (
            lambda: gaussian.velocity(-0.1, jnp.ones(2), *laws.pair(0, 2)),
            r"t must lie in \[0, 1\], got -0.1",
        ),
        (
            lambda: gaussian.velocity(jnp.nan, jnp.ones(2), *laws.pair(0, 2)),
            r"t must lie in \[0, 1\], got nan",
        ),
        (
            lambda: gaussian.velocity(jnp.ones(2), jnp.ones(2), *laws.pair(0, 2)),
            "t must be a scalar",
        ),
        (
            lambda: gaussian.velocity(0.1, jnp.ones(3), *laws.pair(0, 2)),
            r"x must have shape \(2,\).*got \(3,\)",
        ),
        (
            lambda: gaussian.flow_map(0.1, jnp.ones(3), *laws.pair(0, 2)),
            r"x0 must have shape \(2,\)",
        ),
        (
            lambda: gaussian.flow_jacobian(0.1, Gaussian.standard(2), Gaussian.standard(3)),
            "agree in dimension, got 2 and 3",
        ),
        (
            lambda: gaussian.flow_jacobian(0.1, None, Gaussian.standard(3)),
            "source must be a cdelta.Gaussian",
        ),
        (lambda: Gaussian.standard(-1), "d must be a positive integer, got -1"),
        (
            lambda: Gaussian.standard(2).sample(jax.random.key(0), -1),
            "n must be a positive integer",
        ),
        (
            lambda: Gaussian.standard(2).sample(jax.random.key(0), 1.5),
            "n must be a positive integer",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("d", DIMS)
def test_bend_is_the_deviation_from_the_chord_along_the_flow(d):
    """By quadrature of E|v - (x1 - x0)|², from A(t) and Y(t)."""
    source, target = laws.pair(d + 3, d)
    chord = gaussian.flow_jacobian(1.0, source, target) - np.eye(d)
    nodes, weights = np.polynomial.legendre.leggauss(30)
    found = 0.0
    for t, w in zip((nodes + 1) / 2, weights / 2, strict=True):
        Y = gaussian.flow_jacobian(t, source, target)
        off = gaussian.velocity_jacobian(t, source, target) @ Y - chord
        found += w * np.trace(off @ source.cov @ off.T)
    np.testing.assert_allclose(gaussian.bend(source, target), found, rtol=1e-9)
    elsewhere = Gaussian(target.mean + 5, target.cov)
    np.testing.assert_allclose(gaussian.bend(source, elsewhere), found, rtol=1e-9)


def test_bend_between_equal_normals():
    normal = Gaussian.standard(3)
    assert float(gaussian.bend(normal, normal)) == pytest.approx(3 * (2 - np.pi / 2))
    with pytest.raises(ValueError, match="target"):
        gaussian.bend(normal, Gaussian.standard(2))
