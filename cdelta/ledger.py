"""Claims and what was measured about them: check, decide, record, read.

A notebook calls :func:`check` for what must hold (a theorem, an identity, the quality of a
network) and :func:`decide` for what a claim says and a measurement may refute. The line that
either prints is what a reader sees; the record goes to the file named by the environment variable
``CDELTA_LEDGER`` when there is one, and the book's scorecard derives its verdicts from those
records. Claims are the keys of ``book/claims.yml`` (``CDELTA_CLAIMS`` names another file); away
from the book, where there is no such file, an id needs only to look like one.

What takes too long for a chapter is measured by ``make bench``, and ships with the package:
:func:`kept` reads it, :func:`made` says when and with what it was made.
"""

import json
import math
import operator
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, SupportsIndex

from cdelta._across import across as across
from cdelta._extras import optional
from cdelta._text import Number, describe as describe, percent as percent

__all__ = ["ClaimError", "across", "check", "claims", "decide", "kept", "made", "read", "share"]

Null = Mapping[str, Number | tuple[Number, Number]]

RECORDS = Path(__file__).parent / "records"
_ID = re.compile(r"[TELC][1-9][0-9]?'?")
SURE = 2  # standard errors by which an estimate must clear a bound


class ClaimError(AssertionError):
    """A measured value misses its bound, or what should miss it does not."""


def check(
    claim_id: str,
    quantity: str,
    value: Any,
    bound: Number | tuple[Number | None, Number | None],
    *,
    stderr: Any = None,
    null: Null | None = None,
) -> None:
    r"""Record that ``quantity`` came out as ``value``, print one line, and raise when the bound is
    missed.

    A number as ``bound`` asks for :math:`\text{value} \le \text{bound}`; a pair asks for
    :math:`\text{low} \le \text{value} \le \text{high}`, where ``None`` leaves that side open. NaN
    never passes.

    Args:
        claim_id: a claim of ``book/claims.yml``, such as ``"T3"``.
        quantity: what was measured, in words.
        value: a number, an array of one element, or a pair (value, stderr).
        bound: the largest acceptable value, or a pair (low, high).
        stderr: the standard error of the value when it was estimated from samples.
        null: what the same measurement gives for something that should fail,
            ``{"another digit": 0.52}`` or ``{"another digit": (value, stderr)}``. A null misses the
            bound when it does so by two of its standard errors.

    Raises:
        ValueError: for an unknown claim, an empty quantity, or arguments that are not numbers.
        ClaimError: when the value misses the bound, or a null does not (it is recorded first).
    """
    record, low, high, null = _measured(claim_id, quantity, value, bound, stderr, null)
    # Written so that a comparison with NaN fails.
    met = _surely_within(record["value"], 0.0, low, high)
    passing = _passing(null, low, high)
    _append({**record, "passed": met and not passing})
    line = _line(record)
    if not met:
        raise ClaimError(f"MISSED {line}, but the bound is {describe_bound(low, high)}")
    if passing:
        raise ClaimError(
            f"MISSED {line} {describe_bound(low, high)}{_met_too(passing)}: the check decides "
            "nothing"
        )
    print(f"PASS {line} {describe_bound(low, high)}{_beside(null)}")


def decide(
    claim_id: str,
    quantity: str,
    value: Any,
    bound: Number | tuple[Number | None, Number | None],
    *,
    stderr: Any = None,
    null: Null | None = None,
) -> str:
    """Record what a measurement says of a claim as it was stated: ``"holds"``, ``"fails"`` or
    ``"undecided"``.

    The claim holds when the value meets the bound by two standard errors, fails when it misses it
    by as many, and is undecided between, as where a null meets the bound too. Nothing is raised for
    a claim that fails: the verdict on the scorecard follows from what is recorded.

    Arguments are those of :func:`check`.

    Raises:
        ValueError: as :func:`check`.
        ClaimError: when the value is NaN, which says nothing of any claim.
    """
    record, low, high, null = _measured(claim_id, quantity, value, bound, stderr, null)
    if math.isnan(record["value"]):
        raise ClaimError(f"NOT MEASURED {claim_id} · {quantity}: the value is NaN")
    margin = SURE * (record["stderr"] or 0.0)
    passing = _passing(null, low, high)
    if _surely_within(record["value"], margin, low, high):
        outcome = "undecided" if passing else "holds"
    else:
        outcome = "undecided" if _touches(record["value"], margin, low, high) else "fails"
    _append({**record, "outcome": outcome, "passed": outcome == "holds"})
    why = _met_too(passing) if outcome == "undecided" and passing else ""
    print(
        f"{outcome.upper()} {_line(record)}, asked {describe_bound(low, high)}{_beside(null)}{why}"
    )
    return outcome


def share(hits: SupportsIndex, trials: SupportsIndex) -> tuple[float, float]:
    r"""A share of independent trials, such as orders found right, with the standard error that few
    trials leave: all of them right is not certainty.

    .. math:: \frac hn, \qquad s = \tfrac12 \max\Bigl( \frac hn - l,\; u - \frac hn \Bigr), \qquad
        l = B^{-1}_{h,\, n-h+1}(.025), \quad u = B^{-1}_{h+1,\, n-h}(.975)

    for h hits among n trials, with quantiles of beta laws (Clopper and Pearson; l is 0 for h = 0, u
    is 1 for h = n): twice s covers the true share in at least 95 % of cases, however few the
    trials and whatever the share. Eight of eight leave a share of .63, seventy-two of seventy-two
    one of .95.

    Raises ValueError unless hits and trials are whole numbers, 0 ≤ hits ≤ trials and 0 < trials.
    """
    try:
        h, n = operator.index(hits), operator.index(trials)
    except TypeError:
        h, n = -1, 0
    if not 0 <= h <= n or not n:
        raise ValueError(
            f"hits must be a whole number from 0 to trials, a positive one, got {hits!r} and "
            f"{trials!r}"
        )
    from scipy.special import betaincinv  # half a second

    low = float(betaincinv(h, n - h + 1, 0.025)) if h else 0.0
    high = float(betaincinv(h + 1, n - h, 0.975)) if h < n else 1.0
    return h / n, max(h / n - low, high - h / n) / 2


def describe_bound(low: Number | None, high: Number | None) -> str:
    """``≤ high``, ``≥ low`` or ``∈ [low, high]``."""
    if low is None:
        return f"≤ {high:.4g}"
    return f"≥ {low:.4g}" if high is None else f"∈ [{low:.4g}, {high:.4g}]"


def claims() -> dict[str, dict[str, Any]] | None:
    """The claims by id, from ``CDELTA_CLAIMS`` or the nearest ``book/claims.yml`` at or above the
    working directory.

    None when there is no such file. Raises FileNotFoundError when ``CDELTA_CLAIMS`` names a file
    that is not there.
    """
    named = os.environ.get("CDELTA_CLAIMS")
    if named:
        return _load(Path(named).resolve())
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "book" / "claims.yml").is_file():
            return _load(folder / "book" / "claims.yml")
    return None


def read(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of every executed notebook in ``folder``, each with its ``notebook`` and
    ``profile``.

    Raises ValueError when there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"folder must hold executed notebooks, got {str(folder)!r}, which is no folder"
        )
    runs = [
        (path.stem, json.loads(path.read_text(encoding="utf-8")))
        for path in sorted(folder.glob("*.json"))
    ]
    return [
        {"notebook": name, "profile": run["profile"], **record}
        for name, run in runs
        for record in run["ledger"]
    ]


def lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records in one file of JSON lines, as :func:`check` writes it; none when it was never
    written."""
    path = Path(path)
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if path.exists()
        else []
    )


def kept(name: str) -> list[dict[str, Any]]:
    """The measurements of a benchmark as they ship with the package, one dictionary each, with the
    day they were ``made`` and the ``versions`` of what made them.

    Raises ValueError when there are none of that name.
    """
    path = RECORDS / f"{name}.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in RECORDS.glob("*.jsonl")))
        raise ValueError(f"name must be one of {known}, got {name!r}")
    return lines(path)


def made(rows: Iterable[Mapping[str, Any]]) -> str:
    """When and with what such measurements were made: the days, and of each package every
    version.

    Raises ValueError for no rows.
    """
    rows = list(rows)
    if not rows:
        raise ValueError("rows must be one or more measurements, got none")
    days = sorted({row["made"] for row in rows})
    used: dict[str, set[str]] = {}
    for row in rows:
        for package, version in row["versions"].items():
            used.setdefault(package, set()).add(version)
    packages = (f"{package} {' and '.join(sorted(found))}" for package, found in used.items())
    when = f"on {days[0]}" if len(days) == 1 else f"from {days[0]} to {days[-1]}"
    return f"{when}, with {', '.join(packages)}"


@lru_cache(maxsize=8)
def _load(path: Path) -> dict[str, dict[str, Any]]:
    yaml = optional("yaml", "book")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _known(claim_id: str) -> None:
    known: Iterable[str] | None = claims()
    if known is None:
        if not isinstance(claim_id, str) or not _ID.fullmatch(claim_id):
            raise ValueError(f"claim_id must look like T3, E5, L2 or C3', got {claim_id!r}")
    elif claim_id not in known:
        raise ValueError(f"claim_id must be one of {', '.join(known)}, got {claim_id!r}")


def _measured(
    claim_id: str, quantity: str, value: Any, bound: Any, stderr: Any, null: Null | None
) -> tuple[dict[str, Any], float | None, float | None, list[dict[str, Any]]]:
    """The record of a measurement, without what follows from it; the sides of its bound; its
    nulls."""
    _known(claim_id)
    if not isinstance(quantity, str) or not quantity.strip():
        raise ValueError(f"quantity must say in words what was measured, got {quantity!r}")
    low, high = _bounds(bound)
    if isinstance(value, tuple):
        if len(value) != 2 or stderr is not None:
            raise ValueError(
                f"value must be a number, or (value, stderr) and no stderr beside it, got {value}"
            )
        value, stderr = value
    record = {
        "claim": claim_id,
        "quantity": quantity,
        "value": _number("value", value),
        "bound": high if low is None else [low, high],
        "stderr": _stderr(stderr),
    }
    nulls = _nulls(null)
    return record | ({"null": nulls} if nulls else {}), low, high, nulls


def _nulls(null: Any) -> list[dict[str, Any]]:
    if null is None:
        return []
    if not isinstance(null, Mapping) or not null:
        raise ValueError(f"null must map names to values or (value, stderr), got {null!r}")
    found = []
    for name, entry in null.items():
        value, error = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, None)
        value = _number(f"null {name!r}", value)
        found.append({"name": str(name), "value": value, "stderr": _stderr(error)})
    return found


def _stderr(stderr: Any) -> float | None:
    if stderr is None:
        return None
    error = _number("stderr", stderr)
    if not error >= 0:
        raise ValueError(f"stderr must be at least 0, got {error}")
    return error


def _surely_within(value: float, margin: float, low: float | None, high: float | None) -> bool:
    return (
        (low is None or value - margin >= low)
        and (high is None or value + margin <= high)
        and (not math.isnan(value))
    )


def _touches(value: float, margin: float, low: float | None, high: float | None) -> bool:
    """Whether some number within ``margin`` of the value meets the bound; NaN may be any number."""
    return not (
        (low is not None and value + margin < low) or (high is not None and value - margin > high)
    )


def _passing(null: list[dict[str, Any]], low: float | None, high: float | None) -> list[str]:
    """Names of the nulls that do not clearly miss the bound."""
    return [
        entry["name"]
        for entry in null
        if _touches(entry["value"], SURE * (entry["stderr"] or 0.0), low, high)
    ]


def _met_too(passing: list[str]) -> str:
    return f"; beside it the bound is met too by: {'; '.join(passing)}"


def _line(record: Mapping[str, Any]) -> str:
    measured = describe(record["value"], record["stderr"])
    return f"{record['claim']} · {record['quantity']}: {measured}"


def _beside(null: list[dict[str, Any]]) -> str:
    named = [f"{entry['name']}: {describe(entry['value'], entry['stderr'])}" for entry in null]
    return f" (beside it, {'; '.join(named)})" if named else ""


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a single number, got {value!r}") from error


def _bounds(bound: Any) -> tuple[float | None, float | None]:
    if isinstance(bound, tuple | list):
        if len(bound) != 2:
            raise ValueError(
                f"bound must be a number or a pair (low, high), got {len(bound)} entries"
            )
        low, high = (None if side is None else _number("bound", side) for side in bound)
    else:
        low, high = None, _number("bound", bound)
    if low is None and high is None:
        raise ValueError("bound must limit the value on one side at least, got (None, None)")
    if any(side is not None and math.isnan(side) for side in (low, high)):
        raise ValueError(f"bound must not be NaN, got {bound!r}")
    if low is not None and high is not None and low > high:
        raise ValueError(f"bound must be (low, high) with low <= high, got {bound!r}")
    return low, high


def _append(record: dict[str, Any]) -> None:
    path = os.environ.get("CDELTA_LEDGER")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
