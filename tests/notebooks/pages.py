"""Opens built pages in headless Chromium, with no network, and says what a reader would find
broken.

    python -m tests.notebooks.pages _build/html

Two browsers share the pages, which they open from ``file://`` as a reader does; they are spoken to
by the DevTools protocol.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag, urlparse

import websocket

WIDTHS = (1280, 390)  # a laptop, a phone
PAPER_WIDTH = 720  # a sheet of A4 without its margins, at 96 dots an inch
SECONDS = 180  # for one page: machines differ by a factor, and are shared
SHIFT = 0.1  # of what may move while a page loads, in the browser's measure: below is "good"
SHIFTS = """window.cdShifts = [];
new PerformanceObserver(list => {
  for (const {value, sources} of list.getEntries())
    cdShifts.push([value, sources.map(({node}) => node?.outerHTML ?? node?.data ?? "").join(" ")]);
}).observe({type: "layout-shift", buffered: true})"""
HARMLESS = ("data:", "blob:", "about:", "chrome")


class Problem(NamedTuple):
    page: str
    kind: str
    detail: str


def find_chromium() -> str:
    """The browser: ``CHROMIUM``, or the first that is installed. Raises FileNotFoundError, with
    what to do."""
    usual = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    names = (os.environ.get("CHROMIUM"), *usual)
    for name in names:
        if name and (path := shutil.which(name)):
            return path
    raise FileNotFoundError(
        "no Chromium found, and the pages cannot be tested without one: install it "
        "(Debian: apt-get install chromium) "
        "or name it in the environment variable CHROMIUM"
    )


class Browser:
    """One page of a headless Chromium that cannot reach any host."""

    def __init__(self, port: int, path: str) -> None:
        self._socket = websocket.create_connection(
            f"ws://127.0.0.1:{port}{path}", timeout=SECONDS, suppress_origin=True, max_size=None
        )
        self._count = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Page.addScriptToEvaluateOnNewDocument", source=SHIFTS)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method and wait for its answer; events that arrive on the way are kept."""
        self._count += 1
        call = {"id": self._count, "method": method, "params": params}
        if self._session:
            call["sessionId"] = self._session
        self._socket.send(json.dumps(call))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self.events.append(message)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited when it is a promise."""
        result = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(f"in the page: {result['exceptionDetails']}")
        return result["result"].get("value")

    def width(self, width: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def open(self, url: str) -> list[dict[str, Any]]:
        """Load a page and wait until it has settled, formulas included; the events of its life so
        far."""
        self.events = []
        self.send("Page.navigate", url=url)
        deadline = time.monotonic() + SECONDS
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} did not load within {SECONDS} s")
            self.events.append(json.loads(self._socket.recv()))
        settled = (
            "(async () => { await document.fonts.ready;"
            " if (window.MathJax?.startup?.promise) await MathJax.startup.promise;"
            " await new Promise(done => setTimeout(done, 50)); })()"
        )
        for attempt in range(20):
            try:
                self.evaluate(settled)
                if not self.evaluate("!!document.querySelector('meta[http-equiv=refresh]')"):
                    return self.events
                time.sleep(0.2)  # it has not left yet
            except RuntimeError as error:  # a page that forwards to another one leaves while we ask
                if attempt == 19 or not re.search(
                    "navigated|context was destroyed|find context", str(error)
                ):
                    raise
                time.sleep(0.5)
        return self.events


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium, and end it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            find_chromium(),
            "--headless=new",
            "--no-sandbox",  # in containers there is none
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            ready = Path(profile) / "DevToolsActivePort"
            deadline = time.monotonic() + SECONDS
            while not (ready.exists() and len(ready.read_text().splitlines()) == 2):
                if process.poll() is not None:
                    raise RuntimeError(
                        f"Chromium ended at its start with exit code {process.returncode}"
                    )
                if time.monotonic() > deadline:
                    raise TimeoutError(f"Chromium did not start within {SECONDS} s")
                time.sleep(0.05)
            port, path = ready.read_text().splitlines()
            yield Browser(int(port), path)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


HERE = Path(__file__).parent
INSPECT, READING, OVERFLOW, PREVIEWS, NARROW, PAPER, ACCESSIBLE, AXE = (
    (HERE / f"{name}.js").read_text("utf-8")
    for name in (
        "inspect",
        "reading",
        "overflow",
        "previews",
        "narrow",
        "paper",
        "accessible",
        "axe/axe.min",
    )
)
CLOSED = "window.cdClosed = [...document.querySelectorAll('.bd-article details:not([open])')]"
OPEN = f"({CLOSED}).forEach(fold => fold.open = true)"
SETTLE = "new Promise(done => setTimeout(done, 60))"  # two frames, and what they set off


def look(tab: Browser, page: Path, root: Path) -> tuple[list[Problem], dict[str, Any]]:
    """Open one page: what is wrong with it, and its ids and links."""
    name = page.relative_to(root).as_posix()
    tab.width(WIDTHS[0])
    events = tab.open(page.as_uri())
    tab.evaluate(SETTLE)
    shifts = tab.evaluate("window.cdShifts || []")
    found = []
    if (moved := sum(size for size, _ in shifts)) > SHIFT:
        found.append(("layout shift", f"{moved:.2f}, most by {max(shifts)[1][:160]}"))
    seen = tab.evaluate(INSPECT)
    found += [*seen["found"], *tab.evaluate(READING), *tab.evaluate(PREVIEWS)]
    for width in WIDTHS:
        tab.width(width)
        if wide := tab.evaluate(OVERFLOW):
            found.append(("overflow", f"at {width} px: {wide}"))
    tab.evaluate(f"{OPEN};0")
    tab.evaluate(SETTLE)
    found += tab.evaluate(NARROW)
    tab.evaluate("cdClosed.forEach(fold => fold.open = false);0")
    tab.width(PAPER_WIDTH)
    tab.send("Emulation.setEmulatedMedia", media="print")
    found += tab.evaluate(PAPER)
    tab.send("Emulation.setEmulatedMedia", media="")
    tab.width(WIDTHS[0])
    tab.evaluate(f"{OPEN};{AXE};0")
    found += tab.evaluate(ACCESSIBLE)
    problems = [Problem(name, kind, detail) for kind, detail in found]
    return problems + [Problem(name, *problem) for problem in from_events(events, root)], seen


def from_events(events: list[dict[str, Any]], root: Path) -> Iterator[tuple[str, str]]:
    """What the browser reported: requests that leave the site or find nothing, errors on the
    console, exceptions."""
    requested: dict[str, str] = {}
    for event in events:
        method, params = event["method"], event.get("params", {})
        if method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            requested[params["requestId"]] = url
            if not url.startswith(HARMLESS) and inside(url, root) is None:
                yield "outside request", url
        elif method == "Network.loadingFailed" and not params.get("canceled"):
            url = requested.get(params["requestId"], "")
            if inside(url, root) is not None:
                yield "missing file", f"{url}: {params.get('errorText')}"
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            yield (
                "console error",
                details.get("exception", {}).get("description") or details["text"],
            )
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            yield (
                "console error",
                " ".join(str(arg.get("value", arg.get("description"))) for arg in params["args"]),
            )
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            entry = params["entry"]
            yield "console error", f"{entry['text']} {entry.get('url', '')}"


def inside(url: str, root: Path) -> Path | None:
    """The file of a ``file://`` address below ``root``."""
    if not url.startswith("file://"):
        return None
    path = Path(unquote(urlparse(url).path))
    return path if path.is_relative_to(root) else None


def broken_links(pages: dict[Path, dict[str, Any]], root: Path) -> Iterator[Problem]:
    """Links to files that are not there, to files outside the site, and to anchors that their page
    does not have."""
    for page, seen in pages.items():
        name = page.relative_to(root).as_posix()
        for link in dict.fromkeys(seen["links"]):
            address, fragment = urldefrag(link)
            if not address.startswith("file://"):
                continue
            path = inside(address, root)
            if path is None or not path.is_file():
                yield Problem(name, "broken link", link)
            elif (
                fragment and path in pages and unquote(fragment) not in {*pages[path]["ids"], "top"}
            ):
                yield Problem(name, "broken anchor", link)


def check(root: Path, browsers: int = 2) -> list[Problem]:
    """All that is wrong with the pages below ``root``, looked at in so many browsers at once."""
    root = root.resolve()
    files = sorted(root.rglob("*.html"))
    if not files:
        raise FileNotFoundError(f"no page below {root}")
    files = [page for page in files if "_static" not in page.relative_to(root).parts]  # the theme's
    waiting = iter(sorted(files, key=lambda page: -page.stat().st_size))  # the longest first

    def work() -> list[tuple[Path, list[Problem], dict[str, Any]]]:
        with browser() as tab:
            return [(page, *look(tab, page, root)) for page in waiting]

    with ThreadPoolExecutor(browsers) as pool:
        parts = [pool.submit(work) for _ in range(browsers)]
        seen = sorted((page for part in parts for page in part.result()), key=lambda one: one[0])
    problems = [problem for _, found, _ in seen for problem in found]
    return problems + list(broken_links({page: facts for page, _, facts in seen}, root))


if __name__ == "__main__":
    trouble = check(Path(sys.argv[1]))
    for problem in trouble:
        print(f"{problem.page}: {problem.kind}: {problem.detail}")
    sys.exit(bool(trouble))
