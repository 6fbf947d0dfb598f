"""The book's own Sphinx extension: pages made from what the notebooks recorded, and links to their
sources.

Before Sphinx reads anything, the fragments ``scorecard.md``, ``evidence.md`` and ``status.md`` are
written into ``book/executed`` from the list of claims and the records beside the executed
notebooks; the pages of the same names include them.
"""

import ast
import inspect
import os
import platform
import re
import shutil
import sys
import textwrap
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from sphinx.application import Sphinx
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).resolve().parent))
import citing
import execute
import finish
import threads

from cdelta import _files, ledger

LOGGER = logging.getLogger(__name__)
EXECUTED = "book/executed/"
GITHUB, COLAB = "https://github.com/", "_colab"
GROUPS = {
    "T": "Theory",
    "E": "Experiments",
    "L": "What the paper leaves to future work",
    "C": "Corrections and results beyond the paper",
}
VERDICTS = {
    "reproduced": "the paper's claim holds as stated",
    "in part": "some of what it says holds, the rest does not or is not decided",
    "undecided": "what was measured does not tell",
    "corrected": "it does not hold as stated; what was found in its place stands beside it",
    "derived": "a result of this project, verified",
    "not run here": "with the reason",
    "open": "no notebook has measured it yet",
    "missed": "a measured value misses its bound",
}


# ------------------------------------------------------------------------------------ the scorecard


def verdict(claim: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """What the records say about a claim.

    Checks must pass. The verdict then follows from the claim's deciding measurements: all that were
    decided under its id, or, where it names them, these and no others, each of which is needed. A
    claim says all of them at once: it holds where all hold, and where one fails it is false as
    stated, whatever is undecided beside it. Then it is corrected, or, where another part of it
    holds, true in part. Where none fails and none holds they do not tell. Where no decision was
    needed (a theorem), the checks are of the statement itself. A claim without any record is open,
    or was not run here; it never passes.
    """
    if not records:
        return "not run here" if claim.get("not_run") else "open"
    checks = [record for record in records if "outcome" not in record]
    if not all(record["passed"] for record in checks):
        return "missed"
    outcomes = {record["outcome"] for record in records if decides(claim, record)}
    if unmeasured(claim, records):
        outcomes.add("undecided")
    if outcomes <= {"holds"}:
        return "reproduced" if claim["origin"] == "paper" else "derived"
    if "holds" in outcomes:
        return "in part"
    return "corrected" if "fails" in outcomes else "undecided"


def decides(claim: dict[str, Any], record: dict[str, Any]) -> bool:
    """Whether the claim's verdict hangs on this record, or it was only measured beside it."""
    named = tuple(claim.get("decided_by", ("",)))
    return "outcome" in record and record["quantity"].startswith(named)


def unmeasured(claim: dict[str, Any], records: list[dict[str, Any]]) -> list[str]:
    """What the claim names as deciding and no decision was made of."""
    made = [record["quantity"] for record in records if "outcome" in record]
    return [
        name
        for name in claim.get("decided_by", ())
        if not any(quantity.startswith(name) for quantity in made)
    ]


def scorecard(
    claims: dict[str, dict[str, Any]], records: list[dict[str, Any]], pages: dict[str, str]
) -> str:
    """The scorecard as MyST text. ``pages`` maps the notebooks that are chapters to their
    titles."""
    by_claim = {claim_id: of_claim(claim_id, records, pages) for claim_id in claims}
    verdicts = judged(claims, records, pages)
    counts = Counter(verdicts.values())
    used = sorted({record["profile"] for record in records})
    lines = [
        *wall(verdicts),
        f"{len(claims)} claims, {len(records)} measured quantities"
        + (f", profile {' and '.join(f'`{name}`' for name in used)}." if used else "."),
        "",
        "::::{div} cd-counts",
        *(
            f"{badge(name)} **{counts[name]}** {meaning}\n"
            for name, meaning in VERDICTS.items()
            if counts[name]
        ),
        "::::",
        "",
    ]
    for letter, title in GROUPS.items():
        lines += [f"## {title}", ""]
        for claim_id, claim in claims.items():
            if claim_id[0] == letter:
                lines += entry(claim_id, claim, by_claim[claim_id], verdicts[claim_id])
    return "\n".join(lines)


def judged(
    claims: dict[str, dict[str, Any]], records: list[dict[str, Any]], pages: dict[str, str]
) -> dict[str, str]:
    """The verdict of every claim, from the records of the notebooks that are chapters."""
    return {
        claim_id: verdict(claim, of_claim(claim_id, records, pages))
        for claim_id, claim in claims.items()
    }


def of_claim(
    claim_id: str, records: list[dict[str, Any]], pages: dict[str, str]
) -> list[dict[str, Any]]:
    return [
        record for record in records if record["claim"] == claim_id and record["notebook"] in pages
    ]


def wall(verdicts: dict[str, str]) -> list[str]:
    """Every claim as one square in the colour of its verdict, a line of them for each group."""
    lines = ["::::{div} cd-wall"]
    for letter, title in GROUPS.items():
        squares = [
            f"[{claim_id}](#{finish.anchor(claim_id)}){{.cd-square .{outcome_class(outcome)}}}"
            for claim_id, outcome in verdicts.items()
            if claim_id[0] == letter
        ]
        if squares:
            lines += [f"[{title}]{{.cd-wall-title}}", *squares, ""]
    return [*lines, "::::", ""]


def entry(
    claim_id: str, claim: dict[str, Any], records: list[dict[str, Any]], outcome: str
) -> list[str]:
    """One claim: a line that says it, where it leads, and its measurements in a fold."""
    lines = [
        f"({finish.anchor(claim_id)})=",
        f"::::{{div}} cd-claim {outcome_class(outcome)}",
        f"[{claim_id}]{{.cd-id}} {badge(outcome)} {claim['statement']}.",
        "",
    ]
    recorded = dict.fromkeys(record["notebook"] for record in records)
    chapters = ", ".join(f"[Chapter {int(name[:2])}](/{EXECUTED}{name}.ipynb)" for name in recorded)
    found = [chapters or f"Chapter {int(claim['chapter'])}", *trail(claim_id, claim)]
    lines += [" · ".join([f"[{claim['where']}]{{.cd-where}}", *found]), ""]
    if claim.get("not_run"):
        lines += [f"Not run here: {claim['not_run']}.", ""]
    if records:
        measured = (measurement(claim, record) for record in records)
        lines += [f":::{{dropdown}} {summary(records)}", *measured, ":::"]
    return [*lines, "::::", ""]


def summary(records: list[dict[str, Any]]) -> str:
    """What the fold holds, always in one order: "3 measurements: 1 fails, 2 hold"."""
    counts = Counter(record.get("outcome", "checked") for record in records)
    said = {"fails": "fail", "undecided": "undecided", "holds": "hold", "checked": "checked"}
    parts = ", ".join(
        f"{count} {many if count > 1 else one}"
        for one, many in said.items()
        if (count := counts[one])
    )
    return f"{len(records)} measurement{'s' if len(records) > 1 else ''}: {parts}"


def measurement(claim: dict[str, Any], record: dict[str, Any]) -> str:
    """A record as an item of a list: quantity, value, bound, whether the claim hangs on it, and
    what should fail beside it."""
    bound = record["bound"]
    low, high = bound if isinstance(bound, list) else (None, bound)
    measured = ledger.describe(record["value"], record["stderr"])
    asked = ledger.describe_bound(low, high)
    if "outcome" in record:
        asked = f"asked {asked}: **{record['outcome']}**"
        if not decides(claim, record):
            asked += ", which does not decide the claim"
    elif not record["passed"]:
        asked += " **missed**"
    lines = [f"- {escape(record['quantity'])}: [{measured}]{{.cd-number}} {asked}"]
    for null in record.get("null", []):
        number = ledger.describe(null["value"], null["stderr"])
        lines.append(f"  - beside it, {escape(null['name'])}: [{number}]{{.cd-number}}")
    return "\n".join(lines)


def outcome_class(outcome: str) -> str:
    return f"cd-is-{outcome.replace(' ', '-')}"


def trail(claim_id: str, claim: dict[str, Any]) -> list[str]:
    """From a claim to its theorem (or section), the function that computes it, and its test."""
    found = []
    if label := claim.get("theorem"):
        found.append(f"{{prf:ref}}`{label}`" if label.startswith("thm-") else f"[](#{label})")
    if function := claim.get("function"):
        found.append(f"{{py:obj}}`{function}`")
    if claim.get("test"):
        # by name: a list of links tells them apart
        found.append(f"[test of {claim_id}](#{anchor_of_test(claim_id)})")
    return found


def anchor_of_test(claim_id: str) -> str:
    return finish.anchor(claim_id).replace("claim", "test", 1)


def evidence(claims: dict[str, dict[str, Any]]) -> str:
    """For every claim the source of the test that would catch an error in it, as MyST text."""
    lines = []
    for claim_id, claim in claims.items():
        if test := claim.get("test"):
            path, name = test.split("::")
            lines += [
                f"({anchor_of_test(claim_id)})=",
                f"## {claim_id} · {escape(name.removeprefix('test_').replace('_', ' '))}",
                "",
                f"{claim['statement']}.",
                "",
                f":::{{literalinclude}} /{path}",
                ":language: python",
                f":pyobject: {name}",
                f":caption: {path}",
                ":::",
                "",
            ]
    return "\n".join(lines)


def badge(outcome: str) -> str:
    return f"[{outcome}]{{.cd-badge .{outcome_class(outcome)}}}"


def escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join("\\" + char if char in "\\`*_{}[]<>#$|~^" else char for char in text)


# ---------------------------------------------------------------------------------- the status page


def status(runs: dict[str, dict[str, Any]], pages: dict[str, str]) -> str:
    """When, where and with what each chapter was executed, as MyST text."""
    lines = [":::{list-table}", ":class: cd-status", ":header-rows: 1", ""]
    lines += [
        "* - Chapter",
        "  - Clock, s",
        "  - CPU, s",
        "  - Compiling, s",
        "  - Checks",
        "  - Executed (UTC)",
        "  - Commit",
    ]
    # one profile is said below the table
    mixed = len({runs[name]["profile"] for name in pages}) > 1
    lines += ["  - Profile"] * mixed
    for name, title in pages.items():
        run = runs[name]
        when = run["executed"].replace("T", " ")[: len("2026-11-27 06:08")]
        lines += [
            f"* - [{escape(title)}](/{EXECUTED}{name}.ipynb)",
            *(f"  - {time}" for time in spent([run])),
            f"  - {len(run['ledger'])}",
            f"  - {when}",
            f"  - {run['commit'] or '—'}",
            *[f"  - `{run['profile']}`"] * mixed,
        ]
    total = spent([runs[name] for name in pages])
    lines += ["* - All", *(f"  - {time}" for time in total), *["  - "] * (3 + mixed)]
    lines += [":::", "", times(runs, pages), ""]
    lines += [
        "Times are those of a clock, of all processor cores together, and of XLA compiling (a "
        "program that is kept from an earlier run is only read). "
        "A `+` after a commit: the working copy differed from it.",
        "",
        "## Versions and machines",
        "",
    ]
    used = {
        name: sorted({run["versions"][name] for run in runs.values() if name in run["versions"]})
        for name in dict.fromkeys(name for run in runs.values() for name in run["versions"])
    }
    made = {
        name: [metadata.version(name)]
        for name in ("jupyter-book", "sphinx", "myst-nb", "papermill")
    }
    lines += [
        ":::{list-table}",
        ":class: cd-status",
        ":header-rows: 1",
        "",
        "* - Package",
        "  - Version",
    ]
    for name, found in {**used, **made}.items():
        lines += [f"* - {name}", f"  - {', '.join(found)}"]
    machines = {
        "{system} {architecture}, {cores} cores".format(**run["machine"]) for run in runs.values()
    }
    lines += [":::", "", f"Executed on {' and '.join(sorted(machines)) or platform.system()}.", ""]
    return "\n".join(lines)


TIMES = ("seconds", "cpu_seconds", "compiling_seconds")


def spent(runs: list[dict[str, Any]]) -> list[str]:
    """The runs' times, added; a dash where one was not measured."""
    found = [[run.get(kind) for run in runs] for kind in TIMES]
    return ["—" if None in times else f"{sum(times):.1f}" for times in found]


def times(runs: dict[str, dict[str, Any]], pages: dict[str, str]) -> str:
    """How long this build's chapters took: the same sentence on the first page and on the status
    page."""
    if not pages:
        return "No chapter is executed yet."
    seconds = {name: runs[name]["seconds"] for name in pages}
    longest = max(seconds, key=seconds.__getitem__)
    profiles = sorted({runs[name]["profile"] for name in pages})
    return (
        f"In this build (profile {' and '.join(f'`{name}`' for name in profiles)}) the longest "
        f"chapter, [{escape(pages[longest])}](/{EXECUTED}{longest}.ipynb), took "
        f"{seconds[longest]:.0f} seconds, and all of them {sum(seconds.values()):.0f}, counted one "
        "after the other; several run at once."
    )


# -------------------------------------------------------------------------------------- with Sphinx


def prepare(app: Sphinx, config: Any) -> None:
    """Write the fragments, and refuse records that contradict the list of claims."""
    root = Path(app.srcdir)
    folder = root / EXECUTED
    folder.mkdir(parents=True, exist_ok=True)
    runs = execute.records(folder)
    names = execute.chapters(root)
    if missing := [name for name in names if name not in runs]:
        LOGGER.warning("not executed: %s; run `make book`", ", ".join(missing))
    pages = {name: title(folder / f"{name}.ipynb") for name in names if name in runs}
    claims = yaml.safe_load((root / "book" / "claims.yml").read_text(encoding="utf-8"))
    records = [record for record in ledger.read(folder) if record["notebook"] in pages]
    for record in records:
        if record["claim"] not in claims:
            LOGGER.warning(
                "%s records %s, which is not in book/claims.yml",
                record["notebook"],
                record["claim"],
            )
        elif not record["passed"] and "outcome" not in record:
            LOGGER.warning(
                "%s: %s misses its bound: %s",
                record["notebook"],
                record["claim"],
                record["quantity"],
            )
    for claim_id, claim in claims.items():
        found = of_claim(claim_id, records, pages)
        if any(record["notebook"][:2] == claim["chapter"] for record in found):
            for name in unmeasured(claim, found):
                LOGGER.warning("%s is decided by %s, of which nothing was decided", claim_id, name)
    write_if_changed(folder / "scorecard.md", scorecard(claims, records, pages))
    write_if_changed(folder / "evidence.md", evidence(claims))
    shown = {name: runs[name] for name in pages}
    write_if_changed(folder / "times.md", times(shown, pages) + "\n")
    app.cdelta_claims = stated(claims, judged(claims, records, pages))
    write_if_changed(folder / "status.md", status(shown, pages))


def stated(
    claims: dict[str, dict[str, Any]], verdicts: dict[str, str]
) -> dict[str, list[tuple[str, str]]]:
    """By the label of a theorem or a section the claims that stand there, with their verdicts."""
    found: dict[str, list[tuple[str, str]]] = {}
    for claim_id, claim in claims.items():
        if label := claim.get("theorem"):
            found.setdefault(label, []).append((claim_id, verdicts[claim_id]))
    return found


def title(notebook: Path) -> str:
    """The first heading of a notebook, with the chapter's number."""
    import nbformat

    for cell in nbformat.read(notebook, as_version=4).cells:
        for line in cell.source.splitlines():
            if cell.cell_type == "markdown" and line.startswith("# "):
                return f"{int(notebook.stem[:2])}. {line[2:]}"
    return notebook.stem


def write_if_changed(path: Path, text: str) -> None:
    """Leave an unchanged file its time stamp, so that Sphinx does not read the pages again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        _files.write(path, text)


def add_source_buttons(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """A download of the MyST source of a chapter; with a known repository, links to its source, to
    Colab and to Binder."""
    if doctree is None or "header_buttons" not in context:
        return
    name = pagename.removeprefix(EXECUTED)
    notebook = pagename.startswith(EXECUTED)
    source = (
        f"notebooks/{name}.md"
        if notebook
        else Path(app.env.doc2path(pagename)).relative_to(app.srcdir).as_posix()
    )
    buttons = context["header_buttons"]
    if notebook:
        copy(Path(app.srcdir) / source, Path(app.outdir) / "_sources" / source)
        for group in buttons:
            if group.get("label") == "download-buttons":
                group["buttons"].insert(
                    1,
                    link(
                        context["pathto"](f"_sources/{source}", 1),
                        ".md",
                        "Download the source (MyST)",
                        "fas fa-file",
                    ),
                )
    url = os.environ.get("CDELTA_REPOSITORY_URL", "").rstrip("/")
    if not url:
        return
    branch = os.environ.get("CDELTA_REPOSITORY_BRANCH", "main")
    entries = [
        link(url, "Repository", "Source repository", "fas fa-code-branch"),
        link(
            f"{url}/blob/{branch}/{quote(source)}", "Source", "Source of this page", "fas fa-code"
        ),
        link(
            f"{url}/edit/{branch}/{quote(source)}", "Edit", "Suggest an edit", "fas fa-pencil-alt"
        ),
    ]
    if notebook and url.startswith(GITHUB):
        entries += run_elsewhere(app, name, url, branch)
    buttons.append(
        {
            "type": "group",
            "tooltip": "Source",
            "icon": "fas fa-code-branch",
            "buttons": entries,
            "label": "source-buttons",
        }
    )


def run_elsewhere(app: Sphinx, name: str, url: str, branch: str) -> list[dict[str, str]]:
    """Links that run a chapter in Colab, where a first cell installs what it imports, and in
    Binder, which takes it from ``environment.yml``.

    Colab opens files of a branch: the copies with that cell are published beside the pages.
    """
    repository = url.removeprefix(GITHUB)
    pages = os.environ.get("CDELTA_PAGES_BRANCH", "gh-pages")
    source = Path(app.srcdir) / "notebooks" / f"{name}.ipynb"
    installing(source, Path(app.outdir) / COLAB / f"{name}.ipynb", f"git+{url}@{branch}")
    colab = f"https://colab.research.google.com/github/{repository}/blob/{pages}/{COLAB}"
    notebook = quote(f"notebooks/{name}.ipynb", safe="")
    binder = f"https://mybinder.org/v2/gh/{repository}/{branch}?urlpath=lab%2Ftree%2F{notebook}"
    return [
        link(f"{colab}/{quote(name)}.ipynb", "Colab", "Run in Colab", "fas fa-rocket"),
        link(binder, "Binder", "Run in Binder", "fas fa-play"),
    ]


def installing(source: Path, target: Path, package: str) -> None:
    """A copy of a notebook whose first code cell installs the package from its repository."""
    import nbformat

    notebook = nbformat.read(source, as_version=4)
    lines = [f"%env {name}={value}" for name, value in threads.THREADS.items()]  # few cores there
    lines.append(f'%pip install -q "cdelta[data] @ {package}" myst-nb')
    kinds = [cell.cell_type for cell in notebook.cells]
    first = kinds.index("code") if "code" in kinds else len(kinds)
    notebook.cells.insert(first, nbformat.v4.new_code_cell("\n".join(lines), id="install"))
    _files.write(target, nbformat.writes(notebook))


def finish_page(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Links between chapters, and from theorems to their claims; what the extensions leave
    undone."""
    if doctree is None or "body" not in context:
        return
    # formulas are set on every page: a preview may show one of another page
    app.env.get_domain("math").data["has_equations"][pagename] = True
    names = {int(name[:2]): EXECUTED + name for name in execute.chapters(Path(app.srcdir))}

    def address(number: int) -> str | None:
        name = names.get(number)
        return name and ("" if name == pagename else app.builder.get_relative_uri(pagename, name))

    def missing(number: int) -> None:
        LOGGER.warning("%s: there is no chapter %d", pagename, number)

    body = finish.link_chapters(context["body"], address, missing)
    body = finish.link_figures(body, address)
    if pagename.startswith(EXECUTED):
        body = finish.number_figures(body, int(pagename.removeprefix(EXECUTED)[:2]))
        scorecard = app.builder.get_relative_uri(pagename, "book/scorecard")
        body = finish.link_claims(body, app.cdelta_claims, scorecard)
    context["body"] = finish.reserve(finish.tidy(finish.checks(finish.values(body))))


def drop_thebe(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Jupyter Book loads a client for remote kernels on every page; there is none to talk to."""
    for files in ("script_files", "css_files"):
        context[files] = [
            file
            for file in context[files]
            if "thebe" not in f"{file} {getattr(file, 'attributes', '')}".lower()
        ]


def written_annotations(
    app: Sphinx,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None] | None:
    """Signatures with their annotations as the source has them: ``Float[Array, "n d"]`` names the
    shape, what Python makes of it names jaxlib's classes."""
    if what not in ("function", "method"):
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    if not isinstance(tree, ast.FunctionDef):
        return None
    arguments = tree.args
    if what == "method" and arguments.args and not isinstance(obj, staticmethod):
        del arguments.args[0]
    signature, returns = ast.unparse(arguments), ast.unparse(tree.returns) if tree.returns else None
    # jaxtyping writes one axis as " n", so that linters do not take it for a name
    return f"({signature})".replace("' ", "'"), returns and returns.replace("' ", "'")


def no_aliases(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Nothing where Python only says the number of a named tuple's field."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()


def lined_formulas(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    r"""Formulas that a docstring sets side by side, with ``\qquad`` between them, one below the
    other: a phone has no room for both."""
    at = 0
    while at < len(lines):
        start = re.match(r"( *)\.\. math:: *(.*)", lines[at])
        if not start:
            at += 1
            continue
        end = at + 1
        while end < len(lines) and (
            not lines[end].strip() or lines[end].startswith(start[1] + " ")
        ):
            end += 1
        formula = "\n".join([start[2], *(line.strip() for line in lines[at + 1 : end])]).strip()
        if (found := one_below_another(formula)) != formula:
            indented = [f"{start[1]}    {line}".rstrip() for line in found.split("\n")]
            lines[at:end] = [f"{start[1]}.. math::", "", *indented, ""]
            end = at + len(indented) + 3
        at = end


_TEX = re.compile(r"\\(?:begin|end) *\{[^}]*\}|\\[A-Za-z]+|\\.|\n\n|.", re.S)


def one_below_another(formula: str) -> str:
    r"""A formula whose parts, with ``\qquad`` between them, are lines; as it is where it has lines
    of its own."""
    parts, depth = [""], 0
    for token in _TEX.findall(formula):
        if not depth and token in ("\\\\", "&", "\n\n"):
            return formula
        depth += token == "{" or token.startswith("\\begin") or token == "\\left"
        depth -= token == "}" or token.startswith("\\end") or token == "\\right"
        if not depth and token == "\\qquad":
            parts.append("")
        else:
            parts[-1] += token
    shown = [part.strip() for part in parts if part.strip()]
    if len(shown) < 2:
        return formula
    return "\n".join(["\\begin{gathered}", " \\\\\n".join(shown), "\\end{gathered}"])


def link(url: str, text: str, tooltip: str, icon: str) -> dict[str, str]:
    label = f"cd-{text.strip('.').lower()}-button"
    return {
        "type": "link",
        "url": url,
        "text": text,
        "tooltip": tooltip,
        "icon": icon,
        "label": label,
    }


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def setup(app: Sphinx) -> dict[str, Any]:
    citing.setup()
    app.connect("config-inited", prepare)
    # after the theme's own buttons
    app.connect("html-page-context", add_source_buttons, priority=900)
    # before sphinx-tippy, which copies its previews from the page
    app.connect("html-page-context", finish_page, priority=400)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("autodoc-process-signature", written_annotations)
    app.connect("autodoc-process-docstring", no_aliases)
    app.connect("autodoc-process-docstring", lined_formulas)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
