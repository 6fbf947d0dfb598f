"""The chapters in JupyterLab: readable, runnable, and saved without a trace of either.

    python book/lab.py            # options are JupyterLab's, such as --no-browser

Opening either half of a pair in ``notebooks/`` opens the chapter, with the book's TeX macros added
where jupyterlab-myst looks for them; saving it writes both halves as ``make pairs`` does. Outputs
stay out of them: they are kept in ``_build/lab``, and are there again when the chapter is opened.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

import execute
import nbformat
import pairs
import threads
import yaml
from jupytext import TextFileContentsManager
from tornado.web import HTTPError
from traitlets import Float

from cdelta import _files

KEPT = "_build/lab"
FRONT = re.compile(r"\A---\n# The book's macros.*?\n---\n+", re.DOTALL)


class Chapters(TextFileContentsManager):
    """Jupytext's contents manager, which knows what belongs into a chapter's files."""

    # Running a notebook in place makes its .ipynb the newer half, which is no reason to refuse it:
    # `get` asks whether an edit would be lost.
    outdated_text_notebook_margin = Float(float("inf")).tag(config=True)

    def chapter(self, path: str) -> Path | None:
        """The source of the chapter that ``path`` opens; None when it is no chapter."""
        file = Path(self._get_os_path(path.strip("/"))).resolve()
        chapter = file.parent.name == "notebooks" and file.suffix in (".md", ".ipynb")
        is_book = (file.parent.parent / "_toc.yml").is_file()
        return file.with_suffix(".md") if chapter and is_book else None

    def get(self, path: str, content: bool = True, *args: Any, **options: Any) -> dict[str, Any]:
        source = self.chapter(path)
        try:
            model = super().get(path, content, *args, **options)
        except HTTPError as error:
            if source is not None and error.status_code == 400:  # a half that is no notebook
                self._standing(source)
            raise
        if source is None or model["type"] != "notebook" or not content:
            return model
        if self._standing(source) != ".md" and source.is_file():
            raise HTTPError(409, f"{source.stem} was edited in the .ipynb alone: run `make pairs`")
        self._restore(model["content"], self._kept(source), path)
        first = next((c for c in model["content"].cells if c.cell_type == "markdown"), None)
        if first is not None:
            first.source = front(source.parent.parent) + first.source
        return model

    def save(self, model: dict[str, Any], path: str = "") -> dict[str, Any]:
        source = self.chapter(path)
        if source is None or model["type"] != "notebook":
            return super().save(model, path)
        notebook = nbformat.from_dict(model["content"])
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = FRONT.sub("", cell.source)
        try:
            bare = pairs.checked(notebook, source.stem)
        except pairs.Refused as error:
            raise HTTPError(400, str(error)) from error
        pairs.tidy(notebook)  # or its outputs would not be found again: by their cells' sources
        # signed before it is written: outputs that came from this server are shown without asking
        self.check_and_sign(notebook, path)
        _files.write(self._kept(source), nbformat.writes(notebook))
        return super().save({**model, "content": bare}, path)

    def _standing(self, source: Path) -> str:
        try:
            return pairs.standing(source)
        except pairs.Refused as error:
            raise HTTPError(409, str(error)) from error

    def _kept(self, source: Path) -> Path:
        return source.parent.parent / KEPT / f"{source.stem}.ipynb"

    def _restore(self, notebook: Any, kept: Path, path: str) -> None:
        """Give the cells back the outputs with which they were saved, as long as they are the same
        cells."""
        if not kept.is_file():
            return
        saved = nbformat.read(kept, as_version=4)
        self.mark_trusted_cells(saved, path)
        cells = {cell.id: cell for cell in saved.cells if cell.cell_type == "code"}
        for cell in notebook.cells:
            same = cells.get(cell.get("id"))
            if cell.cell_type == "code" and same is not None and same.source == cell.source:
                cell.update(outputs=same.outputs, execution_count=same.execution_count)
                cell.metadata["trusted"] = same.metadata.get("trusted", False)


def front(root: Path) -> str:
    r"""The book's macros as the front matter that jupyterlab-myst reads: ``'\E': '\mathbb{E}'``."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    macros = config["sphinx"]["config"]["mathjax3_config"]["tex"]["macros"]
    math = yaml.safe_dump({"math": {f"\\{name}": text for name, text in macros.items()}})
    note = (
        "# The book's macros, for this page alone: they are in _config.yml and are not saved here."
    )
    return f"---\n{note}\n{math}---\n\n"


def main() -> None:
    from jupyterlab.labapp import LabApp

    for name, value in threads.THREADS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # this environment's kernel
    ours = {
        "ServerApp.contents_manager_class": "lab.Chapters",
        "ServerApp.root_dir": execute.ROOT,
        "LabApp.default_url": "/lab/tree/notebooks",
    }
    options = [f"--{name}={value}" for name, value in ours.items()]
    LabApp.launch_instance([*options, *sys.argv[1:]])


if __name__ == "__main__":
    main()
