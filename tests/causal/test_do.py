"""Interventions and counterfactuals, in both kinds of model, against equations replaced by hand."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdelta import causal
from cdelta.causal import SCM, Shift
from tests.causal.examples import by_hand, curved, random_scm


@pytest.fixture
def model():
    return curved()


NOISE = np.array([0.4, -1.2, 0.7, 1.5])


def test_do_is_the_surgery_on_the_graph():
    model, n = random_scm(5, 4), 100_000
    target = model.order[1]
    done = model.do(target, 1.7)
    # by hand: the equations in order, one of them replaced
    noise = np.asarray(jax.random.normal(jax.random.key(1), (n, 4)))
    x = np.zeros((n, 4))
    for i in model.order:
        x[:, i] = (
            model.shift[i]
            + x @ np.asarray(model.weights)[i]
            + np.asarray(model.noise)[i] * noise[:, i]
        )
        if i == target:
            x[:, i] = 1.7
    np.testing.assert_allclose(jax.vmap(done)(noise), x, rtol=0, atol=1e-12)
    assert np.abs((x.mean(0) - done.mean) / np.maximum(x.std(0) / np.sqrt(n), 1e-12)).max() < 4
    np.testing.assert_allclose(done.cov[target], 0, rtol=0, atol=0)
    earlier = [model.order[0]]
    np.testing.assert_allclose(
        done.cov[np.ix_(earlier, earlier)], model.cov[np.ix_(earlier, earlier)], rtol=1e-14
    )
    # the effect of an intervention is the derivative of the mean in its value
    effect = jax.jacfwd(lambda value: model.do(target, value).mean)(0.3)
    np.testing.assert_allclose(effect, model.total_effects[:, target], rtol=0, atol=1e-13)


def test_do_twice():
    model = causal.mediator(0.8, -1.2)
    both = model.do(0, 1.0).do(2, 2.0)
    np.testing.assert_allclose(both.mean, [1.0, -2.4, 2.0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(
        both.noises(both(jnp.array([3.0, 4.0, 5.0]))), [0, 4, 0], rtol=0, atol=1e-13
    )


def test_counterfactual_keeps_the_noises():
    model = random_scm(6, 5)
    x = model.sample(jax.random.key(2), 3)[1]
    target = model.order[2]
    # in a linear model only the difference in the cause travels
    expected = x + model.total_effects[:, target] * (2.5 - x[target])
    np.testing.assert_allclose(model.counterfactual(x, target, 2.5), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(model.counterfactual(x, target, x[target]), x, rtol=0, atol=1e-12)


def test_counterfactual_is_the_model_run_again():
    model = curved()
    noise = np.array([0.4, -1.2, 0.7, 1.5])
    z, _, v, w = noise
    b = z**2 - np.sinh(0.5 * v)
    expected = [z, 2.0, b, np.tanh(2.0) * b + w + 0.1 * w**3]
    x = model(noise)
    np.testing.assert_allclose(model.counterfactual(x, 1, 2.0), expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose(model.do("a", 2.0)(noise), expected, rtol=0, atol=1e-13)
    # the derivative in the value: the local effect of do(a), c alone comes after a
    effect = jax.jacfwd(lambda value: model.counterfactual(x, 1, value))(2.0)
    np.testing.assert_allclose(effect, [0, 1, 0, b / np.cosh(2.0) ** 2], rtol=0, atol=1e-11)


def test_both_kinds_of_model_agree():
    linear = causal.common_cause(0.7, -0.4, noise=jnp.array([0.5, 0.6, 1.3])).do(2, 0.2)
    curved = SCM(
        {
            "k": lambda x, e: 1.3 * e,
            "i": lambda x, e: 0.7 * x["k"] + 0.5 * e,
            "j": lambda x, e: -0.4 * x["k"] + 0.6 * e,
        }
    ).do("k", 0.2)
    noise = jnp.array([0.3, -1.0, 0.6])
    order = np.array([2, 0, 1])
    np.testing.assert_allclose(curved(noise[order]), linear(noise)[order], rtol=0, atol=1e-14)
    x = linear(noise)
    np.testing.assert_allclose(curved.noises(x[order]), linear.noises(x)[order], rtol=0, atol=1e-13)


# ---------------------------------------------------------------------- constant, shift or function


def test_a_shift_keeps_causes_and_noise(model):
    z, u, v, w = NOISE
    a = np.sin(z) + (0.5 + 0.2 * z**2) * u + 0.7
    b = z**2 - np.sinh(0.5 * v)
    expected = [z, a, b, np.tanh(a) * b + w + 0.1 * w**3]
    shifted = model.do("a", Shift(0.7))
    np.testing.assert_allclose(shifted(NOISE), expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(shifted.noises(jnp.array(expected)), NOISE, rtol=0, atol=1e-11)
    linear = random_scm(8, 4)
    k = linear.order[1]
    moved = linear.do(k, Shift(0.7))
    np.testing.assert_allclose(
        moved.mean - linear.mean, 0.7 * linear.total_effects[:, k], rtol=0, atol=1e-13
    )
    np.testing.assert_array_equal(moved.cov, linear.cov)


def test_a_function_replaces_an_equation_with_or_without_its_noise(model):
    z, u, v, w = NOISE
    b = z**2 - np.sinh(0.5 * v)
    for function, a in (
        (lambda x, e: x["z"] ** 2 + 3.0, z**2 + 3.0),
        (lambda x, e: x["z"] ** 2 - 3.0 * e, z**2 - 3.0 * u),
    ):
        changed = model.do({"a": function})
        expected = np.array([z, a, b, np.tanh(a) * b + w + 0.1 * w**3])
        np.testing.assert_allclose(changed(NOISE), expected, rtol=0, atol=1e-13)
        kept = NOISE if a != z**2 + 3.0 else NOISE * [1, 0, 1, 1]  # what it does not use is 0
        np.testing.assert_allclose(changed.noises(expected), kept, rtol=0, atol=1e-11)
        np.testing.assert_allclose(
            model.counterfactual(by_hand(NOISE), {"a": function}), expected, rtol=0, atol=1e-10
        )


def test_several_at_once_are_one_after_the_other(model):
    function = lambda x, e: x["z"] - e  # noqa: E731
    at_once = model.do({"a": Shift(0.5), 2: 0.3, "c": function})
    for order in ([0, 1, 2], [2, 0, 1]):
        changed = model
        for i in order:
            changed = changed.do(*[("a", Shift(0.5)), ("b", 0.3), (3, function)][i])
        np.testing.assert_array_equal(changed(NOISE), at_once(NOISE))
    z, _, _, w = NOISE
    expected = [z, by_hand(NOISE)[1] + 0.5, 0.3, z - w]
    np.testing.assert_allclose(at_once(NOISE), expected, rtol=0, atol=1e-13)
    linear = random_scm(9, 4)
    noise = jnp.array(NOISE)
    both = linear.do({2: Shift(0.5), np.int64(0): 0.3})
    np.testing.assert_array_equal(both(noise), linear.do(0, 0.3).do(2, Shift(0.5))(noise))


def test_an_intervention_on_an_intervened_model(model):
    """A number forgets what was there, a shift is added to it."""
    assert model.do("a", 2.0).do("a", 3.0)(NOISE)[1] == 3.0
    assert model.do("a", 2.0).do("a", Shift(0.5))(NOISE)[1] == 2.5
    assert model.do("a", Shift(0.5)).do("a", 2.0)(NOISE)[1] == 2.0
    twice = model.do("a", Shift(0.5)).do("a", Shift(0.25))
    np.testing.assert_allclose(twice(NOISE), model.do("a", Shift(0.75))(NOISE), rtol=0, atol=1e-14)
    linear = random_scm(10, 3)
    for changes in (
        [2.0, 3.0],
        [2.0, Shift(1.0)],
        [Shift(0.5), 3.0],
    ):
        done = linear.do(1, changes[0]).do(1, changes[1])
        np.testing.assert_allclose(done.mean, linear.do(1, 3.0).mean, rtol=0, atol=1e-13)
        np.testing.assert_allclose(done.cov, linear.do(1, 3.0).cov, rtol=0, atol=1e-13)


def test_no_intervention_changes_nothing(model):
    np.testing.assert_array_equal(model.do({})(NOISE), model(NOISE))
    np.testing.assert_allclose(
        model.counterfactual(model(NOISE), {}), model(NOISE), rtol=0, atol=1e-13
    )


def test_counterfactual_of_several(model):
    x = model(NOISE)
    z, _, _, w = NOISE
    expected = [z, 2.0, x[2] + 0.5, np.tanh(2.0) * (x[2] + 0.5) + w + 0.1 * w**3]
    found = model.counterfactual(x, {"a": 2.0, "b": Shift(0.5)})
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)
    linear = random_scm(11, 4)
    x = linear.sample(jax.random.key(0), 2)[1]
    first, last = linear.order[0], linear.order[-1]
    moved = x + linear.total_effects[:, first] * (2.5 - x[first])
    moved = moved.at[last].add(0.5)
    found = linear.counterfactual(x, {first: 2.5, last: Shift(0.5)})
    np.testing.assert_allclose(found, moved, rtol=0, atol=1e-12)


def test_what_was_set_must_be_what_was_seen(model):
    """Abduction in an intervened model: a value that its equation cannot take is refused."""
    done, linear = model.do("a", 2.0), random_scm(12, 3).do(1, 2.0)
    for x, abduct in ((done(NOISE), done.noises), (linear(NOISE[:3]), linear.noises)):
        assert abduct(x)[1] == 0
        other = x.at[1].add(1e-3)
        with pytest.raises(ValueError, match=r"x must .*\{('a'|1): 2\.001"):
            abduct(other)
        assert np.isnan(jax.jit(abduct)(other)[1])
        assert abduct(x.astype(jnp.float32).astype(float))[1] == 0  # stored in less precision


# -------------------------------------------------------------------- values are leaves of a pytree


def test_values_are_swept_and_differentiated(model):
    noise, values = jnp.array(NOISE), jnp.linspace(-1, 1, 5)
    x = by_hand(NOISE)
    for change in (lambda v: v, Shift):
        swept = jax.vmap(lambda v, change=change: model.do("a", change(v))(noise))(values)
        each = [model.do("a", change(float(v)))(noise) for v in values]
        np.testing.assert_allclose(swept, each, rtol=0, atol=1e-14)
        swept = jax.vmap(lambda v, change=change: model.counterfactual(x, {"a": change(v)}))(values)
        np.testing.assert_allclose(swept, each, rtol=0, atol=1e-11)
        last = lambda v, change=change: model.do({"a": change(v)})(noise)[3]  # noqa: E731
        h = 1e-6
        slope = (last(0.3 + h) - last(0.3 - h)) / (2 * h)
        np.testing.assert_allclose(jax.grad(last)(0.3), slope, rtol=0, atol=1e-9)
        np.testing.assert_allclose(jax.jit(jax.grad(last))(0.3), slope, rtol=0, atol=1e-9)


def test_one_compilation_for_all_values():
    traces = itertools.count()  # not a list: an equation that reads a changed list is traced again

    def equation(x, e):
        next(traces)
        return x["z"] + e

    model = SCM({"z": lambda x, e: e, "y": equation})
    run = jax.jit(lambda m, e: (next(traces), m(e))[1])
    noise = jnp.array([0.3, 0.4])
    for kind in (lambda v: v, Shift):
        run(model.do("z", kind(0.0)), noise)
        model.do("z", kind(0.0)).sample(jax.random.key(0), 3)
        model.counterfactual(noise, "z", kind(0.0))
        compiled = next(traces)
        for value in (1.0, 2, np.float64(3.0), jnp.float64(4.0), jnp.asarray(5)):
            changed = model.do("z", kind(value))
            start = 0.3 if kind is Shift else 0.0
            np.testing.assert_allclose(run(changed, noise), [start + value, start + value + 0.4])
            changed.sample(jax.random.key(0), 3)
            model.counterfactual(noise, "z", kind(value))
        assert compiled > 0 and next(traces) == compiled + 1


def test_a_model_is_a_pytree_whose_leaves_are_its_numbers():
    slope = jax.tree_util.Partial(lambda w, x, e: w * x["z"] + e, jnp.array(2.0))
    model = SCM({"z": lambda x, e: e, "y": slope, "a": lambda x, e: x["y"]})
    assert jax.tree.leaves(model) == [2.0]
    changed = model.do({"z": 3.0, "a": Shift(5.0)})
    assert jax.tree.leaves(changed) == [3.0, 2.0, 5.0]
    doubled = jax.tree.map(lambda leaf: 2 * leaf, changed)
    assert doubled.names == ("z", "y", "a")  # the causal order, not the alphabet's
    np.testing.assert_array_equal(doubled(jnp.array([0.0, 1.0, 0.0])), [6, 25, 35])
    # a derivative in an equation's own array
    gradient = jax.grad(lambda m: m(jnp.array([0.5, 1.0, 0.0]))[2])(model)
    np.testing.assert_array_equal(jax.tree.leaves(gradient), [0.5])
    found = jax.grad(lambda m: m.noises(jnp.array([0.5, 1.0, 1.0]))[1])(model)
    np.testing.assert_allclose(jax.tree.leaves(found), [-0.5])
    linear = jax.tree.map(lambda leaf: 2 * leaf, causal.mediator(0.5, 0.25).do(0, 3.0))
    np.testing.assert_allclose(linear.mean, [6, 3, 6], rtol=0, atol=1e-14)


def test_a_module_may_be_an_equation():
    """Its arrays are leaves; its activation, a string and an integer stay what they are."""

    class Additive(eqx.Module):
        mlp: eqx.nn.MLP
        cause: str
        power: int

        def __call__(self, x, e):
            return self.mlp(x[self.cause] ** self.power) + 0.5 * e

    mlp = eqx.nn.MLP("scalar", "scalar", 4, 1, activation=jnp.tanh, key=jax.random.key(0))
    model = SCM({"z": lambda x, e: e, "y": Additive(mlp, "z", 2)})
    noise = jnp.array([0.7, -0.2])

    def by_hand(z, e):
        hidden, out = mlp.layers
        return (
            (out.weight @ np.tanh(hidden.weight[:, 0] * z**2 + hidden.bias))[0]
            + out.bias[0]
            + e / 2
        )

    expected = by_hand(0.7, -0.2)
    np.testing.assert_allclose(model(noise)[1], expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(model.noises(model(noise)), noise, rtol=0, atol=1e-12)
    changed = model.counterfactual(model(noise), {"z": 1.7, "y": Shift(0.25)})
    np.testing.assert_allclose(changed, [1.7, by_hand(1.7, -0.2) + 0.25], rtol=0, atol=1e-12)


def test_what_an_equation_reads_may_change():
    """Also when it has been shifted: nothing compiled goes stale."""
    slope = 1.0
    model = SCM({"z": lambda x, e: slope * e}).do("z", Shift(0.5))
    for slope in (1.0, 2.0):
        drawn = jax.random.normal(jax.random.key(0), (3, 1))
        np.testing.assert_allclose(model.sample(jax.random.key(0), 3), slope * drawn + 0.5)
        np.testing.assert_allclose(model.noises(jnp.array([4.5])), [4 / slope])


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("model", [causal.collider(), SCM({k: lambda x, e: e for k in "abc"})])
def test_interventions_refused(unchecked, model):
    x = jnp.zeros(3)
    for index in (3, -1, 1.0, True, [0, 1], None):
        with pytest.raises(ValueError, match=r"index must be an index in 0, …, 2, got"):
            model.do(index, 0.0)
        if not isinstance(index, list):
            with pytest.raises(ValueError, match=r"index must be an index in 0, …, 2, got"):
                model.counterfactual(x, {index: 0.0})
    with pytest.raises(
        ValueError, match=r"index must (name one of \('a', 'b', 'c'\)|be .*names), got 'k'"
    ):
        model.do({"k": 0.0})
    with pytest.raises(ValueError, match="value must be finite"):
        model.do(0, np.nan)
    with pytest.raises(ValueError, match="value of 1 must be finite"):
        model.do({0: 1.0, 1: np.inf})
    with pytest.raises(
        ValueError, match=r"value must have shape \(\); several are swept by jax.vmap, got \(2,\)"
    ):
        model.do(0, [1.0, 2.0])
    with pytest.raises(ValueError, match="value of 0 must be an array of numbers, got str"):
        model.do({0: "large"})
    with pytest.raises(ValueError, match="amount must be finite"):
        Shift(np.nan)
    with pytest.raises(ValueError, match=r"amount must have shape \(\)"):
        Shift(np.ones(3))
    for arguments in ((0,), ({0: 1.0}, 2.0)):
        with pytest.raises(ValueError, match="a feature and its value, or one mapping"):
            model.do(*arguments)


def test_the_same_feature_twice_refused(unchecked):
    model = SCM({"a": lambda x, e: e, "b": lambda x, e: e})
    with pytest.raises(ValueError, match="each feature once, got 1 again"):
        model.do({"b": 0.0, "a": 1.0, 1: 0.0})


def test_a_function_is_refused_in_a_linear_model(unchecked):
    with pytest.raises(ValueError, match="number or a Shift in a LinearSCM, got a function: write"):
        causal.mediator().do(0, lambda x, e: e)


def test_x_that_disagrees_with_a_value_that_was_set_is_told_so(model):
    done = model.do("b", 0.3)
    x = np.array(done(NOISE))
    assert x[list(model.names).index("b")] == 0.3
    x[list(model.names).index("b")] = 0.4
    with pytest.raises(ValueError, match=r"agree with the values that interventions have set, got"):
        done.noises(x)
