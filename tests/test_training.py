"""The training loop against closed-form recursions, and exact minima of the losses."""

import itertools
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from cdelta import adapters, gaussian, networks, training
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
    at_usual = training.target_velocity_loss(target, KEY, x1, last=0.95)
    assert training.target_velocity_loss(target, KEY, x1) == at_usual  # VelocityFromTarget's
    # beyond last the weight stays
    late = training.target_velocity_loss(lambda t, x: 0 * x, KEY, jnp.ones((300, 2)), last=0.1)
    t = training._interpolated(KEY, jnp.ones((300, 2)), training.standard_normal)[0]
    np.testing.assert_allclose(late, (1 / (1 - np.minimum(t, 0.1)) ** 2).mean(), rtol=1e-12)


@pytest.mark.parametrize("form", ["array", "function"])
def test_positive_weights_move_the_price_of_an_error_and_not_the_minimiser(form):
    """At the exact velocity no direction goes down, and off by c a coordinate costs w c²."""
    source, target = (
        Gaussian.standard(2),
        Gaussian(jnp.array([1.0, 0]), jnp.diag(jnp.array([2, 0.5]))),
    )
    at = {"array": jnp.array([3.0, 0.5]), "function": lambda t: jnp.stack([1 + t, 3 * t**2])}[form]
    price = np.array({"array": [3, 0.5], "function": [1.5, 1.0]}[form])

    def value(key, off=0.0, bend=0.0, weight=at):
        key, key_x = jax.random.split(key)

        def network(t, x):
            exact = gaussian.velocity(t, x, source, target)
            return exact + off + bend * jnp.stack([x[1] * t, jnp.sin(x[0])])

        return training.loss(network, key, target.sample(key_x, 200), weight=weight)

    keys = jax.random.split(KEY, 400)
    slopes = jax.vmap(jax.grad(lambda bend, key: value(key, bend=bend)), (None, 0))(0.0, keys)
    assert abs(slopes.mean()) < 4 * slopes.std() / 20
    for i in range(2):
        off = 0.5 * jnp.eye(2)[i]
        excess, plain = (
            jax.vmap(lambda key, w=w, off=off: value(key, off, weight=w) - value(key, weight=w))(
                keys
            )
            for w in (at, None)
        )
        expected = 0.25 * price[i] / 2
        assert abs(excess.mean() - expected) < 4 * excess.std() / 20
        assert price[i] == 1 or abs(plain.mean() - expected) > 4 * plain.std() / 20


def test_weights_are_those_of_each_sample_at_its_time():
    """All three losses, against NumPy; an image, as one number a channel broadcasts there."""
    x1 = jax.random.normal(KEY, (5, 2, 3), jnp.float32)
    t, x0, _, x = map(np.asarray, training._interpolated(KEY, x1, training.standard_normal)[:4])
    channel = np.array([1.0, 2.0, 5.0], np.float32)
    late = 1 - np.minimum(t, 0.95)[:, None, None]
    for objective, squares in (
        (training.loss, (np.sin(x) - (x1 - x0)) ** 2),
        (training.target_loss, (np.sin(x) - x1) ** 2),
        (training.target_velocity_loss, ((np.sin(x) - x1) / late) ** 2),
    ):
        found = partial(objective, lambda t, x: jnp.sin(x), KEY, x1)
        np.testing.assert_allclose(found(weight=channel), (channel * squares).mean(), rtol=1e-5)
        by_time = (channel * (1 + t[:, None, None]) * squares).mean()
        np.testing.assert_allclose(found(weight=lambda t: channel * (1 + t)), by_time, rtol=1e-5)
        np.testing.assert_allclose(found(weight=lambda t: 2.0), 2 * found(), rtol=1e-6)
        for wrong in (np.ones(2), np.ones((5, 2, 3)), lambda t: jnp.ones(2)):
            with pytest.raises(ValueError, match=r"weight must broadcast .* \(2, 3\), got \("):
                found(weight=wrong)
        for wrong in (0.0, np.array([1, 1, -1]), np.nan):
            with pytest.raises(ValueError, match="weight must be positive"):
                found(weight=wrong)


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


def test_time_and_source_of_a_loss_are_independent_of_each_other():
    """The regression of x0 on t is none: with one key for both it would be one."""
    t, x0, _, x, _ = training._interpolated(KEY, jnp.zeros((4000, 1)), training.standard_normal)
    within = np.asarray(t) * 4000 % 1 - 0.5  # uniform in its stratum
    z = (within * np.asarray(x0)[:, 0]).mean() * np.sqrt(4000 * 12)
    assert abs(z) < 4
    np.testing.assert_allclose(x[:, 0], (1 - t) * x0[:, 0], rtol=1e-12)


def test_losses_of_classifiers():
    images, labels = jnp.zeros((6, 4)), jnp.arange(6) % 3
    logits = jnp.array([1.0, 2.0, 3.0])
    expected = np.log(np.exp(logits).sum()) - 2.0
    np.testing.assert_allclose(
        training.cross_entropy(lambda x: logits, KEY, (images, labels)),
        expected,
        rtol=0,
        atol=1e-12,
    )
    marks = jnp.stack([labels == 0, labels == 1], -1).astype(float)
    # softplus(z) - y z, with z = (1, -2) and a third of each label set
    expected = np.mean([np.log1p(np.exp(1.0)) - 1 / 3, np.log1p(np.exp(-2.0)) + 2 / 3])
    value = training.binary_cross_entropy(lambda x: jnp.array([1.0, -2.0]), KEY, (images, marks))
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------- the loop, in closed form


class Number(nnx.Module):
    """One weight."""

    def __init__(self, value=3.0):
        self.w = nnx.Param(jnp.array(value))


def distance(network, key, batch):
    return jnp.mean((network.w[...] - batch) ** 2)


def test_gradient_descent_and_average_follow_their_recursions():
    data, rate, steps, ema = np.arange(10.0), 0.1, 30, 0.6
    optimizer = optax.sgd(rate)
    options = {"steps": steps, "batch": 10, "objective": distance, "optimizer": optimizer}
    result = fit(Number(), data, KEY, ema=0, **options)
    w = [4.5 + (3.0 - 4.5) * (1 - 2 * rate) ** k for k in range(steps + 1)]
    np.testing.assert_allclose(result.network.w[...], w[-1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        result.losses, [(x - 4.5) ** 2 + data.var() for x in w[:-1]], rtol=0, atol=1e-12
    )

    average = w[0]
    for k in range(steps):
        keep = min(ema, (1 + k) / (10 + k))
        average = keep * average + (1 - keep) * w[k + 1]
    result = fit(Number(), data, KEY, ema=ema, **options)
    np.testing.assert_allclose(result.network.w[...], average, rtol=0, atol=1e-12)


def test_the_network_given_is_left_as_it_is():
    network = mlp()
    before = weights(network)
    fit(network, np.ones((4, 1)), KEY, steps=2)
    for a, b in zip(before, weights(network), strict=True):
        np.testing.assert_array_equal(a, b)


def mean_of_batch(network, key, batch):
    """A loss that tells which rows a step was given."""
    return jnp.mean(batch) + 0 * network.w[...]


@pytest.mark.parametrize(("n", "batch"), [(6, 1), (10, 4), (3, 7), (1, 5)])
def test_every_row_once_an_epoch_in_a_new_order(n, batch):
    batch_at = training._array_batches(np.arange(n), KEY, batch)
    rows = np.concatenate([batch_at(step) for step in range(8 * n)]).reshape(-1, n)
    np.testing.assert_array_equal(np.sort(rows, 1), np.tile(np.arange(n), (len(rows), 1)))
    again = training._array_batches(np.arange(n), KEY, batch)
    np.testing.assert_array_equal(again(7), batch_at(7))
    if n > 5:  # 8 · batch epochs, of which two have the same order with probability 496 / 10!
        assert len({tuple(row) for row in rows}) > len(rows) - 2


def test_fit_sees_every_row_once_an_epoch_in_a_new_order():
    data = np.arange(12.0)
    run = partial(fit, Number(), data, batch=1, objective=mean_of_batch, steps=36)
    epochs = run(KEY).losses.reshape(3, 12)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(data, (3, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert (run(jax.random.key(8)).losses != epochs.ravel()).any()


def test_data_and_loss_draw_from_different_keys():
    """The product of what sampler and objective draw from their keys has mean 0, variance 1."""
    n, steps = 64, 50

    def product(network, key, batch):
        return jnp.mean(batch * jax.random.normal(key, batch.shape)) + 0 * network.w[...]

    losses = fit(
        Number(),
        lambda key: jax.random.normal(key, (n,)),
        KEY,
        steps=steps,
        objective=product,
        chunk=50,
    ).losses
    assert abs(losses.mean()) * np.sqrt(n * steps) < 4
    # the mean square of steps losses, each with variance 1/n
    assert abs(np.mean(losses**2) * n - 1) / np.sqrt(2 / steps) < 4
    assert len(set(losses.tolist())) == steps


def test_adamw_follows_its_recursion():
    """Clipped gradient, two moments, decay, and the rate of its step: written out in NumPy."""
    rate, steps, warmup, decay, clip, w0 = 0.1, 12, 4, 0.3, 0.5, 3.0
    result = fit(
        Number(w0),
        np.arange(10.0),
        KEY,
        steps=steps,
        batch=10,
        objective=distance,
        optimizer=training.adamw(rate, steps, warmup, decay, clip),
        ema=0,
    )
    w, m, v = w0, 0.0, 0.0
    for k in range(steps):
        assert np.isclose(result.losses[k], (w - 4.5) ** 2 + np.arange(10.0).var(), atol=1e-6)
        gradient = 2 * (w - 4.5)
        gradient *= min(1, clip / abs(gradient))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        ahead = (k - warmup) / (steps - warmup)
        now = rate * (k / warmup if k < warmup else (1 + np.cos(np.pi * ahead)) / 2)
        step = (m / (1 - 0.9 ** (k + 1))) / (np.sqrt(v / (1 - 0.999 ** (k + 1))) + 1e-8)
        w -= now * (step + decay * w)
    np.testing.assert_allclose(result.network.w[...], w, atol=1e-6)


def test_adamw_decays_weights_and_clips_gradients_unless_told_otherwise():
    """By 1e-4 of the rate, to norm 1; a rate alone is a rate for all steps."""
    rate, w = 0.1, 3.0
    optimizer = training.adamw(rate)
    state = optimizer.init(jnp.array(w))
    m = v = 0.0
    for k, gradient in enumerate((100.0, 0.5, 0.0)):
        update, state = optimizer.update(jnp.array(gradient), state, jnp.array(w))
        gradient = min(gradient, 1.0)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        step = (m / (1 - 0.9 ** (k + 1))) / (np.sqrt(v / (1 - 0.999 ** (k + 1))) + 1e-8)
        np.testing.assert_allclose(update, -rate * (step + 1e-4 * w), rtol=1e-12)


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
        objective=lambda n, k, x: training.batched(n)(x[:, 0], x).sum(),
    )
    norm = result.network.norm
    assert norm.use_running_average
    np.testing.assert_allclose(norm.mean[...], (1 - 0.9**5) * data.mean(), rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], 0.9**5 + (1 - 0.9**5) * data.var(), rtol=1e-6)


# ------------------------------------------------------------------------------------ random state


class Dropped(nnx.Module):
    """x, doubled or dropped."""

    def __init__(self, seed=0):
        self.w = nnx.Param(jnp.ones(()))
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(seed))

    def __call__(self, x):
        return self.drop(x) * self.w[...]


def mean_output(network, key, batch):
    return jnp.mean(training.batched(network)(batch))


@pytest.mark.parametrize("chunk", [1, 4])
def test_every_step_and_every_sample_has_a_mask_of_its_own(chunk):
    """The loss of a step is 2 K/n with K of Binomial(n, 1/2): one mask for all samples would give
    it n times the variance, one mask for all steps none."""
    n, steps = 16, 400
    losses = fit(
        Dropped(),
        np.ones((n, 1)),
        KEY,
        steps=steps,
        batch=n,
        objective=mean_output,
        optimizer=optax.sgd(0.0),
        chunk=chunk,
    ).losses
    assert abs(losses.mean() - 1) / np.sqrt(1 / (n * steps)) < 4
    # the squared deviations have mean 1/n and variance μ4 - 1/n², μ4 = (3n² - 2n) / n⁴
    squares = (losses - 1) ** 2
    spread = np.sqrt(((3 * n**2 - 2 * n) / n**4 - 1 / n**2) / steps)
    assert abs(squares.mean() - 1 / n) / spread < 4
    # and one step tells nothing of the next
    assert abs(np.mean((losses[1:] - 1) * (losses[:-1] - 1))) * n * np.sqrt(steps - 1) < 4


def test_two_passes_in_one_step_draw_twice():
    def product(network, key, batch):
        one, two = (training.batched(network)(batch) - 1 for _ in range(2))
        return jnp.mean(one * two) + 0 * network.w[...]

    losses = fit(Dropped(), np.ones((16, 1)), KEY, steps=100, batch=16, objective=product).losses
    assert abs(losses.mean()) * np.sqrt(16 * 100) < 4


def test_the_masks_follow_from_the_key_and_the_networks_seed():
    data = np.ones((8, 1))
    run = partial(fit, data=data, steps=6, batch=8, objective=mean_output)
    losses = run(Dropped(), key=KEY).losses
    np.testing.assert_array_equal(run(Dropped(), key=KEY).losses, losses)
    assert (run(Dropped(), key=jax.random.key(8)).losses != losses).any()
    assert (run(Dropped(1), key=KEY).losses != losses).any()


def test_a_network_with_dropout_is_left_as_it_is_and_comes_back_in_eval_mode():
    network = Dropped()
    before = jax.random.key_data(network.drop.rngs.key[...])
    result = fit(network, np.ones((8, 1)), KEY, steps=3, batch=8, objective=mean_output)
    assert network.drop.rngs.count[...] == 0 and not network.drop.deterministic
    np.testing.assert_array_equal(before, jax.random.key_data(network.drop.rngs.key[...]))
    assert result.network.drop.deterministic and result.network.drop.rngs.count[...] == 3
    np.testing.assert_array_equal(result.network(jnp.ones(5)), result.network.w[...] * jnp.ones(5))


class Count(nnx.Variable):
    """A kind of state that nnx does not know."""


class Counted(nnx.Module):
    """Counts its passes, in a ``Count`` and in a plain array."""

    def __init__(self):
        self.w = nnx.Param(jnp.array(2.0))
        self.passes, self.plain = Count(jnp.array(0)), jnp.array(0)
        self.level = nnx.BatchStat(jnp.array(0.0))

    def __call__(self, x):
        self.passes[...] += 1
        self.plain = self.plain + 1
        self.sow(nnx.Intermediate, "looked_at", x)
        mean = jax.lax.pmean(x.mean(), networks.BATCH)
        self.level[...] = 0.5 * self.level[...] + 0.5 * mean
        return x * self.w[...]


@pytest.mark.filterwarnings("ignore:Using 'Module.sow")
@pytest.mark.parametrize("chunk", [1, 3])
def test_state_of_any_kind_is_carried(chunk):
    data = np.arange(4.0)[:, None]
    network = Counted()
    result = fit(network, data, KEY, steps=7, batch=4, objective=mean_output, chunk=chunk, every=3)
    assert network.passes[...] == 0 and network.plain == 0
    assert result.network.passes[...] == 7 and result.network.plain == 7
    np.testing.assert_allclose(result.network.level[...], 1.5 * (1 - 0.5**7), rtol=1e-12)


class Stubborn(nnx.Module):
    """Changes in a way that no step can carry to the next."""

    def __init__(self, how):
        self.w, self.how, self.calls = nnx.Param(jnp.ones(())), how, 0
        self.last = Count(jnp.zeros(1))

    def __call__(self, x):
        if self.how == "sample":
            self.last[...] = x
        elif self.how == "shape":
            self.last.set_value(jnp.zeros(2))
        elif self.how == "attribute":
            self.calls += 1
        else:
            self.made = Count(jnp.zeros(()))
        return x * self.w[...]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("sample", r"state last becomes another for each sample.*pmean\(value, 'batch'\)"),
        ("shape", r"state last from float64 \(1,\) into float64 \(2,\)"),
        ("attribute", r"changes or makes calls of the network"),
        ("new", r"changes or makes made of the network"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_name(how, message):
    with pytest.raises(ValueError, match=message):
        fit(Stubborn(how), np.ones((4, 1)), KEY, steps=2, batch=2, objective=mean_output)


# ------------------------------------------------------------------------------------ kinds of data


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


@pytest.mark.parametrize("schedule", [None, {"steps": 7, "warmup": 2}])
def test_fits_of_one_kind_compile_once(schedule):
    """Also on a schedule, which optax changes inside when it is traced."""
    data = np.random.default_rng(0).normal(size=(20, 1))
    before = training._advance._cache_size()
    for seed in range(3):
        optimizer = schedule and training.adamw(7e-3, **schedule)
        fit(mlp(seed, width=9), data, jax.random.key(seed), steps=3, batch=5, optimizer=optimizer)
    assert training._advance._cache_size() == before + 1


FACTOR = 1.0


class Reading(nnx.Module):
    """A network whose forward pass reads a global, and calls a function that reads it."""

    def __init__(self, function=None):
        self.mlp, self.function = mlp(), function

    def __call__(self, t, x):
        return self.function(self.mlp(t, x)) if self.function else FACTOR * self.mlp(t, x)


class Stretched:
    """An objective with state."""

    factor = 1.0

    def __call__(self, network, key, batch):
        return self.factor * training.loss(network, key, batch)


def reading(who):
    """Options of a fit of which ``who`` reads a number, at first 1, and what sets it."""
    factor = 1.0

    def change(new):
        nonlocal factor
        factor = new

    def objective(network, key, batch):
        return factor * training.loss(network, key, batch)

    stretched = Stretched()
    options = {
        "objective": lambda: {"objective": objective},
        "source": lambda: {
            "objective": partial(
                training.loss, source=lambda key, x: factor * jax.random.normal(key, x.shape)
            )
        },
        "object": lambda: {"objective": stretched},
        "sampler": lambda: {"data": lambda key: factor * jax.random.normal(key, (4, 1))},
        "optimizer": lambda: {"optimizer": optax.sgd(lambda step: 0.01 * factor)},
        "network": lambda: {"network": Reading()},
        "attribute": lambda: {"network": Reading(lambda x: factor * x)},
    }[who]()
    setters = {
        "object": lambda new: setattr(stretched, "factor", new),
        "network": lambda new: globals().update(FACTOR=new),
    }
    return options, setters.get(who, change)


@pytest.mark.parametrize(
    "who", ["objective", "source", "object", "sampler", "optimizer", "network", "attribute"]
)
def test_a_fit_computes_with_what_is_read_by_now(who):
    """Compiled once for each of its values, and the same as where nothing was compiled before."""
    data = np.random.default_rng(0).normal(size=(20, 1)).astype(np.float32)
    common = {"network": mlp(), "data": data, "key": KEY, "steps": 3, "batch": 4}
    options, change = reading(who)
    before, losses = training._advance._cache_size(), []
    try:
        for factor in (1.0, 1.0, 3.0, 3.0):
            change(factor)
            losses.append(fit(**common | options).losses)
        assert training._advance._cache_size() == before + 2
        training._advance.clear_cache()
        expected = fit(**common | options).losses
    finally:
        change(1.0)
    np.testing.assert_array_equal(losses[0], losses[1])
    np.testing.assert_array_equal(losses[2], losses[3])
    np.testing.assert_array_equal(losses[2], expected)
    assert abs(losses[2] / losses[0] - 1).max() > 1e-3


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


@pytest.mark.parametrize("kind", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_a_way_to_store_data(kind):
    data = np.random.default_rng(0).normal(size=(20, 1)).astype(kind)
    run = partial(fit, mlp(), key=KEY, steps=4, batch=20)
    stored, wide = run(data=data), run(data=data.astype(np.float32))
    np.testing.assert_array_equal(stored.losses, wide.losses)
    for a, b in zip(weights(stored.network), weights(wide.network), strict=True):
        np.testing.assert_array_equal(a, b)
    # 3000 parts, of which half precision cannot tell a third: each time is still in its own
    t = np.asarray(training.stratified_times(KEY, 3000, kind), np.float64)
    assert np.abs(t - (np.arange(3000) + 0.5) / 3000).max() < 0.5 / 3000 + jnp.finfo(kind).eps / 2


def test_the_average_of_half_precision_weights_moves():
    """w falls by 1/128 a step; kept in bfloat16, the average would not follow: less than a bit."""

    def slope(network, key, batch):
        return network.w[...].astype(jnp.float32) + 0 * batch.mean()

    start = jnp.array(1.0, jnp.bfloat16)
    result = fit(
        Number(start),
        np.ones(4, np.float32),
        KEY,
        steps=64,
        batch=4,
        objective=slope,
        optimizer=optax.sgd(1 / 128),
        ema=0.98,
    )
    w = average = 1.0
    for k in range(64):
        w -= 1 / 128
        keep = min(0.98, (1 + k) / (10 + k))
        average = keep * average + (1 - keep) * w
    assert result.network.w[...].dtype == jnp.bfloat16
    assert abs(result.network.w[...].astype(float) - average) <= 2**-8


@pytest.mark.parametrize(
    "objective", [training.loss, training.target_loss, training.target_velocity_loss]
)
@pytest.mark.parametrize("kind", [np.uint8, np.int64, bool])
def test_integers_are_no_data_of_a_flow(objective, kind, unchecked):
    with pytest.raises(ValueError, match=r"floating-point, got .*images\.astype\(np\.float32\)"):
        fit(mlp(), np.ones((4, 1), kind), KEY, steps=1, batch=2, objective=objective)


def test_labels_stay_integers():
    images, labels = np.ones((6, 1), np.float32), np.arange(6, dtype=np.uint8)
    seen = []

    def objective(network, key, batch):
        seen.append(batch[1].dtype)
        return training.cross_entropy(lambda x: x * network.w[...] + jnp.arange(6.0), key, batch)

    losses = fit(
        Number(), (images, labels), KEY, steps=1, batch=6, objective=objective, ema=0
    ).losses
    assert set(seen) == {np.dtype(np.uint8)}
    logits = np.arange(6.0)
    np.testing.assert_allclose(losses[0], np.log(np.exp(logits).sum()) - 2.5, rtol=1e-6)


def test_strict_promotion_changes_nothing():
    data = np.random.default_rng(0).normal(size=(20, 1)).astype(np.float32)
    run = partial(
        fit, mlp(), data, KEY, steps=4, batch=8, optimizer=training.adamw(1e-2, 4, 1), ema=0.9
    )
    plain = run()
    with jax.numpy_dtype_promotion("strict"):
        strict = run()
    np.testing.assert_array_equal(plain.losses, strict.losses)
    for a, b in zip(weights(plain.network), weights(strict.network), strict=True):
        np.testing.assert_array_equal(a, b)


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (np.zeros((0, 1)), {}, "at least one sample"),
        ((), {}, "at least one sample"),
        ((np.ones((3, 1)), np.ones(2)), {}, "one length"),
        (np.array([[1.0], [np.nan]]), {}, "data must be finite"),
        ([np.ones((3, 1)), np.ones((2, 1))], {}, "got a list of 2; np.stack"),
        ((np.ones((3, 1)), [1, 2, 3]), {}, "got a list of 3"),
        (np.array(["a", "b"]), {}, "data must hold numbers, got dtype <U1"),
        (np.array([1.0, np.inf]).astype(jnp.bfloat16), {}, "data must be finite"),
        (np.ones((3, 1)), {"steps": 0}, "steps must be a positive integer, got 0"),
        (np.ones((3, 1)), {"batch": -1}, "batch must be a positive integer, got -1"),
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


# --------------------------------------------------------------------- conditions, pairs, libraries


class Perceptron(eqx.Module):
    layers: eqx.nn.MLP

    def __init__(self, inputs):
        self.layers = eqx.nn.MLP(inputs, 1, 8, 1, jax.nn.silu, key=KEY)

    def __call__(self, *parts):
        return self.layers(jnp.concatenate([jnp.atleast_1d(part) for part in parts]))


def test_a_network_learns_its_conditions():
    """Data that is its own condition: E[x1 - x0 | x_t, c] = (c - x)/(1 - t), not E[x1] - x."""
    labels = np.random.default_rng(0).choice([-2.0, 2.0], 400)

    class Net(nnx.Module):
        def __init__(self):
            self.scale, self.shift = nnx.Param(jnp.zeros(())), nnx.Param(jnp.zeros(()))

        def __call__(self, t, x, c):
            return self.scale[...] * c + self.shift[...] - x

    options = dict(steps=300, batch=50, optimizer=optax.sgd(0.05), ema=0.9)
    learned = fit(Net(), labels[:, None], KEY, conditions=labels, **options).network
    # minimum of E (s c + b - x_t - x1 + x0)², with x1 = c: s = E[1 + t] = 3/2
    assert learned.scale[...] == pytest.approx(1.5, abs=0.15)
    mixed = np.random.default_rng(1).permutation(labels)
    null = fit(Net(), labels[:, None], KEY, conditions=mixed, **options).network
    assert abs(null.scale[...]) < 0.3


def affine_by_label(labels):
    """A velocity a_c x + b_c, with weights of its own for each label."""

    class Net(nnx.Module):
        def __init__(self):
            self.a, self.b = nnx.Param(jnp.zeros(labels)), nnx.Param(jnp.zeros(labels))

        def __call__(self, t, x, c):
            return self.a[c] * x + self.b[c]

    return Net()


def best_affine(means, spread):
    r"""The a and b of least E (a x_t + b - (x_1 - x_0))², t uniform, x_1 a mixture in equal parts
    of N(m, s²): with M the mean of the m and Q = s² + E m², E x_t = M/2, E x_t² = (1 + Q)/3 and
    E x_t (x_1 - x_0) = (Q - 1)/2."""
    mean, square = np.mean(means), spread**2 + np.mean(np.square(means))
    a = ((square - 1) / 2 - mean**2 / 2) / ((1 + square) / 3 - mean**2 / 4)
    return a, mean - a * mean / 2


@pytest.mark.parametrize("unlabelled", [0.2, 0.6])
def test_the_null_label_learns_the_velocity_of_all_data_and_the_others_keep_theirs(unlabelled):
    """Two Gaussian classes, and the best affine velocity of each and of their mixture."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1], 5000))
    means, spread = np.array([-1.0, 2.0]), 0.5
    data = (means[labels] + spread * rng.standard_normal(10_000))[:, None]
    net = fit(
        affine_by_label(3), data, KEY, conditions=labels, null=2, unlabelled=unlabelled, steps=600,
        batch=500, optimizer=optax.sgd(0.2), ema=0.99, chunk=50,
    ).network  # fmt: skip
    wanted = [best_affine(chosen, spread) for chosen in ([-1.0], [2.0], means)]
    for label, (a, b) in enumerate(wanted):
        assert net.a[label] == pytest.approx(a, abs=0.06), label
        assert net.b[label] == pytest.approx(b, abs=0.06), label
    # the null: neither class nor their average has the mixture's slope
    assert min(abs(wanted[2][0] - a) for a in (wanted[0][0], wanted[1][0])) > 0.5
    # and so guidance: from the velocity of all data to that of one label, and beyond
    x = jnp.array([0.7])
    alone, free = (wanted[c][0] * 0.7 + wanted[c][1] for c in (1, 2))
    for strength in (0.0, 1.0, 2.5):
        guided = adapters.labelled(net, 1, guidance=strength, null=2)
        assert guided(0.3, x)[0] == pytest.approx(free + strength * (alone - free), abs=0.3)


def test_what_a_fit_is_unless_told():
    """A batch of 128, AdamW at 1e-3, an average of .995, a tenth of the labels left out; over so
    many steps that the average's memory is longer than its beginning."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 300)
    data = (labels + rng.standard_normal(300))[:, None]
    given = {"conditions": labels, "null": 2, "steps": 125, "chunk": 125}
    told = {"batch": 128, "optimizer": training.adamw(1e-3), "ema": 0.995, "unlabelled": 0.1}
    plain, same = (fit(affine_by_label(3), data, KEY, **given, **more) for more in ({}, told))
    np.testing.assert_array_equal(plain.losses, same.losses)
    for a, b in zip(weights(plain.network), weights(same.network), strict=True):
        np.testing.assert_array_equal(a, b)
    last = fit(affine_by_label(3), data, KEY, **given, **told | {"ema": 0.9}).network
    assert np.abs(weights(last)[0] - weights(same.network)[0]).max() > 1e-4


def test_labels_are_left_out_one_by_one_at_the_rate_asked_for(unchecked):
    """The share of each step as its loss; all parts of one sample's conditions at once."""
    n, share = 2000, 0.3
    conditions = {"label": np.arange(n) % 10, "text": np.ones((n, 2))}
    null = {"label": 10, "text": np.zeros(2)}

    def left_out(network, key, batch):
        _, given = batch
        gone = given["label"] == 10
        jointly = (gone == (given["text"] == 0).all(1)) & (gone == (given["text"] == 0).any(1))
        # NaN, which fit refuses, where one part is replaced without the other
        return jnp.where(jointly.all(), gone.mean(), jnp.nan)

    losses = fit(
        mlp(), np.zeros((n, 1)), KEY, conditions=conditions, null=null, unlabelled=share, steps=30,
        batch=n, objective=left_out, optimizer=optax.sgd(0.0),
    ).losses  # fmt: skip
    z = (losses - share) / np.sqrt(share * (1 - share) / n)
    assert abs(z.mean()) * np.sqrt(30) < 4 and 0.5 < z.std(ddof=1) < 1.7  # anew at each step


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"null": 2, "unlabelled": 0.0}, r"unlabelled must be .* inside \(0, 1\), .* got 0"),
        ({"null": 2, "unlabelled": 1.0}, "unlabelled must be"),
        ({"null": 0.5}, "null must be a value of the conditions' dtype uint8, got 0.5"),
        ({"null": -1}, "null must be a value of the conditions' dtype uint8, got -1"),
        ({"null": 300}, "null must be a value of the conditions' dtype uint8, got 300"),
        ({"null": [2, 2]}, "null must be like the conditions of one sample"),
        ({"null": np.zeros(2)}, r"of shapes \[\(\)\], got \[\(2,\)\]"),
        ({"null": 2, "conditions": None}, "these batches have none: give conditions"),
    ],
)
def test_a_null_that_is_no_condition_is_refused(options, message, unchecked):
    options = {"conditions": np.arange(6, dtype=np.uint8) % 2, **options}
    with pytest.raises(ValueError, match=message):
        fit(affine_by_label(3), np.ones((6, 1)), KEY, steps=1, batch=3, **options)


def test_optimal_pairs_cost_least():
    x0, x1 = jax.random.normal(KEY, (2, 5, 3))

    def cost(order):
        return float(((x0[jnp.array(order)] - x1) ** 2).sum())

    best = min(itertools.permutations(range(5)), key=cost)
    paired, same = jax.jit(training.optimal_pairs)(KEY, x0, x1)
    np.testing.assert_array_equal(same, x1)
    np.testing.assert_array_equal(paired, x0[jnp.array(best)])
    assert cost(best) < cost(range(5))


def test_a_coupling_is_what_the_loss_sees(unchecked):
    def twins(key, x0, x1):
        return x1 - 3.0, x1  # then x1 - x0 = 3 for every pair

    data = np.random.default_rng(0).standard_normal((20, 1))
    losses = fit(
        mlp(), data, KEY, steps=1, coupling=twins, optimizer=optax.sgd(0.0),
        objective=lambda network, key, x1, coupling: training.loss(
            lambda t, x: jnp.full_like(x, 3.0), key, x1, coupling=coupling),
    ).losses  # fmt: skip
    assert losses[0] == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="coupling must return x0 and x1 in their shapes"):
        fit(mlp(), data, KEY, steps=1, coupling=lambda key, x0, x1: (x0[:3], x1))
    with pytest.raises(ValueError, match="conditions belong to an array"):
        fit(mlp(), lambda key: jnp.ones((3, 1)), KEY, steps=1, conditions=np.ones(3))


def test_a_coupling_has_a_key_of_its_own():
    """What it draws is neither the noise of the source nor the times."""
    drawn, x1 = [], jnp.zeros((50, 2))

    def noisy(key, x0, x1):
        drawn.append((x0, jax.random.normal(key, x0.shape), training.stratified_times(key, 50)))
        return x0, x1

    t, x0, *_ = training._interpolated(KEY, x1, training.standard_normal, noisy)
    ((given, normal, times),) = drawn
    np.testing.assert_array_equal(given, x0)
    assert np.abs(normal - x0).min() > 1e-6 and np.abs(times - t).min() > 1e-6


ROWS = np.array([2, 0, 1, 1]), np.array([3, 3, 0, 1])  # a plan may use a row twice, or never


@pytest.mark.parametrize("compiled", [False, True])
def test_rows_that_a_coupling_returns_take_their_conditions_along(compiled):
    """The target's loss of a network that says its condition is zero if, and only if, each x1 has
    its own; the velocity's, of one that says nothing, is that of the pairs by hand."""
    x1 = jnp.array([[1.0, 5.0], [2.0, -3.0], [7.0, 0.0], [4.0, 4.0]])
    conditions = {"a": x1[:, :1], "b": (x1[:, 1], jnp.arange(4))}
    x0 = jnp.array([[0.5, 0.1], [-3.0, 2.0], [9.0, 8.0], [6.0, -6.0]])

    def plan(key, x0, x1):
        return tuple(map(jnp.array, ROWS))

    options = dict(source=lambda key, x1: x0, coupling=plan)
    said = partial(
        training.target_loss, lambda t, x, c: jnp.append(c["a"], c["b"][0]), KEY, **options
    )
    none = partial(training.loss, lambda t, x, *c: jnp.zeros(2), KEY, **options)
    said, none = (jax.jit(f) if compiled else f for f in (said, none))
    assert said((x1, conditions)) == 0
    by_hand = np.mean((np.asarray(x1)[ROWS[1]] - np.asarray(x0)[ROWS[0]]) ** 2)
    for batch in (x1, (x1, conditions)):
        np.testing.assert_allclose(none(batch), by_hand, rtol=1e-12)
    # the null: of conditions that stay behind
    behind = (x1, jax.tree.map(lambda c: c[::-1], conditions))
    assert said(behind) > 1


def test_a_coupling_that_leaves_conditions_behind_is_refused():
    """Permuted noise is well, also by a compiled coupling; permuted data is not."""
    x1, labels = jax.random.normal(KEY, (6, 2)), jnp.arange(6)

    def said(coupling, network=lambda t, x, c: x * c):
        return training.loss(network, KEY, (x1, labels), coupling=coupling)

    plain = said(training.optimal_pairs)
    np.testing.assert_array_equal(said(jax.jit(training.optimal_pairs)), plain)
    assert said(lambda key, x0, x1: (x0[::-1], x1)) != said(None)
    for moved in (
        lambda key, x0, x1: (x0, x1[::-1]),
        lambda key, x0, x1: jax.random.permutation(key, jnp.stack([x0, x1], 1)).swapaxes(0, 1),
        jax.jit(lambda key, x0, x1: (x0[::-1], jnp.sort(x1, 0))),
    ):
        with pytest.raises(ValueError, match=r"coupling must .*return the rows \(i, j\)"):
            said(lambda *a, moved=moved: tuple(moved(*a)))
        batch = x1  # without conditions there is nothing to mix up
        training.loss(lambda t, x: x, KEY, batch, coupling=lambda *a, moved=moved: tuple(moved(*a)))


@pytest.mark.parametrize(
    ("paired", "message"),
    [
        (lambda x0, x1: x0, r"\(i, j\) that make them, got an array of shape \(5, 2\)"),
        (lambda x0, x1: (x0, x1, x1), r"got \(an array of shape \(5, 2\), an array"),
        (lambda x0, x1: None, "got NoneType"),
        (lambda x0, x1: (x0[:3], x1), r"in their shapes \(\(5, 2\), \(5, 2\)\), got \(3, 2\)"),
        (lambda x0, x1: (jnp.arange(4), jnp.arange(4)), r"for each of 5 pairs, got .*\(4,\)"),
        (lambda x0, x1: (jnp.arange(5), x1), r"in their shapes .*got \(5,\)"),
    ],
)
def test_a_coupling_that_returns_anything_else_is_refused(paired, message):
    with pytest.raises(ValueError, match=f"coupling must return .*{message}"):
        training.loss(lambda t, x: x, KEY, jnp.ones((5, 2)), coupling=lambda key, *xs: paired(*xs))


def test_a_row_that_is_not_there_stops_the_training():
    """It would be the last row, in silence."""
    with pytest.raises(FloatingPointError, match="at step 0"):
        fit(
            mlp(), np.ones((5, 1)), KEY, steps=1, batch=5,
            coupling=lambda key, x0, x1: (jnp.arange(5), jnp.arange(1, 6)),
        )  # fmt: skip


PAIR = np.ones((6, 1)), np.zeros(6, int)
WRONG_PARTS = [
    ({"optimizer": 1e-3}, r"optimizer must be .*adamw\(1e-3\).* got 0.001"),
    ({"optimizer": "adam"}, "optimizer must be .*'adam'"),
    ({"optimizer": optax.adam}, "optimizer must be .*function adam"),
    ({"objective": "loss"}, r"objective must be a function \(network, key, batch\).*'loss'"),
    ({"coupling": "ot"}, "coupling must be a function .*optimal_pairs, got 'ot'"),
    (
        {"data": PAIR, "objective": training.cross_entropy, "coupling": training.optimal_pairs},
        "the objective cross_entropy takes none",
    ),
    ({"key": 0}, "key must be one key from jax.random.key, got 0"),
    ({"key": None}, "key must be one key from jax.random.key, got None"),
    ({"key": jax.random.split(KEY, 3)}, r"key must be one key, got keys of shape \(3,\)"),
    ({"data": PAIR, "conditions": PAIR[1]}, "conditions belong to one array of data, .*a tuple of"),
    ({"conditions": [1, 2, 3]}, r"one row for each of 6 samples, got \['a list'\]; np.stack"),
    ({"conditions": np.ones(5)}, r"one row for each of 6 samples, got \[\(5,\)\]"),
    ({"conditions": {"a": np.ones(6), "b": 1.0}}, r"got \[\(6,\), \(\)\]"),
    ({"conditions": ()}, r"one row for each of 6 samples, got \[\]"),
    (
        {"conditions": np.ones((6, 2))},
        r"condition must be none, as the network was built, got an array of shape \(2,\)",
    ),
    ({"data": {"x": PAIR[0]}}, r"data of a flow must be one array \[n, \.\.\.\].* got dict"),
    ({"data": PAIR[0], "objective": training.cross_entropy}, r"must be \(images, labels\).*\(3, 1"),
    ({"data": (*PAIR, PAIR[1]), "objective": training.binary_cross_entropy}, "two arrays, got"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_PARTS)
def test_what_cannot_play_its_part_in_a_fit_is_refused(options, message, unchecked, tmp_path):
    options = {"data": PAIR[0], "key": KEY, "steps": 1, "batch": 3, **options}
    with pytest.raises(ValueError, match=message):
        fit(mlp(), options.pop("data"), options.pop("key"), **options, checkpoints=tmp_path / "run")
    assert not [*tmp_path.iterdir()]


def test_networks_and_sources_of_other_shapes_are_refused(unchecked):
    """They would broadcast: the null is what each loss said before, a number."""
    x, labels = jnp.ones((3, 3)), jnp.arange(3)
    for network, batch, message in (
        (lambda t, x: x[:1], x, r"network must return one sample's shape \(3,\), got \(1,\)"),
        (lambda t, x: x[0], x, r"one sample's shape \(3,\), got \(\)"),
        (lambda t, x: x, (x, labels), r"network must take \(t, x, condition\), as conditions are"),
        (lambda t, x, c: x, x, r"network must take \(t, x\), as no conditions are given"),
        (lambda x: x, x, r"network must take \(t, x\)"),
    ):
        for objective in (training.loss, training.target_loss, training.target_velocity_loss):
            with pytest.raises(ValueError, match=message):
                objective(network, KEY, batch)
    with pytest.raises(ValueError, match=r"source must return x0 in the shape of x1 \(3, 3\)"):
        training.loss(lambda t, x: x, KEY, x, source=lambda key, x1: jnp.ones(3))
    with pytest.raises(ValueError, match=r"labels must have the shape .*\(3, 1\), got \(3,\)"):
        training.binary_cross_entropy(lambda x: x[:1], KEY, (x, labels))
    for wrong in (labels + 0.5, labels[:, None], labels[:2]):
        with pytest.raises(ValueError, match="labels must be one integer for each of 3 samples"):
            training.cross_entropy(lambda x: x, KEY, (x, wrong))
    module = jax.tree_util.Partial(lambda w, t, x: w * x, jnp.ones(()))
    with pytest.raises(ValueError, match=r"network must take \(t, x, condition\).*Partial"):
        fit(module, np.ones((3, 1)), KEY, steps=1, conditions=np.ones(3))


def test_a_network_that_takes_the_time_last_is_refused_and_trained_by_its_adapter():
    """Its shapes broadcast, so that only the names tell; the adapter trains what is inside as the
    network would be trained with its arguments in order, bit for bit."""

    class Late(nnx.Module):
        def __init__(self):
            self.inner = mlp()

        def __call__(self, x, t):
            return self.inner(t, x)

    network, data = Late(), np.linspace(-1, 2, 24, dtype=np.float32)[:, None]
    for objective in (training.loss, training.target_loss):
        with pytest.raises(ValueError, match=r"time first, got parameters \(x, t\).*time_last"):
            fit(network, data, KEY, steps=1, batch=8, objective=objective)
    late = fit(adapters.time_last(network), data, KEY, steps=3, batch=8)
    plain = fit(network.inner, data, KEY, steps=3, batch=8)
    np.testing.assert_array_equal(late.losses, plain.losses)
    assert plain.losses[0] != plain.losses[2]


def test_networks_of_other_libraries_come_back_as_what_they_were():
    data = np.random.default_rng(0).standard_normal((50, 1))
    network = Perceptron(2)
    first = jax.tree.leaves(eqx.filter(network, eqx.is_array))
    dense = linen.Dense(1)
    variables = dense.init(KEY, jnp.ones(2))

    def apply(variables, t, x):
        return dense.apply(variables, jnp.append(x, t))

    for given in (network, jax.tree_util.Partial(apply, variables)):
        options = dict(steps=100, batch=50, optimizer=training.adamw(0.02), ema=0.5)
        trained = fit(given, data, KEY, **options).network
        assert type(trained) is type(given)
        before, after = (training.loss(n, KEY, jnp.tile(data, (40, 1))) for n in (given, trained))
        assert after < before - 0.1
    # what was given is as it was
    for leaf, before in zip(jax.tree.leaves(eqx.filter(network, eqx.is_array)), first, strict=True):
        np.testing.assert_array_equal(leaf, before)


def test_what_is_no_network_is_refused(unchecked):
    with pytest.raises(ValueError, match=r"network must be a flax nnx\.Module, or .* got function"):
        fit(lambda t, x: x, np.ones((3, 1)), KEY, steps=1)
    dropping = eqx.nn.Sequential([eqx.nn.Linear(1, 1, key=KEY), eqx.nn.Dropout()])
    with pytest.raises(ValueError, match=r"Dropout in training mode .*inference_mode"):
        fit(dropping, np.ones((3, 1)), KEY, steps=1)


# ---------------------------------------------------------------------------------------- files


def test_any_network_is_saved_and_loaded(tmp_path):
    dense = linen.Dense(2)
    makers = {
        "nnx": lambda seed: networks.MLP(2, 8, 1, rngs=nnx.Rngs(seed)),
        "equinox": lambda seed: eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(seed)),
        "linen": lambda seed: jax.tree_util.Partial(
            dense.apply, dense.init(jax.random.key(seed), jnp.ones(3))
        ),
    }
    inputs = {"nnx": (0.3, jnp.ones(2)), "equinox": (jnp.ones(3),), "linen": (jnp.ones(3),)}
    for name, make in makers.items():
        path, network, other = tmp_path / f"{name}.safetensors", make(0), make(1)
        training.save(path, network, width=8, note="a note")
        assert training.saved_facts(path) == {"width": 8, "note": "a note"}
        loaded = training.load(path, other)
        np.testing.assert_array_equal(loaded(*inputs[name]), network(*inputs[name]))
        assert np.abs(other(*inputs[name]) - network(*inputs[name])).max() > 1e-3  # left as it was


def test_files_that_are_another_networks(tmp_path):
    path = tmp_path / "network"
    training.save(path, networks.MLP(2, 8, 1, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"built as the one in .*shape \(8,\), not \(4,\)"):
        training.load(path, networks.MLP(2, 4, 1, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="must be a MLP, as was saved, got a Linear"):
        training.load(path, nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(OSError, match="is damaged"):
        training.load(path, networks.MLP(2, 8, 1, rngs=nnx.Rngs(0)))
    path.write_bytes(b"something else")
    for read in (training.saved_facts, lambda p: training.load(p, mlp())):
        with pytest.raises(OSError, match="no file that save wrote"):
            read(path)
    with pytest.raises(ValueError, match="facts must be what JSON can hold"):
        training.save(path, mlp(), thing=object())
    with pytest.raises(ValueError, match="must have arrays"):
        training.save(path, lambda x: x)
    assert path.read_bytes() == b"something else"
