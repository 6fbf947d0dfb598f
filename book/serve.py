"""Show the built book on this machine: ``python book/serve.py [port]``.

Without a port, the first free one from 8000 on. The address that is printed is the one that
answers.
"""

import argparse
import functools
import http.server
import sys
from pathlib import Path

PAGES = Path(__file__).resolve().parent.parent / "_build" / "html"
PORTS = range(8000, 8100)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    allow_reuse_address = sys.platform != "win32"  # there it would share a port that is taken


def bind(folder: Path, ports: range | list[int]) -> Server:
    """A server of ``folder`` at the first of ``ports`` that is free; OSError when none is."""
    handler = functools.partial(Quiet, directory=str(folder))
    for port in ports:
        try:
            return Server(("127.0.0.1", port), handler)
        except OSError as error:
            taken = error
    raise taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", nargs="?", type=int, help="this port or none")
    parser.add_argument("--folder", type=Path, default=PAGES)
    options = parser.parse_args()
    if not (options.folder / "index.html").is_file():
        print("nothing built yet: make book", file=sys.stderr)
        return 1
    try:
        server = bind(options.folder, PORTS if options.port is None else [options.port])
    except OSError as error:
        where = f"port {options.port or f'{PORTS[0]} to {PORTS[-1]}'}"
        print(f"cannot serve at {where} ({error.strerror}): make serve PORT=...", file=sys.stderr)
        return 1
    print(f"http://localhost:{server.server_port}/ (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
