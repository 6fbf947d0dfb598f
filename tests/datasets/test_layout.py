"""The folders and lists that people have, each as the same dataset."""

import gc
import shutil

import numpy as np
import pytest
from PIL import Image

from cdelta.datasets import _layout, celeba

IMAGES, ATTRIBUTE, PARTITION = "img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"


@pytest.fixture
def copy(celeba_folder, tmp_path):
    """A folder that a test may change."""
    return shutil.copytree(celeba_folder[0], tmp_path / "root")


def as_csv(text, header=None):
    """A list as CSV: CelebA's own has the count and the names in its first lines."""
    lines = [",".join(line.split()) for line in text.splitlines()]
    return "\n".join([header or f"image_id,{lines[1]}", *lines[0 if header else 2 :]]) + "\n"


def change(path, of, encoding="utf-8"):
    path.write_bytes(of(path.read_text("utf-8")).encode(encoding))


def kaggle(root):
    for name, header in ((ATTRIBUTE, None), (PARTITION, "image_id,partition")):
        path = root / name
        path.with_suffix(".csv").write_text(as_csv(path.read_text(), header))
        path.unlink()
    nested(root)


def nested(root):
    (root / IMAGES).rename(root / "inner")
    (root / IMAGES).mkdir()
    (root / "inner").rename(root / IMAGES / IMAGES)


def torchvision(root):
    (root / "celeba").mkdir()
    for name in (IMAGES, ATTRIBUTE, PARTITION):
        (root / name).rename(root / "celeba" / name)
    (root / "celeba" / "identity_CelebA.txt").write_text("000001.jpg 1\n")


def published(root):
    for name, folder in ((IMAGES, "Img"), (ATTRIBUTE, "Anno"), (PARTITION, "Eval")):
        (root / folder).mkdir()
        (root / name).rename(root / folder / name)


def other_extension(new):
    def apply(root):
        for path in (root / IMAGES).iterdir():
            path.rename(path.with_suffix(new))

    return apply


def listed_in_capitals(root):
    for name in (ATTRIBUTE, PARTITION):
        change(root / name, lambda text: text.replace(".jpg", ".JPG"))


def lists(of, encoding="utf-8"):
    def apply(root):
        for name in (ATTRIBUTE, PARTITION):
            change(root / name, of, encoding)

    return apply


COPIES = {
    "kaggle": kaggle,
    "nested": nested,
    "torchvision": torchvision,
    "published": published,
    "JPG": other_extension(".JPG"),
    "jpeg": other_extension(".jpeg"),
    "named png": other_extension(".png"),
    "listed in capitals": listed_in_capitals,
    "byte order mark": lists(str, "utf-8-sig"),
    "CRLF": lists(lambda text: text.replace("\n", "\r\n")),
    "tabs": lists(lambda text: text.replace("  ", " ").replace(" ", "\t")),
    "blank lines": lists(lambda text: "\n" + text.replace("\n", "\n\n", 3) + "\n \n\n"),
    "kaggle, CRLF and a byte order mark": lambda root: (
        kaggle(root),
        [
            change(root / name, lambda text: text.replace("\n", "\r\n"), "utf-8-sig")
            for name in ("list_attr_celeba.csv", "list_eval_partition.csv")
        ],
    ),
    "quoted": lambda root: (
        kaggle(root),
        change(
            root / "list_attr_celeba.csv",
            lambda text: text.replace("000", '"000').replace(".jpg", '.jpg"'),
        ),
    ),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_reads_as_the_original(celeba_folder, copy, name):
    COPIES[name](copy)
    for split in ("all", "valid"):
        original, found = (celeba(root, 8, split) for root in (celeba_folder[0], copy))
        assert found.names == original.names and found.report() == "nothing is broken"
        assert [file[:6] for file in found.files] == [file[:6] for file in original.files]
        np.testing.assert_array_equal(found.labels, original.labels)
        np.testing.assert_array_equal(found[1].image, original[1].image)


def test_png_copies_of_the_images(celeba_folder, copy):
    """The list says .jpg; the pixels are those of the JPEG."""
    for path in list((copy / IMAGES).iterdir()):
        with Image.open(path) as picture:
            picture.save(path.with_suffix(".png"))
        path.unlink()
    original, found = celeba(celeba_folder[0], 8, "test"), celeba(copy, 8, "test")
    assert found.files == ("000010.png", "000020.png")
    for i in range(2):
        np.testing.assert_array_equal(found[i].image, original[i].image)


def test_the_name_in_the_list_comes_before_any_other(celeba_folder, copy):
    shutil.copy(copy / IMAGES / "000002.jpg", copy / IMAGES / "000001.png")
    (copy / IMAGES / "000003.txt").write_text("a caption")
    found, original = celeba(copy, 8), celeba(celeba_folder[0], 8)
    np.testing.assert_array_equal(found[0].image, original[0].image)


def test_two_files_that_fit_alike_are_ambiguous(copy):
    (copy / IMAGES / "000001.jpg").rename(copy / IMAGES / "000001.png")
    shutil.copy(copy / IMAGES / "000001.png", copy / IMAGES / "000001.webp")
    with pytest.raises(
        ValueError, match=r"000001\.jpg: ambiguous file, it may be 000001\.png and 000001\.webp"
    ):
        celeba(copy)


def test_png_images_of_the_archive(celeba_folder, copy):
    (copy / "Img").mkdir()
    (copy / IMAGES).rename(copy / "Img" / f"{IMAGES}_png")
    assert celeba(copy, 8).files == celeba(celeba_folder[0], 8).files


def test_a_folder_around_it(celeba_folder, copy):
    around = copy.parent
    assert celeba(around, 8).files == celeba(celeba_folder[0], 8).files
    shutil.copytree(copy, around / "second")
    with pytest.raises(
        FileNotFoundError, match="more than one copy of CelebA, name one of root, s"
    ):
        celeba(around)


def test_a_root_in_the_home_folder_and_none(copy, monkeypatch):
    monkeypatch.setenv("HOME", str(copy.parent))
    assert celeba("~/root", 8).root == copy
    with pytest.raises(ValueError, match="root must name a folder"):
        celeba("")


def test_an_image_that_went_away(copy):
    dataset = celeba(copy, 8)
    (copy / IMAGES / "000001.jpg").unlink()
    with pytest.raises(ValueError, match=r"000001\.jpg is not there any more"):
        dataset[0]


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_no_folder_is_left_open(copy):
    celeba(copy, 8)
    gc.collect()


def test_two_lines_of_one_file(copy):
    change(copy / ATTRIBUTE, lambda text: text.replace("000002.jpg", "000001.png"))
    with pytest.raises(ValueError, match=r"000001\.png: image listed twice, it is 000001\.jpg too"):
        celeba(copy)


def test_an_image_in_two_splits(copy):
    change(copy / PARTITION, lambda text: text.replace("000010.jpg", "000001.jpg"))
    with pytest.raises(ValueError, match=r"line 10: image listed twice, 000001\.jpg"):
        celeba(copy, split="test")


def test_a_relative_root_and_another_working_directory(celeba_folder, copy, monkeypatch, tmp_path):
    monkeypatch.chdir(copy.parent)
    dataset = celeba("root", 8)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(dataset[0].image, celeba(celeba_folder[0], 8)[0].image)


def test_a_csv_with_a_column_more_is_not_read_shifted(copy):
    """As pandas writes it, with the rows' numbers."""
    kaggle(copy)

    def numbered(text):
        first, *lines = text.splitlines()
        return "\n".join([f",{first}", *(f"{i},{line}" for i, line in enumerate(lines))])

    change(copy / "list_attr_celeba.csv", numbered)
    with pytest.raises(ValueError, match=r"line 2: attribute line of wrong length, 0 has 41 of 40"):
        celeba(copy)


@pytest.mark.parametrize(
    ("wrong", "missing", "holds"),
    [
        # the images' own folder
        (lambda root: root / IMAGES, f"folder .*{IMAGES}/{IMAGES}", "000001.jpg, 000002.jpg, "),
        # two too high
        (lambda root: root.parent.parent, f"folder .*{IMAGES}", "/"),
        # images beside the lists
        (lambda root: shutil.rmtree(root / IMAGES) or root, f"folder .*{IMAGES}", ATTRIBUTE),
        (lambda root: (root / ATTRIBUTE).unlink() or root, f"file .*{ATTRIBUTE}", PARTITION),
        (lambda root: root / "no" / "such", "folder .*such", ""),
    ],
)
def test_what_is_wanted_and_what_is_there(copy, wrong, missing, holds):
    with pytest.raises(FileNotFoundError, match=f"there is no {missing}\\.") as error:
        celeba(wrong(copy))
    text = str(error.value)
    assert f"ROOT/{IMAGES}/000001.jpg" in text and f"ROOT/{ATTRIBUTE}" in text
    assert holds in text.partition(".JPG.")[2]
    assert len(text.splitlines()) < 12


def test_an_empty_folder_of_images_is_not_called_missing(copy):
    shutil.rmtree(copy / IMAGES)
    (copy / IMAGES).mkdir()
    with pytest.raises(ValueError, match=r"24 × missing file"):
        celeba(copy)
    assert _layout.find(copy).images == copy / IMAGES
