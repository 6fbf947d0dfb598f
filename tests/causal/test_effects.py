"""Effects read off a Jacobian (C7, C9, C11): Cholesky, linear models, counterfactuals, frames."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdelta
from cdelta import causal, dependence
from tests.causal.examples import curved, random_scm


def test_local_effects_are_the_cholesky_factor():
    rows = jax.random.normal(jax.random.key(7), (4, 2, 5))
    order = [2, 0, 3, 1]
    lower, directions = causal.local_effects(rows, order)
    flat, q = np.asarray(rows)[order].reshape(4, 10), np.asarray(directions).reshape(4, 10)
    np.testing.assert_allclose(lower, np.linalg.cholesky(flat @ flat.T), rtol=0, atol=1e-13)
    np.testing.assert_allclose(q @ q.T, np.eye(4), rtol=0, atol=1e-13)
    np.testing.assert_allclose(lower @ q, flat, rtol=0, atol=1e-13)
    assert directions.shape == (4, 2, 5)


@pytest.mark.parametrize("seed", range(3))
def test_local_effects_of_a_linear_model_are_its_structural_map(seed):
    """However the latent is rotated, and with more latent dimensions than features."""
    model = random_scm(seed, 4)
    rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(seed), (9, 9)))[0][:4]
    rows = cdelta.jacobian.rows(lambda latent: model(rotation @ latent), jnp.ones(9))
    order = np.array(model.order)
    lower, directions = causal.local_effects(rows, model.order)
    np.testing.assert_allclose(
        lower, model.structural_map[np.ix_(order, order)], rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(directions, rotation[order], rtol=0, atol=1e-12)
    effects = lower / jnp.diag(lower)
    np.testing.assert_allclose(
        effects, model.total_effects[np.ix_(order, order)], rtol=0, atol=1e-12
    )


def test_following_a_direction_moves_a_feature_and_what_comes_after_it():
    model = curved()
    noise = jnp.array([0.4, -1.2, 0.7, 1.5])
    lower, directions = causal.local_effects(model.jacobian(noise), range(4))
    moved = jax.jvp(model, (noise,), (directions[1],))[1]
    np.testing.assert_allclose(moved, lower[:, 1], rtol=0, atol=1e-13)
    assert moved[0] == 0 and moved[1] > 0
    # as the counterfactual says: the derivative under do(a), from abduction and not from the
    # Jacobian
    x = model(noise)
    effect = jax.jacfwd(lambda value: model.counterfactual(x, 1, value))(x[1])
    np.testing.assert_allclose(lower[:, 1] / lower[1, 1], effect, rtol=0, atol=1e-10)


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


def test_where_rows_are_traced_nan_stands_for_one_that_depends_on_others():
    """And for those after it, which are orthogonal to an arbitrary vector; not for those before."""
    rows = np.array([[1.0, 2, 0, 0], [0, 1, 1, 0], [1, 3, 1, 0], [0, 0, 1, 1]])
    for lower, frame in (
        jax.jit(lambda rows: causal.local_effects(rows, range(4)))(rows),
        [part[0] for part in jax.vmap(lambda r: causal.local_effects(r, range(4)))(rows[None])],
    ):
        np.testing.assert_allclose(lower[:2, :2] @ frame[:2], rows[:2], atol=1e-12)
        assert np.isnan(frame[2:]).all() and np.isfinite(frame[:2]).all()
        assert np.isnan(np.diag(lower)[2:]).all() and np.isfinite(lower[:2, :2]).all()
    saturated = np.array([[0.0, 0, 0], [1, 1, 0], [1, 0, 0]])
    assert np.isnan(jax.jit(lambda rows: causal.effect(rows, 1, [0]))(saturated)).all()
    alone = jax.jit(lambda rows: causal.effect(rows, 1))(saturated)
    np.testing.assert_allclose(alone, [0, 1, 0.5], atol=1e-12)


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


# ----------------------------------------------------------------------- one feature's effect (C9)


def parents_of(model, k):
    return np.flatnonzero(np.asarray(model.weights)[k]).tolist()


def rotated(model, latent=6, seed=0):
    """The model's features from more latent dimensions than it has noises, turned at random."""
    turn = jnp.linalg.qr(jax.random.normal(jax.random.key(seed), (latent, latent)))[0]
    return lambda x: model(turn[: model.features] @ x)


@pytest.mark.parametrize("seed", range(3))
def test_the_effect_needs_the_parents_alone(seed):
    model = random_scm(seed, 4)
    rows = cdelta.jacobian.rows(rotated(model), jnp.ones(6))
    effects = np.asarray(model.total_effects)
    for place, k in enumerate(model.order):
        for causes in (parents_of(model, k), model.order[:place]):
            np.testing.assert_allclose(
                causal.effect(rows, k, causes), effects[:, k], rtol=0, atol=1e-10
            )


def test_any_set_that_satisfies_the_back_door_criterion_gives_the_effect():
    """z → w → k → i ← z: w closes the path, z closes it, nothing leaves it open."""
    weights = np.zeros((4, 4))
    weights[1, 0], weights[2, 1], weights[3, 2], weights[3, 0] = 0.8, -0.7, 1.3, 0.9
    model = causal.LinearSCM(weights, np.array([1.0, 0.6, 0.5, 0.8]))
    rows = cdelta.jacobian.rows(rotated(model), jnp.ones(6))
    for closed in ([0], [1], [0, 1]):
        np.testing.assert_allclose(causal.effect(rows, 2, closed)[3], 1.3, rtol=0, atol=1e-12)
    assert abs(causal.effect(rows, 2)[3] - 1.3) > 0.1


def test_the_effect_in_a_curved_model_is_that_of_the_counterfactual():
    model, noise = curved(), jnp.array([0.4, -1.2, 0.7, 1.5])
    x = model(noise)
    for k, causes in ((0, ()), (1, [0]), (2, 0), (3, [1, 2])):
        moved = jax.jacfwd(lambda value, k=k: model.counterfactual(x, k, value))(x[k])
        found = causal.effect(model.jacobian(noise), k, causes)
        np.testing.assert_allclose(found, moved, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ["rows", "jvp"])
@pytest.mark.parametrize("seed", range(3))
def test_do_moment_of_a_linear_model_is_its_covariance_under_do(seed, method):
    model = random_scm(10 + seed, 4)
    f, probes = rotated(model), 6 if method == "jvp" else 1
    for k in range(4):
        causes = parents_of(model, k)
        moment = dependence.do_moment(
            f, jax.random.key(0), 6, 3, k, causes, method=method, probes=probes
        )
        exact = model.do(k, 1.7).cov
        np.testing.assert_allclose(moment.matrix, exact, rtol=0, atol=1e-10)
        assert moment.held == (k,) and moment.degenerate == 0
        held = dependence.held_moment(f, jax.random.key(0), 6, 3, k).matrix
        assert (np.abs(held - exact).max() < 1e-10) == (not causes)


def test_do_moment_of_a_curved_map_by_its_formula():
    model = curved()
    moment = dependence.do_moment(model, jax.random.key(1), 4, 20_000, 3, [1, 2])
    noises = jax.random.normal(jax.random.key(2), (20_000, 4))

    def by_hand(noise):
        rows = model.jacobian(noise)
        column = rows[:, 3] / rows[3, 3]  # the last noise moves c alone, whatever its causes
        rest = rows - jnp.outer(column, rows[3])
        return rest @ rest.T

    values = np.asarray(jax.lax.map(by_hand, noises))
    error = np.hypot(values.std(0) / np.sqrt(len(values)), moment.stderr)
    np.testing.assert_allclose(moment.matrix[0, 0], 1, rtol=0, atol=1e-12)  # z is its own noise
    cells = np.array([0, 0, 1, 1, 2]), np.array([1, 2, 1, 2, 2])
    assert np.abs((moment.matrix - values.mean(0))[cells] / error[cells]).max() < 4
    assert (moment.matrix[3] == 0).all()


def test_latents_where_a_feature_has_no_path_of_its_own_are_counted():
    def f(x):  # where x0 < 0 the second feature is a copy of the first
        return jnp.stack([x[1], x[1] + jnp.where(x[0] < 0, 0.0, x[2])])

    moment = dependence.do_moment(f, jax.random.key(3), 3, 4000, 1, [0])
    assert abs(moment.degenerate - 0.5) < 4 * 0.5 / np.sqrt(4000)
    np.testing.assert_allclose(moment.matrix, [[1, 0], [0, 0]], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4,), "index must"),
        ((1, [1]), "parents must be other features than index 1"),
        ((1, [0, 5]), "parents must be different indices"),
        ((1, [0, 2, 3]), "parents must be fewer than the latent's dimensions 3"),
    ],
)
def test_do_moment_refuses(arguments, message):
    def f(x):
        return jnp.stack([x[0], x[0] + x[1], x[2], x[2] - x[0]])

    with pytest.raises(ValueError, match=message):
        dependence.do_moment(f, jax.random.key(0), 3, 10, *arguments)
    with pytest.raises(ValueError, match="method must be 'rows' or 'jvp'"):
        dependence.do_moment(f, jax.random.key(0), 3, 10, 1, method="finite_difference")


def test_effect_refuses():
    rows = jnp.array([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    with pytest.raises(ValueError, match="parents must be other features"):
        causal.effect(rows, 1, [1])
    with pytest.raises(ValueError, match="feature 1 adds nothing"):
        causal.effect(rows, 1, [0])
    with pytest.raises(ValueError, match="rows must have shape"):
        causal.effect(rows[0], 0)


# ------------------------------------------------------------------------ does the frame turn (C11)


def test_the_frame_of_a_structural_model_does_not_turn():
    """However curved its equations are: each noise moves its own feature and later ones."""
    found = causal.frame_turn(curved(), jax.random.key(0), 4, 100, range(4))
    np.testing.assert_allclose(found.turn, 0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.stderr, 0, rtol=0, atol=1e-12)


def test_the_frame_is_taken_in_the_order_asked_for():
    """The same model, its features listed backwards."""
    model = curved()
    turn = functools.partial(causal.frame_turn, lambda x: model(x)[::-1], jax.random.key(0), 4, 100)
    np.testing.assert_allclose(turn([3, 2, 1, 0]).turn, 0, rtol=0, atol=1e-12)
    assert turn([0, 1, 2, 3]).turn.max() > 0.01


def twisted(x):
    """N(0, I) in the plane, turned by an angle that grows with the distance: normal again."""
    angle = 0.8 * (x @ x)
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([c * x[0] - s * x[1], s * x[0] + c * x[1]])


def test_the_turn_of_a_twist_by_its_formula():
    """The same law, and no intervention: the mean direction by NumPy's QR over other latents."""
    found = causal.frame_turn(twisted, jax.random.key(0), 2, 20_000, [0, 1])
    x = np.random.default_rng(0).normal(size=(200_000, 2))
    rows = np.asarray(jax.vmap(jax.jacobian(twisted))(x))
    q, r = np.linalg.qr(rows.transpose(0, 2, 1))
    frames = (q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]).transpose(0, 2, 1)
    mean = frames.mean(0)
    noise = frames.var(0).sum(1) / len(x)  # of |mean|², upwards
    exact = 1 - ((mean**2).sum(1) - noise)
    assert (np.abs(found.turn - exact) < 4 * found.stderr + 0.01).all()
    assert (found.turn > 0.5).all() and (found.stderr < 0.02).all()


def test_the_turn_is_unbiased_and_its_error_calibrated():
    """Few pairs, many keys: the mean of the turn, not below it by 1/n as of a mean's square."""
    runs = [causal.frame_turn(twisted, jax.random.key(k), 2, 40, [0, 1]) for k in range(60)]
    turns, errors = (np.array([getattr(run, name) for run in runs]) for name in ("turn", "stderr"))
    large = causal.frame_turn(twisted, jax.random.key(100), 2, 20_000, [0, 1]).turn
    assert (np.abs(turns.mean(0) - large) < 4 * turns.std(0) / np.sqrt(len(runs)) + 0.01).all()
    ratio = np.sqrt((errors**2).mean(0)) / turns.std(0, ddof=1)
    assert ((0.7 < ratio) & (ratio < 1.4)).all()


def test_pairs_at_which_a_gradient_adds_rounding_alone_are_left_out_of_the_turn():
    """Where x₀ < 0 the second gradient is a multiple of the first, but for rounding, and its
    direction any; where both latents have one, the frame does not turn."""
    u, v = np.array([0.0, 0.3, -0.7, 1.1]), np.array([0.0, 0.9, 0.1, -0.4])

    def f(x):
        return jnp.stack([x @ u, 0.7 * (x @ u) + 0.1 * (x @ u) + jnp.maximum(x[0], 0) * (x @ v)])

    def steady(x):
        return jnp.stack([x @ u, 0.7 * (x @ u) + 0.1 * (x @ u) + jnp.where(x[0] > 0, x @ v, 0.0)])

    found = causal.frame_turn(steady, jax.random.key(0), 4, 200, [0, 1])
    np.testing.assert_allclose(found.turn, 0, rtol=0, atol=1e-12)
    assert causal.frame_turn(f, jax.random.key(0), 4, 200, [0, 1]).turn[1] > 0.01
    with pytest.raises(ValueError, match="cannot be held"):
        causal.frame_turn(lambda x: x @ u * jnp.array([1.0, 0.3]), jax.random.key(0), 4, 9, [0, 1])


def test_frame_turn_refuses():
    with pytest.raises(ValueError, match="order must be different indices"):
        causal.frame_turn(twisted, jax.random.key(0), 2, 10, [0, 0])
    with pytest.raises(ValueError, match="order must not outnumber the latent's dimensions 2"):
        causal.frame_turn(lambda x: x[jnp.array([0, 1, 0])], jax.random.key(0), 2, 10, range(3))
