"""Real data whose causes are known from elsewhere: the cause–effect pairs of Tübingen, and the
proteins of Sachs et al.

Both are files in the wheel of ``cdt`` 0.6.0 (the Causal Discovery Toolbox), which is read as it is:
installed, or as a file. Its code is not imported, and what it depends on is not needed:
``pip download --no-deps cdt==0.6.0``.
"""

import os
import zipfile
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

WHEEL = "cdt==0.6.0"
_FOLDER = "cdt/data/resources/"


class Pair(NamedTuple):
    """Samples of a cause and of its effect, ``[n]`` each, in the order in which they are paired."""

    name: str
    cause: Float[np.ndarray, " n"]
    effect: Float[np.ndarray, " n"]


class Proteins(NamedTuple):
    """Amounts of proteins in single cells, ``[cells, proteins]``; ``graph[i, j]``: j acts on i, as
    biologists have it."""

    names: tuple[str, ...]
    samples: Float[np.ndarray, "cells proteins"]
    graph: Bool[np.ndarray, "proteins proteins"]


def tuebingen(source: str | os.PathLike | None = None) -> list[Pair]:
    """The pairs of Mooij et al. (JMLR 2016) that the wheel carries: 99 of them.

    ``source``: the wheel (``cdt-0.6.0-py3-none-any.whl``) or the folder that it was unpacked into;
    by default the installed distribution. Raises FileNotFoundError saying what to install when the
    files are not there, ValueError naming the file and the pair when a line is not what it should
    be.
    """
    directions = {}
    for line in _lines(source, "Tuebingen_targets.csv")[1:]:
        name, *rest = line.split(",")
        if len(rest) != 1 or rest[0].strip() not in ("1", "1.0", "-1", "-1.0"):
            raise ValueError(f"Tuebingen_targets.csv must say 1 or -1 of each pair, got {line!r}")
        directions[name] = float(rest[0])
    pairs = []
    for line in _lines(source, "Tuebingen_pairs.csv")[1:]:
        name, *cells = line.split(",")
        if name not in directions or len(cells) != 2:
            raise ValueError(
                f"Tuebingen_pairs.csv must hold two columns of a pair that has a target, got"
                f" {len(cells)} of {name!r}"
            )
        first, second = (_numbers("Tuebingen_pairs.csv", name, cell.split()) for cell in cells)
        if len(first) != len(second):
            raise ValueError(
                f"Tuebingen_pairs.csv must hold columns of one length, got {len(first)} and"
                f" {len(second)} of {name!r}"
            )
        pairs.append(Pair(name, *((first, second) if directions[name] > 0 else (second, first))))
    return pairs


def sachs(source: str | os.PathLike | None = None) -> Proteins:
    """Eleven proteins in 7466 single cells under several stimuli (Sachs et al., Science 2005), and
    the graph that the wheel gives for them.

    ``source`` and errors as in :func:`tuebingen`.
    """
    first, *rows = _lines(source, "cyto_full_data.csv")
    names = tuple(name.strip().strip('"') for name in first.split(","))
    samples = [
        _numbers("cyto_full_data.csv", f"row {i}", row.split(",")) for i, row in enumerate(rows)
    ]
    if {len(row) for row in samples} != {len(names)}:
        raise ValueError(f"cyto_full_data.csv must hold {len(names)} numbers a row, as its names")
    graph = np.zeros((len(names), len(names)), bool)
    for line in _lines(source, "cyto_full_target.csv")[1:]:
        edge = [cell.strip().strip('"') for cell in line.split(",")]
        if len(edge) != 2 or not set(edge) <= set(names):
            raise ValueError(
                f"cyto_full_target.csv must hold a cause and an effect out of {', '.join(names)},"
                f" got {line!r}"
            )
        graph[names.index(edge[1]), names.index(edge[0])] = True
    return Proteins(names, np.array(samples), graph)


def sources(pairs: list[Pair]) -> list[int]:
    """The number of each pair's source: pairs that share a column of numbers, whatever its order,
    come from one data set, and are not so many witnesses.

    A pair counts 1 over the number of pairs of its source. (The published weights are made in that
    spirit by hand; the wheel does not carry them.)
    """
    found: dict[bytes, int] = {}
    label = list(range(len(pairs)))
    for number, pair in enumerate(pairs):
        for column in (pair.cause, pair.effect):
            seen = found.setdefault(np.sort(column).tobytes(), number)
            one, other = label[seen], label[number]
            label = [one if old == other else old for old in label]
    order = {old: new for new, old in enumerate(dict.fromkeys(label))}
    return [order[old] for old in label]


def _numbers(file: str, where: str, cells: list[str]) -> Float[np.ndarray, " n"]:
    try:
        values = np.array([float(cell) for cell in cells])
    except ValueError as error:
        raise ValueError(f"{file} must hold numbers, but {where}: {error}") from error
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"{file} must hold finite numbers, not so {where}")
    return values


def _lines(source: str | os.PathLike | None, name: str) -> list[str]:
    return [line for line in _content(source, name).decode("utf-8").splitlines() if line.strip()]


def _content(source: str | os.PathLike | None, name: str) -> bytes:
    if source is None:
        try:
            path = Path(metadata.distribution("cdt").locate_file(_FOLDER + name))
        except metadata.PackageNotFoundError as error:
            raise FileNotFoundError(
                f"{name} is a file of {WHEEL}, which is not installed: pip install --no-deps"
                f" {WHEEL}, or pip download --no-deps {WHEEL} and give the wheel as source"
            ) from error
    else:
        path = Path(source)
        if path.is_file():
            try:
                with zipfile.ZipFile(path) as wheel:
                    return wheel.read(_FOLDER + name)
            except (zipfile.BadZipFile, KeyError) as error:
                raise FileNotFoundError(f"source must be the wheel of {WHEEL}: {error}") from error
        path = path / _FOLDER / name
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileNotFoundError(
            f"{name} is a file of {WHEEL}, which {str(path)!r} is not: pip download --no-deps"
            f" {WHEEL} and give the wheel as source"
        ) from error
