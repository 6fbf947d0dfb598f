"""``python -m tests.mutants [MODULE ...] [--sample N]``: plant errors, one at a time, in a copy.

A process for each error is forked from one that has imported the libraries but neither cdelta nor
a test, and has not started JAX: what takes most of the time of a short test is then done once.
"""

import argparse
import contextlib
import gc
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from threads import THREADS

from tests import ROOT
from tests.mutants import Mutant, modules, mutants, sample

PASSED, FAILED = 0, 1  # of pytest's exit codes
LIMIT = 600  # seconds for the tests of one error: a program that does not end is no catch


def main() -> int:
    """Say what survives; 1 when something does."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=main.__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="MODULE", help=f"some of {', '.join(modules())} (default: all)"
    )
    parser.add_argument("--sample", type=int, help="so many of the quick ones, always the same")
    parser.add_argument(
        "--files", action="store_true", help="all tests of the files that the named ones are in"
    )
    parser.add_argument("--match", default="", help="those errors whose description contains this")
    parser.add_argument(
        "--trust", action="store_true", help="do not first run the tests where nothing is planted"
    )
    arguments = parser.parse_args()
    try:
        chosen = [m for m in mutants(arguments.names) if arguments.match in m.breaks]
    except ValueError as error:
        parser.error(str(error))
    if arguments.sample is not None:
        chosen = sample(chosen, arguments.sample)
    if not chosen:
        parser.error("there is no such error")
    left_out = [mutant for mutant in chosen if mutant.needs and find_spec(mutant.needs) is None]
    for module, package in sorted({(mutant.module, mutant.needs) for mutant in left_out}):
        print(f"{module}: not planted, {package} is not installed")
    chosen = [mutant for mutant in chosen if mutant not in left_out]
    if not chosen:
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        return report(run(chosen, copied(Path(folder)), arguments.files, arguments.trust))


def copied(folder: Path) -> Path:
    """A copy of what the tests need, without bytecode."""
    ignore = shutil.ignore_patterns("__pycache__", "executed")
    for name in ("cdelta", "tests", "book"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return folder


def run(chosen: list[Mutant], copy: Path, files: bool, trust: bool) -> list[tuple[Mutant, bool]]:
    """Each error, and whether its tests caught it."""
    environment(copy)
    import_libraries()
    if not trust:
        everything = sorted({test for mutant in chosen for test in named(mutant, files)})
        code, output = in_a_process(copy, everything)
        if code != PASSED:
            sys.exit(f"{output}\nthe tests must pass where nothing is planted: pytest said {code}")
    results = []
    for mutant in chosen:
        path, start = copy / mutant.path, time.monotonic()
        source = path.read_text("utf-8")
        path.write_text(mutant.planted(source), "utf-8")
        code, output = in_a_process(copy, named(mutant, files))
        path.write_text(source, "utf-8")
        if code not in (PASSED, FAILED):
            sys.exit(f"{output}\n{mutant.path}, {mutant.breaks}: pytest said {code}")
        results.append((mutant, code == FAILED))
        by = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
        said = f"caught by {by[0].split()[1]}" if code == FAILED else "SURVIVES"
        seconds = time.monotonic() - start
        print(f"{mutant.module}: {mutant.breaks}: {said} ({seconds:.0f} s)", flush=True)
    return results


def named(mutant: Mutant, files: bool) -> list[str]:
    """The tests of an error as paths from the root on, or the files that they are in."""
    tests = [f"tests/{test}" for test in mutant.tests]
    return sorted({test.split("::")[0] for test in tests}) if files else tests


def environment(copy: Path) -> None:
    """What the processes inherit; read by JAX when it is imported."""
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # an error may be as long as what it replaces
    sys.dont_write_bytecode = True
    # nbval, which is loaded unasked, compiles grammars for longer than most of the tests take
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)
    # programs that no error touches are compiled once
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(copy / "compiled"))
    for name in ("MIN_COMPILE_TIME_SECS", "MIN_ENTRY_SIZE_BYTES"):
        os.environ.setdefault(f"JAX_PERSISTENT_CACHE_{name}", "0")


def import_libraries() -> None:
    """What the tests import, but not the package, nor anything that starts JAX."""
    import diffrax  # noqa: F401
    import flax.nnx  # noqa: F401
    import optax  # noqa: F401
    import pytest  # noqa: F401
    import scipy.integrate
    import scipy.stats  # noqa: F401

    gc.collect()
    gc.freeze()  # all of it stays


def in_a_process(copy: Path, tests: list[str]) -> tuple[int | None, str]:
    """pytest's exit code (None when it does not end) and what it printed, in a forked process."""
    printed = copy / "printed"
    process = multiprocessing.get_context("fork").Process(
        target=tested, args=(copy, tests, printed)
    )
    process.start()
    process.join(LIMIT)
    if process.is_alive():
        process.kill()
        process.join()
        return None, f"no end in {LIMIT} s"
    return process.exitcode, printed.read_text("utf-8", errors="replace")


def tested(copy: Path, tests: list[str], printed: Path) -> None:
    """Run pytest in the copy; does not return."""
    import pytest

    with open(printed, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(copy)
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]
    sys.path[:] = [str(copy), *(path for path in sys.path if Path(path or ".") != ROOT)]
    code = 70
    with contextlib.suppress(BaseException):
        without = ("cacheprovider", "unraisableexception")  # the latter collects garbage ten times
        options = ["-x", "-q", "--tb=short", *(f"-pno:{plugin}" for plugin in without)]
        code = int(pytest.main([*options, *tests]))
        if not Path(sys.modules["cdelta"].__file__).is_relative_to(copy):
            print("cdelta was imported from elsewhere", flush=True)
            code = 71
    sys.stdout.flush()
    os._exit(code)  # threads of JAX may still be there


def report(results: list[tuple[Mutant, bool]]) -> int:
    """A table by module, and the survivors."""
    planted = Counter(mutant.module for mutant, _ in results)
    caught = Counter(mutant.module for mutant, killed in results if killed)
    width = max(map(len, [*planted, "module"]))
    print(f"\n{'module':{width}}  planted  caught")
    for module, count in sorted(planted.items()):
        print(f"{module:{width}}  {count:7}  {caught[module]:6}")
    print(f"{'all':{width}}  {planted.total():7}  {caught.total():6}")
    survivors = [mutant for mutant, killed in results if not killed]
    for mutant in survivors:
        print(f"SURVIVES {mutant.path}: {mutant.breaks}\n  {mutant.old!r}\n  -> {mutant.new!r}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
