"""The atomic writer: what a reader sees at every moment, and after every way to fail."""

import os
import stat
from pathlib import Path

import pytest

from cdelta import _files


def test_bytes_and_text_arrive_as_given(tmp_path):
    _files.write(tmp_path / "new" / "a.bin", b"\x00\r\n\xff")
    _files.write(tmp_path / "b.txt", "σ\r\nend\n")
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"\x00\r\n\xff"
    assert (tmp_path / "b.txt").read_bytes() == "σ\r\nend\n".encode()


def test_until_the_end_the_old_file_is_there(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with _files.whole(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), _files.whole(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        _files.write(tmp_path / "a", b"content")
    assert os.listdir(tmp_path) == []


def test_two_writers_of_one_path_do_not_meet(tmp_path):
    path = tmp_path / "a"
    with _files.whole(path) as first:
        first.write(b"first")
        _files.write(path, b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a"]


def test_permissions_are_those_of_any_new_file_or_of_the_one_replaced(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    _files.write(tmp_path / "new", b"")
    assert _mode(tmp_path / "new") == _mode(tmp_path / "plain")
    os.chmod(tmp_path / "new", 0o640)
    _files.write(tmp_path / "new", b"again")
    assert _mode(tmp_path / "new") == 0o640


@pytest.mark.parametrize("name", ["n" * 250, "é" * 120, "." + "x" * 240])
def test_a_name_as_long_as_the_system_takes(tmp_path, name):
    """What lies beside it until the end has no longer one."""
    _files.probe(tmp_path / name)
    _files.write(tmp_path / name, b"content")
    assert (tmp_path / name).read_bytes() == b"content" and os.listdir(tmp_path) == [name]
    for fails in (_files.probe, lambda path: _files.write(path, b"")):
        with pytest.raises(OSError, match="too long"):
            fails(tmp_path / ("n" * 300))
    assert os.listdir(tmp_path) == [name]


def test_a_folder_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    with (
        pytest.raises(IsADirectoryError, match="this is a folder"),
        _files.whole(tmp_path / "there"),
    ):
        raise AssertionError("the block is not entered")
    assert os.listdir(tmp_path) == ["there"]


def test_a_probe_says_what_would_fail_and_leaves_nothing(tmp_path):
    _files.probe(tmp_path / "fine")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        _files.probe(tmp_path / "none" / "a")
    with pytest.raises(IsADirectoryError, match="folder"):
        _files.probe(tmp_path)
    assert os.listdir(tmp_path) == []


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
