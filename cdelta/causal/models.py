"""Structural models, linear and of any equations: the map from noises to features, its inverse
(abduction), and one way to intervene in either."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from cdelta import _check
from cdelta._features import by_name
from cdelta._precision import common, one_dtype, working
from cdelta._pytree import as_pytree, pytree, unchecked
from cdelta.causal import _graph
from cdelta.causal.acyclic import causal_order

NOISE_BOUND = 40.0  # abduction looks for noises up to here: no standard normal number is larger

# Where abduction looks at an equation: densest at the likely noises, and at distances that vary, so
# that no period fits them.
_LOOKS = np.sinh(np.linspace(-1, 1, 257) * np.arcsinh(NOISE_BOUND))

Equation = Callable[[Mapping[str, Array], Array], ArrayLike]
Model = TypeVar("Model", bound="_Model")


@pytree
class Shift:
    r"""A soft intervention, :math:`do(x_k := f_k(x, \varepsilon_k) + \delta)`: ``Shift(amount)``
    adds :math:`\delta` to a feature's equation and leaves it its causes and its noise.

    Raises ValueError when the amount is not a finite scalar.
    """

    amount: Float[Array, ""]

    def __init__(self, amount: ArrayLike):
        object.__setattr__(self, "amount", _scalar("amount", amount))


class _Model:
    """What the linear and the nonlinear model share: all follows from the map, the abduction and
    the change of one equation."""

    names: tuple[str, ...] = ()
    features: int

    def sample(self, key: PRNGKeyArray, n: int) -> Float[Array, "n features"]:
        """``n`` independent draws. Raises ValueError when n is not a positive integer."""
        n, key = _check.count("n", n), _check.key("key", key)
        return jax.vmap(self)(jax.random.normal(key, (n, self.features)))

    def jacobian(self, noise: Float[ArrayLike, " features"]) -> Float[Array, "features features"]:
        r"""The exact :math:`\partial x_i / \partial \varepsilon_j` at one noise; lower triangular
        in causal order."""
        return jax.jacfwd(self)(self._noise(noise))

    def do(
        self: Model,
        index: int | str | Mapping[int | str, ArrayLike | Shift | Equation],
        value: ArrayLike | Shift | Equation | None = None,
    ) -> Model:
        r"""The model in which equations are changed: ``do(feature, value)``, or several at once,
        ``do({feature: value, ...})``.

        .. math:: do(x_k := c), \qquad do(x_k := f_k(x, \varepsilon_k) + \delta), \qquad
            do(x_k := g(x_{<k}, \varepsilon_k))

        A feature is named by its index or its name. Its value is a number c, whatever its causes
        and its noise; a :class:`Shift`; or, in an :class:`SCM`, another equation ``g(x, e)``, which
        may use the feature's own noise or not. What is changed may be changed again: a shift is
        added to the equation that is there. Numbers and amounts are leaves of the new model, so
        they can be swept by ``vmap``, differentiated, and compiled once for all.

        Raises ValueError when there is no such feature, one is given twice, a number is not a
        finite scalar, or a :class:`LinearSCM` is given a function.
        """
        model = self
        for feature, change in self._changes(index, value):
            model = model._changed(feature, change)
        return model

    def counterfactual(
        self,
        x: Float[ArrayLike, " features"],
        index: int | str | Mapping[int | str, ArrayLike | Shift | Equation],
        value: ArrayLike | Shift | Equation | None = None,
    ) -> Float[Array, " features"]:
        r"""What ``x`` would have been under ``do(index, value)`` or ``do({...})``, with the noises
        that made it what it was.

        .. math:: x^{cf} = F_{do}(F^{-1}(x))

        Raises ValueError as ``do`` and ``noises`` do.
        """
        return self.do(index, value)(self.noises(x))

    def _changes(self, index: Any, value: Any) -> list[tuple[int, Any]]:
        """Which features change, and to what: a function, a shift, or a number that has been
        checked."""
        several = isinstance(index, Mapping)
        if several == (value is not None):
            raise ValueError(
                "do takes a feature and its value, or one mapping {feature: value, ...},"
                f" got index {index!r} and value {value!r}"
            )
        changes: dict[int, Any] = {}
        for feature, change in index.items() if several else [(index, value)]:
            place = self._place(feature)
            if place in changes:
                raise ValueError(f"index must hold each feature once, got {feature!r} again")
            if not (callable(change) or isinstance(change, Shift)):
                change = self._constant(
                    place, f"value of {feature!r}" if several else "value", change
                )
            changes[place] = change
        return list(changes.items())

    def _constant(self, place: int, name: str, value: Any) -> Array:
        """A value that an intervention sets, checked."""
        return _scalar(name, value)

    def _place(self, feature: Any) -> int:
        if not isinstance(feature, str):
            return _check.index("index", feature, self.features)
        if not self.names:
            raise ValueError(
                f"index must be one of 0, …, {self.features - 1}: this model's features have no"
                f" names, got {feature!r}"
            )
        if feature not in self.names:
            raise ValueError(f"index must name one of {self.names}, got {feature!r}")
        return self.names.index(feature)

    def _noise(self, noise: ArrayLike) -> Array:
        noise = _check.as_float("noise", noise)
        _check.shape("noise", noise, (self.features,), ", one standard normal a feature")
        return noise

    def _features(self, x: ArrayLike) -> Array:
        x = _check.as_float("x", by_name("x", x, self.names))
        _check.shape("x", x, (self.features,), ", one number a feature")
        _check.finite("x", x)
        return x

    def _values(self, chosen: np.ndarray, x: Array) -> dict[int | str, float]:
        """Those of some features, for a message."""
        features = np.flatnonzero(chosen).tolist()
        return {self.names[i] if self.names else i: float(x[i]) for i in features}


@pytree
class LinearSCM(_Model):
    r"""Linear structural model, :math:`x_i = b_i + \sum_j W_{ij} x_j + s_i \varepsilon_i` with
    standard normal noises.

    ``LinearSCM(weights [n, n], noise [n], shift [n] = 0)``: ``weights[i, j]`` is the effect of j on
    i, ``noise[i]`` the standard deviation :math:`s_i`. Features may come in any order as long as no
    effect leads back to its cause; they have no names, only indices (of a data frame the order is
    that of its columns, and its rows are found by name). Half precision is computed in float32 and
    rounded.

    Raises ValueError when shapes disagree, a number is not finite, a noise is not positive, or the
    graph has a cycle (naming its features). Called with a noise ``[n]``, the model gives the
    features ``[n]``.
    """

    weights: Float[Array, "n n"]
    noise: Float[Array, " n"]
    shift: Float[Array, " n"]

    def __init__(self, weights: ArrayLike, noise: ArrayLike, shift: ArrayLike | None = None):
        weights = _check.as_float("weights", _graph.aligned("weights", weights))
        noise = _check.as_float("noise", noise)
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
        dtype = common(weights, noise, shift)
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
    def graph(self) -> Bool[np.ndarray, "n n"]:
        """``graph[i, j]``: j has an effect on i."""
        return np.asarray(self.weights) != 0

    @property
    @one_dtype
    def total_effects(self) -> Float[Array, "n n"]:
        r"""Effect of ``do(j)`` on i along all directed paths,
        :math:`(I - W)^{-1} = I + W + W^2 + \dots`"""
        eye = jnp.eye(self.features, dtype=self.weights.dtype)
        return jnp.linalg.solve(eye - self.weights, eye)

    @property
    @one_dtype
    def structural_map(self) -> Float[Array, "n n"]:
        r"""The map from standard noises to features,
        :math:`(I - W)^{-1} \operatorname{diag}(s)`."""
        return self.total_effects * self.noise

    @property
    @one_dtype
    def mean(self) -> Float[Array, " n"]:
        r""":math:`(I - W)^{-1} b`"""
        return self.total_effects @ self.shift

    @property
    @one_dtype
    def cov(self) -> Float[Array, "n n"]:
        r"""The exact covariance :math:`(I - W)^{-1} \operatorname{diag}(s^2) (I - W)^{-\top}`."""
        return self.structural_map @ self.structural_map.T

    def __call__(self, noise: Float[ArrayLike, " n"]) -> Float[Array, " n"]:
        """The features that these noises make."""
        return _linear_map(self, self._noise(noise))

    def noises(self, x: Float[ArrayLike, " n"]) -> Float[Array, " n"]:
        r"""Abduction, :math:`\varepsilon = s^{-1}(x - W x - b)`; 0 for a feature that an
        intervention has set.

        Raises ValueError when x disagrees with the value that an intervention has set, naming the
        feature; where values are traced (``jit``, ``vmap``), NaN stands for such a noise.
        """
        x = self._features(x)
        noise = _linear_noises(self, x, float(jnp.finfo(x.dtype).eps))
        if _check.concrete(noise) and np.isnan(np.asarray(noise)).any():
            bad = self._values(np.isnan(np.asarray(noise)), x)
            raise ValueError(f"x must agree with the values that interventions have set, got {bad}")
        return noise

    def _changed(self, place: int, change: Any) -> "LinearSCM":
        if isinstance(change, Shift):
            amount = change.amount.astype(self.shift.dtype)
            shift = self.shift.at[place].add(amount)
            return unchecked(LinearSCM, self.weights, self.noise, shift)
        # Not turned into an SCM: that has its features in causal order, and indices would change
        # their meaning.
        if callable(change):
            raise ValueError(
                "value must be a number or a Shift in a LinearSCM, got a function:"
                " write the model as an SCM, which takes any equation"
            )
        return unchecked(
            LinearSCM,
            self.weights.at[place].set(0),
            self.noise.at[place].set(0),
            self.shift.at[place].set(change.astype(self.shift.dtype)),
        )


@one_dtype
def _linear_map(model: LinearSCM, noise: Array) -> Array:
    return model.total_effects @ (model.shift + model.noise * noise)


@one_dtype
def _linear_noises(model: LinearSCM, x: Array, eps: float) -> Array:
    own = x - model.weights @ x - model.shift
    free = model.noise > 0
    # half the digits: what was set may have been stored in less precision, not have changed
    near = jnp.abs(own) <= eps**0.5 * jnp.abs(x)
    kept = jnp.where(near, 0, jnp.nan)
    return jnp.where(free, own / jnp.where(free, model.noise, 1), kept)


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class SCM(_Model):
    r"""Structural model of any equations, :math:`x_i = f_i(x_{<i}, \varepsilon_i)`,
    :math:`\varepsilon \sim N(0, I)`.

    ``SCM(equations)``: a mapping from a feature's name to its equation ``f(x, e)``, in causal
    order; ``x`` holds the features before it by name, ``e`` is its own noise, both scalars. For
    example::

        SCM({"z": lambda x, e: e, "y": lambda x, e: jnp.sin(x["z"]) + 0.5 * e})

    For abduction an equation must be strictly increasing or strictly decreasing in its noise.
    Called with a noise ``[n]``, the model gives the features ``[n]``, differentiably.

    The model is a pytree: its leaves are the numbers that interventions set and the arrays of
    equations that are pytrees themselves (a module, a ``jax.tree_util.Partial``); names and plain
    functions are static. Each equation is compiled once, and again when a variable that it reads
    has changed; a number that varies is better handed over in a ``Partial``, or by ``do``.

    Raises ValueError when there is no equation, a name is not a string, or an equation not a
    function; when called, for an equation that asks for a feature which does not come before it, or
    does not give a scalar, naming it.
    """

    equations: Mapping[str, Equation]

    def __post_init__(self):
        if not self.equations:
            raise ValueError("equations must name at least one feature, got none")
        for name, equation in self.equations.items():
            if not isinstance(name, str) or not callable(equation):
                raise ValueError(
                    f"equations must be functions f(x, e) by name, got {name!r}: {equation!r}"
                )
        object.__setattr__(self, "equations", dict(self.equations))

    def tree_flatten_with_keys(self) -> tuple[tuple, tuple[str, ...]]:
        # not as a dict: a pytree's dict is sorted by name, and the order here is the causal one
        keys = map(jax.tree_util.DictKey, self.names)
        equations = map(as_pytree, self.equations.values())
        return tuple(zip(keys, equations, strict=True)), self.names

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], equations: Iterable) -> "SCM":
        return unchecked(cls, dict(zip(names, equations, strict=True)))

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

    @property
    def graph(self) -> Bool[np.ndarray, "n n"]:
        """``graph[i, j]``: feature j enters the equation of i, as after the interventions made."""
        parents = np.zeros((self.features, self.features), bool)
        for i, (name, equation) in enumerate(self.equations.items()):
            before = dict.fromkeys(self.names[:i], jnp.zeros(()))
            with _asking(name, before):
                parents[i, :i] = _enters(as_pytree(equation), before)
        return parents

    def __call__(self, noise: Float[ArrayLike, " n"]) -> Float[Array, " n"]:
        """The features that these noises make."""
        noise = self._noise(noise)
        x: dict[str, Array] = {}
        for name, e in zip(self.equations, noise, strict=True):
            x[name] = self._equation(name, x, e)
        return jnp.stack(list(x.values()))

    def noises(self, x: Float[ArrayLike, " n"]) -> Float[Array, " n"]:
        r"""Abduction: the noises that make ``x``, each the root of
        :math:`f_i(x_{<i}, \varepsilon_i) = x_i` in :math:`|\varepsilon_i| \le` ``NOISE_BOUND``.

        0 for a feature whose equation does not depend on its noise, as after an intervention. An
        equation need not be defined (it may give NaN) below some noise or above another. Half
        precision is computed in float32 and rounded.

        Raises ValueError, naming the features, when an equation cannot have the value given, or has
        it for more than one noise: it must be strictly increasing or strictly decreasing, as far as
        looking at 257 noises tells. Where values are traced (``jit``, ``vmap``, ``grad``), NaN
        stands for such a noise.
        """
        x = self._features(x)
        wide, eps = x.astype(working(x.dtype)), float(jnp.finfo(x.dtype).eps)
        found, before = [], {}
        for name, value in zip(self.names, wide, strict=True):
            with _asking(name, before):
                found.append(_abduct(as_pytree(self.equations[name]), dict(before), value, eps))
            before[name] = value
        noise, monotone, attained = map(jnp.stack, zip(*found, strict=True))
        if _check.concrete(monotone, attained):
            self._refuse(np.asarray(monotone), np.asarray(attained), x)
        return jnp.where(monotone & attained, noise, jnp.nan).astype(x.dtype)

    def _refuse(self, monotone: np.ndarray, attained: np.ndarray, x: Array) -> None:
        if not monotone.all():
            bad = self._values(~monotone, x)
            raise ValueError(
                "equations must be strictly increasing or strictly decreasing in their noise"
                f" for abduction, but more than one noise may give {bad}"
            )
        if not attained.all():
            bad = self._values(~attained, x)
            fixed = [name for name in bad if _is_constant(self.equations[name])]
            if fixed:
                raise ValueError(
                    "x must agree with the values that interventions have set,"
                    f" got { ({name: bad[name] for name in fixed}) }"
                )
            raise ValueError(
                "x must hold values that the equations can take, with noises below"
                f" {NOISE_BOUND:g}, got {bad}"
            )

    def _changed(self, place: int, change: Any) -> "SCM":
        name = self.names[place]
        if isinstance(change, Shift):
            equation = Partial(_shifted, self.equations[name], change.amount)
        elif callable(change):
            equation = change
        else:
            equation = Partial(_constant, change)
        return SCM({**self.equations, name: equation})

    def _equation(self, name: str, x: Mapping[str, Array], e: Array) -> Array:
        with _asking(name, x):
            value = _evaluate(as_pytree(self.equations[name]), dict(x), e)
        _check.shape(f"the value of {name!r}", value, ())
        return value


@jax.jit
def _evaluate(equation: Equation, x: Mapping[str, Array], e: Array) -> Array:
    """Compiled one equation at a time, not one model: another intervention keeps the others."""
    return jnp.asarray(equation(_Before(x), e)).astype(e.dtype)


class _NoSuchFeature(KeyError):
    """An equation asks for a feature that does not come before it."""


class _Before(dict):
    """The features before an equation's: a KeyError of the equation's own is not taken for one of
    these. A pytree as any dict, for equations that JAX's transformations are in."""

    def __missing__(self, name: Any) -> Array:
        raise _NoSuchFeature(name)


jax.tree_util.register_pytree_with_keys(
    _Before,
    lambda x: (tuple((jax.tree_util.DictKey(name), value) for name, value in x.items()), tuple(x)),
    lambda names, values: _Before(zip(names, values, strict=True)),
)


def _enters(equation: Equation, before: Mapping[str, Array]) -> list[bool]:
    """Which of the features before an equation its value is computed from."""
    values = list(before.values())

    def of_values(e: Array, *values: Array) -> Array:
        return jnp.asarray(equation(_Before(zip(before, values, strict=True)), e))

    jaxpr = jax.make_jaxpr(of_values)(jnp.zeros(()), *values).jaxpr
    # also through the programs inside, as of an equation that is jitted
    return dce_jaxpr(jaxpr, [True])[1][1:]


@contextlib.contextmanager
def _asking(name: str, before: Mapping[str, Array]) -> Iterator[None]:
    """Say which equation asks for a feature that it may not ask for."""
    try:
        yield
    except _NoSuchFeature as error:
        raise ValueError(
            f"the equation of {name!r} asks for {error.args[0]!r};"
            f" it may ask for those before it: {list(before)}"
        ) from error


def _is_constant(equation: Any) -> bool:
    return isinstance(equation, Partial) and equation.func is _constant


def _constant(value: Array, x: Mapping[str, Array], e: Array) -> Array:
    return value


def _shifted(equation: Equation, amount: Array, x: Mapping[str, Array], e: Array) -> Array:
    return jnp.asarray(equation(x, e)).astype(e.dtype) + amount.astype(e.dtype)


# ---------------------------------------------------------------------------------------- abduction


def _abduct(
    equation: Equation, before: Mapping[str, Array], x: Array, eps: float
) -> tuple[Array, Array, Array]:
    """The noise at which an equation has the value ``x``, with its derivative; is it the only one;
    is there one?"""
    known = jax.lax.stop_gradient((equation, before, x))
    root, constant, monotone, attained = _search(*known, eps)
    return _implicit(equation, before, x, root, constant), monotone, attained


@jax.custom_jvp
def _implicit(
    equation: Equation, before: Mapping[str, Array], x: Array, root: Array, constant: Array
) -> Array:
    r"""The root as a function of all that made it: with :math:`f(\theta, \varepsilon) = x`,
    :math:`d\varepsilon = (dx - \partial_\theta f\, d\theta) / \partial_\varepsilon f`; 0 for a
    constant equation."""
    return root


@_implicit.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    made_by, constant, root = primals[:3], primals[4], _implicit(*primals)

    def excess(equation: Equation, before: Mapping[str, Array], x: Array, e: Array) -> Array:
        return _evaluate(equation, before, e) - x

    _, moved = jax.jvp(lambda *made_by: excess(*made_by, root), made_by, tangents[:3])
    _, slope = jax.jvp(lambda e: excess(*made_by, e), (root,), (jnp.ones_like(root),))
    return root, jnp.where(constant, 0, -moved / jnp.where(constant, 1, slope))


@jax.jit
def _search(
    equation: Equation, before: Mapping[str, Array], x: Array, eps: ArrayLike
) -> tuple[Array, Array, Array, Array]:
    r"""The noise at which an equation has the value ``x``; is the equation constant in its noise;
    does it rise or fall strictly, as far as can be seen; does it give ``x`` back?

    It is taken to be defined between any two noises at which it is. ``eps`` is of the precision
    that ``x`` came in.
    """
    info = jnp.finfo(x.dtype)
    looks = jnp.asarray(_LOOKS, x.dtype)

    def of(e: Array) -> Array:
        return _evaluate(equation, before, e)

    values = jax.vmap(of)(looks)
    undefined = jnp.isnan(values)
    inside = jnp.mean(looks, where=~undefined)
    extremes = jnp.where(undefined, -jnp.inf, jnp.stack([-values, values])).max(1)
    size = jnp.abs(extremes).min()
    constant = (extremes.sum() <= 4 * info.eps * size) & jnp.isfinite(size)

    # A step counts when it exceeds what rounding inside an equation may do. Its smaller end is the
    # measure: at a pole the larger one is infinite.
    step, sizes = jnp.diff(values), jnp.abs(values)
    least = 64 * info.eps * (jnp.minimum(sizes[1:], sizes[:-1]) + jnp.abs(x))
    rises, falls = jnp.stack([step > least, step < -least]).any(1)
    rising = jnp.nansum(jnp.sign(step)) > 0

    def halve(_, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        value = jax.vmap(of)(middle)
        above = jnp.where(rising, value - x, x - value)
        left = jnp.where(jnp.isnan(value), middle < inside, (above < 0) | (above == 0) & to_last)
        return jnp.where(left, middle, low), jnp.where(left, high, middle)

    # The first and the last noise that give x: apart by rounding, or by a flat piece; down to the
    # spacing of numbers at 1/4.
    to_last, bound = jnp.array([False, True]), jnp.full(2, NOISE_BOUND, x.dtype)
    low, high = jax.lax.fori_loop(0, 8 + info.nmant, halve, (-bound, bound))
    first, last = (low + high) / 2
    root = jnp.where(constant, 0, (first + last) / 2)
    flat = (last - first > 1 / 4) & ~constant

    # It must give x back to rounding, of its own and of each cause, and to what half the noise's
    # digits move the equation: beside the root, not across it, where it may jump. A constant has
    # half the digits of its value.
    offsets = jnp.array([-2, -1, 1, 2], x.dtype)
    beside = jax.vmap(of)(root + offsets * eps**0.5 * jnp.maximum(1, jnp.abs(root)))
    half = jnp.where(constant, info.eps**0.5 * jnp.abs(x), jnp.nanmax(_moved(beside)))
    value, rounding = of(root), _rounding_of_causes(equation, before, root, 8 * eps * offsets)
    near = jnp.abs(value - x) <= 8 * eps * (jnp.abs(x) + jnp.abs(value)) + rounding + half
    within = jnp.abs(root) < NOISE_BOUND * (1 - 4 * info.eps)
    return root, constant, ~(rises & falls | flat), near & within


def _moved(beside: Float[Array, "4 ..."]) -> Float[Array, "2 ..."]:
    """How far an equation moves on either side of a place, from two values on each."""
    return jnp.abs(jnp.stack([beside[1] - beside[0], beside[3] - beside[2]]))


def _rounding_of_causes(
    equation: Equation, before: Mapping[str, Array], e: Array, offsets: Float[Array, "4"]
) -> Array:
    """How far rounding of the features before it moves an equation: each by these relative offsets,
    the movements added; 0 of one that it does not depend on, however large."""
    if not before:
        return jnp.zeros_like(e)
    causes = jnp.stack(list(before.values()))
    moved = causes * (1 + offsets[:, None, None] * jnp.eye(len(causes), dtype=e.dtype))

    def of(causes: Array) -> Array:
        return _evaluate(equation, dict(zip(before, causes, strict=True)), e)

    return jnp.nansum(jnp.nanmax(_moved(jax.vmap(jax.vmap(of))(moved)), 0))


def _scalar(name: str, value: Any) -> Float[Array, ""]:
    value = _check.as_float(name, value)
    _check.shape(name, value, (), "; several are swept by jax.vmap")
    _check.finite(name, value)
    # a Python number's weak type would be another type to jit
    return value.astype(value.dtype)
