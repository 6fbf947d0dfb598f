"""What a function reads: every change that it could see changes its key, and nothing else does."""

import array
import dataclasses
import functools
import math
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdelta
from cdelta import _reads

rate = 1.0
mean = 1.0  # named as an attribute is, and read by nobody


def reads_a_global(t, x):
    return rate * x


def calls_a_function(t, x):
    return [reads_a_global(t, one) for one in x]


class Scaled:
    factor = 1.0

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, t, x):
        return self.rate * self.factor * x

    def method(self, t, x):
        return self.rate * x


class Slotted:
    __slots__ = ("rate",)

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, t, x):
        return self.rate * x


@dataclasses.dataclass(frozen=True)
class Frozen:
    inner: object

    def __call__(self, t, x):
        return self.inner(t, x)


class Module(eqx.Module):
    rate: jax.Array

    def __call__(self, t, x):
        return rate * self.rate * x


def closing_over(value):
    return lambda t, x: value


def settings_of(**values):
    module = types.ModuleType("settings_of_a_user")
    vars(module).update(values)
    return module


def in_a_cell():
    value = 1.0

    def read(t, x):
        return value * x

    def write():
        nonlocal value
        value = 2.0

    return read, write


def a_global():
    def write():
        global rate
        rate = 2.0

    return reads_a_global, write


def a_global_of_a_global():
    return calls_a_function, a_global()[1]


def in_a_container(change):
    values = {"rates": [1.0, 2.0], "name": "a"}
    return closing_over(values), lambda: change(values)


def of_an_object(make=Scaled, wrap=lambda value: value):
    value = make(1.0)
    return wrap(value), lambda: setattr(value, "rate", 2.0)


class ListWithRate(list):
    factor = 1.0


class DictWithRate(dict):
    pass


class FloatWithRate(float):
    pass


class ArrayWithRate(np.ndarray):
    pass


def with_an_attribute(value):
    value.rate = 1.0
    return closing_over(value), lambda: setattr(value, "rate", 2.0)


def in_a_buffer(values):
    return closing_over(values), lambda: values.__setitem__(0, 2)


def of_the_class_of_a_list():
    values = ListWithRate([1.0])
    return closing_over(values), lambda: setattr(ListWithRate, "factor", 2.0)


def of_a_class():
    return Scaled(1.0), lambda: setattr(Scaled, "factor", 2.0)


def of_a_module():
    settings = settings_of(rate=1.0, inner=settings_of(rate=3.0))

    def velocity(t, x):
        return settings.inner.rate * x

    return velocity, lambda: setattr(settings.inner, "rate", 2.0)


def of_a_namespace():
    settings = types.SimpleNamespace(rate=1.0)
    return (lambda t, x: settings.rate * x), lambda: setattr(settings, "rate", 2.0)


def in_an_array(index=0):
    values = np.zeros(5)
    return closing_over(values), lambda: values.__setitem__(index, 1.0)


def by_default():
    def velocity(t, x, rate=1.0):
        return rate * x

    return velocity, lambda: setattr(velocity, "__defaults__", (2.0,))


def in_its_code():
    velocity = closing_over(1.0)
    other = velocity.__code__.replace(co_name="other")
    return velocity, lambda: setattr(velocity, "__code__", other)


def of_a_pytree():
    module = Module(jnp.ones(()))
    return closing_over([module, 2]), a_global()[1]


def under(wrapper):
    read, write = in_a_cell()
    return wrapper(read), write


CHANGES = {
    "a cell": in_a_cell,
    "a global": a_global,
    "a global of a function that is called": a_global_of_a_global,
    "an entry of a dict": lambda: in_a_container(lambda values: values.update(name="b")),
    "an entry of a list in a dict": lambda: in_a_container(lambda v: v["rates"].append(3.0)),
    "1 and True are told apart": lambda: in_a_container(lambda v: v.update(rates=[True, 2.0])),
    "an attribute": of_an_object,
    "an attribute in a slot": lambda: of_an_object(Slotted),
    "an attribute seen by a method": lambda: of_an_object(wrap=lambda value: value.method),
    "an attribute of what a dataclass holds": lambda: of_an_object(wrap=Frozen),
    "an attribute of a class": of_a_class,
    "a member of a module": of_a_module,
    "a namespace": of_a_namespace,
    "an entry of an array": in_an_array,
    "an entry of a bytearray": lambda: in_a_buffer(bytearray(b"abc")),
    "an entry of an array of Python's": lambda: in_a_buffer(array.array("d", [1.0])),
    "an attribute of a list": lambda: with_an_attribute(ListWithRate([1.0])),
    "an attribute of the class of a list": of_the_class_of_a_list,
    "an attribute of a dict": lambda: with_an_attribute(DictWithRate(a=1.0)),
    "an attribute of a float": lambda: with_an_attribute(FloatWithRate(1.0)),
    "an attribute of an array": lambda: with_an_attribute(np.zeros(2).view(ArrayWithRate)),
    "an attribute of a partial": lambda: with_an_attribute(functools.partial(reads_a_global)),
    "a default": by_default,
    "the code (as autoreload changes it)": in_its_code,
    "a global read by a module of equinox": of_a_pytree,
    "under functools.partial": lambda: under(lambda f: functools.partial(f, 0.0)),
    "under jax.vmap": lambda: under(jax.vmap),
    "under jax.jit": lambda: under(jax.jit),
    "under equinox.filter_jit": lambda: under(eqx.filter_jit),
    "under a decorator": lambda: under(lambda f: functools.wraps(f)(lambda *a: f(*a))),
    "in a tuple of functions": lambda: under(lambda f: closing_over((math.sin, f))),
}


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setitem(globals(), "rate", 1.0)
    monkeypatch.setattr(Scaled, "factor", 1.0)
    monkeypatch.setattr(ListWithRate, "factor", 1.0)


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_what_is_read_changes_the_key_once(what):
    function, change = CHANGES[what]()
    before = _reads.key(function)
    assert _reads.key(function) == before and hash(_reads.key(function)) == hash(before)
    change()
    after = _reads.key(function)
    assert after != before
    assert _reads.key(function) == after


def test_what_is_not_read_does_not_count():
    settings = settings_of(rate=1.0, other=1.0)

    def velocity(t, x):
        return settings.rate * x

    before = _reads.key(velocity)
    settings.other = 2.0
    globals()["unrelated"] = object()
    assert _reads.key(velocity) == before
    del globals()["unrelated"]


def test_an_attribute_is_not_the_global_of_its_name_nor_a_global_the_member(monkeypatch):
    settings = settings_of(rate=1.0, mean=1.0)

    def velocity(t, x):
        return [rate * x.mean() for _ in range(2)] + [settings.mean]  # rate is in another function

    before = _reads.key(velocity)
    monkeypatch.setitem(globals(), "mean", 2.0)
    settings.rate = 2.0
    assert _reads.key(velocity) == before
    settings.mean = 2.0
    changed = _reads.key(velocity)
    assert changed != before
    monkeypatch.setitem(globals(), "rate", 2.0)
    assert _reads.key(velocity) != changed


@pytest.mark.parametrize(
    ("dtype", "shape", "x64"),
    [
        (np.float32, (3,), False),
        (np.int32, (3,), False),
        (np.float64, (3,), True),
        (np.float64, (), True),
    ],
)
def test_an_array_changed_in_place_gives_its_new_value_in_either_precision(dtype, shape, x64):
    with jax.enable_x64(x64):
        rates, x = np.ones(shape, dtype), np.ones(3, np.float32)
        flow = cdelta.Flow(lambda t, x: rates * x, "euler", 1)
        for rate in (1, 2, 1):
            rates[...] = rate
            np.testing.assert_array_equal(flow(x), (1 + rate) * x)
        # transformed, what was traced before is compiled anew
        np.testing.assert_array_equal(jax.jacfwd(flow)(x), 2 * np.eye(3))


def test_an_array_changed_in_place_is_seen_by_an_estimator():
    with jax.enable_x64(False):
        rates = np.ones(2, np.float32)
        f = jax.tree_util.Partial(lambda x: rates * x)
        for rate in (1, 2):
            rates[...] = rate
            moment = cdelta.dependence.wiggle_moment(f, jax.random.key(0), 2, 1)
            np.testing.assert_array_equal(moment.matrix, rate**2 * np.eye(2))


def test_numbers_count_by_value_and_arrays_of_jax_by_identity():
    values = {"nan": math.nan, "numpy": np.float32(1)}
    function, ones = closing_over(values), jnp.ones(3)
    before = _reads.key(function)
    values.update(nan=float("nan"), numpy=np.float32(1))
    assert _reads.key(function) == before
    values["jax"] = ones
    with_array = _reads.key(function)
    values["jax"] = jnp.ones(3)
    assert _reads.key(function) != with_array
    values["jax"] = ones
    assert _reads.key(function) == with_array


def test_what_is_large_counts_by_identity_and_what_is_circular_ends():
    large = np.zeros(_reads.LARGE // 8 + 1)
    many = list(range(_reads.MANY + 1))
    circle = [1.0]
    circle.append(circle)
    deep = []
    for _ in range(3000):  # deeper than Python's stack
        deep = [deep]
    function = closing_over((large, many, circle, deep))
    before = _reads.key(function)
    large[0], many[0] = 1.0, 1
    assert _reads.key(function) == before  # as documented
    circle[0] = 2.0
    assert _reads.key(function) != before
    assert len(_reads.key(closing_over([[i] for i in range(_reads.MANY)]))) < 3 * _reads.MANY


def test_equal_objects_count_as_one_where_they_say_so():
    assert _reads.key(Frozen("a")) == _reads.key(Frozen("a")) != _reads.key(Frozen("b"))
    assert _reads.key(Scaled(1.0)) != _reads.key(Scaled(1.0))
    unhashable = Frozen([1])
    assert _reads.key(unhashable) == _reads.key(unhashable) != _reads.key(Frozen([1]))


def test_installed_packages_are_not_walked():
    assert len(_reads.key(jnp.sin)) < 10
    assert len(_reads.key(jax.tree_util, eqx.nn.MLP, jax.nn.relu)) < 10
