"""The few plots that chapters share: estimates in rows, matrices, images, ellipses, arrows,
maps of the plane."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Polygon
from matplotlib.quiver import Quiver
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

from cdelta.figures.style import BLUE, DIVERGING, PAPER, SEQUENTIAL, SMALLEST


def dots(
    ax: Axes,
    rows: Mapping[str, tuple[Any, Any]],
    *,
    colors: str | Sequence[str] = BLUE,
    marks: str = "o",
    shift: float | int = 0.0,
    **options: Any,
) -> None:
    """Estimates in rows, the first on top: each a dot at its value, with a bar of its error to both
    sides.

    ``rows``: names to (value, error). ``colors`` and ``marks`` are one for all rows, or one for
    each. ``shift``: how far below the row's middle the dots stand, so that a second call with the
    same names sets its estimates beside the first's. Raises ValueError without rows, or when colors
    or marks are neither one nor as many as the rows.
    """
    n = len(rows)
    if not n:
        raise ValueError("rows must hold one estimate at least, got none")
    colors, marks = [colors] if isinstance(colors, str) else list(colors), list(marks)
    for name, given in (("colors", colors), ("marks", marks)):
        if len(given) not in (1, n):
            raise ValueError(
                f"{name} must be one or one for each of the {n} rows, got {len(given)}"
            )
    for place, (value, error) in enumerate(rows.values()):
        ax.errorbar(
            value, place + shift, xerr=error, fmt=marks[place % len(marks)],
            color=colors[place % len(colors)], **{"ms": 5, "lw": 1.3, **options},
        )  # fmt: skip
        options.pop("label", None)  # once is enough for a legend
    ax.set_yticks(range(n), list(rows))
    ax.set_ylim(n - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


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
    upright = labels is not None and columns > 8
    ax.set_xticks(*_ticks(labels, columns), rotation=90 if upright else 0)
    ax.set_yticks(*_ticks(labels, rows))
    if columns <= 8 if numbers is None else numbers:
        for (i, j), value in np.ndenumerate(values):
            error = "" if stderr is None else f"\n±{np.asarray(stderr)[i, j]:{form}}"
            text = f"{value:{form}}{error}".replace("-", "−")
            # on a strong colour text would be hard to read, in one of the themes at least
            strong = dict(boxstyle="round,pad=0.15", facecolor=PAPER, alpha=0.8, linewidth=0)
            ax.text(
                j, i, text, ha="center", va="center", fontsize=SMALLEST,
                bbox=strong if abs(value) > 0.3 * limit else None,
            )  # fmt: skip
    return image


def correlations(
    axes: Any,
    panels: Mapping[str, ArrayLike],
    labels: Sequence[str],
    *,
    limit: float | int = 1.0,
    outer: bool = True,
    fontsize: float | int = SMALLEST,
) -> AxesImage:
    """Matrices of correlations (by title) beside one another, one to each of the axes, on one
    scale: as :func:`matrix` without numbers, and without the diagonals, which say nothing.

    ``labels`` name the features, upright below where they are words; ``outer``: only at the left of
    the first column and below the last row. ``fontsize`` is the titles'. What is undefined (a
    feature held) is left empty. Returns the last image, for a colour bar. Raises ValueError for
    more panels than axes, and where a matrix has not a row and a column for each label.
    """
    axes, n = np.ravel(axes), len(labels)
    if not 0 < len(panels) <= len(axes):
        raise ValueError(f"panels must be 1 to {len(axes)}, one for each axes, got {len(panels)}")
    for ax, (title, values) in zip(axes, panels.items(), strict=False):
        values = np.array(values, dtype=float)
        if values.shape != (n, n):
            raise ValueError(
                f"panels must be matrices of the {n} features, got {values.shape} in {title!r}"
            )
        np.fill_diagonal(values, 0)
        image = matrix(ax, np.nan_to_num(values), limit=limit, numbers=False)
        place, upright = ax.get_subplotspec(), max(map(len, labels)) > 2
        below, beside = (not outer or end for end in (place.is_last_row(), place.is_first_col()))
        ax.set_title(title, fontsize=fontsize)
        ax.set_xticks(range(n), labels if below else [], rotation=90 if upright else 0)
        ax.set_yticks(range(n), labels if beside else [])
    return image


def _ticks(labels: Sequence[str] | None, count: int) -> tuple[list[int], list[str]]:
    named = labels is not None and len(labels) == count
    return (list(range(count)), list(labels)) if named else ([], [])


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
            f"stack must be [n, height, width(, 3)] with n of 1 to {len(axes)}, "
            f"got shape {stack.shape}"
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


def sheet(
    ax: Axes,
    stack: ArrayLike,
    columns: int = 8,
    title: str | None = None,
    *,
    gap: int = 2,
    limits: tuple[Any, Any] = (-1, 1),
) -> AxesImage:
    """Many images ``[n, height, width]`` as one picture, ``columns`` in a row, on one scale of
    grey, with ``gap`` pixels of the page between them.

    ``limits``: values of black and white. Raises ValueError when the stack holds no images.
    """
    stack = np.asarray(stack, dtype=float)
    if stack.ndim != 3 or not len(stack) or columns < 1:
        raise ValueError(
            "stack must be [n, height, width] with n > 0, in one column or more, "
            f"got shape {stack.shape} in {columns}"
        )
    missing = -len(stack) % columns
    stack = np.pad(stack, ((0, missing), (0, gap), (0, gap)), constant_values=np.nan)
    n, height, width = stack.shape
    rows = stack.reshape(n // columns, columns, height, width).swapaxes(1, 2)
    page = rows.reshape(n // columns * height, columns * width)
    whole = page[: len(page) - gap, : page.shape[1] - gap]
    return images([ax], whole[None], None if title is None else [title], limits=limits)


def blocks(mask: ArrayLike) -> np.ndarray:
    """Rectangles that cover the true pixels of ``mask [height, width]`` and no others, as the frame
    of an "area": ``[n, 4, 2]``, in the coordinates in which pixel (i, j) has its middle at
    x = j, y = i.

    A run of pixels in a row is one rectangle, and runs that repeat in the rows below are one with
    it. Raises ValueError when the mask is not two-dimensional.
    """
    mask = np.asarray(mask, dtype=bool)
    if mask.ndim != 2:
        raise ValueError(f"mask must be [height, width], got shape {mask.shape}")
    edges = np.diff(np.pad(mask, ((0, 1), (1, 1))).astype(int), axis=1)
    open_runs: dict[tuple[int, int], int] = {}  # (first, last + 1) to the row where it began
    found = []
    for row, edge in enumerate(edges):
        runs = set(zip(np.flatnonzero(edge == 1), np.flatnonzero(edge == -1), strict=True))
        for run in sorted(set(open_runs) - runs):
            (left, right), top = run, open_runs.pop(run)
            found.append([[left, top], [right, top], [right, row], [left, row]])
        for run in runs:
            open_runs.setdefault(run, row)
    return np.array(found, dtype=float).reshape(-1, 4, 2) - 0.5


def letter(*axes: Axes) -> None:
    """Write a, b, c … over the upper left corners of a figure's panels, so that its caption can
    name them: on a phone they stand one under the other, and none is left or right.

    The panels of a row then begin at one height: one that keeps its shape and is lower than the
    others stands at their top."""
    if not 1 < len(axes) <= 26:
        raise ValueError(f"axes must be 2 to 26 panels to tell apart, got {len(axes)}")
    for name, ax in zip("abcdefghijklmnopqrstuvwxyz", axes, strict=False):
        ax.set_title(name, loc="left", fontweight="bold")
        ax.set_anchor("N")


def square(reach: float | int, n: int) -> np.ndarray:
    """An even grid of n × n points with no coordinate beyond ``reach``, as ``[n², 2]``, row by row
    from below: what :func:`heat` draws has one value a point."""
    side = np.linspace(-reach, reach, n)
    return np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)


def heat(ax: Axes, values: ArrayLike, reach: float | int, **options: Any) -> AxesImage:
    """Draw one value (or colour) for each point of :func:`square`, ``[n²]`` or ``[n², channels]``,
    as a map of the plane. Its pixels fill the square, so that the outermost are drawn half a pixel
    inwards.

    Raises ValueError unless there are n² values.
    """
    values = np.asarray(values)
    n = math.isqrt(len(values))
    if n * n != len(values):
        raise ValueError(f"values must be those of n x n points, got {len(values)}")
    options = {"cmap": SEQUENTIAL, "origin": "lower", "extent": (-reach, reach) * 2, **options}
    return ax.imshow(values.reshape(n, n, *values.shape[1:]), **options)


def colorbar(image: AxesImage, ax: Any, **options: Any) -> mpl.colorbar.Colorbar:
    """A thin colour bar without a frame, its colours one small picture; beside the panels ``ax``,
    or below them."""
    bar = image.get_figure().colorbar(
        image, ax=ax, **{"shrink": 0.8, "aspect": 25, "pad": 0.02, **options}
    )
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(True)
    if bar.orientation == "vertical":
        bar.ax.set_axes_locator(_beside(list(np.ravel(ax)), bar.ax.get_axes_locator()))
    return bar


def _beside(panels: Sequence[Axes], place: Callable[[Axes, Any], Bbox]) -> Callable:
    """Where a colour bar stands: at the height of its panels, and not of the room that the layout
    gave them, of which they take a part if they keep their shape."""

    def height(original: bool) -> float:
        box = Bbox.union([panel.get_position(original) for panel in panels])
        return (box.y0 + box.y1) / 2

    def moved(bar: Axes, renderer: Any) -> Bbox:
        return place(bar, renderer).translated(0, height(False) - height(True))

    return moved


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


def circles(centres: ArrayLike, matrices: ArrayLike) -> np.ndarray:
    """Unit circles after linear maps, as the frames of a layer of "ellipses": ``[..., 3, 2]``, each
    a centre and the matrix's two columns. ``centres`` is ``[..., 2]``, ``matrices``
    ``[..., 2, 2]``; one may stand for many of the other."""
    halves = np.swapaxes(np.asarray(matrices, dtype=float), -1, -2)
    centres = np.asarray(centres, dtype=float)[..., None, :]
    lead = np.broadcast_shapes(centres.shape[:-2], halves.shape[:-2])
    parts = (np.broadcast_to(part, (*lead, *part.shape[-2:])) for part in (centres, halves))
    return np.concatenate(list(parts), axis=-2)


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
