"""E6: what a flow of faces has learned of its attributes' dependence: correlations of three logits
in its samples while ``faces_collider`` is trained, and where ``faces`` is trained on with a loss
that pays for what these attributes move, and with the loss that it had.

Two to three CPU hours, most of them training. Each measurement is kept in ``build/learning.jsonl``
as soon as it is made, and is not made again; an interrupted training goes on from
``build/learning``. ``STEPS="500 1000"`` chooses those of the first, ``STEPS=`` none.
"""

import os
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from cdelta import Flow, networks, pretrained, quality, training
from cdelta.datasets import faces
from tests.benchmarks import _record

NAME = "faces_collider"
RECORD = _record.Record("learning", ("network", "steps"))
SAMPLES, SOLVER_STEPS = 2_048, 4
SOME = np.array([faces.ATTRIBUTES.index(n) for n in ("Heavy_Makeup", "Rosy_Cheeks", "Pointy_Nose")])
PAIRS = {"makeup_cheeks": (0, 1), "makeup_nose": (0, 2), "cheeks_nose": (1, 2)}


ON, RATE, TIMES = 500, 1e-3, (0.2, 0.6)
LOSSES = {"the same loss": False, "a loss that pays": True}


def main():
    every = 500
    usual = " ".join(map(str, range(every, pretrained.RECIPES[NAME].steps + 1, every)))
    steps = [int(k) for k in os.environ.get("STEPS", usual).split()]
    for k in steps:
        keep(NAME, k, partial(learned, k, every))
    keep("faces", 0, lambda: pretrained.load("faces").network)
    for said, pays in LOSSES.items():
        keep(f"faces, {said}", ON, partial(trained_on, pays))
    report(
        [(NAME, k) for k in steps] + [("faces", 0), *((f"faces, {said}", ON) for said in LOSSES)]
    )


def keep(name, steps, network):
    """Measure what ``network()`` gives, unless it was."""
    if (name, steps) in RECORD.measured():
        return
    start, network = time.process_time(), network()
    loss, stderr = pretrained.RECIPES[name.split(",")[0]].held_out_loss(network)
    found = {"loss": loss, "loss_stderr": stderr} | read(networks.VelocityFromTarget(network))
    cpu = time.process_time() - start
    RECORD.keep(network=name, steps=steps, **{k: float(v) for k, v in found.items()}, cpu=cpu)


def learned(steps, every):
    recipe = pretrained.RECIPES[NAME]
    return recipe.fit(steps, checkpoints="build/learning", every=every, progress=False).network


def trained_on(pays):
    """``faces``, some steps more."""
    images, labels = faces.dataset(**pretrained.RECIPES["faces"].data_arguments)
    weight = partial(weighed, weight_of(images, labels[:, SOME])) if pays else None
    network = pretrained.load("faces").network
    network.train()
    return training.fit(
        network,
        images,
        jax.random.key(7),
        steps=ON,
        batch=64,
        objective=partial(training.target_velocity_loss, weight=weight),
        optimizer=training.adamw(RATE, ON, 50),
        ema=0.98,
        progress=False,
    ).network


def weight_of(images, labels):
    """Of each pixel and colour: the share of its variance that the labels explain, and .02; 1 on
    average."""
    x = images.reshape(len(images), -1).astype(float)
    x, labels = x - x.mean(0), labels.astype(float) - labels.mean(0)
    rest = x - labels @ np.linalg.lstsq(labels, x)[0]
    weight = 0.02 + 1 - (rest**2).mean(0) / x.var(0)
    return jnp.asarray((weight / weight.mean()).reshape(images.shape[1:]), jnp.float32)


def weighed(weight, t):
    """Ten times as much at the times at which an attribute comes to be told from the noise."""
    low, high = TIMES
    return weight * jnp.where((t > low) & (t < high), 10.0, 1.0) / (1 + 9 * (high - low))


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


def report(measured):
    print(f"{'':>26}{'steps':>6}{'held-out loss':>18}" + "".join(f"{n:>18}" for n in PAIRS))
    for name, k in measured:
        row = RECORD.measured()[name, k]
        cells = [f"{row[n]:.4f} ± {row[f'{n}_stderr']:.4f}" for n in ("loss", *PAIRS)]
        print(f"{name:>26}{k:6}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
