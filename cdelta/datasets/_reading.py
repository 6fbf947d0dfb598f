"""A painter read backwards: the parameters at which it paints most nearly what a picture shows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def fitted(
    paint: Callable[[Array], Array],
    images: Float[Array, "n ..."],
    start: Float[Array, "n parameters"],
    iterations: int,
    prior: Array,
    batch: int | None = None,
) -> tuple[Float[Array, "n parameters"], Float[Array, " n"]]:
    r"""Of each image the p at a local minimum of
    :math:`\|\mathrm{paint}(p) - \text{image}\|^2 + \text{prior}\, \|p - \text{start}\|^2`, and the
    root mean square of what is left of the image.

    Levenberg and Marquardt's method with exact derivatives, from ``start``; ``batch`` at a time, or
    one after the other where a picture fills the processor's cache.
    """

    def one(pair):
        image, start = pair

        def look(p):
            """Loss, gradient and Gauss–Newton matrix at p; the painter is compiled once."""

            def twice(p):
                residual = (paint(p) - image).reshape(-1)
                return residual, residual

            columns, residual = jax.jacfwd(twice, has_aux=True)(p)
            pull = prior * (p - start)
            loss = residual @ residual + pull @ (p - start)
            return (
                loss,
                columns.T @ residual + pull,
                columns.T @ columns + prior * jnp.eye(p.size, dtype=p.dtype),
            )

        def step(state, _):
            p, damping, best, tried = state
            loss, gradient, gram = look(tried)
            better = loss < best[0]
            best = jax.tree.map(
                lambda new, old: jnp.where(better, new, old), (loss, gradient, gram), best
            )
            p, damping = jnp.where(better, tried, p), damping * jnp.where(better, 0.2, 5.0)
            _, gradient, gram = best
            scale = jnp.diag(jnp.diag(gram) + jnp.finfo(p.dtype).eps * jnp.trace(gram))
            tried = p - jnp.linalg.solve(gram + damping * scale, gradient)
            return (p, damping, best, tried), None

        n, dtype = start.size, start.dtype
        nothing = jnp.inf * jnp.ones((), dtype), jnp.zeros(n, dtype), jnp.eye(n, dtype=dtype)
        first = start, jnp.asarray(0.05, dtype), nothing, start
        (p, *_), _ = jax.lax.scan(step, first, length=iterations + 1)
        return p, jnp.sqrt(jnp.mean((paint(p) - image) ** 2))

    return jax.lax.map(one, (images, start), batch_size=batch)
