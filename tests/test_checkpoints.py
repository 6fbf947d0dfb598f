"""A run goes on from its own checkpoints, bit for bit: not from another's, nor damaged ones."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cdelta import _checkpoints, training
from tests.test_training import KEY, Counted, Dropped, fit, mean_output, mlp, reading, weights


@pytest.mark.parametrize("chunk", [1, 4])
def test_resuming_gives_the_same_weights_bit_for_bit(tmp_path, chunk):
    data = np.random.default_rng(0).normal(size=(50, 1)).astype(np.float32)
    run = partial(
        fit, mlp(), data, KEY, batch=16, optimizer=training.adamw(1e-2, 24), chunk=chunk, every=4
    )
    whole = run(steps=24)
    run(steps=12, checkpoints=tmp_path)
    resumed = run(steps=24, checkpoints=tmp_path)
    np.testing.assert_array_equal(whole.losses, resumed.losses)
    for a, b in zip(weights(whole.network), weights(resumed.network), strict=True):
        np.testing.assert_array_equal(a, b)


def test_killed_and_started_again(tmp_path):
    """A real SIGKILL, in the middle of the run; the weights are those of a run that was left
    alone."""
    script = textwrap.dedent(
        """
        import sys, time
        import jax, numpy as np
        from flax import nnx
        from cdelta import networks, training

        class Net(nnx.Module):
            def __init__(self):
                self.mlp = networks.MLP(1, width=8, layers=1, rngs=nnx.Rngs(0))
                self.drop = nnx.Dropout(0.2, rngs=nnx.Rngs(1))

            def __call__(self, t, x):
                return self.mlp(t, self.drop(x))

        folder, out, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
        data = np.random.default_rng(0).normal(size=(50, 1)).astype(np.float32)
        batch_at = training._array_batches(data, jax.random.key(1), 16)

        def slow(step):
            time.sleep(pause)
            print(step, flush=True)
            return batch_at(step)

        result = training.fit(
            Net(), training.Stream(slow), jax.random.key(0), steps=40, every=5, progress=False,
            checkpoints=None if folder == "none" else folder,
        )
        leaves = jax.tree.leaves(nnx.state(result.network, nnx.Param))
        np.savez(out, *leaves, losses=result.losses)
        """
    )

    def start(folder, out, pause):
        command = [sys.executable, "-c", script, str(folder), str(tmp_path / out), str(pause)]
        # another order of sets in each process: what identifies a run must not depend on it
        environment = {**os.environ, "PYTHONHASHSEED": str(len(out))}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    whole = start("none", "whole.npz", 0)
    killed = start(tmp_path / "run", "killed.npz", 0.02)
    for line in killed.stdout:
        if int(line) == 17:
            os.kill(killed.pid, signal.SIGKILL)
            break
    assert killed.wait() == -signal.SIGKILL and not (tmp_path / "killed.npz").exists()
    killed.stdout.close()
    again = start(tmp_path / "run", "again.npz", 0)
    # the first batch, and the last before a checkpoint, are asked for to tell the run by
    steps = [int(line) for line in again.communicate()[0].split()]
    assert whole.communicate() and again.returncode == whole.returncode == 0
    assert steps.count(39) and not {1, 2, 3} & set(steps), "it did not go on from a checkpoint"
    a, b = np.load(tmp_path / "whole.npz"), np.load(tmp_path / "again.npz")
    assert sorted(a.files) == sorted(b.files) and len(a["losses"]) == 40
    for name in a.files:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("network", [Dropped, Counted])
@pytest.mark.filterwarnings("ignore:Using 'Module.sow")
def test_random_streams_and_state_are_resumed(tmp_path, network):
    run = partial(
        fit, network(), np.arange(8.0)[:, None], KEY, batch=4, objective=mean_output, every=2
    )
    whole = run(steps=6)
    run(steps=2, checkpoints=tmp_path)
    resumed = run(steps=6, checkpoints=tmp_path)
    np.testing.assert_array_equal(whole.losses, resumed.losses)
    plain = nnx.Not(nnx.RngKey)
    for a, b in zip(
        jax.tree.leaves(nnx.state(whole.network, plain)),
        jax.tree.leaves(nnx.state(resumed.network, plain)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_float64_losses_and_numpy_settings_are_resumed(tmp_path, unchecked):
    data = np.random.default_rng(0).normal(size=(20, 1))
    settings = {"batch": np.int64(4), "ema": np.float64(0.9), "every": jnp.int32(2)}
    run = partial(fit, mlp(), data, KEY, **settings)
    whole = run(steps=np.int32(4))
    assert whole.losses.dtype == np.float64
    run(steps=2, checkpoints=tmp_path)
    resumed = run(steps=4, checkpoints=tmp_path, batch=4, ema=0.9, every=2)
    np.testing.assert_array_equal(whole.losses, resumed.losses)
    # a run that is finished is not run again: not even its optimizer is called
    again = run(steps=4, checkpoints=tmp_path)
    np.testing.assert_array_equal(whole.losses, again.losses)


def test_a_stream_that_ends_with_the_run_is_enough(tmp_path):
    """Telling a run by its batches asks for none that the run itself does not need."""
    parts = [np.full((2, 1), float(i)) for i in range(3)]
    run = partial(fit, mlp(), training.Stream(parts.__getitem__), KEY, steps=3, chunk=5, every=5)
    np.testing.assert_array_equal(run(checkpoints=tmp_path).losses, run().losses)
    np.testing.assert_array_equal(run(checkpoints=tmp_path).losses, run().losses)


def test_what_is_resumed_is_bound_to_no_device(tmp_path):
    run = partial(fit, mlp(), np.ones((4, 1)), KEY, batch=2, steps=2, checkpoints=tmp_path)
    run()
    leaves = jax.tree.leaves(nnx.state(run().network))
    assert leaves and not any(leaf.committed for leaf in leaves)


# ------------------------------------------------------------------------------------- another run


def shifted(network, key, batch):
    return training.loss(network, key, batch) + 0.1


def scaled_by(factor):
    scale = jnp.full(3, factor)

    def objective(network, key, batch):
        return training.loss(network, key, batch) * scale.mean()

    return objective


def stream(scale=1.0, from_step=0):
    def batch_at(step):
        rows = np.random.default_rng(step).normal(size=(2, 1))
        return rows * (scale if step >= from_step else 1.0)

    return training.Stream(batch_at)


def sampler(scale=1.0):
    mean = jnp.full((2, 1), scale)
    return lambda key: mean + jax.random.normal(key, (2, 1))


ROWS = np.random.default_rng(0).normal(size=(50, 1))
ROWS_BUT_ONE = np.where(np.arange(50)[:, None] == 33, ROWS + 0.1, ROWS)
STEP = "its training step"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": jax.random.key(8)}, "its key is"),
        ({"batch": 3}, "its batch is"),
        ({"ema": 0.5}, "its ema is"),
        ({"chunk": 2}, "its chunk is"),
        ({"data": ROWS[:49]}, "its data is"),
        ({"data": ROWS[::-1]}, "its data is"),
        ({"data": ROWS_BUT_ONE}, "its data is"),
        ({"data": stream()}, "its data at step 0 is"),
        ({"data": sampler()}, "its data for a fixed key is"),
        ({"network": mlp(width=9)}, r"its network at hidden\.0\.bias is"),
        ({"network": mlp(seed=1)}, r"its network at hidden\.0\.kernel is"),
        ({"optimizer": optax.sgd(1e-2)}, "its optimizer's state is"),
        ({"optimizer": training.adamw(2e-2, 9)}, STEP),
        ({"optimizer": training.adamw(1e-2, 10)}, STEP),
        ({"optimizer": training.adamw(1e-2, 9, decay=0.0)}, STEP),
        ({"objective": training.target_loss}, STEP),
        ({"objective": shifted}, STEP),
        ({"steps": 2}, "holds a run of 4 steps"),
    ],
)
def test_a_folder_with_another_run_is_refused(finished, change, message):
    with pytest.raises(ValueError, match=message):
        fit(**(finished | change))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The arguments of a run that has ended."""
    arguments = {
        "network": mlp(),
        "data": ROWS,
        "key": KEY,
        "batch": 2,
        "steps": 4,
        "optimizer": training.adamw(1e-2, 9),
        "checkpoints": tmp_path_factory.mktemp("finished"),
    }
    fit(**arguments)
    return arguments


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({"data": stream()}, {"data": stream(2.0)}, "its data at step 0 is"),
        ({"data": stream()}, {"data": stream(2.0, from_step=3)}, "its data at step 3 is"),
        ({"data": sampler()}, {"data": sampler(1.1)}, "its data for a fixed key is"),
        ({"objective": scaled_by(1.0)}, {"objective": scaled_by(1.1)}, r"constants\[\d\] is"),
    ],
)
def test_streams_samplers_and_constants_of_another_run_are_refused(tmp_path, ours, theirs, message):
    run = partial(
        fit, **({"network": mlp(), "data": ROWS, "key": KEY, "batch": 2, "steps": 4} | ours)
    )
    first = run(checkpoints=tmp_path)
    np.testing.assert_array_equal(run(checkpoints=tmp_path).losses, first.losses)
    with pytest.raises(ValueError, match=message):
        run(checkpoints=tmp_path, **theirs)


@pytest.mark.parametrize("who", ["objective", "sampler", "network"])
def test_a_run_that_reads_something_else_by_now_is_refused_in_the_same_process(tmp_path, who):
    options, change = reading(who)
    run = partial(
        fit,
        **{"network": mlp(), "data": ROWS, "key": KEY, "batch": 2, "steps": 2} | options,
        checkpoints=tmp_path,
    )
    first = run()
    try:
        change(3.0)
        with pytest.raises(ValueError, match="holds another run: its"):
            run()
    finally:
        change(1.0)
    np.testing.assert_array_equal(run().losses, first.losses)


@pytest.mark.parametrize("below", [".", "run/1"])
def test_a_file_where_the_folder_should_be_is_named(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("something else")
    with pytest.raises(NotADirectoryError, match=r"must be a folder, and this is a file.*file"):
        fit(mlp(), ROWS, KEY, batch=2, steps=2, checkpoints=file / below)
    assert file.read_text() == "something else"


def test_rounding_does_not_make_another_run(finished):
    """As on another machine: every number of data and network in another last bit."""

    def nudged(x):
        x = np.asarray(x, np.float32)
        return np.where(x == 0, x, np.nextafter(x, np.float32(2)))

    graph, state = nnx.split(finished["network"])
    network = nnx.merge(graph, jax.tree.map(lambda w: jnp.asarray(nudged(w)), state))
    assert any((a != b).any() for a, b in zip(weights(network), weights(mlp()), strict=True))
    first = fit(**finished)
    again = fit(**(finished | {"network": network, "data": nudged(ROWS).astype(float)}))
    np.testing.assert_array_equal(again.losses, first.losses)


def test_looks_tell_arrays_apart_and_large_ones_by_some_rows(monkeypatch):
    x = np.random.default_rng(0).normal(size=(300, 4))
    same = _checkpoints._agree
    look = _checkpoints.look
    assert same(look(x), look(x * (1 + 1e-7)))
    assert not same(look(x), look(x + 1e-4 * x.std()))
    assert not same(look(x), look(x.reshape(4, 300)))
    assert not same(look(x), look(x[np.random.default_rng(1).permutation(300)]))
    assert not same(look(x > 0), look(x > 0.01))
    assert same(look(np.array([np.nan, np.inf])), look(np.array([np.nan, np.inf])))
    monkeypatch.setattr(_checkpoints, "_MOST", 100)
    first, last = x.copy(), x.copy()
    first[0], last[-1] = 9, 9
    assert not same(look(x), look(first)) and not same(look(x), look(last))


def test_programs_do_not_depend_on_addresses():
    def traced():
        def double(x):  # what the program says of it has its address
            return 2 * x

        x = jnp.ones(3)
        return jax.make_jaxpr(lambda x: jax.pure_callback(double, x, x))(x)

    first, second = traced(), traced()
    one, other = (repr(traced.eqns[0].params) for traced in (first, second))
    assert "double at 0x" in one and one != other
    assert _checkpoints.program(first) == _checkpoints.program(second)
    one, other = (
        _checkpoints.program(jax.make_jaxpr(lambda x, a=a: a * x)(jnp.ones(3))) for a in (1.5, 1.6)
    )
    assert one != other


# ------------------------------------------------------------------------------------------ damage


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run of 6 steps stopped after 4 with checkpoints at 2 and 4, and its result."""
    run = partial(fit, mlp(), ROWS, KEY, batch=2, every=2)
    folder = tmp_path_factory.mktemp("interrupted")
    run(steps=4, checkpoints=folder)
    return run, folder, run(steps=6)


def files_of(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x11
    path.write_bytes(content)


# orbax leaves futures behind when a read fails, and their loop is closed when they are collected
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("breaks", [cut, flip, os.unlink])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, interrupted, breaks):
    """Whichever file is damaged: the run goes on, to the same weights, and says so."""
    run, folder, whole = interrupted
    told = []
    for number, file in enumerate(files_of(folder / "4")):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        breaks(copy / "4" / file)
        with warnings.catch_warnings(record=True) as caught:  # some files hold nothing that is read
            warnings.simplefilter("always")
            resumed = run(steps=6, checkpoints=copy)
        told.append(any("step 4" in str(warning.message) for warning in caught))
        np.testing.assert_array_equal(resumed.losses, whole.losses)
        for a, b in zip(weights(resumed.network), weights(whole.network), strict=True):
            np.testing.assert_array_equal(a, b)
    assert sum(told) > 1


def test_the_warning_names_folder_and_steps_and_the_damaged_is_gone(tmp_path, interrupted):
    run, folder, _ = interrupted
    shutil.copytree(folder, tmp_path / "run")
    for file in (tmp_path / "run" / "4" / "state").rglob("*"):
        if file.is_file():
            cut(file)
    with pytest.warns(UserWarning, match=r"step 4 in .*run is damaged .* goes on from step 2"):
        run(steps=4, checkpoints=tmp_path / "run")
    run(steps=6, checkpoints=tmp_path / "run")  # says nothing more, or pytest would


def test_the_arrays_are_those_that_the_record_tells_of(tmp_path, interrupted):
    """Whole files with other numbers in them, which no reader of files would notice."""
    run, folder, whole = interrupted
    shutil.copytree(folder, tmp_path / "run")
    fit(mlp(seed=1), ROWS, KEY, batch=2, steps=4, checkpoints=tmp_path / "other")
    shutil.rmtree(tmp_path / "run" / "4" / "state")
    shutil.copytree(tmp_path / "other" / "4" / "state", tmp_path / "run" / "4" / "state")
    with pytest.warns(UserWarning, match="step 4 in .*its arrays have another checksum"):
        resumed = run(steps=6, checkpoints=tmp_path / "run")
    np.testing.assert_array_equal(resumed.losses, whole.losses)


def test_when_none_is_whole_the_folder_is_named(tmp_path, interrupted):
    run, folder, _ = interrupted
    shutil.copytree(folder, tmp_path / "run")
    for step in ("2", "4"):
        shutil.rmtree(tmp_path / "run" / step / "state")
    with pytest.raises(OSError, match=r"no checkpoint in .*run is whole .*delete this folder"):
        run(steps=6, checkpoints=tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"2", "4"}


def test_a_folder_of_an_earlier_version_is_refused(tmp_path, interrupted):
    run, folder, _ = interrupted
    shutil.copytree(folder, tmp_path / "run")
    for step in ("2", "4"):
        (tmp_path / "run" / step / "record").rename(tmp_path / "run" / step / "identity")
    with pytest.raises(ValueError, match="written by an earlier version of cdelta"):
        run(steps=6, checkpoints=tmp_path / "run")


def test_other_versions_of_the_libraries_are_named(tmp_path, interrupted, monkeypatch):
    """Their programs cannot be compared; all else is."""
    run, folder, whole = interrupted
    shutil.copytree(folder, tmp_path / "run")
    monkeypatch.setattr(_checkpoints, "version", lambda library: "0.0")
    with pytest.raises(ValueError, match="its batch is"):
        run(steps=6, checkpoints=tmp_path / "run", batch=3)
    with pytest.warns(UserWarning, match="objective and optimizer are the same could not be"):
        resumed = run(steps=6, checkpoints=tmp_path / "run")
    np.testing.assert_array_equal(resumed.losses, whole.losses)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ema": 0.5}, "its ema is"),
        ({"chunk": 2}, "its chunk is"),
    ],
)
def test_settings_tell_runs_apart_where_programs_cannot(
    tmp_path, interrupted, monkeypatch, change, message
):
    """Under other versions of the libraries the compiled step says nothing of them."""
    run, folder, _ = interrupted
    shutil.copytree(folder, tmp_path / "run")
    monkeypatch.setattr(_checkpoints, "version", lambda library: "0.0")
    with pytest.raises(ValueError, match=message):
        run(**{"steps": 6, "checkpoints": tmp_path / "run"} | change)
