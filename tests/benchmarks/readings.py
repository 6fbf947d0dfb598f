"""E6: what stays of the correlation of cheeks and nose in generated faces with make-up held, by two
instruments: the classifier's logits, and the painter read backwards (``faces.read``), which no
classifier takes part in but as the place where the search begins. Painted faces, whose attributes
are known, are read alongside, and so are *known faces of the flow*: generated ones of which that is
replaced which a painter can paint, by what was read of another face. Their attributes are known,
and their residuals (and distance from painted faces) are the flow's.

An hour of CPU. Each row is kept in ``build/readings.jsonl`` as soon as it is made, and is not
made again.

Asked before any row was made (after a look at 1000 other faces of the first training, where the
logits left .096 ± .033 and the readings -.005 ± .030): over the trainings, readings leave at most
.05, and logits at least .03 more than readings of the same faces.

Asked of known faces before any of them was read: over the trainings, readings leave what their
attributes do, within .05 (an instrument that works there), and logits at least .03 more (then what
logits leave is, in part at least, how the classifier reads faces unlike those it learned on).
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from cdelta import Flow, pretrained, quality
from cdelta.datasets import faces
from cdelta.datasets.faces import painter
from tests.benchmarks import _record
from tests.benchmarks.learning import SOLVER_STEPS, SOME, correlations

RECORD = _record.Record("readings", ("faces",))
FACES, ITERATIONS, BATCH = 1_000, 10, 100
COLUMNS = ("makeup_cheeks", "makeup_nose", "cheeks_nose", "left")
KNOWN = ("knows_makeup", "knows_cheeks", "knows_nose", "cheeks_for_makeup", "nose_for_makeup")


def main():
    for name in ("painted", *pretrained.trainings("faces")):
        kinds = {name: partial(generated, name), f"{name}, known": partial(known, name)}
        for kind, make in {"painted": painted}.items() if name == "painted" else kinds.items():
            if (kind,) not in RECORD.measured():
                start = time.process_time()
                row = measure(*make())
                RECORD.keep(faces=kind, n=FACES, **row, cpu=time.process_time() - start)
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


def known(name):
    """Each generated face with what a painter would have painted in its place taken out, and what
    was read of the face before put in: a face of known attributes with a residual of the flow's."""
    images, _ = generated(name)
    _, read = both(images)
    found = np.concatenate([read.attributes, read.nuisances], 1)
    other = np.roll(found, 1, axis=0)
    kept = images - painter.pictures(jnp.asarray(found), *images.shape[1:3])
    return kept + painter.pictures(jnp.asarray(other), *images.shape[1:3]), np.roll(
        read.attributes, 1, axis=0
    )


def both(images):
    """Logits, and the painter read backwards."""
    classifier = pretrained.load("face_classifier")
    logits = np.asarray(jax.jit(partial(jax.lax.map, batch_size=20))(classifier, images))
    start = np.concatenate([logits / 2, np.zeros((FACES, len(faces.NUISANCES)))], 1)
    parts = [
        faces.read(images[at : at + BATCH], start[at : at + BATCH], ITERATIONS)
        for at in range(0, FACES, BATCH)
    ]
    return logits, faces.Reading(*map(np.concatenate, zip(*parts, strict=True)))


def measure(images, attributes=None):
    """Correlations by each instrument, and the differences of what is left, with standard errors;
    where attributes are known, also how well each instrument knows them."""
    logits, read = both(images)
    by = {"logits": logits, "readings": read.attributes}
    if attributes is not None:
        by["attributes"] = attributes
    by = {name: values[:, SOME].astype(float) for name, values in by.items()}

    def statistic(weights):
        kept = {name: values[weights > 0] for name, values in by.items()}
        found = {name: correlations(values) for name, values in kept.items()}
        row = {f"{n}_{c}": v for n, vs in found.items() for c, v in zip(COLUMNS, vs, strict=True)}
        row["left_difference"] = row["logits_left"] - row["readings_left"]
        if "attributes" in by:
            for name in ("logits", "readings"):
                row[f"{name}_beside"] = row[f"{name}_left"] - row["attributes_left"]
                told = knows(kept[name], kept["attributes"])
                row |= {f"{name}_{c}": v for c, v in zip(KNOWN, told, strict=True)}
        names[:] = row
        return np.array(list(row.values()))

    names = []
    values, errors = quality.jackknife(statistic, FACES)
    row = {"distance": float(np.median(read.distance))}
    for name, value, error in zip(names, values, errors, strict=True):
        row |= {name: float(value), f"{name}_stderr": float(error)}
    return row


def knows(values, attributes):
    """Correlation of what is read with what it is of; then what is read as cheeks, and as nose,
    with true make-up at fixed true cheeks and nose."""
    own = [np.corrcoef(values[:, k], attributes[:, k])[0, 1] for k in range(3)]
    held = np.column_stack([np.ones(len(values)), attributes[:, 1:]])
    two = np.column_stack([attributes[:, 0], values[:, 1:]])
    rest = two - held @ np.linalg.lstsq(held, two, rcond=None)[0]
    return [*own, *np.corrcoef(rest.T)[0, 1:]]


def report(rows):
    for row in rows:
        print(f"{row['faces']}: pictures at {row['distance']:.4f} from painted ones")
        for instrument in ("attributes", "logits", "readings"):
            cells = [
                f"{c} {row[f'{instrument}_{c}']:.3f} ± {row[f'{instrument}_{c}_stderr']:.3f}"
                for c in (*COLUMNS, "beside", *KNOWN)
                if f"{instrument}_{c}" in row
            ]
            print(f"{instrument:>12} ", ", ".join(cells))
        print(f"  difference {row['left_difference']:.3f} ± {row['left_difference_stderr']:.3f}")


if __name__ == "__main__":
    main()
