"""Downloads from a server on this machine: interrupted, stale, lied to, and two at once."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from cdelta.datasets import _download
from cdelta.datasets._download import fetch
from tests import ROOT

NAME = "images.gz"
BODY = np.random.default_rng(0).bytes(30_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
OTHER = np.random.default_rng(1).bytes(30_000)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def part(folder):
    return folder / f"{NAME}.part"


def test_it_is_fetched_once(serve, tmp_path):
    mirror, folder = serve({NAME: BODY}), tmp_path / "new"
    for _ in range(2):
        assert fetch(NAME, SHA256, folder, [mirror.url]).read_bytes() == BODY
    assert mirror.asked == [(NAME, None)] and names(folder) == [NAME]


def test_an_interrupted_download_goes_on_where_it_stopped(serve, tmp_path):
    broken = serve({NAME: BODY}, cut_after=20_000)
    with pytest.raises(OSError, match="no mirror delivered"):
        fetch(NAME, SHA256, tmp_path, [broken.url])
    kept = part(tmp_path).stat().st_size
    assert 0 < kept <= 20_000 and names(tmp_path) == [f"{NAME}.part"]
    good = serve({NAME: BODY})
    assert fetch(NAME, SHA256, tmp_path, [good.url]).read_bytes() == BODY
    assert good.asked == [(NAME, f"bytes={kept}-")]
    assert names(tmp_path) == [NAME]


def test_the_next_mirror_goes_on_where_the_first_was_cut(serve, tmp_path):
    broken, good = serve({NAME: BODY}, cut_after=20_000), serve({NAME: BODY})
    assert fetch(NAME, SHA256, tmp_path, [broken.url, good.url]).read_bytes() == BODY
    ((_, asked),) = good.asked
    assert asked.startswith("bytes=") and names(tmp_path) == [NAME]


@pytest.mark.parametrize(
    ("stale", "ranges", "asked"),
    [
        # of another file, or of another mirror's copy: it is resumed, and does not fit
        (OTHER[:9000], "kept", ["bytes=9000-", None]),
        # as long as the file or longer: the server has nothing to add (416)
        (OTHER, "kept", ["bytes=30000-", None]),
        (BODY + b"x", "kept", ["bytes=30001-", None]),
        # whole, when it was killed before the file could be renamed
        (BODY, "kept", ["bytes=30000-"]),
        # the server sends all of it
        (OTHER[:9000], "ignored", ["bytes=9000-"]),
        # the server sends another range
        (BODY[:9000], "wrong", ["bytes=9000-", None]),
    ],
)
def test_a_good_mirror_is_not_blamed_for_what_was_there_before(
    serve, tmp_path, stale, ranges, asked
):
    part(tmp_path).write_bytes(stale)
    mirror = serve({NAME: BODY}, ranges=ranges)
    assert fetch(NAME, SHA256, tmp_path, [mirror.url]).read_bytes() == BODY
    assert mirror.asked == [(NAME, each) for each in asked]
    assert names(tmp_path) == [NAME]


def test_the_next_mirror_is_tried(serve, tmp_path):
    missing, lying, good = serve({}), serve({NAME: b"not the file"}), serve({NAME: BODY})
    urls = [missing.url, lying.url, good.url]
    assert fetch(NAME, SHA256, tmp_path, urls).read_bytes() == BODY
    # what the liar sent is not gone on with
    assert [mirror.asked for mirror in (missing, lying, good)] == 3 * [[(NAME, None)]]


@pytest.mark.parametrize("left_over", [b"", b"x" * 50_000, BODY[:9000]])
def test_checksum_failure_is_said_and_nothing_is_kept(serve, tmp_path, left_over):
    if left_over:
        part(tmp_path).write_bytes(left_over)
    lying = serve({NAME: BODY[:-1] + b"?"})
    with pytest.raises(OSError, match=f"checksum failure.*{NAME}.*{SHA256}"):
        fetch(NAME, SHA256, tmp_path, [lying.url])
    assert names(tmp_path) == []
    assert lying.asked[-1] == (NAME, None), "blamed on bytes that were there before"


def test_what_every_mirror_answered_is_said(serve, tmp_path):
    missing, lying = serve({}), serve({NAME: b"?"})
    with pytest.raises(OSError, match=f"(?s){missing.url}: .*404.*{lying.url}: checksum failure"):
        fetch(NAME, SHA256, tmp_path, [missing.url, lying.url])
    with pytest.raises(OSError, match="no mirror was given"):
        fetch(NAME, SHA256, tmp_path, [])
    assert names(tmp_path) == []


def test_a_damaged_file_is_fetched_again(serve, tmp_path):
    (tmp_path / NAME).write_bytes(b"damaged")
    assert fetch(NAME, SHA256, tmp_path, [serve({NAME: BODY}).url]).read_bytes() == BODY


def test_two_at_once_fetch_it_once(serve, tmp_path):
    mirror = serve({NAME: BODY}, stall_after=10_000)
    found = []

    def run():
        found.append(fetch(NAME, SHA256, tmp_path, [mirror.url]).read_bytes())

    threads = [threading.Thread(target=run) for _ in range(2)]
    threads[0].start()
    assert mirror.stalled.wait(60)
    threads[1].start()
    threads[1].join(0.5)  # long enough to ask the server, if it did not wait
    mirror.released.set()
    for thread in threads:
        thread.join(60)
    assert found == [BODY, BODY]
    assert mirror.asked == [(NAME, None)] and names(tmp_path) == [NAME]


def test_a_process_that_is_killed_holds_nothing_and_is_gone_on_with(serve, tmp_path):
    stalling = serve({NAME: BODY}, stall_after=20_000)
    # the module alone: its package would load JAX, and take seconds
    code = f"""
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
spec = spec_from_file_location("download", {_download.__file__!r})
download = module_from_spec(spec)
spec.loader.exec_module(download)
download.fetch({NAME!r}, {SHA256!r}, Path({str(tmp_path)!r}), [{stalling.url!r}])
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        assert stalling.stalled.wait(120)
        while not part(tmp_path).stat().st_size:  # until some of it is on the disk
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
    kept = part(tmp_path).stat().st_size
    good = serve({NAME: BODY})
    assert fetch(NAME, SHA256, tmp_path, [good.url]).read_bytes() == BODY
    assert good.asked == [(NAME, f"bytes={kept}-")] and names(tmp_path) == [NAME]
