"""What a host of the repository runs and starts: the workflow's own commands, on small trees."""

import subprocess

import pytest
import yaml

from tests import ROOT


@pytest.fixture(scope="module")
def jobs():
    return yaml.safe_load((ROOT / ".github/workflows/book.yml").read_text("utf-8"))["jobs"]


def commands(job):
    return [step["run"].strip() for step in job["steps"] if "run" in step]


def test_every_change_is_tested_and_only_what_passed_is_published(jobs):
    assert commands(jobs["test"]) == ["make test"] and "if" not in jobs["test"]
    # of which make test takes a sample
    assert commands(jobs["again"]) == ["make again"] and "if" not in jobs["again"]
    assert jobs["publish"]["needs"] == ["test", "again"]
    assert "refs/heads/main" in jobs["publish"]["if"]
    build, exist, publish = commands(jobs["publish"])
    assert build == "make book" and "no page" in exist and "git push" in publish


@pytest.fixture
def built(tmp_path, jobs):
    """The step that asks for pages, in a tree with all of them."""
    (tmp_path / "_toc.yml").write_bytes((ROOT / "_toc.yml").read_bytes())
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    names = [contents["root"]]
    names += [entry["file"] for part in contents["parts"] for entry in part["chapters"]]
    pages = [tmp_path / "_build/html" / f"{name}.html" for name in ("index", *names)]
    for page in pages:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("a page")

    def run():
        step = commands(jobs["publish"])[1]
        return subprocess.run(["bash", "-c", step], cwd=tmp_path, capture_output=True, text=True)

    return run, pages


def test_a_page_that_is_missing_or_empty_is_not_published(built):
    run, pages = built
    assert run().returncode == 0
    for page in (pages[0], pages[1], pages[5], pages[-1]):
        page.write_text("")
        assert run().returncode != 0
        page.unlink()
        assert run().returncode != 0
        page.write_text("a page")


def test_binder_finds_an_environment_with_jupyterlab_and_the_package():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-r requirements.txt", "-e ."]
    assert "\njupyterlab==" in (ROOT / "requirements.txt").read_text("utf-8")
    assert not (ROOT / "binder").exists() and not (ROOT / ".binder").exists()  # would be preferred
