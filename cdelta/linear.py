"""Linear maps of noise: what the flow's conditional mean and a held feature look like when nothing
bends (T1, T17)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped

from cdelta import _check
from cdelta._precision import one_dtype


@one_dtype
def conditional_mean(
    t: Shaped[ArrayLike, ""], x: Float[ArrayLike, " n"], matrix: Float[ArrayLike, "n d"]
) -> Float[Array, " n"]:
    r"""Posterior mean of :math:`x_1 = A \tilde z` given :math:`x_t = (1-t) z + t x_1 = x` (T1).

    .. math:: E[x_1 \mid x_t = x]
              = t A A^{\mathsf T} \bigl((1-t)^2 I + t^2 A A^{\mathsf T}\bigr)^{-1} x

    Both :math:`z` and :math:`\tilde z` are standard normal and independent. In the left singular
    vectors of ``A`` the matrix is diagonal, with gains :math:`t s^2 / ((1-t)^2 + t^2 s^2)`; so
    ``A`` may be of any shape and rank, and at :math:`t = 1` the result is the projection of ``x``
    on the range of ``A`` (``x`` itself when ``A`` has full row rank).

    Shapes: ``x`` and the result ``[n]``, ``matrix`` ``[n, d]``. Raises ValueError when they
    disagree or ``t`` leaves [0, 1].
    """
    t = _check.time(t)
    x, matrix = _check.as_float("x", x), _check.as_float("matrix", matrix)
    if matrix.ndim != 2:
        raise ValueError(f"matrix must have two axes, got shape {matrix.shape}")
    _check.finite("matrix", matrix)
    _check.shape("x", x, matrix.shape[:1], f" to fit matrix {matrix.shape}")
    t = t.astype(jnp.result_type(x, matrix))
    left, singular, _ = jnp.linalg.svd(matrix, full_matrices=False)
    # a direction that A never reaches has gain 0, also at t = 1 where the quotient reads 0 / 0
    reached = singular > jnp.finfo(matrix.dtype).eps * max(matrix.shape) * singular.max(initial=0.0)
    gain = jnp.where(
        reached, t * singular**2 / jnp.where(reached, (1 - t) ** 2 + (t * singular) ** 2, 1.0), 0.0
    )
    return left @ (gain * (left.T @ x))


@one_dtype
def probe_covariance(held: Float[ArrayLike, "k d"] | Float[ArrayLike, " d"]) -> Float[Array, "d d"]:
    r"""Covariance of a standard normal probe :math:`v` given :math:`B v = 0` (T17).

    .. math:: \operatorname{Cov}[v \mid B v = 0] = I - B^{\mathsf T} (B B^{\mathsf T})^{-1} B

    With a single row :math:`a` this is :math:`I - a a^{\mathsf T} / \lVert a \rVert^2`: the probe
    keeps all of its variance, except along what is held.

    Shapes: ``held`` ``[k, d]`` or, for one row, ``[d]``; the result ``[d, d]``. Raises ValueError
    when the rows are linearly dependent (their span, and so the condition, is then not what it
    seems).
    """
    held = _check.as_float("held", held)
    if held.ndim not in (1, 2):
        raise ValueError(f"held must be a row [d] or rows [k, d], got shape {held.shape}")
    rows = jnp.atleast_2d(held)
    _check.finite("held", rows)
    if (
        _check.concrete(rows)
        and (rank := int(np.linalg.matrix_rank(np.asarray(rows)))) < rows.shape[0]
    ):
        raise ValueError(
            f"held must have linearly independent rows, got {rows.shape[0]} rows of rank {rank}"
        )
    basis, _ = jnp.linalg.qr(rows.T)
    return jnp.eye(rows.shape[1], dtype=rows.dtype) - basis @ basis.T
