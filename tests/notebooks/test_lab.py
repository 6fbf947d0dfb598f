"""A real Jupyter server, started in a repository as `make lab` starts it: what opening, running and
saving a chapter do to its files."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import pytest

from tests import ROOT

NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.md"))
TOKEN = "of-the-tests"


class Server:
    """Contents of a running Jupyter server, by its own interface."""

    def __init__(self, url, root):
        self.url, self.root = url, root

    def ask(self, path, method="GET", model=None):
        request = urllib.request.Request(
            f"{self.url}api/contents/{path}",
            data=None if model is None else json.dumps(model).encode(),
            headers={"Authorization": f"token {TOKEN}", "Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def open(self, path):
        return self.ask(f"{path}?type=notebook&content=1")["content"]

    def save(self, path, notebook):
        model = {"type": "notebook", "format": "json", "content": notebook}
        return self.ask(path, "PUT", model)

    def git(self, *arguments):
        command = ["git", "-C", str(self.root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def changed(self):
        """The lines that were added, and the files that are new."""
        diff = self.git("diff", "--unified=0", "--no-color").splitlines()
        added = [line[1:] for line in diff if line.startswith("+") and line[:3] != "+++"]
        return added + self.git("status", "--short", "--untracked-files=all", ".").split()[1::2]


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A server in a repository in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("lab")
    root = folder / "a book"
    root.mkdir()
    for name in ("_config.yml", "_toc.yml", ".gitignore"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    (root / "book").mkdir()
    for source in (ROOT / "book").glob("*.py"):
        shutil.copy(source, root / "book")
    server = Server("", root)
    server.git("init", "-q")
    server.git("add", ".")
    server.git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "all")
    env = {**os.environ, "HOME": str(folder), "JUPYTER_RUNTIME_DIR": str(folder / "runtime")}
    command = [sys.executable, "book/lab.py", "--no-browser", "--allow-root"]
    command += ["--ServerApp.port=0", f"--IdentityProvider.token={TOKEN}"]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, cwd=root, env=env, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 300
        while not (found := list((folder / "runtime").glob("jpserver-*.json"))):
            assert process.poll() is None and time.monotonic() < deadline, (
                folder / "log"
            ).read_text()
            time.sleep(0.1)
        server.url = json.loads(found[0].read_text())["url"]
        while time.monotonic() < deadline:
            try:
                server.ask("")
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture
def server(running):
    """The same server, its repository as it was committed."""
    yield running
    running.git("checkout", "-q", ".")
    running.git("clean", "-q", "-fdx", "-e", "__pycache__")


def run(notebook):
    """What Lab sends after a reader has run every cell: outputs, counts, metadata of its own."""
    notebook["metadata"]["language_info"] = {"name": "python", "version": "3.11.7"}
    notebook["metadata"]["widgets"] = {"state": {}}
    for count, cell in enumerate(notebook["cells"], 1):
        cell["metadata"].update(trusted=True, editable=True, scrolled=False)
        if cell["cell_type"] == "code":
            output = nbformat.v4.new_output("stream", text=f"output {count}\n")
            cell.update(execution_count=count, outputs=[output])
    return notebook


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", [".md", ".ipynb"])
def test_saving_leaves_the_repository_as_it_was(server, name, suffix):
    path = f"notebooks/{name}{suffix}"
    server.save(path, server.open(path))
    assert server.changed() == []
    server.save(path, run(server.open(path)))
    assert server.changed() == []


def test_outputs_are_there_again_in_both_halves(server):
    name = f"notebooks/{NAMES[0]}"
    server.save(f"{name}.ipynb", run(server.open(f"{name}.ipynb")))
    for suffix in (".md", ".ipynb"):
        cells = server.open(name + suffix)["cells"]
        code = [(n, cell) for n, cell in enumerate(cells, 1) if cell["cell_type"] == "code"]
        assert all(cell["outputs"][0]["text"] == f"output {n}\n" for n, cell in code)
        assert all(cell["execution_count"] == n for n, cell in code)
        assert all(cell["metadata"]["trusted"] for _, cell in code)
    # an output of another source would be a lie
    source = server.root / f"{name}.md"
    source.write_text(source.read_text().replace('profile = "book"', 'profile = "smoke"'))
    code = [c for c in server.open(f"{name}.md")["cells"] if c["cell_type"] == "code"]
    assert code[0]["source"].endswith('\nprofile = "smoke"')
    assert code[0]["outputs"] == [] and code[1]["outputs"]


def test_an_edit_is_one_line_in_each_half(server):
    name = f"notebooks/{NAMES[0]}"
    notebook = server.open(f"{name}.ipynb")
    first = notebook["cells"][1]
    assert first["source"].endswith('\nprofile = "book"')
    first["source"] = changed = first["source"].replace('book"', 'smoke"')
    server.save(f"{name}.ipynb", notebook)
    lines = ['    "profile = \\"smoke\\""', 'profile = "smoke"']
    files = [f"{name}.ipynb", f"{name}.md"]
    assert [line.removeprefix("   ").removesuffix(",") for line in server.changed()] == [
        line.removeprefix("   ") for line in lines
    ] + files
    assert server.open(f"{name}.md")["cells"][1]["source"] == changed


def test_the_books_macros_are_in_the_page_and_nowhere_else(server):
    cell = server.open(f"notebooks/{NAMES[0]}.ipynb")["cells"][0]
    front, _, text = cell["source"].removeprefix("---\n").partition("---\n")
    assert text.lstrip().startswith("# Linear maps")
    macros = {line.split(":")[0].strip(" '\"") for line in front.splitlines()[2:]}
    assert {r"\E", r"\Cov", r"\T", r"\N", r"\Var"} <= macros


def test_a_notebook_executed_in_place_opens(server):
    """Its .ipynb is newer than the source and full of outputs; the source is what counts."""
    path = server.root / f"notebooks/{NAMES[0]}.ipynb"
    path.write_text(json.dumps(run(json.loads(path.read_text()))))
    late = time.time() + 3600
    os.utime(path, (late, late))
    notebook = server.open(f"notebooks/{NAMES[0]}.ipynb")
    server.save(f"notebooks/{NAMES[0]}.ipynb", notebook)
    assert server.changed() == []


def test_an_edit_of_the_ipynb_alone_is_not_overwritten(server):
    path = server.root / f"notebooks/{NAMES[0]}.ipynb"
    path.write_text(path.read_text().replace("# Linear maps", "# Maps that are linear"))
    for suffix in (".md", ".ipynb"):
        code, message = refusal(server.open, f"notebooks/{NAMES[0]}{suffix}")
        assert code == 409 and "make pairs" in message


def test_a_new_notebook_becomes_a_pair(server):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# New")])
    server.save("notebooks/98_new.ipynb", notebook)
    assert server.changed() == ["notebooks/98_new.ipynb", "notebooks/98_new.md"]
    assert server.open("notebooks/98_new.md")["cells"][0]["source"].endswith("# New")


def refusal(call, *arguments):
    """What the reader is told, and the status, when the server refuses."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        call(*arguments)
    return refused.value.code, json.load(refused.value)["message"]


def test_blank_lines_around_cells_do_not_put_a_chapter_out_of_step(server):
    path = f"notebooks/{NAMES[0]}.ipynb"
    before = [cell["source"] for cell in server.open(path)["cells"]]
    notebook = run(server.open(path))
    for cell in notebook["cells"]:
        cell["source"] += "  \n\n"
    notebook["cells"].append(nbformat.v4.new_markdown_cell(""))
    server.save(path, notebook)
    assert server.changed() == []
    cells = server.open(path)["cells"]
    assert [cell["source"] for cell in cells] == before
    assert all(cell["outputs"] for cell in cells if cell["cell_type"] == "code")


def test_a_cell_that_myst_cannot_hold_is_not_saved(server):
    path = f"notebooks/{NAMES[0]}.ipynb"
    notebook = server.open(path)
    notebook["cells"].append(nbformat.v4.new_markdown_cell("One\n\n+++\n\nTwo"))
    code, message = refusal(server.save, path, notebook)
    assert code == 400 and f"cell {len(notebook['cells'])} (markdown, 'One')" in message
    assert server.changed() == []


@pytest.mark.parametrize("half", [".md", ".ipynb"])
def test_a_half_that_is_no_notebook_is_named(server, half):
    path = server.root / f"notebooks/{NAMES[0]}{half}"
    path.write_text(f"<<<<<<< HEAD\n=======\n{path.read_text()}>>>>>>> other\n")
    for suffix in (".md", ".ipynb"):
        code, message = refusal(server.open, f"notebooks/{NAMES[0]}{suffix}")
        assert code == 409 and f"{path.name} cannot be read" in message and "TAKE=" in message
    assert server.ask(f"notebooks/{path.name}?type=file&content=1")["content"]  # to repair it
