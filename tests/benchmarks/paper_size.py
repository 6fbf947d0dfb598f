"""E2 at the paper's size: ten layers of 1024 units, 1000 points, batches of 64, AdamW; what the
wiggles of the trained flow correlate, seed by seed.

The text's rate is 1e-4, the code's 1e-3. Beside both, over the same points: averaged weights, four
times the steps, flax's initial weights, and predicting the velocity only: points shuffled (nothing
to find), and every initial weight changed by a part in ten million or so, as rounding would. A
network that predicts the target is read as ``VelocityFromTarget`` and, as the authors' sampler
does, as a velocity.

One to three CPU minutes a network. A run on another number of cores is another run: sums are
rounded in another order. Each measurement is kept in ``build/paper_size.jsonl`` as soon as it is
made, and is not made again. ``WAYS="text code"`` and ``SEEDS="0"`` choose.
"""

import os
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from cdelta import Flow, Gaussian, dependence, networks, training
from tests.benchmarks import _record

RECORD = _record.Record("paper_size", ("way", "objective", "seed"))
RHO, POINTS, BATCH, LATENTS = 0.55, 1000, 64, 100


class Way(NamedTuple):
    """How a network is trained."""

    rate: float
    steps: int = 1000
    ema: float = 0.0  # 0: the last weights
    pytorch: bool = True  # its initial weights
    shuffled: bool = False
    nudge: float = 0.0  # of the initial weights, relative
    predicts: tuple[str, ...] = ("velocity", "target")


WAYS = {
    "text": Way(1e-4),
    "code": Way(1e-3),
    "text, 4000 steps": Way(1e-4, steps=4000),
    "text, averaged": Way(1e-4, ema=0.99),
    "code, averaged": Way(1e-3, ema=0.99),
    "text, flax": Way(1e-4, pytorch=False),
    "code, flax": Way(1e-3, pytorch=False),
    "text, shuffled": Way(1e-4, shuffled=True, predicts=("velocity",)),
    "text, nudged": Way(1e-4, nudge=1e-7, predicts=("velocity",)),
    "code, nudged": Way(1e-3, nudge=1e-7, predicts=("velocity",)),
}
OBJECTIVES = {"velocity": training.loss, "target": training.target_loss}


def main():
    chosen = os.environ.get("WAYS")
    ways = [way for way in WAYS if chosen is None or way in chosen.split(";")]
    seeds = _record.seeds("0 1 2")
    for way in ways:
        for objective in WAYS[way].predicts:
            for seed in seeds:
                if (way, objective, seed) not in RECORD.measured():
                    found = measure(WAYS[way], objective, seed)
                    RECORD.keep(way=way, objective=objective, seed=seed, **found)
    report(ways, seeds)


def points_of(seed, shuffled):
    """As on the page: the same seed, the same points."""
    with jax.enable_x64(True):
        key = jax.random.split(jax.random.key(seed))[0]
        target = Gaussian(jnp.zeros(2), jnp.array([[1.0, RHO], [RHO, 1.0]]))
        points = target.sample(key, POINTS)
        if shuffled:
            second = jax.random.permutation(jax.random.fold_in(key, 1), points[:, 1])
            points = points.at[:, 1].set(second)
        return np.asarray(points, np.float32)


def nudged(network, size, key):
    """Every weight times 1 + size · a standard normal number."""
    graph, state, rest = nnx.split(network, nnx.Param, ...)
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(key, len(leaves))
    moved = [
        leaf * (1 + size * jax.random.normal(k, leaf.shape))
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return nnx.merge(graph, jax.tree.unflatten(tree, moved), rest)


def measure(way, objective, seed):
    start = time.process_time()
    rngs = nnx.Rngs(seed)
    network = networks.MLP(2, 1024, 10, 512, rngs=rngs)
    if way.pytorch:
        network = networks.as_pytorch(network, rngs)
    if way.nudge:
        network = nudged(network, way.nudge, jax.random.key(seed + 1))
    points = points_of(seed, way.shuffled)
    fit = training.fit(
        network, points, jax.random.split(jax.random.key(seed))[1], steps=way.steps, batch=BATCH,
        objective=OBJECTIVES[objective], optimizer=optax.adamw(way.rate, weight_decay=1e-2),
        ema=way.ema, chunk=50, progress=False,
    )  # fmt: skip
    readings = {"velocity": {"": fit.network}}.get(objective) or {
        "": networks.VelocityFromTarget(fit.network),
        "misread_": fit.network,
    }
    found = {"points": np.corrcoef(points.T)[0, 1], "loss": np.mean(fit.losses[-50:])}
    for name, velocity in readings.items():
        flow = Flow(velocity, "rk4", 12)
        wiggles = dependence.wiggle_moment(flow, jax.random.key(5), (2,), LATENTS)
        found |= {
            f"{name}correlation": wiggles.correlation[0, 1],
            f"{name}stderr": wiggles.correlation_stderr[0, 1],
            f"{name}variance": np.trace(wiggles.matrix) / 2,
        }
    return {k: float(v) for k, v in found.items()} | {"cpu": time.process_time() - start}


def report(ways, seeds):
    """Mean over the seeds ± their standard error; the distance of a run from its points is a root
    mean square."""
    print(f"{'way':18}{'predicts':10}{'loss':>7}{'correlation':>17}{'variance':>16}{'apart':>8}")
    for way in ways:
        for objective in WAYS[way].predicts:
            rows = [RECORD.measured()[way, objective, seed] for seed in seeds]
            table = {field: np.array([row[field] for row in rows]) for field in rows[0]}
            for name in ("", "misread_") if objective == "target" else ("",):
                found, variance = table[f"{name}correlation"], table[f"{name}variance"]
                error = np.std([found, variance], axis=1, ddof=1) / np.sqrt(len(seeds))
                print(
                    f"{way:18}{name or objective:10}{table['loss'].mean():7.3f}"
                    f"{found.mean():9.3f} ± {error[0]:.3f}{variance.mean():9.2f} ± {error[1]:.2f}"
                    f"{np.sqrt(np.mean((found - table['points']) ** 2)):8.3f}"
                )


if __name__ == "__main__":
    main()
