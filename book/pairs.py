"""Bring the two halves of each chapter in step: ``notebooks/NN.md`` and ``notebooks/NN.ipynb``.

    python book/pairs.py                   # every pair
    python book/pairs.py 01 --take ipynb   # where both were edited, this half stands

A half that differs from the other is overwritten only when the last commit has what it holds. So an
edit of the ``.md`` goes to the ``.ipynb``, an edit of the ``.ipynb`` alone (in VS Code or Colab)
goes to the ``.md``, and where both were edited somebody has to say which stands. Outputs are no
edits: a committed ``.ipynb`` has none.
"""

import argparse
import copy
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
        "cell_metadata_filter": "tags,mystnb,-all",
        "default_lexer": "ipython3",
        "formats": "md:myst,ipynb",
        "notebook_metadata_filter": "-all,jupytext,kernelspec",
    },
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
}


class OutOfStep(Exception):
    """Both halves of a pair hold something that is nowhere else."""


def bare(notebook: Any) -> Any:
    """What both halves hold: sources, tags, and how they are paired. No outputs, no counts, and
    nothing of what a kernel or an editor leaves in the metadata."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata = nbformat.from_dict(copy.deepcopy(METADATA))
    for cell in notebook.cells:
        kept = {key: cell.metadata[key] for key in ("mystnb", "tags") if key in cell.metadata}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    return notebook


def content(notebook: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """What makes two notebooks the same: for each cell its kind, its source and its tags."""
    cells = bare(notebook).cells
    return [(cell.cell_type, cell.source, dict(cell.metadata)) for cell in cells]


def read(path: Path) -> Any | None:
    """The notebook in either half; None where there is no such file."""
    return parse(path, path.read_text(encoding="utf-8")) if path.is_file() else None


def parse(path: Path, text: str) -> Any:
    if path.suffix == ".ipynb":
        return nbformat.reads(text, as_version=4)
    return jupytext.reads(text, fmt=MARKDOWN)


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
        text = subprocess.run(show, capture_output=True, check=True).stdout.decode("utf-8")
    except (OSError, subprocess.CalledProcessError):
        return False  # no git, no commit, or a file that is new
    return content(parse(path, text)) == content(read(path))


def standing(source: Path) -> str:
    """The half, ".md" or ".ipynb", that holds everything; raises OutOfStep where neither does."""
    halves = {suffix: read(source.with_suffix(suffix)) for suffix in (".md", ".ipynb")}
    there = [suffix for suffix, notebook in halves.items() if notebook is not None]
    if len(there) < 2:
        return there[0]
    if content(halves[".md"]) == content(halves[".ipynb"]):
        return ".md"
    for stands, goes in ((".md", ".ipynb"), (".ipynb", ".md")):
        if committed(source.with_suffix(goes)):
            return stands
    raise OutOfStep(
        f"{source.stem}: the .md and the .ipynb differ, and neither is as in the last commit. "
        f"Make them agree, or say which one stands: make pairs NAMES={source.stem} TAKE=md, "
        "or TAKE=ipynb"
    )


def bring_in_step(source: Path, take: str | None = None) -> list[str]:
    """Write both halves of a pair from the one that stands; the suffixes of those that changed."""
    try:
        stands = standing(source)
    except OutOfStep:
        if take is None:
            raise
        stands = take
    notebook, pair = read(source.with_suffix(stands)), read(source.with_suffix(".ipynb"))
    if pair is not None:  # the cells that are still the same keep their ids
        notebook = combine_inputs_with_outputs(notebook, pair, fmt=MARKDOWN)
    changed = []
    for suffix, text in texts(notebook).items():
        path = source.with_suffix(suffix)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
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
        except OutOfStep as error:
            refused += 1
            print(error, file=sys.stderr)
        else:
            if changed:
                print(f"{source.stem}: wrote {' and '.join(changed)}")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
