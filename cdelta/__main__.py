"""The command line: ``python -m cdelta COMMAND --help``."""

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import sysconfig
import traceback
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import cdelta
from cdelta import _files, ledger

ROOT = Path(cdelta.__file__).resolve().parent.parent  # of a checkout, where the package is in one
PACKAGES = ("jax", "jaxlib", "numpy", "diffrax", "flax", "equinox", "torch", "pandas", "matplotlib")
FAILED, MISUSED = 1, 2  # exit codes; 0 where all went well


class Failure(Exception):
    """What the command line says in one line, and ends with code 1."""

    code = FAILED


class Misuse(Failure):
    """A call that makes no sense, whatever the files hold: ends with code 2."""

    code = MISUSED


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 where it failed, 2 for a call that makes no
    sense (argparse exits with that itself).

    What went wrong is said in one line. An exception from the user's own code follows with the
    lines of that code alone.
    """
    options = _parser().parse_args(argv)
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        return 130
    except Failure as failure:
        _complain(options.command, str(failure), failure.__cause__)
        return failure.code
    except Exception as error:
        _complain(options.command, _in_words(error), error)
        return FAILED


def _complain(command: str, text: str, error: BaseException | None) -> None:
    print(f"cdelta {command}: {text}", *_own_lines(error), sep="\n", file=sys.stderr)


def _in_words(error: BaseException) -> str:
    """An error as one line: the package's own as they are, a user's with their kind."""
    text = " ".join(str(error).split())[:500] or "no message"
    plain = isinstance(error, ValueError | ImportError | OSError) and not _own_lines(error)
    return text if plain else f"{type(error).__name__}: {text}"


def _own_lines(error: BaseException | None) -> list[str]:
    """Where in the user's own code an error, or what it came from, was raised; innermost last."""
    while error is not None:
        if isinstance(error, SyntaxError):
            return [f"  {error.filename}, line {error.lineno}: {(error.text or '').strip()}"]
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if not _is_of_a_library(frame.filename)]
        if own:
            notes = [note for note in getattr(error, "__notes__", []) if "\n" not in note.strip()]
            places = [f"  {f.filename}, line {f.lineno}, in {f.name}: {f.line}" for f in own[-3:]]
            return [*places, *(f"  {note}" for note in notes)]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return []


_LIBRARIES = {"site-packages", "dist-packages"}


def _is_of_a_library(filename: str) -> bool:
    path = Path(filename)
    if filename.startswith("<") or _LIBRARIES & set(path.parts):
        return True
    homes = (Path(cdelta.__file__).parent, Path(sysconfig.get_path("stdlib")))
    return any(home in path.parents for home in homes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cdelta", description="Causality–Δ: what a wiggle says about the features."
    )
    parser.add_argument("--version", action="version", version=f"cdelta {cdelta.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable, about: str, rest: bool = False
    ) -> argparse.ArgumentParser:
        # what another program's own options are is its own to say
        more = {"add_help": False, "prefix_chars": "\0"} if rest else {}
        added = commands.add_parser(name, help=about, description=about, **more)
        added.set_defaults(run=run)
        if rest:
            added.add_argument("arguments", nargs="*")
        return added

    one = command("report", _report, "One flow: how its features depend on each other, and what to "
                  "believe of that.")  # fmt: skip
    one.add_argument(
        "f",
        metavar="MODULE:NAME",
        help="a map from a latent to features, a cdelta.Flow or a velocity (t, x): an attribute of "
        "a module that Python finds from here, or of a file (flow.py:velocity)",
    )
    one.add_argument(
        "--shape", type=_positive, nargs="+", required=True, metavar="N", help="the latent's shape"
    )
    one.add_argument("--features", metavar="MODULE:NAME", help="features of what the flow makes")
    one.add_argument("--names", nargs="+", metavar="NAME", help="the features' names, in order")
    one.add_argument("--held", nargs="+", metavar="FEATURE", help="features to hold (C4)")
    one.add_argument(
        "--graph",
        type=_json,
        metavar="JSON",
        help="""causes of features, by name or number, as '{"b": ["a"]}' or '{"1": [0]}', or a
        matrix, true at [i][j] for j → i""",
    )
    one.add_argument("--order", nargs="+", metavar="FEATURE", help="features, first cause first")
    much = one.add_mutually_exclusive_group()
    much.add_argument(
        "--budget", type=_latents, default=4096, metavar="N", help="latents of a moment"
    )
    much.add_argument("--seconds", type=_seconds, metavar="S", help="time instead of latents")
    one.add_argument("--seed", type=_seed, default=0, help="of the latents (default: 0)")
    one.add_argument("--double", action="store_true", help="compute in double precision")
    one.add_argument("--save", type=Path, metavar="PATH", help="a file for cdelta.Report.load")
    one.add_argument("--html", type=Path, metavar="PATH", help="a page for a browser")
    one.add_argument("--json", action="store_true", help="everything, for a pipeline")

    card = command("scorecard", _scorecard, "The claims, and what the executed book says of them.")
    card.add_argument("--executed", type=Path, help="the folder (default: book/executed)")
    card.add_argument("--json", action="store_true", help="for a pipeline")
    command(
        "chapter",
        _chapter,
        "Execute chapters of a checkout: chapter 07 --profile smoke.",
        rest=True,
    )
    command("train", _train, "Train the networks that the book shows, from nothing.", rest=True)
    info = command("info", _info, "Versions and devices.")
    info.add_argument("--json", action="store_true", help="for a pipeline")
    return parser


# ------------------------------------------------------------------------------------ commands


def _report(options: argparse.Namespace) -> int:
    import jax

    from cdelta import reporting
    from cdelta._asked import Asked

    files = [path for path in (options.save, options.html) if path is not None]
    for path in files:  # before anything is computed
        _probe(path)
    if len({path.resolve() for path in files}) < len(files):
        raise Misuse(f"--save and --html are one file, {options.html}")
    if options.double:
        jax.config.update("jax_enable_x64", True)
    with contextlib.redirect_stdout(sys.stderr):  # what the user's code prints is no report
        f = found(options.f)
        features = None if options.features is None else found(options.features)
        budget = options.budget if options.seconds is None else options.seconds
        key, shape = jax.random.key(options.seed), tuple(options.shape)
        with _misuse():
            asked = Asked.of(f, key, shape, features, options.names, budget, {})
            typed = (options.held, options.graph, options.order)
            asked = asked.wanting(*(_features(one, asked.labels.names) for one in typed))
        made = reporting._made(asked)
    # to the screen first: it is there whatever the disk does
    failed = [_say(json.dumps(made.to_json()) if options.json else str(made))]
    head = '<!doctype html><meta charset="utf-8"><title>cdelta: a report</title>'
    for path, write in (
        (options.save, made.save),
        (options.html, lambda path: _files.write(path, f"{head}\n{made._repr_html_()}\n")),
    ):
        try:
            if path is not None:
                write(path)
        except OSError as error:
            failed.append(f"{path} could not be written ({error})")
    if any(failed):
        raise Failure("; ".join(filter(None, failed)))
    return 0


def _probe(path: Path) -> None:
    """Raise the OSError that writing would raise; folders that are missing will be made."""
    folder = next(parent for parent in path.resolve().parents if parent.exists())
    _files.probe(path if folder == path.parent.resolve() else folder / path.name)


def _say(text: str) -> str:
    """Print, whatever letters the terminal knows; why not, where nobody listens any more or a disk
    is full, else nothing."""
    try:
        try:
            print(text, flush=True)
        except UnicodeEncodeError:
            coding = sys.stdout.encoding
            print(text.encode(coding, "backslashreplace").decode(coding), flush=True)
    except OSError as error:
        # what Python would flush at its end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return f"the report could not be printed ({error})"
    return ""


@contextlib.contextmanager
def _misuse() -> Iterator[None]:
    """What is refused here is a call that makes no sense, unless the user's own code raised it."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if _own_lines(error):
            raise
        raise Misuse(_in_words(error)) from error


def _features(typed: Any, names: Sequence[str] | None) -> Any:
    """Features as they were typed, anywhere in what was typed: a number is an index, unless some
    feature is called so."""
    if isinstance(typed, dict):
        return {_features(one, names): _features(causes, names) for one, causes in typed.items()}
    if isinstance(typed, list):
        return [_features(one, names) for one in typed]
    is_index = isinstance(typed, str) and typed.isdecimal() and typed not in (names or ())
    return int(typed) if is_index else typed


def _positive(text: str) -> int:
    return _number(text, int, lambda n: n >= 1, "a positive integer")


def _latents(text: str) -> int:
    return _number(text, int, lambda n: n >= 8, "8 latents or more, an integer")


def _seconds(text: str) -> float:
    return _number(text, float, lambda s: 0 < s < float("inf"), "a positive number of seconds")


def _seed(text: str) -> int:
    # of more bits jax keeps those that its precision has: other numbers, the same latents
    return _number(text, int, lambda n: 0 <= n < 2**32, "an integer from 0 to 4294967295")


def _number(text: str, kind: type, fits: Callable, wanted: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text}")
    return value


def _json(text: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [name for name, count in Counter(name for name, _ in items).items() if count > 1]
        if twice:
            raise argparse.ArgumentTypeError(f"names {twice[0]!r} twice: {text}")
        return dict(items)

    try:
        value = json.loads(text, object_pairs_hook=pairs)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be JSON, {error}: {text}") from error
    if not isinstance(value, dict | list):
        raise argparse.ArgumentTypeError(f"must be an object or a matrix, got {text}")
    return value


def found(where: str) -> Any:
    """The object at ``module:name`` or ``path/to/file.py:name``. Raises Failure saying what is not
    there, or that the module ended Python."""
    place, _, name = where.rpartition(":")
    if not place or not name:
        raise Misuse(f"{where!r} must be module:name or file.py:name")
    try:
        module = _of_a_file(Path(place)) if place.endswith(".py") else _by_name(place)
    except ModuleNotFoundError as error:
        raise Failure(f"{error} (for {where})") from error
    except SystemExit as error:
        raise Failure(
            f"{place} ended Python while it was imported (exit code {error.code}): what it does as "
            'a program belongs under if __name__ == "__main__"'
        ) from error
    value = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise Failure(f"{place} has no {name}")
        value = getattr(value, part)
    return value


def _by_name(place: str) -> types.ModuleType:
    if not all(part.isidentifier() for part in place.split(".")):
        raise Misuse(f"{place!r} is no module's name: give module:name or file.py:name")
    _on_the_path(Path.cwd())
    return importlib.import_module(place)


def _of_a_file(path: Path) -> types.ModuleType:
    """The module that a file is, with its neighbours in reach as if Python ran it; once, however
    often it is asked for."""
    if not path.is_file():
        raise Failure(f"there is no file {path}")
    path, name = path.resolve(), path.stem
    there = sys.modules.get(name)
    if there is not None and getattr(there, "__file__", None) == str(path):
        return there
    if there is not None:  # a library's name, which others have to find as they left it
        name = f"cdelta_file_{name}"
    _on_the_path(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _on_the_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _scorecard(options: argparse.Namespace) -> int:
    root = _checkout("book/claims.yml")
    claims = ledger._load(root / "book" / "claims.yml")
    companion = _script(root / "book" / "companion.py")
    chapters = {path.stem for path in (root / "notebooks").glob("*.md")}
    records = [
        record
        for record in ledger.read(options.executed or root / "book" / "executed")
        if record["notebook"] in chapters
    ]
    verdicts = {
        claim_id: companion.verdict(
            claim, [record for record in records if record["claim"] == claim_id]
        )
        for claim_id, claim in claims.items()
    }
    if options.json:
        told = {"verdicts": verdicts, "counts": Counter(verdicts.values())}
        print(json.dumps(told, ensure_ascii=False))
    else:
        for claim_id, verdict in verdicts.items():
            print(f"{claim_id:<4} {verdict:<13} {' '.join(claims[claim_id]['statement'].split())}")
        print(", ".join(f"{count} {name}" for name, count in Counter(verdicts.values()).items()))
    return FAILED if "missed" in verdicts.values() else 0


def _chapter(options: argparse.Namespace) -> int:
    script = _checkout("book/execute.py") / "book" / "execute.py"
    return subprocess.run([sys.executable, str(script), *options.arguments]).returncode


def _train(options: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "cdelta.pretrained", *options.arguments]
    return subprocess.run(command).returncode


def _info(options: argparse.Namespace) -> int:
    import jax

    versions = {"cdelta": cdelta.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    devices = [str(device) for device in jax.devices()]
    told = {
        "versions": versions,
        "devices": devices,
        "backend": jax.default_backend(),
        "double precision": bool(jax.config.jax_enable_x64),
        "checkout": str(ROOT) if (ROOT / "book" / "execute.py").is_file() else None,
    }
    if options.json:
        print(json.dumps(told))
        return 0
    for name, version in versions.items():
        print(f"{name:<12} {version or '-'}")
    print(f"{'devices':<12} {', '.join(devices)} ({told['backend']})")
    print(f"{'checkout':<12} {told['checkout'] or '-'}")
    return 0


def _checkout(needed: str) -> Path:
    """The checkout that the package lies in, or that the command was called in."""
    for root in (Path.cwd(), *Path.cwd().parents, ROOT):
        if (root / needed).is_file() and (root / "cdelta").is_dir():
            return root
    raise Failure(f"a checkout of the book is needed: there is no {needed} here, nor above")


def _script(path: Path) -> Any:
    """A script of the book as a module. Raises ImportError naming the extra that it needs."""
    spec = importlib.util.spec_from_file_location(f"cdelta_book_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f'{error}, install it with: pip install "cdelta[book]"') from error
    return module


if __name__ == "__main__":
    sys.exit(main())
