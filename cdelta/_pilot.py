"""What a report learns from a few latents before it averages over many: the solver's steps, how
Jacobians are seen, and what of single latents decides whether to believe an average."""

import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from cdelta import _asked, _diagnostics, dependence
from cdelta._asked import FEW, STEPS, Budget, Subject
from cdelta._findings import Finding, _percent
from cdelta._stream import Run
from cdelta._text import describe
from cdelta.flow import CPU_OPTIONS, Flow

PILOT = 64  # latents on which the solver is chosen
SEEN = 64  # features, at most, of which steps and precisions are compared
_ENTRIES = 2**21  # of the matrices of one batch

worked = time.process_time  # what others do on the machine does not count


class Look(NamedTuple):
    """What some latents say one by one: the latents, f there, lengths of gradients, whether all is
    finite; the seconds of one latent, on the wall and of work.

    And J Jᵀ, each feature in a ``unit`` of its own, about the length of its gradient (0 where it
    has none): whole at the first PILOT latents, of the ``seen`` features; of all of them its
    scatter over the finite latents. So memory grows with the square of the features and not with
    the latents, and nothing depends on the units in which f gives its numbers.
    """

    latents: np.ndarray  # [N, *shape]
    values: np.ndarray  # [N, n]
    lengths: np.ndarray  # [N, n]
    finite: np.ndarray  # [N]
    unit: np.ndarray  # [n]
    matrices: np.ndarray  # [at most PILOT, seen, seen]
    scatter: _diagnostics.Scatter | None  # None where less than two latents are finite
    seconds: float
    work: float

    @property
    def seen(self) -> tuple[int, ...]:
        return seen_of(len(self.unit))

    @property
    def good(self) -> "Look":
        """The latents where everything is finite."""
        parts = [part[self.finite] for part in self[:4]]
        matrices = self.matrices[self.finite[: len(self.matrices)]]
        return Look(*parts, self.unit, matrices, *self[6:])


def seen_of(n: int) -> tuple[int, ...]:
    """The features of which matrices are kept: all, or SEEN of them, evenly."""
    return tuple(np.linspace(0, n - 1, min(n, SEEN)).round().astype(int).tolist())


class Some:
    """Some of a map's features."""

    def __init__(self, f: Callable, which: tuple[int, ...]):
        self.f, self.which = f, which

    def __call__(self, x: Array) -> Array:
        return self.f(x)[jnp.asarray(self.which)]


jax.tree_util.register_pytree_node(
    Some, lambda some: ((some.f,), some.which), lambda which, children: Some(*children, which)
)


@functools.lru_cache(16)
def looking(dtype: str, platform: str, structure: Any) -> Callable:
    """The program for all f of one structure: what is no longer used takes its constants along.

    f at each latent, whether f and J are finite there, the size of each gradient as a power of two,
    and J Jᵀ in these: squares of large or small numbers would leave single precision.
    """

    def look(leaves, latents):
        f = structure.unflatten(leaves)

        def one(x):
            values, rows = dependence._Products(x.shape, dtype).rows(f, x)
            finite = jnp.isfinite(values).all() & jnp.isfinite(rows).all()
            rows, size = dependence._in_units(jnp.where(finite, rows, 0))
            return values, finite, size, jnp.matmul(rows, rows.T, precision="highest")

        return jax.vmap(one)(latents)

    return jax.jit(look, compiler_options=CPU_OPTIONS if platform == "cpu" else None)


@functools.partial(jax.jit, static_argnames=("shape",))
def drawn(key: Any, numbers: Array, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(numbers)


def look_at(
    f: Callable, key: Any, samples: int, shape: tuple, run: Run, until: float | None = None
) -> Look:
    """At ``samples`` latents, or as many as there are before the clock shows ``until``."""
    leaves, structure = jax.tree.flatten(f)
    n = jax.eval_shape(f, jax.ShapeDtypeStruct(shape, run.dtype)).shape[0]
    batch = max(1, min(run.batch or FEW, _ENTRIES // n**2))
    program = looking(run.dtype.name, run.devices[0].platform, structure)
    walls, works = [], []

    def looked(first):
        latents = drawn(key, jnp.arange(first, first + batch), shape).astype(run.dtype)
        wall, work = _asked.now(), worked()
        done = jax.block_until_ready(program(leaves, latents))
        walls.append(_asked.now() - wall)
        works.append(worked() - work)
        values, finite, sizes, matrices = map(np.asarray, done)
        lengths = np.sqrt(np.diagonal(matrices, axis1=1, axis2=2).astype(np.float64)) * sizes
        parts = np.asarray(latents), values, lengths
        return *(part.astype(np.float64) for part in parts), finite, sizes, matrices

    first = [looked(place) for place in range(0, min(batch, FEW), batch)]  # is compiled for
    heads = first + [looked(place)[:4] for place in range(batch, FEW, batch)]
    lengths, finite = (np.concatenate([head[part] for head in heads])[:FEW] for part in (2, 3))
    unit = np.sqrt((lengths[finite] ** 2).mean(0)) if finite.any() else np.zeros(n)
    seen, kept, parts, sums = np.array(seen_of(n)), [], [], _diagnostics.Sums.zero(n)
    for start in range(0, max(samples, 2 * batch), batch):
        latents, values, lengths, finite, sizes, matrices = first.pop() if first else looked(start)
        parts.append((latents, values, lengths, finite))
        inside = np.arange(start, start + batch) < samples
        for length in lengths[finite & inside] if (unit == 0).any() else ():
            unit = np.where(unit > 0, unit, length)  # of what has not moved before: so far all 0
        scale = np.divide(sizes, unit, out=np.zeros_like(lengths), where=unit > 0)
        whole = matrices * scale[:, :, None] * scale[:, None, :]
        sums = sums.plus(whole[finite & inside])
        if start < PILOT:
            kept.append(whole[inside][:, seen[:, None], seen])
        if until is not None and len(parts) > 1 and _asked.now() > until:
            break
    latents, values, lengths, finite = (
        np.concatenate(part)[:samples] for part in zip(*parts, strict=True)
    )
    seconds, work = statistics.median(walls[1:]) / batch, min(works) / batch
    kept = np.concatenate(kept)[:PILOT]
    return Look(latents, values, lengths, finite, unit, kept, sums.scatter(), seconds, work)


def solved(
    subject: Subject, key: Any, shape: tuple, run: Run, budget: Budget, n: int
) -> tuple[Callable, str, list[Finding]]:
    """The map, its solver in words, and what doubling its steps says."""
    if subject.kind == "map":
        return subject.map(), "a map as it is", []
    samples = budget.noise
    pilot = max(8, min(PILOT, samples))

    def looked(f):
        f = dependence._looked_at(f, shape, "rows", 1.0, 1, run)[0]
        f = f if n <= SEEN else Some(f, seen_of(n))
        return look_at(f, key, pilot, shape, run, budget.part(0.03))

    def compared(coarse, fine):
        least = min(len(coarse.finite), len(fine.finite))  # the clock may have ended one earlier
        both = coarse.finite[:least] & fine.finite[:least]
        if both.sum() < 2:
            return None
        unit = np.where(coarse.unit > 0, coarse.unit, fine.unit)
        alike = [_in_unit(look, unit)[:least][both] for look in (coarse, fine)]
        return _diagnostics.doubling(*alike, samples)

    if subject.kind == "flow":
        flow = subject.f
        how = f"rtol {flow.rtol:g}" if flow.rtol is not None else f"{flow.steps} steps"
        solver = f"{flow.solver}, {how}"
        found = compared(looked(subject.map()), looked(subject.halved()))
        return subject.map(), solver, about_steps(solver, found, samples, "as it was given", n)

    method = _asked_where_finite(subject.f, key, shape, run)
    looks = {}
    steps, found = STEPS[0], None
    for steps in STEPS[:-1]:
        for count in (steps, 2 * steps):
            if count not in looks:
                looks[count] = looked(subject.map(method, count))
        found = compared(looks[steps], looks[2 * steps])
        late = budget.seconds is not None and budget.left < 0.6 * budget.seconds
        if found is None or found.ratio <= 0.5 or late:
            break
    solver = f"{method}, {steps} steps"
    return subject.map(method, steps), solver, about_steps(solver, found, samples, "chosen", n)


def _in_unit(look: Look, unit: np.ndarray) -> np.ndarray:
    """Its matrices, with the features that are seen in these units."""
    seen = list(look.seen)
    scale = np.divide(look.unit, unit, out=np.zeros_like(unit), where=unit > 0)[seen]
    return look.matrices * np.outer(scale, scale)


def _asked_where_finite(velocity: Callable, key: Any, shape: tuple, run: Run) -> str:
    """rk4, or midpoint for a velocity that is not finite at t = 1. Raises what a flow says of a
    velocity that takes other arguments, or is not finite at t = 0."""
    x = jax.random.normal(key, (8, *shape)).astype(run.dtype)
    Flow(velocity, "euler", 1)(x[0])
    # as a solver asks it: with a time that is traced
    asked = jax.jit(jax.vmap(lambda t, x: velocity(t, x), (None, 0)))
    at_the_end = asked(jnp.ones((), x.dtype), x)
    return "rk4" if np.isfinite(np.asarray(at_the_end, np.float64)).all() else "midpoint"


def about_steps(
    solver: str, found: _diagnostics.Doubling | None, samples: int, how: str, n: int
) -> list[Finding]:
    if found is None:
        return [Finding(f"Solver {solver}: no two latents are finite.", "solver", warning=True)]
    moved = describe(found.change, found.stderr)
    how += f", seen at {SEEN} of {n} features" if n > SEEN else ""
    if found.ratio <= 1:
        text = (
            f"Solver {solver} ({how}): its bias, from steps of half the size, is at most "
            f"{found.ratio:.2g} of the noise of {samples} latents, and {moved} of the moment."
        )
    else:
        text = (
            f"Solver {solver} ({how}) is too coarse: its bias, from steps of half the size, is up "
            f"to {found.ratio:.2g} times the noise of {samples} latents, and {moved} of the moment."
        )
    return [Finding(text, "solver", found.change, found.stderr, warning=found.ratio > 1)]


@functools.lru_cache(16)
def _multiplying(dtype: str, platform: str, structure: Any, probes: int) -> Callable:
    """Products along probes, for all f of one structure."""

    def multiply(leaves, latents, key):
        products = dependence._Products(latents.shape[1:], dtype, "jvp", probes=probes)
        f = structure.unflatten(leaves)
        return jax.vmap(lambda x: products.factor(f, x, key)[1])(latents)

    return jax.jit(multiply, compiler_options=CPU_OPTIONS if platform == "cpu" else None)


def timed(f: Callable, look: Look, shape: tuple, run: Run, budget: Budget) -> float | None:
    """How much dearer rows are, against products, than counted evaluations say; None where the
    clock is not to be asked: the report is to depend on its key alone, or there is little time."""
    platform = run.devices[0].platform
    wall = look.seconds * len(look.latents)
    # too short for a clock; or as much as the moments themselves
    if platform != "cpu" or 16 * wall > budget.left or budget.seconds is None:
        return None
    if look.work * FEW < 1e-3:
        return None
    probes, n = min(math.prod(shape), 4), look.values.shape[1]
    leaves, structure = jax.tree.flatten(f)
    program = _multiplying(run.dtype.name, platform, structure, probes)
    latents = jnp.asarray(look.latents[:FEW], run.dtype)
    works = []
    for _ in range(4):  # the first one is compiled for
        work = worked()
        jax.block_until_ready(program(leaves, latents, jax.random.key(0)))
        works.append(worked() - work)
    products = min(works[1:]) / len(latents)
    return (look.work / (2 + 2 * n)) / (max(products, 1e-9) / (1 + probes))


def choose(
    look: Look, shape: tuple, dearer: float | None = None
) -> tuple[_diagnostics.Method, list[Finding]]:
    """Rows or products, with what the choice costs."""
    good, d = look.good, math.prod(shape)
    if good.scatter is None:
        return _diagnostics.Method("rows", 1, 1.0, 1.0), []
    ranked = _diagnostics.methods(good.scatter, d, 1.0 if dearer is None else dearer)
    best = ranked[0]
    other = next(one for one in ranked if one.method != best.method)
    names = {
        one.method: "rows"
        if one.method == "rows"
        else f"products along {one.probes} probe" + "s" * (one.probes > 1)
        for one in (best, other)
    }
    if best.price > 0:
        against = f"{names[other.method]} would cost {other.price / best.price:.2g} times as much"
        against += "" if dearer is None else ", as timed"
    else:
        against = "every latent gives the moment exactly"
    text = f"Jacobians are seen as {names[best.method]}: for the same error {against}."
    return best, [Finding(text, "method", best.price)]


def about_rounding(f: Callable, look: Look, shape: tuple, run: Run) -> list[Finding]:
    """What single precision loses, at a few latents."""
    good = look.good
    few, seen = min(len(good.matrices), 8), list(look.seen)
    if run.dtype != jnp.float32 or few < 2:
        return []
    some = f if len(seen) == len(look.unit) else Some(f, look.seen)
    try:
        with jax.enable_x64(True):
            latents = jnp.asarray(good.latents[:few], jnp.float64)
            leaves, structure = jax.tree.flatten(some)
            program = looking("float64", run.devices[0].platform, structure)
            sizes, exact = (np.asarray(part) for part in program(leaves, latents)[2:])
    except Exception as error:  # of f: it may be bound to its own precision
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return [Finding(f"Rounding is not known: in double precision {reason}", "rounding")]
    unit = look.unit[seen]
    scale = np.divide(sizes, unit, out=np.zeros_like(sizes), where=unit > 0)
    exact = exact * scale[:, :, None] * scale[:, None, :]
    size = np.sqrt((exact**2).sum((1, 2)).mean()) or 1.0
    lost = np.sqrt(((good.matrices[:few] - exact) ** 2).sum((1, 2))) / size
    value, error = float(lost.mean()), float(lost.std(ddof=1) / math.sqrt(len(lost)))
    if value < 1e-3:
        return []
    text = (
        f"Single precision changes the wiggles by {_percent(value, error)} of their size at a few "
        "latents: enable double precision (jax_enable_x64), or scale f's numbers."
    )
    return [Finding(text, "rounding", value, error, warning=True)]
