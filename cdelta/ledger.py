"""Claims and what was measured about them: check, record, read.

A notebook calls :func:`check` where it verifies a claim. The line it prints is what a reader sees;
the record goes to the file named by the environment variable ``CDELTA_LEDGER`` when there is one,
and the book's scorecard is made from those records. Claims are the keys of ``book/claims.yml``
(``CDELTA_CLAIMS`` names another file); away from the book, where there is no such file, an id needs
only to look like one.
"""

import json
import math
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from cdelta._extras import optional

__all__ = ["ClaimError", "check", "claims", "read"]

Number = float | int

_ID = re.compile(r"[TELC][1-9][0-9]?'?")


class ClaimError(AssertionError):
    """A measured value misses its bound."""


def check(
    claim_id: str,
    quantity: str,
    value: Any,
    bound: Number | tuple[Number | None, Number | None],
    *,
    stderr: Any = None,
) -> None:
    r"""Record that ``quantity`` came out as ``value``, print one line, and raise when the bound is
    missed.

    A number as ``bound`` asks for :math:`\text{value} \le \text{bound}`; a pair asks for
    :math:`\text{low} \le \text{value} \le \text{high}`, where ``None`` leaves that side open. NaN
    never passes.

    Args:
        claim_id: a claim of ``book/claims.yml``, such as ``"T3"``.
        quantity: what was measured, in words.
        value: a number, or an array of one element.
        bound: the largest acceptable value, or a pair (low, high).
        stderr: the standard error of the value when it was estimated from samples.

    Raises:
        ValueError: for an unknown claim, an empty quantity, or arguments that are not numbers.
        ClaimError: when the value misses the bound (it is recorded first).
    """
    _known(claim_id)
    if not isinstance(quantity, str) or not quantity.strip():
        raise ValueError(f"quantity must say in words what was measured, got {quantity!r}")
    value = _number("value", value)
    error = None if stderr is None else _number("stderr", stderr)
    if error is not None and not error >= 0:
        raise ValueError(f"stderr must be at least 0, got {error}")
    low, high = _bounds(bound)
    # Written so that a comparison with NaN fails.
    passed = (
        (low is None or value >= low) and (high is None or value <= high) and not math.isnan(value)
    )
    _append(
        {
            "claim": claim_id,
            "quantity": quantity,
            "value": value,
            "bound": high if low is None else [low, high],
            "stderr": error,
            "passed": passed,
        }
    )
    line = f"{claim_id} · {quantity}: {describe(value, error)}"
    if not passed:
        raise ClaimError(f"MISSED {line}, but the bound is {describe_bound(low, high)}")
    print(f"PASS {line} {describe_bound(low, high)}")


def describe(value: Number, stderr: Number | None = None) -> str:
    """``value ± stderr``, rounded to two digits, or to the digits that the standard error
    leaves."""
    if not stderr:
        return f"{value:.2g}"
    if not math.isfinite(stderr) or not math.isfinite(value):
        return f"{value:.2g} ± {stderr:.2g}"
    places = 1 - math.floor(math.log10(stderr))
    if not -4 <= places <= 6:
        return f"{value:.2g} ± {stderr:.1g}"
    return f"{round(value, places):.{max(places, 0)}f} ± {round(stderr, places):.{max(places, 0)}f}"


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
