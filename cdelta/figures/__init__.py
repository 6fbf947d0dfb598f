r"""The book's figures: one style, one SVG that serves light and dark, a slider, and the few plots
that chapters share.

A figure is drawn by matplotlib with the colours of :mod:`cdelta.figures.style`, and shown as an
inline SVG in which each of them has become a CSS variable (``#0072b2`` becomes
``var(--cd-blue, #0072b2)``, ink becomes ``currentColor``): the page's style sheet,
``book/_static/figures.css``, gives them their values in light and in dark mode.

The same figure gives the same bytes, so that an executed notebook can be compared with the next
one.
"""

from cdelta.figures.moving import LIMIT, Layer, movable
from cdelta.figures.page import quote, show, table, tex
from cdelta.figures.plots import (
    arrows,
    blocks,
    circles,
    colorbar,
    correlations,
    dots,
    ellipse,
    ellipse_points,
    heat,
    images,
    letter,
    matrix,
    sheet,
    square,
)
from cdelta.figures.style import (
    BLUE,
    DIVERGING,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    PURPLE,
    RED,
    SEQUENTIAL,
    SKY,
    WIDTH,
    use,
)

__all__ = [
    "BLUE",
    "DIVERGING",
    "GREEN",
    "INK",
    "LIMIT",
    "MUTED",
    "ORANGE",
    "PAPER",
    "PURPLE",
    "RED",
    "SEQUENTIAL",
    "SKY",
    "WIDTH",
    "Layer",
    "arrows",
    "blocks",
    "circles",
    "colorbar",
    "correlations",
    "dots",
    "ellipse",
    "ellipse_points",
    "heat",
    "images",
    "letter",
    "matrix",
    "movable",
    "quote",
    "sheet",
    "show",
    "square",
    "table",
    "tex",
    "use",
]
