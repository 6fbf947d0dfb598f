"""Painted shapes: their model, their areas and places, and the painter read backwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdelta.datasets import shapes

N = 4000
PIXEL = (2 / shapes.SIDE) ** 2


@pytest.fixture(scope="module")
def noises():
    return shapes.noises(jax.random.key(0), N)


@pytest.fixture(scope="module")
def drawn(noises):
    return {name: np.asarray(values) for name, values in shapes.made(noises).items()}


def test_the_model_has_the_moments_of_its_equations(drawn):
    numbers = np.stack([drawn[name] for name in shapes.NUMBERS], 1)
    expected = np.eye(4)
    expected[0, 1] = expected[1, 0] = 0.8
    assert np.abs(numbers.mean(0)).max() < 4 / np.sqrt(N)
    np.testing.assert_allclose(np.cov(numbers.T), expected, atol=5 * np.sqrt(2 / N))
    share = np.bincount(drawn["kind"], minlength=3) / N
    np.testing.assert_allclose(share, shapes.SHARES, atol=4 * np.sqrt(0.25 / N))
    assert drawn["image"].shape == (N, shapes.SIDE, shapes.SIDE)


def test_counterfactuals_keep_every_noise(noises, drawn):
    again = shapes.made(noises)
    for name, values in drawn.items():
        np.testing.assert_array_equal(again[name], values)
    grain = shapes.GRAIN * np.asarray(noises.grain)
    clean = drawn["image"] - grain
    brighter = shapes.made(noises, {"light": 1.5})
    gain = np.exp((1.5 - drawn["light"]) / 4)[:, None, None]
    np.testing.assert_allclose(brighter["image"] - grain, gain * clean, atol=1e-5)
    np.testing.assert_array_equal(brighter["size"], drawn["size"])
    larger = shapes.made(noises, {"size": np.full(N, 1.0, np.float32)})
    np.testing.assert_allclose(
        larger["light"] - drawn["light"], 0.8 * (1 - drawn["size"]), atol=1e-5
    )
    assert np.abs(np.asarray(larger["image"]) - drawn["image"]).mean() > 0.01
    ring = shapes.made(noises, {"kind": 2})
    kept = drawn["kind"] == 2
    np.testing.assert_array_equal(ring["image"][kept], drawn["image"][kept])
    moved = np.abs(np.asarray(ring["image"])[~kept] - drawn["image"][~kept]).mean((1, 2))
    assert moved.min() > 0.004
    for name in shapes.NUMBERS:
        np.testing.assert_array_equal(ring[name], drawn[name])


@pytest.mark.parametrize(
    ("kind", "area"), [(0, np.pi), (1, 4 * 0.4), (2, np.pi * (1 - 0.36))], ids=shapes.KINDS
)
def test_areas_light_and_places(kind, area):
    """By integrals: light times the shape's area, and its centre of gravity."""
    for numbers in ((0.0, 0.0, 0.0, 0.0), (1.0, -1.5, 1.2, -0.7), (-1.0, 1.0, -1.0, 0.5)):
        size, light, across, down = numbers
        picture = np.asarray(shapes.picture(kind, np.array(numbers, np.float64)), np.float64)
        radius = 0.5 * np.exp(0.18 * size)
        mass = 0.55 * np.exp(light / 4) * area * radius**2
        # soft edges of a bent outline, and pixels, take or add some per cent
        assert picture.sum() * PIXEL == pytest.approx(mass, rel=0.08)
        span = (2 * np.arange(shapes.SIDE) + 1) / shapes.SIDE - 1
        centre = picture.sum(0) @ span / picture.sum(), picture.sum(1) @ span / picture.sum()
        np.testing.assert_allclose(centre, (across / 10, down / 10), atol=6e-3)
    at_centre = np.asarray(shapes.picture(kind, np.zeros(4)))[5:7, 5:7]
    assert (at_centre.min() > 0.4) if kind < 2 else (at_centre.max() < 0.2)


def test_the_painter_reads_what_it_painted(drawn):
    some = {name: values[:300] for name, values in drawn.items()}
    reading = shapes.read(some["image"])
    np.testing.assert_array_equal(reading.kind, some["kind"])
    for name in shapes.NUMBERS:
        off = np.asarray(reading.numbers[name]) - some[name]
        # of the information in a picture's pixels, for the kind that tells least
        assert np.sqrt(np.mean(off**2)) < 0.12, name
        assert np.abs(np.mean(off)) < 5 * np.std(off) / np.sqrt(len(off)) + 5e-3, name
    # as many degrees of freedom as there are pixels, less the numbers
    expected = shapes.GRAIN * np.sqrt(1 - 4 / shapes.SIDE**2)
    assert np.mean(reading.distance) == pytest.approx(expected, rel=0.02)
    other = {name: values[300:600] for name, values in drawn.items()}
    for name in shapes.NUMBERS:  # another picture's numbers are none of them
        assert np.sqrt(np.mean((np.asarray(reading.numbers[name]) - other[name]) ** 2)) > 0.8


def test_errors_of_reading_are_those_of_the_information(drawn):
    """The covariance of the errors is the inverse of the pixels' information on the numbers."""
    some = {name: values[:300] for name, values in drawn.items()}
    numbers = np.stack([some[name] for name in shapes.NUMBERS], 1)
    slopes = jax.vmap(jax.jacfwd(shapes.picture, 1))(some["kind"], numbers)
    slopes = np.asarray(slopes, np.float64).reshape(300, -1, 4)
    cov = shapes.GRAIN**2 * np.linalg.inv(np.einsum("npi,npj->nij", slopes, slopes))
    found = shapes.read(some["image"]).numbers
    off = np.stack([np.asarray(found[name]) for name in shapes.NUMBERS], 1) - numbers
    z = off / np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
    assert np.abs(np.mean(z**2, 0) - 1).max() < 5 * np.sqrt(2 / 300)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: shapes.noises(jax.random.key(0), 0), "n must be"),
        (lambda e: shapes.made(e, {"image": 1.0}), "do must be of kind, size"),
        (lambda e: shapes.made(e, {"kind": 3}), "must be 0, 1 or 2"),
        (lambda e: shapes.made(e, {"kind": 1.0}), "must be 0, 1 or 2"),
        (lambda e: shapes.made(e, {"size": jnp.nan}), "must be finite"),
        (lambda e: shapes.made(e, {"size": jnp.zeros(3)}), "one for each"),
        (lambda e: shapes.picture(0, jnp.zeros(3)), "numbers must have shape"),
        (lambda e: shapes.read(jnp.zeros((2, 8, 8))), "images must have shape"),
        (lambda e: shapes.read(jnp.full((2, 12, 12), jnp.inf)), "images must be finite"),
        (lambda e: shapes.read(jnp.zeros((2, 12, 12)), 0), "iterations must be"),
    ],
)
def test_refusals(call, message, unchecked, noises):
    with pytest.raises(ValueError, match=message):
        call(noises)
