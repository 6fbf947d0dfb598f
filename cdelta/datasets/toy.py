"""Two-dimensional densities to learn a flow on: each is ``(key, n) -> [n, 2]``, the same for the
same key."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from cdelta import _check


def moons(key: PRNGKeyArray, n: int, noise: float = 0.1) -> Float[Array, "n 2"]:
    r"""Two interleaved half circles, :math:`(\cos a, \sin a)` and
    :math:`(1 - \cos a, \tfrac12 - \sin a)`, blurred.

    ``a`` is uniform on :math:`[0, \pi]`, each half has probability ½, ``noise`` is the blur's
    standard deviation.
    """
    n, key = _check.count("n", n), _check.key("key", key)
    side, angle, blur = jax.random.split(key, 3)
    a = jax.random.uniform(angle, (n,), maxval=jnp.pi)
    upper = jnp.stack([jnp.cos(a), jnp.sin(a)], -1)
    lower = jnp.stack([1 - jnp.cos(a), 0.5 - jnp.sin(a)], -1)
    curve = jnp.where(jax.random.bernoulli(side, shape=(n, 1)), upper, lower)
    return curve + noise * jax.random.normal(blur, (n, 2))


def checkerboard(key: PRNGKeyArray, n: int, cells: int = 4) -> Float[Array, "n 2"]:
    """Uniform on the dark squares of a board of ``cells`` × ``cells`` unit squares, centred at the
    origin."""
    n, key = _check.count("n", n), _check.key("key", key)
    if _check.count("cells", cells) % 2:
        raise ValueError(f"cells must be even, got {cells}")
    row, column, inside = jax.random.split(key, 3)
    i = jax.random.randint(row, (n,), 0, cells)
    j = 2 * jax.random.randint(column, (n,), 0, cells // 2) + i % 2
    return jnp.stack([j, i], -1) - cells / 2 + jax.random.uniform(inside, (n, 2))


def rings(
    key: PRNGKeyArray, n: int, radii: tuple[float, ...] = (1.0, 2.0), noise: float = 0.1
) -> Float[Array, "n 2"]:
    """Circles around the origin, equally likely, with a Gaussian blur of standard deviation
    ``noise``."""
    n, key = _check.count("n", n), _check.key("key", key)
    if not len(radii):
        raise ValueError("radii must name at least one circle, got none")
    which, angle, blur = jax.random.split(key, 3)
    r = jax.random.choice(which, jnp.asarray(radii, dtype=float), (n, 1))
    a = jax.random.uniform(angle, (n,), maxval=2 * jnp.pi)
    return r * jnp.stack([jnp.cos(a), jnp.sin(a)], -1) + noise * jax.random.normal(blur, (n, 2))
