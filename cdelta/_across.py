"""One estimate from several trainings of one recipe."""

import math
import statistics
from collections.abc import Iterable
from typing import Any


def across(values: Iterable[Any], stderrs: Iterable[Any]) -> tuple[float, float]:
    r"""One estimate from several trainings, each with its standard error: the mean, and a standard
    error that knows how far the trainings differ.

    .. math:: \bar v, \qquad
        s = \max\Bigl( \tfrac12\, t_{.975, m-1} \tfrac{S}{\sqrt m},\;
        \tfrac1m \bigl( \textstyle\sum_i s_i^2 \bigr)^{1/2} \Bigr)

    with the sample standard deviation :math:`S` of m values: twice s then covers 95 % although few
    trainings tell their spread poorly (:math:`t_{.975, 2} = 4.3`). One training has no spread: its
    own error is all that is known.

    Raises ValueError when there is no value, or not one standard error a value.
    """
    values, errors = [float(value) for value in values], [float(error) for error in stderrs]
    m = len(values)
    if not m or len(errors) != m:
        raise ValueError(
            "values and stderrs must be equally many, one of each for every training, got "
            f"{m} and {len(errors)}"
        )
    within = math.hypot(*errors) / m
    if m == 1:
        return values[0], within
    from scipy.special import stdtrit  # half a second

    quantile = stdtrit(m - 1, 0.975)
    between = float(quantile) / 2 * statistics.stdev(values) / math.sqrt(m)
    return statistics.fmean(values), max(within, between)
