"""Counterfactuals of the published models: ``CausalFlow`` beside the flows of ``causalflows``.

Each of 13 models: 25 000 samples, 80/10/10; do(x_k) at the training percentiles 25, 50, 75 of every
feature that has effects; 1000 test points; the error against the model's own counterfactual, in
standard deviations of each feature, as root mean square and as median of its norm. The same data,
of the same three seeds, for all three flows.

causalflows 0.1.0 is PyTorch and no dependency of this project. It runs in an environment of its
own, whose Python ``PEER_PYTHON`` names; without one, only ``CausalFlow`` is measured:

    python -m venv peer && peer/bin/pip install torch causalflows==0.1.0
    PEER_PYTHON=peer/bin/python make bench NAMES=counterfactuals

Each measurement is kept in ``build/counterfactuals.jsonl`` as soon as it is made, and is not made
again: a run that was stopped goes on. ``MODELS="chain3-lin fork-nlin"`` and ``SEEDS="0"`` choose.
"""

import os
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np

SAMPLES, TEST = 25_000, 1000
PERCENTILES = (25, 50, 75)


def main():
    from cdelta import causal
    from tests.benchmarks import _record  # not in the peer's Python

    names = os.environ.get("MODELS", " ".join(causal.PUBLISHED)).split()
    seeds = _record.seeds("0 1 2")
    peer = os.environ.get("PEER_PYTHON")
    for name in names:
        for seed in seeds:
            ways = ["ours", *(["affine", "spline"] if peer else [])]
            missing = [way for way in ways if (name, seed, way) not in record().measured()]
            if missing:
                measure(causal.published(name), name, seed, missing, peer)
        print(row(name), flush=True)


def record():
    from tests.benchmarks._record import Record

    return Record("counterfactuals", ("model", "seed", "way"))


def row(name):
    """One line of the table: mean over the seeds, and their standard deviation."""
    cells = [f"{name:16}"]
    for way in ("ours", "affine", "spline"):
        values = np.array([
            [r["cpu"], r["rms"], r["median"]]
            for (m, _, w), r in record().measured().items() if (m, w) == (name, way)
        ])  # fmt: skip
        if len(values):
            cpu, rms, median = values.mean(0)
            spread = values[:, 2].std(ddof=1) if len(values) > 1 else np.nan
            cells.append(f"{way} {cpu:5.1f} s {rms:8.4f} {median:.4f} ± {spread:.4f}")
    return " | ".join(cells)


def measure(model, name, seed, ways, peer):
    import jax

    x = np.asarray(model.sample(jax.random.key(seed), SAMPLES), np.float32)
    train, held_out, test = np.split(x, [SAMPLES * 8 // 10, SAMPLES * 9 // 10])
    test = test[:TEST]
    changes = interventions(model.graph, train)
    truth = true_counterfactuals(model, test, changes)
    for way in ways:
        if way == "ours":
            found, cpu, peers = *ours(model, seed, train, held_out, test, changes), {}
        else:
            found, cpu, peers = theirs(peer, way, model, seed, train, test, changes)
        norms = np.linalg.norm((found - truth) / train.std(0), axis=2)
        record().keep(
            model=name, seed=seed, way=way, cpu=round(cpu, 2),
            rms=float(np.sqrt(np.nanmean(norms**2))), median=float(np.nanmedian(norms)),
            **peers,
        )  # fmt: skip


def interventions(graph, train):
    """Every feature that has effects, at each percentile."""
    return [
        (k, float(np.percentile(train[:, k], q)))
        for k in range(len(graph))
        if graph[:, k].any()
        for q in PERCENTILES
    ]


def true_counterfactuals(model, x, changes):
    """Compiled once for the noises and once a feature, not once a value."""
    import jax

    noises = jax.jit(jax.vmap(model.noises))(x)
    played = {
        k: jax.jit(jax.vmap(lambda e, value, k=k: model.do(k, value)(e), (0, None)))
        for k in {k for k, _ in changes}
    }
    return np.stack([played[k](noises, value) for k, value in changes])


def ours(model, seed, train, held_out, test, changes):
    import jax

    from cdelta.causal import CausalFlow

    start = time.process_time()
    flow = CausalFlow(model.graph, model.names)
    flow = flow.fit(train, jax.random.key(100 + seed), held_out=held_out)
    cpu = time.process_time() - start
    return np.stack([np.asarray(flow.counterfactual(test, k, v)) for k, v in changes]), cpu


def theirs(peer, way, model, seed, train, test, changes):
    """In the peer's own Python: this file, run as a program."""
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder, "given.npz"), Path(folder, "result.npz")
        features, values = zip(*changes, strict=True)
        np.savez(given, graph=model.graph, train=train, test=test, features=features, values=values)
        subprocess.run(
            [peer, __file__, way, str(seed), given, result],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        with np.load(result) as found:
            return found["found"], float(found["cpu"]), {"peer": str(found["peer"])}


def peer_fit(way, seed, given, result):
    """Their flow given the graph: two hidden layers of 64, standardised data, 2000 steps of 512,
    Adam from 1e-3 along a cosine, one thread."""
    import torch
    from causalflows.flows import CausalMAF, CausalNSF

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    data = np.load(given)
    mean, scale = data["train"].mean(0), data["train"].std(0)
    train, test = (torch.tensor((data[part] - mean) / scale) for part in ("train", "test"))
    n = train.shape[1]
    start = time.process_time()
    adjacency = torch.tensor(data["graph"]) | torch.eye(n, dtype=torch.bool)
    kind = {"affine": CausalMAF, "spline": CausalNSF}[way]
    flow = kind(n, adjacency=adjacency, hidden_features=(64, 64))
    optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2000)
    for _ in range(2000):
        batch = train[torch.randint(len(train), (512,))]
        loss = -flow().log_prob(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    cpu = time.process_time() - start
    found = []
    with torch.no_grad():
        for k, value in zip(data["features"], data["values"], strict=True):
            aim = float((value - mean[k]) / scale[k])
            found.append(flow().compute_counterfactual(test, int(k), aim).numpy() * scale + mean)
    peer = ", ".join(f"{name} {metadata.version(name)}" for name in ("causalflows", "torch"))
    np.savez(result, found=np.stack(found), cpu=cpu, peer=peer)


if __name__ == "__main__":
    peer_fit(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
