"""Patterns of correlations: against numpy, and their errors against repeated draws."""

import numpy as np
import pytest

from cdelta import patterns
from cdelta.dependence import sample_moment


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def law(n=6, factors=2, seed=1):
    """A covariance of n features with a few common factors."""
    loads = np.random.default_rng(seed).normal(size=(n, factors))
    return loads @ loads.T + np.diag(np.linspace(0.5, 2, n))


def draw(rng, cov, samples):
    return rng.multivariate_normal(np.zeros(len(cov)), cov, samples)


def test_correlations_are_those_of_the_pairs_row_by_row(rng):
    samples = draw(rng, law(4), 50)
    found = patterns.correlations(np.cov(samples.T))
    corr = np.corrcoef(samples.T)
    np.testing.assert_allclose(found, [corr[i, j] for i in range(4) for j in range(i + 1, 4)])
    np.testing.assert_allclose(patterns.correlations(sample_moment(samples)), found, rtol=1e-12)
    constant = np.array([[2.0, 0, 1], [0, 0, 0], [1, 0, 2]])
    np.testing.assert_allclose(patterns.correlations(constant), [0, 0.5, 0])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("variance", [0.0, -0.3])
def test_a_feature_without_a_variance_correlates_with_none(variance):
    """An unbiased estimate from few samples may be negative."""
    matrix = np.array([[4.0, 0.2, 1.0], [0.2, variance, 0.1], [1.0, 0.1, 1.0]])
    np.testing.assert_allclose(patterns.correlations(matrix), [0.0, 0.5, 0.0])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("matrix", [np.ones((2, 3)), np.ones(4), np.ones((1, 1))])
def test_correlations_need_a_square(matrix):
    with pytest.raises(ValueError, match=r"matrix must be \[n, n\]"):
        patterns.correlations(matrix)


def test_agreement_has_the_error_that_repeated_draws_have(rng):
    known = law(seed=2)
    for both in (True, False):
        pairs = [
            (sample_moment(draw(rng, law(), 300)), sample_moment(draw(rng, known, 60)))
            for _ in range(60)
        ]
        found = np.array([patterns.agreement(a, b if both else known) for a, b in pairs])
        truth = np.corrcoef(patterns.correlations(law()), patterns.correlations(known))[0, 1]
        assert abs(np.median(found[:, 0]) - truth) < 0.05
        assert 0.8 < found[:, 1].mean() / found[:, 0].std() < 1.3
    moment = sample_moment(draw(rng, law(), 50))
    assert patterns.agreement(moment, moment.matrix)[0] == pytest.approx(1)


def test_distance_is_noise_where_the_laws_are_one(rng):
    pairs = [
        (sample_moment(draw(rng, law(), 200)), sample_moment(draw(rng, law(), 150)))
        for _ in range(60)
    ]
    apart, noise = np.array([patterns.distance(*pair) for pair in pairs]).T
    assert 0.9 < np.sqrt((apart**2).mean()) / np.sqrt((noise**2).mean()) < 1.1
    step = patterns.correlations(law()) - patterns.correlations(law(seed=2))
    pairs = [(a, sample_moment(draw(rng, law(seed=2), 150))) for a, _ in pairs]
    apart, noise = np.array([patterns.distance(*pair) for pair in pairs]).T
    expected = (step**2).mean() + (noise**2).mean()
    assert (apart**2).mean() == pytest.approx(expected, rel=0.1) and apart.min() > 2 * noise.max()


def test_halves_tell_how_far_noise_lets_the_whole_agree_with_the_truth(rng):
    """Spearman and Brown: r between halves, √(2r/(1+r)) between the whole and the truth."""
    cov = law(30, 1)
    truth = patterns.correlations(cov)
    draws = [draw(rng, cov, 40) for _ in range(30)]
    r = np.mean([patterns.halves(samples) for samples in draws])
    whole = np.mean(
        [np.corrcoef(patterns.correlations(np.cov(samples.T)), truth)[0, 1] for samples in draws]
    )
    assert 0.3 < r < 0.95 and abs(np.sqrt(2 * r / (1 + r)) - whole) < 0.02
    # each repeat halves them in another way, and the mean is of all
    once, twice, thrice = (repeats * patterns.halves(draws[0], repeats) for repeats in (1, 2, 3))
    assert min(abs(twice - 2 * once), abs(thrice - 2 * twice + once)) > 1e-3
    with pytest.raises(ValueError, match="four rows or more"):
        patterns.halves(np.ones((3, 2)))


def test_between_finds_the_place_and_its_error(rng):
    """On the way exactly, off it by what is orthogonal to it, and from samples."""
    start, end = (np.corrcoef(draw(rng, law(seed=seed), 400).T) for seed in (1, 2))
    known = [
        sample_moment(_with(rng, matrix)) for matrix in (start + 0.3 * (end - start), start, end)
    ]
    b, error = patterns.between(*known)
    assert b == pytest.approx(0.3, abs=1e-9) and error > 0
    assert patterns.between(known[1], *known[1:])[0] == pytest.approx(0, abs=1e-9)
    assert patterns.between(known[2], *known[1:])[0] == pytest.approx(1, abs=1e-9)
    laws = {400: start + 0.3 * (end - start), 80: start, 90: end}  # the ends' noise is the most
    found = np.array([
        patterns.between(*(sample_moment(draw(rng, cov, n)) for n, cov in laws.items()))
        for _ in range(60)
    ])  # fmt: skip
    assert 0.8 < found[:, 1].mean() / found[:, 0].std() < 1.3


def test_moments_of_the_same_samples_vary_together(rng):
    """Samples of three classes, within and in total, and a noisy reading of them: all of one draw.
    Errors that take the three for independent are those of other draws."""
    centres, root = 1.5 * rng.normal(size=(3, 6)), np.linalg.cholesky(law(6, 3))
    of_b, of_r, apart = [], [], []
    for _ in range(60):
        label = rng.integers(3, size=240)
        noise = rng.normal(size=(240, 6)) @ root.T
        whole = noise + centres[label]
        inside = whole - centres[label]
        read = inside + 0.4 * centres[label] + 0.05 * rng.normal(size=whole.shape)
        mine, start, end = map(sample_moment, (read, inside, whole))
        of_b.append(patterns.between(mine, start, end, (0, 0, 0)))
        of_r.append(patterns.agreement(end, start, (0, 0)))
        apart.append((patterns.between(mine, start, end)[1], patterns.agreement(end, start)[1]))
    for found, alone, more in zip((of_b, of_r), np.mean(apart, 0), (2, 1.15), strict=True):
        value, error = np.transpose(found)
        assert 0.75 < error.mean() / value.std() < 1.35
        assert alone > more * error.mean()
    with pytest.raises(ValueError, match="have other groups"):
        patterns.agreement(end, sample_moment(whole[:30]), ("same", "same"))
    with pytest.raises(ValueError, match="a label for each of 3"):
        patterns.between(mine, start, end, (0, 0))


def _with(rng, cov, samples=60):
    """Samples whose covariance is exactly this one."""
    white = rng.normal(size=(samples, len(cov)))
    white -= white.mean(0)
    root = np.linalg.cholesky(np.cov(white.T))
    return white @ np.linalg.inv(root).T @ np.linalg.cholesky(cov).T


def test_a_single_pair_is_no_pattern():
    rows = np.random.default_rng(0).normal(size=(20, 2))
    moment = sample_moment(rows)
    for ask in (
        lambda: patterns.halves(rows),
        lambda: patterns.agreement(moment, moment),
        lambda: patterns.agreement(moment, np.eye(2)),
    ):
        with pytest.raises(ValueError, match="three features or more"):
            ask()
