"""The book's look: its colours, their names in the style sheet, and matplotlib's settings."""

import matplotlib as mpl
from cycler import cycler
from matplotlib.colors import LinearSegmentedColormap

# Okabe and Ito's hues, darkened until a line of any of them has a contrast of 3:1 on white
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = (
    "#0072b2",
    "#c98200",
    "#009068",
    "#cc4400",
    "#aa4a85",
    "#2f9bd6",
)
# text and axes; what stays in the background; the page itself
INK, MUTED, PAPER = "#1a1c20", "#6b7280", "#fefefe"

# as text these would have less than the 4.5:1 on white that readers need
LINES_ONLY = (ORANGE, GREEN, SKY)

THEMED = {
    BLUE: f"var(--cd-blue, {BLUE})",
    ORANGE: f"var(--cd-orange, {ORANGE})",
    GREEN: f"var(--cd-green, {GREEN})",
    RED: f"var(--cd-red, {RED})",
    PURPLE: f"var(--cd-purple, {PURPLE})",
    SKY: f"var(--cd-sky, {SKY})",
    MUTED: f"var(--cd-muted, {MUTED})",
    INK: "currentColor",
    PAPER: f"var(--cd-paper, var(--jp-layout-color0, {PAPER}))",
}

# A value's sign is the hue and its size the opacity: zero is the page, whether that is white or
# black
DIVERGING = LinearSegmentedColormap.from_list(
    "cd-diverging", [(0.0, BLUE), (0.5, BLUE + "00"), (0.5, RED + "00"), (1.0, RED)]
)
SEQUENTIAL = LinearSegmentedColormap.from_list("cd-sequential", [BLUE + "00", BLUE])

SMALLEST = 9  # points, of any text in a figure
WIDTH = 7.2  # inches: the page's text width


def use() -> None:
    """Set matplotlib's style for the book; call it once, in a notebook's imports cell."""
    mpl.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.2),
            "figure.constrained_layout.use": True,
            "figure.facecolor": "none",
            "savefig.facecolor": "none",
            "savefig.dpi": 200,  # of what is rasterised inside a figure
            "svg.fonttype": "path",
            "svg.hashsalt": "cdelta",
            "font.family": "DejaVu Sans",  # ships with matplotlib: the same glyphs on every machine
            "mathtext.fontset": "cm",
            "font.size": 10,
            "axes.labelsize": 10.5,
            "axes.titlesize": 10.5,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 9.5,
            "legend.frameon": False,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "axes.titlecolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "patch.edgecolor": INK,
            "hatch.color": INK,
            "axes.facecolor": "none",
            "axes.linewidth": 0.7,
            "xtick.major.width": 0.7,
            "ytick.major.width": 0.7,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": MUTED,
            "grid.linewidth": 0.5,
            "grid.alpha": 0.4,
            "lines.linewidth": 1.6,
            "lines.markersize": 4.5,
            "image.interpolation": "none",  # pixels stay pixels at any zoom
            "image.composite_image": False,
            "image.cmap": "gray",
            "axes.prop_cycle": cycler(color=[BLUE, RED, GREEN, ORANGE, PURPLE, SKY]),
        }
    )
