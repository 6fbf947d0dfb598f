"""The executor on small notebooks of its own: what it runs, what it keeps, and what it leaves
behind when it fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import execute
import nbformat
import pytest
import threads

from tests import ROOT

SCRIPT = ROOT / "book" / "execute.py"

PARAMETERS = '---\ntags: [parameters]\n---\nprofile = "book"'
GOOD = [PARAMETERS, "size = {'smoke': 1, 'book': 2}[profile]", "print('size', size)"]


def write(root, name, cells):
    text = "---\njupytext: {text_representation: {extension: .md, format_name: myst}}\n"
    text += (
        "kernelspec: {display_name: Python 3, language: python, name: python3}\n---\n\n# A title\n"
    )
    text += "".join(f"\n```{{code-cell}} ipython3\n{cell}\n```\n" for cell in cells)
    path = root / "notebooks" / f"{name}.md"
    path.write_text(text)
    return path


def make_root(folder, **notebooks):
    """A repository with these notebooks, and a package that holds the real ledger only."""
    for name in ("notebooks", "book", "cdelta"):
        (folder / name).mkdir()
    (folder / "cdelta" / "__init__.py").write_text("")
    for name in ("ledger.py", "_extras.py"):
        shutil.copy(ROOT / "cdelta" / name, folder / "cdelta")
    (folder / "requirements.txt").write_text("jax==1\n")
    (folder / "book" / "claims.yml").write_text("T1: {statement: one}\n")
    files = "".join(f"  - file: book/executed/{name}\n" for name in notebooks)
    (folder / "_toc.yml").write_text(f"format: jb-book\nroot: book/index\nchapters:\n{files}")
    for name, cells in notebooks.items():
        write(folder, name, cells)
    return folder


def run(root, *options, cwd=None, **env):
    command = [sys.executable, str(SCRIPT), "--root", str(root), *options]
    env = {**os.environ, **env}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=cwd, env=env)


def states(result):
    """The state in each notebook's progress line."""
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("[")]
    return {words[1]: words[2] for words in lines}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    check = "from cdelta import ledger; ledger.check('T1', 'an error', 0.25, 1, stderr=0.1)"
    folded = "---\ntags: [hide-input]\n---\n# What it holds \nnothing = None  # or so"
    root = make_root(tmp_path_factory.mktemp("good"), a=[*GOOD, check, folded], b=GOOD)
    result = run(root, "--profile", "smoke", "-j", "2")
    assert result.returncode == 0, result.stderr
    return root, result


def test_progress_names_each_notebook(executed):
    _, result = executed
    assert states(result) == {"a": "executed", "b": "executed"}
    assert "[1/2]" in result.stdout and "[2/2]" in result.stdout


def test_copy_shows_the_profile_and_no_trace_of_papermill(executed):
    root, _ = executed
    notebook = nbformat.read(root / "book/executed/a.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = {tag: cell for cell in notebook.cells for tag in cell.metadata.get("tags", [])}
    assert cells["parameters"].source == 'profile = "smoke"'
    assert "remove-cell" in cells["injected-parameters"].metadata["tags"]
    assert "papermill" not in json.dumps(
        [notebook.metadata, *(cell.metadata for cell in notebook.cells)]
    )
    assert "size 1" in "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


def test_a_fold_is_called_what_its_first_line_says(executed):
    root, _ = executed
    notebook = nbformat.read(root / "book/executed/a.ipynb", as_version=4)
    said = [cell.metadata.get("mystnb") for cell in notebook.cells if cell.cell_type == "code"]
    named = "What it holds"
    assert said[-1] == {"code_prompt_show": named, "code_prompt_hide": named}
    assert set(map(bool, said[:-1])) == {False}  # no fold


def test_what_is_not_folded_has_no_name_and_neither_has_what_says_none():
    def titled(source, *tags):
        return execute.title(nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)}))

    assert titled("# a title\nx = 1", "hide-input") == "a title"
    assert titled("# a title\nx = 1", "remove-output") is None
    assert titled("x = 1  # a remark", "hide-input") is titled("#\nx = 1", "hide-input") is None


def test_record_says_how(executed):
    root, _ = executed
    run_ = json.loads((root / "book/executed/a.json").read_text())
    assert run_["profile"] == "smoke" and run_["versions"]["jax"]
    assert min(run_["seconds"], run_["cpu_seconds"]) > 0
    assert run_["ledger"] == [
        {
            "claim": "T1",
            "quantity": "an error",
            "value": 0.25,
            "bound": 1.0,
            "stderr": 0.1,
            "passed": True,
        }
    ]
    assert sorted(path.name for path in (root / "book/executed").iterdir()) == [
        "a.ipynb",
        "a.json",
        "b.ipynb",
        "b.json",
    ]


def test_only_what_changed_is_executed(executed):
    root, _ = executed
    assert states(run(root, "--profile", "smoke")) == {"a": "cached", "b": "cached"}
    write(root, "b", [*GOOD, "print('more')"])
    assert states(run(root, "--profile", "smoke")) == {"a": "cached", "b": "executed"}
    first = (root / "book/executed/b.ipynb").read_bytes()
    (root / "cdelta" / "new.py").write_text("x = 1\n")
    assert states(run(root, "b", "--profile", "smoke")) == {"b": "executed"}
    # the same source and values, the same file
    assert (root / "book/executed/b.ipynb").read_bytes() == first


def test_fingerprint_covers_all_that_a_result_depends_on(tmp_path, monkeypatch):
    root = make_root(tmp_path, a=GOOD)
    source = root / "notebooks/a.md"
    mark = execute.fingerprint(source, "book", root)
    assert execute.fingerprint(source, "book", root) == mark
    (root / "cdelta/__pycache__").mkdir()
    (root / "cdelta/__pycache__/x.pyc").write_bytes(b"0")
    assert execute.fingerprint(source, "book", root) == mark
    marks = {mark, execute.fingerprint(source, "smoke", root)}
    for path in (
        "cdelta/__init__.py",
        "cdelta/weights.safetensors",
        "requirements.txt",
        "notebooks/a.md",
    ):
        with open(root / path, "a") as file:
            file.write("\n# changed\n")
        marks.add(execute.fingerprint(source, "book", root))
    (root / "cdelta/weights.safetensors").rename(root / "cdelta/other.safetensors")
    marks.add(execute.fingerprint(source, "book", root))
    monkeypatch.setattr(execute, "STARTUP", tmp_path / "startup.py")
    (tmp_path / "startup.py").write_text("another")
    marks.add(execute.fingerprint(source, "book", root))
    assert len(marks) == 8


def test_half_a_result_does_not_count(tmp_path):
    target = tmp_path / "a.ipynb"
    assert execute.finished(target, "mark") is None
    target.write_text("whole")
    record = {"fingerprint": "mark", "notebook_sha256": "0"}
    target.with_suffix(".json").write_text(json.dumps(record))
    assert execute.finished(target, "mark") is None  # the record of another file
    target.with_suffix(".json").write_text('{"fingerprint": "ma')
    assert execute.finished(target, "mark") is None


def test_failure_is_named_and_leaves_nothing(tmp_path):
    root = make_root(tmp_path, bad=GOOD, good=GOOD)
    assert run(root, "bad").returncode == 0
    write(root, "bad", [*GOOD, "value = 3\nvalue / 0  # the culprit"])
    result = run(root, "-j", "1")
    assert result.returncode == 1
    assert states(result) == {"bad": "FAILED", "good": "executed"}
    assert "bad.md: cell 4 raised ZeroDivisionError: division by zero" in result.stderr
    assert "value / 0  # the culprit" in result.stderr
    assert "1 of 2 notebooks failed: bad" in result.stderr
    assert sorted(path.name for path in (root / "book/executed").iterdir()) == [
        "good.ipynb",
        "good.json",
    ]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            "ledger.check('T1', 'an error', 2.0, 1)",
            "ClaimError: MISSED T1 · an error: 2, but the bound is ≤ 1",
        ),
        (
            "ledger.check('T1', 'an error', float('nan'), 1)",
            "ClaimError: MISSED T1 · an error: nan",
        ),
        (
            "ledger.check('T99', 'an error', 0, 1)",
            "ValueError: claim_id must be one of T1, got 'T99'",
        ),
    ],
)
def test_missed_bound_or_unknown_claim_fails(tmp_path, cell, message):
    root = make_root(tmp_path, a=[PARAMETERS, f"from cdelta import ledger\n{cell}"])
    result = run(root)
    assert result.returncode == 1
    assert message in result.stderr
    assert list((root / "book/executed").iterdir()) == []


def test_notebook_without_parameters_is_refused(tmp_path):
    root = make_root(tmp_path, a=["print(1)"])
    result = run(root)
    assert result.returncode == 1
    assert "a.md: no cell is tagged 'parameters'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no such notebook: nowhere; there are 01_a, 02_b, 02_c, 10_d"),
        (["3"], "no such notebook: 3; there are 01_a"),
        (["02"], "02 could be any of 02_b, 02_c"),
        (["-j", "0"], "--jobs must be at least 1, got 0"),
        (["--profile", "bok"], "choose from smoke, book, paper"),
    ],
)
def test_bad_arguments_are_answered_by_what_there_is(tmp_path, capsys, arguments, message):
    root = make_root(tmp_path, **{name: GOOD for name in ("01_a", "02_b", "02_c", "10_d")})
    with pytest.raises(SystemExit, match="2"):
        execute.main(["--root", str(root), *arguments])
    assert message in capsys.readouterr().err.replace("'", "")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("01", "01_a"),
        ("1", "01_a"),
        ("10", "10_d"),
        ("02_c", "02_c"),
        ("02_c.md", "02_c"),
        ("notebooks/10_d.ipynb", "10_d"),
        ("draft", "draft_long"),
        ("12", "12"),
    ],
)
def test_a_chapter_is_found_by_its_name_its_file_its_beginning_or_its_number(name, stem):
    stems = ["01_a", "02_b", "02_c", "10_d", "12", "12_e", "draft_long"]
    sources = [Path("notebooks", f"{stem}.md") for stem in stems]
    assert execute.find([name], sources) == [Path("notebooks", f"{stem}.md")]
    assert execute.find([name, "02_b"], sources)[-1 if stem < "02_b" else 0].stem == "02_b"


def test_copies_of_vanished_notebooks_go(tmp_path):
    root = make_root(tmp_path, a=GOOD)
    folder = root / "book/executed"
    folder.mkdir()
    for name in ("old.ipynb", "old.json"):
        (folder / name).write_text("{}")
    assert run(root, "a").returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == ["a.ipynb", "a.json"]


@pytest.mark.parametrize("asked", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_whatever_ends_the_parent_ends_the_kernels_and_leaves_nothing(tmp_path, asked):
    """Ctrl-C, a polite end, a lost terminal, a kill."""
    wait = (
        "import os, pathlib, time\npathlib.Path('pid').write_text(f'{os.getpid()} {os.getppid()}')"
    )
    # the last of new ones is the first to run
    root = make_root(tmp_path, a=GOOD, b=[PARAMETERS, f"{wait}\ntime.sleep(120)"])
    command = [sys.executable, str(SCRIPT), "--root", str(root), "-j", "1"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # under nohup these tests, and what they start, would ignore a lost terminal
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    pid = root / "pid"
    deadline = time.monotonic() + 300
    while not (pid.exists() and " " in pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    others = [int(number) for number in pid.read_text().split()]  # the kernel and the child
    process.send_signal(getattr(signal, asked))
    _, errors = process.communicate(timeout=300)
    assert "Traceback" not in errors
    if asked in ("SIGINT", "SIGTERM"):
        assert process.returncode == 130, errors
    else:
        assert process.returncode == -getattr(signal, asked)
    for other in others:
        with pytest.raises(ProcessLookupError):
            for _ in range(1000):
                os.kill(other, 0)
                time.sleep(0.1)
    assert list((root / "book/executed").iterdir()) == []


def test_only_smoke_trades_speed_for_compilation_and_the_users_flags_stand(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    assert execute.environment(ROOT, "smoke")["XLA_FLAGS"] == execute.QUICK
    assert "XLA_FLAGS" not in execute.environment(ROOT, "book")
    monkeypatch.setenv("XLA_FLAGS", "")
    assert execute.environment(ROOT, "smoke")["XLA_FLAGS"] == ""


SOLVES = """
import os
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import jax, jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
solve = jax.vmap(lambda a, b: solve_triangular(a, b, lower=True))
a, b = jnp.broadcast_to(jnp.eye(2), (300_000, 2, 2)), jnp.ones((300_000, 2))
four_at_once = jax.jit(lambda a, b: [solve(a, b + i) for i in range(4)])
for _ in range(20):
    solved = four_at_once(a, b)
print([float(x.sum()) for x in solved])
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be taken away here")
def test_four_large_solves_at_once_end_on_two_cores(monkeypatch):
    """Without ``THREADS`` two of them wait for good, each for the other's thread."""
    for name in threads.THREADS:
        monkeypatch.delenv(name)
    environment = execute.environment(ROOT, "smoke")
    done = subprocess.run(
        [sys.executable, "-c", SOLVES], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.stdout == f"{[600_000.0 * i for i in range(1, 5)]}\n", done.stderr


def test_threads_are_those_of_the_book_everywhere_and_the_users_stand(monkeypatch):
    for name, value in threads.THREADS.items():
        assert os.environ[name] == value  # by tests/conftest.py
        monkeypatch.delenv(name)
        assert execute.environment(ROOT, "book")[name] == value
        monkeypatch.setenv(name, "3")
        assert execute.environment(ROOT, "book")[name] == "3"


def test_a_persons_settings_do_not_get_into_the_book(tmp_path):
    """Settings that show values of statements, run code at the start, and draw in other colours."""
    home = tmp_path / "home"
    ipython, startup, rc = (
        home / ".ipython/profile_default",
        home / "start.py",
        home / "matplotlibrc",
    )
    (ipython / "startup").mkdir(parents=True)
    (ipython / "ipython_config.py").write_text(
        "c.InteractiveShell.ast_node_interactivity = 'all'\n"
        "c.InteractiveShellApp.exec_lines = ['mine = 1']\n"
    )
    (ipython / "startup/00.py").write_text("mine = 2\n")
    startup.write_text("mine = 3\n")
    rc.write_text("figure.dpi: 31\nbackend: pdf\n")
    for folder in (home / ".config/matplotlib", home / ".matplotlib"):
        folder.mkdir(parents=True)
        (folder / "matplotlibrc").write_text(rc.read_text())
    (home / ".jupyter").mkdir()
    for name in ("jupyter_config.py", "jupyter_client_config.py"):
        (home / ".jupyter" / name).write_text("c.Session.key = b'mine'\n")
    look = "import matplotlib\nprint(matplotlib.rcParams['figure.dpi'])\n1 + 1\n"
    look += "print('mine' in globals())"
    backend = "print(matplotlib.get_backend())"
    root = make_root(tmp_path, a=[PARAMETERS, look, backend])
    env = {"HOME": str(home), "PYTHONSTARTUP": str(startup), "MATPLOTLIBRC": str(rc)}
    env |= {"MPLBACKEND": "pdf", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for name, place in {"IPYTHONDIR": ".ipython", "XDG_CONFIG_HOME": ".config"}.items():
        env[name] = str(home / place)
    env["JUPYTER_CONFIG_DIR"] = str(home / ".jupyter")
    result = run(root, **env)
    assert result.returncode == 0, result.stderr
    notebook = nbformat.read(root / "book/executed/a.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output.output_type for output in outputs] == ["stream", "stream"]
    assert outputs[0].text == "100.0\nFalse\n"
    assert "inline" in outputs[1].text


def test_what_a_cell_writes_to_stderr_is_for_who_builds(tmp_path):
    """Of Python and of libraries below it; a page would show folders of this machine."""
    aside = "import os, warnings\nwarnings.warn('some day')\nos.write(2, b'from below')"
    root = make_root(tmp_path, a=[PARAMETERS, aside, "print('seen')"])
    result = run(root)
    assert result.returncode == 0, result.stderr
    assert "a.md: cell 3 said:" in result.stderr
    assert "some day" in result.stderr and "from below" in result.stderr
    notebook = nbformat.read(root / "book/executed/a.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output.output_type for output in outputs] == ["execute_result", "stream"]
    assert outputs[1].text == "seen\n"


@pytest.mark.parametrize("call", ["np.sqrt(np.float64(-1))", "module.root(-1.0)"])
def test_a_number_that_is_none_stops_the_build(tmp_path, call):
    """NumPy only warns; in the chapter itself or in the package."""
    root = make_root(
        tmp_path, a=[PARAMETERS, f"import numpy as np\nfrom cdelta import module\n{call}"]
    )
    (root / "cdelta/module.py").write_text(
        "import numpy as np\n\n\ndef root(x):\n    return np.sqrt(np.float64(x))\n"
    )
    result = run(root)
    assert result.returncode == 1 and "raised RuntimeWarning: invalid value" in result.stderr


def test_the_kernels_processor_time_and_xlas_compiling_are_counted(tmp_path):
    busy = "import time\nwhile time.process_time() < 2: pass"
    listen = (
        "import jax\nfrom jax import monitoring\ntold = []\n"
        "monitoring.register_event_duration_secs_listener(\n"
        "    lambda event, seconds, **_: told.append(seconds) if 'backend_compile' in event else 0)"
    )
    # a kernel that takes long to end is killed: nothing may be left to its end
    ends = "import atexit, os\natexit.register(os._exit, 0)\n"
    work = f"{ends}jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((3, 3)))\nprint(sum(told))"
    root = make_root(tmp_path, busy=[PARAMETERS, busy], compiles=[PARAMETERS, listen, work])
    cache = tmp_path / "cache"
    assert run(root, XDG_CACHE_HOME=str(cache)).returncode == 0
    record = {
        name: json.loads((root / f"book/executed/{name}.json").read_text())
        for name in ("busy", "compiles")
    }
    assert record["busy"]["cpu_seconds"] >= 2  # its own clock waited for them
    assert record["busy"]["compiling_seconds"] == 0
    said = nbformat.read(root / "book/executed/compiles.ipynb", as_version=4).cells[-1].outputs
    compiled = record["compiles"]["compiling_seconds"]
    assert compiled == pytest.approx(float(said[0].text), abs=0.006) and compiled > 0


def test_a_folder_of_temporary_files_with_a_long_name(tmp_path):
    root = make_root(tmp_path, a=GOOD)
    long = tmp_path / ("long" * 40)
    long.mkdir()
    result = run(root, TMPDIR=str(long))
    assert result.returncode == 0, result.stderr
    assert list(long.iterdir()) == []


def test_sockets_are_files_where_their_names_are_short_enough(monkeypatch, tmp_path):
    monkeypatch.setattr(execute.tempfile, "tempdir", "/tmp")
    assert execute.socket_place() == "/tmp"
    long = tmp_path / ("é" * 50)  # 100 bytes
    long.mkdir()
    monkeypatch.setattr(execute.tempfile, "tempdir", str(long))
    assert execute.socket_place() == "/tmp"
    monkeypatch.setattr(execute.os, "access", lambda *_: False)
    assert execute.socket_place() is None
    assert execute.sockets(None) == {}


def test_celeba_is_where_it_was_said_to_be_whoever_asks(monkeypatch, tmp_path):
    """A relative path starts where the command was given; nothing said is nothing said."""
    root = make_root(tmp_path, a=GOOD)
    source = root / "notebooks/a.md"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("CDELTA_CELEBA", raising=False)
    unset = execute.fingerprint(source, "book", root)
    for nothing in ("", " "):
        monkeypatch.setenv("CDELTA_CELEBA", nothing)
        assert "CDELTA_CELEBA" not in execute.environment(root, "book")
        assert execute.fingerprint(source, "book", root) == unset
    monkeypatch.setenv("CDELTA_CELEBA", str(tmp_path / "here/celeba"))
    absolute = execute.fingerprint(source, "book", root)
    assert absolute != unset
    monkeypatch.setenv("CDELTA_CELEBA", "celeba")
    assert execute.environment(root, "book")["CDELTA_CELEBA"] == str(tmp_path / "here/celeba")
    assert execute.fingerprint(source, "book", root) == absolute
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    monkeypatch.setenv("CDELTA_CELEBA", "~/celeba")
    assert execute.environment(root, "book")["CDELTA_CELEBA"] == str(tmp_path / "here/celeba")
