"""Effects read off a Jacobian: the local structural model that it is, once the order is known."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from cdelta import _check
from cdelta._precision import working


def local_effects(
    rows: Float[ArrayLike, " n *shape"], order: Sequence[int]
) -> tuple[Float[Array, "m m"], Float[Array, " m *shape"]]:
    r"""The local structural model that a Jacobian is, once the causal order of its features is
    known (C7).

    .. math:: J = L\,Q, \qquad Q Q^\top = I, \qquad
        L \text{ lower triangular with positive diagonal},

    so :math:`L` is the Cholesky factor of :math:`J J^\top` (here by QR, which does not square its
    condition number). :math:`L_{ik}/L_{kk}` is the local effect of ``do(k)`` on i; following
    :math:`Q_k` in the latent moves k and what comes after it, and nothing before. In a linear SCM,
    :math:`L` is its structural map from standard noises.

    ``rows``: one gradient a feature, ``[n, *shape]`` (:func:`cdelta.jacobian.rows`). ``order``:
    feature indices from first cause to last effect; leaving features out leaves them out of the
    model. Returns ``L [m, m]`` and ``Q [m, *shape]``, rows and columns in the given order; half
    precision is factored in float32.

    Raises ValueError when order names a feature twice or one that is not there, there are more
    features than latent dimensions, or a row depends linearly on those before it (a saturated
    feature's row is 0).
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

    flat = flat.astype(working(rows.dtype))
    q, r = jnp.linalg.qr(flat.T)  # Jᵀ = q r, so J = rᵀ qᵀ
    if _check.concrete(flat):
        lengths = np.linalg.norm(np.asarray(flat), axis=1)
        dependent = np.abs(np.diag(np.asarray(r))) <= 10 * jnp.finfo(rows.dtype).eps * lengths
        # only the first one is sure: those after it were made orthogonal to an arbitrary vector
        if dependent.any():
            bad = order[int(dependent.argmax())]
            raise ValueError(
                f"rows must be linearly independent; feature {bad} adds nothing to those before it"
            )
    signs = jnp.where(jnp.diag(r) < 0, -1, 1).astype(flat.dtype)
    lower, directions = r.T * signs, (q * signs).T.reshape(chosen.shape)
    return lower.astype(rows.dtype), directions.astype(rows.dtype)
