"""Measurements that take minutes each, kept as soon as they are made and not made again."""

import json
from collections.abc import Hashable
from pathlib import Path


class Record:
    """Lines of JSON in ``build/``; of each, the fields ``by`` say which measurement it is."""

    def __init__(self, name: str, by: tuple[str, ...]):
        self.path, self.by = Path("build", f"{name}.jsonl"), by

    def measured(self) -> dict[tuple[Hashable, ...], dict]:
        lines = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
        return {tuple(r[field] for field in self.by): r for r in map(json.loads, lines)}

    def keep(self, **fields: object) -> None:
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")
