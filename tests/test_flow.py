"""Flows against the closed form of C1, against diffrax's own solver, and differentiated both
ways."""

import functools
import gc
import itertools
import re
import weakref

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cdelta
from cdelta import _stream, gaussian, jacobian
from cdelta.flow import _CONVENTIONS, CPU_OPTIONS, _program
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


def test_the_adaptive_solver_is_told_both_tolerances():
    theirs = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, _: curved(t, x)), diffrax.Heun(), 0.0, 1.0, None, X0,
        stepsize_controller=diffrax.PIDController(1e-2, 1e-6),
    ).ys[0]  # fmt: skip
    both, one = (cdelta.Flow(curved, "heun", rtol=1e-2, atol=atol)(X0) for atol in (1e-6, None))
    np.testing.assert_allclose(both, theirs, rtol=1e-12)
    assert np.abs(one - theirs).max() > 1e-5


@pytest.mark.parametrize("solver", ["heun", "midpoint", "tsit5"])
def test_adaptive_steps_are_those_of_diffrax(solver):
    """Of the method asked for, at a tolerance at which no two are alike."""
    methods = {"heun": diffrax.Heun(), "midpoint": diffrax.Midpoint(), "tsit5": diffrax.Tsit5()}
    ends = {
        name: diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, x, _: curved(t, x)), method, 0.0, 1.0, None, X0,
            stepsize_controller=diffrax.PIDController(1e-2, 1e-2),
        ).ys[0]
        for name, method in methods.items()
    }  # fmt: skip
    found = cdelta.Flow(curved, solver, rtol=1e-2)(X0)
    for name, end in ends.items():
        assert (np.abs(found - end).max() < 1e-12) == (name == solver)


@pytest.mark.parametrize("solver", ORDERS)
def test_evaluations_are_as_many_as_the_velocity_is_asked(solver):
    asked = []

    def counted(t, x):
        jax.debug.callback(lambda t: asked.append(float(t)), t)
        return curved(t, x)

    flow = cdelta.Flow(counted, solver, 3)
    jax.block_until_ready(flow(X0))
    jax.effects_barrier()
    stages = {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4, "tsit5": 6}  # of 7, one for errors
    assert len(asked) == flow.evaluations == 3 * stages[solver]


@pytest.mark.parametrize(
    "flow", [cdelta.Flow(velocity, "rk4", 60), cdelta.Flow(velocity, "tsit5", rtol=1e-9)]
)
def test_both_modes_of_differentiation_give_the_exact_jacobian(flow):
    exact = gaussian.flow_jacobian(1.0, SOURCE, TARGET)
    # There is the solver's error to bear: 4e-9 for 60 steps of order four, 6e-10 for an rtol
    # of 1e-9. Compiled without LLVM's optimizations and with XLA's older kernels, as tests are, the
    # batched reverse pass of the adaptive solver is off by 4e-7; with either of the two it is not.
    tolerance = {"rtol": 0, "atol": 2e-8}
    compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    rows = compiled(lambda x: jacobian.rows(flow, x))(X0)
    np.testing.assert_allclose(rows, exact, **tolerance)
    both = compiled(jax.vmap(lambda x: (jax.jacfwd(flow)(x), jax.jacrev(flow)(x))))
    both = both(jnp.stack([X0, -X0]))
    np.testing.assert_allclose(both, np.broadcast_to(exact, (2, 2, 3, 3)), **tolerance)
    inverse = compiled(jax.jacrev(flow.inverse))(flow(X0))
    np.testing.assert_allclose(inverse @ exact, np.eye(3), **tolerance)


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
        np.testing.assert_allclose(
            flow.trajectory(x, ts), flows[0].trajectory(x, ts), rtol=0, atol=1e-13
        )
        np.testing.assert_allclose(flow(x), flows[0](x), rtol=0, atol=1e-13)
        np.testing.assert_allclose(jax.jacrev(flow)(x), jax.jacrev(flows[0])(x), rtol=0, atol=1e-13)
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


class Mutable:
    def __init__(self, rate):
        self.rate = rate

    def __call__(self, t, x):
        next(self.traces)
        return self.rate * x

    traces = itertools.count()


def test_a_flow_follows_what_its_velocity_reads_and_is_traced_once_for_each_state():
    rates, traces = [0.0], itertools.count()

    def velocity(t, x):
        next(traces)
        return rates[0] * x

    mutable = Mutable(0.0)
    for flow, write in (
        (cdelta.Flow(velocity, "euler", 1), lambda rate: rates.__setitem__(0, rate)),
        (cdelta.Flow(mutable, "euler", 1), lambda rate: setattr(mutable, "rate", rate)),
    ):
        counter, counts = (traces if flow.velocity is velocity else Mutable.traces), []
        for rate in (1.0, 2.0, 2.0, 1.0, 2.0):
            write(rate)
            np.testing.assert_array_equal(flow(X0), X0 + rate * X0)
            np.testing.assert_array_equal(jax.tree.map(lambda a: a, flow)(X0), X0 + rate * X0)
            np.testing.assert_array_equal(cdelta.Flow(flow.velocity, "euler", 1)(X0), flow(X0))
            moment = cdelta.dependence.wiggle_moment(
                jax.tree_util.Partial(lambda f, x: f(x), flow), jax.random.key(0), 1, 4
            )
            np.testing.assert_allclose(moment.matrix, (1 + rate) ** 2, rtol=1e-12)
            counts.append(next(counter))
        seen = np.diff(counts, prepend=counts[0])
        # a state seen before is traced no more by the flow; each run of an estimator looks once at
        # the shape of f, in which the flow's own program is at hand
        assert seen[1] > max(seen[2:]) == seen[2], seen


def test_what_a_velocity_no_longer_reads_is_let_go_with_its_program():
    reads = [None]
    flow = cdelta.Flow(lambda t, x: reads[0] * x, "euler", 1)
    f = jax.tree_util.Partial(lambda x: reads[0] * x)
    past = []
    for rate in (1.0, 2.0, 3.0):
        reads[0] = jnp.full(3, rate)
        past.append(weakref.ref(reads[0]))
        np.testing.assert_array_equal(flow(X0), X0 + rate * X0)
        cdelta.dependence.wiggle_moment(f, jax.random.key(0), 3, 1)
    for programs in (_program, _stream._compiled):
        assert programs.cache_info().maxsize == 64
        programs.cache_clear()  # stands for 64 others
    gc.collect()
    assert [array() is None for array in past] == [True, True, False]


def test_flows_alike_share_a_program_under_transformations_too():
    traces = itertools.count()

    def velocity(t, x):
        next(traces)
        return -x

    counts = []
    for _ in range(2):
        for way in (lambda flow: flow, jax.jacfwd, jax.jacrev):
            way(cdelta.Flow(velocity, "euler", 2))(X0)
        counts.append(next(traces))
    assert counts[1] == counts[0] + 1  # the number of this look


class Layer(nnx.Module):
    def __init__(self, layer):
        self.layer = layer

    def __call__(self, t, x):
        return self.layer(x[None])[0]


def linear_of(t, x):
    """Of batches: [B], [B, 3] -> [B, 3]."""
    return jnp.concatenate([x, t[:, None]], axis=1) @ jnp.ones((4, 3))


@pytest.mark.parametrize(
    ("velocity", "advice"),
    [
        (lambda a, b: a[0] * b * jnp.ones(3), r"fits as lambda t, x: v\(x, t\)$"),
        (lambda t, x: x @ jnp.ones((2, 3)), r"For a velocity v of"),
        (
            lambda t, x: jax.lax.dot(x, jnp.eye(3))[:, :3],
            r"fits as lambda t, x: v\(t, x\[None\]\)\[0\]$",
        ),
        (linear_of, r"fits as lambda t, x: v\(t\[None\], x\[None\]\)\[0\]$"),
        (
            lambda a, b: linear_of(b, a),
            r"fits as lambda t, x: v\(x\[None\], t\[None\]\)\[0\]$",
        ),
        (lambda t, x: x * t[0], r"fits as lambda t, x: v\(t\[None\], x\)$"),
        (
            functools.partial(lambda drop, t, x: drop(x), eqx.nn.Dropout(0.5)),
            r"a key.*Dropout in training mode: pass equinox.nn.inference_mode\(network\)$",
        ),
        (lambda t, x: {}["rate"] * x, r"it raised KeyError: 'rate'\.$"),
        (
            Layer(nnx.BatchNorm(3, rngs=nnx.Rngs(0))),
            r"BatchNorm in training mode: call network.eval\(\) first$",
        ),
        (
            Layer(nnx.BatchNorm(3, axis_name="batch", rngs=nnx.Rngs(0))).__call__,
            r"BatchNorm in training mode: call network.eval\(\) first$",
        ),
        (
            functools.partial(lambda net, t, x: net(t, x), Layer(nnx.Dropout(0.5))),
            r"Dropout in training mode: call network.eval\(\) first$",
        ),
    ],
)
def test_a_velocity_of_another_convention_is_refused_with_what_adapts_it(velocity, advice):
    expected = r"velocity must take a scalar t and one sample x of shape \(3,\)"
    with pytest.raises(ValueError, match=expected) as caught:
        cdelta.Flow(velocity)(X0)
    assert re.search(advice, str(caught.value)), str(caught.value)
    if "called so it raised" in str(caught.value):
        assert caught.value.__cause__ is not None


def test_what_is_advised_is_what_adapts():
    velocities = {
        "lambda t, x: v(x, t)": lambda x, t: -t * x,
        "lambda t, x: v(t, x[None])[0]": lambda t, x: -t * x,
        "lambda t, x: v(t[None], x[None])[0]": lambda t, x: -t[:, None] * x,
        "lambda t, x: v(x[None], t)[0]": lambda x, t: -t * x,
        "lambda t, x: v(x[None], t[None])[0]": lambda x, t: -t[:, None] * x,
        "lambda t, x: v(t[None], x)": lambda t, x: -t[0] * x,
        "lambda t, x: v(x, t[None])": lambda x, t: -t[0] * x,
    }
    t, x = jnp.array(0.3), X0
    assert set(_CONVENTIONS) == set(velocities)
    for text, v in velocities.items():
        for adapted in (_CONVENTIONS[text](v), eval(text, {"v": v})):
            np.testing.assert_allclose(adapted(t, x), -t * x)


class Dropping(eqx.Module):
    """Its own __init__ leaves a field to the default of the class."""

    drop: eqx.nn.Dropout
    rate: float = 2.0

    def __init__(self):
        self.drop = eqx.nn.Dropout(0.5)

    def __call__(self, t, x):
        return self.drop(self.rate * x)


def test_layers_of_equinox_in_evaluation_are_velocities_as_those_in_training_are_not():
    network = Dropping()
    for velocity in (network, lambda t, x: network(t, x)):
        with pytest.raises(ValueError, match=r"Dropout in training mode: pass equinox.nn.infer"):
            cdelta.Flow(velocity)(X0)
    flow = cdelta.Flow(eqx.nn.inference_mode(Dropping()), "euler", 1)
    np.testing.assert_allclose(flow(X0), 3 * X0, rtol=1e-6)


def test_a_velocity_that_fails_once_is_not_said_to_be_of_another_convention():
    fails = iter([True])

    def velocity(t, x):
        if next(fails, False):
            raise ValueError("not yet")
        return -x

    with pytest.raises(ValueError, match=r"it raised ValueError: not yet\. ") as caught:
        cdelta.Flow(velocity)(X0)
    assert "fits as" not in str(caught.value)


def test_layers_of_flax_in_evaluation_are_velocities():
    for layer in (nnx.BatchNorm(3, rngs=nnx.Rngs(0)), nnx.Dropout(0.5)):
        network = Layer(layer)
        network.eval()
        expected = X0 + network(0.0, X0)
        np.testing.assert_allclose(cdelta.Flow(network, "euler", 1)(X0), expected, rtol=1e-6)


class StateFirst:
    def speed(self, x, t):
        return -t * x

    __call__ = jax.vmap(speed, (None, 0, None))


@pytest.mark.parametrize(
    "velocity",
    [
        lambda x, t: -t * x,
        lambda xt, time: -time * xt,
        jax.jit(lambda x, t: -t * x),
        functools.partial(lambda rate, x, t: rate * x, 2.0),
        (lambda state, time, label=0: state),
        jax.vmap(lambda x, t: -t * x),
        eqx.filter_jit(lambda x, t: -t * x),
        functools.partial(jax.vmap(lambda rate, x, t: rate * x), 2.0),
        lambda x, s: -s * x,
        lambda x, sigma: -sigma * x,
        StateFirst().speed,
        StateFirst(),
    ],
)
def test_parameters_named_in_the_other_order_are_refused(velocity):
    with pytest.raises(ValueError, match=r"time first, got parameters \(\w+, \w+\): pass lambda t"):
        cdelta.Flow(velocity)


@pytest.mark.parametrize(
    "velocity",
    [
        lambda t, x: x,
        lambda s, y: y,
        lambda y, s: s,
        lambda x, tau: tau,
        lambda a, b: b,
        lambda time, state: state,
        lambda *args: args[1],
        lambda t, *rest: rest[0],
        lambda t, x, label=0, **more: x,
        lambda x_of_time, y: y,
        functools.wraps(lambda x, t: x)(lambda t, x: x),
        functools.partial(lambda x, t, y: y, 0.0),
        jax.jit(functools.wraps(lambda x, t: x)(lambda t, x: x)),
    ],
)
def test_parameters_in_order_or_without_a_meaning_are_taken(velocity):
    np.testing.assert_array_equal(cdelta.Flow(velocity, "euler", 1)(X0), 2 * X0)


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


def explodes_beyond(bound):
    """x' = x, but x' = 1000 x³, which is infinite before t = 1, where a latent starts beyond the
    bound."""
    return lambda t, x: jnp.where(jnp.abs(x) > bound, 1e3 * x**3, x)


def test_an_adaptive_solver_that_fails_gives_nan_in_its_own_sample_and_in_its_derivatives():
    flow = cdelta.Flow(explodes_beyond(3.0), "tsit5", rtol=1e-6)
    xs = jnp.array([[0.5], [3.5], [-1.0]])
    alone = jax.jit(jax.vmap(flow))(xs[::2])
    np.testing.assert_allclose(alone, np.e * xs[::2], rtol=1e-5)
    for f, expected in (
        (flow, alone),
        (jax.jacfwd(flow), np.e * np.ones((2, 1, 1))),
        (jax.jacrev(flow), np.e * np.ones((2, 1, 1))),
        (lambda x: flow.trajectory(x, jnp.array([1.0])), alone[:, None]),
    ):
        values = jax.jit(jax.vmap(f))(xs)
        assert np.isnan(values[1]).all()
        np.testing.assert_allclose(values[::2], expected, rtol=1e-5)


@pytest.mark.parametrize("method", ["rows", "jvp"])
def test_an_estimator_names_the_sample_in_which_an_adaptive_solver_fails(method):
    key, samples, batch = jax.random.key(3), 60, 4
    latents = [
        float(jax.random.normal(jax.random.split(jax.random.fold_in(key, i))[0], (1,))[0])
        for i in range(samples)
    ]
    bound = sorted(map(abs, latents))[-2]  # beyond it, only the largest
    failing = int(np.argmax(np.abs(latents)))
    assert failing >= batch  # so that a batch is whole before
    flow = cdelta.Flow(
        lambda t, x: explodes_beyond((bound + abs(latents[failing])) / 2 * jnp.exp(t))(t, x),
        "tsit5",
        rtol=1e-6,
    )
    with pytest.raises(ValueError, match=f"at sample {failing} of {samples}") as caught:
        cdelta.dependence.wiggle_moment(flow, key, 1, samples, method, batch=batch)
    moment = caught.value.moment
    assert moment.samples == failing // batch * batch
    np.testing.assert_allclose(moment.matrix, np.e**2, rtol=1e-4)
