"""What is done to a page's HTML, on small pages."""

import re

import finish
import pytest
import typeset

PAGES = {4: "04_a.html", 5: "", 10: "10_b.html"}


def linked(text):
    missing = []
    return finish.link_chapters(text, PAGES.get, missing.append), missing


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("see chapter 04.", 'see <a class="reference internal" href="04_a.html">Chapter 4</a>.'),
        ("(Chapter\n10)", '(<a class="reference internal" href="10_b.html">Chapter 10</a>)'),
        (
            "chapters 04 and 10's",
            'Chapters <a class="reference internal" href="04_a.html">4</a> and '
            '<a class="reference internal" href="10_b.html">10</a>\'s',
        ),
        ("chapter 05 itself", "Chapter 5 itself"),
    ],
)
def test_a_chapter_that_is_named_is_linked(text, said):
    assert linked(text) == (said, [])


@pytest.mark.parametrize(
    "text",
    [
        "<pre>chapter 04</pre>",
        "<h2>On chapter 04</h2>",
        '<a href="x"><span>chapter 04</span></a>',
        '<svg><text>chapter 04</text></svg><p title="chapter 04">',
        "a chapter of 04 parts, chapter 4.2, chapters",
    ],
)
def test_what_is_no_prose_stays(text):
    assert linked(text) == (text, [])


def test_a_chapter_that_is_not_there_is_told():
    assert linked("chapter 07, chapters 04 to 11") == (
        'Chapter 7, Chapters <a class="reference internal" href="04_a.html">4</a> to 11',
        [7, 11],
    )


def test_figures_and_tables_are_numbered_and_found():
    caption = '<figcaption class="c">{}It moves.</figcaption></figure>'
    drawn, table = '<figure class="cd-figure" id="cd-1"><svg></svg>', '<figure class="cd-table">'
    page = "".join(kind + caption.format("") for kind in (drawn, table, drawn))
    number = '<b class="cd-numbered" id="{}-6-{}">{} 6.{}</b> '
    done = "".join(
        kind + caption.format(number.format(name.lower(), count, name, count))
        for kind, name, count in ((drawn, "Figure", 1), (table, "Table", 1), (drawn, "Figure", 2))
    )
    assert finish.number_figures(page, 6) == done

    told = finish.link_figures("<p>see Figure 4.2, Table 5.1, Figure 9.1, figure 4</p>", PAGES.get)
    assert told == (
        '<p>see <a class="reference internal" href="04_a.html#figure-4-2">Figure 4.2</a>, '
        '<a class="reference internal" href="#table-5-1">Table 5.1</a>, Figure 9.1, figure 4</p>'
    )


def theorem(title):
    return (
        '<div class="proof theorem admonition" id="thm-C3">\n<p class="admonition-title">'
        f'<span class="caption-number">Theorem 6.1 </span>{title}</p>'
    )


@pytest.mark.parametrize(
    ("title", "kept"),
    [
        (" (It counts (C3))", " (It counts)"),
        (" (C3)", ""),
        (" (It counts (C3’, C13))", " (It counts)"),
        (" (Of all <em>maps</em> (of one kind))", " (Of all <em>maps</em> (of one kind))"),
        ("", ""),
    ],
)
def test_a_theorem_leads_back_to_its_claims(title, kept):
    claims = {"thm-C3": [("C3", "derived"), ("C3'", "in part")], "thm-X": [("T1", "open")]}
    done = finish.link_claims(theorem(title), claims, "../scorecard.html")
    links = (
        '<a class="cd-claim-link" href="../scorecard.html#claim-c3">C3 · derived</a> '
        '<a class="cd-claim-link" href="../scorecard.html#claim-c3-prime">C3\' · in part</a>'
    )
    assert done == theorem(f"{kept} {links}")


def test_a_section_leads_back_to_its_claims():
    page = '<section id="fives">\n<span id="sec-e5"></span><h2>Fives<a>#</a></h2>\n<p>text</p>'
    done = finish.link_claims(page, {"sec-e5": [("E5", "in part")]}, "s.html")
    link = '<a class="cd-claim-link" href="s.html#claim-e5">E5 · in part</a>'
    assert done == page.replace("</h2>", f'</h2>\n<p class="cd-claim-links">{link}</p>')


def test_what_is_heard_is_tidy():
    assert finish.tidy('<summary aria-label="Toggle hidden content">Show</summary>') == (
        "<summary>Show</summary>"
    )
    assert finish.tidy('<th class="head"><p></p></th><th>a</th>') == (
        '<td class="head"><p></p></td><th>a</th>'
    )
    assert finish.tidy('<div role="list"><div id="a" role="doc-biblioentry">') == (
        '<div><div id="a">'
    )
    parameter = '<dd><em class="sig-param">x</em>,</dd>\n'
    assert finish.tidy(f"<dl>\n{parameter}</dl>") == (
        '<span class="cd-parameters"><span class="cd-parameter"><em class="sig-param">x</em>,'
        "</span>\n</span>"
    )
    assert finish.tidy(f"<dl>\n<dt>a</dt>{parameter}</dl>") == f"<dl>\n<dt>a</dt>{parameter}</dl>"


def test_a_formula_keeps_the_room_that_it_will_take():
    """Widths and heights as MathJax has them, in ex."""
    sizes = {
        r"Y": 1.7,
        r"\Cov(\Delta x_t) = A(t) A(t)^\T": 22.5,
        r"\Cov(\Delta x_t) = \varepsilon^2\, Y(t) Y(t)^\T": 25.0,
        r"\Cov f(X) = \int_0^1 \E[J(X) J(X_\alpha)^\T] \, d\alpha": 33.6,
        r"v = \E[x_1 - x_0 \mid x_t] = (g - x)/(1-t)": 35.7,
    }
    for tex, size in sizes.items():
        assert typeset.width(tex) == pytest.approx(size, abs=0.5 + 0.12 * size), tex
    assert typeset.height("x = 1") == pytest.approx(2.6, abs=0.5)
    assert typeset.height(r"g = \frac{t}{s} \\ + 1") == pytest.approx(6.0 + 2.6, abs=1)
    page = (
        '<p>So <span class="math notranslate nohighlight">\\(x &lt; 1\\)</span></p>'
        '<div class="math notranslate" id="a">\n<span class="eqno">(1)</span>\\[x\\]</div>'
    )
    done = finish.reserve(page)
    rooms = [f' style="--cd-room: {room:.1f}ex"' for room in (typeset.width("x < 1"), 2.9)]
    assert [done.count(room) for room in rooms] == [1, 1]
    assert re.sub(' style="--cd-room: [0-9.]+ex"', "", done) == page


def test_references_are_named_by_author_and_year(tmp_path):
    import citing
    from pybtex.database import parse_string
    from pybtex.plugin import find_plugin

    def work(key, author, year):
        fields = {"author": author, "year": year, "journal": "J", "title": "On Δ and A Map"}
        said = ", ".join(f"{name} = {{{value}}}" for name, value in fields.items())
        return f"@article{{{key}, {said}}}"

    people = ("Ada B. Ö{\\'e} and Bo Li and C. D", "Bo Li", "Bo Li", "Bo Li and C. van D")
    works = [work(f"w{i}", who, 2000 + (i == 3)) for i, who in enumerate(people)]
    citing.setup()
    style = find_plugin("pybtex.style.formatting", "author_year")()
    done = {e.key: e for e in style.format_bibliography(parse_string("\n".join(works), "bibtex"))}
    labels = [done[f"w{i}"].label for i in range(4)]
    assert labels == ["Öé et al., 2000", "Li, 2000a", "Li, 2000b", "Li and van D, 2001"]
    assert "On Δ and A Map" in done["w1"].text.render_as("text")


def test_a_value_keeps_its_sign_error_and_unit():
    quoted = '<strong><span class="pasted-text">{}</span></strong>'
    page = (
        f"<p>By {quoted.format('-0.14 ± 0.08 %')} or {quoted.format('[-1, 2-3]')} %, 12\n% of "
        r"\(12 % x\)</p><pre>7 % 2</pre>"
    )
    done = (
        f"<p>By {quoted.format('−0.14&nbsp;±&nbsp;0.08&nbsp;%')} or {quoted.format('[−1, 2-3]')}"
        r"&nbsp;%, 12&nbsp;% of \(12 % x\)</p><pre>7 % 2</pre>"
    )
    assert finish.values(page) == done


def printed(*lines):
    text = "".join(f"{line}\n" for line in lines)
    return (
        '<div class="output stream highlight-myst-ansi notranslate"><div class="highlight"><pre>'
        f"<span></span>{text}</pre></div>\n</div>\n"
    )


def folds(body):
    """Of each fold its title, whether it is open, and its lines."""
    fold = re.compile(
        r"<details class=\"([^\"]*)\"( open)?><summary>(.*?)</summary><div[^>]*><div[^>]*>"
        r"<pre>(.*?)</pre>",
        re.S,
    )
    found = fold.findall(body)
    return [(kind, title, bool(opened), text.splitlines()) for kind, opened, title, text in found]


def test_checks_are_one_line_that_opens():
    lines = ["PASS T7 · x &lt; y: 1 ≤ 2", "HOLDS C3' · y: 3", "PASS T7 · z: 1 (beside it, w: 9)"]
    done = finish.checks(f"<p>So</p>{printed(*lines)}<p>it is.</p>")
    assert folds(done) == [("cd-checks", "✓ 3 checks hold: T7, C3'", False, lines)]
    assert done.startswith("<p>So</p><details") and done.endswith("</details>\n<p>it is.</p>")
    assert done.count("<div") == done.count("</div>")
    (single,) = folds(finish.checks(printed(lines[0])))
    assert single[1] == "✓ 1 check holds: T7"


def test_what_does_not_hold_is_seen_first():
    held, fails = [f"PASS T1 · {i}: 0 ≤ 1" for i in range(3)], "FAILS E{0} · {0}: 2, asked ≤ 1"
    doubt = "UNDECIDED C8 · q: 1 ± 1, asked ≤ 1"
    done = finish.checks(printed(held[0], doubt, held[1], fails.format(1), held[2]))
    assert folds(done) == [
        (
            "cd-checks cd-missed",
            "✗ 1 fails, 1 undecided, 3 hold: T1, C8, E1",
            True,
            [fails.format(1), doubt],
        ),
        ("cd-checks", "and 3 more", False, held),
    ]
    many = [fails.format(i) for i in range(1, 7)]
    first, more = folds(finish.checks(printed(held[0], *many)))
    assert first[1:] == ("✗ 6 fail, 1 holds: T1, E1, E2, E3, E4, E5, E6", True, many[:4])
    assert more[3] == [*many[4:], held[0]]
    assert folds(finish.checks(printed(doubt)))[0][1] == "? 1 undecided: C8"
    # nothing is lost, and the same line twice is two
    assert sum(len(lines) for *_, lines in folds(finish.checks(printed(doubt, doubt)))) == 2


@pytest.mark.parametrize("line", ["median: 0.94", "PASSED all", "<b>PASS</b> T1 · x: 1"])
def test_other_outputs_stay_open(line):
    page = printed("PASS T1 · x: 1 ≤ 2", line)
    assert finish.checks(page) == page
