"""Refusals that many modules share."""

import sys
import types

import jax
import jax.numpy as jnp
import pytest

import cdelta
from cdelta import adapters, causal, dependence, jacobian

KEY = jax.random.key(0)


@pytest.fixture
def module(monkeypatch):
    """A module of a PyTorch that is not installed: its class, under its name."""
    torch = types.ModuleType("torch")
    torch.nn = types.ModuleType("torch.nn")
    exec(
        "class Module:\n    def __call__(self, *given):\n        return self.forward(*given)",
        vars(torch.nn),
    )
    torch.nn.__name__ = torch.nn.Module.__module__ = "torch.nn"
    monkeypatch.setitem(sys.modules, "torch", torch)

    class Net(torch.nn.Module):
        def forward(self, *given):
            raise TypeError("linear(): argument 'input' must be Tensor, not JitTracer")

    return Net()


ENTRIES = {
    "a flow": (lambda m: cdelta.Flow(m), r"velocity.*cdelta\.torch\.velocity\(module\)$"),
    "its method": (lambda m: cdelta.Flow(m.forward), "velocity must be a function of jax's arrays"),
    "a report": (lambda m: cdelta.report(m, KEY, 2), r"f must.*torch\.velocity.*torch\.features"),
    "features": (
        lambda m: cdelta.report(cdelta.Flow(lambda t, x: x), KEY, 2, features=m),
        r"features must be .*cdelta\.torch\.features\(module\)$",
    ),
    "wiggles": (lambda m: dependence.wiggle_moment(m, KEY, 2, 5), r"f must.*torch\.features"),
    "held": (lambda m: dependence.held_moment(m, KEY, 2, 5, 0), r"f must.*torch\.features"),
    "rows": (lambda m: jacobian.rows(m, jnp.ones(2)), r"f must.*torch\.features"),
    "products": (lambda m: jacobian.jvp(m, jnp.ones(2), jnp.ones(2)), "f must"),
    "differences": (
        lambda m: jacobian.finite_difference(m, jnp.ones(2), jnp.ones(2), 1e-3), "f must",
    ),
    "an adapter": (lambda m: adapters.reversed_time(m), r"a PyTorch module, Net: wrap it, cdelta"),
    "another": (lambda m: adapters.batched(m), "a function of jax's arrays"),
    "a path": (lambda m: causal.steer(m, jnp.ones(2), {0: 1.0}), "a function of jax's arrays"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENTRIES)
def test_a_module_of_pytorch_is_named_wherever_a_function_is_asked_for(name, module, unchecked):
    ask, message = ENTRIES[name]
    with pytest.raises(ValueError, match=message):
        ask(module)


def test_a_function_that_calls_one_is_advised(module):
    flow = cdelta.Flow(lambda t, x: module(t, x))
    with pytest.raises(ValueError, match=r"must be Tensor.*calls PyTorch.*cdelta\.torch\.velocity"):
        flow(jnp.ones(2))
    with pytest.raises(TypeError) as caught:
        dependence.wiggle_moment(lambda x: module(x), KEY, 2, 5)
    assert any("cdelta.torch.features(module)" in note for note in caught.value.__notes__)


def test_without_pytorch_nothing_is_named(monkeypatch):
    """The null: other callables, and whatever else may stand in ``sys.modules``."""
    for there in (None, types.ModuleType("torch"), types.SimpleNamespace(nn=None)):
        monkeypatch.setitem(sys.modules, "torch", there)
        assert cdelta.Flow(lambda t, x: x, steps=1)(jnp.ones(2)).shape == (2,)
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(ValueError) as caught:
        cdelta.Flow(lambda t, x: {}["a"])(jnp.ones(2))
    assert "PyTorch" not in str(caught.value)
