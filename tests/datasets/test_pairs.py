"""The files of the pairs and of the proteins, in a small made-up wheel."""

import zipfile
from importlib import metadata

import numpy as np
import pytest

from cdelta.datasets import pairs

FILES = {
    "Tuebingen_pairs.csv": "SampleID,A,B\npair1,1 2 3.5,4 5 -6\npair2,7 8,1e2 0\n"
    "pair3,2 1 3.5,0 0 1\n",
    "Tuebingen_targets.csv": "SampleID,Target\npair1,1.0\npair2,-1.0\npair3,1.0\n",
    "cyto_full_data.csv": "a,b,c\n1,2.5,3\n4,5,6\n",
    "cyto_full_target.csv": '"Cause","Effect"\n"b","a"\n"a","c"\n',
}


def wheel(path, **changed):
    with zipfile.ZipFile(path, "w") as file:
        for name, text in FILES.items():
            file.writestr("cdt/data/resources/" + name, changed.get(name.split(".")[0], text))
    return path


def folder(path):
    with zipfile.ZipFile(wheel(path / "w.whl")) as file:
        file.extractall(path)
    return path


def test_pairs_have_the_cause_first(tmp_path):
    for source in (wheel(tmp_path / "cdt.whl"), folder(tmp_path)):
        first, second, third = pairs.tuebingen(source)
        assert (first.name, second.name, third.name) == ("pair1", "pair2", "pair3")
        np.testing.assert_array_equal(first.cause, [1, 2, 3.5])
        np.testing.assert_array_equal(first.effect, [4, 5, -6])
        np.testing.assert_array_equal(second.cause, [100, 0])  # its target is -1
        np.testing.assert_array_equal(second.effect, [7, 8])


def test_proteins_have_their_graph(tmp_path):
    names, samples, graph = pairs.sachs(wheel(tmp_path / "cdt.whl"))
    assert names == ("a", "b", "c")
    np.testing.assert_array_equal(samples, [[1, 2.5, 3], [4, 5, 6]])
    np.testing.assert_array_equal(graph, [[0, 1, 0], [0, 0, 0], [1, 0, 0]])


def test_pairs_that_share_a_column_are_of_one_source(tmp_path):
    found = pairs.tuebingen(wheel(tmp_path / "cdt.whl"))
    assert pairs.sources(found) == [0, 1, 0]
    chain = [
        pairs.Pair("1", np.array([1.0, 2.0]), np.array([3.0, 4.0])),
        pairs.Pair("2", np.array([5.0, 6.0]), np.array([7.0, 8.0])),
        pairs.Pair("3", np.array([4.0, 3.0]), np.array([6.0, 5.0])),
    ]
    assert pairs.sources(chain) == [0, 0, 0]


def test_an_installed_distribution_is_found_without_an_import(tmp_path, monkeypatch):
    root = folder(tmp_path)
    (root / "cdt/__init__.py").write_text("raise ImportError('must not be imported')")
    (root / "cdt-0.6.0.dist-info").mkdir()
    (root / "cdt-0.6.0.dist-info/METADATA").write_text("Name: cdt\nVersion: 0.6.0\n")
    monkeypatch.syspath_prepend(str(root))
    assert len(pairs.tuebingen()) == 3


def test_what_to_install_is_said(tmp_path, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps cdt==0\.6\.0"):
        pairs.tuebingen()
    with pytest.raises(FileNotFoundError, match=r"pip download --no-deps cdt==0\.6\.0"):
        pairs.sachs(tmp_path)
    other = tmp_path / "other.whl"
    zipfile.ZipFile(other, "w").close()
    (tmp_path / "no.whl").write_text("no zip file")
    for path in (other, tmp_path / "no.whl"):
        with pytest.raises(FileNotFoundError, match="source must be the wheel"):
            pairs.tuebingen(path)


@pytest.mark.parametrize(
    "file, text, words",
    [
        ("Tuebingen_pairs", "SampleID,A,B\npair1,1 2,3\n", "one length, got 2 and 1 of 'pair1'"),
        ("Tuebingen_pairs", "SampleID,A,B\npair1,1 x,3 4\n", "pair1: could not convert"),
        ("Tuebingen_pairs", "SampleID,A,B\npair1,1 nan,3 4\n", "finite numbers, not so pair1"),
        ("Tuebingen_pairs", "SampleID,A,B\npair9,1 2,3 4\n", "that has a target, got 2 of 'pair9'"),
        ("Tuebingen_pairs", "SampleID,A,B\npair1,1 2\n", "got 1 of 'pair1'"),
        ("Tuebingen_targets", "SampleID,Target\npair1,0.5\n", "1 or -1 of each pair"),
        ("cyto_full_data", "a,b,c\n1,2\n", "3 numbers a row"),
        ("cyto_full_target", '"Cause","Effect"\n"a","z"\n', "a cause and an effect out of a, b, c"),
    ],
)
def test_broken_files_are_refused(tmp_path, file, text, words):
    source = wheel(tmp_path / "cdt.whl", **{file: text})
    with pytest.raises(ValueError, match=words):
        (pairs.sachs if file.startswith("cyto") else pairs.tuebingen)(source)
