r"""A velocity becomes a flow map: :math:`\dot x_t = v(t, x_t)` solved over [0, 1], in both
directions.

The coefficients of the Runge–Kutta methods and the adaptive solver are diffrax's. Fixed steps run
in one ``lax.scan`` (the same numbers as diffrax's fixed-step solver) because that takes forward and
reverse differentiation alike.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params
from jaxtyping import Array, ArrayLike, Float

from cdelta import _check, _precision, _reads, _roles
from cdelta._pytree import Traceable, as_pytree


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

    The object is a pytree (its leaves are the velocity's arrays and floats, all else is static) and
    works under ``jit``, ``vmap``, ``jvp`` and ``grad``. Any callable is a velocity: a function, a
    method, a module of flax or equinox, a ``Partial``.

    **What the velocity reads besides t and x may change between two calls.** Closures, globals,
    defaults and attributes are looked at in each call (some 10 µs for a function, 0.1 ms with a
    small network of equinox in its closure, 2 ms with one of flax of 100 layers), and the flow is
    compiled again when one has changed; arrays that are leaves change without that. The 64 programs
    used last are kept, with the arrays that they close over. Not seen are: what happens inside a
    ``jit`` of yours around the flow or inside the velocity, which jax itself does not trace again
    (nor what ``jax.checkpoint`` made outside the velocity, nor the body of a ``scan`` defined
    there); state outside Python objects (files, ``os.environ``, the next draw of a generator), and
    names looked up by string (``globals()["a"]``, ``getattr``); the inside of installed packages,
    of their objects (a PyTorch module's weights) and of NumPy arrays of more than 1 MiB changed in
    place, or of 64 bits where jax works in 32 (it keeps one conversion of each array); anything
    beyond 10 000 objects. There, make a new function, or a new array. A velocity that changes what
    it reads (appends to a list) is compiled in every call.

    In half precision the state is kept in float32; the velocity is asked, and the result given, in
    the dtype of x and the velocity.

    Reverse passes keep one state a step and compute the rest again, so their memory does not grow
    with the steps beyond that. On a CPU the reverse of a convolution inside a loop falls off XLA's
    fast path (10 times slower, or more); where the velocity has convolutions
    the steps are therefore unrolled there, up to 128 evaluations, at the price of compilation.
    ``unroll`` says so explicitly. For their memory not to grow either, a ``jit`` of yours around a
    reverse pass needs the ``compiler_options`` named ``CPU_OPTIONS`` here (``cdelta.dependence``
    sets them).

    Raises ValueError for a solver, number of steps or grid that make no sense, for a velocity that
    takes other arguments or returns another shape (saying how to adapt it), for one that returns
    NaN or infinity (named with its t) and for an adaptive solver that fails. Of a velocity that
    takes (x, t), parameters called so are refused too; where their names say nothing and the shapes
    broadcast, as in ``lambda a, b: -a``, swapped roles cannot be noticed. Values can be looked
    at only outside ``jit`` and ``vmap``: inside, a NaN passes through, and a failing adaptive
    solver gives NaN, in the samples where it fails and in their derivatives.
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
        _check.no_torch("velocity", self.velocity, "cdelta.torch.velocity(module)")
        if self.solver not in _METHODS:
            raise ValueError(f"solver must be one of {', '.join(_METHODS)}, got {self.solver!r}")
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.atol is not None and self.rtol is None:
            raise ValueError("atol is given without rtol: give rtol for an adaptive solver")
        if self.rtol is not None and self.solver not in _ADAPTIVE:
            raise ValueError(
                f"rtol needs a solver that estimates its error ({', '.join(_ADAPTIVE)}), "
                f"got {self.solver!r}"
            )
        for name in ("steps", "max_steps"):
            object.__setattr__(self, name, _check.count(name, getattr(self, name)))
        if self.times is not None:
            if self.rtol is not None:
                raise ValueError(
                    "times and rtol exclude each other: an adaptive solver has no grid"
                )
            times = np.asarray(self.times, dtype=np.float64)
            ends = times.ndim == 1 and times.size > 1 and times[0] == 0 and times[-1] == 1
            if not (ends and (np.diff(times) > 0).all()):
                raise ValueError(f"times must rise strictly from 0 to 1, got {times}")
            object.__setattr__(self, "times", tuple(times.tolist()))
            object.__setattr__(self, "steps", times.size - 1)
        _roles.refuse_state_first("velocity", self.velocity, "pass lambda t, x: v(x, t)")

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
        leaves, structure = jax.tree.flatten(self)
        result, failed = _program(structure, backward)(leaves, x, ts)
        if _check.concrete(failed) and failed:
            raise ValueError(
                f"the adaptive solver {self.solver!r} failed: rtol={self.rtol:g} was not reached "
                f"within max_steps={self.max_steps}, or the velocity returned NaN or infinity"
            )
        if self.rtol is None and _check.concrete(result) and not jnp.isfinite(result).all():
            self._name_failure(x, backward)
        return result

    def _name_failure(self, x: Array, backward: bool) -> None:
        """Solve again, step by step, to say where the velocity stopped being finite."""
        velocity, x, _ = _prepared(self.velocity, x)

        def looked_at(t, state):
            slope = velocity(t, state)
            bad = int((~jnp.isfinite(slope)).sum())
            if bad:
                raise ValueError(
                    f"velocity returned NaN or infinity at t = {float(t):.6g} ({bad} of "
                    f"{slope.size} entries; the largest entry of x was "
                    f"{float(jnp.abs(state).max()):.3g})"
                )
            return slope

        for times, dt in zip(*_grid(self, x.dtype, backward), strict=True):
            x = _step(looked_at, _METHODS[self.solver], x, times, dt)
        raise ValueError(
            "the flow overflowed: its velocity is finite at every step, its states are not"
        )


_SETTINGS = ("solver", "steps", "times", "rtol", "atol", "max_steps", "unroll")


def _flatten(flow: Flow) -> tuple[tuple, tuple]:
    """The velocity as a pytree, with what it reads by now; the settings."""
    parts = getattr(flow, "_parts", None)
    velocity = as_pytree(flow.velocity) if parts is None else parts.now()
    return (velocity,), tuple(getattr(flow, name) for name in _SETTINGS)


def _flatten_with_keys(flow: Flow) -> tuple[tuple, tuple]:
    (velocity,), settings = _flatten(flow)
    return ((jax.tree_util.GetAttrKey("velocity"), velocity),), settings


def _unflatten(settings: tuple, children: tuple) -> Flow:
    """A flow from its parts, unchecked: jax rebuilds pytrees from leaves that need not be arrays.

    The parts are kept, because such leaves would be sorted into arrays and others anew.
    """
    flow, (velocity,) = object.__new__(Flow), children
    parts = velocity if isinstance(velocity, Traceable) else None
    for name, value in zip(_SETTINGS, settings, strict=True):
        object.__setattr__(flow, name, value)
    object.__setattr__(flow, "_parts", parts)
    object.__setattr__(flow, "velocity", velocity if parts is None else parts.function)
    return flow


jax.tree_util.register_pytree_with_keys(Flow, _flatten_with_keys, _unflatten, _flatten)


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


@functools.lru_cache(64)
def _program(structure: Any, backward: bool) -> Callable:
    """The compiled solver of all flows of one structure, what their velocity reads included.

    One function for each, rather than one for all with a static argument: what is no longer used
    takes its constants along.
    """

    @jax.jit
    def solve(leaves, x, ts):
        return _solve(structure.unflatten(leaves), x, ts, backward)

    return solve


def _solve(flow: Flow, x: Array, ts: Array | None, backward: bool) -> tuple[Array, Array]:
    """The end state, or the states at ``ts``, and whether the (adaptive) solver failed."""
    velocity, x, dtype = _prepared(flow.velocity, x)
    if flow.rtol is None:
        states, failed = _solve_in_steps(flow, velocity, x, ts, backward), jnp.zeros((), bool)
    else:
        states, failed = _solve_adaptively(flow, velocity, x, ts, backward)
    return states.astype(dtype), failed


def _solve_in_steps(
    flow: Flow, velocity: Callable, x: Array, ts: Array | None, backward: bool
) -> Array:
    method = _METHODS[flow.solver]
    stages, dts = _grid(flow, x.dtype, backward)
    unroll = flow.unroll
    if unroll is None:
        slow_loop = jax.default_backend() == "cpu" and flow.evaluations <= _UNROLL_LIMIT
        unroll = slow_loop and _has_convolution(jax.make_jaxpr(velocity)(stages[0, 0], x).jaxpr)
    # in a loop nothing can be shared between a step and its second computation
    step = jax.checkpoint(functools.partial(_step, velocity, method), prevent_cse=bool(unroll))

    def advance(x, now):
        return step(x, *now), (x if ts is not None else None)

    if unroll and flow.steps == 1:  # scan would keep a loop of one turn a loop
        end, states = advance(x, (jnp.asarray(stages[0]), jnp.asarray(dts[0])))
        states = None if states is None else states[None]
    else:
        end, states = jax.lax.scan(advance, x, (stages, dts), unroll=bool(unroll))
    if ts is None:
        return end

    def state_at(t):
        k = jnp.clip(jnp.searchsorted(starts, t, side="right") - 1, 0)
        dt = t - starts[k]
        return step(states[k], jnp.clip(starts[k] + dt * jnp.asarray(method.c, x.dtype), 0, 1), dt)

    starts = jnp.asarray(stages[:, 0])
    return jax.vmap(state_at)(ts.astype(x.dtype))


def _solve_adaptively(
    flow: Flow, velocity: Callable, x: Array, ts: Array | None, backward: bool
) -> tuple[Array, Array]:
    # DirectAdjoint is the one of diffrax's adjoints that takes jvp and vjp (and their vmap) on one
    # object.
    order = None if ts is None else jnp.argsort(ts)
    start, end = (1.0, 0.0) if backward else (0.0, 1.0)
    where = {"t1": True} if ts is None else {"ts": ts[order].astype(x.dtype)}
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, _: velocity(jnp.asarray(t, x.dtype), x)),
        _ADAPTIVE[flow.solver](),
        t0=jnp.asarray(start, x.dtype),
        t1=jnp.asarray(end, x.dtype),
        dt0=None,
        y0=x,
        saveat=diffrax.SaveAt(**where),
        stepsize_controller=diffrax.PIDController(
            flow.rtol, flow.rtol if flow.atol is None else flow.atol
        ),
        adjoint=diffrax.DirectAdjoint(),
        max_steps=flow.max_steps,
        throw=False,
    )
    states = solution.ys
    states = states[0] if ts is None else jnp.zeros_like(states).at[order].set(states)
    failed = solution.result != diffrax.RESULTS.successful
    # a factor, because that makes derivatives NaN too: jnp.where would give them the value 0
    return states * jnp.where(failed, jnp.nan, 1).astype(x.dtype), failed


def _prepared(velocity: Callable, x: Array) -> tuple[Callable, Array, Any]:
    """The velocity on states kept in at least single precision, x as such a state, and the dtype in
    which the velocity is asked and the result is given."""
    dtype = _precision.common(x.dtype, _checked_slope(velocity, x).dtype)
    state = _precision.working(dtype)

    def asked(t, x):
        return velocity(_rounded(jnp.asarray(t), dtype), x.astype(dtype)).astype(state)

    return asked, x.astype(state), dtype


def _rounded(t: Array, dtype: Any) -> Array:
    """t in another precision; what is less than 1 stays so, for velocities that end there."""
    if t.dtype == dtype:
        return t
    rounded, below = t.astype(dtype), jnp.asarray(1 - jnp.finfo(dtype).epsneg, dtype)
    return jnp.where((t < 1) & (rounded == 1), below, rounded)


# How velocities of other conventions become (t, x) -> dx/dt of one sample, as it is advised and as
# it is tried out.
_CONVENTIONS = {
    "lambda t, x: v(x, t)": lambda v: lambda t, x: v(x, t),
    "lambda t, x: v(t[None], x)": lambda v: lambda t, x: v(t[None], x),
    "lambda t, x: v(x, t[None])": lambda v: lambda t, x: v(x, t[None]),
    "lambda t, x: v(t, x[None])[0]": lambda v: lambda t, x: v(t, x[None])[0],
    "lambda t, x: v(x[None], t)[0]": lambda v: lambda t, x: v(x[None], t)[0],
    "lambda t, x: v(t[None], x[None])[0]": lambda v: lambda t, x: v(t[None], x[None])[0],
    "lambda t, x: v(x[None], t[None])[0]": lambda v: lambda t, x: v(x[None], t[None])[0],
}


def _checked_slope(velocity: Callable, x: Array) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the velocity at x; refused, with advice, when it is none of one sample."""
    time = jax.ShapeDtypeStruct((), x.dtype)
    expected = f"velocity must take a scalar t and one sample x of shape {x.shape}"
    try:
        out = _shape_of(velocity, time, x)
    except Exception as error:
        reason = (str(error).strip() or "no message").splitlines()[0]
        general = _GENERAL if isinstance(error, _MISFITS) else ""
        advice = _check.met_torch(error) or _advice(velocity, time, x) or general
        raise ValueError(
            f"{expected}; called so it raised {type(error).__name__}: {reason}. {advice}".rstrip()
        ) from error
    if not isinstance(out, jax.ShapeDtypeStruct) or out.shape != x.shape:
        got = out.shape if isinstance(out, jax.ShapeDtypeStruct) else type(out).__name__
        raise ValueError(
            f"velocity must return one array of x's shape {x.shape}, got {got}; {expected}. "
            + (_advice(velocity, time, x) or _GENERAL)
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"velocity must return real floating-point numbers, got dtype {out.dtype}")
    return out


_GENERAL = (
    "For a velocity v of (x, t) pass lambda t, x: v(x, t), "
    "for one of batches lambda t, x: v(t, x[None])[0]"
)
_MISFITS = (TypeError, ValueError, IndexError)  # what arguments of other shapes raise


def _shape_of(velocity: Callable, time: jax.ShapeDtypeStruct, x: Array) -> Any:
    # not of the velocity itself: jax would ask for its name, which a module need not have, and
    # remember it by its identity
    return jax.eval_shape(lambda t, x: velocity(t, x), time, x)


def _advice(velocity: Callable, time: jax.ShapeDtypeStruct, x: Array) -> str:
    """What to do with a velocity of another convention: the first that fits, of those known; empty
    where none does."""
    training = _flax_in_training(velocity)
    if training:
        return f"{', '.join(training)} in training mode: call network.eval() first"
    for text, adapted in {"": lambda v: v, **_CONVENTIONS}.items():
        try:
            out = _shape_of(adapted(velocity), time, x)
        except Exception:  # whatever it is, this convention is not the velocity's
            continue
        if isinstance(out, jax.ShapeDtypeStruct) and out.shape == x.shape:
            # what fits as it is failed for another reason, and would fit in any convention
            return f"This one (v) fits as {text}" if text else ""
    training = _equinox_in_training(velocity)
    if training:
        return f"{', '.join(training)} in training mode: pass equinox.nn.inference_mode(network)"
    return ""


def _flax_in_training(velocity: Callable) -> list[str]:
    """Layers of flax that the velocity can reach and that behave as in training."""
    nnx = sys.modules.get("flax.nnx")  # whoever has such a module has imported it
    if nnx is None:
        return []
    networks = [value for value in _reads.objects(velocity) if isinstance(value, nnx.Module)]
    layers = [layer for network in networks for _, layer in nnx.iter_modules(network)]
    return sorted(
        {
            type(layer).__name__
            for layer in layers
            if getattr(layer, "use_running_average", None) is False
            or getattr(layer, "deterministic", None) is False
        }
    )


def _equinox_in_training(velocity: Callable) -> list[str]:
    """Layers of equinox that the velocity can reach and that behave as in training."""
    equinox = sys.modules.get("equinox")
    if equinox is None:
        return []
    found, seen = set(), set()
    todo = [value for value in _reads.objects(velocity) if isinstance(value, equinox.Module)]
    while todo:
        part = todo.pop()
        if getattr(part, "inference", None) is False:
            found.add(type(part).__name__)
        seen.add(id(part))
        within = jax.tree.leaves(part, is_leaf=lambda child: id(child) not in seen)
        todo.extend(child for child in within if id(child) not in seen)
    return sorted(found)


def _has_convolution(jaxpr: Any) -> bool:
    """Whether a convolution occurs in the computation, at any depth."""
    return any(
        equation.primitive.name == "conv_general_dilated"
        or any(map(_has_convolution, jaxprs_in_params(equation.params)))
        for equation in jaxpr.eqns
    )
