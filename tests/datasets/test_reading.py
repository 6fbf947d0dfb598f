"""A painter read backwards, where the answer has a closed form or a grid finds it."""

import jax.numpy as jnp
import numpy as np

from cdelta.datasets._reading import fitted

RNG = np.random.default_rng(0)
PIXELS, PRIOR = RNG.normal(size=(7, 3)), 0.3  # of a painter that is linear
IMAGES, START = RNG.normal(size=(4, 7)), RNG.normal(size=(4, 3))


def linear(iterations, batch=None):
    pixels, images, start, prior = map(jnp.asarray, (PIXELS, IMAGES, START, PRIOR))
    return fitted(lambda p: pixels @ p, images, start, iterations, prior, batch)


def test_of_a_linear_painter_it_is_a_ridge_regression_around_the_start():
    gram = PIXELS.T @ PIXELS + PRIOR * np.eye(3)
    expected = START + np.linalg.solve(gram, PIXELS.T @ (IMAGES - START @ PIXELS.T).T).T
    for batch in (None, 2):
        p, distance = linear(30, batch=batch)
        np.testing.assert_allclose(p, expected, rtol=1e-6)
        left = np.sqrt(((IMAGES - expected @ PIXELS.T) ** 2).mean(1))
        np.testing.assert_allclose(distance, left, rtol=1e-8)


def test_iterations_are_as_many_steps_and_a_good_one_has_the_next_damped_a_fifth_as_much():
    p, damping = START.T, 0.05
    gram = PIXELS.T @ PIXELS + PRIOR * np.eye(3)
    damped = np.diag(np.diag(gram) + np.finfo(float).eps * np.trace(gram))
    for iterations in (1, 2):
        slope = PIXELS.T @ (PIXELS @ p - IMAGES.T) + PRIOR * (p - START.T)
        # the start is a good one as well
        damping = 0.2 * damping
        p = p - np.linalg.solve(gram + damping * damped, slope)
        np.testing.assert_allclose(linear(iterations)[0], p.T, rtol=1e-12)


def test_a_step_that_brings_the_picture_nearer_at_too_high_a_price_is_not_taken():
    """A painter that saturates: the first step goes past the minimum, where the picture is nearer
    and the sum larger."""
    image, prior, grid = 10.0, 25.0, np.linspace(-1, 2, 300_001)
    only = jnp.full((1, 1), image), jnp.zeros((1, 1))
    p, _ = fitted(lambda p: jnp.tanh(5 * p), *only, 40, jnp.asarray(prior))
    losses = (np.tanh(5 * grid) - image) ** 2 + prior * grid**2
    np.testing.assert_allclose(p[0, 0], grid[losses.argmin()], atol=1e-3)
