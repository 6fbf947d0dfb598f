"""The files that faces are written to."""

import errno
import json
import os

import jax
import numpy as np
import pytest
from PIL import Image

from cdelta import _files
from cdelta.datasets import faces
from tests.datasets.faces.common import A


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_layout_is_celebas(celeba_folder):
    """Read with nothing but the standard library and Pillow."""
    root, key, n = celeba_folder
    assert sorted(path.name for path in (root / "img_align_celeba").iterdir()) == [
        f"{i:06d}.jpg" for i in range(1, n + 1)
    ]
    with Image.open(root / "img_align_celeba" / "000001.jpg") as image:
        assert image.size == (178, 218) and image.mode == "RGB" and image.format == "JPEG"
    lines = (root / "list_attr_celeba.txt").read_text().splitlines()
    names = lines[1].split()
    assert (
        lines[0] == str(n)
        and len(names) == 40
        and names == sorted(names, key=str.lower)
        and len(lines) == n + 2
    )
    attributes = np.asarray(
        faces.noises(key, n)[:, :A] @ np.asarray(faces.model().structural_map).T
    )
    for i, line in enumerate(lines[2:]):
        name, *values = line.split()
        assert name == f"{i + 1:06d}.jpg" and set(values) <= {"1", "-1"}
        found = dict(zip(names, map(int, values), strict=True))
        assert [found.pop(a) for a in faces.ATTRIBUTES] == np.where(
            attributes[i] > 0, 1, -1
        ).tolist()
        assert set(found.values()) == {-1}
    parts = [line.split() for line in (root / "list_eval_partition.txt").read_text().splitlines()]
    assert [name for name, _ in parts] == [f"{i:06d}.jpg" for i in range(1, n + 1)]
    assert [part for _, part in parts[:10]] == ["0"] * 8 + ["1", "2"]
    assert not list(root.rglob("*.part"))


def test_the_centre_of_a_file_is_the_face(celeba_folder):
    root, key, _ = celeba_folder
    with Image.open(root / "img_align_celeba" / "000002.jpg") as image:
        square = image.crop((0, 20, 178, 198)).resize((64, 64), Image.Resampling.BILINEAR)
    difference = np.asarray(square) / 127.5 - 1 - np.asarray(faces.sample(key, 2).image[1])
    assert np.sqrt((difference**2).mean()) < 0.04  # the antialiasing filter is wider than a pixel


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    key, written = jax.random.key(9), []
    whole = _files.whole

    def interrupted(path, mode="wb"):
        if path.suffix == ".jpg":
            written.append(path.name)
            if len(written) > 3:
                raise KeyboardInterrupt
        return whole(path, mode)

    monkeypatch.setattr(_files, "whole", interrupted)
    with pytest.raises(KeyboardInterrupt):
        faces.write_celeba(tmp_path / "a", 6, key, workers=1, progress=False)
    assert not (tmp_path / "a" / "list_attr_celeba.txt").exists()
    first = contents(tmp_path / "a" / "img_align_celeba")
    assert 0 < len(first) < 6 and all(name.endswith(".jpg") for name in first)

    written.clear()
    monkeypatch.setattr(
        _files, "whole", lambda path, mode="wb": written.append(path.name) or whole(path, mode)
    )
    faces.write_celeba(tmp_path / "a", 6, key, progress=False)
    assert not set(written) & set(first)  # nothing is written twice
    # the same as in one go; and a longer run leaves what is there
    faces.write_celeba(tmp_path / "b", 4, key, progress=False)
    faces.write_celeba(tmp_path / "b", 6, key, progress=False)
    for folder in ("", "img_align_celeba"):
        ours, theirs = (contents(tmp_path / name / folder) for name in "ab")
        assert ours == theirs


def test_a_full_disk_leaves_no_half_image(tmp_path, monkeypatch):
    save = Image.Image.save

    def fills(image, file, *args, **kwargs):
        save(image, file, *args, **kwargs)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fills)
    with pytest.raises(OSError, match="No space left"):
        faces.write_celeba(tmp_path / "a", 2, jax.random.key(0), progress=False)
    assert os.listdir(tmp_path / "a" / "img_align_celeba") == []
    assert sorted(os.listdir(tmp_path / "a")) == ["faces.json", "img_align_celeba"]


@pytest.mark.parametrize("content", ["", '{"faces of the key": [0', "[1, 2]", "{}"])
def test_a_damaged_note_is_not_taken_for_ones_own(tmp_path, content):
    key = jax.random.key(0)
    faces.write_celeba(tmp_path / "a", 1, key, progress=False)
    note = tmp_path / "a" / "faces.json"
    note.write_text(content)
    with pytest.raises(ValueError, match=r"faces\.json (is damaged|tells of others)"):
        faces.write_celeba(tmp_path / "a", 1, key, progress=False)
    assert note.read_text() == content


def test_folders_refused(celeba_folder, tmp_path):
    root, key, n = celeba_folder
    with pytest.raises(ValueError, match=r"faces.json tells of others"):
        faces.write_celeba(root, n, jax.random.key(123), progress=False)
    with pytest.raises(ValueError, match=r"faces.json tells of others"):
        faces.write_celeba(root, n, key, faces.model("independent"), progress=False)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="with other files in it"):
        faces.write_celeba(tmp_path, n, key, progress=False)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(ValueError, match="n must be a positive integer, got 0"):
        faces.write_celeba(tmp_path / "new", 0, key)
    assert not (tmp_path / "new").exists()
    assert (
        json.loads((root / "faces.json").read_text())["faces of the key"]
        == jax.random.key_data(key).tolist()
    )
