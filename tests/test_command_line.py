"""``python -m cdelta``: each command by a call of its main, one in a process of its own."""

import json
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
    assert command_line._numbers(["1", "b"], None) == [1, "b"]
    assert command_line._numbers(["1", "b"], ["1", "b"]) == ["1", "b"]


def test_warnings_are_no_failure(model, capsys):
    assert run("report", f"{model}:jumping", "--shape", 2, "--budget", 64) == 0
    assert capsys.readouterr().out.startswith("warning: ")


@pytest.mark.parametrize(
    ("f", "message"),
    [
        ("a_model_of_mine:nothing", "a_model_of_mine has no nothing"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("no_such_file.py:f", "there is no file no_such_file.py"),
        ("pair", "'pair' must be module:name or file.py:name"),
        ("a_model_of_mine:MODEL", "a_model_of_mine has no MODEL"),
        ("math:pi", "f must be a map from a latent to features"),
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
    ],
)
def test_a_call_that_makes_no_sense_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2 and "usage: python -m cdelta" in capsys.readouterr().err


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
