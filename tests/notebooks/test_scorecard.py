"""The scorecard says what the records say: nothing passes unmeasured, and a missed bound stops the
build."""

import ast
import importlib
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import companion
import execute
import nbformat
import pytest
import yaml

from cdelta import ledger
from tests import ROOT

CLAIMS = yaml.safe_load((ROOT / "book" / "claims.yml").read_text("utf-8"))


def record(claim, value=0.25, passed=True, notebook="01_a", **more):
    base = {"notebook": notebook, "profile": "book", "claim": claim}
    base |= {"quantity": "an error", "value": value}
    return {**base, "bound": 1.0, "stderr": None, "passed": passed, **more}


EVIDENCE = ("theorem", "function", "test")


@pytest.mark.parametrize(
    "claim_id", [k for k, claim in CLAIMS.items() if set(EVIDENCE) & set(claim)]
)
def test_evidence_of_a_claim_is_there(claim_id):
    """Its theorem stands in its chapter, its function is on the API page and its test is a test."""
    claim = CLAIMS[claim_id]
    assert set(EVIDENCE) <= set(claim)
    (chapter,) = (ROOT / "notebooks").glob(f"{claim['chapter']}_*.md")
    label, text = claim["theorem"], chapter.read_text("utf-8")
    stated = f":label: {label}\n" if label.startswith("thm-") else f"({label})=\n"
    assert text.count(stated) == 1

    module, _, name = claim["function"].rpartition(".")
    owner = ROOT.joinpath(*module.split("."))
    assert owner.with_suffix(".py").is_file() or (owner / "__init__.py").is_file()
    assert callable(getattr(importlib.import_module(module), name))
    api = (ROOT / "book" / "api.md").read_text("utf-8")
    listed = api.partition(f"automodule:: {module}\n")[2].partition("```")[0]
    alone = re.search(rf"auto\w+:: {re.escape(claim['function'])}\n", api)
    whole = ":members:\n" in listed
    assert alone or whole or re.search(rf"\b{name}\b", listed), claim["function"]

    path, name = claim["test"].split("::")
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    (test,) = (node for node in tree.body if getattr(node, "name", None) == name)
    assert path.startswith("tests/") and name.startswith("test_")
    asserts = any(isinstance(node, ast.Assert) for node in ast.walk(test))
    assert asserts or any(chain[-1].startswith("assert_") for chain in used_by(name, tree))


def chains(tree):
    """Names and dotted names of a syntax tree, as lists of their parts."""
    for node in ast.walk(tree):
        parts = []
        while isinstance(node, ast.Attribute):
            parts, node = [node.attr, *parts], node.value
        if isinstance(node, ast.Name):
            yield [node.id, *parts]


def names_it(chain, space, wanted):
    """Whether a dotted name, looked up in a namespace, passes through the object wanted."""
    found = space.get(chain[0])
    for part in chain[1:]:
        if found is wanted:
            return True
        found = getattr(found, part, None)
    return found is wanted


def used_by(name, source):
    """The dotted names in a test, and in the helpers and fixtures of its own file that it uses."""
    own = {}
    for node in source.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own[node.name] = node
        elif isinstance(node, ast.Assign):
            own |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
    seen, waiting = set(), [name]
    while waiting:
        if (here := waiting.pop()) in own and here not in seen:
            seen.add(here)
            for chain in chains(own[here]):
                yield chain
                waiting.append(chain[0])
            if isinstance(own[here], ast.FunctionDef):
                waiting += [argument.arg for argument in own[here].args.args]


def function_of(claim):
    module, _, name = claim["function"].rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("claim_id", [k for k, claim in CLAIMS.items() if "function" in claim])
def test_the_test_of_a_claim_calls_the_function_that_computes_it(claim_id):
    """By the object that its names stand for, not by their spelling."""
    path, name = CLAIMS[claim_id]["test"].split("::")
    space = vars(importlib.import_module(path.removesuffix(".py").replace("/", ".")))
    used = used_by(name, ast.parse((ROOT / path).read_text("utf-8")))
    wanted = function_of(CLAIMS[claim_id])
    assert any(names_it(chain, space, wanted) for chain in used), CLAIMS[claim_id]["function"]


@pytest.mark.parametrize("claim_id", [k for k, claim in CLAIMS.items() if "function" in claim])
def test_the_chapter_of_a_claim_names_the_function_that_computes_it(claim_id):
    """In its code, by the object that a name there stands for, or by its full name in the text."""
    claim = CLAIMS[claim_id]
    (chapter,) = (ROOT / "notebooks").glob(f"{claim['chapter']}_*.md")
    text = chapter.read_text("utf-8")
    cells = re.findall(
        r"^```\{code-cell\}[^\n]*\n(?:(?::\w+:[^\n]*\n)+)?(.*?)^```$", text, re.S | re.M
    )
    tree, space = ast.parse("".join(cells)), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), chapter.name, "exec"), space)
    wanted = function_of(claim)
    named = any(names_it(chain, space, wanted) for chain in chains(tree))
    assert named or f"`{claim['function']}`" in text, claim["function"]


def rows(text):
    """Each claim's part of the scorecard, by its id."""
    parts = text.split("\n::::{div} cd-claim ")[1:]
    return {re.search(r"\[(.*?)\]\{\.cd-id\}", part)[1]: part for part in parts}


def test_every_claim_of_the_paper_and_of_this_project_is_listed():
    counts = {"T": 18, "E": 8, "L": 9, "C": 16}
    numbered = [f"{letter}{i + 1}" for letter, count in counts.items() for i in range(count)]
    assert sorted(CLAIMS) == sorted([*numbered, "E6'", "C3'", "C11'"])
    needed = {"statement", "where", "chapter", "origin"}
    for claim in CLAIMS.values():
        assert needed <= set(claim) <= {*needed, *EVIDENCE, "decided_by", "not_run"}
        assert claim["origin"] in ("paper", "question", "project")


def decided(outcome, quantity="an agreement"):
    return record("E5", passed=outcome == "holds", outcome=outcome, quantity=quantity)


MISSED, PASSED = record("T1", passed=False), record("T1")
HOLDS, FAILS, UNDECIDED = (decided(outcome) for outcome in ("holds", "fails", "undecided"))


@pytest.mark.parametrize(
    ("origin", "records", "outcome"),
    [
        ("paper", [], "open"),
        ("paper", [PASSED], "reproduced"),
        ("project", [PASSED, PASSED], "derived"),
        ("question", [PASSED, HOLDS], "derived"),
        ("paper", [PASSED, MISSED], "missed"),
        ("paper", [HOLDS, MISSED], "missed"),
        ("paper", [HOLDS], "reproduced"),
        ("paper", [HOLDS, PASSED, FAILS], "in part"),
        ("paper", [HOLDS, UNDECIDED], "in part"),
        ("project", [HOLDS, FAILS], "in part"),
        ("paper", [UNDECIDED, PASSED], "undecided"),
        ("project", [UNDECIDED, UNDECIDED], "undecided"),
        # one decisive failure makes a conjunction false, whatever is undecided beside it
        ("paper", [FAILS, UNDECIDED, PASSED], "corrected"),
        ("paper", [UNDECIDED, FAILS, UNDECIDED], "corrected"),
        ("paper", [FAILS, FAILS, PASSED], "corrected"),
        ("paper", [FAILS], "corrected"),
        ("paper", [FAILS, UNDECIDED, HOLDS], "in part"),
        ("paper", [FAILS, MISSED], "missed"),
    ],
)
def test_verdict_follows_from_what_was_measured(origin, records, outcome):
    assert companion.verdict({"origin": origin}, records) == outcome


def test_verdict_of_what_was_not_run():
    claim = {"origin": "paper", "not_run": "no GPU"}
    assert companion.verdict(claim, []) == "not run here"
    assert companion.verdict(claim, [PASSED]) == "reproduced"


def test_a_claim_is_undecided_without_the_measurement_that_it_names():
    claim = {"origin": "paper", "decided_by": ["an agreement"]}
    assert companion.verdict(claim, [PASSED]) == "undecided"
    assert companion.verdict(claim, [PASSED, HOLDS]) == "reproduced"
    assert companion.verdict(claim, [PASSED, FAILS]) == "corrected"
    assert companion.verdict(claim, [record("E5", quantity="an agreement")]) == "undecided"
    # what was decided beside it neither makes it true nor false
    for outcome in ("holds", "fails"):
        beside = decided(outcome, "another")
        assert companion.verdict(claim, [PASSED, beside]) == "undecided"
        assert companion.verdict(claim, [PASSED, HOLDS, beside]) == "reproduced"
        assert companion.verdict(claim, [PASSED, FAILS, beside]) == "corrected"


def test_what_does_not_decide_a_claim_says_so():
    claims = {"E5": CLAIMS["E5"] | {"decided_by": ["an agreement"]}}
    records = [decided("fails", "an agreement, mean"), decided("holds", "another"), PASSED]
    text = companion.scorecard(claims, [r | {"claim": "E5"} for r in records], {"01_a": "A"})
    said = ", which does not decide the claim"
    assert text.count(said) == 1 and re.search(rf"another: .*: \*\*holds\*\*{said}", text)


def test_a_verdict_is_one_of_six():
    """Besides, a claim that nothing has measured is open, and a missed check stops the build."""
    published = {"reproduced", "in part", "undecided", "corrected", "derived", "not run here"}
    assert set(companion.VERDICTS) == published | {"open", "missed"}
    outcomes = (HOLDS, FAILS, UNDECIDED)
    kinds = [
        companion.verdict({"origin": origin}, [PASSED, *chosen])
        for origin in ("paper", "question", "project")
        for count in range(4)
        for chosen in itertools.product(outcomes, repeat=count)
    ]
    assert set(kinds) == published - {"not run here"}


def test_scorecard_shows_what_was_measured():
    records = [
        record("T1", 0.123, stderr=0.045),
        record("T1", 3.0, bound=[2.0, None]),
        record("C3'", notebook="06_b"),
    ]
    text = companion.scorecard(CLAIMS, records, {"01_a": "A", "06_b": "B"})
    found = rows(text)
    assert list(found) == list(CLAIMS)
    assert "an error: [0.123 ± 0.045]{.cd-number} ≤ 1" in found["T1"]
    assert "[3]{.cd-number} ≥ 2" in found["T1"]
    assert "[reproduced]" in found["T1"]
    assert "[Chapter 1](/book/executed/01_a.ipynb)" in found["T1"]
    assert "[derived]" in found["C3'"] and "[Chapter 6](/book/executed/06_b.ipynb)" in found["C3'"]
    assert "[open]" in found["T2"] and "an error" not in found["T2"]
    assert "[not run here]" in found["E6'"] and "it needs the images and a GPU" in found["E6'"]
    assert (
        "**1** the paper's claim holds" in text
        and f"**{len(CLAIMS) - 3}** no notebook has measured it" in text
    )


def test_every_claim_is_a_square_that_leads_to_it():
    text = companion.scorecard(CLAIMS, [record("T1")], {"01_a": "A"})
    wall = text.partition("::::{div} cd-wall\n")[2].partition("::::\n")[0]
    squares = re.findall(r"\[(\S+)\]\(#(\S+)\)\{\.cd-square \.cd-is-(\S+)\}", wall)
    assert [claim for claim, _, _ in squares] == sorted(
        CLAIMS, key=lambda claim: list(companion.GROUPS).index(claim[0])
    )
    assert squares[0] == ("T1", "claim-t1", "reproduced") and squares[1][2] == "open"
    assert all(
        f"\n({target})=\n::::{{div}} cd-claim cd-is-{verdict}\n" in text
        for _, target, verdict in squares
    )


def test_measurements_of_a_claim_are_in_a_fold_that_says_how_they_went():
    records = [PASSED, HOLDS | {"claim": "T1"}, FAILS | {"claim": "T1"}, FAILS | {"claim": "T1"}]
    row = rows(companion.scorecard(CLAIMS, records, {"01_a": "A"}))["T1"]
    assert ":::{dropdown} 4 measurements: 2 fail, 1 holds, 1 checked\n- an error: " in row
    assert row.index("dropdown") < row.index("an error") < row.index("\n:::\n")


@pytest.mark.parametrize("turned", [False, True])
def test_a_fold_counts_in_one_order_whatever_came_first(turned):
    records = [PASSED, HOLDS, UNDECIDED, PASSED, HOLDS, FAILS, UNDECIDED, FAILS, PASSED]
    said = "9 measurements: 2 fail, 2 undecided, 2 hold, 3 checked"
    assert companion.summary(records[::-1] if turned else records) == said
    assert companion.summary([PASSED]) == "1 measurement: 1 checked"
    assert companion.summary([HOLDS, FAILS]) == "2 measurements: 1 fails, 1 holds"


def test_every_link_to_a_test_says_of_which_claim():
    text = companion.scorecard(CLAIMS, [], {})
    named = re.findall(r"\[test of (\S+)\]\(#(\S+)\)", text)
    assert sorted(claim for claim, _ in named) == sorted(k for k in CLAIMS if "test" in CLAIMS[k])
    assert all(anchor == companion.anchor_of_test(claim) for claim, anchor in named)


def test_scorecard_shows_what_was_decided_and_beside_what():
    null = [{"name": "another digit", "value": 0.52, "stderr": 0.031}]
    decision = record(
        "E5", 0.65, bound=[0.8, None], stderr=0.02, passed=False, outcome="fails", null=null
    )
    claims = CLAIMS | {"E5": CLAIMS["E5"] | {"decided_by": ["an error"]}}
    row = rows(companion.scorecard(claims, [decision], {"01_a": "A"}))["E5"]
    assert "an error: [0.650 ± 0.020]{.cd-number} asked ≥ 0.8: **fails**" in row
    assert "beside it, another digit: [0.520 ± 0.031]{.cd-number}" in row
    assert "[corrected]" in row and "missed" not in row


def test_scorecard_leads_from_a_claim_to_theorem_function_and_test():
    shown = {
        "theorem": "thm-a",
        "function": "cdelta.gaussian.velocity",
        "test": "tests/test_a.py::test_b",
    }
    claims = {
        "C3'": {**CLAIMS["C3'"], **shown},
        "E5": {**CLAIMS["E5"], **shown, "theorem": "a-section"},
    }
    found = rows(companion.scorecard(claims, [], {}))
    links = "{py:obj}`cdelta.gaussian.velocity` · [test of C3'](#test-c3-prime)"
    assert f"{{prf:ref}}`thm-a` · {links}" in found["C3'"]
    assert "[](#a-section) · " in found["E5"]
    page = companion.evidence(claims)
    assert "(test-c3-prime)=" in page and "(test-e5)=" in page
    assert ":::{literalinclude} /tests/test_a.py" in page and ":pyobject: test_b" in page


def test_landing_and_status_page_say_the_same_of_time():
    run = {"profile": "book", "seconds": 61.4, "executed": "2026-01-01T00:00:00+00:00"}
    run |= {"machine": execute.machine(), "versions": execute.versions(), "ledger": []}
    runs = {"01_a": {**run, "commit": "abc"}, "02_b": {**run, "commit": "abc", "seconds": 90.2}}
    titles = {"01_a": "1. A", "02_b": "2. B"}
    said = companion.times(runs, titles)
    assert "[2. B](/book/executed/02_b.ipynb), took 90 seconds, and all of them 152" in said
    assert said in companion.status(runs, titles)
    assert "executed/times.md" in (ROOT / "book/index.md").read_text("utf-8")


def test_status_page_adds_the_times_and_names_no_time_that_was_not_measured():
    run = {"profile": "book", "executed": "2026-01-01T00:00:00+00:00", "commit": "abc"}
    run |= {"machine": execute.machine(), "versions": execute.versions(), "ledger": []}
    runs = {"01_a": {**run, "seconds": 60.0, "cpu_seconds": 90.5, "compiling_seconds": 20.25}}
    runs["02_b"] = {**run, "seconds": 2.5, "cpu_seconds": 3.0, "compiling_seconds": 1.5}
    titles = {"01_a": "A", "02_b": "B"}

    def table():
        rows = companion.status(runs, titles).split(":::")[1].split("* - ")[1:]
        return [[cell.strip() for cell in row.split("\n  - ")] for row in rows]

    assert [row[1:4] for row in table()[1:]] == [
        ["60.0", "90.5", "20.2"],
        ["2.5", "3.0", "1.5"],
        ["62.5", "93.5", "21.8"],
    ]
    del runs["02_b"]["compiling_seconds"]
    assert [row[3] for row in table()[1:]] == ["20.2", "—", "—"]
    assert [row[5] for row in table()[1:3]] == ["2026-01-01 00:00"] * 2
    assert "Profile" not in table()[0]
    runs["02_b"]["profile"] = "full"
    assert [row[-1] for row in table()] == ["Profile", "`book`", "`full`", ""]
    assert len({len(row) for row in table()}) == 1


FORMULAS = {
    r"a = \frac{1}{2}, \qquad b = 3": ["a = \\frac{1}{2}, \\\\", "b = 3"],
    r"a, \qquad b, \qquad c": ["a, \\\\", "b, \\\\", "c"],
    r"a, \quad b": None,
    r"\text{a \qquad b}": None,
    r"\left( a, \qquad b \right)": None,
    r"\begin{cases} a \qquad b \end{cases}": None,
    r"a &= b \\ &\qquad + c": None,
    r"a \\ b, \qquad c": None,
    r"\qquad a": None,
    r"\{a\}, \qquad \begin{pmatrix} a & b \\ c & d \end{pmatrix}": [
        r"\{a\}, \\",
        r"\begin{pmatrix} a & b \\ c & d \end{pmatrix}",
    ],
}


@pytest.mark.parametrize("formula", FORMULAS)
def test_formulas_side_by_side_in_a_docstring_become_lines(formula):
    first, _, rest = formula.partition(", ")
    before, after = ["One.", ""], ["", "    Text with :math:`a, \\qquad b`.", "", "More."]
    written = [f"    .. math:: {first}{', ' if rest else ''}", *[f"        {rest}"] * bool(rest)]
    lines = [*before, *written, *after]
    companion.lined_formulas(None, "function", "f", None, None, lines)
    assert lines[:2] == before and lines[-4:] == after
    found = FORMULAS[formula]
    if found is None:
        assert lines[2:-4] == written
    else:
        inside = [r"\begin{gathered}", *found, r"\end{gathered}"]
        assert lines[2:-4] == ["    .. math::", "", *(f"        {line}" for line in inside)]
        assert lines[-4] == ""


def test_a_field_without_words_has_none():
    class Pair(NamedTuple):
        first: int

    for doc, kept in ((Pair.first.__doc__, []), ("What it is.", ["What it is."])):
        lines = [doc]
        companion.no_aliases(None, "attribute", "Pair.first", Pair.first, None, lines)
        assert lines == kept


def test_records_of_notebooks_that_are_no_chapter_do_not_count():
    text = companion.scorecard(CLAIMS, [record("T1", notebook="99_draft")], {"01_a": "A"})
    assert "[open]" in rows(text)["T1"]


def test_markup_in_a_quantity_is_shown_as_it_is():
    odd = record("T1", quantity="|x_t| of *A* `y` $z$ <b>")
    text = companion.scorecard(CLAIMS, [odd], {"01_a": "A"})
    assert r"\|x\_t\| of \*A\* \`y\` \$z\$ \<b\>" in rows(text)["T1"]


def build(root):
    command = [
        str(Path(sys.executable).with_name("jupyter-book")),
        "build",
        str(root),
        "-W",
        "--keep-going",
        "-n",
        "-q",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=180)


@pytest.fixture
def book(tmp_path):
    """The book's own configuration and pages around one executed chapter with one record."""
    for name in ("_config.yml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "book", tmp_path / "book", ignore=shutil.ignore_patterns("executed", "__pycache__")
    )
    for page in (tmp_path / "book").glob("*.md"):
        if page.stem not in ("scorecard", "status", "bibliography"):
            page.unlink()
    # the theorems, the API page, the tests and the other chapters that claims lead to are not part
    # of this book
    claims = {
        claim_id: {key: value for key, value in claim.items() if key not in EVIDENCE}
        | {"chapter": "01"}
        for claim_id, claim in CLAIMS.items()
    }
    (tmp_path / "book" / "claims.yml").write_text(yaml.safe_dump(claims), "utf-8")
    toc = "format: jb-book\nroot: book/scorecard\nchapters:\n"
    toc += "".join(
        f"  - file: book/{name}\n" for name in ("executed/01_a", "status", "bibliography")
    )
    (tmp_path / "_toc.yml").write_text(toc)
    folder = tmp_path / "book" / "executed"
    folder.mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_a.md").write_text("# A title\n")
    cells = [nbformat.v4.new_markdown_cell("# A title"), nbformat.v4.new_code_cell("1")]
    for place, these in ((tmp_path / "notebooks", cells), (folder, cells[:1])):
        nbformat.write(nbformat.v4.new_notebook(cells=these), place / "01_a.ipynb")
    entry = {
        key: value for key, value in record("T1").items() if key not in ("notebook", "profile")
    }
    run = {
        "profile": "book",
        "seconds": 1.0,
        "executed": "2026-01-01T00:00:00+00:00",
        "commit": "abc",
    }
    run |= {"machine": execute.machine(), "versions": execute.versions(), "ledger": [entry]}

    def write(**changes):
        run["ledger"] = [{**entry, **changes}]
        (folder / "01_a.json").write_text(json.dumps(run))

    write()
    return tmp_path, write


def test_book_builds_and_a_missed_bound_or_unknown_claim_stops_it(book):
    root, write = book
    done = build(root)
    assert done.returncode == 0, done.stderr
    page = (root / "_build/html/book/scorecard.html").read_text()
    assert "an error" in page and 'href="executed/01_a.html"' in page
    assert 'id="claim-t1"' in page
    assert (root / "_build/html/_sources/notebooks/01_a.md").read_text() == "# A title\n"
    page = (root / "_build/html/book/executed/01_a.html").read_text()
    assert "github" not in page.replace("github.com/pydata", "") and "mybinder" not in page
    assert not (root / "_build/html/_colab").exists()

    write(value=2.0, passed=False)
    done = build(root)
    assert done.returncode != 0
    assert "01_a: T1 misses its bound: an error" in done.stderr + done.stdout
    write(value=2.0, passed=False, outcome="fails")  # says something of the claim, breaks nothing
    done = build(root)
    assert done.returncode == 0, done.stderr
    page = root / "book/executed/01_a.ipynb"
    written = page.read_text()
    page.write_text(written.replace("# A title", "# A title\\n\\nSee chapter 99."))
    write()
    done = build(root)
    assert done.returncode != 0
    assert "01_a: there is no chapter 99" in done.stderr + done.stdout
    page.write_text(written)
    write(claim="T99")
    done = build(root)
    assert done.returncode != 0
    assert "01_a records T99, which is not in book/claims.yml" in done.stderr + done.stdout
    (root / "book/executed/01_a.json").unlink()
    done = build(root)
    assert done.returncode != 0
    assert "not executed: 01_a" in done.stderr + done.stdout


def test_repository_links_follow_the_source(book, monkeypatch):
    root, _ = book
    monkeypatch.setenv("CDELTA_REPOSITORY_URL", "https://github.com/someone/causality-delta/")
    done = build(root)
    assert done.returncode == 0, done.stderr
    chapter = (root / "_build/html/book/executed/01_a.html").read_text()
    base = "https://github.com/someone/causality-delta"
    assert f"{base}/blob/main/notebooks/01_a.md" in chapter
    assert f"{base}/edit/main/notebooks/01_a.md" in chapter
    colab = "colab.research.google.com/github/someone/causality-delta/blob/gh-pages/_colab"
    assert f"{colab}/01_a.ipynb" in chapter
    there = nbformat.read(root / "_build/html/_colab/01_a.ipynb", as_version=4)
    nbformat.validate(there)
    title, install, code = there.cells
    *few_cores, line = install.source.splitlines()
    assert few_cores == ["%env PJRT_NPROC=16", "%env OPENBLAS_NUM_THREADS=1"]
    assert line == f'%pip install -q "cdelta[data] @ git+{base}@main" myst-nb'
    assert (title.source, code.source) == ("# A title", "1")
    assert "pip install" not in (root / "notebooks/01_a.ipynb").read_text()
    binder = "mybinder.org/v2/gh/someone/causality-delta/main?urlpath=lab%2Ftree%2Fnotebooks"
    assert f"{binder}%2F01_a.ipynb" in chapter
    assert f"{base}/blob/main/book/status.md" in (root / "_build/html/book/status.html").read_text()


def test_verdict_page_and_ledger_agree_on_how_numbers_are_written():
    text = companion.scorecard(CLAIMS, [record("T1", 1 / 3, stderr=1 / 70)], {"01_a": "A"})
    assert ledger.describe(1 / 3, 1 / 70) in text
