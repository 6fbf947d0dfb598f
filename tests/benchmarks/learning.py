"""E6: what a flow of faces has learned of its attributes' dependence: correlations of three logits
in its samples while a flow of the collider's faces is trained from nothing, and where ``faces`` is
trained on with the loss that it had, with one that pays for what these attributes move, and with
one that pays for what others do; and where it is trained from nothing on fewer faces and on more.

Four to six CPU hours, most of them training. Each measurement is kept in ``build/learning.jsonl``
as soon as it is made, and is not made again; an interrupted training goes on from
``build/learning``. ``STEPS="500 1000"`` chooses those of the first, ``STEPS=`` none.

Asked of the numbers of faces before either flow was trained: if something stays with make-up held
for want of faces, then 30 000 leave at least .05 less than 1000 (``cheeks_nose_left``, a difference
with its error).
"""

import dataclasses
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

RECORD = _record.Record("learning", ("network", "steps"))
SAMPLES, SOLVER_STEPS = 2_048, 4
WATCHED = ("Heavy_Makeup", "Rosy_Cheeks", "Pointy_Nose")
SOME = np.array([faces.ATTRIBUTES.index(name) for name in WATCHED])
PAIRS = {"makeup_cheeks": (0, 1), "makeup_nose": (0, 2), "cheeks_nose": (1, 2)}
LEFT = "cheeks_nose_left"  # make-up held
FACES = pretrained.RECIPES["faces"]
FROM_NOTHING = dataclasses.replace(
    FACES, data_arguments={**FACES.data_arguments, "graph": "collider"}, steps=2000
)
EVERY = 500
ON = dataclasses.replace(FACES, start="faces", steps=EVERY, rate=1e-3, warmup=50, ema=0.98, seed=7)
LOSSES = {
    "faces, the same loss": ON,
    "faces, a loss that pays": dataclasses.replace(ON, watched=WATCHED),
    # the null: the same times, the pixels of attributes that have to do with none of these. Asked
    # before it was trained: of the first's make-up with nose at least .07 less, half of its rise
    "faces, weights elsewhere": dataclasses.replace(
        ON, watched=("Eyeglasses", "Blond_Hair", "Bangs")
    ),
}

TRAININGS = ("faces", "faces_1", "faces_2")  # of 6000 faces: how far trainings differ by themselves
SIZES = {f"faces, of {n}": n for n in (30_000, 1_000)}


def main():
    usual = " ".join(map(str, range(EVERY, FROM_NOTHING.steps + 1, EVERY)))
    steps = [int(k) for k in os.environ.get("STEPS", usual).split()]
    for k in steps:
        keep("collider", k, partial(learned, k), FROM_NOTHING)
    for name in TRAININGS:
        keep(name, 0, lambda name=name: pretrained.load(name).network, FACES)
    for name, recipe in LOSSES.items():
        keep(name, EVERY, lambda recipe=recipe: recipe.fit(progress=False).network, FACES)
    for name, n in SIZES.items():
        keep(name, FACES.steps, partial(of_size, n), FACES)
    done = [
        *((n, 0) for n in TRAININGS),
        *((n, EVERY) for n in LOSSES),
        *((n, FACES.steps) for n in SIZES),
    ]
    report([("collider", k) for k in steps] + done)


def keep(name, steps, network, recipe):
    """Measure what ``network()`` gives, unless it was."""
    if (name, steps) in RECORD.measured():
        return
    start, network = time.process_time(), network()
    loss, stderr = recipe.held_out_loss(network)
    found = {"loss": loss, "loss_stderr": stderr} | read(networks.VelocityFromTarget(network))
    cpu = time.process_time() - start
    RECORD.keep(network=name, steps=steps, **{k: float(v) for k, v in found.items()}, cpu=cpu)


def learned(steps):
    options = dict(checkpoints="build/learning", every=EVERY, progress=False)
    return FROM_NOTHING.fit(steps, **options).network


def of_size(n):
    recipe = dataclasses.replace(FACES, data_arguments={**FACES.data_arguments, "n": n})
    options = dict(checkpoints=f"build/learning-{n}", every=EVERY, progress=False)
    return recipe.fit(**options).network


def some_logits(flow, classifier, x0):
    return classifier(flow(x0))[SOME]


def read(velocity):
    """Correlations of the logits of samples, and what is left of one of them, with their errors;
    the same latents for every network."""
    flow = Flow(velocity, "midpoint", SOLVER_STEPS, unroll=False)
    f = Partial(some_logits, flow, pretrained.load("face_classifier"))
    latents = jax.random.normal(jax.random.key(100), (SAMPLES, 64, 64, 3), jnp.float32)
    logits = np.asarray(jax.jit(partial(jax.lax.map, batch_size=32))(f, latents), np.float64)

    def statistic(weights):
        return correlations(logits[weights > 0])

    values, errors = quality.jackknife(statistic, len(logits))
    names = (*PAIRS, LEFT)
    found = dict(zip(names, values, strict=True))
    return found | {f"{name}_stderr": error for name, error in zip(names, errors, strict=True)}


def correlations(values):
    """Of the three pairs, and what is left of the last where the first column is held."""
    r = np.corrcoef(values.T)
    one, two, both = found = [r[pair] for pair in PAIRS.values()]
    return np.array([*found, (both - one * two) / np.sqrt((1 - one**2) * (1 - two**2))])


def report(measured):
    columns = ("loss", *PAIRS, LEFT)
    print(f"{'':>26}{'steps':>6}" + "".join(f"{name:>18}" for name in columns))
    for name, k in measured:
        row = RECORD.measured()[name, k]
        cells = [f"{row[n]:.4f} ± {row[f'{n}_stderr']:.4f}" for n in columns]
        print(f"{name:>26}{k:6}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
