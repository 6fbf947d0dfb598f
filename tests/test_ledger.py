"""The ledger: what passes, what is recorded, what is refused."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from cdelta import ledger, quality


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Away from the book, with records going to a file: reads them back."""
    path = tmp_path / "ledger.jsonl"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CDELTA_LEDGER", str(path))
    return lambda: (
        [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    )


def test_pass_is_recorded_and_printed(record, capsys):
    ledger.check("T3", "relative error", np.float32(0.25), 1)
    ledger.check("C3'", "ratio", 1.672, (1.5, 1.75), stderr=0.0123)
    assert capsys.readouterr().out.splitlines() == [
        "PASS T3 · relative error: 0.25 ≤ 1",
        "PASS C3' · ratio: 1.672 ± 0.012 ∈ [1.5, 1.75]",
    ]
    first = {
        "claim": "T3",
        "quantity": "relative error",
        "value": 0.25,
        "bound": 1.0,
        "stderr": None,
        "passed": True,
    }
    second = {
        "claim": "C3'",
        "quantity": "ratio",
        "value": 1.672,
        "bound": [1.5, 1.75],
        "stderr": 0.0123,
    }
    assert record() == [first, {**second, "passed": True}]


@pytest.mark.parametrize(
    ("value", "bound"),
    [
        (1.0, 1),
        (1.0, (1, None)),
        (1.0, (None, 1)),
        (-math.inf, 1),
        (0, 0),
        (math.inf, (0, None)),
        (np.ones(()), 1),
    ],
)
def test_bounds_are_inclusive(record, value, bound):
    ledger.check("T1", "q", value, bound)
    assert record()[0]["passed"] is True


@pytest.mark.parametrize(
    ("value", "bound"),
    [
        (1.1, 1),
        (math.nan, 1),
        (math.nan, (None, 1)),
        (math.nan, (0, None)),
        (0.9, (1, 2)),
        (2.1, (1, 2)),
        (math.inf, 1),
    ],
)
def test_miss_is_recorded_and_raised(record, value, bound):
    with pytest.raises(ledger.ClaimError, match=r"MISSED T1 · q: .* but the bound is"):
        ledger.check("T1", "q", value, bound)
    assert record()[0]["passed"] is False
    assert issubclass(ledger.ClaimError, AssertionError)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("T", "q", 0, 1), "claim_id must look like"),
        (("X1", "q", 0, 1), "got 'X1'"),
        (("T0", "q", 0, 1), "claim_id"),
        ((3, "q", 0, 1), "claim_id"),
        (("T1", " ", 0, 1), "quantity"),
        (("T1", "q", np.ones(2), 1), "value must be a single number"),
        (("T1", "q", None, 1), "value"),
        (("T1", "q", 0, math.nan), "bound must not be NaN"),
        (("T1", "q", 0, (2, 1)), "low <= high"),
        (("T1", "q", 0, (None, None)), "one side"),
        (("T1", "q", 0, (1, 2, 3)), "pair"),
        (("T1", "q", 0, "one"), "bound"),
    ],
)
def test_bad_input_is_refused_and_not_recorded(record, arguments, message):
    with pytest.raises(ValueError, match=message):
        ledger.check(*arguments)
    assert record() == []


@pytest.mark.parametrize("stderr", [-1.0, math.nan])
def test_bad_stderr(record, stderr):
    with pytest.raises(ValueError, match="stderr"):
        ledger.check("T1", "q", 0, 1, stderr=stderr)
    assert record() == []


def test_across_trainings_the_error_covers_what_differs():
    """Twice the standard error covers the truth in 95 % of cases where all that differs is the
    training, and in no fewer where all is noise of the estimates."""
    draws = np.random.default_rng(0).normal(size=(4000, 3))
    for stderr in (0.0, 1.0):
        found = np.array([ledger.across(row, [stderr] * 3) for row in draws])
        covered = np.abs(found[:, 0]) <= 2 * found[:, 1]
        expected = 0.95 if stderr == 0 else 0.954
        slack = 4 * np.sqrt(0.05 * 0.95 / len(draws))
        assert covered.mean() >= expected - slack
        assert stderr or covered.mean() <= expected + slack
    assert ledger.across([0.3], [0.1]) == (0.3, 0.1)
    value, error = ledger.across([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    assert value == 2 and error == pytest.approx(4.302653 / 2 / np.sqrt(3), rel=1e-6)
    table = draws[:3].T  # [training, entry]
    mean, error = ledger.across(table)
    rows = [ledger.across(column, [0.0] * 3) for column in table.T]
    np.testing.assert_allclose(np.transpose([mean, error]), rows, rtol=1e-14)


@pytest.mark.parametrize(("values", "stderrs"), [([], []), ([], None), ([1.0, 2.0], [1.0])])
def test_across_refuses(values, stderrs):
    with pytest.raises(ValueError, match="equally many"):
        ledger.across(values, stderrs)


@pytest.mark.parametrize(("hits", "trials"), [(0, 5), (3, 8), (8, 8), (17, 20), (72, 72)])
def test_a_share_has_the_exact_interval_of_its_trials(hits, trials):
    value, error = ledger.share(np.int64(hits), trials)
    exact = scipy.stats.binomtest(hits, trials).proportion_ci(0.95, method="exact")
    assert value == hits / trials
    # 1e-12: two ways to the same quantile
    assert max(value - exact.low, exact.high - value) == pytest.approx(2 * error, abs=1e-12)


@pytest.mark.parametrize("trials", [3, 8, 40])
def test_two_standard_errors_of_a_share_cover_it_however_few_the_trials(trials):
    """Summed over all outcomes, exactly; the error of a normal law, which is 0 where all trials are
    hits, does not."""
    outcomes = np.arange(trials + 1)
    found = np.array([ledger.share(k, trials) for k in range(trials + 1)])
    normal = np.sqrt(found[:, 0] * (1 - found[:, 0]) / trials)

    def covered(truth, errors):
        within = np.abs(found[:, 0] - truth) <= 2 * errors
        return scipy.stats.binom.pmf(outcomes, trials, truth)[within].sum()

    truths = np.linspace(0.01, 0.99, 99)
    assert min(covered(truth, found[:, 1]) for truth in truths) >= 0.95
    assert min(covered(truth, normal) for truth in truths) < 0.7
    # and it is no wider than that asks for: on the side of the missing hits
    assert (1 - 2 * ledger.share(trials, trials)[1]) ** trials == pytest.approx(0.025, rel=1e-9)


def test_all_of_few_trials_decide_no_high_share(record):
    right = ledger.share(8, 8)
    assert ledger.decide("C10", "orders", right[0], (0.95, None), stderr=right[1]) == "undecided"
    right = ledger.share(72, 72)
    assert ledger.decide("C10", "orders", right[0], (0.95, None), stderr=right[1]) == "holds"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("hits", "trials"), [(9, 8), (-1, 8), (0, 0), (0.5, 8), (1, 8.0)])
def test_what_is_no_share_is_refused(hits, trials):
    with pytest.raises(ValueError, match="whole number"):
        ledger.share(hits, trials)


@pytest.mark.parametrize(
    ("value", "stderr", "bound", "outcome"),
    [
        (0.65, None, (0.5, None), "holds"),
        (0.65, 0.07, (0.5, None), "holds"),
        (0.65, 0.08, (0.5, None), "undecided"),  # 1.9 standard errors above
        (0.45, 0.03, (0.5, None), "undecided"),
        (0.45, 0.02, (0.5, None), "fails"),
        (0.45, None, (0.5, None), "fails"),
        (0.5, None, (0.5, None), "holds"),
        (2.5, None, (-3, 3), "holds"),
        (-3.5, None, (-3, 3), "fails"),
        (0.0, 1.0, (-1, 1), "undecided"),  # an interval wider than the bound
        (math.inf, None, 1, "fails"),
        (1.0, math.inf, 1, "undecided"),
    ],
)
def test_decision_by_two_standard_errors(record, capsys, value, stderr, bound, outcome):
    assert ledger.decide("E5", "agreement", value, bound, stderr=stderr) == outcome
    assert capsys.readouterr().out.startswith(f"{outcome.upper()} E5 · agreement: ")
    entry = record()[0]
    assert entry["outcome"] == outcome and entry["passed"] is (outcome == "holds")


def test_a_measurement_that_is_none_decides_nothing(record):
    with pytest.raises(ledger.ClaimError, match="NaN"):
        ledger.decide("E5", "agreement", math.nan, (0.5, None))
    assert record() == []


@pytest.mark.parametrize(
    ("null", "outcome"),
    [
        ({"shuffled": 0.1}, "holds"),
        ({"shuffled": 0.1, "another digit": 0.6}, "undecided"),
        ({"another digit": (0.4, 0.04)}, "holds"),
        ({"another digit": (0.4, 0.06)}, "undecided"),  # it may well pass
        ({"another digit": math.nan}, "undecided"),
    ],
)
def test_what_its_null_passes_is_undecided(record, null, outcome, capsys):
    assert ledger.decide("E5", "agreement", 0.8, (0.5, None), null=null) == outcome
    assert [entry["name"] for entry in record()[0]["null"]] == list(null)
    printed = capsys.readouterr().out
    assert all(name in printed for name in null)


def test_the_error_of_a_value_gives_its_check_no_room(record):
    """What must hold has a bound that says by how much it may miss: not twice."""
    with pytest.raises(ledger.ClaimError, match="MISSED T3"):
        ledger.check("T3", "a distance", 1.1, 1.0, stderr=0.2)


def test_a_claim_that_fails_does_so_whatever_its_null(record):
    assert ledger.decide("E5", "agreement", 0.2, (0.5, None), null={"a": 0.9}) == "fails"


def test_a_check_that_its_null_passes_is_missed(record, capsys):
    ledger.check("E5", "agreement", 0.8, (0.5, None), null={"shuffled": (0.1, 0.1)})
    assert capsys.readouterr().out == (
        "PASS E5 · agreement: 0.8 ≥ 0.5 (beside it, shuffled: 0.10 ± 0.10)\n"
    )
    with pytest.raises(ledger.ClaimError, match="met too by: shuffled: the check decides nothing"):
        ledger.check("E5", "agreement", 0.8, (0.5, None), null={"shuffled": (0.3, 0.1)})
    assert [entry["passed"] for entry in record()] == [True, False]
    assert record()[0]["null"] == [{"name": "shuffled", "value": 0.1, "stderr": 0.1}]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("null", [{}, 0.5, [0.5], {"a": "b"}, {"a": (1, -1)}, {"a": (1, 2, 3)}])
@pytest.mark.parametrize("function", [ledger.check, ledger.decide])
def test_bad_null(record, function, null):
    with pytest.raises(ValueError, match=r"null|stderr"):
        function("T1", "q", 0, 1, null=null)
    assert record() == []


def test_claims_are_those_of_the_nearest_book(record, tmp_path, monkeypatch):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "claims.yml").write_text('T1: {}\n"C3\'": {}\n')
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    ledger.check("C3'", "q", 0, 1)
    with pytest.raises(ValueError, match="claim_id must be one of T1, C3', got 'T2'"):
        ledger.check("T2", "q", 0, 1)
    (tmp_path / "other.yml").write_text("T2: {}\n")
    monkeypatch.setenv("CDELTA_CLAIMS", str(tmp_path / "other.yml"))
    ledger.check("T2", "q", 0, 1)
    assert [entry["claim"] for entry in record()] == ["C3'", "T2"]


def test_read_collects_the_records_of_a_folder(tmp_path):
    entry = {"claim": "T1", "quantity": "q", "value": 0, "bound": 1, "stderr": None, "passed": True}
    (tmp_path / "02_b.json").write_text(json.dumps({"profile": "smoke", "ledger": []}))
    (tmp_path / "01_a.json").write_text(json.dumps({"profile": "book", "ledger": [entry, entry]}))
    assert ledger.read(tmp_path) == [{"notebook": "01_a", "profile": "book", **entry}] * 2
    with pytest.raises(ValueError, match="folder"):
        ledger.read(tmp_path / "nowhere")


def test_kept_measurements_are_those_of_their_file(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "RECORDS", tmp_path)
    (tmp_path / "speed.jsonl").write_text(
        '{"way": "ours", "R²": 0.5}\n{"way": "theirs"}\n', "utf-8"
    )
    assert ledger.kept("speed") == [{"way": "ours", "R²": 0.5}, {"way": "theirs"}]
    with pytest.raises(ValueError, match="name must be one of speed, got 'sped'"):
        ledger.kept("sped")


def test_measurements_say_when_and_with_what_they_were_made():
    first = {"made": "2026-11-26", "versions": {"jax": "0.10.2", "numpy": "2.4.6"}}
    later = {"made": "2026-12-01", "versions": {"jax": "0.9.1", "numpy": "2.4.6"}}
    assert ledger.made([first, first]) == "on 2026-11-26, with jax 0.10.2, numpy 2.4.6"
    said = ledger.made(iter([later, first]))
    assert said == "from 2026-11-26 to 2026-12-01, with jax 0.10.2 and 0.9.1, numpy 2.4.6"
    with pytest.raises(ValueError, match="rows must be"):
        ledger.made([])


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (1.234, None, "1.2"),
        (1.3e-13, None, "1.3e-13"),
        (0.55512, 0.0312, "0.555 ± 0.031"),
        (278.3, 41.0, "278 ± 41"),
        (27834.0, 4100.0, "27800 ± 4100"),
        (1.0, 0.0, "1"),
        (1e-9, 3e-11, "1e-09 ± 3e-11"),
        (math.nan, 0.1, "nan ± 0.1"),
        (2.0, math.inf, "2 ± inf"),
    ],
)
def test_describe(value, stderr, text):
    assert ledger.describe(value, stderr) == text


def test_importing_the_ledger_is_light():
    heavy = ("jax", "yaml", "numpy", "matplotlib")
    code = f"import sys, cdelta.ledger; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_share_as_a_percentage():
    assert ledger.percent(0.1234, 0.0056) == "12.34 ± 0.56 %"
    assert ledger.percent(np.float32(0.5)) == "50 %"


def test_a_value_with_its_error_in_one(tmp_path, monkeypatch):
    """As figures.quote and a null take it; what an average returns is such a pair."""
    monkeypatch.setenv("CDELTA_LEDGER", str(tmp_path / "lines"))
    pair = quality.average(np.array([1.0, 2.0, 4.0, 5.0]))
    ledger.check("T1", "mean", pair, (2, 4))
    ledger.check("T1", "mean", pair.value, (2, 4), stderr=pair.stderr)
    assert ledger.decide("T1", "mean", (2.5, 0.4), 3) == "undecided"
    first, second, third = ledger.lines(tmp_path / "lines")
    assert first == second and (third["value"], third["stderr"]) == (2.5, 0.4)
    for value, stderr in (((1.0, 0.1), 0.1), ((1.0, 0.1, 0.1), None), ((1.0,), None)):
        with pytest.raises(ValueError, match="no stderr beside it"):
            ledger.check("T1", "mean", value, 2, stderr=stderr)
