"""Effects read off a Jacobian: the local structural model that it is, once the order is known; the
effect of one feature, once its parents are; and whether to believe either."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from cdelta import _check, dependence
from cdelta._precision import working
from cdelta._stream import Run, Sample, average


def local_effects(
    rows: Float[ArrayLike, " n *shape"], order: Sequence[int]
) -> tuple[Float[Array, "m m"], Float[Array, " m *shape"]]:
    r"""The local structural model that a Jacobian is, once the causal order of its features is
    known (C7).

    .. math:: J = L\,Q, \qquad Q Q^\top = I, \qquad
        L \text{ lower triangular with positive diagonal},

    so :math:`L` is the Cholesky factor of :math:`J J^\top` (here by QR, which does not square its
    condition number). Where the latents are the model's noises, or these turned by one rotation
    (C11, :func:`frame_turn`), :math:`L_{ik}/L_{kk}` is the local effect of ``do(k)`` on i;
    following :math:`Q_k` in the latent moves k and what comes after it, and nothing before. In a
    linear SCM, :math:`L` is its structural map from standard noises.

    ``rows``: one gradient a feature, ``[n, *shape]`` (:func:`cdelta.jacobian.rows`). ``order``:
    feature indices from first cause to last effect; leaving features out leaves them out of the
    model. Returns ``L [m, m]`` and ``Q [m, *shape]``, rows and columns in the given order; half
    precision is factored in float32.

    Raises ValueError when order names a feature twice or one that is not there, there are more
    features than latent dimensions, or a row depends linearly on those before it (a saturated
    feature's row is 0). Where values are traced (``jit``, ``vmap``), NaN stands for such a row and
    for those after it.
    """
    rows = _check.as_float("rows", rows)
    if rows.ndim < 2:
        raise ValueError(f"rows must have shape (features, *latent), got {rows.shape}")
    order = _check.indices("order", order, len(rows))
    chosen = rows[np.array(order)]
    flat = chosen.reshape(len(order), -1)
    if flat.shape[0] > flat.shape[1]:
        raise ValueError(
            "rows must not outnumber the latent's dimensions,"
            f" got {flat.shape[0]} of {flat.shape[1]}"
        )
    _check.finite("rows", flat)

    # in units of their size: squares of large or small gradients would leave single precision
    flat, unit = dependence._in_units(flat.astype(working(rows.dtype)))
    q, r = jnp.linalg.qr(flat.T)  # Jᵀ = q r, so J = rᵀ qᵀ
    lengths = jnp.linalg.norm(flat, axis=1)
    dependent = jnp.abs(jnp.diag(r)) <= 10 * jnp.finfo(rows.dtype).eps * lengths
    if _check.concrete(dependent) and dependent.any():
        bad = order[int(dependent.argmax())]
        raise ValueError(
            f"rows must be linearly independent; feature {bad} adds nothing to those before it"
        )
    # only the first one is sure: those after it were made orthogonal to an arbitrary vector
    undefined = jnp.cumsum(dependent) > 0
    q, r = jnp.where(undefined, jnp.nan, q), jnp.where(undefined, jnp.nan, r)
    signs = jnp.where(jnp.diag(r) < 0, -1, 1).astype(flat.dtype)
    lower, directions = (r.T * signs) * unit[:, None], (q * signs).T.reshape(chosen.shape)
    return lower.astype(rows.dtype), directions.astype(rows.dtype)


def effect(
    rows: Float[ArrayLike, " n *shape"], k: int, parents: int | Sequence[int] = ()
) -> Float[Array, " n"]:
    r"""The local effect of feature k on every feature, from a Jacobian and k's parents alone (C9).

    .. math:: m = \frac{J q}{a^{\top} q}, \qquad a = \nabla y_k, \qquad
        q = a - \Pi_{\text{parents}}\, a

    It is the column :math:`L_{\cdot k} / L_{kk}` of :func:`local_effects` in any causal order: 1 at
    k, 0 at its parents. The regression on k, which the paper's filter takes out, is
    :math:`J a / \|a\|^2` instead; the two agree where k has no parents.

    ``rows``: one gradient a feature, ``[n, *shape]``. Returns m ``[n]``; half precision is computed
    in float32. Raises ValueError when k is among its parents, and when its gradient depends
    linearly on theirs, or theirs on each other; NaN where values are traced.
    """
    rows = _check.as_float("rows", rows)
    if rows.ndim < 2:
        raise ValueError(f"rows must have shape (features, *latent), got {rows.shape}")
    k = _check.index("k", k, len(rows))
    parents = _check.indices("parents", parents, len(rows)) if np.size(parents) else ()
    if k in parents:
        raise ValueError(f"parents must be other features than k = {k}, got {parents}")
    flat = rows.reshape(len(rows), -1).astype(working(rows.dtype))
    path = local_effects(flat, (*parents, k))[1][-1]
    return (flat @ path / (flat[k] @ path)).astype(rows.dtype)


class FrameTurn(NamedTuple):
    """How far each direction of the frame turns over the latents, ``[m]`` in the given order, and
    its standard error."""

    turn: Float[np.ndarray, " m"]
    stderr: Float[np.ndarray, " m"]


@dataclasses.dataclass(frozen=True)
class _Frames(dependence._Statistic):
    """Q(X) Q(X')ᵀ at two independent latents."""

    products: Any
    order: tuple[int, ...]

    def __call__(self, f, key):
        first, second = jax.random.split(key)
        latents = jnp.stack([self.products.latent(first), self.products.latent(second)])
        values, rows = jax.vmap(lambda x: self.products.rows(f, x))(latents)
        chosen = jax.vmap(dependence._in_units)(rows[:, jnp.asarray(self.order)])[0]
        lower, frames = jax.vmap(lambda rows: local_effects(rows, range(len(rows))))(chosen)
        lengths = jnp.linalg.norm(chosen, axis=-1)
        least = rows.shape[-1] * jnp.finfo(rows.dtype).eps * lengths
        free = (jnp.diagonal(lower, axis1=1, axis2=2) > least).all()
        free |= ~jnp.isfinite(chosen).all()  # such gradients stop the run, they are not dependent
        here, there = jnp.where(free, frames, 0)
        return Sample(values, (here, there), jnp.where(free, 0.0, -jnp.inf).astype(rows.dtype))


def frame_turn(
    f: dependence.Features,
    key: PRNGKeyArray,
    shape: dependence.Shape,
    samples: int,
    order: Sequence[int | str],
    *,
    names: Sequence[str] | None = None,
    **run: Any,
) -> FrameTurn:
    r"""How far the frame of :func:`local_effects` turns from latent to latent (C11).

    .. math:: \text{turn}_k = 1 - \|E\,Q_k(X)\|^2 = 1 - E\bigl[Q_k(X) \cdot Q_k(X')\bigr]

    with X and X' independent, both N(0, I): 0 where following the frame is an intervention in the
    model that made the features (noises normal, each feature increasing in its own), and above 0,
    at most 1, where it is not: a warning that needs no truth. ``samples`` pairs of latents are
    taken, so that the estimate is unbiased; it may be a little below 0. ``order`` as in
    :func:`local_effects`, or by the features' names; options as in
    :func:`cdelta.dependence.wiggle_moment`.

    Pairs where a gradient depends linearly on those before it are left out. Raises ValueError as
    these do, and when no pair is left.
    """
    options = Run.of(run)
    f, labels, products = dependence._looked_at(f, shape, "rows", 1.0, 1, options, names)
    order = labels.indices("order", order)
    if len(order) > products.size:
        raise ValueError(
            f"order must not outnumber the latent's dimensions {products.size}, got {len(order)}"
        )
    moment = average(_Frames(products, order), f, key, samples, len(order), options)
    return FrameTurn(1 - moment.matrix.diagonal(), moment.stderr.diagonal())
