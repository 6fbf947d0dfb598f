"""Flows onto laws with a gap: against the mixture's velocity, their laws, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import cumulative_trapezoid
from scipy.stats import norm

import cdelta
from cdelta import gaps, jacobian, mixture
from cdelta.dependence import wiggle_moment


@pytest.mark.parametrize(("separation", "width"), [(0.8, 1.0), (2.4, None), (3.5, 0.7)])
def test_two_modes_are_reached_by_the_flow_of_their_mixture(separation, width):
    modes, source = gaps.TwoModes(separation, width), cdelta.Gaussian.standard(1)
    x = np.linspace(-2.5, 2.5, 8)
    y, slope = modes.at(x)
    flow = cdelta.Flow(
        lambda t, x: mixture.velocity(t, x, source, modes.target), "tsit5", steps=200
    )
    found, found_slope = jax.jit(jax.vmap(lambda x: jax.jvp(flow, (x[None],), (jnp.ones(1),))))(
        jnp.asarray(x)
    )
    np.testing.assert_allclose(y, found[:, 0], rtol=0, atol=1e-11)
    np.testing.assert_allclose(slope, found_slope[:, 0], rtol=1e-9, atol=0)
    np.testing.assert_allclose(modes.latents(y), x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(modes.value(x), y, rtol=0, atol=1e-9)
    np.testing.assert_allclose(modes.slope(x), slope, rtol=1e-7, atol=0)
    np.testing.assert_allclose(modes.tail(y), norm.sf(x), rtol=1e-12, atol=0)
    target = modes.target
    np.testing.assert_allclose(
        modes.density(y), jnp.exp(jax.vmap(lambda y: mixture.log_density(1.0, y, source, target))
                                  (jnp.asarray(y)[:, None])), rtol=1e-12, atol=0)  # fmt: skip
    variance = target.cov[0, 0]
    assert variance == pytest.approx(1 if width is None else (1 + separation**2) * width**2)


@pytest.mark.parametrize("separation", [0.5, 2.4, 4.0])
def test_the_factor_is_the_mean_square_of_the_slope(separation):
    modes = gaps.TwoModes(separation)
    # latents of the gap are few, and close to 0
    first = float(modes.latents(modes.width))
    x = first * np.sinh(np.linspace(0, np.arcsinh(9 / first), 4001))
    by_latents = cumulative_trapezoid(2 * norm.pdf(x) * modes.at(x)[1] ** 2, x, initial=0)
    assert modes.factor() == pytest.approx(by_latents[-1], rel=1e-5)
    assert gaps.TwoModes(separation, width=3.0).factor() == pytest.approx(modes.factor(), rel=1e-12)
    places, part = modes.carried()
    assert np.interp(0.1, places, part) == pytest.approx(np.interp(0.1, x, by_latents), rel=1e-4)


def test_the_factor_of_distant_modes_is_its_asymptote():
    r = 10.0
    excess = gaps.TwoModes(r).factor() / (np.sqrt(np.pi / 2) * np.exp(r**2 / 2) / (r * (1 + r**2)))
    assert excess - 1 == pytest.approx(np.pi**2 / (8 * r**2), rel=0.1)


@pytest.mark.parametrize(("separation", "width"), [(1.5, None), (2.5, None), (2.0, 0.5)])
def test_products_of_two_latents_add_up_to_the_covariance_of_the_values(separation, width):
    modes = gaps.TwoModes(separation, width)
    variance = float(modes.target.cov[0, 0])
    assert modes.product(modes.value, 1.0) == pytest.approx(variance, rel=1e-8)
    assert modes.product(modes.value, 0.0) == pytest.approx(0, abs=1e-12)
    assert modes.product(modes.slope, 1.0) == pytest.approx(modes.factor() * variance, rel=1e-7)
    assert modes.accumulated(0.5) == pytest.approx(modes.product(modes.value, 0.5), rel=1e-7)
    assert modes.accumulated(1.0) == pytest.approx(variance, rel=1e-5)


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_the_crossed_flow_is_that_of_the_mixture(rho):
    source, law = cdelta.Gaussian.standard(2), gaps.crossed(rho)
    np.testing.assert_allclose(law.cov, np.eye(2), rtol=0, atol=1e-15)
    np.testing.assert_allclose(law.covs[:, 0, 1], [rho, -rho], rtol=0, atol=1e-15)
    whole = cdelta.Flow(lambda t, x: mixture.velocity(t, x, source, law), "rk4", 200)
    x = jax.random.normal(jax.random.key(0), (10, 2))
    found = jax.vmap(gaps.crossed_flow(rho))(x)
    np.testing.assert_allclose(found, jax.vmap(whole)(x), rtol=0, atol=1e-8)
    on_axis = jnp.array([[0, 0.0], [0, 1.0], [0, 2.0]])
    J = jax.vmap(lambda x: jacobian.jvp(gaps.crossed_flow(rho), x, jnp.eye(2)).T)(on_axis)
    np.testing.assert_allclose(
        J[:, 0, 0], gaps.crossed_slope(rho, np.arange(3.0)), rtol=1e-6, atol=0
    )
    np.testing.assert_allclose(J[:, 1, 1], gaps.crossed_slope(rho, 0.0), rtol=1e-12, atol=0)


def test_the_borderline_of_c14_and_how_the_parts_grow():
    assert gaps.crossed_growth(np.sqrt(3) / 2) == pytest.approx(1 / 2)
    assert gaps.crossed_growth(np.sqrt(7) / 4) == pytest.approx(1 / 6)
    radius = np.array([5.0, 5.5, 6.0, 7.0])
    parts = jax.jit(jax.vmap(gaps.crossed_part, (0, None)))(radius, 0.95)
    growth = np.polyfit(radius**2, np.log(radius * parts), 1)[0]
    assert growth == pytest.approx(gaps.crossed_growth(0.95) - 0.5, abs=0.005)


@pytest.mark.parametrize("radius", [0.5, 2.0])
def test_a_part_is_its_integral_over_latents(radius):
    r"""The other way round: latents R (sinh a, cosh a), of which the flow keeps x₂² - x₁², and the
    Jacobian of the flow itself; the eight half branches are alike."""
    a, step = np.linspace(0, 3.5, 401, retstep=True)
    x = radius * jnp.stack([jnp.sinh(a), jnp.cosh(a)], 1)
    J = jax.vmap(jax.jacfwd(gaps.crossed_flow(0.5)))(x)
    density = np.exp(-(np.asarray(x) ** 2).sum(1) / 2) / (2 * np.pi) * radius
    exact = 8 * np.trapezoid(density * (np.asarray(J) ** 2).sum((1, 2)), dx=step)
    assert gaps.crossed_part(radius, 0.5) == pytest.approx(exact, rel=2e-4)


def test_the_parts_add_up_to_what_samples_give():
    root = np.linspace(0, 1, 61)[1:]
    parts = jax.jit(jax.vmap(gaps.crossed_part, (0, None)))(6 * root**2, 0.5)
    area = np.trapezoid(np.append(0, 12 * root * parts), np.append(0, root))
    moment = wiggle_moment(
        gaps.crossed_flow(0.5, steps=60), jax.random.key(1), (2,), 20_000,
        method="jvp", probes=2, progress=False,
    )  # fmt: skip
    value, error = moment.estimate(np.trace)
    assert abs(value - area) < 4 * error < abs(value - 2)  # 2: the variance


@pytest.mark.parametrize(("separation", "width"), [(0, None), (-1, None), (1, 0), (np.nan, None)])
def test_modes_without_a_gap_or_a_width_are_refused(separation, width):
    with pytest.raises(ValueError, match="must be positive, got"):
        gaps.TwoModes(separation, width)
