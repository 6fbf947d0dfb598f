"""What a report is asked for; where that makes no sense it is refused, before anything is
computed."""

import contextlib
import dataclasses
import inspect
import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from cdelta import _check, _roles, dependence
from cdelta._features import Labels
from cdelta._pytree import as_pytree
from cdelta._stream import Run, _batch_size, _words, ending
from cdelta.causal import _graph
from cdelta.causal.acyclic import causal_order
from cdelta.flow import Flow

FEW = 8  # latents at a time, where each is looked at
LOOKED_AT = 2048  # latents, at most, whose Jacobians are looked at one by one
MOST_FEATURES = 2048
STEPS = (4, 8, 16, 32, 64, 128, 256)
FEWEST = 16  # latents of a moment, however few seconds there are
MOST = 2**20  # latents of a moment, however many seconds there are

now = time.monotonic


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a report is asked for, once it is known to make sense: everything is refused here,
    before anything is computed."""

    subject: "Subject"
    labels: Labels
    names: Sequence[str] | None
    shape: tuple[int, ...]
    keys: dict[str, Any]
    budget: "Budget"
    run: dict[str, Any]
    options: Run
    wanted: "Wanted"

    @classmethod
    def of(
        cls, f: Any, key: Any, shape: Any, features: Any, names: Any, budget: Any, run: dict
    ) -> "Asked":
        budget = Budget.of(budget)
        _words("key", key)
        run = {"progress": False, **run}  # one bar a moment would say little
        options = Run.of(run)
        if options.resume is not None:
            raise ValueError("resume belongs to one estimator, a report runs several")
        sizes = np.atleast_1d(np.asarray(shape, object)).tolist()
        shape = tuple(_check.count("shape", size) for size in sizes)
        keys = dict(zip(KEYS, jax.random.split(key, len(KEYS)), strict=True))
        subject = Subject.of(f, features, shape, options)
        labels = dependence._looked_at(subject.map(), shape, "rows", 1.0, 1, options, names)[1]
        if labels.n > MOST_FEATURES:
            raise ValueError(
                f"features must be at most {MOST_FEATURES} in a report, whose moments are matrices "
                f"of all pairs, got {labels.n}: give features=, a map to those that are asked about"
            )
        return cls(subject, labels, names, shape, keys, budget, run, options, Wanted((), (), ()))

    def wanting(self, held: Any, graph: Any, order: Any) -> "Asked":
        """With what is held, the graph and the order."""
        parents = None if graph is None else _graph.parents(graph, self.labels)
        wanted = Wanted.of(self.labels, held, parents, order, math.prod(self.shape))
        return dataclasses.replace(self, wanted=wanted)


@dataclasses.dataclass(frozen=True)
class Budget:
    """How many latents each moment has at most, or in how many seconds from ``start`` all is to be
    done; and of how many latents the noise is that a solver's bias is compared with."""

    samples: int
    noise: int
    seconds: float | None
    start: float

    @classmethod
    def of(cls, budget: Any) -> "Budget":
        start = now()
        if isinstance(budget, int | np.integer) or not isinstance(budget, float | np.floating):
            samples = _check.count("budget", budget)
            if samples < 8:
                raise ValueError(f"budget must be 8 latents or more, got {samples}")
            return cls(samples, samples, None, start)
        if not (math.isfinite(budget) and budget > 0):
            raise ValueError(f"budget must be positive, got {budget!r}")
        return cls(MOST, LOOKED_AT, float(budget), start)

    def warn(self) -> None:
        """A float above an hour may have been meant as a number of latents."""
        if self.seconds is not None and self.seconds > 3600:
            warnings.warn(
                f"budget={self.seconds!r} is a float, so these are seconds, "
                f"{self.seconds / 3600:.3g} hours; a number of latents is an integer: "
                f"budget={round(self.seconds)}",
                stacklevel=3,
            )

    @property
    def spent(self) -> float:
        return now() - self.start

    @property
    def left(self) -> float:
        return math.inf if self.seconds is None else max(self.seconds - self.spent, 0.0)

    def part(self, share: float) -> float | None:
        """What the clock will show when a share of all the seconds has passed from now on."""
        return None if self.seconds is None else now() + min(share * self.seconds, self.left)

    def batch(self, look: Any, n: int, work: float, devices: int) -> int:
        """Latents at a time, so few that a moment can end on time: an eighth of its seconds, in
        powers of two, for which less is compiled."""
        most = _batch_size(None, look.latents[0].size, n, MOST, devices, 4)
        fit = self.left / (8 * work * max(look.seconds, 1e-9))
        return min(most, 2 ** math.floor(math.log2(min(max(fit, FEW), most))))

    def stage(self, work: float, remaining: float) -> Any:
        """A context in which averages end when the part of the seconds that is left for ``work``
        out of what remains to be done has passed."""
        if self.seconds is None:
            return contextlib.nullcontext()
        end = now() + self.left * work / remaining
        return ending(lambda drawn: drawn >= FEWEST and now() >= end)


KEYS = ("pilot", "look", "values", "moments", "held", "turn", "do")


# ------------------------------------------------------------------------ what is reported on


def _composed(features: Callable, flow: Callable, x: Array) -> Any:
    return features(flow(x))


@dataclasses.dataclass(frozen=True)
class Subject:
    """A map, a flow, or a velocity, and the features of what it makes."""

    kind: str
    f: Callable
    features: Callable | None

    @classmethod
    def of(cls, f: Callable, features: Callable | None, shape: tuple, run: Run) -> "Subject":
        if features is not None and not callable(features):
            raise ValueError(f"features must be a function, got {type(features).__name__}")
        _check.no_torch("f", f)
        _check.no_torch("features", features, "cdelta.torch.features(module)")
        _roles.refuse_more("features", features, "sample")
        kind = _kind(f, shape, run.dtype)
        if kind != "map" and features is None and len(shape) != 1:
            raise ValueError(
                f"features must be given for a flow of samples of shape {shape}: a map of one "
                "sample to a vector, or to scalars by name"
            )
        return cls(kind, f, features)

    def map(self, solver: str = "rk4", steps: int | Sequence[float] = STEPS[0]) -> Callable:
        """The map from a latent to features, a velocity with this solver."""
        f = self.f
        if self.kind == "velocity":
            f = Flow(f, solver, steps)
        if self.features is None:
            return f
        return jax.tree_util.Partial(_composed, as_pytree(self.features), as_pytree(f))

    def halved(self) -> Callable:
        """A flow with steps of half the size; of an adaptive one, with a tenth of its tolerance."""
        flow = self.f
        if flow.rtol is not None:
            tenth = None if flow.atol is None else flow.atol / 10
            finer = dataclasses.replace(flow, rtol=flow.rtol / 10, atol=tenth)
        elif flow.times is not None:
            times = np.asarray(flow.times)
            between = (times[1:] + times[:-1]) / 2
            finer = dataclasses.replace(flow, times=np.sort(np.concatenate([times, between])))
        else:
            finer = dataclasses.replace(flow, steps=2 * flow.steps)
        return dataclasses.replace(self, f=finer).map()


def _kind(f: Any, shape: tuple[int, ...], dtype: Any) -> str:
    """Whether f is a flow, a map of one latent or a velocity. Raises ValueError where both fit."""
    if isinstance(f, Flow):
        return "flow"
    if not callable(f):
        raise ValueError(
            "f must be a map from a latent to features, a cdelta.Flow or a velocity (t, x), got "
            f"{type(f).__name__}"
        )
    x, t = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((), dtype)

    def fits(*arguments):
        try:  # through a function of its own: jax would ask an object for its name
            return jax.eval_shape(lambda *given: f(*given), *arguments)
        except Exception:  # whatever it is, f does not take these
            return None

    alone, timed = fits(x), fits(t, x)
    timed = timed if getattr(timed, "shape", None) == shape else None
    if alone is not None and timed is not None:
        raise ValueError(
            "f fits as a map of one latent and as a velocity (t, x): say which, with "
            "lambda x0: f(x0) or with cdelta.Flow(f)"
        )
    if alone is None and timed is None:
        try:
            parameters = inspect.signature(f).parameters.values()
        except (TypeError, ValueError):  # built in
            parameters = ()
        places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        needed = [p for p in parameters if p.default is p.empty and p.kind in places]
        two = len(needed) > 1
        return "velocity" if two else "map"  # which says what is wrong with it
    return "map" if timed is None else "velocity"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is held, on what to intervene given which parents, and the order of the features."""

    held: tuple[int, ...]
    do: tuple[tuple[int, tuple[int, ...]], ...]
    order: tuple[int, ...]
    beyond: tuple[int, ...] = ()  # of the order, those after as many as the latent has dimensions

    @classmethod
    def of(
        cls, labels: Labels, held: Any, parents: np.ndarray | None, order: Any, d: int
    ) -> "Wanted":
        held, order = (None if _is_empty(part) else part for part in (held, order))
        held = () if held is None else labels.held("held", held)
        if order is not None:
            order = labels.indices("order", order)
            if parents is not None and any(
                parents[i, j] for place, i in enumerate(order) for j in order[place + 1 :]
            ):
                raise ValueError(f"order {labels.shown(order)} has an effect before its cause")
        elif parents is not None:
            order = causal_order(parents)
        do: list[tuple[int, tuple[int, ...]]] = []
        if parents is not None:
            targets = held or [k for k in range(labels.n) if parents[:, k].any()]
            do = [(k, tuple(np.flatnonzero(parents[k]).tolist())) for k in targets]
        order = tuple(order or ())
        return cls(held, tuple(do), order[:d], order[d:])

    @property
    def work(self) -> float:
        """Jacobians for one latent of every moment; for its values half of one."""
        return 4.5 + bool(self.held) + len(self.do) + 2 * (len(self.order) > 1)


def _is_empty(value: Any) -> bool:
    """Whether these are no features at all, as a program may find them."""
    return not isinstance(value, str) and hasattr(value, "__len__") and len(value) == 0
