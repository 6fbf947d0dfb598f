"""`make serve`: the address that is printed is the one that answers."""

import subprocess
import sys
import urllib.request

import pytest
import serve

from tests import ROOT

SCRIPT = ROOT / "book" / "serve.py"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "index.html").write_text("the book")
    return tmp_path


def test_the_next_free_port_is_taken_and_said(folder):
    with serve.bind(folder, [0]) as first:
        taken = first.server_port
        with serve.bind(folder, range(taken, taken + 50)) as second:
            assert taken < second.server_port < taken + 50
        with pytest.raises(OSError, match="in use"):
            serve.bind(folder, [taken])


def test_the_address_answers_and_a_port_that_is_taken_is_said(folder):
    command = [sys.executable, str(SCRIPT), "--folder", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline().split()[0]
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert answer.read() == b"the book"
        port = address.rstrip("/").rpartition(":")[2]
        second = subprocess.run([*command, port], capture_output=True, text=True, timeout=60)
        assert second.returncode == 1
        assert f"cannot serve at port {port}" in second.stderr and "PORT=" in second.stderr
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_nothing_built(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["serve", "--folder", str(tmp_path)])
    assert serve.main() == 1
    assert capsys.readouterr().err == "nothing built yet: make book\n"
