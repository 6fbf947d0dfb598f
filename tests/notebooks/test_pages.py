"""Every built page in a browser without network; and, for each thing that is looked for, a page
that has it.

Needs a Chromium and the book: that of `make book`, or the one whose folder ``CDELTA_SITE`` names.
Without either it fails, it does not skip.
"""

import functools
import json
import os
import re
import shutil

import finish
import nbformat
import pytest
import yaml

from tests import ROOT
from tests.notebooks import again, pages

SITE = ROOT / os.environ.get("CDELTA_SITE", "_build/html")

PAGE = """<!DOCTYPE html>
<html lang="en" data-theme="light"><head><meta charset="utf-8"><title>t</title>
<meta name="viewport" content="width=device-width">
<style>body {{ background: #fff; color: #222 }}
[data-theme=dark] body {{ background: #111; color: #ddd }}
a {{ color: inherit }} mjx-container[display] {{ overflow-x: auto; max-width: 100% }}
@media print {{ pre {{ white-space: pre-wrap }} }}</style>
<script>window.MathJax = {{tex: {{macros: {{E: "\\\\mathbb{{E}}"}}}}}}</script>
<script defer src="mathjax/tex-svg-full.js"></script>
<script defer src="tippy/popper.min.js"></script>
<script defer src="tippy/tippy-bundle.umd.min.js"></script>
<script defer src="page.js"></script>{head}</head><body><main class="bd-article">
<h1 id="title">A title</h1><p>Text, <span class="math">\\(\\E[x] = \\frac{{1}}{{2}}\\)</span>, and
<a href="#title">a link</a>, <a href="other.html#there">another</a>, <a href="data.txt">a file</a>,
<a href="https://example.org/">outside</a>.</p>
<pre>raw \\(TeX\\) in $code_x$ and $$</pre>
<p>It costs $5 or $6.</p>
<figure><svg role="img" aria-label="a circle" width="9" height="9"><circle r="4"/></svg>
<img alt="a dot" src="data:image/gif;base64,R0lGODlhAQABAAAAACw="></figure>
{body}</main></body></html>"""


def preview(options, link='<a href="#title" id="linked">a link with a preview</a>'):
    """A link, and what gives it a preview once the page has loaded."""
    make = f"addEventListener('load', () => tippy('#linked', {{allowHTML: true, {options}}}))"
    return f"<p>Here is {link}.</p><script>{make}</script>"


def drawing(inside, width, name="one", kind="cd-whole"):
    """A figure's drawing, 518 points wide, shown at another width."""
    return (
        f'<svg class="{kind}" role="img" aria-label="a word" viewBox="0 0 518 30" '
        f'style="width: {width}">'
        f'<g id="{name}">{inside}</g></svg>'
    )


# of 9 points, as matplotlib writes them
LETTERS = '<g transform="translate(20 20) scale(0.09 -0.09)"><path d="M0 0h60v70z"/></g>'
BEYOND = LETTERS.replace("(20 20)", "(512 20)").replace(".09", ".2")
WINDOW = '<use href="#one-whole"/>'
CIRCLE = (
    '<figure><svg role="img" aria-label="a circle" width="50" height="50"><circle r="20"/></svg>'
    "</figure>"
)
ON_PAPER = "<style>@media print {details::details-content {content-visibility: visible}}</style>"
CELL = '<div class="cell"><div class="cell_input"><pre>code</pre></div></div>'
FORMULA = r"""content: '<span class="math">\\(x\\)</span>'"""
BROKEN = {
    "red formula": '<p><span class="math">\\(\\undefinedmacro{x}\\)</span></p>',
    "red formula: unbalanced": '<p><span class="math">\\(\\left( x\\)</span></p>',
    "raw formula: open brace": '<p><span class="math">\\(\\frac{1\\)</span></p>',
    "raw formula": "<p>Here $x_t$ was not set.</p>",
    "raw formula: display": "<p>$$ x = 1</p>",
    "raw formula: command": "<p>the \\mathbb{E} of it</p>",
    "clipped formula": (
        f'<div style="overflow-x: auto"><p class="math">\\[{"x + " * 60} y\\]</p></div>'
    ),
    "clipped formula: in a line": (
        f'<p style="overflow: hidden">A <span class="math">\\({"x + " * 30} y\\)</span></p>'
    ),
    "clipped mark": (
        '<style>#end {position: relative; overflow: hidden} #end::after {content: "□"; '
        'position: absolute; right: -10px}</style><p id="end">Which was to be proved.</p>'
    ),
    "wide formula": f'<p class="math">\\[{"x + " * 16} y\\]</p>',
    "wide formula: in a fold": (
        f'{ON_PAPER}<details><summary>Proof</summary><p class="math">\\[{"x + " * 16} y\\]</p>'
        "</details>"
    ),
    "wide formula: in a line": (
        "<style>mjx-container {display: inline-block; max-width: 100%; overflow-x: auto}</style>"
        f'<p>It is <span class="math">\\({"x + " * 16} y\\)</span></p>'
    ),
    "wide formula: of a docstring": (
        '<dl class="py function"><dt class="sig">f()</dt><dd><p class="math">'
        f"\\[{'x + ' * 16} y\\]</p></dd></dl>"
    ),
    "scrolls without a hint": (
        '<div style="overflow-x: auto" tabindex="0"><p style="width: 600px">wide</p></div>'
    ),
    "caption that scrolls away": (
        '<div class="cd-scroll" style="overflow-x: auto"><table style="width: 600px">'
        "<caption>A caption</caption><tr><th>a</th><td>b</td></tr></table></div>"
    ),
    "figure cut": (
        '<figure><div class="cd-canvas" style="overflow-x: auto"><svg role="img" '
        'aria-label="a circle" width="480" height="9"><circle r="4"/></svg></div></figure>'
    ),
    "figure cut: a word": (
        f'<figure><div class="cd-canvas">{drawing(BEYOND, "100%", kind="cd-panel")}</div></figure>'
    ),
    "lonely point": (
        '<table><tr><th>a</th><td style="width: 1px">A <span class="math">\\(x + x + x\\)</span>. B'
        "</td></tr></table>"
    ),
    "side named": (
        '<figure><div class="cd-panels"><svg class="cd-panel" role="img" aria-label="one" '
        'width="9" height="9"/><svg class="cd-panel" role="img" aria-label="two" width="9" '
        'height="9"/></div><figcaption>Dots. Left: one.</figcaption></figure>'
    ),
    "side named: to who does not see": (
        '<figure><div class="cd-panels"><svg class="cd-panel" role="img" aria-label="Left, one" '
        'width="9" height="9"/><svg class="cd-panel" role="img" aria-label="two" width="9" '
        'height="9"/></div><figcaption>Dots.</figcaption></figure>'
    ),
    "small text": f'<figure><div class="cd-canvas">{drawing(LETTERS, "100%")}</div></figure>',
    "small text: in a window": (
        f'<figure><div class="cd-canvas cd-panels">{drawing(LETTERS, "1px", name="one-whole")}'
        f"{drawing(WINDOW, '100%')}</div></figure>"
    ),
    "small control": ('<figure><input type="range" aria-label="t" style="height: 12px"></figure>'),
    "cut code": f'<pre style="overflow-x: auto">{"long " * 99}</pre>',
    "lost in print": "<style>@media print { h1 { display: none } }</style>",
    "lost in print: a line": '<pre style="white-space: pre !important">code</pre>',
    "lost in print: a fold": (
        '<div class="cell"><details><summary>code</summary>hidden</details></div>'
    ),
    "lost in print: a proof": "<details><summary>Proof</summary>hidden</details>",
    "lost in print: a check": (
        '<div class="cell"><details class="cd-checks"><summary>a check holds</summary><pre>PASS T1'
        " · x: 1</pre></details></div>"
    ),
    "lost in print: all checks": (
        "<style>@media print { .cd-checks { display: none } }</style>"
        '<details class="cd-checks" open><summary>a check</summary><pre>PASS T1</pre></details>'
    ),
    "unfolded checks": "<pre>PASS T1 · x: 1 ≤ 2\nFAILS T2 · y: 3, asked ≤ 2\n</pre>",
    "folded failure": (
        "<style>.cd-checks::details-content { content-visibility: visible }</style>"
        '<details class="cd-checks"><summary>checks</summary><pre>PASS T1 · x: 1 ≤ 2\n'
        "UNDECIDED T2 · y: 3, asked ≤ 2</pre></details>"
    ),
    "loud: a heading": '<h2 style="font-weight: 400">a</h2><h3 style="font-weight: 700">b</h3>',
    "loud: a larger one": '<h2>a</h2><h3 style="font-size: 2em">b</h3>',
    "loud: a value": '<p>By <span class="pasted-text" style="font-weight: 700">1.2</span>.</p>',
    "lost in print: a page": '<div class="cell" style="break-inside: avoid">code</div>',
    "mostly code": (
        f'{CIRCLE}<div class="cell"><div class="cell_input"><pre>{"code<br>" * 40}</pre></div>'
        "</div>"
    ),
    "late figure": f'<div style="height: 1400px"></div>{CIRCLE}{CELL}',
    "late figure: none": f'<div style="height: 1400px"></div>{CELL}',
    "late figure: a table is none": (
        '<figure class="cd-table"><table style="height: 60px"><tr><th>a</th><td>1</td></tr></table>'
        f'</figure><div style="height: 1400px"></div>{CIRCLE}{CELL}'
    ),
    "late figure: a formula is none": (
        '<p class="math">\\[\\frac{\\frac{\\frac12}3}{\\frac{\\frac12}3}\\]</p>'
        f'<div style="height: 1400px"></div>{CIRCLE}{CELL}'
    ),
    "layout shift": (
        "<script>addEventListener('load', () => setTimeout(() => { const late = document"
        ".createElement('div'); late.style.height = '400px'; document.body.prepend(late) }, 99))"
        "</script>"
    ),
    "unreadable preview": preview("content: ''"),
    "unreadable preview: set too early": preview(
        f"{FORMULA}, onMount() {{}}, onShow(tip) {{ MathJax.typesetPromise([tip.popper]) }}"
    ),
    "unreadable preview: not set": preview(f"{FORMULA}, onMount() {{}}"),
    "unreadable preview: tall": preview("content: '<p style=\"height: 2000px\">tall</p>'"),
    "preview outside the text": preview(
        "content: 'text'", '<nav aria-label="n"><a href="#title" id="linked">a link</a></nav>'
    ),
    "preview that stays": (
        preview("content: 'text'")
        + "<script>addEventListener('keydown', event => event.stopImmediatePropagation(), true)"
        "</script>"
    ),
    "axe: header": "<table><tr><th></th></tr><tr><td>cell</td></tr></table>",
    "axe: name": '<button aria-label="Close">Open</button>',
    "axe: in a fold": (
        f'{ON_PAPER}<details><summary>s</summary><button aria-label="Close">Open</button></details>'
    ),
    "axe: list": '<div role="list"><p>no item</p></div>',
    "axe: definitions": "<dl><p>no term</p></dl>",
    "axe: contrast": '<button style="color: #888; background: #fff">pale</button>',
    "axe: landmark": "</main><div>outside of it</div>",
    "console error": "<script>console.error('something broke')</script>",
    "console error: exception": "<script>undefinedFunction()</script>",
    "outside request": '<img alt="far away" src="https://example.org/a.png">',
    "outside request: script": '<script src="http://example.org/a.js"></script>',
    "outside request: fetch": "<script>fetch('https://example.org/a.json').catch(() => 0)</script>",
    "outside request: style": "<style>@import url('https://example.org/a.css');</style>",
    "missing file": '<script src="not_there.js"></script>',
    "broken link": '<a href="nowhere.html">a link</a>',
    "broken link: outside the site": '<a href="../elsewhere.txt">a link</a>',
    "broken anchor": '<a href="#nothing">a link</a>',
    "broken anchor: another page": '<a href="other.html#nothing">a link</a>',
    "no alt text": '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">',
    "no alt text: empty": '<img alt=" " src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">',
    "no alt text: svg": '<figure><svg width="9" height="9"><circle r="4"/></svg></figure>',
    "no alt text: svg without label": '<svg role="img" width="9" height="9"><circle r="4"/></svg>',
    "no alt text: canvas": "<canvas width='9' height='9'></canvas>",
    "overflow": '<div style="width: 2000px">wide</div>',
    "overflow: phone": '<div style="width: 600px">wide</div>',
    "unreadable": '<p style="color: #ddd; background: #fff">pale</p>',
    "unreadable: dark": '<p style="color: #222">ink on black</p>',
    "unreadable: svg": (
        '<svg role="img" aria-label="a word"><text y="20" fill="#eee">pale</text></svg>'
    ),
}


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """One site with a sound page, and a page for each thing that can be broken."""
    folder = tmp_path_factory.mktemp("site").resolve()
    root = folder / "html"
    (root / "mathjax").mkdir(parents=True)
    shutil.copy(ROOT / "book/_static/mathjax/tex-svg-full.js", root / "mathjax")
    shutil.copytree(ROOT / "book/_static/tippy", root / "tippy")
    shutil.copy(ROOT / "book/_static/page.js", root)
    (root / "data.txt").write_text("data")
    (folder / "elsewhere.txt").write_text("not of this site")
    for index, body in enumerate(BROKEN.values()):
        (root / f"broken{index}.html").write_text(PAGE.format(head="", body=body))
    (root / "sound.html").write_text(PAGE.format(head="", body=""))
    chapter = f'{CIRCLE}{CELL}<div style="height: 2000px"></div>'
    (root / "chapter.html").write_text(PAGE.format(head="", body=chapter))
    (root / "other.html").write_text(PAGE.format(head="", body='<p id="there">there</p>'))
    forward = '<meta http-equiv="refresh" content="0; url=sound.html">'
    (root / "forward.html").write_text(
        f"<!DOCTYPE html><html><head>{forward}</head><body></body></html>"
    )
    found = {}
    for problem in pages.check(root):
        found.setdefault(problem.page, []).append(problem)
    return found


def test_sound_pages_have_no_problem(site):
    sound = ("sound.html", "chapter.html", "other.html", "forward.html")
    assert {page: site.get(page) for page in sound} == dict.fromkeys(sound)


@pytest.mark.parametrize("name", BROKEN)
def test_each_kind_of_problem_is_found(site, name):
    kind = name.split(":")[0]
    problems = site.get(f"broken{list(BROKEN).index(name)}.html", [])
    assert kind in {problem.kind for problem in problems}
    # and nothing else is reported, except what a browser itself adds to a failed request, what axe
    # looks for as well, and that a formula cut on a laptop is too wide for a phone
    beside = {"console error", "axe"} | ({"wide formula"} if kind == "clipped formula" else set())
    assert {problem.kind for problem in problems} <= {kind, *beside}


def test_no_page_is_no_success(tmp_path):
    with pytest.raises(FileNotFoundError, match="no page below"):
        pages.check(tmp_path)


def test_missing_browser_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(FileNotFoundError, match=r"apt-get install chromium.*CHROMIUM"):
        pages.find_chromium()


@pytest.fixture(scope="session")
def book():
    if not (SITE / "index.html").is_file():
        pytest.fail("the book is not built: make book")
    return SITE


def test_built_pages(book):
    problems = pages.check(book)
    assert not problems, "\n" + "\n".join(f"{p.page}: {p.kind}: {p.detail}" for p in problems)


@pytest.fixture(scope="module")
def tab():
    with pages.browser() as tab:
        tab.width(1280)
        yield tab


def test_site_does_not_know_where_it_was_made(book):
    texts = [
        path
        for path in book.rglob("*")
        if path.suffix in (".html", ".js", ".ipynb", ".md", ".txt", ".svg")
    ]
    assert len(texts) > 10
    home = str(ROOT) + "/"
    telling = [path for path in texts if home in path.read_text("utf-8", "replace")]
    assert [str(path.relative_to(book)) for path in telling] == []


CHAPTERS = sorted(path.stem for path in (SITE / "book" / "executed").glob("[0-9]*.html"))


def search(book, tab, query):
    """The addresses that the search page finds, in its order, once it has found all."""
    tab.open((book / "search.html").as_uri() + f"?q={query}")
    return tab.evaluate(
        """(async () => { let before = -1; for (let i = 0; i < 100; i++) {
             const found = [...document.querySelectorAll('#search-results li a')];
             if (found.length && found.length === before)
               return found.map(link => link.getAttribute('href'));
             before = found.length;
             await new Promise(done => setTimeout(done, 200)); } return []; })()"""
    )


def test_search_finds_a_chapter(book, tab):
    assert any("01_linear_maps" in link for link in search(book, tab, "conditional+mean"))


def test_search_puts_the_chapter_on_a_word_first(book, tab):
    for query, chapter in (("wiggle", "06_"), ("mixtures", "04_"), ("faces", "13_")):
        assert f"executed/{chapter}" in search(book, tab, query)[0], query


def test_search_quotes_prose(book, tab):
    """Neither a page's contents nor its code nor TeX."""
    (page,) = (book / "book/executed").glob("06_*.html")
    tab.open(page.as_uri())
    text = page.read_text("utf-8")
    quoted = tab.evaluate(f"Search.htmlToText({json.dumps(text)}, '')")
    first = re.search(r"</h1>\s*<p>(\w+ \w+ \w+)", text)[1]
    assert quoted.startswith(first) and len(quoted) > 5000
    assert not re.search(r"\\|import jax|settings\[|Contents|Show code", quoted)


def test_the_first_page_leads_to_the_first_chapter(book):
    page = (book / "book/index.html").read_text("utf-8")
    following = re.search(r'class="right-next"\s+href="([^"]*)"', page)[1]
    assert following.startswith("executed/01_")


def test_icons_are_loaded_once(book):
    """From the theme's web font, not a second time as 1.5 MB of JavaScript."""
    loading = [
        page.relative_to(book)
        for page in book.rglob("*.html")
        if "fontawesome.js" in page.read_text("utf-8")
    ]
    assert [page for page in loading if page.parts[0] != "_static"] == []  # the theme's own parts


def test_a_theorem_or_section_and_its_claims_lead_to_each_other(book):
    scorecard = (book / "book/scorecard.html").read_text("utf-8")
    claims = yaml.safe_load((ROOT / "book/claims.yml").read_text("utf-8"))
    read = functools.cache(lambda page: (book / "book" / page).read_text("utf-8"))
    alone = []
    for claim_id, claim in claims.items():
        if not (label := claim.get("theorem")):
            continue
        claim = finish.anchor(claim_id)
        entry = scorecard.partition(f'id="{claim}"')[2].partition('id="claim-')[0]
        found = re.search(rf'href="(executed/\w+\.html)#({label})"', entry, re.I)
        if found is None:
            alone.append(f"{claim_id} does not lead to {label}")
            continue
        page, anchor = found.groups()
        stated = read(page).partition(f'id="{anchor}"')[2]
        # a theorem's title, or what follows a section's heading
        links = stated.partition("</p>")[0].rpartition("</h")[2]
        if f'href="../scorecard.html#{claim}"' not in links:
            alone.append(f"{label} in {page} does not lead to {claim_id}")
    assert not alone, "\n".join(alone)


def test_preview_of_a_formula_appears(book, tab):
    tab.open((book / "book/executed/01_linear_maps.html").as_uri())
    shown = tab.evaluate(
        """(async () => { const target = '#equation-eq-t1', errors = '[data-mml-node="merror"]';
             const link = document.querySelector(`.bd-article a.reference[href="${target}"]`);
             link.dispatchEvent(new MouseEvent('mouseenter'));
             link.dispatchEvent(new FocusEvent('focus'));
             for (let i = 0; i < 50; i++) {
               const tip = document.querySelector('.tippy-box mjx-container');
               if (tip) return tip.closest('.tippy-box').querySelectorAll(errors).length;
               await new Promise(done => setTimeout(done, 100)); } return 'no preview'; })()"""
    )
    assert shown == 0


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_can_be_downloaded(book, name):
    """As it was executed, and as its source; neither knows where it was made."""
    sources = book / "_sources"
    notebook = nbformat.read(sources / "book" / "executed" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert again.never_executed(notebook) == []
    source = (ROOT / "notebooks" / f"{name}.md").read_text()
    assert (sources / "notebooks" / f"{name}.md").read_text() == source
    assert str(ROOT) not in json.dumps(notebook)
    page = (book / "book" / "executed" / f"{name}.html").read_text()
    assert f"../../_sources/book/executed/{name}.ipynb" in page
    assert f"../../_sources/notebooks/{name}.md" in page
