"""Measurements that take minutes each, kept as soon as they are made and not made again."""

import datetime
import json
import os
from collections.abc import Hashable, Iterable
from importlib import metadata
from pathlib import Path


class Record:
    """Lines of JSON in ``build/``; of each, the fields ``by`` say which measurement it is, and
    ``made`` and ``versions`` when and with what it was made.

    ``make bench RECORDS=cdelta/records`` goes on with those that the book shows.
    """

    def __init__(self, name: str, by: tuple[str, ...]):
        self.path, self.by = Path(os.environ.get("RECORDS", "build"), f"{name}.jsonl"), by

    def measured(self) -> dict[tuple[Hashable, ...], dict]:
        lines = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
        return {tuple(r[field] for field in self.by): r for r in map(json.loads, lines)}

    def keep(self, **fields: object) -> None:
        made = {"made": datetime.date.today().isoformat(), "versions": versions()}
        line = json.dumps(fields | made, default=number, ensure_ascii=False)
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def versions(packages: Iterable[str] = ("cdelta", "jax", "numpy")) -> dict[str, str]:
    return {name: metadata.version(name) for name in packages}


def number(value: object) -> object:
    """A scalar of numpy's or jax's as one of Python's."""
    return value.item()


def seeds(chosen: str) -> list[int]:
    """``SEEDS="0 1 2"`` or ``"0-39"``, with such a default."""
    ranges = [part.split("-") for part in os.environ.get("SEEDS", chosen).split()]
    return [seed for ends in ranges for seed in range(int(ends[0]), int(ends[-1]) + 1)]
