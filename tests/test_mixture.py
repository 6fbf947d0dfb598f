"""T4–T12 against quadrature, the continuity equation, autodiff and each component's Gaussian
flow."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from cdelta import Gaussian, GaussianMixture, gaussian, mixture
from tests import laws

TIMES = [0.0, 0.25, 0.75, 1.0]
DIMS = [1, 2, 4]


def points(d, n=5, scale=2.0):
    return scale * jax.random.normal(jax.random.key(100 + d), (n, d))


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("d", DIMS)
def test_density_and_responsibilities_are_bayes_rule(t, d):
    source, target = laws.pair_mixture(d, d)
    for x in points(d):
        joint = np.array(
            [
                weight
                * scipy.stats.multivariate_normal(
                    (1 - t) * source.mean + t * mean, (1 - t) ** 2 * source.cov + t**2 * cov
                ).pdf(x)
                for weight, mean, cov in zip(target.weights, target.means, target.covs, strict=True)
            ]
        )
        np.testing.assert_allclose(
            mixture.log_density(t, x, source, target), np.log(joint.sum()), rtol=0, atol=1e-12
        )
        np.testing.assert_allclose(
            mixture.responsibilities(t, x, source, target), joint / joint.sum(), rtol=0, atol=1e-13
        )


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_velocity_is_the_conditional_expectation_by_quadrature(t):
    source, target = laws.pair_mixture(1, 1)
    standard = scipy.stats.norm(float(source.mean[0]), float(source.cov[0, 0]) ** 0.5).pdf
    components = [
        (float(w), scipy.stats.norm(float(m[0]), float(c[0, 0]) ** 0.5).pdf)
        for w, m, c in zip(target.weights, target.means, target.covs, strict=True)
    ]

    def density(x1, x):  # of x1 and xt = x, up to a constant
        return sum(w * pdf(x1) for w, pdf in components) * standard((x - t * x1) / (1 - t))

    for x in (-1.0, 0.3, 2.0):
        moments = [
            scipy.integrate.quad(
                lambda y, x=x, p=p: y**p * density(y, x), -15, 15, epsabs=1e-14, epsrel=1e-13
            )[0]
            for p in (0, 1)
        ]
        posterior_mean = moments[1] / moments[0]
        expected = posterior_mean - (x - t * posterior_mean) / (1 - t)
        np.testing.assert_allclose(
            mixture.velocity(t, jnp.array([x]), source, target)[0], expected, rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("d", DIMS)
def test_velocity_carries_the_density(t, d):
    # continuity: d/dt log p + v·∇log p + div v = 0, which ties T6 and T8 to T4 alone
    source, target = laws.pair_mixture(10 + d, d)
    for x in points(d):
        rate, score = jax.grad(mixture.log_density, (0, 1))(t, x, source, target)
        divergence = jnp.trace(mixture.velocity_jacobian(t, x, source, target))
        residual = rate + mixture.velocity(t, x, source, target) @ score + divergence
        assert abs(residual) < 1e-11


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("d", DIMS)
def test_closed_derivatives_agree_with_autodiff(t, d):
    source, target = laws.pair_mixture(20 + d, d)
    for x in points(d):
        gradients = jax.jacrev(lambda x: mixture.responsibilities(t, x, source, target))(x)
        np.testing.assert_allclose(
            mixture.responsibility_gradients(t, x, source, target), gradients, rtol=0, atol=1e-12
        )
        jacobian = jax.jacfwd(lambda x: mixture.velocity(t, x, source, target))(x)
        closed = mixture.velocity_jacobian(t, x, source, target)
        np.testing.assert_allclose(closed, jacobian, rtol=0, atol=2e-11)
        probe = jnp.linspace(-1, 1, d)
        np.testing.assert_allclose(
            mixture.velocity_jvp(t, x, probe, source, target), closed @ probe, rtol=0, atol=1e-12
        )


def test_jacobian_by_central_differences():
    source, target = laws.pair_mixture(30, 3)
    x, step = jnp.array([0.3, -0.5, 1.0]), 1e-5
    columns = [
        (
            mixture.velocity(0.6, x + step * e, source, target)
            - mixture.velocity(0.6, x - step * e, source, target)
        )
        / (2 * step)
        for e in jnp.eye(3)
    ]
    np.testing.assert_allclose(
        mixture.velocity_jacobian(0.6, x, source, target), np.stack(columns, 1), rtol=0, atol=5e-9
    )


@pytest.mark.parametrize("t", TIMES)
def test_component_jacobians_are_those_of_the_gaussian_flows(t):
    source, target = laws.pair_mixture(31, 3)
    jacobians = mixture.component_jacobians(t, source, target)
    for k in range(3):
        component = Gaussian(target.means[k], target.covs[k])
        np.testing.assert_allclose(
            jacobians[k], gaussian.velocity_jacobian(t, source, component), rtol=0, atol=1e-13
        )


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("d", DIMS)
def test_the_law_on_the_way_is_a_mixture(t, d):
    """Its density, by scipy, is the path's; and at the ends it is the source and the target."""
    source, target = laws.pair_mixture(40 + d, d)
    law = mixture.law_at(t, source, target)
    parts = list(zip(law.weights, law.means, law.covs, strict=True))
    for x in points(d):
        density = sum(w * scipy.stats.multivariate_normal(m, c).pdf(x) for w, m, c in parts)
        np.testing.assert_allclose(
            np.log(density), mixture.log_density(t, x, source, target), rtol=0, atol=1e-11
        )
    if t in (0, 1):
        whole = target if t else source
        np.testing.assert_allclose(law.mean, whole.mean, rtol=0, atol=1e-14)
        np.testing.assert_allclose(law.cov, whole.cov, rtol=0, atol=1e-14)


@pytest.mark.parametrize("t", TIMES)
def test_velocities_with_the_label_held_and_their_blends(t):
    """Their mean by responsibility is T6; their Jacobians are A_k; and T8 is the blend of these and
    what the label adds."""
    source, target = laws.pair_mixture(37, 3)
    for x in points(3):
        velocities = mixture.component_velocities(t, x, source, target)
        gamma = mixture.responsibilities(t, x, source, target)
        whole = mixture.velocity(t, x, source, target)
        np.testing.assert_allclose(gamma @ velocities, whole, rtol=0, atol=1e-12)
        held = jax.jacfwd(mixture.component_velocities, 1)(t, x, source, target)
        jacobians = mixture.component_jacobians(t, source, target)
        np.testing.assert_allclose(held, jacobians, rtol=0, atol=1e-12)
        blend = mixture.blend(t, x, source, target)
        by_hand = sum(weight * matrix for weight, matrix in zip(gamma, jacobians, strict=True))
        np.testing.assert_allclose(blend, by_hand, rtol=0, atol=1e-13)
        gradients = mixture.responsibility_gradients(t, x, source, target)
        label = mixture.velocity_jacobian(t, x, source, target) - velocities.T @ gradients
        np.testing.assert_allclose(blend, label, rtol=0, atol=1e-11)


def test_holding_the_label_is_regression_within_the_component():
    source, target = laws.pair_mixture(32, 2)
    t, n = 0.55, 100_000
    for k in range(3):
        keys = jax.random.split(jax.random.key(k))
        x0 = np.asarray(source.sample(keys[0], n))
        x1 = np.asarray(Gaussian(target.means[k], target.covs[k]).sample(keys[1], n))
        design = np.column_stack([np.ones(n), (1 - t) * x0 + t * x1])
        solution, _, _, _ = np.linalg.lstsq(design, x1 - x0, rcond=None)
        residual = x1 - x0 - design @ solution
        stderr = np.sqrt(np.outer(residual.var(0), np.diag(np.linalg.inv(design.T @ design))[1:]))
        error = solution[1:].T - mixture.component_jacobians(t, source, target)[k]
        assert np.abs(error / stderr).max() < 4


@pytest.mark.parametrize("t", TIMES)
def test_one_component_is_the_gaussian_flow(t):
    source, single = laws.pair(33, 3)
    target = GaussianMixture(jnp.ones(1), single.mean[None], single.cov[None])
    x = jnp.array([1.0, -1.0, 0.5])
    np.testing.assert_allclose(
        mixture.velocity(t, x, source, target),
        gaussian.velocity(t, x, source, single),
        rtol=0,
        atol=1e-13,
    )
    np.testing.assert_allclose(
        mixture.velocity_jacobian(t, x, source, target),
        gaussian.velocity_jacobian(t, source, single),
        rtol=0,
        atol=1e-13,
    )


@pytest.mark.parametrize("t", [0.0, 0.4, 0.9])
def test_the_table_of_jacobians_under_intervention_and_observation(t):
    """Table 1 (T13). A linear map and a Gaussian: one matrix at every place, seen or held. A
    mixture: what is held is the component's, what is seen changes from place to place."""
    _, target = laws.pair_mixture(36, 3)
    source, M = Gaussian.standard(3), jnp.linalg.cholesky(target.covs[0])
    S = M @ M.T
    linear = np.asarray(
        (t * S - (1 - t) * jnp.eye(3)) @ jnp.linalg.inv((1 - t) ** 2 * jnp.eye(3) + t**2 * S)
    )
    single = GaussianMixture(jnp.ones(1), target.means[:1], S[None])
    for x in points(3):
        seen = mixture.velocity_jacobian(t, x, source, single)
        np.testing.assert_allclose(seen, linear, rtol=0, atol=1e-12)
        held = mixture.component_jacobians(t, source, single)[0]
        np.testing.assert_allclose(held, linear, rtol=0, atol=1e-12)
    held = np.asarray(mixture.component_jacobians(t, source, target))
    np.testing.assert_allclose(held[0], linear, rtol=0, atol=1e-12)
    seen = np.stack([mixture.velocity_jacobian(t, x, source, target) for x in points(3)])
    apart = np.linalg.norm(seen[:, None] - held, axis=(2, 3))
    if t:  # at the beginning all of them are -I
        assert np.linalg.norm(seen - seen[0], axis=(1, 2))[1:].max() > 0.1
        assert apart.min(1).max() > 0.1
    else:
        np.testing.assert_allclose(apart, 0, rtol=0, atol=1e-12)


def test_on_a_border_two_components_are_equally_likely():
    """Of different weights and covariances, on the line between the means, from either side."""
    source, target = laws.pair_mixture(3, 2)
    target = GaussianMixture(jnp.array([0.6, 0.3, 0.1]), 4 * target.means, target.covs)
    for t in (0.5, 0.9, 1.0):
        means = mixture.law_at(t, source, target).means
        for j, k in ((0, 1), (1, 2), (2, 0)):
            x = mixture.border(t, source, target, j, k)
            odds = mixture.responsibilities(t, x, source, target)[jnp.array([j, k])]
            np.testing.assert_allclose(odds[0] / odds[1], 1, rtol=1e-9)
            share = (x - means[j]) / (means[k] - means[j])
            np.testing.assert_allclose(share, share[0], rtol=1e-9)
            assert 0 < share[0] < 1
            np.testing.assert_allclose(mixture.border(t, source, target, k, j), x, rtol=1e-9)

    # it moves with the weights as the log-odds say
    def at(w):
        law = GaussianMixture(jnp.array([w, 0.9 - w, 0.1]), target.means, target.covs)
        return mixture.border(0.9, source, law, 0, 1)

    quotient = (at(0.6 + 1e-6) - at(0.6 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.jacfwd(at)(0.6), quotient, rtol=1e-6)


def test_there_is_no_border_where_one_component_is_likelier_all_the_way():
    source, target = laws.pair_mixture(3, 2)
    near = GaussianMixture(jnp.array([0.98, 0.01, 0.01]), 0.1 * target.means, target.covs)
    assert jnp.isnan(mixture.border(0.5, source, near, 0, 1)).all()
    assert jnp.isnan(mixture.border(0.0, source, target, 0, 1)).all()


@pytest.mark.parametrize("t", [0.3, 0.7])
def test_affinity_is_what_is_measured_beside_its_bounds(t):
    source, target = laws.pair_mixture(38, 3)
    for x in points(3):
        found = mixture.affinity(t, x, source, target)
        gamma = mixture.responsibilities(t, x, source, target)
        np.testing.assert_allclose(found.doubt, 1 - gamma, rtol=0, atol=1e-15)
        jacobian = jax.jacfwd(mixture.velocity, 1)(t, x, source, target)
        for k in range(3):
            held = Gaussian(target.means[k], target.covs[k])
            off = mixture.velocity(t, x, source, target) - gaussian.velocity(t, x, source, held)
            matrix = jacobian - gaussian.velocity_jacobian(t, source, held)
            sizes = found.velocity[k], found.jacobian[k]
            expected = np.linalg.norm(off), np.sqrt((matrix**2).sum())
            np.testing.assert_allclose(sizes, expected, rtol=1e-9, atol=1e-12)
            bounds = mixture.affinity_bound(t, x, source, target, k)
            assert (found.velocity_bound[k], found.jacobian_bound[k]) == bounds
    # the doubt is known below the rounding of 1
    parted = GaussianMixture(target.weights, 6 * target.means, target.covs)
    middle = mixture.law_at(0.7, source, parted).means[0]
    assert 0 < mixture.affinity(0.7, middle, source, parted).doubt[0] < 1e-30


def test_endpoints():
    source, target = laws.pair_mixture(34, 3)
    for x in points(3):
        np.testing.assert_allclose(
            mixture.velocity(0.0, x, source, target), target.mean - x, rtol=0, atol=1e-13
        )
        np.testing.assert_allclose(
            mixture.velocity(1.0, x, source, target), x - source.mean, rtol=0, atol=1e-12
        )
        np.testing.assert_allclose(
            mixture.velocity_jacobian(0.0, x, source, target), -np.eye(3), rtol=0, atol=1e-13
        )
        np.testing.assert_allclose(
            mixture.velocity_jacobian(1.0, x, source, target), np.eye(3), rtol=0, atol=1e-11
        )


def test_equal_covariances_share_one_jacobian():
    source, target = laws.pair_mixture(35, 3)
    equal = GaussianMixture(target.weights, target.means, jnp.stack([target.covs[0]] * 3))
    jacobians = mixture.component_jacobians(0.4, source, equal)
    np.testing.assert_allclose(jacobians[1:], jacobians[:-1], rtol=0, atol=1e-15)


def from_component(t, x, source, target, k):
    """1 - γ_k without cancellation, and the distances of velocity and Jacobian from component k's,
    each divided by it."""
    component = Gaussian(target.means[k], target.covs[k])
    rest = jnp.delete(mixture.responsibilities(t, x, source, target), k).sum()
    velocity = mixture.velocity(t, x, source, target) - gaussian.velocity(t, x, source, component)
    jacobian = mixture.velocity_jacobian(t, x, source, target) - gaussian.velocity_jacobian(
        t, source, component
    )
    return rest, jnp.linalg.norm(velocity) / rest, jnp.linalg.norm(jacobian) / rest


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9])
def test_local_affinity_bound_is_an_equality_for_two_components_of_one_covariance(t):
    source, target = laws.pair_mixture(36, 3, 2)
    target = GaussianMixture(target.weights, target.means, jnp.stack([target.covs[0]] * 2))
    for x in points(3, 6, 2.0):
        for k in range(2):
            rest, velocity, jacobian = from_component(t, x, source, target, k)
            np.testing.assert_allclose(
                mixture.affinity_bound(t, x, source, target, k),
                (rest * velocity, rest * jacobian),
                rtol=1e-9,
                atol=1e-14,
            )


@pytest.fixture(scope="module")
def searched():
    """Largest of measured over bound on balls around the components' means, by search: pointwise
    bound and constants of the ball, for velocity and Jacobian; largest 1 - γ over its bound."""
    source, target = laws.pair_mixture(36, 2)
    radius, angle = jnp.meshgrid(jnp.linspace(0, 0.5, 9), jnp.linspace(0, 2 * jnp.pi, 33))
    disc = jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)], -1).reshape(-1, 2)

    def measure(t, x, k):
        rest, *apart = from_component(t, x, source, target, k)
        return rest, jnp.stack(apart), jnp.stack(mixture.affinity_bound(t, x, source, target, k))

    found = []
    for k in range(3):
        over_disc = jax.jit(jax.vmap(lambda t, x, k=k: measure(t, x, k), (None, 0)))
        for t in (0.2, 0.5, 0.8):
            mean = (1 - t) * source.mean + t * target.means[k]
            rest, apart, pointwise = over_disc(t, mean + disc)
            *constants, doubt = mixture.affinity_on_ball(t, 0.5, source, target, k)
            pointwise = apart * rest[:, None] / pointwise
            found.append(
                [*pointwise.max(0), *(apart / jnp.stack(constants)).max(0), rest.max() / doubt]
            )
    return np.array(found)


def test_no_bound_of_local_affinity_is_exceeded(searched):
    assert (searched <= 1 + 1e-9).all()


def test_every_bound_of_local_affinity_is_attained_within_a_small_factor(searched):
    # largest of the components and times: 1.00, 0.97, 0.82, 0.33, 0.99 (on a ball the Jacobian's
    # constant adds up the worst directions of two affine maps and of a sum)
    np.testing.assert_array_less([0.95, 0.9, 0.7, 0.25, 0.9], searched.max(0))


def test_the_ball_shrunk_to_the_mean_has_the_doubt_there():
    source, target = laws.pair_mixture(36, 3)
    mean = 0.4 * source.mean + 0.6 * target.means[2]
    gamma = mixture.responsibilities(0.6, mean, source, target)
    doubt = mixture.affinity_on_ball(0.6, 0.0, source, target, 2)[2]
    np.testing.assert_allclose(doubt, 1 - gamma[2], rtol=1e-12)
    without = GaussianMixture(jnp.array([0.5, 0.5, 0.0]), target.means, target.covs)
    two = GaussianMixture(jnp.array([0.5, 0.5]), target.means[:2], target.covs[:2])
    np.testing.assert_allclose(
        mixture.affinity_on_ball(0.6, 0.5, source, without, 0),
        mixture.affinity_on_ball(0.6, 0.5, source, two, 0),
        rtol=1e-12,
    )


def test_local_affinity_sets_in_when_the_components_part():
    source, target = laws.pair_mixture(36, 2)
    t, k, bounds = 0.7, 1, []
    for factor in (2.0, 4.0, 8.0, 10.0):
        apart = GaussianMixture(target.weights, factor * target.means, target.covs)
        *constants, doubt = mixture.affinity_on_ball(t, 1.0, source, apart, k)
        bounds.append(max(constants) * doubt)
    assert (np.diff(np.log(bounds)) < 0).all() and bounds[2] < 1e-10
    # the exponent: half the smallest squared distance of the means in the other component's metric
    apart = t * (target.means - target.means[k])[jnp.array([0, 2])]
    covs = (1 - t) ** 2 * source.cov + t**2 * target.covs[jnp.array([0, 2])]
    rate = jnp.einsum("ki,kij,kj->k", apart, jnp.linalg.inv(covs), apart).min() / 2
    slope = np.log(bounds[2] / bounds[3]) / (10.0**2 - 8.0**2)
    assert 0.8 * rate < slope < rate
    apart = GaussianMixture(target.weights, 10 * target.means, target.covs)
    # at t = 0 nothing is known of the label, and the field is no component's however far they are
    start = mixture.velocity(0.0, source.mean, source, apart)
    held = gaussian.velocity(0.0, source.mean, source, Gaussian(apart.means[1], apart.covs[1]))
    assert jnp.linalg.norm(start - held) > 1


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("size", [1e3, 1e5])
def test_far_tail_is_finite_and_affine_where_every_density_underflows(t, size):
    source, target = laws.pair_mixture(37, 2)
    x = size * jnp.array([1.0, -0.5])
    outputs = [
        function(t, x, source, target)
        for function in (
            mixture.log_density,
            mixture.responsibilities,
            mixture.responsibility_gradients,
            mixture.velocity,
            mixture.velocity_jacobian,
        )
    ]
    assert all(np.isfinite(output).all() for output in outputs)
    assert np.exp(outputs[0]) == 0
    if 0 < t < 1:  # the widest component owns the tail
        k = int(jnp.argmax(outputs[1]))
        np.testing.assert_allclose(
            outputs[4], mixture.component_jacobians(t, source, target)[k], rtol=0, atol=1e-9
        )


def by_fractions(t, x, target):
    """Responsibilities by Bayes' rule from a standard normal, in the plane, squares exactly."""
    squares, dets = [], []
    t, x = Fraction(float(t)), [Fraction(float(one)) for one in x]
    for mean, cov in zip(target.means.tolist(), target.covs.tolist(), strict=True):
        (a, b), (_, c) = [[t**2 * Fraction(one) for one in row] for row in cov]
        a, c = a + (1 - t) ** 2, c + (1 - t) ** 2
        u, v = (one - t * Fraction(m) for one, m in zip(x, mean, strict=True))
        dets.append(float(a * c - b * b))
        squares.append((c * u * u - 2 * b * u * v + a * v * v) / (a * c - b * b))
    excess = np.array([float(one - min(squares)) for one in squares])
    logs = np.log(np.asarray(target.weights, float)) - (excess + np.log(dets)) / 2
    shares = np.exp(logs - logs.max())
    return shares / shares.sum()


STEPS = np.linspace(-2, 2, 9)
TIGHT, WIDE = np.array([[0.01, 0.002], [0.002, 0.02]]), np.array([[1.0, 0.3], [0.3, 2]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("covs", [[WIDE] * 3, [WIDE, WIDE, TIGHT], [WIDE, 1.001 * WIDE, TIGHT]])
def test_far_out_responsibilities_are_as_good_as_their_input(dtype, covs):
    """Where two components are even, along a line that they share: what rounding of x would do."""
    t, means = dtype(0.5), np.array([[1, 0], [-1, 0.5], [0.25, -1]], dtype)
    target = GaussianMixture(np.array([0.25, 0.5, 0.25], dtype), means, np.array(covs, dtype))
    source = Gaussian(np.zeros(2, dtype), dtype(1))
    along = 0.25 * (np.eye(2) + WIDE) @ [0.25, 1]  # orthogonal to the means' difference, in S
    x = [[size * along + step * np.array([1, -0.25]) for size in (10, 1e3, 1e5)] for step in STEPS]
    x = np.array(x).reshape(-1, 2).astype(dtype)
    found = jax.jit(jax.vmap(lambda x: mixture.responsibilities(t, x, source, target)))(x)
    marginals = 0.25 * (np.eye(2) + np.asarray(target.covs, np.float64))
    scores = [(means[k] / 2 - x) @ np.linalg.inv(marginals[k]) for k in (0, 1)]
    moved = (np.abs(scores[0] - scores[1]) * np.abs(x)).sum(1)
    expected = np.stack([by_fractions(t, one, target) for one in x])
    assert (np.abs(found - expected).max(1) <= np.finfo(dtype).eps * (4 + 2 * moved)).all()


def test_responsibilities_where_a_tight_component_gives_way_to_a_wide_one():
    means = np.array([[1, 0], [0.02, 0.01]], np.float32)
    covs = np.array([1e-4 * np.eye(2), np.eye(2)], np.float32)
    target = GaussianMixture(np.array([0.5, 0.5], np.float32), means, covs)
    source = Gaussian(np.zeros(2, np.float32), np.float32(1))
    t = np.float32(0.99)
    x = t * means[0] + np.linspace(0, 0.08, 33)[:, None] * np.array([0.6, 0.8])
    x = x.astype(np.float32)
    expected = np.stack([by_fractions(t, one, target) for one in x])
    assert ((expected[:, 0] > 0.05) & (expected[:, 0] < 0.95)).sum() > 1
    found = jax.jit(jax.vmap(lambda x: mixture.responsibilities(t, x, source, target)))(x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_is_undefined_where_squares_of_x_leave_the_range(dtype):
    size = dtype(1e20 if dtype == np.float32 else 1e155)
    source = Gaussian(np.zeros(2, dtype), dtype(1))
    means = np.array([[1, 0], [-1, 0.5], [0.25, -1]], dtype)
    weights = np.array([0.25, 0.5, 0.25], dtype)
    even = GaussianMixture(weights, means, np.array([np.eye(2)] * 3, dtype))
    t = dtype(0.5)
    # of one covariance: the mean farthest along x takes all; where all are as far, Bayes' rule
    x = size * np.array([-1, 0], dtype)
    np.testing.assert_array_equal(mixture.responsibilities(t, x, source, even), [0, 1, 0])
    level = GaussianMixture(weights, means * [0, 1], even.covs)
    shares = np.array([0.25, 0.5, 0.25]) * np.exp(-(0.5**2) * means[:, 1] ** 2)  # t²m² / 2S
    np.testing.assert_allclose(
        mixture.responsibilities(t, x, source, level),
        shares / shares.sum(),
        rtol=0,
        atol=10 * np.finfo(dtype).eps,
    )
    # the widest takes all, and the log density falls as the square: -inf, with the score for slope
    wide = GaussianMixture(weights, means, np.array([WIDE, 2 * WIDE, TIGHT], dtype))
    x = size * np.array([1, -0.5], dtype)
    np.testing.assert_array_equal(mixture.responsibilities(t, x, source, wide), [0, 1, 0])
    assert mixture.log_density(t, x, source, wide) == -np.inf
    if dtype == np.float32:
        slope = jax.grad(lambda x: mixture.log_density(t, x, source, wide))(x)
        expected = -np.linalg.solve(0.25 * (np.eye(2) + 2 * WIDE), x.astype(np.float64))
        np.testing.assert_allclose(slope, expected, rtol=20 * np.finfo(dtype).eps)


def test_slopes_in_weights_are_finite_where_one_is_zero():
    _, target = laws.pair_mixture(41, 2)
    source, x, t = Gaussian.standard(2), jnp.array([0.3, -0.2]), 0.6
    laws_at = [
        scipy.stats.multivariate_normal(t * m, (1 - t) ** 2 * np.eye(2) + t**2 * c).pdf(x)
        for m, c in zip(target.means, target.covs, strict=True)
    ]
    weights, densities = np.array([0.0, 0.4, 0.6]), np.array(laws_at)

    def of(weights):
        return GaussianMixture(weights, target.means, target.covs)

    # with total p = Σ w f and weights divided by their sum: d(w_k f_k / p) = (δ_kj f_j - γ_k f_j)/p
    total = weights @ densities
    gamma = weights * densities / total
    expected = (np.diag(densities) - np.outer(gamma, densities)) / total
    slopes = jax.jacrev(lambda w: mixture.responsibilities(t, x, source, of(w)))(weights)
    np.testing.assert_allclose(slopes, expected, rtol=0, atol=1e-12)
    slope = jax.grad(lambda w: mixture.log_density(t, x, source, of(w)))(weights)
    np.testing.assert_allclose(slope, densities / total - 1, rtol=0, atol=1e-12)


def test_a_component_of_weight_zero_that_would_be_far_likelier_changes_nothing():
    means, covs = np.array([[0.0], [900.0]]), np.ones((2, 1, 1))
    target = GaussianMixture(np.array([1.0, 0.0]), means, covs)
    source, x = Gaussian.standard(1), jnp.array([900.0])
    np.testing.assert_array_equal(mixture.responsibilities(1.0, x, source, target), [1, 0])
    expected = scipy.stats.norm.logpdf(900.0)
    assert mixture.log_density(1.0, x, source, target) == pytest.approx(expected, rel=1e-14)
    slope = jax.grad(lambda x: mixture.log_density(1.0, x, source, target))(x)
    np.testing.assert_allclose(slope, [-900.0], rtol=1e-14)


def test_moments_and_sampling():
    target = laws.mixture(jax.random.key(38), 3)
    draws = np.asarray(target.sample(jax.random.key(0), 200_000))
    assert (
        np.abs((draws.mean(0) - target.mean) / np.sqrt(np.diag(target.cov) / len(draws))).max() < 4
    )
    centred = draws - target.mean
    products = centred[:, :, None] * centred[:, None, :]
    assert (
        np.abs((products.mean(0) - target.cov) / (products.std(0) / np.sqrt(len(draws)))).max() < 4
    )


def test_label_and_noise_of_a_draw_are_independent():
    """In one dimension, where a label and its noise would come from the same bits."""
    target = GaussianMixture(
        jnp.array([0.4, 0.6]), jnp.array([[-50.0], [50]]), jnp.array([[[1.0]], [[4]]])
    )
    draws = np.asarray(target.sample(jax.random.key(0), 20_000))[:, 0]
    for k, part in enumerate((draws[draws < 0], draws[draws > 0])):
        z = (part - float(target.means[k, 0])) / float(target.covs[k, 0, 0]) ** 0.5
        assert abs(z.mean()) * np.sqrt(len(z)) < 4
        assert abs((z**2).mean() - 1) * np.sqrt(len(z) / 2) < 4


def test_weights_that_sum_to_one_up_to_rounding_are_made_to_do_so():
    """What is refused only from 1e-5 on is divided out: a density has integral 1."""
    target = GaussianMixture(
        jnp.array([0.25, 0.250005, 0.5]), jnp.zeros((3, 1)), jnp.ones((3, 1, 1))
    )
    x = jnp.linspace(-9, 9, 400)
    density = jax.vmap(lambda x: mixture.log_density(1.0, x, Gaussian.standard(1), target))
    assert abs(np.trapezoid(np.exp(density(x[:, None])), x) - 1) < 1e-13


def test_single_precision_stays_single_and_transforms_compose():
    source, target = (
        jax.tree.map(lambda leaf: leaf.astype(jnp.float32), law) for law in laws.pair_mixture(39, 3)
    )
    xs = points(3).astype(jnp.float32)
    batched = jax.jit(jax.vmap(lambda x: mixture.velocity_jacobian(0.4, x, source, target)))(xs)
    assert batched.dtype == jnp.float32
    np.testing.assert_allclose(
        batched[1], mixture.velocity_jacobian(0.4, xs[1], source, target), atol=2e-5
    )
    assert np.isfinite(jax.grad(lambda t: mixture.velocity(t, xs[0], source, target).sum())(0.4))


def test_zero_weights_are_allowed():
    source, target = laws.pair_mixture(40, 2)
    without = GaussianMixture(jnp.array([0.25, 0.75, 0.0]), target.means, target.covs)
    two = GaussianMixture(jnp.array([0.25, 0.75]), target.means[:2], target.covs[:2])
    x = jnp.array([0.2, 0.1])
    np.testing.assert_allclose(
        mixture.velocity_jacobian(0.5, x, source, without),
        mixture.velocity_jacobian(0.5, x, source, two),
        rtol=0,
        atol=1e-13,
    )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: GaussianMixture([0.5, 0.6], jnp.zeros((2, 1)), jnp.ones((2, 1, 1))),
            "sum to one, got a sum of 1.1",
        ),
        (
            lambda: GaussianMixture([0.5, 0.5001], jnp.zeros((2, 1)), jnp.ones((2, 1, 1))),
            "sum to one, got a sum of 1.0001",
        ),
        (
            lambda: GaussianMixture([-0.5, 1.5], jnp.zeros((2, 1)), jnp.ones((2, 1, 1))),
            "must not be negative",
        ),
        (
            lambda: GaussianMixture([1.0], jnp.zeros((2, 1)), jnp.ones((2, 1, 1))),
            r"means must have shape \(K, d\)",
        ),
        (
            lambda: GaussianMixture([1.0], jnp.zeros((1, 2)), jnp.ones((1, 2, 3))),
            r"covs must have shape \(1, 2, 2\)",
        ),
        (
            lambda: GaussianMixture([1.0], jnp.zeros((1, 1)), -jnp.ones((1, 1, 1))),
            "covs must be positive definite",
        ),
        (
            lambda: GaussianMixture([], jnp.zeros((0, 1)), jnp.ones((0, 1, 1))),
            "weights must be a vector",
        ),
        (lambda: GaussianMixture([1.0], [[jnp.nan]], jnp.ones((1, 1, 1))), "means must be finite"),
        (
            lambda: mixture.velocity(2.0, jnp.ones(2), *laws.pair_mixture(0, 2)),
            r"t must lie in \[0, 1\], got 2",
        ),
        (
            lambda: mixture.velocity(0.5, jnp.ones(3), *laws.pair_mixture(0, 2)),
            r"x must have shape \(2,\)",
        ),
        (
            lambda: mixture.velocity(0.5, jnp.ones(2), *laws.pair(0, 2)),
            "target must be a cdelta.GaussianMixture",
        ),
        (
            lambda: mixture.velocity(
                0.5, jnp.ones(2), Gaussian.standard(3), laws.pair_mixture(0, 2)[1]
            ),
            "agree in dimension, got 3 and 2",
        ),
        (lambda: mixture.border(0.5, *laws.pair_mixture(0, 2), 0, 3), "one of 0 ... 2, got 3"),
        (
            lambda: mixture.border(0.5, *laws.pair_mixture(0, 2), 1, 1),
            "must differ, got component 1",
        ),
        (
            lambda: mixture.affinity_bound(0.5, jnp.ones(2), *laws.pair_mixture(0, 2), 3),
            "one of 0 ... 2, got 3",
        ),
        (
            lambda: mixture.affinity_bound(0.5, jnp.ones(2), *laws.pair_mixture(0, 2), 1.5),
            "one of 0 ... 2, got 1.5",
        ),
        (
            lambda: mixture.affinity_on_ball(0.5, 1.0, *laws.pair_mixture(0, 2), -1),
            "one of 0 ... 2, got -1",
        ),
        (
            lambda: mixture.affinity_on_ball(0.5, -1.0, *laws.pair_mixture(0, 2), 0),
            "radius must be finite and not negative, got -1",
        ),
        (
            lambda: mixture.affinity_on_ball(
                0.5,
                1.0,
                Gaussian.standard(1),
                GaussianMixture([0.0, 1.0], jnp.zeros((2, 1)), jnp.ones((2, 1, 1))),
                0,
            ),
            "component must have a positive weight, got component 0",
        ),
        (
            lambda: GaussianMixture([0.5, 0.5], jnp.zeros((2, 1)), jnp.ones((2, 1, 1))).sample(
                jax.random.key(0), -1
            ),
            "n must be a positive integer, got -1",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def solves_needed(jaxpr, given):
    """How many triangular solves there are, and the pairs of which the later does not need the
    earlier. ``given``: which of them each argument needs, none."""
    pairs, order = [], []

    def walk(jaxpr, given):
        needs = dict(zip(jaxpr.invars, given, strict=True))

        def of(atom):
            return frozenset() if hasattr(atom, "val") else needs.get(atom, frozenset())

        for eqn in jaxpr.eqns:
            before = frozenset().union(*map(of, eqn.invars))
            inner = [eqn.params[name] for name in ("jaxpr", "call_jaxpr") if name in eqn.params]
            if inner:
                inside = getattr(inner[0], "jaxpr", inner[0])
                found = walk(inside, list(map(of, eqn.invars)))
            else:
                if eqn.primitive.name == "triangular_solve":
                    pairs.extend((other, len(order)) for other in order if other not in before)
                    order.append(len(order))
                    before |= {order[-1]}
                found = [before] * len(eqn.outvars)
            needs |= dict(zip(eqn.outvars, found, strict=True))
        return list(map(of, jaxpr.outvars))

    walk(jaxpr, given)
    return len(order), pairs


@pytest.mark.parametrize(
    "function", [mixture.log_density, mixture.responsibilities, mixture.velocity]
)
def test_no_two_triangular_solves_can_run_at_once(function):
    """On a large batch each would take all threads, and with two threads both wait for good."""
    source, target = laws.pair_mixture(2, 2)
    traced = jax.make_jaxpr(jax.vmap(lambda t, x: function(t, x, source, target), (None, 0)))(
        0.5, jnp.zeros((7, 2))
    ).jaxpr
    count, at_once = solves_needed(traced, [frozenset()] * len(traced.invars))
    assert count >= 2 and at_once == []
