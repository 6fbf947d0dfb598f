"""What conditioning and intervening say of three graphs (C6): by the covariance and by samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdelta import causal, dependence

FIRST, SECOND, THIRD = 0, 1, 2  # the i, j and k of C6


def partial_correlation(cov, held):
    """From the inverse covariance of the pair and the held feature, not from a Schur complement."""
    precision = np.linalg.inv(np.asarray(cov)[np.ix_([FIRST, SECOND, held], [FIRST, SECOND, held])])
    return -precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1])


def correlation(x, y):
    """Of samples, with its z-score against no correlation (robust: no normality assumed)."""
    products = (x - x.mean()) * (y - y.mean())
    return products.mean() / (x.std() * y.std()), products.mean() / (
        products.std() / np.sqrt(len(products))
    )


@pytest.mark.parametrize("graph", [causal.common_cause, causal.mediator])
@pytest.mark.parametrize("effects", [(1.0, 1.0), (-0.7, 1.6)])
def test_holding_a_common_cause_or_a_mediator_removes_the_correlation(graph, effects):
    model = graph(*effects, noise=jnp.array([0.8, 1.1, 0.6]))
    assert abs(model.cov[FIRST, SECOND]) > 0.2
    assert abs(partial_correlation(model.cov, THIRD)) < 1e-14


def test_a_direct_effect_survives_holding_the_mediator():
    model = causal.mediator(0.9, 0.5, direct=0.4)
    # the regression coefficient of j on i and k is the direct effect
    both = np.asarray(model.cov)[np.ix_([FIRST, THIRD], [FIRST, THIRD])]
    np.testing.assert_allclose(
        np.linalg.solve(both, np.asarray(model.cov)[[FIRST, THIRD], SECOND])[0],
        0.4,
        rtol=0,
        atol=1e-13,
    )


def test_holding_a_collider_makes_a_correlation_and_do_does_not():
    a, b = 0.9, -1.3
    model = causal.collider(a, b)
    assert model.cov[FIRST, SECOND] == 0
    expected = -a * b / np.sqrt((a**2 + 1) * (b**2 + 1))  # i and j given k, unit noises
    np.testing.assert_allclose(partial_correlation(model.cov, THIRD), expected, rtol=0, atol=1e-14)
    done = model.do(THIRD, 0.7)
    np.testing.assert_array_equal(done.cov[:2, :2], model.cov[:2, :2])


@pytest.mark.parametrize(
    ("graph", "seen", "held", "set_"),
    [
        (causal.common_cause, True, False, False),
        (causal.mediator, True, False, False),
        (causal.collider, False, True, False),
    ],
)
def test_what_samples_show(graph, seen, held, set_):
    """Correlation of i and j: as seen; with k in a narrow band (no formula); with k set."""
    model, n = graph(), 400_000
    x = np.asarray(model.sample(jax.random.key(3), n))
    # so narrow that k's spread in it correlates i and j by less than 1e-3
    band = x[np.abs(x[:, THIRD] - 0.5) < 0.05]
    done = np.asarray(model.do(THIRD, 0.5).sample(jax.random.key(4), len(band)))
    for rows, dependent in ((x, seen), (band, held), (done, set_)):
        r, z = correlation(rows[:, FIRST], rows[:, SECOND])
        assert (abs(z) > 20) if dependent else (abs(z) < 4), (r, z)
    r, _ = correlation(band[:, FIRST], band[:, SECOND])
    exact = partial_correlation(model.cov, THIRD)
    assert abs(r - exact) < 4 * (1 - exact**2) / np.sqrt(len(band)) + 1e-3


def test_a_mediator_and_a_common_cause_can_have_one_law():
    """Nothing observed tells them apart: a mediator whose first feature has the variance that the
    other graph gives."""
    fork = causal.common_cause(0.8, 0.6)
    back = 0.8 / (0.8**2 + 1)  # regression of k on i
    chain = causal.mediator(
        back, 0.6, noise=jnp.array([np.sqrt(0.8**2 + 1), 1.0, np.sqrt(1 - 0.8 * back)])
    )
    np.testing.assert_allclose(chain.cov, fork.cov, rtol=0, atol=1e-14)
    # an intervention on i does
    assert (
        fork.do(FIRST, 1.0).mean[SECOND] == 0
        and abs(chain.do(FIRST, 1.0).mean[SECOND] - back * 0.6) < 1e-14
    )


def pair_of(moment):
    """Of i and j: the covariance, and the correlation."""
    cov = np.asarray(moment)[:THIRD, :THIRD]
    return cov, cov[0, 1] / np.sqrt(cov[0, 0] * cov[1, 1])


@pytest.mark.parametrize(
    ("model", "agrees"),
    [
        (causal.common_cause(0.9, -1.3), True),
        (causal.mediator(0.9, -1.3), True),
        (causal.mediator(0.9, -1.3, direct=0.8), False),
        (causal.collider(0.9, -1.3), False),
    ],
)
def test_what_is_held_correlates_as_under_do_at_common_causes_and_plain_mediators_alone(
    model, agrees
):
    """The filter's limit on each graph, against the model with the equation of k replaced."""
    held = dependence.held_moment(model, jax.random.key(0), (3,), 2, THIRD, progress=False)
    (_, r), (_, done), (_, whole) = map(pair_of, (held.matrix, model.do(THIRD, 0.7).cov, model.cov))
    if agrees:  # and nothing held does not
        assert abs(r - done) < 1e-12 and abs(whole - done) > 0.3
    else:
        assert abs(r - done) > 0.1


def test_holding_tells_no_mediator_from_a_common_cause_and_an_intervention_leaves_colliders_alone():
    """The twins of one law: what is held is the same, what the intervention leaves is each model's
    own; at a collider do_moment finds no correlation, where holding makes one."""
    fork = causal.common_cause(0.8, 0.6)
    back = 0.8 / (0.8**2 + 1)
    noise = jnp.array([np.sqrt(0.8**2 + 1), 1.0, np.sqrt(1 - 0.8 * back)])
    models = [(fork, ()), (causal.mediator(back, 0.6, noise=noise), (FIRST,))]
    models += [(causal.collider(0.9, -1.3), (FIRST, SECOND))]
    held, done = [], []
    for model, parents in models:
        at = (model, jax.random.key(0), (3,), 2, THIRD)
        held += [dependence.held_moment(*at, progress=False).matrix]
        done += [dependence.do_moment(*at, parents, progress=False).matrix]
        truth = model.do(THIRD, 0.0).cov
        np.testing.assert_allclose(pair_of(done[-1])[0], pair_of(truth)[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(held[0], held[1], rtol=0, atol=1e-12)
    assert np.abs(done[0] - done[1])[FIRST, FIRST] > 0.3
    assert abs(pair_of(held[2])[1]) > 0.3 and abs(pair_of(done[2])[1]) < 1e-12


def test_effects_and_noises_are_those_asked_for():
    """From the equations, feature by feature: each effect and each noise is another number."""
    noise, e = jnp.array([0.5, 2.0, 3.0]), jnp.array([1.0, -1.0, 0.3])
    i, j, k = noise * e
    common = (i + 0.7 * k, j - 0.2 * k, k)
    np.testing.assert_allclose(causal.common_cause(0.7, -0.2, noise)(e), common, rtol=1e-13)
    middle = k + 0.7 * i
    chain = (i, j - 0.2 * middle + 0.4 * i, middle)
    np.testing.assert_allclose(causal.mediator(0.7, -0.2, 0.4, noise)(e), chain, rtol=1e-13)
    met = (i, j, k + 0.7 * i - 0.2 * j)
    np.testing.assert_allclose(causal.collider(0.7, -0.2, noise)(e), met, rtol=1e-13)
