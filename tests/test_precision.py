"""Every public function of the theory in every precision, under strict promotion: the dtype of what
came in, and the value of float64 to its rounding."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cdelta
from cdelta import Empirical, Gaussian, gaussian, jacobian, linear, mixture, networks, posterior
from cdelta._precision import common, working
from tests import laws

HALF = (jnp.bfloat16, jnp.float16)
DTYPES = (*HALF, jnp.float32, jnp.float64)
SOURCE, TARGET = laws.pair(60, 3)
MIXED = laws.mixture(jax.random.key(61), 3)
POINTS = Empirical(1.5 * jax.random.normal(jax.random.key(62), (6, 3)), 0.4)
ROWS = jax.random.normal(jax.random.key(63), (2, 3))
X, PROBE = jnp.array([0.5, -0.75, 0.25]), jnp.array([1.0, 0.5, -0.25])
T = 0.625


def f(x):
    return jnp.sin(ROWS.astype(x.dtype) @ x)


def cast(value, dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), value)


PAIR, BLEND, DATA = (SOURCE, TARGET), (SOURCE, MIXED), (SOURCE, POINTS)
CASES = {
    "linear.conditional_mean": (linear.conditional_mean, T, X[:2], ROWS),
    "linear.probe_covariance": (linear.probe_covariance, ROWS),
    "gaussian.mean_at": (gaussian.mean_at, T, *PAIR),
    "gaussian.cov_at": (gaussian.cov_at, T, *PAIR),
    "gaussian.conditional_mean": (gaussian.conditional_mean, T, X, *PAIR),
    "gaussian.velocity": (gaussian.velocity, T, X, *PAIR),
    "gaussian.velocity_jacobian": (gaussian.velocity_jacobian, T, *PAIR),
    "gaussian.flow_map": (gaussian.flow_map, T, X, *PAIR),
    "gaussian.flow_jacobian": (gaussian.flow_jacobian, T, *PAIR),
    "gaussian.bend": (gaussian.bend, *PAIR),
    "gaussian.transport_map": (gaussian.transport_map, T, X, *PAIR),
    "gaussian.transport_jacobian": (gaussian.transport_jacobian, T, *PAIR),
    "mixture.law_at": (mixture.law_at, T, *BLEND),
    "mixture.log_density": (mixture.log_density, T, X, *BLEND),
    "mixture.responsibilities": (mixture.responsibilities, T, X, *BLEND),
    "mixture.responsibility_gradients": (mixture.responsibility_gradients, T, X, *BLEND),
    "mixture.velocity": (mixture.velocity, T, X, *BLEND),
    "mixture.velocity_jacobian": (mixture.velocity_jacobian, T, X, *BLEND),
    "mixture.velocity_jvp": (mixture.velocity_jvp, T, X, PROBE, *BLEND),
    "mixture.component_jacobians": (mixture.component_jacobians, T, *BLEND),
    "mixture.component_velocities": (mixture.component_velocities, T, X, *BLEND),
    "mixture.blend": (mixture.blend, T, X, *BLEND),
    "mixture.border": (mixture.border, T, *BLEND, 0, 1),
    "mixture.affinity": (mixture.affinity, T, X, *BLEND),
    "mixture.affinity_bound": (mixture.affinity_bound, T, X, *BLEND, 1),
    "mixture.affinity_on_ball": (mixture.affinity_on_ball, T, 0.5, *BLEND, 1),
    **{
        f"posterior.{name} of {kind}": (getattr(posterior, name), T, X, *laws)
        for name in ("mean", "cov", "velocity", "velocity_jacobian")
        for kind, laws in {"a gaussian": PAIR, "a mixture": BLEND, "points": DATA}.items()
    },
    "posterior.velocity_jvp of points": (posterior.velocity_jvp, T, X, PROBE, *DATA),
    "posterior.velocity_jvp of a gaussian": (posterior.velocity_jvp, T, X, PROBE, *PAIR),
    "jacobian.jvp": (lambda x, p: jacobian.jvp(f, x, p), X, PROBE),
    "jacobian.values_and_jvp": (lambda x, p: jacobian.values_and_jvp(f, x, p), X, PROBE),
    "jacobian.rows": (lambda x: jacobian.rows(f, x), X),
    "jacobian.values_and_rows": (lambda x: jacobian.values_and_rows(f, x), X),
    "Gaussian.cov": (lambda law: law.cov, SOURCE),
    "GaussianMixture.mean": (lambda law: law.mean, MIXED),
    "GaussianMixture.cov": (lambda law: law.cov, MIXED),
    "Empirical.mean": (lambda law: law.mean, POINTS),
    "Empirical.cov": (lambda law: law.cov, POINTS),
    "networks.time_features": (lambda t: networks.time_features(t, 8), jnp.array(T)),
    **{
        f"Flow, {solver}": (
            lambda x, solver=solver: cdelta.Flow(lambda t, x: jnp.sin(x) - t, solver, 8)(x),
            X,
        )
        for solver in ("euler", "heun", "midpoint", "rk4", "tsit5")
    },
    "Flow.inverse": (lambda x: cdelta.Flow(lambda t, x: jnp.sin(x) - t).inverse(x), X),
    "Flow.trajectory": (
        lambda x, ts: cdelta.Flow(lambda t, x: jnp.sin(x) - t).trajectory(x, ts),
        X,
        jnp.array([0.0, 0.3125, 1.0]),
    ),
    "Flow, adaptive": (
        lambda x: cdelta.Flow(lambda t, x: jnp.sin(x) - t, "tsit5", rtol=1e-5)(x),
        X,
    ),
}


def test_no_public_function_of_the_theory_is_missing():
    for module in (linear, gaussian, mixture, posterior):
        for name, member in vars(module).items():
            if inspect.isfunction(member) and member.__module__ == module.__name__:
                asked = f"{module.__name__.removeprefix('cdelta.')}.{name}"
                hidden = name.startswith("_")
                assert hidden or any(case.startswith(asked) for case in CASES), asked


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_the_dtype_is_kept_and_the_value_is_that_of_double_precision(name, dtype):
    function, *arguments = CASES[name]
    arguments = [
        cast(argument, dtype) if not isinstance(argument, float | int) else argument
        for argument in arguments
    ]
    # the same numbers, as they were rounded, in double precision
    exact = function(*(cast(a, float) if not isinstance(a, float | int) else a for a in arguments))
    with jax.numpy_dtype_promotion("strict"):
        result = function(*arguments)
    eps = float(jnp.finfo(dtype).eps)
    # In the theory half precision is rounded once, at the end; float32 and float64 bear the solvers
    # of systems with a condition of about ten. Jacobians ask f in its own precision, a flow asks
    # its velocity so: roundings of order one in values of order one.
    once = dtype in HALF and not name.startswith(("jacobian", "Flow"))
    rounding = (0.51 if once else 20) * eps
    if name == "Flow, adaptive":
        rounding += 1e-5
    for one, other in zip(jax.tree.leaves(result), jax.tree.leaves(exact), strict=True):
        assert one.dtype == dtype and other.dtype == jnp.float64
        one = np.asarray(one, np.float64)
        size = np.abs(other) if once else np.abs(other).max()
        assert (np.abs(one - other) <= rounding * size + 1e-6 * once).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("law", [SOURCE, Gaussian(SOURCE.mean, 0.7), MIXED, POINTS])
def test_draws_have_the_laws_dtype_and_moments(law, dtype):
    law = cast(law, dtype)
    with jax.numpy_dtype_promotion("strict"):
        draws = law.sample(jax.random.key(0), 20_000)
    assert draws.dtype == dtype
    draws = np.asarray(draws, np.float64)
    cov = np.asarray(law.cov, np.float64)
    stderr = np.sqrt(np.diag(cov) / len(draws))
    eps = float(jnp.finfo(dtype).eps)
    assert (np.abs(draws.mean(0) - np.asarray(law.mean, np.float64)) < 4 * stderr + 2 * eps).all()
    spread = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / len(draws))
    assert (np.abs(np.cov(draws.T) - cov) < 5 * spread + 4 * eps * np.abs(cov).max()).all()


def test_mixed_precisions_meet_in_the_wider_one():
    assert common(jnp.bfloat16, jnp.float16) == working(jnp.bfloat16) == jnp.float32
    x = X.astype(jnp.float32)
    with jax.numpy_dtype_promotion("strict"):
        for law, expected in ((jnp.bfloat16, jnp.float32), (jnp.float64, jnp.float64)):
            result = gaussian.velocity(jnp.array(T, jnp.float16), x, *cast(PAIR, law))
            assert result.dtype == expected
            exact = gaussian.velocity(T, X, *cast(cast(PAIR, law), float))
            np.testing.assert_allclose(result, exact, rtol=1e-5)
        # the time has no say, and a clock in the wider precision widens nothing
        narrow = gaussian.velocity(jnp.array(T, jnp.float64), x, *cast(PAIR, jnp.float32))
        assert narrow.dtype == jnp.float32
        np.testing.assert_allclose(narrow, exact, rtol=1e-5)
    # lists and integers are numbers of the default precision
    for x in ([0.5, -0.75, 0.25], np.array([1, 0, -1])):
        result = gaussian.velocity(T, x, *cast(PAIR, jnp.bfloat16))
        exact = gaussian.velocity(T, jnp.asarray(x, float), *cast(cast(PAIR, jnp.bfloat16), float))
        assert result.dtype == jnp.float64
        np.testing.assert_array_equal(result, exact)


@pytest.mark.parametrize("dtype", HALF)
def test_laws_in_half_precision_are_made_and_refused_as_others(dtype):
    weights = jnp.asarray([0.3, 0.3, 0.4], dtype)  # their sum is one to their rounding only
    covs = jnp.stack([jnp.eye(2, dtype=dtype)] * 3)
    law = cdelta.GaussianMixture(weights, jnp.zeros((3, 2), dtype), covs)
    assert law.weights.dtype == dtype
    with pytest.raises(ValueError, match="sum to one"):
        cdelta.GaussianMixture(1.1 * weights, law.means, law.covs)
    with pytest.raises(ValueError, match="cov must be symmetric"):
        Gaussian(jnp.zeros(2, dtype), jnp.asarray([[1.0, 0.5], [0.0, 1.0]], dtype))


@pytest.mark.parametrize("dtype", HALF)
def test_differences_in_half_precision_are_taken_between_points_that_differ(dtype):
    x, probe = X.astype(dtype), PROBE.astype(dtype)
    result = jacobian.finite_difference(f, x, probe, 1e-3)
    exact = jacobian.jvp(f, x.astype(float), probe.astype(float))
    assert result.dtype == dtype
    np.testing.assert_allclose(
        result.astype(float), exact, rtol=float(jnp.finfo(dtype).eps), atol=2e-3
    )
    with pytest.raises(ValueError, match=f"eps = 0.001 is drowned .* {jnp.dtype(dtype)}"):
        jacobian.finite_difference(lambda x: f(x.astype(dtype)), x, probe, 1e-3)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_many_steps_in_half_precision_are_not_lost(dtype, solver):
    steps, x = 3000, jnp.ones(2, dtype)
    flow = cdelta.Flow(lambda t, x: x, solver, steps)
    rounding = 2 * float(jnp.finfo(dtype).eps)
    assert flow(x).dtype == dtype
    np.testing.assert_allclose(flow(x).astype(float), np.e, rtol=rounding)
    # of a linear flow, the derivative is the map; the velocity's own tangents are rounded to half
    for jacobian_of in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(
            jacobian_of(flow)(x).astype(float), np.e * np.eye(2), rtol=rounding
        )
    asked = []
    cdelta.Flow(lambda t, x: asked.append((t.dtype, x.dtype)) or x)(x)
    assert set(asked) == {(jnp.dtype(dtype),) * 2}


@pytest.mark.parametrize("dtype", HALF)
def test_a_time_below_one_is_not_rounded_to_one(dtype):
    # the last of 3000 steps begins at t = 1 - 1/3000, which rounds to 1
    flow = cdelta.Flow(lambda t, x: jnp.where(t < 1, x, jnp.nan), "euler", 3000)
    assert np.isfinite(flow(jnp.ones(1, dtype))).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda rngs: networks.MLP(4, width=8, time=8, rngs=rngs),
        lambda rngs: networks.UNet((4, 4), (4, 8), time=8, rngs=rngs),
        lambda rngs: networks.Classifier((4, 4), 3, (4, 8), rngs=rngs),
    ],
)
def test_networks_return_the_dtype_of_x(make):
    network = make(nnx.Rngs(0))  # of float32
    x = jax.random.normal(jax.random.key(0), network.shape, jnp.float32)
    call = jax.jit(network if isinstance(network, networks.Classifier) else partial(network, T))
    with jax.numpy_dtype_promotion("strict"):
        exact = call(x)
    for dtype in (*HALF, jnp.float32, jnp.float64):
        result, eps = call(x.astype(dtype)), float(jnp.finfo(dtype).eps)
        assert result.dtype == dtype
        error = np.abs(result.astype(float) - exact).max()
        # what float32 itself bears: angles of the time's features, up to 1e4 t, are rounded there
        assert error <= 4 * max(eps, 1e4 * T * 2**-24) * np.abs(exact).max()
