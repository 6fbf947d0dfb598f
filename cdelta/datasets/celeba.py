"""CelebA, aligned and cropped: streamed from its files in constant memory, with what is broken
named and counted."""

import difflib
import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int8

from cdelta import _check
from cdelta._extras import optional
from cdelta.datasets import _images, _layout
from cdelta.datasets._images import BrokenImage

WARNINGS = 10  # broken files are announced up to here, and counted beyond


class Sample(NamedTuple):
    """An image in [-1, 1], channels last, and its attributes, 1 where present and 0 where not; or a
    batch of both."""

    image: Float[np.ndarray, "*batch size size 3"]
    attributes: Float[np.ndarray, "*batch attributes"]


def celeba(
    root: str | os.PathLike,
    size: int = 64,
    split: str = "all",
    attributes: Sequence[str] | None = None,
    broken: str = "refuse",
    crop: int = 178,
) -> "CelebA":
    """The images and attributes of a folder in CelebA's layout, to be streamed; see
    :class:`CelebA`.

    ``root`` holds ``img_align_celeba/*.jpg``, ``list_attr_celeba.txt`` (the count; the names; a
    line an image of ±1) and ``list_eval_partition.txt`` (needed for a split only). The usual copies
    are read as well: the archive's folders (``Img``, ``Anno``, ``Eval``), all of it in a folder
    of ``root``, images one folder deeper, lists as CSV, images saved with another extension.

    An image is read as a viewer shows it: upright, the first frame of several, what is transparent
    on white, 16-bit grey of PNG and PGM on the scale of 8 bits. Then it is cut to its central
    ``crop`` × ``crop`` pixels and resized to ``size`` × ``size`` (bilinear, antialiased).

    ``split`` is ``"train"``, ``"valid"``, ``"test"`` or ``"all"``; ``attributes`` picks some by
    name, in that order (default: all, in the list's order).

    ``broken`` says what becomes of a line that does not parse, of a listed file that is missing,
    and of an image that does not decode: ``"refuse"`` raises an error that names it (lines and
    missing files at once, images when they are read), ``"skip"`` leaves it out, says so in a
    warning and counts it in ``problems``.

    Raises FileNotFoundError when the folder or a list is missing, saying where to get it and how to
    lay it out; ValueError for an argument or an attribute that is not known, and for what
    ``broken`` refuses.
    """
    return CelebA(root, size, split, attributes, broken, crop)


class CelebA:
    """A folder in CelebA's layout: ``dataset[i]`` reads one image, :meth:`batches` and
    :meth:`stream` read them all.

    ``names``: the attributes; ``labels [n, attributes]``: all of them as 1 and 0 (they fit into
    memory, no image is read); ``files``: the images' names; ``problems``: what is broken, and why,
    as far as it has been met.
    """

    def __init__(self, root, size=64, split="all", attributes=None, broken="refuse", crop=178):
        if split not in (*_layout.SPLITS, "all"):
            raise ValueError(f'split must be "train", "valid", "test" or "all", got {split!r}')
        if broken not in ("refuse", "skip"):
            raise ValueError(f'broken must be "refuse" or "skip", got {broken!r}')
        self.size, self.crop = _check.count("size", size), _check.count("crop", crop)
        if not os.fspath(root):
            raise ValueError("root must name a folder in CelebA's layout, got ''")
        # the images are read later, when the working directory may be another
        self.root, self.broken = Path(root).expanduser().absolute(), broken
        self.problems: dict[str, str] = {}
        self._lock = threading.Lock()

        layout = _layout.find(self.root)
        self._folder = layout.images
        self.names, rows = self._attributes(layout.attributes, attributes)
        part = None if split == "all" else _layout.by_name(self._partition(layout))
        present = _layout.by_name({name: name for name in os.listdir(layout.images)})
        files: dict[str, bytes] = {}  # in the list's order
        for name, row in rows.items():
            if part is not None and len(part(name)) != 1:
                count = len(part(name)) or "no"
                self._problem(name, f"{count} split in {layout.partition.name}")
            elif part is None or part(name) == [_layout.SPLITS[split]]:
                fitting = present(name)
                file = fitting[0] if len(fitting) == 1 else None
                if not fitting:
                    self._problem(name, f"missing file, {layout.attributes.name} lists it")
                elif file is None:
                    among = " and ".join(sorted(fitting))
                    self._problem(name, f"ambiguous file, it may be {among}")
                elif file in files:
                    self._problem(name, f"image listed twice, it is {file} too")
                else:
                    files[file] = row
        if self.problems and broken == "refuse":
            raise ValueError(f"{self.root} is broken: {self.report()}")
        if not files:
            raise ValueError(f"{self.root} has no image of split {split!r}: {self.report()}")
        self.files = tuple(files)
        self.labels: Int8[np.ndarray, "n attributes"] = np.frombuffer(
            b"".join(files.values()), np.int8
        ).reshape(len(files), -1)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        """One image and its attributes. Raises BrokenImage (a ValueError) naming the file when it
        does not decode."""
        return Sample(self._image(self.files[index]), self.labels[index].astype(np.float32))

    def batches(
        self,
        batch: int,
        seed: int | None = None,
        epochs: int | None = 1,
        workers: int = 2,
        drop_remainder: bool = False,
    ) -> Iterator[Sample]:
        """Batches of ``(image [batch, size, size, 3], attributes [batch, k])``, each image once an
        epoch.

        In the files' order, or shuffled anew each epoch by ``seed``; ``epochs=None`` never ends.
        ``workers`` threads decode ahead (decoding lets go of Python's lock), a bounded number of
        images at a time. The order does not depend on the number of workers. Images that are
        skipped leave no gap: the batch is filled with the next.
        """
        batch, workers = _check.count("batch", batch), _check.count("workers", workers)
        epochs = None if epochs is None else _check.count("epochs", epochs)
        grain = optional("grain")
        data = grain.MapDataset.source(_Readable(self))
        data = data if seed is None else data.seed(seed).shuffle()
        ahead = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=max(batch, 4 * workers))
        return iter(
            data.repeat(epochs).to_iter_dataset(ahead).batch(batch, drop_remainder=drop_remainder)
        )

    def stream(self, batch: int, seed: int = 0, workers: int = 2, labels: bool = True) -> Any:
        """An endless :class:`cdelta.training.Stream` for ``fit``: batch ``step`` is the same
        whenever it is asked for.

        So training that was interrupted goes on with the data it would have seen. A skipped image
        is replaced by another of its batch. With ``labels=False`` a batch is the images alone, as a
        velocity needs them.
        """
        from cdelta.training import Stream

        batch, workers = _check.count("batch", batch), _check.count("workers", workers)
        return Stream(_BatchAt(self, batch, seed, workers, labels))

    def report(self) -> str:
        """What is broken, counted by kind, with the first few named."""
        with self._lock:
            problems = list(self.problems.items())
        if not problems:
            return "nothing is broken"
        kinds = Counter(why.split(",")[0] for _, why in problems)
        counts = ", ".join(f"{count} × {kind}" for kind, count in kinds.items())
        named = "; ".join(f"{name}: {why}" for name, why in problems[:5])
        return f"{len(problems)} problems ({counts}). {named}{'; ...' if len(problems) > 5 else ''}"

    # -------------------------------------------------------------------------------------- reading

    def _attributes(
        self, path: Path, wanted: Sequence[str] | None
    ) -> tuple[tuple[str, ...], dict[str, bytes]]:
        """The attributes' names, and those of each image as bytes 1 and 0."""
        header, lines = _layout.read_attributes(path, self._problem)
        names = header if wanted is None else tuple(wanted)
        for name in names:
            if name not in header:
                near = difflib.get_close_matches(name, header, 3, 0.5) or header
                raise ValueError(
                    f"attributes must name columns of {path}, got {name!r}; "
                    f"it has {', '.join(near)}"
                )
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"attributes must name at least one column, and each once, got {names}"
            )
        places, values = [header.index(name) for name in names], {"1": 1, "-1": 0}
        rows: dict[str, bytes] = {}
        for number, image, entries in lines:
            try:
                rows[image] = bytes(values[entries[place]] for place in places)
            except KeyError as error:
                why = f"attribute value not 1 or -1, {image} has {error.args[0]!r}"
                self._problem(f"{path.name} line {number}", why)
        return names, rows

    def _partition(self, layout: _layout.Layout) -> dict[str, str]:
        if layout.partition is None:
            path = layout.home / _layout.PARTITION_LIST
            raise _layout.missing("file", path, ", which a split needs")
        return _layout.read_partition(layout.partition, self._problem)

    def _image(self, name: str) -> Float[np.ndarray, "size size 3"]:
        path = self._folder / name
        picture = _images.read(path)
        left, top = (picture.width - self.crop) // 2, (picture.height - self.crop) // 2
        if left < 0 or top < 0:
            found = f"{picture.width} × {picture.height}"
            raise BrokenImage(f"{path} is {found} pixels, less than the crop of {self.crop}")
        box = (left, top, left + self.crop, top + self.crop)
        # cut first: the filter must not see beyond the edge, as resize(box=...) would let it
        bilinear = optional("PIL.Image").Resampling.BILINEAR
        picture = picture.crop(box).resize((self.size, self.size), bilinear)
        return np.asarray(picture, np.float32) / np.float32(127.5) - 1

    def _read(self, index: int) -> Sample | None:
        """One image, or None when it is broken and such are skipped."""
        try:
            return self[index]
        except BrokenImage as error:
            if self.broken == "refuse":
                raise
            self._problem(self.files[index], f"broken image, {error}")
            return None

    def _problem(self, where: str, why: str) -> None:
        with self._lock:
            if where in self.problems:
                return
            self.problems[where] = why
            count = len(self.problems)
        if self.broken == "skip" and count <= WARNINGS:
            rest = " (further ones are only counted in .problems)" if count == WARNINGS else ""
            warnings.warn(f"{where} is left out: {why}{rest}", stacklevel=3)


class _Readable:
    """What grain reads from: None where an image is skipped."""

    def __init__(self, dataset: CelebA):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample | None:
        return self.dataset._read(int(index))


class _Steps:
    """The endless sequence of whole batches, at random access."""

    def __init__(self, dataset: CelebA, batch: int, seed: int):
        grain = optional("grain")
        self.dataset, self.batch = dataset, batch
        self.order = grain.MapDataset.range(len(dataset)).seed(seed).shuffle().repeat()

    def __len__(self) -> int:
        return len(self.order) // self.batch

    def __getitem__(self, step: int) -> Sample:
        rows = [
            int(self.order[place]) for place in range(step * self.batch, (step + 1) * self.batch)
        ]
        good = [sample for sample in map(self.dataset._read, rows) if sample is not None]
        if not good:
            raise BrokenImage(f"batch {step} has no image that decodes: {self.dataset.report()}")
        kept = [good[i % len(good)] for i in range(self.batch)]
        return Sample(*map(np.stack, zip(*kept, strict=True)))


class _BatchAt:
    """``step -> batch``, read ahead as long as the steps are asked for one after the other."""

    def __init__(self, dataset: CelebA, batch: int, seed: int, workers: int, labels: bool):
        grain = optional("grain")
        self.labels, self.next, self.batches = labels, None, None
        self.steps = grain.MapDataset.source(_Steps(dataset, batch, seed))
        self.ahead = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=2 * workers)

    def __call__(self, step: int) -> Any:
        if step != self.next:
            self.batches = iter(self.steps[step:].to_iter_dataset(self.ahead))
        self.next = step + 1
        sample = next(self.batches)
        return sample if self.labels else sample.image
