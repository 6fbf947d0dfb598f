"""CelebA's layout, on rendered faces and with files broken on purpose: the code that reads CelebA,
unchanged."""

import importlib
import itertools
import re
import shutil
import sys
import threading
import time
import warnings

import numpy as np
import pytest
from PIL import Image

import cdelta
from cdelta.datasets import _layout, celeba, faces
from cdelta.training import Stream

module = importlib.import_module("cdelta.datasets.celeba")


@pytest.fixture
def copy(celeba_folder, tmp_path):
    """A folder that a test may break."""
    return shutil.copytree(celeba_folder[0], tmp_path / "root")


def triangle(size, target):
    """The antialiased bilinear filter as a matrix: each target pixel a triangle of half width
    size/target."""
    scale = size / target
    centres = (np.arange(target) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(size) + 0.5 - centres[:, None]) / scale)
    return weights / weights.sum(1, keepdims=True)


# ------------------------------------------------------------------------------------------ samples


def test_images_are_cut_and_resized(celeba_folder):
    root, key, _ = celeba_folder
    sample = cdelta.datasets.celeba(root)[4]
    assert sample.image.shape == (64, 64, 3) and sample.image.dtype == np.float32
    with Image.open(root / "img_align_celeba" / "000005.jpg") as picture:
        pixels = np.asarray(picture, np.float64)[20:198]
    filter_ = triangle(178, 64)
    expected = np.einsum("ip,jq,pqc->ijc", filter_, filter_, pixels) / 127.5 - 1
    # Pillow rounds to a byte after each direction
    np.testing.assert_allclose(sample.image, expected, atol=1.6 / 127.5)
    # and so the face that was written comes back
    face = np.asarray(faces.sample(key, 5).image[4])
    assert np.sqrt(((sample.image - face) ** 2).mean()) < 0.04
    tiny = celeba(root, size=8, crop=100)[4].image
    filter_ = triangle(100, 8)
    expected = np.einsum("ip,jq,pqc->ijc", filter_, filter_, pixels[39:139, 39:139]) / 127.5 - 1
    np.testing.assert_allclose(tiny, expected, atol=1.6 / 127.5)


def test_labels_are_the_signs_of_the_attributes(celeba_folder):
    root, key, n = celeba_folder
    dataset = celeba(root)
    signs = np.asarray(faces.sample(key, n, height=4, width=4).attributes) > 0
    assert (
        dataset.names == _layout.ATTRIBUTES
        and dataset.labels.shape == (n, 40)
        and len(dataset) == n
    )
    for name, label in zip(dataset.names, dataset.labels.T, strict=True):
        known = name in faces.ATTRIBUTES
        np.testing.assert_array_equal(label, signs[:, faces.ATTRIBUTES.index(name)] if known else 0)
    np.testing.assert_array_equal(dataset[3].attributes, dataset.labels[3])
    assert dataset[3].attributes.dtype == np.float32 and dataset.report() == "nothing is broken"


def test_attributes_by_name_in_the_order_asked(celeba_folder):
    whole = celeba(celeba_folder[0])
    some = celeba(celeba_folder[0], attributes=("Young", "Bangs"))
    assert some.names == ("Young", "Bangs")
    columns = [whole.names.index(name) for name in some.names]
    np.testing.assert_array_equal(some.labels, whole.labels[:, columns])
    assert 0 < some.labels.mean() < 1


def test_splits_part_the_files(celeba_folder):
    root, _, n = celeba_folder
    parts = {split: celeba(root, split=split).files for split in ("train", "valid", "test")}
    assert {split: len(files) for split, files in parts.items()} == {
        "train": 20,
        "valid": 2,
        "test": 2,
    }
    assert parts["test"] == ("000010.jpg", "000020.jpg")
    assert sorted(itertools.chain(*parts.values())) == list(celeba(root).files) and n == 24


def test_grey_images_are_read_as_rgb(copy):
    path = copy / "img_align_celeba" / "000001.jpg"
    with Image.open(path) as picture:
        picture.convert("L").save(path)
    image = celeba(copy)[0].image
    assert image.shape == (64, 64, 3)
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


# ------------------------------------------------------------------------------------------ batches


def test_batches_are_all_samples_in_order(celeba_folder):
    dataset = celeba(celeba_folder[0], size=8)
    batches = list(dataset.batches(10, workers=3))
    assert [len(batch.image) for batch in batches] == [10, 10, 4]
    for part in (0, 1):
        together = np.concatenate([batch[part] for batch in batches])
        np.testing.assert_array_equal(together, [dataset[i][part] for i in range(24)])
    assert [len(batch.image) for batch in dataset.batches(10, drop_remainder=True)] == [10, 10]


def test_a_seed_shuffles_each_epoch_anew_whatever_the_workers(celeba_folder):
    dataset = celeba(celeba_folder[0], size=8)
    seen = [
        np.concatenate(
            [batch.image for batch in dataset.batches(12, seed=seed, epochs=2, workers=workers)]
        )
        for seed, workers in ((1, 1), (1, 4), (2, 2))
    ]
    np.testing.assert_array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], seen[2])
    first, second = np.split(seen[0], 2)

    def rows(images):
        return sorted(image.tobytes() for image in images)

    everything = rows(dataset[i].image for i in range(24))
    assert rows(first) == rows(second) == everything and not np.array_equal(first, second)


def test_only_so_many_images_are_held(celeba_folder, monkeypatch):
    """The reader stops when what it has read ahead is not taken: memory does not grow with the
    dataset."""
    dataset, read, lock = celeba(celeba_folder[0], size=8), [], threading.Lock()
    original = dataset._read

    def counted(index):
        with lock:
            read.append(index)
        return original(index)

    monkeypatch.setattr(dataset, "_read", counted)
    batches = dataset.batches(4, epochs=None, workers=2)
    for taken in range(1, 10):
        next(batches)
        settled = -1
        while settled != len(read):  # until the threads wait
            settled = len(read)
            time.sleep(0.2)
        assert settled <= 4 * taken + 8 + 2, (taken, settled)  # taken, read ahead, in hand


def test_a_stream_gives_a_step_the_same_batch_whenever(celeba_folder):
    dataset = celeba(celeba_folder[0], size=8)
    stream = dataset.stream(10, seed=3)
    assert isinstance(stream, Stream)
    run = [stream.batch_at(step) for step in range(6)]
    assert run[0].image.shape == (10, 8, 8, 3) and run[0].attributes.shape == (10, 40)
    resumed = dataset.stream(10, seed=3, workers=1)
    for step in (4, 5, 1, 2, 2):
        for part in (0, 1):
            np.testing.assert_array_equal(resumed.batch_at(step)[part], run[step][part])
    assert not np.array_equal(dataset.stream(10, seed=4).batch_at(0).image, run[0].image)
    np.testing.assert_array_equal(
        dataset.stream(10, seed=3, labels=False).batch_at(3), run[3].image
    )
    # an epoch, 24 images, shows each once
    shown = np.concatenate([batch.image for batch in run])[:24]
    assert len({image.tobytes() for image in shown}) == 24


def test_a_stream_shows_each_epoch_in_an_order_of_its_own(celeba_folder):
    dataset = celeba(celeba_folder[0], size=8)
    stream = dataset.stream(12, seed=3, labels=False)
    images = np.concatenate([stream.batch_at(step) for step in range(6)])
    epochs = [[image.tobytes() for image in epoch] for epoch in np.split(images, 3)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_training_runs_on_a_stream_and_resumes(celeba_folder, tmp_path):
    import jax
    from flax import nnx

    from cdelta.training import fit

    class Scale(nnx.Module):
        def __init__(self):
            self.weight = nnx.Param(np.zeros((), np.float32))

        def __call__(self, t, x):
            return self.weight * x

    dataset = celeba(celeba_folder[0], size=8)
    arguments = {"batch": 6, "progress": False, "every": 3}

    def stream():
        return dataset.stream(6, seed=1, labels=False)

    whole = fit(Scale(), stream(), jax.random.key(0), steps=6, **arguments)
    fit(Scale(), stream(), jax.random.key(0), steps=3, checkpoints=tmp_path, **arguments)
    resumed = fit(Scale(), stream(), jax.random.key(0), steps=6, checkpoints=tmp_path, **arguments)
    assert whole.network.weight != 0
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    np.testing.assert_array_equal(
        resumed.network.weight.get_value(), whole.network.weight.get_value()
    )


# -------------------------------------------------------------------------------------- what breaks


def truncated(path):
    path.write_bytes(path.read_bytes()[:2000])


def small(path):
    Image.new("RGB", (90, 218)).save(path, "JPEG")


BROKEN_IMAGES = {
    "truncated": (truncated, "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "cannot identify"),
    "text": (lambda path: path.write_text("<html>404</html>"), "cannot identify"),
    "small": (small, "is 90 × 218 pixels, less than the crop of 178"),
    "gone": (lambda path: path.unlink(), "is not there any more"),
}


@pytest.mark.parametrize("kind", BROKEN_IMAGES)
def test_broken_images_are_refused_by_name(copy, kind):
    breaks, why = BROKEN_IMAGES[kind]
    dataset = celeba(copy, size=8)
    breaks(copy / "img_align_celeba" / "000007.jpg")  # after the folder was looked at
    with pytest.raises(module.BrokenImage, match=rf"000007\.jpg.*{why}"):
        dataset[6]
    with pytest.raises(ValueError, match=r"000007\.jpg"):
        list(dataset.batches(8))
    with pytest.raises(ValueError, match=r"000007\.jpg"):
        for step in range(3):
            dataset.stream(8).batch_at(step)


def test_broken_images_are_skipped_named_and_counted(copy):
    for number, (breaks, _) in enumerate(BROKEN_IMAGES.values(), 3):
        if breaks is not BROKEN_IMAGES["gone"][0]:
            breaks(copy / "img_align_celeba" / f"{number:06d}.jpg")
    dataset = celeba(copy, size=8, broken="skip")
    whole = [dataset[i].image for i in range(24) if i not in (2, 3, 4, 5)]
    with pytest.warns(UserWarning, match=r"00000[3-6]\.jpg is left out: broken image") as caught:
        batches = list(dataset.batches(10))
    assert len(caught) == 4
    assert [len(batch.image) for batch in batches] == [10, 10]
    np.testing.assert_array_equal(np.concatenate([batch.image for batch in batches]), whole)
    assert sorted(dataset.problems) == [f"{i:06d}.jpg" for i in (3, 4, 5, 6)]
    assert dataset.report().startswith("4 problems (4 × broken image). 00000")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # they have been named
        assert sum(len(batch.image) for batch in dataset.batches(10, seed=0)) == 20
        batch = dataset.stream(24).batch_at(0)  # filled up from the others
    assert len(batch.image) == 24 and len({image.tobytes() for image in batch.image}) == 20


@pytest.mark.parametrize("broken", [(2, 11, 17), tuple(range(4, 24))])
def test_a_batch_is_filled_up_from_its_own_images_in_their_order(copy, broken):
    """Every good image of the batch stays, first in order and once; then they come again in turn,
    each with its own labels."""
    whole = celeba(copy, size=8)
    images = [whole[i].image for i in range(24)]
    number = {image.tobytes(): i for i, image in enumerate(images)}
    order = [number[image.tobytes()] for image in whole.stream(12, seed=5).batch_at(0).image]
    for i in broken:
        (copy / "img_align_celeba" / whole.files[i]).write_bytes(b"")
    good = [i for i in order if i not in broken]
    assert 0 < len(good) < 12
    expected = (good * 12)[:12]
    with pytest.warns(UserWarning, match="is left out"):
        batch = celeba(copy, size=8, broken="skip").stream(12, seed=5).batch_at(0)
    np.testing.assert_array_equal(batch.image, [images[i] for i in expected])
    np.testing.assert_array_equal(batch.attributes, whole.labels[expected])


def test_a_folder_of_broken_images_is_not_waited_for(copy):
    dataset = celeba(copy, broken="skip")
    for path in (copy / "img_align_celeba").iterdir():
        path.write_bytes(b"")
    with pytest.warns(UserWarning) as caught:
        assert list(dataset.batches(4)) == []
        with pytest.raises(
            module.BrokenImage, match="batch 0 has no image that decodes: 24 problems"
        ):
            dataset.stream(4).batch_at(0)
    assert len(caught) == module.WARNINGS and "only counted" in str(caught[-1].message)


def edit(path, number, line):
    lines = path.read_text().splitlines()
    lines[number - 1 : number] = [] if line is None else [line(lines[number - 1])]
    path.write_text("\n".join(lines) + "\n")


def drop_last(line):
    return line.rsplit(maxsplit=1)[0]


ATTRIBUTE, PARTITION = "list_attr_celeba.txt", "list_eval_partition.txt"
BROKEN_LINES = {
    "short": (
        ATTRIBUTE,
        drop_last,
        r"line 7: attribute line of wrong length, 000005\.jpg has 39 of 40",
    ),
    "long": (
        ATTRIBUTE,
        lambda line: line + " 1",
        r"line 7: attribute line of wrong length, 000005\.jpg has 41",
    ),
    "value": (
        ATTRIBUTE,
        lambda line: line.replace("-1", "0", 1),
        r"line 7: attribute value not 1 or -1.*'0'",
    ),
    "twice": (
        ATTRIBUTE,
        lambda line: line.replace("000005", "000004"),
        r"line 7: image listed twice, 000004\.jpg",
    ),
    "lost": (
        ATTRIBUTE,
        None,
        r"list_attr_celeba\.txt: count differs, it says 24 images and lists 23",
    ),
    "strange": (
        ATTRIBUTE,
        lambda line: line.replace("000005", "000099"),
        r"000099\.jpg: missing file",
    ),
    "part": (
        PARTITION,
        lambda line: line.replace(" 0", " 7"),
        r"line 7: not an image and 0 or 1 or 2, '000007\.jpg 7'",
    ),
    "no part": (PARTITION, None, r"000007\.jpg: no split in list_eval_partition"),
}


@pytest.mark.parametrize("kind", BROKEN_LINES)
def test_broken_lines(copy, kind):
    name, change, why = BROKEN_LINES[kind]
    edit(copy / name, 7, change)
    split = "train" if name == PARTITION else "all"
    with pytest.raises(ValueError, match=why):
        celeba(copy, split=split)
    with pytest.warns(UserWarning, match="is left out"):
        dataset = celeba(copy, split=split, broken="skip")
    assert re.search(why, dataset.report())
    left_out = "000007.jpg" if name == PARTITION else "000005.jpg"
    assert left_out not in dataset.files and len(dataset) == (19 if name == PARTITION else 23)
    assert len(dataset.labels) == len(dataset.files)
    if name == PARTITION:
        assert left_out in celeba(copy).files  # without a split the partition is not read


def test_a_missing_image(copy):
    (copy / "img_align_celeba" / "000003.jpg").unlink()
    with pytest.raises(
        ValueError, match=r"1 problems \(1 × missing file\)\. 000003\.jpg: missing file"
    ):
        celeba(copy)
    with pytest.warns(UserWarning, match=r"000003\.jpg is left out: missing file"):
        assert len(celeba(copy, broken="skip")) == 23


def test_a_header_that_is_none(copy):
    edit(copy / ATTRIBUTE, 1, lambda line: "many")
    with pytest.raises(
        ValueError, match=r"list_attr_celeba\.txt must start with the number of images.*'many'"
    ):
        celeba(copy, broken="skip")


@pytest.mark.parametrize("missing", ["", "img_align_celeba", ATTRIBUTE, PARTITION])
def test_what_is_missing_is_explained(copy, missing):
    if (copy / missing).is_dir():
        shutil.rmtree(copy / missing)
    else:
        (copy / missing).unlink()
    with pytest.raises(FileNotFoundError) as error:
        celeba(copy, split="train")
    text = str(error.value)
    assert text.startswith("there is no f") and str(copy / missing) in text
    assert "mmlab.ie.cuhk.edu.hk/projects/CelebA" in text
    assert "ROOT/img_align_celeba/000001.jpg" in text and "write_celeba" in text
    there = {"faces.json", "img_align_celeba/", ATTRIBUTE, PARTITION} - {missing, f"{missing}/"}
    found = (
        f"{copy} holds {', '.join(sorted(there))}." if missing else f"{copy.parent} holds nothing"
    )
    assert found in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"split": "held_out"},
            'split must be "train", "valid", "test" or "all", got \'held_out\'',
        ),
        ({"broken": "ignore"}, 'broken must be "refuse" or "skip"'),
        ({"size": 0}, "size must be a positive integer, got 0"),
        ({"crop": 0}, "crop must be a positive integer, got 0"),
        ({"attributes": ["Rosy_Cheek"]}, "got 'Rosy_Cheek'; it has Rosy_Cheeks"),
        ({"attributes": []}, "at least one column"),
        ({"attributes": ["Young", "Young"]}, "each once"),
    ],
)
def test_arguments_refused(celeba_folder, unchecked, arguments, message):
    with pytest.raises(ValueError, match=message):
        celeba(celeba_folder[0], **arguments)


def test_batches_refused(celeba_folder, unchecked):
    dataset = celeba(celeba_folder[0])
    for arguments, message in (((0,), "batch"), ((4, 0, 0), "epochs"), ((4, 0, 1, 0), "workers")):
        with pytest.raises(ValueError, match=f"{message} must be a positive integer, got 0"):
            dataset.batches(*arguments)
    with pytest.raises(ValueError, match="batch must be a positive integer"):
        dataset.stream(0)


@pytest.mark.parametrize("package", ["PIL", "grain"])
def test_missing_package_says_what_to_install(celeba_folder, monkeypatch, package):
    dataset = celeba(celeba_folder[0])
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=re.escape('pip install "cdelta[data]"')):
        dataset[0] if package == "PIL" else dataset.batches(4)
