r"""Several trainings of one recipe: latents shared among them, and what they say together.

Another seed gives another flow. So a measurement of "the learned flow" gives each training latents
of its own (:func:`shared`), estimates the moment of each (:class:`Moments`), and says with what
error the recipe is known, or the trainings that there are.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial
from jaxtyping import ArrayLike, Float, Int

from cdelta import _check
from cdelta._across import across
from cdelta.dependence import sample_moment
from cdelta.moment import Moment


def each(f: Callable, *rows: Any, batch: int = 8) -> Any:
    """``f`` of each row of the arrays, ``batch`` at a time: memory does not grow with them.

    ``f`` takes one row of each, and is compiled once where it is a pytree (a flow, a network,
    ``jax.tree_util.Partial`` of a function). Raises ValueError without arrays, and where they have
    not equally many rows.
    """
    if not rows or len({len(array) for array in rows}) > 1:
        raise ValueError(
            f"rows must be arrays of equally many rows, got {[len(array) for array in rows]}"
        )
    whole = jax.tree_util.all_leaves([f])  # a function is no pytree, and jit takes none
    return _each(Partial(f) if whole else f, rows, _check.count("batch", batch))


@partial(jax.jit, static_argnames="batch")
def _each(f: Callable, rows: tuple, batch: int) -> Any:
    return jax.lax.map(lambda row: f(*row), rows, batch_size=batch)


def shares(count: int, trainings: int) -> list[Int[np.ndarray, " rows"]]:
    """Which of ``count`` rows each training has: runs that follow one another, of equal lengths or
    of two that differ by one.

    Raises ValueError unless there is a row for each.
    """
    count, trainings = _check.count("count", count), _check.count("trainings", trainings)
    if count < trainings:
        raise ValueError(f"count must be a row for each of {trainings} trainings, got {count}")
    return np.array_split(np.arange(count), trainings)


def shared(f: Callable, members: Sequence[Any], *rows: Any, batch: int = 8) -> Any:
    """``f(member, *row)`` of each row of the arrays, which the members (the flows of several
    trainings) have :func:`shares` of: as NumPy arrays, in the rows' order, :func:`each` in batches.

    Raises ValueError as those do.
    """
    mine = shares(len(rows[0]) if rows else 0, len(members))
    parts = [
        each(Partial(f, member), *(array[share] for array in rows), batch=batch)
        for member, share in zip(members, mine, strict=True)
    ]
    return jax.tree.map(lambda *found: np.concatenate(found), *parts)


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """What several trainings say: the moment of each, ``parts``, and, where it is known, that of
    all their samples together, ``whole``."""

    parts: Sequence[Moment]
    whole: Moment | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts:
            raise ValueError("parts must be the moment of each training, got none")

    @classmethod
    def of_samples(
        cls, features: Float[ArrayLike, "N n"], shares: Iterable[Int[ArrayLike, " rows"]]
    ) -> "Moments":
        """The sample covariances (:func:`cdelta.dependence.sample_moment`) of the rows that each
        training has, and of all of them. Raises ValueError as that does."""
        features = np.asarray(features)
        parts = tuple(sample_moment(features[np.asarray(share)]) for share in shares)
        return cls(parts, sample_moment(features))

    def estimate(self, function: Callable[[np.ndarray], ArrayLike]) -> tuple[float, float]:
        """A number that is a function of the moment, for **the recipe**, and its standard error:
        :func:`cdelta.ledger.across` of what the trainings say, which knows how far they differ.

        With a ``whole`` the number is that of the whole, and its error the larger of the two.
        """
        found = [moment.estimate(function) for moment in self.parts]
        value, error = across(*zip(*found, strict=True))
        if self.whole is None:
            return value, error
        value, own = map(float, self.whole.estimate(function))
        return value, max(error, own)

    def mean(self, function: Callable[[np.ndarray], ArrayLike]) -> tuple[np.ndarray, np.ndarray]:
        r"""A function of the moment, on average over **these trainings**, and its standard error
        (of the same shape), which knows nothing of others: what an identity that holds training by
        training is tested with.

        .. math:: \bar\theta = \frac1m \sum_i \theta_i, \qquad
            s = \frac1m \Bigl( \sum_i s_i^2 \Bigr)^{1/2}
        """
        found = [moment.estimate(function) for moment in self.parts]
        values, errors = (np.array(column) for column in zip(*found, strict=True))
        error = np.linalg.norm(errors, axis=0) / len(self.parts)
        return np.asarray(values.mean(0)), np.asarray(error)

    @property
    def effective_samples(self) -> float:
        """As how many samples those of all trainings count."""
        return float(sum(moment.effective_samples for moment in self.parts))

    @property
    def matrix(self) -> Float[np.ndarray, "n n"]:
        """The moment of the whole, or, where it is not known, the mean of the trainings'."""
        if self.whole is not None:
            return self.whole.matrix
        return np.mean([moment.matrix for moment in self.parts], axis=0)
