"""The three graphs of three features that conditioning can and cannot tell apart (C6)."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import ArrayLike

from cdelta import _check
from cdelta.causal.models import LinearSCM


def common_cause(to_i: float = 1.0, to_j: float = 1.0, noise: ArrayLike = 1.0) -> LinearSCM:
    r"""Features (i, j, k) = (0, 1, 2) with :math:`i \leftarrow k \rightarrow j` (C6).

    ``to_i`` and ``to_j`` are the effects of k; ``noise`` a standard deviation, one for all or one a
    feature. Holding k removes the correlation of i and j.
    """
    return _three({(0, 2): to_i, (1, 2): to_j}, noise)


def mediator(
    to_k: float = 1.0, to_j: float = 1.0, direct: float = 0.0, noise: ArrayLike = 1.0
) -> LinearSCM:
    r"""Features (i, j, k) = (0, 1, 2) with :math:`i \rightarrow k \rightarrow j` (C6).

    ``to_k`` is the effect of i on k, ``to_j`` that of k on j, ``direct`` that of i on j past the
    mediator. Holding k leaves the correlation that the direct effect makes: none by default,
    exactly as for a common cause.
    """
    return _three({(2, 0): to_k, (1, 2): to_j, (1, 0): direct}, noise)


def collider(from_i: float = 1.0, from_j: float = 1.0, noise: ArrayLike = 1.0) -> LinearSCM:
    r"""Features (i, j, k) = (0, 1, 2) with :math:`i \rightarrow k \leftarrow j` (C6).

    ``from_i`` and ``from_j`` are the effects on k. i and j are independent; holding k makes them
    dependent, ``do(k)`` does not.
    """
    return _three({(2, 0): from_i, (2, 1): from_j}, noise)


def _three(effects: Mapping[tuple[int, int], float], noise: ArrayLike) -> LinearSCM:
    noise = _check.as_float("noise", noise)
    if noise.shape not in ((), (3,)):
        raise ValueError(f"noise must be a scalar or have shape (3,), got {noise.shape}")
    weights = jnp.zeros((3, 3))
    for place, effect in effects.items():
        weights = weights.at[place].set(jnp.asarray(effect, weights.dtype))
    return LinearSCM(weights, jnp.broadcast_to(noise, (3,)))
