"""What benchmarks keep: read again, not measured again, and shown by the chapters."""

import datetime
import importlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdelta import ledger
from tests import ROOT
from tests.benchmarks import _record, order, pairs, readings

KEPT = sorted(path.stem for path in ledger.RECORDS.glob("*.jsonl"))
CHAPTERS = {
    path.stem: path.read_text("utf-8") for path in sorted((ROOT / "notebooks").glob("*.md"))
}


def test_a_measurement_is_kept_with_its_day_and_versions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = _record.Record("speed", ("way", "seed"))
    assert record.measured() == {}
    record.keep(way="R²", seed=np.int64(3), right=np.bool_(True), error=np.float32(0.5))
    record.keep(way="R²", seed=4, right=False, error=0.25)
    again = _record.Record("speed", ("way", "seed")).measured()
    assert list(again) == [("R²", 3), ("R²", 4)]
    row = again["R²", 3]
    assert (row["right"], row["error"]) == (True, 0.5)
    assert row["made"] == datetime.date.today().isoformat()
    assert set(row["versions"]) == {"cdelta", "jax", "numpy"}
    monkeypatch.setenv("RECORDS", "elsewhere")
    assert _record.Record("speed", ("way", "seed")).measured() == {}


@pytest.mark.parametrize(
    ("chosen", "seeds"), [(None, [0, 1, 2]), ("7", [7]), ("0 3-5 9", [0, 3, 4, 5, 9])]
)
def test_seeds(chosen, seeds, monkeypatch):
    monkeypatch.delenv("SEEDS", raising=False)
    if chosen:
        monkeypatch.setenv("SEEDS", chosen)
    assert _record.seeds("0-2") == seeds


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_is_what_its_benchmark_writes(name):
    rows = ledger.kept(name)
    benchmark = importlib.import_module(f"tests.benchmarks.{name}")
    by = (benchmark.RECORD if hasattr(benchmark, "RECORD") else benchmark.record()).by
    measured = [tuple(row[field] for field in by) for row in rows]
    assert len(set(measured)) == len(rows) > 0
    for row in rows:
        datetime.date.fromisoformat(row["made"])
        assert {"cdelta", "jax", "numpy"} <= set(row["versions"])
        assert not re.search(r'"[./~]*/\w', json.dumps(row))  # no path of a machine


@pytest.mark.parametrize("name", KEPT)
def test_a_chapter_shows_it_and_no_number_of_it_is_typed(name):
    showing = [text for text in CHAPTERS.values() if f'ledger.kept("{name}")' in text]
    assert len(showing) == 1 and f"NAMES={name}" in showing[0]
    assert "ledger.made(" in showing[0]
    # a table in Markdown would be typed: those that are read are made by figures.table
    assert not re.search(r"^\|.*\d.*\|$", showing[0], re.M)


# ------------------------------------------------------------ baselines that benchmarks write out


def straight(seed, n):
    """A linear model with normal noises: which is the cause, nothing in its law tells."""
    x, noise = np.random.default_rng(seed).standard_normal((2, n))
    return pairs.standard(x), pairs.standard(0.8 * x + 0.6 * noise)


def by_chance(right, of):
    """Within what fair coins do in 997 of 1000 runs, three standard deviations."""
    return abs(right - of / 2) < 1.5 * np.sqrt(of)


def test_an_additive_noise_model_names_the_cause():
    """Uniform noise on a bent mechanism: an effect's residual is independent, a cause's is not."""
    found = []
    for seed in range(4):
        x, noise = np.random.default_rng(seed).uniform(-1, 1, (2, 100))
        x, y = pairs.standard(x), pairs.standard(x + x**3 + 0.4 * noise)
        found.append(pairs.by_independence(x, y, 0))
        assert found[-1] > 0 > pairs.by_independence(y, x, 0)
    null = [pairs.by_independence(*straight(seed, 100), 0) for seed in range(24)]
    assert by_chance(np.sum(np.array(null) > 0), 24)
    assert np.median(np.abs(null)) < np.min(found) / 5


def test_hsic_sees_what_no_correlation_tells():
    """A square, against permutations of it; and samples without any dependence have what those
    have."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(200)
    y = x**2
    shuffled = [pairs.hsic(x, rng.permutation(y)) for _ in range(40)]
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.2  # no correlation would tell
    assert pairs.hsic(x, y) > np.mean(shuffled) + 6 * np.std(shuffled)
    alone = [pairs.hsic(x, rng.standard_normal(200) ** 2) for _ in range(40)]
    error = np.hypot(np.std(alone), np.std(shuffled)) / np.sqrt(40)
    assert abs(np.mean(alone) - np.mean(shuffled)) < 4 * error
    # by its definition, the covariance of the two kernels' entries about their rows' means
    centre = np.eye(200) - 1 / 200
    centred = np.trace(pairs.kernel(x) @ centre @ pairs.kernel(y) @ centre) / 200**2
    np.testing.assert_allclose(pairs.hsic(x, y), centred, rtol=1e-10)


def test_what_an_instrument_reads_off_another_attribute():
    """Cheeks read half off make-up, and noise; without the half, noise alone: nothing is read."""
    rng = np.random.default_rng(0)
    true = rng.standard_normal((20_000, 3)) @ [[1, 0.6, 0.6], [0, 0.8, 0], [0, 0, 0.8]]
    noise = 0.1 * rng.standard_normal(true.shape)
    makeup, _, _, cheeks, nose = readings.knows(true + [0, 0.5, 0] * true[:, :1] + noise, true)
    assert abs(makeup - 1 / np.sqrt(1.01)) < 0.001 and cheeks > 0.9 and abs(nose) < 0.03
    *own, cheeks, nose = readings.knows(true + noise, true)
    np.testing.assert_allclose(own, 1 / np.sqrt(1.01), atol=0.001)
    assert abs(cheeks) < 0.03 and abs(nose) < 0.03


def test_known_faces_of_a_painter_are_the_faces_before(monkeypatch):
    """A painter's faces have no residual: taken out and put in, they are moved on by one."""
    monkeypatch.setattr(readings, "FACES", 3)
    monkeypatch.setattr(readings, "BATCH", 3)
    images, attributes = readings.painted()
    monkeypatch.setattr(readings, "generated", lambda name: (images[:3], None))
    found, known = readings.known("any")
    assert np.abs(found - np.roll(images[:3], 1, axis=0)).max() < 0.1
    apart = np.abs(known - np.roll(attributes[:3], 1, axis=0)).mean()
    assert apart < 0.2 * np.abs(known - attributes[:3]).mean()


def test_entropies_of_a_uniform_cause_and_its_cube():
    """The difference is the mean of -log 3x², which is 2 - log 3."""
    x = np.random.default_rng(0).random(4000)
    found, back = pairs.by_entropy(x, x**3, 0), pairs.by_entropy(x**3, x, 0)
    assert abs(found - (2 - np.log(3))) < 0.05 and found == -back
    assert abs(pairs.by_entropy(x, 2 * x + 1, 0)) < 1e-9
    null = [pairs.by_entropy(*straight(seed, 500), 0) for seed in range(100)]
    assert by_chance(np.sum(np.array(null) > 0), 100)


def test_the_score_by_steins_identity_is_that_of_its_formula_differentiated():
    """Slopes and curvatures of the kernel by automatic differentiation, on few samples."""
    x = np.random.default_rng(0).standard_normal((12, 2)) * [1, 2]
    width = np.median(np.linalg.norm(x[:, None] - x[None], axis=2))

    def near(one, other):
        return jnp.exp(-((one - other) ** 2).sum() / (2 * width**2))

    def of_all(f):
        return np.asarray(jax.vmap(jax.vmap(f, (None, 0)), (0, None))(x, x))

    with jax.enable_x64(True):
        kernel, slope, curved = (
            of_all(near),
            of_all(jax.grad(near, 1)),
            of_all(jax.hessian(near, 1)),
        )
    first, second = slope.sum(1), np.diagonal(curved, axis1=2, axis2=3).sum(1)
    inverse = np.linalg.inv(kernel + 0.1 * np.eye(12))
    expected = inverse @ second - (inverse @ first) ** 2
    np.testing.assert_allclose(order.stein_diagonal(x, 0.1, 0.1), expected, rtol=1e-9)


def test_the_score_tells_a_leaf_of_a_bent_mechanism():
    """Of independent normal features the entries are those of the precision, but for the ridge; of
    y = sin 2x + e/2 the effect's vary least."""
    apart = np.random.default_rng(0).standard_normal((600, 2)) * [1, 2]
    entries = np.median(order.stein_diagonal(apart, 1e-3, 1e-3), 0)
    assert (entries < 0).all() and abs(entries[0] / entries[1] - 4) < 0.6
    for seed in range(3):
        x, noise = np.random.default_rng(seed).standard_normal((2, 600))
        y = np.sin(2 * x) + 0.5 * noise
        cause, effect = order.stein_diagonal(np.stack([x, y], 1), 1e-3, 1e-3).var(0)
        assert cause > 2 * effect
        assert order.by_score(np.stack([x, y], 1)).tolist() == [0, 1]
        assert order.by_score(np.stack([y, x], 1)).tolist() == [1, 0]
    null = [order.by_score(np.stack(straight(seed, 200), 1))[0] == 0 for seed in range(24)]
    assert by_chance(sum(null), 24)


def test_edges_put_right_by_an_order_and_by_pairs():
    graph = np.array([[False, False, False], [True, False, False], [True, True, False]])
    assert pairs.forward((0, 1, 2), graph).all() and not pairs.forward((2, 1, 0), graph).any()
    assert pairs.forward((1, 0, 2), graph).tolist() == [False, True, True]
    # a chain of cubes, no noise: each effect has less entropy than its cause
    x = np.random.default_rng(0).random(100)
    for known, right in ((graph, 3), (graph.T, 0)):
        found = pairs.directions(np.stack([x, x**3, x**9], 1), known)
        assert found["IGCI"] == ledger.share(right, 3) and set(found) == set(pairs.METHODS)
