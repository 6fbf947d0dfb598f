"""Errors planted in cdelta and the book's scripts, with the tests that must catch each:
``make mutants``.

A file ``MODULE.toml`` for each module of the package (``causal.effects.toml``) or of the book
(``book.finish.toml``), an entry for each error: ``breaks`` says in words what becomes wrong;
``old`` is text that occurs once in the module, ``new`` what takes its place; ``tests`` are named as
pytest names them, from ``tests/`` on;
``quick`` marks those that a sample is drawn from: their tests take a second or two. ``needs`` names
a package without which their tests are skipped, and so the error is not planted.

A list that is kept, and not what mutmut or cosmic-ray would generate. Those change every operator
of every line: most of the thousands of programs differ in what they refuse or say, or not at all (a
sum in another order, a tolerance), to be sorted out by hand again and again, and each pays for
importing JAX and for compiling anew. They also import the package past jaxtyping's hook, on which
the tests rely. And of the errors that matter, a weight squared, a key used twice, few are one
operator.
"""

import hashlib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests import ROOT

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Mutant:
    """One error; ``module`` without the package's name."""

    module: str
    breaks: str
    old: str
    new: str
    tests: tuple[str, ...]
    quick: bool = False
    needs: str = ""

    @property
    def path(self) -> Path:
        """The module's file, from the root on."""
        parts = self.module.split(".")
        plain = Path(*parts) if parts[0] == "book" else Path("cdelta", *parts)
        package = plain / "__init__.py"
        return package if (ROOT / package).is_file() else plain.with_suffix(".py")

    def planted(self, source: str) -> str:
        """The module with the error. Raises ValueError when the old text is not there once."""
        if source.count(self.old) != 1 or self.old == self.new:
            raise ValueError(
                f"{self.path}: the error {self.breaks!r} cannot be planted, its old text occurs "
                f"{source.count(self.old)} times: {self.old!r}"
            )
        return source.replace(self.old, self.new)


def modules() -> list[str]:
    """The modules that have errors, in the alphabet's order."""
    return sorted(path.stem for path in HERE.glob("*.toml"))


def mutants(names: Iterable[str] = ()) -> list[Mutant]:
    """The errors of the named modules and of those inside them (``datasets``), or of all."""
    names = list(names)
    chosen = [m for m in modules() if not names or any(f"{m}.".startswith(f"{n}.") for n in names)]
    missing = [name for name in names if not any(f"{m}.".startswith(f"{name}.") for m in chosen)]
    if missing:
        raise ValueError(f"no errors are kept of {', '.join(missing)}: see {', '.join(modules())}")
    found = []
    for module in chosen:
        entries = tomllib.loads((HERE / f"{module}.toml").read_text("utf-8"))["mutant"]
        found += [Mutant(module, **entry | {"tests": tuple(entry["tests"])}) for entry in entries]
    return found


def sample(some: list[Mutant], n: int) -> list[Mutant]:
    """``n`` of the quick ones, always the same, mixed over the modules."""
    quick = [mutant for mutant in some if mutant.quick]
    order = sorted(quick, key=lambda m: hashlib.sha256((m.module + m.new).encode()).digest())
    return sorted(order[:n], key=some.index)
