r"""From a matplotlib figure, or the cells of a table, to the HTML that a page shows."""

import hashlib
import html
import re
from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_hex
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import LayoutEngine
from matplotlib.text import Text
from numpy.typing import ArrayLike

from cdelta._text import describe
from cdelta.figures.panels import ROOM, shared_axes, windows
from cdelta.figures.style import DIVERGING, LINES_ONLY, SEQUENTIAL, SMALLEST, THEMED

# A picture is what it is in both themes; in a heat map, and in what else is rasterised, the dark
# theme's colours are lighter (figures.css)
PHOTOGRAPH, HEAT = "cd-photograph", "cd-heat"

# What the figure needs where the book's style sheet is not: in a notebook
_INLINE = (
    "max-width:{width:g}pt;width:100%;height:auto;overflow:visible;"
    "stroke-linejoin:round;stroke-linecap:butt"
)
# What a narrow screen shows in its place: windows onto it, cut at their edges, or a second drawing;
# a screen reader has met it already
_PANEL = "display:none;" + _INLINE.replace("overflow:visible", "overflow:hidden")
_SECOND = "display:none;" + _INLINE
_HIDDEN = 'class="cd-panel" aria-hidden="true"'


def show(
    fig: Figure,
    *,
    caption: str,
    alt: str,
    narrow: tuple[float | int, float | int] | None = None,
    opening: bool = False,
) -> None:
    r"""Display a figure as an HTML ``<figure>`` with an inline SVG, and close it.

    ``narrow``: width and height in inches of a second drawing of the same figure, laid out anew,
    which a phone shows instead of the first: where that is one wide panel, whose text would be too
    small there. At most 4.8 inches wide, so that no text on a phone has fewer than 9 pixels.
    (Without it, and with several panels, a phone shows the panels of the first one under the
    other.)

    ``opening``: also keep it under the name "opening", for a chapter whose first lines show it
    (``{glue} opening``) although it is computed further below (in a cell tagged ``remove-output``).

    ``caption`` is simple HTML, with TeX between ``\(`` and ``\)`` (write ``\lt`` for <); ``alt`` is
    plain text that says what a reader sees, for one who does not. Raises ValueError when either is
    empty, and when ``narrow`` is wider than a phone or than the figure.
    """
    described(caption, alt)
    if narrow is not None:
        width, height = narrow
        widest = min(72 * fig.get_figwidth(), ROOM) / 72
        if not (0 < width <= widest and height > 0):
            raise ValueError(
                f"narrow must be (width, height) in inches, at most {widest:.2f} wide, got {narrow}"
            )
    svg, prefix = drawn(fig, alt, caption, narrow=narrow)
    present(framed(prefix, svg, "", caption), f"[figure: {alt}]", opening)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, caption: str) -> None:
    r"""Display a table. Cells and caption are simple HTML with TeX between ``\(`` and ``\)``.

    The first cell of a row names it.

    Raises ValueError when the caption is empty or a row's length is not the header's.
    """
    described(caption, caption)
    for row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"every row must have the header's {len(header)} cells, got {len(row)}: {row}"
            )
    # a cell without words heads nothing
    head = "".join(
        f'<th scope="col">{cell}</th>' if str(cell).strip() else "<td></td>" for cell in header
    )
    body = "".join(
        f'<tr><th scope="row">{_set(name)}</th>'
        f"{''.join(f'<td>{_set(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in rows
    )
    page = (
        # the caption stands outside of what scrolls
        '<figure class="cd-table mathjax_process tex2jax_process"><div class="cd-scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f"<figcaption>{caption}</figcaption></figure>"
    )
    present(page, "\n".join("\t".join(map(str, row)) for row in [header, *rows]))


def quote(**texts: Any) -> None:
    """Keep what the prose says of a result under a name, by which it is written into the text
    (``{glue:text}`name```): a pair ``(value, stderr)`` as ``value ± stderr``, all else as it is,
    but with powers of ten for an e (5·10⁻⁷)."""
    from myst_nb import glue

    for name, text in texts.items():
        if isinstance(text, tuple):
            text = describe(*text).replace("-", "\N{MINUS SIGN}")
        glue(name, _POWER.sub(_raised, str(text)), display=False)


_POWER = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)e([+-]?)0*(\d+)\b")
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _raised(power: re.Match) -> str:
    exponent = power[2].strip("+") + power[3]
    return f"{power[1]}·10{exponent.translate(_RAISED)}"


_APART = re.compile(r"\\\(.*?\\\)|<code\b.*?</code>|<[^>]*>", re.S)  # TeX, code, tags


def _set(cell: Any) -> str:
    """A cell's text with its numbers as a book sets them: a minus and not a hyphen, powers of ten
    and not an e, and no line that ends between a value and its error."""
    text, parts, end = str(cell), [], 0
    for match in _APART.finditer(text):
        parts += [_numbers(text[end : match.start()]), match[0]]
        end = match.end()
    return "".join(parts) + _numbers(text[end:])


def _numbers(text: str) -> str:
    text = re.sub(r"(?<![\w.)-])-(?=\.?\d)", "−", text)
    text = re.sub(
        r"(?<![\w.])(\d+(?:\.\d+)?)e([+-]?)0*(\d+)\b",
        lambda power: f"{power[1]}·10<sup>{'−' if power[2] == '-' else ''}{power[3]}</sup>",
        text,
    )
    text = re.sub(r" (= |%)(?=\S|$)", lambda sign: f"\N{NO-BREAK SPACE}{sign[1]}", text)
    text = text.replace("= ", "=\N{NO-BREAK SPACE}")
    return re.sub(
        r" ± (\S+)",
        lambda error: (
            f'<span class="cd-error">\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{error[1]}</span>'
        ),
        text,
    )


def tex(values: ArrayLike, form: str = ".2f") -> str:
    r"""A matrix as TeX, ``\(...\)``, its numbers rounded, for a :func:`table` or a caption."""
    rows = (
        " & ".join(f"{value + 0.0:{form}}" for value in row)  # + 0.0: no number is written -0
        for row in np.round(np.atleast_2d(values), 12)
    )
    return r"\(\begin{pmatrix}" + r" \\ ".join(rows) + r"\end{pmatrix}\)"


def described(caption: str, alt: str) -> None:
    """Refuse a figure without words."""
    for name, text in (("caption", caption), ("alt", alt)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} must say what the figure shows, got {text!r}")


def drawn(
    fig: Figure,
    alt: str,
    salt: str,
    edit: Callable[[str], str] = lambda svg: svg,
    narrow: tuple[float | int, float | int] | None = None,
) -> tuple[str, str]:
    """The figure as a themed inline SVG, and the prefix that makes its ids its own.

    What a narrow screen shows instead follows it (``figures.css`` shows it there): a second drawing
    where ``narrow`` is its size, else windows onto the first's panels, which use what it holds, so
    that what moves in it moves in them. ``edit`` may change matplotlib's SVG while the figure still
    has its layout; ``salt`` tells figures of the same drawing apart.
    """
    _in_both_themes(fig)
    layout = _settled(fig)
    for text in fig.findobj(Text):  # once drawn: ticks have their labels then
        if not (text.get_visible() and text.get_text()):
            continue
        if text.get_fontsize() < SMALLEST:
            raise ValueError(
                f"text in a figure must have at least {SMALLEST} points, "
                f"got {text.get_fontsize():g} of {text.get_text()!r}"
            )
        if to_hex(text.get_color()) in LINES_ONLY:
            raise ValueError(
                f"text in a figure must have a contrast of 4.5 on the page, {text.get_text()!r} "
                f"in {to_hex(text.get_color())} has not: write it in figures.INK"
            )
    panels = [] if narrow else [(panel, *shared_axes(fig, panel)) for panel in windows(fig)]
    svg = _themed(edit(_written(fig)))
    if narrow:
        if layout is not None:
            fig.set_layout_engine(layout)
        fig.set_size_inches(*narrow)
        fig.draw_without_rendering()
        second = _themed(_written(fig))
    plt.close(fig)

    # made from the content: two figures of a page never share an id, and a figure keeps its ids
    # when another is put before it
    prefix = "cd-" + hashlib.sha256((salt + svg).encode()).hexdigest()[:10]
    svg = _own_ids(svg, prefix)
    group = f'<g id="{prefix}-whole">' if panels else ""
    # a screen reader meets one picture with a name, not hundreds of paths
    told = f'role="img" aria-label="{html.escape(alt)}"'
    kind = 'class="cd-whole" ' if panels or narrow else ""
    svg = _headed(svg, kind + told, _INLINE, group)
    for panel, *axes in panels:
        svg += _window(panel, *axes, f'<use href="#{prefix}-whole"/>')
    if narrow:
        svg += _headed(_without(_own_ids(second, prefix), svg), _HIDDEN, _SECOND)
    return svg, prefix


def _settled(fig: Figure) -> LayoutEngine | None:
    """Lay the figure out, and leave it so: what is measured is what is written. Its engine."""
    # The constrained layout needs a second pass to settle. What writes SVG has letters of other
    # widths than what measures, and would lay it out again.
    fig.draw_without_rendering()
    fig.draw_without_rendering()
    layout = fig.get_layout_engine()
    fig.set_layout_engine("none")
    return layout


def _in_both_themes(fig: Figure) -> None:
    """Name what is rasterised by how the dark theme has to show it (figures.css), and refuse what
    it cannot: colours of a scale that is not the book's."""
    for artist in fig.findobj(lambda artist: isinstance(artist, ScalarMappable)):
        if artist.get_array() is None or np.ndim(artist.get_array()) == 3:
            continue
        if isinstance(artist, ContourSet) and artist.colors is not None:
            continue  # its levels have colours of their own
        own = ("gray",) if isinstance(artist, AxesImage) else ()
        known = (*own, SEQUENTIAL.name, DIVERGING.name)
        if artist.get_cmap().name not in known:
            raise ValueError(
                "a figure's colours must be figures.SEQUENTIAL or figures.DIVERGING (or gray, of "
                f"an image), which both themes know, got {artist.get_cmap().name!r}"
            )
    for number, image in enumerate(fig.findobj(AxesImage)):
        # what has its own colours, or shades of grey, is the same in both themes
        own = np.ndim(image.get_array()) == 3 or image.get_cmap().name == "gray"
        image.set_gid(f"{PHOTOGRAPH if own else HEAT}-{number}")


def _written(fig: Figure) -> str:
    """The figure as matplotlib writes it."""
    file = StringIO()
    fig.savefig(file, format="svg")
    return file.getvalue()


def _themed(svg: str) -> str:
    """What a page needs of matplotlib's SVG, in the style sheet's colours."""
    svg = re.sub(
        rf' id="({PHOTOGRAPH}|{HEAT})-\d+"', lambda match: f' class="{match[1]}"', _body(svg)
    )
    svg = re.sub(r'( d="[^"]*"| [xy]="[^"]*")', lambda match: _shorter(match[0]), svg)
    for color, themed in THEMED.items():
        # not where more digits follow: those are other colours, with an opacity of their own
        svg = re.sub(color + r"(?![0-9a-f])", themed, svg, flags=re.I)
    # white space between elements: matplotlib indents, and none of it is seen
    return re.sub(r">\s+<", "><", svg).strip()


def _headed(svg: str, attributes: str, style: str, group: str = "") -> str:
    """The drawing under an ``<svg>`` element of ours, in a group if it is named."""
    box = re.search(r'viewBox="([^"]*)"', svg)[1]
    width = float(box.split()[2])
    box = " ".join(f"{float(number):g}" for number in box.split())
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {attributes} viewBox="{box}" '
        f'style="{style.format(width=width)}">'
    )
    inside = svg[svg.index(">") + 1 :].removesuffix("</svg>")
    return f"{head}{group}{inside}{'</g>' if group else ''}</svg>"


def _without(second: str, first: str) -> str:
    """A second drawing without the letters and marks that a first one on the same page has: ids
    are made from what they name."""
    known = set(re.findall(r' id="([^"]*)"', first))
    second = re.sub(
        r'<path id="([^"]*)"[^>]*/>|<clipPath id="([^"]*)">.*?</clipPath>',
        lambda match: "" if (match[1] or match[2]) in known else match[0],
        second,
    )
    return second.replace("<defs></defs>", "")


def _window(
    panel: tuple[float, float, float, float],
    axis: tuple[float, float, float] | None,
    numbers: tuple[float, float] | None,
    drawing: str,
) -> str:
    """A window onto a panel; before it one onto the y axis, below it one onto the x axis that it
    shares with another."""
    x, y, wide, high = panel
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {_HIDDEN} '
    if axis is None and numbers is None:
        box, inside, total = f"{x:.1f} {y:.1f} {wide:.1f} {high:.1f}", drawing, wide
    else:
        left, before, tall = axis or (x, 0.0, high)
        top, below = numbers or (y, 0.0)
        total = before + wide
        box = f"0 0 {total:.1f} {high + below:.1f}"
        across, under = f'x="{before:.1f}"', f' y="{high:.1f}"'
        parts = (
            ('x="0.0"', left, y, before, min(tall, high)),
            (across, x, y, wide, high),
            (across + under, x, top, wide, below),
        )
        inside = "".join(
            f'<svg {place} width="{width:.1f}" height="{height:.1f}" '
            f'viewBox="{start:.1f} {upper:.1f} {width:.1f} {height:.1f}">{drawing}</svg>'
            for place, start, upper, width, height in parts
            if width and height
        )
    return f'{head}viewBox="{box}" style="{_PANEL.format(width=total)}">{inside}</svg>'


def _body(svg: str) -> str:
    """The ``<svg>`` element without what differs from run to run (the date, in the metadata) and
    what would leak into the page: a style sheet inside an inline SVG holds for the whole page."""
    return re.sub(
        r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>",
        "",
        svg[svg.index("<svg") :],
        flags=re.S,
    )


def _own_ids(svg: str, prefix: str) -> str:
    """Ids are the page's, not the SVG's: those that something refers to (and the slider's paths)
    get the prefix, all others go."""
    referred = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    referred |= set(re.findall(r'id="(path-\d+)"', svg))
    svg = re.sub(
        r' id="([^"]*)"',
        lambda match: f' id="{prefix}-{match[1]}"' if match[1] in referred else "",
        svg,
    )
    svg = re.sub(r'(url\(#|href="#)', rf"\1{prefix}-", svg)
    return svg.replace("xlink:href", "href")  # HTML knows no namespaces


def _shorter(attribute: str) -> str:
    """Coordinates to a hundredth of a point: a third of the bytes, and no last digits that differ
    between runs."""
    return re.sub(
        r"-?\d+\.\d+",
        lambda number: f"{float(number[0]) + 0.0:.2f}".rstrip("0").rstrip("."),
        attribute,
    )


def framed(prefix: str, svg: str, controls: str, caption: str) -> str:
    """The ``<figure>`` element: the drawing, what moves it, the caption."""
    kind = "cd-figure cd-movable" if controls else "cd-figure"
    canvas = "cd-canvas cd-panels" if 'class="cd-panel"' in svg else "cd-canvas"
    return (
        f'<figure class="{kind}" id="{prefix}"><div class="{canvas}">{svg}</div>{controls}'
        f'<figcaption class="mathjax_process tex2jax_process">{caption}</figcaption></figure>'
    )


class _Shown:
    """A page's HTML, and the plain text that a terminal shows."""

    def __init__(self, page: str, plain: str) -> None:
        self._page, self._plain = page, plain

    def _repr_html_(self) -> str:
        return self._page

    def __repr__(self) -> str:
        return self._plain


def present(page: str, plain: str, opening: bool = False) -> None:
    """Display a page's HTML, and in a terminal the plain text; glued as "opening" if it is one."""
    if opening:
        from myst_nb import glue

        glue("opening", _Shown(page, plain), display=False)
    display({"text/html": page, "text/plain": plain}, raw=True)
