r"""How the pieces of a causal flow are fitted: first a mean and a scale given the causes, then the
velocity that is left. Imported when a flow is fitted, for it needs networks and an optimizer."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from cdelta import training
from cdelta.causal import _conditional
from cdelta.causal._conditional import Layers, Nodes

_LOOKED_AT = 2048  # samples that were held out, at whose likelihood a learned velocity is judged
_STEPS = 16  # of their flows
_LARGEST = 5.0  # gain that one sample may show, in nats: of a far one it may be a thousand
_TOLD = 64 * float(np.finfo(np.float32).eps)  # a noise is 64 roundings of what it is told from


class Settings(NamedTuple):
    """What decides the quality and the cost of a fit."""

    width: int
    layers: int
    steps: int
    batch: int
    rate: float
    progress: bool


class Mask(nnx.Variable):
    """Which causes a feature has: not trained, and not part of the program, so that all graphs of
    one size share a compilation."""


class Stack(nnx.Module):
    """One network a feature, all of one shape, computed together; each starts as 0."""

    def __init__(self, parents: np.ndarray, own: int, outputs: int, settings: Settings, key: Any):
        features = len(parents)
        sizes = [own + parents.shape[1], *[settings.width] * settings.layers]
        fans = [own + parents.sum(1), *[np.full(features, settings.width)] * (settings.layers - 1)]
        deviations = tuple(1 / np.sqrt(fan.astype(np.float32)) for fan in fans)
        weights, offsets = at_start(key, deviations, (*sizes, outputs))
        self.weights = nnx.List([nnx.Param(w) for w in weights])
        self.offsets = nnx.List([nnx.Param(b) for b in offsets])
        self.parents = Mask(jnp.asarray(parents, jnp.float32))

    @property
    def layers(self) -> Layers:
        return tuple((w[...], b[...]) for w, b in zip(self.weights, self.offsets, strict=True))

    def __call__(
        self, seen: Float[Array, "n all"], *own: Float[Array, "n features"]
    ) -> Float[Array, "features n outputs"]:
        return _outputs(self.layers, self.parents[...], seen, *own)


@functools.partial(jax.jit, static_argnums=2)
def at_start(
    key: PRNGKeyArray, deviations: tuple[Array, ...], sizes: tuple[int, ...]
) -> tuple[list[Array], list[Array]]:
    """Weights and offsets of a network with layers of these ``sizes``, or of several.

    ``deviations`` are those of the weights of each layer but the last, which is 0; with an axis,
    one a network. A program as a whole, for JAX would compile every line for every shape.
    """
    keys = jax.random.split(key, 2 * len(deviations))
    weights, offsets = [], []
    for i, deviation in enumerate(deviations):
        many, (a, b) = deviation.shape, sizes[i : i + 2]
        drawn = jax.random.normal(keys[2 * i], (*many, a, b), jnp.float32)
        weights.append(deviation[..., None, None] * drawn)
        # bends at different places from the start
        spread = jax.random.uniform(keys[2 * i + 1], (*many, b), jnp.float32, -1.5, 1.5)
        offsets.append(spread if i == 0 else jnp.zeros_like(spread))
    weights.append(jnp.zeros((*many, *sizes[-2:]), jnp.float32))
    offsets.append(jnp.zeros((*many, sizes[-1]), jnp.float32))
    return weights, offsets


@jax.jit
def _outputs(layers: Layers, parents: Array, seen: Array, *own: Array) -> Array:
    """The networks of all features for many samples: ``seen`` are all features as a network sees
    them, ``own`` further inputs, one a feature."""

    def one(layers: Layers, mask: Array, *own: Array) -> Array:
        # a product of matrices: as a vmap over samples it would compile slower
        inputs = jnp.concatenate([*(part[:, None] for part in own), mask * seen], 1)
        for w, b in layers[:-1]:
            inputs = jax.nn.silu(inputs @ w + b)
        return inputs @ layers[-1][0] + layers[-1][1]

    return jax.vmap(one)(layers, parents, *(part.T for part in own))


def fitted(
    parents: np.ndarray,
    x: np.ndarray,
    held_out: np.ndarray,
    key: PRNGKeyArray,
    settings: Settings,
    others: tuple[np.ndarray, np.ndarray] | None = None,
    names: Sequence[str] = (),
) -> Nodes:
    """The pieces of every feature's conditional flow; see :class:`cdelta.causal.CausalFlow`.

    ``others`` are further columns of which a feature may be made, as the features see them, of
    both: those of vectors and labels. ``names`` are for messages. Raises ValueError for a feature
    that single precision cannot tell from its causes, or from a constant.
    """
    center, scale = location(x)
    parts = [(part - center) / scale for part in (x, held_out)]
    if others is not None:
        parts = [np.concatenate(both, 1) for both in zip(parts, others, strict=True)]
    n = len(parents)
    linear, constant, spread = least_squares(parents, parts[0])
    rounding = np.sqrt((parts[0] ** 2).mean(0))
    rounding[:n] += np.abs(center) / scale
    refuse_untold(*untold(linear, spread, rounding), names)
    nodes = _conditional.untrained(parents, center, scale, linear, constant, spread, settings[:2])
    seen, seen_out = (jnp.arcsinh(jnp.asarray(part, jnp.float32)) for part in parts)
    left, left_out = (
        jnp.asarray((part[:, :n] - constant - part @ linear.T) / spread, jnp.float32)
        for part in parts
    )

    keys = jax.random.split(key, 4)
    caused = np.flatnonzero(parents.any(1))
    if caused.size:
        net = Stack(parents[caused], 0, 2, settings, keys[0])
        layers = trained(net, (seen, left[:, caused]), likelihood, keys[1], settings)
        out = _outputs(layers, net.parents[...], seen_out)
        layers = _weighed(layers, shown_affine(out, left_out[:, caused]))
        affine = jax.tree.map(lambda w, s: _with_rows(w, caused, s), nodes.affine, layers)
        nodes = nodes._replace(affine=affine)

    residual, residual_out = (
        residuals(left, _outputs(nodes.affine, nodes.parents, seen))
        for seen, left in ((seen, left), (seen_out, left_out))
    )
    net = Stack(parents, 2, 1, settings, keys[2])
    layers = trained(net, (seen, residual), matching, keys[3], settings)
    z = jnp.asarray(parts[1][:_LOOKED_AT], jnp.float32)
    shares = shown_velocity(nodes._replace(velocity=layers), z, residual_out[:_LOOKED_AT])
    return nodes._replace(velocity=_weighed(layers, shares[:, None]))


def _with_rows(array: Array, rows: np.ndarray, values: Array) -> Array:
    whole = np.array(array)  # NumPy: JAX would compile for every shape
    whole[rows] = values
    return jnp.asarray(whole)


@jax.jit
def residuals(left: Float[Array, "n d"], out: Float[Array, "d n 2"]) -> Float[Array, "n d"]:
    """What a regression has left, standardised by networks' outputs."""
    return _conditional.standardised(left.T, out)[0].T


def trained(
    net: Any, data: tuple[Array, Array], objective: Any, key: PRNGKeyArray, settings: Settings
) -> Layers:
    steps = settings.steps
    fit = training.fit(
        net,
        data,
        key,
        steps=steps,
        batch=settings.batch,
        objective=objective,
        optimizer=training.adamw(settings.rate, steps, min(100, steps // 10)),
        chunk=50,
        progress=settings.progress,
    )
    return fit.network.layers


# ------------------------------------------------------------------------------- the two objectives


def likelihood(net: Any, key: PRNGKeyArray, batch: tuple[Array, Array]) -> Float[Array, ""]:
    r"""Negative log likelihood of a normal residual, :math:`\tfrac12 r^2 + s`, summed over the
    features."""
    seen, left = batch
    return jnp.mean(_losses(net(seen), left).sum(0))


def _losses(out: Array, left: Array) -> Float[Array, "features n"]:
    residual, log_scale = _conditional.standardised(left.T, out)
    return residual**2 / 2 + log_scale


def matching(net: Any, key: PRNGKeyArray, batch: tuple[Array, Array]) -> Float[Array, ""]:
    r"""Flow matching of the residuals, of which N(0, 1)'s own velocity is known (C12)."""
    seen, residual = batch
    t, point, target = between(key, residual)
    return jnp.mean(jnp.sum((net(seen, t, point)[..., 0].T - target) ** 2, 1))


def between(key: PRNGKeyArray, residual: Float[Array, "n features"]) -> tuple[Array, Array, Array]:
    r"""Times, points between noise and residual, and what their velocity has beyond N(0, 1)'s:
    :math:`r - e - \frac{2t - 1}{s^2} x_t = ((1 - t) r - t e)/s^2`, :math:`s^2 = (1-t)^2 + t^2`.
    Points are in units of s."""
    key_t, key_e = jax.random.split(key)
    t = training.stratified_times(key_t, len(residual), jnp.float32)[:, None]
    noise = jax.random.normal(key_e, residual.shape, jnp.float32)
    variance = (1 - t) ** 2 + t**2
    point = ((1 - t) * noise + t * residual) / jnp.sqrt(variance)
    target = ((1 - t) * residual - t * noise) / variance
    return jnp.broadcast_to(t, residual.shape), point, target


# ------------------------------------------------------------------------- what held-out data shows


def shown_affine(out: Array, left: Array) -> np.ndarray:
    """The share of each feature's nonlinear mean, then of its changing scale, that held-out data
    shows: none where the gain in likelihood is within two standard errors."""
    shares = np.zeros((len(out), 2))
    candidates = np.linspace(0, 1, 11)
    for column in (0, 1):
        losses = []
        for share in candidates:
            shares_tried = np.where(np.arange(2) == column, share, shares)
            losses.append(np.asarray(_losses_at(out, left, jnp.asarray(shares_tried, out.dtype))))
        for i in range(len(out)):
            best = int(np.argmin([loss[i].mean() for loss in losses]))
            shares[i, column] = candidates[best] * shown(losses[0][i] - losses[best][i])
    return shares


@jax.jit
def _losses_at(out: Array, left: Array, shares: Array) -> Array:
    return _losses(out * shares[:, None, :], left)


def shown_velocity(nodes: Nodes, z: Array, residual: Array) -> np.ndarray:
    """Likewise the share of each feature's learned velocity, by the likelihood of residuals held
    out: where none is shown, the residual's flow is that of N(0, 1), exactly.

    Not by the loss of flow matching: the squares of a heavy tail leave its mean no digits.
    """
    candidates = np.linspace(0, 1, 6)
    losses = [np.asarray(_flow_losses(nodes, z, residual, np.float32(s))) for s in candidates]
    losses = [np.where(np.isfinite(loss), loss, np.inf) for loss in losses]
    shares = np.zeros(len(losses[0]))
    for i in range(len(shares)):
        best = int(np.argmin([loss[i].mean() for loss in losses]))
        shares[i] = candidates[best] * shown(losses[0][i] - losses[best][i])
    return shares


@jax.jit
def _flow_losses(nodes: Nodes, z: Array, residual: Array, share: Array) -> Array:
    """Negative log likelihoods ``[features, n]`` where ``share`` of each velocity is kept."""
    w, b = nodes.velocity[-1]
    nodes = nodes._replace(velocity=(*nodes.velocity[:-1], (share * w, share * b)))

    def one(node: Nodes, z: Array, residual: Array) -> Array:
        noise, log_slope = _conditional.solved(node, z, residual, _STEPS, 1.0, 0.0)
        return noise**2 / 2 - log_slope

    return jax.vmap(jax.vmap(one, (None, 0, 0)))(
        nodes, jnp.broadcast_to(z, (residual.shape[1], *z.shape)), residual.T
    )


def shown(gain: np.ndarray) -> bool:
    """Whether gains are above 0 by two standard errors of their mean, where none counts for more
    than ``_LARGEST``: that lowers the mean, and no single one makes the error as large as it."""
    gain = np.minimum(gain, _LARGEST)
    return bool(gain.mean() > 2 * gain.std() / np.sqrt(len(gain)))


def _weighed(layers: Layers, shares: np.ndarray) -> Layers:
    """The same networks with their outputs ``[features, outputs]`` multiplied."""
    shares = shares.astype(np.float32)
    w, b = map(np.asarray, layers[-1])
    return (*layers[:-1], (jnp.asarray(w * shares[:, None, :]), jnp.asarray(b * shares)))


# --------------------------------------------------------------------------------- what is refused


def untold(
    weights: np.ndarray, spread: np.ndarray, rounding: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which features single precision cannot tell from a constant, and which from a function of
    their causes: ``rounding`` is of each column, in units of the precision and of its scale."""
    own = rounding[: len(spread)]
    return own * _TOLD > 1, spread < _TOLD * (own + np.abs(weights) @ rounding)


def refuse_untold(constant: np.ndarray, function: np.ndarray, names: Sequence[str]) -> None:
    def those(chosen: np.ndarray) -> list:
        return [names[k] if names else k for k in np.flatnonzero(chosen).tolist()]

    if bad := those(constant):
        raise ValueError(
            "x must vary by more than single precision rounds, in which the flow answers, but "
            f"{bad} do not beside their size: subtract a constant"
        )
    if bad := those(function):
        raise ValueError(
            f"x must have noise in every feature, but {bad} are functions of their causes, to "
            "single precision's rounding: leave them out of the graph, and compute them"
        )


# ------------------------------------------------------------------------------------ closed pieces


def location(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median and half the width of the middle 68 %: a few extreme values do not squeeze the
    rest. Both are numbers of single precision, in which the flow keeps them."""
    low, center, high = np.quantile(x, [0.158655, 0.5, 0.841345], axis=0)
    half = (high - low) / 2
    return single(center), single(np.where(half > 0, half, x.std(0)))


def single(a: ArrayLike) -> np.ndarray:
    """Rounded to single precision: what is taken off in double is then what is put back."""
    return np.asarray(a, np.float32).astype(np.float64)


def least_squares(parents: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each feature's linear regression on its parents, and the spread of what is left."""
    n, columns = parents.shape
    linear, constant, spread = np.zeros((n, columns)), np.zeros(n), np.ones(n)
    for k in range(n):
        chosen = np.flatnonzero(parents[k])
        seen = np.column_stack([np.ones(len(z)), z[:, chosen]])
        coefficients, *_ = np.linalg.lstsq(seen, z[:, k], rcond=None)
        constant[k], linear[k, chosen] = coefficients[0], coefficients[1:]
        left = z[:, k] - seen @ coefficients
        spread[k] = left.std()
    return linear, constant, spread
