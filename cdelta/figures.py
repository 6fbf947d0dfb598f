r"""The book's figures: one style, one SVG that serves light and dark, a slider, and the few plots
that chapters share.

A figure is drawn by matplotlib with the colours below, and shown as an inline SVG in which each of
them has become a CSS variable (``#0072b2`` becomes ``var(--cd-blue, #0072b2)``, ink becomes
``currentColor``): the page's style sheet, ``book/_static/figures.css``, gives them their values in
light and in dark mode.

The same figure gives the same bytes, so that an executed notebook can be compared with the next
one.
"""

import hashlib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Polygon
from matplotlib.quiver import Quiver
from numpy.typing import ArrayLike

# Okabe and Ito's hues, darkened until a line of any of them has a contrast of 3:1 on white
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = (
    "#0072b2",
    "#c98200",
    "#009068",
    "#cc4400",
    "#aa4a85",
    "#2f9bd6",
)
# text and axes; what stays in the background; the page itself
INK, MUTED, PAPER = "#1a1c20", "#6b7280", "#fefefe"

_THEMED = {
    BLUE: f"var(--cd-blue, {BLUE})",
    ORANGE: f"var(--cd-orange, {ORANGE})",
    GREEN: f"var(--cd-green, {GREEN})",
    RED: f"var(--cd-red, {RED})",
    PURPLE: f"var(--cd-purple, {PURPLE})",
    SKY: f"var(--cd-sky, {SKY})",
    MUTED: f"var(--cd-muted, {MUTED})",
    INK: "currentColor",
    PAPER: f"var(--cd-paper, var(--jp-layout-color0, {PAPER}))",
}

# A value's sign is the hue and its size the opacity: zero is the page, whether that is white or
# black
DIVERGING = LinearSegmentedColormap.from_list(
    "cd-diverging", [(0.0, BLUE), (0.5, BLUE + "00"), (0.5, RED + "00"), (1.0, RED)]
)
SEQUENTIAL = LinearSegmentedColormap.from_list("cd-sequential", [BLUE + "00", BLUE])

WIDTH = 7.2  # inches: the page's text width
LIMIT = 400_000  # bytes that a movable figure may take


def use() -> None:
    """Set matplotlib's style for the book; call it once, in a notebook's imports cell."""
    mpl.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.2),
            "figure.constrained_layout.use": True,
            "figure.facecolor": "none",
            "savefig.facecolor": "none",
            "savefig.dpi": 200,  # of what is rasterised inside a figure
            "svg.fonttype": "path",
            "svg.hashsalt": "cdelta",
            "font.family": "DejaVu Sans",  # ships with matplotlib: the same glyphs on every machine
            "mathtext.fontset": "cm",
            "font.size": 10,
            "axes.labelsize": 10.5,
            "axes.titlesize": 10.5,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 9.5,
            "legend.frameon": False,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "axes.titlecolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "patch.edgecolor": INK,
            "hatch.color": INK,
            "axes.facecolor": "none",
            "axes.linewidth": 0.7,
            "xtick.major.width": 0.7,
            "ytick.major.width": 0.7,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": MUTED,
            "grid.linewidth": 0.5,
            "grid.alpha": 0.4,
            "lines.linewidth": 1.6,
            "lines.markersize": 4.5,
            "image.interpolation": "none",  # pixels stay pixels at any zoom
            "image.composite_image": False,
            "image.cmap": "gray",
            "axes.prop_cycle": cycler(color=[BLUE, RED, GREEN, ORANGE, PURPLE, SKY]),
        }
    )


def show(fig: Figure, *, caption: str, alt: str) -> None:
    r"""Display a figure as an HTML ``<figure>`` with an inline SVG, and close it.

    ``caption`` is simple HTML, with TeX between ``\(`` and ``\)`` (write ``\lt`` for <); ``alt`` is
    plain text that says what a reader sees, for one who does not. Raises ValueError when either is
    empty.
    """
    _described(caption, alt)
    svg, prefix = _svg(fig, alt, caption)
    _display(_figure(prefix, svg, "", caption), f"[figure: {alt}]")


@dataclass(frozen=True)
class Layer:
    r"""Something in a :func:`movable` figure that changes from frame to frame, in the data
    coordinates of ``ax``.

    ``frames[f]`` is what to draw in frame f:

    - ``"line"``: polylines ``[n, points, 2]``, or one, ``[points, 2]``; - ``"area"``: the same,
    closed and filled, with an outline of ``width``; - ``"ellipses"``: ``[n, 3, 2]``, each a centre
    and two conjugate half-diameters: the image of the unit circle under
      the matrix with these two columns; filled, with an outline of ``width``;
    - ``"points"``: ``[n, 2]``, discs of diameter ``width``;
    - ``"arrows"``: ``[n, 2, 2]``, each from its tail ``[0]`` to its tip ``[1]``.

    ``width`` is in points (1/72 inch), ``alpha`` the opacity (of the filling where there is one),
    ``zorder`` as in matplotlib.
    """

    ax: Axes
    kind: Literal["line", "area", "ellipses", "points", "arrows"]
    frames: Sequence[Any] | np.ndarray
    color: str = BLUE
    width: float | int = 1.4
    alpha: float | int = 1.0
    dashed: bool = False
    zorder: float | int = 3.0


def movable(
    fig: Figure,
    layers: Sequence[Layer],
    values: ArrayLike,
    *,
    label: str,
    caption: str,
    alt: str,
    readout: Sequence[str] | None = None,
    start: int = 0,
) -> None:
    r"""Display a figure that the reader moves: a slider runs through precomputed frames, offline
    and without a server.

    ``fig`` holds what stays (axes, their limits, background); each of ``layers`` has one entry of
    ``frames`` for each of the slider's ``values`` (numbers). ``label`` names the slider (plain
    text); ``readout[f]`` is the text beside it, by default "label = value". Frame ``start`` is
    shown first, and where there is no JavaScript.

    Raises ValueError when a layer's frames do not match ``values`` in number, hold a wrong shape or
    NaN, when ``start`` is not a frame, when caption or alt is empty, or when the figure would take
    more than 0.4 MB.
    """
    _described(caption, alt)
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"values must be a list of at least two numbers, got shape {values.shape}")
    if readout is None:
        readout = [f"{label} = {value:.2f}" for value in values]
    if len(readout) != len(values):
        raise ValueError(
            f"readout must have one text for each of the {len(values)} values, got {len(readout)}"
        )
    if not 0 <= start < len(values):
        raise ValueError(f"start must be a frame from 0 to {len(values) - 1}, got {start}")
    for number, layer in enumerate(layers):
        if len(layer.frames) != len(values):
            raise ValueError(
                f"layers[{number}] must have one frame for each of the {len(values)} values, got {len(layer.frames)}"
            )

    # an empty line holds each layer's place in the drawing order; limits are frozen before
    for ax in {id(layer.ax): layer.ax for layer in layers}.values():
        ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    for number, layer in enumerate(layers):
        middle = [np.mean(layer.ax.get_xlim()), np.mean(layer.ax.get_ylim())]
        layer.ax.plot(
            *np.transpose([middle]),
            "-",
            color=layer.color,
            gid=f"layer-{number}",
            zorder=layer.zorder,
        )
    drawn = {}

    # runs once the layout is fixed: only then do data coordinates have a place
    def moving(svg: str) -> str:
        for number, layer in enumerate(layers):
            drawn[number] = [_path(layer, frame, fig) for frame in layer.frames]
            before, after = svg.split(f'<g id="layer-{number}">')
            svg = (
                before
                + _group(layer, number, drawn[number][start], fig)
                + after.split("</g>", 1)[1]
            )
        return svg

    svg, prefix = _svg(fig, alt, caption, moving)
    frames = json.dumps(
        {"d": list(drawn.values()), "text": list(readout)},
        separators=(",", ":"),
        ensure_ascii=False,
    )
    frames = frames.replace("</", "<\\/")  # so that no text can close the script element
    controls = (
        f'<div class="cd-controls" hidden><button type="button" aria-label="Play" aria-pressed="false">▶</button>'
        f"<label><span>{html.escape(label)}</span>"
        f'<input type="range" min="0" max="{len(values) - 1}" step="1" value="{start}" autocomplete="off" '
        f'aria-label="{html.escape(label)}" aria-valuetext="{html.escape(readout[start])}"></label>'
        f'<output aria-live="off">{html.escape(readout[start])}</output></div>'
        f'<script type="application/json">{frames}</script>'
        f"<script>{_MOVE.replace('PREFIX', prefix)}</script>"
    )
    page = _figure(prefix, svg, controls, caption)
    if len(page.encode()) > LIMIT:
        raise ValueError(
            f"a movable figure may take {LIMIT} bytes, this takes {len(page.encode())}: use fewer frames"
        )
    _display(page, f"[figure: {alt}]")


# Rewrites each layer's path when the slider moves. It never plays unasked, nor for a reader who
# wants less motion.
_MOVE = """(() => {
const figure = document.getElementById("PREFIX"), frames = JSON.parse(figure.querySelector("script").textContent);
const slider = figure.querySelector("input"), text = figure.querySelector("output");
const play = figure.querySelector("button");
const paths = frames.d.map((_, i) => document.getElementById("PREFIX-path-" + i));
let timer = null;
const draw = () => {
  const f = +slider.value;
  paths.forEach((path, i) => path.setAttribute("d", frames.d[i][f]));
  text.textContent = frames.text[f];
  slider.setAttribute("aria-valuetext", frames.text[f]);
};
const stop = () => {
  clearInterval(timer); timer = null;
  play.textContent = "▶"; play.setAttribute("aria-label", "Play"); play.setAttribute("aria-pressed", "false");
};
play.addEventListener("click", () => {
  if (timer !== null) return stop();
  if (slider.value === slider.max) slider.value = 0;
  play.textContent = "❚❚"; play.setAttribute("aria-label", "Pause"); play.setAttribute("aria-pressed", "true");
  timer = setInterval(() => { slider.value = +slider.value + 1; draw(); if (slider.value === slider.max) stop(); }, 90);
});
slider.addEventListener("input", () => { stop(); draw(); });
play.hidden = matchMedia("(prefers-reduced-motion: reduce)").matches;
figure.querySelector(".cd-controls").hidden = false;
draw();
})();"""

# What the figure needs where the book's style sheet is not: in a notebook
_STYLE = "max-width:{width:g}pt;width:100%;height:auto;overflow:visible;stroke-linejoin:round;stroke-linecap:butt"


def _described(caption: str, alt: str) -> None:
    for name, text in (("caption", caption), ("alt", alt)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} must say what the figure shows, got {text!r}")


def _svg(fig: Figure, alt: str, salt: str, edit=lambda svg: svg) -> tuple[str, str]:
    """The figure as a themed inline SVG, and the prefix that makes its ids its own."""
    fig.draw_without_rendering()  # the layout needs a second pass to settle
    file = StringIO()
    fig.savefig(file, format="svg")
    svg = edit(file.getvalue())
    plt.close(fig)

    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", svg, flags=re.S
    )
    width, height = (
        float(size) for size in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()
    )
    svg = re.sub(r'( d="[^"]*"| [xy]="[^"]*")', lambda match: _shorter(match[0]), svg)
    for color, themed in _THEMED.items():
        svg = re.sub(color + r"(?![0-9a-f])", themed, svg, flags=re.I)

    # ids: those that something refers to, with a prefix made from the content
    prefix = "cd-" + hashlib.sha256((salt + svg).encode()).hexdigest()[:10]
    referred = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg)) | set(
        re.findall(r'id="(path-\d+)"', svg)
    )
    svg = re.sub(
        r' id="([^"]*)"',
        lambda match: f' id="{prefix}-{match[1]}"' if match[1] in referred else "",
        svg,
    )
    svg = re.sub(r'(url\(#|href="#)', rf"\1{prefix}-", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r">\s+<", "><", svg).strip()

    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{html.escape(alt)}" style="{_STYLE.format(width=width)}">'
    )
    return re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1), prefix


def _shorter(attribute: str) -> str:
    """Coordinates to a hundredth of a point: a third of the bytes, and no last digits that differ
    between runs."""
    return re.sub(
        r"-?\d+\.\d+",
        lambda number: f"{float(number[0]) + 0.0:.2f}".rstrip("0").rstrip("."),
        attribute,
    )


def _figure(prefix: str, svg: str, controls: str, caption: str) -> str:
    kind = "cd-figure cd-movable" if controls else "cd-figure"
    return (
        f'<figure class="{kind}" id="{prefix}"><div class="cd-canvas">{svg}</div>{controls}'
        f'<figcaption class="mathjax_process tex2jax_process">{caption}</figcaption></figure>'
    )


def _display(page: str, plain: str) -> None:
    display({"text/html": page, "text/plain": plain}, raw=True)


def _place(points: np.ndarray, ax: Axes, fig: Figure) -> np.ndarray:
    """Data coordinates ``[..., 2]`` as tenths of a point in the SVG, whose y axis points down."""
    pixels = ax.transData.transform(points.reshape(-1, 2)).reshape(points.shape)
    return (np.array([0.0, fig.get_figheight()]) * 72 + pixels * 72 / fig.dpi * [1, -1]) * 10


_SHAPES = {  # of a frame, where n is any number
    "line": ("n", "n", 2),
    "area": ("n", "n", 2),
    "ellipses": ("n", 3, 2),
    "points": ("n", 2),
    "arrows": ("n", 2, 2),
}


def _path(layer: Layer, frame: ArrayLike, fig: Figure) -> str:
    """One frame of a layer as the data of an SVG path, in whole tenths of a point."""
    points = np.asarray(frame, dtype=float)
    if layer.kind not in _SHAPES:
        raise ValueError(f"a layer's kind must be one of {sorted(_SHAPES)}, got {layer.kind!r}")
    if layer.kind in ("line", "area") and points.ndim == 2:
        points = points[None]
    expected = _SHAPES[layer.kind]
    fits = points.ndim == len(expected) and all(
        map(lambda size, got: size in (got, "n"), expected, points.shape)
    )
    if not fits:
        sizes = ", ".join(map(str, expected))
        raise ValueError(f"a frame of {layer.kind} must have shape [{sizes}], got {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError(f"a frame of {layer.kind} must be finite, got NaN or infinity")
    # half-diameters to points, so that all of them can be placed alike
    if layer.kind == "ellipses":
        points = points + points[:, :1] * [[0.0], [1.0], [1.0]]
    points = _place(points, layer.ax, fig)
    if layer.kind == "ellipses":
        return "".join(map(_arcs, points[:, 0], points[:, 1:] - points[:, :1]))
    if layer.kind == "points":
        return "".join(f"M{x} {y}h0" for x, y in np.rint(points).astype(int))
    if layer.kind == "arrows":
        points = _with_heads(points, layer.width)
    points = np.rint(points).astype(int)
    close = "z" if layer.kind == "area" else ""
    return "".join(
        f"M{line[0, 0]} {line[0, 1]}l{_pairs(np.diff(line, axis=0))}{close}" for line in points
    )


def _with_heads(arrows: np.ndarray, width: float | int) -> np.ndarray:
    """Each arrow ``[tail, tip]`` as one polyline: tail, tip, a barb, tip again, the other barb."""
    tail, tip = arrows[:, 0], arrows[:, 1]
    shaft = tip - tail
    length = np.linalg.norm(shaft, axis=-1, keepdims=True)
    # at most 3 widths
    head = np.minimum(0.4 * length, 30 * width) / np.where(length == 0, 1, length)
    side = shaft @ np.array([[0.0, 1.0], [-1.0, 0.0]])
    barbs = [tip + head * (-shaft + turn * side) for turn in (0.55, -0.55)]
    return np.stack([tail, tip, barbs[0], tip, barbs[1]], axis=1)


def _arcs(centre: np.ndarray, diameters: np.ndarray) -> str:
    """The ellipse with these two conjugate half-diameters (rows), as two arcs between the ends of
    its long axis."""
    axes, (long, short), _ = np.linalg.svd(diameters.T)
    end = np.rint(long * axes[:, 0]).astype(int)
    x, y = np.rint(centre).astype(int) + end
    radii = f"a{long:.0f} {max(short, 1):.0f} {np.degrees(np.arctan2(*axes[::-1, 0])):.0f} 00"
    return f"M{x} {y}{radii}{_pairs(-2 * end)}{radii}{_pairs(2 * end)}"


def _pairs(steps: np.ndarray) -> str:
    return " ".join(map(str, steps.ravel())).replace(" -", "-")


def _group(layer: Layer, number: int, path: str, fig: Figure) -> str:
    """The SVG group that takes a layer's place: its path in the first frame, clipped to the
    axes."""
    left, low, right, high = layer.ax.bbox.extents * 72 / fig.dpi
    top = 72 * fig.get_figheight() - high
    color = to_hex(layer.color)
    fill = (
        f"fill:{color};fill-opacity:{layer.alpha:g}"
        if layer.kind in ("area", "ellipses")
        else f"fill:none;opacity:{layer.alpha:g}"
    )
    stroke = f"stroke:{color};stroke-width:{10 * layer.width:g}" + (
        f";stroke-dasharray:{30 * layer.width:g} {20 * layer.width:g}" if layer.dashed else ""
    )
    cap = ";stroke-linecap:round" if layer.kind == "points" else ""
    return (
        f'<clipPath id="clip-{number}"><rect x="{left:.2f}" y="{top:.2f}" width="{right - left:.2f}" '
        f'height="{high - low:.2f}"/></clipPath><g clip-path="url(#clip-{number})">'
        f'<path id="path-{number}" transform="scale(.1)" style="{fill};{stroke}{cap}" d="{path}"/></g>'
    )


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, caption: str) -> None:
    r"""Display a table. Cells and caption are simple HTML with TeX between ``\(`` and ``\)``.

    The first cell of a row names it.

    Raises ValueError when the caption is empty or a row's length is not the header's.
    """
    _described(caption, caption)
    for row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"every row must have the header's {len(header)} cells, got {len(row)}: {row}"
            )
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td>{cell}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    page = (
        f'<div class="cd-table mathjax_process tex2jax_process"><table><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
    _display(page, "\n".join("\t".join(map(str, row)) for row in [header, *rows]))


def tex(values: ArrayLike, form: str = ".2f") -> str:
    r"""A matrix as TeX between ``\(`` and ``\)``, its numbers rounded, for a :func:`table` or a
    caption."""
    rows = (
        " & ".join(f"{value + 0.0:{form}}" for value in row)
        for row in np.round(np.atleast_2d(values), 12)
    )
    return r"\(\begin{pmatrix}" + r" \\ ".join(rows) + r"\end{pmatrix}\)"


def matrix(
    ax: Axes,
    values: ArrayLike,
    labels: Sequence[str] | None = None,
    *,
    stderr: ArrayLike | None = None,
    limit: float | int | None = None,
    numbers: bool | None = None,
    form: str = ".2f",
) -> AxesImage:
    """A matrix as coloured cells: red above zero, blue below, the page's own colour at zero.

    ``limit`` is the value of full colour (default: the largest size). Its ``numbers`` are written
    into the cells of up to 8 columns (or as told), each with its standard error when ``stderr`` has
    them. Returns the image, for a colour bar: ``colorbar(image, ax)``.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 2:
        raise ValueError(f"values must be a matrix, got shape {values.shape}")
    rows, columns = values.shape
    if labels is not None and len(labels) not in (rows, columns):
        raise ValueError(
            f"labels must name the {rows} rows or the {columns} columns, got {len(labels)}"
        )
    limit = limit or np.abs(values).max() or 1.0
    image = ax.imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xticks(
        *_ticks(labels, columns), rotation=90 if labels is not None and columns > 8 else 0
    )
    ax.set_yticks(*_ticks(labels, rows))
    for (i, j), value in (
        np.ndenumerate(values) if (columns <= 8 if numbers is None else numbers) else ()
    ):
        error = "" if stderr is None else f"\n±{np.asarray(stderr)[i, j]:{form}}"
        ax.text(
            j, i, f"{value:{form}}{error}".replace("-", "−"), ha="center", va="center", fontsize=8.5
        )
    return image


def _ticks(labels: Sequence[str] | None, count: int) -> tuple[list[int], list[str]]:
    return (
        (list(range(count)), list(labels))
        if labels is not None and len(labels) == count
        else ([], [])
    )


def images(
    axes: Any,
    stack: ArrayLike,
    titles: Sequence[str] | None = None,
    *,
    diverging: bool = False,
    limits: tuple[Any, Any] | None = None,
) -> AxesImage:
    """Images ``[n, height, width]`` (or ``[n, height, width, 3]``), one to each of the axes, on one
    scale of grey.

    ``diverging``: signed values, red above zero and blue below. ``limits``: values of both ends
    (default: those of the whole stack, symmetric when diverging). Axes left over are emptied.
    Returns the last image, for a colour bar.
    """
    stack, axes = np.asarray(stack, dtype=float), np.ravel(axes)
    if stack.ndim not in (3, 4) or not 0 < len(stack) <= len(axes):
        raise ValueError(
            f"stack must be [n, height, width(, 3)] with n of 1 to {len(axes)}, got shape {stack.shape}"
        )
    if titles is not None and len(titles) != len(stack):
        raise ValueError(
            f"titles must have one text for each of the {len(stack)} images, got {len(titles)}"
        )
    size = np.abs(stack).max() or 1.0
    low, high = limits or ((-size, size) if diverging else (stack.min(), stack.max()))
    for ax in axes:
        ax.axis("off")
    for number, (ax, pixels) in enumerate(zip(axes, stack, strict=False)):
        image = ax.imshow(pixels, cmap=DIVERGING if diverging else "gray", vmin=low, vmax=high)
        if titles is not None:
            ax.set_title(titles[number])
    return image


def colorbar(image: AxesImage, ax: Any, **options: Any) -> mpl.colorbar.Colorbar:
    """A thin colour bar without a frame, its colours one small picture."""
    bar = image.get_figure().colorbar(
        image, ax=ax, **{"shrink": 0.8, "aspect": 25, "pad": 0.02, **options}
    )
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(True)
    return bar


def ellipse_points(
    mean: ArrayLike, cov: ArrayLike, nsigma: float | int = 2.0, points: int = 60
) -> np.ndarray:
    r"""The curve :math:`(x - m)^T C^{-1} (x - m) = n_\sigma^2`, as ``[..., points, 2]``.

    ``mean`` is ``[..., 2]``, ``cov`` ``[..., 2, 2]``.
    """
    size, axes = np.linalg.eigh(np.asarray(cov, dtype=float))
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    circle = nsigma * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    root = axes * np.sqrt(np.clip(size, 0, None))[..., None, :]
    return np.asarray(mean, dtype=float)[..., None, :] + circle @ np.swapaxes(root, -1, -2)


def ellipse(
    ax: Axes, mean: ArrayLike, cov: ArrayLike, nsigma: float | int = 2.0, **options: Any
) -> Polygon:
    """Draw the ``nsigma`` ellipse of a two-dimensional Gaussian."""
    options = {"fill": False, "edgecolor": BLUE, "linewidth": 1.4, **options}
    return ax.add_patch(Polygon(ellipse_points(mean, cov, nsigma), closed=True, **options))


def arrows(
    ax: Axes,
    points: ArrayLike,
    vectors: ArrayLike,
    color: str = BLUE,
    scale: float | int = 1.0,
    **options: Any,
) -> Quiver:
    """Arrows ``scale * vectors`` from ``points`` (both ``[n, 2]``), in data coordinates: lengths
    compare by eye."""
    points, vectors = np.asarray(points, dtype=float), scale * np.asarray(vectors, dtype=float)
    options = {
        "width": 0.0035,
        "headwidth": 4.0,
        "headlength": 5.0,
        "headaxislength": 4.5,
        "zorder": 3,
        **options,
    }
    return ax.quiver(
        *points.T, *vectors.T, color=color, angles="xy", scale_units="xy", scale=1, **options
    )
