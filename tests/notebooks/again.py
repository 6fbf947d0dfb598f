"""Execute finished notebooks a second time and compare every value with the first.

    python -m tests.notebooks.again _build/smoke --jobs 2

nbval does the comparing. It skips a cell that was never executed, so those are refused first, and
so is a chapter that is missing from the folder.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import execute
import nbformat

from tests import ROOT


def never_executed(notebook: Any) -> list[int]:
    """The code cells, by index, that hold code and no execution count."""
    return [
        index
        for index, cell in enumerate(notebook.cells)
        if cell.cell_type == "code" and cell.source.strip() and not cell.get("execution_count")
    ]


def refuse(folder: Path, chapters: list[str]) -> list[str]:
    """Why the folder's notebooks do not count as executed."""
    reasons = [
        f"{name}: not in {folder}" for name in chapters if not (folder / f"{name}.ipynb").is_file()
    ]
    for path in sorted(folder.glob("*.ipynb")):
        for index in never_executed(nbformat.read(path, as_version=4)):
            reasons.append(f"{path.stem}: cell {index} was never executed")
    return reasons


def compare(paths: list[Path], jobs: int, env: dict[str, str], *options: str) -> int:
    """nbval's exit code: 0 when every output agrees."""
    paths = [path.resolve() for path in paths]
    command = [sys.executable, "-m", "pytest", "-q", "--nbval", "--nbval-current-env"]
    command += ["-p", "no:cacheprovider", "--nbval-kernel-startup-timeout", "300"]
    command += ["--nbval-sanitize-with", str(Path(__file__).with_name("sanitize.cfg"))]
    # A test's name is its path below the root: outside of that, notebooks would have one name,
    # and xdist would give all of them to one process.
    command += ["--rootdir", os.path.commonpath([path.parent for path in paths])]
    command += ["-n", str(jobs), "--dist", "loadfile", "--no-loadscope-reorder"] if jobs > 1 else []
    return subprocess.run([*command, *options, *map(str, paths)], cwd=ROOT, env=env).returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", "-j", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    chapters = execute.chapters(ROOT)
    if reasons := refuse(options.folder, chapters):
        print("\n".join(reasons), file=sys.stderr)
        return 1
    seconds = {name: run["seconds"] for name, run in execute.records(options.folder).items()}
    # the longest first, so that no long one is left over for the end
    paths = [
        options.folder / f"{name}.ipynb"
        for name in sorted(chapters, key=lambda name: -seconds.get(name, 0))
    ]
    return compare(paths, options.jobs, execute.environment(ROOT, "smoke"))


if __name__ == "__main__":
    sys.exit(main())
