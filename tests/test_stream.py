"""How an average runs: batches, interruptions, files, precision, and what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdelta
from cdelta import _stream
from cdelta.dependence import Run, feature_covariance, held_moment, wiggle_moment
from tests.test_dependence import KEY, WIGGLE, U, bent, hermite, linear, scores


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": 7}, {"batch": 64}, {"batch": 1000}])
def test_the_estimate_does_not_depend_on_the_batch(options):
    reference = wiggle_moment(hermite, KEY, (4,), 100)
    found = wiggle_moment(hermite, KEY, (4,), 100, **options)
    np.testing.assert_allclose(found.matrix, reference.matrix, rtol=1e-13)
    np.testing.assert_allclose(found.stderr, reference.stderr, rtol=1e-10)
    assert (
        np.abs(wiggle_moment(hermite, jax.random.key(1), (4,), 100).matrix - reference.matrix).max()
        > 1e-3
    )


def test_batches_and_repeats_do_not_compile_again():
    traces = itertools.count()  # a list would be read by f, and f traced again when it has grown

    def counted(x):
        next(traces)
        return hermite(x)

    wiggle_moment(counted, KEY, (4,), 16, batch=16)
    first = next(traces)
    wiggle_moment(counted, jax.random.key(1), (4,), 333, batch=16)
    # a call looks at the output's shape once more, outside the compiled batch
    assert next(traces) - first - 1 == 1


def test_a_map_that_reads_something_else_by_now_is_computed_anew():
    slope = 1.0

    def features(x):
        return slope * x

    np.testing.assert_array_equal(wiggle_moment(features, KEY, 2, 10).matrix, np.eye(2))
    slope = 2.0
    np.testing.assert_array_equal(wiggle_moment(features, KEY, 2, 10).matrix, 4 * np.eye(2))


def test_single_precision_loses_nothing_to_accumulation():
    def large(x):
        return 1e3 * linear(x) + jnp.sin(linear(x))

    double = wiggle_moment(large, KEY, (4,), 5000, batch=100)
    # the same latents: drawn in double precision, used in single
    single = wiggle_moment(lambda x: large(x).astype(jnp.float32), KEY, (4,), 5000, batch=100)
    assert np.abs(single.matrix / double.matrix - 1).max() < 1e-5
    plain = wiggle_moment(hermite, KEY, (4,), 5000, dtype=jnp.float32)
    assert np.abs(scores(plain, WIGGLE)).max() < 4


class Stopped(Exception):
    pass


def stop_after(monkeypatch, batches, error):
    real, calls = _stream._batch_sums, itertools.count()

    def stopping(*args, **kwargs):
        if next(calls) == batches:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(_stream, "_batch_sums", stopping)


def test_a_run_that_is_to_end_takes_a_batch_first():
    """However late it is; and where it is asked for, it ends after the batch that is enough."""
    with _stream.ending(lambda drawn: True):
        assert wiggle_moment(linear, KEY, (4,), 100, batch=30).samples == 30
    with _stream.ending(lambda drawn: drawn >= 40):
        found = wiggle_moment(hermite, KEY, (4,), 100, batch=30)
    np.testing.assert_allclose(found.matrix, wiggle_moment(hermite, KEY, (4,), 60).matrix)
    assert wiggle_moment(linear, KEY, (4,), 100, batch=30).samples == 100


def test_of_large_matrices_there_are_fewer_groups_but_eight():
    """Of two a standard error would be known to 70 %, of one not at all."""
    counts = {n: len(_stream.Sums.zero(n).count) for n in (1, 512, 600, 1024, 1800)}
    assert counts == {1: 64, 512: 64, 600: 46, 1024: 16, 1800: 8}
    assert len(_stream.Sums.zero(600, parts=4).count) == 11


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped("power cut")])
def test_an_interrupted_run_keeps_what_it_had_and_goes_on(tmp_path, monkeypatch, error):
    path = tmp_path / "moment.npz"
    whole = wiggle_moment(hermite, KEY, (4,), 500, batch=50)
    with monkeypatch.context() as patch:
        stop_after(patch, 4, error)
        with pytest.raises(type(error)) as stopped:
            wiggle_moment(hermite, KEY, (4,), 500, batch=50, resume=path)
    assert stopped.value.moment.samples == 200
    assert (
        "200 of 500 samples" in stopped.value.__notes__[-1]
        and str(path) in stopped.value.__notes__[-1]
    )
    calls = []
    monkeypatch.setattr(
        _stream,
        "_batch_sums",
        lambda *a, run=_stream._batch_sums, **k: calls.append(1) or run(*a, **k),
    )
    resumed = wiggle_moment(hermite, KEY, (4,), 500, batch=50, resume=path)
    assert len(calls) == 6
    np.testing.assert_array_equal(resumed.matrix, whole.matrix)
    np.testing.assert_array_equal(resumed.stderr, whole.stderr)
    assert (
        wiggle_moment(hermite, KEY, (4,), 500, batch=50, resume=path).samples == 500
        and len(calls) == 6
    )
    longer = wiggle_moment(hermite, KEY, (4,), 700, batch=64, resume=path)
    np.testing.assert_allclose(
        longer.matrix, wiggle_moment(hermite, KEY, (4,), 700).matrix, rtol=1e-12
    )
    assert [file.name for file in tmp_path.iterdir()] == ["moment.npz"]


def test_a_run_without_a_file_keeps_its_moment_in_the_exception(monkeypatch):
    stop_after(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt) as stopped:
        held_moment(bent, KEY, (2,), 500, 1, batch=50)
    assert stopped.value.moment.samples == 150
    assert stopped.value.moment.held == (1,)


def test_a_file_of_another_run_is_refused(tmp_path):
    path = tmp_path / "moment.npz"
    wiggle_moment(hermite, KEY, (4,), 100, resume=path)
    for message, call in (
        ("its key is", lambda: wiggle_moment(hermite, jax.random.key(1), (4,), 100, resume=path)),
        (
            "its statistic is .*method='rows'",
            lambda: wiggle_moment(hermite, KEY, (4,), 100, "jvp", resume=path),
        ),
        ("its statistic is", lambda: feature_covariance(hermite, KEY, (4,), 100, resume=path)),
        (
            "belongs to another f",
            lambda: wiggle_moment(lambda x: 2 * hermite(x), KEY, (4,), 100, resume=path),
        ),
        (
            "belongs to another f",  # of a training that went on a little
            lambda: wiggle_moment(lambda x: 1.01 * hermite(x), KEY, (4,), 100, resume=path),
        ),
        (
            "already holds 100 samples, more than samples=50",
            lambda: wiggle_moment(hermite, KEY, (4,), 50, resume=path),
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    # rounding is no other f: a program of another version, or machine
    near = wiggle_moment(lambda x: (1 + 1e-6) * hermite(x), KEY, (4,), 110, resume=path)
    assert near.samples == 110
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"moment.npz is not a file of accumulated samples"):
        wiggle_moment(hermite, KEY, (4,), 100, resume=path)


def test_features_in_units_far_apart_are_each_looked_at(tmp_path):
    def in_units(second):
        return lambda x: jnp.stack([1e6 * x[0], second(x[1])])

    path = tmp_path / "moment.npz"
    wiggle_moment(in_units(jnp.sin), KEY, (2,), 30, resume=path)
    with pytest.raises(ValueError, match="belongs to another f"):
        wiggle_moment(in_units(jnp.cos), KEY, (2,), 60, resume=path)
    # the same but for rounding, which at one latent may be much of a value near 0
    again = wiggle_moment(in_units(lambda x: jnp.sin(x) * (1 + 1e-6)), KEY, (2,), 60, resume=path)
    whole = wiggle_moment(in_units(jnp.sin), KEY, (2,), 60)
    np.testing.assert_allclose(again.matrix, whole.matrix, rtol=1e-5)


def test_files_of_pairs_and_of_single_latents_are_told_apart(tmp_path):
    path = tmp_path / "moment.npz"
    wiggle_moment(linear, KEY, (4,), 10, antithetic=True, resume=path)
    with pytest.raises(ValueError, match=r"its statistic is .*antithetic=True"):
        wiggle_moment(linear, KEY, (4,), 20, resume=path)


def test_an_estimate_with_weights_does_not_depend_on_the_batch():
    """Each batch has its own unit of weight."""
    reference = held_moment(bent, KEY, (2,), 100, 1)
    for batch in (7, 64):
        found = held_moment(bent, KEY, (2,), 100, 1, batch=batch)
        np.testing.assert_allclose(found.matrix, reference.matrix, rtol=1e-12)
        np.testing.assert_allclose(found.stderr, reference.stderr, rtol=1e-9)
        assert found.effective_samples == pytest.approx(reference.effective_samples, rel=1e-12)


def test_latents_beyond_the_last_are_no_degenerate_ones():
    moment = held_moment(bent, KEY, (2,), 10, 1, batch=7)  # the second batch is asked for three
    assert moment.samples == 10 and moment.degenerate == 0


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("setting", lambda part: "[]"),
        ("matrix", lambda part: part[:3]),
        ("count", lambda part: np.full_like(part, np.nan)),
        ("degenerate", lambda part: part[None]),
    ],
)
def test_a_file_with_other_contents_is_refused(tmp_path, name, damage):
    path = tmp_path / "moment.npz"
    wiggle_moment(linear, KEY, (4,), 10, resume=path)
    with np.load(path) as file:
        parts = dict(file)
    np.savez(path, **(parts | {name: damage(parts[name])}))
    with pytest.raises(ValueError, match=rf"not a file of accumulated samples \(its {name}"):
        wiggle_moment(linear, KEY, (4,), 10, resume=path)


def test_a_bar_appears_when_asked_for(capsys):
    wiggle_moment(linear, KEY, (4,), 100, progress=True)
    assert "100/100" in capsys.readouterr().err
    wiggle_moment(linear, KEY, (4,), 100)
    assert capsys.readouterr().err == ""


def test_nan_is_named_by_its_sample_and_nothing_is_lost():
    def fails(x):
        return jnp.stack([x[0], jnp.log(x[1] + 2.5)])  # NaN below -2.5, its derivative is not

    for method in ("rows", "jvp", "finite_difference"):
        with pytest.raises(ValueError, match=r"NaN or infinite at sample \d+ of 2000") as caught:
            wiggle_moment(fails, KEY, (2,), 2000, method, batch=20)
        index = int(str(caught.value).split("sample ")[1].split()[0])
        key = jax.random.split(jax.random.fold_in(KEY, index))[0]
        assert jax.random.normal(key, (2,))[1] < -2.5
        assert caught.value.moment.samples == index // 20 * 20
    flow = cdelta.Flow(lambda t, x: jnp.where(t > 0.5, jnp.nan, x))
    with pytest.raises(ValueError, match="a velocity or network that returns NaN"):
        wiggle_moment(flow, KEY, (2,), 10)
    stiff = cdelta.Flow(lambda t, x: 1e3 * x**3, "tsit5", rtol=1e-3)
    with pytest.raises(ValueError, match=r"sample 0 of 10 .* an adaptive solver that fails there"):
        wiggle_moment(stiff, KEY, (2,), 10, "jvp")


def half(dtype):
    return lambda x: x.astype(dtype)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_counted_and_summed_in_single(dtype):
    """300 000 samples are more than float16 can count, and than bfloat16 can add up."""
    for antithetic in (False, True):
        moment = wiggle_moment(half(dtype), KEY, 2, 300_000, batch=100_000, antithetic=antithetic)
        assert moment.samples == 300_000
        np.testing.assert_array_equal(moment.matrix, np.eye(2))
    assert moment.effective_samples == pytest.approx(300_000, rel=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize(
    "estimate",
    [
        lambda f, **run: wiggle_moment(f, KEY, 4, 2000, **run),
        lambda f, **run: wiggle_moment(f, KEY, 4, 2000, "jvp", probes=2, **run),
        lambda f, **run: feature_covariance(f, KEY, 4, 2000, **run),
        lambda f, **run: held_moment(f, KEY, 4, 2000, 1, **run),
        lambda f, **run: held_moment(f, KEY, 4, 2000, (0, 1), method="jvp", **run),
    ],
    ids=["wiggle", "jvp", "covariance", "held", "held jvp"],
)
def test_features_in_half_precision_have_the_moments_of_the_rounded_map(estimate, dtype):
    # the same latents: drawn in single precision, rounded only where f is computed
    def features(x):
        weights = jnp.asarray(U, x.dtype)
        # no gradient comes near 0, where the held weight would magnify any rounding
        return weights @ x + 0.3 * jnp.sin(weights @ x)

    single = estimate(features, dtype=jnp.float32)
    found = estimate(features, dtype=dtype)
    assert found.samples == single.samples
    # each entry of a Jacobian is rounded some ten times, each time by at most eps / 2, to either
    # side; the held weight multiplies the square by another such factor
    bound = 3 * 10 * float(jnp.finfo(dtype).eps) * np.abs(single.matrix).max()
    assert 0 < np.abs(found.matrix - single.matrix).max() < bound


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_features_of_any_size_have_the_moments_of_features_of_size_one(size):
    """In single precision their squares, weights and squared traces would leave its range."""
    size = 2.0 ** round(np.log2(size))  # a power of two: nothing is rounded
    units = np.array([size, 1.0, 1 / size])
    both = np.outer(units, units)

    def scaled(x):
        return jnp.asarray(units, jnp.float32) * bent(x).astype(jnp.float32)

    for estimate in (
        lambda f: wiggle_moment(f, KEY, 2, 500, dtype=jnp.float32),
        lambda f: feature_covariance(f, KEY, 2, 500, dtype=jnp.float32),
        lambda f: held_moment(f, KEY, 2, 500, 0, dtype=jnp.float32),
    ):
        plain, found = estimate(bent), estimate(scaled)
        # bent itself is compiled another way
        np.testing.assert_allclose(found.matrix / both, plain.matrix, atol=2e-5)
        np.testing.assert_allclose(found.stderr / both, plain.stderr, atol=2e-5)
        assert found.samples == 500 and found.degenerate == 0
    whole = wiggle_moment(
        lambda x: jnp.float32(size) * bent(x).astype(jnp.float32), KEY, 2, 500, dtype=jnp.float32
    )
    reference = wiggle_moment(bent, KEY, 2, 500, dtype=jnp.float32)
    assert whole.effective_samples == pytest.approx(reference.effective_samples, rel=1e-4)


def test_several_small_gradients_are_held_as_their_multiples_are():
    def features(x):  # det(B Bᵀ) is 1e-120: the weight itself leaves single precision
        return jnp.stack([x[0] + x[1], 1e-20 * x[0], 1e-20 * (x[1] + x[0] ** 2), x[2]])

    found = held_moment(features, KEY, 3, 100, (1, 2), dtype=jnp.float32)
    assert found.degenerate == 0
    np.testing.assert_allclose(found.matrix, np.diag([0.0, 0, 0, 1]), atol=1e-6)


def test_strict_promotion_of_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        for dtype in (jnp.float32, jnp.float64):
            moment = wiggle_moment(jnp.sin, KEY, 3, 50, "jvp", antithetic=True, dtype=dtype)
            assert np.isfinite(moment.matrix).all()
            assert np.isfinite(feature_covariance(jnp.sin, KEY, 3, 50, dtype=dtype).matrix).all()
            assert np.isfinite(held_moment(jnp.sin, KEY, 3, 50, 0, dtype=dtype).matrix).all()


def test_a_shape_may_be_an_integer_of_numpy():
    found = wiggle_moment(linear, KEY, np.int64(4), 10)
    np.testing.assert_array_equal(found.matrix, wiggle_moment(linear, KEY, (4,), 10).matrix)


@pytest.mark.parametrize("transform", [jax.grad, jax.jit, lambda g: lambda a: jax.vmap(g)(a[None])])
def test_an_estimator_under_a_transformation_is_refused(transform):
    def estimate(a):
        return wiggle_moment(lambda x: a * x, KEY, 2, 10).matrix.sum()

    with pytest.raises(ValueError, match="cannot run under jit, vmap or grad"):
        transform(estimate)(jnp.asarray(2.0))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bacth": 3}, TypeError, "unknown option 'bacth': did you mean 'batch'?"),
        ({"colour": 3}, TypeError, "there are batch, devices, dtype, progress, resume"),
        ({"devices": []}, ValueError, r"devices must be some of jax.devices\(\), got \[\]"),
        ({"devices": ["cpu"]}, ValueError, "devices must be some of"),
        ({"devices": 2 * jax.devices()}, ValueError, "devices must name each device once"),
        ({"batch": 2.5}, ValueError, "batch must be a positive integer, got 2.5"),
        ({"dtype": jnp.int32}, ValueError, "dtype must be floating-point, got int32"),
        ({"progress": "no"}, ValueError, "progress must be True, False or None, got 'no'"),
        ({"resume": 3}, TypeError, "int"),
    ],
)
def test_options_of_a_run_are_refused_by_name(options, error, message):
    for estimate in (
        lambda: wiggle_moment(linear, KEY, 4, 10, **options),
        lambda: held_moment(linear, KEY, 4, 10, 1, **options),
        lambda: Run(**options) if error is ValueError else Run.of(options),
    ):
        with pytest.raises(error, match=message):
            estimate()


def test_options_given_as_a_mapping_stay_as_they_are():
    options = {"batch": 5, "dtype": jnp.float32, "progress": False}
    kept = dict(options)
    wiggle_moment(linear, KEY, 4, 10, **options)
    assert options == kept


@pytest.mark.usefixtures("unchecked")
def test_more_samples_than_numbers_are_refused():
    with pytest.raises(ValueError, match=r"samples must be at most 2\*\*31 = 2147483648"):
        wiggle_moment(linear, KEY, 4, 2**31 + 1)


def test_a_file_that_cannot_be_written_is_refused_before_the_run(tmp_path):
    def never(x):
        raise AssertionError("computed before the file was looked at")

    missing = tmp_path / "none" / "moment.npz"
    looked = []

    def features(x):
        looked.append(isinstance(x, jax.core.Tracer))
        return linear(x)

    with pytest.raises(FileNotFoundError, match="no such folder"):
        wiggle_moment(features, KEY, 4, 10, resume=missing)
    assert len(looked) == 2  # its shape, and its values at two points: no batch
    with pytest.raises(IsADirectoryError):
        wiggle_moment(linear, KEY, 4, 10, resume=tmp_path)
    assert list(tmp_path.iterdir()) == []


def full_disk(monkeypatch):
    def fsync(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)


def test_a_full_disk_costs_the_file_but_not_the_estimate(tmp_path, monkeypatch):
    path = tmp_path / "moment.npz"
    full_disk(monkeypatch)
    monkeypatch.setattr(_stream._Store, "_EVERY", 0.0)
    with pytest.warns(UserWarning, match=r"moment.npz could not be written .*No space left"):
        moment = wiggle_moment(hermite, KEY, 4, 100, batch=20, resume=path)
    np.testing.assert_array_equal(moment.matrix, wiggle_moment(hermite, KEY, 4, 100).matrix)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_with_a_full_disk_is_still_that_interruption(tmp_path, monkeypatch):
    stop_after(monkeypatch, 2, KeyboardInterrupt())
    full_disk(monkeypatch)
    with pytest.warns(UserWarning, match="could not be written"):
        with pytest.raises(KeyboardInterrupt) as stopped:
            wiggle_moment(hermite, KEY, 4, 100, batch=20, resume=tmp_path / "moment.npz")
    assert stopped.value.moment.samples == 40
    assert "moment.npz" not in stopped.value.__notes__[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_same_words_from_another_generator_is_refused(tmp_path):
    path = tmp_path / "moment.npz"
    words = jnp.zeros(4, jnp.uint32)
    first, other = (jax.random.wrap_key_data(words, impl=impl) for impl in ("rbg", "unsafe_rbg"))
    wiggle_moment(linear, first, 4, 10, resume=path)
    with pytest.raises(ValueError, match="its key is"):
        wiggle_moment(linear, other, 4, 10, resume=path)


def test_an_exception_before_the_first_batch_has_no_moment(monkeypatch):
    stop_after(monkeypatch, 0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt) as stopped:
        wiggle_moment(linear, KEY, 4, 10)
    assert stopped.value.moment is None


def test_what_a_map_raises_says_what_it_was_asked():
    with pytest.raises(TypeError) as caught:
        wiggle_moment(lambda x: jnp.ones((3, 5)) @ x, KEY, (4,), 10)
    assert "one latent of shape (4,), float64" in caught.value.__notes__[-1]
