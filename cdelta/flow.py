r"""A velocity becomes a flow map: :math:`\dot x_t = v(t, x_t)` solved over [0, 1], in both
directions.

The coefficients of the Runge–Kutta methods and the adaptive solver are diffrax's. Fixed steps run
in one ``lax.scan`` (the same numbers as diffrax's fixed-step solver) because that takes forward and
reverse differentiation alike.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params
from jaxtyping import Array, ArrayLike, Float

from cdelta import _check
from cdelta._pytree import as_pytree


class _Method(NamedTuple):
    """An explicit Runge–Kutta method: stage i is taken at t + cᵢ dt, from x + dt Σ aᵢⱼ kⱼ; the step
    adds dt Σ bᵢ kᵢ."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


def _from_diffrax(tableau: diffrax.ButcherTableau) -> _Method:
    b = tuple(map(float, tableau.b_sol))
    used = len(b) - (b[-1] == 0)  # a last stage without weight only serves the error estimate
    rows = ((), *(tuple(map(float, row)) for row in tableau.a_lower))
    return _Method((0.0, *map(float, tableau.c))[:used], rows[:used], b[:used])


_METHODS = {
    "euler": _Method((0.0,), ((),), (1.0,)),
    "heun": _from_diffrax(diffrax.Heun.tableau),
    "midpoint": _from_diffrax(diffrax.Midpoint.tableau),
    "rk4": _Method(
        (0.0, 0.5, 0.5, 1.0),
        ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),
    "tsit5": _from_diffrax(diffrax.Tsit5.tableau),
}
_ADAPTIVE = {"heun": diffrax.Heun, "midpoint": diffrax.Midpoint, "tsit5": diffrax.Tsit5}
_UNROLL_LIMIT = 128  # velocity evaluations beyond which unrolling would compile for too long

# For jax.jit(..., compiler_options=...) on a CPU. XLA's CPU backend drops the barriers that tie
# "compute again" to the reverse pass, and computes all unrolled steps again at its beginning; with
# them their memory is that of one step.
CPU_OPTIONS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


@dataclass(frozen=True, eq=False)
class Flow:
    r"""The flow map :math:`x_0 \mapsto x_1` of a velocity, :math:`\dot x_t = v(t, x_t)` on
    :math:`t \in [0, 1]`.

    ``velocity(t, x)`` takes a scalar time and one state of any shape and returns that state's
    shape. ``solver`` is one of euler, heun, midpoint, rk4, tsit5, with ``steps`` equal steps;
    ``times`` replaces them by a grid of your own, rising from 0 to 1. With ``rtol`` (and ``atol``,
    by default the same) heun, midpoint and tsit5 choose their steps and ``steps`` is not used. The
    velocity is never asked beyond [0, 1], and euler and midpoint never ask at t = 1.

    The object is a pytree (its leaves are the velocity's) and works under ``jit``, ``vmap``,
    ``jvp`` and ``grad``. Reverse passes keep one state a step and compute the rest again, so their
    memory does not grow with the steps beyond that. On a CPU the reverse of a convolution inside a
    loop falls off XLA's fast path (10 times slower, or more); where the velocity has convolutions
    the steps are therefore unrolled there, up to 128 evaluations, at the price of compilation.
    ``unroll`` says so explicitly. For their memory not to grow either, a ``jit`` of yours around a
    reverse pass needs the ``compiler_options`` named ``CPU_OPTIONS`` here (``cdelta.dependence``
    sets them).

    Raises ValueError for a solver, number of steps or grid that make no sense, for a velocity of
    the wrong shape, for one that returns NaN or infinity (named with its t) and for an adaptive
    solver that fails. Values can be looked at only outside ``jit`` and ``vmap``: inside, a NaN
    passes through, and a failing adaptive solver raises at run time.
    """

    velocity: Callable[[Array, Array], Array]
    solver: str = "heun"
    steps: int = 20
    times: Sequence[float | int] | Float[ArrayLike, " nodes"] | None = None
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 4096
    unroll: bool | None = None

    def __post_init__(self) -> None:
        if not callable(self.velocity):
            raise ValueError(
                f"velocity must be a function (t, x) -> dx/dt, got {type(self.velocity).__name__}"
            )
        if self.solver not in _METHODS:
            raise ValueError(f"solver must be one of {', '.join(_METHODS)}, got {self.solver!r}")
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.atol is not None and self.rtol is None:
            raise ValueError(
                "atol is given without rtol: give rtol as well to make the solver adaptive"
            )
        if self.rtol is not None and self.solver not in _ADAPTIVE:
            raise ValueError(
                f"rtol needs a solver that estimates its error ({', '.join(_ADAPTIVE)}), got {self.solver!r}"
            )
        for name in ("steps", "max_steps"):
            object.__setattr__(self, name, _check.count(name, getattr(self, name)))
        if self.times is not None:
            if self.rtol is not None:
                raise ValueError(
                    "times and rtol exclude each other: an adaptive solver chooses its own grid"
                )
            times = np.asarray(self.times, dtype=np.float64)
            if (
                times.ndim != 1
                or times.size < 2
                or times[0] != 0
                or times[-1] != 1
                or not (np.diff(times) > 0).all()
            ):
                raise ValueError(f"times must rise strictly from 0 to 1, got {times}")
            object.__setattr__(self, "times", tuple(times.tolist()))
            object.__setattr__(self, "steps", times.size - 1)
        object.__setattr__(self, "velocity", as_pytree(self.velocity))

    @property
    def evaluations(self) -> int | None:
        """Velocity evaluations of one solution; None for an adaptive solver."""
        return None if self.rtol is not None else self.steps * len(_METHODS[self.solver].b)

    def __call__(self, x0: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        r"""The flow map, :math:`x_0 \mapsto x_1`. Shapes: any, the same for both."""
        return self._run(_check.as_float("x0", x0), "x0")

    def inverse(self, x1: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        r"""The inverse map, :math:`x_1 \mapsto x_0`: the same equation solved backwards, to the
        solver's accuracy."""
        return self._run(_check.as_float("x1", x1), "x1", backward=True)

    def trajectory(
        self, x0: Float[ArrayLike, "*shape"], ts: Float[ArrayLike, " times"]
    ) -> Float[Array, " times *shape"]:
        r"""States :math:`x_t` at the given times, ``[len(ts), *shape]``.

        Between two grid points a fixed-step solver takes one shorter step of its own from the
        earlier one, so that the order is kept, the grid's states are met exactly and nothing is
        asked beyond t. Raises ValueError when ``ts`` is not a vector in [0, 1].
        """
        ts = _check.as_float("ts", ts)
        if ts.ndim != 1:
            raise ValueError(f"ts must be a vector of times, got shape {ts.shape}")
        if _check.concrete(ts) and not ((np.asarray(ts) >= 0) & (np.asarray(ts) <= 1)).all():
            raise ValueError(f"ts must lie in [0, 1], got {np.asarray(ts)}")
        return self._run(_check.as_float("x0", x0), "x0", ts)

    def _run(self, x: Array, name: str, ts: Array | None = None, backward: bool = False) -> Array:
        _check.finite(name, x)
        result, failed = _solve(self, x, ts, backward=backward)
        if self.rtol is not None:
            message = (
                f"the adaptive solver {self.solver!r} failed: rtol={self.rtol:g} was not reached within "
                f"max_steps={self.max_steps}, or the velocity returned NaN or infinity"
            )
            if not _check.concrete(failed):
                return eqx.error_if(result, failed, message)
            if failed:
                raise ValueError(message)
        elif _check.concrete(result) and not bool(jnp.isfinite(result).all()):
            self._name_failure(x, backward)
        return result

    def _name_failure(self, x: Array, backward: bool) -> None:
        """Solve again, step by step, to say where the velocity stopped being finite."""

        def looked_at(t, state):
            slope = self.velocity(t, state)
            bad = int((~jnp.isfinite(slope)).sum())
            if bad:
                raise ValueError(
                    f"velocity returned NaN or infinity at t = {float(t):.6g} ({bad} of {slope.size} entries; "
                    f"the largest entry of x was {float(jnp.abs(state).max()):.3g})"
                )
            return slope

        for times, dt in zip(*_grid(self, x.dtype, backward), strict=True):
            x = _step(looked_at, _METHODS[self.solver], x, times, dt)
        raise ValueError(
            "the flow overflowed: its velocity is finite at every step, its states are not"
        )


jax.tree_util.register_pytree_with_keys(
    Flow,
    lambda flow: (((jax.tree_util.GetAttrKey("velocity"), flow.velocity),), _settings(flow)),
    lambda settings, children: _rebuild(settings, children[0]),
)


def _settings(flow: Flow) -> tuple:
    return (flow.solver, flow.steps, flow.times, flow.rtol, flow.atol, flow.max_steps, flow.unroll)


def _rebuild(settings: tuple, velocity: Any) -> Flow:
    """A flow from its parts, unchecked: jax rebuilds pytrees from leaves that need not be
    arrays."""
    flow = object.__new__(Flow)
    for name, value in zip(
        ("solver", "steps", "times", "rtol", "atol", "max_steps", "unroll"), settings, strict=True
    ):
        object.__setattr__(flow, name, value)
    object.__setattr__(flow, "velocity", velocity)
    return flow


def _grid(flow: Flow, dtype: Any, backward: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Times of every stage ``[steps, stages]`` and the steps ``[steps]``, rounded once so that none
    leaves [0, 1]."""
    nodes = np.linspace(0, 1, flow.steps + 1) if flow.times is None else np.asarray(flow.times)
    if backward:
        nodes = nodes[::-1]
    dt = np.diff(nodes)
    stages = np.clip(nodes[:-1, None] + dt[:, None] * np.asarray(_METHODS[flow.solver].c), 0, 1)
    return stages.astype(dtype), dt.astype(dtype)


def _step(velocity: Callable, method: _Method, x: Array, times: Array, dt: Array) -> Array:
    """One explicit Runge–Kutta step from x, the stages at the given times."""

    def combined(weights):
        terms = [weight * slope for weight, slope in zip(weights, slopes, strict=False) if weight]
        return x + dt * sum(terms[1:], start=terms[0]) if terms else x

    slopes: list[Array] = []
    for i, row in enumerate(method.a):
        slopes.append(velocity(times[i], combined(row)))
    return combined(method.b)


@functools.partial(jax.jit, static_argnames="backward")
def _solve(flow: Flow, x: Array, ts: Array | None, backward: bool) -> tuple[Array, Array]:
    """The end state, or the states at ``ts``, and whether the (adaptive) solver failed."""
    x = _checked_state(flow.velocity, x)
    if flow.rtol is not None:
        return _solve_adaptive(flow, x, ts, backward)
    method = _METHODS[flow.solver]
    stages, dts = _grid(flow, x.dtype, backward)
    unroll = flow.unroll
    if unroll is None:
        slow_loop = jax.default_backend() == "cpu" and flow.evaluations <= _UNROLL_LIMIT
        unroll = slow_loop and _has_convolution(
            jax.make_jaxpr(flow.velocity)(stages[0, 0], x).jaxpr
        )
    # in a loop nothing can be shared between a step and its second computation
    step = jax.checkpoint(functools.partial(_step, flow.velocity, method), prevent_cse=bool(unroll))

    def advance(x, now):
        return step(x, *now), (x if ts is not None else None)

    if unroll and flow.steps == 1:  # scan would keep a loop of one turn a loop
        end, states = advance(x, (jnp.asarray(stages[0]), jnp.asarray(dts[0])))
        states = None if states is None else states[None]
    else:
        end, states = jax.lax.scan(advance, x, (stages, dts), unroll=bool(unroll))
    if ts is None:
        return end, jnp.zeros((), bool)

    def state_at(t):
        k = jnp.clip(jnp.searchsorted(starts, t, side="right") - 1, 0)
        dt = t - starts[k]
        return step(states[k], jnp.clip(starts[k] + dt * jnp.asarray(method.c, x.dtype), 0, 1), dt)

    starts = jnp.asarray(stages[:, 0])
    return jax.vmap(state_at)(ts.astype(x.dtype)), jnp.zeros((), bool)


def _solve_adaptive(flow: Flow, x: Array, ts: Array | None, backward: bool) -> tuple[Array, Array]:
    # DirectAdjoint is the one of diffrax's adjoints that takes jvp and vjp (and their vmap) on one
    # object.
    order = None if ts is None else jnp.argsort(ts)
    start, end = (1.0, 0.0) if backward else (0.0, 1.0)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, _: flow.velocity(jnp.asarray(t, x.dtype), x)),
        _ADAPTIVE[flow.solver](),
        t0=jnp.asarray(start, x.dtype),
        t1=jnp.asarray(end, x.dtype),
        dt0=None,
        y0=x,
        saveat=diffrax.SaveAt(t1=True)
        if ts is None
        else diffrax.SaveAt(ts=ts[order].astype(x.dtype)),
        stepsize_controller=diffrax.PIDController(
            flow.rtol, flow.rtol if flow.atol is None else flow.atol
        ),
        adjoint=diffrax.DirectAdjoint(),
        max_steps=flow.max_steps,
        throw=False,
    )
    failed = solution.result != diffrax.RESULTS.successful
    states = (
        solution.ys[0] if ts is None else jnp.zeros_like(solution.ys).at[order].set(solution.ys)
    )
    return states, failed


def _checked_state(velocity: Callable, x: Array) -> Array:
    """x in the precision of the velocity, which must return x's shape."""
    time = jax.ShapeDtypeStruct((), x.dtype)
    out = jax.eval_shape(velocity, time, x)
    if not isinstance(out, jax.ShapeDtypeStruct) or out.shape != x.shape:
        got = out.shape if isinstance(out, jax.ShapeDtypeStruct) else type(out).__name__
        raise ValueError(f"velocity must return one array of x's shape {x.shape}, got {got}")
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"velocity must return real floating-point numbers, got dtype {out.dtype}")
    return x.astype(jnp.result_type(x.dtype, out.dtype))


def _has_convolution(jaxpr: Any) -> bool:
    """Whether a convolution occurs in the computation, at any depth."""
    return any(
        equation.primitive.name == "conv_general_dilated"
        or any(map(_has_convolution, jaxprs_in_params(equation.params)))
        for equation in jaxpr.eqns
    )
