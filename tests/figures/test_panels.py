"""On a narrow screen a figure's columns stand under one another."""

import itertools
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest

from cdelta import figures
from cdelta.figures import page
from cdelta.figures.panels import ROOM, shared_axes, windows


def shared_axis(fig, window):
    left, _ = shared_axes(fig, window)
    return left and left[:2]


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        figures.use()
        yield


def laid_out(fig):
    fig.draw_without_rendering()
    found = windows(fig)
    plt.close(fig)
    return found


def covers(window, box, fig):
    """Whether a window holds a box in pixels."""
    x, y, width, height = window
    scale, top = 72 / fig.dpi, 72 * fig.get_figheight()
    left, low, right, high = box.extents * scale
    return x <= left and right <= x + width and y <= top - high and top - low <= y + height


def test_each_panel_has_a_window_that_holds_all_of_it():
    fig, axes = plt.subplots(1, 3)
    for number, ax in enumerate(axes):
        ax.set(title=f"panel {number}", xlabel="x", ylabel="y")
    found = laid_out(fig)
    assert len(found) == 3 and sorted(found) == found
    for window, ax in zip(found, axes, strict=True):
        assert covers(window, ax.get_tightbbox(), fig)
    for before, after in itertools.pairwise(found):
        assert before[0] + before[2] <= after[0] + 4  # the margins of 2 points on each side


def test_a_colour_bar_belongs_to_its_panel():
    fig, axes = plt.subplots(1, 2)
    axes[0].plot([0, 1])
    image = axes[1].imshow(np.eye(3))
    bar = figures.colorbar(image, axes[1])
    found = laid_out(fig)
    assert len(found) == 2
    assert covers(found[1], axes[1].get_tightbbox(), fig)
    assert covers(found[1], bar.ax.get_tightbbox(), fig)


def test_a_colour_bar_of_all_panels_has_a_window_of_its_own():
    fig, axes = plt.subplots(2, 3, figsize=(7.2, 6.6), sharex=True, sharey=True)
    images = [figures.matrix(ax, np.eye(4), list("abcd")) for ax in axes.flat]
    bar = figures.colorbar(images[0], axes, location="bottom")
    found = laid_out(fig)
    assert len(found) == 4 and covers(found[3], bar.ax.get_tightbbox(), fig)
    for column, window in zip(axes.T, found, strict=False):
        assert all(covers(window, ax.get_tightbbox(), fig) for ax in column)
        assert not covers(window, bar.ax.get_tightbbox(), fig)
    tall, axes = plt.subplots(3, 1)
    assert laid_out(tall) == []


def test_what_stands_over_all_panels_has_a_window_of_its_own():
    fig, axes = plt.subplots(1, 2)
    title = fig.suptitle("both")
    found = laid_out(fig)
    assert len(found) == 3
    assert covers(found[0], title.get_window_extent(), fig)
    assert covers(found[1], axes[0].get_tightbbox(), fig)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1)])
def test_a_column_stays_whole(shape):
    fig, _ = plt.subplots(*shape)
    assert laid_out(fig) == []


def pictures(shape, words=True):
    """A grid of small pictures, its rows named and its columns titled."""
    fig, axes = plt.subplots(*shape, figsize=(7.2, 2.0))
    figures.images(axes, np.ones((axes.size, 4, 4)))
    if words:
        for row in axes:
            row[0].text(-0.1, 0.5, "a name", ha="right", transform=row[0].transAxes)
        for ax in axes[0]:
            ax.set_title("+1.5", fontsize=9)
    return fig, axes


def test_a_grid_without_words_stays_whole():
    assert laid_out(pictures((4, 16), words=False)[0]) == []


@pytest.mark.parametrize(("columns", "each"), [(5, 3), (8, 4), (11, 6), (12, 6)])
def test_a_grid_is_shown_some_columns_at_a_time(columns, each):
    fig, axes = pictures((2, columns))
    fig.draw_without_rendering()
    found = windows(fig)
    assert len(found) == -(-columns // each)
    names = [shared_axis(fig, window) for window in found]
    # each window with the names beside it, all of one width, small enough for a phone
    assert names[0] is None
    beside = [0 if name is None else name[1] for name in names]
    widths = np.add([window[2] for window in found], beside)
    assert np.ptp(widths) < 4 and widths.max() < ROOM + 8
    words = axes[0, 0].texts[0].get_window_extent()
    assert covers(found[0], words, fig)
    for left, width in names[1:]:
        assert left <= words.x0 * 72 / fig.dpi and left + width >= words.x1 * 72 / fig.dpi
    # each picture and its title is in one window, whole
    for place, column in enumerate(axes.T):
        for ax in column:
            box = ax.bbox if place == 0 else ax.get_tightbbox()
            assert [covers(window, box, fig) for window in found].index(True) == place // each
    plt.close(fig)


def test_what_stands_over_a_grid_has_no_names_beside_it():
    fig, _ = pictures((2, 8))
    fig.suptitle("all of them")
    fig.draw_without_rendering()
    above, *others = windows(fig)
    assert [shared_axis(fig, window) is None for window in (above, *others)] == [True, True, False]
    plt.close(fig)


def test_a_colour_bar_is_no_column_of_a_grid():
    for columns, expected in ((4, 4), (5, 2)):
        fig, axes = plt.subplots(1, columns)
        drawn = [figures.matrix(ax, np.eye(2), ["a", "b"]) for ax in axes]
        figures.colorbar(drawn[0], axes)
        assert len(laid_out(fig)) == expected


def test_the_windows_use_the_drawing(shown):
    fig, _ = plt.subplots(1, 2)
    figures.show(fig, caption="c", alt="a")
    whole, *panels = re.findall(r"<svg.*?</svg>", shown[0], re.S)
    name = re.search(r'<g id="([^"]*-whole)">', whole)[1]
    assert len(panels) == 2
    assert all(
        f'<use href="#{name}"/>' in panel and 'aria-hidden="true"' in panel for panel in panels
    )
    assert 'class="cd-canvas cd-panels"' in shown[0]


def test_a_panel_that_shares_an_axis_is_seen_with_its_numbers():
    fig, axes = plt.subplots(1, 3, sharey=True)
    axes[0].set(ylabel="y", ylim=(0, 1))
    fig.draw_without_rendering()
    first, *others = windows(fig)
    assert shared_axis(fig, first) is None
    numbers = axes[0].yaxis.get_tightbbox(fig.canvas.get_renderer())
    for panel in others:
        left, width = shared_axis(fig, panel)
        assert left <= numbers.x0 * 72 / fig.dpi
        # up to the marks, which the panel has itself
        marks = axes[0].yaxis.get_ticklines()[0].get_markersize()
        assert 1 < axes[0].bbox.x0 * 72 / fig.dpi - (left + width) - marks < 6
    plt.close(fig)


def test_a_row_is_seen_with_its_own_numbers_and_others_with_none():
    fig, axes = plt.subplots(2, 2, sharey="row")
    axes[1, 0].set(ylim=(0, 1e-3))
    own, _ = plt.subplots(1, 2)
    for drawn, shares in ((fig, True), (own, False)):
        drawn.draw_without_rendering()
        _, second = windows(drawn)
        assert (shared_axis(drawn, second) is not None) == shares
    two, axes = plt.subplots(1, 2, sharey=True)
    figures.images(axes, np.ones((2, 3, 3)))
    two.draw_without_rendering()
    assert [shared_axis(two, panel) for panel in windows(two)] == [None, None]
    plt.close("all")


def test_the_window_of_a_shared_axis_is_drawn(shown):
    fig, _ = plt.subplots(1, 2, sharey=True)
    figures.show(fig, caption="c", alt="a")
    last = shown[0][shown[0].rindex('class="cd-panel"') :]
    places = re.findall(r'<svg x="([\d.]+)" width="([\d.]+)"', last)
    (zero, before), (after, width) = [tuple(map(float, place)) for place in places]
    total = float(re.search(r'viewBox="0 0 ([\d.]+)', last)[1])
    assert zero == 0 and after == before and total == pytest.approx(before + width, abs=0.11)
    assert len(re.findall("<use", last)) == 2


def test_what_is_measured_is_what_is_written():
    """Letters have other widths in the SVG: laid out again, a strip with another panel's numbers
    showed a piece of that panel as well. Measured in the file."""
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.4), sharey=True)
    for ax in axes:
        ax.set(title="a title of some length", ylim=(-1e-4, 123456), yticks=[0, 123456])
    axes[0].set_ylabel("a label")
    axes[0].add_artist(plt.Rectangle((0, 0), 1, 1, transform=axes[0].transAxes, gid="ground"))
    raw = []
    for _ in range(2):
        fig.draw_without_rendering()
    measured = axes[0].bbox.x0 * 72 / fig.dpi
    svg, _ = page.drawn(fig, "a", "c", edit=lambda written: raw.append(written) or written)
    ground = raw[0].partition('id="ground"')[2].partition("/>")[0]
    edge = min(map(float, re.findall(r"[ML] ([\d.]+) ", ground)))
    assert abs(edge - measured) < 1e-3
    strips = re.findall(r'<svg x="0.0"[^>]* viewBox="([\d.]+) [\d.]+ ([\d.]+)', svg)
    assert len(strips) == 2
    for left, width in strips:
        assert edge - 9 < float(left) + float(width) < edge - 3
        assert float(left) < edge - 40  # the numbers of six digits


def test_a_table_of_titled_panels_is_read_row_by_row():
    fig, axes = plt.subplots(2, 3, sharex=True, sharey=True, figsize=(7.2, 5))
    for number, ax in enumerate(axes.flat):
        ax.set_title(f"t = {number}")
    fig.draw_without_rendering()
    found = windows(fig)
    assert len(found) == 6
    for window, ax in zip(found, axes.flat, strict=True):
        assert covers(window, ax.get_tightbbox(), fig)
    beside = [shared_axes(fig, window) for window in found]
    # which of them miss numbers at the left, below
    missing = [(left is not None, below is not None) for left, below in beside]
    assert missing == [(x > 0, y == 0) for y in (0, 1) for x in (0, 1, 2)]
    scale, top = 72 / fig.dpi, 72 * fig.get_figheight()
    for column, (_, (start, height)) in enumerate(beside[:3]):
        under = axes[1, column]
        # below the marks, and below the last number of the y axis
        assert 4 < start - (top - under.bbox.y0 * scale) < 9
        numbers = under.xaxis.get_tightbbox(fig.canvas.get_renderer())
        assert start + height >= top - numbers.y0 * scale
    # titles over the columns alone: what stands below one belongs to it
    for ax in axes[1]:
        ax.set_title("")
    assert len(laid_out(fig)) == 3


def test_numbers_of_a_panel_below_are_drawn_under_it(shown):
    fig, axes = plt.subplots(2, 2, sharex=True, sharey=True)
    for ax in axes.flat:
        ax.set_title("t")
    figures.show(fig, caption="c", alt="a")
    panels = shown[0].split('class="cd-panel"')[1:]
    assert [len(re.findall("<use", panel)) for panel in panels] == [2, 3, 1, 2]
    box, part = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', panels[0]), panels[0][-400:]
    place, below = map(
        float, re.search(r' y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', part).groups()
    )
    assert place + below == pytest.approx(float(box[2]), abs=0.11)
