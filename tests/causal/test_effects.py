"""The local structural model of a Jacobian (C7): Cholesky, linear models, counterfactuals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdelta
from cdelta import causal
from tests.causal.examples import curved, random_scm


def test_local_effects_are_the_cholesky_factor():
    rows = jax.random.normal(jax.random.key(7), (4, 2, 5))
    order = [2, 0, 3, 1]
    lower, directions = causal.local_effects(rows, order)
    flat, q = np.asarray(rows)[order].reshape(4, 10), np.asarray(directions).reshape(4, 10)
    np.testing.assert_allclose(lower, np.linalg.cholesky(flat @ flat.T), atol=1e-13)
    np.testing.assert_allclose(q @ q.T, np.eye(4), atol=1e-13)
    np.testing.assert_allclose(lower @ q, flat, atol=1e-13)
    assert directions.shape == (4, 2, 5)


@pytest.mark.parametrize("seed", range(3))
def test_local_effects_of_a_linear_model_are_its_structural_map(seed):
    """However the latent is rotated, and with more latent dimensions than features."""
    model = random_scm(seed, 4)
    rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(seed), (9, 9)))[0][:4]
    rows = cdelta.jacobian.rows(lambda latent: model(rotation @ latent), jnp.ones(9))
    order = np.array(model.order)
    lower, directions = causal.local_effects(rows, model.order)
    np.testing.assert_allclose(lower, model.structural_map[np.ix_(order, order)], atol=1e-12)
    np.testing.assert_allclose(directions, rotation[order], atol=1e-12)
    effects = lower / jnp.diag(lower)
    np.testing.assert_allclose(effects, model.total_effects[np.ix_(order, order)], atol=1e-12)


def test_following_a_direction_moves_a_feature_and_what_comes_after_it():
    model = curved()
    noise = jnp.array([0.4, -1.2, 0.7, 1.5])
    lower, directions = causal.local_effects(model.jacobian(noise), range(4))
    moved = jax.jvp(model, (noise,), (directions[1],))[1]
    np.testing.assert_allclose(moved, lower[:, 1], atol=1e-13)
    assert moved[0] == 0 and moved[1] > 0
    # as the counterfactual says: the derivative under do(a), from abduction and not from the
    # Jacobian
    x = model(noise)
    effect = jax.jacfwd(lambda value: model.counterfactual(x, 1, value))(x[1])
    np.testing.assert_allclose(lower[:, 1] / lower[1, 1], effect, atol=1e-10)


def test_local_effects_of_some_features_batched_and_in_single_precision():
    rows = jax.random.normal(jax.random.key(8), (6, 5, 20), jnp.float32)
    each = [causal.local_effects(row, [3, 1]) for row in rows]
    lower, directions = jax.jit(jax.vmap(functools.partial(causal.local_effects, order=[3, 1])))(
        rows
    )
    assert lower.shape == (6, 2, 2) and directions.dtype == jnp.float32
    np.testing.assert_allclose(lower, [pair[0] for pair in each], atol=3e-6)
    np.testing.assert_allclose(
        jnp.einsum("bkl,blx->bkx", lower, directions), rows[:, [3, 1]], atol=3e-6
    )


@pytest.mark.parametrize(
    ("rows", "order", "message"),
    [
        (np.eye(3), [0, 0, 1], "order must be different indices"),
        (np.eye(3), [0, 3], r"order must be different indices in 0, …, 2, got \[0, 3\]"),
        (np.eye(3), [-1, 0], r"order must be different indices.* got \[-1, 0\]"),
        (np.eye(3), [], "order must be"),
        (
            np.ones((3, 2)) + np.eye(3, 2),
            [0, 1, 2],
            "outnumber the latent's dimensions, got 3 of 2",
        ),
        ([[1.0, 0, 0], [2, 0, 0]], [0, 1], r"independent; feature 1 adds nothing"),
        ([[1.0, 0, 0], [0, 0, 0]], [1, 0], r"independent; feature 1 adds nothing"),
        (np.ones(3), [0], r"rows must have shape"),
        ([[np.nan, 1.0]], [0], "finite"),
    ],
)
def test_local_effects_refused(unchecked, rows, order, message):
    with pytest.raises(ValueError, match=message):
        causal.local_effects(rows, order)


def test_rows_that_depend_on_others_up_to_rounding_are_refused():
    """A sum of two rows leaves rounding behind, not zero; a little more is another row."""
    rows = np.array(jax.random.normal(jax.random.key(10), (3, 6)))
    rows[2] = 0.3 * rows[0] - 1.7 * rows[1]
    with pytest.raises(ValueError, match="independent; feature 2 adds nothing"):
        causal.local_effects(rows, range(3))
    rows[2] += 1e-10 * np.arange(6)
    lower, _ = causal.local_effects(rows, range(3))
    assert 1e-11 < lower[2, 2] < 1e-9


def test_rows_refused_are_named_by_their_feature(unchecked):
    """Not by their place in the order."""
    rows = [[1.0, 0, 0], [2, 0, 0], [0, 1, 0]]
    with pytest.raises(ValueError, match="independent; feature 1 adds nothing"):
        causal.local_effects(rows, [2, 0, 1])


def test_local_effects_in_half_precision():
    rows = jax.random.normal(jax.random.key(9), (3, 8), jnp.bfloat16)
    lower, directions = causal.local_effects(rows, range(3))
    assert lower.dtype == directions.dtype == jnp.bfloat16
    exact = np.asarray(rows, float)
    np.testing.assert_allclose(
        np.asarray(lower, float), np.linalg.cholesky(exact @ exact.T), atol=0.02
    )
