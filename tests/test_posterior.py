"""C5 against quadrature, brute-force sums over the data, autodiff, and mixtures with a component a
point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from cdelta import Empirical, Flow, Gaussian, GaussianMixture, gaussian, mixture, posterior
from tests import laws

TIMES = [0.0, 0.3, 0.8]
FUNCTIONS = (posterior.mean, posterior.cov, posterior.velocity, posterior.velocity_jacobian)


def dataset(n=7, d=3, bandwidth=0.0, seed=0):
    return Empirical(1.5 * jax.random.normal(jax.random.key(seed), (n, d)), bandwidth)


def sources(d=3):
    return {
        "isotropic": Gaussian(0.3 * jnp.ones(d), 0.8),
        "dense": laws.gaussian(jax.random.key(50), d),
    }


def brute_force(t, x, source, points):
    """Posterior weights of the points by their densities: only (x - t y)/(1 - t) could have been
    the noise."""
    logs = scipy.stats.multivariate_normal(source.mean, source.cov).logpdf(
        (x - t * np.asarray(points)) / (1 - t)
    )
    return scipy.special.softmax(np.atleast_1d(logs))


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("kind", ["isotropic", "dense"])
def test_posterior_of_a_dataset_is_a_weighted_sum(t, kind):
    source, target = sources()[kind], dataset()
    x = jnp.array([0.4, -0.2, 1.0])
    weights = brute_force(t, x, source, target.points)
    mean = weights @ target.points
    centred = np.asarray(target.points) - mean
    np.testing.assert_allclose(posterior.mean(t, x, source, target), mean, rtol=0, atol=1e-13)
    cov = (weights[:, None] * centred).T @ centred
    np.testing.assert_allclose(posterior.cov(t, x, source, target), cov, rtol=0, atol=1e-13)
    velocity = (
        weights[:, None]
        * (np.asarray(target.points) - (x - t * np.asarray(target.points)) / (1 - t))
    ).sum(0)
    np.testing.assert_allclose(
        posterior.velocity(t, x, source, target), velocity, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("t", [*TIMES, 1.0])
@pytest.mark.parametrize("kind", ["isotropic", "dense"])
def test_widened_dataset_is_a_mixture_with_a_component_a_point(t, kind):
    source, target = sources()[kind], dataset(bandwidth=0.4)
    components = GaussianMixture(jnp.ones(7) / 7, target.points, jnp.stack([0.16 * jnp.eye(3)] * 7))
    x, probe = jnp.array([0.4, -0.2, 1.0]), jnp.array([1.0, 0.5, -0.3])
    for function in FUNCTIONS:
        np.testing.assert_allclose(
            function(t, x, source, target),
            function(t, x, source, components),
            rtol=0,
            atol=2e-12,
            err_msg=function.__name__,
        )
    np.testing.assert_allclose(
        posterior.velocity_jvp(t, x, probe, source, target),
        posterior.velocity_jvp(t, x, probe, source, components),
        rtol=0,
        atol=2e-12,
    )


TARGETS = {
    "gaussian": lambda: laws.gaussian(jax.random.key(51), 3),
    "mixture": lambda: laws.mixture(jax.random.key(52), 3),
    "points": dataset,
    "widened": lambda: dataset(bandwidth=0.3),
}


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("kind", ["isotropic", "dense"])
@pytest.mark.parametrize("target", TARGETS)
def test_jacobian_of_the_velocity_is_the_posterior_covariance(t, kind, target):
    source, target = sources()[kind], TARGETS[target]()
    x, probe = jnp.array([0.4, -0.2, 1.0]), jnp.array([1.0, 0.5, -0.3])
    cov = posterior.cov(t, x, source, target)
    from_cov = t / (1 - t) ** 3 * cov @ np.linalg.inv(source.cov) - np.eye(3) / (1 - t)
    derivative = jax.jacfwd(lambda x: posterior.velocity(t, x, source, target))(x)
    closed = posterior.velocity_jacobian(t, x, source, target)
    np.testing.assert_allclose(from_cov, derivative, rtol=0, atol=1e-11)
    np.testing.assert_allclose(closed, derivative, rtol=0, atol=1e-11)
    np.testing.assert_allclose(
        posterior.velocity_jvp(t, x, probe, source, target), derivative @ probe, rtol=0, atol=1e-11
    )
    mean = posterior.mean(t, x, source, target)
    np.testing.assert_allclose(
        posterior.velocity(t, x, source, target), (mean - x) / (1 - t), rtol=0, atol=1e-12
    )
    # the denoiser's derivative is the same covariance, seen from x1
    denoiser = jax.jacfwd(lambda x: posterior.mean(t, x, source, target))(x)
    np.testing.assert_allclose(
        denoiser, t / (1 - t) ** 2 * cov @ np.linalg.inv(source.cov), rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_moments_by_quadrature(t):
    source, target = laws.pair_mixture(1, 1)
    noise = scipy.stats.norm(float(source.mean[0]), float(source.cov[0, 0]) ** 0.5).pdf
    components = [
        (float(w), scipy.stats.norm(float(m[0]), float(c[0, 0]) ** 0.5).pdf)
        for w, m, c in zip(target.weights, target.means, target.covs, strict=True)
    ]
    x = 0.4
    moments = [
        scipy.integrate.quad(
            lambda y, p=p: (
                y**p * sum(w * pdf(y) for w, pdf in components) * noise((x - t * y) / (1 - t))
            ),
            -15,
            15,
            epsabs=1e-15,
            epsrel=1e-13,
        )[0]
        for p in range(3)
    ]
    mean = moments[1] / moments[0]
    point = jnp.array([x])
    np.testing.assert_allclose(
        posterior.mean(t, point, source, target)[0], mean, rtol=0, atol=1e-10
    )
    np.testing.assert_allclose(
        posterior.cov(t, point, source, target)[0, 0],
        moments[2] / moments[0] - mean**2,
        rtol=0,
        atol=1e-10,
    )


@pytest.mark.parametrize("t", TIMES)
def test_gaussian_target_agrees_with_its_own_module(t):
    source, target = laws.pair(53, 3)
    x = jnp.array([0.4, -0.2, 1.0])
    np.testing.assert_allclose(
        posterior.mean(t, x, source, target),
        gaussian.conditional_mean(t, x, source, target),
        rtol=0,
        atol=1e-13,
    )
    joint_cov = (
        target.cov
        - t**2 * target.cov @ np.linalg.inv(gaussian.cov_at(t, source, target)) @ target.cov
    )
    np.testing.assert_allclose(posterior.cov(t, x, source, target), joint_cov, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["isotropic", "dense"])
@pytest.mark.parametrize("target", TARGETS)
def test_endpoints_are_those_of_the_theorem(kind, target):
    source, target = sources()[kind], TARGETS[target]()
    x, probe = jnp.array([0.4, -0.2, 1.0]), jnp.array([1.0, 0.5, -0.3])
    mean = target.mean
    np.testing.assert_allclose(
        posterior.velocity(0.0, x, source, target), mean - x, rtol=0, atol=1e-13
    )
    np.testing.assert_allclose(
        posterior.velocity(1.0, x, source, target), x - source.mean, rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(posterior.mean(0.0, x, source, target), mean, rtol=0, atol=1e-13)
    np.testing.assert_allclose(posterior.mean(1.0, x, source, target), x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        posterior.cov(0.0, x, source, target), target.cov, rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(
        posterior.cov(1.0, x, source, target), np.zeros((3, 3)), rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(
        posterior.velocity_jacobian(1.0, x, source, target), np.eye(3), rtol=0, atol=1e-11
    )
    np.testing.assert_allclose(
        posterior.velocity_jvp(1.0, x, probe, source, target), probe, rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("kind", ["isotropic", "dense"])
def test_reverse_mode_is_finite_at_the_end_of_a_dataset(kind):
    """At t = 1 without bandwidth the formula reads 0/0: a reverse pass goes through it as well."""
    source, target = sources()[kind], dataset()
    x = jnp.array([0.4, -0.2, 1.0])
    for function in (posterior.mean, posterior.velocity):
        jacobian = jax.jacrev(lambda x, f=function: f(1.0, x, source, target))(x)
        np.testing.assert_allclose(jacobian, np.eye(3), rtol=0, atol=1e-13)


@pytest.mark.parametrize("bandwidth", [0.0, 0.2])
@pytest.mark.parametrize("t", [0.01, 0.5, 0.999, 1.0])
def test_far_tail_is_finite(t, bandwidth):
    target = dataset(bandwidth=bandwidth)
    for source in sources().values():
        for size in (1e2, 1e5):
            x = size * jnp.array([1.0, -0.5, 0.2])
            for function in FUNCTIONS:
                assert np.isfinite(function(t, x, source, target)).all(), (function.__name__, size)


def test_close_to_one_the_nearest_point_takes_all():
    source, target = sources()["isotropic"], dataset()
    x = 0.7 * target.points[4] + 0.3 * target.points[2]
    nearest = jnp.argmin(jnp.linalg.norm(target.points - x, axis=1))
    t = 0.9999
    np.testing.assert_allclose(
        posterior.mean(t, x, source, target), target.points[nearest], rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(
        posterior.velocity_jacobian(t, x, source, target), -np.eye(3) / (1 - t), rtol=1e-9
    )


def test_at_one_a_dataset_has_a_value_and_no_limit():
    # T12: v(1, y) = y - m₀ is the value at a data point y; v(t, y) tends to 0
    for source in sources().values():
        target = dataset()
        y = target.points[4]
        late = posterior.velocity(0.999, y, source, target)
        np.testing.assert_allclose(late, 0 * y, rtol=0, atol=1e-11)
        value = posterior.velocity(1.0, y, source, target)
        np.testing.assert_allclose(value, y - source.mean, rtol=0, atol=1e-14)
        # with a density (here of width 0.01) it is a limit
        wide = Empirical(target.points, 0.01)
        np.testing.assert_allclose(posterior.velocity(1 - 1e-6, y, source, wide), value, atol=2e-3)


def test_the_flow_carries_the_law_of_the_source_to_that_of_x_t():
    # on the line paths keep their order: P(x_t <= φ_t(x0)) = Φ(x0), which knows no velocity
    points, source = jnp.array([[-1.0], [0.2], [1.5]]), Gaussian(jnp.array([0.3]), 0.8)
    target, ts = Empirical(points), jnp.array([0.3, 0.6, 0.8])
    flow = Flow(lambda t, x: posterior.velocity(t, x, source, target), "rk4", 200)
    latents = 0.3 + 0.8**0.5 * jnp.linspace(-2.5, 2.5, 11)[:, None]
    carried = np.asarray(jax.vmap(lambda x0: flow.trajectory(x0, ts))(latents))[..., 0]
    for t, x in zip(np.asarray(ts), carried.T, strict=True):
        spread = (1 - t) * 0.8**0.5
        below = scipy.stats.norm.cdf(x, (1 - t) * 0.3 + t * np.asarray(points), spread).mean(0)
        np.testing.assert_allclose(
            below, scipy.stats.norm.cdf(np.linspace(-2.5, 2.5, 11)), atol=1e-6
        )
    # the straight line to the likeliest point carries another law
    straight = (1 - 0.6) * latents[:, 0] + 0.6 * jnp.array([-1.0] * 4 + [0.2] * 3 + [1.5] * 4)
    below = scipy.stats.norm.cdf(straight, 0.12 + 0.6 * np.asarray(points), 0.4 * 0.8**0.5).mean(0)
    assert np.abs(below - scipy.stats.norm.cdf(np.linspace(-2.5, 2.5, 11))).max() > 0.02


@pytest.mark.parametrize("kind", [1.0, np.array([[1.0, 0.25], [0.25, 0.5]])])
def test_a_dataset_far_from_zero_keeps_its_digits(kind):
    # moving the data by c moves x_t by tc and the velocity by c, and leaves its Jacobian; all of
    # these are multiples of 1/64, which single precision holds exactly
    points = np.round(64 * np.asarray(jax.random.normal(jax.random.key(4), (6, 2)))) / 64
    x, probe, t, c = np.array([0.25, -0.125]), np.array([1.0, -2.0]), 0.5, 4096.0
    for bandwidth in (0.0, 0.125):
        near = Gaussian(np.zeros(2), kind), Empirical(points, bandwidth)
        single = [np.float32(part) for part in (points + c, np.zeros(2), kind, x + t * c, probe)]
        far = Gaussian(*single[1:3]), Empirical(single[0], np.float32(bandwidth))
        jacobian = posterior.velocity_jacobian(t, x, *near)
        for value, known in (
            (posterior.velocity(t, single[3], *far) - c, posterior.velocity(t, x, *near)),
            (posterior.cov(t, single[3], *far), posterior.cov(t, x, *near)),
            (posterior.velocity_jacobian(t, single[3], *far), jacobian),
            (posterior.velocity_jvp(t, single[3], single[4], *far), jacobian @ probe),
        ):
            np.testing.assert_allclose(value, known, rtol=0, atol=2e-3)


def test_images_keep_their_shape_and_single_precision():
    images = jax.random.uniform(jax.random.key(0), (20, 4, 5), jnp.float32)
    target, source = Empirical(images), Gaussian.standard(20, jnp.float32)
    x, probe = jax.random.normal(jax.random.key(1), (2, 4, 5), jnp.float32)
    velocity = jax.jit(posterior.velocity)(0.6, x, source, target)
    product = posterior.velocity_jvp(0.6, x, probe, source, target)
    assert velocity.shape == product.shape == target.mean.shape == (4, 5)
    assert velocity.dtype == product.dtype == jnp.float32
    jacobian = posterior.velocity_jacobian(0.6, x, source, target)
    np.testing.assert_allclose(jacobian @ probe.ravel(), product.ravel(), atol=2e-5)
    double = [jax.tree.map(lambda leaf: leaf.astype(jnp.float64), law) for law in (source, target)]
    exact = posterior.velocity(0.6, x.astype(jnp.float64), *double)
    np.testing.assert_allclose(velocity, exact, atol=1e-5)
    derivative = jax.jvp(
        lambda x: posterior.velocity(0.6, x, *double), (x.astype(float),), (probe.astype(float),)
    )[1]
    np.testing.assert_allclose(
        posterior.velocity_jvp(0.6, x, probe, *double), derivative, rtol=0, atol=1e-11
    )


def largest_intermediate(function, *arguments):
    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (
                variable.aval.size
                for variable in equation.outvars
                if hasattr(variable.aval, "size")
            )
            for value in equation.params.values():
                if hasattr(value, "jaxpr"):
                    yield from sizes(value.jaxpr)

    return max(sizes(jax.make_jaxpr(function)(*arguments).jaxpr))


@pytest.mark.parametrize("times", ["shared", "own"])
def test_nothing_of_the_size_of_a_jacobian_is_formed(times):
    n, d, batch = 50, 400, 8
    target, source = Empirical(jax.random.normal(jax.random.key(0), (n, d))), Gaussian.standard(d)
    xs, probes = jax.random.normal(jax.random.key(1), (2, batch, d))
    ts = jnp.linspace(0.1, 0.9, batch)
    axis = 0 if times == "own" else None
    ts = ts if times == "own" else ts[0]
    velocity = jax.vmap(lambda t, x: posterior.velocity(t, x, source, target), (axis, 0))
    product = jax.vmap(
        lambda t, x, p: posterior.velocity_jvp(t, x, p, source, target), (axis, 0, 0)
    )
    limit = max(n * d, batch * n, batch * d)
    assert limit < d * d
    assert largest_intermediate(velocity, ts, xs) <= limit
    assert largest_intermediate(product, ts, xs, probes) <= limit


def test_moments_and_sampling_of_a_dataset():
    target = dataset(bandwidth=0.5)
    draws = np.asarray(target.sample(jax.random.key(0), 200_000))
    assert (
        np.abs((draws.mean(0) - target.mean) / np.sqrt(np.diag(target.cov) / len(draws))).max() < 4
    )
    centred = draws - np.asarray(target.mean)
    products = centred[:, :, None] * centred[:, None, :]
    assert (
        np.abs((products.mean(0) - target.cov) / (products.std(0) / np.sqrt(len(draws)))).max() < 4
    )
    exact = dataset().sample(jax.random.key(1), 50)
    assert (exact[:, None, :] == dataset().points[None]).all(-1).any(1).all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Empirical(jnp.zeros((0, 3))),
            r"points must have shape \(n, ...\) with n >= 1, got \(0, 3\)",
        ),
        (lambda: Empirical(jnp.zeros(3)), "points must have shape"),
        (lambda: Empirical(jnp.full((2, 2), jnp.nan)), "points must be finite"),
        (
            lambda: Empirical(jnp.zeros((2, 2)), -1.0),
            "bandwidth must be finite and not negative, got -1",
        ),
        (lambda: Empirical(jnp.zeros((2, 2)), jnp.ones(2)), "bandwidth must have shape"),
        (
            lambda: posterior.velocity(0.5, jnp.ones(2), Gaussian.standard(3), dataset()),
            r"x must have shape \(3,\)",
        ),
        (
            lambda: posterior.velocity(0.5, jnp.ones(3), Gaussian.standard(2), dataset()),
            "dimension, got 2 and 3",
        ),
        (
            lambda: posterior.velocity(0.5, jnp.ones(3), dataset(), dataset()),
            "source must be a cdelta.Gaussian",
        ),
        (
            lambda: posterior.mean(0.5, jnp.ones(3), Gaussian.standard(3), 1.0),
            "target must be a Gaussian, Gaussian",
        ),
        (
            lambda: posterior.velocity(0.5, jnp.ones(3), Gaussian.standard(3), 1.0),
            "target must be a ",
        ),
        (
            lambda: posterior.velocity_jvp(
                0.5, jnp.ones(3), jnp.ones(2), Gaussian.standard(3), dataset()
            ),
            r"tangent must have shape \(3,\)",
        ),
        (
            lambda: posterior.velocity_jacobian(
                0.5, jnp.ones(2), Gaussian.standard(3), Gaussian.standard(3)
            ),
            r"x must have shape \(3,\)",
        ),
        (
            lambda: posterior.cov(-0.5, jnp.ones(3), Gaussian.standard(3), dataset()),
            "t must lie in",
        ),
        (lambda: dataset().sample(jax.random.key(0), -1), "n must be a positive integer, got -1"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_gaussian_and_mixture_targets_use_their_closed_forms():
    source, target = laws.pair_mixture(54, 2)
    x = jnp.array([0.1, 0.2])
    np.testing.assert_array_equal(
        posterior.velocity_jacobian(0.4, x, source, target),
        mixture.velocity_jacobian(0.4, x, source, target),
    )
    np.testing.assert_array_equal(
        posterior.velocity(0.4, x, source, source), gaussian.velocity(0.4, x, source, source)
    )


@pytest.mark.parametrize("bits", [10, 14, 18])
def test_covariance_between_components_close_to_one(bits):
    """In single precision, where the components' means differ by less than the rounding of x. At a
    single point roundings may agree: at many they do not."""
    t = 1 - np.float32(2.0**-bits)
    weights, means = np.array([0.5, 0.5], np.float32), np.array([[4, 8], [5, 8]], np.float32)
    covs = np.array([np.eye(2), [[2, 0.5], [0.5, 1]]], np.float32)
    source = Gaussian(np.zeros(2, np.float32), np.float32(1))
    target = GaussianMixture(weights, means, covs)
    points = np.random.default_rng(0).normal([4.5, 8.25], 0.5, (64, 2)).astype(np.float32)
    found = jax.vmap(lambda x: posterior.cov(t, x, source, target))(points)
    assert found.dtype == np.float32

    left, t = 1 - float(t), float(t)
    gamma, within, velocities = [], [], []
    for m, c in zip(means.astype(float), covs.astype(float), strict=True):
        s = left**2 * np.eye(2) + t**2 * c
        gamma.append(scipy.stats.multivariate_normal(t * m, s).pdf(points))
        within.append(c @ np.linalg.inv(s))
        # E[x1 - x | x, k] is (1-t) times the component's velocity, T6
        velocities.append(m + np.linalg.solve(s, (points - t * m).T).T @ (t * c - left * np.eye(2)))
    gamma, velocities = np.array(gamma) / np.sum(gamma, 0), np.array(velocities)
    off = velocities - np.einsum("kn,kni->ni", gamma, velocities)
    expected = np.einsum("kn,kij->nij", gamma, within)
    expected += np.einsum("kn,kni,knj->nij", gamma, off, off)
    np.testing.assert_allclose(found / left**2, expected, rtol=0, atol=1e-5)
