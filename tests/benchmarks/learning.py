"""E6: what a flow of faces has learned of its attributes' dependence, step by step: correlations of
three logits in its samples while ``faces_collider`` is trained.

One to two CPU hours, most of them training. Each measurement is kept in ``build/learning.jsonl`` as
soon as it is made, and is not made again; an interrupted training goes on from ``build/learning``.
``STEPS="500 1000"`` chooses.
"""

import os
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from cdelta import Flow, networks, pretrained, quality
from cdelta.datasets import faces
from tests.benchmarks import _record

NAME = "faces_collider"
RECORD = _record.Record("learning", ("network", "steps"))
SAMPLES, SOLVER_STEPS = 2_048, 4
SOME = np.array([faces.ATTRIBUTES.index(n) for n in ("Heavy_Makeup", "Rosy_Cheeks", "Pointy_Nose")])
PAIRS = {"makeup_cheeks": (0, 1), "makeup_nose": (0, 2), "cheeks_nose": (1, 2)}


def main():
    every = 500
    usual = " ".join(map(str, range(every, pretrained.RECIPES[NAME].steps + 1, every)))
    steps = [int(k) for k in os.environ.get("STEPS", usual).split()]
    for k in steps:
        if (NAME, k) not in RECORD.measured():
            RECORD.keep(network=NAME, steps=k, **measure(k, every))
    report(steps)


def measure(steps, every):
    start = time.process_time()
    recipe = pretrained.RECIPES[NAME]
    fit = recipe.fit(steps, checkpoints="build/learning", every=every, progress=False)
    loss, stderr = recipe.held_out_loss(fit.network)
    found = {"loss": loss, "loss_stderr": stderr} | read(networks.VelocityFromTarget(fit.network))
    return {k: float(v) for k, v in found.items()} | {"cpu": time.process_time() - start}


def some_logits(flow, classifier, x0):
    return classifier(flow(x0))[SOME]


def read(velocity):
    """Correlations of the logits of samples, with their errors; the same latents at every step."""
    flow = Flow(velocity, "midpoint", SOLVER_STEPS, unroll=False)
    f = Partial(some_logits, flow, pretrained.load("face_classifier"))
    latents = jax.random.normal(jax.random.key(100), (SAMPLES, 64, 64, 3), jnp.float32)
    logits = np.asarray(jax.jit(partial(jax.lax.map, batch_size=32))(f, latents), np.float64)

    def statistic(weights):
        r = np.corrcoef(logits[weights > 0].T)
        return np.array([r[pair] for pair in PAIRS.values()])

    values, errors = quality.jackknife(statistic, len(logits))
    found = dict(zip(PAIRS, values, strict=True))
    return found | {f"{name}_stderr": error for name, error in zip(PAIRS, errors, strict=True)}


def report(steps):
    print(f"{'steps':>6}{'held-out loss':>18}" + "".join(f"{name:>18}" for name in PAIRS))
    for k in steps:
        row = RECORD.measured()[NAME, k]
        cells = [f"{row[n]:.4f} ± {row[f'{n}_stderr']:.4f}" for n in ("loss", *PAIRS)]
        print(f"{k:6}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
