"""The result of an estimator: what it refuses, what is left of it, that it is a pytree, its
features' names, several runs as one, tables, figures and files."""

import dataclasses
import itertools
import json
import sys
from typing import NamedTuple
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas
import pytest

from cdelta import causal, dependence, jacobian
from cdelta._text import describe
from cdelta.dependence import wiggle_moment
from cdelta.moment import Moment
from tests.test_dependence import KEY, hermite


def test_a_map_that_does_not_depend_on_x0_says_so():
    moment = wiggle_moment(lambda x: jnp.stack([x[0], jnp.ones(()), x[1]]), KEY, (2,), 10)
    with pytest.raises(
        ValueError, match=r"correlation of features \[1\] is undefined.*does not depend on x0"
    ):
        _ = moment.correlation
    with pytest.raises(ValueError, match=r"features \[1\]"):
        _ = moment.correlation_stderr
    with pytest.raises(ValueError, match=r"features \[1\] cannot be held"):
        moment.partial(1)
    np.testing.assert_array_equal(moment.select([2, 0]).correlation, np.eye(2))
    np.testing.assert_array_equal(np.asarray(moment), np.diag([1.0, 0, 1]))


def test_a_moment_is_a_pytree_and_one_sample_has_no_error():
    moment = wiggle_moment(hermite, KEY, (4,), 20)
    twice = jax.tree.map(lambda leaf: leaf * 2, moment)
    np.testing.assert_allclose(twice.matrix, 2 * moment.matrix)
    assert np.isnan(wiggle_moment(hermite, KEY, (4,), 1).stderr).all()
    assert "replicates" not in repr(moment)


def test_selecting_features_keeps_which_are_held():
    """In the new numbers; and what is held later joins what was held before."""
    moment = wiggle_moment(hermite, KEY, (4,), 50).partial(1)
    for indices, held in (([2, 1], (1,)), ([1, 0], (0,)), ([0, 2], ())):
        chosen = moment.select(indices)
        assert chosen.held == held
        np.testing.assert_array_equal(chosen.matrix, moment.matrix[np.ix_(indices, indices)])
        undefined = [i in held for i in range(2)]
        np.testing.assert_array_equal(np.isnan(np.diag(chosen.correlation)), undefined)
        np.testing.assert_allclose(
            chosen.stderr, moment.stderr[np.ix_(indices, indices)], rtol=1e-12
        )
    assert moment.partial(0).held == (1, 0)


def test_errors_of_a_partial_moment_are_those_of_its_replicates():
    moment = wiggle_moment(hermite, KEY, (4,), 200)

    def regressed(matrix):  # entry 0, 0 with features 1 and 2 held, from the inverse
        return 1 / np.linalg.inv(matrix)[0, 0]

    value, stderr = moment.estimate(regressed)
    partial = moment.partial((1, 2))
    assert abs(partial.matrix[0, 0] / value - 1) < 1e-12
    assert abs(partial.stderr[0, 0] / stderr - 1) < 1e-9


# ------------------------------------------------------------------------------- names


class Pair(NamedTuple):
    smile: jax.Array
    pose: jax.Array


@dataclasses.dataclass
class Plain:
    smile: jax.Array
    pose: jax.Array


def one(x):
    return x[0] + x[1] ** 2


def two(x):
    return jnp.stack([x[1], x[0] * x[2]])


def three(x):
    return jnp.concatenate([one(x)[None], two(x)])


RETURNED = {
    "a dict": lambda x: {"smile": one(x), "pose": two(x)},
    "a NamedTuple": lambda x: Pair(one(x), two(x)),
    "a dataclass": lambda x: Plain(one(x), two(x)),
    "a pytree": jax.tree_util.Partial(lambda x: {"smile": one(x), "pose": list(two(x))}),
}
NAMES = ("smile", "pose[0]", "pose[1]")


@pytest.mark.parametrize("kind", RETURNED)
def test_features_returned_by_name_are_those_of_the_vector_with_names(kind):
    """In the order in which they were written, not in the alphabet's."""
    plain = wiggle_moment(three, KEY, (3,), 50, names=NAMES)
    named = wiggle_moment(RETURNED[kind], KEY, (3,), 50)
    assert named.names == plain.names == NAMES
    np.testing.assert_allclose(named.matrix, plain.matrix, rtol=1e-12)
    np.testing.assert_allclose(named.stderr, plain.stderr, rtol=1e-9)
    assert named["smile", "pose[1]"] == named[0, 2] == named[2, "smile"]
    assert named["smile", "pose[1]"] == pytest.approx(
        (plain.matrix[0, 2], plain.stderr[0, 2]), rel=1e-9
    )


def test_scalars_and_tuples_of_vectors_are_features_without_names():
    assert wiggle_moment(one, KEY, (3,), 5).names is None
    moment = wiggle_moment(lambda x: (one(x), two(x)), KEY, (3,), 50)
    assert moment.names is None
    plain = wiggle_moment(three, KEY, (3,), 50)
    np.testing.assert_allclose(moment.matrix, plain.matrix, rtol=1e-12)
    nested = wiggle_moment(lambda x: {"a": {"b": x[0], "c": [x[1], x]}}, KEY, (2,), 5)
    assert nested.names == ("a.b", "a.c[0]", "a.c[1][0]", "a.c[1][1]")


def test_a_name_stands_for_its_index_in_every_estimator():
    by_name, by_index = RETURNED["a dict"], three
    for estimate in (
        lambda f, k, j: dependence.held_moment(f, KEY, 3, 30, k),
        lambda f, k, j: dependence.held_moment(f, KEY, 3, 30, (k, j), "uniform"),
        lambda f, k, j: dependence.do_moment(f, KEY, 3, 30, k, j),
        lambda f, k, j: dependence.do_moment(f, KEY, 3, 30, k, (j,), method="jvp"),
        lambda f, k, j: dependence.feature_covariance(f, KEY, 3, 30, "jvp").partial(k),
        lambda f, k, j: dependence.covariance_bounds(f, KEY, 3, 30).upper.select([j, k]),
    ):
        named, plain = estimate(by_name, "pose[0]", "smile"), estimate(by_index, 1, 0)
        np.testing.assert_allclose(named.matrix, plain.matrix, rtol=1e-9, atol=1e-12)
        assert named.held == plain.held and len(named.names) == len(named.matrix)
    assert named.names == ("smile", "pose[0]")
    turns = [
        causal.frame_turn(f, KEY, 3, 30, order).turn
        for f, order in ((by_name, ["pose[0]", "smile"]), (by_index, [1, 0]))
    ]
    np.testing.assert_allclose(*turns, rtol=1e-9, atol=1e-12)


def test_samples_carry_names_too():
    x = jax.random.normal(KEY, (40, 3))
    rows = np.asarray(jax.vmap(three)(x))
    frame = pandas.DataFrame(rows, columns=list(NAMES))
    plain = dependence.sample_moment(rows, names=NAMES)
    for given in (frame, jax.vmap(RETURNED["a dict"])(x)):
        moment = dependence.sample_moment(given)
        assert moment.names == (NAMES if given is frame else (*NAMES[1:], "smile"))
        moment = moment.select(NAMES)  # vmap sorts a dict
        np.testing.assert_allclose(moment.matrix, plain.matrix, rtol=1e-9)
        kept = dependence.filtered_moment(given, "smile", 0.5)
        by_hand = dependence.filtered_moment(rows, 0, 0.5).matrix
        np.testing.assert_allclose(kept.select(NAMES).matrix, by_hand, rtol=1e-9)


def test_a_data_frame_of_nullable_columns_is_one_of_numbers(unchecked):
    rows = np.asarray(jax.random.normal(KEY, (120, 2)), float)
    frame = pandas.DataFrame({"real": rows[:, 0], "whole": np.round(9 * rows[:, 1]).astype(int)})
    nullable = frame.convert_dtypes()
    assert nullable.to_numpy().dtype == object  # what pandas makes of them together
    same, other = map(dependence.sample_moment, (frame, nullable))
    assert other.names == ("real", "whole")
    np.testing.assert_array_equal(other.matrix, same.matrix)
    orders = [causal.find_order(one, KEY, waves=60) for one in (frame, nullable)]
    np.testing.assert_array_equal(orders[1].scores, orders[0].scores)
    flow = causal.CausalFlow({"whole": ["real"]}, ["real", "whole"])
    for given in (frame, nullable):
        np.testing.assert_array_equal(flow._data("x", given), frame.to_numpy(float))


@pytest.mark.parametrize(
    ("column", "kind"), [([True, False] * 60, "bool"), (["yes", "no"] * 60, "object|str")]
)
def test_columns_without_numbers_are_named(column, kind, unchecked):
    rows = np.random.default_rng(0).normal(size=(120, 2))
    frame = pandas.DataFrame(rows, columns=["a", "b"]).assign(c=column)
    flow = causal.CausalFlow({"b": ["a"], "c": []}, ["a", "b", "c"])
    for ask in (
        dependence.sample_moment,
        lambda frame: causal.find_order(frame, KEY),
        lambda frame: flow.fit(frame, KEY),
    ):
        with pytest.raises(ValueError, match=rf"numbers in every column, got 'c' \(({kind})\)"):
            ask(frame)


def test_names_survive_what_is_done_with_a_moment(unchecked):
    moment = wiggle_moment(three, KEY, (3,), 20, names=NAMES)
    assert jax.tree.map(lambda leaf: leaf, moment).names == NAMES
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), moment, moment)
    assert jax.vmap(lambda m: m)(stacked).names == NAMES
    assert jax.jit(lambda m: m)(moment).names == NAMES
    assert moment.select(["pose[1]", 0]).names == ("pose[1]", "smile")
    assert moment.partial("pose[0]").held == (1,) and moment.partial("pose[0]").names == NAMES
    assert moment.named(None).names is None
    assert moment.named(["a", "b", "c"])["c", "a"] == moment[2, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: m["smil", 0], "must name one of .*'smile'.*got 'smil': did you mean 'smile'"),
        (lambda m: m["smile"], r"entries of two features, \[i, j\], got 'smile'"),
        (lambda m: m[0, 3], "a feature must be an index in 0, …, 2, got 3"),
        (lambda m: m.named(None)["smile", 0], "'smile': these features have no names"),
        (lambda m: m.select(["pose[0]", "pose[0]"]), "indices must be different"),
        (lambda m: m.select(["pose[0]", "pose"]), "indices must name one of .*got 'pose'"),
        (lambda m: m.partial(NAMES), "k must leave at least one feature free"),
        (lambda m: m.named(["a", "b"]), r"one for each of the 3 features, got 2: \['a', 'b'\]"),
        (lambda m: m.named(["a", "b", "a"]), "names must be different, got 'a' more than once"),
        (lambda m: m.named("abc"), "names must be a list of names, got 'abc'"),
        (lambda m: m.named(["a", "", "c"]), "names must be texts that are not empty"),
        (
            lambda m: wiggle_moment(RETURNED["a dict"], KEY, 3, 5, names=["a", "b", "c"]),
            "names must be left out for a map whose features are named",
        ),
        (
            lambda m: wiggle_moment(lambda x: {"a[0]": x[0], "a": x}, KEY, 3, 5),
            r"names of what f returns must be different, got 'a\[0\]' more than once",
        ),
        (
            lambda m: dependence.do_moment(three, KEY, 3, 5, "smile", "smile", names=NAMES),
            r"parents must be other features than index 'smile', got \('smile',\)",
        ),
        (
            lambda m: dependence.held_moment(
                lambda x: {"flat": 0 * x[0], "x": x[0]}, KEY, 3, 5, "flat"
            ),
            r"features \['flat'\] cannot be held",
        ),
    ],
)
def test_names_that_are_not_there_or_do_not_fit_are_refused(make, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make(wiggle_moment(three, KEY, (3,), 5, names=NAMES))


def test_a_name_that_is_not_there_is_a_key_that_is_not_there():
    moment = wiggle_moment(three, KEY, (3,), 5, names=NAMES)
    with pytest.raises(KeyError):
        _ = moment["frown", "smile"]
    with pytest.raises(TypeError, match="not iterable"):
        list(moment)


# ----------------------------------------------------------------- several runs as one


def test_runs_together_are_one_run_over_all_their_samples():
    """By hand: the mean of the statistic over the latents of both keys, its groups, its counts."""
    sizes, keys = (70, 130), jax.random.split(KEY)
    runs = [wiggle_moment(three, key, (3,), n) for key, n in zip(keys, sizes, strict=True)]
    whole = Moment.concatenate(runs)
    products, groups = [], []
    for number, (key, n) in enumerate(zip(keys, sizes, strict=True)):
        for i in range(n):
            latent = jax.random.normal(jax.random.split(jax.random.fold_in(key, i))[0], (3,))
            rows = np.asarray(jacobian.rows(three, latent))
            products.append(rows @ rows.T)
            groups.append((number, i % 64))
    products = np.stack(products)
    np.testing.assert_allclose(whole.matrix, products.mean(0), rtol=1e-10)
    assert whole.samples == 200
    kinds = sorted(set(groups))
    without = [
        products[[group != kind for group in groups]].mean(0) for kind in kinds
    ]  # in the order of runs and groups
    np.testing.assert_allclose(whole.replicates, without, rtol=1e-9)
    np.testing.assert_allclose(
        whole.shares, [groups.count(kind) / 200 for kind in kinds], rtol=1e-12
    )
    traces = np.trace(products, axis1=1, axis2=2)
    assert whole.effective_samples == pytest.approx(traces.sum() ** 2 / (traces**2).sum())


def test_errors_of_runs_together_are_calibrated():
    """Over 100 repeats of three runs of unequal sizes: the spread of the estimates is what their
    standard errors say, and forgetting the shares would show."""
    values, errors = [], []
    for key in jax.random.split(KEY, 100):
        runs = [
            dependence.sample_moment(np.random.default_rng([seed, n]).standard_normal((n, 2)) ** 3)
            for seed, n in zip(np.asarray(jax.random.key_data(key)), (40, 400), strict=False)
        ]
        whole = Moment.concatenate(runs)
        values.append(whole.matrix[0, 0])
        errors.append(whole.stderr[0, 0])
    spread, said = np.std(values), np.sqrt(np.mean(np.square(errors)))
    assert abs(np.mean(values) - 15) < 4 * spread / 10
    assert said / spread == pytest.approx(1, abs=0.35)  # the spread of 100 is known to 7 %, and its
    # square's heavy tail triples that; the error of the small run alone would be 3.3 times larger


def test_runs_of_held_features_keep_the_share_that_was_left_out():
    def flat_half(x):  # nothing can be held where x[0] < 0
        return jnp.stack([jnp.maximum(x[0], 0), x[0] + x[1]])

    keys = jax.random.split(KEY)
    runs = [
        dependence.held_moment(flat_half, k, 2, n, 0) for k, n in zip(keys, (50, 200), strict=True)
    ]
    whole = Moment.concatenate(runs)
    lost = sum(round(r.samples * r.degenerate / (1 - r.degenerate)) for r in runs)
    assert whole.held == (0,) and whole.samples + lost == 250
    assert whole.degenerate == pytest.approx(lost / 250)


def test_one_sample_more_is_one_group_more():
    first = wiggle_moment(three, KEY, (3,), 10)
    single = wiggle_moment(three, jax.random.key(1), (3,), 1)
    whole = Moment.concatenate([first, single])
    assert len(whole.shares) == 11 and np.isfinite(whole.stderr).all()
    np.testing.assert_allclose(whole.replicates[-1], first.matrix, rtol=1e-12)
    alone = Moment.concatenate([single])
    np.testing.assert_array_equal(alone.matrix, single.matrix)
    assert np.isnan(alone.stderr).all()


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (lambda m: [], "moments must be at least one"),
        (lambda m: [m, m], "number 1 has the key of one before it"),
        (
            lambda m: [m, wiggle_moment(three, jax.random.PRNGKey(0), 3, 90)],
            "the same latents would be counted twice",
        ),
        (
            lambda m: [Moment.concatenate([m, other()]), other()],
            "number 1 has the key of one before it",
        ),
        (lambda m: [known(0), known(1), known(0)], "number 2 is the same as one before it"),
        (lambda m: [m, m.matrix], "moments must be Moments, got ndarray in number 1"),
        (lambda m: [m, other().named(NAMES)], "moments must have the same names"),
        (lambda m: [m, other().partial(1)], r"moments must have the same held, got \(\) and"),
        (lambda m: [m, other().select([0, 1])], "moments must be of the same features, got 3 and"),
    ],
)
def test_runs_that_are_not_independent_or_not_alike_are_refused(others, message):
    moment = wiggle_moment(three, KEY, (3,), 9)
    with pytest.raises(ValueError, match=message):
        Moment.concatenate(others(moment))


def test_the_same_words_for_two_generators_are_two_keys():
    """What they draw is not the same: such runs are independent."""
    words = jnp.zeros(4, jnp.uint32)
    keys = [jax.random.wrap_key_data(words, impl=impl) for impl in ("rbg", "unsafe_rbg")]
    runs = [wiggle_moment(three, key, 3, 9) for key in keys]
    assert np.abs(runs[0].matrix - runs[1].matrix).max() > 1e-3
    assert Moment.concatenate(runs).samples == 18


def other():
    return wiggle_moment(three, jax.random.key(1), (3,), 9)


def quantities():
    """Each of another kind, all of three features, in the order of their estimators; the held ones
    after taking out the held feature, which hides what it was."""
    key = iter(jax.random.split(jax.random.key(5), 20))
    lower, upper = dependence.covariance_bounds(three, next(key), 3, 4)
    finer = dependence.covariance_bounds(three, next(key), 3, 4, nodes=2)
    draws = np.random.default_rng(0).standard_normal((9, 3))
    found = [
        other(), dependence.feature_covariance(three, next(key), 3, 4), lower, upper,
        finer.lower, finer.upper,
        *(dependence.held_moment(three, next(key), 3, 4, k) for k in (0, 1)),
        dependence.held_moment(three, next(key), 3, 4, 0, "uniform"),
        *(dependence.do_moment(three, next(key), 3, 4, 1, parents) for parents in ((), (0,))),
        wiggle_moment(three, next(key), 3, 9).partial(0),
    ]  # fmt: skip
    rest = [[1, 2], [0, 2]]
    found = [m.select(rest[m.held[0]] if m.held else [0, 1]) for m in found]
    found += [dependence.filtered_moment(draws[:, :2], 0, threshold) for threshold in (1.0, 2.0)]
    return found


def test_two_quantities_are_not_one():
    """Every pair of different kinds is refused; two runs of each are put together, also where one
    is of a file of a version that did not write the kind."""
    found = quantities()
    assert len({moment.kind for moment in found}) == len(found)
    for a, b in itertools.permutations(found, 2):
        with pytest.raises(ValueError, match="moments must be of one quantity, got "):
            Moment.concatenate([a, b])
    for moment in found:
        again = dataclasses.replace(
            moment, keys=moment.keys + 1, matrix=moment.matrix + 1, replicates=moment.replicates + 2
        )
        for kind in (moment.kind, None):
            one = dataclasses.replace(again, kind=kind)
            for order in ([moment, one], [one, moment]):
                whole = Moment.concatenate(order)
                assert whole.kind == moment.kind and whole.samples == 2 * moment.samples
    # the same quantity by another way
    draws = np.random.default_rng(1).standard_normal((9, 2))
    for other_way, number in ((dependence.from_wiggles, 0), (dependence.sample_moment, 1)):
        assert Moment.concatenate([found[number], other_way(draws)]).samples == 9 + (9, 4)[number]
    assert dependence.from_rows(np.ones((3, 2, 2))).kind == found[0].kind


def known(seed):
    """Of arrays, without a key."""
    return dependence.from_wiggles(np.random.default_rng(seed).standard_normal((9, 3)))


def test_a_moment_alone_and_moments_that_do_not_vary_are_put_together():
    """Of an affine map's rows two files say the same, and are two."""
    assert Moment.concatenate(known(0)).samples == 9
    same = dependence.from_rows(np.broadcast_to(np.eye(3), (5, 3, 3)))
    assert Moment.concatenate([same, same]).samples == 10


# -------------------------------------------------------------- tables, figures, files


def test_a_table_has_a_row_for_every_entry():
    moment = wiggle_moment(three, KEY, (3,), 40, names=NAMES).partial("smile")
    table = moment.to_dataframe()
    assert list(table) == ["i", "j", "value", "stderr", "correlation", "correlation_stderr"]
    assert len(table) == 9
    row = table[(table.i == "pose[0]") & (table.j == "pose[1]")].iloc[0]
    assert (row.value, row.stderr) == moment["pose[0]", "pose[1]"]
    assert row.correlation == moment.correlation[1, 2]
    assert row.correlation_stderr == moment.correlation_stderr[1, 2]
    assert table[table.i == "smile"].correlation.isna().all()
    assert list(moment.named(None).to_dataframe().i.unique()) == [0, 1, 2]
    constant = wiggle_moment(lambda x: jnp.stack([x[0], jnp.ones(())]), KEY, 2, 5)
    assert constant.to_dataframe().correlation.isna().sum() == 3  # no refusal


def test_html_says_every_entry_with_its_error_and_escapes_names():
    moment = wiggle_moment(three, KEY, (3,), 40, names=["<b>", "a & b", "held"]).partial("held")
    page = moment._repr_html_()
    assert "&lt;b&gt;" in page and "a &amp; b" in page and "<b>" not in page
    assert "held (held)" in page and "40 samples" in page
    assert describe(*moment["<b>", "a & b"]) in page
    assert describe(moment.correlation[0, 1], moment.correlation_stderr[0, 1]) in page
    ElementTree.fromstring(page)  # every element is closed


@pytest.mark.parametrize("sign", [1, -1])
def test_html_of_many_features_says_the_largest_correlations(sign):
    """The largest of both signs."""

    def many(x):
        return jnp.concatenate([x, sign * x[:1] + 0.1 * x[1:2]])

    moment = wiggle_moment(many, KEY, (12,), 20, names=[f"n{i}" for i in range(13)])
    _, *rows = moment._repr_html_().split("<tr>")[1:]
    assert len(rows) == 20 and "n0" in rows[0] and "n12" in rows[0]
    assert "n1" in rows[1] and "n12" in rows[1]
    ElementTree.fromstring(moment._repr_html_())


def test_a_figure_shows_correlations_or_the_moment():
    moment = wiggle_moment(three, KEY, (3,), 40, names=NAMES).partial("smile")
    ax = moment.plot()
    np.testing.assert_array_equal(ax.images[0].get_array().filled(np.nan), moment.correlation)
    assert [label.get_text() for label in ax.get_xticklabels()] == list(NAMES)
    written = [text.get_text() for text in ax.texts]
    assert written[:4] == ["–", "–", "–", "–"] and written[4] == "1" and "±" in written[5]
    own = plt.figure().add_subplot()
    assert moment.plot(own, correlation=False) is own
    np.testing.assert_array_equal(own.images[0].get_array(), moment.matrix)
    # a moment's own entries have errors, on the diagonal too; a correlation with itself has none
    told = describe(*moment[1, 1]).replace(" ± ", "\n± ").replace("-", "−")
    assert own.texts[4].get_text() == told and "±" in told
    # text stays readable in both themes: at zero the background shows, and never less than a third
    colors = own.images[0].cmap(np.linspace(0, 1, 5))
    assert colors[2][3] < 0.02 and colors[:, 3].max() < 0.7
    assert colors[4][0] > 2 * colors[4][2] and colors[0][2] > 2 * colors[0][0]  # red above zero
    plt.close("all")


def by_hand(matrix):
    """A moment of two samples."""
    matrix = np.array(matrix, float)
    return Moment(matrix, np.stack([matrix, matrix]), np.full(2, 0.5), 2, 2.0)


def test_the_scale_of_a_figure_is_symmetric_and_holds_every_entry():
    """An unbiased estimate of a covariance need not be positive: its largest entry may be negative,
    and off the diagonal."""
    ax = by_hand([[1, -3], [-3, 2]]).plot(correlation=False)
    assert ax.images[0].get_clim() == (-3, 3)
    assert by_hand([[1, -3], [-3, 2]]).plot().images[0].get_clim() == (-1, 1)
    plt.close("all")


def test_a_variance_below_zero_has_no_correlation():
    """As C3' may give one from few samples; what is not asked for is not in doubt."""
    moment = by_hand([[1, 0.5, 0.2], [0.5, -0.1, 0], [0.2, 0, 4]])
    for ask in (lambda: moment.correlation, lambda: moment.correlation_stderr):
        with pytest.raises(ValueError, match=r"features \[1\] is undefined"):
            ask()
    assert moment.select([0, 2]).correlation[0, 1] == pytest.approx(0.1)


def test_an_array_of_a_moment_is_a_copy():
    moment = by_hand([[1, 0.5], [0.5, 2]])
    np.asarray(moment)[0, 0] = 9
    assert moment.matrix[0, 0] == 1


def test_a_moment_comes_back_from_its_file(tmp_path):
    moment = dependence.held_moment(three, KEY, (3,), 40, "smile", names=NAMES)
    for saved in (moment, moment.named(None), dependence.sample_moment(np.eye(3))):
        saved.save(tmp_path / "a moment")
        back = Moment.load(tmp_path / "a moment")
        assert [path.name for path in tmp_path.iterdir()] == ["a moment"]
        for field in dataclasses.fields(Moment):
            mine, theirs = getattr(saved, field.name), getattr(back, field.name)
            np.testing.assert_array_equal(mine, theirs)
            assert type(mine) is type(theirs)
    with pytest.raises(ValueError, match="has the key of one before it"):
        Moment.concatenate([moment, moment.named(NAMES)])


def test_what_is_no_moment_any_more_is_not_saved(tmp_path, unchecked):
    """As jax's transformations leave it: arrays of jax make the same moment, others none."""
    moment = wiggle_moment(three, KEY, (3,), 40, names=NAMES)
    arrays = jax.tree.map(jnp.asarray, moment)
    arrays.save(tmp_path / "moment")
    back = Moment.load(tmp_path / "moment")
    assert type(back.samples) is int and back.samples == 40 and back.kind == moment.kind
    np.testing.assert_array_equal(back.matrix, moment.matrix)
    for change in (
        lambda part: part * 1.5,
        lambda part: np.stack([part, part]),
        lambda part: np.shape(part),
        lambda part: None,
    ):
        with pytest.raises(ValueError, match="what is saved must be one moment"):
            jax.tree.map(change, moment).save(tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["moment"]


def test_files_of_earlier_versions_have_no_kind(tmp_path):
    moment = wiggle_moment(three, KEY, (3,), 40)
    moment.save(tmp_path / "new")
    with np.load(tmp_path / "new") as file:
        parts = dict(file)
    about = json.loads(str(parts["about"]))
    assert about.pop("quantity") == moment.kind
    np.savez((tmp_path / "old").open("wb"), **(parts | {"about": json.dumps(about)}))
    old = Moment.load(tmp_path / "old")
    assert old.kind is None and old.samples == 40
    np.testing.assert_array_equal(old.matrix, moment.matrix)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path, moment = tmp_path / "moment", wiggle_moment(three, KEY, (3,), 40, names=NAMES)
    moment.save(path)
    whole = path.read_bytes()
    at = whole.index(b"descr") + 300  # in the first array's numbers, which a checksum covers
    assert b"pickle" not in whole
    entry = whole.rindex(b"PK\x01\x02")  # of the archive's list: its flags, its method

    def turned(place):
        return whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]

    for damaged in (
        whole[: len(whole) // 2],
        b"",
        b"{}",
        whole[:at] + b"!!!!" + whole[at + 4 :],
        turned(entry + 8),
        turned(entry + 10),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is not a moment's file"):
            Moment.load(path)
    with pytest.raises(FileNotFoundError):
        Moment.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        Moment.load(tmp_path)
    about = '{"kind": "cdelta.Moment", "format": true}'
    np.savez(path.open("wb"), about=about, matrix=np.eye(2))
    with pytest.raises(ValueError, match="is not a moment's file"):
        Moment.load(path)
    np.savez(path.open("wb"), about="[]", matrix=np.eye(2))
    with pytest.raises(ValueError, match="is not a moment's file"):
        Moment.load(path)

    def rewritten(about=(), **arrays):
        path.write_bytes(whole)
        with np.load(path) as file:
            parts = dict(file)
        told = json.loads(str(parts["about"])) | dict(about)
        np.savez(path.open("wb"), **(parts | {"about": json.dumps(told)} | arrays))

    rewritten({"format": 2, "cdelta": "9.0"})
    with pytest.raises(ValueError, match=r"written by cdelta 9\.0 in format 2; .* up to 1"):
        Moment.load(path)
    for changed in (
        {"matrix": np.eye(2)},
        {"shares": np.ones(3)},
        {"about": {"names": ["a", "a", "b"]}},
        {"about": {"held": [7]}},
        {"degenerate": np.zeros(2)},
        {"about": {"samples": -1}},
        {"about": {"quantity": 3}},
    ):
        rewritten(**changed)
        with pytest.raises(ValueError, match="is a damaged moment's file"):
            Moment.load(path)


def test_what_an_extra_installs_is_named_where_it_is_missing(monkeypatch):
    moment = wiggle_moment(three, KEY, (3,), 5)
    for package, use in (("pandas", moment.to_dataframe), ("matplotlib.pyplot", moment.plot)):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=r'pip install "cdelta\[report\]"'):
            use()


def test_distances_in_standard_errors_are_of_the_distinct_entries():
    moment = wiggle_moment(hermite, KEY, (4,), 50)
    other = wiggle_moment(hermite, jax.random.key(99), (4,), 80)
    n = len(moment.matrix)
    truth = np.arange(n * n, dtype=float).reshape(n, n)
    by_hand = [
        (moment.matrix[i, j] - truth[i, j]) / moment.stderr[i, j]
        for i in range(n)
        for j in range(i, n)
    ]
    np.testing.assert_array_equal(moment.z_scores(truth), by_hand)
    both = [
        (moment.matrix[i, j] - other.matrix[i, j])
        / np.sqrt(moment.stderr[i, j] ** 2 + other.stderr[i, j] ** 2)
        for i in range(n)
        for j in range(i, n)
    ]
    np.testing.assert_allclose(moment.z_scores(other), both, rtol=1e-12)
    with pytest.raises(ValueError, match=r"truth must have shape \(\d, \d\), got \(2, 2\)"):
        moment.z_scores(np.eye(2))


def of_samples(x, blocks=10):
    """The moment of samples about zero, with its delete-one-group replicates."""
    groups = x.reshape(blocks, -1, x.shape[1])
    left = [np.delete(groups, b, axis=0).reshape(-1, x.shape[1]) for b in range(blocks)]
    replicates = np.stack([part.T @ part / len(part) for part in left])
    return Moment(x.T @ x / len(x), replicates, np.full(blocks, 1 / blocks), len(x), float(len(x)))


@pytest.mark.parametrize("rounding", [0.0, -5e-17, 5e-17])
def test_an_error_that_too_few_groups_cannot_tell_is_not_a_number(rounding):
    """Of three groups one alone makes the held feature vary: nothing is regressed on it without."""
    whole = np.array([[0.5, 1.0], [1.0, 3.0]])
    without = np.array([[rounding, 0.0], [0.0, 0.5]])
    replicates = np.stack([whole, 2 * whole, without])
    moment = Moment(whole, replicates, np.full(3, 1 / 3), 3, 3.0)
    partial = moment.partial(0)
    assert partial.matrix[1, 1] == pytest.approx(1.0) and np.isnan(partial.stderr[1, 1])
    told = Moment(whole, np.stack([whole, 2 * whole, whole]), np.full(3, 1 / 3), 3, 3.0).partial(0)
    assert told.stderr[1, 1] == pytest.approx(np.sqrt(2 / 3))  # (1 - 1/3)(2 - 1)²


def test_what_can_be_held_does_not_know_units():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 4)) @ rng.normal(size=(4, 4))
    units = np.array([1e9, 1e-9, 1.0, 1e4])
    moment = of_samples(x * units).partial([0, 1])
    # regressed by QR, which has no products of units in it
    basis, _ = np.linalg.qr(x[:, :2])
    rest = x[:, 2:] - basis @ (basis.T @ x[:, 2:])
    expected = rest.T @ rest / len(x)
    scale = np.outer(units, units)
    np.testing.assert_allclose((moment.matrix / scale)[2:, 2:], expected, rtol=1e-12)
    stderr = of_samples(x).partial([0, 1]).stderr
    np.testing.assert_allclose((moment.stderr / scale)[2:, 2:], stderr[2:, 2:], rtol=1e-9)
    for singular in (x * [0, 1, 1, 1], np.c_[x[:, 0], 2 * x[:, 0], x[:, 2:]]):
        with pytest.raises(ValueError, match="cannot be held: their own moment is singular"):
            of_samples(singular * units).partial([0, 1])
