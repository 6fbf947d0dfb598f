"""The figures' HTML: themed, described, the same every time; and a slider that moves, in a real
browser."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import jax.numpy as jnp
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest

from cdelta import figures

STYLE = Path(__file__).parent.parent / "book" / "_static" / "figures.css"
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
PALETTE = [
    figures.BLUE,
    figures.ORANGE,
    figures.GREEN,
    figures.RED,
    figures.PURPLE,
    figures.SKY,
    figures.MUTED,
]


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        figures.use()
        yield
        plt.close("all")


@pytest.fixture
def shown(monkeypatch):
    """The HTML of every figure displayed in the test."""
    pages = []
    monkeypatch.setattr(figures, "display", lambda bundle, raw: pages.append(bundle["text/html"]))
    return pages


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


def test_the_page_is_one_described_figure(shown):
    figures.show(everything(), caption=r"See \(\Sigma\), <b>bold</b>.", alt='lines & "signs" < 3')
    figure = root(re.sub(r"<figcaption.*</figcaption>", "", shown[0]))
    svg = figure.find(".//{http://www.w3.org/2000/svg}svg")
    assert (
        figure.tag == "figure"
        and svg.get("role") == "img"
        and svg.get("aria-label") == 'lines & "signs" < 3'
    )
    assert (
        r'<figcaption class="mathjax_process tex2jax_process">See \(\Sigma\), <b>bold</b>.</figcaption>'
        in shown[0]
    )
    assert not re.search(
        r"<\?xml|<!DOCTYPE|<metadata|<style|xlink|https?://(?!www\.w3\.org/2000/svg)", shown[0]
    )


def test_every_colour_is_themed(shown):
    figures.show(everything(), caption="c", alt="a")
    bare = re.sub(
        r"var\(--cd-\w+, (var\(--jp-layout-color0, )?#[0-9a-f]{6}\)+|url\(#[^)]*\)", "", shown[0]
    )
    bare = re.sub(r'(href|id)="[^"]*"', "", bare)
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b", bare) == []
    assert "currentColor" in shown[0]
    assert {f"--cd-{name}" for name in re.findall(r"var\(--cd-(\w+)", shown[0])} == set(
        style_colours("light")
    )


def test_ids_are_unique_on_a_page_and_all_references_resolve(shown):
    figures.show(everything(), caption="c", alt="a")
    figures.show(everything(shift=0.1), caption="c", alt="a")
    small()
    page = "".join(shown)
    ids = re.findall(r'\bid="([^"]*)"', page)
    references = re.findall(r'(?:url\(#|href="#)([^")]+)', page)
    assert len(ids) == len(set(ids)) and len(references) > 20
    assert set(references) <= set(ids)


def test_the_same_figure_gives_the_same_bytes(shown):
    for _ in range(2):
        figures.show(everything(), caption="c", alt="a")
        small()
    assert shown[0] == shown[2] and shown[1] == shown[3]


def test_the_figure_is_closed_when_shown(shown):
    fig = everything()
    figures.show(fig, caption="c", alt="a")
    assert not plt.fignum_exists(fig.number)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("missing", [{"caption": ""}, {"alt": "  "}, {"alt": None}])
def test_a_figure_without_words_is_refused(missing, shown):
    texts = {"caption": "c", "alt": "a"} | missing
    with pytest.raises(ValueError, match=f"{next(iter(missing))} must say"):
        figures.show(everything(), **texts)
    with pytest.raises(ValueError, match=f"{next(iter(missing))} must say"):
        small(**texts)
    assert shown == []


def test_images_keep_their_own_pixels(shown):
    fig, axes = plt.subplots(1, 3)
    figures.images(axes, jnp.arange(2 * 5 * 7).reshape(2, 5, 7), ["one", "two"])
    figures.show(fig, caption="c", alt="a")
    pictures = re.findall(r"<image[^>]*>", shown[0])
    assert len(pictures) == 2
    assert all(
        'width="7"' in tag and 'height="5"' in tag and "image-rendering:pixelated" in tag
        for tag in pictures
    )
    assert all('href="data:image/png;base64,' in tag for tag in pictures)


# ---- both modes


def style_colours(theme):
    block = re.search({"light": r"html \{(.*?)\}", "dark": r'html\[data-theme="dark"\] \{(.*?)\}'}[theme],
                      STYLE.read_text(), re.S)[1]  # fmt: skip
    return dict(re.findall(r"(--cd-\w+): (#\w{6});", block))


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


# ---- what moves


def frames(page):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])


def test_frames_lie_where_the_data_says(shown):
    """Ratios of distances in the drawing are those of the data, and y points up."""
    small()
    points, arrows, areas = frames(shown[0])["d"]
    x = [int(re.match(r"M(-?\d+)", path)[1]) for path in points]
    assert (x[2] - x[0]) / (x[1] - x[0]) == pytest.approx((8 - 2) / (4 - 2), abs=2e-3)
    rise = [int(re.match(r"M-?\d+ -?\d+l-?\d+[ -](\d+)", path)[1]) for path in arrows]
    assert (rise[2] / rise[0], rise[1] / rise[0]) == pytest.approx((8, 2), abs=0.02)
    assert all(path.endswith("z") for path in areas)
    # the vertical scale is that of the axes' ticks: a frame's point at y = 5 lies at the middle of
    # the clip rectangle
    top, height = (
        float(v)
        for v in re.search(
            r'<rect x="[^"]+" y="([^"]+)" width="[^"]+" height="([^"]+)"', shown[0]
        ).groups()
    )
    assert int(re.match(r"M-?\d+ (\d+)", points[0])[1]) / 10 == pytest.approx(
        top + height / 2, abs=0.06
    )


def test_the_first_frame_needs_no_script(shown):
    small(start=2)
    path = re.search(r'<path id="[^"]*-path-0"[^>]* d="([^"]*)"', shown[0])[1]
    assert path == frames(shown[0])["d"][0][2]
    assert '<div class="cd-controls" hidden>' in shown[0]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"values": [0.0, 1.0], "start": 0}, "one frame for each of the 2 values, got 3"),
        ({"values": [0.0]}, "at least two"),
        ({"readout": ["one"]}, "one text for each of the 3"),
        ({"start": 3}, "from 0 to 2, got 3"),
    ],
)
def test_frames_that_do_not_match_are_refused(wrong, message, shown):
    with pytest.raises(ValueError, match=message):
        small(**wrong)
    assert shown == []


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("kind", "frame", "message"),
    [
        ("points", [1.0, 2.0], r"\[n, 2\], got \(2,\)"),
        ("arrows", [[1.0, 2.0]], r"\[n, 2, 2\], got \(1, 2\)"),
        ("line", [[1.0, np.nan]], "finite"),
        ("dots", [[1.0, 2.0]], "kind must be one of"),
    ],
)
def test_layers_that_cannot_be_drawn_are_refused(kind, frame, message, shown):
    fig, ax = plt.subplots()
    with pytest.raises(ValueError, match=message):
        figures.movable(
            fig, [figures.Layer(ax, kind, [frame] * 2)], [0, 1], label="t", caption="c", alt="a"
        )
    assert shown == []


def test_a_figure_too_large_is_refused(shown):
    fig, ax = plt.subplots()
    noise = np.random.default_rng(0).normal(size=(20, 4000, 2))
    with pytest.raises(ValueError, match="may take 400000 bytes"):
        figures.movable(
            fig, [figures.Layer(ax, "points", noise)], range(20), label="t", caption="c", alt="a"
        )
    assert shown == []


def test_the_slider_moves_the_figure_in_a_browser(shown, tmp_path):
    assert CHROMIUM, "this test needs a Chromium, as the README says"
    small(readout=["first", "second", "the <third>"])
    script = """
    const figure = document.querySelector("figure"), slider = figure.querySelector("input"), seen = [];
    const state = () => seen.push({d: [...figure.querySelectorAll("svg path[id]")].filter(p => /-path-\\d+$/.test(p.id))
      .map(p => p.getAttribute("d")), text: figure.querySelector("output").textContent, value: slider.value,
      spoken: slider.getAttribute("aria-valuetext"), shown: !figure.querySelector(".cd-controls").hidden});
    state();
    slider.value = 2; slider.dispatchEvent(new Event("input")); state();
    const play = figure.querySelector("button");
    play.click(); seen.push(play.getAttribute("aria-label"));
    setTimeout(() => { state(); seen.push(play.getAttribute("aria-label"));
      const out = document.createElement("pre"); out.id = "seen"; out.textContent = JSON.stringify(seen);
      document.body.append(out); }, 2000);
    """
    page = tmp_path / "page.html"
    page.write_text(
        f"<!doctype html><meta charset=utf-8><body>{shown[0]}<script>{script}</script>",
        encoding="utf-8",
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += [f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run(
        [CHROMIUM, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    seen = json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', done.stdout)[1]))
    paths = np.array(frames(shown[0])["d"])
    before, after, playing, ended, stopped = seen
    assert before["shown"] and before["d"] == list(paths[:, 1]) and before["text"] == "second"
    assert after["d"] == list(paths[:, 2]) and after["text"] == after["spoken"] == "the <third>"
    # play starts again from the first frame, and stops by itself at the last
    assert (playing, stopped) == ("Pause", "Play")
    assert ended["value"] == "2" and ended["d"] == list(paths[:, 2])


def test_moving_ellipses_are_images_of_the_circle(shown):
    """Each drawn arc's centre, half-axes and direction give back J Jᵀ, whatever the axes'
    scales."""
    fig, ax = plt.subplots(figsize=(5, 2))
    ax.set(xlim=(-4, 4), ylim=(-4, 4))
    linear = np.array([[[1.0, 2.0], [0.0, 1.0]], [[-1.0, 0.5], [0.7, 2.0]]])
    centres = np.array([[0.5, -1.0], [-1.0, 1.0]])
    frame = np.concatenate([centres[:, None], np.swapaxes(linear, 1, 2)], 1)
    figures.movable(
        fig, [figures.Layer(ax, "ellipses", [frame] * 2)], [0, 1], label="t", caption="c", alt="a"
    )
    width, height = (
        float(v)
        for v in re.search(r'<rect[^>]*width="([^"]+)" height="([^"]+)"', shown[0]).groups()
    )
    scale = np.diag([10 * width / 8, -10 * height / 8])  # data to tenths of a point, y down
    path, middles = frames(shown[0])["d"][0][0], []
    for number, arc in enumerate(
        re.findall(r"M(\S+) (\S+?)a(\d+) (\d+) (-?\d+) 00(-?\d+) ?(-?\d+)a", path)
    ):
        x, y, long, short, degrees, across, down = map(float, arc)
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn = np.array([[c, -s], [s, c]])
        drawn = turn @ np.diag([long**2, short**2]) @ turn.T
        image = scale @ linear[number]
        np.testing.assert_allclose(drawn, image @ image.T, atol=0.03 * long**2)
        middles.append(np.array([x + across / 2, y + down / 2]))
    np.testing.assert_allclose(middles[1] - middles[0], scale @ (centres[1] - centres[0]), atol=2)


# ---- plots


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


def test_a_table_holds_its_cells_and_refuses_ragged_rows(shown):
    figures.table(
        ["map", "J"], [["one", figures.tex([[1, -0.0], [0.256, 2]])]], caption=r"See \(J\)."
    )
    cells = [cell.text for cell in root(shown[0]).iter() if cell.tag in ("th", "td", "caption")]
    assert cells == [
        r"See \(J\).",
        "map",
        "J",
        "one",
        r"\(\begin{pmatrix}1.00 & 0.00 \\ 0.26 & 2.00\end{pmatrix}\)",
    ]
    with pytest.raises(ValueError, match="the header's 2 cells, got 1"):
        figures.table(["a", "b"], [["c"]], caption="c")
