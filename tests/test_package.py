"""What is installed and what it needs: cdelta alone, without what only the book and the tests
use."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata

import pytest

from tests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def needed(names):
    """The distributions that these need, all the way down, as this environment has them."""
    found, todo = set(), list(names)
    while todo:
        name = re.split(r"[^A-Za-z0-9._-]", todo.pop(), maxsplit=1)[0].lower().replace("_", "-")
        if name in found:
            continue
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform
        found.add(name)
        todo += [requirement for requirement in requirements if "extra ==" not in requirement]
    return found


def test_every_module_but_figures_imports_without_the_extras():
    own = needed(PROJECT["dependencies"])
    blocked = sorted(
        package
        for package, distributions in metadata.packages_distributions().items()
        if not {name.lower().replace("_", "-") for name in distributions} & {*own, "cdelta"}
    )
    assert {"matplotlib", "IPython", "mlxtend", "sphinx", "pytest"} <= set(blocked)
    code = f"""
import importlib, pkgutil, sys
for name in {blocked!r}:
    sys.modules[name] = None  # importing it now raises ImportError
import cdelta
names = [module.name for module in pkgutil.walk_packages(cdelta.__path__, "cdelta.")]
names = [name for name in names if not name.endswith("__main__")]
names = [name for name in names if not name.startswith("cdelta.figures")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10


def test_importing_cdelta_loads_nothing_that_was_not_asked_for():
    code = "import sys, cdelta; print(sorted(name for name in sys.modules if name.split('.')[0] in ('jax', 'numpy')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_wheel_holds_the_package_alone(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    done = subprocess.run(
        [*command, str(source)],
        capture_output=True,
        text=True,
        env={**os.environ, "PIP_NO_INPUT": "1"},
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tracked = subprocess.run(
        ["git", "ls-files", "cdelta"], cwd=source, capture_output=True, text=True, check=True
    )
    assert {name for name in names if ".dist-info/" not in name} == set(tracked.stdout.split())
    assert any(name.endswith("LICENSE") for name in names)


def test_requirements_lock_what_the_project_names():
    """Every dependency is locked to one version (or one for each Python), and no host is named."""
    text = (ROOT / "requirements.txt").read_text("utf-8")
    locked = {line.split("==")[0] for line in text.splitlines() if "==" in line}
    extras = [
        requirement for group in PROJECT["optional-dependencies"].values() for requirement in group
    ]
    names = {
        re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        for requirement in PROJECT["dependencies"] + extras
    }
    assert names - locked == {"cdelta"}
    assert "://" not in text and "--index" not in text and "@" not in text
    assert all(
        "==" in line or not line or line.startswith((" ", "#")) for line in text.splitlines()
    )


def test_the_readme_example_runs(tmp_path):
    example, *_ = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL
    )
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    done = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    numbers = [float(number) for number in re.findall(r"-?\d+\.\d*(?:e-?\d+)?", done.stdout)]
    assert len(numbers) == 12
    correlation = numbers[9]
    assert correlation == pytest.approx(0.52, abs=0.05)  # tanh of a pair correlated by .55
