"""The colours, in both modes."""

import numpy as np
import pytest

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
        assert (light + 0.05) / (dark + 0.05) >= 3, name
