r"""Structural causal models with a known graph: what dependence, conditioning and intervention are
compared with.

A model gives each feature one equation in its causes and a standard normal noise of its own, so it
is a map :math:`x = F(\varepsilon)` with :math:`\varepsilon \sim N(0, I)`. An intervention replaces
an equation by a constant; a counterfactual keeps the noises of what was seen and changes an
equation (abduction, action, prediction).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from cdelta import _check
from cdelta._pytree import pytree, unchecked

NOISE_BOUND = 40.0  # abduction looks for noises up to here: no standard normal number is larger


class _Model:
    """What the linear and the nonlinear model share: all follows from the map, the abduction and
    ``do``."""

    def sample(self, key: PRNGKeyArray, n: int) -> Float[Array, "n features"]:
        """``n`` independent draws. Raises ValueError when n is not positive."""
        if n < 1:
            raise ValueError(f"n must be positive, got {n}")
        return jax.vmap(self)(jax.random.normal(key, (n, self.features)))

    def jacobian(self, noise: Float[ArrayLike, " features"]) -> Float[Array, "features features"]:
        r"""The exact :math:`\partial x_i / \partial \varepsilon_j` at one noise; lower triangular
        in causal order."""
        return jax.jacfwd(self)(self._noise(noise))

    def counterfactual(
        self, x: Float[ArrayLike, " features"], index: int, value: ArrayLike
    ) -> Float[Array, " features"]:
        r"""What ``x`` would have been under ``do(index, value)``, with the noises that made it what
        it was.

        .. math:: x^{cf} = F_{do}(F^{-1}(x))
        """
        return self.do(index, value)(self.noises(x))

    def _noise(self, noise: ArrayLike) -> Array:
        noise = _check.as_float("noise", noise)
        _check.shape("noise", noise, (self.features,), ", one standard normal a feature")
        return noise

    def _features(self, x: ArrayLike) -> Array:
        x = _check.as_float("x", x)
        _check.shape("x", x, (self.features,), ", one number a feature")
        _check.finite("x", x)
        return x


@pytree
class LinearSCM(_Model):
    r"""Linear structural model, :math:`x_i = b_i + \sum_j W_{ij} x_j + s_i \varepsilon_i` with
    standard normal noises.

    ``LinearSCM(weights [n, n], noise [n], shift [n] = 0)``: ``weights[i, j]`` is the effect of j on
    i, ``noise[i]`` the standard deviation :math:`s_i`. Features may come in any order as long as no
    effect leads back to its cause.

    Raises ValueError when shapes disagree, a number is not finite, a noise is not positive, or the
    graph has a cycle (naming its features). Called with a noise ``[n]``, the model gives the
    features ``[n]``.
    """

    weights: Float[Array, "n n"]
    noise: Float[Array, " n"]
    shift: Float[Array, " n"]

    def __init__(self, weights: ArrayLike, noise: ArrayLike, shift: ArrayLike | None = None):
        weights, noise = _check.as_float("weights", weights), _check.as_float("noise", noise)
        if weights.ndim != 2 or weights.shape[0] != weights.shape[1] or weights.size == 0:
            raise ValueError(
                f"weights must be square [n, n] with n >= 1, got shape {weights.shape}"
            )
        n = len(weights)
        shift = jnp.zeros(n, noise.dtype) if shift is None else _check.as_float("shift", shift)
        for name, array in (("noise", noise), ("shift", shift)):
            _check.shape(name, array, (n,), f" to fit weights {weights.shape}")
        for name, array in (("weights", weights), ("noise", noise), ("shift", shift)):
            _check.finite(name, array)
        if _check.concrete(noise) and not (np.asarray(noise) > 0).all():
            raise ValueError(
                f"noise must be positive, a standard deviation a feature, got {np.asarray(noise)}"
            )
        if _check.concrete(weights):
            causal_order(np.asarray(weights))
        dtype = jnp.result_type(weights, noise, shift)
        for name, array in (("weights", weights), ("noise", noise), ("shift", shift)):
            object.__setattr__(self, name, array.astype(dtype))

    @property
    def features(self) -> int:
        return self.weights.shape[-1]

    @property
    def order(self) -> tuple[int, ...]:
        """The features from first cause to last effect; among those that could come next, the
        lowest index first."""
        return causal_order(np.asarray(self.weights))

    @property
    def total_effects(self) -> Float[Array, "n n"]:
        r"""Effect of ``do(j)`` on i along all directed paths,
        :math:`(I - W)^{-1} = I + W + W^2 + \dots`"""
        eye = jnp.eye(self.features, dtype=self.weights.dtype)
        return jnp.linalg.solve(eye - self.weights, eye)

    @property
    def structural_map(self) -> Float[Array, "n n"]:
        r"""The map from standard noises to features,
        :math:`(I - W)^{-1} \operatorname{diag}(s)`."""
        return self.total_effects * self.noise

    @property
    def mean(self) -> Float[Array, " n"]:
        r""":math:`(I - W)^{-1} b`"""
        return self.total_effects @ self.shift

    @property
    def cov(self) -> Float[Array, "n n"]:
        r"""The exact covariance :math:`(I - W)^{-1} \operatorname{diag}(s^2) (I - W)^{-\top}`."""
        return self.structural_map @ self.structural_map.T

    def __call__(self, noise: Float[ArrayLike, " n"]) -> Float[Array, " n"]:
        """The features that these noises make."""
        return self.total_effects @ (self.shift + self.noise * self._noise(noise))

    def noises(self, x: Float[ArrayLike, " n"]) -> Float[Array, " n"]:
        r"""Abduction, :math:`\varepsilon = s^{-1}(x - W x - b)`; 0 for a feature that an
        intervention has set."""
        x = self._features(x)
        own = x - self.weights @ x - self.shift
        return jnp.where(self.noise > 0, own / jnp.where(self.noise > 0, self.noise, 1), 0)

    def do(self, index: int, value: ArrayLike) -> "LinearSCM":
        r"""The model in which :math:`x_{index}` is set to ``value``, whatever its causes and its
        noise.

        Raises ValueError when there is no such feature or value is not a finite scalar.
        """
        index, value = _index(index, self.features), _value(value)
        return unchecked(
            LinearSCM,
            self.weights.at[index].set(0),
            self.noise.at[index].set(0),
            self.shift.at[index].set(value.astype(self.shift.dtype)),
        )


@dataclasses.dataclass(frozen=True)
class SCM(_Model):
    r"""Structural model of any equations, :math:`x_i = f_i(x_{<i}, \varepsilon_i)`,
    :math:`\varepsilon \sim N(0, I)`.

    ``SCM(equations)``: a mapping from a feature's name to its equation ``f(x, e)``, in causal
    order; ``x`` holds the features before it by name, ``e`` is its own noise, both scalars. For
    example::

        SCM({"z": lambda x, e: e, "y": lambda x, e: jnp.sin(x["z"]) + 0.5 * e})

    For abduction an equation must be strictly monotone in its noise. Called with a noise ``[n]``,
    the model gives the features ``[n]``, differentiably.

    Raises ValueError when there is no equation; when called, for an equation that asks for a
    feature which does not come before it, or does not give a scalar, naming it.
    """

    equations: Mapping[str, Callable[[Mapping[str, Array], Array], ArrayLike]]

    def __post_init__(self):
        if not self.equations:
            raise ValueError("equations must name at least one feature, got none")
        object.__setattr__(self, "equations", dict(self.equations))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.equations)

    @property
    def features(self) -> int:
        return len(self.equations)

    @property
    def order(self) -> tuple[int, ...]:
        """The features from first cause to last effect: as they were given."""
        return tuple(range(self.features))

    def __call__(self, noise: Float[ArrayLike, " n"]) -> Float[Array, " n"]:
        """The features that these noises make."""
        noise = self._noise(noise)
        x: dict[str, Array] = {}
        for name, e in zip(self.equations, noise, strict=True):
            x[name] = self._equation(name, x, e)
        return jnp.stack(list(x.values()))

    def noises(self, x: Float[ArrayLike, " n"]) -> Float[Array, " n"]:
        r"""Abduction: the noises that make ``x``, each the root of
        :math:`f_i(x_{<i}, \varepsilon_i) = x_i`.

        0 for a feature whose equation does not depend on its noise, as after an intervention.
        Raises ValueError when a feature cannot have the value given it.
        """
        x = self._features(x)
        seen = dict(zip(self.equations, x, strict=True))
        noise, possible = map(
            jnp.stack, zip(*(self._root(name, seen) for name in self.equations), strict=True)
        )
        if _check.concrete(possible) and not np.asarray(possible).all():
            bad = {
                name: float(seen[name])
                for name, can in zip(self.names, possible, strict=True)
                if not can
            }
            raise ValueError(f"x must hold values that the equations can take, got {bad}")
        return noise

    def do(self, index: int | str, value: ArrayLike) -> "SCM":
        """The model in which a feature, by index or name, is set to ``value``, whatever its causes
        and its noise.

        Raises ValueError when there is no such feature or value is not a finite scalar.
        """
        if isinstance(index, str) and index not in self.equations:
            raise ValueError(f"index must name one of {self.names}, got {index!r}")
        name = index if isinstance(index, str) else self.names[_index(index, self.features)]
        value = _value(value)
        return SCM({**self.equations, name: lambda x, e: value.astype(e.dtype)})

    def _equation(self, name: str, x: Mapping[str, Array], e: Array) -> Array:
        try:
            value = jnp.asarray(self.equations[name](x, e)).astype(e.dtype)
        except KeyError as error:
            raise ValueError(
                f"the equation of {name!r} asks for {error.args[0]!r}; it may ask for those before it: {list(x)}"
            ) from error
        _check.shape(f"the value of {name!r}", value, ())
        return value

    def _root(self, name: str, x: Mapping[str, Array]) -> tuple[Array, Array]:
        """The noise of one equation, by bisection and one Newton step (which carries the
        derivative); is there one?"""
        before = {other: x[other] for other in self.names[: self.names.index(name)]}

        def excess(e: Array) -> Array:
            return self._equation(name, before, e) - x[name]

        bound = jnp.full((), NOISE_BOUND, x[name].dtype)
        lowest, highest = excess(-bound), excess(bound)

        def halve(_, bracket):
            low, high = bracket
            middle = (low + high) / 2
            below = (excess(middle) < 0) == (lowest < highest)
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        halvings = 2 + jnp.finfo(bound.dtype).nmant
        e = jax.lax.stop_gradient(sum(jax.lax.fori_loop(0, halvings, halve, (-bound, bound))) / 2)
        residual, slope = jax.jvp(excess, (e,), (jnp.ones_like(e),))
        root = jnp.where(slope == 0, 0, e - residual / jnp.where(slope == 0, 1, slope))
        return root, (jnp.sign(lowest) != jnp.sign(highest)) | (lowest == highest)


# ------------------------------------------------------------------------------------------- graphs


def causal_order(weights: Float[np.ndarray, "n n"]) -> tuple[int, ...]:
    """The features of a graph from first cause to last effect, ``weights[i, j] != 0`` meaning that
    j acts on i.

    Takes away, again and again, the first feature whose causes are all gone. Raises ValueError
    naming a cycle.
    """
    left, order = list(range(len(weights))), []
    while left:
        free = [i for i in left if not weights[i, left].any()]
        if not free:
            raise ValueError(
                f"weights must be acyclic, got a cycle among features {_cycle(weights, left)}"
            )
        order.append(free[0])
        left.remove(free[0])
    return tuple(order)


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
        weights = weights.at[place].set(effect)
    return LinearSCM(weights, jnp.broadcast_to(noise, (3,)))


# --------------------------------------------------------------- a structural model from a Jacobian


def local_effects(
    rows: Float[ArrayLike, " n *shape"], order: Sequence[int]
) -> tuple[Float[Array, "m m"], Float[Array, " m *shape"]]:
    r"""The local structural model that a Jacobian is, once the causal order of its features is
    known (C7).

    .. math:: J = L\,Q, \qquad L \text{ lower triangular with positive diagonal}, \quad Q Q^\top = I,

    so :math:`L` is the Cholesky factor of :math:`J J^\top` (here by QR, which does not square its
    condition number). :math:`L_{ik}/L_{kk}` is the local effect of ``do(k)`` on i; following
    :math:`Q_k` in the latent moves k and what comes after it, and nothing before. In a linear SCM,
    :math:`L` is its structural map from standard noises.

    ``rows``: one gradient a feature, ``[n, *shape]`` (:func:`cdelta.jacobian.rows`). ``order``:
    feature indices from first cause to last effect; leaving features out leaves them out of the
    model. Returns ``L [m, m]`` and ``Q [m, *shape]``, rows and columns in the given order.

    Raises ValueError when order names a feature twice or one that is not there, there are more
    features than latent dimensions, or a row depends linearly on those before it (a saturated
    feature's row is 0).
    """
    rows = _check.as_float("rows", rows)
    if rows.ndim < 2:
        raise ValueError(f"rows must have shape (features, *latent), got {rows.shape}")
    order = [_index(index, len(rows), "order") for index in np.asarray(order).ravel().tolist()]
    if not order or len(set(order)) < len(order):
        raise ValueError(f"order must name each feature once, got {order}")
    chosen = rows[np.array(order)]
    flat = chosen.reshape(len(order), -1)
    if flat.shape[0] > flat.shape[1]:
        raise ValueError(
            f"rows must not outnumber the latent's dimensions, got {flat.shape[0]} of {flat.shape[1]}"
        )
    _check.finite("rows", flat)

    q, r = jnp.linalg.qr(flat.T)  # Jᵀ = q r, so J = rᵀ qᵀ
    if _check.concrete(flat):
        lengths = np.linalg.norm(np.asarray(flat), axis=1)
        dependent = np.abs(np.diag(np.asarray(r))) <= 10 * np.finfo(flat.dtype).eps * lengths
        # only the first one is sure: those after it were made orthogonal to an arbitrary vector
        if dependent.any():
            bad = order[int(dependent.argmax())]
            raise ValueError(
                f"rows must be linearly independent; feature {bad} adds nothing to those before it"
            )
    signs = jnp.where(jnp.diag(r) < 0, -1, 1).astype(flat.dtype)
    return r.T * signs, (q * signs).T.reshape(chosen.shape)


# ----------------------------------------------------------------------------------------- refusals


def _index(index: Any, n: int, name: str = "index") -> int:
    if isinstance(index, bool) or not isinstance(index, int | np.integer) or not 0 <= index < n:
        raise ValueError(f"{name} must hold feature indices in 0..{n - 1}, got {index!r}")
    return int(index)


def _value(value: ArrayLike) -> Array:
    value = _check.as_float("value", value)
    _check.shape("value", value, ())
    _check.finite("value", value)
    return value


def _cycle(weights: np.ndarray, left: list[int]) -> list[int]:
    """One cycle, cause before effect: each feature left has a cause that is left, so going back
    must meet itself."""
    path = [left[0]]
    while path.count(path[-1]) == 1:
        path.append(next(j for j in left if weights[path[-1], j]))
    return path[path.index(path[-1]) : -1][::-1]
