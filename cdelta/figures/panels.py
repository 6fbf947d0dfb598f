"""Windows onto a figure, for a screen too narrow for all of it: its columns, one under the other,
its panels row by row, or some of a grid's at a time."""

from collections.abc import Iterable
from math import ceil
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

NARROW = 60.0  # points: a colour bar or a label at the side is no panel of its own
MOST = 4  # columns: more of them are a grid of small pictures
ROOM = 350.0  # points: a phone's text is as many pixels wide, and no text has fewer than 9


def windows(fig: Figure) -> list[tuple[float, float, float, float]]:
    """``(x, y, width, height)`` of each window, in points from the upper left corner.

    One for each column of axes, and one for what stands above or below all of them; where there are
    rows, and each panel has its title, one for each panel, in the order of reading. A grid of more
    than four columns, with words on it, has one for as many columns as a phone has room for. Empty
    when the figure is one column, or a grid without words. The figure must have been laid out.
    """
    height, scale = 72 * fig.get_figheight(), 72 / fig.dpi
    renderer = fig.canvas.get_renderer()

    def boxes(artists: Iterable) -> list[Bbox]:
        found = [artist.get_tightbbox(renderer) for artist in artists if artist.get_visible()]
        return [Bbox(box.extents.reshape(2, 2) * scale) for box in found if box is not None]

    drawn = [ax for ax in fig.axes if ax.get_visible() and ax.get_tightbbox(renderer) is not None]
    every = axes = boxes(drawn)
    if not axes:
        return []
    # a colour bar of all panels, say, stands below them as a text does
    lone = [box for box in axes if _apart(box, [other for other in axes if other is not box])]
    axes = [box for box in axes if not any(box is other for other in lone)]
    low, high = min(box.y0 for box in axes), max(box.y1 for box in axes)
    beside: list[Bbox] = []
    around = [*boxes([*fig.texts, *fig.legends]), *lone]
    if grid := _grid(fig):
        columns = _shares(grid, low, high)
    else:
        beside = [box for box in around if low < (box.y0 + box.y1) / 2 < high]
        columns = _columns([*axes, *beside])
    if not 1 < len(columns) <= MOST or min(column.width for column in columns) < NARROW:
        return []
    above = [box for box in around if box.y0 + box.y1 >= 2 * high]
    below = [box for box in around if box.y0 + box.y1 <= 2 * low]
    strips = [Bbox.union(strip) if strip else None for strip in (above, below)]
    titled = [box for box, ax in zip(every, drawn, strict=True) if _titled(ax)]
    cells = [] if grid or beside else _cells(axes, columns, titled)
    shown = [strips[0], *(cells or columns), strips[1]]
    return [
        (box.x0 - 2, height - box.y1 - 2, box.width + 4, box.height + 4)
        for box in shown
        if box is not None
    ]


Window = tuple[float, float, float, float]
Left, Below = tuple[float, float, float] | None, tuple[float, float] | None


def shared_axes(fig: Figure, window: Window) -> tuple[Left, Below]:
    """Where the numbers are of the axes that a window's panel shares and does not write.

    Of the y axis, or the names of a grid's rows, ``(x, width, height)`` in points, left of the
    panel that writes them, from the window's top; of the x axis ``(y, height)``, below it. Neither
    holds a mark, or anything else, of that panel. None where the panel has its own.
    """
    if grid := _grid(fig):
        left, first = grid.names, grid.starts[0] - grid.beyond
        middle = 72 * fig.get_figheight() - grid.middle
        apart = window[0] > first and window[1] < middle < window[1] + window[3]
        wide = first - left + 2
        return (left - 2, wide, window[3]) if apart and first - left > 4 else None, None
    return _shared_y(fig, window), _shared_x(fig, window)


def _shared_y(fig: Figure, window: Window) -> Left:
    scale, top = 72 / fig.dpi, 72 * fig.get_figheight() - window[1]
    renderer = fig.canvas.get_renderer()
    for ax in fig.axes:
        if not ax.get_visible() or not _inside(ax, window, fig) or _writes(ax):
            continue
        for other in ax.get_shared_y_axes().get_siblings(ax):
            beside = abs(other.bbox.y0 - ax.bbox.y0) < 1 and other.bbox.x1 < ax.bbox.x0
            if beside and _writes(other):
                left = other.get_tightbbox(renderer).x0 * scale - 2
                numbers = _numbers(other.yaxis)
                return left, numbers.x1 * scale + 0.5 - left, top - numbers.y0 * scale + 0.5
    return None


def _shared_x(fig: Figure, window: Window) -> Below:
    scale, height = 72 / fig.dpi, 72 * fig.get_figheight()
    for ax in fig.axes:
        if not ax.get_visible() or not _inside(ax, window, fig) or _writes(ax, "x"):
            continue
        for other in ax.get_shared_x_axes().get_siblings(ax):
            under = abs(other.bbox.x0 - ax.bbox.x0) < 1 and other.bbox.y1 < ax.bbox.y0
            if under and _writes(other, "x") and not _inside(other, window, fig):
                top = height - _numbers(other.xaxis).y1 * scale - 0.5
                low = other.get_tightbbox(fig.canvas.get_renderer()).y0 * scale - 2
                return top, height - low - top
    return None


def _inside(ax: Axes, window: Window, fig: Figure) -> bool:
    """Whether the middle of the axes is in the window."""
    x, y, width, height = window
    scale = 36 / fig.dpi  # half of the sums below
    across = (ax.bbox.x0 + ax.bbox.x1) * scale
    down = 72 * fig.get_figheight() - (ax.bbox.y0 + ax.bbox.y1) * scale
    return bool(x < across < x + width and y < down < y + height)


def _titled(ax: Axes) -> bool:
    return any(ax.get_title(loc) for loc in ("left", "center", "right"))


def _cells(axes: list[Bbox], columns: list[Bbox], titled: list[Bbox]) -> list[Bbox]:
    """A box for each panel of a table of them, row by row, as wide as its column. None where there
    is one row, or a panel without a title: that is told by the one over it."""
    rows: list[Bbox] = []
    for box in sorted(axes, key=lambda box: -box.y1):
        if rows and box.y1 > rows[-1].y0 + 2:
            rows[-1] = Bbox.union([rows[-1], box])
        else:
            rows.append(box)
    found = []
    for row in rows:
        for column in columns:
            here = [
                box
                for box in axes
                if column.x0 <= (box.x0 + box.x1) / 2 <= column.x1
                and row.y0 <= (box.y0 + box.y1) / 2 <= row.y1
            ]
            if not here:
                continue
            if not any(box is other for box in here for other in titled):
                return []
            low, high = min(box.y0 for box in here), max(box.y1 for box in here)
            found.append(Bbox([[column.x0, low], [column.x1, high]]))
    return found if len(rows) > 1 else []


def _apart(box: Bbox, others: list[Bbox]) -> bool:
    """Whether a box stands below all others, and under more than one of them."""
    over = [other for other in others if other.x0 < box.x1 and box.x0 < other.x1]
    return all(box.y1 <= other.y0 + 1 for other in others) and len(_columns(over)) > 1


class _Grid(NamedTuple):
    """Many columns of pictures of one size, in points."""

    names: float  # where the names of the rows begin
    starts: list[float]  # where the pictures do
    width: float  # of one
    beyond: float  # how far the words over a picture reach to its sides
    middle: float  # half the height of one


def _grid(fig: Figure) -> _Grid | None:
    """None when the figure has four columns or fewer, or no words that a phone must show."""
    scale, renderer = 72 / fig.dpi, fig.canvas.get_renderer()
    shown = [ax for ax in fig.axes if ax.get_visible()]
    width = max((ax.bbox.width for ax in shown), default=0.0)
    pictures = [ax for ax in shown if ax.bbox.width > width - 1]  # no colour bars
    starts = sorted({round(ax.bbox.x0) for ax in pictures})
    if len(starts) <= MOST or not any(map(_words, pictures)):
        return None
    boxes = [(ax, ax.get_tightbbox(renderer)) for ax in pictures]
    names = min(box.x0 for ax, box in boxes if round(ax.bbox.x0) == starts[0])
    others = [(ax, box) for ax, box in boxes if round(ax.bbox.x0) != starts[0]]
    beyond = max(max(ax.bbox.x0 - box.x0, box.x1 - ax.bbox.x1) for ax, box in others)
    beyond = min(max(beyond, 0.0), (starts[1] - starts[0] - width))  # never into the next picture
    middle = (pictures[0].bbox.y0 + pictures[0].bbox.y1) / 2
    places = (names, [scale * start for start in starts], width, beyond, middle)
    return _Grid(*(place if isinstance(place, list) else scale * place for place in places))


def _words(ax: Axes) -> bool:
    """Whether anything is written on the axes or at their sides."""
    return bool(ax.texts or ax.get_title() or ax.axison)


def _shares(grid: _Grid, low: float, high: float) -> list[Bbox]:
    """Boxes around as many of a grid's columns at a time as a phone has room for, all of one width:
    so are then the pictures."""
    pitch = grid.starts[1] - grid.starts[0]
    room = ROOM - (grid.starts[0] - grid.names)
    each = ceil(len(grid.starts) / ceil(len(grid.starts) * pitch / room))
    across = (each - 1) * pitch + grid.width + 2 * grid.beyond
    found = [
        Bbox([[start - grid.beyond, low], [start - grid.beyond + across, high]])
        for start in grid.starts[::each]
    ]
    found[0] = Bbox([[min(grid.names, found[0].x0), low], [found[0].x1, high]])
    return found


def _writes(ax: Axes, which: str = "y") -> bool:
    """Whether numbers or names stand at the left of the axes, or below them."""
    axis = ax.yaxis if which == "y" else ax.xaxis
    return bool(ax.axison and axis.get_visible() and _labels(axis))


def _labels(axis: Axis) -> list[Text]:
    labels = [tick.label1 for tick in axis.get_major_ticks()]
    return [label for label in labels if label.get_visible() and label.get_text()]


def _numbers(axis: Axis) -> Bbox:
    return Bbox.union([label.get_window_extent() for label in _labels(axis)])


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
