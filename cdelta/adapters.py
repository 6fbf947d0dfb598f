r"""What others' models are, as a velocity :math:`v(t, x)` of one sample, from noise at t = 0 to
data at t = 1.

**Conventions.** Other code has a batch axis, the time last, images with channels first, labels,
noise at t = 1. :func:`batched`, :func:`time_last`, :func:`nchw`, :func:`labelled` and
:func:`reversed_time` each change one of these, and nest. All of them hand further arguments
(labels, conditions) through; what is closest to the model is written innermost::

    velocity = labelled(batched(time_last(model)), 3)     # a model(x, t, label) of batches

Roles that are swapped cannot be seen where shapes broadcast, but parameters that are called so can:
all of these, and :class:`cdelta.Flow`, refuse an (x, t) where they would call (t, x), and
:func:`time_last` a (t, x).

**Diffusion models** predict the noise, the clean data, or a score, of a point that is scaled and
timed by a schedule: :func:`from_epsilon`, :func:`from_x0`, :func:`from_score`,
:func:`from_denoiser`, :func:`from_v_prediction`. All rest on one change of variables. With the
clean data :math:`x_0` and the noise :math:`\epsilon \sim N(0, I)` of diffusion's notation,

.. math:: \tilde x = \alpha x_0 + \sigma \epsilon = (\alpha + \sigma)\,
          \bigl[t\, x_0 + (1 - t)\, \epsilon\bigr], \qquad t = \frac{\alpha}{\alpha + \sigma} ,

so a point of the straight path, times :math:`\alpha + \sigma`, is a point of the schedule, at the
time s where :math:`\alpha(s) / (\alpha(s) + \sigma(s)) = t`. Nothing is divided by t or 1 - t. A
:class:`Schedule` is these two functions of t. As :math:`x = t\, E[x_0 | x] + (1 - t)\, E[\epsilon |
x]`, one of the two expectations gives the other, and the velocity is :math:`v(t, x) = E[x_0 -
\epsilon | x_t = x]`.

What these functions return are pytrees: their leaves are the arrays of the model, of the schedule
and of the label. They work under ``jit``, ``vmap``, ``grad`` and ``jvp``, and in
:class:`cdelta.Flow`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Shaped

from cdelta import _check, _precision, _roles
from cdelta._pytree import Traceable, as_pytree, pytree

Model = Callable[..., Any]
Scalar = Shaped[ArrayLike, ""]

_adapter = functools.partial(pytree, repr=False)


def _callable(name: str, value: Any) -> Traceable:
    if not callable(value):
        raise ValueError(f"{name} must be a function, got {type(value).__name__}")
    return as_pytree(value)


def _timed(adapter: str, v: Any) -> Traceable:
    """A v that the adapter calls with the time first, refused where its names say (x, t)."""
    whole = _callable("v", v)
    _roles.refuse_state_first("v", v, f"pass {adapter}(time_last(v))")
    return whole


def _set(instance: Any, **parts: Any) -> None:
    """Fields of a frozen dataclass, in its ``__post_init__``."""
    for name, part in parts.items():
        object.__setattr__(instance, name, part)


# ------------------------------------------------------------------------------------- conventions


@_adapter
class _Batched:
    velocity: Model

    def __post_init__(self) -> None:
        _set(self, velocity=_timed("batched", self.velocity))

    def __call__(self, t: Scalar, x: Float[ArrayLike, "*shape"], *conditions: Any) -> Array:
        x = _check.as_float("x", x)
        t, one = jnp.asarray(t), x[None]
        _check.shape("t", t, (), "; batch with jax.vmap")
        conditions = jax.tree.map(lambda part: jnp.asarray(part)[None], conditions)
        failures = []
        # of a batch of one all of these have the same value, wherever the velocity takes them
        for shape in ((1,), (), (1, 1)):
            time = t.reshape(shape)
            try:
                out = jax.eval_shape(lambda *a: self.velocity(*a), time, one, *conditions)
            except Exception as error:
                failures.append((shape, error))
                continue
            if isinstance(out, jax.ShapeDtypeStruct) and out.shape == one.shape:
                return self.velocity(time, one, *conditions)[0]
            got = out.shape if isinstance(out, jax.ShapeDtypeStruct) else type(out).__name__
            failures.append((shape, ValueError(f"it returned {got}")))
        told = "; ".join(
            f"t {list(shape)}: {type(error).__name__}: {_first_line(error)}"
            for shape, error in failures
        )
        raise ValueError(
            f"v must take a batch of x, here {list(one.shape)}, with a time for it, and return x's "
            f"shape: called (t, x) it did not. {told}. Does it take (x, t)? batched(time_last(v))"
        ) from failures[0][1]


def batched(v: Model) -> Callable:
    r"""A velocity that takes a batch, as one of a single sample.

    .. math:: (t, x) \mapsto v([t], [x])_0

    ``v(t, x, *conditions)`` takes x ``[B, *shape]``; t may be one time for each sample ``[B]``, one
    for all (a scalar), or a column ``[B, 1]``: the first of them that works is used. Conditions get
    a batch axis as well. ``jax.vmap`` of the result gives v batches of one, side by side, which XLA
    computes as one batch.

    Raises ValueError, when it is called, for a v that takes none of these.
    """
    return _Batched(v)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0][:200]


@_adapter
class _TimeLast:
    velocity: Model

    def __post_init__(self) -> None:
        velocity = _callable("v", self.velocity)
        _roles.refuse_time_first("v", self.velocity, "leave time_last out")
        _set(self, velocity=velocity)

    def __call__(self, t: Any, x: Any, *conditions: Any) -> Any:
        return self.velocity(x, t, *conditions)


def time_last(v: Model) -> Callable:
    r"""A velocity of (x, t) as one of (t, x).

    .. math:: (t, x) \mapsto v(x, t)

    Shapes: as v's. Conditions after them are handed through.
    """
    return _TimeLast(v)


@_adapter
class _Labelled:
    velocity: Model
    label: Any
    guidance: Any
    null: Any

    def __post_init__(self) -> None:
        parts = {"label": _numbers("label", self.label), "null": _numbers("null", self.null)}
        if (self.guidance is None) != (self.null is None):
            raise ValueError(
                "guidance needs both numbers: guidance, its strength, and null, the label that "
                f"stands for no label; got guidance={self.guidance!r}, null={self.null!r}"
            )
        if self.null is not None:
            looks = [
                (jax.tree.structure(part), [jnp.shape(leaf) for leaf in jax.tree.leaves(part)])
                for part in parts.values()
            ]
            if looks[0] != looks[1]:
                raise ValueError(
                    f"null must have the label's shape, got {looks[1][1]} and {looks[0][1]}"
                )
            parts["guidance"] = _check.as_float("guidance", self.guidance)
            _check.shape("guidance", parts["guidance"], ())
        _set(self, velocity=_timed("labelled", self.velocity), **parts)

    def __call__(self, t: Any, x: Any) -> Any:
        conditioned = self.velocity(t, x, self.label)
        if self.null is None:
            return conditioned
        free = self.velocity(t, x, self.null)
        return free + self.guidance.astype(free.dtype) * (conditioned - free)


def _numbers(name: str, label: Any) -> Any:
    """A label as arrays: leaves that are traced."""
    try:
        return jax.tree.map(jnp.asarray, label)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must hold numbers or arrays, got {label!r}: give the embedding of a text"
        ) from error


def labelled(
    v: Model,
    label: Any,
    guidance: Scalar | None = None,
    null: Any = None,
) -> Callable:
    r"""The velocity of one label, of a ``v(t, x, label)``; with ``guidance``, classifier-free.

    .. math:: v(t, x, \varnothing) + g\,\bigl[v(t, x, \ell) - v(t, x, \varnothing)\bigr]

    ``label`` is a number, an array or any tree of them; ``null`` is what v was trained with in
    place of a label, and ``guidance`` is g (1 gives the label's own velocity, 0 that of no label).
    Label and strength are leaves: a :class:`cdelta.Flow` of another label uses the same compiled
    program, and an estimator does when the label reaches it as a leaf: given the flow itself, or
    ``jax.tree_util.Partial(features, flow)`` with ``features(flow, x0)``, not a ``lambda`` that
    closes over the flow. With g ≠ 1 the result is not the velocity of any known law.

    Raises ValueError for a label that holds no numbers, and for guidance without null or null
    without guidance.
    """
    return _Labelled(v, label, guidance, null)


@_adapter
class _ReversedTime:
    velocity: Model

    def __post_init__(self) -> None:
        _set(self, velocity=_timed("reversed_time", self.velocity))

    def __call__(self, t: Scalar, x: Any, *conditions: Any) -> Any:
        return -self.velocity(1 - _check.time(t), x, *conditions)


def reversed_time(v: Model) -> Callable:
    r"""A velocity that goes from data at t = 0 to noise at t = 1, as one from noise to data.

    .. math:: (t, x) \mapsto -v(1 - t, x)

    since :math:`\frac{d}{dt} x_{1-t} = -\dot x_{1-t}`. This is the convention of most rectified
    flows for images, whose v estimates the noise minus the data. Shapes: as v's.
    """
    return _ReversedTime(v)


@_adapter
class _ChannelsMoved:
    velocity: Model

    def __post_init__(self) -> None:
        _set(self, velocity=_timed(self._name, self.velocity))

    def __call__(self, t: Any, x: Float[ArrayLike, "*shape"], *conditions: Any) -> Array:
        x = _check.as_float("x", x)
        if x.ndim not in (2, 3):
            raise ValueError(
                f"x must be one image, of two or three axes, got shape {x.shape}; a velocity of "
                f"batches goes inside: {self._name}(batched(v))"
            )
        image = x[..., None] if x.ndim == 2 and self._from == -1 else x
        image = image[None] if x.ndim == 2 and self._from == -3 else image
        image = jnp.moveaxis(image, self._from, self._to)
        out = self.velocity(t, image, *conditions)
        if getattr(out, "shape", None) != image.shape:
            raise ValueError(
                f"v must return an image of the shape {image.shape} that it was given, got "
                f"{getattr(out, 'shape', type(out).__name__)}"
            )
        return jnp.moveaxis(out, self._to, self._from).reshape(x.shape)


class _ChannelsFirst(_ChannelsMoved):
    _name, _from, _to = "nchw", -1, -3


class _ChannelsLast(_ChannelsMoved):
    _name, _from, _to = "nhwc", -3, -1


for _kind in (_ChannelsFirst, _ChannelsLast):  # a subclass is a pytree of its own
    _adapter(_kind)


def nchw(v: Model) -> Callable:
    r"""A velocity of images with channels first ``[C, H, W]``, as one of channels last.

    Shapes: the result takes ``[H, W, C]``, or ``[H, W]`` where C = 1. A model of batches ``[N, C,
    H, W]`` is ``nchw(batched(v))``. Raises ValueError for an x of another number of axes.
    """
    return _ChannelsFirst(v)


def nhwc(v: Model) -> Callable:
    r"""A velocity of images with channels last ``[H, W, C]``, as one of channels first.

    Shapes: the result takes ``[C, H, W]``, or ``[H, W]`` where C = 1. A model of batches ``[N, H,
    W, C]`` is ``nhwc(batched(v))``. Raises ValueError for an x of another number of axes.
    """
    return _ChannelsLast(v)


# --------------------------------------------------------------------------------------- schedules


@_adapter
class Schedule:
    r"""A noise schedule :math:`\tilde x = \alpha(s) x_0 + \sigma(s) \epsilon`, as two functions of
    the flow's time :math:`t = \alpha / (\alpha + \sigma)`.

    ``time(t)`` is the schedule's own time s there, what the model is given; ``scale(t)`` is
    :math:`\alpha + \sigma`. ``first`` and ``last`` are the t of its noisiest and its cleanest
    level; beyond them the velocity keeps the value that it has there. So :math:`\alpha` is ``t *
    scale(t)`` and :math:`\sigma` is ``(1 - t) * scale(t)``. Ready ones: :func:`rectified`,
    :func:`variance_preserving`, :func:`variance_exploding`, :func:`edm`, :func:`ddpm`,
    :func:`continuous`.

    Raises ValueError unless 0 ≤ ``first`` < ``last`` ≤ 1.
    """

    time: Callable[[Array], Array]
    scale: Callable[[Array], Array]
    first: Any = 0.0
    last: Any = 1.0

    def __post_init__(self) -> None:
        _set(
            self,
            time=_callable("time", self.time),
            scale=_callable("scale", self.scale),
            first=_check.as_float("first", self.first),
            last=_check.as_float("last", self.last),
        )
        if _check.concrete(self.first, self.last) and not 0 <= self.first < self.last <= 1:
            raise ValueError(
                "first and last must be times with 0 <= first < last <= 1, got "
                f"{float(self.first):g} and {float(self.last):g}"
            )


def _times_of(ratio: Any) -> Any:
    """The t at which :math:`\\sigma / \\alpha = (1 - t)/t` has this value."""
    return 1 / (1 + ratio)


def _one(t: Array) -> Array:
    return jnp.ones_like(t)


def _preserving(t: Array) -> Array:
    """α + σ where α² + σ² = 1."""
    return 1 / jnp.hypot(t, 1 - t)


def _exploding(t: Array) -> Array:
    """α + σ where α = 1."""
    return 1 / t


def _complement(t: Array) -> Array:
    return 1 - t


def rectified() -> Schedule:
    r"""Rectified flow with the noise at s = 1: :math:`\alpha = 1 - s`, :math:`\sigma = s`."""
    return Schedule(_complement, _one)


def _vp_time(low: Array, high: Array, t: Array) -> Array:
    low, high = low.astype(t.dtype), high.astype(t.dtype)
    # ∫ β = -2 log α, a quadratic in s; its root without a difference of like numbers
    area = jnp.log1p(((1 - t) / t) ** 2)
    return 2 * area / (low + jnp.sqrt(low**2 + 2 * (high - low) * area))


def variance_preserving(beta_min: Scalar = 0.1, beta_max: Scalar = 20.0) -> Schedule:
    r"""The variance-preserving diffusion with a linear rate, s from 0 (data) to 1 (noise).

    .. math:: \alpha(s) = \exp\Bigl(-\tfrac12 \int_0^s \beta\Bigr), \qquad
              \beta(s) = \beta_{\min} + s\,(\beta_{\max} - \beta_{\min}), \qquad
              \sigma^2 = 1 - \alpha^2

    Song et al., ICLR 2021. With the usual rates α(1) = .0066, so ``first`` is .0065: the noisiest
    level is not quite noise. Raises ValueError for rates that are not positive.
    """
    low, high = _check.as_float("beta_min", beta_min), _check.as_float("beta_max", beta_max)
    if _check.concrete(low, high) and not (low > 0 and high > 0):
        raise ValueError(
            f"beta_min and beta_max must be positive, got {float(low):g} and {float(high):g}"
        )
    ratio = jnp.sqrt(jnp.expm1((low + high) / 2))
    return Schedule(Partial(_vp_time, low, high), _preserving, first=_times_of(ratio))


def _log_time(low: Array, high: Array, t: Array) -> Array:
    low, high = low.astype(t.dtype), high.astype(t.dtype)
    return jnp.log((1 - t) / t / low) / jnp.log(high / low)


def variance_exploding(sigma_min: Scalar = 0.01, sigma_max: Scalar = 50.0) -> Schedule:
    r"""The variance-exploding diffusion, s from 0 (data) to 1 (noise).

    .. math:: \alpha = 1, \qquad \sigma(s) = \sigma_{\min} (\sigma_{\max} / \sigma_{\min})^s

    Song et al., ICLR 2021. A model that is given σ itself as its time has the schedule
    :func:`edm`. Raises ValueError unless 0 < ``sigma_min`` < ``sigma_max``.
    """
    low, high = _levels(sigma_min, sigma_max)
    return Schedule(Partial(_log_time, low, high), _exploding, _times_of(high), _times_of(low))


def _sigma_time(t: Array) -> Array:
    return (1 - t) / t


def edm(sigma_min: Scalar = 0.002, sigma_max: Scalar = 80.0) -> Schedule:
    r"""EDM's: :math:`\alpha = 1`, and the noise level is the time, :math:`\sigma = s`.

    Karras et al., NeurIPS 2022; the limits are those that they sample between. Raises ValueError
    unless 0 < ``sigma_min`` < ``sigma_max``.
    """
    low, high = _levels(sigma_min, sigma_max)
    return Schedule(_sigma_time, _exploding, _times_of(high), _times_of(low))


def _levels(sigma_min: Any, sigma_max: Any) -> tuple[Array, Array]:
    low, high = _check.as_float("sigma_min", sigma_min), _check.as_float("sigma_max", sigma_max)
    if _check.concrete(low, high) and not 0 < low < high < jnp.inf:
        raise ValueError(
            "sigma_min and sigma_max must be noise levels with 0 < sigma_min < sigma_max, got "
            f"{float(low):g} and {float(high):g}"
        )
    return low, high


def _step_time(noise: Array, t: Array) -> Array:
    steps = jnp.arange(len(noise), dtype=t.dtype)
    return jnp.interp(jnp.log1p(-t) - jnp.log(t), noise.astype(t.dtype), steps)


def _nearest_step(noise: Array, t: Array) -> Array:
    return jnp.round(_step_time(noise, t))


def ddpm(alphas_cumprod: Float[ArrayLike, " steps"], nearest: bool = False) -> Schedule:
    r"""The steps k = 0, 1, … of a discrete diffusion, given its :math:`\bar\alpha_k`.

    .. math:: \alpha_k = \sqrt{\bar\alpha_k}, \qquad \sigma_k = \sqrt{1 - \bar\alpha_k}

    Ho et al., NeurIPS 2020; the array is called ``alphas_cumprod`` in most code. Between two steps
    the model is given a **fractional** k, linear in log(σ/α): exact at the steps, in between what a
    network with a smooth embedding of k makes of it. ``nearest`` rounds k, for a model that knows
    whole steps alone (a table): the velocity then jumps in t, and is off by as much as half a step.
    Beyond step 0 and the last one the velocity keeps its value: with the usual rates these are t =
    .99 and .0063.

    Raises ValueError unless the numbers lie inside (0, 1) and fall strictly.
    """
    if not _check.concrete(alphas_cumprod):
        raise ValueError("alphas_cumprod is traced: a schedule is made before anything is compiled")
    kept = np.asarray(alphas_cumprod, np.float64)
    if kept.ndim != 1 or kept.size < 2:
        raise ValueError(f"alphas_cumprod must be a vector of steps, got shape {kept.shape}")
    if not ((kept > 0) & (kept < 1)).all():
        raise ValueError(
            f"alphas_cumprod must lie inside (0, 1), got values from {kept.min():g} to "
            f"{kept.max():g}; leave out a first step without noise and a last one without data"
        )
    if not (np.diff(kept) < 0).all():
        step = int(np.argmin(np.diff(kept) < 0)) + 1
        raise ValueError(
            f"alphas_cumprod must fall strictly, got {kept[step - 1]:g}, {kept[step]:g} at step "
            f"{step}; of the rates beta it is jnp.cumprod(1 - beta)"
        )
    noise = (np.log1p(-kept) - np.log(kept)) / 2  # log σ/α, rising
    first, last = 1 / (1 + np.exp(noise[-1])), 1 / (1 + np.exp(noise[0]))
    time = _nearest_step if nearest else _step_time
    return Schedule(Partial(time, jnp.asarray(noise)), _preserving, first, last)


@_adapter
class _NotNegative:
    """A rounding below zero is zero; the derivative stays."""

    function: Model

    def __call__(self, s: Array) -> Array:
        value = self.function(s)
        return value + jax.lax.stop_gradient(jnp.maximum(-value, 0))


@_adapter
class _Inverse:
    """The s at which α/(α + σ) is t, and α + σ there."""

    alpha: Model
    sigma: Model
    span: Any  # s of the data, s of the noise

    def __call__(self, t: Array) -> Array:
        # a root of h(s) = tσ - (1 - t)α, which is finite where σ/α is not: negative at the data
        fixed = jax.lax.stop_gradient(t)
        span = jnp.asarray(self.span, t.dtype)

        def halve(_, ends):
            middle = (ends[0] + ends[1]) / 2
            clean = self._height(fixed, middle) < 0
            return jnp.where(clean, middle, ends[0]), jnp.where(clean, ends[1], middle)

        halvings = jnp.finfo(t.dtype).nmant + 8
        low, high = jax.lax.fori_loop(0, halvings, halve, (span[0], span[1]))
        s = jax.lax.stop_gradient((low + high) / 2)
        # a step of Newton's, whose derivative in t is that of the root
        slope = jax.lax.stop_gradient(jax.grad(self._height, 1)(fixed, s))
        step = self._height(t, s) / jnp.where(slope == 0, 1, slope)
        usable = jnp.isfinite(step) & (slope != 0)
        near, far = jnp.minimum(span[0], span[1]), jnp.maximum(span[0], span[1])
        return jnp.clip(s - jnp.where(usable, step, 0), near, far)

    def _height(self, t: Array, s: Array) -> Array:
        return t * self.sigma(s) - (1 - t) * self.alpha(s)


@_adapter
class _ScaleAt:
    inverse: _Inverse

    def __call__(self, t: Array) -> Array:
        s = self.inverse(t)
        return self.inverse.alpha(s) + self.inverse.sigma(s)


def continuous(
    alpha: Callable[[Array], Array],
    sigma: Callable[[Array], Array],
    span: tuple[Scalar, Scalar] = (0.0, 1.0),
) -> Schedule:
    r"""Any schedule that is given as two functions of its time, α(s) and σ(s).

    ``span`` is where s begins and ends; which end is the noise follows from the functions. The s of
    a t is found by halving, to the last bits. Both functions take and return a scalar of jax, and
    must be differentiable for derivatives of the velocity in t.

    Raises ValueError for a negative α or σ, both zero at one s, or a ratio σ/α that does not rise
    or fall strictly over ``span``; it is looked at in 1001 places.
    """
    alpha, sigma = _callable("alpha", alpha), _callable("sigma", sigma)
    start, end = (float(side) for side in span)
    if not (np.isfinite([start, end]).all() and start != end):
        raise ValueError(f"span must be two different numbers, got {span}")
    places = jnp.linspace(start, end, 1001)
    kept, noise = _along("alpha", alpha, places), _along("sigma", sigma, places)
    for name, values in (("alpha", kept), ("sigma", noise)):
        # cos(π/2) is a rounding below zero in single precision
        fine = np.isfinite(values)
        fine &= values >= -8 * jnp.finfo(places.dtype).eps * np.abs(values[fine]).max(initial=0)
        if not fine.all():
            bad = float(places[np.argmin(fine)])
            raise ValueError(f"{name} must be finite and not negative, it is not at s = {bad:g}")
    kept, noise = np.maximum(kept, 0), np.maximum(noise, 0)
    if not (kept + noise > 0).all():
        raise ValueError("alpha and sigma must not both be zero at one s")
    times = kept / (kept + noise)
    rises = np.diff(times) > 0
    if not (rises.all() or (np.diff(times) < 0).all()):
        place = float(places[np.argmax(rises != rises[0])])
        raise ValueError(
            f"the schedule must be monotone: sigma/alpha does not rise (or fall) strictly over "
            f"span = ({start:g}, {end:g}), near s = {place:g}"
        )
    ends = (end, start) if rises[0] else (start, end)  # data first
    inverse = _Inverse(_NotNegative(alpha), _NotNegative(sigma), jnp.asarray(ends))
    return Schedule(inverse, _ScaleAt(inverse), min(times[0], times[-1]), max(times[0], times[-1]))


def _along(name: str, f: Callable, places: Float[Array, " n"]) -> Float[np.ndarray, " n"]:
    """A scalar function at each of many places."""
    try:
        values = jax.vmap(f)(places)
    except (TypeError, jax.errors.JAXTypeError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(
            f"{name} must be a function of one scalar of jax, such as jnp.cos (not np.cos or "
            f"math.cos): {first}"
        ) from error
    if jnp.shape(values) != places.shape:
        raise ValueError(
            f"{name} must return a scalar for a scalar, got shape {jnp.shape(values)[1:]}"
        )
    return np.asarray(values, np.float64)


def _schedule(value: Any) -> Schedule:
    """A schedule as it is, from ᾱ of the steps, or from a pair of functions."""
    if isinstance(value, Schedule):
        return value
    if isinstance(value, tuple) and len(value) == 2 and all(map(callable, value)):
        return continuous(*value)
    if isinstance(value, np.ndarray | jax.Array | list | tuple):
        return ddpm(value)
    raise ValueError(
        "schedule must be a Schedule such as adapters.edm(), the vector alphas_cumprod, or two "
        f"functions (alpha, sigma), got {type(value).__name__}"
    )


# -------------------------------------------------------------------------------- diffusion models


def _time_first(model: Any) -> Any:
    """A model whose parameters are called (x, t) or so, as one of (t, x)."""
    return time_last(model) if len(_roles.state_first(model, vague=True)) == 2 else model


@_adapter
class _Converted:
    """The velocity of a model that predicts something else, by ``_velocity``."""

    model: Model
    schedule: Any
    first: Any
    last: Any

    def __post_init__(self) -> None:
        first, last = (_check.as_float(name, getattr(self, name)) for name in ("first", "last"))
        if _check.concrete(first, last) and not 0 <= first < last <= 1:
            raise ValueError(
                f"first and last must be times with 0 <= first < last <= 1, got {float(first):g} "
                f"and {float(last):g}"
            )
        model, schedule = self.model, _schedule(self.schedule)
        _set(
            self, model=_callable("model", _time_first(model)), schedule=schedule,
            first=jnp.maximum(first, schedule.first), last=jnp.minimum(last, schedule.last),
        )  # fmt: skip

    def __call__(self, t: Scalar, x: Float[ArrayLike, "*shape"], *conditions: Any) -> Array:
        x = _check.as_float("x", x)
        dtype, work = x.dtype, _precision.working(x.dtype)
        t, x = _check.time(t).astype(work), x.astype(work)
        t = jnp.clip(t, self.first.astype(work), self.last.astype(work))
        scale = self.schedule.scale(t).astype(work)
        s = self.schedule.time(t).astype(work)
        prediction = self.model(s, (scale * x).astype(dtype), *conditions)
        if getattr(prediction, "shape", None) != x.shape:
            got = getattr(prediction, "shape", type(prediction).__name__)
            raise ValueError(
                f"the model's prediction must have x's shape {x.shape}, got {got}; a model of "
                "batches: batched(model); one that predicts a variance too: keep the first half"
            )
        return self._velocity(t, scale, x, prediction.astype(work)).astype(dtype)

    def _velocity(self, t: Array, scale: Array, x: Array, prediction: Array) -> Array:
        raise NotImplementedError


class _FromEpsilon(_Converted):
    def _velocity(self, t, scale, x, prediction):
        return (x - prediction) / t


class _FromScore(_Converted):
    def _velocity(self, t, scale, x, prediction):
        return (x + (1 - t) * scale * prediction) / t  # ε = -σ ∇ log p


class _FromTarget(_Converted):
    def _velocity(self, t, scale, x, prediction):
        return (prediction - x) / (1 - t)


class _FromV(_Converted):
    def _velocity(self, t, scale, x, prediction):
        # x0 and ε solve the two equations x = t x0 + (1 - t) ε, prediction/scale = t ε - (1 - t) x0
        return ((2 * t - 1) * x - prediction / scale) / (t**2 + (1 - t) ** 2)


for _kind in (_FromEpsilon, _FromScore, _FromTarget, _FromV):
    _adapter(_kind)

_SPLIT = 1e-3  # how near an end is where a prediction would be divided by next to nothing


def from_epsilon(
    epsilon: Model, schedule: Any, *, first: Scalar = _SPLIT, last: Scalar = 1.0
) -> Callable:
    r"""The velocity of a model that predicts the noise, :math:`\hat\epsilon(s, \tilde x) =
    E[\epsilon | \tilde x]`.

    .. math:: v(t, x) = \frac{x - \hat\epsilon\bigl(s, (\alpha + \sigma) x\bigr)}{t}, \qquad
              \frac{\alpha}{\alpha + \sigma}(s) = t

    ``epsilon(s, x, *conditions)`` takes one sample, the schedule's time s first; of parameters
    called (x, t), (x, sigma) or so, x first is understood. ``schedule``: a :class:`Schedule`, the
    vector ``alphas_cumprod`` of a discrete diffusion, or two functions (alpha, sigma) of s.

    For t < ``first`` and t > ``last``, and beyond the levels that the schedule has, the velocity
    keeps the value that it has there: the quotient is 0/0 at t = 0, and an error of the model grows
    by 1/t. That moves the flow's end by the square of ``first``, in order.

    Shapes: x and the result alike, any. Raises ValueError for a schedule that is not monotone, and
    for a prediction of another shape.
    """
    return _FromEpsilon(epsilon, schedule, first, last)


def from_score(
    score: Model, schedule: Any, *, first: Scalar = _SPLIT, last: Scalar = 1.0
) -> Callable:
    r"""The velocity of a model of the score, :math:`\nabla \log p_s(\tilde x)`.

    .. math:: v(t, x) = \frac{x + \sigma\, \nabla \log p_s\bigl((\alpha + \sigma) x\bigr)}{t}

    as :math:`E[\epsilon | \tilde x] = -\sigma \nabla \log p_s(\tilde x)` (Tweedie). Everything else
    as :func:`from_epsilon`.
    """
    return _FromScore(score, schedule, first, last)


def from_x0(
    x0: Model, schedule: Any, *, first: Scalar = 0.0, last: Scalar = 1 - _SPLIT
) -> Callable:
    r"""The velocity of a model that predicts the clean data, :math:`\hat x_0(s, \tilde x) = E[x_0 |
    \tilde x]`.

    .. math:: v(t, x) = \frac{\hat x_0\bigl(s, (\alpha + \sigma) x\bigr) - x}{1 - t}

    Diffusion's :math:`x_0` is the data, at this package's t = 1. Here the quotient is 0/0 at t = 1.
    Everything else as :func:`from_epsilon`.
    """
    return _FromTarget(x0, schedule, first, last)


def from_denoiser(
    denoiser: Model,
    sigma_min: Scalar = 0.002,
    sigma_max: Scalar = 80.0,
    *,
    first: Scalar = 0.0,
    last: Scalar = 1.0,
) -> Callable:
    r"""The velocity of a denoiser :math:`D(\tilde x, \sigma) = E[x_0 | x_0 + \sigma\epsilon =
    \tilde x]`, as EDM's.

    .. math:: v(t, x) = \frac{D(x / t, \sigma) - x}{1 - t}, \qquad \sigma = \frac{1 - t}{t}

    This is :func:`from_x0` with the schedule :func:`edm`: between ``sigma_min`` and ``sigma_max``,
    by default EDM's, the velocity is as written, beyond them it keeps its value. A trained denoiser
    knows no other levels; one known in closed form may be given wider limits. The denoiser takes
    one sample, (sigma, x), or (x, sigma) where its parameters are called so.
    """
    return _FromTarget(denoiser, edm(sigma_min, sigma_max), first, last)


def from_v_prediction(
    v: Model, schedule: Any, *, first: Scalar = 0.0, last: Scalar = 1.0
) -> Callable:
    r"""The velocity of a diffusion model that predicts :math:`\alpha \epsilon - \sigma x_0`.

    .. math:: v(t, x) = \frac{(2t - 1)\, x - \hat v / (\alpha + \sigma)}{t^2 + (1 - t)^2}

    Salimans and Ho, ICLR 2022; nothing is divided by nothing at either end. Everything else as
    :func:`from_epsilon`.
    """
    return _FromV(v, schedule, first, last)


# --------------------------------------------------------- maps known by products of their Jacobian


class _Pair:
    """J(x) d and J(x)ᵀ c as two functions, each the transpose of the other."""

    def __init__(self, forward: Callable, backward: Callable | None, missing: str):
        self.forward, self.backward, self.missing = forward, backward, missing

    def transposed(self) -> "_Pair":
        if self.backward is None:
            raise ValueError(self.missing)
        return _Pair(self.backward, self.forward, self.missing)

    def over(self, axes: tuple) -> "_Pair":
        """Over a batch: the axes of x and of the direction."""
        backward = self.backward and jax.vmap(self.backward, axes)
        return _Pair(jax.vmap(self.forward, axes), backward, self.missing)


# J(x) d, linear in d. (jax.custom_derivatives.linear_call is the same thing, but has no vmap.)
_product = Primitive("jacobian_product")
_product.def_impl(lambda x, d, *, pair: pair.forward(x, d))


@_product.def_abstract_eval
def _shape_of_product(x, d, *, pair):
    out = jax.eval_shape(pair.forward, x, d)
    return jax.core.ShapedArray(out.shape, out.dtype)


def _transposed_product(cotangent, x, d, *, pair):
    if type(cotangent) is ad.Zero:
        return None, None
    return None, _product.bind(x, cotangent, pair=pair.transposed())


def _batched_product(arguments, axes, *, pair):
    moved = [
        array if axis is None else jnp.moveaxis(array, axis, 0)
        for array, axis in zip(arguments, axes, strict=True)
    ]
    where = tuple(None if axis is None else 0 for axis in axes)
    return _batched_or_not(pair, moved, where), 0


def _batched_or_not(pair, moved, where):
    if where[1] is None:  # the transpose has a direction for each x: so must the product
        moved[1] = jnp.broadcast_to(moved[1], (len(moved[0]), *moved[1].shape))
        where = (where[0], 0)
    return _product.bind(*moved, pair=pair.over(where))


def _differentiated_product(primals, tangents, *, pair):
    (x, d), (dx, dd) = primals, tangents
    if type(dx) is not ad.Zero:
        raise ValueError("a map known by products with its Jacobian has no second derivatives")
    out = _product.bind(x, d, pair=pair)
    if type(dd) is ad.Zero:
        return out, ad.Zero.from_primal_value(out)
    return out, _product.bind(x, dd, pair=pair)


ad.primitive_jvps[_product] = _differentiated_product
ad.primitive_transposes[_product] = _transposed_product
batching.primitive_batchers[_product] = _batched_product
mlir.register_lowering(
    _product,
    mlir.lower_fun(lambda x, d, *, pair: pair.forward(x, d), multiple_results=False),
)


def from_products(
    f: Callable[[Array], Array],
    jvp: Callable[[Array, Array], Array],
    vjp: Callable[[Array, Array], Array] | None = None,
) -> Callable[[Array], Array]:
    r"""A map whose Jacobian is known by its products alone, as one that jax can differentiate.

    .. math:: \text{jvp}(x, d) = J(x)\, d, \qquad \text{vjp}(x, c) = J(x)^{\mathsf T} c

    The three functions take one sample and compute what they do in any way that jax can run, for
    instance outside of it by ``jax.pure_callback(..., vmap_method="expand_dims")``. Forward and
    reverse mode work on the one object that is returned, under ``vmap`` and ``jit``; so do all
    estimators, with ``method="jvp"`` also where ``vjp`` is not given. That both belong to the same
    matrix is not checked.

    Shapes: x any, d as x, c and f(x) alike. Raises ValueError where a reverse pass is asked for
    without ``vjp``, and for second derivatives.
    """
    for name, function in (("f", f), ("jvp", jvp), ("vjp", vjp or f)):
        if not callable(function):
            raise ValueError(f"{name} must be a function, got {type(function).__name__}")
    missing = "this map has no reverse mode: give from_products its vjp(x, c), or take method='jvp'"

    @jax.custom_jvp
    def value(x):
        return f(x)

    @value.defjvp
    def derivative(primals, tangents):
        (x,), (d,) = primals, tangents
        return value(x), _product.bind(x, d, pair=_Pair(jvp, vjp, missing))

    return value
