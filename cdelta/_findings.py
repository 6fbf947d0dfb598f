"""What a report says: sentences, each with its number, made of what was measured."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cdelta import _diagnostics, dependence
from cdelta._asked import Budget, Wanted
from cdelta._diagnostics import jointly
from cdelta._features import Labels
from cdelta._text import describe
from cdelta.causal.effects import FrameTurn
from cdelta.moment import Moment

_PAIRS = 10  # of correlations that sentences are made of
BOUNDS = ("lower", "upper")


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


def _called(labels: Labels, i: int) -> str:
    return f"feature {i}" if labels.names is None else labels.names[i]


def _share(count: int, total: int) -> tuple[float, float]:
    share = count / total
    return share, math.sqrt(share * (1 - share) / total)


def _percent(share: float, error: float) -> str:
    return f"{describe(100 * share, 100 * error) if error else f'{100 * share:.3g}'} %"


def about_features(look: Any, labels: Labels) -> list[Finding]:
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
    constant, flat = [], []
    count = len(good.lengths)
    for i, share in enumerate(_diagnostics.flat(good.lengths)):
        if share == 1:
            constant.append(i)
        elif share - 2 * _share(round(share * count), count)[1] > 0.02:
            flat.append((share, i))
    for some in _in_few(constant):
        one = len(some) == 1
        text = (
            f"{_listed(some, labels)} {'is' if one else 'are'} constant: "
            f"{'its gradient is' if one else 'their gradients are'} 0 at all {count} latents "
            "looked at."
        )
        found.append(Finding(text, "constant", 1.0, 0.0, warning=True))
    for some in _in_few([i for _, i in sorted(flat, key=lambda pair: (-pair[0], pair[1]))]):
        share = dict((i, share) for share, i in flat)[some[0]]
        share, error = _share(round(share * count), count)
        if len(some) == 1:
            text = (
                f"{_listed(some, labels)} is flat at {_percent(share, error)} of the latents: its "
                "gradient there is below a thousandth of its usual length. Holding it means "
                "little; a logit before its saturation would not be flat."
            )
        else:
            text = (
                f"{_listed(some, labels)} are flat at up to {_percent(share, error)} of the "
                "latents: their gradients there are below a thousandth of their usual length. "
                "Holding one means little; logits before their saturation would not be flat."
            )
        found.append(Finding(text, "flat", share, error, warning=True))
    return found


def _in_few(some: list[int]) -> list[list[int]]:
    """A sentence for each, or one for all where these would be many."""
    return [[i] for i in some] if len(some) <= _PAIRS else [some]


def _listed(some: Sequence[int], labels: Labels) -> str:
    if len(some) == 1:
        return _called(labels, some[0])
    named = ", ".join(str(name) for name in labels.shown(some[:_PAIRS]))
    return f"{len(some)} features ({named}{', …' if len(some) > _PAIRS else ''})"


def about_tails(look: Any, moments: Mapping[str, Moment], labels: Labels) -> list[Finding]:
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
        if name in BOUNDS or not np.isfinite(one.effective_samples):
            continue
        share = one.effective_samples / one.samples
        if share < 0.05:
            text = (
                f"The {name} moment's {one.samples} samples count as "
                f"{one.effective_samples:.3g}: a few of them carry it."
            )
            found.append(Finding(text, "effective", one.effective_samples, warning=True))
        if one.degenerate:
            drawn = round(one.samples / (1 - one.degenerate))  # the samples are those that count
            error = _share(round(one.degenerate * drawn), drawn)[1]
            text = (
                f"The {name} moment leaves out {_percent(one.degenerate, error)} of the latents, "
                "where nothing could be held."
            )
            found.append(Finding(text, "degenerate", one.degenerate, error, warning=True))
    return found


def about_moments(moments: Mapping[str, Moment], labels: Labels) -> list[Finding]:
    """What the moments say: jumps, mean orders, bounds, correlations, signs, held and do."""
    found = []
    wiggle, covariance = moments.get("wiggle"), moments.get("covariance")
    samples = moments.get("samples")
    jumping = np.zeros(labels.n, bool)
    if covariance is not None and samples is not None:
        scores, jumping = _diagnostics.jumps(samples, covariance)
        worst = sorted(np.flatnonzero(jumping).tolist(), key=lambda i: -abs(scores[i]))
        for some in _in_few(worst):
            i = some[0]
            whose = "" if len(some) == 1 else f"{_listed(some, labels)} jump. "
            text = (
                f"{whose}{_called(labels, i)} has variance {describe(*samples[i, i])} over samples "
                f"and {describe(*covariance[i, i])} by its Jacobian ({abs(scores[i]):.2g} standard "
                "errors apart): it jumps, as a threshold does, and no Jacobian sees that. Take "
                "what it is a threshold of."
            )
            found.append(Finding(text, "jump", scores[i], 1.0, warning=True))
    if wiggle is not None and covariance is not None:
        found += _about_orders(wiggle, covariance, labels, jumping)
    if covariance is not None:
        found += _about_correlations(wiggle, covariance, samples, labels, jumping)
    if "lower" in moments and "upper" in moments:
        below, above = (moments[name].estimate(np.trace) for name in BOUNDS)
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


def _about_orders(
    wiggle: Moment, covariance: Moment, labels: Labels, jumping: np.ndarray
) -> list[Finding]:
    """Mean orders: of the same latents, so that what both moments share leaves no noise."""
    moves = (np.diagonal(wiggle.matrix) > 0) & (np.diagonal(covariance.matrix) > 0)
    chosen = np.flatnonzero(moves & ~jumping).tolist()
    if not chosen:
        return []

    def ratios(wiggles, covariance):
        return (np.diagonal(wiggles) / np.diagonal(covariance))[chosen]

    with np.errstate(divide="ignore", invalid="ignore"):
        orders, errors = _diagnostics.together(ratios, wiggle, covariance)
    found = []
    for i, order, error in zip(chosen, orders, errors, strict=True):
        bends = order - 2 * error > 1 + 1e-3
        says = (
            f"its wiggles overstate its variance {order:.3g} times"
            if bends
            else "not told from an affine one"
        )
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


def about_turn(turn: FrameTurn | None, labels: Labels, wanted: Wanted) -> list[Finding]:
    found = []
    if wanted.beyond:
        first, rest = (labels.shown(some) for some in (wanted.order, wanted.beyond))
        said = "nothing is known of the turn (C11)"
        if len(first) > 1:
            said = f"the turn (C11) is that of {', '.join(map(str, first))} alone"
        text = (
            f"The order has {len(first) + len(rest)} features and a latent {len(first)} "
            f"dimension{'s' * (len(first) > 1)}, too few for a direction of each: {said}, and "
            f"{', '.join(map(str, rest))} {'moves' if len(rest) == 1 else 'move'} only with the "
            "features before."
        )
        found.append(Finding(text, "turn", float(len(rest)), warning=True))
    if turn is None:
        return found
    worst = int(np.argmax(turn.turn))
    value, error = float(turn.turn[worst]), float(turn.stderr[worst])
    name = _called(labels, wanted.order[worst])
    turns = value - 2 * error > 0.02
    if turns:
        text = (
            f"The frame turns by {describe(value, error)} (C11; most for {name}), where 0 would be "
            "proof: local effects and interventions read off this flow may be wrong."
        )
    else:
        text = f"The frame turns by no more than {describe(value, error)} (C11; {name})."
    return [*found, Finding(text, "turn", value, error, warning=turns)]


def about_seconds(budget: Budget) -> list[Finding]:
    """Whether a budget in seconds was overrun."""
    if budget.seconds is None or budget.spent <= 1.1 * budget.seconds:
        return []
    text = (
        f"The report took {budget.spent:.3g} s, for a budget of {budget.seconds:.3g} s: every "
        "moment's program is compiled, and takes a batch of latents at least."
    )
    return [Finding(text, "budget", budget.spent)]
