"""Chapters that are read: a figure at the top, code folded under words that say what it holds, and
short cells.

Heights are estimated from the source, in pixels of a page 1280 wide, as a browser measures them to
about a tenth: nothing has to be executed.
"""

import ast
import re

import execute
import jupytext
import pytest

from tests import ROOT

CHAPTERS = sorted({path.stem for path in (ROOT / "notebooks").glob("*.md")})
LONGEST = 40  # lines of a cell: what is longer is logic, and belongs in cdelta with a test
CODE_LINE, TEXT_LINE, FORMULA_LINE = 18, 27, 42
LETTERS = 92  # in a line of text
FOLD, FIGURE, TABLE, CHECK = 45, 430, 260, 20
SCREEN = 900


def cells(name):
    return jupytext.read(ROOT / "notebooks" / f"{name}.md").cells


def code_of(name):
    return [cell for cell in cells(name) if cell.cell_type == "code"]


def folded(cell):
    return "hide-input" in cell.metadata.get("tags", [])


def lines(cell):
    """Of code: the line that names a fold is none."""
    return len(cell.source.splitlines()) - (execute.title(cell) is not None)


def text_height(source):
    """Of Markdown: paragraphs, formulas of several lines, headings; a folded proof is one line."""
    height = 0
    source = re.sub(r"^:::\{dropdown\}.*?^:::$", "Proof", source, flags=re.S | re.M)
    for block in re.split(r"\n\s*\n", source):
        if block.lstrip().startswith("$$"):
            height += FORMULA_LINE * (1 + block.count(r"\\")) + 20
        elif block.startswith("#"):
            height += 80
        else:
            # commands are longer in the source than on the page
            letters = len(re.sub(r"\\[a-zA-Z]+|[{}$`]", "", block))
            height += TEXT_LINE * -(-letters // LETTERS) + 18
    return height


def outputs_height(cell):
    if "remove-output" in cell.metadata.get("tags", []):
        return 0
    source = cell.source
    return (
        FIGURE * len(re.findall(r"figures\.(?:show|movable)\(", source))
        + TABLE * len(re.findall(r"figures\.table\(", source))
        + CHECK * len(re.findall(r"ledger\.(?:check|decide)\(", source))
    )


def code_height(cell):
    return FOLD if folded(cell) else CODE_LINE * lines(cell) + 40


def share_of_code(chapter):
    """Visible code and its folds, over the whole height."""
    code = sum(code_height(cell) for cell in chapter if cell.cell_type == "code")
    rest = sum(
        outputs_height(cell) if cell.cell_type == "code" else text_height(cell.source)
        for cell in chapter
    )
    return code / (code + rest)


def above_the_first_figure(chapter):
    """The height of what stands above it; infinite where a theorem or nothing at all follows."""
    height = 0
    for cell in chapter:
        if cell.cell_type == "code":
            if outputs_height(cell) >= FIGURE:
                return height + code_height(cell)
            height += code_height(cell) + outputs_height(cell)
        else:
            before, figure, _ = cell.source.partition("```{glue} opening")
            if "{prf:" in re.sub(r"\{prf:ref\}", "", before):
                return float("inf")
            height += text_height(before)
            if figure:
                return height
    return float("inf")


@pytest.mark.parametrize("name", CHAPTERS)
def test_no_cell_is_long(name):
    assert {lines(cell): cell.source[:60] for cell in code_of(name) if lines(cell) > LONGEST} == {}


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_fold_says_what_it_holds(name):
    for cell in filter(folded, code_of(name)):
        said = execute.title(cell) or ""
        assert len(said) >= 5, cell.source[:60]
        assert not re.search(r"[{}\\]|…$|and \d+ more", said)  # the theme formats it


def shows_a_verdict(source):
    """Whether a cell's value is the word that a decision returns: a page would print it below the
    decision's own line."""
    last = ast.parse(source).body[-1:]
    value = last[0].value if last and isinstance(last[0], ast.Expr) else None
    return isinstance(value, ast.Call) and ast.unparse(value.func) == "ledger.decide"


@pytest.mark.parametrize("name", CHAPTERS)
def test_no_cell_shows_a_verdict_as_its_value(name):
    assert [c.source[:60] for c in code_of(name) if shows_a_verdict(c.source)] == []


def test_which_cells_show_a_verdict():
    decided = 'ledger.decide(\n    "C8", "share", 0.1, 0.5,\n)'
    assert shows_a_verdict(decided) and shows_a_verdict(f"x = 1\n{decided}  # of one")
    indented = decided.replace("\n", "\n    ")
    for quiet in (f"_ = {decided}", f"{decided}\nx = 1", f"for _ in range(2):\n    {indented}", ""):
        assert not shows_a_verdict(quiet)


@pytest.mark.parametrize("name", CHAPTERS)
def test_code_takes_less_than_a_third(name):
    assert share_of_code(cells(name)) < 0.3


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_figure_comes_before_the_first_theorem(name):
    assert above_the_first_figure(cells(name)) < 1.5 * SCREEN


@pytest.mark.parametrize("name", CHAPTERS)
def test_an_opening_is_shown_once(name):
    chapter = cells(name)
    glued = sum(c.source.count("```{glue} opening") for c in chapter if c.cell_type != "code")
    made = [c for c in chapter if c.cell_type == "code" and "opening=True" in c.source]
    assert glued == len(made) <= 1
    assert all("remove-output" in cell.metadata["tags"] for cell in made)


def swallowed(source):
    """Lines of Markdown that begin with %, which MyST takes for comments."""
    prose = re.sub(r"^(```|~~~).*?^\1", "", source, flags=re.S | re.M)
    return re.findall(r"^ {0,3}%.*", prose, re.M)


@pytest.mark.parametrize("name", CHAPTERS)
def test_no_line_of_a_chapter_is_a_comment(name):
    assert [swallowed(cell.source) for cell in cells(name) if swallowed(cell.source)] == []


def test_no_line_of_a_page_is_a_comment():
    pages = {path.name: swallowed(path.read_text("utf-8")) for path in (ROOT / "book").glob("*.md")}
    assert len(pages) > 5 and not any(pages.values()), pages
    assert swallowed("these carry 92\n% of it.\n```python\n%pip\n```\n5 % of") == ["% of it."]


def chapter(*sources):
    return jupytext.reads("\n\n".join(sources), fmt="md:myst").cells


def cell_of(source, *tags):
    return f"```{{code-cell}} ipython3\n:tags: [{', '.join(tags)}]\n\n{source}\n```"


def test_what_the_measures_notice():
    """Code that is not folded, and a figure that comes late."""
    code, figure = "\n".join(["x = 1"] * 30), "figures.show(fig)"
    text = " ".join(["word"] * 100)
    theorem = "```{prf:theorem} A\n:label: a\n\nB.\n```"
    visible = chapter(text, cell_of(figure, "hide-input"), cell_of(code))
    hidden = chapter(text, cell_of(figure, "hide-input"), cell_of(code, "hide-input"))
    assert share_of_code(visible) > 0.45 and share_of_code(hidden) < 0.15
    early = chapter(text, cell_of(figure, "hide-input"), theorem)
    assert above_the_first_figure(early) < 300
    late = chapter(text, theorem, cell_of(figure, "hide-input"))
    nowhere = chapter(text, cell_of(code))
    assert above_the_first_figure(late) == above_the_first_figure(nowhere) == float("inf")
    assert above_the_first_figure(chapter(text + "\n\n```{glue} opening\n```")) < 300
    long = chapter(*[text] * 12, cell_of(figure, "hide-input"))
    assert above_the_first_figure(long) > 1.5 * SCREEN
