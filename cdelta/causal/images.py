"""Counterfactuals of images, by an unconditional flow and a readout of an image's attributes, or by
the flow of an image given its attributes."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from cdelta import _check, jacobian
from cdelta._pytree import as_pytree
from cdelta.causal.paths import lift
from cdelta.flow import Flow

REACHED = 0.01  # of the way and the value: nearer than this counts as reached


class Noises(NamedTuple):
    """What an image is made of: a latent, and the rest that the flow does not make."""

    latents: Float[Array, "n ..."]
    rest: Float[Array, "n ..."]


@dataclasses.dataclass(frozen=True, eq=False)
class ImageModel:
    r"""Images as a flow makes them, :math:`\text{image} = \varphi(z) + r`, with a readout of their
    attributes, :math:`y = g(\text{image})`.

    :meth:`~ImageModel.abduct` finds z and r of an image: its latent by the inverse flow, and the
    rest, what numerical solution loses on the way there and back. An intervention moves z and keeps
    r, so that one which changes nothing gives the image back, up to rounding, whatever the solver
    (composition). Three ways to move z:

    - :meth:`~ImageModel.steer`: the path of least velocity to given values of several attributes at
      once (C16), which a causal model of the attributes provides;
    - :meth:`~ImageModel.follow`: an attribute's direction of the frame (C7), with what comes before
      it held and what comes after it left to the flow;
    - :meth:`~ImageModel.push`: a straight line.

    ``flow`` is the :class:`cdelta.Flow` of images, ``readout`` maps one image to its attributes
    ``[k]``. All methods take and give stacks of images or latents, ``[n, *shape]``, and work
    through them ``batch`` at a time, with one compiled program for the values and one for their
    gradients.
    """

    flow: Flow
    readout: Callable[[Array], Array]
    batch: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "readout", as_pytree(self.readout))
        object.__setattr__(self, "batch", _check.count("batch", self.batch))

    def abduct(self, images: Float[ArrayLike, "n ..."]) -> Noises:
        r"""The noises of images, :math:`z = \varphi^{-1}(\text{image})` and
        :math:`r = \text{image} - \varphi(z)`.

        Raises ValueError for an empty stack, or values that are not finite.
        """
        return Noises(*self._batched(_abducted, self._forward, _stack("images", images)))

    def images(self, noises: Noises) -> Float[Array, "n ..."]:
        r"""The images that noises make, :math:`\varphi(z) + r`."""
        return self._batched(_made, self._forward, noises.latents, noises.rest)

    def values(self, images: Float[ArrayLike, "n ..."]) -> Float[Array, "n attributes"]:
        """What the readout says of images."""
        images = _stack("images", images)
        parts = [_read(self.readout, part) for (part,), _ in _parts(self.batch, images)]
        return jnp.concatenate(parts)[: len(images)]

    def rows(self, noises: Noises) -> Float[Array, "n attributes ..."]:
        """Each attribute's gradient with respect to the latent."""
        return self._batched(_values_and_rows, self.flow, noises.latents, noises.rest)[1]

    def steer(
        self,
        noises: Noises,
        targets: Mapping[int, Float[ArrayLike, " n"]],
        steps: int = 2,
        corrections: int = 4,
        rows: Float[Array, "n attributes ..."] | None = None,
    ) -> Noises:
        r"""Noises whose images have the values ``{attribute: [n] values, ...}``, by the path
        of least velocity (C16).

        .. math:: z \leftarrow z + J_K^{+} \bigl(y_K(s) - y_K(z)\bigr), \qquad
            y_K(s) = (1 - s)\, y_K + s\, y^*_K

        with s running through ``steps`` equal steps. Each takes the Jacobian once, where it begins,
        and aims at a point of the straight line from where it is; ``corrections`` more moves in the
        span of the same gradients, by Broyden's method, bring it there. The equation of
        :func:`cdelta.causal.steer` is the limit of many steps. ``rows``, when they are known, are
        the gradients at ``noises``: several ways from the same images need them once.

        Raises ValueError when a target is not one value an image, when rows have another shape,
        and when images miss their targets.
        """
        features, to = self._aims(noises, targets)
        steps = _check.count("steps", steps)
        move = functools.partial(_steered, features, steps, corrections)
        if rows is None:
            return self._moved(noises, to, move)
        expected = (len(to), self._attributes(noises).size, *noises.latents.shape[1:])
        _check.shape("rows", rows, expected, ", a gradient for each image and attribute")
        return self._moved(noises, to, move, rows)

    def follow(
        self,
        noises: Noises,
        k: int,
        order: Sequence[int],
        to: Float[ArrayLike, " n"],
        steps: int = 2,
        corrections: int = 4,
        rows: Float[Array, "n attributes ..."] | None = None,
    ) -> Noises:
        r"""Noises at which attribute k has the values ``to [n]``, along its direction of the frame
        (C7): ``order`` are attributes, first cause first; those before k stay and those after it
        move as they must.

        The direction is of least velocity too: with :math:`J = L Q` for the attributes up to k,
        :math:`Q_k / L_{kk} = J^{+} e_k`. So this is :meth:`~ImageModel.steer` with the values that
        the attributes before k have already, and solved like it.

        Raises ValueError as :meth:`~ImageModel.steer`, and when k is not in order.
        """
        n = self._attributes(noises).size
        order, k = _check.indices("order", order, n), _check.index("k", k, n)
        if k not in order:
            raise ValueError(f"order must hold the attribute k = {k}, got {order}")
        now = self.values(self.images(noises))
        held = {other: now[:, other] for other in order[: order.index(k)]}
        return self.steer(noises, {**held, k: to}, steps, corrections, rows)

    def push(
        self,
        noises: Noises,
        direction: Float[ArrayLike, "..."],
        k: int,
        to: Float[ArrayLike, " n"],
        iterations: int = 6,
    ) -> Noises:
        r"""Noises at which attribute k has the values ``to [n]``, on the straight line
        :math:`z + \alpha\, \text{direction}`: α by the secant method.

        The first try is :math:`\alpha = \text{to} - y_k`, exact when the direction is a constant
        gradient over its squared norm. Raises ValueError as :meth:`~ImageModel.steer`.
        """
        (k,), to = self._aims(noises, {k: to})
        direction = _check.as_float("direction", direction)
        _check.shape("direction", direction, noises.latents.shape[1:], ", that of a latent")
        iterations = _check.count("iterations", iterations)
        return self._moved(noises, to, functools.partial(_pushed, direction, k, iterations))

    @property
    def _forward(self) -> Flow:
        """The same flow where no reverse pass is taken: as a loop it compiles many times faster."""
        return dataclasses.replace(self.flow, unroll=False)

    def _attributes(self, noises: Noises) -> jax.ShapeDtypeStruct:
        one = jax.ShapeDtypeStruct(noises.latents.shape[1:], noises.latents.dtype)
        out = jax.eval_shape(self.readout, one)
        if not isinstance(out, jax.ShapeDtypeStruct) or len(out.shape) != 1:
            raise ValueError("readout must return a vector of attributes for an image")
        return out

    def _aims(self, noises: Noises, targets: Mapping[int, ArrayLike]) -> tuple[Any, Array]:
        if not targets:
            raise ValueError("targets must name at least one attribute, got none")
        attributes = self._attributes(noises)
        features = _check.indices("targets", list(targets), attributes.size)
        n = len(noises.latents)
        columns = [_check.as_float(f"targets[{k}]", value) for k, value in targets.items()]
        for k, column in zip(features, columns, strict=True):
            _check.shape(f"targets[{k}]", column, (n,), ", one value for each image")
            _check.finite(f"targets[{k}]", column)
        return features, jnp.stack(columns, 1).astype(attributes.dtype)

    def _moved(self, noises: Noises, to: Array, move: Callable, *known: Array) -> Noises:
        latents = []
        for (z, rest, aim, *rows), start in _parts(self.batch, *noises, to, *known):
            z, missed = move(self, z, rest, aim, *rows)
            bad = np.flatnonzero(~(np.asarray(missed) <= REACHED))
            bad = bad[bad + start < len(to)]
            if bad.size:
                raise ValueError(
                    f"targets cannot be reached from image {start + bad[0]} in so few moves: it "
                    f"ends {float(missed[bad[0]]):.2g} of the way off; gradients vanish or become "
                    "dependent on the way, or it takes more steps"
                )
            latents.append(z)
        return Noises(jnp.concatenate(latents)[: len(to)], noises.rest)

    def _batched(self, function: Callable, flow: Flow, *stacks: Array) -> Any:
        """``function(flow, readout, *batch)`` over all of the stacks."""
        n = len(stacks[0])
        out = [function(flow, self.readout, *parts) for parts, _ in _parts(self.batch, *stacks)]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts)[:n], *out)


def counterfactual_images(
    velocity: Callable[[Array, Array, Array], Array],
    images: Float[ArrayLike, "n ..."],
    attributes: Float[ArrayLike, "n k"],
    to: Float[ArrayLike, "n k"],
    batch: int = 8,
    **solver: Any,
) -> Float[Array, "n ..."]:
    r"""Images as they would be with the attributes ``to``, by the flow :math:`T(\cdot \mid a)` of
    an image given its attributes: the counterfactual of a picture as a node (C12), its noise kept.

    .. math:: x^* = T\bigl(T^{-1}(x \mid a) \bigm| a^*\bigr) + r, \qquad
        r = x - T\bigl(T^{-1}(x \mid a) \bigm| a\bigr)

    with r what numerical solution loses: attributes that stay give the image back, up to rounding.
    The data identify what :math:`x^*` shows of its attributes, and no more; what else is kept
    depends on the flow that was learned (chapter 16, the theorem on a node of many numbers).

    ``velocity(t, x, a)`` is that of one image, trained on pairs of images and attributes
    (:func:`cdelta.training.loss` with conditions). ``solver`` are options of :class:`cdelta.Flow`:
    solver, steps, times, rtol, atol, max_steps. Works through the stack ``batch`` at a time.

    Raises ValueError for an empty stack, attributes that are not one row an image, a batch that is
    not positive, and where values are not finite: those given, or those that come out.
    """
    images = _stack("images", images)
    given = {"attributes": attributes, "to": to}
    given = {name: _check.as_float(name, rows).astype(images.dtype) for name, rows in given.items()}
    expected = (len(images), *(given["attributes"].shape[1:2] or (1,)))
    for name, rows in given.items():
        _check.shape(name, rows, expected, ", a row an image")
        _check.finite(name, rows)
    # the options are looked at once; each image puts its velocity in
    batch, still = _check.count("batch", batch), Flow(_still, **{"unroll": False, **solver})
    velocity = as_pytree(velocity)
    moved = [
        _carried(still, velocity, *parts) for parts, _ in _parts(batch, images, *given.values())
    ]
    moved = jnp.concatenate(moved)[: len(images)]
    bad = np.flatnonzero(~np.isfinite(np.asarray(moved)).reshape(len(moved), -1).all(1))
    if bad.size:
        raise ValueError(
            f"velocity must be finite and the solver must arrive: image {bad[0]} comes out with "
            "values that are not finite"
        )
    return moved


def _parts(batch: int, *stacks: Array):
    """Batches of one size (the last repeats its end, so that nothing is compiled twice), and where
    each begins."""
    n = len(stacks[0])
    for start in range(0, n, batch):
        rows = np.minimum(np.arange(start, start + batch), n - 1)
        yield tuple(stack[rows] for stack in stacks), start


def _stack(name: str, images: ArrayLike) -> Array:
    images = _check.as_float(name, images)
    if images.ndim < 2 or not images.size:
        raise ValueError(f"{name} must be a stack [n, *shape], got shape {images.shape}")
    _check.finite(name, images)
    return images


@jax.jit
def _abducted(flow: Flow, readout: Callable, images: Array) -> tuple[Array, Array]:
    latents = jax.vmap(flow.inverse)(images)
    return latents, images - jax.vmap(flow)(latents)


@jax.jit
def _made(flow: Flow, readout: Callable, latents: Array, rest: Array) -> Array:
    return jax.vmap(flow)(latents) + rest


@jax.jit
def _read(readout: Callable, images: Array) -> Array:
    return jax.vmap(readout)(images)


@jax.jit
def _values(flow: Flow, readout: Callable, latents: Array, rest: Array) -> Array:
    return jax.vmap(lambda z, r: readout(flow(z) + r))(latents, rest)


@jax.jit
def _values_and_rows(
    flow: Flow, readout: Callable, latents: Array, rest: Array
) -> tuple[Array, Array]:
    def one(z, r):
        return jacobian.values_and_rows(lambda z: readout(flow(z) + r), z)

    return jax.vmap(one)(latents, rest)


def _still(t: Array, x: Array) -> Array:
    return jnp.zeros_like(x)


def _given(velocity: Callable, attributes: Array, t: Array, x: Array) -> Array:
    return velocity(t, x, attributes)


@jax.jit
def _carried(still: Flow, velocity: Callable, images: Array, attributes: Array, to: Array) -> Array:
    def one(x, *of):
        as_it_is, then = (
            dataclasses.replace(still, velocity=Partial(_given, velocity, a)) for a in of
        )
        z = as_it_is.inverse(x)
        return x + then(z) - as_it_is(z)

    return jax.vmap(one)(images, attributes, to)


@functools.partial(jax.jit, static_argnums=0)
def _lifted(features: tuple[int, ...], latents: Array, rows: Array, change: Array) -> Array:
    return latents + jax.vmap(lift)(rows[:, jnp.asarray(features)], change)


@jax.jit
@jax.vmap
def _corrected(slope: Array, move: Array, way: Array, off: Array, before: Array) -> tuple:
    """Broyden's update of a slope by what a move changed, and the next move against what is off."""
    length = move @ move
    gap = off - before - slope @ move
    # what rounding has changed says nothing of slopes
    told = length > jnp.finfo(move.dtype).eps * (way @ way)
    slope = slope + jnp.where(told, jnp.outer(gap, move) / jnp.where(told, length, 1), 0)
    return slope, -jnp.linalg.solve(slope, off)


# Not one program: on a CPU a reverse pass inside a loop is slow, and unrolled it compiles for long.
def _steered(
    features: tuple[int, ...],
    steps: int,
    corrections: int,
    model: ImageModel,
    z: Array,
    rest: Array,
    to: Array,
    rows: Array | None = None,
) -> tuple[Array, Array]:
    chosen = np.array(features)
    forward, readout = model._forward, model.readout
    for s in range(1, steps + 1):
        if s == 1 and rows is not None:
            values = _values(forward, readout, z, rest)
        else:
            values, rows = _values_and_rows(model.flow, readout, z, rest)
        if s == 1:
            start = values[:, chosen]
        aim = start + (to - start) * (s / steps)
        # z + J⁺ c moves the features by c to first order; Broyden's method finds c for them all
        c = move = aim - values[:, chosen]
        before, slope = -c, jnp.stack([jnp.eye(len(features), dtype=c.dtype)] * len(c))
        for _ in range(corrections):
            off = _values(forward, readout, _lifted(features, z, rows, c), rest)[:, chosen] - aim
            slope, move = _corrected(slope, move, c, off, before)
            before, c = off, c + move
        z = _lifted(features, z, rows, c)
    return z, _missed(start, _values(forward, readout, z, rest)[:, chosen], to)


def _pushed(
    direction: Array,
    k: int,
    iterations: int,
    model: ImageModel,
    z: Array,
    rest: Array,
    to: Array,
) -> tuple[Array, Array]:
    def value(alpha):
        steps = alpha.reshape(-1, *(1,) * direction.ndim) * direction
        return _values(model._forward, model.readout, z + steps, rest)[:, k]

    to = to[:, 0]
    alpha = jnp.zeros_like(to)
    start = value(alpha)
    before, ahead, y = start, to - start, value(to - start)
    for _ in range(iterations):
        rise = jnp.where(y == before, jnp.inf, y - before)
        alpha, ahead = ahead, ahead + (to - y) * (ahead - alpha) / rise
        before, y = y, value(ahead)
    end = z + ahead.reshape(-1, *(1,) * direction.ndim) * direction
    return end, _missed(start[:, None], y[:, None], to[:, None])


def _missed(start: Array, end: Array, to: Array) -> Array:
    """How far from its aims an image ends, as a share of the way and the values, ``[n]``."""
    return (jnp.abs(end - to) / (jnp.abs(to - start) + jnp.abs(to) + 1)).max(1)
