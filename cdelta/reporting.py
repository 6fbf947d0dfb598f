r"""One call, :func:`report`: everything in this package about one flow, with what to believe of
it."""

import dataclasses
import html
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from cdelta import _files, _findings, _pilot, dependence, moment as _moment
from cdelta._asked import LOOKED_AT, Asked
from cdelta._extras import optional
from cdelta._features import Several
from cdelta._findings import BOUNDS, Finding
from cdelta._stream import Run, Sample, _batch_size, average, enough
from cdelta.causal.effects import FrameTurn, frame_turn
from cdelta.moment import Moment

_FORMAT = 1


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
        shown = {name: one for name, one in self.moments.items() if name not in BOUNDS}
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
    order: Several | None = None,
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
    effect (or give that alone), for how far the frame turns (C11): of as many features as the
    latent has dimensions. Interventions are on what is held, else on every feature with an effect.
    A data frame is a graph too, read by the names of its rows and columns.

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
    precision. None of it depends on the units of f's numbers. Whether Jacobians are seen as rows or
    as products along probes follows from their measured variance and their cost, which is counted
    in evaluations; with a budget in seconds, and where that takes a small part of it, both are
    timed by the process's own clock.

    Memory grows with the square of the number of features; 2048 are taken at most. A budget of more
    than an hour is warned of: it may have been meant as a number of latents.

    Raises ValueError for a map that is none of the three, or two of them at once, and for features,
    graphs and budgets that make no sense.
    """
    asked = Asked.of(f, key, shape, features, names, budget, run).wanting(held, graph, order)
    asked.budget.warn()
    return _made(asked)


def _made(asked: Asked) -> Report:
    subject, shape, options, budget = asked.subject, asked.shape, asked.options, asked.budget
    labels, wanted, keys = asked.labels, asked.wanted, asked.keys
    findings: list[Finding] = []
    f, solver, found = _pilot.solved(subject, keys["pilot"], shape, options, budget, labels.n)
    findings += found
    f = dependence._looked_at(f, shape, "rows", 1.0, 1, options, asked.names)[0]

    look = _pilot.look_at(
        f, keys["look"], min(budget.noise, LOOKED_AT), shape, options, budget.part(0.15)
    )
    findings += _findings.about_features(look, labels)
    findings += _pilot.about_rounding(f, look, shape, options)
    dearer = _pilot.timed(f, look, shape, options, budget)
    chosen, found = _pilot.choose(look, shape, dearer)
    findings += found

    again = {"names": labels.names, **asked.run}
    if budget.seconds is not None and options.batch is None:
        again["batch"] = budget.batch(look, labels.n, wanted.work, len(options.devices))
    moments, turn, failed = _estimates(f, keys, shape, budget, chosen, wanted, labels, again)
    findings += failed
    findings += _findings.about_tails(look, moments, labels)
    findings += _findings.about_moments(moments, labels)
    findings += _findings.about_turn(turn, labels, wanted)
    findings += _findings.about_seconds(budget)
    findings.sort(key=lambda finding: not finding.warning)
    method = "rows" if chosen.method == "rows" else f"{chosen.method}, {chosen.probes} probes"
    samples = budget.samples
    if budget.seconds is not None:
        counts = [one.samples for name, one in moments.items() if name in _KINDS]
        samples = min(counts or [one.samples for one in moments.values()], default=0)
    return Report(moments, findings, samples, solver, method, turn, labels.names, budget.spent)


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

    tried("covariance", lambda: _four(f, keys["moments"], shape, samples, chosen, options), 4.0)
    if "covariance" in moments:
        four = moments.pop("covariance")
        for (name, kind), one in zip(_KINDS.items(), four, strict=True):
            moments[name] = one.named(labels.names, kind=kind)
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
    return moments, turn, failed


_KINDS = {
    "wiggle": dependence.WIGGLES,
    "covariance": dependence.COVARIANCE,
    "lower": dependence.bound("lower"),
    "upper": dependence.bound("upper"),
}


@dataclasses.dataclass(frozen=True)
class _Four(dependence._Statistic):
    """J(X) times J(X), J(X_α) at a uniform α, J(X_½), and the mean of J(X) and J(X'): C3, C3' and
    both sides of C13, in four parts."""

    products: Any
    parts = 4

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


def _four(f, key, shape, samples, chosen, options) -> tuple[Moment, ...]:
    """The four moments, from the same latents."""
    run = Run.of({name: value for name, value in options.items() if name != "names"})
    f, labels, products = dependence._looked_at(
        f, shape, chosen.method, 1.0, chosen.probes, run, None
    )
    return average(_Four(products), f, key, samples, labels.n, run)


def _sampled(f, key, shape, samples, labels, options) -> Moment:
    """The covariance of f's values at as many latents."""
    run = Run.of({name: value for name, value in options.items() if name != "names"})
    batch = _batch_size(run.batch, math.prod(shape), labels.n, samples, 1)

    values = jax.jit(jax.vmap(f))
    parts = []
    for first in range(0, samples, batch):
        if enough(first):
            break
        latents = _pilot.drawn(key, jnp.arange(first, first + batch), shape).astype(run.dtype)
        parts.append(np.asarray(values(latents)))
    features = np.concatenate(parts)[:samples].astype(np.float64)
    found = dependence.sample_moment(features, names=labels.names)
    words, impl = np.asarray(jax.random.key_data(key)), str(jax.random.key_impl(key))
    return dataclasses.replace(found, keys=_moment.fingerprint(impl, words))
