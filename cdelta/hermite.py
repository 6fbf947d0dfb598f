r"""A map of a few Gaussian latents, order by order: what the estimators estimate, by quadrature
instead of samples.

With the Hermite polynomials :math:`h_k` of one latent (:func:`polynomials`) a map f of
:math:`X \sim N(0, I)` in d dimensions, of finite variance, splits into uncorrelated parts, one an
order:

.. math:: f = E f + f_1 + f_2 + \dots, \qquad f_n = \sum_{|m| = n} c_m h_m, \qquad
          c_m = E[f(X)\, h_m(X)], \qquad h_m(x) = \prod_j h_{m_j}(x_j) .

Everything here evaluates f at ``nodes`` to the power of d latents: d of 1, 2, or 3. Where f has no
few polynomials that fit it, as a flow that parts its latents, an even lattice (:func:`lattice`)
misses less.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from cdelta import _check

Features = Callable[[Array], Any]


class Moments(NamedTuple):
    """Of a map's features: their covariance, what its wiggles have for one, E[J Jᵀ], and its mean
    Jacobian."""

    cov: Float[np.ndarray, "n n"]
    wiggle: Float[np.ndarray, "n n"]
    slope: Float[np.ndarray, "n d"]


def polynomials(x: Float[ArrayLike, "*shape"], order: int) -> Float[Array, "..."]:
    r"""Hermite polynomials of unit variance under N(0, 1), orders 0 to ``order``, stacked in front.

    .. math:: h_0 = 1, \quad h_1 = x, \qquad
              \sqrt{k+1}\, h_{k+1} = x\, h_k - \sqrt k\, h_{k-1}

    Shapes: ``x`` any, the result ``[order + 1, *shape]``. Raises ValueError for an order below 1.
    """
    x = _check.as_float("x", x)
    h = [jnp.ones_like(x), x]
    for k in range(1, _check.count("order", order)):
        h.append((x * h[k] - np.sqrt(k) * h[k - 1]) / np.sqrt(k + 1))
    return jnp.stack(h)


def quadrature(dim: int, nodes: int) -> tuple[Float[np.ndarray, "N dim"], Float[np.ndarray, " N"]]:
    r"""Latents and weights with :math:`\sum_i w_i\, g(x_i) = E\, g(X)` for polynomials g of degree
    up to 2 ``nodes`` - 1 in each latent: Gauss and Hermite's, N = ``nodes`` to the power of
    ``dim``."""
    dim, nodes = _check.count("dim", dim), _check.count("nodes", nodes)
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    latents = np.stack(np.meshgrid(*[x] * dim, indexing="ij"), -1).reshape(-1, dim)
    return latents, reduce(np.multiply.outer, [w / w.sum()] * dim).ravel()


def lattice(
    dim: int, reach: float | int = 6.5, step: float | int = 0.1
) -> tuple[Float[np.ndarray, "N dim"], Float[np.ndarray, " N"]]:
    r"""Latents an even ``step`` apart with no coordinate beyond ``reach``, and the weights
    :math:`\varphi(x)\, \text{step}^d` of the trapezoid rule for :math:`E\, g(X)`.

    For an analytic g it converges faster than any power of the step, down to what lies beyond the
    reach. Raises ValueError for a step or a reach that is not positive.
    """
    dim = _check.count("dim", dim)
    for name, length in (("reach", reach), ("step", step)):
        if not 0 < length < np.inf:
            raise ValueError(f"{name} must be positive and finite, got {length}")
    many = int(np.floor(reach / step + 1e-9))
    x = step * np.arange(-many, many + 1)
    latents = np.stack(np.meshgrid(*[x] * dim, indexing="ij"), -1).reshape(-1, dim)
    one = np.exp(-(x**2) / 2) * step / np.sqrt(2 * np.pi)
    return latents, reduce(np.multiply.outer, [one] * dim).ravel()


def orders(
    f: Features, dim: int, order: int = 40, nodes: int = 64
) -> Float[np.ndarray, "orders n n"]:
    r"""Covariance of each part of f, :math:`\operatorname{Cov} f_n`, n = 0, …, ``order``, by
    projecting f on the polynomials: no derivative is taken.

    The sum is Cov f and :math:`\sum_n n \operatorname{Cov} f_n = E[J J^{\mathsf T}]` (C3). The last
    has all beyond it as well, as far as no latent's own order exceeds it; the first is 0.

    f maps ``[dim]`` to ``[n]``. Raises ValueError unless 0 < order < nodes, and when f does not
    return a vector.
    """
    if not (order := _check.count("order", order)) < _check.count("nodes", nodes):
        raise ValueError(f"order must be below the {nodes} nodes, got {order}")
    values = _values(f, quadrature(dim, nodes)[0])
    x, w = quadrature(1, nodes)
    parts = np.asarray(values).reshape(*[nodes] * dim, -1)
    for _ in range(dim):  # each latent's axis moves to the end, as that of its polynomials
        parts = np.tensordot(parts, polynomials(x[:, 0], order) * w, (0, 1))
    total = np.minimum(np.indices(parts.shape[1:]).sum(0), order)
    total[(0,) * dim] = -1  # the mean has no variance
    return np.stack([c @ c.T for c in (parts[:, total == n] for n in range(order + 1))])


def moments(
    f: Features,
    dim: int,
    nodes: int = 64,
    rule: tuple[ArrayLike, ArrayLike] | None = None,
    batch: int | None = None,
) -> Moments:
    r""":math:`\operatorname{Cov} f(X)`, :math:`E[J J^{\mathsf T}]` and :math:`E[J]`, from f and its
    Jacobian: no polynomial is taken.

    f maps ``[dim]`` to ``[n]``. ``rule`` has latents and weights to take in the place of
    :func:`quadrature`'s, such as :func:`lattice`'s; ``batch`` is how many latents f takes at once,
    all of them when it is None. Raises ValueError when f does not return a vector.
    """
    latents, mass = map(jnp.asarray, quadrature(dim, nodes) if rule is None else rule)
    many = jax.vmap if batch is None else partial(_in_portions, batch=batch)
    y, J = _vectors(many(f)(latents)), many(jax.jacfwd(f))(latents)
    centred = y - mass @ y
    cov = (mass[:, None] * centred).T @ centred
    wiggle = jnp.einsum("n,nij,nkj->ik", mass, J, J)
    return Moments(*map(np.asarray, (cov, wiggle, jnp.einsum("n,nij->ij", mass, J))))


@partial(jax.jit, static_argnums=(0, 2, 3))
def product(
    f: Features, alpha: Float[ArrayLike, ""], dim: int, nodes: int = 24
) -> Float[Array, "n n"]:
    r"""The mean product of Jacobians at two latents of correlation α (C3').

    .. math:: E\bigl[J(X)\, J(X_\alpha)^{\mathsf T}\bigr]
              = \sum_n n\, \alpha^{n-1} \operatorname{Cov} f_n, \qquad
              X_\alpha = \alpha X + \sqrt{1 - \alpha^2}\, X'

    over pairs (X, X'), ``nodes`` to the power of 2 ``dim`` of them. f maps ``[dim]`` to ``[n]``.
    """
    first, weight = map(jnp.asarray, quadrature(dim, nodes))
    J = jax.vmap(jax.jacobian(f))
    latents = alpha * first[:, None] + jnp.sqrt(1 - alpha**2) * first
    inner = jnp.einsum("b,abij->aij", weight, jax.vmap(J)(latents))
    return jnp.einsum("a,aij,akj->ik", weight, J(first), inner)


def _values(f: Features, latents: ArrayLike) -> Array:
    return _vectors(jax.vmap(f)(jnp.asarray(latents)))


def _vectors(values: Array) -> Array:
    if values.ndim != 2:
        raise ValueError(f"f must return a vector [n], got shape {values.shape[1:]}")
    return values


def _in_portions(f: Features, batch: int) -> Features:
    return jax.jit(partial(jax.lax.map, f, batch_size=_check.count("batch", batch)))
