r"""Networks that learn a flow or read an image: an MLP, a UNet and a residual classifier (flax
nnx).

A network takes **one** sample, ``(t, x) -> velocity`` with ``x``'s shape (a classifier
``x -> logits``); batch it with ``jax.vmap``. The networks are pytrees: pass them through
``jax.jit`` as arguments. Images are ``[height, width]`` or ``[height, width, channels]``. After
construction batch normalisation uses its running averages; ``cdelta.training.fit`` switches it to
the batch's own while it trains.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Shaped

from cdelta import _check, _precision

Time = Shaped[ArrayLike, ""]
BATCH = "batch"  # the name of the axis over which batch normalisation averages while training


def parameter_count(network: nnx.Module) -> int:
    """The number of trained numbers in ``network``."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))


def as_pytorch(network: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
    r"""``network`` itself, its linear layers started anew as PyTorch starts them: weights and
    offsets uniform within :math:`\pm 1/\sqrt{\text{inputs}}`.

    flax's own start has weights of three times that variance, and offsets 0; the paper's networks
    are trained from PyTorch's. Raises ValueError when there is no linear layer.
    """
    layers = [layer for _, layer in nnx.iter_graph(network) if isinstance(layer, nnx.Linear)]
    if not layers:
        raise ValueError(f"{type(network).__name__} has no linear layer (nnx.Linear)")
    for layer in layers:
        bound = 1 / np.sqrt(layer.in_features)
        for variable in (layer.kernel, layer.bias):
            if variable is not None:  # a layer without offsets
                shape, dtype = variable.shape, variable.dtype
                variable[...] = jax.random.uniform(rngs(), shape, dtype, -bound, bound)
    return network


def time_features(t: Time, width: int, highest: float = 1e4) -> Float[Array, " width"]:
    r"""Sines and cosines of ``t``, :math:`[\sin \omega_k t, \cos \omega_k t]`, :math:`\omega_k`
    from ``highest`` to 1.

    The ``width/2`` frequencies are geometric:
    :math:`\omega_k = \text{highest}^{1 - k/(\text{width}/2 - 1)}`. The paper's networks use
    ``highest = 1e4``; a small value makes a velocity that is smooth in ``t``, and so needs few
    solver steps. Raises ValueError when ``width`` is odd or below 4.
    """
    if width < 4 or width % 2:
        raise ValueError(f"width must be even and at least 4, got {width}")
    exponents = 1 - np.arange(width // 2) / (width // 2 - 1)
    t = _check.time(t)
    precise = t.astype(_precision.working(t.dtype))  # rounded to half, 1e4 t is any angle
    angles = precise * jnp.asarray(highest**exponents, dtype=precise.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)]).astype(t.dtype)


class VelocityFromTarget(nnx.Module):
    r"""The velocity of a network :math:`g(t, x)` that predicts :math:`E[x_1 \mid x_t = x]` (the
    paper's E2).

    .. math:: v(t, x) = \frac{g(s, x) - x}{1 - s}, \qquad s = \min(t, \text{last})

    For the exact :math:`g` this is the velocity at every t ≤ ``last``. Beyond, where the quotient
    would come to divide by nothing, the velocity at ``last`` is kept: finite, off by
    :math:`O(1 - \text{last})` on an interval of that length, which moves the flow's end by
    :math:`O((1 - \text{last})^2)`. A larger ``last`` has less of this bias, but an error of the
    network is magnified by 1/(1 - s), up to 20 times for 0.95 (chapter 08 shows both). Of a network
    :math:`g(t, x, c)` with a condition it is the velocity :math:`v(t, x, c)`.

    Raises ValueError when ``last`` is not inside (0, 1), or when ``g`` returns another shape than
    ``x``'s.
    """

    def __init__(self, network: Callable[[Any, Any], Any], last: float = 0.95):
        if not 0 < last < 1:
            raise ValueError(f"last must lie inside (0, 1), got {last}")
        self.network, self.last = network, last

    def __call__(self, t: Time, x: Float[ArrayLike, "..."], *condition: Any) -> Float[Array, "..."]:
        t, x = _sample(t, x)
        s = jnp.minimum(t, self.last)
        target = self.network(s, x, *condition)
        _check.shape("the network's prediction", target, x.shape, " (that of x)")
        return (target - x) / (1 - s)


class Known(nnx.Variable):
    """What is computed from data once, and not trained."""


class BesideNormal(nnx.Module):
    r"""The velocity of a normal law, which is known, and a network for what is beyond it (T2, T3).

    .. math:: v(t, x \mid c) &= \mu + A_t (x - t\mu) \\
        &\quad + \Sigma^{1/2} S_t^{-1/2}\, g\bigl(t,\, S_t^{-1/2} (x - t\mu),\, c\bigr), \\
        A_t &= \bigl(t\Sigma - (1-t) I\bigr) S_t^{-1},

    with :math:`S_t = (1-t)^2 I + t^2 \Sigma` and :math:`\mu = m + W c`. Where g is 0, this is the
    velocity from N(0, I) to :math:`N(m + W c, \Sigma)`. ``network`` is g: it sees points, and
    answers, in units in which all directions are of one size at every t.

    As built, m = 0, W = 0 and :math:`\Sigma = I`; :meth:`given` gives one that knows the data's.
    ``condition``: as of the network, how many numbers c has, 0 for ``(t, x)``.
    """

    def __init__(self, network: Any, condition: int = 0):
        self.network, self.shape, self.condition = network, network.shape, condition
        d = int(np.prod(self.shape))
        self.mean = Known(jnp.zeros(d, jnp.float32))
        self.slopes = Known(jnp.zeros((d, condition), jnp.float32))
        self.axes = Known(jnp.eye(d, dtype=jnp.float32))
        self.sizes = Known(jnp.ones(d, jnp.float32))

    def given(
        self, x: Float[ArrayLike, "N ..."], condition: Float[ArrayLike, "N c"] | None = None
    ) -> "BesideNormal":
        """The same with the least squares of samples on their conditions, and the covariance of
        what these leave.

        Raises ValueError when shapes do not fit, or samples are no more than what is fitted.
        """
        x = np.asarray(x, np.float64)
        seen = np.zeros((len(x), 0)) if condition is None else np.asarray(condition, np.float64)
        if x.shape[1:] != self.shape or seen.shape != (len(x), self.condition):
            raise ValueError(
                f"x and condition must have shapes (N, {', '.join(map(str, self.shape))}) and "
                f"(N, {self.condition}), got {x.shape} and {seen.shape}"
            )
        if len(x) <= self.condition + 1:
            raise ValueError(f"x must hold more than {self.condition + 1} samples, got {len(x)}")
        columns, flat = np.column_stack([np.ones(len(x)), seen]), x.reshape(len(x), -1)
        found = np.linalg.lstsq(columns, flat, rcond=None)[0]
        left = flat - columns @ found
        sizes, axes = np.linalg.eigh(left.T @ left / len(x))
        # a direction without variance is no direction of the flow's
        sizes = np.maximum(sizes, 1e-6 * sizes.max())
        new = nnx.clone(self)
        for variable, value in (
            (new.mean, found[0]), (new.slopes, found[1:].T), (new.axes, axes), (new.sizes, sizes),
        ):  # fmt: skip
            variable[...] = jnp.asarray(value, jnp.float32)
        return new

    def __call__(
        self, t: Time, x: Float[ArrayLike, "..."], condition: Float[ArrayLike, " c"] | None = None
    ) -> Float[Array, "..."]:
        t, x = _sample(t, x, self.shape)
        mean, slopes, axes, sizes = (
            variable[...].astype(x.dtype)
            for variable in (self.mean, self.slopes, self.axes, self.sizes)
        )
        conditions = () if condition is None else (condition,)
        if conditions:
            mean = mean + slopes @ _check.as_float("condition", condition).astype(x.dtype)
        variance = (1 - t) ** 2 + t**2 * sizes
        along = axes.T @ (x.reshape(-1) - t * mean)
        seen = axes @ (along / jnp.sqrt(variance))
        beyond = self.network(t, seen.reshape(x.shape), *conditions).reshape(-1)
        known = (t * sizes - (1 - t)) / variance * along
        out = known + jnp.sqrt(sizes / variance) * (axes.T @ beyond)
        return (mean + axes @ out).reshape(x.shape).astype(x.dtype)


class MLP(nnx.Module):
    """A multilayer perceptron ``(t, x) -> x``'s shape: features of ``t`` are added to those of
    ``x``, then SiLU layers.

    ``shape``: that of a sample, an int ``d`` for ``(d,)``. ``layers`` hidden layers of ``width``.
    With ``condition``, how many numbers, it is ``(t, x, condition)``, features of which are added.
    ``time`` is the width of the sinusoidal features of ``t``; 0 learns them instead, through a
    layer of SiLUs.

    The paper's E1 is ``MLP(1, width=128, layers=2)`` (it concatenates where this adds, which the
    next linear layer makes the same), its E2 ``MLP(2, width=1024, layers=10, time=512)``.

    Raises ValueError for sizes that are not positive, or for an ``x`` of another shape.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        width: int = 128,
        layers: int = 3,
        time: int = 0,
        *,
        condition: int = 0,
        rngs: nnx.Rngs,
    ):
        self.shape = _shape(shape)
        if width < 1 or layers < 1:
            raise ValueError(f"width and layers must be positive, got {width} and {layers}")
        self.time = time
        size = int(np.prod(self.shape))
        self.x_in = nnx.Linear(size, width, rngs=rngs)
        self.t_in = nnx.Linear(time or 1, width, rngs=rngs)
        self.t_out = None if time else nnx.Linear(width, width, rngs=rngs)
        self.hidden = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(layers)])
        self.out = nnx.Linear(width, size, rngs=rngs)
        self.c_in = _condition_in(condition, width, rngs)

    def __call__(
        self, t: Time, x: Float[ArrayLike, "..."], condition: Float[ArrayLike, " c"] | None = None
    ) -> Float[Array, "..."]:
        t, x = _sample(t, x, self.shape)
        embedded = self.t_in(time_features(t, self.time) if self.time else jnp.atleast_1d(t))
        embedded = _with_condition(embedded, self.c_in, condition)
        if self.t_out is not None:
            embedded = self.t_out(nnx.silu(embedded))
        h = self.x_in(x.reshape(-1)) + embedded
        for layer in self.hidden:
            h = nnx.silu(layer(h))
        return self.out(h).reshape(x.shape).astype(x.dtype)


class UNet(nnx.Module):
    """A UNet ``(t, x) -> x``'s shape for images.

    ``channels`` has one entry a level; below the first the resolution halves, and on the way up it
    doubles (bilinear) and meets what the way down left. ``patch`` folds squares of that many pixels
    into channels first (and unfolds them last): convolutions at full resolution are most of a
    UNet's cost. ``blocks`` at each level and direction. ``residual`` chooses between residual
    blocks with group normalisation, average pooling and attention at the coarsest level, smooth in
    ``x``, and the paper's plain blocks with batch normalisation and max pooling. ``time`` and
    ``highest``: see ``time_features``. With ``condition``, how many numbers, it is
    ``(t, x, condition)``, features of which are added to those of ``t``.

    ``UNet.small`` and ``UNet.paper`` are the two configurations that the book uses.

    Raises ValueError when ``patch`` does not divide the image, or for an ``x`` of another shape.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: Sequence[int],
        patch: int = 1,
        blocks: int = 1,
        residual: bool = True,
        time: int = 256,
        highest: float = 1e4,
        *,
        condition: int = 0,
        rngs: nnx.Rngs,
    ):
        self.shape = _image_shape(shape)
        if patch < 1 or self.shape[0] % patch or self.shape[1] % patch:
            raise ValueError(f"patch must divide the image's sides {self.shape[:2]}, got {patch}")
        if len(channels) < 2 or min(channels) < 1 or blocks < 1:
            raise ValueError(
                f"channels must be two or more positive numbers, got {channels}; "
                f"blocks must be 1 or more, got {blocks}"
            )
        self.patch, self.time, self.highest, self.residual = patch, time, highest, residual
        inner = patch**2 * _channels(self.shape)
        block = partial(ResidualBlock if residual else PlainBlock, time=time, rngs=rngs)

        def level(wide_in: int, wide: int) -> Any:
            return nnx.List([block(wide_in if i == 0 else wide, wide) for i in range(blocks)])

        self.t_in, self.t_out = nnx.Linear(time, time, rngs=rngs), nnx.Linear(time, time, rngs=rngs)
        entries = [inner, *channels]
        if residual:
            self.x_in = nnx.Conv(inner, channels[0], (3, 3), rngs=rngs)
            entries[0] = channels[0]
        self.down = nnx.List([level(a, b) for a, b in itertools.pairwise(entries)])
        self.attention = Attention(channels[-1], rngs=rngs) if residual else None
        up, below = [], channels[-1]
        for i in reversed(range(len(channels) - 1)):
            up.append(level(channels[i] + below, channels[max(i - 1, 0)]))
            below = channels[max(i - 1, 0)]
        self.up = nnx.List(up)
        self.norm = _group_norm(below, rngs) if residual else None
        # start from the velocity 0
        zero = {"kernel_init": nnx.initializers.zeros_init()} if residual else {}
        self.out = nnx.Conv(below, inner, (3, 3) if residual else (1, 1), rngs=rngs, **zero)
        self.c_in = _condition_in(condition, time, rngs)

    @classmethod
    def paper(cls, shape: Sequence[int], *, rngs: nnx.Rngs) -> "UNet":
        """The paper's: five levels of 64 to 512 channels, batch normalisation, sinusoidal features
        of 1e4·t, width 256.

        14.0 M parameters for one channel. Its table says "multiplier 16"; its code says 64, 128,
        256, 512, 512.
        """
        return cls(shape, (64, 128, 256, 512, 512), residual=False, rngs=rngs)

    @classmethod
    def small(
        cls,
        shape: Sequence[int],
        channels: Sequence[int] = (48, 96),
        *,
        patch: int = 2,
        condition: int = 0,
        rngs: nnx.Rngs,
    ) -> "UNet":
        """A fast one for two CPU cores: 2 × 2 patches, two residual blocks a level, low frequencies
        of ``t``."""
        options = dict(blocks=2, time=64, highest=30.0, condition=condition)
        return cls(shape, channels, patch, **options, rngs=rngs)

    def __call__(
        self, t: Time, x: Float[ArrayLike, "..."], condition: Float[ArrayLike, " c"] | None = None
    ) -> Float[Array, "..."]:
        t, x = _sample(t, x, self.shape)
        embedded = self.t_in(time_features(t, self.time, self.highest))
        embedded = self.t_out(nnx.silu(_with_condition(embedded, self.c_in, condition)))
        h = _image(x, self.patch)
        if self.residual:
            h = self.x_in(h)
        kept = []
        for i, level in enumerate(self.down):
            if i:
                kept.append(h)
                h = pool(h, jnp.mean if self.residual else jnp.max)
            for block in level:
                h = block(h, embedded)
        if self.residual:
            h = self.attention(h)
        for level in self.up:
            skip = kept.pop()
            h = jnp.concatenate([skip, pad_to(upsample(h), skip.shape)], axis=-1)
            for block in level:
                h = block(h, embedded)
        if self.residual:
            h = nnx.silu(self.norm(h))
        return depth_to_space(self.out(h), self.patch).reshape(x.shape).astype(x.dtype)


class PlainBlock(nnx.Module):
    """The paper's: convolution, batch norm, plus time, SiLU; convolution, batch norm, SiLU."""

    def __init__(self, wide_in: int, wide: int, time: int, *, rngs: nnx.Rngs):
        self.t = nnx.Linear(time, wide, rngs=rngs)
        self.first, self.second = (nnx.Conv(a, wide, (3, 3), rngs=rngs) for a in (wide_in, wide))
        self.norm_first, self.norm_second = (_batch_norm(wide, rngs) for _ in range(2))

    def __call__(
        self, h: Float[Array, "1 h w a"], embedded: Float[Array, " time"]
    ) -> Float[Array, "1 h w b"]:
        h = nnx.silu(self.norm_first(self.first(h)) + self.t(embedded))
        return nnx.silu(self.norm_second(self.second(h)))


class ResidualBlock(nnx.Module):
    """Group norm, SiLU, convolution, twice; time scales and shifts in between; what came in is
    added at the end."""

    def __init__(self, wide_in: int, wide: int, time: int = 0, stride: int = 1, *, rngs: nnx.Rngs):
        self.norm_first, self.norm_second = _group_norm(wide_in, rngs), _group_norm(wide, rngs)
        self.first = nnx.Conv(wide_in, wide, (3, 3), strides=stride, rngs=rngs)
        self.second = nnx.Conv(wide, wide, (3, 3), rngs=rngs)
        self.t = nnx.Linear(time, 2 * wide, rngs=rngs) if time else None
        same = wide_in == wide and stride == 1
        self.shortcut = None if same else nnx.Conv(wide_in, wide, (1, 1), strides=stride, rngs=rngs)

    def __call__(
        self, x: Float[Array, "1 h w a"], embedded: Float[Array, " time"] | None = None
    ) -> Float[Array, "1 i j b"]:
        h = self.norm_second(self.first(nnx.silu(self.norm_first(x))))
        if self.t is not None:
            scale, shift = jnp.split(self.t(nnx.silu(embedded)), 2)
            h = h * (1 + scale) + shift
        return (x if self.shortcut is None else self.shortcut(x)) + self.second(nnx.silu(h))


class Attention(nnx.Module):
    r"""Every pixel looks at every pixel: :math:`x + W\,\mathrm{softmax}(q k^T / \sqrt c)\,v`, one
    head; starts as x."""

    def __init__(self, wide: int, *, rngs: nnx.Rngs):
        self.norm = _group_norm(wide, rngs)
        self.inward = nnx.Linear(wide, 3 * wide, rngs=rngs)
        self.outward = nnx.Linear(wide, wide, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, x: Float[Array, "1 h w c"]) -> Float[Array, "1 h w c"]:
        q, k, v = jnp.split(self.inward(self.norm(x)).reshape(-1, 3 * x.shape[-1]), 3, axis=-1)
        weights = jax.nn.softmax(q @ k.T / np.sqrt(x.shape[-1]).astype(x.dtype))
        return x + self.outward(weights @ v).reshape(x.shape)


class Bottleneck(nnx.Module):
    """ResNet's block: 1 × 1 to ``wide``, 3 × 3, 1 × 1 to ``4 wide``, each with batch norm; what
    came in is added."""

    def __init__(self, wide_in: int, wide: int, stride: int = 1, *, rngs: nnx.Rngs):
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.reduce, self.norm_reduce = conv(wide_in, wide, (1, 1)), _batch_norm(wide, rngs)
        self.middle, self.norm_middle = (
            conv(wide, wide, (3, 3), strides=stride, padding=1),
            _batch_norm(wide, rngs),
        )
        self.expand, self.norm_expand = conv(wide, 4 * wide, (1, 1)), _batch_norm(4 * wide, rngs)
        same = wide_in == 4 * wide and stride == 1
        self.shortcut = None if same else conv(wide_in, 4 * wide, (1, 1), strides=stride)
        self.norm_shortcut = None if same else _batch_norm(4 * wide, rngs)

    def __call__(self, x: Float[Array, "1 h w a"]) -> Float[Array, "1 i j b"]:
        h = nnx.relu(self.norm_reduce(self.reduce(x)))
        h = nnx.relu(self.norm_middle(self.middle(h)))
        h = self.norm_expand(self.expand(h))
        return nnx.relu(h + (x if self.shortcut is None else self.norm_shortcut(self.shortcut(x))))


class Classifier(nnx.Module):
    """A residual network ``x -> [outputs]`` logits; with several labels each logit is one label's
    own.

    The default is small and smooth (patches, group norm, SiLU), for Jacobians on a CPU;
    ``Classifier.resnet50`` is the size of the paper's. ``channels`` and ``depths``: the width and
    the number of blocks of each stage; from the second stage on each halves the resolution.

    Raises ValueError when ``patch`` does not divide the image, or for an ``x`` of another shape.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        channels: Sequence[int] = (32, 64),
        depths: Sequence[int] = (1, 1),
        patch: int = 2,
        bottleneck: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        self.shape = _image_shape(shape)
        if patch < 1 or self.shape[0] % patch or self.shape[1] % patch:
            raise ValueError(f"patch must divide the image's sides {self.shape[:2]}, got {patch}")
        if outputs < 1 or len(channels) != len(depths) or min(*channels, *depths) < 1:
            raise ValueError(
                "outputs, channels and depths must be positive, "
                f"got {outputs}, {channels}, {depths}"
            )
        self.patch, self.bottleneck = patch, bottleneck
        inner = patch**2 * _channels(self.shape)
        if bottleneck:
            self.x_in = nnx.Conv(
                inner, channels[0], (7, 7), strides=2, padding=3, use_bias=False, rngs=rngs
            )
        else:
            self.x_in = nnx.Conv(inner, channels[0], (3, 3), rngs=rngs)
        blocks, below = [], channels[0]
        for stage, (wide, depth) in enumerate(zip(channels, depths, strict=True)):
            for i in range(depth):
                stride = 2 if stage and i == 0 else 1
                block = Bottleneck if bottleneck else ResidualBlock
                blocks.append(block(below, wide, stride=stride, rngs=rngs))
                below = 4 * wide if bottleneck else wide
        self.blocks = nnx.List(blocks)
        self.norm = _batch_norm(channels[0], rngs) if bottleneck else _group_norm(below, rngs)
        self.out = nnx.Linear(below, outputs, rngs=rngs)

    @classmethod
    def resnet50(cls, shape: Sequence[int], outputs: int, *, rngs: nnx.Rngs) -> "Classifier":
        """ResNet-50 with ``outputs`` logits: 23.5 M parameters and the last layer."""
        return cls(
            shape, outputs, (64, 128, 256, 512), (3, 4, 6, 3), patch=1, bottleneck=True, rngs=rngs
        )

    def __call__(self, x: Float[ArrayLike, "..."]) -> Float[Array, " outputs"]:
        _, x = _sample(0.0, x, self.shape)
        h = self.x_in(_image(x, self.patch))
        if self.bottleneck:
            h = nnx.max_pool(
                nnx.relu(self.norm(h)), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1))
            )
        for block in self.blocks:
            h = block(h)
        if not self.bottleneck:
            h = nnx.silu(self.norm(h))
        return self.out(h.mean((0, 1, 2))).astype(x.dtype)


def space_to_depth(x: Float[Array, "1 h w c"], patch: int) -> Float[Array, "1 i j k"]:
    """Fold ``patch`` × ``patch`` squares of pixels into channels."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h // patch, w // patch, patch * patch * c)


def depth_to_space(x: Float[Array, "1 i j k"], patch: int) -> Float[Array, "1 h w c"]:
    """The inverse of ``space_to_depth``."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, patch, patch, c // patch**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h * patch, w * patch, c // patch**2)


def pool(x: Float[Array, "1 h w c"], reduce: Callable) -> Float[Array, "1 i j c"]:
    """``reduce`` over 2 × 2 squares; an odd last row or column is dropped."""
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
    return reduce(x, axis=(2, 4))


def upsample(x: Float[Array, "1 h w c"]) -> Float[Array, "1 i j c"]:
    """Twice the resolution, bilinear, corners on corners: a matrix for the rows and one for the
    columns."""
    rows, columns = (jnp.asarray(_doubling(n), dtype=x.dtype) for n in x.shape[1:3])
    return jnp.einsum("ih,jw,nhwc->nijc", rows, columns, x)


def pad_to(x: Float[Array, "1 h w c"], shape: Sequence[int]) -> Float[Array, "1 i j c"]:
    """Zeros around ``x`` up to the height and width of ``shape``, the odd one at the end."""
    margins = [wanted - got for wanted, got in zip(shape[1:3], x.shape[1:3], strict=True)]
    return jnp.pad(x, ((0, 0), *((m // 2, m - m // 2) for m in margins), (0, 0)))


def _doubling(n: int) -> np.ndarray:
    """Linear interpolation from n points to 2n points on the same interval, ``[2n, n]``."""
    places = np.linspace(0, n - 1, 2 * n)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(n)))


def _batch_norm(wide: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(wide, use_running_average=True, momentum=0.9, axis_name=BATCH, rngs=rngs)


def _group_norm(wide: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    groups = max(g for g in range(1, 9) if wide % g == 0)  # at most eight
    return nnx.GroupNorm(wide, num_groups=groups, rngs=rngs)


def _shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if any(n < 1 for n in shape):
        raise ValueError(f"shape must hold positive sizes, got {shape}")
    return shape


def _image_shape(shape: Sequence[int]) -> tuple[int, ...]:
    shape = _shape(shape)
    if len(shape) not in (2, 3):
        raise ValueError(f"shape must be (height, width) or (height, width, channels), got {shape}")
    return shape


def _condition_in(condition: int, width: int, rngs: nnx.Rngs) -> nnx.Linear | None:
    """What takes a condition in; built last, so that the weights of a network without one are what
    they were."""
    if condition < 0:
        raise ValueError(f"condition must be the count of its numbers, got {condition}")
    return nnx.Linear(condition, width, rngs=rngs) if condition else None


def _with_condition(
    embedded: Array, c_in: nnx.Linear | None, condition: ArrayLike | None
) -> Float[Array, " width"]:
    if (c_in is None) != (condition is None):
        given = "none" if condition is None else f"an array of shape {jnp.shape(condition)}"
        wanted = "none" if c_in is None else f"a vector of {c_in.in_features} numbers"
        raise ValueError(f"condition must be {wanted}, as the network was built, got {given}")
    if c_in is None:
        return embedded
    condition = _check.as_float("condition", condition).astype(embedded.dtype)
    _check.shape("condition", condition, (c_in.in_features,))
    return embedded + c_in(condition)


def _channels(shape: tuple[int, ...]) -> int:
    return shape[2] if len(shape) == 3 else 1


def _image(x: Array, patch: int) -> Array:
    """One image as a batch of one, its patches folded."""
    return space_to_depth(x.reshape(1, *x.shape[:2], _channels(x.shape)), patch)


def _sample(
    t: ArrayLike, x: ArrayLike, shape: tuple[int, ...] | None = None
) -> tuple[Array, Array]:
    """``t`` and ``x`` checked, in the dtype of ``x``."""
    x = _check.as_float("x", x)
    if shape is not None:
        _check.shape("x", x, shape, " (one sample; batch with jax.vmap)")
    return _check.time(t).astype(x.dtype), x
