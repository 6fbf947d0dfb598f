"""Structural models against sums over paths, samples and equations solved by hand; abduction."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdelta import causal
from cdelta.causal import SCM, LinearSCM
from tests.causal.examples import by_hand, curved, random_scm


@pytest.mark.parametrize("n", [1, 2, 5])
def test_total_effects_are_sums_over_paths(n):
    model = random_scm(n, n)
    weights = np.asarray(model.weights)
    paths = np.eye(n)
    for length in range(1, n):
        for path in itertools.permutations(range(n), length + 1):  # cause first
            paths[path[-1], path[0]] += np.prod(
                [weights[i, j] for j, i in itertools.pairwise(path)]
            )
    np.testing.assert_allclose(model.total_effects, paths, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_features_solve_their_equations(n):
    model = random_scm(10 + n, n)
    noise = jax.random.normal(jax.random.key(n), (n,))
    x = np.zeros(n)
    for i in model.order:  # one equation after the other
        x[i] = model.shift[i] + np.asarray(model.weights)[i] @ x + model.noise[i] * noise[i]
    np.testing.assert_allclose(model(noise), x, rtol=0, atol=1e-13)
    np.testing.assert_allclose(model.noises(x), noise, rtol=0, atol=1e-13)
    np.testing.assert_allclose(model.jacobian(noise), model.structural_map, rtol=0, atol=1e-13)
    np.testing.assert_allclose(model(jnp.zeros(n)), model.mean, rtol=0, atol=1e-13)


def test_moments_are_those_of_the_samples():
    model, n = random_scm(4, 4), 200_000
    x = np.asarray(model.sample(jax.random.key(0), n))
    assert x.shape == (n, 4)
    z = (x.mean(0) - model.mean) / (x.std(0) / np.sqrt(n))
    assert np.abs(z).max() < 4
    centred = x - np.asarray(model.mean)
    products = centred[:, :, None] * centred[:, None, :]
    z = (products.mean(0) - model.cov) / (products.std(0) / np.sqrt(n))
    assert np.abs(z).max() < 4
    # the noises are normal: their fourth moment is 3, with variance 96
    noises = np.linalg.solve(np.asarray(model.structural_map), centred.T)
    assert np.abs((noises**4).mean(1) - 3).max() < 4 * np.sqrt(96 / n)


def test_a_value_that_was_set_may_have_been_rounded():
    """A tenth in double is none in single, nor are its effects; half a per mille more is another
    value."""
    model = random_scm(4, 4).do(1, 0.1)
    noise = jax.random.normal(jax.random.key(2), (4,))
    x = np.asarray(model(noise), np.float32)
    found = model.noises(x)
    np.testing.assert_allclose(found, noise.at[1].set(0), atol=1e-5)
    assert found[1] == 0
    with pytest.raises(ValueError, match="agree with the values that interventions have set"):
        model.noises(x + np.float32(5e-4) * (np.arange(4) == 1))


def test_equations_one_after_the_other():
    model = curved()
    noise = np.asarray(jax.random.normal(jax.random.key(5), (6, 4)))
    np.testing.assert_allclose(
        jax.jit(jax.vmap(model))(noise), [by_hand(row) for row in noise], rtol=0, atol=1e-13
    )
    assert model.names == ("z", "a", "b", "c") and model.order == (0, 1, 2, 3)
    same = model.sample(jax.random.key(6), 4)
    np.testing.assert_array_equal(same, model.sample(jax.random.key(6), 4))


def test_jacobian_is_the_limit_of_differences():
    model, h = curved(), 1e-6
    noise = np.array([0.4, -1.2, 0.7, 1.5])
    differences = np.stack(
        [(by_hand(noise + h * e) - by_hand(noise - h * e)) / (2 * h) for e in np.eye(4)], 1
    )
    jacobian = model.jacobian(noise)
    np.testing.assert_allclose(jacobian, differences, rtol=0, atol=1e-8)
    np.testing.assert_array_equal(jnp.triu(jacobian, 1), 0)


@pytest.mark.parametrize("seed", range(3))
def test_abduction_inverts_the_map_and_its_derivative(seed):
    model = curved()
    noise = 1.5 * jax.random.normal(jax.random.key(seed), (4,))
    x = model(noise)
    np.testing.assert_allclose(model.noises(x), noise, rtol=0, atol=1e-11)
    inverse = jax.jacfwd(model.noises)(x)
    np.testing.assert_allclose(inverse @ model.jacobian(noise), np.eye(4), rtol=0, atol=1e-9)
    np.testing.assert_allclose(jax.jacrev(model.noises)(x), inverse, rtol=0, atol=1e-12)
    np.testing.assert_allclose(jax.jit(model.noises)(x), noise, rtol=0, atol=1e-11)


def test_abduction_in_single_precision():
    model = curved()
    noise = jnp.array([0.3, -0.8, 1.1, 0.2], jnp.float32)
    found = model.noises(model(noise))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, noise, atol=3e-6)


@pytest.mark.parametrize(
    ("weights", "noise", "message"),
    [
        (
            [[0, 1], [1, 0]],
            [1, 1],
            r"acyclic, got a cycle among features \[0, 1\]|acyclic.*\[1, 0\]",
        ),
        ([[0, 0, 1], [1, 0, 0], [0, 1, 0]], [1, 1, 1], r"acyclic.*\[(0, 1, 2|1, 2, 0|2, 0, 1)\]"),
        ([[0, 0], [0, 0.5]], [1, 1], r"acyclic.*\[1\]"),
        ([[0, 1]], [1], r"square.*\(1, 2\)"),
        (np.zeros((0, 0)), [], r"square"),
        (np.zeros((2, 2)), [1, 1, 1], r"noise must have shape \(2,\).*\(3,\)"),
        (np.zeros((2, 2)), [1, 0], r"noise must be positive"),
        (np.zeros((2, 2)), [1, -2], r"noise must be positive"),
        ([[0, 0], [np.nan, 0]], [1, 1], r"weights must be finite"),
        (np.zeros((2, 2)), [1, np.inf], r"noise must be finite"),
    ],
)
def test_linear_models_refused(unchecked, weights, noise, message):
    with pytest.raises(ValueError, match=message):
        LinearSCM(weights, noise)


def test_calls_refused(unchecked):
    model = causal.collider()
    for n in (0, -3, 2.0, True):
        with pytest.raises(ValueError, match="n must be a positive integer"):
            model.sample(jax.random.key(0), n)
    with pytest.raises(ValueError, match=r"noise must have shape \(3,\)"):
        model(jnp.zeros(2))
    with pytest.raises(ValueError, match=r"x must have shape \(3,\)"):
        model.noises(jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"noise must be a scalar or have shape \(3,\)"):
        causal.mediator(noise=jnp.ones(2))


def test_nonlinear_models_refused(unchecked):
    with pytest.raises(ValueError, match="at least one"):
        SCM({})
    with pytest.raises(ValueError, match=r"functions f\(x, e\) by name, got 0:"):
        SCM({0: lambda x, e: e})
    with pytest.raises(ValueError, match=r"functions f\(x, e\) by name, got 'a': 1.0"):
        SCM({"a": 1.0})
    late = SCM({"a": lambda x, e: x["b"] + e, "b": lambda x, e: e})
    with pytest.raises(ValueError, match="equation of 'a' asks for 'b'"):
        late(jnp.zeros(2))
    with pytest.raises(ValueError, match="equation of 'a' asks for 'b'"):
        late.noises(jnp.zeros(2))
    table = {"low": 1.0}
    with pytest.raises(KeyError, match="high"):  # its own, and no feature
        SCM({"a": lambda x, e: table["high"] * e})(jnp.zeros(1))
    with pytest.raises(ValueError, match=r"the value of 'a' must have shape \(\)"):
        SCM({"a": lambda x, e: jnp.array([e, e])})(jnp.zeros(1))


# ---------------------------------------------------------------------------------------- abduction

ROOTS = {
    "not defined everywhere": (lambda x, e: jnp.log(e + 10), 2.0, np.exp(2) - 10),
    "not defined above": (lambda x, e: jnp.log(5 - e), 2.0, 5 - np.exp(2)),
    "at the end of where it is defined": (lambda x, e: jnp.sqrt(e + 10), 0.0, -10.0),
    "overflowing": (lambda x, e: jnp.exp(e**3), 2.0, np.log(2) ** (1 / 3)),
    "decreasing": (lambda x, e: 3 - 2 * e - e**3, -0.375, 1.1586265),
    "level at the root": (lambda x, e: (e - 1) ** 3, 0.0, 1.0),
    "saturating": (lambda x, e: jnp.tanh(e), 0.99, np.arctanh(0.99)),
    "flat elsewhere": (lambda x, e: jnp.maximum(e, 0), 1.5, 1.5),
    "jumping elsewhere": (lambda x, e: e + jnp.sign(e), 2.5, 1.5),
    "large": (lambda x, e: 1e6 * e, 1.3e6, 1.3),
    "far away": (lambda x, e: 1e6 + e, 1e6 + 1.3125, 1.3125),  # a number of float32
    "small": (lambda x, e: 1e-20 * e, 1.3e-20, 1.3),
    "constant": (lambda x, e: 0.1, 0.1, 0.0),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("kind", ROOTS)
def test_the_noise_of_an_equation(kind, dtype):
    equation, value, noise = ROOTS[kind]
    model = SCM({"y": equation})
    x = jnp.array([value], dtype)
    found = model.noises(x)
    # a saturating equation forgets the noise: the rounding of x, over the slope of tanh there
    atol = {"saturating": 1 / (1 - 0.99**2), "decreasing": 4}.get(kind, 1) * jnp.finfo(dtype).eps
    if kind == "decreasing":
        noise = np.roots([1, 0, 2, value - 3])
        noise = float(noise[np.isreal(noise)][0].real)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, [noise], rtol=4 * jnp.finfo(dtype).eps, atol=2 * atol)
    np.testing.assert_allclose(model(found), x, rtol=16 * jnp.finfo(dtype).eps, atol=4 * atol)


MORE_THAN_ONE = {
    "even": (lambda x, e: e**2, 1.0),
    "periodic": (lambda x, e: jnp.sin(3 * e), 0.3),
    "of a period that fits the integers": (lambda x, e: e + 0.5 * jnp.sin(2 * jnp.pi * e), 0.3),
    "fine waves": (lambda x, e: e + 0.1 * jnp.sin(50 * e), 0.5),
    "turning far out": (lambda x, e: e - e**3 / 1000, 0.5),
    "a pole": (lambda x, e: 1 / e, 2.0),
    "flat at x": (lambda x, e: jnp.maximum(e, 0), 0.0),
    "a threshold": (lambda x, e: jnp.sign(e), 1.0),
    "a dead zone": (lambda x, e: jnp.sign(e) * jnp.maximum(jnp.abs(e) - 0.5, 0), 0.0),
    "saturated": (lambda x, e: jnp.tanh(e), 1.0),
}
NONE = {
    "below the range": (lambda x, e: jnp.exp(e), -1.0),
    "above the range, by rounding": (lambda x, e: jnp.tanh(e), 1 + 1e-6),
    "where it is not defined": (lambda x, e: jnp.sqrt(e + 10), -1.0),
    "beyond every normal number": (lambda x, e: e, 50.0),
    "in a jump": (lambda x, e: e + jnp.sign(e), 0.5),
    "not of a constant": (lambda x, e: 2.0, 2.001),
    "nowhere defined": (lambda x, e: e * jnp.nan, 1.0),
}


@pytest.mark.parametrize("kind", [*MORE_THAN_ONE, *NONE])
def test_noises_that_are_not_to_be_had(kind):
    equation, value = {**MORE_THAN_ONE, **NONE}[kind]
    model = SCM({"z": lambda x, e: 2 * e, "y": equation})
    x = jnp.array([1.0, value], jnp.float32)
    message = "strictly increasing or strictly" if kind in MORE_THAN_ONE else "the equations can"
    with pytest.raises(ValueError, match=rf"{message}.*\{{'y': "):
        model.noises(x)
    # traced, nothing can be raised: the one feature is NaN, the other is right
    np.testing.assert_array_equal(jax.vmap(model.noises)(x[None]), [[0.5, np.nan]])


@pytest.mark.parametrize("size", [1.0, 1e12])
def test_a_large_feature_excuses_no_other(size):
    """Neither one that is no cause, nor a cause by more than its rounding moves its effect."""
    model = SCM(
        {
            "a": lambda x, e: size * e,
            "b": lambda x, e: e,
            "c": lambda x, e: e + 10 * (e > 0),
            "d": lambda x, e: x["a"] / size + e + 10 * (e > 0),
        }
    )
    good = jnp.array([size, 1, 11, 12], jnp.float32)
    np.testing.assert_allclose(model.do("b", 1.0).noises(good), [1, 0, 1, 1], atol=4e-6)
    for at, value in ((2, 5.0), (3, 6.0)):
        with pytest.raises(ValueError, match=rf"the equations can take.*\{{'{'abcd'[at]}': "):
            model.noises(good.at[at].set(value))
    with pytest.raises(ValueError, match=r"must agree with the values .*\{'b': 5.0"):
        model.do("b", 1.0).noises(good.at[1].set(5.0))


def test_the_rounding_of_a_cause_is_allowed_for():
    """By as much as it moves the effect: half precision has stored both."""
    model = SCM({"a": lambda x, e: e, "b": lambda x, e: 30 * x["a"] - 29 * x["a"]})
    x = jnp.array([1.7, 1.7], jnp.bfloat16)
    np.testing.assert_allclose(model.noises(x)[1], 0)
    steep = SCM({"a": lambda x, e: e, "b": lambda x, e: 30 * (x["a"] - 1.7) + jnp.abs(e) * 0})
    np.testing.assert_allclose(steep.noises(jnp.array([1.7, 0.0], jnp.bfloat16))[1], 0)
    with pytest.raises(ValueError, match=r"\{'b': 5.0"):
        steep.noises(jnp.array([1.7, 5.0], jnp.bfloat16))


def test_equations_may_hold_transformations():
    """Of the features before them as of any dict; and the graph is that of what is inside."""
    plain = {
        "a": lambda x, e: e,
        "b": lambda x, e: jnp.abs(x["a"]) + e,
        "c": lambda x, e: 2 * x["b"] + e,
        "d": lambda x, e: x["a"] + x["b"] + x["c"] + e,
        "e": lambda x, e: jnp.sin(x["d"]) + 3 * e,
    }
    transformed = {
        "a": jax.jit(plain["a"]),
        "b": lambda x, e: jax.lax.cond(x["a"] > 0, lambda x: x["a"], lambda x: -x["a"], x) + e,
        "c": jax.jit(plain["c"]),
        "d": lambda x, e: sum(jax.tree.leaves(jax.tree.map(lambda value: 1 * value, x))) + e,
        "e": jax.checkpoint(plain["e"]),
    }
    one, other = SCM(plain), SCM(transformed)
    noise = jnp.array([-0.5, 1.0, 0.3, -1.2, 0.7])
    np.testing.assert_allclose(other(noise), one(noise), rtol=0, atol=1e-14)
    np.testing.assert_allclose(other.noises(one(noise)), noise, rtol=0, atol=1e-13)
    np.testing.assert_allclose(other.jacobian(noise), one.jacobian(noise), rtol=0, atol=1e-14)
    causes = {"a": "", "b": "a", "c": "b", "d": "abc", "e": "d"}
    expected = [[cause in causes[name] for cause in causes] for name in causes]
    np.testing.assert_array_equal(other.graph, expected)
    late = SCM({"a": jax.jit(lambda x, e: x["b"] + e), "b": lambda x, e: e})
    for ask in (lambda: late(jnp.zeros(2)), lambda: late.graph):
        with pytest.raises(ValueError, match="equation of 'a' asks for 'b'"):
            ask()


def test_abduction_has_the_derivatives_of_the_inverse():
    """First and second, in x and through causes, against the inverse by hand; none of a
    constant."""
    model = SCM(
        {
            "z": lambda x, e: e,
            "y": lambda x, e: jnp.exp(x["z"] + e),
            "c": lambda x, e: 3.0,
            "w": lambda x, e: x["y"] * x["z"] - e**3,
        }
    )
    x = jnp.array([0.4, 2.0, 3.0, -1.0])

    def inverse(x):
        return jnp.stack([x[0], jnp.log(x[1]) - x[0], 0 * x[2], jnp.cbrt(x[0] * x[1] - x[3])])

    for derivative in (jax.jacfwd, jax.jacrev, jax.hessian):
        expected = derivative(inverse)(x)
        np.testing.assert_allclose(derivative(model.noises)(x), expected, rtol=0, atol=1e-12)


def test_nine_nodes_make_their_samples_again():
    model, dtype = causal.published("large-backdoor"), jnp.float32
    noise = jax.random.normal(jax.random.key(1), (200, 9), dtype)
    x = jax.vmap(model)(noise)
    found = jax.vmap(model.noises)(x)
    again = jax.vmap(model)(found)
    tolerance = 64 * jnp.finfo(dtype).eps  # nine sums, and a quantile of slope up to 30
    np.testing.assert_allclose(again, x, rtol=tolerance, atol=tolerance)


def test_sampling_and_abduction_trace_each_equation_once():
    traces = itertools.count()  # not a list: an equation that reads a changed list is traced again

    def equation(*causes):
        def value(x, e):
            next(traces)
            return sum(x[cause] for cause in causes) + e

        return value

    model = SCM({"a": equation(), "b": equation("a"), "c": equation("a", "b")})
    x = model.sample(jax.random.key(0), 5)
    model.noises(x[0])
    jax.vmap(model.noises)(x)
    once = next(traces)
    assert once >= 3
    x = model.sample(jax.random.key(1), 5)
    np.testing.assert_allclose(
        model.noises(x[0]), [x[0, 0], x[0, 1] - x[0, 0], x[0, 2] - x[0, :2].sum()]
    )
    jax.vmap(model.noises)(x)
    assert next(traces) == once + 1


# ---------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_linear_models_in_half_precision(dtype):
    """What float64 makes of the same rounded numbers, rounded once."""
    exact = random_scm(7, 4)
    half = LinearSCM(*(leaf.astype(dtype) for leaf in (exact.weights, exact.noise, exact.shift)))
    wide = LinearSCM(*(leaf.astype(float) for leaf in (half.weights, half.noise, half.shift)))
    noise = jnp.array([0.5, -1.25, 0.75, 2.0], dtype)
    for of in (
        lambda model, cast: model.total_effects,
        lambda model, cast: model.structural_map,
        lambda model, cast: model.mean,
        lambda model, cast: model.cov,
        lambda model, cast: model(cast(noise)),
        lambda model, cast: model.noises(cast(noise)),
        lambda model, cast: model.do(1, 0.5).cov,
        lambda model, cast: model.counterfactual(cast(noise), {1: 0.5, 2: causal.Shift(0.25)}),
    ):
        value = of(half, lambda x: x)
        assert value.dtype == dtype
        expected = np.asarray(of(wide, lambda x: x.astype(float)))
        # two roundings at most: of noises, and of what they make
        tolerance = 4 * float(jnp.finfo(dtype).eps)
        scale = max(1, np.abs(expected).max())
        np.testing.assert_allclose(np.asarray(value, float), expected, atol=tolerance * scale)
    assert half.sample(jax.random.key(0), 3).shape == (3, 4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_abduction_in_half_precision(dtype):
    model = curved().do("a", 0.1)
    noise = jnp.array([0.4, 0.0, 0.75, 1.5], dtype)
    found = model.noises(model(noise))
    assert found.dtype == dtype
    # of eight sums and products, each rounded
    tolerance = 8 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(found, float), np.asarray(noise, float), atol=tolerance)


def test_strict_promotion():
    """Model and noises of different precision, where JAX is told to promote nothing by itself."""
    linear, noise = causal.common_cause(0.7, -0.4), jnp.array([0.3, -1.0, 0.6], jnp.float32)
    changes = {0: 0.5, 2: causal.Shift(0.25)}
    expected = linear.do(changes)(noise)
    with jax.numpy_dtype_promotion("strict"):
        changed = linear.do(changes)
        assert changed(noise).dtype == jnp.float64
        np.testing.assert_array_equal(changed(noise), expected)
        np.testing.assert_allclose(changed.noises(changed(noise)), [0, -1, 0.6], atol=1e-7)
        LinearSCM(linear.weights, noise**2).sample(jax.random.key(0), 3)
        found = curved().do(changes).noises(curved().do(changes)(jnp.ones(4, jnp.float32)))
        assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [0, 1, 1, 1], atol=1e-6)
