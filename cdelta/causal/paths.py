"""Moving a latent until features have given values: along one direction of the frame, or by the
path of least velocity."""

import functools
from collections.abc import Callable, Mapping, Sequence

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from cdelta import _check, jacobian
from cdelta._precision import working
from cdelta._pytree import as_pytree
from cdelta.causal.effects import local_effects


def follow(
    f: Callable,
    x0: Float[ArrayLike, "*shape"],
    k: int,
    order: Sequence[int],
    to: ArrayLike,
    *,
    rtol: float | None = None,
    max_steps: int = 1000,
) -> Float[Array, "*shape"]:
    r"""The latent at which feature k has the value ``to``, along its own direction of the frame
    (C7).

    .. math:: \frac{dx}{ds} = (\text{to} - y_k(x_0))\, \frac{Q_k(x)}{L_{kk}(x)}, \qquad
        s \in [0, 1]

    with L and Q of :func:`local_effects`, so that :math:`y_k` moves on a straight line, features
    before k in ``order`` (indices, first cause first) stay, and those after it move as they must.
    In a model whose frame does not turn it is the counterfactual's latent; elsewhere it meets its
    aim as well and may be wrong (:func:`frame_turn`, C11).

    ``f`` maps a latent to features ``[n]``. The equation is solved adaptively (Tsitouras 5) to
    ``rtol`` (by default 1e-7 in double, 1e-4 in single precision). Raises ValueError when k is not
    in ``order``, and when the value cannot be reached: the feature has stopped to move along its
    direction, or ``max_steps`` were not enough. A value counts as reached within a hundred times
    ``rtol`` of the way. Where values are traced (``jit``, ``vmap``), NaN stands for such a latent.
    """
    f, x0, n = _looked_at(f, x0)
    order = _check.indices("order", order, n)
    k = _check.index("k", k, n)
    if k not in order:
        raise ValueError(f"order must hold the feature k = {k}, got {order}")
    held = order[: order.index(k) + 1]
    if len(held) > x0.size:
        raise ValueError(
            f"order up to k must not outnumber the latent's dimensions {x0.size}, got {len(held)}"
        )
    return _walked(f, x0, (k,), _aim("to", to)[None], held, rtol, max_steps)


def steer(
    f: Callable,
    x0: Float[ArrayLike, "*shape"],
    targets: Mapping[int, ArrayLike],
    *,
    rtol: float | None = None,
    max_steps: int = 1000,
) -> Float[Array, "*shape"]:
    r"""The latent at which features have the values ``{k: value, ...}``, by the path
    of least velocity (C16).

    .. math:: \frac{dx}{ds} = J_K^{+}\,(y^*_K - y_K(x_0)), \qquad
        J_K^{+} = J_K^{\top} (J_K J_K^{\top})^{-1}

    for s in [0, 1].

    The features asked for move on straight lines to their values; to first order nothing else is
    pushed. Where all have their values already nothing moves.

    Otherwise as :func:`follow`. Raises ValueError when no feature is named or more than the latent
    has dimensions, and when the values cannot be reached together.
    """
    f, x0, n = _looked_at(f, x0)
    if not targets:
        raise ValueError("targets must name at least one feature, got none")
    features = _check.indices("targets", list(targets), n)
    if len(features) > x0.size:
        raise ValueError(
            f"targets must not outnumber the latent's dimensions {x0.size}, got {len(features)}"
        )
    to = jnp.stack([_aim(f"targets[{k}]", value) for k, value in targets.items()])
    return _walked(f, x0, features, to, None, rtol, max_steps)


def lift(rows: Float[Array, " k *shape"], change: Float[Array, " k"]) -> Float[Array, " *shape"]:
    r"""The smallest move of a latent that changes features to first order as asked,
    :math:`J^{+} \text{change}`, from their gradients, ``rows``."""
    basis, triangle = jnp.linalg.qr(rows.reshape(len(rows), -1).T)  # J⁺ = q r⁻ᵀ
    step = basis @ jax.scipy.linalg.solve_triangular(triangle, change, trans="T")
    return step.reshape(rows.shape[1:])


def _aim(name: str, value: ArrayLike) -> Array:
    value = _check.as_float(name, value)
    _check.shape(name, value, ())
    _check.finite(name, value)
    return value


def _looked_at(f: Callable, x0: ArrayLike) -> tuple[Callable, Array, int]:
    x0 = _check.as_float("x0", x0)
    _check.finite("x0", x0)
    f = as_pytree(f)
    return f, x0, _check.vector("f", f, x0.shape, x0.dtype)


def _walked(
    f: Callable,
    x0: Array,
    features: tuple[int, ...],
    to: Array,
    order: tuple[int, ...] | None,
    rtol: float | None,
    max_steps: int,
) -> Array:
    dtype = working(x0.dtype)
    rtol = (1e-4 if dtype == jnp.float32 else 1e-7) if rtol is None else float(rtol)
    max_steps = _check.count("max_steps", max_steps)
    x, values = _walk(f, x0.astype(dtype), to.astype(dtype), features, order, rtol, max_steps)
    if _check.concrete(values) and not np.isfinite(np.asarray(values)).all():
        aims = dict(zip(features, np.asarray(to).tolist(), strict=True))
        raise ValueError(
            f"the features cannot be brought to {aims} from here: on the way they jump, their "
            f"gradients vanish or become dependent, or max_steps = {max_steps} is too few"
        )
    return x.astype(x0.dtype)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _walk(
    f: Callable,
    x0: Array,
    to: Array,
    features: tuple[int, ...],
    order: tuple[int, ...] | None,
    rtol: float,
    max_steps: int,
) -> tuple[Array, Array]:
    """The latent at the end of the path and the features asked for there; NaN where the path does
    not lead to them."""
    chosen = jnp.asarray(features)
    start = f(x0)[chosen].astype(x0.dtype)
    change = to - start

    def along_frame(s, x, _):
        rows = jacobian.rows(lambda x: f(x)[jnp.asarray(order)], x)
        lower, frame = local_effects(rows, range(len(order)))
        return change[0] / lower[-1, -1] * frame[-1]

    def shortest(s, x, _):
        rows = jacobian.rows(lambda x: f(x)[chosen], x).reshape(len(features), -1)
        return lift(rows, change).reshape(x.shape)

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(shortest if order is None else along_frame),
        diffrax.Tsit5(),
        t0=0.0,
        t1=1.0,
        dt0=None,
        y0=x0,
        stepsize_controller=diffrax.PIDController(rtol, rtol),
        max_steps=max_steps,
        throw=False,
    )
    x = solution.ys[0]
    values, rows = jacobian.values_and_rows(lambda x: f(x)[chosen], x)
    values, rows = values.astype(x0.dtype), rows.astype(x0.dtype)
    # a path can jump over what it cannot pass: it counts by where it ends. The solver's error in
    # the latent is rtol (1 + |x|) a number; what that makes of a feature is in the feature's unit
    latent = jnp.linalg.norm((rows * (1 + jnp.abs(x))).reshape(len(features), -1), axis=1)
    scale = jnp.abs(change) + latent
    # the feature itself is rounded, by its size: where its zero lies decides nothing else
    rounding = jnp.finfo(x0.dtype).eps * (jnp.abs(to) + jnp.abs(start))
    arrived = (jnp.abs(values - to) <= 100 * (rtol * scale + rounding)).all()
    fine = arrived & (solution.result == diffrax.RESULTS.successful)
    still = (change == 0).all()  # also where gradients vanish
    x, values = jnp.where(still, x0, x), jnp.where(still, start, values)
    fine |= still
    return jnp.where(fine, x, jnp.nan), jnp.where(fine, values, jnp.nan)
