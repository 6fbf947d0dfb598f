"""The exact flow of a dataset, against the matrix products that it cannot do without.

A posterior over n points needs X Yᵀ (how close) and W Y (their mean); its Jacobian-vector product
needs both twice. Timed side by side on all 5000 digits at 256 points; peak memory as the compiler
plans it, over that of the data.
"""

import statistics
import time

import jax
import jax.numpy as jnp

from cdelta import Empirical, Gaussian, datasets, posterior

BATCH = 256


def side_by_side(functions, repeats=25):
    """Median seconds of each call, interleaved so that all meet the same machine."""
    for function in functions:
        jax.block_until_ready(function())
    seconds = [[] for _ in functions]
    for _ in range(repeats):
        for record, function in zip(seconds, functions, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function())
            record.append(time.perf_counter() - start)
    return [statistics.median(record) for record in seconds]


def main():
    images, _ = datasets.mnist()
    points = jnp.asarray(images, jnp.float32)
    n, d = len(points), points[0].size
    source, target = Gaussian.standard(d, jnp.float32), Empirical(points)
    xs, probes = jax.random.normal(jax.random.key(0), (2, BATCH, *points.shape[1:]), jnp.float32)
    # traced arguments, or the compiler would fold the data into the program
    velocity = jax.jit(jax.vmap(posterior.velocity, (None, 0, None, None)))
    product = jax.jit(jax.vmap(posterior.velocity_jvp, (None, 0, 0, None, None)))
    two = jax.jit(lambda x, y: (x @ y.T) @ y)
    four = jax.jit(lambda x, p, y: ((x @ y.T) @ y, (p @ y.T) @ y))
    t = jnp.float32(0.7)
    flat, flat_probes = xs.reshape(BATCH, -1), probes.reshape(BATCH, -1)
    rows = [
        ("velocity", velocity, (t, xs, source, target), two, (flat, target.flat)),
        (
            "velocity_jvp",
            product,
            (t, xs, probes, source, target),
            four,
            (flat, flat_probes, target.flat),
        ),
    ]
    print(f"{BATCH} points on {n} images, d = {d}, float32")
    print(f"{'':14}{'ms':>8}{'products ms':>13}{'ratio':>8}{'peak memory / data':>20}")
    for name, function, arguments, floor, floor_arguments in rows:
        seconds, least = side_by_side(
            [lambda f=function, a=arguments: f(*a), lambda f=floor, a=floor_arguments: f(*a)]
        )
        plan = function.lower(*arguments).compile().memory_analysis()
        peak = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
        ratio, memory = seconds / least, peak / points.nbytes
        print(f"{name:14}{1e3 * seconds:8.1f}{1e3 * least:13.1f}{ratio:8.2f}{memory:20.2f}")


if __name__ == "__main__":
    main()
