"""Attributes of drawn shapes, against what geometry says of the shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdelta import attributes

SIZE = 48
INDEX = {name: i for i, name in enumerate(attributes.NAMES)}


def places(size=SIZE):
    """x to the right and y up, from the middle: the convention, written once more."""
    steps = np.arange(size) - (size - 1) / 2
    return np.meshgrid(steps, -steps)


def draw(ink):
    return 2 * np.asarray(ink, float) - 1


def bump(mean, cov, size=SIZE):
    """A Gaussian of ink: u² is one too, with half the covariance."""
    x, y = places(size)
    p = np.stack([x - mean[0], y - mean[1]], -1)
    return np.exp(-0.5 * np.einsum("...i,ij,...j->...", p, np.linalg.inv(cov), p))


def rotated(angle, long, short):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return turn @ np.diag([long**2, short**2]) @ turn.T


def area_drawn(inside, size=SIZE, fine=8):
    """A shape with soft edges: each pixel holds the share of it that the shape covers."""
    steps = (np.arange(size * fine) + 0.5) / fine - size / 2
    x, y = np.meshgrid(steps, -steps)
    return inside(x, y).reshape(size, fine, size, fine).mean((1, 3))


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.3, 2.5])
def test_moments_of_a_turned_bar(angle):
    mean, cov = np.array([1.3, -2.1]), rotated(angle, 5.0, 2.5)
    image = draw(0.8 * bump(mean, cov, size=80))
    np.testing.assert_allclose(attributes.centre(image), mean, rtol=0, atol=1e-10)
    np.testing.assert_allclose(attributes.covariance(image), cov / 2, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(attributes.ink(image), 0.8 * 2 * np.pi * 5.0 * 2.5, rtol=1e-9)
    np.testing.assert_allclose(attributes.width(image), np.sqrt(cov[0, 0] / 2), rtol=1e-9)
    np.testing.assert_allclose(attributes.height(image), np.sqrt(cov[1, 1] / 2), rtol=1e-9)
    np.testing.assert_allclose(attributes.slant(image), cov[0, 1] / cov[1, 1], rtol=0, atol=1e-10)
    assert abs(float(attributes.balance(image))) < 1e-9


@pytest.mark.parametrize("shear", [-0.5, 0.3])
def test_a_shear_adds_to_the_slant_and_leaves_the_height(shear):
    cov, move = rotated(1.2, 4.5, 2.5), np.array([[1.0, shear], [0.0, 1.0]])
    before, after = (
        attributes.digit(draw(bump(np.zeros(2), c, 80))) for c in (cov, move @ cov @ move.T)
    )
    assert abs(float(after[INDEX["slant"]] - before[INDEX["slant"]]) - shear) < 1e-10
    assert abs(float(after[INDEX["height"]] - before[INDEX["height"]])) < 1e-10


def test_a_lean_to_the_right_is_positive():
    image = -np.ones((20, 20))
    for step in range(10):
        image[14 - step, 5 + step] = 1  # one to the right for each up
    assert abs(float(attributes.slant(image)) - 1) < 1e-12


def test_a_shift_moves_the_centre_alone():
    rng = np.random.default_rng(0)
    ink = np.zeros((30, 30))
    ink[8:20, 9:19] = rng.uniform(size=(12, 10))
    before, after = (
        attributes.digit(draw(ink)),
        attributes.digit(draw(np.roll(ink, (-3, 4), (0, 1)))),
    )
    change = np.zeros(len(attributes.NAMES))
    change[INDEX["x"]], change[INDEX["y"]] = 4, 3
    np.testing.assert_allclose(after - before, change, rtol=0, atol=1e-12)


def test_paler_ink_keeps_the_shape():
    ink = area_drawn(lambda x, y: np.abs(np.hypot(x, y) - 10) < 2.5)
    full, pale = attributes.digit(draw(ink)), attributes.digit(draw(ink / 2))
    shape = [i for name, i in INDEX.items() if name not in ("ink", "thickness")]
    np.testing.assert_allclose(np.asarray(pale)[shape], np.asarray(full)[shape], rtol=0, atol=1e-12)
    assert abs(float(pale[INDEX["ink"]] / full[INDEX["ink"]]) - 0.5) < 1e-12
    assert abs(float(pale[INDEX["thickness"]] / full[INDEX["thickness"]]) - 1) < 0.03  # up to EDGE


@pytest.mark.parametrize("breadth", [40, 16])
def test_balance_of_a_wedge(breadth):
    # a right triangle, its right angle below: density falling linearly over its height has skewness
    # 2√2/5, however broad it is
    ink = area_drawn(
        lambda x, y: (x > -20) & (y > -20) & ((x + 20) / breadth + (y + 20) / 40 < 1), fine=4
    )
    assert abs(float(attributes.balance(draw(ink))) - 2 * np.sqrt(2) / 5) < 5e-3
    assert abs(float(attributes.balance(draw(ink[::-1]))) + 2 * np.sqrt(2) / 5) < 5e-3


def test_moments_are_the_sums_of_their_formulas():
    """Pixel by pixel, on an image that strays below paper, where u² is not u|u|."""
    image = np.random.default_rng(5).uniform(-1.8, 1.2, (6, 9))
    pixels = [
        (((1 + image[row, column]) / 2) ** 2, column - 4.0, 2.5 - row)
        for row in range(6)
        for column in range(9)
    ]
    total = sum(w for w, _, _ in pixels)
    cx, cy = (sum(p[0] * p[place] for p in pixels) / total for place in (1, 2))
    xx, xy, yy = (
        sum(w * (x - cx) ** i * (y - cy) ** (2 - i) for w, x, y in pixels) / total
        for i in (2, 1, 0)
    )
    third = sum(w * (y - cy) ** 3 for w, _, y in pixels) / total
    # ink and thickness are sums of u itself, and have their own tests
    found = dict(zip(attributes.NAMES, np.asarray(attributes.digit(image)), strict=True))
    expected = {
        "x": cx,
        "y": cy,
        "width": np.sqrt(xx),
        "height": np.sqrt(yy),
        "slant": xy / yy,
        "balance": third / yy**1.5,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-10, err_msg=name)


@pytest.mark.parametrize(("breadth", "length"), [(1, 14), (2, 17), (5, 12)])
def test_thickness_of_a_bar_of_whole_pixels(breadth, length):
    ink = np.zeros((24, 24))
    ink[3 : 3 + length, 6 : 6 + breadth] = 1
    # squares along the edges hold a step of 1, each corner's a gradient (1/2, 1/2)
    step, corner = (g**2 / np.sqrt(g**2 + attributes.EDGE**2) for g in (1.0, np.sqrt(0.5)))
    edges = (2 * (breadth - 1) + 2 * (length - 1)) * step + 4 * corner
    assert abs(float(attributes.thickness(draw(ink))) - 2 * breadth * length / edges) < 1e-12
    assert abs(float(attributes.thickness(draw(ink.T))) - 2 * breadth * length / edges) < 1e-12
    ideal = breadth / (1 + breadth / length)
    # what the rounded corners save
    assert abs(float(attributes.thickness(draw(ink))) / ideal - 1) < 0.12


@pytest.mark.parametrize("breadth", [2.0, 3.0, 5.0])
def test_thickness_of_a_ring_is_its_width(breadth):
    ink = area_drawn(lambda x, y: np.abs(np.hypot(x - 0.3, y) - 12) < breadth / 2)
    assert abs(float(attributes.thickness(draw(ink))) / breadth - 1) < 0.03


@pytest.mark.parametrize("angle", [0.0, 0.35, np.pi / 4])
def test_thickness_does_not_depend_on_the_direction_of_a_stroke(angle):
    def inside(x, y):
        along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        return (np.abs(along) < 18) & (np.abs(across) < 1.5)

    assert (
        abs(float(attributes.thickness(draw(area_drawn(inside)))) / (3 / (1 + 3 / 36)) - 1) < 0.03
    )


def test_thickness_of_a_disc_and_of_a_soft_stroke():
    disc = area_drawn(lambda x, y: np.hypot(x, y) < 9)
    assert abs(float(attributes.thickness(draw(disc))) / 9 - 1) < 0.02
    # a closed stroke whose profile is a normal density's: its area is √(2π) s for one of length,
    # its edges' step is 1
    x, y = places()
    soft = np.exp(-((np.hypot(x, y) - 12) ** 2) / (2 * 1.5**2))
    # its feet are no edge
    assert abs(float(attributes.thickness(draw(soft))) / (np.sqrt(2 * np.pi) * 1.5) - 1) < 0.1


def test_strokes_at_the_border_have_an_edge_there():
    inner, outer = np.zeros((20, 20)), np.zeros((20, 20))
    inner[5:15, 4:7], outer[5:15, :3] = 1, 1
    np.testing.assert_allclose(
        attributes.thickness(draw(inner)), attributes.thickness(draw(outer)), rtol=1e-12
    )


def random_image(dtype=np.float64):
    rng = np.random.default_rng(3)
    return draw(
        area_drawn(lambda x, y: np.abs(np.hypot(x, 0.8 * y) - 8) < 2, 28)
        + 0.05 * rng.normal(size=(28, 28))
    ).astype(dtype)


def test_gradients_against_finite_differences():
    image = jnp.asarray(random_image())
    digit, rows = jax.jit(attributes.digit), jax.jit(jax.jacrev(attributes.digit))(image)
    for seed in range(3):
        probe = np.random.default_rng(seed).normal(size=image.shape)
        eps = 1e-5
        difference = (digit(image + eps * probe) - digit(image - eps * probe)) / (2 * eps)
        np.testing.assert_allclose(jnp.tensordot(rows, probe, 2), difference, rtol=1e-6, atol=1e-8)


def test_gradient_is_finite_on_bare_paper_around_the_ink():
    image = np.full((28, 28), -1.0)
    image[10:18, 12:15] = 1
    assert np.isfinite(jax.jacrev(attributes.digit)(image)).all()


def test_names_functions_and_vector_agree():
    image = random_image()
    vector = attributes.digit(image)
    x, y = attributes.centre(image)
    single = {
        name: getattr(attributes, name)(image)
        for name in attributes.NAMES
        if name not in ("x", "y")
    }
    for name, value in {**single, "x": x, "y": y}.items():
        np.testing.assert_allclose(vector[INDEX[name]], value, rtol=1e-12)


def test_jit_vmap_and_single_precision():
    images = np.stack([random_image(), random_image()[:, ::-1]])
    both = jax.jit(jax.vmap(attributes.digit))(images)
    np.testing.assert_allclose(
        both, [attributes.digit(image) for image in images], rtol=1e-10, atol=1e-12
    )
    single = attributes.digit(images[0].astype(np.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, both[0], rtol=1e-5, atol=1e-4)
    mirrored = np.ones(len(attributes.NAMES))
    mirrored[[INDEX["x"], INDEX["slant"]]] = -1
    np.testing.assert_allclose(both[1], mirrored * both[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_measured_in_single(dtype):
    """What is rounded are the pixels, not 784 terms of a sum."""
    image = jnp.asarray(random_image(), dtype)
    half, exact = attributes.digit(image), attributes.digit(image.astype(jnp.float64))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, exact, rtol=1e-5, atol=1e-4)
    probe = jnp.ones_like(image)
    _, change = jax.jvp(attributes.digit, (image,), (probe,))
    _, expected = jax.jvp(
        attributes.digit, (image.astype(jnp.float64),), (probe.astype(jnp.float64),)
    )
    np.testing.assert_allclose(change, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_under_strict_promotion(dtype):
    image = jnp.asarray(random_image(), dtype)
    with jax.numpy_dtype_promotion("strict"):
        strict, rows = attributes.digit(image), jax.jacrev(attributes.digit)(image)
    np.testing.assert_array_equal(strict, attributes.digit(image))
    assert np.isfinite(rows.astype(jnp.float32)).all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.ones(5), r"image must be a matrix \[h, w\].*\(5,\)"),
        (np.ones((2, 5, 5)), "batch with jax.vmap"),
        (np.ones((0, 5)), "image must be a matrix"),
        (np.full((5, 5), np.nan), "image must be finite"),
        (-np.ones((5, 5)), "image must hold some ink"),
        (np.where(np.arange(5)[:, None] == 2, np.ones((5, 5)), -1), "more than one row"),
        (np.where(np.arange(5) == 2, np.ones((5, 5)), -1), "more than one column"),
        ("a digit", "image must be an array of numbers"),
    ],
)
def test_refusals(image, message):
    with pytest.raises(ValueError, match=message):
        attributes.digit(image)
