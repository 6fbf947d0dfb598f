"""A slider that moves: the frames that were computed, and in a real browser."""

import base64
import html
import json
import re
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

import cdelta
from cdelta import figures
from tests import ROOT
from tests.figures.samples import frames, small

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


def seen_in_browser(figure, script, tmp_path):
    """What the script leaves in ``pre#seen``, of the figure on a page in a real browser."""
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><body>{figure}<script>{script}</script>")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += [f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=3000", "--dump-dom"]
    done = subprocess.run(
        [CHROMIUM, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', done.stdout)[1]))


def test_frames_lie_where_the_data_says(shown):
    """Ratios of distances in the drawing are those of the data, and y points up."""
    small()
    points, arrows, areas = frames(shown[0])["d"]
    x = [int(re.match(r"M(-?\d+)", path)[1]) for path in points]
    # (8 - 2) / (4 - 2) = 3, and each place is rounded by at most half a unit
    assert abs(x[2] - x[0] - 3 * (x[1] - x[0])) <= 0.5 + 2 * 0.5 + 3 * 0.5 < 0.01 * (x[1] - x[0])
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


SCRIPT = Path(cdelta.__file__).parent / "figures" / "slider.js"


def test_the_script_is_sound_as_it_lies_and_as_it_is_shown(shown, tmp_path):
    """Comments and indentation are cut for the page: what is left must be the same program. The
    linter finds a name that nothing defines, and half a program."""
    small()
    code = re.search(r"<script>(.*?)</script>", shown[0], re.S)[1]
    linter = [Path(sys.executable).with_name("oxlint"), "--config", ROOT / ".oxlintrc.json"]

    def faults(code):
        file = tmp_path / "shown.js"
        file.write_text(code, "utf-8")
        done = subprocess.run(
            [*linter, "--deny-warnings", "--format", "json", file], capture_output=True, text=True
        )
        return [found["message"] for found in json.loads(done.stdout)["diagnostics"]]

    assert faults(SCRIPT.read_text("utf-8")) == faults(code) == []
    assert ["'nobody' is not defined."] == faults(f"{code}\nnobody();")
    assert faults(code[: len(code) // 2])


def test_the_page_holds_the_script_whole(shown):
    small()
    code = re.sub(r"^ *//.*\n", "", SCRIPT.read_text("utf-8"), flags=re.M)
    prefix = re.search(r'<figure [^>]*id="([^"]*)"', shown[0])[1]
    page = re.search(r"<script>(.*?)</script>", shown[0], re.S)[1]
    assert page.split() == code.replace("PREFIX", prefix).split()


def test_the_slider_moves_the_figure_in_a_browser(shown, tmp_path):
    assert CHROMIUM, "this test needs a Chromium, as the README says"
    small(readout=["first", "second", "the <third>"])
    script = r"""
    const figure = document.querySelector("figure"), slider = figure.querySelector("input");
    const play = figure.querySelector("button"), output = figure.querySelector("output");
    const paths = [...figure.querySelectorAll("svg path[id]")];
    const layers = paths.filter(p => /-path-\d+$/.test(p.id));
    const seen = [];
    const state = () => seen.push({
      d: layers.map(p => p.getAttribute("d")), text: output.textContent, value: slider.value,
      spoken: slider.getAttribute("aria-valuetext"),
      shown: !figure.querySelector(".cd-controls").hidden,
    });
    const label = () => seen.push(play.getAttribute("aria-label"));
    state();
    slider.value = 2; slider.dispatchEvent(new Event("input")); state();
    play.click(); label();
    setTimeout(() => {
      state(); label();
      const out = document.createElement("pre");
      out.id = "seen"; out.textContent = JSON.stringify(seen);
      document.body.append(out);
    }, 2000);
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


def switched(**changes):
    """A point of two frames, and the same twice as high when the box is ticked."""
    fig, ax = plt.subplots()
    ax.set(xlim=(0, 10), ylim=(0, 10))
    points = [[[x, y]] for y in (4.0, 8.0) for x in (2.0, 6.0)]
    options = {"label": "t", "caption": "c", "alt": "a", "switch": "hold <it>", **changes}
    figures.movable(fig, [figures.Layer(ax, "points", points)], [0, 1], **options)


def test_a_switch_shows_the_second_half_of_the_frames(shown, tmp_path):
    assert CHROMIUM, "this test needs a Chromium, as the README says"
    switched(readout=["a", "b", "a held", "b held"])
    assert "<span>hold &lt;it&gt;</span>" in shown[0] and 'max="1"' in shown[0]
    script = r"""
    const find = name => document.querySelector("figure " + name), seen = [];
    const path = find("path[id$=path-0]"), text = find("output");
    const state = () => seen.push([path.getAttribute("d"), text.textContent]);
    const slider = find("input[type=range]"), box = find("input[type=checkbox]");
    state();
    box.click(); state();
    slider.value = 1; slider.dispatchEvent(new Event("input")); state();
    box.click(); state();
    const out = document.createElement("pre");
    out.id = "seen"; out.textContent = JSON.stringify(seen);
    document.body.append(out);
    """
    seen = seen_in_browser(shown[0], script, tmp_path)
    (paths,), texts = (frames(shown[0])[name] for name in ("d", "text"))
    assert seen == [[paths[i], texts[i]] for i in (0, 2, 3, 1)] and len(set(paths)) == 4


@pytest.mark.usefixtures("unchecked")
def test_a_switch_needs_twice_the_frames(shown):
    with pytest.raises(ValueError, match="each of the 2 values, got 4"):
        switched(switch=None)
    with pytest.raises(ValueError, match="one text for each of the 2 values, off and on, got 2"):
        switched(readout=["a", "b"])
    assert shown == []


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


def pictured(frames, **changes):
    """A figure of one layer, a picture."""
    fig, ax = plt.subplots()
    options = {"label": "t", "caption": "c", "alt": "a", **changes}
    figures.movable(fig, [figures.Layer(ax, "picture", frames)], range(len(frames)), **options)


def image_of(address):
    """What a page's image shows, [height, width, channels], from 0 to 1."""
    kind, data = address.removeprefix("data:image/").split(";base64,")
    image = Image.open(BytesIO(base64.b64decode(data)))
    assert image.format.lower() == kind
    return np.asarray(image, float) / 255


def test_pictures_show_colours_and_signed_values(shown):
    """Colours as they are; two colours whose opacity is the size, and nothing at zero."""
    across = np.linspace(0, 1, 64)
    colours = np.stack(np.broadcast_arrays(across[:, None], across, 0.5), -1)
    pictured([colours, colours[::-1]], start=1)
    first, second = frames(shown[0])["d"][0]
    assert np.abs(image_of(first) - colours).max() < 0.06
    assert np.abs(image_of(second) - colours[::-1]).max() < 0.06
    head = re.search(r'<image id="[^"]*-path-0"[^>]*>', shown[0])[0]
    assert f'href="{second}"' in head and 'class="cd-photograph"' in head

    pictured([np.array([[-1.0, 0.0, 0.4, 1.0]] * 2), np.zeros((2, 4))])
    signed = image_of(frames(shown[1])["d"][0][0])[0]
    assert signed[:, 3] == pytest.approx([1, 0, 0.4, 1], abs=0.02)
    assert signed[[0, 2, 3], :3] == pytest.approx(
        np.array([to_rgb(figures.BLUE), to_rgb(figures.RED), to_rgb(figures.RED)]), abs=0.01
    )
    assert 'class="cd-heat"' in shown[1] and "image-rendering:pixelated" in shown[1]
    assert "image-rendering:pixelated" not in shown[0]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((4, 4, 2)), r"\[height, width, 3\] or \[height, width\], got \(4, 4, 2\)"),
        (np.full((4, 4, 3), -0.5), "values from 0 to 1, got -0.5 to -0.5"),
        (np.full((4, 4), 1.5), "values from -1 to 1, got 1.5"),
        (np.full((4, 4), np.nan), "values from -1 to 1, got nan"),
    ],
)
def test_pictures_that_cannot_be_shown_are_refused(frame, message, shown):
    with pytest.raises(ValueError, match=message):
        pictured([frame, frame])
    assert shown == []


def test_a_picture_moves_in_a_browser(shown, tmp_path):
    assert CHROMIUM, "this test needs a Chromium, as the README says"
    pictured([np.full((4, 4), value) for value in (-1.0, 0.5, 1.0)])
    script = """
    const slider = document.querySelector("input"), image = document.querySelector("svg image[id]");
    const seen = [image.getAttribute("href")];
    slider.value = 2; slider.dispatchEvent(new Event("input"));
    seen.push(image.getAttribute("href"), image.getAttribute("d"));
    document.body.insertAdjacentHTML("beforeend", `<pre id=seen>${JSON.stringify(seen)}</pre>`);
    """
    seen = seen_in_browser(shown[0], script, tmp_path)
    addresses = frames(shown[0])["d"][0]
    assert seen == [addresses[0], addresses[2], None]
