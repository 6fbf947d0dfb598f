"""Flows against the closed form of C1, against diffrax's own solver, and differentiated both
ways."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdelta
from cdelta import gaussian, jacobian
from cdelta.flow import CPU_OPTIONS
from tests import laws

ORDERS = {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4, "tsit5": 5}
SOURCE, TARGET = laws.pair(3, 3)
X0 = jnp.array([0.7, -1.1, 0.4])


def velocity(t, x):
    return gaussian.velocity(t, x, SOURCE, TARGET)


def curved(t, x):
    return jnp.sin(3 * t + x) - 0.5 * jnp.roll(x, 1) * x


@pytest.mark.parametrize("solver", ORDERS)
def test_error_falls_with_the_order_of_the_solver(solver):
    # reference: a converged adaptive solution with another library's step control
    reference = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, _: curved(t, x)), diffrax.Dopri8(), 0.0, 1.0, 1e-3, X0,
        stepsize_controller=diffrax.PIDController(1e-12, 1e-12),
    ).ys[0]  # fmt: skip
    errors = [
        np.abs(cdelta.Flow(curved, solver, steps)(X0) - reference).max() for steps in (16, 32)
    ]
    # tsit5's leading error term is so small that the next one shows
    assert (
        ORDERS[solver] - 0.1
        < np.log2(errors[0] / errors[1])
        < ORDERS[solver] + (1.2 if solver == "tsit5" else 0.1)
    )


@pytest.mark.parametrize("solver", ORDERS)
def test_fixed_steps_meet_the_closed_flow_of_two_gaussians_and_come_back(solver):
    flow = cdelta.Flow(velocity, solver, 400)
    exact = gaussian.flow_map(1.0, X0, SOURCE, TARGET)
    bound = {"euler": 0.02, "heun": 3e-5, "midpoint": 3e-5, "rk4": 1e-9, "tsit5": 1e-12}[solver]
    assert np.abs(flow(X0) - exact).max() < bound
    assert np.abs(flow.inverse(exact) - X0).max() < 5 * bound


@pytest.mark.parametrize(
    ("solver", "theirs"),
    [
        ("euler", diffrax.Euler()),
        ("heun", diffrax.Heun()),
        ("midpoint", diffrax.Midpoint()),
        ("tsit5", diffrax.Tsit5()),
    ],
)
def test_fixed_steps_are_those_of_diffrax(solver, theirs):
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, _: curved(t, x)), theirs, 0.0, 1.0, 1 / 8, X0
    )
    np.testing.assert_allclose(
        cdelta.Flow(curved, solver, 8)(X0), solution.ys[0], rtol=1e-13, atol=1e-14
    )


def test_the_adaptive_solver_keeps_its_tolerance():
    exact = gaussian.flow_map(1.0, X0, SOURCE, TARGET)
    for rtol in (1e-3, 1e-6, 1e-9):
        flow = cdelta.Flow(velocity, "tsit5", rtol=rtol)
        assert np.abs(flow(X0) - exact).max() < 20 * rtol
        assert np.abs(flow.inverse(exact) - X0).max() < 100 * rtol
    assert flow.evaluations is None


@pytest.mark.parametrize(
    "flow", [cdelta.Flow(velocity, "rk4", 60), cdelta.Flow(velocity, "tsit5", rtol=1e-9)]
)
def test_both_modes_of_differentiation_give_the_exact_jacobian(flow):
    exact = gaussian.flow_jacobian(1.0, SOURCE, TARGET)
    tolerance = 2e-7
    np.testing.assert_allclose(jacobian.rows(flow, X0), exact, atol=tolerance)
    both = jax.jit(jax.vmap(lambda x: (jax.jacfwd(flow)(x), jax.jacrev(flow)(x))))(
        jnp.stack([X0, -X0])
    )
    np.testing.assert_allclose(both, np.broadcast_to(exact, (2, 2, 3, 3)), atol=tolerance)
    inverse = jax.jacrev(flow.inverse)(flow(X0))
    np.testing.assert_allclose(inverse @ exact, np.eye(3), atol=10 * tolerance)


@pytest.mark.parametrize("solver", ORDERS)
def test_trajectory_keeps_the_order_between_the_grid_points_and_meets_the_ends(solver):
    flow = cdelta.Flow(velocity, solver, 100)
    ts = jnp.array([1.0, 0.0, 0.3, 0.123, 0.999, 0.5])
    states = flow.trajectory(X0, ts)
    exact = jnp.stack([gaussian.flow_map(t, X0, SOURCE, TARGET) for t in ts])
    bound = {"euler": 0.1, "heun": 5e-4, "midpoint": 5e-4, "rk4": 3e-7, "tsit5": 1e-9}[solver]
    assert np.abs(states - exact).max() < bound
    np.testing.assert_allclose(states[0], flow(X0), rtol=1e-14)
    np.testing.assert_array_equal(states[1], X0)


def test_adaptive_trajectory_takes_times_in_any_order():
    ts = jnp.array([1.0, 0.0, 0.3, 0.123])
    states = cdelta.Flow(velocity, "tsit5", rtol=1e-9).trajectory(X0, ts)
    exact = jnp.stack([gaussian.flow_map(t, X0, SOURCE, TARGET) for t in ts])
    # diffrax interpolates between its steps at a lower order
    assert np.abs(states - exact).max() < 1e-6


@pytest.mark.parametrize("solver", ORDERS)
@pytest.mark.parametrize("steps", [3, 7, 10, 49])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_velocity_is_never_asked_outside_the_unit_interval(solver, steps, dtype):
    last = 1.0 if solver in ("heun", "rk4", "tsit5") else np.nextafter(dtype(1), dtype(0))

    def fenced(t, x):
        return jnp.where((t >= 0) & (t <= last), jnp.ones_like(x), jnp.nan)

    flow = cdelta.Flow(fenced, solver, steps)
    x = jnp.zeros(2, dtype)
    assert flow(x).dtype == dtype
    np.testing.assert_allclose(flow(x), np.ones(2), rtol=1e-6)
    np.testing.assert_allclose(
        flow.trajectory(x, jnp.array([0.0, 0.31, 1.0], dtype))[:, 0], [0, 0.31, 1], rtol=1e-6
    )
    if last == 1:
        np.testing.assert_allclose(flow.inverse(x), -np.ones(2), rtol=1e-6)


def test_a_grid_of_ones_own():
    uniform, given = (
        cdelta.Flow(curved, "heun", 4),
        cdelta.Flow(curved, "heun", times=[0, 0.25, 0.5, 0.75, 1]),
    )
    np.testing.assert_array_equal(uniform(X0), given(X0))
    assert given.steps == 4 and given.evaluations == 8

    # a velocity that bends near t = 1 only: the same number of steps, put where it bends
    def late(t, x):
        return jnp.exp(20 * (t - 1)) * jnp.ones_like(x)

    grid = 1 - np.linspace(1, 0, 9) ** 3
    sparse, dense = (
        cdelta.Flow(late, "heun", **how)(X0)[0] - X0[0] for how in ({"steps": 8}, {"times": grid})
    )
    # for a velocity that does not depend on x, Heun's method is the trapezoidal rule
    np.testing.assert_allclose(dense, np.trapezoid(np.exp(20 * (grid - 1)), grid), rtol=1e-12)
    exact = (1 - np.exp(-20)) / 20
    assert abs(dense - exact) < 0.25 * abs(sparse - exact)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 1, 3)])
def test_any_latent_shape(shape):
    flow = cdelta.Flow(lambda t, x: x, "rk4", 30)
    x = jnp.full(shape, 0.5)
    assert flow(x).shape == shape
    np.testing.assert_allclose(flow(x), 0.5 * np.e * np.ones(shape), rtol=1e-6)
    assert flow.trajectory(x, jnp.array([0.0, 1.0])).shape == (2, *shape)
    np.testing.assert_allclose(flow.inverse(flow(x)), x, rtol=1e-6)


def test_precision_follows_the_state_and_the_velocity():
    x = jnp.ones(2, jnp.float32)
    assert cdelta.Flow(lambda t, x: -x)(x).dtype == jnp.float32
    assert cdelta.Flow(lambda t, x: -x * jnp.ones(2, jnp.float64))(x).dtype == jnp.float64


class Scaled:
    """A velocity with a parameter, registered as a pytree."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, t, x):
        return self.rate * x


jax.tree_util.register_pytree_node(
    Scaled, lambda s: ((s.rate,), None), lambda _, children: Scaled(*children)
)


def test_a_flow_is_a_pytree_of_its_velocitys_arrays():
    traces = []

    @jax.jit
    def end(flow, x):
        traces.append(1)
        return flow(x)[0]

    for rate in (0.5, -1.0, 2.0):
        value = end(cdelta.Flow(Scaled(jnp.array(rate)), "rk4", 50), jnp.ones(1))
        np.testing.assert_allclose(value, np.exp(rate), rtol=1e-6)
    assert len(traces) == 1
    slope = jax.grad(end)(cdelta.Flow(Scaled(jnp.array(0.5)), "rk4", 50), jnp.ones(1))
    np.testing.assert_allclose(slope.velocity.rate, np.exp(0.5), rtol=1e-6)
    assert jax.tree.leaves(cdelta.Flow(lambda t, x: x)) == []


@pytest.mark.parametrize("steps", [1, 6])
def test_unrolled_steps_give_the_same_numbers_and_follow_from_a_convolution(steps):
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 1, 1)) / 3

    def smoothing(t, x):
        out = jax.lax.conv_general_dilated(
            x[None, :, :, None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(out[0, :, :, 0]) - t * x

    x = jax.random.normal(jax.random.key(1), (6, 6))

    def loops(flow):
        return str(jax.make_jaxpr(jax.grad(lambda x: flow(x).sum()))(x)).count("scan[")

    flows = [cdelta.Flow(smoothing, "heun", steps, unroll=unroll) for unroll in (False, True, None)]
    ts = jnp.array([0, 0.3, 1])
    for flow in flows[1:]:
        np.testing.assert_allclose(flow.trajectory(x, ts), flows[0].trajectory(x, ts), atol=1e-13)
        np.testing.assert_allclose(flow(x), flows[0](x), atol=1e-13)
        np.testing.assert_allclose(jax.jacrev(flow)(x), jax.jacrev(flows[0])(x), atol=1e-13)
    lowered = [
        jax.jit(jax.grad(lambda x, flow=flow: flow(x).sum())).lower(x).as_text().count("while")
        for flow in flows
    ]
    assert lowered[0] > 0 and lowered[1] == 0 == lowered[2]
    assert loops(cdelta.Flow(curved, steps=steps)) > 0


def test_the_memory_of_a_reverse_pass_grows_by_the_stored_states_only():
    width, size = 512, 64
    first = jax.random.normal(jax.random.key(0), (width, size)) / 8
    second = jax.random.normal(jax.random.key(1), (size, width)) / 8

    def memory(steps):
        flow = cdelta.Flow(lambda t, x: second @ jnp.tanh(first @ x + t), "heun", steps)
        compiled = jax.jit(jax.vmap(lambda x: jacobian.rows(lambda x: flow(x)[:5], x))).lower(
            jnp.zeros((16, size))
        )
        return compiled.compile().memory_analysis().temp_size_in_bytes

    states = 16 * size * 8 * (80 - 20)
    assert memory(80) - memory(20) < 1.5 * states


def test_nor_does_that_of_an_unrolled_one():
    kernels = jax.random.normal(jax.random.key(0), (2, 3, 3, 8, 8)) / 8

    def velocity(t, x):
        for kernel in kernels:
            x = jnp.tanh(
                jax.lax.conv_general_dilated(
                    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
            )
        return x + t

    def memory(steps):
        flow = cdelta.Flow(velocity, "heun", steps, unroll=True)
        rows = jax.jit(
            lambda x: jacobian.rows(lambda x: flow(x).mean((0, 1, 2)), x),
            compiler_options=CPU_OPTIONS,
        )
        return rows.lower(x).compile().memory_analysis().temp_size_in_bytes

    x = jnp.zeros((1, 12, 12, 8))
    assert memory(12) - memory(4) < 1.5 * x.nbytes * (12 - 4)


def bad_velocity(t, x):
    return jnp.where(t > 0.5, jnp.nan, x)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cdelta.Flow(3), "velocity must be a function"),
        (lambda: cdelta.Flow(velocity, "rk5"), "solver must be one of euler, heun, .*'rk5'"),
        (lambda: cdelta.Flow(velocity, steps=0), "steps must be a positive integer, got 0"),
        (lambda: cdelta.Flow(velocity, steps=2.5), "steps must be a positive integer, got 2.5"),
        (
            lambda: cdelta.Flow(velocity, "rk4", rtol=1e-3),
            "rtol needs a solver that estimates its error",
        ),
        (lambda: cdelta.Flow(velocity, "tsit5", rtol=-1.0), "rtol must be positive, got -1.0"),
        (lambda: cdelta.Flow(velocity, "tsit5", atol=1e-3), "atol is given without rtol"),
        (
            lambda: cdelta.Flow(velocity, "tsit5", times=[0, 1], rtol=1e-3),
            "times and rtol exclude each other",
        ),
        (
            lambda: cdelta.Flow(velocity, times=[0, 0.6, 0.5, 1]),
            "times must rise strictly from 0 to 1",
        ),
        (lambda: cdelta.Flow(velocity, times=[0.1, 1]), "times must rise strictly from 0 to 1"),
        (
            lambda: cdelta.Flow(lambda t, x: x[:2])(X0),
            r"velocity must return one array of x's shape \(3,\), got \(2,\)",
        ),
        (lambda: cdelta.Flow(lambda t, x: (x, x))(X0), "got tuple"),
        (
            lambda: cdelta.Flow(lambda t, x: jnp.argsort(x))(X0),
            "floating-point numbers, got dtype int",
        ),
        (
            lambda: cdelta.Flow(bad_velocity)(X0),
            r"velocity returned NaN or infinity at t = 0.55 \(3 of 3 entries",
        ),
        (
            lambda: cdelta.Flow(bad_velocity).inverse(X0),
            "velocity returned NaN or infinity at t = 1 ",
        ),
        (
            lambda: cdelta.Flow(bad_velocity).trajectory(X0, jnp.array([0.2, 1.0])),
            "NaN or infinity at t = 0.55",
        ),
        (
            lambda: cdelta.Flow(bad_velocity, "tsit5", rtol=1e-3)(X0),
            "adaptive solver 'tsit5' failed",
        ),
        (
            lambda: cdelta.Flow(lambda t, x: 1e3 * x**3, "tsit5", rtol=1e-3)(X0),
            "adaptive solver 'tsit5' failed",
        ),
        (lambda: cdelta.Flow(velocity, "tsit5", rtol=1e-9, max_steps=3)(X0), "within max_steps=3"),
        (lambda: cdelta.Flow(velocity)(X0 * jnp.nan), "x0 must be finite"),
        (lambda: cdelta.Flow(velocity)("image"), "x0 must be an array of numbers, got str"),
        (lambda: cdelta.Flow(velocity).inverse(X0 * jnp.inf), "x1 must be finite"),
        (
            lambda: cdelta.Flow(velocity).trajectory(X0, 0.5),
            r"ts must be a vector of times, got shape \(\)",
        ),
        (
            lambda: cdelta.Flow(velocity).trajectory(X0, jnp.array([0.5, 1.2])),
            r"ts must lie in \[0, 1\]",
        ),
    ],
)
def test_bad_input_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_adaptive_solver_that_fails_under_jit_raises_too():
    flow = cdelta.Flow(lambda t, x: 1e3 * x**3, "tsit5", rtol=1e-3)
    with pytest.raises(RuntimeError, match="adaptive solver 'tsit5' failed"):
        jax.block_until_ready(jax.jit(jax.vmap(flow))(X0[None]))
