"""Execute the notebooks that changed, several at once, into a folder of finished copies.

    python book/execute.py --profile book --jobs 2            # every notebook
    python book/execute.py 01 --profile smoke                 # one of them

For each notebook ``NAME.md`` the folder receives ``NAME.ipynb`` (executed) and ``NAME.json`` (how:
profile, times, versions, ledger records, and the fingerprint of everything that the result
depends on). A notebook is executed again only when its fingerprint changes. Both files are written
whole; a notebook that fails leaves neither.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import threads

from cdelta import _files, profiles

ROOT = Path(__file__).resolve().parent.parent
STARTUP = ROOT / "book/startup.py"
PACKAGES = (
    "jax",
    "jaxlib",
    "numpy",
    "scipy",
    "diffrax",
    "equinox",
    "flax",
    "optax",
    "matplotlib",
    "cdelta",
)
# In the smoke profile compilation is the most. These make it twice as fast, and what was compiled
# hardly slower: fewer optimizations by LLVM, and the older of two ways to write a fused kernel.
QUICK = "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"
FAILED = 3  # the exit code of a child whose notebook raised, after it said where


# ------------------------------------------------------------------------- what a result depends on


def fingerprint(source: Path, profile: str, root: Path = ROOT) -> str:
    """Hash of all that decides what a notebook shows: its source, the profile, ``cdelta`` (code and
    data), the locked requirements, the Python version, this script, what a kernel runs first, and
    where CelebA is, if it is there."""
    told = f"{profile}\n{platform.python_version()}\n{celeba() or ''}\n"
    digest = hashlib.sha256(told.encode())
    package = (
        path
        for path in (root / "cdelta").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    ours = (Path(script).resolve() for script in (__file__, threads.__file__, STARTUP))
    for path in (source, root / "requirements.txt", *ours, *sorted(package)):
        digest.update(f"{path.name}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def celeba() -> str | None:
    """Where the user says that CelebA is, from wherever one asks; None when nothing is said."""
    said = os.environ.get("CDELTA_CELEBA", "").strip()
    return str(Path(said).expanduser().resolve()) if said else None


def finished(target: Path, mark: str) -> dict[str, Any] | None:
    """The run that made ``target``, when it is whole and its fingerprint is still ``mark``."""
    try:
        run = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
        whole = run["notebook_sha256"] == hashlib.sha256(target.read_bytes()).hexdigest()
    except (OSError, ValueError, KeyError):
        return None
    return run if whole and run["fingerprint"] == mark else None


# --------------------------------------------------------------------------- one notebook (a child)


def execute(source: Path, target: Path, profile: str, root: Path, mark: str) -> None:
    """Run one notebook from its MyST source and write the finished copy and its record."""
    import jupytext
    import nbformat
    import papermill

    notebook = jupytext.read(source)
    # jupytext invents new ids at each reading; the executed copy of the same source should be the
    # same file
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index}"
    if not any("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells):
        raise SystemExit(
            f"{source.name}: no cell is tagged 'parameters', so the profile cannot be set"
        )

    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        short = socket_place()
        config = sockets(short and stack.enter_context(tempfile.TemporaryDirectory(dir=short)))
        ledger = Path(scratch) / "ledger.jsonl"
        compiling = Path(scratch) / "compiling"
        os.environ["CDELTA_LEDGER"] = str(ledger)
        os.environ["CDELTA_COMPILING"] = str(compiling)
        os.environ["IPYTHONDIR"] = str(Path(scratch) / "ipython")
        startup = Path(scratch) / "ipython/profile_default/startup"
        startup.mkdir(parents=True)
        shutil.copy(STARTUP, startup)
        start, used = time.perf_counter(), cpu_seconds()
        try:
            done = papermill.execute_notebook(
                notebook,
                None,
                parameters={"profile": profile},
                cwd=root,
                kernel_name="python3",
                progress_bar=False,
                start_timeout=300,  # on a busy machine, the first import from a fresh environment
                config=config,
            )
        except papermill.PapermillExecutionError as error:
            report_failure(source.name, error, notebook)
            raise SystemExit(FAILED) from None
        seconds, used = time.perf_counter() - start, cpu_seconds() - used
        spent = float(compiling.read_text()) if compiling.exists() else None
        records = (
            [json.loads(line) for line in ledger.read_text("utf-8").splitlines()]
            if ledger.exists()
            else []
        )

    clean(done, profile)
    name_folds(done)
    for index, said in take_stderr(done):
        print(f"{source.name}: cell {index} said: {said}", file=sys.stderr, flush=True)
    text = nbformat.writes(done) + "\n"
    _files.write(target, text)
    run = {
        "profile": profile,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used, 2),
        "compiling_seconds": spent,
        "executed": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(root),
        "machine": machine(),
        "versions": versions(),
        "ledger": records,
        "fingerprint": mark,
        "notebook_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    record = json.dumps(run, indent=1, ensure_ascii=False) + "\n"
    _files.write(target.with_suffix(".json"), record)


def cpu_seconds() -> float:
    """Of this process and of its children that have ended (a kernel, for one)."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def socket_place() -> str | None:
    """Where a folder of our own can hold a kernel's sockets; None where there is no such place.

    A socket that is a file has a name of at most 107 bytes (103 on macOS), whatever TMPDIR says.
    """
    if os.name == "nt":
        return None
    for place in (tempfile.gettempdir(), "/tmp"):
        longest = f"{place}/tmp12345678/kernel-5"
        if len(os.fsencode(longest)) <= 103 and os.access(place, os.W_OK | os.X_OK):
            return place
    return None


def sockets(folder: str | None) -> Any:
    """How to talk to a kernel: by files in ``folder``, where there is one, else by ports. These are
    chosen before they are bound, so that kernels which start at the same time may get the same."""
    from traitlets.config import Config

    if folder is None:
        return Config()
    return Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})


def report_failure(name: str, error: Any, notebook: Any) -> None:
    """Say which cell of the source failed, what it holds and what it raised."""
    index = next(
        (i for i, cell in enumerate(notebook.cells) if cell.source == error.source),
        error.cell_index,
    )
    rule = "-" * 100
    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    what = f"{name}: cell {index} raised {error.ename}: {error.evalue}"
    print(rule, f"{what}\n\n{error.source}\n\n{trace}", rule, sep="\n", file=sys.stderr, flush=True)


def clean(notebook: Any, profile: str) -> None:
    """Take papermill's traces away: its metadata, its marks, and its injected cell, which is hidden
    from the page. The parameters cell then has to show the profile that was used."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        tags = [tag for tag in cell.metadata.get("tags", []) if not tag.startswith("papermill")]
        if "injected-parameters" in tags:
            tags.append("remove-cell")
            cell["id"] = "injected"
            cell.source = re.sub(r"^# Parameters\n", "", cell.source)
        if "parameters" in tags:
            cell.source = re.sub(
                r"(?m)^(profile\s*=\s*)(\"|')\w*\2", rf'\1"{profile}"', cell.source
            )
        if tags:
            cell.metadata["tags"] = tags
        else:
            cell.metadata.pop("tags", None)


def title(cell: Any) -> str | None:
    """What a folded cell holds: the comment on its first line. None where it does not say."""
    if "hide-input" not in cell.metadata.get("tags", []):
        return None
    said = re.match(r"# +(\S.*)", cell.source)
    return said and said[1].rstrip()


def name_folds(notebook: Any) -> None:
    """Have the page write on each fold what the first line of its code says: a reader in Jupyter,
    where nothing is folded, sees the same words."""
    for cell in notebook.cells:
        if said := title(cell):
            cell.metadata["mystnb"] = {"code_prompt_show": said, "code_prompt_hide": said}


def take_stderr(notebook: Any) -> list[tuple[int, str]]:
    """Take away what cells wrote to stderr, and give it: for whoever builds, it is not for a page,
    and often names files of this machine."""
    taken = []
    for index, cell in enumerate(notebook.cells):
        outputs = cell.get("outputs", [])
        taken += [(index, one.text) for one in outputs if one.get("name") == "stderr"]
        if outputs:
            cell.outputs = [one for one in outputs if one.get("name") != "stderr"]
    return taken


def remove(target: Path) -> None:
    target.unlink(missing_ok=True)
    target.with_suffix(".json").unlink(missing_ok=True)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"system": platform.system(), "architecture": platform.machine(), "cores": usable}


def commit(root: Path) -> str | None:
    """The commit checked out, with ``+`` when tracked files differ from it; None outside a git
    clone."""
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run(
            [*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty else "")


# ------------------------------------------------------------------------- all of them (the parent)


# Where a person's own settings would get into what a notebook shows.
SETTINGS = ("PYTHONSTARTUP", "MATPLOTLIBRC", "MPLBACKEND", "JUPYTER_CONFIG_PATH", "JUPYTER_PATH")


def environment(root: Path, profile: str) -> dict[str, str]:
    """What a kernel is started with: what the parent has, without the user's settings of IPython,
    Jupyter and matplotlib. Compiled XLA programs are kept between runs, outside the tree."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cdelta"
    defaults = {
        "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "CDELTA_CLAIMS": str(root / "book" / "claims.yml"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "TQDM_DISABLE": "1",
        "PYTHONHASHSEED": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",  # XLA says when a slow machine compiles slowly
        **threads.THREADS,
    }
    if profile == "smoke":
        defaults["XLA_FLAGS"] = QUICK
    # folders where nobody keeps settings; matplotlib's also remembers which fonts there are
    ours = {
        "IPYTHONDIR": str(cache / "ipython"),
        "JUPYTER_CONFIG_DIR": str(cache / "jupyter"),
        "MPLCONFIGDIR": str(cache / "matplotlib"),
    }
    for place in ours.values():
        # where home cannot be written, each program finds itself a temporary folder
        with contextlib.suppress(OSError):
            os.makedirs(place, exist_ok=True)
    env = {**defaults, **os.environ, **ours}
    for name in SETTINGS:
        env.pop(name, None)
    # a kernel works in the root, wherever a relative path was meant to start
    env.pop("CDELTA_CELEBA", None)
    if place := celeba():
        env["CDELTA_CELEBA"] = place
    return env


class Children:
    """The running children, so that all of them can be told to stop; after that, none is
    started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, command: list[str], env: dict[str, str]) -> int | None:
        with self._lock:
            if self._stopped:
                return None
            # In a session of its own, so that Ctrl-C reaches the parent alone, which then ends the
            # children in order. The pipe tells a child when the parent is no more (a lost terminal,
            # a kill): it is closed then, whatever the cause.
            child = subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, start_new_session=True
            )
            self._running.add(child)
        code = child.wait()
        with self._lock:
            self._running.discard(child)
            child.stdin.close()
        return code

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for child in self._running:
                child.stdin.close()


def follow_parent() -> None:
    """In a child: be interrupted, as by Ctrl-C, when the parent closes the pipe or is no more.
    nbclient then ends the kernel."""

    def wait() -> None:
        os.read(0, 1)  # not sys.stdin, whose lock Python wants when it ends
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


def run_all(
    sources: list[Path], folder: Path, profile: str, jobs: int, root: Path, force: bool = False
) -> int:
    """Execute what changed; the number of notebooks that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    env, children = environment(root, profile), Children()
    width = max(len(source.stem) for source in sources)
    counter, lock, failures = [0], threading.Lock(), []

    def say(name: str, state: str, seconds: float, note: str = "") -> None:
        with lock:
            counter[0] += 1
            print(
                f"[{counter[0]}/{len(sources)}] {name:<{width}} {state:>8} {seconds:7.1f} s{note}",
                flush=True,
            )

    def one(source: Path, mark: str, target: Path) -> None:
        remove(target)
        start = time.perf_counter()
        command = [
            sys.executable,
            __file__,
            "--child",
            str(source),
            str(target),
            profile,
            str(root),
            mark,
        ]
        code = children.run(command, env)
        seconds = time.perf_counter() - start
        if code == 0:
            say(source.stem, "executed", seconds)
        elif code is not None:
            remove(target)
            failures.append(source.stem)
            say(source.stem, "FAILED", seconds, "" if code == FAILED else f"  (exit code {code})")

    waiting = []
    for source in sources:
        target, mark = folder / f"{source.stem}.ipynb", fingerprint(source, profile, root)
        run = None if force else finished(target, mark)
        if run:
            say(source.stem, "cached", run["seconds"])
        else:
            waiting.append((last_seconds(target), source, mark, target))
    waiting.reverse()  # where no time is known yet: the later chapters take longer
    # the longest first, so that no long one is left over for the end
    waiting.sort(key=lambda item: -item[0])

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        tasks = [pool.submit(one, *item[1:]) for item in waiting]
        try:
            for task in tasks:
                task.result()
        except KeyboardInterrupt:
            children.stop()
            pool.shutdown(cancel_futures=True)
            print("interrupted; what was finished is kept", file=sys.stderr)
            raise SystemExit(130) from None
    if failures:
        print(
            f"{len(failures)} of {len(sources)} notebooks failed: {', '.join(sorted(failures))}",
            file=sys.stderr,
        )
    return len(failures)


def toc_files(root: Path) -> list[str]:
    """The pages that ``_toc.yml`` names, in order."""
    import yaml

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            yield from (node[key] for key in ("root", "file") if key in node)
        for child in (
            node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        ):
            yield from walk(child)

    return list(walk(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))))


def chapters(root: Path) -> list[str]:
    """The notebooks that the table of contents names, in its order."""
    prefix = "book/executed/"
    return [name.removeprefix(prefix) for name in toc_files(root) if name.startswith(prefix)]


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """How each notebook in ``folder`` was executed, by its name."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"))
    }


def last_seconds(target: Path) -> float:
    try:
        return float(json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError):
        return float("inf")


def discard_others(folder: Path, sources: list[Path]) -> None:
    """Drop the copies of notebooks that are no more: a scorecard must not show them."""
    names = {source.stem for source in sources}
    for record in folder.glob("*.json"):
        if record.stem not in names:
            remove(record.with_suffix(".ipynb"))


def find(names: list[str], sources: list[Path]) -> list[Path]:
    """The sources that are meant: ``01_linear_maps``, its file, its beginning, or its number.

    Raises ValueError, which lists those there are, when a name is that of none or of several.
    """
    stems = [source.stem for source in sources]
    wanted = set()
    for name in names:
        stem = Path(name).stem if name.endswith((".md", ".ipynb")) else name
        number = f"{stem:0>2}_" if stem.isdigit() else stem
        found = [stem] if stem in stems else [other for other in stems if other.startswith(number)]
        if not found:
            raise ValueError(f"no such notebook: {name}; there are {', '.join(stems) or 'none'}")
        if len(found) > 1:
            raise ValueError(f"{name} could be any of {', '.join(found)}")
        wanted.add(found[0])
    return [source for source in sources if source.stem in wanted]


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    # the latter is ignored from birth in a script's background
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, interrupt)
    if arguments[:1] == ["--child"]:
        source, target, profile, root, mark = arguments[1:]
        follow_parent()
        try:
            execute(Path(source), Path(target), profile, Path(root), mark)
        except KeyboardInterrupt:
            logging.disable()  # asyncio would tell of the cell that was cut short
            return 130
        return 0

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names",
        nargs="*",
        help="notebooks to execute, such as 01 or 01_linear_maps; all when none is named",
    )
    parser.add_argument("--profile", choices=profiles.NAMES, default="book")
    parser.add_argument(
        "--jobs", "-j", type=int, default=min(2, os.cpu_count() or 1), help="notebooks at once"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the finished copies (default: book/executed)"
    )
    parser.add_argument("--force", action="store_true", help="execute also what did not change")
    parser.add_argument(
        "--root", type=Path, default=ROOT, help="the repository (default: the one of this script)"
    )
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    root = options.root.resolve()
    everything = sorted((root / "notebooks").glob("*.md"))
    # without names, the chapters: a draft that the table of contents does not mention yet is
    # executed by its name only
    try:
        sources = find(options.names or chapters(root), everything)
    except ValueError as error:
        parser.error(str(error))
    if not sources:
        parser.error("_toc.yml names no notebook")
    folder = (options.out or root / "book" / "executed").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    discard_others(folder, everything)
    return 1 if run_all(sources, folder, options.profile, options.jobs, root, options.force) else 0


if __name__ == "__main__":
    sys.exit(main())
