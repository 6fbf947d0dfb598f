"""Causal flows: against linear models in closed form, and a nonlinear one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import multivariate_normal
from scipy.stats import ks_2samp, kstest, lognorm

from cdelta import causal
from cdelta.causal import CausalFlow, Shift, _conditional, _fitting, _vectors

# columns not in causal order: 2 -> 0 -> 1, 2 -> 1
MODEL = causal.LinearSCM(
    np.array([[0, 0, 0.8], [-1.0, 0, 0.5], [0, 0, 0]]),
    np.array([0.5, 0.7, 1.0]),
    np.array([1.0, 0, -2]),
)
NAMES = ("x", "y", "z")
SMALL = {"steps": 150, "batch": 128}


@pytest.fixture(scope="module")
def samples():
    return np.asarray(MODEL.sample(jax.random.key(0), 20_000), np.float32)


@pytest.fixture(scope="module")
def flow(samples):
    return CausalFlow(MODEL.graph, NAMES, width=8).fit(samples, jax.random.key(1), **SMALL)


@pytest.fixture(scope="module")
def bent():
    """A mean, a scale and a noise that no linear regression has, with its fit."""
    noise = np.asarray(jax.random.normal(jax.random.key(5), (10_000, 2)), np.float32)
    x = noise[:, 0]
    y = np.sin(2 * x) + (0.3 + 0.2 * np.tanh(x)) * np.sinh(noise[:, 1])
    data = np.stack([x, y], 1)
    fitted = CausalFlow([("x", "y")], width=32).fit(
        data, jax.random.key(2), steps=600, batch=256, rate=1e-2
    )
    return data, noise, fitted


def close(a, b, atol):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=atol)


def test_counterfactuals_and_interventions_are_those_of_the_linear_model(flow, samples):
    some = samples[:50]
    for change in ({2: 1.0}, {0: -1.0}, {2: 0.5, 0: 2.0}, {2: Shift(1.5)}, {0: Shift(-1), 1: 0.3}):
        exact = np.stack([MODEL.counterfactual(row, change) for row in some])
        close(flow.counterfactual(some, change), exact, 0.05)
        assert np.abs(exact - some).max(0)[1] > 0.3  # the samples left alone would be found
    named = flow.counterfactual(some, {"z": 0.5, "x": 2.0})
    close(named, flow.counterfactual(some, {2: 0.5, 0: 2.0}), 0)
    close(flow.counterfactual(some[3], "z", 0.5), flow.counterfactual(some, {"z": 0.5})[3], 1e-5)
    n = 20_000
    drawn = np.asarray(flow.do({"x": 2.0}).sample(jax.random.key(3), n))
    exact = MODEL.do({0: 2.0})
    close(drawn.mean(0), exact.mean, 5 * np.sqrt(np.diag(exact.cov).max() * 2 / n))
    close(np.cov(drawn.T), exact.cov, 0.06)


def test_only_what_comes_after_moves(flow, samples):
    some = samples[:50]
    moved = np.asarray(flow.counterfactual(some, {"x": 3.0}))
    assert (moved[:, 0] == 3).all() and np.abs(moved[:, 1] - some[:, 1]).min() > 0.1
    close(moved[:, 2], some[:, 2], 1e-4)


def test_its_density_is_the_normal_one(flow, samples):
    some = samples[-200:]
    exact = np.asarray(multivariate_normal.logpdf(some, MODEL.mean, MODEL.cov))
    close(flow.log_prob(some), exact, 0.25)
    assert abs(np.mean(np.asarray(flow.log_prob(some)) - exact)) < 0.02
    # nothing but the change of variables says so: the map's own Jacobian
    noise = flow.noises(some[0].astype(np.float64))
    slope = np.linalg.slogdet(flow.jacobian(noise))[1]
    normal = -np.sum(np.asarray(noise) ** 2) / 2 - 1.5 * np.log(2 * np.pi)
    close(flow.log_prob(some[0]), normal - slope, 1e-4)


def test_noises_come_back_and_the_jacobian_is_triangular(bent):
    data, _, flow = bent
    some = data[:100]
    noise = flow.noises(some)
    close(jax.vmap(flow)(noise), some, 2e-3)
    close(jax.vmap(flow.noises)(some), noise, 1e-4)
    jacobian = jax.vmap(flow.jacobian)(noise)
    assert (np.asarray(jacobian)[:, 0, 1] == 0).all()
    assert (np.asarray(jacobian)[:, [0, 1], [0, 1]] > 0).all()
    # the density by the velocity's divergence, and by the map's Jacobian
    slope = np.linalg.slogdet(np.asarray(jacobian))[1]
    normal = -np.sum(np.asarray(noise) ** 2, 1) / 2 - np.log(2 * np.pi)
    close(flow.log_prob(some), normal - slope, 1e-2)


def test_a_bent_mechanism_is_learned(bent):
    """Noises against those that made the data, with what a linear regression would say."""
    data, noise, flow = bent
    inside = (np.abs(noise) < 1.5).all(1)
    error = np.asarray(flow.noises(data))[inside] - noise[inside]
    assert np.abs(error[:, 0]).max() < 0.15
    assert np.sqrt(np.mean(error[:, 1] ** 2)) < 0.2
    slope, constant = np.polyfit(data[:, 0], data[:, 1], 1)
    left = data[:, 1] - slope * data[:, 0] - constant
    assert np.sqrt(np.mean((left / left.std() - noise[:, 1])[inside] ** 2)) > 0.4
    # heavy tails: 3.43, where a normal residual of the true mean and scale has 2.44
    drawn = np.asarray(flow.do({"x": 0.0}).sample(jax.random.key(8), 20_000))[:, 1]
    low, first, third, high = np.quantile(drawn, [0.05, 0.25, 0.75, 0.95])
    close((high - low) / (third - first), np.sinh(1.6449) / np.sinh(0.6745), 0.5)


@pytest.mark.parametrize("kind", ["feature", "vector"])
def test_a_velocity_is_in_units_of_the_point_that_moves(kind):
    """Beyond the normal law's a velocity of x_t, here 1 everywhere, moves u = x_t/s, s² = (1-t)² +
    t², by the integral of 1/s: √2 arsinh 1 = 1.246 from 0 to 1."""
    if kind == "feature":
        zero, one, none = np.zeros(1), np.ones(1), np.zeros((1, 1))
        nodes = _conditional.untrained(none, zero, one, none, zero, one, (3, 1))
        piece, given, at = jax.tree.map(lambda a: a[0], nodes), jnp.zeros(1, jnp.float32), ()
        solve = _conditional
    else:
        piece, given, at = _vectors.untrained(2, 1, (3, 1)), jnp.zeros(1, jnp.float32), (2,)
        solve = _vectors
    *layers, (weights, offset) = piece.velocity
    piece = piece._replace(velocity=(*layers, (weights, jnp.ones_like(offset))))
    start = jnp.full(at, 0.3, jnp.float32)
    close(solve.play(piece, given, start, 20), 0.3 + np.sqrt(2) * np.arcsinh(1), 1e-5)
    if kind == "feature":
        piece, back = piece._replace(own=jnp.ones(1)), (jnp.full(1, 0.3, jnp.float32), 20)
    else:
        back = (given, start, 20, False)
    close(solve.noise(piece, *back)[0], 0.3 - np.sqrt(2) * np.arcsinh(1), 1e-5)


def test_a_linear_model_stays_a_linear_regression(flow):
    for layers in (flow.nodes.affine, flow.nodes.velocity):
        share = np.abs(np.asarray(layers[-1][0])).sum((1, 2))
        assert (share == 0).sum() >= 2, "held-out data shows nothing beyond it"


def test_far_samples_do_not_hide_what_the_rest_shows():
    """Gains of a heavy tail: the one of 500 nats makes the error of the mean as large as it."""
    gain = np.concatenate([np.full(299, 0.4), [500.0]])
    assert gain.mean() < 2 * gain.std() / np.sqrt(300) and _fitting.shown(gain)
    assert not _fitting.shown(np.concatenate([np.full(299, -0.1), [500.0]]))  # nor are they all
    assert not _fitting.shown(np.random.default_rng(0).standard_normal(300))


@pytest.mark.parametrize("seed", [0, 4])
def test_a_skewed_root_is_not_a_normal_one(seed):
    """These samples' loss of flow matching shows nothing beyond the normal law, by two standard
    errors; their likelihood does, by ten. The best normal law is .206 off."""
    x = lognorm(1.0).rvs(size=(3000, 1), random_state=np.random.default_rng(seed))
    flow = CausalFlow([[0]], width=16).fit(x, jax.random.key(0), steps=300, batch=256)
    drawn = np.asarray(flow.sample(jax.random.key(77), 20_000))[:, 0]
    assert kstest(drawn, lognorm(1.0).cdf).statistic < 0.12
    close(np.median(drawn), 1, 0.2)


@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_a_function_of_its_causes_has_no_noise(unchecked, precision):
    a, e = np.random.default_rng(0).standard_normal((2, 500))
    key, pair = jax.random.key(0), CausalFlow([("a", "b")])
    for b in (2 * a + 1, -3e6 * a, 2 * a + 1e-6 * e):
        with pytest.raises(ValueError, match=r"noise in every feature, but \['b'\] are functions"):
            pair.fit(np.stack([a, b], 1).astype(precision), key)
    fitted = pair.fit(np.stack([a, 2 * a + 1e-3 * e], 1), key, steps=1)
    assert fitted.fitted


def test_samples_far_from_zero_are_standardised_in_double_precision(unchecked):
    """And by numbers that the flow keeps as they are; too far, they are refused by their name."""
    a, e = np.random.default_rng(1).standard_normal((2, 2000))
    data, key = np.stack([a, np.sin(a) + e], 1), jax.random.key(0)
    pair = CausalFlow([("a", "b")], width=4)
    near = pair.fit(data, key, steps=1)
    far = pair.fit(data + np.array([12345.678, 0]), key, steps=1)
    close(far.noises(data[:50] + np.array([12345.678, 0])), near.noises(data[:50]), 1e-5)
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match=r"\['a'\] do not beside their size"),
    ):
        pair.fit(data + np.array([1.7e8, 0]), key)


def test_interventions_by_functions_and_on_top_of_each_other(flow):
    noise = jnp.asarray([0.3, -0.2, 0.9])
    changed = flow.do({"x": lambda x, e: 2 * x["z"] + e})
    z = flow(noise)[2]
    close(changed(noise)[0], 2 * z + 0.3, 1e-5)
    close(changed.do("x", Shift(1.0))(noise)[0], 2 * z + 1.3, 1e-5)
    close(flow.do("x", 1.0).do("x", Shift(1.0))(noise)[0], 2.0, 0)
    twice = flow.do("x", Shift(1.0)).do("x", Shift(0.5))
    close(twice(noise)[0] - flow(noise)[0], 1.5, 1e-5)
    close(twice.noises(twice(noise)), noise, 1e-4)
    with pytest.raises(ValueError, match="equations of their own"):
        changed.noises(flow(noise))
    with pytest.raises(ValueError, match="may ask for those before it"):
        flow.do({"x": lambda x, e: x["y"]})(noise)


def test_what_was_set_has_no_noise_and_no_density(flow, samples):
    fixed = flow.do({"x": 2.0})
    seen = np.asarray(fixed.sample(jax.random.key(4), 5))
    assert (np.asarray(fixed.noises(seen))[:, 0] == 0).all()
    alone = np.asarray(flow.log_prob(seen) - fixed.log_prob(seen))
    # p(x | z) of the linear model, at the value that was set
    off = (2.0 - 1.0 - 0.8 * seen[:, 2]) / 0.5
    close(alone, -(off**2) / 2 - np.log(0.5 * np.sqrt(2 * np.pi)), 0.2 + 0.05 * off.max() ** 2)
    # what is left free has a density of its own: its integral is one
    z = np.linspace(-8, 4, 1001)
    line = np.stack([np.full_like(z, 2.0), np.full_like(z, -1.0), z], 1)
    density = np.exp(flow.do({"x": 2.0, "y": -1.0}).log_prob(line))
    close(np.trapezoid(density, z), 1, 1e-3)
    with pytest.raises(ValueError, match="agree with the values that interventions have set"):
        fixed.noises(samples[:3])


def test_of_traced_samples_nan_stands_for_those_that_no_intervention_made(flow):
    fixed = flow.do({"x": 2.0})
    seen = np.array(fixed.sample(jax.random.key(4), 3))
    seen[1, 0] = 2.5
    for found in (
        jax.jit(fixed.log_prob)(seen)[:, None],
        jax.vmap(fixed.log_prob)(seen)[:, None],
        jax.vmap(fixed.noises)(seen),
    ):
        assert np.isnan(np.asarray(found)[1]).all() and np.isfinite(np.asarray(found)[::2]).all()
    good = seen[::2]
    np.testing.assert_allclose(jax.vmap(fixed.log_prob)(good), fixed.log_prob(good), rtol=1e-5)
    values = jnp.array([1.0, 2.0])
    found = jax.vmap(lambda value: flow.do("x", value).log_prob(good[0]))(values)
    assert np.isnan(found[0]) and np.isclose(found[1], fixed.log_prob(good[0]))


def test_a_value_that_was_set_may_have_been_rounded(flow):
    """A tenth in double is none in single; a hundredth more is another value."""
    fixed = flow.do({"x": 0.1})
    seen = np.asarray(fixed.sample(jax.random.key(4), 5), np.float32)
    assert (np.asarray(fixed.noises(seen))[:, 0] == 0).all()
    with pytest.raises(ValueError, match="agree with the values that interventions have set"):
        fixed.noises(seen + np.array([0.01, 0, 0], np.float32))


def test_shares_are_those_that_held_out_samples_want():
    """Of a mean and a scale that are right, twice too large, and noise; the scale is judged beside
    the mean that was kept."""
    rng = np.random.default_rng(6)
    mean, log_scale, r, *noise = rng.standard_normal((5, 4000)) * [[2], [0.4], [1], [0.5], [0.5]]
    left = mean + np.exp(log_scale) * r
    out = np.stack([(mean, log_scale), (2 * mean, log_scale), (2 * mean, 2 * log_scale), noise])
    shares = _fitting.shown_affine(
        jnp.asarray(out.transpose(0, 2, 1)), jnp.asarray(np.stack([left] * 4, 1))
    )
    np.testing.assert_allclose(shares, [[1, 1], [0.5, 1], [0.5, 0.5], [0, 0]], atol=0.101)


def test_the_same_key_gives_the_same_flow_and_training_leaves_it_alone(samples):
    plain = CausalFlow(MODEL.graph, width=8)
    first, again = (plain.fit(samples[:3000], jax.random.key(1), **SMALL) for _ in range(2))
    assert not plain.fitted and first.fitted
    close(first.noises(samples[:9]), again.noises(samples[:9]), 0)
    close(first.sample(jax.random.key(2), 3), again.sample(jax.random.key(2), 3), 0)


class DiGraph:
    """What is read of networkx's."""

    def __init__(self, nodes, edges):
        self.nodes, self.edges = nodes, edges


def test_graphs_in_every_form_are_one():
    matrix = MODEL.graph
    pairs = [("z", "x"), ("x", "y"), ("z", "y")]
    causes = {"x": ["z"], "y": ["x", "z"], "z": []}
    drawn = DiGraph(["z", "y", "x"], pairs)
    for graph in (matrix, matrix.astype(int).tolist(), pairs, causes, drawn):
        found = CausalFlow(graph, NAMES)
        np.testing.assert_array_equal(found.graph, matrix)
        assert found.names == NAMES and found.order == (2, 0, 1)
    assert CausalFlow(pairs).names == ("z", "x", "y")
    numbered = CausalFlow(DiGraph([2, 0, 1], [(2, 0), (0, 1), (2, 1)]))
    np.testing.assert_array_equal(numbered.graph, matrix)
    assert numbered.names == ()


@pytest.mark.parametrize(
    ("graph", "names", "message"),
    [
        ([[0, 1], [1, 0]], None, "graph must be acyclic, got a cycle among features"),
        ([[1]], None, "graph must be acyclic"),
        ([("a", "b"), ("b", "a")], None, "graph must be acyclic"),
        ([[0, 1]], None, r"graph must be square .* got shape \(1, 2\)"),
        ([[0, 0.5], [0, 0]], None, "0 and 1"),
        ([], None, "graph must be square"),
        ("ab", None, "graph must be"),
        ([[0, 0], [1, 0]], ("a",), "names must be 2"),
        ([[0, 0], [1, 0]], ("a", "a"), "different strings"),
        ([("a", "b")], ("a", "c"), "names must hold every feature"),
        ({1.5: ["a"]}, None, "name features by strings"),
        (DiGraph([0, 2], []), None, r"features 0, …, n - 1"),
    ],
)
def test_bad_graphs_are_refused(unchecked, graph, names, message):
    with pytest.raises(ValueError, match=message):
        CausalFlow(graph, names)


def test_bad_input_is_refused(unchecked, flow, samples):
    plain, key = CausalFlow(MODEL.graph, width=8), jax.random.key(0)
    for ask in (
        lambda: plain.sample(key, 3),
        lambda: plain.noises(samples[:3]),
        lambda: plain(jnp.zeros(3)),
        lambda: plain.save("nowhere"),
    ):
        with pytest.raises(ValueError, match="has not been fitted"):
            ask()
    broken = samples[:500].copy()
    broken[7, 1] = np.nan
    constant = samples[:500].copy()
    constant[:, 2] = 1.0
    cases = [
        (lambda: plain.fit(samples[:, :2], key), r"x must have shape \[N, 3\]"),
        (lambda: plain.fit(broken, key), "x must be finite"),
        (lambda: plain.fit(constant, key), r"features \[2\] are constant"),
        (lambda: plain.fit(samples[:20], key), "at least 30 samples"),
        (lambda: plain.fit(samples, key, steps=0), "steps must be a positive integer"),
        (lambda: plain.fit(samples, key, batch=-1), "batch must be a positive integer"),
        (lambda: plain.fit(samples, key, rate=0.0), "rate must be positive"),
        (lambda: plain.fit(samples, key, held_out=samples[:9, :1]), "held_out must have shape"),
        (lambda: flow.do("x", 1.0).fit(samples, key), "has not been intervened on"),
        (lambda: CausalFlow(MODEL.graph, width=0), "width must be a positive integer"),
        (lambda: flow.noises(samples[:3, :2]), r"x must be one sample \[3\] or many"),
        (lambda: flow.noises(broken[:9]), "x must be finite"),
        (lambda: flow.sample(key, 0), "n must be a positive integer"),
        (lambda: flow.do("w", 1.0), "index must name one of"),
        (lambda: flow.do({3: 1.0}), "index must be an index"),
        (lambda: flow.do({"x": 1.0, 0: 2.0}), "each feature once"),
        (lambda: flow.do("x", np.nan), "must be finite"),
        (lambda: flow.do("x"), "takes a feature and its value"),
        (lambda: flow(jnp.zeros(2)), r"noise must have shape \(3,\)"),
        (lambda: flow.do("x", 1.0).save("nowhere"), "interventions are not written"),
    ]
    for ask, message in cases:
        with pytest.raises(ValueError, match=message):
            ask()


def test_a_saved_flow_comes_back_and_a_damaged_one_does_not(flow, samples, tmp_path):
    path = tmp_path / "flow.safetensors"
    flow.save(path)
    again = CausalFlow.load(path)
    assert again.names == NAMES and again.sizes == flow.sizes
    close(again.noises(samples[:9]), flow.noises(samples[:9]), 0)
    assert [p.name for p in tmp_path.iterdir()] == ["flow.safetensors"]
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])

    def with_facts(**change):
        facts = {**json.loads(header["__metadata__"]["cdelta.CausalFlow"]), **change}
        return with_all(facts, whole[8 + size :])

    def with_all(facts, arrays):
        text = {**header, "__metadata__": {"cdelta.CausalFlow": json.dumps(facts)}}
        new = json.dumps(text).encode()
        return len(new).to_bytes(8, "little") + new + arrays

    spoilt, turned = (np.frombuffer(whole[8 + size :], np.float32).copy() for _ in range(2))
    spoilt[0], turned[-1] = np.nan, turned[-1] + 1
    earlier = json.loads(header["__metadata__"]["cdelta.CausalFlow"])
    del earlier["sha256"], earlier["header"]  # which earlier versions did not write
    path.write_bytes(with_all(earlier, whole[8 + size :]))
    close(CausalFlow.load(path).noises(samples[:9]), flow.noises(samples[:9]), 0)
    for content, message in (
        (whole[: len(whole) // 2], "damaged"),
        (b"", "damaged"),
        (whole[:8] + b"x" + whole[9:], "damaged"),
        (with_facts(format=99), "format 99"),
        (with_facts(names=list(flow.names[::-1])), "damaged: its checksum"),
        (with_facts(graph=np.zeros((3, 3), int).tolist()), "damaged: its checksum"),
        (with_facts(graph=[[0, 1], [1, 0]]), "damaged"),
        (with_facts(graph=[[0]], names=["x"]), "damaged"),
        (with_facts(sizes=[9, 2, 24]), "damaged: its checksum"),
        (with_all({**earlier, "sizes": [9, 2, 24]}, whole[8 + size :]), "not those of its graph"),
        (whole[: 8 + size] + spoilt.tobytes(), "checksum"),
        (whole[: 8 + size] + turned.tobytes(), "checksum"),
        (with_all(earlier, spoilt.tobytes()), "finite"),
    ):
        path.write_bytes(content)
        with pytest.raises(OSError, match=message):
            CausalFlow.load(path)
    with pytest.raises(OSError, match="missing"):
        CausalFlow.load(tmp_path / "missing")


def test_half_and_double_precision_and_transformations(flow, samples):
    noise = np.asarray(flow.noises(samples[0]))
    assert flow.noises(samples[0].astype(np.float64)).dtype == np.float64
    assert flow(jnp.asarray(noise, jnp.float16)).dtype == np.float16
    swept = jax.vmap(lambda v: flow.do("z", v)(noise))(jnp.linspace(-1, 1, 3))
    close(swept[2], flow.do("z", 1.0)(noise), 1e-6)
    slope = jax.grad(lambda v: flow.do("z", v)(noise)[1])(0.5)
    close(slope, -0.3, 0.05)  # 0.5 - 0.8: the total effect of z on y
    leaves, structure = jax.tree.flatten(flow.do("z", 1.0))
    close(jax.tree.unflatten(structure, leaves)(noise), flow.do("z", 1.0)(noise), 0)


def test_do_agrees_with_another_library(samples):
    """Where DoWhy is installed: ``make peers``."""
    gcm = pytest.importorskip("dowhy.gcm")
    networkx, pandas = pytest.importorskip("networkx"), pytest.importorskip("pandas")
    model = gcm.InvertibleStructuralCausalModel(
        networkx.DiGraph([("z", "x"), ("x", "y"), ("z", "y")])
    )
    frame = pandas.DataFrame(samples[:4000], columns=list(NAMES))
    gcm.auto.assign_causal_mechanisms(model, frame)
    gcm.fit(model, frame)
    theirs = gcm.counterfactual_samples(model, {"x": lambda _: 2.0}, observed_data=frame[:20])
    flow = CausalFlow(MODEL.graph, NAMES, width=8).fit(samples[:4000], jax.random.key(1), **SMALL)
    close(flow.counterfactual(samples[:20], {"x": 2.0}), theirs[list(NAMES)].to_numpy(), 0.1)


def test_a_bent_model_agrees_with_another_library():
    """Where DoWhy is installed: additive noises, mechanisms that bend. Its linear fit of the same
    samples is the null, and samples of which nothing was done."""
    gcm = pytest.importorskip("dowhy.gcm")
    networkx, pandas = pytest.importorskip("networkx"), pytest.importorskip("pandas")

    def made(noise, x=None):
        z = noise[:, 0]
        x = 0.5 * z**2 + z + 0.5 * noise[:, 1] if x is None else np.full_like(z, x)
        return np.stack([x, 0.5 * x**2 - z + 0.5 * noise[:, 2], z], 1)

    noise, n = np.random.default_rng(0).standard_normal((4000, 3)), 4000
    data, graph = made(noise).astype(np.float32), [("z", "x"), ("x", "y"), ("z", "y")]
    frame, done = pandas.DataFrame(data, columns=list(NAMES)), {"x": lambda _: 2.0}
    others, drawn = {}, {"nothing done": data}
    for name, degree in (("bent", 3), ("straight", 1)):
        model = gcm.InvertibleStructuralCausalModel(networkx.DiGraph(graph))
        model.set_causal_mechanism("z", gcm.EmpiricalDistribution())
        for node in ("x", "y"):
            regression = gcm.ml.create_polynom_regressor(degree=degree)
            model.set_causal_mechanism(node, gcm.AdditiveNoiseModel(regression))
        gcm.fit(model, frame)
        theirs = gcm.counterfactual_samples(model, done, observed_data=frame[:200])
        others[name] = theirs[list(NAMES)].to_numpy()
        theirs = gcm.interventional_samples(model, done, num_samples_to_draw=n)
        drawn[name] = theirs[list(NAMES)].to_numpy()
    flow = CausalFlow(graph, NAMES, width=32).fit(
        data, jax.random.key(1), steps=600, batch=256, rate=1e-2
    )

    mine = np.asarray(flow.counterfactual(data[:200], {"x": 2.0}))
    away = {name: np.median(np.abs(mine - other)[:, 1]) for name, other in others.items()}
    assert away["bent"] < 0.1 and away["straight"] > 0.3
    assert np.median(np.abs(mine - made(noise[:200], 2.0))[:, 1]) < 0.1
    sampled = np.asarray(flow.do("x", 2.0).sample(jax.random.key(2), n))[:, 1]
    apart = {name: ks_2samp(sampled, other[:, 1]).statistic for name, other in drawn.items()}
    # 1.95 √(2/n), what samples of one law exceed once in a thousand, and .02 for the two fits
    bound = 1.95 * np.sqrt(2 / n) + 0.02
    assert apart.pop("bent") < bound and min(apart.values()) > 1.5 * bound
