"""E6: what stays of the correlation of cheeks and nose in generated faces with make-up held, by two
instruments: the classifier's logits, and the painter read backwards (``faces.read``), which no
classifier takes part in but as the place where the search begins. Painted faces, whose attributes
are known, are read alongside.

Half an hour of CPU. Each row is kept in ``build/readings.jsonl`` as soon as it is made, and is not
made again.

Asked before any row was made (after a look at 1000 other faces of the first training, where the
logits left .096 ± .033 and the readings -.005 ± .030): over the trainings, readings leave at most
.05, and logits at least .03 more than readings of the same faces.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from cdelta import Flow, pretrained, quality
from cdelta.datasets import faces
from tests.benchmarks import _record
from tests.benchmarks.learning import SOLVER_STEPS, SOME, correlations

RECORD = _record.Record("readings", ("faces",))
FACES, ITERATIONS, BATCH = 1_000, 10, 100
COLUMNS = ("makeup_cheeks", "makeup_nose", "cheeks_nose", "left")


def main():
    for name in ("painted", *pretrained.trainings("faces")):
        if (name,) not in RECORD.measured():
            start = time.process_time()
            row = measure(*(painted() if name == "painted" else generated(name)))
            RECORD.keep(faces=name, n=FACES, **row, cpu=time.process_time() - start)
    report(RECORD.measured().values())


def painted():
    """Held-out faces (a tenth of each ten) and their attributes."""
    data = faces.dataset("held_out", "common_cause", 10 * FACES)
    return jnp.asarray(data.images), np.log(data.labels / (1 - data.labels)) / 2


def drawn(flow, x0):
    return flow(x0)


def generated(name):
    flow = Flow(pretrained.load(name), "midpoint", SOLVER_STEPS, unroll=False)
    latents = jax.random.normal(jax.random.key(101), (FACES, 64, 64, 3), jnp.float32)
    make = jax.jit(partial(jax.lax.map, batch_size=20))
    return make(Partial(drawn, flow), latents), None


def measure(images, attributes=None):
    """Correlations by each instrument, and the difference of what is left, with standard errors."""
    classifier = pretrained.load("face_classifier")
    logits = np.asarray(jax.jit(partial(jax.lax.map, batch_size=20))(classifier, images))
    start = np.concatenate([logits / 2, np.zeros((FACES, len(faces.NUISANCES)))], 1)
    read = [
        faces.read(images[at : at + BATCH], start[at : at + BATCH], ITERATIONS)
        for at in range(0, FACES, BATCH)
    ]
    distance = np.concatenate([part.distance for part in read])
    by = {"logits": logits, "readings": np.concatenate([part.attributes for part in read])}
    if attributes is not None:
        by["attributes"] = attributes

    def statistic(weights):
        found = [correlations(values[weights > 0][:, SOME].astype(float)) for values in by.values()]
        return np.concatenate([*found, found[0][-1:] - found[1][-1:]])

    values, errors = quality.jackknife(statistic, FACES)
    names = [f"{instrument}_{column}" for instrument in by for column in COLUMNS]
    row = {"distance": float(np.median(distance))}
    for at, name in enumerate([*names, "left_difference"]):
        row |= {name: float(values[at]), f"{name}_stderr": float(errors[at])}
    return row


def report(rows):
    for row in rows:
        print(f"{row['faces']}: pictures at {row['distance']:.4f} from painted ones")
        for instrument in ("attributes", "logits", "readings"):
            cells = [
                f"{c} {row[f'{instrument}_{c}']:.3f} ± {row[f'{instrument}_{c}_stderr']:.3f}"
                for c in COLUMNS
                if f"{instrument}_{c}" in row
            ]
            print(f"{instrument:>12} ", ", ".join(cells))
        print(f"  difference {row['left_difference']:.3f} ± {row['left_difference_stderr']:.3f}")


if __name__ == "__main__":
    main()
