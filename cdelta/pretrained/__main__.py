"""``python -m cdelta.pretrained [NAME ...]``: train the networks that the book shows."""

import argparse

from cdelta.pretrained import FOLDER, RECIPES, read_manifest, train


def main() -> None:
    """Train the networks named, or all."""
    parser = argparse.ArgumentParser(prog="python -m cdelta.pretrained", description=main.__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"some of {', '.join(RECIPES)} (default: all)"
    )
    parser.add_argument(
        "--folder", default=FOLDER, help="where the weights go (default: the package)"
    )
    parser.add_argument(
        "--checkpoints", default="build/training", help="where an interrupted run is kept"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(RECIPES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(RECIPES)}")
    for name in arguments.names or RECIPES:
        print(f"{name}: {RECIPES[name].steps} steps", flush=True)
        train(name, arguments.folder, arguments.checkpoints)
        manifest = read_manifest(name, arguments.folder)
        print(
            f"{name}: {manifest['seconds']} s, {manifest['parameters']} parameters, "
            f"held-out loss {manifest['held_out_loss']:.4f} ± {manifest['held_out_stderr']:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
