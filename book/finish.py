"""What the theme and the extensions leave undone in a page's HTML: from text to text.

``companion.py`` applies it to each page. Plain patterns and not a parser: half of a chapter is
drawings, which a parser would read for seconds and write differently.
"""

import html
import re
from collections.abc import Callable, Iterable, Mapping

import typeset

CLAIM = r"[A-Z]\d+['’]?"
# what is no prose: it is left as it is
_APART = re.compile(
    r"<(script|style|svg|pre|a|code|h[1-6]|button|summary)\b.*?</\1>|<[^>]*>|\\\(.*?\\\)",
    re.S | re.I,
)
_PARAMETERS = re.compile(r'<dl>\n((?:<dd><em class="sig-param">.*?</em>,?</dd>\n)+)</dl>')
_BETWEEN = r"(?:,?\s+(?:and|or|to)\s+|,\s+|\s*–\s*)"
# what ledger.check and ledger.decide print, and nothing else
_LEDGER = re.compile(
    r'<div class="output stream [^"]*">\s*<div class="highlight"><pre>(?:<span></span>)?'
    r"((?:(?:PASS|HOLDS|FAILS|UNDECIDED) [^<\n]+\n)+)</pre></div>\s*</div>"
)
_SHOWN = 4  # lines of what did not hold; the others are in a fold below
_CHAPTERS = re.compile(rf"\b([Cc]hapter)(s?)\s+(\d{{1,2}}(?:{_BETWEEN}\d{{1,2}})*)\b(?!\.\d)")


def prose(body: str, change: Callable[[str], str]) -> str:
    """``body`` with ``change`` made to its text outside of code, links, headings and drawings."""
    parts, end = [], 0
    for match in _APART.finditer(body):
        parts += [change(body[end : match.start()]), match[0]]
        end = match.end()
    return "".join(parts) + change(body[end:])


def link_chapters(
    body: str, address: Callable[[int], str | None], missing: Callable[[int], None]
) -> str:
    """Each "chapter 04" becomes a link "Chapter 4", "chapters 07 and 08" two of them.

    ``address`` of a number is where its page lies, empty for the page itself, None when there is no
    such chapter; ``missing`` is then told.
    """

    def one(number: int, text: str) -> str:
        where = address(number)
        if where is None:
            missing(number)
        return f'<a class="reference internal" href="{where}">{text}</a>' if where else text

    def mention(match: re.Match[str]) -> str:
        _, plural, numbers = match.groups()
        if not plural and numbers.isdigit():
            return one(int(numbers), f"Chapter {int(numbers)}")
        linked = re.sub(r"\d+", lambda digits: one(int(digits[0]), str(int(digits[0]))), numbers)
        return f"Chapter{plural} {linked}"

    return prose(body, lambda text: _CHAPTERS.sub(mention, text))


def number_figures(body: str, chapter: int) -> str:
    """Captions begin with "Figure 6.1" or "Table 6.1", in the page's order, and the number is a
    place that a link can lead to: ``#figure-6-1``."""
    counts = {"Figure": 0, "Table": 0}

    def numbered(match: re.Match[str]) -> str:
        kind = "Table" if "cd-table" in match[1] else "Figure"
        counts[kind] += 1
        name = f"{chapter}.{counts[kind]}"
        anchor = f"{kind.lower()}-{name.replace('.', '-')}"
        return f'{match[1]}{match[2]}<b class="cd-numbered" id="{anchor}">{kind} {name}</b> '

    return re.sub(
        r'(<figure class="cd-(?:figure|table)[^>]*>)((?:(?!</figure>).)*?<figcaption[^>]*>)',
        numbered,
        body,
        flags=re.S,
    )


def link_figures(body: str, address: Callable[[int], str | None]) -> str:
    """Each "Figure 6.1" or "Table 6.1" in the text leads there; one of a chapter that does not
    exist stays text."""

    def mention(match: re.Match[str]) -> str:
        kind, chapter, number = match.groups()
        where = address(int(chapter))
        if where is None:
            return match[0]
        target = f"{where}#{kind.lower()}-{chapter}-{number}"
        return f'<a class="reference internal" href="{target}">{match[0]}</a>'

    return prose(body, lambda text: re.sub(r"\b(Figure|Table) (\d+)\.(\d+)\b", mention, text))


def link_claims(body: str, claims: Mapping[str, Iterable[tuple[str, str]]], scorecard: str) -> str:
    """From a theorem (or a section) back to what the scorecard says of it.

    ``claims``: by label the ids of the claims that it states, with their verdicts. A title's own
    "(T3)" becomes the link.
    """
    for label, found in claims.items():
        links = " ".join(
            f'<a class="cd-claim-link" href="{scorecard}#{anchor(claim_id)}">'
            f"{html.escape(claim_id, quote=False)} · {verdict}</a>"
            for claim_id, verdict in found
        )
        theorem = re.compile(
            rf'(<div class="proof [^>]*id="{re.escape(label)}">\s*<p class="admonition-title">)'
            r"(.*?)(</p>)",
            re.S,
        )
        heading = re.compile(
            rf'(id="{re.escape(label)}">(?:(?!</?h[1-6]).)*<h[1-6]>.*?</h[1-6]>)', re.S
        )
        body, count = theorem.subn(
            lambda match, links=links: f"{match[1]}{untitled(match[2])} {links}{match[3]}", body
        )
        if not count:
            body = heading.sub(
                lambda match, links=links: f'{match[1]}\n<p class="cd-claim-links">{links}</p>',
                body,
                count=1,
            )
    return body


def untitled(title: str) -> str:
    """A theorem's title without the ids of its claims: "(The wiggle (C3))" is "(The wiggle)"."""
    ids = rf"\({CLAIM}(?:,\s*{CLAIM})*\)"
    return re.sub(rf"\s*{ids}\s*$", "", re.sub(rf"\s*{ids}\)\s*$", ")", title))


def anchor(claim_id: str) -> str:
    """As docutils would write it."""
    return "claim-" + claim_id.lower().replace("'", "-prime")


def reserve(body: str) -> str:
    """Each formula carries the room that it will take, for the time until it is set."""

    def inline(match: re.Match[str]) -> str:
        room = typeset.width(html.unescape(match[2]))
        return f'{match[1]} style="--cd-room: {room:.1f}ex">\\({match[2]}\\)</span>'

    def display(match: re.Match[str]) -> str:
        room = typeset.height(html.unescape(match[3]))
        return f'{match[1]} style="--cd-room: {room:.1f}ex"{match[2]}\\[{match[3]}\\]</div>'

    body = re.sub(r'(<span class="math [^">]*")>\\\((.*?)\\\)</span>', inline, body, flags=re.S)
    return re.sub(
        r'(<div class="math [^">]*")([^>]*>(?:(?!</div>|\\\[).)*)\\\[(.*?)\\\]</div>',
        display,
        body,
        flags=re.S,
    )


def values(body: str) -> str:
    """What the prose quotes of a result, as a book sets it: a minus and not a hyphen, and no line
    that ends between a value and its error or its per cent."""

    def quoted(match: re.Match[str]) -> str:
        text = re.sub(r"(?<![\w.)-])-(?=\.?\d)", "−", match[2])
        return match[1] + text.replace(" ± ", "&nbsp;±&nbsp;").replace(" %", "&nbsp;%")

    body = re.sub(r'(<span class="pasted-text">)([^<]*)', quoted, body)
    return prose(body, lambda text: re.sub(r"(?:(?<=\d)|^)\s%(?!\w)", "&nbsp;%", text))


def checks(body: str) -> str:
    """Lines of the ledger, and nothing else, become one quiet line that opens: "✓ 6 checks hold:
    T7, T8". Where one fails or does not decide it is open, those lines first."""

    def fold(match: re.Match[str]) -> str:
        lines = match[1].splitlines()
        outcomes = [line.split()[0] for line in lines]
        ids = ", ".join(dict.fromkeys(line.split()[1] for line in lines))
        missed = [line for name in _MISSED for line in lines if line.startswith(name)]
        held = [line for line in lines if line not in missed]
        if not missed:
            many = "checks hold" if len(lines) > 1 else "check holds"
            return _fold("", f"✓ {len(lines)} {many}: {ids}", held)
        counts = {said: outcomes.count(name) for name, said in _MISSED.items()} | {
            "hold": len(held)
        }
        said = ", ".join(
            f"{count} {word if count > 1 else _ONE.get(word, word)}"
            for word, count in counts.items()
            if count
        )
        shown, others = missed[:_SHOWN], [*missed[_SHOWN:], *held]
        more = _fold("", f"and {len(others)} more", others) if others else ""
        mark = "✗" if "FAILS" in outcomes else "?"
        return _fold(" cd-missed", f"{mark} {said}: {ids}", shown, more)

    return _LEDGER.sub(fold, body)


_MISSED = {"FAILS": "fail", "UNDECIDED": "undecided"}  # these first
_ONE = {"fail": "fails", "hold": "holds"}


def _fold(kind: str, title: str, lines: list[str], more: str = "") -> str:
    text = "".join(f"{line}\n" for line in lines)
    return (
        f'<details class="cd-checks{kind}"{" open" if kind else ""}><summary>{title}</summary>'
        '<div class="output stream highlight-myst-ansi notranslate"><div class="highlight"><pre>'
        f"{text}</pre></div></div>{more}</details>"
    )


def tidy(body: str) -> str:
    """The body of a page for those who hear it.

    A fold is called what is written on it; an empty cell heads nothing; a signature's parameters
    are no definitions; a list of references is no list to those who ask for its items' roles.
    """
    body = body.replace('<summary aria-label="Toggle hidden content">', "<summary>")
    body = re.sub(
        r"<th\b([^>]*?)(?: scope=\"\w+\")?>((?:\s|<p>|</p>)*)</th>", r"<td\1>\2</td>", body
    )
    body = _PARAMETERS.sub(
        lambda match: (
            '<span class="cd-parameters">'
            + match[1].replace("<dd>", '<span class="cd-parameter">').replace("</dd>", "</span>")
            + "</span>"
        ),
        body,
    )
    return re.sub(r' role="(?:list|doc-biblioentry)"', "", body)
