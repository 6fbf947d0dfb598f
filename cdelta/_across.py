"""One estimate from several trainings of one recipe."""

import math
from collections.abc import Iterable
from typing import Any


def across(values: Iterable[Any], stderrs: Iterable[Any] | None = None) -> tuple[Any, Any]:
    r"""One estimate from several trainings, each with its standard error: the mean, and a standard
    error that knows how far the trainings differ.

    .. math:: \bar v, \qquad
        s = \max\Bigl( \tfrac12\, t_{.975, m-1} \tfrac{S}{\sqrt m},\;
        \tfrac1m \bigl( \textstyle\sum_i s_i^2 \bigr)^{1/2} \Bigr)

    with the sample standard deviation :math:`S` of m values: twice s then covers 95 % although few
    trainings tell their spread poorly (:math:`t_{.975, 2} = 4.3`). One training has no spread: its
    own error is all that is known. Without ``stderrs`` the spread is all that is known. Arrays
    ``[m, ...]`` give arrays, entry by entry.

    Raises ValueError when there is no value, or not one standard error a value.
    """
    import numpy as np  # here, as the ledger is imported without it

    values = np.array(list(values), float)
    errors = np.zeros_like(values) if stderrs is None else np.array(list(stderrs), float)
    m = len(values)
    if not m or errors.shape != values.shape:
        raise ValueError(
            "values and stderrs must be equally many, one of each for every training, got "
            f"{m} and {len(errors)}"
        )
    mean, error = values.mean(0), np.linalg.norm(errors, axis=0) / m
    if m > 1:
        from scipy.special import stdtrit  # half a second

        between = stdtrit(m - 1, 0.975) / 2 * values.std(0, ddof=1) / math.sqrt(m)
        error = np.maximum(error, between)
    return (mean, error) if np.ndim(mean) else (float(mean), float(error))
