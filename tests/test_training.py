"""The training loop against closed-form recursions, exact minima of the losses, and itself after a
kill."""

import os
import signal
import subprocess
import sys
import textwrap
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cdelta import gaussian, networks, training
from cdelta.gaussian import Gaussian

KEY = jax.random.key(7)


def mlp(seed=0, **sizes):
    return networks.MLP(1, **{"width": 8, "layers": 1, **sizes}, rngs=nnx.Rngs(seed))


def weights(network):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(network))]


fit = partial(training.fit, progress=False)


# ------------------------------------------------------------------------------------------- losses


def test_one_time_in_each_stratum():
    t = training.stratified_times(KEY, 50)
    np.testing.assert_array_equal(np.floor(np.asarray(t) * 50), np.arange(50))


@pytest.mark.parametrize(
    ("objective", "network", "minimum"),
    [
        # N(0,1) to N(0,1): Var(x1 - x0 | x_t) = 1/((1-t)² + t²), of which the mean over t is π/2;
        (training.loss, lambda t, x: (2 * t - 1) / ((1 - t) ** 2 + t**2) * x, np.pi / 2),
        # Var(x1 | x_t) = (1-t)²/((1-t)² + t²), of which it is 1/2 (add the same with t and 1-t
        # exchanged)
        (training.target_loss, lambda t, x: t / ((1 - t) ** 2 + t**2) * x, 0.5),
    ],
)
def test_the_loss_of_the_exact_answer_is_the_posterior_variance(objective, network, minimum):
    def value(key, network):
        key, key_x = jax.random.split(key)
        return objective(network, key, jax.random.normal(key_x, (500, 1)))

    values = jax.vmap(partial(value, network=network))(jax.random.split(KEY, 400))
    assert abs(values.mean() - minimum) / (values.std() / 20) < 4
    # A wrong answer costs the square of its error, exactly in expectation.
    worse = jax.vmap(partial(value, network=lambda t, x: network(t, x) + 0.5))(
        jax.random.split(KEY, 400)
    )
    excess = worse - values
    assert abs(excess.mean() - 0.25) / (excess.std() / 20) < 4


def test_a_target_can_be_judged_by_its_velocity():
    def target(t, x):
        return jnp.sin(3 * x) + t

    x1, last = jax.random.normal(KEY, (300, 2)), 1 - 1e-6
    velocity = networks.VelocityFromTarget(target, last)
    expected = training.loss(lambda t, x: velocity(t, x), KEY, x1)
    np.testing.assert_allclose(
        training.target_velocity_loss(target, KEY, x1, last=last), expected, rtol=1e-9
    )
    # beyond last the weight stays
    late = training.target_velocity_loss(lambda t, x: 0 * x, KEY, jnp.ones((300, 2)), last=0.1)
    t = training._interpolated(KEY, jnp.ones((300, 2)), training.standard_normal)[0]
    np.testing.assert_allclose(late, (1 / (1 - np.minimum(t, 0.1)) ** 2).mean(), rtol=1e-12)


def test_another_source():
    source, target = (
        Gaussian(jnp.array([2.0]), jnp.array([[0.25]])),
        Gaussian(jnp.array([-1.0]), jnp.array([[1.0]])),
    )

    def draw(key, like):
        return source.sample(key, len(like))

    def value(key):
        key, key_x = jax.random.split(key)
        exact = partial(gaussian.velocity, source=source, target=target)
        return training.loss(exact, key, target.sample(key_x, 500), draw)

    values = jax.vmap(value)(jax.random.split(KEY, 400))
    # Var(x1 - x0 | x_t) = a b / ((1-t)² a + t² b) for variances a and b; its mean over t is √(ab)
    # π/2
    assert abs(values.mean() - 0.5 * np.pi / 2) / (values.std() / 20) < 4


def test_losses_of_classifiers():
    images, labels = jnp.zeros((6, 4)), jnp.arange(6) % 3
    logits = jnp.array([1.0, 2.0, 3.0])
    expected = np.log(np.exp(logits).sum()) - 2.0
    np.testing.assert_allclose(
        training.cross_entropy(lambda x: logits, KEY, (images, labels)), expected, atol=1e-12
    )
    marks = jnp.stack([labels == 0, labels == 1], -1).astype(float)
    # softplus(z) - y z, with z = (1, -2) and a third of each label set
    expected = np.mean([np.log1p(np.exp(1.0)) - 1 / 3, np.log1p(np.exp(-2.0)) + 2 / 3])
    value = training.binary_cross_entropy(lambda x: jnp.array([1.0, -2.0]), KEY, (images, marks))
    np.testing.assert_allclose(value, expected, atol=1e-12)


# ------------------------------------------------------------------------- the loop, in closed form


class Number(nnx.Module):
    """One weight."""

    def __init__(self, value=3.0):
        self.w = nnx.Param(jnp.array(value))


def distance(network, key, batch):
    return jnp.mean((network.w[...] - batch) ** 2)


def test_gradient_descent_and_average_follow_their_recursions():
    data, rate, steps, ema = np.arange(10.0), 0.1, 30, 0.6
    result = fit(
        Number(),
        data,
        KEY,
        steps=steps,
        batch=10,
        objective=distance,
        optimizer=optax.sgd(rate),
        ema=0,
    )
    w = [4.5 + (3.0 - 4.5) * (1 - 2 * rate) ** k for k in range(steps + 1)]
    np.testing.assert_allclose(result.network.w[...], w[-1], atol=1e-12)
    np.testing.assert_allclose(
        result.losses, [(x - 4.5) ** 2 + data.var() for x in w[:-1]], atol=1e-12
    )

    average = w[0]
    for k in range(steps):
        keep = min(ema, (1 + k) / (10 + k))
        average = keep * average + (1 - keep) * w[k + 1]
    result = fit(
        Number(),
        data,
        KEY,
        steps=steps,
        batch=10,
        objective=distance,
        optimizer=optax.sgd(rate),
        ema=ema,
    )
    np.testing.assert_allclose(result.network.w[...], average, atol=1e-12)


def test_the_network_given_is_left_as_it_is():
    network = mlp()
    before = weights(network)
    fit(network, np.ones((4, 1)), KEY, steps=2)
    for a, b in zip(before, weights(network), strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_row_once_an_epoch_in_a_new_order():
    batch_at = training._array_batches(np.arange(10), KEY, 4)
    rows = np.concatenate([batch_at(step) for step in range(10)]).reshape(4, 10)
    np.testing.assert_array_equal(np.sort(rows, 1), np.tile(np.arange(10), (4, 1)))
    assert len({tuple(row) for row in rows}) == 4
    np.testing.assert_array_equal(training._array_batches(np.arange(10), KEY, 4)(7), batch_at(7))
    # fewer rows than batch
    assert sorted(training._array_batches(np.arange(2), KEY, 5)(0).tolist())[1:4] != [0, 0, 0]


def test_running_averages_of_batch_norm_come_back():
    class Normed(nnx.Module):
        def __init__(self):
            self.norm = nnx.BatchNorm(
                1, use_running_average=True, momentum=0.9, axis_name="batch", rngs=nnx.Rngs(0)
            )

        def __call__(self, t, x):
            return self.norm(x[None])[0]

    data = np.random.default_rng(0).normal(3.0, 2.0, (64, 1)).astype(np.float32)
    result = fit(
        Normed(),
        data,
        KEY,
        steps=5,
        batch=64,
        objective=lambda n, k, x: training._batched(n)(x[:, 0], x).sum(),
    )
    norm = result.network.norm
    assert norm.use_running_average
    np.testing.assert_allclose(norm.mean[...], (1 - 0.9**5) * data.mean(), rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], 0.9**5 + (1 - 0.9**5) * data.var(), rtol=1e-6)


def test_sampler_stream_and_chunks_agree_with_the_plain_loop():
    def sampler(key):
        return jax.random.normal(key, (16, 1))

    sgd = optax.sgd(0.05)
    one, many = (fit(mlp(), sampler, KEY, steps=12, optimizer=sgd, chunk=chunk) for chunk in (1, 5))
    np.testing.assert_allclose(one.losses, many.losses, rtol=1e-6)
    for a, b in zip(weights(one.network), weights(many.network), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)

    data = np.random.default_rng(0).normal(size=(20, 1))
    stream = training.Stream(training._array_batches(data, KEY, 8))
    plain, streamed = (
        fit(mlp(), source, KEY, steps=6, batch=8, optimizer=sgd) for source in (data, stream)
    )
    np.testing.assert_array_equal(plain.losses, streamed.losses)


def test_fits_of_one_kind_compile_once():
    data = np.random.default_rng(0).normal(size=(20, 1))
    before = training._advance._cache_size()
    for seed in range(3):
        fit(mlp(seed, width=9), data, jax.random.key(seed), steps=3, batch=5)
    assert training._advance._cache_size() == before + 1


def test_a_fit_learns_the_velocity_between_two_gaussians():
    source, target = (
        Gaussian.standard(2),
        Gaussian(jnp.array([1.0, 0.0]), jnp.array([[0.5, 0.3], [0.3, 0.5]])),
    )
    result = fit(
        networks.MLP(2, width=64, layers=2, rngs=nnx.Rngs(0)),
        lambda key: target.sample(key, 256).astype(jnp.float32),
        KEY,
        steps=2000,
        optimizer=training.adamw(3e-3, 2000, 50),
        chunk=100,
    )
    keys = jax.random.split(jax.random.key(1), 3)
    t = jax.random.uniform(keys[0], (2000,))
    x = (1 - t[:, None]) * source.sample(keys[1], 2000) + t[:, None] * target.sample(keys[2], 2000)
    exact = jax.vmap(partial(gaussian.velocity, source=source, target=target))(t, x)
    learned = jax.vmap(result.network)(t, x)
    relative = jnp.sqrt(jnp.mean((learned - exact) ** 2) / jnp.mean(exact**2))
    assert relative < 0.06


# -------------------------------------------------------------------------------------- checkpoints


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

        folder, out, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
        data = np.random.default_rng(0).normal(size=(50, 1)).astype(np.float32)
        batch_at = training._array_batches(data, jax.random.key(1), 16)

        def slow(step):
            time.sleep(pause)
            print(step, flush=True)
            return batch_at(step)

        network = networks.MLP(1, width=8, layers=1, rngs=nnx.Rngs(0))
        result = training.fit(
            network, training.Stream(slow), jax.random.key(0), steps=40, every=5, progress=False,
            checkpoints=None if folder == "none" else folder,
        )
        leaves = jax.tree.leaves(nnx.state(result.network))
        np.savez(out, *leaves, losses=result.losses)
        """
    )

    def start(folder, out, pause):
        command = [sys.executable, "-c", script, str(folder), str(tmp_path / out), str(pause)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    whole = start("none", "whole.npz", 0)
    killed = start(tmp_path / "run", "killed.npz", 0.02)
    for line in killed.stdout:
        if int(line) == 17:
            os.kill(killed.pid, signal.SIGKILL)
            break
    assert killed.wait() == -signal.SIGKILL and not (tmp_path / "killed.npz").exists()
    killed.stdout.close()
    again = start(tmp_path / "run", "again.npz", 0)
    steps = [int(line) for line in again.communicate()[0].split()]
    assert whole.communicate() and again.returncode == whole.returncode == 0
    assert 0 < steps[0] <= 17 and steps[-1] == 39, "the second run did not go on from a checkpoint"
    a, b = np.load(tmp_path / "whole.npz"), np.load(tmp_path / "again.npz")
    assert sorted(a.files) == sorted(b.files) and len(a["losses"]) == 40
    for name in a.files:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": jax.random.key(8)}, "its key is"),
        ({"batch": 3}, "its batch is"),
        ({"data": np.ones((6, 1))}, "its data is"),
        ({"network": mlp(width=9)}, "its network or its optimizer differs"),
        ({"steps": 2}, "holds a run of 4 steps"),
    ],
)
def test_a_folder_with_another_run_is_refused(tmp_path, change, message):
    arguments = {
        "network": mlp(),
        "data": np.ones((5, 1)),
        "key": KEY,
        "batch": 2,
        "steps": 4,
        "checkpoints": tmp_path,
    }
    fit(**arguments)
    with pytest.raises(ValueError, match=message):
        fit(**(arguments | change))


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (np.zeros((0, 1)), {}, "at least one sample"),
        ((), {}, "at least one sample"),
        ((np.ones((3, 1)), np.ones(2)), {}, "one length"),
        (np.array([[1.0], [np.nan]]), {}, "data must be finite"),
        (np.ones((3, 1)), {"steps": 0}, "steps must be positive"),
        (np.ones((3, 1)), {"batch": -1}, "batch must be positive"),
        (np.ones((3, 1)), {"ema": 1.0}, "ema"),
        (np.ones((3, 1)), {"chunk": 3, "every": 10}, "multiple of chunk"),
    ],
)
def test_refusals(data, options, message):
    with pytest.raises(ValueError, match=message):
        fit(mlp(), data, KEY, **{"steps": 3, **options})


def test_divergence_is_named_with_its_step(tmp_path):
    data = np.arange(10.0)
    sgd = optax.sgd(1e200)  # step 0: 3, step 1: about 1e200, step 2: the square overflows
    with pytest.raises(
        FloatingPointError, match=r"loss is (inf|nan) at step 1: training has diverged"
    ):
        fit(
            Number(),
            data,
            KEY,
            steps=6,
            batch=10,
            objective=distance,
            optimizer=sgd,
            checkpoints=tmp_path,
            every=1,
        )
    healthy = fit(
        Number(),
        data,
        KEY,
        steps=1,
        batch=10,
        objective=distance,
        optimizer=sgd,
        checkpoints=tmp_path,
    )
    assert np.isfinite(healthy.losses).all()  # what was saved before is usable
