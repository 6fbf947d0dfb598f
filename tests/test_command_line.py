"""``python -m cdelta``: each command by a call of its main, one in a process of its own."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import cdelta
from cdelta import __main__ as command_line
from tests import ROOT

MODEL = """
import jax.numpy as jnp

def pair(x):
    return {"a": x[0], "b": 0.6 * x[0] + 0.8 * x[1]}

def jumping(x):
    return jnp.sign(x)

def velocity(t, x):
    return x

def numbered(x):
    print("a word of the model's own")
    return {"1": x[0], "0": 0.6 * x[0] + 0.8 * x[1], "c": x[1]}

def broken(x):
    return x @ nothing

def matrix(x):
    return x @ jnp.ones((2, 2))

class inner:
    features = staticmethod(lambda x: x[:1] + x[1:])
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    (tmp_path / "a_model_of_mine.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    yield "a_model_of_mine"
    sys.modules.pop("a_model_of_mine", None)


def run(*arguments):
    return command_line.main([str(argument) for argument in arguments])


def test_a_report_as_text_as_json_and_in_files(model, capsys):
    asked = ("report", f"{model}:pair", "--shape", 2, "--budget", 64, "--held", "b")
    more = ("--graph", '{"b": ["a"]}', "--seed", 3)
    assert run(*asked, *more, "--save", "r.npz", "--html", "r.html") == 0
    said = capsys.readouterr().out
    by_hand = cdelta.report(
        command_line.found(f"{model}:pair"),
        jax.random.key(3),
        2,
        budget=64,
        held="b",
        graph={"b": ["a"]},
    )
    assert said == f"{by_hand}\n"
    assert str(cdelta.Report.load("r.npz")) == str(by_hand)
    with open("r.html", encoding="utf-8") as file:
        assert by_hand._repr_html_() in file.read()
    assert run("report", f"{model}.py:pair", *asked[2:], *more, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [finding["text"] for finding in told["findings"]] == by_hand.findings
    np.testing.assert_allclose(told["moments"]["wiggle"]["matrix"], [[1, 0.6], [0.6, 1]])


def test_a_velocity_with_features_named_and_held_by_number(model, capsys):
    asked = ("report", f"{model}:velocity", "--features", f"{model}:inner.features", "--shape", 2)
    assert run(*asked, "--names", "sum", "--budget", 16) == 0
    assert "sum has mean order 1" in capsys.readouterr().out
    assert run("report", f"{model}:pair", "--shape", 2, "--budget", 16, "--held", 1) == 0
    assert command_line._features(["1", "b"], None) == [1, "b"]
    assert command_line._features(["1", "b"], ["1", "b"]) == ["1", "b"]
    assert command_line._features({"1": ["0", 2]}, ("1",)) == {"1": [0, 2]}


def test_warnings_are_no_failure(model, capsys):
    assert run("report", f"{model}:jumping", "--shape", 2, "--budget", 64) == 0
    assert capsys.readouterr().out.startswith("warning: ")


@pytest.mark.parametrize(
    ("f", "message"),
    [
        ("a_model_of_mine:nothing", "a_model_of_mine has no nothing"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("no_such_file.py:f", "there is no file no_such_file.py"),
        ("a_model_of_mine:MODEL", "a_model_of_mine has no MODEL"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(model, capsys, f, message, unchecked):
    assert run("report", f, "--shape", 2, "--budget", 16) == 1
    said = capsys.readouterr()
    assert said.out == "" and message in said.err and said.err.startswith("cdelta report: ")
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("report",),
        ("report", "a:b"),
        ("report", "a:b", "--shape", "x"),
        ("report", "a:b", "--shape", "2", "--graph", "{"),
        ("report", "a:b", "--shape", "2", "--budget", "9", "--seconds", "1"),
        ("report", "a:b", "--shape", "0"),
        ("report", "a:b", "--shape", "2", "--budget", "7"),
        ("report", "a:b", "--shape", "2", "--seconds", "nan"),
        ("report", "a:b", "--shape", "2", "--seed", "99999999999999999999"),
        ("report", "a:b", "--shape", "2", "--seed", "-1"),
        ("report", "a:b", "--shape", "2", "--graph", "null"),
        ("report", "a:b", "--shape", "2", "--graph", '{"b": ["a"], "b": []}'),
    ],
)
def test_a_call_that_makes_no_sense_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2 and "usage: python -m cdelta" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("f", "more", "message"),
    [
        ("pair", (), "'pair' must be module:name or file.py:name"),
        (".pair:f", (), "'.pair' is no module's name"),
        ("math:pi", (), "f must be a map from a latent to features"),
        ("a_model_of_mine:pair", ("--names", "a"), "names must be one for each of the 2 features"),
        ("a_model_of_mine:pair", ("--held", "d"), "held must name one of the features 'a', 'b'"),
        ("a_model_of_mine:pair", ("--held", "2"), "held must be different indices in 0, …, 1"),
        ("a_model_of_mine:pair", ("--graph", '{"b": null}'), "graph['b'] must be a feature or sev"),
        ("a_model_of_mine:pair", ("--graph", "[[0, NaN], [0, 0]]"), "got NaN (or none) at [0, 1]"),
        (
            "a_model_of_mine:pair",
            ("--save", "r", "--html", "./r"),
            "--save and --html are one file",
        ),
    ],
)
def test_arguments_that_the_model_refuses_end_with_2_too(
    model, capsys, f, more, message, unchecked
):
    assert run("report", f, "--shape", 2, "--budget", 16, *more) == 2
    said = capsys.readouterr()
    assert said.out == "" and message in said.err and said.err.startswith("cdelta report: ")
    assert len(said.err.splitlines()) == 1


def test_a_number_is_a_name_where_a_feature_is_called_so(model, capsys):
    """What f returns is known only once it has been looked at."""
    asked = ("report", f"{model}:numbered", "--shape", 2, "--budget", 16, "--json")
    assert run(*asked, "--held", 1, "--graph", '{"c": ["1"]}') == 0
    said = capsys.readouterr()
    told = json.loads(said.out)  # nothing but the report is on the screen
    assert "a word of the model's own" in said.err
    assert list(told["moments"])[-2:] == ["held", "do(1)"]
    for name in ("held", "do(1)"):  # x[0] does not move
        np.testing.assert_allclose(told["moments"][name]["matrix"][0], 0, atol=1e-6)
        np.testing.assert_allclose(told["moments"][name]["matrix"][1][1], 0.64, rtol=1e-5)
    unnamed = ("report", f"{model}:velocity", "--shape", 2, "--budget", 16, "--json")
    assert run(*unnamed, "--graph", '{"1": [0]}') == 0
    assert "do(0)" in json.loads(capsys.readouterr().out)["moments"]


def test_nothing_is_computed_for_a_file_that_cannot_be_written(model, capsys, monkeypatch):
    monkeypatch.setattr(cdelta.reporting, "_made", lambda asked: pytest.fail("computed"))
    for more in (("--save", "."), ("--html", "."), ("--save", f"{model}.py/r")):
        assert run("report", f"{model}:pair", "--shape", 2, *more) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_cannot_be_written_in_the_end_loses_nothing_else(model, capsys, monkeypatch):
    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cdelta.Report, "save", full)
    asked = ("report", f"{model}:pair", "--shape", 2, "--budget", 16)
    assert run(*asked, "--save", "r.npz", "--html", "new/r.html") == 1
    said = capsys.readouterr()
    assert "a has mean order 1" in said.out and said.err.startswith(
        "cdelta report: r.npz could not"
    )
    with open("new/r.html", encoding="utf-8") as file:
        assert "<h3>Report: 16 latents" in file.read()


def test_the_screen_may_know_few_letters_or_be_gone(model):
    """In processes of their own: ASCII alone, and a full disk behind the screen."""
    command = [sys.executable, "-m", "cdelta", "report", f"{model}:pair", "--shape", "2"]
    command += ["--budget", "16", "--save", "r.npz"]
    plain = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=plain)
    assert done.returncode == 0 and b"\\xb1" in done.stdout
    os.unlink("r.npz")
    if not os.path.exists("/dev/full"):
        pytest.skip("a device of Linux")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "could not be printed" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert cdelta.Report.load("r.npz").samples == 16


def test_a_file_finds_its_neighbours_and_is_run_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a_neighbour_of_mine.py").write_text("SCALE = 2.0\n")
    (tmp_path / "sub" / "a_file_of_mine.py").write_text(
        "import sys\nfrom a_neighbour_of_mine import SCALE\nsys.runs += 1\n"
        "velocity = lambda t, x: SCALE * x\nfeatures = lambda x: x[:1]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "runs", 0, raising=False)
    where = "sub/a_file_of_mine.py"
    asked = ("report", f"{where}:velocity", "--features", f"{where}:features", "--shape", 2)
    try:
        assert run(*asked, "--budget", 16) == 0 and sys.runs == 1
        assert "feature 0 has mean order 1" in capsys.readouterr().out
    finally:
        for name in ("a_neighbour_of_mine", "a_file_of_mine"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("f = (\n", ["SyntaxError: '(' was never closed", "own.py, line 1: f = ("]),
        (
            "\nf = unknown\n",
            ["NameError: name 'unknown'", "own.py, line 2, in <module>: f = unknown"],
        ),
        ("raise RuntimeError('no weights')", ["RuntimeError: no weights", "line 1, in <module>"]),
        ("import sys; sys.exit()", ["own.py ended Python while it was imported", "line 1"]),
        ("import no_library_of_mine", ["No module named 'no_library_of_mine'", "line 1"]),
        (
            "import cdelta\nf = cdelta.Flow(lambda t, x: x, 'none')",
            ["ValueError: solver must be one of", "line 2, in <module>: f = cdelta.Flow("],
        ),
    ],
)
def test_errors_of_the_users_file_are_shown_there(tmp_path, monkeypatch, capsys, source, lines):
    (tmp_path / "own.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    assert run("report", "own.py:f", "--shape", 2) == 1
    assert "own" not in sys.modules
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and said[0].startswith("cdelta report: ") and lines[0] in said[0]
    assert lines[1] in said[1]


def test_errors_of_the_users_function_are_shown_there(model, capsys):
    assert run("report", f"{model}:broken", "--shape", 2) == 1
    said = capsys.readouterr().err
    assert "NameError: name 'nothing' is not defined" in said and "in broken: return x @" in said
    assert run("report", f"{model}:matrix", "--shape", 3) == 1
    said = capsys.readouterr().err
    assert "in matrix: return x @ jnp.ones((2, 2))" in said
    assert "while f was looked at with one latent of shape (3,)" in said
    assert "site-packages" not in said and len(said.splitlines()) == 3


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        run("--help")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("report", "scorecard", "chapter", "train", "info"))


def test_info_in_a_process_of_its_own():
    command = [sys.executable, "-m", "cdelta", "info", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    told = json.loads(done.stdout)
    assert told["versions"]["cdelta"] == cdelta.__version__ and told["versions"]["jax"]
    assert told["devices"] and told["checkout"] == str(ROOT)


def test_chapters_and_trainings_are_their_own_programs(monkeypatch):
    calls = []

    def ran(command):
        calls.append(command[1:])
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(command_line.subprocess, "run", ran)
    assert run("chapter", "07", "--profile", "smoke") == 3
    assert run("train", "fives", "--folder", "x") == 3
    script = str(ROOT / "book" / "execute.py")
    assert calls[0] == [script, "07", "--profile", "smoke"]
    assert calls[1] == ["-m", "cdelta.pretrained", "fives", "--folder", "x"]


def test_the_scorecard_counts_verdicts_and_fails_where_a_claim_is_missed(tmp_path, capsys):
    record = {"claim": "T1", "quantity": "q", "value": 0.0, "bound": 1.0, "stderr": None}
    told = {"profile": "smoke", "ledger": [record | {"passed": True}]}
    path = tmp_path / "01_linear_maps.json"
    path.write_text(json.dumps(told))
    assert run("scorecard", "--executed", tmp_path, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verdicts"]["T1"] == "reproduced" and said["verdicts"]["T2"] == "open"
    assert said["counts"]["reproduced"] == 1
    told["ledger"] = [record | {"passed": False}]
    path.write_text(json.dumps(told))
    assert run("scorecard", "--executed", tmp_path) == 1
    assert "T1   missed" in capsys.readouterr().out
    assert run("scorecard", "--executed", tmp_path / "nothing") == 1
    assert "which is no folder" in capsys.readouterr().err


def test_without_a_checkout_the_book_is_asked_for(tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "cdelta", tmp_path / "cdelta", ignore=shutil.ignore_patterns("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "ROOT", tmp_path)
    assert run("chapter", "01") == 1
    assert "a checkout of the book is needed" in capsys.readouterr().err
