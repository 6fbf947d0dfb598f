r"""The result of every estimator: a matrix of dependence with its uncertainty."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import ArrayLike, Float

from cdelta import _check


@dataclasses.dataclass(frozen=True, eq=False)
class Moment:
    r"""An estimated matrix of dependence with its uncertainty.

    ``matrix`` ``[n, n]``; ``samples``, the latents (or probes) that it averages;
    ``effective_samples``, as how many they count, :math:`(\sum_s T_s)^2 / \sum_s T_s^2` with
    :math:`T_s` the trace that sample s adds (few when a handful of latents carry everything);
    ``degenerate``, the share of latents left out because nothing could be held there.

    Standard errors are those of the delete-one-group jackknife: ``replicates`` are the matrices
    without one group of samples each, ``shares`` the groups' shares of all samples, and for any
    function of the matrix

    .. math:: \operatorname{stderr}^2 = \sum_b (1 - s_b)\,(\theta_{(b)} - \theta)^2

    which is unbiased for a mean, whatever the tails. :meth:`estimate` does it for a function of
    yours. Features in ``held`` have zero rows; their correlations are undefined (NaN).
    ``numpy.asarray`` gives ``matrix``.
    """

    matrix: Float[np.ndarray, "n n"]
    replicates: Float[np.ndarray, "blocks n n"] = dataclasses.field(repr=False)
    shares: Float[np.ndarray, " blocks"] = dataclasses.field(repr=False)
    samples: int
    effective_samples: float
    held: tuple[int, ...] = ()
    degenerate: float = 0.0

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.matrix, dtype=dtype)

    def estimate(
        self, function: Callable[[np.ndarray], ArrayLike]
    ) -> tuple[np.ndarray, np.ndarray]:
        """A function of the matrix, and its standard error (of the same shape)."""
        value = np.asarray(function(self.matrix))
        replicates = np.stack([np.asarray(function(matrix)) for matrix in self.replicates])
        return value, np.asarray(self._stderr(value, replicates))

    def _stderr(self, value, replicates):
        if len(self.shares) < 2:
            return np.full_like(value, np.nan)  # one sample says nothing about its spread
        return np.sqrt(np.einsum("b,b...->...", 1 - self.shares, (replicates - value) ** 2))

    @property
    def stderr(self) -> Float[np.ndarray, "n n"]:
        """Standard errors of the entries of ``matrix``."""
        return self._stderr(self.matrix, self.replicates)

    @property
    def correlation(self) -> Float[np.ndarray, "n n"]:
        r""":math:`M_{ij} / \sqrt{M_{ii} M_{jj}}`; NaN for held features.

        Raises ValueError, naming them, when other features have no moment (a map that does not
        depend on x0).
        """
        self._refuse_constant()
        return _correlation(self.matrix)

    @property
    def correlation_stderr(self) -> Float[np.ndarray, "n n"]:
        """Standard errors of ``correlation``."""
        self._refuse_constant()
        return self._stderr(_correlation(self.matrix), _correlation(self.replicates))

    def _refuse_constant(self) -> None:
        variances = np.diagonal(self.matrix)
        constant = [int(i) for i in np.flatnonzero(~(variances > 0)) if i not in self.held]
        if constant:
            raise ValueError(
                f"the correlation of features {constant} is undefined: their moment is not "
                "positive, as for a map that does not depend on x0; .matrix holds what was "
                "measured, .select(indices) leaves features out"
            )

    def partial(self, k: int | Sequence[int]) -> "Moment":
        r"""The moment with features k (one or several) regressed out: their Schur complement.

        .. math:: M_{ij} - M_{ik} M_{kk}^{-1} M_{kj}

        ``[n, n]`` with zero rows and columns at k. Raises ValueError for an index out of range,
        for a singular :math:`M_{kk}`, and when no feature is left.
        """
        k = held_indices("k", k, len(self.matrix))
        if not np.linalg.matrix_rank(self.matrix[np.ix_(k, k)], hermitian=True) == len(k):
            raise ValueError(f"features {list(k)} cannot be held: their own moment is singular")
        return dataclasses.replace(
            self,
            matrix=_schur(self.matrix, k),
            replicates=_schur(self.replicates, k),
            held=(*self.held, *k),
        )

    def select(self, indices: Sequence[int]) -> "Moment":
        """The moment of some of the features, in the given order."""
        chosen = list(_check.indices("indices", indices, len(self.matrix)))
        return dataclasses.replace(
            self,
            matrix=self.matrix[np.ix_(chosen, chosen)],
            replicates=self.replicates[:, chosen][:, :, chosen],
            held=tuple(new for new, old in enumerate(chosen) if old in self.held),
        )


jax.tree_util.register_dataclass(
    Moment,
    ["matrix", "replicates", "shares", "samples", "effective_samples", "degenerate"],
    ["held"],
)


def held_indices(name: str, value: Any, n: int) -> tuple[int, ...]:
    """The features to hold, some but not all of n: with all of them held there is nothing left."""
    held = _check.indices(name, value, n)
    if len(held) == n:
        raise ValueError(f"{name} must leave at least one feature free, got all {n} of them")
    return held


def _correlation(matrices):
    variance = np.diagonal(matrices, axis1=-2, axis2=-1)
    scale = np.sqrt(np.where(variance > 0, variance, np.nan))
    correlation = matrices / scale[..., :, None] / scale[..., None, :]
    n = matrices.shape[-1]
    correlation[..., np.arange(n), np.arange(n)] = np.where(variance > 0, 1.0, np.nan)
    return correlation


def _schur(matrices, k):
    columns = matrices[..., :, k]
    held = np.take(columns, k, axis=-2)
    result = matrices - columns @ np.linalg.solve(held, np.swapaxes(columns, -1, -2))
    result[..., k, :] = 0.0
    result[..., :, k] = 0.0
    return (result + np.swapaxes(result, -1, -2)) / 2
