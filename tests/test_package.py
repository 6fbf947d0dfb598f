"""What is installed and what it needs: cdelta alone, without what only the book and the tests
use."""

import ast
import email
import os
import re
import subprocess
import sys
import tarfile
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
import importlib, importlib.abc, pkgutil, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
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
    heavy = ("jax", "numpy")
    code = f"import sys, cdelta; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def canonical(requirement):
    """A distribution's name, as it is compared."""
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def imported(path):
    """The third-party modules that a file imports: by a statement, or by ``optional`` from an
    extra."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names, extra = [], None
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("optional"):
            name, extra = [*(argument.value for argument in node.args), "data"][:2]
            names = [name]
        for name in names:
            module = name.split(".")[0]
            if module != "cdelta" and module not in sys.stdlib_module_names:
                yield module, extra


def test_what_is_imported_is_declared():
    distributions = metadata.packages_distributions()
    own = {canonical(name) for name in PROJECT["dependencies"]}
    extras = {
        extra: {canonical(name) for name in names}
        for extra, names in PROJECT["optional-dependencies"].items()
    }
    undeclared, seen = [], set()
    for path in sorted((ROOT / "cdelta").rglob("*.py")):
        for module, extra in imported(path):
            # a module that this environment lacks goes by its own name
            providers = {canonical(name) for name in distributions.get(module, [module])}
            # figures are the book's
            drawn = extras["book"] if "figures" in path.parts or path.stem == "figures" else set()
            declared = extras[extra] if extra else own | drawn
            seen.add(module)
            if not providers & declared:
                undeclared.append((str(path.relative_to(ROOT)), module))
    assert undeclared == []
    assert {"jax", "yaml", "matplotlib"} <= seen


def exported():
    """The names of cdelta as an editor sees them: of each the module that it comes from."""
    tree = ast.parse((ROOT / "cdelta" / "__init__.py").read_text("utf-8"))
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    return {alias.asname: statement.module for statement in block.body for alias in statement.names}


def test_editors_see_the_names_that_load_on_first_use():
    import cdelta

    modules = dict.fromkeys(cdelta._SUBMODULES, "cdelta")
    classes = {name: f"cdelta.{module}" for name, module in cdelta._EXPORTS.items()}
    assert exported() == modules | classes


def test_a_type_checker_finds_misspelt_names_and_wrong_arguments(tmp_path):
    """Only cdelta's own annotations are read: those of jax would take a minute."""
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nfollow_imports = skip\nignore_missing_imports = True\n"
        "[mypy-cdelta.*]\nfollow_imports = silent\n"
    )
    (tmp_path / "user.py").write_text(
        "import cdelta\n"
        "cdelta.dependnce\n"
        "cdelta.Flow(3)\n"
        "flow = cdelta.Flow(lambda t, x: -x, solver='heun', steps=20)\n"
        "reveal_type(flow)\n"
        "cdelta.dependence.wiggle_moment\n"
        "cdelta.figures\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "user.py"]
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    *said, _ = done.stdout.splitlines()
    assert len(said) == 3, done.stdout + done.stderr
    assert said[0].startswith("user.py:2: error:") and '"dependnce"' in said[0]
    assert said[1].startswith("user.py:3: error:") and 'incompatible type "int"' in said[1]
    assert said[2].endswith('note: Revealed type is "cdelta.flow.Flow"')


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What is committed, and the names of its files."""
    if not (ROOT / ".git").exists():
        pytest.skip("what is committed is known in a git clone only")
    source = tmp_path_factory.mktemp("clone") / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    listed = subprocess.run(
        ["git", "ls-files"], cwd=source, capture_output=True, text=True, check=True
    )
    return source, set(listed.stdout.split())


def build(kind, source, out):
    """The archive that setuptools makes of a folder."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = out.iterdir()
    return archive


def test_wheel_holds_the_package_alone_and_says_what_it_is(clone, tmp_path):
    source, tracked = clone
    wheel = zipfile.ZipFile(build("wheel", source, tmp_path))
    names = wheel.namelist()
    package = {name for name in tracked if name.startswith("cdelta/")}
    assert {name for name in names if ".dist-info/" not in name} == package
    assert any(name.endswith("LICENSE") for name in names)
    (told,) = [name for name in names if name.endswith("METADATA")]
    about = email.message_from_bytes(wheel.read(told))
    assert about.get_all("Project-URL") == ["Paper, https://arxiv.org/abs/2602.02793"]
    assert about["Author"] == "the cdelta developers" and about["License-Expression"] == "MIT"
    assert about["Keywords"] and "Typing :: Typed" in about.get_all("Classifier")
    # the README, where a relative address leads nowhere
    description = about.get_payload()
    assert "## A report in ten lines" in description
    links = re.findall(r"\]\(([^)]*)\)", description)
    assert links and all(link.startswith("https://") for link in links)


def test_source_distribution_is_the_repository_and_runs_its_tests(clone, tmp_path):
    source, tracked = clone
    archive = tarfile.open(build("sdist", source, tmp_path))
    names = {name.partition("/")[2] for name in archive.getnames() if "." in name or "/" in name}
    files = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert tracked <= names
    made = {name for name in files - tracked if ".egg-info/" not in name}
    assert made <= {"PKG-INFO", "setup.cfg"}
    archive.extractall(tmp_path / "unpacked", filter="data")
    (root,) = (tmp_path / "unpacked").iterdir()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tests = ["tests/test_ledger.py", "tests/test_files.py"]
    done = subprocess.run([*command, *tests], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


UNLOCKED = ("torch", "cuda")  # gigabytes that the book does without


def test_requirements_lock_what_the_project_names():
    """Every dependency is locked to one version (or one for each Python), and no host is named."""
    text = (ROOT / "requirements.txt").read_text("utf-8")
    locked = {line.split("==")[0] for line in text.splitlines() if "==" in line}
    extras = PROJECT["optional-dependencies"]
    names = {
        canonical(requirement)
        for extra, group in [("", PROJECT["dependencies"]), *extras.items()]
        for requirement in group
        if extra not in UNLOCKED
    }
    assert names - locked == {"cdelta"}
    assert not [name for name in locked if name.startswith(("torch", "nvidia", "jax-cuda"))]
    # the plugin is the one of a jax that is as new as the lock's
    (plugin,) = extras["cuda"]
    assert plugin.startswith("jax[cuda") and plugin.partition("]")[2] == ">=0.10"
    assert any(line.startswith("jax==0.1") for line in text.splitlines())
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
    # tanh of the first of a pair correlated by .55, and its second: .55 · .6057 / .6279
    said = re.search(r"smile and age have correlation (\S+) ± (\S+); their wiggles", done.stdout)
    correlation, error = map(float, said.groups())
    assert abs(correlation - 0.5305) < 4 * error < 0.02
    covariance, error = re.fullmatch(r"\((\S+), (\S+)\)", done.stdout.splitlines()[-1]).groups()
    assert abs(float(covariance) - 0.55 * 0.6057) < 4 * float(error) < 0.02
    assert "warning" not in done.stdout
