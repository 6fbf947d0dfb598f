r"""A velocity at one time, fitted by least squares in closed form: cosines of random frequencies,
and the source's noise integrated out exactly.

For :math:`x_t = t x_1 + s x_0`, :math:`s = 1 - t`, :math:`x_0 \sim N(0, I)`, and
:math:`\varphi_a(x) = \cos(\omega_a \cdot x + b_a)`, with :math:`u_a = t\,\omega_a \cdot x_1 + b_a`,

.. math:: E[\varphi_a \mid x_1] = e^{-s^2|\omega_a|^2/2} \cos u_a, \qquad
    E[\varphi_a x_0 \mid x_1] = -s\,\omega_a e^{-s^2|\omega_a|^2/2} \sin u_a,

.. math:: E[\varphi_a \varphi_b \mid x_1] =
    \tfrac12 e^{-s^2|\omega_a - \omega_b|^2/2} \cos(u_a - u_b)
    + \tfrac12 e^{-s^2|\omega_a + \omega_b|^2/2} \cos(u_a + u_b),

so the normal equations of :math:`\min_v E|v(x_t) - (x_1 - x_0)|^2` are sums over the samples alone.
Each cosine reads some of the features only: those that read none but a subset's are the same
regression for its marginal, and one pass over the samples serves every subset, and every subset of
the samples that is made of whole groups.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from cdelta import _check
from cdelta._precision import working
from cdelta._pytree import pytree

RIDGES = 10.0 ** np.arange(-4.0, 1.1, 0.5)
_FOLDS = 2  # of the groups, to choose among them
_LONGEST, _SHORTEST = 0.5, 2.5  # scales of the frequencies, of features with variance 1
# which part of the cosines reads one feature, two, three, all: additive mechanisms need pairs
_SHARES = {1: 0.15, 2: 0.5, 3: 0.2, None: 0.15}


class Waves(NamedTuple):
    r"""The cosines :math:`\cos(\omega_a \cdot x + b_a)`."""

    frequencies: Float[np.ndarray, "waves d"]
    phases: Float[np.ndarray, " waves"]


def draw_waves(draw: np.random.Generator, d: int, count: int) -> Waves:
    """About ``count`` of them; frequencies are normal, of scales from long to short."""
    rows = []
    for size, share in _SHARES.items():
        subsets = list(itertools.combinations(range(d), min(size or d, d)))
        draw.shuffle(subsets)
        each = max(1, round(share * count / len(subsets)))
        for subset in subsets[: max(1, round(share * count))]:
            frequencies = np.zeros((each, d))
            frequencies[:, subset] = draw.standard_normal((each, len(subset)))
            rows.append(frequencies * (_LONGEST * (_SHORTEST / _LONGEST) ** draw.random((each, 1))))
    frequencies = np.concatenate(rows)
    return Waves(frequencies, draw.uniform(0, 2 * np.pi, len(frequencies)))


@pytree
class WaveVelocity:
    r""":math:`v(x) = c + A x + W^\top \cos(\Omega x + b)`, a function of ``(t, x)`` as others are,
    right at the time that it was fitted at."""

    constant: Float[ArrayLike, " d"]
    linear: Float[ArrayLike, "d d"]
    weights: Float[ArrayLike, "waves d"]
    frequencies: Float[ArrayLike, "waves d"]
    phases: Float[ArrayLike, " waves"]

    def __call__(self, t: ArrayLike, x: Float[ArrayLike, " d"]) -> Float[Array, " d"]:
        x = _check.as_float("x", x)
        dtype = working(x.dtype)
        own = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self)
        waves = jnp.cos(own.frequencies @ x.astype(dtype) + own.phases)
        v = own.constant + own.linear @ x.astype(dtype) + waves @ own.weights
        return v.astype(x.dtype)

    def slopes(
        self, falls: Float[np.ndarray, "n waves"]
    ) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "d d"]]:
        r""":math:`\partial_j v_j` at points where :math:`-\sin(\Omega x + b)` is given, and the
        Jacobian's mean over them."""
        diagonal = falls @ (self.weights * self.frequencies) + np.diagonal(self.linear)
        return diagonal, (self.weights.T * falls.mean(0)) @ self.frequencies + self.linear


class _Normal(NamedTuple):
    """Normal equations of the cosines' residuals from a regression on 1 and x_t, and what makes the
    velocity of their solution."""

    gram: np.ndarray
    right: np.ndarray
    linear: np.ndarray
    regression: np.ndarray  # of the cosines on x_t
    waves: np.ndarray  # mean
    mean: np.ndarray  # of x1


class _Solver:
    """Solutions of normal equations with a ridge an output, all from one decomposition."""

    def __init__(self, normal: _Normal):
        self.size, self.axes = np.linalg.eigh(normal.gram)

    def __call__(self, right: np.ndarray, ridge: ArrayLike) -> np.ndarray:
        damped = np.maximum(self.size, 0)[:, None] + ridge
        return self.axes @ (self.axes.T @ right / damped)


@dataclasses.dataclass(frozen=True)
class Sums:
    """What the normal equations need of the samples, a sum for each of their groups."""

    waves: Waves
    t: float
    counts: Int[np.ndarray, " groups"]
    parts: tuple[Float[np.ndarray, "groups ..."], ...]

    @classmethod
    def of(cls, x: Float[np.ndarray, "n d"], waves: Waves, t: float, groups: int) -> "Sums":
        """The samples' groups are consecutive."""
        frequencies, phases = waves
        s = 1 - t
        square = (frequencies**2).sum(1)
        apart = square[:, None] + square - 2 * frequencies @ frequencies.T
        together = square[:, None] + square + 2 * frequencies @ frequencies.T
        apart, together = (np.exp(-s * s * q / 2) / 2 for q in (apart, together))
        damped = np.exp(-s * s * square / 2)[:, None]
        sums = []
        chunks = np.array_split(x, groups)
        for part in chunks:
            u = t * part @ frequencies.T + phases
            cos, sin = np.cos(u), np.sin(u)
            even, odd = cos.T @ cos, sin.T @ sin
            sums.append(
                (
                    (even + odd) * apart + (even - odd) * together,
                    damped[:, 0] * cos.sum(0),
                    damped * (cos.T @ part),
                    -s * frequencies * damped * sin.sum(0)[:, None],
                    part.sum(0),
                    part.T @ part,
                )
            )
        counts = np.array([len(part) for part in chunks])
        return cls(waves, t, counts, tuple(map(np.stack, zip(*sums, strict=True))))

    def marginal(self, left: Sequence[int]) -> "Sums":
        """The same of some of the features, in the given order."""
        left = np.array(left)
        others = np.setdiff1d(np.arange(self.waves.frequencies.shape[1]), left)
        used = np.flatnonzero((self.waves.frequencies[:, others] == 0).all(1))
        gram, waves, with_x1, with_x0, mean, square = self.parts
        return Sums(
            Waves(self.waves.frequencies[np.ix_(used, left)], self.waves.phases[used]),
            self.t,
            self.counts,
            (
                gram[:, used[:, None], used],
                waves[:, used],
                with_x1[:, used[:, None], left],
                with_x0[:, used[:, None], left],
                mean[:, left],
                square[:, left[:, None], left],
            ),
        )

    def velocities(self) -> tuple[WaveVelocity, list[WaveVelocity]]:
        """From all samples, and from all but each of the groups, with a ridge a feature."""
        ridge, groups = self._ridge(), np.arange(len(self.counts))
        normal = self._normal(groups >= 0)
        solver = _Solver(normal)
        weights = solver(normal.right, ridge)
        without = []
        for group in groups:
            own, near = self._normal(groups != group), weights
            for _ in range(3):  # the equations differ by a group's, so each step gains a digit
                near = near + solver(own.right - own.gram @ near - ridge * near, ridge)
            without.append(self._velocity(own, near))
        return self._velocity(normal, weights), without

    def _velocity(self, normal: _Normal, weights: np.ndarray) -> WaveVelocity:
        linear = normal.linear - weights.T @ normal.regression
        constant = normal.mean - self.t * linear @ normal.mean - normal.waves @ weights
        return WaveVelocity(constant, linear, weights, *self.waves)

    def _ridge(self) -> Float[np.ndarray, " d"]:
        """A feature's ridge: the largest that on groups held out loses no more than the best one
        by a standard error of the difference. The best itself bends straight features by chance."""
        groups = np.arange(len(self.counts))
        losses = np.zeros((len(groups), len(RIDGES), self.waves.frequencies.shape[1]))
        for held in range(_FOLDS):
            own = self._normal(groups % _FOLDS != held)
            solver = _Solver(own)
            weights = [solver(own.right, ridge) for ridge in RIDGES]
            for group in groups[groups % _FOLDS == held]:
                other = self._normal(groups == group)
                losses[group] = [((other.gram @ w - 2 * other.right) * w).sum(0) for w in weights]
        best = losses.mean(0).argmin(0)
        beyond = losses - np.take_along_axis(losses, best[None, None], 1)
        error = beyond.std(0, ddof=1) / np.sqrt(len(groups))
        near = beyond.mean(0) <= error
        return np.where(near, RIDGES[:, None], 0).max(0)

    def _normal(self, kept: np.ndarray) -> _Normal:
        t, s = self.t, 1 - self.t
        share = kept / self.counts[kept].sum()
        gram, waves, with_x1, with_x0, mean, square = (
            np.tensordot(share, part, 1) for part in self.parts
        )
        eye = np.eye(len(mean))
        cov = square - np.outer(mean, mean)
        with_x1 = with_x1 - np.outer(waves, mean)
        with_xt = t * with_x1 + s * with_x0
        at_t = t * t * cov + s * s * eye
        linear = np.linalg.solve(at_t, t * cov - s * eye).T
        regression = np.linalg.solve(at_t, with_xt.T).T
        return _Normal(
            gram - np.outer(waves, waves) - regression @ with_xt.T,
            with_x1 - with_x0 - with_xt @ linear.T,
            linear,
            regression,
            waves,
            mean,
        )
