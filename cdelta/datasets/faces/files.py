"""Faces as files, in CelebA's layout."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from cdelta import _check, _files
from cdelta._extras import optional
from cdelta.datasets import _layout
from cdelta.datasets.faces.painter import picture
from cdelta.datasets.faces.samples import Face, attributes_of, noises
from cdelta.datasets.faces.structure import ATTRIBUTES, Structure

PARTS = ("train",) * 8 + ("valid", "test")  # of ten images that are written
NOTE, PIXELS = "faces.json", (218, 178)


def write_celeba(
    root: str | os.PathLike,
    n: int,
    key: PRNGKeyArray,
    structure: Structure | None = None,
    quality: int = 95,
    workers: int = 2,
    progress: bool = True,
) -> Path:
    """Write ``n`` faces in CelebA's own layout and return ``root``: 178 × 218 JPEGs and the two
    lists.

    The central 178 × 178 pixels of image ``i`` are face ``i - 1`` of ``sample(key, n, structure)``.
    In the attribute list an attribute is 1 where it is positive and -1 elsewhere; those of CelebA's
    40 that the faces do not have are -1 throughout. Of ten images the ninth is for validation and
    the tenth for testing.

    Each file is written whole, the lists last, images by ``workers`` threads. After an interruption
    the same call goes on where it stopped, and a larger ``n`` adds to what is there.

    Raises ValueError when n or workers is not positive, or root holds anything but faces of the
    same key and structure.
    """
    from tqdm import tqdm

    encode = optional("PIL.Image").fromarray
    n, workers, root = _check.count("n", n), _check.count("workers", workers), Path(root)
    noise = noises(key, n)
    attributes = attributes_of(noise, structure)
    drawn = jnp.concatenate([attributes, noise[:, len(ATTRIBUTES) :]], 1)
    _claim(root, key, Face(picture(drawn[0], *PIXELS), attributes[0]))
    folder = root / _layout.IMAGES
    folder.mkdir(exist_ok=True)
    names = [f"{i + 1:06d}.jpg" for i in range(n)]

    def write(i: int) -> None:
        pixels = np.asarray(picture(drawn[i], *PIXELS)) * 127.5 + 127.5
        image = encode(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
        with _files.whole(folder / names[i]) as file:
            image.save(file, "JPEG", quality=quality)

    there = {entry.name for entry in os.scandir(folder)}
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=n, desc=f"faces in {root.name}", unit="face", disable=not progress) as bar,
    ):
        # in blocks, since the pool queues at once all that it is given
        for block in (range(i, min(i + 256, n)) for i in range(0, n, 256)):
            for _ in pool.map(write, [i for i in block if names[i] not in there]):
                pass
            bar.update(len(block))

    parts = (_layout.SPLITS[PARTS[i % len(PARTS)]] for i in range(n))
    lines = (f"{name} {part}\n" for name, part in zip(names, parts, strict=True))
    _files.write(root / _layout.PARTITION_LIST, "".join(lines))
    _files.write(root / _layout.ATTRIBUTE_LIST, _attribute_list(names, np.asarray(attributes) > 0))
    return root


def _attribute_list(names: list[str], present: np.ndarray) -> str:
    """CelebA's list: the count, its 40 names, a line an image; ``present [n, attributes]``."""
    columns = np.zeros((len(names), len(_layout.ATTRIBUTES)), bool)
    columns[:, [_layout.ATTRIBUTES.index(name) for name in ATTRIBUTES]] = present
    lines = (
        f"{name} {' '.join(' 1' if value else '-1' for value in row)}\n"
        for name, row in zip(names, columns, strict=True)
    )
    return f"{len(names)}\n{' '.join(_layout.ATTRIBUTES)}\n" + "".join(lines)


def _claim(root: Path, key: PRNGKeyArray, first: Face) -> None:
    """Make ``root`` a folder of these faces and no others: a note says of which key, and how the
    first one looks (the structure may be any function, and cannot be written down)."""
    note = root / NOTE
    looks = [float(value) for part in first for value in (part.mean(), part.std())]
    mine = {
        "faces of the key": np.asarray(jax.random.key_data(key)).tolist(),
        "looks of the first": looks,
    }
    if note.exists():
        if not _same(_read(note), mine):
            raise ValueError(
                f"root must be empty or hold faces of the same key and structure; {note} tells of "
                f"others"
            )
    elif root.exists() and any(root.iterdir()):
        raise ValueError(
            f"root must be empty or hold faces written before, got {root} with other files in it"
        )
    else:
        _files.write(note, json.dumps(mine))


def _read(note: Path) -> Any:
    try:
        return json.loads(note.read_text("utf-8"))
    except ValueError as error:  # no UTF-8, or no JSON
        raise ValueError(
            f"{note} is damaged, so nothing says whose faces these are: write into another folder "
            f"({error})"
        ) from error


def _same(theirs: Any, mine: dict[str, list]) -> bool:
    """Up to the last bits, in which machines differ."""
    return (
        isinstance(theirs, dict)
        and theirs.keys() == mine.keys()
        and all(
            np.shape(theirs[name]) == np.shape(mine[name])
            and np.allclose(theirs[name], mine[name], atol=1e-4)
            for name in mine
        )
    )
