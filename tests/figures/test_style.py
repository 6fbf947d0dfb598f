"""The colours, in both modes."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from cdelta import figures
from cdelta.figures.style import LINES_ONLY
from tests.figures.samples import PALETTE, style_colours


def luminance(color):
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
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
        lines_only = name.removeprefix("--cd-").upper() in {"ORANGE", "GREEN", "SKY"}
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
