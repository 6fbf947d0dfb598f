r"""Figures that a reader moves: precomputed frames of a few layers, and the slider's script."""

import base64
import functools
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from cdelta.figures.page import HEAT, PHOTOGRAPH, described, drawn, framed, present
from cdelta.figures.style import BLUE, DIVERGING

LIMIT = 400_000  # bytes that a movable figure may take


@dataclass(frozen=True)
class Layer:
    r"""Something in a :func:`movable` figure that changes from frame to frame, in the data
    coordinates of ``ax``.

    ``frames[f]`` is what to draw in frame f:

    - ``"line"``: polylines ``[n, points, 2]``, or one, ``[points, 2]``;
    - ``"area"``: the same, closed and filled, with an outline of ``width``;
    - ``"ellipses"``: ``[n, 3, 2]``, each a centre and two conjugate half-diameters: the image of
      the unit circle under the matrix with these two columns; filled, with an outline of ``width``;
    - ``"points"``: ``[n, 2]``, discs of diameter ``width``;
    - ``"arrows"``: ``[n, 2, 2]``, each from its tail ``[0]`` to its tip ``[1]``;
    - ``"picture"``: ``[height, width, 3]``, colours from 0 to 1, or ``[height, width]``, signed
      values from -1 to 1 in two colours (red above zero, blue below, the page's own at zero). It
      fills ``ax``, whose coordinates it does not ask.

    ``width`` is in points (1/72 inch), ``alpha`` the opacity (of the filling where there is one),
    ``zorder`` as in matplotlib.
    """

    ax: Axes
    kind: Literal["line", "area", "ellipses", "points", "arrows", "picture"]
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
    switch: str | None = None,
    opening: bool = False,
) -> None:
    r"""Display a figure that the reader moves: a slider runs through precomputed frames, offline
    and without a server.

    ``fig`` holds what stays (axes, their limits, background); each of ``layers`` has one entry of
    ``frames`` for each of the slider's ``values`` (numbers). ``label`` names the slider (plain
    text); ``readout[f]`` is the text beside it, by default "label = value". Frame ``start`` is
    shown first, and where there is no JavaScript.

    ``switch`` adds a box to tick, with this text: then every layer has twice as many ``frames``
    (and ``readout`` as many texts), first those of the empty box, then those of the ticked one.
    ``opening`` is as for :func:`show`.

    Raises ValueError when a layer's frames do not match ``values`` in number, hold a wrong shape or
    NaN, when ``start`` is not a frame, when caption or alt is empty, or when the figure would take
    more than 0.4 MB.
    """
    described(caption, alt)
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"values must be a list of at least two numbers, got shape {values.shape}")
    count = len(values)
    frames = count if switch is None else 2 * count
    each = f"each of the {count} values" + ("" if switch is None else ", off and on")
    if readout is None:
        readout = [f"{label} = {value:.2f}" for value in values] * (frames // count)
    if len(readout) != frames:
        raise ValueError(f"readout must have one text for {each}, got {len(readout)}")
    if not 0 <= start < count:
        raise ValueError(f"start must be a frame from 0 to {count - 1}, got {start}")
    for number, layer in enumerate(layers):
        if len(layer.frames) != frames:
            raise ValueError(
                f"layers[{number}] must have one frame for {each}, got {len(layer.frames)}"
            )

    _hold_places(layers)
    paths = []

    def moving(svg: str) -> str:
        # here and not before: only in a figure that is laid out do data coordinates have a place
        for number, layer in enumerate(layers):
            draw = _picture if layer.kind == "picture" else _path
            paths.append([draw(layer, frame, fig) for frame in layer.frames])
            before, after = svg.split(f'<g id="layer-{number}">')
            _, after = after.split("</g>", 1)
            svg = before + _group(layer, number, paths[number][start], fig) + after
        return svg

    svg, prefix = drawn(fig, alt, caption, moving)
    page = framed(
        prefix, svg, _controls(prefix, label, readout, start, paths, count, switch), caption
    )
    size = len(page.encode())
    if size > LIMIT:
        raise ValueError(
            f"a movable figure may take {LIMIT} bytes, this takes {size}: use fewer frames"
        )
    present(page, f"[figure: {alt}]", opening)


def _hold_places(layers: Sequence[Layer]) -> None:
    """Put a line of one point in each layer's place: its group in the SVG tells what lies before
    and behind the layer."""
    # the lines must not move the limits that the figure has
    for ax in {id(layer.ax): layer.ax for layer in layers}.values():
        ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    for number, layer in enumerate(layers):
        # a line of one point shows nothing, and yet it has a group in the SVG
        middle = [np.mean(layer.ax.get_xlim())], [np.mean(layer.ax.get_ylim())]
        gid = f"layer-{number}"
        layer.ax.plot(*middle, "-", color=layer.color, gid=gid, zorder=layer.zorder)


def _controls(
    prefix: str,
    label: str,
    readout: Sequence[str],
    start: int,
    paths: list[list[str]],
    count: int,
    switch: str | None,
) -> str:
    """Button, slider, switch and readout, hidden until the script shows them; the frames; the
    script."""
    name, now = html.escape(label), html.escape(readout[start])
    box = (
        ""
        if switch is None
        else '<label style="flex:none"><input type="checkbox" autocomplete="off">'
        f"<span>{html.escape(switch)}</span></label>"
    )
    frames = json.dumps(
        {"d": paths, "text": list(readout)}, separators=(",", ":"), ensure_ascii=False
    )
    frames = frames.replace("</", "<\\/")  # so that no text can close the script element
    return (
        '<div class="cd-controls" hidden>'
        '<button type="button" aria-label="Play" aria-pressed="false">▶</button>'
        f"<label><span>{name}</span>"
        f'<input type="range" min="0" max="{count - 1}" step="1" value="{start}" '
        f'autocomplete="off" aria-label="{name}" aria-valuetext="{now}"></label>'
        f"{box}"
        f'<output aria-live="off">{now}</output></div>'
        f'<script type="application/json">{frames}</script>'
        f"<script>{_slider().replace('PREFIX', prefix)}</script>"
    )


@functools.cache
def _slider() -> str:
    """The script without its comments and indentation: it stands in the page once a figure."""
    lines = Path(__file__).with_name("slider.js").read_text("utf-8").splitlines()
    return "\n".join(line.strip() for line in lines if not line.strip().startswith("//"))


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


def _picture(layer: Layer, frame: ArrayLike, fig: Figure) -> str:
    """One frame of a picture as the address of an image that the page carries: a photograph as
    JPEG, two colours as PNG in thirty steps (both a few kB)."""
    values = np.asarray(frame, dtype=float)
    signed = values.ndim == 2
    if not signed and (values.ndim != 3 or values.shape[-1] != 3):
        raise ValueError(
            f"a frame of picture must have shape [height, width, 3] or [height, width], "
            f"got {values.shape}"
        )
    low = -1 if signed else 0
    if not (np.isfinite(values).all() and low <= values.min() and values.max() <= 1):
        raise ValueError(
            f"a frame of picture must hold values from {low} to 1, "
            f"got {values.min():.3g} to {values.max():.3g}"
        )
    if signed:
        values = DIVERGING((np.rint(15 * values) / 15 + 1) / 2)
    image, file = Image.fromarray(np.rint(255 * values).astype(np.uint8)), BytesIO()
    kind = "png" if signed else "jpeg"
    image.save(file, kind, **({"optimize": True} if signed else {"quality": 90, "subsampling": 0}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


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
    if layer.kind == "picture":
        photograph = path.startswith("data:image/jpeg")
        return (
            f'<image id="path-{number}" x="{left:.2f}" y="{top:.2f}" width="{right - left:.2f}" '
            f'height="{high - low:.2f}" style="opacity:{layer.alpha:g}'
            # the few pixels of a field of values stay pixels
            f'{"" if photograph else ";image-rendering:pixelated"}" '
            f'class="{PHOTOGRAPH if photograph else HEAT}" href="{path}"/>'
        )
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
    rect = (
        f'<rect x="{left:.2f}" y="{top:.2f}" width="{right - left:.2f}" height="{high - low:.2f}"/>'
    )
    return (
        f'<clipPath id="clip-{number}">{rect}</clipPath><g clip-path="url(#clip-{number})">'
        # tenths of a point are whole numbers, and shorter
        f'<path id="path-{number}" transform="scale(.1)" '
        f'style="{fill};{stroke}{cap}" d="{path}"/></g>'
    )
