"""The figures that the tests display, and how a test reads a page."""

import json
import re
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np

from cdelta import figures
from tests import ROOT

STYLE = ROOT / "book" / "_static" / "figures.css"
PALETTE = [
    figures.BLUE,
    figures.ORANGE,
    figures.GREEN,
    figures.RED,
    figures.PURPLE,
    figures.SKY,
    figures.MUTED,
]


def everything(shift=0.0):
    """A figure with every colour, text, a clip path, markers, a legend, a filled patch and an
    image."""
    fig, axes = plt.subplots(1, 2)
    x = np.linspace(0, 3, 20)
    for number, color in enumerate(PALETTE):
        axes[0].plot(
            x,
            np.sin(x + number + shift),
            "o-",
            color=color,
            mfc=figures.PAPER,
            label=f"$y_{number}$",
        )
    figures.ellipse(axes[0], [1.0, 0.0], [[1.0, 0.5], [0.5, 1.0]], fill=True, facecolor=figures.SKY)
    axes[0].legend()
    figures.matrix(axes[1], [[1.0, -0.5], [0.25, 0.0]], ["a", "b"])
    return fig


def small(**changes):
    """A movable figure of three frames: a point that goes right, and an arrow and a line that
    rise."""
    fig, ax = plt.subplots()
    ax.set(xlim=(0, 10), ylim=(0, 10))
    layers = [
        figures.Layer(ax, "points", [[[x, 5.0]] for x in (2.0, 4.0, 8.0)], figures.RED, 6),
        figures.Layer(ax, "arrows", [[[[1.0, 1.0], [1.0, y]]] for y in (2.0, 3.0, 9.0)]),
        figures.Layer(
            ax, "area", [[[1.0, y], [2.0, y], [2.0, y + 1]] for y in (2.0, 3.0, 8.0)], alpha=0.4
        ),
    ]
    settings = {
        "label": "t",
        "caption": "It moves.",
        "alt": "a point and an arrow",
        "start": 1,
        **changes,
    }
    figures.movable(fig, layers, settings.pop("values", [0.0, 0.5, 1.0]), **settings)
    return ax


def root(page):
    """The page's figure as an element tree: it must be well-formed XML, which HTML accepts as
    well."""
    return ElementTree.fromstring(page.replace(" hidden>", ' hidden="">').replace(" & ", " &amp; "))


def frames(page):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])


def style_colours(theme):
    opening = {"light": r"html \{", "dark": r'html\[data-theme="dark"\] \{'}[theme]
    block = re.search(opening + r"(.*?)\}", STYLE.read_text("utf-8"), re.S)[1]
    return dict(re.findall(r"(--cd-\w+): (#\w{6});", block))
