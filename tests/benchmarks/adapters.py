r"""The paper's UNet in PyTorch and here: an evaluation, a wiggle, a product through the adapter.

One network of 14.0 M parameters with the same weights in both, 28 × 28, eight latents a batch;
everything side by side in one run, repeats interleaved. CPU seconds are those of the whole process
and all its threads. PyTorch's threads wait by spinning, which counts as CPU: with other work on the
machine that is most of it, so it has one thread where CPU seconds are compared. Errors are standard
errors over the repeats. Which of the two has the faster convolutions depends on the machine:
PyTorch's library uses AVX-512 where there is one, jax's does not.

**Equal error.** What is estimated is E5's: the moment :math:`E[J J^{\mathsf T}]` of the two pixels
(14, 8) and (15, 8) of the flow's image, of which a wiggle w gives the sample
:math:`w w^{\mathsf T}`. Its error, in units of the moment's norm, is

.. math:: e^2 = \text{bias}^2 + \text{variance} / N

with N samples. The paper takes N = 320 differences at :math:`\varepsilon = 10^{-3}` along a probe
of unit length (multiplied here by its length), between two Euler solutions of 99 steps. Whatever
else is compared takes as many samples as give the same e, its own bias included; where that bias
alone is larger than e, it has none, and the table says so. Biases are measured against a solution
by RK4 at the same latents and probes, so that only what differs is noise; variances are those of
the samples, where the tails are heavy and the number is uncertain by tens of per cent.

The network is trained for some steps on the shipped fives first: with random weights its velocity
follows sines of 10⁴ t, which no solver with a hundred steps sees. Needs PyTorch (``make torch``).
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cdelta import Flow, datasets, jacobian, networks, training
from tests.benchmarks._record import Record

SHAPE, BATCH, SAMPLES, STEPS = (28, 28), 8, 320, 99
PIXELS = np.array([14, 15]), np.array([8, 8])
EPS, T = 1e-3, 0.3
TRAINED, REPEATS, MANY = 40, 3, 8
KEY = jax.random.key(0)
RECORD = Record("adapters", ("way",))
THEIRS = "the paper's, in torch"


def main():
    try:
        import torch
    except ModuleNotFoundError:
        print("PyTorch is not installed, and this benchmark compares with it: make torch")
        return
    network = trained()
    module = in_torch(network, torch)
    xs, zs = latents(0)
    x, z = (torch.from_numpy(np.array(part))[:, None] for part in (xs, zs))
    print(
        f"jax {jax.__version__}, torch {torch.__version__} on {torch.get_num_threads()} threads; "
        f"{networks.parameter_count(network) / 1e6:.1f} M parameters, {BATCH} latents a batch"
    )
    evaluations(network, module, xs, x, torch)
    products(network, module, xs, zs, x, z, torch)
    wiggles(network, module, torch)


# ------------------------------------------------------------------------------- the two networks


def trained():
    """The paper's UNet after a few steps on fives: enough for a velocity that is not noise in t."""
    network = networks.UNet.paper(SHAPE, rngs=nnx.Rngs(0))
    images, labels = datasets.mnist()
    fives = np.asarray(images[labels == 5], np.float32) * 2 - 1
    rate = training.adamw(1e-3, TRAINED, 10)
    return training.fit(
        network, fives, KEY, steps=TRAINED, batch=16, optimizer=rate, ema=0.8, progress=False
    ).network


def in_torch(network, torch):
    """The same network as a PyTorch module ``(x, t)`` of batches ``[B, 1, H, W]``, in eval mode."""
    nn = torch.nn
    state = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(network))}

    def tensor(name):
        return torch.from_numpy(np.array(state[name].get_value()))

    def filled(layer, **parts):
        with torch.no_grad():
            for name, value in parts.items():
                getattr(layer, name).copy_(value)
        return layer

    def linear(name):
        kernel = tensor(f"{name}.kernel")
        return filled(nn.Linear(*kernel.shape), weight=kernel.T, bias=tensor(f"{name}.bias"))

    def conv(name):
        kernel = tensor(f"{name}.kernel").permute(3, 2, 0, 1)
        wide, size = kernel.shape[:2], kernel.shape[2]
        layer = nn.Conv2d(wide[1], wide[0], size, padding=size // 2)
        return filled(layer, weight=kernel, bias=tensor(f"{name}.bias"))

    def norm(name):
        scale = tensor(f"{name}.scale")
        return filled(
            nn.BatchNorm2d(len(scale), eps=1e-5), weight=scale, bias=tensor(f"{name}.bias"),
            running_mean=tensor(f"{name}.mean"), running_var=tensor(f"{name}.var"),
        )  # fmt: skip

    class Block(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.first, self.second = conv(f"{name}.first"), conv(f"{name}.second")
            self.one, self.two = norm(f"{name}.norm_first"), norm(f"{name}.norm_second")
            self.t = linear(f"{name}.t")

        def forward(self, h, embedded):
            h = nn.functional.silu(self.one(self.first(h)) + self.t(embedded)[..., None, None])
            return nn.functional.silu(self.two(self.second(h)))

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.t_in, self.t_out = linear("t_in"), linear("t_out")
            self.down = nn.ModuleList(Block(f"down.{i}.0") for i in range(len(network.down)))
            self.up = nn.ModuleList(Block(f"up.{i}.0") for i in range(len(network.up)))
            self.out = conv("out")
            places = torch.arange(network.time // 2) / (network.time // 2 - 1)
            self.register_buffer("rates", network.highest ** (1 - places.double()))

        def forward(self, x, t):
            angles = t[:, None] * self.rates.to(t.dtype)
            features = torch.cat([angles.sin(), angles.cos()], 1)
            embedded = self.t_out(nn.functional.silu(self.t_in(features)))
            h, kept = x, []
            for i, block in enumerate(self.down):
                if i:
                    kept.append(h)
                    h = nn.functional.max_pool2d(h, 2)
                h = block(h, embedded)
            for block in self.up:
                skip = kept.pop()
                h = nn.functional.interpolate(
                    h, scale_factor=2, mode="bilinear", align_corners=True
                )
                short = [skip.shape[axis] - h.shape[axis] for axis in (3, 2)]
                margins = [side for size in short for side in (size // 2, size - size // 2)]
                h = block(torch.cat([skip, nn.functional.pad(h, margins)], 1), embedded)
            return self.out(h)

    return UNet().eval()


def latents(number, probes=None):
    """A batch of latents and of Gaussian probes, one each or ``probes`` of them."""
    key_x, key_z = jax.random.split(jax.random.fold_in(KEY, number))
    many = () if probes is None else (probes,)
    return (
        jax.random.normal(key_x, (BATCH, *SHAPE)),
        jax.random.normal(key_z, (BATCH, *many, *SHAPE)),
    )


# ------------------------------------------------------------------------------------------- times


def side_by_side(functions, repeats):
    """Of each: CPU seconds and seconds of every repeat, interleaved, ``[repeats, 2]``."""
    for function in functions.values():
        jax.block_until_ready(function())
    record = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            before = time.process_time(), time.perf_counter()
            jax.block_until_ready(function())
            record[name].append((time.process_time() - before[0], time.perf_counter() - before[1]))
    return {name: np.array(times) for name, times in record.items()}


def table(title, times, against):
    """Medians with the spread of a repeat, and the ratio of each to one of them, repeat by repeat:
    what both met in the same moment cancels."""
    print(f"\n{title}\n{'':34}{'CPU ms':>19}{'ms':>19}{'ratio of CPU':>19}{'of time':>19}")
    for name, record in times.items():
        cells = [*(1e3 * record).T, *(record / times[against]).T]
        shown = "".join(f"{said(cell):>19}" for cell in cells)
        print(f"{name:34}{shown}")


def said(values):
    """A median and its standard error, from the quartiles as of a normal law."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    error = 1.2533 * (high - low) / 1.349 / np.sqrt(len(values))
    return f"{middle:.3g} ± {error:.1g}"


def evaluations(network, module, xs, x, torch):
    """One evaluation of the velocity."""
    times = jnp.full(BATCH, T), torch.full((BATCH,), T)
    ours = jax.jit(lambda network, t, xs: jax.vmap(network)(t, xs))
    with torch.no_grad():
        theirs = module(x, times[1]).numpy()[:, 0]
    off = np.abs(np.asarray(ours(network, times[0], xs)) - theirs).max() / np.abs(theirs).max()
    print(f"the two networks differ by {off:.1e} of their largest value")
    assert off < 1e-4, "the benchmark's networks are not the same"

    threads = torch.get_num_threads()

    def evaluated(threads):
        torch.set_num_threads(threads)
        with torch.no_grad():
            module(x, times[1])

    functions = {
        "torch, one thread": lambda: evaluated(1),
        "jax": lambda: ours(network, times[0], xs),
        f"torch, {threads} threads": lambda: evaluated(threads),
    }
    table("one evaluation", side_by_side(functions, 20), "torch, one thread")
    torch.set_num_threads(1)


# ---------------------------------------------------------------------------- through the adapter


def products(network, module, xs, zs, x, z, torch):
    """A product with the Jacobian: PyTorch's own, through the adapter, and of the same network in
    jax; of one evaluation, and of a flow of three midpoint steps."""
    import cdelta.torch as bridge

    times = torch.full((BATCH,), T)
    # x [B, 1, H, W] for the module: one more axis than a latent of jax's has
    velocity = bridge.velocity(module)
    adapted = jax.jit(jax.vmap(lambda x, z: jacobian.jvp(lambda x: velocity(T, x[None])[0], x, z)))
    ours = jax.jit(
        lambda network, xs, zs: jax.vmap(lambda x, z: jacobian.jvp(lambda x: network(T, x), x, z))(
            xs, zs
        )
    )

    def theirs():
        with torch.no_grad():
            return torch.func.jvp(lambda x: module(x, times), (x,), (z,))[1]

    exact = theirs().numpy()[:, 0]
    off = np.abs(np.asarray(adapted(xs, zs)) - exact).max() / np.abs(exact).max()
    functions = {
        "torch.func.jvp": theirs,
        "through the adapter": lambda: adapted(xs, zs),
        "the same network in jax": lambda: ours(network, xs, zs),
    }
    table("a product of one evaluation", side_by_side(functions, 10), "torch.func.jvp")
    print(f"through the adapter: off by {off:.1e} of the largest entry")

    def solved(x):
        for step in range(3):
            t = torch.full((len(x),), step / 3)
            middle = x + module(x, t) / 6
            x = x + module(middle, t + 1 / 6) / 3
        return x

    whole = bridge.torch_map(lambda x: solved(x[:, None])[:, 0])

    def flow_of(f):
        return jax.jit(jax.vmap(lambda x, z: jacobian.jvp(f, x, z)))

    crossing = flow_of(Flow(lambda t, x: velocity(t, x[None])[0], "midpoint", 3))
    once = flow_of(whole)

    def their_flow():
        with torch.no_grad():
            return torch.func.jvp(solved, (x,), (z,))[1]

    exact = their_flow().numpy()[:, 0]
    functions = {
        "torch.func.jvp": their_flow,
        "torch_map of the solution": lambda: once(xs, zs),
        "a Flow, each step crosses": lambda: crossing(xs, zs),
    }
    table("a product of three midpoint steps", side_by_side(functions, 4), "torch.func.jvp")
    for name, product in (("torch_map", once), ("a Flow", crossing)):
        off = np.abs(np.asarray(product(xs, zs)) - exact).max() / np.abs(exact).max()
        print(f"{name}: off by {off:.1e} of the largest entry")


# ---------------------------------------------------------------------------------------- wiggles


def pixels(images):
    return images[..., PIXELS[0], PIXELS[1]]


def theirs(module, torch):
    """The paper's wiggle in PyTorch, as its code does it: two Euler solutions, a difference."""

    def solved(x):
        for step in range(STEPS):
            x = x + module(x, torch.full((len(x),), step / STEPS)) / STEPS
        return x

    def wiggle(x, z):
        with torch.no_grad():
            length = z.flatten(1).norm(dim=1)[:, None, None, None]
            difference = (solved(x + EPS * z / length) - solved(x)) / EPS
            return (difference * np.sqrt(x[0].numel())).numpy()[:, 0]

    return wiggle


def product_of(solver, steps):
    """Products of the flow with the probes of each latent, ``[B, P, *shape]``."""
    flow = jax.jit(
        lambda network, xs, zs: jax.vmap(
            lambda x, z: jacobian.jvp(Flow(network, solver, steps, unroll=steps <= 3), x, z)
        )(xs, zs)
    )
    return lambda network, xs, zs: np.asarray(flow(network, xs, zs), np.float64)


def moments(wiggles):
    """Samples w wᵀ of the two pixels, averaged over the probes of a latent: ``[latents, 2, 2]``."""
    w = pixels(wiggles)
    w = w[:, None] if w.ndim == 2 else w
    return np.einsum("npi,npj->nij", w, w) / w.shape[1]


def wiggles(network, module, torch):
    """The paper's way against products: what one costs, how it is biased, and both at equal
    error."""
    paper = theirs(module, torch)
    ours = {steps: product_of("midpoint", steps) for steps in (3, 6)}
    exact = product_of("rk4", 16)

    def in_theirs(xs, zs):
        x, z = (torch.from_numpy(np.array(part)).reshape(-1, 1, *SHAPE) for part in (xs, zs))
        length = z.flatten(1).norm(dim=1).numpy()  # the probe's, which they take out
        return paper(x, z)[:, None] * (length / np.sqrt(z[0].numel()))[:, None, None, None]

    methods = {THEIRS: (in_theirs, 1)}
    methods |= {
        f"jvp, {steps} midpoint steps": (functools.partial(product, network), 1)
        for steps, product in ours.items()
    }
    methods[f"jvp, 3 midpoint steps, {MANY} probes"] = (functools.partial(ours[3], network), MANY)
    for method, probes in list(methods.values())[1:]:
        method(*latents(0, probes))  # compiled for
    times, seen, finest = {name: [] for name in methods}, {name: [] for name in methods}, []
    for number in range(REPEATS):
        for name, (method, probes) in methods.items():
            given = latents(number, probes)
            before = time.process_time(), time.perf_counter()
            found = method(*given)
            times[name].append((time.process_time() - before[0], time.perf_counter() - before[1]))
            seen[name].append(found)
        finest.append(exact(network, *latents(number, 1)))
    times = {name: np.array(record) for name, record in times.items()}
    table("a wiggle at each of eight latents", times, THEIRS)

    several = f"jvp, 3 midpoint steps, {MANY} probes"
    more = [methods[several][0](*latents(REPEATS + n, MANY)) for n in range(5)]
    probed = np.concatenate([*seen.pop(several), *more])
    finest = moments(np.concatenate(finest))
    size = np.linalg.norm(finest.mean(0))
    print(f"\nbias of the moment of two pixels, from {len(finest)} wiggles")
    bias, noise = {}, {}
    for name, found in seen.items():
        change = moments(np.concatenate(found)) - finest
        noise[name] = np.sqrt(change.var(0, ddof=1).sum() / len(change)) / size
        bias[name] = np.sqrt(max((change.mean(0) ** 2).sum() / size**2 - noise[name] ** 2, 0))
        print(f"{name:34}{100 * bias[name]:8.2f} % ± {100 * noise[name]:.2f} %")
    bias[several], noise[several] = (of["jvp, 3 midpoint steps"] for of in (bias, noise))

    probes = {name: number for name, (_, number) in methods.items()}
    goal, needed, cheaper = at_equal_error(probed, bias, probes, times)
    error = scatter_of(cheaper, probed, bias, probes, times)
    print(
        f"\nerror of the paper's {SAMPLES} wiggles: {100 * goal:.1f} % of the moment\n"
        f"{'at that error':34}{'latents':>10}{'CPU s':>10}{'cheaper':>16}"
    )
    for name in methods:
        if name not in needed:
            print(f"{name:34}{'never: its bias is larger':>30}")
            continue
        seconds = needed[name] * np.median(times[name][:, 0]) / BATCH
        print(f"{name:34}{needed[name]:10.0f}{seconds:10.1f}", end="")
        print(f"{cheaper[name]:10.1f} ± {error[name]:.1f}")
        if (name,) in RECORD.measured():
            continue  # the file is removed where it should be measured anew
        RECORD.keep(
            way=name, probes=probes[name], latents=needed[name], cpu=seconds, goal=goal,
            bias=bias[name], bias_stderr=noise[name],
            cheaper=cheaper[name], stderr=error[name], torch=torch.__version__,
        )  # fmt: skip


def at_equal_error(probed, bias, probes, times):
    """The error of the paper's wiggles, and of each way that can reach it: how many latents it
    takes, and how many times fewer CPU seconds than the paper's."""
    between, one = spread_of(probed)
    variance = {name: max(between, 0) + one / number for name, number in probes.items()}
    goal = np.sqrt(bias[THEIRS] ** 2 + variance[THEIRS] / SAMPLES)
    needed = {
        name: variance[name] / (goal**2 - bias[name] ** 2) for name in probes if bias[name] < goal
    }
    cpu = {name: number * np.median(times[name][:, 0]) for name, number in needed.items()}
    return goal, needed, {name: cpu[THEIRS] / seconds for name, seconds in cpu.items()}


def scatter_of(cheaper, probed, bias, probes, times):
    """Standard errors of these ratios, by leaving out each batch of latents in turn, then each
    repeat of the times. Biases are taken as they were found."""
    batches = [
        (np.delete(probed, np.s_[n : n + BATCH], 0), times) for n in range(0, len(probed), BATCH)
    ]
    repeats = [
        (probed, {name: np.delete(record, n, 0) for name, record in times.items()})
        for n in range(REPEATS)
    ]
    variance = dict.fromkeys(cheaper, 0.0)
    for parts in batches, repeats:
        found = [at_equal_error(some, bias, probes, clock)[2] for some, clock in parts]
        for name in cheaper:
            variance[name] += (len(parts) - 1) * np.var(
                [ratios.get(name, np.nan) for ratios in found]
            )
    return {name: np.sqrt(square) for name, square in variance.items()}


def spread_of(wiggles):
    """Variance between latents and of one probe, in units of the moment's squared norm, from
    several probes at each latent."""
    w = pixels(wiggles)
    squares = np.einsum("npi,npj->npij", w, w)
    mean = squares.mean((0, 1))
    within = squares.var(1, ddof=1).sum((1, 2)).mean()
    between = squares.mean(1).var(0, ddof=1).sum() - within / w.shape[1]
    return between / (mean**2).sum(), within / (mean**2).sum()


if __name__ == "__main__":
    main()
