"""The report: its numbers against closed forms and the estimators called by hand; each diagnostic
where it must speak and where it must be silent."""

import json
import math
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import networkx
import numpy as np
import pytest

import cdelta
from cdelta import _asked, _diagnostics, _pilot, _stream, dependence, reporting
from cdelta._features import Labels
from cdelta._text import describe
from cdelta.reporting import Report, report
from tests.test_dependence import KEY, scores
from tests.test_dependence_hypotheses import bent_pair, to_order_three, weighing

U = np.array([[1.0, 0, 0], [0.8, 0.6, 0], [0.5, 0.4, 0.7]])
NAMES = ("a", "b", "c")


def chain(x):
    return dict(zip(NAMES, jnp.asarray(U, x.dtype) @ x, strict=True))


def bent(x):
    """Variances 3 and 41/32, covariance 1/4; the wiggles say 5, 25/16 and -1/2."""
    return bent_pair(x)


def about(made, kind):
    return [finding for finding in made.findings if finding.about == kind]


@pytest.fixture(scope="module")
def linear():
    return report(chain, KEY, 3, held="b", graph={"b": "a", "c": ["b"]}, budget=512)


@pytest.fixture(scope="module")
def curved():
    return report(bent, KEY, (2,), names=["p", "q"], budget=4000)


# ------------------------------------------------------------------------------- its numbers


def test_moments_of_a_linear_map_are_exact(linear):
    for name in ("wiggle", "covariance", "lower", "upper"):
        np.testing.assert_allclose(linear.moments[name].matrix, U @ U.T, rtol=0, atol=1e-13)
        assert linear.moments[name].names == NAMES and linear.moments[name].samples == 512
        assert linear.moments[name].effective_samples == pytest.approx(512)  # all alike
    samples = linear.moments["samples"]
    assert np.abs((samples.matrix - U @ U.T) / samples.stderr).max() < 4
    partial = linear.moments["wiggle"].partial("b").matrix
    np.testing.assert_allclose(linear.moments["held"].matrix, partial, rtol=0, atol=1e-13)
    # do(b), b = .8 e₁ + .6 e₂: what b's own noise moves goes out, a stays
    rest = U - np.outer(U[:, 1] / U[1, 1], U[1])
    np.testing.assert_allclose(linear.moments["do(b)"].matrix, rest @ rest.T, rtol=0, atol=1e-13)
    np.testing.assert_allclose(linear.turn.turn, 0, rtol=0, atol=1e-13)


def test_moments_of_a_bent_map_are_those_of_its_hermite_expansion(curved):
    """To order 2 both bounds are the covariance."""
    covariance = np.array([[3, 0.25], [0.25, 41 / 32]])
    truths = {name: covariance for name in ("covariance", "samples", "lower", "upper")}
    truths["wiggle"] = np.array([[5, -0.5], [-0.5, 25 / 16]])
    for name, truth in truths.items():
        moment = curved.moments[name]
        assert np.abs((moment.matrix - truth) / moment.stderr).max() < 4, name
        assert moment.stderr.max() < 0.3
    # of the same latents, so that a ratio has less error than of independent moments
    ratio = lambda w, c: np.diagonal(w) / np.diagonal(c)  # noqa: E731
    apart = _diagnostics.jointly(ratio, curved.moments["wiggle"], curved.moments["covariance"])[1]
    for finding, order, more in zip(about(curved, "order"), (5 / 3, 50 / 41), apart, strict=True):
        assert finding.stderr < 0.95 * more
        assert abs(finding.value - order) < 4 * finding.stderr
        wiggle = curved.moments["wiggle"]
        assert finding.stderr / order < 2 * (wiggle.stderr / wiggle.matrix).diagonal().max()


def test_the_four_moments_weigh_each_order_as_they_should():
    """n α^(n-1) over α: uniform, at the midpoint, the mean of both ends, and at 1."""
    made = report(to_order_three, KEY, 2, budget=40_000)
    orders = {"wiggle": (1, 2, 3), "covariance": (1, 1, 1), "lower": (1, 1, 0.75)}
    orders["upper"] = (1, 1, 1.5)
    for name in orders:
        for other, theirs in orders.items():
            z = np.abs(scores(made.moments[name], weighing(*theirs))).max()
            assert z < 4 if name == other else z > 5, (name, other, z)


def test_what_is_held_and_set_is_what_the_estimators_give():
    """At the same keys, method and probes: as many of them as there are dimensions."""
    made = report(bent, KEY, 2, held=1, graph=[[0, 0], [1, 0]], budget=200)
    keys = dict(zip(_asked.KEYS, jax.random.split(KEY, len(_asked.KEYS)), strict=True))
    held = dependence.held_moment(bent, keys["held"], 2, 200, 1, method="jvp", probes=2)
    own = jax.random.fold_in(keys["do"], 0)
    done = dependence.do_moment(bent, own, 2, 200, 1, 0, method="jvp", probes=2)
    turn = cdelta.causal.frame_turn(bent, keys["turn"], 2, 200, (0, 1))
    assert made.method == "jvp, 2 probes"
    np.testing.assert_allclose(made.moments["held"].matrix, held.matrix, rtol=1e-10)
    np.testing.assert_allclose(made.moments["do(1)"].matrix, done.matrix, rtol=1e-10)
    np.testing.assert_allclose(made.turn.turn, turn.turn, rtol=1e-10)


def test_a_report_depends_on_its_key_alone(curved):
    again = report(bent, KEY, (2,), names=["p", "q"], budget=4000, batch=1000)
    assert str(again).splitlines()[1:] == str(curved).splitlines()[1:]
    for name, moment in again.moments.items():
        np.testing.assert_allclose(moment.matrix, curved.moments[name].matrix, rtol=1e-9)
    other = report(bent, jax.random.key(1), (2,), names=["p", "q"], budget=4000)
    assert not np.allclose(other.moments["wiggle"].matrix, curved.moments["wiggle"].matrix)


class Clock:
    """Time passes when latents are computed: ``pilot`` seconds each where they are looked at, and
    ``price`` in an average, whose program compiles for ``compiling`` seconds."""

    def __init__(self, monkeypatch, pilot, price, compiling=0.0):
        self.t, self.batches = 1000.0, []
        looking, sums = _pilot.looking, _stream._batch_sums

        def looked(*kind):
            program = looking(*kind)

            def run(leaves, latents):
                self.t += pilot * len(latents)
                return program(leaves, latents)

            return run

        def summed(f, key, start, stop, **settings):
            self.t += price * settings["batch"] + compiling * (start == 0)
            self.batches.append(settings["batch"])
            return sums(f, key, start, stop, **settings)

        monkeypatch.setattr(_asked, "now", lambda: self.t)
        monkeypatch.setattr(_pilot, "worked", lambda: self.t)
        monkeypatch.setattr(_pilot, "looking", looked)
        monkeypatch.setattr(_stream, "_batch_sums", summed)


ASKED = dict(held="b", graph={"b": "a", "c": ["b"]})


@pytest.mark.parametrize("load", [1, 30])
def test_seconds_are_kept_also_where_the_machine_slows_down(monkeypatch, load):
    """Of 20 seconds 16 are used at least, and at most a batch more a moment; as many latents as
    the pilot's time foretells would take ``load`` times as long."""
    clock = Clock(monkeypatch, 2e-3, load * 2e-3)
    made = report(chain, KEY, 3, budget=20.0, **ASKED)
    batch = max(clock.batches)
    assert 16 < made.seconds < 20 + 4 * batch * load * 2e-3 and made.seconds == clock.t - 1000
    assert batch * 2e-3 < 20 / 8 and 64 <= made.samples == made.moments["wiggle"].samples
    assert made.samples < 20 / (load * 2e-3)
    assert (about(made, "budget") == []) == (made.seconds < 22)
    for name in ("held", "do(b)"):  # a part for each, as much as it costs
        assert made.moments[name].samples > made.samples / 8
    np.testing.assert_allclose(made.moments["wiggle"].matrix, U @ U.T, rtol=0, atol=1e-13)


def test_seconds_that_are_too_few_are_overrun_by_little_and_it_is_said(monkeypatch):
    clock = Clock(monkeypatch, 0.1, 0.1, compiling=5.0)
    made = report(chain, KEY, 3, budget=3.0, **ASKED)
    assert made.samples == 16 and max(clock.batches) == 8
    (said,) = about(made, "budget")
    assert said.value == made.seconds > 3 and "for a budget of 3 s" in said and not said.warning


def test_a_number_of_latents_asks_no_clock(monkeypatch):
    """What is chosen, too: it is the same however long anything takes."""
    plain = report(chain, KEY, 3, budget=100, **ASKED)
    Clock(monkeypatch, 50.0, 1e4)
    again = report(chain, KEY, 3, budget=100, **ASKED)
    assert str(again) == str(plain) and again.samples == plain.samples == 100


def test_rows_and_products_are_timed_where_there_is_time(monkeypatch):
    """Rows that are dearer than was counted lose to products, which cost nothing here."""
    f = lambda x: jnp.stack([x[0] ** 3 + x[1], x[1] * x[2], x[2] + x[3] ** 2])  # noqa: E731
    run = _stream.Run()
    f = dependence._looked_at(f, (4,), "rows", 1.0, 1, run)[0]
    look = _pilot.look_at(f, KEY, 64, (4,), run)
    slow = look._replace(seconds=1e-3, work=1.0)
    patient, hurried = (_asked.Budget.of(seconds) for seconds in (1e6, 0.9))
    assert _pilot.timed(f, slow, (4,), run, _asked.Budget.of(64)) is None
    assert _pilot.timed(f, slow, (4,), run, hurried) is None  # the clock would take it all
    dearer = _pilot.timed(f, slow, (4,), run, patient)
    assert dearer > 10
    counted, timed = (_pilot.choose(look, (4,), ratio)[0] for ratio in (None, dearer))
    cheap = _pilot.choose(look, (4,), 0.01)
    assert cheap[0].method == "rows" and timed.method == "jvp"
    assert "as timed" in cheap[1][0] and counted.price <= timed.price


# -------------------------------------------------------- each diagnostic speaks, or is silent


def test_nothing_warns_of_maps_that_are_sound(linear, curved):
    assert linear.warnings == [] and curved.warnings == []
    assert [f.about for f in linear.findings].count("order") == 3
    assert report(bent, KEY, 2, budget=64, dtype="float32").warnings == []
    kink = report(lambda x: jnp.abs(x), KEY, 1, budget=4000)
    assert about(kink, "jump") == [] and kink.warnings == []


KAPPA = 0.5


def steep(x):
    """∫₀ˣ exp(κ s²) ds, whose squared slope has the tail index 1/(4κ): no moment."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    inside = jnp.exp(KAPPA * (x[0] * (nodes + 1) / 2) ** 2)
    return {"tame": x[1], "steep": x[0] / 2 * (weights @ inside)}


def wrong(x):
    jump, half = jnp.sign(x[0]) + 0.1 * x[1], jnp.maximum(x[2], 0)
    return {"jump": jump, "constant": 1.0 + 0 * x[1], "half": half, "sound": x[1]}


def test_features_with_jumps_constant_and_flat_ones_are_named():
    made = report(wrong, KEY, 3, budget=4000, held="half")
    assert {f.about for f in made.warnings} == {"jump", "constant", "flat", "degenerate"}
    assert str(made).splitlines()[: len(made.warnings)] == [f"warning: {f}" for f in made.warnings]
    (jump,), (constant,), (flat,) = (about(made, kind) for kind in ("jump", "constant", "flat"))
    assert jump.startswith("jump has variance 1.0") and jump.value > 20  # its Jacobian says .01
    assert constant.startswith("constant is constant")
    assert made.moments["wiggle"]["constant", "constant"] == (0, 0)
    for finding in (flat, about(made, "degenerate")[0]):  # half of the latents
        assert abs(finding.value - 0.5) < 4 * finding.stderr < 0.06
    left_out = about(made, "degenerate")[0]  # a share of those drawn, not of those that were left
    share = made.moments["held"].degenerate
    assert left_out.value == share
    assert left_out.stderr == pytest.approx(np.sqrt(share * (1 - share) / 4000), rel=1e-9)
    assert flat.startswith("half is flat at")


def test_a_tail_without_moments_is_seen_and_named():
    """Hill's index from the largest 5 %, where x exceeds u = 1.96: 1 / E[2κ(x² - u²) | |x| > u]."""
    made = report(steep, KEY, 2, budget=2048)
    (tail,) = about(made, "tail")
    u, hazard = 1.959964, 2.337803  # φ(u) / (1 - Φ(u))
    assert abs(tail.value - 1 / (2 * KAPPA * (1 + u * hazard - u**2))) < 4 * tail.stderr
    assert "steep's gradient" in tail and "infinite" in tail and tail.warning
    assert about(made, "effective")[0].value < 0.05 * 2048


def test_jacobians_that_are_not_finite_are_counted_and_nothing_is_made_up():
    made = report(lambda x: jnp.stack([jnp.log(x[0]), x[1]]), KEY, 2, budget=512)
    (finite,) = about(made, "finite")
    assert abs(finite.value - 0.5) < 4 * finite.stderr and finite.warning
    assert made.moments == {} and about(made, "failure")
    with pytest.raises(ValueError, match="no moment to draw"):
        made.plot()


def test_scatter_is_that_of_the_latents_asked_for_whose_jacobians_are_finite():
    """13 of them, 8 at a time; log has no derivative where x is negative."""
    f = lambda x: jnp.stack([jnp.log(x[0]), x[1] ** 2])  # noqa: E731
    run = _stream.Run()
    look = _pilot.look_at(
        dependence._looked_at(f, (2,), "rows", 1.0, 1, run)[0], KEY, 13, (2,), run
    )
    x = np.asarray(look.latents)
    finite = x[:, 0] > 0
    assert len(x) == 13 and 2 < finite.sum() < 12
    rows = np.stack([1 / x[finite, 0], 2 * x[finite, 1]], 1)
    exact = np.diag((rows**2).mean(0) / look.unit**2)
    np.testing.assert_allclose(look.scatter.mean, exact, rtol=1e-5, atol=1e-12)


def test_rounding_is_seen_where_single_precision_loses_digits():
    def fast(x):
        return jnp.stack([jnp.sin(1e6 * x[0]), x[1]])

    (rounding,) = about(report(fast, KEY, 2, budget=64, dtype="float32"), "rounding")
    assert rounding.value > 1e-3 and rounding.warning
    assert about(report(fast, KEY, 2, budget=64), "rounding") == []


def test_all_of_the_latents_is_a_hundred_per_cent():
    made = report(lambda x: jnp.stack([x[0] / 0, x[1]]), KEY, 2, budget=64)
    assert about(made, "finite")[0].startswith("f or its Jacobian is NaN or infinite at 100 % of")


def test_an_order_longer_than_the_latent_is_said_and_its_beginning_kept():
    f = lambda x: {"a": x[0], "b": x[0] + x[1], "c": x[0] * x[1]}  # noqa: E731
    made = report(f, KEY, 2, order=["a", "b", "c"], budget=64)
    said, turn = about(made, "turn")
    assert said == (
        "The order has 3 features and a latent 2 dimensions, too few for a direction of each: the "
        "turn (C11) is that of a, b alone, and c moves only with the features before."
    )
    assert said.warning and said.value == 1 and turn.value == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(made.turn.turn, [0, 0], rtol=0, atol=1e-12)
    line = report(lambda x: {"a": x[0], "b": x[0] ** 3}, KEY, 1, graph={"b": "a"}, budget=64)
    assert "a latent 1 dimension, too few" in about(line, "turn")[0]
    assert "nothing is known of the turn" in about(line, "turn")[0] and line.turn is None
    whole = report(f, KEY, 2, order=["a", "b"], budget=64)
    assert len(about(whole, "turn")) == 1


def test_as_many_held_as_dimensions_leave_nothing():
    """What is left is rounding, whose correlations are any number."""
    f = lambda x: jnp.stack([x[0], x[0] + x[1], x[1] ** 2 + x[0], jnp.sin(x[1])])  # noqa: E731
    made = report(f, KEY, 2, held=[0, 1], budget=64)
    assert "held" not in made.moments
    assert "held must be fewer than the latent's dimensions 2" in about(made, "failure")[0]


def test_no_features_are_none(linear):
    for nothing in ([], (), np.array([], int)):
        made = report(chain, KEY, 3, held=nothing, order=nothing, budget=16)
        assert "held" not in made.moments and made.turn is None and made.warnings == []


def test_a_float_above_an_hour_is_warned_of(monkeypatch):
    Clock(monkeypatch, 1.0, 1e6)
    with pytest.warns(
        UserWarning, match=r"budget=10000\.0 is a float, .* 2\.78 hours; .*budget=10000$"
    ):
        report(chain, KEY, 3, budget=1e4)


def many(n):
    """n features of four latents, some of them constant and some thresholds."""
    weights = np.random.default_rng(0).standard_normal((n, 4)) / 2
    weights[: n // 6] = 0

    def f(x):
        return jnp.where(jnp.arange(n) < n - n // 6, jnp.asarray(weights, x.dtype) @ x, x[0] > 0)

    return f, weights


def test_many_features_are_said_in_few_sentences_and_seen_in_sums(monkeypatch):
    """Matrices of a few features alone are kept; the scatter is of all."""
    f, weights = many(80)
    kept = []
    looked = _pilot.look_at
    monkeypatch.setattr(_pilot, "look_at", lambda *a: kept.append(looked(*a)) or kept[-1])
    monkeypatch.setattr(_pilot, "_ENTRIES", 3 * 80**2)  # three latents at a time
    made = report(f, KEY, 4, budget=128, dtype="float32")
    (look,) = kept
    assert look.matrices.shape == (64, 64, 64) and look.lengths.shape == (128, 80)
    assert len(look.seen) == 64 and look.seen[-1] == 79
    size = look.unit * (look.unit > 0)
    exact = np.where(np.arange(80)[:, None] < 67, weights, 0)
    np.testing.assert_allclose(
        look.scatter.mean * np.outer(size, size), exact @ exact.T, rtol=1e-5, atol=1e-6
    )
    assert look.scatter.spread == 0 and "every latent gives the moment exactly" in str(made)
    (constant,) = about(made, "constant")
    assert constant.startswith("26 features (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …) are constant: their")
    (jump,) = about(made, "jump")
    assert jump.startswith("13 features (67, 68, ")


def test_too_many_features_are_refused_before_anything_is_computed(unchecked):
    with pytest.raises(ValueError, match=r"at most 2048 in a report, .* got 3072: give features="):
        report(lambda t, x: -x, KEY, 3072)


def test_a_solver_of_many_features_is_seen_at_some_of_them():
    made = report(lambda t, x: -x * (1 + jnp.arange(80.0) / 80), KEY, 80, budget=8)
    assert "seen at 64 of 80 features" in about(made, "solver")[0]
    assert made.moments["wiggle"].matrix.shape == (80, 80)


def test_a_frame_that_turns_is_said_to():
    def twisted(x):  # a rotation by |x|² keeps N(0, I)
        c, s = jnp.cos(x @ x), jnp.sin(x @ x)
        return jnp.stack([x[0] * c - x[1] * s, x[0] * s + x[1] * c])

    (turn,) = about(report(twisted, KEY, 2, budget=2000, order=[0, 1]), "turn")
    assert turn.value > 0.5 and turn.warning and "may be wrong" in turn


def test_of_a_frame_the_direction_that_turns_most_is_named():
    """In the order that was given, whose first feature is the last that the map has."""

    def partly(x):
        c, s = jnp.cos(x @ x), jnp.sin(x[:2] @ x[:2])
        return {"a": x[0] * c - x[1] * s, "b": x[0] * s + x[1] * c, "c": x[2]}

    made = report(partly, KEY, 3, budget=200, order=["c", "a", "b"])
    (said,) = about(made, "turn")
    worst = int(np.argmax(made.turn.turn))
    assert worst > 0 and abs(made.turn.turn[0]) < 1e-12
    assert said.value == made.turn.turn[worst] and said.stderr == made.turn.stderr[worst]
    assert f"most for {'cab'[worst]})" in said


def test_of_many_features_the_most_bent_and_the_most_correlated_are_said():
    """Ten of each: by size, whatever the sign, and not the first ones."""
    bends = np.linspace(0, 1, 11)

    def f(x):
        own = x[:11] + bends * (x[:11] ** 2 - 1) / np.sqrt(2)
        return jnp.append(own, 0.3 * x[1] - 2 * x[0])

    made = report(f, KEY, 11, budget=1000)
    orders = about(made, "order")
    values = [one.value for one in orders]
    assert len(orders) == 10 and values == sorted(values, reverse=True)
    assert orders[0].startswith("feature 10 has") and values[0] > 1.4
    assert not any(one.startswith("feature 0 has") for one in orders)
    correlations = about(made, "correlation")
    sizes = [abs(one.value) for one in correlations]
    assert len(sizes) == 10 and sizes == sorted(sizes, reverse=True)
    assert correlations[0].startswith("feature 0 and feature 11 ")
    assert correlations[0].value == pytest.approx(-2 / np.sqrt(4.09), abs=0.05)


def test_the_covariance_of_values_is_of_as_many_as_were_asked_for():
    """Also where the last batch is not whole."""
    found = reporting._sampled(bent, KEY, (2,), 100, Labels(2), {"batch": 30})
    whole = reporting._sampled(bent, KEY, (2,), 100, Labels(2), {"batch": 100})
    assert found.samples == whole.samples == 100
    np.testing.assert_allclose(found.matrix, whole.matrix, rtol=1e-12)


def test_what_holding_changes_is_said_from_before_to_after(linear, curved):
    held, wiggle = linear.moments["held"], linear.moments["wiggle"]
    (said,) = about(linear, "held")
    before, after = (
        describe(one.correlation[0, 2], one.correlation_stderr[0, 2]) for one in (wiggle, held)
    )
    assert f"of a and c goes from {before} to {after}." in said and before != after
    assert said.value == held.correlation[0, 2]
    # and the bounds' gap, upper less lower
    below, above = (np.trace(curved.moments[name].matrix) for name in ("lower", "upper"))
    assert about(curved, "bounds")[0].value == pytest.approx(above - below, rel=1e-9)


def test_an_uncertain_tail_is_called_so():
    """Of x³ the squared slope, x⁴, has all moments, though Hill's index says 1.4."""
    made = report(lambda x: x**3, KEY, 1, budget=2048)
    (spoken,) = about(made, "tail")
    assert spoken.value < 2 and "uncertain" in spoken and "infinite" not in spoken


def test_signs_are_certified_where_they_can_be(linear, curved):
    """The wiggles of the bent pair even have the other sign: no certificate."""
    assert len(about(linear, "sign")) == 3
    assert "a and b is positive by two standard errors" in about(linear, "sign")[0]
    assert about(curved, "sign") == []
    (spoken,) = about(curved, "correlation")
    assert abs(spoken.value - 0.25 / math.sqrt(3 * 41 / 32)) < 4 * spoken.stderr
    opposed = report(lambda x: jnp.stack([x[0], x[1] - x[0]]), KEY, 2, budget=2000)
    assert "negative" in about(opposed, "sign")[0]


# ------------------------------------------------------------------------------- flows, solvers


def velocity(t, x):
    """N(0, I) to N(0, 4 I), times a turn: exact, d/dt of the map at rate ω."""
    scale = jnp.sqrt((1 - t) ** 2 + 4 * t**2)
    return (5 * t - 1) / scale**2 * x + 3 * jnp.stack([-x[1], x[0]])


def test_steps_are_chosen_so_that_their_bias_is_below_the_noise():
    made = report(velocity, KEY, 2, features=lambda x: {"a": x[0], "b": x.sum()}, budget=500)
    exact = 4 * np.array([[1.0, 1], [1, 2]])
    np.testing.assert_allclose(made.moments["wiggle"].matrix, exact, rtol=2e-3)
    (spoken,) = about(made, "solver")
    assert made.solver in spoken and made.solver.startswith("rk4") and not spoken.warning
    # half as many steps would not do: they were tried, or are the fewest
    steps = int(made.solver.split()[1])
    coarse = cdelta.Flow(velocity, "rk4", max(steps // 2, 1))
    rows = cdelta.jacobian.rows(coarse, jnp.ones(2))
    assert steps > 4 and abs((rows @ rows.T)[0, 0] / 4 - 1) > 5e-4


def test_a_velocity_that_is_not_finite_at_the_end_is_not_asked_there():
    made = report(lambda t, x: -x, KEY, 2, budget=64)
    assert made.solver.startswith("rk4")
    singular = report(lambda t, x: x / jnp.sqrt(1 - t) * 0.1, KEY, 2, budget=64)
    assert singular.solver.startswith("midpoint")
    # exp(.1 ∫ (1-t)^{-1/2}) = e^{.2}, squared
    np.testing.assert_allclose(
        singular.moments["wiggle"].matrix, np.exp(0.4) * np.eye(2), rtol=0.02
    )


@pytest.mark.parametrize(
    ("flow", "coarse"),
    [
        (cdelta.Flow(velocity, "euler", 6), True),
        (cdelta.Flow(velocity, "tsit5", rtol=1e-6, max_steps=32), False),
    ],
)
def test_a_flow_is_measured_as_it_is_and_its_bias_said(flow, coarse):
    made = report(flow, KEY, 2, budget=64)
    (spoken,) = about(made, "solver")
    assert spoken.warning == coarse and ("too coarse" in spoken) == coarse
    assert spoken.startswith(f"Solver {flow.solver}")
    rows = cdelta.jacobian.rows(flow, jnp.ones(2))
    np.testing.assert_allclose(made.moments["wiggle"].matrix, rows @ rows.T, atol=1e-5)


def test_half_the_steps_of_any_flow():
    for flow, finer in (
        (cdelta.Flow(velocity, "heun", 3), {"steps": 6}),
        (cdelta.Flow(velocity, times=[0, 0.2, 1]), {"times": (0, 0.1, 0.2, 0.6, 1)}),
        (cdelta.Flow(velocity, "heun", rtol=1e-3, atol=1e-5), {"rtol": 1e-4, "atol": 1e-6}),
    ):
        halved = _asked.Subject("flow", flow, None).halved()
        for name, value in finer.items():
            assert getattr(halved, name) == pytest.approx(value)


# ----------------------------------------------------------------------------- what it is given


def two_ways(x, y=None):
    return x if y is None else y


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: report(two_ways, KEY, 2), "f fits as a map of one latent and as a velocity"),
        (lambda: report("f", KEY, 2), "f must be a map .* or a velocity .*, got str"),
        (lambda: report(velocity, KEY, (2, 2, 3)), r"features must be given .* \(2, 2, 3\)"),
        (lambda: report(lambda t, x: x[:1], KEY, 2), "velocity must return one array of x's shape"),
        (lambda: report(lambda x, t: t, KEY, 2), r"take the time first, got parameters \(x, t\)"),
        (lambda: report(bent, KEY, 2, features=3), "features must be a function, got int"),
        (
            lambda: report(lambda t, x: x, KEY, 2, features=lambda a, b: a),
            r"features must take one sample and nothing else, got a function of \(a, b\)",
        ),
        (lambda: report(bent, KEY, 2, budget=0), "budget must be a positive integer"),
        (lambda: report(bent, KEY, 2, budget=7), "budget must be 8 latents or more, got 7"),
        (lambda: report(bent, KEY, 2, budget=-1.0), "budget must be positive, got -1.0"),
        (lambda: report(bent, KEY, 2, resume="x"), "resume belongs to one estimator"),
        (lambda: report(bent, 3, 2), "key must be one key from jax.random.key, got 3"),
        (lambda: report(chain, KEY, 3, held="d"), "held must name one of .*got 'd'"),
        (lambda: report(chain, KEY, 3, graph={"d": "a"}), "graph must name one of .*got 'd'"),
        (lambda: report(chain, KEY, 3, graph=np.ones((2, 2))), r"graph must be \[3, 3\]"),
        (lambda: report(chain, KEY, 3, graph={"a": "b", "b": "a"}), "must be acyclic"),
        (lambda: report(chain, KEY, 3, graph={"a": "a"}), "a feature among its own causes"),
        (lambda: report(chain, KEY, 3, graph=networkx.Graph([("a", "b")])), "must be directed"),
        (
            lambda: report(chain, KEY, 3, graph={"b": "a"}, order=["b", "a", "c"]),
            r"order \['b', 'a', 'c'\] has an effect before its cause",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_computed(make, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------------------- what one does with it


def test_findings_are_sentences_with_a_number_each(linear, curved):
    for made in (linear, curved):
        lines = str(made).splitlines()
        assert lines == [str(finding) for finding in made.findings]
        assert all(isinstance(finding, str) and finding.endswith(".") for finding in made.findings)
        assert all(math.isfinite(finding.value) for finding in made.findings)
    assert any("b held" in finding for finding in linear.findings)
    assert any("Under do(b)" in finding for finding in linear.findings)


def test_a_report_comes_back_from_its_file(tmp_path, linear):
    linear.save(tmp_path / "report")
    back = Report.load(tmp_path / "report")
    assert str(back) == str(linear) and list(back.moments) == list(linear.moments)
    assert [str(vars(f)) for f in back.findings] == [str(vars(f)) for f in linear.findings]
    for name, moment in linear.moments.items():
        np.testing.assert_array_equal(back.moments[name].replicates, moment.replicates)
    np.testing.assert_array_equal(back.turn, linear.turn)
    assert (back.samples, back.solver, back.names) == (512, "a map as it is", NAMES)
    with pytest.raises(ValueError, match="is not a moment's file"):
        cdelta.Moment.load(tmp_path / "report")
    linear.moments["wiggle"].save(tmp_path / "moment")
    with pytest.raises(ValueError, match="is not a report's file"):
        Report.load(tmp_path / "moment")


def test_a_page_of_its_own(linear):
    page = linear._repr_html_()
    ElementTree.fromstring(page)
    assert "http" not in page and "<script" not in page
    assert all(f"<summary>{name}" in page for name in linear.moments)
    odd = report(lambda x: {"<i>": x[0], "&": jnp.sign(x[1])}, KEY, 2, budget=512)
    ElementTree.fromstring(odd._repr_html_())
    assert "<i>" not in odd._repr_html_() and "What not to believe" in odd._repr_html_()


def test_tables_figures_and_json(linear):
    table = linear.to_dataframe()
    assert list(table)[:3] == ["moment", "i", "j"] and len(table) == 9 * len(linear.moments)
    figure = linear.plot()
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == [
        name for name in linear.moments if name not in ("lower", "upper")
    ]
    plt.close("all")
    told = json.loads(json.dumps(linear.to_json(), allow_nan=False))
    assert told["names"] == list(NAMES) and told["findings"][0]["text"] == linear.findings[0]
    np.testing.assert_allclose(told["moments"]["wiggle"]["matrix"], U @ U.T, rtol=0, atol=1e-13)
    for name, moment in linear.moments.items():
        for part in ("stderr", "samples", "effective_samples"):
            np.testing.assert_array_equal(told["moments"][name][part], getattr(moment, part))
