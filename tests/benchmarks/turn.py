"""Following the frame of learned flows: how far it turns, and how wrong it goes (C11).

A joint flow that knows no graph (MLP, three layers of 128, standardised samples) is trained on each
of the 13 published models and on a triangle that bends little. Samples are inverted, feature k is
brought to the training percentiles 25 and 75 of every feature that has effects along its direction
of the frame, and the image is compared with the model's own counterfactual, in standard deviations.
Beside the turn stands the null: how far the asked value is missed, all that can be seen of one
sample without the truth.

Asked of the means over seeds (as of exact maps; before these rows, but for three of them): a rank
correlation of turn and error of at least .9.

Each measurement is kept in ``build/turn.jsonl`` as soon as it is made, and is not made again.
``MODELS="chain3-lin fork-nlin"`` and ``SEEDS="0"`` choose.
"""

import functools
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.stats import spearmanr

from cdelta import Flow, causal, networks, training
from tests.benchmarks import _record

RECORD = _record.Record("turn", ("model", "seed"))
SAMPLES, STEPS, TEST, PAIRS = 25_000, 1500, 60, 400
PERCENTILES = (25, 75)


def mild():
    """A triangle whose mechanisms bend little."""
    return causal.SCM(
        {
            "x1": lambda x, e: e,
            "x2": lambda x, e: x["x1"] + 0.5 * jnp.sin(x["x1"]) + 0.7 * e,
            "x3": lambda x, e: 0.5 * x["x1"] + jnp.tanh(x["x2"]) + 0.5 * e,
        }
    )


def model_of(name):
    return mild() if name == "triangle-mild" else causal.published(name)


def main():
    names = os.environ.get("MODELS", " ".join([*causal.PUBLISHED, "triangle-mild"])).split()
    seeds = _record.seeds("0 1 2")
    for seed in seeds:
        for name in names:
            if (name, seed) not in RECORD.measured():
                RECORD.keep(**measure(name, seed))
    found = RECORD.measured()
    report([found[name, seed] for seed in seeds for name in names], seeds)


def learned(z, seed):
    network = networks.MLP(z.shape[1], 128, 3, rngs=nnx.Rngs(seed))
    return training.fit(
        network, z, jax.random.key(100 + seed), steps=STEPS, batch=512, ema=0.999, chunk=100,
        optimizer=training.adamw(2e-3, STEPS, 50), progress=False,
    ).network  # fmt: skip


@functools.partial(jax.jit, static_argnums=3)
def followed(flow, latents, value, k):
    def one(x):
        return flow(causal.follow(flow, x, k, range(x.size), value, max_steps=200))

    return jax.vmap(one)(latents)


def measure(name, seed):
    start, model = time.process_time(), model_of(name)
    x = np.asarray(model.sample(jax.random.key(seed), SAMPLES), np.float32)
    train, test = np.split(x, [SAMPLES - TEST])
    mean, scale = train.mean(0), train.std(0)
    flow = Flow(learned((train - mean) / scale, seed), "rk4", 8)
    n = model.features
    turn = causal.frame_turn(flow, jax.random.key(2), (n,), PAIRS, range(n))
    latents = jax.vmap(flow.inverse)((test - mean) / scale)
    noises = jax.vmap(model.noises)(test)
    errors, misses = [], []
    for k in np.flatnonzero(np.asarray(model.graph).any(0)):
        for to in np.percentile(train[:, k], PERCENTILES):
            after = followed(flow, latents, (to - mean[k]) / scale[k], int(k))
            truth = (jax.vmap(model.do(int(k), float(to)))(noises) - mean) / scale
            errors.append(jnp.linalg.norm(after - truth, axis=1))
            misses.append(jnp.abs(after[:, k] - (to - mean[k]) / scale[k]))
    errors = np.concatenate(errors)
    return {
        **{"model": name, "seed": seed, "turn": float(turn.turn.mean())},
        "stderr": float(np.linalg.norm(turn.stderr) / n),
        "error": float(np.nanmedian(errors)),
        "lost": float(np.isnan(errors).mean()),
        "missed": float(np.nanmedian(np.concatenate(misses))),
        "cpu": time.process_time() - start,
    }


def ranks_agree(a, b, draws=2000):
    """Spearman's correlation and its bootstrap standard error."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(a), size=(draws, len(a)))
    return spearmanr(a, b)[0], np.std([spearmanr(a[d], b[d])[0] for d in drawn])


def report(rows, seeds):
    print(f"{'model':18}{'turn':>17}{'median error':>15}{'missed':>10}{'lost':>7}{'CPU s':>8}")
    for row in rows:
        print(
            f"{row['model']:15}{row['seed']:3}{row['turn']:9.4f} ± {row['stderr']:.4f}"
            f"{row['error']:14.4f}{row['missed']:11.1e}{row['lost']:7.2f}{row['cpu']:8.1f}"
        )
    models = dict.fromkeys(row["model"] for row in rows)
    for which, chosen in {
        **{f"seed {seed}": [seed] for seed in seeds},
        "their means": seeds,
    }.items():
        turn, error, missed = (
            np.array(
                [
                    np.mean([r[what] for r in rows if r["model"] == name and r["seed"] in chosen])
                    for name in models
                ]
            )
            for what in ("turn", "error", "missed")
        )
        print(f"{which}: rank correlation with the error", end="")
        for what, values in {"of the turn": turn, "of how far the value is missed": missed}.items():
            rank, stderr = ranks_agree(values, error)
            print(f", {what} {rank:.3f} ± {stderr:.3f}", end="")
        print()


if __name__ == "__main__":
    main()
