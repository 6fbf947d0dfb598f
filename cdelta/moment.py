r"""The result of every estimator: a matrix of dependence with its uncertainty."""

import dataclasses
import hashlib
import html
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import ArrayLike, Float, UInt32

from cdelta import _files
from cdelta._extras import optional
from cdelta._features import Feature, Labels, Several
from cdelta._text import describe

_FORMAT = 1  # of the files that save writes; a later one that load cannot read is refused
_WIDE = 10  # features in a table or a figure that says every entry
_NO_KEYS = np.zeros((0, 2), np.uint32)


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

    Where the features have ``names``, a name stands for its index everywhere: ``moment["a", "b"]``
    is that entry and its standard error, and so in :meth:`partial` and :meth:`select`.
    ``keys`` are fingerprints of the keys that the latents were drawn from, so that
    :meth:`concatenate` can tell independent runs from one that is counted twice. ``kind`` says what
    is estimated, in the estimator's words, so that it can tell runs of one quantity from those of
    two; None where nobody said it (a file of an earlier version, a moment made by hand).
    """

    matrix: Float[np.ndarray, "n n"]
    replicates: Float[np.ndarray, "blocks n n"] = dataclasses.field(repr=False)
    shares: Float[np.ndarray, " blocks"] = dataclasses.field(repr=False)
    samples: int
    effective_samples: float
    held: tuple[int, ...] = ()
    degenerate: float = 0.0
    names: tuple[str, ...] | None = None
    keys: UInt32[np.ndarray, "runs 2"] = dataclasses.field(
        default_factory=lambda: _NO_KEYS, repr=False
    )
    kind: str | None = None

    __iter__ = None  # else Python would try the entries 0, 1, … in turn

    @property
    def _labels(self) -> Labels:
        return Labels(len(self.matrix), self.names)

    def __getitem__(self, pair: tuple[Feature, Feature]) -> tuple[float, float]:
        """The entry of two features, by names or indices, and its standard error.

        Raises ValueError (which is a KeyError too) for a feature that is not there.
        """
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ValueError(f"a moment has entries of two features, [i, j], got {pair!r}")
        i, j = (self._labels.index("a feature", one) for one in pair)
        error = self._stderr(self.matrix[i, j], self.replicates[:, i, j])
        return float(self.matrix[i, j]), float(error)

    def named(self, names: Sequence[str] | None, *, kind: str | None = None) -> "Moment":
        """The same moment with other names for its features, or with none, and, where it is given,
        with another word for what it is, its ``kind``.

        Raises ValueError unless they are different texts, one a feature.
        """
        labels = Labels.of(len(self.matrix), names)
        return dataclasses.replace(self, names=labels.names, kind=kind or self.kind)

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

    def z_scores(self, truth: "Float[ArrayLike, 'n n'] | Moment") -> Float[np.ndarray, " entries"]:
        r"""How far the distinct entries, i ≤ j, are from the ``truth``'s, in standard errors.

        .. math:: z_{ij} = (M_{ij} - T_{ij}) / \operatorname{stderr} M_{ij}

        From another moment, of independent samples: in the root of both squared errors.

        Raises ValueError when the truth is no matrix of as many features.
        """
        matrix, stderr = np.asarray(truth, float), self.stderr
        if matrix.shape != self.matrix.shape:
            raise ValueError(f"truth must have shape {self.matrix.shape}, got {matrix.shape}")
        if isinstance(truth, Moment):
            stderr = np.hypot(stderr, truth.stderr)
        return ((self.matrix - matrix) / stderr)[np.triu_indices(len(matrix))]

    def _refuse_constant(self) -> None:
        variances = np.diagonal(self.matrix)
        constant = [int(i) for i in np.flatnonzero(~(variances > 0)) if i not in self.held]
        if constant:
            constant = self._labels.shown(constant)
            raise ValueError(
                f"the correlation of features {constant} is undefined: their moment is not "
                "positive, as for a map that does not depend on x0; .matrix holds what was "
                "measured, .select(indices) leaves features out"
            )

    def partial(self, k: Several) -> "Moment":
        r"""The moment with features k (one or several) regressed out: their Schur complement.

        .. math:: M_{ij} - M_{ik} M_{kk}^{-1} M_{kj}

        ``[n, n]`` with zero rows and columns at k. Raises ValueError for an index
        or a name that is not there, for a singular :math:`M_{kk}` (told in units of each feature's
        own), and when no feature is left. Where :math:`M_{kk}` is singular once a group of samples
        is left out, there are too few of them to tell an error: it is NaN.
        """
        k = self._labels.held("k", k)
        units = np.multiply.outer(*[_deviations(self.matrix, k)] * 2)
        if _singular(self.matrix[np.ix_(k, k)] / units):
            shown = self._labels.shown(k)
            raise ValueError(f"features {shown} cannot be held: their own moment is singular")
        without = _singular(np.nan_to_num(self.replicates[:, k][:, :, k] / units))[:, None, None]
        replicates = _schur(np.where(without, np.eye(len(self.matrix)), self.replicates), k)
        return dataclasses.replace(
            self,
            matrix=_schur(self.matrix, k),
            replicates=np.where(without, np.nan, replicates),
            held=(*self.held, *k),
            kind=self.kind and f"{self.kind}, {sorted(k)} regressed out",
        )

    def select(self, indices: Several) -> "Moment":
        """The moment of some of the features, by indices or names, in the given order."""
        chosen = list(self._labels.indices("indices", indices))
        return dataclasses.replace(
            self,
            matrix=self.matrix[np.ix_(chosen, chosen)],
            replicates=self.replicates[:, chosen][:, :, chosen],
            held=tuple(new for new, old in enumerate(chosen) if old in self.held),
            names=self.names and tuple(self.names[i] for i in chosen),
        )

    @staticmethod
    def concatenate(moments: Iterable["Moment"]) -> "Moment":
        r"""One moment from independent runs for one quantity: all their samples together.

        .. math:: M = \frac{1}{N} \sum_r N_r M_r, \qquad N = \sum_r N_r

        For averages of equal weights (:func:`~cdelta.dependence.wiggle_moment`,
        :func:`~cdelta.dependence.feature_covariance`, …) this is what one run over all the
        samples gives, jackknife included. Where latents have weights of their own (features held)
        each run counts by its samples, so that the runs' own biases, of order 1 / N_r, remain; and
        a :meth:`partial` moment is to be taken from the whole, not put together from parts.

        Raises ValueError for no moments, for moments of other features or with others held, for
        two of different ``kind`` (one whose kind nobody said goes with any), and when two were
        drawn from **the same key**, or have the same entries and replicates: their latents are the
        same, and would be counted as twice as many.
        """
        given = [moments] if isinstance(moments, Moment) else list(moments)
        for number, moment in enumerate(given):
            if not isinstance(moment, Moment):
                raise ValueError(
                    f"moments must be Moments, got {type(moment).__name__} in number {number}"
                )
        moments = given
        if not moments:
            raise ValueError("moments must be at least one, got none")
        first = moments[0]
        kind = next((moment.kind for moment in moments if moment.kind), None)
        for number, moment in enumerate(moments):
            for name in ("names", "held"):
                mine, theirs = getattr(moment, name), getattr(first, name)
                if mine != theirs:
                    raise ValueError(
                        f"moments must have the same {name}, got {theirs} and, in number {number}, "
                        f"{mine}"
                    )
            if moment.kind not in (None, kind):
                raise ValueError(
                    f"moments must be of one quantity, got {kind!r} and, in number {number}, "
                    f"{moment.kind!r}"
                )
            if len(moment.matrix) != len(first.matrix):
                raise ValueError(
                    f"moments must be of the same features, got {len(first.matrix)} and, in number "
                    f"{number}, {len(moment.matrix)}"
                )
            seen = {tuple(key) for moment in moments[:number] for key in moment.keys}
            if seen & {tuple(key) for key in moment.keys}:
                raise ValueError(
                    f"moments must be independent, and number {number} has the key of one before "
                    "it: the same latents would be counted twice. Give each run a key of its own, "
                    "as from jax.random.split"
                )
            # of arrays there is no key; equal numbers that vary are those of the same samples
            if not np.allclose(moment.replicates, moment.matrix) and any(
                np.array_equal(moment.matrix, other.matrix)
                and np.array_equal(moment.replicates, other.replicates, equal_nan=True)
                for other in moments[:number]
                if not len(moment.keys) and not len(other.keys)
            ):
                raise ValueError(
                    f"moments must be independent, and number {number} is the same as one before "
                    "it: the same samples would be counted twice"
                )
        sizes = np.array([moment.samples for moment in moments], float)
        total = np.einsum("r,rij->ij", sizes, [moment.matrix for moment in moments])
        replicates, shares = [], []
        for size, moment in zip(sizes, moments, strict=True):
            left = np.round(size * (1 - moment.shares))  # samples of this run without the group
            # a run of one group leaves nothing, whose average is NaN
            kept = np.where((left > 0)[:, None, None], moment.replicates, 0)
            others = total - size * moment.matrix + left[:, None, None] * kept
            remaining = sizes.sum() - size + left
            with np.errstate(divide="ignore", invalid="ignore"):
                replicates.append(others / remaining[:, None, None])
            shares.append(1 - remaining / sizes.sum())
        traces = sizes * [np.trace(moment.matrix) for moment in moments]
        effective = [moment.effective_samples for moment in moments]
        lost = [m.samples * m.degenerate / (1 - m.degenerate) for m in moments]
        with np.errstate(divide="ignore", invalid="ignore"):
            counted = traces.sum() ** 2 / (traces**2 / effective).sum()
        return dataclasses.replace(
            first,
            matrix=total / sizes.sum(),
            replicates=np.concatenate(replicates),
            shares=np.concatenate(shares),
            samples=int(sizes.sum()),
            effective_samples=float(counted),
            degenerate=float(sum(lost) / (sizes.sum() + sum(lost))),
            keys=np.concatenate([moment.keys for moment in moments]),
            kind=kind,
        )

    # ------------------------------------------------------------------ tables, figures, files

    def to_dataframe(self) -> Any:
        """A tidy table (pandas' ``DataFrame``), one row for every entry: ``i``, ``j`` (names, or
        numbers where there are none), ``value``, ``stderr``, ``correlation``,
        ``correlation_stderr``.

        Correlations that are undefined (of features held, or constant) are NaN. Raises ImportError
        where pandas is not installed: ``pip install "cdelta[report]"``.
        """
        labels = np.array(self._labels.shown(range(len(self.matrix))), dtype=object)
        i, j = np.indices(self.matrix.shape)
        correlation, error = self._correlations()
        columns = {
            "i": labels[i.ravel()],
            "j": labels[j.ravel()],
            "value": self.matrix.ravel(),
            "stderr": self.stderr.ravel(),
            "correlation": correlation.ravel(),
            "correlation_stderr": error.ravel(),
        }
        return optional("pandas", "report").DataFrame(columns)

    def _correlations(self) -> tuple[np.ndarray, np.ndarray]:
        """Correlations and their errors, NaN where there are none."""
        correlation = _correlation(self.matrix)
        return correlation, self._stderr(correlation, _correlation(self.replicates))

    def _repr_html_(self) -> str:
        """A small table: every entry and correlation with its standard error, or, of more than ten
        features, the largest correlations."""
        n = len(self.matrix)
        names = [html.escape(str(name)) for name in self._labels.shown(range(n))]
        names = [f"{name} (held)" if i in self.held else name for i, name in enumerate(names)]
        stderr = self.stderr
        correlation, error = self._correlations()
        degenerate = f", {self.degenerate:.1%} of all left out" if self.degenerate else ""
        plural = "s" if n > 1 else ""
        caption = (
            f"Moment of {n} feature{plural}: {self.samples} samples, which count as "
            f"{self.effective_samples:.3g}{degenerate}"
        )

        def said(i: int, j: int) -> tuple[str, str]:
            related = (
                "" if np.isnan(correlation[i, j]) else describe(correlation[i, j], error[i, j])
            )
            return describe(self.matrix[i, j], stderr[i, j]), related

        if n <= _WIDE:
            head = ["", *names]
            rows = []
            for i, name in enumerate(names):
                cells = []
                for j in range(n):
                    value, related = said(i, j)
                    shown = f"<br/><small>ρ {related}</small>" if related and i != j else ""
                    cells.append(value + shown)
                rows.append([name, *cells])
        else:
            i, j = np.triu_indices(n, 1)
            sizes = np.nan_to_num(np.abs(correlation[i, j]), nan=-1.0)
            chosen = np.argsort(-sizes, kind="stable")[:20]
            caption += f"; the {len(chosen)} largest correlations of {len(i)}"
            head = ["", "with", "value", "correlation"]
            pairs = [(int(i[k]), int(j[k])) for k in chosen]
            rows = [[names[a], names[b], *said(a, b)] for a, b in pairs]
        top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
        body = "".join(
            f'<tr><th scope="row">{row[0]}</th>'
            + "".join(f"<td>{cell}</td>" for cell in row[1:])
            + "</tr>"
            for row in rows
        )
        return (
            f"<table><caption>{caption}</caption><thead><tr>{top}</tr></thead>"
            f"<tbody>{body}</tbody></table>"
        )

    def plot(self, ax: Any = None, *, correlation: bool = True, bar: bool = True) -> Any:
        """The correlations (or, if told, the moment itself) as coloured cells, red above zero, blue
        below, with numbers and standard errors where there are at most ten features.

        Zero is the figure's own background, whether that is light or dark. Draws into ``ax``, or
        into a new figure, with a colour ``bar``; returns the axes. Raises ImportError where
        matplotlib is not installed: ``pip install "cdelta[report]"``.
        """
        plt = optional("matplotlib.pyplot", "report")
        colors = optional("matplotlib.colors", "report")
        n = len(self.matrix)
        if ax is None:
            side = min(1.2 + 0.85 * n, 9.0)
            _, ax = plt.subplots(figsize=(side + 1.2, side), layout="compressed")
        values, errors = self._correlations() if correlation else (self.matrix, self.stderr)
        size = 1.0 if correlation else float(np.nanmax(np.abs(values), initial=0)) or 1.0
        # opacity is the size, at most so much that text is read on it in both themes
        blue, red = "#0072b2", "#cc4400"
        stops = [(0.0, blue + "a6"), (0.5, blue + "00"), (0.5, red + "00"), (1.0, red + "a6")]
        cmap = colors.LinearSegmentedColormap.from_list("cdelta-moment", stops)
        image = ax.imshow(values, cmap=cmap, vmin=-size, vmax=size, interpolation="none")
        labels = [str(name) for name in self._labels.shown(range(n))]
        upright = n > 5 or max(map(len, labels)) > 10
        ax.set_xticks(range(n), labels, rotation=90 if upright else 0)
        ax.set_yticks(range(n), labels)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        if n <= _WIDE:
            for (i, j), value in np.ndenumerate(values):
                known = np.isfinite(value)
                sure = correlation and i == j
                text = describe(value, None if sure else errors[i, j]) if known else "–"
                text = text.replace(" ± ", "\n± ").replace("-", "−")
                ax.text(j, i, text, ha="center", va="center", fontsize=8)
        if bar:
            drawn = ax.figure.colorbar(image, ax=ax, shrink=0.8)
            drawn.outline.set_visible(False)
            drawn.set_label("correlation" if correlation else "moment")
        return ax

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the moment to one file, which :meth:`load` reads: NumPy's ``.npz`` (no pickle),
        whole or not at all. Raises OSError where it cannot be written, ValueError where it is no
        moment any more (as after ``jax.tree.map`` of what makes none, or under ``vmap``)."""
        told, arrays = self._for_a_file()
        about = {"kind": "cdelta.Moment", "format": _FORMAT, "cdelta": _version(), **told}
        with _files.whole(path) as file:
            np.savez(file, about=np.array(json.dumps(about)), **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Moment":
        """The moment in a file that :meth:`save` has written.

        Raises ValueError for a file that is damaged, is none of those, or was written by a later
        version in a format of its own; OSError where it cannot be read, as a folder cannot.
        """
        about, arrays = read(path, "cdelta.Moment", _FORMAT)
        try:
            return cls._from(about, arrays)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{os.fspath(path)} is a damaged moment's file ({error})") from error

    def _for_a_file(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What of the moment is no array, and its arrays, with the numbers that need every digit.

        Raises ValueError where :meth:`_from` would not make a moment of them.
        """
        try:
            arrays = {name: np.asarray(getattr(self, name)) for name in _ARRAYS}
            arrays |= {name: np.asarray(getattr(self, name), np.float64) for name in _NUMBERS}
            samples = float(self.samples)
            if samples != int(samples):
                raise ValueError(f"it has {samples} samples")
            about = {
                "samples": int(samples),
                "held": list(self.held),
                "names": None if self.names is None else list(self.names),
                "quantity": self.kind,  # a file's "kind" is what of cdelta's it holds
            }
            self._from(about, arrays)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"what is saved must be one moment ({error})") from error
        return about, arrays

    @classmethod
    def _from(cls, about: dict[str, Any], parts: dict[str, np.ndarray]) -> "Moment":
        """A file's moment. Raises ValueError, KeyError or TypeError when it is damaged."""
        n, blocks = len(parts["matrix"]), len(parts["shares"])
        shapes = {"matrix": (n, n), "replicates": (blocks, n, n), "shares": (blocks,)}
        shapes |= {"keys": (len(parts["keys"]), 2), **dict.fromkeys(_NUMBERS, ())}
        for name, shape in shapes.items():
            kind = np.uint32 if name == "keys" else np.floating
            if parts[name].shape != shape or not np.issubdtype(parts[name].dtype, kind):
                raise ValueError(f"its {name} is {parts[name].dtype} of {parts[name].shape}")
        if int(about["samples"]) < 1:
            raise ValueError(f"it has {about['samples']} samples")
        kind = about.get("quantity")  # earlier versions did not write it
        if not (kind is None or isinstance(kind, str)):
            raise ValueError(f"it is of the kind {kind!r}")
        labels = Labels.of(n, about["names"])
        held = labels.indices("held", about["held"]) if about["held"] else ()
        return cls(
            **{name: parts[name] for name in _ARRAYS},
            **{name: float(parts[name]) for name in _NUMBERS},
            samples=int(about["samples"]),
            held=held,
            names=labels.names,
            kind=kind,
        )


_ARRAYS = ("matrix", "replicates", "shares", "keys")
_NUMBERS = ("effective_samples", "degenerate")


def _version() -> str:
    from cdelta import __version__

    return __version__


def read(
    path: str | os.PathLike[str], kind: str, latest: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a file of this kind says about itself, and its arrays.

    Raises ValueError for any other file, and for a format later than ``latest``; OSError where
    there is none, or it cannot be read.
    """
    content = Path(path).read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            arrays = {name: np.asarray(file[name]) for name in file.files if name != "about"}
        if about["kind"] != kind or type(about["format"]) is not int or about["format"] < 1:
            raise ValueError(f"it says that it holds {about['kind']!r}")
    except (*_files.DAMAGED, TypeError) as error:
        what = kind.rpartition(".")[2].lower()
        raise ValueError(f"{os.fspath(path)} is not a {what}'s file ({error})") from error
    if about["format"] > latest:
        raise ValueError(
            f"{os.fspath(path)} was written by cdelta {about.get('cdelta')} in format "
            f"{about['format']}; this version reads formats up to {latest}"
        )
    return about, arrays


jax.tree_util.register_dataclass(
    Moment,
    ["matrix", "replicates", "shares", "samples", "effective_samples", "degenerate", "keys"],
    ["held", "names", "kind"],
)


def fingerprint(impl: str, words: np.ndarray) -> UInt32[np.ndarray, "1 2"]:
    """A key as :class:`Moment` remembers it."""
    content = impl.encode() + np.asarray(words, np.uint32).tobytes()
    return np.frombuffer(hashlib.blake2b(content, digest_size=8).digest(), "<u4")[None].copy()


def _correlation(matrices):
    variance = np.diagonal(matrices, axis1=-2, axis2=-1)
    scale = np.sqrt(np.where(variance > 0, variance, np.nan))
    correlation = matrices / scale[..., :, None] / scale[..., None, :]
    n = matrices.shape[-1]
    correlation[..., np.arange(n), np.arange(n)] = np.where(variance > 0, 1.0, np.nan)
    return correlation


def _deviations(matrices, k):
    """Roots of the variances of features k, 1 where there is none."""
    variances = np.diagonal(matrices, axis1=-2, axis2=-1)[..., k]
    return np.sqrt(np.where(variances > 0, variances, 1.0))


def _singular(matrices):
    """Of symmetric matrices in units that make their diagonals about one."""
    sizes = np.abs(np.linalg.eigvalsh(matrices))
    rounding = sizes.shape[-1] * np.finfo(float).eps
    return sizes.min(-1) <= rounding * np.maximum(1.0, sizes.max(-1))


def _schur(matrices, k):
    # in units of the held features, which may be far apart
    columns = matrices[..., :, k] / _deviations(matrices, k)[..., None, :]
    held = np.take(columns, k, axis=-2) / _deviations(matrices, k)[..., :, None]
    result = matrices - columns @ np.linalg.solve(held, np.swapaxes(columns, -1, -2))
    result[..., k, :] = 0.0
    result[..., :, k] = 0.0
    return (result + np.swapaxes(result, -1, -2)) / 2
