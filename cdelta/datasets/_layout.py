"""CelebA's layout: where its images and lists lie in a folder, and what the lists say."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

IMAGES, ATTRIBUTE_LIST, PARTITION_LIST = (
    "img_align_celeba",
    "list_attr_celeba.txt",
    "list_eval_partition.txt",
)
SPLITS = {"train": "0", "valid": "1", "test": "2"}  # as the partition list numbers them
ATTRIBUTES = tuple(
    """
    5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose
    Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee
    Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard
    Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair
    Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie Young
    """.split()
)
WHERE = f"""\
CelebA is at http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (its terms: non-commercial research).
Take the aligned and cropped images and the two lists, and lay them out as
  ROOT/{IMAGES}/000001.jpg ... 202599.jpg
  ROOT/{ATTRIBUTE_LIST}
  ROOT/{PARTITION_LIST}
or write rendered faces in that layout with cdelta.datasets.faces.write_celeba(root, n, key).
Read as well: the published folders Img, Anno and Eval in ROOT; all of it in a folder of ROOT;
images in {IMAGES}_png, or one folder deeper; lists as .csv with a header; images as .png, or .JPG.
"""
# of an image that a list names with another extension
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

T = TypeVar("T")
Problem = Callable[[str, str], None]  # takes where it is, and what is wrong there


@dataclass(frozen=True)
class Layout:
    """Where the images and the lists are; ``partition`` is None where there is none."""

    home: Path
    images: Path
    attributes: Path
    partition: Path | None


def find(root: Path) -> Layout:
    """The layout of ``root``.

    Raises FileNotFoundError saying what is missing, what would do, and what is there.
    """
    inside = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    found = [(home, _images(home), _list(home, "Anno", ATTRIBUTE_LIST)) for home in (root, *inside)]
    whole = [
        Layout(home, images, attributes, _list(home, "Eval", PARTITION_LIST))
        for home, images, attributes in found
        if images and attributes
    ]
    # an archive, or a downloader, makes a folder of its own; of several nothing says which is meant
    if whole and (whole[0].home == root or len(whole) == 1):
        return whole[0]
    if whole:
        names = ", ".join(layout.home.name for layout in whole)
        raise FileNotFoundError(f"{root} holds more than one copy of CelebA, name one of {names}")
    home, images, _ = next((some for some in found if any(some[1:])), found[0])
    if not home.is_dir():
        raise missing("folder", home)
    if not images:
        raise missing("folder", home / IMAGES)
    raise missing("file", home / ATTRIBUTE_LIST)


def missing(kind: str, path: Path, because: str = "") -> FileNotFoundError:
    """The error that says how to lay things out, and what was found instead."""
    lines = [f"there is no {kind} {path}{because}. {WHERE}"]
    if path.parent.is_dir():
        names = sorted(f"{e.name}{'/' if e.is_dir() else ''}" for e in path.parent.iterdir())
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        lines.append(f"{path.parent} holds {', '.join(names[:8]) or 'nothing'}{more}.")
    return FileNotFoundError("".join(lines))


def _images(home: Path) -> Path | None:
    names = IMAGES, f"{IMAGES}_png"  # the archive has both
    folders = [inside / name for name in names for inside in (home, home / "Img")]
    # an archive unpacked into a folder of its own name
    folders = [
        deep for folder in folders for deep in (folder, folder / folder.name) if deep.is_dir()
    ]
    return next(filter(_holds_images, folders), folders[0] if folders else None)


def _holds_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(SUFFIXES) for entry in entries)


def _list(home: Path, folder: str, name: str) -> Path | None:
    paths = [home / name, home / folder / name]
    paths = [path.with_suffix(suffix) for suffix in (".txt", ".csv") for path in paths]
    return next((path for path in paths if path.is_file()), None)


# ---------------------------------------------------------------------------------------- the lists


def read_attributes(
    path: Path, problem: Problem
) -> tuple[tuple[str, ...], Iterator[tuple[int, str, list[str]]]]:
    """The names of the columns; and of each image the line's number, the image's name, its entries.

    Two forms: CelebA's own (the number of images; the names; a line an image), and CSV (a header
    that starts with image_id; a line an image). A line of a length that is not the names', an
    image that is listed twice and a count that is wrong are each a ``problem``, and left out.

    Raises ValueError when it starts in neither way.
    """
    lines = _lines(path)
    _, first = next(lines, (1, []))
    header, count = first[1:], None
    if len(first) == 1 and first[0].isdecimal():
        count = int(first[0])
        _, header = next(lines, (2, []))
    elif [field.lower() for field in first[:1]] != ["image_id"]:
        header = []
    if not header or len(set(header)) < len(header):
        raise ValueError(
            f"{path} must start with the number of images and a line of names, or with a line of "
            f"image_id and names, got {' '.join(first)[:80]!r}"
        )

    def rows() -> Iterator[tuple[int, str, list[str]]]:
        seen: set[str] = set()
        listed = 0
        for number, (name, *entries) in lines:
            listed += 1
            where = f"{path.name} line {number}"
            if len(entries) != len(header):
                length = f"{name} has {len(entries)} of {len(header)}"
                problem(where, f"attribute line of wrong length, {length}")
            elif name in seen:
                problem(where, f"image listed twice, {name}")
            else:
                seen.add(name)
                yield number, name, entries
        if count is not None and listed != count:
            problem(path.name, f"count differs, it says {count} images and lists {listed}")

    return tuple(header), rows()


def read_partition(path: Path, problem: Problem) -> dict[str, str]:
    """The number of each image's split; a line that does not say one is a ``problem``."""
    part: dict[str, str] = {}
    for number, fields in _lines(path):
        where = f"{path.name} line {number}"
        if len(fields) != 2 or fields[1] not in SPLITS.values():
            if number > 1 or [field.lower() for field in fields] != ["image_id", "partition"]:
                problem(where, f"not an image and 0 or 1 or 2, {' '.join(fields)!r}")
        elif fields[0] in part:
            problem(where, f"image listed twice, {fields[0]}")
        else:
            part[fields[0]] = fields[1]
    return part


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not blank, each with its number and its fields, which spaces, tabs or
    commas part. A byte order mark, as Windows' editors write it, is no part of the first."""
    with open(path, encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.replace(",", " ").replace('"', " ").split()
            if fields:
                yield number, fields


def by_name(entries: Mapping[str, T]) -> Callable[[str], list[T]]:
    """Look an image up by its name, else by its name without extension and in any case: lists say
    000001.jpg of what is 000001.png or 000001.JPG. Several entries may fit."""
    loose: dict[str, list[T]] = {}
    for name, value in entries.items():
        if name.lower().endswith(SUFFIXES):
            loose.setdefault(_stem(name), []).append(value)

    return lambda name: [entries[name]] if name in entries else loose.get(_stem(name), [])


def _stem(name: str) -> str:
    return name.rpartition(".")[0].lower()
