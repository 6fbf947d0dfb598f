"""The committed notebooks: each Markdown source and its paired .ipynb are the same notebook,
without any output."""

import json
import re
import subprocess
import sys
from pathlib import Path

import execute
import jupytext
import nbformat
import pairs
import pytest
import yaml

from cdelta import profiles
from tests import ROOT

HALVES = [path for pattern in ("*.md", "*.ipynb") for path in (ROOT / "notebooks").glob(pattern)]
NAMES = sorted({path.stem for path in HALVES})


def content(notebook):
    return [(cell.cell_type, cell.source, dict(cell.metadata)) for cell in notebook.cells]


def difference(source: Path, pair: Path) -> str:
    """What keeps the two from being the same output-free notebook; empty when nothing does."""
    if not source.is_file() or not pair.is_file():
        return f"{source.name} and {pair.name} must both exist"
    markdown, notebook = jupytext.read(source), nbformat.read(pair, as_version=4)
    nbformat.validate(notebook)
    for index, (left, right) in enumerate(zip(content(markdown), content(notebook), strict=False)):
        if left != right:
            return f"cell {index} differs: {left!r} against {right!r}"
    if len(markdown.cells) != len(notebook.cells):
        return f"{len(markdown.cells)} cells against {len(notebook.cells)}"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if any(cell.outputs or cell.execution_count is not None for cell in code):
        return "outputs or execution counts are committed"
    ids = [cell.get("id") for cell in notebook.cells]
    if None in ids or len(set(ids)) != len(ids):
        return "cells need an id each, all different"
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_pair_is_in_step(name):
    source = ROOT / "notebooks" / f"{name}.md"
    assert difference(source, source.with_suffix(".ipynb")) == "", "run `make pairs`"


@pytest.mark.parametrize("name", NAMES)
def test_both_halves_are_as_jupyter_and_jupytext_write_them(name):
    """So that saving one that did not change changes no file."""
    source = ROOT / "notebooks" / f"{name}.md"
    markdown, notebook = source.read_text("utf-8"), source.with_suffix(".ipynb").read_text("utf-8")
    assert jupytext.writes(jupytext.reads(markdown, fmt="md:myst"), fmt="md:myst") == markdown
    assert pairs.texts(pairs.read(source))[".md"] == markdown
    assert nbformat.writes(nbformat.reads(notebook, as_version=4)) + "\n" == notebook


@pytest.mark.parametrize("name", NAMES)
def test_header_parameters_and_profiles(name):
    notebook = jupytext.read(ROOT / "notebooks" / f"{name}.md")
    assert notebook.metadata.jupytext.pop("text_representation").extension == ".md"
    assert notebook.metadata == pairs.METADATA
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    said = "# Profile: smoke, book or paper"
    assert code[0].source == f'{said}\nprofile = "book"'
    assert code[0].metadata["tags"][0] == "parameters"
    assert all(f'"{profile}"' in code[1].source for profile in profiles.NAMES)
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_a_chapter(name):
    assert name in execute.chapters(ROOT), f"{name} is not in _toc.yml"


def test_chapters_of_the_claims_are_numbers():
    claims = yaml.safe_load((ROOT / "book" / "claims.yml").read_text("utf-8"))
    assert all(re.fullmatch(r"[01][0-9]", claim["chapter"]) for claim in claims.values())


@pytest.fixture
def pair(tmp_path):
    """A small pair in step: its paths and the notebook."""
    source = tmp_path / "notebooks" / "01_a.md"
    source.parent.mkdir()
    source.write_text("# A\n\n```{code-cell} ipython3\nx = 1\n```\n")
    assert pairs.bring_in_step(source) == [".md", ".ipynb"]
    assert difference(source, source.with_suffix(".ipynb")) == ""
    return source, nbformat.read(source.with_suffix(".ipynb"), as_version=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda nb: nb.cells[1].update(source="x = 2"), "cell 1 differs"),
        (lambda nb: nb.cells[1].metadata.update(tags=["hide-input"]), "cell 1 differs"),
        (lambda nb: nb.cells.pop(), "2 cells against 1"),
        (lambda nb: nb.cells[1].update(execution_count=1), "execution counts"),
        (
            lambda nb: nb.cells[1].outputs.append(nbformat.v4.new_output("stream", text="1")),
            "outputs",
        ),
    ],
)
def test_a_pair_out_of_step_is_noticed(pair, change, message):
    source, notebook = pair
    change(notebook)
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    assert message in difference(source, source.with_suffix(".ipynb"))


def test_a_missing_half_is_noticed(pair):
    source, _ = pair
    source.with_suffix(".ipynb").unlink()
    assert "both exist" in difference(source, source.with_suffix(".ipynb"))


# --------------------------------------------------------------------------------------- make pairs


def git(folder, *arguments):
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def tracked(pair):
    """The pair, committed; the path of the source."""
    source, _ = pair
    git(source.parent, "init", "-q")
    git(source.parent, "add", ".")
    git(source.parent, "commit", "-q", "-m", "all")
    return source


def edit(path, old="x = 1", new="x = 2"):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def sources(path):
    return [cell.source for cell in pairs.read(path).cells]


@pytest.mark.parametrize("half", [".md", ".ipynb"])
def test_an_edit_of_one_half_reaches_the_other(tracked, half):
    ids = [cell["id"] for cell in pairs.read(tracked.with_suffix(".ipynb")).cells]
    edit(tracked.with_suffix(half))
    (other,) = {".md", ".ipynb"} - {half}
    assert pairs.bring_in_step(tracked) == [other]
    assert sources(tracked) == sources(tracked.with_suffix(".ipynb")) == ["# A", "x = 2"]
    assert [cell["id"] for cell in pairs.read(tracked.with_suffix(".ipynb")).cells] == ids
    assert pairs.bring_in_step(tracked) == []


def test_the_source_stands_where_the_commit_has_both(tracked):
    edit(tracked)
    git(tracked.parent, "commit", "-qam", "the source alone")
    assert pairs.bring_in_step(tracked) == [".ipynb"]
    assert sources(tracked.with_suffix(".ipynb")) == ["# A", "x = 2"]


@pytest.mark.parametrize("stands", [".md", ".ipynb"])
def test_where_both_were_edited_nothing_is_written_until_one_is_named(tracked, stands):
    edit(tracked, new="x = 2")
    edit(tracked.with_suffix(".ipynb"), new="x = 3")
    before = [tracked.with_suffix(suffix).read_bytes() for suffix in (".md", ".ipynb")]
    with pytest.raises(pairs.Refused, match=r"01_a: the \.md and .* differ.*TAKE=md"):
        pairs.bring_in_step(tracked)
    assert before == [tracked.with_suffix(suffix).read_bytes() for suffix in (".md", ".ipynb")]
    pairs.bring_in_step(tracked, take=stands)
    assert sources(tracked)[1] == {".md": "x = 2", ".ipynb": "x = 3"}[stands]
    assert difference(tracked, tracked.with_suffix(".ipynb")) == ""


def test_without_git_nothing_is_guessed(pair):
    source, _ = pair
    edit(source.with_suffix(".ipynb"))
    with pytest.raises(pairs.Refused):
        pairs.bring_in_step(source)


def test_outputs_are_no_edits_and_go(tracked):
    path = tracked.with_suffix(".ipynb")
    notebook = pairs.read(path)
    notebook.cells[1].update(
        execution_count=3, outputs=[nbformat.v4.new_output("stream", text="1")]
    )
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)
    assert pairs.bring_in_step(tracked) == [".ipynb"]
    assert difference(tracked, path) == ""


@pytest.mark.parametrize("half", [".md", ".ipynb"])
def test_a_missing_half_is_made_from_the_other(tracked, half):
    before = tracked.with_suffix(half).read_bytes()
    tracked.with_suffix(half).unlink()
    assert pairs.bring_in_step(tracked) == [half]
    if half == ".md":
        assert tracked.with_suffix(half).read_bytes() == before
    assert difference(tracked, tracked.with_suffix(".ipynb")) == ""


@pytest.mark.parametrize(
    ("before", "after"), [("", "\n"), ("", "\n\n\n"), ("", "  "), ("\n", ""), (" \n\n", "  \n")]
)
def test_blank_lines_around_a_cell_are_no_edit(tracked, before, after):
    """MyST does not keep them, so a pair that held them in one half would never be in step."""
    path = tracked.with_suffix(".ipynb")
    notebook, written = pairs.read(path), path.read_bytes()
    for cell in notebook.cells:
        cell.source = before + cell.source + after
    nbformat.write(notebook, path)
    assert pairs.bring_in_step(tracked) == [".ipynb"]
    assert path.read_bytes() == written
    assert pairs.bring_in_step(tracked) == []


@pytest.mark.parametrize("ending", ["\n", "  ", "\n\n\n"])
def test_an_edit_that_ends_in_blank_lines_reaches_the_md_and_stays_in_step(tracked, ending):
    path = tracked.with_suffix(".ipynb")
    notebook = pairs.read(path)
    for source, cell in zip(("# B", "x = 2"), notebook.cells, strict=True):
        cell.source = source + ending
    notebook.cells.append(nbformat.v4.new_markdown_cell("\n"))
    nbformat.write(notebook, path)
    assert pairs.bring_in_step(tracked) == [".md", ".ipynb"]
    assert difference(tracked, path) == "" and sources(tracked) == ["# B", "x = 2"]
    assert pairs.standing(tracked) == ".md" and pairs.bring_in_step(tracked) == []


def test_blank_lines_at_the_end_of_code_in_the_md_are_no_edit(tracked):
    written = tracked.read_bytes()
    edit(tracked, "x = 1\n", "x = 1\n\n\n")
    assert pairs.bring_in_step(tracked) == [".md"] and tracked.read_bytes() == written


@pytest.mark.parametrize(
    ("cell", "source"),
    [
        (0, "# A\n\n+++\n\nB"),
        (0, "# A\n\n+++ B"),
        (0, "# A\n\n```{code-cell}\nx\n```"),
        (0, "A\n```\nnot closed"),
        (0, "A\n<!-- not closed"),
        (1, "x = 'a\x0cb'"),
    ],
)
@pytest.mark.parametrize("first", [[], ["before"]])
def test_a_cell_that_myst_cannot_hold_is_refused_by_name(tracked, cell, source, first):
    path = tracked.with_suffix(".ipynb")
    notebook = pairs.read(path)
    notebook.cells[cell].source = source
    notebook.cells[:0] = map(nbformat.v4.new_markdown_cell, first)
    nbformat.write(notebook, path)
    before = path.read_bytes(), tracked.read_bytes()
    kind, start = notebook.cells[cell + len(first)].cell_type, source.partition("\n")[0]
    with pytest.raises(pairs.Refused) as refused:
        pairs.bring_in_step(tracked)
    assert f"01_a: cell {cell + len(first) + 1} ({kind}, {start!r})" in str(refused.value)
    assert before == (path.read_bytes(), tracked.read_bytes())


MERGE = "<<<<<<< HEAD\n{0}\n=======\n{0}\n>>>>>>> other\n"
DAMAGE = {
    "a merge": lambda text: MERGE.format(text).encode(),
    "nothing": lambda text: b"",
    "half of it": lambda text: text.encode()[: len(text) // 2],
    "a list": lambda text: b"[]",
    "no cells": lambda text: b'{"nbformat": 4, "nbformat_minor": 5}',
    "no text": lambda text: b"\xff\xfe",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_unreadable_ipynb_is_named_and_the_md_can_be_taken(tracked, monkeypatch, capsys, damage):
    second = tracked.with_name("02_b.md")
    second.write_text(tracked.read_text())
    path = tracked.with_suffix(".ipynb")
    path.write_bytes(DAMAGE[damage](path.read_text()))
    before = path.read_bytes(), tracked.read_bytes()
    monkeypatch.setattr(sys, "argv", ["pairs", "--root", str(tracked.parent.parent)])
    assert pairs.main() == 1
    said = capsys.readouterr()
    assert said.out == "02_b: wrote .ipynb\n"  # the chapters after it are treated
    assert said.err.startswith("01_a: 01_a.ipynb cannot be read as a notebook: ")
    assert "make pairs NAMES=01_a TAKE=md" in said.err
    assert before == (path.read_bytes(), tracked.read_bytes())
    monkeypatch.setattr(sys, "argv", [*sys.argv, "01", "--take", "md"])
    assert pairs.main() == 0
    assert difference(tracked, path) == "" and sources(path) == ["# A", "x = 1"]


@pytest.mark.parametrize("damage", ["a merge", "no text"])
def test_an_unreadable_md_is_named_and_the_ipynb_can_be_taken(tracked, damage):
    written = tracked.read_bytes()
    tracked.write_bytes(DAMAGE[damage](tracked.read_text()))
    for take in (None, ".md"):
        with pytest.raises(pairs.Refused, match=r"01_a\.md cannot be read .*TAKE=ipynb"):
            pairs.bring_in_step(tracked, take)
    assert pairs.bring_in_step(tracked, ".ipynb") == [".md"]
    assert tracked.read_bytes() == written


def test_a_merge_that_was_committed_can_be_repaired(tracked):
    path = tracked.with_suffix(".ipynb")
    whole = path.read_bytes()
    path.write_bytes(DAMAGE["a merge"](path.read_text()))
    git(tracked.parent, "commit", "-qam", "in haste")
    path.write_bytes(whole.replace(b"x = 1", b"x = 2"))
    assert pairs.bring_in_step(tracked) == [".md"] and sources(tracked) == ["# A", "x = 2"]


def test_the_command_says_what_it_wrote_and_what_it_refused(tracked, monkeypatch, capsys):
    second = tracked.with_name("02_b.md")
    second.write_text(tracked.read_text())
    edit(tracked)
    edit(tracked.with_suffix(".ipynb"), new="x = 3")
    monkeypatch.setattr(sys, "argv", ["pairs", "--root", str(tracked.parent.parent)])
    assert pairs.main() == 1
    said = capsys.readouterr()
    assert said.out == "02_b: wrote .ipynb\n"
    assert "make pairs NAMES=01_a TAKE=md" in said.err
    monkeypatch.setattr(sys, "argv", [*sys.argv, "01", "--take", "ipynb"])
    assert pairs.main() == 0
    assert sources(tracked) == ["# A", "x = 3"]


def test_what_jupyter_writes_is_what_is_committed(tracked):
    """The bytes of the .ipynb, as its own writer would have them."""
    text = tracked.with_suffix(".ipynb").read_text()
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
