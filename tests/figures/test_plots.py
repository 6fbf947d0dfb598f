"""The few plots that chapters share."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from cdelta import figures


def test_an_ellipse_is_at_its_distance():
    rng = np.random.default_rng(1)
    factor = rng.normal(size=(5, 2, 2))
    cov, mean = factor @ np.swapaxes(factor, -1, -2), rng.normal(size=(5, 2))
    offset = figures.ellipse_points(mean, cov, nsigma=3.0, points=17) - mean[:, None]
    distance = np.einsum("kpi,kij,kpj->kp", offset, np.linalg.inv(cov), offset)
    np.testing.assert_allclose(distance, 9.0, rtol=1e-9)


def test_a_matrix_shows_its_numbers_and_refuses_wrong_labels():
    _, ax = plt.subplots()
    image = figures.matrix(ax, [[1.0, -2.0]], stderr=[[0.1, 0.2]], form=".1f")
    assert [text.get_text() for text in ax.texts] == ["1.0\n±0.1", "−2.0\n±0.2"]
    assert image.get_clim() == (-2.0, 2.0)
    assert image.cmap(0.5)[3] < 0.01 and image.cmap(0.0)[3] == image.cmap(1.0)[3] == 1
    with pytest.raises(ValueError, match="labels must name"):
        figures.matrix(ax, np.eye(3), ["a"])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("stack", "titles"),
    [(np.zeros((5, 5)), None), (np.zeros((3, 5, 5)), None), (np.ones((1, 2, 2)), ["a", "b"])],
)
def test_images_that_do_not_fit_are_refused(stack, titles):
    _, axes = plt.subplots(1, 2)
    with pytest.raises(ValueError, match=r"stack must be|titles must have"):
        figures.images(axes, stack, titles)


def test_arrows_have_the_length_of_their_vectors():
    _, ax = plt.subplots()
    ax.set(xlim=(0, 4), ylim=(0, 2))
    quiver = figures.arrows(ax, [[1.0, 1.0]], [[2.0, 0.5]], scale=0.5)
    np.testing.assert_allclose([quiver.U, quiver.V], [[1.0], [0.25]])
    assert (quiver.angles, quiver.scale_units, quiver.scale) == ("xy", "xy", 1)


def test_numbers_stand_in_their_cells_and_images_on_one_scale():
    _, ax = plt.subplots()
    values = np.array([[1.0, 2], [3, 4]])
    figures.matrix(ax, values, stderr=values / 10, form=".1f")
    for text in ax.texts:
        column, row = text.get_position()
        value = values[row, column]
        assert text.get_text() == f"{value:.1f}\n±{value / 10:.1f}"
    _, axes = plt.subplots(1, 2)
    stack = np.array([[[0.0, 1]], [[2, 3]]])
    figures.images(axes, stack)
    assert [ax.get_images()[0].get_clim() for ax in axes] == [(0, 3)] * 2
    _, axes = plt.subplots(1, 2)
    figures.images(axes, stack - 1, diverging=True)
    assert [ax.get_images()[0].get_clim() for ax in axes] == [(-2, 2)] * 2


def test_blocks_cover_a_mask_once():
    """Painting the rectangles gives the mask back, each pixel once; a block is one rectangle."""
    rng = np.random.default_rng(0)
    for density in (0.0, 0.3, 0.7, 1.0):
        mask = rng.random((9, 7)) < density
        painted = np.zeros(mask.shape, int)
        for corners in figures.blocks(mask) + 0.5:
            (left, top), (right, bottom) = corners.min(0).astype(int), corners.max(0).astype(int)
            painted[top:bottom, left:right] += 1
        np.testing.assert_array_equal(painted, mask)
    assert figures.blocks(np.ones((4, 5))).tolist() == [
        [[-0.5, -0.5], [4.5, -0.5], [4.5, 3.5], [-0.5, 3.5]]
    ]
    with pytest.raises(ValueError, match=r"\[height, width\], got shape \(3,\)"):
        figures.blocks(np.ones(3))


def test_circles_are_a_centre_and_the_columns_of_a_matrix():
    """With a root of a covariance: the ellipse that is drawn of it."""
    cov = np.array([[2.0, 0.6], [0.6, 0.5]])
    centre, *halves = figures.circles([1.0, -1.0], 2 * np.linalg.cholesky(cov))
    turn = np.linspace(0, 2 * np.pi, 7)
    curve = centre + np.outer(np.cos(turn), halves[0]) + np.outer(np.sin(turn), halves[1])
    off = curve - [1.0, -1.0]
    np.testing.assert_allclose(
        np.einsum("ni,ij,nj->n", off, np.linalg.inv(cov), off), 4, rtol=0, atol=1e-12
    )
    matrices = np.arange(24.0).reshape(3, 2, 2, 2)
    many = figures.circles(np.array([[0.0, 0.0], [5.0, 6.0]]), matrices)
    assert many.shape == (3, 2, 3, 2) and many[2, 1, 0].tolist() == [5, 6]
    assert many[2, 1, 1].tolist() == [20, 22]  # a column


def test_a_map_shows_each_value_at_its_point():
    """Where a point lies, the picture has its value: the pixels' middles, which fill the square."""
    points = figures.square(2, 5)
    assert points.shape == (25, 2) and np.abs(points).max() == 2
    _, (ax, coloured) = plt.subplots(1, 2)
    image = figures.heat(ax, 10 * points[:, 0] + points[:, 1], 2)
    for x, y in 0.8 * points:  # n - 1 of n pixels
        at = SimpleNamespace(x=0, y=0, inaxes=ax)
        at.x, at.y = ax.transData.transform((x, y))
        assert image.get_cursor_data(at) == pytest.approx(10 * x / 0.8 + y / 0.8)
    rgba = figures.heat(coloured, np.ones((25, 4)), 2, interpolation="nearest")
    assert rgba.get_array().shape == (5, 5, 4) and rgba.get_interpolation() == "nearest"
    with pytest.raises(ValueError, match="n x n points, got 24"):
        figures.heat(ax, points[1:, 0], 2)


def test_panels_have_letters_beside_their_titles():
    fig, axes = plt.subplots(1, 3)
    axes[1].set_title("a title")
    figures.letter(*axes)
    assert [ax.get_title(loc="left") for ax in axes] == ["a", "b", "c"]
    assert axes[1].get_title() == "a title"
    fig.draw_without_rendering()
    for ax in axes:  # over its own panel, from its left edge on
        assert ax._left_title.get_window_extent().x0 == pytest.approx(ax.bbox.x0, abs=1)


def test_panels_with_letters_begin_at_one_height_and_a_colour_bar_is_beside_its_map():
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.7))
    axes[0].set(aspect="equal", xlim=(0, 1), ylim=(0, 0.5))
    bar = figures.colorbar(figures.heat(axes[1], np.arange(4.0), 1), axes[1])
    figures.letter(*axes)
    fig.draw_without_rendering()
    fig.draw_without_rendering()
    tops = [ax.get_position().y1 for ax in axes]
    assert tops == pytest.approx([tops[0]] * 3)
    lows = [ax.get_position().y0 for ax in axes]
    assert lows[0] > lows[1] + 0.1 and lows[1] > lows[2] + 0.1  # each keeps its shape
    middles = [np.mean(ax.get_position().intervaly) for ax in (axes[1], bar.ax)]
    assert middles[0] == pytest.approx(middles[1])


def test_one_panel_needs_no_letter():
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="2 to 26 panels"):
        figures.letter(ax)


def test_dots_stand_in_rows_from_the_top():
    _, ax = plt.subplots()
    rows = {"a": (0.5, 0.1), "b": (-2.0, 0.25)}
    figures.dots(ax, rows, colors=[figures.RED, figures.BLUE], marks="os", label="mine")
    figures.dots(ax, rows, shift=0.2, label="theirs")
    lines = [bar.lines[0] for bar in ax.containers]
    at = np.array([line.get_xydata()[0] for line in lines])
    np.testing.assert_allclose(at, [[0.5, 0], [-2, 1], [0.5, 0.2], [-2, 1.2]])
    ends = [bar.lines[2][0].get_segments()[0][:, 0] for bar in ax.containers]
    np.testing.assert_allclose(ends[:2], [[0.4, 0.6], [-2.25, -1.75]])
    style = [(line.get_color(), line.get_marker()) for line in lines]
    assert style == [(figures.RED, "o"), (figures.BLUE, "s"), *[(figures.BLUE, "o")] * 2]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first row is on top
    assert ax.get_legend_handles_labels()[1] == ["mine", "theirs"]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({}, {}, "rows must hold one"),
        ({"a": (0, 0)}, {"marks": "os"}, "marks must be one .* the 1 rows, got 2"),
        ({"a": (0, 0)}, {"colors": ["red"] * 3}, "colors must be one .* got 3"),
    ],
)
def test_dots_that_do_not_fit_are_refused(rows, options, message):
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match=message):
        figures.dots(ax, rows, **options)


def test_a_sheet_has_every_image_at_its_place():
    _, ax = plt.subplots()
    stack = np.random.default_rng(0).uniform(-1, 1, size=(5, 3, 4))
    image = figures.sheet(ax, stack, 2, title="five", gap=1)
    page = np.asarray(image.get_array().filled(np.nan))
    assert page.shape == (3 * 3 + 2, 2 * 4 + 1) and image.get_clim() == (-1, 1)
    for number, picture in enumerate(stack):
        top, left = number // 2 * 4, number % 2 * 5
        np.testing.assert_array_equal(page[top : top + 3, left : left + 4], picture)
    assert np.isnan(page[3]).all() and np.isnan(page[:, 4]).all() and np.isnan(page[8:, 5:]).all()
    assert np.isfinite(page).sum() == stack.size
    assert ax.get_title() == "five"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("stack", "columns"), [(np.ones((2, 2)), 1), (np.ones((0, 2, 2)), 1), (np.ones((1, 2, 2)), 0)]
)
def test_a_sheet_needs_images(stack, columns):
    with pytest.raises(ValueError, match="stack must be"):
        figures.sheet(plt.subplots()[1], stack, columns)


def labels_of(ax):
    return [
        [tick.get_text() for tick in ticks if tick.get_text()]
        for ticks in (ax.get_xticklabels(), ax.get_yticklabels())
    ]


def test_correlations_stand_on_one_scale_without_their_diagonals():
    _, axes = plt.subplots(2, 2)
    matrices = {
        name: np.full((2, 2), value)
        for name, value in zip("abcd", (1.0, -0.5, np.nan, 0.2), strict=True)
    }
    image = figures.correlations(axes, matrices, ["ink", "width"], limit=0.7)
    values = [np.asarray(ax.get_images()[0].get_array()) for ax in axes.flat]
    np.testing.assert_array_equal(values[0], [[0, 1], [1, 0]])
    np.testing.assert_array_equal(values[2], np.zeros((2, 2)))
    assert {ax.get_images()[0].get_clim() for ax in axes.flat} == {(-0.7, 0.7)}
    assert [ax.get_title() for ax in axes.flat] == list("abcd") and image is axes[
        1, 1
    ].get_images()[0]
    names = ["ink", "width"]
    assert [labels_of(ax) for ax in axes.flat] == [
        [[], names],
        [[], []],
        [names, names],
        [names, []],
    ]
    assert axes[1, 0].get_xticklabels()[0].get_rotation() == 90
    assert matrices["a"][0, 0] == 1  # the caller's stays what it was
    _, axes = plt.subplots(1, 2)
    figures.correlations(axes, dict.fromkeys("ab", np.eye(2)), ["0", "1"], outer=False)
    assert [labels_of(ax) for ax in axes] == [[["0", "1"]] * 2] * 2
    assert axes[0].get_xticklabels()[0].get_rotation() == 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("panels", "message"),
    [
        ({}, "panels must be 1 to 1"),
        ({"a": np.eye(3)}, "matrices of the 2 features"),
        (dict.fromkeys("ab", np.eye(2)), "panels must be 1 to 1"),
    ],
)
def test_correlations_need_a_panel_for_each(panels, message):
    with pytest.raises(ValueError, match=message):
        figures.correlations(plt.subplots()[1], panels, ["a", "b"])
