"""Callables of any kind as pytrees: in a flow and in an estimator, with the value that they have
alone, and compiled once for all that share their static parts."""

import dataclasses
import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cdelta
from cdelta._pytree import Traceable, as_pytree

X0 = jnp.array([0.7, -1.1])
MATRIX = jnp.array([[0.3, -0.2], [0.5, 0.1]])


class Equinox(eqx.Module):
    """A module with a network, whose activation is a function, and with leaves of every kind."""

    mlp: eqx.nn.MLP
    rate: float
    power: int
    name: str
    nothing: None
    on: bool
    sizes: list = eqx.field(static=True)  # not hashable

    def __init__(self, seed=0, power=2, rate=0.5):
        self.mlp = eqx.nn.MLP(2, 2, 4, 1, activation=jnp.tanh, key=jax.random.key(seed))
        self.rate, self.power, self.name, self.nothing, self.on = rate, power, "a", None, True
        self.sizes = [2, 4]

    def __call__(self, t, x):
        if self.on and self.name == "a" and len(range(self.power)) == self.power:
            return self.rate * self.mlp(x) + t**self.power
        raise AssertionError("a static part was traced")


class Flax(nnx.Module):
    def __init__(self, seed=0):
        self.linear = nnx.Linear(2, 2, rngs=nnx.Rngs(seed))
        self.activation = nnx.tanh

    def __call__(self, t, x):
        return self.activation(self.linear(x)) - t


class Plain:
    """An object that is no pytree, and not hashable."""

    __hash__ = None

    def __init__(self, matrix):
        self.matrix = matrix

    def __call__(self, t, x):
        return self.matrix @ x + t

    def method(self, t, x):
        return self(t, x)


@dataclasses.dataclass(frozen=True)
class Frozen:
    velocity: object

    def __call__(self, t, x):
        return self.velocity(t, x)


def scaled(factor, t, x, *, matrix):
    return factor * (matrix @ x) + t


CALLABLES = {
    "function": lambda: lambda t, x: MATRIX @ x + t,
    "equinox": Equinox,
    "flax": Flax,
    "object": lambda: Plain(MATRIX),
    "bound method": lambda: Plain(MATRIX).method,
    "bound method of equinox": lambda: Equinox().__call__,
    "bound method of flax": lambda: Flax().__call__,
    "dataclass around equinox": lambda: Frozen(Equinox()),
    "functools.partial": lambda: functools.partial(scaled, 0.5, matrix=MATRIX),
    "Partial": lambda: jax.tree_util.Partial(scaled, 0.5, matrix=MATRIX),
    "Partial of equinox": lambda: jax.tree_util.Partial(lambda v, t, x: v(t, x), Equinox()),
    "jit": lambda: jax.jit(lambda t, x: MATRIX @ x + t),
}


@pytest.mark.parametrize("kind", CALLABLES)
def test_any_callable_is_a_velocity_and_a_feature_map(kind):
    velocity = CALLABLES[kind]()
    slope = velocity(jnp.array(0.0), X0)
    end = X0 + slope  # one step of Euler's method
    flow = cdelta.Flow(velocity, "euler", 1)
    np.testing.assert_allclose(flow(X0), end, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(flow)(X0), end, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda f: f(X0))(flow), end, rtol=1e-6)
    jacobian = np.eye(2) + jax.jacfwd(lambda x: velocity(jnp.array(0.0), x))(X0)
    np.testing.assert_allclose(jax.jacrev(flow)(X0), jacobian, rtol=1e-6, atol=1e-7)
    assert flow.velocity is velocity or isinstance(velocity, type(flow.velocity))  # as it was given


@pytest.mark.parametrize("kind", ["equinox", "dataclass around equinox", "flax"])
def test_a_module_is_a_feature_map_of_every_estimator(kind):
    velocity = CALLABLES[kind]()
    f = jax.tree_util.Partial(velocity, jnp.array(0.0))
    moment = cdelta.dependence.wiggle_moment(f, jax.random.key(0), 2, 3, batch=2)
    rows = [
        jax.jacrev(f)(
            jax.random.normal(jax.random.split(jax.random.fold_in(jax.random.key(0), i))[0], (2,))
        )
        for i in range(3)
    ]
    np.testing.assert_allclose(moment.matrix, np.mean([j @ j.T for j in rows], 0), rtol=1e-5)


def test_modules_that_share_their_static_parts_share_a_program():
    traces = itertools.count()

    @jax.jit
    def value(f, x):
        next(traces)
        return f(0.0, x)

    for seed, rate in ((0, 0.5), (1, 0.5), (2, 3.0)):  # other arrays, another float
        module = Equinox(seed, rate=rate)
        np.testing.assert_allclose(
            value(as_pytree(module), X0), module(0.0, X0), rtol=1e-6, atol=1e-7
        )
    assert next(traces) == 1
    module = Equinox(power=3)
    np.testing.assert_allclose(value(as_pytree(module), X0), module(0.0, X0), rtol=1e-6)
    assert next(traces) == 3  # once more, and the number of this line


def test_leaves_are_arrays_and_floats_and_survive_any_map():
    flow = cdelta.Flow(Equinox())
    leaves = jax.tree.leaves(flow)
    assert [np.shape(leaf) for leaf in leaves] == [(4, 2), (4,), (2, 4), (2,), ()]
    doubled = jax.tree.map(lambda leaf: 2 * leaf, flow)
    assert isinstance(doubled.velocity, Equinox) and doubled.velocity.rate == 1.0
    assert doubled.velocity.power == 2 and doubled.steps == flow.steps
    np.testing.assert_array_equal(
        doubled.velocity.mlp.layers[0].weight, 2 * flow.velocity.mlp.layers[0].weight
    )
    # maps to what is no array: their structure stays that of the flow
    for kind in (lambda leaf: 0, lambda leaf: "name", lambda leaf: None):
        mapped = jax.tree.map(kind, flow)
        again = jax.tree.map(lambda _, leaf: leaf, mapped, flow, is_leaf=lambda leaf: leaf is None)
        assert jax.tree.structure(again) == jax.tree.structure(flow)
    np.testing.assert_array_equal(
        jax.vmap(lambda f, x: f(x), (jax.tree.map(lambda _: None, flow), 0))(flow, X0[None])[0],
        flow(X0),
    )
    slopes = jax.grad(lambda flow: flow(X0).sum())(flow)
    step = 1e-6
    central = [
        cdelta.Flow(Equinox(rate=0.5 + sign * step))(X0).sum() / (2 * step) for sign in (1, -1)
    ]
    np.testing.assert_allclose(slopes.velocity.rate, central[0] - central[1], rtol=1e-3)


def test_a_network_that_is_trained_in_place_is_seen():
    network = Flax()
    flow = cdelta.Flow(network)
    closed = cdelta.Flow(lambda t, x: network(t, x))
    before = flow(X0)
    np.testing.assert_allclose(closed(X0), before, rtol=1e-6)
    network.linear.kernel[...] = 2 * network.linear.kernel[...]
    assert np.abs(flow(X0) - before).max() > 1e-3
    np.testing.assert_allclose(closed(X0), flow(X0), rtol=1e-6)
    np.testing.assert_allclose(flow(X0), cdelta.Flow(Flax.__call__.__get__(network))(X0), rtol=1e-6)


def test_the_wrapped_callable_is_the_one_that_was_given():
    velocity = Equinox()
    whole = as_pytree(velocity)
    assert isinstance(whole, Traceable) and as_pytree(whole) is whole
    assert whole.function is velocity
    leaves, structure = jax.tree.flatten(whole)
    again = jax.tree.unflatten(structure, leaves)
    assert again.function is not velocity and eqx.tree_equal(again.function, velocity)
