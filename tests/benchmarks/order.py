"""The causal order of random models from samples alone: C10 against what needs no velocity.

72 nonlinear additive models of two to five features, 10 000 samples each (so many, all of them
right, tell a share of .95: ``ledger.share``), and 40 linear ones with the graphs of the first,
whose order nothing in the law tells. Nulls: features sorted by their
variance before they are scaled and by how well the others explain them (varsortability and
R²-sortability of Reisach et al., 2021 and 2023), and chance. Beside it SCORE (Rolland et al., ICML
2022), written here from its formulas, on 1000 of the samples: it takes the inverse of a matrix of
that size a round.

Each model is kept in ``build/order.jsonl`` as soon as it is measured, and is not measured again.
``SEEDS="0-9"`` chooses, ``KINDS="nonlinear"`` as well.
"""

import os
import time

import jax
import numpy as np

from cdelta import causal
from tests.benchmarks import _record
from tests.causal.examples import admits, random_additive

RECORD = _record.Record("order", ("linear", "seed"))
SEEDS = {"nonlinear": "0-71", "linear": "0-39"}
SAMPLES, SCORE_SAMPLES = 10_000, 1000


def by_variance(raw):
    return np.argsort(raw.var(0))


def by_explained(x):
    """Sorted by the R² of a linear regression on all others, 1 - 1/(precision · variance)."""
    precision = np.linalg.inv(np.cov(x.T))
    return np.argsort(1 - 1 / (np.diag(precision) * x.var(0)))


def by_score(x, ridge=(1e-3, 1e-3)):
    """Leaves by the least variance of the diagonal of the score's Jacobian, by Stein's identity."""
    left, order = list(range(x.shape[1])), []
    while len(left) > 1:
        variances = stein_diagonal(x[:, left], *ridge).var(0)
        order.append(left.pop(int(np.argmin(variances))))
    return np.array([*left, *order[::-1]])


def stein_diagonal(x, first, second):
    """Of the Hessian of log p, at every sample: ridge regression over the kernel of the median
    width, its derivatives in closed form."""
    difference = x[:, None] - x[None]
    distance = np.sqrt((difference**2).sum(2))
    width = np.median(distance)
    kernel = np.exp(-(distance**2) / (2 * width**2))
    slope = -np.einsum("kij,ik->kj", difference, kernel) / width**2
    score = np.linalg.solve(kernel + first * np.eye(len(x)), slope)
    curved = np.einsum("kij,ik->kj", -1 / width**2 + difference**2 / width**4, kernel)
    return np.linalg.solve(kernel + second * np.eye(len(x)), curved) - score**2


def chance(graph, draws=4000):
    rng = np.random.default_rng(0)
    return np.mean([admits(rng.permutation(len(graph)), graph) for _ in range(draws)])


def measure(seed, linear=False):
    x, graph, raw = random_additive(seed, 2 + seed % 4, SAMPLES, linear)
    start = time.process_time()
    found = causal.find_order(x, jax.random.key(seed))
    seconds = time.process_time() - start
    return {
        "seed": seed,
        "linear": linear,
        "features": len(graph),
        "cpu": round(seconds, 2),
        "decided": found.decided,
        "find_order": admits(found.order, graph),
        "SCORE": admits(by_score(x[:SCORE_SAMPLES]), graph),
        "R²": admits(by_explained(x), graph),
        "variance": admits(by_variance(raw), graph),
        "chance": float(chance(graph)),
    }


def report(rows):
    """As a table: shares with their standard errors."""
    print(f"{'models':22}{'decided':>14}{'right':>14}{'of decided':>14}", end="")
    print("".join(f"{name:>14}" for name in ("SCORE", "R²", "variance", "chance")), f"{'CPU s':>7}")
    for linear in (False, True):
        own = [row for row in rows if row["linear"] == linear]
        kinds = [("all", own)]
        kinds += [(f"{d} features", [r for r in own if r["features"] == d]) for d in (2, 3, 4, 5)]
        for kind, chosen in kinds:
            if not chosen:
                continue
            words = f"{'linear' if linear else 'nonlinear'}, {kind}"
            decided = [row for row in chosen if row["decided"]]
            columns = [share(row["decided"] for row in chosen)]
            columns += [share(row["find_order"] for row in chosen)]
            columns += [share(row["find_order"] for row in decided)]
            columns += [share(row[name] for row in chosen) for name in ("SCORE", "R²", "variance")]
            luck = np.mean([row["chance"] for row in chosen])
            spent = np.median([row["cpu"] for row in chosen])
            line = "".join(f"{column:>14}" for column in columns)
            print(f"{words:22}{line}{luck:14.2f} {spent:7.1f}")


def share(found):
    found = list(found)
    if not found:
        return "–"
    mean = np.mean(found)
    return f"{mean:.3f} ± {np.sqrt(mean * (1 - mean) / len(found)):.3f}"


def main():
    kinds = os.environ.get("KINDS", "nonlinear linear").split()
    wanted = [(kind == "linear", seed) for kind in kinds for seed in _record.seeds(SEEDS[kind])]
    for linear, seed in wanted:
        if (linear, seed) not in RECORD.measured():
            RECORD.keep(**measure(seed, linear))
    report([RECORD.measured()[one] for one in wanted])


if __name__ == "__main__":
    main()
