"""The published models: their equations by hand in NumPy, their graphs, abduction in each."""

import jax
import numpy as np
import pytest
from scipy import stats

from cdelta import causal


def s(x):
    return np.log1p(np.exp(x))


def g(x):
    return 1 / (1 + np.exp(-x))


def ell(x, y):
    return s(x + 1) + s(y + 0.5) - 3


def backdoor(*e):
    u = stats.norm.cdf(e)
    x1 = s(1.8 * u[0]) - 1
    x2, x3 = 1.5 * ell(x1, 0) + u[1] / 4, ell(x1, u[2])
    x4, x5 = ell(x2, u[3]), ell(x3, u[4])
    x6, x7 = ell(x4, u[5]), ell(x5, u[6])
    x8 = s(x6 + 1) - 1 + 0.3 * u[7]
    x9 = stats.laplace.ppf(u[8], 2 - s(1 + (1.3 * x7 + x8) / 3), 0.6)
    return x1, x2, x3, x4, x5, x6, x7, x8, x9


def simpson(a, b, c, d):
    x2 = s(1 - a) + np.sqrt(0.15) * b
    x3 = np.tanh(2 * x2) + 1.5 * a - 1 + np.tanh(c)
    return a, x2, x3, (x3 - 4) / 5 + 3 + d / np.sqrt(10)


def symprod(a, b, c, d):
    x2 = 2 * np.tanh(2 * a) + b / np.sqrt(10)
    return a, x2, a * x2 / 2 + c / np.sqrt(2), np.tanh(1.5 * a) + np.sqrt(0.3) * d


def fork(a, b, c, d):
    x3 = 4 / (1 + np.exp(-a - b)) - b**2 + c / 2
    return a, b, x3, 20 / (1 + np.exp(x3**2 / 2 - x3)) + d


def diamond(a, b, c, d):
    x2 = a**2 + b / 2
    x3 = x2**2 - 2 / (1 + np.exp(-a)) + c / 2
    return a, x2, x3, x3 / (abs(x2 + 2) + x3 + 0.5) + d / 10


def triangle(a, b, c):
    x1 = a + 1
    x2 = 2 * x1**2 + b
    return x1, x2, 20 / (1 + np.exp(x1 - x2**2)) + c


def chain(a, b, c):
    x2 = np.exp(a / 2) + b / 4
    return a, x2, (x2 - 5) ** 3 / 15 + c


def linear_chain(a, b, c, *rest):
    x = [a, 10 * a - b, (10 * a - b) / 4 + 2 * c]
    for sign, e in zip((1, -1), rest, strict=False):
        x.append(sign * x[-1] + e)
    return x


def chain4(a, b, c, d):
    x3 = -(5 * a - b) / 2 - 1.5 * c
    return a, 5 * a - b, x3, x3 + d


def linear_fork(a, b, c, d):
    x3 = (2 - b) / 4 - 1.5 * a + c / 2
    return a, 2 - b, x3, x3 + d / 4


BY_HAND = {
    "chain3-lin": (linear_chain, "12 23"),
    "chain4-lin": (chain4, "12 23 34"),
    "chain5-lin": (linear_chain, "12 23 34 45"),
    "chain3-nlin": (chain, "12 23"),
    "triangle-lin": (lambda a, b, c: (a + 1, 10 * a + 10 - b, 6 * (a + 1) - b / 2 + c), "12 13 23"),
    "triangle-nlin": (triangle, "12 13 23"),
    "collider-lin": (lambda a, b, c: (a, 2 - b, (2 - b) / 4 - a / 2 + c / 2), "13 23"),
    "fork-lin": (linear_fork, "13 23 34"),
    "fork-nlin": (fork, "13 23 34"),
    "diamond": (diamond, "12 13 23 24 34"),
    "simpson-nlin": (simpson, "12 13 23 34"),
    "simpson-symprod": (symprod, "12 13 23 14"),
    "large-backdoor": (backdoor, "12 13 24 35 46 57 68 79 89"),
}


def test_all_are_here():
    assert set(causal.PUBLISHED) == set(BY_HAND)
    with pytest.raises(ValueError, match=r"name must be one of chain3-lin, .*, got 'fork'"):
        causal.published("fork")


@pytest.mark.parametrize("name", BY_HAND)
def test_equations_graph_and_abduction(name):
    model, (function, edges) = causal.published(name), BY_HAND[name]
    noises = np.asarray(jax.random.normal(jax.random.key(0), (5, model.features)))
    for noise in noises:
        x = model(noise)
        np.testing.assert_allclose(x, function(*noise), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(model.noises(x), noise, atol=1e-6)
    found = {f"{j + 1}{i + 1}" for i, j in np.argwhere(model.graph)}
    assert found == set(edges.split())
    assert model.names == tuple(f"x{i + 1}" for i in range(model.features))


def test_the_graph_follows_interventions_and_forgets_what_does_not_enter():
    model = causal.published("triangle-nlin")
    fixed = model.do("x2", 1.0).graph
    assert not fixed[1].any() and fixed[2].tolist() == [True, True, False]
    shifted = model.do("x2", causal.Shift(0.5))
    np.testing.assert_array_equal(shifted.graph, model.graph)
    summed = causal.SCM(
        {"a": lambda x, e: e, "b": lambda x, e: e, "c": lambda x, e: sum(x.values()) + e}
    )
    assert summed.graph[2].tolist() == [True, True, False]
    unused = causal.SCM({"a": lambda x, e: e, "b": lambda x, e: (x["a"], e)[1]})
    assert not unused.graph.any()
    linear = causal.mediator(0.5, -0.5)
    np.testing.assert_array_equal(linear.graph, np.asarray(linear.weights) != 0)
    late = causal.SCM({"a": lambda x, e: x["b"] + e, "b": lambda x, e: e})
    with pytest.raises(ValueError, match="equation of 'a' asks for 'b'"):
        _ = late.graph
