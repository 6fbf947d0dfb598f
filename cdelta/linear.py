"""Linear maps of noise: what the flow's conditional mean and a held feature look like when nothing
bends (T1, T17)."""

import jax
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
    return _shrunk(t, x, matrix)


@jax.custom_jvp
def _shrunk(t, x, matrix):
    left, _, singular, length = _principal(t, matrix)
    return left @ ((t * singular / length) * (singular / length) * (left.T @ x))


def _principal(t, matrix):
    """Singular vectors and values of ``matrix``, and the roots of (1-t)² + t²s²: not squared, as
    the squares may leave the range of floats where the roots are within it."""
    left, singular, right = jnp.linalg.svd(matrix, full_matrices=False)
    # a direction that A never reaches has gain 0, also at t = 1 where the quotient reads 0 / 0
    reached = singular > jnp.finfo(matrix.dtype).eps * max(matrix.shape) * singular.max(initial=0.0)
    length = jnp.where(reached, jnp.hypot(1 - t, jnp.where(reached, t * singular, 1.0)), 1.0)
    return left, right, jnp.where(reached, singular, 0.0), length


@_shrunk.defjvp
def _shrunk_jvp(primals, tangents):
    # with N = ((1-t)² I + t² A Aᵀ)⁻¹, K = t N A and Q = (1-t)² N = I - t A Kᵀ, the map is A Kᵀ and
    # moves by Q dA Kᵀ + K dAᵀ Q: where singular values coincide, too, as those of svd do not
    (t, x, matrix), (t_dot, x_dot, matrix_dot) = primals, tangents
    left, right, singular, length = _principal(t, matrix)
    along = singular / length
    gain = t * along * along
    turned = left.T @ x

    # of a direction that is not reached all remains
    kept = jnp.where(singular > 0, ((1 - t) / length) ** 2, 1.0)

    def remaining(z):
        inside = left.T @ z
        return z - left @ inside + left @ (kept * inside)

    weight = t * along / length
    moved = remaining(matrix_dot @ (right.T @ (weight * turned)))
    moved += left @ (weight * (right @ (matrix_dot.T @ remaining(x))))
    faster = along**2 * (((1 - t) / length) * ((1 + t) / length) - (t * along) ** 2)
    moved += left @ (faster * t_dot * turned) + left @ (gain * (left.T @ x_dot))
    return left @ (gain * turned), moved


@one_dtype
def probe_covariance(held: Float[ArrayLike, "k d"] | Float[ArrayLike, " d"]) -> Float[Array, "d d"]:
    r"""Covariance of a standard normal probe :math:`v` given :math:`B v = 0` (T17).

    .. math:: \operatorname{Cov}[v \mid B v = 0] = I - B^{\mathsf T} (B B^{\mathsf T})^{-1} B

    With a single row :math:`a` this is :math:`I - a a^{\mathsf T} / \lVert a \rVert^2`: the probe
    keeps all of its variance, except along what is held.

    Shapes: ``held`` ``[k, d]`` or, for one row, ``[d]``; the result ``[d, d]``. Raises ValueError
    when the rows, each in a unit of its own, are linearly dependent (their span, and so the
    condition, is then not what it seems).
    """
    held = _check.as_float("held", held)
    if held.ndim not in (1, 2):
        raise ValueError(f"held must be a row [d] or rows [k, d], got shape {held.shape}")
    rows = jnp.atleast_2d(held)
    _check.finite("held", rows)
    # the condition does not know the unit of a row
    _, exponents = jnp.frexp(jnp.abs(rows).max(1, initial=0.0, keepdims=True))
    half, one = exponents // 2, jnp.ones((), rows.dtype)  # a whole one may be subnormal
    rows = rows * jnp.ldexp(one, -half) * jnp.ldexp(one, half - exponents)
    if (
        _check.concrete(rows)
        and (rank := int(np.linalg.matrix_rank(np.asarray(rows)))) < rows.shape[0]
    ):
        raise ValueError(
            f"held must have linearly independent rows, got {rows.shape[0]} rows of rank {rank}"
        )
    basis, _ = jnp.linalg.qr(rows.T)
    return jnp.eye(rows.shape[1], dtype=rows.dtype) - basis @ basis.T
