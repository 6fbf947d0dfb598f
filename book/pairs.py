"""Bring the two halves of each chapter in step: ``notebooks/NN.md`` and ``notebooks/NN.ipynb``.

    python book/pairs.py                   # every pair
    python book/pairs.py 01 --take ipynb   # where both were edited, this half stands

A half that differs from the other is overwritten only when the last commit has what it holds. So an
edit of the ``.md`` goes to the ``.ipynb``, an edit of the ``.ipynb`` alone (in VS Code or Colab)
goes to the ``.md``, and where both were edited somebody has to say which stands. Outputs are no
edits: a committed ``.ipynb`` has none. Neither are blank lines around a cell, nor empty Markdown
cells: MyST does not keep them, so neither half has them.
"""

import argparse
import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import execute
import jupytext
import nbformat
from jupytext.combine import combine_inputs_with_outputs

from cdelta import _files

MARKDOWN = "md:myst"
# The same in every chapter. As Jupyter and jupytext write them, so that saving changes nothing.
METADATA = {
    "jupytext": {
        "cell_metadata_filter": "tags,-all",
        "default_lexer": "ipython3",
        "formats": "md:myst,ipynb",
        "notebook_metadata_filter": "-all,jupytext,kernelspec",
    },
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
}


SUFFIXES = (".md", ".ipynb")
CONFLICT = re.compile(r"^<{7} .*^={7}$.*^>{7} ", re.MULTILINE | re.DOTALL)
BLANK = re.compile(r"\A([ \t]*\n)+")  # lines before the first that holds something


class Refused(Exception):
    """Why a pair is left as it is."""


class Unreadable(Refused):
    """A half that is no notebook."""


def tidy(notebook: Any) -> None:
    """Take away what MyST does not keep: blank lines around a cell, and empty Markdown cells."""
    for cell in notebook.cells:
        cell.source = BLANK.sub("", cell.source).rstrip()
    notebook.cells = [c for c in notebook.cells if c.source or c.cell_type != "markdown"]


def bare(notebook: Any) -> Any:
    """What both halves hold: sources, tags, and how they are paired. No outputs, no counts, and
    nothing of what a kernel or an editor leaves in the metadata."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata = nbformat.from_dict(copy.deepcopy(METADATA))
    tidy(notebook)
    for cell in notebook.cells:
        kept = {key: cell.metadata[key] for key in ("tags",) if key in cell.metadata}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    return notebook


def content(notebook: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """What makes two notebooks the same: for each cell its kind, its source and its tags."""
    cells = bare(notebook).cells
    return [(cell.cell_type, cell.source, dict(cell.metadata)) for cell in cells]


def checked(notebook: Any, name: str) -> Any:
    """The notebook, bare; raises Refused when MyST would read another one back."""
    notebook = bare(notebook)
    cells = notebook.cells
    if not _reads_back(notebook, cells):
        # between a cell that swallows the next and one that is swallowed: what follows it decides
        end = nbformat.v4.new_markdown_cell("end")
        tries = (n for n in range(len(cells)) if not _reads_back(notebook, [*cells[: n + 1], end]))
        first = next(tries, len(cells) - 1)
        start = cells[first].source.partition("\n")[0]
        raise Refused(
            f"{name}: cell {first + 1} ({cells[first].cell_type}, {start!r}) cannot be written to "
            "the .md, which would read back as other cells. Change it: in Markdown, a line that "
            "begins with +++ or ```{code-cell} starts another cell, and a fence or a comment that "
            "is not closed takes in the next ones"
        )
    return notebook


def _reads_back(notebook: Any, cells: list[Any]) -> bool:
    notebook = nbformat.from_dict({**notebook, "cells": cells})
    try:
        back = parse(Path("written.md"), texts(notebook)[".md"].encode())
    except Unreadable:
        return False
    return content(back) == content(notebook)


def read(path: Path) -> Any | None:
    """The notebook in either half; None where there is no such file, Unreadable if it is none."""
    return parse(path, path.read_bytes()) if path.is_file() else None


def parse(path: Path, written: bytes) -> Any:
    try:
        text = written.decode("utf-8").replace("\r\n", "\n")
        if CONFLICT.search(text):
            raise ValueError("it holds the marks <<<<<<< and >>>>>>> of a merge")
        if path.suffix == ".ipynb":
            return nbformat.reads(text, as_version=4)
        return jupytext.reads(text, fmt=MARKDOWN)
    except Exception as error:  # the readers raise many kinds: no JSON, no cells, no YAML, no UTF-8
        other = {".md": "ipynb", ".ipynb": "md"}[path.suffix]
        raise Unreadable(
            f"{path.stem}: {path.name} cannot be read as a notebook: {str(error)[:100]!r}. Repair "
            f"it or, where the .{other} is whole, take that: make pairs NAMES={path.stem} "
            f"TAKE={other}"
        ) from error


def texts(notebook: Any) -> dict[str, str]:
    """The two files, as Jupyter writes them, so that saving there changes nothing."""
    notebook = bare(notebook)
    return {
        ".md": jupytext.writes(notebook, fmt=MARKDOWN),
        ".ipynb": nbformat.writes(notebook) + "\n",
    }


def committed(path: Path) -> bool:
    """Whether the last commit has what ``path`` holds."""
    show = ["git", "-C", str(path.parent), "show", f"HEAD:./{path.name}"]
    try:
        written = parse(path, subprocess.run(show, capture_output=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError, Unreadable):
        return False  # no git, no commit, a file that is new, or one that was no notebook there
    return content(written) == content(read(path))


def standing(source: Path) -> str:
    """The half, ".md" or ".ipynb", that holds everything; raises Refused where neither does."""
    there = [suffix for suffix in SUFFIXES if source.with_suffix(suffix).is_file()]
    if len(there) < 2:
        return there[0]
    halves = {suffix: read(source.with_suffix(suffix)) for suffix in SUFFIXES}
    if content(halves[".md"]) == content(halves[".ipynb"]):
        return ".md"
    for stands, goes in ((".md", ".ipynb"), (".ipynb", ".md")):
        if committed(source.with_suffix(goes)):
            return stands
    raise Refused(
        f"{source.stem}: the .md and the .ipynb differ, and neither is as in the last commit. "
        f"Make them agree, or say which one stands: make pairs NAMES={source.stem} TAKE=md, "
        "or TAKE=ipynb"
    )


def bring_in_step(source: Path, take: str | None = None) -> list[str]:
    """Write both halves of a pair from the one that stands; the suffixes of those that changed."""
    try:
        stands = standing(source)
    except Refused:
        if take is None:
            raise
        stands = take
    notebook = read(source.with_suffix(stands))
    try:
        pair = read(source.with_suffix(".ipynb"))
    except Unreadable:  # and the .md was taken
        pair = None
    if pair is not None:  # the cells that are still the same keep their ids
        notebook = combine_inputs_with_outputs(notebook, pair, fmt=MARKDOWN)
    notebook = checked(notebook, source.stem)
    changed = []
    for suffix, text in texts(notebook).items():
        path = source.with_suffix(suffix)
        if not path.is_file() or path.read_bytes().replace(b"\r\n", b"\n") != text.encode():
            _files.write(path, text)
            changed.append(suffix)
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="chapters, such as 01; all when none is named")
    parser.add_argument("--take", choices=("md", "ipynb"), help="which half stands")
    parser.add_argument("--root", type=Path, default=execute.ROOT, help="the repository")
    options = parser.parse_args()
    folder = options.root.resolve() / "notebooks"
    halves = (path for pattern in ("*.md", "*.ipynb") for path in folder.glob(pattern))
    sources = sorted({path.with_suffix(".md") for path in halves})
    if options.names:
        try:
            sources = execute.find(options.names, sources)
        except ValueError as error:
            parser.error(str(error))
    refused = 0
    for source in sources:
        try:
            changed = bring_in_step(source, options.take and f".{options.take}")
        except Refused as error:
            refused += 1
            print(error, file=sys.stderr)
        else:
            if changed:
                print(f"{source.stem}: wrote {' and '.join(changed)}")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
