"""Products of Jacobians against matrices known by hand, against each other, and against the two
error regimes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdelta import Flow, jacobian

MATRIX = jax.random.normal(jax.random.key(0), (4, 6))
X0 = jax.random.normal(jax.random.key(1), (2, 3))
PROBES = jax.random.normal(jax.random.key(2), (5, 2, 3))


def f(x):
    return jnp.sin(MATRIX @ x.ravel())


# by hand: the derivative of sin(Mx) is diag(cos(Mx)) M
EXACT = np.cos(MATRIX @ X0.ravel())[:, None] * MATRIX


def test_jvp_and_rows_are_exact():
    np.testing.assert_allclose(
        jacobian.jvp(f, X0, PROBES[0]), EXACT @ PROBES[0].ravel(), rtol=1e-12
    )
    np.testing.assert_allclose(jacobian.rows(f, X0), EXACT.reshape(4, 2, 3), rtol=1e-12)
    values, rows = jacobian.values_and_rows(f, X0)
    np.testing.assert_array_equal(values, f(X0))
    np.testing.assert_array_equal(rows, jacobian.rows(f, X0))


def test_rows_of_a_map_to_an_image_and_of_a_scalar():
    np.testing.assert_allclose(
        jacobian.rows(lambda x: f(x).reshape(2, 2), X0), EXACT.reshape(2, 2, 2, 3), rtol=1e-12
    )
    np.testing.assert_allclose(
        jacobian.rows(lambda x: f(x)[1], X0), EXACT[1].reshape(2, 3), rtol=1e-12
    )


@pytest.mark.parametrize("product", [jacobian.jvp, lambda *a: jacobian.finite_difference(*a, 1e-3)])
def test_many_probes_are_the_probes_one_by_one(product):
    together = product(f, X0, PROBES)
    assert together.shape == (5, 4)
    np.testing.assert_allclose(together, [product(f, X0, probe) for probe in PROBES], rtol=1e-9)


@pytest.mark.parametrize("method", ["rows", "jvp", "finite_difference"])
def test_the_primal_is_evaluated_once_whatever_the_number_of_probes(method):
    calls = []

    def counted(x):
        jax.debug.callback(lambda: calls.append(1))
        return f(x)

    if method == "rows":
        jacobian.rows(counted, X0)
    elif method == "jvp":
        jacobian.jvp(counted, X0, PROBES)
    else:
        jacobian.finite_difference(counted, X0, PROBES, 1e-3)
    jax.effects_barrier()
    # there: once, and once for all probes
    assert len(calls) == (2 if method == "finite_difference" else 1)


def test_the_forward_difference_errs_in_proportion_to_eps_and_the_central_one_to_its_square():
    exact = EXACT @ PROBES[0].ravel()

    def errors(eps):
        ahead, behind = (jacobian.finite_difference(f, X0, PROBES[0], e) for e in (eps, -eps))
        return np.abs(ahead - exact).max(), np.abs((ahead + behind) / 2 - exact).max()

    (coarse, coarse_central), (fine, fine_central) = errors(1e-2), errors(1e-3)
    assert coarse / fine == pytest.approx(10, rel=0.1)
    assert coarse_central / fine_central == pytest.approx(100, rel=0.1)


def test_the_difference_is_the_forward_one():
    """Of squares it is 2 x z + ε z², exactly; backward it would be 2 x z - ε z²."""
    x, z = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
    for eps in (0.25, -0.25):
        found = jacobian.finite_difference(lambda x: x**2, x, z, eps)
        np.testing.assert_allclose(found, 2 * x * z + eps * z**2, rtol=1e-14)


def test_in_single_precision_a_small_eps_is_rounding():
    x, probe, exact = (
        X0.astype(jnp.float32),
        PROBES[0].astype(jnp.float32),
        EXACT @ PROBES[0].ravel(),
    )
    errors = [
        np.abs(jacobian.finite_difference(f, x, probe, eps) - exact).max()
        for eps in (1e-6, 1e-3, 0.3)
    ]
    assert errors[0] > 10 * errors[1] < errors[2]
    assert np.abs(jacobian.jvp(f, x, probe) - exact).max() < 1e-5


def test_products_work_under_jit_and_vmap():
    batch = jnp.stack([X0, 2 * X0])
    rows = jax.jit(jax.vmap(lambda x: jacobian.rows(f, x)))(batch)
    for product in (
        jax.jit(jax.vmap(lambda x: jacobian.jvp(f, x, PROBES)))(batch),
        jax.jit(jax.vmap(lambda x, eps: jacobian.finite_difference(f, x, PROBES, eps), (0, None)))(
            batch, 1e-6
        ),
    ):
        np.testing.assert_allclose(product, np.einsum("bnij,pij->bpn", rows, PROBES), atol=1e-4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: jacobian.jvp(f, X0, PROBES[0, 0]),
            r"probe must have x0's shape \(2, 3\).*got \(3,\)",
        ),
        (lambda: jacobian.jvp(f, X0, PROBES[None]), "probe must have x0's shape"),
        (
            lambda: jacobian.finite_difference(f, X0, PROBES[0].T, 1e-3),
            "probe must have x0's shape",
        ),
        (
            lambda: jacobian.finite_difference(f, X0, PROBES[0], 0.0),
            "eps must be a finite number other than 0",
        ),
        (
            lambda: jacobian.finite_difference(f, X0, PROBES[0], np.nan),
            "eps must be a finite number other than 0",
        ),
        (lambda: jacobian.rows(f, "latent"), "x0 must be an array of numbers, got str"),
    ],
)
def test_bad_input_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_straight_line_reaches_as_far_as_the_second_order_says():
    """f = (s, c s²) along the first axis: the line is off by c s of what it says."""
    for bend in (0.02, 0.3, 50.0):  # within the distances, and before the first of them
        f = lambda x, c=bend: jnp.stack([x[0], c * x[0] ** 2, x[1] ** 3])  # noqa: E731
        grid = jnp.logspace(-1, 2, 25)
        found = jacobian.reach(f, jnp.zeros(2), jnp.array([3.0, 0.0]), grid)
        np.testing.assert_allclose(found, 0.1 / bend, rtol=1e-6)
        half = jacobian.reach(f, jnp.zeros(2), jnp.array([-1.0, 0.0]), grid, 0.05)
        np.testing.assert_allclose(half, 0.05 / bend, rtol=1e-6)


def test_a_straight_line_is_off_first_where_it_is_off_first():
    """It leaves, comes back and leaves again; and of a linear map it never leaves."""
    wave = lambda x: jnp.stack([x[0], jnp.sin(x[0]) ** 2])  # noqa: E731
    grid = jnp.linspace(0.01, 10, 2000)
    found = jacobian.reach(wave, jnp.zeros(1), jnp.ones(1), grid)
    np.testing.assert_allclose(jnp.sin(found) ** 2 / found, 0.1, rtol=1e-4)
    assert 0.05 < found < 0.2
    assert jacobian.reach(lambda x: 3 * x, jnp.ones(2), jnp.ones(2), grid) == jnp.inf
    assert jacobian.reach(lambda x: x[:1] ** 2, jnp.zeros(2), jnp.ones(2), grid) == 0
    assert jnp.isnan(jacobian.reach(lambda x: 0 * x, jnp.zeros(2), jnp.ones(2), grid))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((jnp.zeros(2), jnp.zeros(3), jnp.ones(1)), "direction must have shape"),
        ((jnp.zeros(2), jnp.ones(2), jnp.array([2.0, 1.0])), "distances must be positive and"),
        ((jnp.zeros(2), jnp.ones(2), jnp.ones((1, 1))), "distances must be numbers"),
        ((jnp.zeros(2), jnp.ones(2), jnp.ones(1), 0.0), "miss must be positive, got 0"),
    ],
)
def test_reach_refuses(unchecked, arguments, message):
    with pytest.raises(ValueError, match=message):
        jacobian.reach(lambda x: x, *arguments)


def swirl(t, x):
    return jnp.sin(3 * t + x[::-1]) * jnp.array([1.0, 2.0])


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint", "rk4", "tsit5"])
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_solutions_in_any_number_of_steps_are_those_of_a_flow(solver, steps):
    x0 = jax.random.normal(jax.random.key(3), (5, 2))
    probes = jax.random.normal(jax.random.key(4), (3, 5, 2))
    x1, products = jacobian.solution_and_jvp(swirl, x0, probes, steps, solver)
    flow = jax.vmap(Flow(swirl, solver, steps))
    np.testing.assert_allclose(x1, flow(x0), rtol=0, atol=2e-14)
    expected = jacobian.jvp(flow, x0, probes)
    np.testing.assert_allclose(products, expected, rtol=0, atol=2e-14)
    one = jacobian.solution_and_jvp(swirl, x0, probes[1], steps, solver)[1]
    np.testing.assert_allclose(one, expected[1], rtol=0, atol=2e-14)


def test_one_program_solves_in_any_number_of_steps():
    """Of four solvers, and of every velocity of one structure."""

    def decay(rate, t, x):
        return -rate * x

    x0 = probes = jnp.ones((4, 2))
    programs = jacobian._by_stages._cache_size()
    for rate, (steps, solver) in enumerate(
        [(2, "euler"), (5, "euler"), (5, "rk4"), (9, "midpoint"), (3, "heun")], 1
    ):
        velocity = jax.tree_util.Partial(decay, jnp.asarray(float(rate)))
        x1, _ = jacobian.solution_and_jvp(velocity, x0, probes, steps, solver)
        order = {"euler": 1, "rk4": 4}.get(solver, 2)
        factor = sum((-rate / steps) ** k / math.factorial(k) for k in range(order + 1))
        np.testing.assert_allclose(x1, factor**steps, rtol=1e-13)
    assert jacobian._by_stages._cache_size() == programs + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "rk5"}, "solver must be one of"),
        ({"steps": 0}, "steps must be a positive"),
        ({"probes": jnp.ones((3, 2))}, "probe must have x0's shape"),
    ],
)
def test_solutions_that_make_no_sense_are_refused(options, message):
    given = {"x0": jnp.ones((4, 2)), "probes": jnp.ones((4, 2)), "steps": 2, "solver": "heun"}
    with pytest.raises(ValueError, match=message):
        jacobian.solution_and_jvp(swirl, **{**given, **options})
