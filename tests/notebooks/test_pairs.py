"""The committed notebooks: each Markdown source and its paired .ipynb are the same notebook,
without any output."""

import re
from pathlib import Path

import execute
import jupytext
import nbformat
import pytest
import yaml

from tests import ROOT

NAMES = sorted({path.stem for pattern in ("*.md", "*.ipynb") for path in (ROOT / "notebooks").glob(pattern)})


def content(notebook):
    return [(cell.cell_type, cell.source, dict(cell.metadata)) for cell in notebook.cells]


def header(notebook):
    """The metadata, without the versions of jupytext that last wrote the file."""
    text = {key: value for key, value in notebook.metadata.jupytext.text_representation.items() if "version" not in key}
    return {**notebook.metadata, "jupytext": {**notebook.metadata.jupytext, "text_representation": text}}


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
def test_header_parameters_and_profiles(name):
    notebook = jupytext.read(ROOT / "notebooks" / f"{name}.md")
    assert header(notebook) == header(jupytext.read(ROOT / "notebooks" / "01_linear_maps.md"))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].source == 'profile = "book"' and code[0].metadata["tags"] == ["parameters"]
    assert all(f'"{profile}"' in code[1].source for profile in execute.PROFILES)
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
    source = tmp_path / "a.md"
    source.write_text(
        "---\njupytext: {text_representation: {extension: .md, format_name: myst}}\n"
        "kernelspec: {display_name: Python 3, language: python, name: python3}\n---\n\n# A\n\n"
        "```{code-cell} ipython3\nx = 1\n```\n"
    )
    notebook = jupytext.read(source)
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    assert difference(source, source.with_suffix(".ipynb")) == ""
    return source, notebook


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda nb: nb.cells[1].update(source="x = 2"), "cell 1 differs"),
        (lambda nb: nb.cells[1].metadata.update(tags=["hide-input"]), "cell 1 differs"),
        (lambda nb: nb.cells.pop(), "2 cells against 1"),
        (lambda nb: nb.cells[1].update(execution_count=1), "execution counts"),
        (lambda nb: nb.cells[1].outputs.append(nbformat.v4.new_output("stream", text="1")), "outputs"),
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
