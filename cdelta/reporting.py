r"""One call, :func:`report`: everything in this package about one flow, with what to believe of
it."""

import contextlib
import dataclasses
import functools
import html
import inspect
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from cdelta import _check, _diagnostics, _files, dependence, moment as _moment
from cdelta._diagnostics import jointly
from cdelta._extras import optional
from cdelta._features import Labels, Several
from cdelta._pytree import as_pytree
from cdelta._stream import Run, Sample, _batch_size, _words, average, ending, enough
from cdelta._text import describe
from cdelta.causal.acyclic import causal_order
from cdelta.causal.effects import FrameTurn, frame_turn
from cdelta.flow import CPU_OPTIONS, Flow
from cdelta.moment import Moment

PILOT = 64  # latents on which the solver is chosen
_FEW = 8  # latents at a time, where each is looked at
LOOKED_AT = 2048  # latents, at most, whose Jacobians are looked at one by one
STEPS = (4, 8, 16, 32, 64, 128, 256)
_PAIRS = 10  # of correlations that sentences are made of
_FORMAT = 1
_FEWEST = 16  # latents of a moment, however few seconds there are
_MOST = 2**20  # latents of a moment, however many seconds there are

_now = time.monotonic
_worked = time.process_time  # what others do on the machine does not count


class Finding(str):
    """A sentence of a report: a claim with its number. ``about``: which diagnostic or moment says
    it; ``value`` and ``stderr`` (NaN where there is none); ``warning``: whether it says that
    something is not to be believed as it stands."""

    about: str
    value: float
    stderr: float
    warning: bool

    def __new__(
        cls,
        text: str,
        about: str = "",
        value: float | None = None,
        stderr: float | None = None,
        warning: bool = False,
    ):
        finding = super().__new__(cls, text)
        finding.about, finding.warning = about, bool(warning)
        finding.value = math.nan if value is None else float(value)
        finding.stderr = math.nan if stderr is None else float(stderr)
        return finding

    def __getnewargs__(self):
        return str(self), self.about, self.value, self.stderr, self.warning


@dataclasses.dataclass(frozen=True)
class Report:
    """What :func:`report` has found. ``str(report)`` is one line a finding, warnings first.

    ``moments``: "wiggle", "covariance", "samples", "lower" and "upper" (C13), "held", and
    "do(name)" for each intervention; one that could not be estimated is missing, and a finding says
    why. ``findings``: sentences (:class:`Finding`); ``warnings``, those among them that say that
    something is not to be believed. ``samples``: latents of each moment (where the budget was in
    seconds, of the covariance and its bounds; the others have their own); ``solver`` and
    ``method``: what was chosen; ``turn``: how far the frame turns (C11), where there is an order.
    """

    moments: dict[str, Moment]
    findings: list[Finding]
    samples: int
    solver: str
    method: str
    turn: FrameTurn | None = None
    names: tuple[str, ...] | None = None
    seconds: float = dataclasses.field(default=0.0, compare=False)

    @property
    def warnings(self) -> list[Finding]:
        """The findings that say that something is not to be believed as it stands."""
        return [finding for finding in self.findings if finding.warning]

    def __str__(self) -> str:
        return "\n".join(("warning: " if one.warning else "") + one for one in self.findings)

    def to_dataframe(self) -> Any:
        """The entries of all moments, as of :meth:`cdelta.Moment.to_dataframe`, with a first
        column ``moment``. Raises ImportError where pandas is not installed."""
        pandas = optional("pandas", "report")
        tables = []
        for name, one in self.moments.items():
            table = one.to_dataframe()
            table.insert(0, "moment", name)
            tables.append(table)
        return pandas.concat(tables, ignore_index=True) if tables else pandas.DataFrame()

    def plot(self) -> Any:
        """Correlations of every moment but the bounds, side by side; returns the figure. Raises
        ImportError where matplotlib is not installed."""
        plt = optional("matplotlib.pyplot", "report")
        shown = {name: one for name, one in self.moments.items() if name not in _BOUNDS}
        if not shown:
            raise ValueError("there is no moment to draw: the findings say why")
        side = min(1.6 + 0.7 * max(len(one.matrix) for one in shown.values()), 6.0)
        size = (side * len(shown), side)
        fig, axes = plt.subplots(1, len(shown), figsize=size, layout="compressed", squeeze=False)
        for ax, (name, one) in zip(axes[0], shown.items(), strict=True):
            one.plot(ax, bar=name == list(shown)[-1])
            ax.set_title(name)
        return fig

    def to_json(self) -> dict[str, Any]:
        """Everything as what JSON knows: numbers, texts, lists; NaN as None."""
        turn = self.turn and {name: part.tolist() for name, part in self.turn._asdict().items()}
        return _plain(
            {
                "findings": [{"text": str(one), **vars(one)} for one in self.findings],
                "moments": {
                    name: {
                        "matrix": one.matrix.tolist(),
                        "stderr": one.stderr.tolist(),
                        "samples": one.samples,
                        "effective_samples": one.effective_samples,
                    }
                    for name, one in self.moments.items()
                },
                "names": self.names and list(self.names),
                "samples": self.samples,
                "solver": self.solver,
                "method": self.method,
                "turn": turn,
                "seconds": self.seconds,
            }
        )

    def _repr_html_(self) -> str:
        """One page, for a notebook or a file of its own: warnings, findings, a table a moment. It
        asks no server for anything."""

        def listed(findings: Sequence[str]) -> str:
            return "<ul>" + "".join(f"<li>{html.escape(one)}</li>" for one in findings) + "</ul>"

        rest = [finding for finding in self.findings if not finding.warning]
        warned = ""
        if self.warnings:
            warned = f"<h4>What not to believe</h4>{listed(self.warnings)}"
        tables = "".join(
            f"<details{_OPEN if name == 'covariance' else ''}><summary>{html.escape(name)}: "
            f"{html.escape(_MEANINGS.get(name, _INTERVENED))}</summary>{one._repr_html_()}"
            "</details>"
            for name, one in self.moments.items()
        )
        return (
            f"<div><h3>Report: {self.samples} latents, {html.escape(self.solver)}, "
            f"{html.escape(self.method)}</h3>{warned}<h4>Findings</h4>{listed(rest)}{tables}</div>"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report to one file, which :meth:`load` reads: NumPy's ``.npz`` (no pickle),
        whole or not at all. Raises OSError where it cannot be written."""
        parts = [one._for_a_file() for one in self.moments.values()]
        about = {
            "kind": "cdelta.Report",
            "format": _FORMAT,
            "cdelta": _moment._version(),
            "moments": {name: told for name, (told, _) in zip(self.moments, parts, strict=True)},
            "findings": [[str(one), *one.__getnewargs__()[1:]] for one in self.findings],
            "names": self.names and list(self.names),
            **{name: getattr(self, name) for name in ("samples", "solver", "method", "seconds")},
            "turn": self.turn and [part.tolist() for part in self.turn],
        }
        arrays = {
            f"{number}.{part}": array
            for number, (_, of_one) in enumerate(parts)
            for part, array in of_one.items()
        }
        with _files.whole(path) as file:
            np.savez(file, about=np.array(json.dumps(about)), **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Report":
        """The report in a file that :meth:`save` has written. Raises ValueError for a file that is
        damaged, is none of those, or was written by a later version in a format of its own."""
        about, arrays = _moment.read(path, "cdelta.Report", _FORMAT)
        try:
            moments = {}
            for number, (name, told) in enumerate(about["moments"].items()):
                prefix = f"{number}."
                parts = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
                moments[name] = Moment._from(told, parts)
            return cls(
                moments=moments,
                findings=[Finding(*parts) for parts in about["findings"]],
                turn=about["turn"] and FrameTurn(*map(np.array, about["turn"])),
                names=about["names"] and tuple(about["names"]),
                **{name: about[name] for name in ("samples", "solver", "method", "seconds")},
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{os.fspath(path)} is a damaged report ({error})") from error


_BOUNDS = ("lower", "upper")
_OPEN = ' open="open"'
_INTERVENED = "wiggles under an intervention (C9)"
_MEANINGS = {
    "wiggle": "E[J Jᵀ], the paper's measure (C3)",
    "covariance": "Cov f, from Jacobians, without bias (C3')",
    "samples": "Cov f, of samples",
    "lower": "below the covariance (C13)",
    "upper": "above the covariance (C13)",
    "held": "wiggles with features held, the filter's limit (C4)",
}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


# ------------------------------------------------------------------------------------- the call


def report(
    f: Callable,
    key: PRNGKeyArray,
    shape: dependence.Shape,
    *,
    features: Callable | None = None,
    names: Sequence[str] | None = None,
    held: Several | None = None,
    graph: Any = None,
    order: Sequence[int | str] | None = None,
    budget: int | float = 4096,
    **run: Any,
) -> Report:
    r"""Everything in this package about one flow, with what to believe of it.

    ``f`` is one of three: a map from one latent to features; a :class:`cdelta.Flow`; a velocity
    ``(t, x)`` of one sample, for which solver and steps are chosen so that their bias stays below
    the noise. ``features`` maps what f makes to features; without it the coordinates of a vector
    are the features. ``shape`` is the latent's; names come from what the map returns or from
    ``names``, as in :func:`cdelta.dependence.wiggle_moment`.

    ``held``: features to hold (C4). ``graph``: ``graph[i, j]`` true where j is a cause of i (an
    array, nested lists, a mapping from features to their causes, or a ``networkx.DiGraph`` with
    arrows from causes), which gives interventions (C9) and an ``order`` from first cause to last
    effect (or give that alone), for how far the frame turns (C11). Interventions are on what is
    held, else on every feature with an effect.

    ``budget``: **an integer is the number of latents of each moment, and the report then depends
    on the key alone; a float is seconds**, on the wall, compilations included. Each moment then
    takes batches until its part of them is over, one and 16 latents at least; a finding says so
    where that, or compiling, took longer. ``run`` takes the
    options of :class:`cdelta.dependence.Run`, but for ``resume``.

    What is measured: the wiggles' moment (C3), the covariance without its bias (C3') and between
    its bounds (C13), certificates of signs, features' mean orders. What decides whether to believe
    it: the solver's bias, by doubling the steps; the tail of :math:`\|J\|^2` (C14) and as how many
    samples a moment counts; features that are constant, or flat at some latents; features with
    jumps, whose variance no Jacobian sees (C3); Jacobians that are not finite; rounding in single
    precision. Whether Jacobians are seen as rows or as products along probes follows from their
    measured variance and their cost, which is counted in evaluations; with a budget in seconds, and
    where that takes a small part of it, both are timed by the process's own clock.

    Raises ValueError for a map that is none of the three, or two of them at once, and for features,
    graphs and budgets that make no sense.
    """
    budget = _Budget.of(budget)
    _words("key", key)
    run = {"progress": False, **run}  # one bar a moment would say little
    options = Run.of(run)
    if options.resume is not None:
        raise ValueError("resume belongs to one estimator, a report runs several")
    shape = tuple(
        _check.count("shape", size) for size in np.atleast_1d(np.asarray(shape, object)).tolist()
    )
    keys = dict(zip(_KEYS, jax.random.split(key, len(_KEYS)), strict=True))
    subject = _Subject.of(f, features, shape, options)
    labels = dependence._looked_at(subject.map(), shape, "rows", 1.0, 1, options, names)[1]
    parents = None if graph is None else _parents(graph, labels)
    wanted = _Wanted.of(labels, held, parents, order, math.prod(shape))

    findings: list[Finding] = []
    f, solver, found = _solved(subject, keys["pilot"], shape, options, budget)
    findings += found
    f = dependence._looked_at(f, shape, "rows", 1.0, 1, options, names)[0]

    look = _look(f, keys["look"], min(budget.noise, LOOKED_AT), shape, options, budget.part(0.15))
    findings += _about_features(look, labels)
    findings += _about_rounding(f, look, shape, options)
    dearer = _timed(f, look, shape, options, budget)
    chosen, found = _method(look, shape, dearer)
    findings += found

    again = {"names": labels.names, **run}
    if budget.seconds is not None and options.batch is None:
        again["batch"] = budget.batch(look, labels.n, wanted.work, len(options.devices))
    moments, four, turn, failed = _estimates(f, keys, shape, budget, chosen, wanted, labels, again)
    findings += failed
    findings += _about_tails(look, moments, labels)
    findings += _about_moments(moments, four, labels)
    findings += _about_turn(turn, labels, wanted)
    findings += budget.about()
    findings.sort(key=lambda finding: not finding.warning)
    method = "rows" if chosen.method == "rows" else f"{chosen.method}, {chosen.probes} probes"
    samples = budget.samples
    if budget.seconds is not None:
        counts = [one.samples for name, one in moments.items() if name in _KINDS]
        samples = min(counts or [one.samples for one in moments.values()], default=0)
    return Report(moments, findings, samples, solver, method, turn, labels.names, budget.spent)


@dataclasses.dataclass(frozen=True)
class _Budget:
    """How many latents each moment has at most, or in how many seconds from ``start`` all is to be
    done; and of how many latents the noise is that a solver's bias is compared with."""

    samples: int
    noise: int
    seconds: float | None
    start: float

    @classmethod
    def of(cls, budget: Any) -> "_Budget":
        start = _now()
        if isinstance(budget, int | np.integer) or not isinstance(budget, float | np.floating):
            samples = _check.count("budget", budget)
            if samples < 8:
                raise ValueError(f"budget must be 8 latents or more, got {samples}")
            return cls(samples, samples, None, start)
        if not (math.isfinite(budget) and budget > 0):
            raise ValueError(f"budget must be positive, got {budget!r}")
        return cls(_MOST, LOOKED_AT, float(budget), start)

    @property
    def spent(self) -> float:
        return _now() - self.start

    @property
    def left(self) -> float:
        return math.inf if self.seconds is None else max(self.seconds - self.spent, 0.0)

    def part(self, share: float) -> float | None:
        """What the clock will show when a share of all the seconds has passed from now on."""
        return None if self.seconds is None else _now() + min(share * self.seconds, self.left)

    def batch(self, look: "_Look", n: int, work: float, devices: int) -> int:
        """Latents at a time, so few that a moment can end on time: an eighth of its seconds, in
        powers of two, for which less is compiled."""
        most = _batch_size(None, look.latents[0].size, 4 * n, _MOST, devices)
        fit = self.left / (8 * work * max(look.seconds, 1e-9))
        return min(most, 2 ** math.floor(math.log2(min(max(fit, _FEW), most))))

    def stage(self, work: float, remaining: float) -> Any:
        """A context in which averages end when the part of the seconds that is left for ``work``
        out of what remains to be done has passed."""
        if self.seconds is None:
            return contextlib.nullcontext()
        end = _now() + self.left * work / remaining
        return ending(lambda drawn: drawn >= _FEWEST and _now() >= end)

    def about(self) -> list[Finding]:
        if self.seconds is None or self.spent <= 1.1 * self.seconds:
            return []
        text = (
            f"The report took {self.spent:.3g} s, for a budget of {self.seconds:.3g} s: every "
            "moment's program is compiled, and takes a batch of latents at least."
        )
        return [Finding(text, "budget", self.spent)]


_KEYS = ("pilot", "look", "values", "moments", "held", "turn", "do")


# ------------------------------------------------------------------------ what is reported on


def _composed(features: Callable, flow: Callable, x: Array) -> Any:
    return features(flow(x))


@dataclasses.dataclass(frozen=True)
class _Subject:
    """A map, a flow, or a velocity, and the features of what it makes."""

    kind: str
    f: Callable
    features: Callable | None

    @classmethod
    def of(cls, f: Callable, features: Callable | None, shape: tuple, run: Run) -> "_Subject":
        if features is not None and not callable(features):
            raise ValueError(f"features must be a function, got {type(features).__name__}")
        _check.no_torch("f", f)
        _check.no_torch("features", features, "cdelta.torch.features(module)")
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


def _parents(graph: Any, labels: Labels) -> np.ndarray:
    """``[i, j]``, whether j is a cause of i. Raises ValueError for what is no such graph."""
    n = labels.n
    matrix = np.zeros((n, n), bool)
    if hasattr(graph, "is_directed") and hasattr(graph, "edges"):
        if not graph.is_directed():
            raise ValueError("graph must be directed: a networkx.DiGraph, arrows from causes")
        for node in graph.nodes:
            labels.index("a node of graph", node)
        arrows = [(j, i) for i, j in graph.edges]
    elif isinstance(graph, Mapping):
        arrows = [
            (i, j)
            for i, causes in graph.items()
            for j in ([causes] if isinstance(causes, int | str) else causes)
        ]
    else:
        given = np.asarray(graph)
        if given.shape != (n, n) or given.dtype.kind not in "bif":
            raise ValueError(
                f"graph must be [{n}, {n}], true at [i, j] where j is a cause of i, or a mapping "
                f"from features to causes, or a networkx.DiGraph, got shape {given.shape}"
            )
        matrix |= given != 0
        arrows = []
    for i, j in arrows:
        matrix[labels.index("graph", i), labels.index("graph", j)] = True
    if matrix.diagonal().any():
        raise ValueError(f"graph has a feature among its own causes: {labels.shown(range(n))}")
    causal_order(matrix)  # refuses cycles
    return matrix


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What is held, on what to intervene given which parents, and the order of the features."""

    held: tuple[int, ...]
    do: tuple[tuple[int, tuple[int, ...]], ...]
    order: tuple[int, ...]

    @classmethod
    def of(
        cls, labels: Labels, held: Any, parents: np.ndarray | None, order: Any, d: int
    ) -> "_Wanted":
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
        return cls(held, tuple(do), order if len(order) <= d else ())

    @property
    def work(self) -> float:
        """Jacobians for one latent of every moment; for its values half of one."""
        return 4.5 + bool(self.held) + len(self.do) + 2 * (len(self.order) > 1)


# ---------------------------------------------------------------------- looked at one by one


class _Look(NamedTuple):
    """What some latents say one by one: the latents, f there, lengths of gradients, J Jᵀ in units
    of ``unit``, whether all is finite; and the seconds of one latent, on the wall and of work."""

    latents: np.ndarray  # [N, *shape]
    values: np.ndarray  # [N, n]
    lengths: np.ndarray  # [N, n]
    matrices: np.ndarray  # [N, n, n]
    finite: np.ndarray  # [N]
    seconds: float
    work: float

    @property
    def good(self) -> "_Look":
        """The latents where everything is finite."""
        parts = [part[self.finite] for part in self[:5]]
        return _Look(*parts, self.seconds, self.work)


@functools.lru_cache(16)
def _looking(dtype: str, platform: str, structure: Any) -> Callable:
    """The program for all f of one structure: what is no longer used takes its constants along."""

    def look(leaves, latents):
        f = structure.unflatten(leaves)

        def one(x):
            values, rows = dependence._Products(x.shape, dtype).rows(f, x)
            matrix = jnp.matmul(rows, rows.T, precision="highest")
            return values, jnp.linalg.norm(rows, axis=1), matrix

        return jax.vmap(one)(latents)

    return jax.jit(look, compiler_options=CPU_OPTIONS if platform == "cpu" else None)


@functools.partial(jax.jit, static_argnames=("shape",))
def _drawn(key: Any, numbers: Array, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(numbers)


def _look(
    f: Callable, key: Any, samples: int, shape: tuple, run: Run, until: float | None = None
) -> _Look:
    """At ``samples`` latents, or as many as there are before the clock shows ``until``."""
    batch = run.batch or _FEW
    leaves, structure = jax.tree.flatten(f)
    program = _looking(run.dtype.name, run.devices[0].platform, structure)
    parts, walls, works = [], [], []
    for first in range(0, max(samples, 2 * batch), batch):  # the first one is compiled for
        latents = _drawn(key, jnp.arange(first, first + batch), shape).astype(run.dtype)
        wall, work = _now(), _worked()
        done = jax.block_until_ready(program(leaves, latents))
        walls.append(_now() - wall)
        works.append(_worked() - work)
        parts.append([np.asarray(part, np.float64) for part in (latents, *done)])
        if until is not None and len(parts) > 1 and _now() > until:
            break
    latents, values, lengths, matrices = (
        np.concatenate(part)[:samples] for part in zip(*parts, strict=True)
    )
    finite = np.isfinite(values).all(1) & np.isfinite(matrices).all((1, 2))
    seconds, work = statistics.median(walls[1:]) / batch, min(works) / batch
    return _Look(latents, values, lengths, matrices, finite, seconds, work)


def _solved(
    subject: _Subject, key: Any, shape: tuple, run: Run, budget: _Budget
) -> tuple[Callable, str, list[Finding]]:
    """The map, its solver in words, and what doubling its steps says."""
    if subject.kind == "map":
        return subject.map(), "a map as it is", []
    samples = budget.noise
    pilot = max(8, min(PILOT, samples))

    def looked(f):
        f = dependence._looked_at(f, shape, "rows", 1.0, 1, run)[0]
        return _look(f, key, pilot, shape, run, budget.part(0.03))

    def compared(coarse, fine):
        least = min(len(coarse.finite), len(fine.finite))  # the clock may have ended one earlier
        coarse, fine = (_Look(*(p[:least] for p in look[:5]), *look[5:]) for look in (coarse, fine))
        both = coarse.finite & fine.finite
        if both.sum() < 2:
            return None
        return _diagnostics.doubling(coarse.matrices[both], fine.matrices[both], samples)

    if subject.kind == "flow":
        flow = subject.f
        how = f"rtol {flow.rtol:g}" if flow.rtol is not None else f"{flow.steps} steps"
        solver = f"{flow.solver}, {how}"
        found = compared(looked(subject.map()), looked(subject.halved()))
        return subject.map(), solver, _about_steps(solver, found, samples, "as it was given")

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
    return subject.map(method, steps), solver, _about_steps(solver, found, samples, "chosen")


def _asked_where_finite(velocity: Callable, key: Any, shape: tuple, run: Run) -> str:
    """rk4, or midpoint for a velocity that is not finite at t = 1. Raises what a flow says of a
    velocity that takes other arguments, or is not finite at t = 0."""
    x = jax.random.normal(key, (8, *shape)).astype(run.dtype)
    Flow(velocity, "euler", 1)(x[0])
    # as a solver asks it: with a time that is traced
    asked = jax.jit(jax.vmap(lambda t, x: velocity(t, x), (None, 0)))
    at_the_end = asked(jnp.ones((), x.dtype), x)
    return "rk4" if np.isfinite(np.asarray(at_the_end, np.float64)).all() else "midpoint"


def _about_steps(
    solver: str, found: _diagnostics.Doubling | None, samples: int, how: str
) -> list[Finding]:
    if found is None:
        return [Finding(f"Solver {solver}: no two latents are finite.", "solver", warning=True)]
    moved = describe(found.change, found.stderr)
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


def _timed(f: Callable, look: _Look, shape: tuple, run: Run, budget: _Budget) -> float | None:
    """How much dearer rows are, against products, than counted evaluations say; None where the
    clock is not to be asked: the report is to depend on its key alone, or there is little time."""
    platform = run.devices[0].platform
    wall = look.seconds * len(look.latents)
    # too short for a clock; or as much as the moments themselves
    if platform != "cpu" or 16 * wall > budget.left or budget.seconds is None:
        return None
    if look.work * _FEW < 1e-3:
        return None
    probes, n = min(math.prod(shape), 4), look.values.shape[1]
    leaves, structure = jax.tree.flatten(f)
    program = _multiplying(run.dtype.name, platform, structure, probes)
    latents = jnp.asarray(look.latents[:_FEW], run.dtype)
    works = []
    for _ in range(4):  # the first one is compiled for
        work = _worked()
        jax.block_until_ready(program(leaves, latents, jax.random.key(0)))
        works.append(_worked() - work)
    products = min(works[1:]) / len(latents)
    return (look.work / (2 + 2 * n)) / (max(products, 1e-9) / (1 + probes))


def _method(
    look: _Look, shape: tuple, dearer: float | None = None
) -> tuple[_diagnostics.Method, list[Finding]]:
    """Rows or products, with what the choice costs."""
    good, d = look.good, math.prod(shape)
    if len(good.matrices) < 2:
        return _diagnostics.Method("rows", 1, 1.0, 1.0), []
    ranked = _diagnostics.methods(good.matrices, d, 1.0 if dearer is None else dearer)
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


# ------------------------------------------------------------------------------- estimates


def _estimates(f, keys, shape, budget, chosen, wanted, labels, options):
    """Every moment that is wanted, the frame's turn, and what could not be had."""
    seen = {"method": chosen.method, "probes": chosen.probes, **options}
    samples = budget.samples
    arguments = f, shape, samples
    moments: dict[str, Any] = {}
    failed: list[Finding] = []
    remaining = wanted.work

    def tried(name: str, estimate: Callable[[], Any], work: float = 1.0) -> Any:
        nonlocal remaining
        try:
            with budget.stage(work, remaining):
                moments[name] = estimate()
        except (ValueError, FloatingPointError) as error:
            failed.append(Finding(f"No {name}: {error}", "failure", warning=True))
        remaining -= work

    def run(estimator, name, *given, **more):
        f, shape, samples = arguments
        return estimator(f, keys[name], shape, samples, *given, **more)

    four = None
    tried("covariance", lambda: _four(f, keys["moments"], shape, samples, chosen, options), 4.0)
    if "covariance" in moments:
        four = moments.pop("covariance")
        blocks = np.arange(4 * labels.n).reshape(4, -1)
        for name, block in zip(_KINDS, blocks, strict=True):
            moments[name] = four.select(block).named(labels.names, kind=_KINDS[name])
    tried("samples", lambda: _sampled(f, keys["values"], shape, samples, labels, options), 0.5)
    if wanted.held:
        tried("held", lambda: run(dependence.held_moment, "held", wanted.held, **seen))
    for number, (index, parents) in enumerate(wanted.do):
        own = jax.random.fold_in(keys["do"], number)
        name = f"do({labels.shown([index])[0]})"

        def intervened(own=own, index=index, parents=parents):
            return dependence.do_moment(f, own, shape, samples, index, parents, **seen)

        tried(name, intervened)
    turn = None
    if len(wanted.order) > 1:
        tried("turn", lambda: run(frame_turn, "turn", wanted.order, **options), 2.0)
        turn = moments.pop("turn", None)
    return moments, four, turn, failed


_KINDS = {
    "wiggle": dependence.WIGGLES,
    "covariance": dependence.COVARIANCE,
    "lower": dependence.bound("lower"),
    "upper": dependence.bound("upper"),
}


@dataclasses.dataclass(frozen=True)
class _Four(dependence._Statistic):
    """J(X) times J(X), J(X_α) at a uniform α, J(X_½), and the mean of J(X) and J(X'): C3, C3' and
    both sides of C13 side by side, ``[4n, 4n]``, of which the diagonal blocks are wanted."""

    products: Any

    def __call__(self, f, key):
        key_latent, key_copy, key_probe, key_alpha = jax.random.split(key, 4)
        x0, copy = self.products.latent(key_latent), self.products.latent(key_copy)
        alpha = jax.random.uniform(key_alpha, (), x0.dtype)
        alphas = jnp.stack([jnp.ones((), x0.dtype), alpha, jnp.full((), 0.5, x0.dtype)])
        near = jnp.multiply.outer(alphas, x0)
        near = near + jnp.multiply.outer(jnp.sqrt(1 - alphas**2), copy)
        near = jnp.concatenate([near, copy[None]])
        # the same probes at all latents, as in C3'
        values, factors = jax.vmap(lambda x: self.products.factor(f, x, key_probe))(near)
        here, across, half, there = factors
        both = jnp.concatenate([here, across, half, (here + there) / 2])
        return Sample(values, (jnp.concatenate([here] * 4), both))


def _four(f, key, shape, samples, chosen, options) -> Moment:
    """The four moments in one, from the same latents."""
    run = Run.of({name: value for name, value in options.items() if name != "names"})
    f, labels, products = dependence._looked_at(
        f, shape, chosen.method, 1.0, chosen.probes, run, None
    )
    return average(_Four(products), f, key, samples, 4 * labels.n, run)


def _sampled(f, key, shape, samples, labels, options) -> Moment:
    """The covariance of f's values at as many latents."""
    run = Run.of({name: value for name, value in options.items() if name != "names"})
    batch = _batch_size(run.batch, math.prod(shape), labels.n, samples, 1)

    values = jax.jit(jax.vmap(f))
    parts = []
    for first in range(0, samples, batch):
        if enough(first):
            break
        latents = _drawn(key, jnp.arange(first, first + batch), shape).astype(run.dtype)
        parts.append(np.asarray(values(latents)))
    features = np.concatenate(parts)[:samples].astype(np.float64)
    found = dependence.sample_moment(features, names=labels.names)
    words, impl = np.asarray(jax.random.key_data(key)), str(jax.random.key_impl(key))
    return dataclasses.replace(found, keys=_moment.fingerprint(impl, words))


# --------------------------------------------------------------------------------- findings


def _called(labels: Labels, i: int) -> str:
    return f"feature {i}" if labels.names is None else labels.names[i]


def _share(count: int, total: int) -> tuple[float, float]:
    share = count / total
    return share, math.sqrt(share * (1 - share) / total)


def _percent(share: float, error: float) -> str:
    return f"{describe(100 * share, 100 * error)} %"


def _about_features(look: _Look, labels: Labels) -> list[Finding]:
    """Jacobians that are not finite; features that are constant, or flat at some latents."""
    found = []
    total, bad = len(look.finite), int((~look.finite).sum())
    if bad:
        share, error = _share(bad, total)
        text = (
            f"f or its Jacobian is NaN or infinite at {_percent(share, error)} of the latents "
            f"({bad} of {total}): no average over all of them exists."
        )
        found.append(Finding(text, "finite", share, error, warning=True))
    good = look.good
    if not len(good.lengths):
        return found
    for i, share in enumerate(_diagnostics.flat(good.lengths)):
        name, count = _called(labels, i), round(share * len(good.lengths))
        share, error = _share(count, len(good.lengths))
        if share == 1:
            text = f"{name} is constant: its gradient is 0 at all {count} latents looked at."
            found.append(Finding(text, "constant", 1.0, 0.0, warning=True))
        elif share - 2 * error > 0.02:
            text = (
                f"{name} is flat at {_percent(share, error)} of the latents: its gradient there is "
                "below a thousandth of its usual length. Holding it means little; a logit before "
                "its saturation would not be flat."
            )
            found.append(Finding(text, "flat", share, error, warning=True))
    return found


def _about_rounding(f: Callable, look: _Look, shape: tuple, run: Run) -> list[Finding]:
    """What single precision loses, at a few latents."""
    good = look.good
    if run.dtype != jnp.float32 or len(good.latents) < 2:
        return []
    few = slice(0, 8)
    try:
        with jax.enable_x64(True):
            latents = jnp.asarray(good.latents[few], jnp.float64)
            leaves, structure = jax.tree.flatten(f)
            program = _looking("float64", run.devices[0].platform, structure)
            exact = [np.asarray(part, np.float64) for part in program(leaves, latents)]
    except Exception as error:  # of f: it may be bound to its own precision
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return [Finding(f"Rounding is not known: in double precision {reason}", "rounding")]
    size = np.sqrt((exact[2] ** 2).sum((1, 2)).mean()) or 1.0
    lost = np.sqrt(((good.matrices[few] - exact[2]) ** 2).sum((1, 2))) / size
    value, error = float(lost.mean()), float(lost.std(ddof=1) / math.sqrt(len(lost)))
    if value < 1e-3:
        return []
    text = (
        f"Single precision changes the wiggles by {_percent(value, error)} of their size at a few "
        "latents: enable double precision (jax_enable_x64), or scale f's numbers."
    )
    return [Finding(text, "rounding", value, error, warning=True)]


def _about_tails(look: _Look, moments: Mapping[str, Moment], labels: Labels) -> list[Finding]:
    """Whether standard errors exist (C14), and as how many samples a moment counts."""
    found = []
    good = look.good
    tails = [_diagnostics.tail(squares) for squares in (good.lengths**2).T]
    # of all features the heaviest; NaN, which is no tail, is not less
    i = min(range(len(tails)), key=lambda i: tails[i].index if tails[i].index >= 0 else math.inf)
    tail = tails[i]
    if tail.index < 2:
        sure = tail.shape - 2 * tail.shape_stderr > 0.5
        said = (
            f"The squared length of {_called(labels, i)}'s gradient has a tail of index "
            f"{describe(tail.index, tail.stderr)} (Hill, {tail.used} of "
            f"{len(good.lengths)} latents)"
        )
        if sure and tail.index < 1:
            text = f"{said}: below 1 the wiggles' moment is infinite, and its error means nothing."
        elif sure:
            text = f"{said}: below 2 it has no variance, and no standard error here means anything."
        else:
            text = (
                f"{said}: so heavy that standard errors are uncertain, though the tail may end "
                f"faster than a power (shape {describe(tail.shape, tail.shape_stderr)})."
            )
        found.append(Finding(text, "tail", tail.index, tail.stderr, warning=True))
    for name, one in moments.items():
        if name in _BOUNDS or not np.isfinite(one.effective_samples):
            continue
        share = one.effective_samples / one.samples
        if share < 0.05:
            text = (
                f"The {name} moment's {one.samples} samples count as "
                f"{one.effective_samples:.3g}: a few of them carry it."
            )
            found.append(Finding(text, "effective", one.effective_samples, warning=True))
        if one.degenerate:
            error = _share(round(one.degenerate * one.samples), one.samples)[1]
            text = (
                f"The {name} moment leaves out {_percent(one.degenerate, error)} of the latents, "
                "where nothing could be held."
            )
            found.append(Finding(text, "degenerate", one.degenerate, error, warning=True))
    return found


def _about_moments(
    moments: Mapping[str, Moment], four: Moment | None, labels: Labels
) -> list[Finding]:
    """What the moments say: jumps, mean orders, bounds, correlations, signs, held and do."""
    found = []
    wiggle, covariance = moments.get("wiggle"), moments.get("covariance")
    samples = moments.get("samples")
    jumping = np.zeros(labels.n, bool)
    if covariance is not None and samples is not None:
        scores, jumping = _diagnostics.jumps(samples, covariance)
        for i in np.flatnonzero(jumping).tolist():
            text = (
                f"{_called(labels, i)} has variance {describe(*samples[i, i])} over samples and "
                f"{describe(*covariance[i, i])} by its Jacobian ({abs(scores[i]):.2g} standard "
                "errors apart): it jumps, as a threshold does, and no Jacobian sees that. Take "
                "what it is a threshold of."
            )
            found.append(Finding(text, "jump", scores[i], 1.0, warning=True))
    if four is not None:
        found += _about_orders(four, labels, jumping)
    if covariance is not None:
        found += _about_correlations(wiggle, covariance, samples, labels, jumping)
    if "lower" in moments and "upper" in moments:
        below, above = (moments[name].estimate(np.trace) for name in _BOUNDS)
        wide = "" if wiggle is None else f"; the wiggles' is {describe(*wiggle.estimate(np.trace))}"
        text = (
            f"The covariance's trace lies between {describe(*below)} and {describe(*above)} "
            f"(C13){wide}."
        )
        gap = float(above[0] - below[0])
        found.append(Finding(text, "bounds", gap, math.hypot(below[1], above[1])))
    base = wiggle
    for name, one in moments.items():
        if name != "held" and not name.startswith("do("):
            continue
        found += _about_held(name, one, base, labels, jumping)
    return found


def _moving(*moments: Moment | None) -> list[int]:
    """The features that move, and are not held, in all of these."""
    used = [np.diagonal(one.matrix) > 0 for one in moments if one is not None]
    return np.flatnonzero(np.all(used, axis=0)).tolist()


def _about_orders(four: Moment, labels: Labels, jumping: np.ndarray) -> list[Finding]:
    """Mean orders: of the same latents, so that what both moments share leaves no noise."""
    n = labels.n
    wiggles, variances = np.diagonal(four.matrix)[: 2 * n].reshape(2, n)
    chosen = [i for i in range(n) if wiggles[i] > 0 and variances[i] > 0 and not jumping[i]]
    if not chosen:
        return []

    def ratios(matrix):
        wiggles, variances = np.diagonal(matrix)[: 2 * n].reshape(2, n)
        return wiggles[chosen] / variances[chosen]

    orders, errors = four.estimate(ratios)
    found = []
    for i, order, error in zip(chosen, orders, errors, strict=True):
        bends = order - 2 * error > 1 + 1e-3
        says = f"its wiggles overstate its variance {order:.3g} times" if bends else "as affine"
        text = f"{_called(labels, i)} has mean order {describe(order, error)}: {says}."
        found.append(Finding(text, "order", order, error))
    if len(found) > _PAIRS:  # the most bent ones
        found = sorted(found, key=lambda one: -one.value)[:_PAIRS]
    return found


def _largest(correlation: np.ndarray, chosen: list[int]) -> list[tuple[int, int]]:
    pairs = [(i, j) for place, i in enumerate(chosen) for j in chosen[place + 1 :]]
    return sorted(pairs, key=lambda pair: -abs(correlation[pair]))[:_PAIRS]


def _about_correlations(wiggle, covariance, samples, labels, jumping) -> list[Finding]:
    chosen = [i for i in _moving(wiggle, covariance, samples) if not jumping[i]]
    if len(chosen) < 2:
        return []
    correlation, errors = covariance._correlations()
    wiggles = None if wiggle is None else wiggle._correlations()
    certain = _certificates(wiggle, samples, chosen)
    found = []
    for i, j in _largest(correlation, chosen):
        pair = f"{_called(labels, i)} and {_called(labels, j)}"
        value, error = correlation[i, j], errors[i, j]
        theirs = ""
        if wiggles is not None:
            theirs = f"; their wiggles {describe(*(part[i, j] for part in wiggles))}"
        text = f"{pair} have correlation {describe(value, error)}{theirs}."
        found.append(Finding(text, "correlation", value, error))
        if (i, j) in certain:
            low, high, error = certain[i, j]
            sign = "positive" if low > 0 else "negative"
            text = (
                f"The correlation of {pair} is {sign} by two standard errors at least, from "
                f"wiggles and variances alone: they leave it between {low:.3g} and {high:.3g} "
                f"(± {error:.2g}, C13)."
            )
            found.append(Finding(text, "sign", low if low > 0 else high, error))
    return found


def _certificates(wiggle, samples, chosen) -> dict[tuple[int, int], tuple[float, float, float]]:
    """Pairs whose correlation's sign is certain by two standard errors: its ends, and the error of
    the nearer one."""
    if wiggle is None or samples is None:
        return {}
    places = np.ix_(chosen, chosen)

    def ends(wiggles, covariance):
        variances = np.diagonal(covariance[places])
        return np.stack(dependence.correlation_interval(wiggles[places], variances))

    (low, high), (low_error, high_error) = jointly(ends, wiggle, samples)
    certain = {}
    for a, i in enumerate(chosen):
        for b, j in enumerate(chosen):
            if i < j and low[a, b] - 2 * low_error[a, b] > 0:
                certain[i, j] = low[a, b], high[a, b], low_error[a, b]
            elif i < j and high[a, b] + 2 * high_error[a, b] < 0:
                certain[i, j] = low[a, b], high[a, b], high_error[a, b]
    return certain


def _about_held(name, one, base, labels, jumping) -> list[Finding]:
    """How the largest correlations change when features are held, or set."""
    chosen = [i for i in _moving(one, base) if i not in one.held and not jumping[i]]
    if base is None or len(chosen) < 2:
        return []
    what = (
        f"With {', '.join(map(str, labels.shown(one.held)))} held"
        if name == "held"
        else (f"Under {name}")
    )
    before, before_errors = base._correlations()
    after, after_errors = one._correlations()
    found = []
    for i, j in _largest(before, chosen):
        text = (
            f"{what}, the wiggles' correlation of {_called(labels, i)} and {_called(labels, j)} "
            f"goes from {describe(before[i, j], before_errors[i, j])} to "
            f"{describe(after[i, j], after_errors[i, j])}."
        )
        found.append(Finding(text, name, after[i, j], after_errors[i, j]))
    return found


def _about_turn(turn: FrameTurn | None, labels: Labels, wanted: _Wanted) -> list[Finding]:
    if turn is None:
        return []
    worst = int(np.argmax(turn.turn))
    value, error = float(turn.turn[worst]), float(turn.stderr[worst])
    name = _called(labels, wanted.order[worst])
    turns = value - 2 * error > 0.02
    if turns:
        text = (
            f"The frame turns by {describe(value, error)} (C11; most for {name}), where 0 is "
            "needed: local effects and interventions read off this flow err to that extent."
        )
    else:
        text = f"The frame turns by no more than {describe(value, error)} (C11; {name})."
    return [Finding(text, "turn", value, error, warning=turns)]
