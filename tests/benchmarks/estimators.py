"""The estimators of dependence against the paper's, at equal error, on a UNet's velocity and a
classifier's ten logits.

The paper's estimator as it is defined: one probe of unit length a latent, two Euler solutions of 99
steps, their difference divided by eps; and its filter, which keeps the wiggles that move one
feature by less than 1 % of their standard deviation. All times at 8 latents a batch, side by side
in one run.

Errors are relative Frobenius errors of the moment, solver bias included. The bias of a solver is
measured on common latents and probes against RK4 with 64 steps. The spread of one sample follows
from the exact S = J Jᵀ of many latents: a Gaussian probe z gives E|Jz zᵀJᵀ|² = (tr S)² + 2|S|², a
filter or a projection leaves a Gaussian with another S.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cdelta import Flow, dependence, jacobian, networks

SHAPE, FEATURES, BATCH, HELD, PROBES = (28, 28), 10, 8, 3, 10
SOLVER = ("midpoint", 3)
TARGET = 0.05  # relative error at which the wiggle moments are compared
KEY = jax.random.key(0)


def networks_at_random():
    """A UNet of 0.8 M parameters and a classifier with random weights: smooth, of order one."""
    velocity = networks.UNet.small(SHAPE, rngs=nnx.Rngs(0))
    kernel = velocity.out.kernel
    velocity.out.kernel = nnx.Param(
        jax.random.normal(jax.random.key(3), kernel.shape) / np.sqrt(9 * kernel.shape[2])
    )
    classifier = networks.Classifier(SHAPE, FEATURES, rngs=nnx.Rngs(1))
    velocity.eval()
    classifier.eval()
    return velocity, classifier


def latents(first, count):
    keys = [jax.random.split(jax.random.fold_in(KEY, i)) for i in range(first, first + count)]
    x = jnp.stack([jax.random.normal(key[0], SHAPE) for key in keys])
    z = jnp.stack([jax.random.normal(key[1], (PROBES, *SHAPE)) for key in keys])
    return x, z


def side_by_side(functions, repeats=9):
    """Median seconds of each, interleaved."""
    for function in functions.values():
        jax.block_until_ready(function())
    seconds = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(record) for name, record in seconds.items()}


def paper_wiggle(velocity, classifier, x, z, eps=1e-3):
    """Two Euler solutions of 99 steps, a unit probe, a forward difference: written as defined, not
    with cdelta."""
    probe = z[0] / jnp.linalg.norm(z[0])

    def features(x):
        step = jnp.float32(1 / 99)
        x, _ = jax.lax.scan(
            lambda x, t: (x + step * velocity(t, x), None), x, jnp.arange(99, dtype=x.dtype) * step
        )
        return classifier(x)

    return (features(x + eps * probe) - features(x)) / eps


def products(velocity, classifier, solver, steps):
    """Features' products with common probes at BATCH common latents: [BATCH, PROBES, n]."""
    flow = Flow(velocity, solver, steps, unroll=False)
    product = jax.jit(
        jax.vmap(lambda flow, x, z: jacobian.jvp(lambda x: classifier(flow(x)), x, z), (None, 0, 0))
    )
    return np.asarray(product(flow, *latents(0, BATCH)), np.float64)


def exact_moments(velocity, classifier, solver, steps, count):
    """S = J Jᵀ of the first latents, exactly: [count, n, n]."""
    flow = Flow(velocity, solver, steps, unroll=True)
    exact = jax.jit(jax.vmap(lambda flow, x: rows(lambda x: classifier(flow(x)), x), (None, 0)))
    J = [np.asarray(exact(flow, latents(i, BATCH)[0]), np.float64) for i in range(0, count, BATCH)]
    J = np.concatenate(J)
    return J @ np.swapaxes(J, 1, 2)


def rows(f, x):
    return jacobian.rows(f, x).reshape(-1, x.size)


def bias_of(error, size):
    """Relative norm of a mean over latents, what its own noise adds taken off, and that noise."""
    noise = error.var(0).sum() / len(error)
    return np.sqrt(max(((error.mean(0) ** 2).sum() - noise) / size, 0)), np.sqrt(noise / size)


def held_spread(S, held):
    """Moment and variance of one projected probe, weighted by 1/|a|, from exact S [latents, n,
    n]."""
    weight = 1 / np.sqrt(S[:, held, held])
    P = S - S[:, :, held, None] * S[:, held, None, :] / S[:, held, held][:, None, None]
    mean = np.einsum("s,sij->ij", weight, P) / weight.mean() / len(S)
    share = weight / weight.mean()
    within = np.trace(P, axis1=1, axis2=2) ** 2 + (P**2).sum((1, 2))
    between = (share**2 * ((P - mean) ** 2).sum((1, 2))).mean()
    return mean, (share**2 * within).mean(), between


def filter_spread(S, held, share=0.01, probes=4000):
    """Kept share and variance of one kept wiggle, by drawing the paper's wiggles from each latent's
    exact S."""
    rng = np.random.default_rng(0)
    threshold = share * np.sqrt(S[:, held, held].mean())
    roots = np.linalg.cholesky(
        S + 1e-9 * np.trace(S, axis1=1, axis2=2)[:, None, None] * np.eye(S.shape[1])
    )
    kept = []
    for root in roots:
        wiggles = rng.standard_normal((probes, len(root))) @ root.T
        kept.append(wiggles[np.abs(wiggles[:, held]) < threshold])
    kept = np.concatenate(kept)
    mean = kept.T @ kept / len(kept)
    variance = ((kept**2).sum(1) ** 2).mean() - (mean**2).sum()
    return len(kept) / probes / len(S), variance


def main():
    velocity, classifier = networks_at_random()
    flow = Flow(velocity, *SOLVER)
    millions = networks.parameter_count(velocity) / 1e6
    print(f"UNet {millions:.2f} M parameters, {BATCH} latents of {SHAPE} a batch")

    x, z = latents(0, BATCH)
    one_t = jnp.float32(0.3)

    def batched(function):
        return jax.jit(jax.vmap(function, (None, None, 0, 0)))

    def features(flow, classifier):
        return lambda x: classifier(flow(x))

    wiggle = {
        "jvp, 1 probe": batched(lambda v, c, x, z: jacobian.jvp(features(v, c), x, z[0])),
        f"jvp, {PROBES} probes": batched(lambda v, c, x, z: jacobian.jvp(features(v, c), x, z)),
        "rows": batched(lambda v, c, x, z: rows(features(v, c), x)),
    }
    products = dependence._Products(SHAPE, "float32", "jvp", probes=PROBES)
    statistic = dependence._Held(products, (HELD,), "inverse_norm")
    held = jax.jit(jax.vmap(lambda f, c, key: statistic(features(f, c), key), (None, None, 0)))
    keys = jax.random.split(KEY, BATCH)
    at_t = {
        "velocity": batched(lambda v, c, x, z: v(one_t, x)),
        "velocity, 1 jvp": batched(lambda v, c, x, z: jacobian.jvp(lambda x: v(one_t, x), x, z[0])),
        f"velocity, {PROBES} jvp": batched(
            lambda v, c, x, z: jacobian.jvp(lambda x: v(one_t, x), x, z)
        ),
        "velocity, 1 vjp": batched(
            lambda v, c, x, z: jax.vjp(lambda x: v(one_t, x), x)[1](z[0])[0]
        ),
        f"velocity, {FEATURES} vjp": batched(
            lambda v, c, x, z: jax.vmap(jax.vjp(lambda x: v(one_t, x), x)[1])(z)[0]
        ),
    }
    paper = batched(paper_wiggle)
    functions = {
        name: lambda g=g: g(velocity, classifier, x, z)
        for name, g in (*at_t.items(), ("paper", paper))
    }
    functions |= {name: lambda g=g: g(flow, classifier, x, z) for name, g in wiggle.items()}
    functions["held"] = lambda: held(flow, classifier, keys)
    seconds = side_by_side(functions)

    S = exact_moments(velocity, classifier, "heun", 6, 64)
    M = S.mean(0)
    size = (M**2).sum()
    between = ((S - M) ** 2).sum((1, 2)).mean() / size
    one_probe = (np.trace(S, axis1=1, axis2=2) ** 2 + (S**2).sum((1, 2))).mean() / size
    variance = {
        "paper": between + one_probe,
        "jvp, 1 probe": between + one_probe,
        f"jvp, {PROBES} probes": between + one_probe / PROBES,
        "rows": between,
    }

    # Bias. A reverse pass through 64 RK4 steps would take too long, so 8 stand in for them where
    # rows are compared; what that leaves is in the table too.
    reference = products(velocity, classifier, "rk4", 64)
    biases = {}
    for solver, steps in (("euler", 99), ("rk4", 8)):
        found = products(velocity, classifier, solver, steps)
        difference = np.einsum("spi,spj->sij", found, found) - np.einsum(
            "spi,spj->sij", reference, reference
        )
        biases[solver, steps] = bias_of(difference / PROBES, size)
    exact = exact_moments(velocity, classifier, "rk4", 8, 16)
    for solver, steps in (("heun", 3), ("midpoint", 3), ("heun", 4), ("midpoint", 4), ("rk4", 2)):
        biases[solver, steps] = bias_of(
            exact_moments(velocity, classifier, solver, steps, 16) - exact, size
        )
    print(f"\n{'solver':12}{'evaluations':>12}{'bias of the moment':>22}")
    for (solver, steps), (bias, noise) in biases.items():
        evaluations = Flow(velocity, solver, steps).evaluations
        name = f"{solver} {steps}"
        print(f"{name:12}{evaluations:12d}{100 * bias:14.2f} % (± {100 * noise:.2f} %)")

    print(f"\n{'velocity at 8 latents':28}{'ms':>9}{'of one evaluation':>20}")
    for name in at_t:
        print(f"{name:28}{1e3 * seconds[name]:9.1f}{seconds[name] / seconds['velocity']:20.1f}")

    # The bound counts velocity evaluations at the time of one inside a loop (alone it is mostly
    # dispatch): a tangent or a pullback to x costs one each, and a reverse pass computes its step
    # once more, for it keeps only the states.
    one = seconds["paper"] / 198
    counts = {"jvp, 1 probe": 2, f"jvp, {PROBES} probes": 1 + PROBES, "rows": 2 + FEATURES}
    bounds = {"paper": seconds["paper"]} | {
        name: flow.evaluations * count * one for name, count in counts.items()
    }

    print(
        f"\nwiggle moment at {100 * TARGET:.0f} % error: latents needed, seconds, and how much "
        "cheaper than the paper's"
    )
    columns = {"bound": 9, "reached": 9, "variance": 10, "latents": 9, "seconds": 9, "gain": 7}
    heads = "".join(f"{name:>{width}}" for name, width in columns.items())
    print(f"{'':22}{'ms a batch':>11}{heads}")
    cost = {}
    for name in ("paper", *wiggle):
        left = TARGET**2 - biases[("euler", 99) if name == "paper" else SOLVER][0] ** 2
        needed = variance[name] / left
        cost[name] = needed * seconds[name] / BATCH
        bound = bounds[name]
        print(
            f"{name:22}{1e3 * seconds[name]:11.0f}{1e3 * bound:9.0f}{bound / seconds[name]:9.2f}"
            f"{variance[name]:10.2f}{needed:9.0f}{cost[name]:9.1f}{cost['paper'] / cost[name]:7.1f}"
        )
    for name in wiggle:
        evaluations = 198 / flow.evaluations
        dearer = seconds["paper"] / 198 / (seconds[name] / flow.evaluations)
        print(
            f"  {name}: fewer evaluations ×{evaluations:.1f}, each of them dearer ×{dearer:.3f}, "
            f"variance ×{variance['paper'] / variance[name]:.1f}, the rest is bias"
        )
    print(
        "  rows gain what S varies little over latents; where its tails are heavy, "
        "the line of one probe remains"
    )
    ratio = seconds[f"jvp, {PROBES} probes"] / seconds["jvp, 1 probe"]
    print(f"{PROBES} probes at the same latents cost {ratio:.1f} times one")

    mean, within, spread = held_spread(S, HELD)
    kept, per_kept = filter_spread(S, HELD)
    ours = within / PROBES + spread
    gain = (per_kept / kept * seconds["paper"]) / (ours * seconds["held"])
    # the held gradient, and the projected probes
    bound = flow.evaluations * (2 + 1 + 1 + PROBES) * one
    print(
        f"\nheld moment (feature {HELD}) against the filter at 1 % of the standard deviation, "
        "equal error"
    )
    size = (mean**2).sum()
    print(
        f"{'filter':22}keeps {100 * kept:.2f} % of the wiggles; "
        f"variance a kept one {per_kept / size:.2f}"
    )
    print(
        f"{'projection':22}{1e3 * seconds['held']:.0f} ms a batch (bound {1e3 * bound:.0f}, "
        f"reached {bound / seconds['held']:.2f}); variance a latent {ours / size:.2f}"
    )
    print(f"{'gain':22}{gain:.0f}×")


if __name__ == "__main__":
    main()
