"""The second run: values that change are noticed, pictures are not compared, cells never executed
are refused."""

import os
import sys

import nbformat
import numpy as np
import pytest

from tests.notebooks import again


def notebook(*cells):
    """An executed notebook of (source, outputs) cells."""
    book = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )
    for count, (source, outputs) in enumerate(cells, 1):
        book.cells.append(nbformat.v4.new_code_cell(source, execution_count=count, outputs=outputs))
    return book


def stream(text):
    return nbformat.v4.new_output("stream", name="stdout", text=text)


def shown(html):
    data = {"text/html": html, "text/plain": "<IPython.core.display.HTML object>"}
    return nbformat.v4.new_output("display_data", data=data)


DRAW = """from IPython.display import HTML, display
display(HTML('<figure><svg id="new"><g/></svg>caption</figure>'))"""


@pytest.mark.parametrize(
    ("cells", "agrees"),
    [
        ([("print('PASS', 0.25)", [stream("PASS 0.25\n")])], True),
        ([("print('PASS', 0.25)", [stream("PASS 0.26\n")])], False),
        ([("print('PASS', 0.25)", [])], False),
        ([("raise ValueError('no')", [])], False),
        ([(DRAW, [shown('<figure><svg id="old"><g><path/></g></svg>caption</figure>')])], True),
        ([(DRAW, [shown('<figure><svg id="old"><g/></svg>another caption</figure>')])], False),
    ],
    ids=["same", "another value", "output missing", "raises", "another picture", "another caption"],
)
def test_second_run(tmp_path, cells, agrees):
    path = tmp_path / "a.ipynb"
    nbformat.write(notebook(*cells), path)
    assert (again.compare([path], 1, dict(os.environ)) == 0) is agrees


def test_notebooks_outside_the_tree_have_a_name_each(tmp_path, capfd):
    paths = [tmp_path / "a.ipynb", tmp_path / "b.ipynb"]
    for path in paths:
        nbformat.write(notebook(("x = 1", [])), path)
    assert again.compare(paths, 1, dict(os.environ), "--collect-only") == 0
    assert capfd.readouterr().out.splitlines()[:2] == ["a.ipynb::Cell 0", "b.ipynb::Cell 0"]


def test_never_executed_cells_are_refused(tmp_path):
    book = notebook(("x = 1", []), ("", []))
    book.cells[1].execution_count = None  # an empty cell has nothing to execute
    nbformat.write(book, tmp_path / "a.ipynb")
    assert again.never_executed(book) == []
    assert again.refuse(tmp_path, ["a"]) == []
    book.cells[0].execution_count = None
    nbformat.write(book, tmp_path / "a.ipynb")
    assert again.refuse(tmp_path, ["a", "b"]) == [
        f"b: not in {tmp_path}",
        "a: cell 0 was never executed",
    ]


def test_command_refuses_before_comparing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["again", str(tmp_path)])
    assert again.main() == 1
    assert "01_linear_maps: not in" in capsys.readouterr().err


def test_a_sample_is_drawn_by_the_sources():
    """The same for the same sources; each chapter as often as any other (19 chapters, 6 of them,
    2000 sources: a share of .316 ± .010)."""
    names = [f"{i:02}_chapter" for i in range(1, 20)]
    one = {name: f"{name} of today" for name in names}
    assert again.drawn(one, 6) == again.drawn(dict(reversed(one.items())), 6)
    drawn = [again.drawn(dict.fromkeys(names, str(source)), 6) for source in range(2000)]
    assert all(len(set(chosen)) == 6 and set(chosen) < set(names) for chosen in drawn)
    share = np.array([np.mean([name in chosen for chosen in drawn]) for name in names])
    assert np.abs(share - 6 / 19).max() < 4 * np.sqrt(6 / 19 * 13 / 19 / 2000)
    assert again.drawn(one, 40) == names


def test_command_compares_the_chapters_drawn(tmp_path, monkeypatch, capsys):
    """Of three chapters one by lot; what is not executed is refused for all of them."""
    names = ["01_a", "02_b", "03_c"]
    for name in names:
        nbformat.write(notebook(("x = 1", [])), tmp_path / f"{name}.ipynb")
    runs = {name: {"fingerprint": name, "seconds": 1.0} for name in names}
    compared = []
    monkeypatch.setattr(again.execute, "chapters", lambda root: names)
    monkeypatch.setattr(again.execute, "records", lambda folder: runs)
    monkeypatch.setattr(again, "compare", lambda paths, *_: compared.append(paths) or 0)
    for options in ([], ["--sample", "1"]):
        monkeypatch.setattr(sys, "argv", ["again", str(tmp_path), *options])
        assert again.main() == 0
    chosen = again.drawn({name: name for name in names}, 1)
    assert [[path.stem for path in paths] for paths in compared] == [names, chosen]
    assert capsys.readouterr().out == f"A second time: {chosen[0]}\n"
    (tmp_path / f"{names[0]}.ipynb").unlink()
    assert again.main() == 1
    monkeypatch.setattr(sys, "argv", ["again", str(tmp_path), "--sample", "0"])
    with pytest.raises(SystemExit):
        again.main()
    assert "--sample must be 1 or more, got 0" in capsys.readouterr().err
