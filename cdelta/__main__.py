"""The command line: ``python -m cdelta COMMAND --help``."""

import argparse
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 where it failed, 2 for a call that makes no
    sense (argparse exits with that itself)."""
    options = _parser().parse_args(argv)
    try:
        return options.run(options) or 0
    except (Failure, ValueError, ImportError, OSError) as error:
        print(f"cdelta {options.command}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 130


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
        "--shape", type=int, nargs="+", required=True, metavar="N", help="the latent's shape"
    )
    one.add_argument("--features", metavar="MODULE:NAME", help="features of what the flow makes")
    one.add_argument("--names", nargs="+", metavar="NAME", help="the features' names, in order")
    one.add_argument("--held", nargs="+", metavar="FEATURE", help="features to hold (C4)")
    one.add_argument(
        "--graph",
        type=json.loads,
        metavar="JSON",
        help="""causes of features, as '{"b": ["a"]}' or as a matrix, true at [i][j] for j → i""",
    )
    one.add_argument("--order", nargs="+", metavar="FEATURE", help="features, first cause first")
    much = one.add_mutually_exclusive_group()
    much.add_argument("--budget", type=int, default=4096, metavar="N", help="latents of a moment")
    much.add_argument("--seconds", type=float, metavar="S", help="time instead of latents")
    one.add_argument("--seed", type=int, default=0, help="of the latents (default: 0)")
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

    if options.double:
        jax.config.update("jax_enable_x64", True)
    f = found(options.f)
    features = None if options.features is None else found(options.features)
    given = {name: _numbers(getattr(options, name), options.names) for name in ("held", "order")}
    made = cdelta.report(
        f,
        jax.random.key(options.seed),
        tuple(options.shape),
        features=features,
        names=options.names,
        graph=options.graph,
        budget=options.budget if options.seconds is None else options.seconds,
        **given,
    )
    if options.save is not None:
        made.save(options.save)
    if options.html is not None:
        head = '<!doctype html><meta charset="utf-8"><title>cdelta: a report</title>'
        _files.write(options.html, f"{head}\n{made._repr_html_()}\n")
    print(json.dumps(made.to_json()) if options.json else made)
    return 0


def _numbers(features: list[str] | None, names: list[str] | None) -> list[str | int] | None:
    """Features as they were typed: a number is an index, unless some feature is called so."""
    if features is None:
        return None
    return [int(one) if one.isdigit() and one not in (names or ()) else one for one in features]


def found(where: str) -> Any:
    """The object at ``module:name`` or ``path/to/file.py:name``. Raises Failure saying what is not
    there."""
    place, _, name = where.rpartition(":")
    if not place or not name:
        raise Failure(f"{where!r} must be module:name or file.py:name")
    try:
        if place.endswith(".py"):
            path = Path(place)
            if not path.is_file():
                raise Failure(f"there is no file {place}")
            spec = importlib.util.spec_from_file_location(path.stem, path)
            module = importlib.util.module_from_spec(spec)
            sys.modules[path.stem] = module
            spec.loader.exec_module(module)
        else:
            if os.getcwd() not in sys.path:
                sys.path.insert(0, os.getcwd())
            module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise Failure(f"{error} (for {where})") from error
    value = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise Failure(f"{place} has no {name}")
        value = getattr(value, part)
    return value


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
