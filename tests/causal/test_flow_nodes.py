"""Causal flows of vectors and labels: against normal models in closed form."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import multivariate_normal

from cdelta import networks
from cdelta.causal import CausalFlow, LinearSCM, Shift

SMALL = {"steps": 100, "batch": 128}
COARSE = {"solver_steps": 12}  # of flows that are straight, or nearly so
N = 6000
M = 4000  # samples of every question: one program for all that ask the same

# a -> b, both -> the vector v [2, 2], v -> c; columns of the linear model: a, b, v, c
GRAPH = {"a": [], "b": ["a"], "v": ["a", "b"], "c": ["v"]}
WEIGHTS = np.array([[0.6, -1.0], [0.0, 0.8], [-0.5, 0.3], [1.2, 0.0]])  # v given a, b
ROOT = np.array([[0.8, 0, 0, 0], [0.5, 0.6, 0, 0], [0, -0.3, 0.7, 0], [0.2, 0.1, 0, 0.4]])
READ = np.array([0.5, -0.4, 0.9, 0.2])  # c given v


def _linear():
    weights = np.zeros((7, 7))
    weights[1, 0] = 0.7
    weights[6, 2:6] = READ
    model = LinearSCM(weights, np.array([1.0, 0.5, 1, 1, 1, 1, 0.3]))
    mixing = np.eye(7)
    mixing[2:6, 2:6] = ROOT
    # x = M e with (I - W) x = diag(s) K e, where v's own noise is turned by K and its causes enter
    weights[2:6, :2] = WEIGHTS
    return np.linalg.solve(np.eye(7) - weights, mixing * np.asarray(model.noise)[None])


MAP = _linear()
COV = MAP @ MAP.T
SHIFT = np.array([1.0, -2, 0.5, 0, 3, 1, -1])


def by_name(x):
    return {"a": x[..., 0], "b": x[..., 1], "v": x[..., 2:6].reshape(*x.shape[:-1], 2, 2),
            "c": x[..., 6]}  # fmt: skip


def flat(x):
    v = np.asarray(x["v"])
    rest = [np.asarray(x[name])[..., None] for name in "abc"]
    return np.concatenate([*rest[:2], v.reshape(*v.shape[:-2], 4), rest[2]], -1)


@pytest.fixture(scope="module")
def samples():
    draw = np.random.default_rng(0)
    return by_name((SHIFT + draw.standard_normal((N, 7)) @ MAP.T).astype(np.float32))


@pytest.fixture(scope="module")
def flow(samples):
    return CausalFlow(GRAPH, width=8, **COARSE).fit(samples, jax.random.key(1), **SMALL)


MEANS = np.array([[0.0, 2.0], [3.0, -1.0], [-2.0, 0.5]])
SPREADS = np.array([[0.3, 1.0], [0.8, 0.4], [0.5, 0.5]])
WEIGHT = np.array([0.5, 0.2, 0.3])


@pytest.fixture(scope="module")
def mixture():
    """A label k, a number a and a vector v of independent components, each normal given k."""
    draw = np.random.default_rng(1)
    k = draw.choice(3, N, p=WEIGHT)
    v = MEANS[k] + SPREADS[k] * draw.standard_normal((N, 2))
    a = k + 0.5 * draw.standard_normal(N)
    data = {"k": k, "a": a.astype(np.float32), "v": v.astype(np.float32)}
    graph = {"k": [], "a": ["k"], "v": ["k"]}
    fitted = CausalFlow(graph, labels={"k": 3}, shapes={"v": (2,)}, width=16, **COARSE).fit(
        data, jax.random.key(2), steps=300, batch=256, rate=1e-2
    )
    return data, fitted


def close(a, b, atol):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=atol)


def rows(x, chosen):
    return {name: values[chosen] for name, values in x.items()}


# ------------------------------------------------------------------------------- a linear model


def test_a_counterfactual_of_a_vector_moves_by_its_weights(flow, samples):
    """x + W Δ(causes), exactly, whatever the vector's noise; W to its standard error."""
    some = rows(samples, slice(0, M))
    moved = flow.counterfactual(some, {"a": 0.5, "b": 1.0})
    change = np.stack([0.5 - some["a"], 1.0 - some["b"]], 1)
    exact = np.asarray(some["v"]).reshape(-1, 4) + change @ WEIGHTS.T
    close(np.asarray(moved["v"]).reshape(-1, 4), exact, 0.05 * np.abs(change).max())
    # the same numbers for every noise: what was added is a linear function of the change
    added = (np.asarray(moved["v"]) - some["v"]).reshape(-1, 4)
    weights, *_ = np.linalg.lstsq(change, added, rcond=None)
    close(change @ weights, added, 2e-4)
    error = 5 / np.sqrt(N * 0.5**2)  # 5 standard errors of a slope on b given a, of unit residuals
    close(weights.T, WEIGHTS, error)
    # and on, to the number that reads it
    close(np.asarray(moved["c"]) - some["c"], added @ READ, 0.02 * np.abs(added).max())
    # the wrong slopes are told apart
    assert np.abs(weights - WEIGHTS[::-1].T).max() > 5 * error


def test_of_shuffled_causes_nothing_follows(samples):
    order = np.random.default_rng(2).permutation(N)
    wrong = {**samples, "a": samples["a"][order], "b": samples["b"][order]}
    fitted = CausalFlow(GRAPH, width=8, **COARSE).fit(wrong, jax.random.key(1), **SMALL)
    some = rows(wrong, slice(0, M))
    moved = fitted.counterfactual(some, {"a": 0.5, "b": 1.0})
    change = np.stack([0.5 - some["a"], 1.0 - some["b"]], 1)
    missed = (np.asarray(moved["v"]) - some["v"]).reshape(-1, 4) - change @ WEIGHTS.T
    assert np.sqrt(np.mean(missed**2)) > 0.5


def test_interventions_give_the_normal_laws(flow):
    drawn = flat(flow.sample(jax.random.key(3), M))
    close(drawn.mean(0), SHIFT, 5 * np.sqrt(np.diag(COV).max() * (1 / M + 1 / N)))
    spread = np.sqrt(np.outer(np.diag(COV), np.diag(COV)))
    close((np.cov(drawn.T) - COV) / spread, 0, 5 * np.sqrt(2 * (1 / M + 1 / N)))
    held = flow.do({"a": 0.5, "b": 1.0}).sample(jax.random.key(4), M)
    assert (np.asarray(held["a"]) == 0.5).all()
    v = np.asarray(held["v"]).reshape(-1, 4)
    mean = SHIFT[2:6] + WEIGHTS @ (np.array([0.5, 1.0]) - SHIFT[:2])
    far = np.linalg.norm(np.array([0.5, 1.0]) - SHIFT[:2]) / 0.5  # of the causes, in its errors
    close(v.mean(0), mean, 5 * np.sqrt(1 / M + (1 + far**2) / N))
    close(np.cov(v.T), ROOT @ ROOT.T, 5 * np.sqrt(2 * (1 / M + 1 / N)))
    # do on the vector cuts it off from its causes
    set_v = flow.do("v", np.arange(4.0).reshape(2, 2)).sample(jax.random.key(5), M)
    assert np.abs(np.corrcoef(set_v["a"], set_v["c"])[0, 1]) < 5 / np.sqrt(M)
    close(np.mean(set_v["c"]), SHIFT[6] + READ @ (np.arange(4.0) - SHIFT[2:6]), 0.1)


def test_the_density_is_the_normal_one(flow, samples):
    some = rows(samples, slice(0, M))
    exact = np.asarray(multivariate_normal.logpdf(flat(some), SHIFT, COV))
    error = np.asarray(flow.log_prob(some)) - exact
    assert abs(error.mean()) < 0.03 and np.sqrt(np.mean(error**2)) < 0.15
    # what was set is left out: the rest's law given it
    held = flow.do("v", samples["v"][0])
    inside = {**rows(samples, 3), "v": samples["v"][0]}
    parts = [multivariate_normal.logpdf(flat(inside)[:2], SHIFT[:2], COV[:2, :2])]
    off = flat(inside)[6] - SHIFT[6] - READ @ (flat(inside)[2:6] - SHIFT[2:6])
    parts.append(-(off**2) / (2 * 0.3**2) - np.log(0.3 * np.sqrt(2 * np.pi)))
    close(held.log_prob(inside), sum(map(float, parts)), 0.2)


def test_numbers_by_name_are_the_numbers_of_an_array(samples):
    """Bit for bit: whether a sample is an array or goes by name."""
    graph, data = {"a": [], "b": ["a"]}, np.stack([samples["a"], samples["b"]], 1)
    plain = CausalFlow(graph, width=8).fit(data, jax.random.key(1), **SMALL)
    named = CausalFlow(graph, width=8).fit(
        {"a": data[:, 0], "b": data[:, 1]}, jax.random.key(1), **SMALL
    )
    jax.tree.map(np.testing.assert_array_equal, named.nodes.numbers, plain.nodes)
    drawn, other = plain.sample(jax.random.key(2), 5), named.sample(jax.random.key(2), 5)
    close(np.stack([other["a"], other["b"]], 1), drawn, 1e-6)
    shifted = named.counterfactual(other, "a", Shift(0.5))
    close(shifted["b"], plain.counterfactual(drawn, "a", Shift(0.5))[:, 1], 1e-5)
    again = named.do("a", Shift(0.5)).noises(shifted)
    close(again["a"], plain.noises(drawn)[:, 0], 1e-5)


# ------------------------------------------------------------------------------- labels


def test_a_label_is_drawn_set_and_kept(mixture):
    data, flow = mixture
    share = np.bincount(flow.sample(jax.random.key(1), M)["k"], minlength=3) / M
    found = np.bincount(data["k"][: N - N // 10], minlength=3) / (N - N // 10)
    assert (np.abs(share - found) < 5 * np.sqrt(found * (1 - found) / M)).all()
    for k in range(3):
        of_k = np.asarray(flow.do("k", k).sample(jax.random.key(2), M)["v"])
        close(of_k.mean(0), MEANS[k], 0.15)
        close(of_k.std(0), SPREADS[k], 0.12)
        assert np.abs(of_k.mean(0) - MEANS[(k + 1) % 3]).max() > 1
    some = rows(data, slice(0, M))
    noise = flow.noises(some)
    np.testing.assert_array_equal(noise["k"], some["k"])
    moved = flow.counterfactual(some, "a", 1.0)
    np.testing.assert_array_equal(moved["k"], some["k"])
    close(moved["v"], some["v"], 1e-3)
    # a label that was set is its own noise as well, and has no density
    held = {**some, "k": np.full(M, 2)}
    np.testing.assert_array_equal(flow.do("k", 2).noises(held)["k"], 2)
    density = flow.log_prob(held) - flow.do("k", 2).log_prob(held)
    close(density, np.log(np.asarray(flow.nodes.frequencies["k"])[2]), 1e-5)


def test_a_counterfactual_label_keeps_the_whitened_residual(mixture):
    data, flow = mixture
    some = rows(data, slice(0, M))
    moved = flow.counterfactual(some, "k", 1)
    left = (some["v"] - MEANS[some["k"]]) / SPREADS[some["k"]]
    kept = (np.asarray(moved["v"]) - MEANS[1]) / SPREADS[1]
    error = np.sqrt(np.mean((kept - left) ** 2))
    assert error < 0.2, error
    assert np.sqrt(np.mean((moved["a"] - 1 - (some["a"] - some["k"])) ** 2)) < 0.1
    other = np.random.default_rng(0).permutation(M)
    assert np.sqrt(np.mean((kept - left[other]) ** 2)) > 1  # another's residual


@pytest.mark.parametrize("trained", [0, 1], ids=["the same direction", "another direction"])
def test_of_a_hidden_property_the_overlap_is_kept(trained):
    """p shows in direction g_k, beside grain: of it c = g_0 · g_1 is kept, and grain takes the
    place of the rest. Where the direction is the same nothing has to be learned."""
    draw, s, tau, c = np.random.default_rng(4), 1.0, 0.4, 0.5 if trained else 1.0
    directions = np.array([[1.0, 0.0], [c, np.sqrt(1 - c**2)]])
    k, p = draw.integers(0, 2, N), draw.standard_normal(N)
    grain = draw.standard_normal((N, 2))
    v = (2.0 * k[:, None] + s * p[:, None] * directions[k] + tau * grain).astype(np.float32)
    own = networks.BesideNormal(networks.MLP(2, 32, 2, condition=2, rngs=nnx.Rngs(0)), 2)
    graph = {"k": [], "v": ["k"]}
    flow = CausalFlow(graph, labels={"k": 2}, network={"v": own}, **COARSE).fit(
        {"k": k, "v": v}, jax.random.key(5),
        settings={"v": {"steps": 600 if trained else 20, "batch": 256, "rate": 1e-2}},
    )  # fmt: skip
    some = {"k": k[:M], "v": v[:M]}
    at = some["k"] == 0
    moved = np.asarray(flow.counterfactual(some, "k", 1)["v"])[at] - 2.0
    size = np.sqrt(s**2 + tau**2)
    shown, then = (some["v"][at] @ directions[0]) / size, (moved @ directions[1]) / size
    slopes, *_ = np.linalg.lstsq(np.stack([shown, grain[:M][at, 1]], 1), then, rcond=None)
    np.testing.assert_allclose(slopes, directions[1], atol=0.12)
    np.testing.assert_allclose([then.mean(), then.std()], [0, 1], atol=0.12)  # and so is the law
    if trained:  # the truth keeps all of it
        assert abs(np.polyfit(p[:M][at], then, 1)[0] - s / size) > 0.3


def test_the_density_has_the_label_in_it(mixture):
    data, flow = mixture
    some = rows(data, slice(0, M))
    k = some["k"]
    e = (some["v"] - MEANS[k]) / SPREADS[k]
    exact = np.log(WEIGHT[k]) - (e**2 / 2 + np.log(SPREADS[k] * np.sqrt(2 * np.pi))).sum(1)
    exact += -((some["a"] - k) ** 2) / (2 * 0.25) - np.log(0.5 * np.sqrt(2 * np.pi))
    found = np.asarray(flow.log_prob(some))
    assert abs(np.mean(found - exact)) < 0.1 and np.sqrt(np.mean((found - exact) ** 2)) < 0.4
    # by the change of variables alone: the map's Jacobian at one sample
    one = rows(some, 5)
    noise = flow.noises({**one, "v": one["v"].astype(np.float64)})

    def of(e):
        return flow({**noise, "v": e})["v"]

    slope = np.linalg.slogdet(jax.jacfwd(of)(noise["v"]))[1]
    a = flow.do({"k": int(one["k"]), "v": one["v"]}).log_prob(one)
    normal = -np.sum(np.asarray(noise["v"]) ** 2) / 2 - np.log(2 * np.pi) - slope
    frequency = np.log(flow.nodes.frequencies["k"][one["k"]])
    close(found[5], normal + a + frequency, 2e-3)


def test_noises_come_back(flow, mixture, samples):
    for model, data in ((flow, samples), (mixture[1], mixture[0])):
        some = rows(data, slice(0, M))
        noise = model.noises(some)
        back = jax.vmap(model)(noise)
        for name, values in some.items():
            close(back[name], values, 3e-3)
            assert np.shape(noise[name]) == np.shape(values)


# ------------------------------------------------------------------------------- one's own network


def test_a_network_of_ones_own_learns_the_same_flow(mixture):
    data, _ = mixture
    graph = {"k": [], "v": ["k"]}
    data = {name: data[name] for name in graph}
    own = networks.MLP(2, 32, 2, condition=3, rngs=nnx.Rngs(0))
    flow = CausalFlow(graph, labels={"k": 3}, network={"v": own}, **COARSE).fit(
        data, jax.random.key(2), settings={"v": {"steps": 500, "batch": 256, "rate": 1e-2}}
    )
    some = rows(data, slice(0, M))
    moved = np.asarray(flow.counterfactual(some, "k", 1)["v"])
    left = (some["v"] - MEANS[some["k"]]) / SPREADS[some["k"]]
    error = np.sqrt(np.mean(((moved - MEANS[1]) / SPREADS[1] - left) ** 2))
    assert error < 0.4, error
    noise = flow.noises(some)
    close(jax.vmap(flow)(noise)["v"], some["v"], 1e-2)
    exact = np.log(WEIGHT[some["k"]]) - (
        left**2 / 2 + np.log(SPREADS[some["k"]] * np.sqrt(2 * np.pi))
    ).sum(1)
    assert abs(np.mean(np.asarray(flow.log_prob(some)) - exact)) < 0.25


def test_a_unet_given_attributes_and_its_file(tmp_path):
    draw = np.random.default_rng(3)
    a = draw.standard_normal((60, 1, 1, 1)).astype(np.float32)
    data = {"a": a[:, 0, 0, 0], "image": a + draw.standard_normal((60, 4, 4, 1), np.float32)}

    def unet(seed):
        # the paper's plain blocks: half the program, and running averages to be saved
        return networks.UNet(
            (4, 4, 1), (4, 4), residual=False, time=8, condition=1, rngs=nnx.Rngs(seed)
        )

    flow = CausalFlow([("a", "image")], network={"image": unet(0)}, width=8, solver_steps=4).fit(
        data, jax.random.key(0), steps=2, batch=8
    )
    drawn = flow.sample(jax.random.key(1), 3)
    assert drawn["image"].shape == (3, 4, 4, 1)
    path = tmp_path / "flow.safetensors"
    flow.save(path)
    again = CausalFlow.load(path, network={"image": unet(7)})
    close(again.sample(jax.random.key(1), 3)["image"], drawn["image"], 0)
    halves = jax.tree.map(lambda a: np.asarray(a, jnp.bfloat16) if a.ndim else a, flow.nodes)
    flow._with(nodes=halves).save(path)
    back = CausalFlow.load(path, network={"image": unet(7)}).nodes
    jax.tree.map(lambda a, b: close(a, np.asarray(b, a.dtype), 0), back, halves)
    with pytest.raises(ValueError, match=r"network must hold those of the nodes \['image'\]"):
        CausalFlow.load(path)
    with pytest.raises(OSError, match="not those of its graph"):
        other = networks.MLP((4, 4, 1), 8, condition=1, rngs=nnx.Rngs(0))
        CausalFlow.load(path, network={"image": other})


# ------------------------------------------------------------------------------- files and refusals


def test_a_saved_flow_comes_back_bit_for_bit(flow, mixture, samples, tmp_path):
    for model, data in ((flow, samples), (mixture[1], mixture[0])):
        path = tmp_path / "flow.safetensors"
        model.save(path)
        again = CausalFlow.load(path)
        assert again.names == model.names and again.layout == model.layout
        some = rows(data, slice(0, M))
        for ask in (lambda m, x=some: m.noises(x), lambda m: m.sample(jax.random.key(0), M)):
            jax.tree.map(np.testing.assert_array_equal, ask(again), ask(model))
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    facts = json.loads(header["__metadata__"]["cdelta.CausalFlow"])
    assert facts["format"] == 2 and facts["labels"] == {"k": 3}
    facts["labels"] = {"k": 4}
    earlier = {name: fact for name, fact in facts.items() if name != "header"}  # had no checksum
    for told, message in ((facts, "its checksum"), (earlier, "not those of its graph")):
        header["__metadata__"]["cdelta.CausalFlow"] = json.dumps(told)
        new = json.dumps(header).encode()
        path.write_bytes(len(new).to_bytes(8, "little") + new + whole[8 + size :])
        with pytest.raises(OSError, match=message):
            CausalFlow.load(path)


def test_equations_sweeps_and_precision(flow, mixture):
    _, labelled = mixture
    noise = {"a": 0.3, "b": -0.2, "v": jnp.ones((2, 2)), "c": 0.1}
    noise = {name: jnp.asarray(value, jnp.float32) for name, value in noise.items()}
    changed = flow.do({"v": lambda x, e: e * x["a"]})
    close(changed(noise)["v"], np.full((2, 2), flow(noise)["a"]), 1e-6)
    with pytest.raises(ValueError, match="equations of their own"):
        changed.noises(flow(noise))
    with pytest.raises(ValueError, match="may ask for those before it"):
        flow.do({"v": lambda x, e: e * x["c"]})(noise)
    half = {name: np.asarray(value, np.float16) for name, value in noise.items()}
    assert flow(half)["v"].dtype == np.float16
    of_label = {"k": 0, "a": 0.1, "v": jnp.zeros(2)}
    swept = jax.vmap(lambda k: labelled.do("k", k)(of_label)["v"])(jnp.arange(3))
    close(swept[2], labelled.do("k", 2)(of_label)["v"], 1e-6)
    slope = jax.grad(lambda a: flow.do("a", a)(noise)["v"][1, 1])(0.5)
    close(slope, 1.2, 0.1)  # the fourth row: b does not act on it


def test_what_does_not_fit_is_refused_by_name(unchecked, flow, mixture, samples):
    data, labelled = mixture
    key = jax.random.key(0)
    plain = CausalFlow({"k": [], "v": ["k"]}, labels={"k": 3})
    good = {"k": data["k"], "v": data["v"]}
    some, one = rows(samples, slice(0, 4)), rows(samples, 0)
    broken = {**good, "v": np.where(np.arange(2 * N).reshape(N, 2) == 5, np.nan, good["v"])}
    seen = {**one, "v": np.zeros((2, 2))}
    made = np.array([[1.0, -2.0], [0.5, 3.0], [2.0, 2.0]])[good["k"]]
    pair, twice = CausalFlow([("a", "b")]), {"a": data["a"], "b": 2 * data["a"] + 1}
    cases = [
        (lambda: CausalFlow(GRAPH, shapes={"w": (2,)}), r"shapes must be of the nodes .* \['w'\]"),
        (lambda: CausalFlow(GRAPH, labels={"b": 3}), r"'b' has causes \['a'\]"),
        (lambda: CausalFlow(GRAPH, labels={"a": 1}), r"labels\['a'\] must be 2 or more"),
        (lambda: CausalFlow(GRAPH, shapes={"v": (0,)}), r"shapes\['v'\] must be a positive"),
        (lambda: CausalFlow(GRAPH, shapes={"a": (2,)}, labels={"a": 2}), r"\['a'\] in both"),
        (lambda: CausalFlow([[0]], shapes={"v": (2,)}), "give the nodes names"),
        (lambda: CausalFlow(GRAPH, network={"w": len}), "network must be of the nodes"),
        (lambda: CausalFlow(GRAPH, network={"v": 3}), r"network\['v'\] must be a function"),
        (
            lambda: CausalFlow(GRAPH, network={"v": lambda x, t, condition: x}),
            r"network\['v'\] must take the time first, .* \(x, t\): the order is \(t, x, c",
        ),
        (lambda: CausalFlow(GRAPH, labels={"a": 2}, network={"a": len}), "'a' is none"),
        (lambda: plain.fit(np.zeros((99, 2)), key), "x must be a mapping"),
        (lambda: CausalFlow([[0]]).fit({"a": data["a"]}, key), "give the graph's nodes names"),
        (lambda: plain.fit({"k": good["k"]}, key), r"missing \['v'\]"),
        (lambda: plain.fit({**good, "w": good["k"]}, key), r"unknown \['w'\]"),
        (lambda: plain.fit({**good, "k": good["v"][:, 0]}, key), r"x\['k'\] must hold labels"),
        (lambda: plain.fit({**good, "k": good["k"] + 1}, key), "labels in 0, …, 2, got 1 to 3"),
        (lambda: plain.fit({**good, "v": good["k"]}, key), r"x\['v'\] holds integers"),
        (lambda: plain.fit({**good, "v": good["v"][:9]}, key), "as many of every node"),
        (lambda: plain.fit(broken, key), r"x\['v'\] must be finite"),
        (lambda: plain.fit({**good, "v": 0 * good["v"]}, key), r"x\['v'\] must vary"),
        (lambda: plain.fit({**good, "k": good["k"] % 2}, key), r"\[2\] do not occur"),
        (lambda: plain.fit({**good, "v": made}, key), r"\['v'\] are functions of their causes"),
        (lambda: pair.fit(twice, key), r"\['b'\] are functions of their causes"),
        (lambda: plain.fit({**good, "v": good["v"] + 1e8}, key), r"\['v'\] do not beside"),
        (lambda: plain.fit(rows(good, slice(0, 30)), key), "at least 40 samples"),
        (lambda: plain.fit(good, key, held_out=good["v"]), "held_out must be a mapping"),
        (lambda: plain.fit(good, key, settings={"k": {}}), "settings must be of"),
        (lambda: plain.fit(good, key, settings={"v": {"step": 3}}), "settings must be of"),
        (lambda: plain.fit(good, key, settings={"v": {"rate": -1}}), "rate must be positive"),
        (lambda: plain.do("k", 1), "has not been fitted"),
        (lambda: flow.noises({**some, "v": some["v"][:, 0]}), r"x\['v'\] must have shape \(2, 2\)"),
        (lambda: flow.noises({**some, "a": 1.0}), "one sample, or as many of every node"),
        (lambda: flow(some), "noise must hold one sample"),
        (lambda: flow.do("v", np.zeros(4)), r"value must have shape \(2, 2\), that of 'v'"),
        (lambda: flow.do("v", np.full((2, 2), np.nan)), "value must be finite"),
        (lambda: flow.do("v", Shift(1.0)), "a Shift is of a number"),
        (lambda: labelled.do("k", 3), "value must hold labels in 0, …, 2, got 3"),
        (lambda: labelled.do("k", 0.5), "value must hold labels, integers"),
        (lambda: labelled.do("k", lambda x, e: e), "must be one of its labels"),
        (lambda: flow.do("v", np.ones((2, 2))).noises(seen), "agree with the values"),
        (lambda: labelled.do("k", 1).noises(rows(data, slice(0, 9))), "agree with the values"),
        (lambda: flow.jacobian(np.zeros(4)), "jacobian is of features that are all numbers"),
    ]  # fmt: skip
    for ask, message in cases:
        with pytest.raises(ValueError, match=message):
            ask()
    wide = {"a": data["a"][:200], "v": np.random.default_rng(0).standard_normal((200, 300))}
    alone = {"v": wide["v"]}  # of a vector without causes one network less is trained
    fitted = CausalFlow({"v": []}, width=4, layers=1).fit(alone, key, steps=1)
    with pytest.raises(ValueError, match="'v' has 300 numbers, and the divergence"):
        fitted.log_prob(rows(alone, slice(0, 2)))
    with pytest.raises(ValueError, match="more than the 1024 of which a covariance is taken"):
        CausalFlow([("a", "v")]).fit({**wide, "v": np.tile(wide["v"], 4)}, key)
