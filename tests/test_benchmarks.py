"""What benchmarks keep: read again, not measured again, and shown by the chapters."""

import datetime
import importlib
import json
import re

import numpy as np
import pytest

from cdelta import ledger
from tests import ROOT
from tests.benchmarks import _record

KEPT = sorted(path.stem for path in ledger.RECORDS.glob("*.jsonl"))
CHAPTERS = {
    path.stem: path.read_text("utf-8") for path in sorted((ROOT / "notebooks").glob("*.md"))
}


def test_a_measurement_is_kept_with_its_day_and_versions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = _record.Record("speed", ("way", "seed"))
    assert record.measured() == {}
    record.keep(way="R²", seed=np.int64(3), right=np.bool_(True), error=np.float32(0.5))
    record.keep(way="R²", seed=4, right=False, error=0.25)
    again = _record.Record("speed", ("way", "seed")).measured()
    assert list(again) == [("R²", 3), ("R²", 4)]
    row = again["R²", 3]
    assert (row["right"], row["error"]) == (True, 0.5)
    assert row["made"] == datetime.date.today().isoformat()
    assert set(row["versions"]) == {"cdelta", "jax", "numpy"}
    monkeypatch.setenv("RECORDS", "elsewhere")
    assert _record.Record("speed", ("way", "seed")).measured() == {}


@pytest.mark.parametrize(
    ("chosen", "seeds"), [(None, [0, 1, 2]), ("7", [7]), ("0 3-5 9", [0, 3, 4, 5, 9])]
)
def test_seeds(chosen, seeds, monkeypatch):
    monkeypatch.delenv("SEEDS", raising=False)
    if chosen:
        monkeypatch.setenv("SEEDS", chosen)
    assert _record.seeds("0-2") == seeds


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_is_what_its_benchmark_writes(name):
    rows = ledger.kept(name)
    benchmark = importlib.import_module(f"tests.benchmarks.{name}")
    by = (benchmark.RECORD if hasattr(benchmark, "RECORD") else benchmark.record()).by
    measured = [tuple(row[field] for field in by) for row in rows]
    assert len(set(measured)) == len(rows) > 0
    for row in rows:
        datetime.date.fromisoformat(row["made"])
        assert {"cdelta", "jax", "numpy"} <= set(row["versions"])
        assert not re.search(r'"[./~]*/\w', json.dumps(row))  # no path of a machine


@pytest.mark.parametrize("name", KEPT)
def test_a_chapter_shows_it_and_no_number_of_it_is_typed(name):
    showing = [text for text in CHAPTERS.values() if f'ledger.kept("{name}")' in text]
    assert len(showing) == 1 and f"NAMES={name}" in showing[0]
    assert "ledger.made(" in showing[0]
    # a table in Markdown would be typed: those that are read are made by figures.table
    assert not re.search(r"^\|.*\d.*\|$", showing[0], re.M)
