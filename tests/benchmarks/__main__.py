"""Runs the named benchmarks, or all: ``python -m tests.benchmarks posterior``."""

import importlib
import pkgutil
import sys

from tests import benchmarks


def main(names: list[str]) -> int:
    known = sorted(
        module.name
        for module in pkgutil.iter_modules(benchmarks.__path__)
        if not module.name.startswith("_")
    )
    if unknown := [name for name in names if name not in known]:
        print(
            f"no such benchmark: {', '.join(unknown)}; there are {', '.join(known)}",
            file=sys.stderr,
        )
        return 2
    for name in names or known:
        print(f"== {name}", flush=True)
        importlib.import_module(f"tests.benchmarks.{name}").main()
        print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
