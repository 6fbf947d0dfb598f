"""The colours, in both modes."""

import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb, to_rgba

from cdelta import figures
from cdelta.figures.style import LINES_ONLY, THEMED
from tests.figures.samples import PALETTE, STYLE, everything, style_colours


def luminance(color):
    channels = np.array(to_rgb(color))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize(("theme", "page"), [("light", "#ffffff"), ("dark", "#121212")])
def test_lines_stand_out_in_both_modes(theme, page):
    colours = style_colours(theme)
    assert colours.pop("--cd-paper") == page
    assert len(colours) == len(PALETTE)
    for name, color in colours.items():
        dark, light = sorted([luminance(color), luminance(page)])
        contrast = (light + 0.05) / (dark + 0.05)
        assert contrast >= 3, name
        lines_only = style_colours("light")[name] in LINES_ONLY
        assert contrast >= 4.5 or lines_only, name
        # and no colour is kept from text for nothing
        assert contrast < 4.5 or not lines_only or theme == "dark", name


@pytest.mark.parametrize("color", LINES_ONLY)
def test_words_are_not_written_in_a_colour_for_lines(color):
    fig, ax = plt.subplots()
    ax.plot([0, 1], color=color)
    figures.show(fig, caption="A line.", alt="A line.")
    fig, ax = plt.subplots()
    ax.text(0, 0, "a word", color=color)
    with pytest.raises(ValueError, match=r"contrast of 4\.5 .*'a word'"):
        figures.show(fig, caption="A word.", alt="A word.")
    fig, ax = plt.subplots()
    ax.tick_params(labelcolor=color)
    with pytest.raises(ValueError, match=r"contrast of 4\.5 "):
        figures.show(fig, caption="Labels.", alt="Labels.")


def test_a_sign_is_a_hue_a_size_an_opacity_and_zero_the_page():
    for colours, ends in (
        (figures.DIVERGING, {0.0: (figures.BLUE, 1), 0.4999: (figures.BLUE, 0),
                             0.5001: (figures.RED, 0), 1.0: (figures.RED, 1)}),
        (figures.SEQUENTIAL, {0.0: (figures.BLUE, 0), 1.0: (figures.BLUE, 1)}),
    ):  # fmt: skip
        for place, (hue, opacity) in ends.items():
            np.testing.assert_allclose(colours(place), to_rgba(hue, opacity), atol=0.01)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_a_faint_value_is_seen_on_a_dark_page_and_a_larger_one_is_lighter(end):
    """As a browser composes what the style sheet's filter makes of a heat map."""
    number = r"([\d.]+)"
    numbers = re.search(
        rf"--cd-raster: contrast\({number}\) brightness\({number}\) "
        rf"drop-shadow\(0 0 0 rgb\(255 255 255 / {number}\)\);",
        STYLE.read_text("utf-8"),
    )
    contrast, brightness, light = map(float, numbers.groups())
    page, found = np.array(to_rgb(style_colours("dark")["--cd-paper"])), []
    for size in np.linspace(0, 1, 21):
        *color, opacity = figures.DIVERGING(0.5 + (end - 0.5) * size)
        color = np.clip(brightness * (contrast * (np.array(color) - 0.5) + 0.5), 0, 1)
        behind = light * opacity + (1 - light * opacity) * page
        found.append(luminance(opacity * color + (1 - opacity) * behind))
    assert found[0] == pytest.approx(luminance(page), abs=1e-3)
    assert (np.diff(found) > 0).all()
    assert (found[3] + 0.05) / (found[0] + 0.05) > 1.5  # a size of 0.15


def test_a_colour_has_one_name_which_the_style_sheet_gives_it():
    names = {re.match(r"var\((--cd-\w+), ", THEMED[color])[1]: color for color in PALETTE}
    colours = style_colours("light")
    assert names == {name: colours[name] for name in names} and len(names) == len(PALETTE)


def test_a_figure_is_written_alike_each_time():
    first, second = io.StringIO(), io.StringIO()
    for file in (first, second):
        everything().savefig(file, format="svg", metadata={"Date": None})
    assert first.getvalue() == second.getvalue()
