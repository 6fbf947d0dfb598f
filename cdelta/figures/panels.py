"""Windows onto a figure, for a screen too narrow for all of it: its columns, one under the
other."""

from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

NARROW = 60.0  # points: a colour bar or a label at the side is no panel of its own
MOST = 4  # columns: a grid of small pictures is read as a whole


def windows(fig: Figure) -> list[tuple[float, float, float, float]]:
    """``(x, y, width, height)`` of each window, in points from the upper left corner.

    One for each column of axes, and one for what stands above or below all of them. Empty when the
    figure is one column or more than four. The figure must have been laid out.
    """
    height, scale = 72 * fig.get_figheight(), 72 / fig.dpi
    renderer = fig.canvas.get_renderer()

    def boxes(artists: Iterable) -> list[Bbox]:
        found = [artist.get_tightbbox(renderer) for artist in artists if artist.get_visible()]
        return [Bbox(box.extents.reshape(2, 2) * scale) for box in found if box is not None]

    axes = boxes(fig.axes)
    if not axes:
        return []
    low, high = min(box.y0 for box in axes), max(box.y1 for box in axes)
    around = boxes([*fig.texts, *fig.legends])
    beside = [box for box in around if low < (box.y0 + box.y1) / 2 < high]
    columns = _columns([*axes, *beside])
    if not 1 < len(columns) <= MOST or min(column.width for column in columns) < NARROW:
        return []
    above = [box for box in around if box.y0 + box.y1 >= 2 * high]
    below = [box for box in around if box.y0 + box.y1 <= 2 * low]
    strips = [Bbox.union(strip) if strip else None for strip in (above, below)]
    shown = [strips[0], *columns, strips[1]]
    return [
        (box.x0 - 2, height - box.y1 - 2, box.width + 4, box.height + 4)
        for box in shown
        if box is not None
    ]


def shared_axis(
    fig: Figure, window: tuple[float, float, float, float]
) -> tuple[float, float] | None:
    """Where the numbers are of a y axis that a window's panel shares and does not write: ``(x,
    width)`` in points, left of the panel that writes them. None when the panel has its own."""
    scale = 72 / fig.dpi
    for ax in fig.axes:
        middle = (ax.bbox.x0 + ax.bbox.x1) / 2 * scale
        if not ax.get_visible() or not window[0] < middle < window[0] + window[2] or _writes(ax):
            continue
        for other in ax.get_shared_y_axes().get_siblings(ax):
            beside = abs(other.bbox.y0 - ax.bbox.y0) < 1 and other.bbox.x1 < ax.bbox.x0
            if beside and _writes(other):
                left = other.get_tightbbox(fig.canvas.get_renderer()).x0 * scale - 2
                return left, other.bbox.x0 * scale - left
    return None


def _writes(ax: Axes) -> bool:
    """Whether numbers or names stand at the left of the axes."""
    if not ax.axison or not ax.yaxis.get_visible():
        return False
    return any(
        tick.label1.get_visible() and tick.label1.get_text() for tick in ax.yaxis.get_major_ticks()
    )


def _columns(boxes: list[Bbox]) -> list[Bbox]:
    """The boxes united where they stand over one another; a narrow one belongs to the column on its
    left, or is the beginning of the first."""
    columns: list[Bbox] = []
    for box in sorted(boxes, key=lambda box: box.x0):
        if columns and (
            box.x0 < columns[-1].x1 - 2
            or box.width < NARROW
            or (len(columns) == 1 and columns[0].width < NARROW)
        ):
            columns[-1] = Bbox.union([columns[-1], box])
        else:
            columns.append(box)
    return columns
