"""The Makefile's own logic, in a folder whose name has a space: programs of an environment that is
not there are replaced by scripts that write down how they were called."""

import os
import shutil
import subprocess

import pytest

from tests import ROOT

SCRIPT = """#!/bin/sh
echo "$(basename "$PWD"): $(basename "$0") $*" >> "$CALLS"
case "$*" in *"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python;; esac
"""


@pytest.fixture
def make(tmp_path):
    """Runs make in such a folder; the result's ``calls`` are the programs that were called."""
    root = tmp_path / "a book"
    folders = "notebooks", "tests", "book/executed", "book/_static", "_build/smoke", ".venv/bin"
    for name in folders:
        (root / name).mkdir(parents=True)
    for name in ("Makefile", "_config.yml", "_toc.yml", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    (root / "book/page.md").write_text("a page\n")
    (root / "book/executed/old.ipynb").write_text("{}")
    (root / "_build/smoke/01_a.ipynb").write_text("{}")
    for name in ("python", "jupyter-book", "ruff", "oxlint", "uv"):
        (root / ".venv/bin" / name).write_text(SCRIPT)
        (root / ".venv/bin" / name).chmod(0o755)
    python = tmp_path / "python"
    python.write_text(SCRIPT)
    python.chmod(0o755)
    (root / ".venv/.made").write_text(str(root))
    calls = tmp_path / "calls"

    def run(*arguments):
        calls.write_text("")
        command = ["make", "-C", str(root), f"PYTHON={python}", *arguments]
        # not a part of the make that may be running these tests
        env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        env |= {"CALLS": str(calls)}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return calls.read_text().splitlines()

    run.root = root
    return run


def test_the_site_is_a_tree_of_its_own(make):
    calls = make("site")
    assert calls[0] == "a book: python book/execute.py --profile smoke --jobs 2 --out _build/smoke"
    assert calls[1] == "site: jupyter-book build . -W --keep-going -n -q"
    assert make("look") == ["a book: python -m pytest -q tests/notebooks/test_pages.py"]
    site = make.root / "_build/site"
    assert sorted(path.name for path in (site / "book").iterdir()) == [
        "_static",
        "executed",
        "page.md",
    ]
    assert [path.name for path in (site / "book/executed").iterdir()] == ["01_a.ipynb"]
    assert (site / "tests").is_dir()  # the page of tests behind the claims shows them


def test_options_reach_the_scripts(make):
    assert make("pairs", "NAMES=01 02", "TAKE=md") == [
        "a book: python book/pairs.py 01 02 --take md"
    ]
    assert make("pairs") == ["a book: python book/pairs.py"]
    assert make("mutants", "NAMES=flow causal", "SAMPLE=8") == [
        "a book: python -m tests.mutants flow causal --sample 8"
    ]
    assert make("again")[1:] == ["a book: python -m tests.notebooks.again _build/smoke --jobs 2"]
    assert make("again", "SAMPLE=6")[1].endswith("_build/smoke --jobs 2 --sample 6")
    assert make("serve", "PORT=8123") == ["a book: python book/serve.py 8123"]
    assert make("lab") == ["a book: python book/lab.py"]


def test_pytorch_joins_what_is_locked_and_its_tests_run(make):
    install, tests = make("torch")
    assert "pip install" in install and " -c requirements.txt torch==" in install
    assert tests == "a book: python -m pytest -q tests/test_torch.py"
    script = (ROOT / ".ci/run").read_text("utf-8").splitlines()
    assert script[-2:] == ["make test", "exec make torch"]


def test_dowhy_has_an_environment_of_its_own_and_its_test_runs(make):
    peers = make.root / "build/peers/bin"
    peers.mkdir(parents=True)
    shutil.copy(make.root / ".venv/bin/python", peers)
    environment, install, tests = make("peers")
    assert environment == "a book: python -m venv build/peers"
    assert "pip install" in install and " -e . dowhy==" in install and "requirements" not in install
    assert tests == "a book: python -m pytest -q tests/causal/test_flows.py -k another_library"


def test_clean_finds_every_cache(make):
    for name in ("book/__pycache__", "notebooks/.ipynb_checkpoints", "cdelta"):
        (make.root / name).mkdir()
    make("clean")
    left = sorted(path.name for path in make.root.rglob("*") if path.is_dir())
    assert left == [".venv", "_static", "bin", "book", "cdelta", "notebooks", "tests"]


def venv_calls(calls):
    return [call for call in calls if "-m venv" in call]


def test_an_environment_that_is_whole_is_left_alone(make):
    style = ["ruff check .", "ruff format --check .", "oxlint --deny-warnings"]
    assert make("lint") == [f"a book: {command}" for command in style]
    os.utime(make.root / "requirements.txt", (2e9, 2e9))  # a new lock: installed into the same one
    calls = make("env")
    assert any("uv pip install" in call for call in calls) and not venv_calls(calls)


@pytest.mark.parametrize("fault", ["no stamp", "no pip", "no python", "moved"])
def test_an_environment_that_is_of_no_use_is_made_anew(make, fault):
    python, stamp = make.root / ".venv/bin/python", make.root / ".venv/.made"
    if fault == "no stamp":  # interrupted while it was made
        stamp.unlink()
    elif fault == "no pip":
        python.write_text("#!/bin/sh\nexit 1\n")
        os.utime(make.root / "requirements.txt", (2e9, 2e9))
    elif fault == "no python":
        python.unlink()
        os.utime(make.root / "requirements.txt", (2e9, 2e9))
    else:
        stamp.write_text("/somewhere else")
    assert venv_calls(make("env")) == ["a book: python -m venv --clear .venv"]
    assert stamp.read_text() == str(make.root)


def test_extras_join_the_locked_environment_each_time_they_are_asked_for(make):
    assert not [call for call in make("env") if "pip install" in call]
    for asked, joined in (("cuda", ".[cuda]"), ("cuda torch", ".[cuda,torch]")):
        *_, locked, own, last = make("env", f"EXTRAS={asked}")
        assert "-r requirements.txt" in locked and own.endswith("--no-deps -e .")
        assert last == (
            f"a book: uv pip install -q --python .venv/bin/python -c requirements.txt -e {joined}"
        )
    assert not [call for call in make("lint") if "pip install" in call]
