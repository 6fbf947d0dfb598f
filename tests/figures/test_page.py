"""The figures' HTML: themed, described, the same every time."""

import re

import jax.numpy as jnp
import matplotlib.pyplot as plt
import pytest

from cdelta import figures
from tests.figures.samples import everything, root, small, style_colours


def test_the_page_is_one_described_figure(shown):
    figures.show(everything(), caption=r"See \(\Sigma\), <b>bold</b>.", alt='lines & "signs" < 3')
    figure = root(re.sub(r"<figcaption.*</figcaption>", "", shown[0]))
    svg = figure.find(".//{http://www.w3.org/2000/svg}svg")
    assert (
        figure.tag == "figure"
        and svg.get("role") == "img"
        and svg.get("aria-label") == 'lines & "signs" < 3'
    )
    caption = re.search(r"<figcaption ([^>]*)>(.*)</figcaption>", shown[0]).groups()
    assert caption == (
        'class="mathjax_process tex2jax_process"',
        r"See \(\Sigma\), <b>bold</b>.",
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


def wide():
    """One wide panel, with letters, marks, a legend and a clip path."""
    fig, ax = plt.subplots(figsize=(7.2, 3))
    ax.plot([0, 1, 2], [0, 1, 4], "o-", label="$y_1$")
    ax.set(title="a panel", xlabel="x")
    ax.legend()
    return fig


def text_sizes(svg):
    """In points, of a drawing's words."""
    return [100 * float(size) for size in re.findall(r"scale\(([\d.]+) -[\d.]+\)", svg)]


def test_a_second_drawing_is_narrow_and_hidden_and_adds_no_letters(shown):
    figures.show(wide(), caption="c", alt="what it shows", narrow=(4.4, 3.2))
    figures.show(wide(), caption="d", alt="what it shows")
    first, second = re.findall(r"<svg.*?</svg>", shown[0], re.S)
    sizes = [re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups() for svg in (first, second)]
    assert sizes == [("518.4", "216"), ("316.8", "230.4")]
    # a screen reader meets one of them, and only a style sheet shows the other
    assert shown[0].count("what it shows") == shown[0].count('role="img"') == 1
    assert 'class="cd-whole"' in first and 'class="cd-canvas cd-panels"' in shown[0]
    assert 'class="cd-panel" aria-hidden="true"' in second and 'style="display:none;' in second
    # the same words in the same size, laid out anew
    assert sorted(text_sizes(first)) == sorted(text_sizes(second)) and len(text_sizes(first)) > 9
    assert "<path id=" in first and "<path id=" not in second and "#" in second
    assert len(shown[0]) < 1.75 * len(shown[1])
    assert first.replace("cd-whole", "") != second


def test_a_second_drawing_keeps_ids_unique_and_all_references_resolve(shown):
    for height in (3.0, 3.2):
        figures.show(wide(), caption=f"{height}", alt="a", narrow=(4.4, height))
    page = "".join(shown)
    ids = re.findall(r'\bid="([^"]*)"', page)
    references = re.findall(r'(?:url\(#|href="#)([^")]+)', page)
    assert len(ids) == len(set(ids)) and len(references) > 20
    assert set(references) <= set(ids)
    # each drawing clips what it draws to its own axes
    first, second, *_ = re.findall(r"<svg.*?</svg>", page, re.S)
    clips = [set(re.findall(r"url\(#([^)]+)", svg)) for svg in (first, second)]
    assert clips[0] and clips[1] and not clips[0] & clips[1]


@pytest.mark.parametrize("narrow", [(4.9, 3.0), (0.0, 3.0), (4.0, 0.0), (-4.0, 3.0)])
def test_a_second_drawing_fits_a_phone(narrow, shown):
    with pytest.raises(ValueError, match=r"narrow must be \(width, height\) .* at most 4\.86"):
        figures.show(wide(), caption="c", alt="a", narrow=narrow)
    small, _ = plt.subplots(figsize=(3.0, 3.0))
    with pytest.raises(ValueError, match=r"at most 3\.00 wide"):
        figures.show(small, caption="c", alt="a", narrow=(4.0, 3.0))
    assert shown == []


@pytest.mark.parametrize("kind", ["imshow", "pcolormesh", "scatter", "contourf"])
def test_colours_that_the_dark_theme_does_not_know_are_refused(kind, shown):
    def one(cmap):
        fig, ax = plt.subplots()
        if kind == "scatter":
            ax.scatter([1, 2], [1, 2], c=[1.0, 2.0], cmap=cmap)
        else:
            getattr(ax, kind)([[1.0, 2.0], [3.0, 4.0]], cmap=cmap)
        figures.show(fig, caption="c", alt="a")

    for unknown in ("magma", "viridis"):
        with pytest.raises(ValueError, match=f"SEQUENTIAL or figures.DIVERGING.*got '{unknown}'"):
            one(unknown)
    assert shown == []
    one(figures.SEQUENTIAL)


def test_pictures_in_grey_and_lines_of_a_colour_are_both_themes_own(shown):
    fig, axes = plt.subplots(1, 3)
    axes[0].imshow([[1.0, 2.0]], cmap="gray")
    axes[1].imshow([[[1.0, 0.0, 0.0]]])
    axes[2].contour([[1.0, 2.0], [3.0, 4.0]], colors=[figures.INK])
    figures.show(fig, caption="c", alt="a")
    assert shown[0].count("cd-photograph") == 2 and "cd-heat" not in shown[0]
    fig, ax = plt.subplots()
    ax.pcolormesh([[1.0, 2.0], [3.0, 4.0]], cmap="gray")
    with pytest.raises(ValueError, match="got 'gray'"):
        figures.show(fig, caption="c", alt="a")


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


def test_a_table_holds_its_cells_and_refuses_ragged_rows(shown):
    figures.table(
        ["map", "J"], [["one", figures.tex([[1, -0.0], [0.256, 2]])]], caption=r"See \(J\)."
    )
    cells = [cell.text for cell in root(shown[0]).iter() if cell.tag in ("th", "td")]
    assert cells == [
        "map",
        "J",
        "one",
        r"\(\begin{pmatrix}1.00 & 0.00 \\ 0.26 & 2.00\end{pmatrix}\)",
    ]
    assert r"</table></div><figcaption>See \(J\).</figcaption>" in shown[0]
    with pytest.raises(ValueError, match="the header's 2 cells, got 1"):
        figures.table(["a", "b"], [["c"]], caption="c")
    figures.table(["", "b"], [["c", "d"]], caption="c")
    assert "<tr><td></td><th" in shown[1]  # what is empty heads nothing


def test_an_opening_is_kept_for_the_top_of_its_page_as_well(shown, monkeypatch):
    kept = {}
    monkeypatch.setattr(
        "myst_nb.glue", lambda name, value, display: kept.update({name: (value, display)})
    )
    figures.show(everything(), caption="c", alt="a")
    assert kept == {}
    figures.show(everything(), caption="c", alt="what it shows", opening=True)
    value, display = kept["opening"]
    assert not display and value._repr_html_() == shown[1] == shown[0].replace(
        'aria-label="a"', 'aria-label="what it shows"'
    ).replace(*(re.search(r'id="([\w-]+)"', page)[1] for page in shown))
    assert repr(value) == "[figure: what it shows]"


def test_a_quote_is_a_text_with_the_digits_of_its_error(monkeypatch):
    kept = {}
    monkeypatch.setattr("myst_nb.glue", lambda name, text, display: kept.update({name: text}))
    figures.quote(pair=(-0.3141, 0.021), count=320, said="2^-20", exact=(0.5, 0))
    assert kept == {"pair": "−0.314 ± 0.021", "count": "320", "said": "2^-20", "exact": "0.5"}
    figures.quote(small="5e-07 of 1.2e+06", tiny=3e-12, name="v1e3")
    assert kept["small"] == "5·10⁻⁷ of 1.2·10⁶"
    assert (kept["tiny"], kept["name"]) == ("3·10⁻¹²", "v1e3")


def test_a_table_sets_its_numbers(shown):
    given = ["-0.5 ± 0.25", "2e-05 and 6e+17", "off by -.3, 2-3", "d = 30, 12 %"]
    figures.table(
        ["", *"abcde"], [["a-1", *given, r"\(x = -1e-5\) <code>make -1e5</code>"]], caption="c"
    )
    (row,) = re.findall(r"<tbody>(.*)</tbody>", shown[0])
    space = "\N{NO-BREAK SPACE}"
    assert re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) == [
        "a-1",
        f'−0.5<span class="cd-error">{space}±{space}0.25</span>',
        "2·10<sup>−5</sup> and 6·10<sup>17</sup>",
        "off by −.3, 2-3",
        f"d{space}={space}30, 12{space}%",
        r"\(x = -1e-5\) <code>make -1e5</code>",
    ]
