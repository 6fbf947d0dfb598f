r"""Products with the Jacobian of any map, without forming it: finite differences, forward mode,
rows by reverse mode.

``f`` is any function of one array, for instance features of a flow,
``lambda x0: classifier(flow(x0))``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped

from cdelta import _check, _precision, flow
from cdelta._pytree import as_pytree


def finite_difference(
    f: Callable[[Array], Array],
    x0: Float[ArrayLike, "*shape"],
    probe: Float[ArrayLike, "*probes"],
    eps: Shaped[ArrayLike, ""],
) -> Float[Array, "..."]:
    r"""The paper's wiggle: a forward difference along a probe (T15).

    .. math:: \frac{f(x_0 + \varepsilon z) - f(x_0)}{\varepsilon} = J(x_0)\,z + O(\varepsilon)

    The mean of the results at ``eps`` and ``-eps`` is the central difference. A half-precision
    ``x0`` has no points that near each other: f is asked in float32 then, the result is rounded.

    Shapes: ``probe`` as ``x0``, the result as ``f(x0)``; or ``[k, *shape]`` for k probes that share
    f(x0), the result ``[k, ...]``. Raises ValueError when shapes disagree, ``eps`` is zero or not
    finite, or f returns half precision, whose rounding drowns the difference at this ``eps``.
    """
    _check.no_torch("f", f, "cdelta.torch.features(module)")
    x0, probe = _point_and_probe(x0, probe)
    if _check.concrete(eps) and not (np.isfinite(eps) and eps != 0):
        raise ValueError(f"eps must be a finite number other than 0, got {eps}")
    dtype, work = x0.dtype, _precision.working(x0.dtype)
    x0, probe, step = x0.astype(work), probe.astype(work), jnp.asarray(eps, work)
    base = f(x0)
    _refuse_drowned(base.dtype, eps)

    def quotient(z):
        slope = (f(x0 + step * z) - base) / step.astype(base.dtype)
        return slope if work == dtype else slope.astype(dtype)

    return quotient(probe) if probe.ndim == x0.ndim else jax.vmap(quotient)(probe)


def _refuse_drowned(dtype, eps):
    """Refuse differences of half precision: rounding / eps exceeds the error of order eps."""
    half = jnp.issubdtype(dtype, jnp.floating) and _precision.working(dtype) != dtype
    if half and _check.concrete(eps) and abs(eps) < (least := float(jnp.finfo(dtype).eps) ** 0.5):
        raise ValueError(
            f"eps = {eps:g} is drowned by the rounding of f's values, which are {dtype}: take eps "
            f"of {least:.2g} or more, f in float32, or jvp, which needs no eps"
        )


def jvp(
    f: Callable[[Array], Array], x0: Float[ArrayLike, "*shape"], probe: Float[ArrayLike, "*probes"]
) -> Float[Array, "..."]:
    r"""The exact product :math:`J(x_0)\,z`, by forward mode.

    Shapes: ``probe`` as ``x0``, the result as ``f(x0)``; or ``[k, *shape]`` for k probes that share
    the evaluation of f, the result ``[k, ...]``. Raises ValueError when shapes disagree.
    """
    return values_and_jvp(f, x0, probe)[1]


def values_and_jvp(
    f: Callable[[Array], Array], x0: Float[ArrayLike, "*shape"], probe: Float[ArrayLike, "*probes"]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""``f(x0)`` and :func:`jvp` from the same evaluation."""
    _check.no_torch("f", f, "cdelta.torch.features(module)")
    x0, probe = _point_and_probe(x0, probe)

    def product(z):
        return jax.jvp(f, (x0,), (z,))

    return product(probe) if probe.ndim == x0.ndim else jax.vmap(product, out_axes=(None, 0))(probe)


def solution_and_jvp(
    velocity: Callable[[Array, Array], Array],
    x0: Float[ArrayLike, "*latents"],
    probes: Float[ArrayLike, "*probes"],
    steps: int,
    solver: str,
) -> tuple[Float[Array, "*latents"], Float[Array, "*probes"]]:
    r"""End points :math:`x_1` of many latents and products :math:`J z`, as a :class:`cdelta.Flow`
    has them in ``steps`` equal steps of a solver, for a study of how they converge.

    The number of steps is an argument of the compiled program: one program serves all of them, of
    euler, heun, midpoint and rk4 together, another all of tsit5. (A Flow is compiled for each.) It
    serves all velocities of one structure, too: what differs between them should be arrays, as in
    ``jax.tree_util.Partial(cdelta.mixture.velocity, source=source, target=target)``.

    Shapes: ``x0`` ``[N, *shape]``, ``probes`` the same or ``[k, N, *shape]``; the results as they.
    Raises ValueError for shapes that disagree, and for steps or a solver that a Flow refuses.
    """
    method = flow.Flow(velocity, solver, steps).solver  # refuses what makes no sense
    x0, probes = _point_and_probe(x0, probes)
    velocity, steps = as_pytree(velocity), _check.count("steps", steps)
    if method == "tsit5":
        return _by_single_steps(velocity, x0, probes, steps)
    return _by_stages(velocity, x0, probes, steps, *_table(method))


def _table(solver):
    """How many stages, and their times and weights: of methods each of whose stages starts from
    the slope before it alone."""
    method = flow._METHODS[solver]
    table = np.zeros((2, 4))
    table[:, : len(method.c)] = method.c, method.b
    return len(method.c), table


@jax.jit
def _by_stages(velocity, x0, probes, steps, stages, table):
    times, weights = table.astype(x0.dtype)
    velocity, h = jax.vmap(velocity, (None, 0)), jnp.asarray(1, x0.dtype) / steps

    def step(k, x):
        def stage(i, state):
            last, total = state
            slope = velocity((k + times[i]) * h, x + times[i] * h * last)
            return slope, total + weights[i] * slope

        return x + h * jax.lax.fori_loop(0, stages, stage, (0 * x, 0 * x))[1]

    return values_and_jvp(lambda x: jax.lax.fori_loop(0, steps, step, x), x0, probes)


@jax.jit
def _by_single_steps(velocity, x0, probes, steps):
    h = jnp.asarray(1, x0.dtype) / steps

    def step(k, x):  # over [kh, (k + 1)h], as a flow over [0, 1]
        return jax.vmap(flow.Flow(lambda s, y: h * velocity((k + s) * h, y), "tsit5", 1))(x)

    return values_and_jvp(lambda x: jax.lax.fori_loop(0, steps, step, x), x0, probes)


def rows(f: Callable[[Array], Array], x0: Float[ArrayLike, "*shape"]) -> Float[Array, "..."]:
    r"""The exact Jacobian, one row a feature: :math:`\nabla f_i(x_0)`, by reverse mode over one
    shared evaluation of f.

    Shapes: ``f(x0)`` is ``[n]`` (or any shape), the result ``[n, *shape]``. Costs n reverse passes;
    nothing is computed twice for them but what :class:`cdelta.Flow` chooses not to keep.
    """
    return values_and_rows(f, x0)[1]


def values_and_rows(
    f: Callable[[Array], Array], x0: Float[ArrayLike, "*shape"]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""``f(x0)`` and :func:`rows` from the same evaluation."""
    _check.no_torch("f", f, "cdelta.torch.features(module)")
    x0 = _check.as_float("x0", x0)
    values, pullback = jax.vjp(f, x0)
    basis = jnp.eye(values.size, dtype=values.dtype).reshape(values.size, *values.shape)
    gradients = jax.vmap(lambda e: pullback(e)[0])(basis)
    return values, gradients.reshape(*values.shape, *x0.shape)


def reach(
    f: Callable[[Array], Array],
    x0: Float[ArrayLike, "*shape"],
    direction: Float[ArrayLike, "*shape"],
    distances: Float[ArrayLike, " m"],
    miss: float = 0.1,
) -> Float[Array, ""]:
    r"""How far from x0 a wiggle's straight line holds: the first distance along a direction at
    which it is off by the share ``miss`` of the change that it says (L9).

    .. math:: \min\Bigl\{ s : \frac{\|f(x_0 + s u) - f(x_0) - s\,J u\|}{\|s\,J u\|}
        \ge \text{miss} \Bigr\}, \qquad u = \frac{\text{direction}}{\|\text{direction}\|}

    The error is looked at in the given ``distances``, increasing numbers. Between two of them, and
    with x0 itself (where it is zero), its share is taken to be a power of s, and before the first
    one proportional to s, as it is where f bends. Infinite where the line still holds at the last,
    0 where :math:`J u = 0` and yet f moves.

    The result is a scalar. Raises ValueError when shapes disagree, for distances that are not
    positive and increasing, and for a miss that is not positive. NaN where the direction is zero
    or f does not move at all.
    """
    x0, direction = _check.as_float("x0", x0), _check.as_float("direction", direction)
    _check.shape("direction", direction, x0.shape, " of x0")
    if not miss > 0:
        raise ValueError(f"miss must be positive, got {miss}")
    s = _check.as_float("distances", distances).astype(x0.dtype)
    if s.ndim != 1 or not s.size:
        raise ValueError(f"distances must be numbers [m], got shape {s.shape}")
    if _check.concrete(s) and not (np.diff(np.asarray(s), prepend=0) > 0).all():
        raise ValueError(f"distances must be positive and increase, got {np.asarray(s)}")
    unit = direction / jnp.linalg.norm(direction)
    values, slope = values_and_jvp(f, x0, unit)

    def share(s: Array) -> Array:
        off = f(x0 + s * unit) - values - s * slope
        return jnp.linalg.norm(off) / jnp.linalg.norm(s * slope)

    shares = jax.lax.map(share, s)  # one after the other: an image flow's memory is not multiplied
    over = shares >= miss
    i = over.argmax()  # the first
    logs, log_s = jnp.log(jnp.maximum(shares, jnp.finfo(s.dtype).tiny)), jnp.log(s)
    before = jnp.maximum(i - 1, 0)
    power = jnp.where(i > 0, (logs[i] - logs[before]) / (log_s[i] - log_s[before]), 1.0)
    found = jnp.exp(log_s[i] + (jnp.log(miss) - logs[i]) / jnp.where(i > 0, power, 1.0))
    known = jnp.where(over.any(), found, jnp.inf)
    return jnp.where(jnp.isnan(shares).any(), jnp.nan, known)


def _point_and_probe(x0, probe):
    x0, probe = _check.as_float("x0", x0), _check.as_float("probe", probe)
    if probe.shape[probe.ndim - x0.ndim :] != x0.shape or probe.ndim - x0.ndim not in (0, 1):
        raise ValueError(
            f"probe must have x0's shape {x0.shape}, or [k, *shape] for k probes, got {probe.shape}"
        )
    return x0, probe.astype(x0.dtype)
