"""Execute finished notebooks a second time and compare every value with the first.

    python -m tests.notebooks.again _build/smoke --jobs 2
    python -m tests.notebooks.again _build/smoke --sample 6    # of the chapters, drawn by lot

nbval does the comparing. It skips a cell that was never executed, so those are refused first, and
so is a chapter that is missing from the folder.
"""

import argparse
import hashlib
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


def drawn(marks: dict[str, str], number: int) -> list[str]:
    """So many of the chapters, by lot: the same for the same sources, others once any changes, so
    that in time each is met. ``marks`` are the fingerprints of all that a chapter depends on."""

    def lot(name: str) -> str:
        return hashlib.sha256(f"{name} {marks[name]}".encode()).hexdigest()

    return sorted(sorted(marks, key=lot)[:number])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", "-j", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--sample", type=int, help="so many chapters, drawn by lot (default: all of them)"
    )
    options = parser.parse_args()
    if options.sample is not None and options.sample < 1:
        parser.error(f"--sample must be 1 or more, got {options.sample}")
    chapters = execute.chapters(ROOT)
    if reasons := refuse(options.folder, chapters):
        print("\n".join(reasons), file=sys.stderr)
        return 1
    runs = execute.records(options.folder)
    if options.sample is not None:
        chapters = drawn({name: runs[name]["fingerprint"] for name in chapters}, options.sample)
        print(f"A second time: {', '.join(chapters)}", flush=True)
    seconds = {name: run["seconds"] for name, run in runs.items()}
    # the longest first, so that no long one is left over for the end
    paths = [
        options.folder / f"{name}.ipynb"
        for name in sorted(chapters, key=lambda name: -seconds.get(name, 0))
    ]
    return compare(paths, options.jobs, execute.environment(ROOT, "smoke"))


if __name__ == "__main__":
    sys.exit(main())
