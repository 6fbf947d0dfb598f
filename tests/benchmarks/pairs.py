"""Which of two is the cause, on real pairs whose answer is known: C10 against two published
methods, and the order of eleven proteins, beside the same and three other orders.

Needs the wheel of cdt 0.6.0: ``pip download --no-deps cdt==0.6.0``, and its path in ``CDELTA_CDT``
(or ``pip install --no-deps cdt==0.6.0``). Beside C10 stand, written here from their formulas, the
additive-noise model (Hoyer et al., 2008, with HSIC as in Mooij et al., 2016: of the two regressions
the one with the more independent residual) and IGCI (Janzing et al., 2012: the cause has the larger
entropy, uniform reference). Errors are those of a binomial share; the weighted share counts data
sets, not pairs. At most 1000 samples a pair, 300 for HSIC.

On the proteins (logarithms of their amounts, 1000 cells, the same for all) each known edge is given
to the three methods as a pair, and four whole orders are compared by the share of edges whose cause
they put first: C10's, SCORE's, and those by R² and by variance, as in the benchmark of orders. That
C10's order gives half was known when the others were added. What was asked of them, before any was
run: that C10's share exceeds the best of the others', of the directions and of the orders, by two
standard errors of the difference, and chance, one half, by two of its own (``ledger.share``, as if
edges were independent). The spread of random orders, which knows which edges meet, is kept beside.
Where it is not so, no method is told from another, or C10 is behind: either is to be said.

The shares are kept in ``build/pairs.jsonl``, a line a method and one for the proteins, and are not
measured again.
"""

import os
import time

import jax
import numpy as np

from cdelta import causal, ledger
from cdelta.datasets import pairs
from tests.benchmarks import _record, order

RECORD = _record.Record("pairs", ("method",))
VALUES, LEAST, SAMPLES, KERNEL_SAMPLES = 20, 100, 1000, 300


def standard(x):
    return (x - x.mean()) / x.std()


def by_order(x, y, seed):
    """The cause's score above the effect's, in their standard errors."""
    found = causal.find_order(np.stack([x, y], 1), jax.random.key(seed), waves=120)
    return (found.scores[0, 0] - found.scores[0, 1]) / np.hypot(*found.stderr[0])


def kernel(x):
    distance = (x[:, None] - x) ** 2
    return np.exp(-distance / np.median(distance[distance > 0]))


def hsic(x, y):
    centred = kernel(x) - kernel(x).mean(0)
    return (centred * (kernel(y) - kernel(y).mean(0)).T).sum() / len(x) ** 2


def residual(x, y):
    """Of kernel ridge regression of y on x, its ridge by generalised cross-validation."""
    size, axes = np.linalg.eigh(kernel(x))
    size, turned = np.maximum(size, 0), axes.T @ y
    best = None
    for ridge in 10.0 ** np.arange(-3, 2.1, 0.5):
        left = ridge / (size + ridge)
        loss = np.mean((left * turned) ** 2) / np.mean(left) ** 2
        if best is None or loss < best[0]:
            best = loss, axes @ (left * turned)
    return standard(best[1])


def by_independence(x, y, seed):
    return hsic(y, residual(y, x)) - hsic(x, residual(x, y))


def entropy(x):
    """Of values scaled to [0, 1], from their spacings."""
    gaps = np.diff(np.sort((x - x.min()) / np.ptp(x)))
    return np.mean(np.log(gaps[gaps > 0]))


def by_entropy(x, y, seed):
    return entropy(x) - entropy(y)


METHODS = {"C10": by_order, "ANM, HSIC": by_independence, "IGCI": by_entropy}


def measure(pair, seed):
    """Of each method, by how much it says that the cause is the cause."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(pair.cause))[:SAMPLES]
    cause, effect = standard(pair.cause[chosen]), standard(pair.effect[chosen])
    found = {}
    for name, method in METHODS.items():
        n = KERNEL_SAMPLES if method is by_independence else SAMPLES
        start = time.process_time()
        found[name] = float(method(cause[:n], effect[:n], seed)), time.process_time() - start
    return found


def enough(pair):
    """Sides that are not coarsely rounded, and the samples that ``find_order`` asks for."""
    values = min(len(np.unique(pair.cause)), len(np.unique(pair.effect)))
    return values >= VALUES and len(pair.cause) >= LEAST


def shares(name, results, weights):
    """Of one method: shares right, of all, by weight, and of the half that it is surest of, with
    their errors."""
    says = np.array([result[name][0] for result in results])
    right, half = says > 0, np.abs(says) >= np.median(np.abs(says))
    alike = np.ones(len(says))
    found = {"pairs": len(says), "by_weight": weights.sum() ** 2 / (weights**2).sum()}
    for what, (hits, weight) in {
        "right": (right, alike),
        "weighted": (right, weights),
        "surest": (right[half], alike[half]),
    }.items():
        found[what], found[f"{what}_stderr"] = share(hits, weight)
    return found | {"cpu": np.median([result[name][1] for result in results])}


def share(right, weights):
    weights = weights / weights.sum()
    mean = (weights * right).sum()
    return mean, np.sqrt(mean * (1 - mean) * (weights**2).sum())


def report(kept):
    print(f"{'':12}{'right':>16}{'weighted':>16}{'surest half':>16}{'CPU s a pair':>14}")
    for name in METHODS:
        row = kept[name,]
        columns = [
            f"{row[k]:.3f} ± {row[f'{k}_stderr']:.3f}" for k in ("right", "weighted", "surest")
        ]
        print(f"{name:12}{''.join(f'{column:>16}' for column in columns)}{row['cpu']:14.2f}")
    print("proteins:", *(f"{name} {value}," for name, value in kept["proteins",].items()))


def directions(x, graph):
    """Of each method, the share of the graph's edges, each taken for a pair, whose cause it names,
    with its error."""
    edges = list(zip(*np.nonzero(graph), strict=True))
    found = {}
    for name, method in METHODS.items():
        n = KERNEL_SAMPLES if method is by_independence else SAMPLES
        says = [method(x[:n, j], x[:n, i], seed) for seed, (i, j) in enumerate(edges)]
        found[name] = ledger.share(sum(said > 0 for said in says), len(says))
    return found


def forward(found, graph):
    """Which of the graph's edges have their cause first."""
    place = np.argsort(found)
    effects, causes = np.nonzero(graph)
    return place[causes] < place[effects]


def proteins(source):
    """The share of known edges whose cause comes first, by each way, and that of random orders."""
    names, samples, graph = pairs.sachs(source)
    raw = np.log(samples[np.random.default_rng(0).permutation(len(samples))[:SAMPLES]])
    x = (raw - raw.mean(0)) / raw.std(0)
    found = causal.find_order(raw, jax.random.key(0), names=names)
    orders = {
        "C10": found.order,
        "SCORE": order.by_score(x[: order.SCORE_SAMPLES]),
        "R²": order.by_explained(x),
        "variance": order.by_variance(raw),
    }
    hits = {name: forward(one, graph) for name, one in orders.items()}
    rng = np.random.default_rng(1)
    random = np.array([forward(rng.permutation(len(names)), graph).mean() for _ in range(4000)])
    value = hits["C10"].mean()
    return {
        "edges": int(graph.sum()),
        "forward": value,
        "decided": found.decided,
        "random": random.mean(),
        "random_spread": random.std(),
        "random_as_good": np.mean(random >= value),
        "order": [names[i] for i in found.order],
        "orders": {name: ledger.share(hit.sum(), len(hit)) for name, hit in hits.items()},
        "directions": directions(x, graph),
    }


def main():
    source = os.environ.get("CDELTA_CDT")
    try:
        known = pairs.tuebingen(source)
    except FileNotFoundError as error:
        print(f"not run: {error}")
        return
    found = [pair for pair in known if enough(pair)]
    print(f"left out: {len(known) - len(found)} of {len(known)}, fewer than {VALUES} values a side")
    print(f"  or {LEAST} samples")
    numbers = pairs.sources(found)
    if not RECORD.measured().keys() >= {(name,) for name in METHODS}:
        results = [measure(pair, seed) for seed, pair in enumerate(found)]
        weights = np.array([1 / numbers.count(number) for number in numbers])
        for name in METHODS:
            RECORD.keep(method=name, of=len(known), **shares(name, results, weights))
    if ("proteins",) not in RECORD.measured():
        RECORD.keep(method="proteins", **proteins(source))
    report(RECORD.measured())


if __name__ == "__main__":
    main()
