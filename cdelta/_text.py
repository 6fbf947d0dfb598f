"""Numbers as a sentence or a table says them."""

import math
from typing import SupportsFloat

Number = float | int


def percent(value: SupportsFloat, stderr: SupportsFloat | None = None) -> str:
    """A share as a percentage, to the digits of :func:`describe`: ``12.3 ± 0.4 %``."""
    return f"{describe(100 * float(value), 100 * float(stderr or 0))} %"


def describe(value: SupportsFloat, stderr: SupportsFloat | None = None) -> str:
    """``value ± stderr``, rounded to two digits, or to the digits that the standard error
    leaves."""
    value, stderr = float(value), float(stderr or 0)
    if not stderr:
        return f"{value:.2g}"
    if not math.isfinite(stderr) or not math.isfinite(value):
        return f"{value:.2g} ± {stderr:.2g}"
    places = 1 - math.floor(math.log10(stderr))
    if not -4 <= places <= 6:
        return f"{value:.2g} ± {stderr:.1g}"
    return f"{round(value, places):.{max(places, 0)}f} ± {round(stderr, places):.{max(places, 0)}f}"
