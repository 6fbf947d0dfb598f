"""A report says the same whatever the units of its features are: their squares need not be numbers
of single precision."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import cdelta
from cdelta.reporting import report
from tests.test_dependence import KEY

U = np.array([[1.0, 0, 0], [0.8, 0.6, 0], [0.5, 0.4, 0.7]])


def mixed(x):
    """Bent, correlated, one flat at half of the latents and one constant."""
    a = x[0] + 0.2 * x[1] ** 2
    half, nothing = jnp.maximum(x[2], 0), 0 * x[0] + 1.0
    return jnp.stack([a, 0.5 * x[0] + x[1] * x[2], half, nothing])


SCALED = dict(graph=[[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], held=[0])


def dimensionless(made):
    """What has no unit: of every finding that is a ratio, a share, a correlation, a turn."""
    kinds = ("finite", "constant", "flat", "rounding", "method", "tail", "effective", "degenerate")
    kinds += ("order", "correlation", "sign", "held", "do(0)", "turn", "jump")
    return [(f.about, f.value, f.stderr) for f in made.findings if f.about in kinds]


@pytest.fixture(scope="module")
def in_single():
    return report(mixed, KEY, 3, budget=256, dtype="float32", **SCALED)


@pytest.mark.parametrize("units", [2.0**-83, np.array([2.0**-70, 2.0**60, 0.5, 4.0])])
def test_a_power_of_two_of_the_units_changes_no_bit(in_single, units):
    """Squares of 2^-83 and of 2^66 are no numbers of single precision."""
    scaled = lambda x: jnp.asarray(units, "float32") * mixed(x)  # noqa: E731
    made = report(scaled, KEY, 3, budget=256, dtype="float32", **SCALED)
    assert made.method == in_single.method
    found, before = dimensionless(made), dimensionless(in_single)
    exact = [kind != "held" for kind, *_ in before]  # whose weights are the exp of a logarithm
    assert list(itertools.compress(found, exact)) == list(itertools.compress(before, exact))
    assert sum(exact) > 8
    said, before = ([f for f in one.findings if f.about != "bounds"] for one in (made, in_single))
    assert said == before
    squared = np.multiply.outer(units, units) if np.ndim(units) else units**2
    for name, moment in in_single.moments.items():
        matrix, rounding = made.moments[name].matrix / squared, 1e-6 * (name == "held")
        np.testing.assert_allclose(matrix, moment.matrix, rtol=rounding, atol=rounding)
    np.testing.assert_array_equal(made.turn.turn, in_single.turn.turn)


@pytest.mark.parametrize("units", [1e-25, 1e20])
def test_a_report_is_the_same_in_any_units(in_single, units):
    made = report(lambda x: units * mixed(x), KEY, 3, budget=256, dtype="float32", **SCALED)
    assert [f.about for f in made.findings] == [f.about for f in in_single.findings]
    assert made.method == in_single.method
    for one, other in zip(dimensionless(made), dimensionless(in_single), strict=True):
        assert one[0] == other[0]
        np.testing.assert_allclose(one[1:], other[1:], rtol=2e-4, atol=1e-6)


def test_local_effects_have_any_units():
    rows = jnp.asarray(U, "float32")
    lower, directions = cdelta.causal.local_effects(rows, range(3))
    for units in (1e-30, 1e30):
        scaled, same = cdelta.causal.local_effects(jnp.float32(units) * rows, range(3))
        np.testing.assert_allclose(scaled / jnp.float32(units), lower, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(same, directions, atol=1e-6)
