"""Velocities of other conventions against the closed forms: diffusion's by the law of its own noisy
point, from which score, noise and clean data follow without the change of variables."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdelta
from cdelta import Gaussian, adapters, dependence, gaussian, jacobian, mixture
from cdelta.flow import _program
from tests import laws

D = 3
NOISE = Gaussian.standard(D)
GAUSS = laws.gaussian(jax.random.key(1), D)
MIXTURE = laws.mixture(jax.random.key(2), D)
X = jnp.array([0.7, -1.1, 0.4])
TIMES = (0.02, 0.1, 0.35, 0.5, 0.8, 0.95, 0.985)
BARS = jnp.cumprod(1 - jnp.linspace(1e-4, 0.02, 1000))


def exact(law):
    """The velocity of the straight paths, in closed form."""
    if isinstance(law, Gaussian):
        return lambda t, x: gaussian.velocity(t, x, NOISE, law)
    return lambda t, x: mixture.velocity(t, x, NOISE, law)


def expected(law, alpha, sigma, x):
    """E[ε], E[x0] given α x0 + σ ε = x, and the score: by NumPy, which nothing has to compile."""
    parts = [np.asarray(leaf) for leaf in jax.tree.leaves(law)]
    one = isinstance(law, Gaussian)
    weights, means, covs = (np.ones(1), *(p[None] for p in parts)) if one else parts

    def of(alpha, sigma, x):
        spread = alpha**2 * covs + sigma**2 * np.eye(D)
        pulls = np.linalg.solve(spread, (alpha * means - x)[..., None])[..., 0]
        logs = np.log(weights) - np.linalg.slogdet(spread)[1] / 2
        logs += ((x - alpha * means) * pulls).sum(1) / 2
        shares = np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()
        clean = means - alpha * np.einsum("kij,kj->ki", covs, pulls)
        return np.stack([-sigma * shares @ pulls, shares @ clean, shares @ pulls])

    like = jax.ShapeDtypeStruct((3, *x.shape), x.dtype)
    return jax.pure_callback(of, like, alpha, sigma, x, vmap_method="sequential")


def expected_of_one(law, alpha, sigma, x):
    """The same of one Gaussian, which jax can differentiate."""
    pull = jnp.linalg.solve(alpha**2 * law.cov + sigma**2 * jnp.eye(D), alpha * law.mean - x)
    return -sigma * pull, law.mean - alpha * law.cov @ pull, pull


EXACT = {law: jax.jit(jax.vmap(exact(law), (0, None))) for law in (GAUSS, MIXTURE)}


def vp(s):
    alpha = jnp.exp(-0.5 * (0.1 * s + 0.5 * 19.9 * s**2))
    return alpha, jnp.sqrt(1 - alpha**2)


def ve(s):
    return jnp.ones_like(s), 0.01 * 5000.0**s


def ddpm(k):
    # between the steps as the schedule says: log(α/σ) is linear in k
    ratio = jnp.interp(k, jnp.arange(1000.0), 0.5 * jnp.log(BARS / (1 - BARS)))
    return jnp.sqrt(jax.nn.sigmoid(2 * ratio)), jnp.sqrt(jax.nn.sigmoid(-2 * ratio))


def cosine(s):
    return jnp.cos(jnp.pi * s / 2), jnp.sin(jnp.pi * s / 2)


def backwards(s):  # noise at s = 2, data at s = 5
    return (s - 2) / 3, (5 - s) ** 2 / 9


SCHEDULES = {
    "rectified": (adapters.rectified(), lambda s: (1 - s, s)),
    "variance preserving": (adapters.variance_preserving(), vp),
    "variance exploding": (adapters.variance_exploding(), ve),
    "edm": (adapters.edm(1e-3, 200.0), lambda s: (jnp.ones_like(s), s)),
    "ddpm": (BARS, ddpm),
    "cosine, by its functions": (tuple(lambda s, i=i: cosine(s)[i] for i in (0, 1)), cosine),
    "vp, by its functions": (tuple(lambda s, i=i: vp(s)[i] for i in (0, 1)), vp),
    "a span backwards": (
        adapters.continuous(*(lambda s, i=i: backwards(s)[i] for i in (0, 1)), span=(2.0, 5.0)),
        backwards,
    ),
}


KINDS = ("epsilon", "x0", "score", "v_prediction")


def model(kind, law, levels, expected=expected):
    """What a diffusion model of this kind would predict, of its own time and point."""

    def predict(s, x):
        alpha, sigma = levels(s)
        noise, clean, slope = expected(law, alpha, sigma, x)
        return (noise, clean, slope, alpha * noise - sigma * clean)[KINDS.index(kind)]

    return predict


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_diffusion_model_is_the_velocity_of_its_data(name):
    schedule, levels = SCHEDULES[name]
    times = jnp.array(TIMES)
    for law in (GAUSS, MIXTURE):
        velocities = [
            getattr(adapters, f"from_{kind}")(model(kind, law, levels), schedule) for kind in KINDS
        ]
        program = jax.jit(jax.vmap(lambda t, vs=velocities: [v(t, X) for v in vs]))
        for kind, found in zip(KINDS, program(times), strict=True):
            np.testing.assert_allclose(
                found, EXACT[law](times, X), rtol=0, atol=1e-10, err_msg=kind
            )


def test_a_denoiser_is_the_velocity_of_its_data():
    def denoiser(x, sigma):  # by its names, x first
        return expected(MIXTURE, jnp.ones_like(sigma), sigma, x)[1]

    times = jnp.array(TIMES)
    for model in (denoiser, lambda sigma, x: denoiser(x, sigma), lambda a, b: denoiser(b, a)):
        v = jax.jit(jax.vmap(adapters.from_denoiser(model), (0, None)))
        np.testing.assert_allclose(v(times, X), EXACT[MIXTURE](times, X), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_beyond_the_levels_of_the_schedule_the_velocity_keeps_its_value(kind):
    make = getattr(adapters, f"from_{kind}")
    for name in ("rectified", "ddpm"):
        schedule, levels = SCHEDULES[name]
        v = make(model(kind, MIXTURE, levels), schedule)
        first, last = float(v.first), float(v.last)
        times = jnp.array([0.0, first / 2, first, last, (1 + last) / 2, 1.0])
        found, want = jax.jit(jax.vmap(v, (0, None)))(times, X), EXACT[MIXTURE](times, X)
        np.testing.assert_allclose(found, found[jnp.array([2, 2, 2, 3, 3, 3])], rtol=1e-12)
        np.testing.assert_allclose(found[2:4], want[2:4], rtol=0, atol=1e-9)
        # an error of the first order in what is left out; none at an end that is there
        for end, left in ((0, first), (5, 1 - last)):
            assert np.abs(found[end] - want[end]).max() <= 20 * left + 1e-9


def test_limits_of_the_usual_schedules():
    assert adapters.variance_preserving().first == pytest.approx(0.00652, abs=1e-5)
    assert adapters.edm().first == pytest.approx(1 / 81)
    assert adapters.edm().last == pytest.approx(1 / 1.002)
    assert adapters.variance_exploding().first == pytest.approx(1 / 51)
    assert adapters.variance_exploding().last == pytest.approx(1 / 1.01)
    # of a denoiser EDM's levels; elsewhere a thousandth of time at the end that is 0/0
    denoised = adapters.from_denoiser(lambda sigma, x: x)
    assert [float(denoised.first), float(denoised.last)] == pytest.approx([1 / 81, 1 / 1.002])
    for kind, ends in (
        ("epsilon", (0.001, 1)),
        ("score", (0.001, 1)),
        ("x0", (0, 0.999)),
        ("v_prediction", (0, 1)),
    ):
        v = getattr(adapters, f"from_{kind}")(lambda s, x: x, adapters.rectified())
        assert (float(v.first), float(v.last)) == pytest.approx(ends)
    steps = adapters.ddpm(BARS)
    assert steps.first == pytest.approx(0.0063, abs=1e-4)
    assert steps.last == pytest.approx(0.990, abs=1e-3)


def test_steps_of_a_discrete_schedule():
    noise = np.sqrt((1 - BARS) / BARS)
    schedule, nearest = adapters.ddpm(BARS), adapters.ddpm(BARS, nearest=True)
    for k in (0, 17, 500, 999):
        t = jnp.asarray(1 / (1 + noise[k]))
        assert schedule.time(t) == pytest.approx(k, abs=1e-6)
        assert nearest.time(t) == k
    between = jnp.asarray(1 / (1 + np.sqrt(noise[500] * noise[501])))  # halfway in log σ/α
    assert schedule.time(between) == pytest.approx(500.5, abs=1e-6)
    assert float(nearest.time(between)) in (500.0, 501.0)
    assert float(schedule.scale(between)) == pytest.approx(
        np.sqrt(1 / (1 + noise[500] * noise[501])) * (1 + np.sqrt(noise[500] * noise[501]))
    )

    def table(k, x):  # whole steps only
        noise = expected(MIXTURE, *ddpm(jnp.round(k)), x)[0]
        return jnp.where(k == jnp.round(k), noise, jnp.nan)

    v = jax.jit(jax.vmap(adapters.from_epsilon(table, nearest), (0, None)))
    times = jnp.array([*TIMES, 1 / (1 + noise[300])])
    off = np.abs(v(times, X) - EXACT[MIXTURE](times, X)).max(1)
    assert (off[:-1] > 0).all() and (off[:-1] < 0.02).all() and off[-1] < 1e-10


def test_the_time_of_a_schedule_is_differentiated():
    schedule = SCHEDULES["cosine, by its functions"][0]
    v = adapters.from_epsilon(model("epsilon", GAUSS, cosine, expected_of_one), schedule)
    found = jax.jvp(lambda t: v(t, X), (0.4,), (1.0,))[1]
    want = jax.jvp(lambda t: exact(GAUSS)(t, X), (0.4,), (1.0,))[1]
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype, bound", [(jnp.float32, 1e-5), (jnp.bfloat16, 0.1)])
def test_single_and_half_precision(dtype, bound):
    def epsilon(s, x):
        assert s.dtype == jnp.float32 and x.dtype == dtype
        alpha, sigma = cosine(s)
        law = jax.tree.map(lambda leaf: leaf.astype(s.dtype), GAUSS)
        spread = alpha**2 * law.cov + sigma**2 * jnp.eye(D, dtype=s.dtype)
        return -sigma * jnp.linalg.solve(spread, alpha * law.mean - x.astype(s.dtype))

    v = adapters.from_epsilon(epsilon, SCHEDULES["cosine, by its functions"][0])
    out = v(jnp.asarray(0.5, dtype), X.astype(dtype))
    assert out.dtype == dtype
    assert np.abs(np.asarray(out, float) - exact(GAUSS)(0.5, X)).max() < bound


def test_a_schedule_may_end_a_rounding_below_zero():
    """cos(π/2) is -4e-8 in single precision, jax's default: a schedule like any other."""

    def alpha(s):
        return jnp.cos(jnp.pi * s / 2)

    def sigma(s):
        return jnp.sin(jnp.pi * s / 2)

    with jax.enable_x64(False):
        assert alpha(jnp.asarray(1.0)) < 0
        schedule = adapters.continuous(alpha, sigma)
        assert (float(schedule.first), float(schedule.last)) == (0.0, 1.0)
        for kind in KINDS:
            predict = model(kind, GAUSS, lambda s: (alpha(s), sigma(s)), expected_of_one)
            v = getattr(adapters, f"from_{kind}")(predict, schedule)
            times, x = jnp.asarray([0.1, 0.3, 0.7, 0.95]), jnp.asarray(X, jnp.float32)
            found, slope = jax.vmap(
                lambda t, v=v, x=x: jax.jvp(lambda t: v(t, x), (t,), (jnp.ones_like(t),))
            )(times)
            right, rise = jax.vmap(
                lambda t, x=x: jax.jvp(lambda t: exact(GAUSS)(t, x), (t,), (jnp.ones_like(t),))
            )(times)
            np.testing.assert_allclose(found, right, rtol=0, atol=1e-5, err_msg=kind)
            np.testing.assert_allclose(slope, rise, rtol=0, atol=1e-3, err_msg=kind)
        with pytest.raises(ValueError, match=r"alpha must be .* not neg"):
            adapters.continuous(lambda s: alpha(s) - 1e-5, sigma)


def test_a_flow_of_a_diffusion_model_makes_its_data():
    """Trajectories are those of the closed form, and their Jacobians, both ways."""
    v = adapters.from_x0(
        model("x0", GAUSS, lambda s: (1 - s, s), expected_of_one), adapters.rectified()
    )
    flow, want = cdelta.Flow(v, "rk4", 20), cdelta.Flow(exact(GAUSS), "rk4", 20)
    np.testing.assert_allclose(flow(X), want(X), atol=2e-5)
    np.testing.assert_allclose(jacobian.rows(flow, X), jacobian.rows(want, X), atol=2e-5)
    probe = jnp.array([1.0, 0.5, -0.3])
    np.testing.assert_allclose(
        jacobian.jvp(flow, X, probe), jacobian.rows(flow, X) @ probe, rtol=0, atol=1e-12
    )
    found = dependence.wiggle_moment(flow, jax.random.key(0), (D,), 4)
    np.testing.assert_allclose(found.matrix, GAUSS.cov, atol=1e-4)


@pytest.mark.parametrize("bars, message", [
    (1 - BARS, "must fall strictly"),
    (jnp.linspace(1e-4, 0.02, 10), r"jnp.cumprod\(1 - beta\)"),
    (jnp.array([0.9, 0.5, 0.6]), "0.5, 0.6 at step 2"),
    (jnp.array([1.0, 0.5]), r"inside \(0, 1\)"),
    (jnp.array([0.5, 0.0]), r"inside \(0, 1\)"),
    (jnp.ones((2, 2)), "vector of steps"),
])  # fmt: skip
def test_discrete_schedules_that_are_none(unchecked, bars, message):
    with pytest.raises(ValueError, match=message):
        adapters.from_epsilon(lambda s, x: x, bars)


def test_other_schedules_that_are_none(unchecked):
    def bump(s):
        return 0.1 + s * (0.5 - s) ** 2

    cases = [
        (lambda: adapters.continuous(jnp.cos, bump), "must be monotone"),
        (lambda: adapters.continuous(jnp.cos, jnp.sin, (0.0, 3.0)), "alpha must be .* not neg"),
        (lambda: adapters.continuous(jnp.zeros_like, lambda s: s), "both be zero"),
        (lambda: adapters.continuous(jnp.cos, jnp.sin, (1.0, 1.0)), "two different numbers"),
        (lambda: adapters.continuous(np.cos, jnp.sin), "alpha must be .* such as jnp.cos"),
        (lambda: adapters.continuous(jnp.cos, math.sin), "sigma must be .* such as jnp.cos"),
        (lambda: adapters.continuous(lambda s: jnp.ones(3), jnp.sin), r"scalar, got shape \(3,\)"),
        (lambda: adapters.edm(2.0, 1.0), "0 < sigma_min < sigma_max"),
        (lambda: adapters.variance_exploding(0.0, 1.0), "0 < sigma_min < sigma_max"),
        (lambda: adapters.variance_preserving(0.0, 1.0), "must be positive"),
        (lambda: adapters.Schedule(jnp.sin, jnp.cos, 0.5, 0.2), "0 <= first < last <= 1"),
        (lambda: adapters.from_x0(jnp.add, adapters.edm(), last=1.5), "first < last"),
        (lambda: adapters.from_x0(jnp.add, "cosine"), "schedule must be"),
        (lambda: adapters.from_x0(3, adapters.edm()), "model must be a function"),
    ]
    for make, message in cases:
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(ValueError, match="traced"):
        jax.jit(lambda b: adapters.ddpm(b).first)(BARS)


def test_a_prediction_of_another_shape_is_refused(unchecked):
    v = adapters.from_epsilon(lambda s, x: jnp.concatenate([x, x]), adapters.edm())
    with pytest.raises(ValueError, match=r"x's shape \(3,\), got \(6,\).*keep the first half"):
        v(0.5, X)
    with pytest.raises(ValueError, match="t must be a scalar"):
        v(jnp.array([0.5]), X)


# ------------------------------------------------------------------------------------- conventions


def plain(t, x):
    return jnp.sin(3 * t + x) - 0.5 * jnp.roll(x, 1) * x


class Columns(eqx.Module):
    """A batch's network as many are written: the time is one more column."""

    weight: jax.Array

    def __call__(self, t, x):
        return jnp.concatenate([x, t], axis=1) @ self.weight


def test_a_batch_axis_with_a_time_of_any_shape():
    def one_for_each(t, x):
        return jax.vmap(plain)(t, x)

    def one_for_all(t, x):
        assert t.shape == ()
        return jax.vmap(plain, (None, 0))(t, x)

    for v in (one_for_each, one_for_all, jax.jit(one_for_each)):
        np.testing.assert_allclose(adapters.batched(v)(0.3, X), plain(0.3, X))
    weight = jax.random.normal(jax.random.key(0), (4, 3))
    column = adapters.batched(Columns(weight))
    np.testing.assert_allclose(column(0.3, X), jnp.append(X, 0.3) @ weight)
    # batched again by vmap, and solved
    xs = jax.random.normal(jax.random.key(1), (5, 3))
    flow = cdelta.Flow(adapters.batched(one_for_each), "rk4", 8)
    np.testing.assert_allclose(
        jax.vmap(flow)(xs), jax.vmap(cdelta.Flow(plain, "rk4", 8))(xs), rtol=1e-12
    )


def test_a_velocity_that_takes_no_batch_says_how_each_time_failed(unchecked):
    with pytest.raises(ValueError, match=r"t \[1\]: .*; t \[\]: .*; t \[1, 1\].*time_last"):
        adapters.batched(lambda t, x: x[:, 0] @ jnp.ones(7))(0.3, X)
    with pytest.raises(ValueError, match=r"it returned \(3,\)"):
        adapters.batched(lambda t, x: x[0])(0.3, X)
    with pytest.raises(ValueError, match="v must be a function, got int"):
        adapters.batched(3)


def shrinking(t, x):
    return -x * (1 + t)


WRAPPED = {
    "batched": adapters.batched,
    "reversed_time": adapters.reversed_time,
    "labelled": lambda v: adapters.labelled(v, 1.0),
    "nchw": adapters.nchw,
    "nhwc": adapters.nhwc,
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize(
    "swapped",
    [
        lambda x, t, label=0: shrinking(t, x),
        jax.jit(lambda x_t, sigma, label=0: shrinking(sigma, x_t)),
        jax.vmap(lambda state, time: shrinking(time, state)),
        functools.partial(lambda rate, x, t, label=0: shrinking(t, x), 1.0),
    ],
)
def test_an_adapter_refuses_what_a_flow_refuses(unchecked, name, swapped):
    """Shapes broadcast: (x, t) = (t, x) of a batch of one gave -t (1 + x) in silence."""
    message = rf"time first, got parameters \(\w+, \w+\): pass {name}\(time_last\(v\)\)$"
    with pytest.raises(ValueError, match=message):
        WRAPPED[name](swapped)
    x = jnp.array([[0.7, -1.1], [0.2, 1.0]])
    right = WRAPPED[name](adapters.time_last(lambda x, t, label=0: shrinking(t, x)))
    sign, t = (-1, 0.75) if name == "reversed_time" else (1, 0.25)
    np.testing.assert_allclose(right(t, x), sign * shrinking(0.25, x), rtol=1e-12)
    flow = cdelta.Flow(right, "rk4", 32)(x)
    np.testing.assert_allclose(flow, x * np.exp(-sign * 1.5), rtol=1e-6)


def test_time_last_refuses_a_function_of_the_time_first(unchecked):
    for v in (shrinking, adapters.batched(shrinking), adapters.time_last(lambda x, t: -x * t)):
        with pytest.raises(
            ValueError, match=r"time last, got parameters \(t, x\): leave time_last"
        ):
            adapters.time_last(v)
    with pytest.raises(
        ValueError, match=r"time first, .*\(x, label, t\): pass a function \(t, x, …"
    ):
        adapters.batched(lambda x, label, t: x)


def test_names_that_tell_nothing_are_taken_and_a_model_of_diffusion_turns_round():
    for v in (lambda y, s: -s, lambda a, b: -b, lambda x, tau: -tau, lambda *both: -both[1]):
        np.testing.assert_array_equal(adapters.batched(v)(0.5, X), -X)
    one = adapters.from_denoiser(lambda y, s: y / (1 + s**2))
    other = adapters.from_denoiser(lambda s, y: y / (1 + s**2))
    np.testing.assert_array_equal(one(0.3, X), other(0.3, X))
    with pytest.raises(ValueError, match="time first"):
        adapters.from_denoiser(adapters.batched(lambda x, sigma: x / (1 + sigma**2)))


def test_conventions_nest():
    """(x, t, label) of batches with channels first, noise at t = 1."""

    def theirs(x, t, label):
        assert x.shape == (1, 2, 4, 5) and t.shape == (1,) and label.shape == (1,)
        time = (1 - t)[:, None, None, None]
        channels = jnp.arange(2.0)[:, None, None]
        return -(x * channels + time * x**2 + label[:, None, None, None])

    x = jax.random.normal(jax.random.key(0), (4, 5, 2))
    v = adapters.reversed_time(adapters.nchw(adapters.batched(adapters.time_last(theirs))))
    want = x * jnp.arange(2.0) + 0.3 * x**2 + 7
    np.testing.assert_allclose(adapters.labelled(v, 7)(0.3, x), want, rtol=1e-12)
    assert cdelta.Flow(adapters.labelled(v, 7), steps=2)(x).shape == x.shape


def test_images_of_one_channel_and_back():
    def first(t, x):
        assert x.shape == (1, 4, 5)
        return x * jnp.arange(5.0)

    def last(t, x):
        assert x.shape[-1] in (1, 3)
        return x * jnp.arange(5.0)[:, None]

    image = jax.random.normal(jax.random.key(0), (4, 5))
    want = image * jnp.arange(5.0)
    np.testing.assert_allclose(adapters.nchw(first)(0.0, image), want)
    np.testing.assert_allclose(adapters.nhwc(last)(0.0, image), want)
    three = jnp.stack([image] * 3)
    np.testing.assert_allclose(adapters.nhwc(last)(0.0, three), jnp.stack([want] * 3))


def test_images_of_other_shapes_are_refused(unchecked):
    with pytest.raises(ValueError, match=r"one image.*nchw\(batched\(v\)\)"):
        adapters.nchw(lambda t, x: x)(0.0, jnp.ones((1, 2, 3, 4)))
    with pytest.raises(ValueError, match="must return an image of the shape"):
        adapters.nhwc(lambda t, x: x[0])(0.0, jnp.ones((1, 2, 3)))


def test_time_reversed_goes_the_other_way():
    """The flow of the reversed velocity is the inverse flow."""
    flow = cdelta.Flow(adapters.reversed_time(plain), "rk4", 50)
    np.testing.assert_allclose(flow(X), cdelta.Flow(plain, "rk4", 50).inverse(X), rtol=1e-12)
    # noise at s = 1, as in most rectified flows: they learn ε - x0
    theirs = functools.partial(lambda s, x: -exact(GAUSS)(1 - s, x))
    np.testing.assert_allclose(adapters.reversed_time(theirs)(0.3, X), exact(GAUSS)(0.3, X))


def test_a_label_is_traced():
    table = jax.random.normal(jax.random.key(0), (5, 3))
    traces = []

    def v(t, x, label):
        return jnp.tanh(x + table[label])

    def features(flow, x0):
        return flow(x0)[:2]

    flows = [cdelta.Flow(adapters.labelled(v, k), "euler", 3) for k in range(4)]
    outs = []
    for flow in flows:
        outs.append(flow(X))
        traces.append(_program.cache_info().misses)
    assert len(set(traces)) == 1
    assert np.ptp(np.stack(outs), axis=0).min() > 1e-3
    program = jax.jit(lambda flow: flow(X))
    for flow, out in zip(flows, outs, strict=True):
        np.testing.assert_allclose(program(flow), out, rtol=1e-12)
    assert program._cache_size() == 1
    for flow in flows[:2]:
        f = jax.tree_util.Partial(features, flow)
        dependence.wiggle_moment(f, jax.random.key(0), (3,), 4)
    # all labels at once
    several = jax.vmap(lambda k: adapters.labelled(v, k)(0.5, X))(jnp.arange(4))
    np.testing.assert_allclose(several, jnp.tanh(X + table[:4]), rtol=1e-12)


def test_guidance():
    def v(t, x, label):
        return x + label

    for g, want in ((0.0, X + 9), (1.0, X + 2), (3.0, X + 9 + 3 * (2 - 9))):
        np.testing.assert_allclose(adapters.labelled(v, 2, guidance=g, null=9)(0.1, X), want)
    tree = adapters.labelled(lambda t, x, c: x * c["a"] + c["b"], {"a": 2.0, "b": X})
    np.testing.assert_allclose(tree(0.1, X), 3 * X)


def test_labels_that_are_none(unchecked):
    def v(t, x, label):
        return x

    with pytest.raises(ValueError, match=r"label must hold numbers .*embedding"):
        adapters.labelled(v, "a cat")
    with pytest.raises(ValueError, match="guidance needs both"):
        adapters.labelled(v, 2, guidance=3.0)
    with pytest.raises(ValueError, match="guidance needs both"):
        adapters.labelled(v, 2, null=9)
    with pytest.raises(ValueError, match="null must have the label's shape"):
        adapters.labelled(v, jnp.ones(3), guidance=1.0, null=9)


def test_arrays_of_the_model_are_leaves_and_what_it_reads_may_change():
    weight = jax.random.normal(jax.random.key(0), (4, 3))
    v = adapters.labelled(lambda t, x, k: x, 3)
    assert len(jax.tree.leaves(v)) == 1
    column = adapters.batched(Columns(weight))
    assert [leaf.shape for leaf in jax.tree.leaves(column)] == [(4, 3)]
    gradient = jax.grad(lambda v: v(0.5, X).sum())(column)
    assert jax.tree.leaves(gradient)[0].shape == (4, 3)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, column)
    np.testing.assert_allclose(doubled(0.3, X), 2 * column(0.3, X))
    converted = adapters.from_epsilon(column, BARS)
    assert any(leaf.shape == (4, 3) for leaf in jax.tree.leaves(converted))
    factor = [1.0]
    flow = cdelta.Flow(adapters.time_last(lambda a, b: factor[0] * a), "euler", 1)
    assert flow(X) == pytest.approx(2 * X)
    factor[0] = 3.0
    assert flow(X) == pytest.approx(4 * X)


# ------------------------------------------------------------------------------ products


MATRIX = jax.random.normal(jax.random.key(8), (2, 3))


def outside(function, like, *arguments):
    """Computed by NumPy, where jax cannot see."""
    shape = jax.ShapeDtypeStruct(like, arguments[0].dtype)
    return jax.pure_callback(function, shape, *arguments, vmap_method="expand_dims")


def hidden(x):
    return outside(lambda x: np.sin(x) @ np.asarray(MATRIX).T, (2,), x)


def forwards(x, d):
    return outside(lambda x, d: (np.cos(x) * d) @ np.asarray(MATRIX).T, (2,), x, d)


def backwards_product(x, c):
    return outside(lambda x, c: np.cos(x) * (np.asarray(c) @ np.asarray(MATRIX)), (3,), x, c)


def seen(x):
    return MATRIX @ jnp.sin(x)


def test_a_map_known_by_its_products_is_differentiated_both_ways():
    f = adapters.from_products(hidden, forwards, backwards_product)
    xs, d = jax.random.normal(jax.random.key(3), (4, 3)), jnp.array([1.0, 2.0, -1.0])
    probes = jnp.eye(3)
    for transform in (
        lambda f: f(X),
        lambda f: jacobian.rows(f, X),
        lambda f: jax.jit(jax.vmap(f))(xs),
        lambda f: jax.jit(jax.vmap(lambda x: jacobian.rows(f, x)))(xs),
        lambda f: jax.jit(jax.vmap(jax.jacfwd(f)))(xs),
        lambda f: jax.jit(jax.vmap(lambda x: jacobian.jvp(f, x, probes)))(xs),
        lambda f: jax.jit(jax.vmap(lambda x: jax.linearize(f, x)[1](d)))(xs),
        lambda f: jax.jit(jax.vmap(lambda d: jax.jvp(f, (X,), (d,))[1]))(probes),
        lambda f: jax.jit(jax.grad(lambda x: (f(jnp.tanh(x)) ** 2).sum()))(X),
    ):
        np.testing.assert_allclose(transform(f), transform(seen), rtol=1e-10, atol=1e-12)
    for method in ("rows", "jvp", "finite_difference"):
        found, want = (
            dependence.wiggle_moment(g, jax.random.key(0), (3,), 50, method=method)
            for g in (f, seen)
        )
        np.testing.assert_allclose(found.matrix, want.matrix, rtol=1e-6)


def test_products_one_way_only():
    f = adapters.from_products(hidden, forwards)
    found = dependence.wiggle_moment(f, jax.random.key(0), (3,), 20, method="jvp")
    want = dependence.wiggle_moment(seen, jax.random.key(0), (3,), 20, method="jvp")
    np.testing.assert_allclose(found.matrix, want.matrix, rtol=1e-10)
    with pytest.raises(ValueError, match=r"no reverse mode.*method='jvp'"):
        jacobian.rows(f, X)
    both = adapters.from_products(hidden, forwards, backwards_product)
    with pytest.raises(ValueError, match="second derivatives"):
        jax.hessian(both)(X)


def test_products_of_nothing(unchecked):
    with pytest.raises(ValueError, match="jvp must be a function"):
        adapters.from_products(hidden, 3)


def test_a_batched_velocity_takes_one_time(unchecked):
    velocity = adapters.batched(lambda t, x: t[:, None] * x)
    with pytest.raises(ValueError, match=r"t must have shape .*; batch with jax.vmap, got \(3,\)"):
        velocity(jnp.ones(3), jnp.ones(2))
