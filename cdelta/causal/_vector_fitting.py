r"""How the pieces of a vector's flow are fitted: as a feature's, all its components by one network.
Imported when a flow is fitted, for it needs networks and an optimizer."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from cdelta import networks, training
from cdelta._pytree import as_pytree
from cdelta.causal import _conditional, _fitting, _vectors
from cdelta.causal._conditional import Layers
from cdelta.causal._fitting import Settings
from cdelta.causal._vectors import Own, Vector

LARGEST = 1024  # numbers of a vector whose covariance is taken out: it has a matrix of d × d
_SHRUNK = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)  # shares of a covariance without its correlations
_REPEATS = 16  # times and noises drawn for each sample that was held out
_FLAT = 1e-3  # of the largest: a direction that varies less is taken to vary so much


class Joint(nnx.Module):
    """One network of all components, which starts as 0."""

    def __init__(self, c: int, d: int, moving: bool, settings: Settings, key: PRNGKeyArray):
        self.outputs = 1 if moving else 2
        widths = [c + moving * (1 + d), *[settings.width] * settings.layers]
        deviations = tuple(np.float32(1 / np.sqrt(max(a, 1))) for a in widths[:-1])
        weights, offsets = _fitting.at_start(key, deviations, (*widths, d * self.outputs))
        self.weights = nnx.List([nnx.Param(w) for w in weights])
        self.offsets = nnx.List([nnx.Param(b) for b in offsets])

    @property
    def layers(self) -> Layers:
        return tuple((w[...], b[...]) for w, b in zip(self.weights, self.offsets, strict=True))

    def __call__(
        self, seen: Float[Array, "n c"], *own: Float[Array, "n d"]
    ) -> Float[Array, "d n outputs"]:
        return _outputs(self.layers, self.outputs, seen, *own)


@functools.partial(jax.jit, static_argnums=1)
def _outputs(layers: Layers, outputs: int, seen: Array, *own: Array) -> Array:
    """As the networks of several features: ``own`` are the times, one a sample, and the points."""
    inputs = jnp.concatenate([own[0][:, :1], own[1], seen] if own else [seen], 1)
    out = _conditional.network(layers, inputs)
    return out.reshape(len(seen), -1, outputs).transpose(1, 0, 2)


def fitted(
    x: tuple[np.ndarray, np.ndarray],
    given: tuple[np.ndarray, np.ndarray],
    key: PRNGKeyArray,
    settings: Settings,
    name: str = "",
) -> Vector:
    """The pieces of one vector's flow from samples ``[N, d]`` and what its causes are, ``[N, c]``,
    of the data and of what was held out. Raises ValueError, with its name, as that of numbers."""
    (d, c), sizes = (x[0].shape[1], given[0].shape[1]), settings[:2]
    center, scale = location(x[0])
    y, y_out = ((part - center) / scale for part in x)
    linear, constant = _regression(given[0], y)
    left, left_out = (
        part - constant - seen @ linear.T for part, seen in zip((y, y_out), given, strict=True)
    )
    rounding = np.concatenate([np.abs(center) / scale + y.std(0), np.sqrt((given[0] ** 2).mean(0))])
    beside = np.concatenate([np.zeros((d, d)), linear], 1)
    untold = _fitting.untold(beside, left.std(0), rounding)
    _fitting.refuse_untold(*(mask.all(keepdims=True) for mask in untold), [name])
    root, unroot = roots(left, left_out)
    left, left_out = (jnp.asarray(part @ unroot, jnp.float32) for part in (left, left_out))
    seen, seen_out = (jnp.arcsinh(jnp.asarray(part, jnp.float32)) for part in given)
    whole = _vectors.untrained(d, c, sizes)
    arrays = (center, scale, linear, constant, root, unroot)
    whole = whole._replace(
        **dict(zip(Vector._fields, (jnp.asarray(a, jnp.float32) for a in arrays), strict=False))
    )

    keys = jax.random.split(key, 5)
    if c:
        net = Joint(c, d, False, settings, keys[0])
        layers = _fitting.trained(net, (seen, left), _fitting.likelihood, keys[1], settings)
        out = _outputs(layers, 2, seen_out)
        layers = _weighed(layers, _fitting.shown_affine(out, left_out))
        whole = whole._replace(affine=layers)

    residual, residual_out = (
        _fitting.residuals(left, _outputs(whole.affine, 2, seen))
        for seen, left in ((seen, left), (seen_out, left_out))
    )
    net = Joint(c, d, True, settings, keys[2])
    layers = _fitting.trained(net, (seen, residual), _fitting.matching, keys[3], settings)
    shares = _shown_velocity(layers, seen_out, residual_out, keys[4])
    return whole._replace(velocity=_weighed(layers, shares[:, None]))


def of_own(
    network: Callable,
    x: np.ndarray,
    given: np.ndarray,
    key: PRNGKeyArray,
    settings: Settings,
) -> Own:
    """The same of values ``[N, *shape]`` with a network of the user's, which is the whole velocity
    of the value, standardised as one."""
    center, scale = map(_fitting.single, (x.mean(), x.std()))
    x, seen = (x - center) / scale, np.arcsinh(given).astype(np.float32)
    if isinstance(network, networks.BesideNormal):
        network = network.given(x, seen if seen.shape[1] else None)
    steps = settings.steps
    fit = training.fit(
        network,
        x.astype(np.float32),
        key,
        steps=steps,
        batch=settings.batch,
        conditions=seen if seen.shape[1] else None,
        optimizer=training.adamw(settings.rate, steps, min(100, steps // 10)),
        progress=settings.progress,
    )
    center, scale = (jnp.asarray(a, jnp.float32) for a in (center, scale))
    return Own(center, scale, as_pytree(fit.network))


# ------------------------------------------------------------------------------------ closed pieces


def location(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and spreads of the components; one that does not vary is not stretched to those that
    do."""
    spread = x.std(0)
    return tuple(map(_fitting.single, (x.mean(0), np.maximum(spread, _FLAT * spread.max()))))


def _regression(given: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    columns = np.column_stack([np.ones(len(y)), given])
    # of one label's columns one too many: the shortest of the solutions
    coefficients, *_ = np.linalg.lstsq(columns, y, rcond=None)
    return coefficients[1:].T, coefficients[0]


def roots(left: np.ndarray, left_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The symmetric root of a residual's covariance, and its inverse. The covariance's correlations
    are shrunk by the share at which held-out residuals are likeliest: of few samples in many
    dimensions it knows too little."""
    cov = left.T @ left / len(left)
    found = []
    for share in _SHRUNK:
        size, axes = np.linalg.eigh((1 - share) * cov + share * np.diag(np.diag(cov)))
        size = np.maximum(size, _FLAT**2 * size.max())
        loss = np.log(size).sum() + ((left_out @ axes) ** 2 / size).sum(1).mean()
        found.append((loss, size, axes))
    _, size, axes = min(found, key=lambda one: one[0])
    return (axes * np.sqrt(size)) @ axes.T, (axes / np.sqrt(size)) @ axes.T


def _shown_velocity(layers: Layers, seen: Array, residual: Array, key: PRNGKeyArray) -> np.ndarray:
    """The share of each component's learned velocity that held-out residuals show, by the loss of
    flow matching: a likelihood would cost a product a component."""
    drawn = [_products(layers, seen, residual, k) for k in jax.random.split(key, _REPEATS)]
    both, square = (np.mean(part, 0) for part in zip(*drawn, strict=True))  # [n, d] each
    size = np.maximum(square.mean(0), np.finfo(np.float32).tiny)
    shares = np.clip(both.mean(0) / size, 0, 1)
    gains = 2 * shares * both - shares**2 * square
    return np.array(
        [share * _fitting.shown(gain) for share, gain in zip(shares, gains.T, strict=True)]
    )


@jax.jit
def _products(layers: Layers, seen: Array, residual: Array, key: Any) -> tuple[Array, Array]:
    t, point, target = _fitting.between(key, residual)
    out = _outputs(layers, 1, seen, t, point)[..., 0].T
    return out * target, out**2


def _weighed(layers: Layers, shares: np.ndarray) -> Layers:
    """The same network with its outputs, ``[d, outputs]`` of them, multiplied."""
    w, b = map(np.asarray, layers[-1])  # NumPy: JAX would compile for every shape
    factors = shares.astype(np.float32).reshape(-1)
    return (*layers[:-1], (jnp.asarray(w * factors), jnp.asarray(b * factors)))
