"""Networks against their formulas written out in NumPy, and their derivatives against each
other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cdelta import gaussian, networks
from cdelta.gaussian import Gaussian


def rngs(seed=0):
    return nnx.Rngs(seed)


def filled(make, seed=1, size=0.3):
    """The network with random numbers for weights: some start at zero, which would hide what
    follows them."""
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(nnx.eval_shape(make))
    leaves, tree = jax.tree.flatten(state)
    values = [jnp.asarray(size * rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves]
    network = nnx.merge(graph, jax.tree.unflatten(tree, values))
    for norm in (
        module for _, module in nnx.iter_modules(network) if isinstance(module, nnx.BatchNorm)
    ):
        norm.var[...] = 0.5 + norm.var[...] ** 2
    return network


# ------------------------------------------------------------------------------------------- pieces


def test_time_features():
    width, t = 10, 0.37
    frequencies = [1e4 ** (1 - k / 4) for k in range(5)]
    assert frequencies[0] == 1e4 and frequencies[-1] == 1
    expected = [np.sin(f * t) for f in frequencies] + [np.cos(f * t) for f in frequencies]
    np.testing.assert_allclose(networks.time_features(t, width), expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="width"):
        networks.time_features(t, 7)


class Nothing(nnx.Module):
    """Or a linear function of what it sees, to tell what that is."""

    def __init__(self, shape, weights=None):
        self.shape, self.weights = shape, nnx.data(weights)

    def __call__(self, t, x, condition=None):
        return jnp.zeros_like(x) if self.weights is None else self.weights * x + t


def a_normal_law(N=4000):
    draw = np.random.default_rng(5)
    root, slopes = draw.standard_normal((4, 4)), draw.standard_normal((4, 2))
    seen = draw.standard_normal((N, 2))
    noise = draw.standard_normal((N, 4))
    # so that the samples have these moments exactly
    columns = np.column_stack([np.ones(N), seen])
    noise -= columns @ np.linalg.lstsq(columns, noise, rcond=None)[0]
    noise = noise @ np.linalg.inv(np.linalg.cholesky(noise.T @ noise / N)).T
    x = 1.5 + seen @ slopes.T + noise @ root.T
    return x.reshape(N, 2, 2), seen, slopes, root @ root.T


def test_beside_a_normal_law_whose_velocity_is_known():
    """Without a network's say it is the velocity between two Gaussians, given the condition."""
    x, seen, slopes, cov = a_normal_law()
    known = networks.BesideNormal(Nothing((2, 2)), 2).given(x, seen)
    point, c = jnp.asarray(x[0] + 0.3, jnp.float32), jnp.array([0.7, -1.1], jnp.float32)
    target = Gaussian(1.5 + slopes @ c, cov)
    for t in (0.0, 0.4, 0.9, 1.0):
        exact = gaussian.velocity(t, point.reshape(-1), Gaussian.standard(4), target)
        found = known(t, point, c).reshape(-1)
        np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-3)
        wrong = gaussian.velocity(
            t, point.reshape(-1), Gaussian.standard(4), Gaussian(1.5 - slopes @ c, cov)
        )
        assert t == 1 or np.abs(np.asarray(found - wrong)).max() > 0.1  # at the end v = x for all
    # as built, of N(0, I)
    new = networks.BesideNormal(Nothing((2, 2)), 2)(0.25, point, c)
    np.testing.assert_allclose(new, (2 * 0.25 - 1) / (0.75**2 + 0.25**2) * point, rtol=1e-5)


def test_a_network_beside_a_normal_law_sees_and_answers_in_its_units():
    x, seen, slopes, cov = a_normal_law()
    weights = jnp.array([[0.5, -1.0], [2.0, 0.1]], jnp.float32)
    network = networks.BesideNormal(Nothing((2, 2), weights), 2).given(x, seen)
    known = networks.BesideNormal(Nothing((2, 2)), 2).given(x, seen)
    t, c = 0.6, jnp.array([0.7, -1.1], jnp.float32)
    point = jnp.asarray(x[0] + 0.3, jnp.float32)
    beyond = np.asarray(network(t, point, c) - known(t, point, c)).reshape(-1)

    def power(matrix, exponent):
        sizes, axes = np.linalg.eigh(matrix)
        return (axes * sizes**exponent) @ axes.T

    variance = (1 - t) ** 2 * np.eye(4) + t**2 * cov
    inward = power(variance, -0.5)
    z = inward @ (np.asarray(point, float).reshape(-1) - t * (1.5 + slopes @ np.asarray(c)))
    expected = power(cov, 0.5) @ inward @ (np.asarray(weights).reshape(-1) * z + t)
    np.testing.assert_allclose(beyond, expected, rtol=2e-3, atol=2e-3)


def test_a_direction_without_variance_is_none_of_the_flows_and_the_network_given_stays():
    """As a pixel that is always paper: at t = 1 it would divide by its own variance, 0. It has a
    thousandth of the largest deviation instead."""
    x, seen, *_ = a_normal_law(200)
    x[:, 1, 1] = 0.5
    plain = networks.BesideNormal(Nothing((2, 2)), 2)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(plain)))
    known = plain.given(x, seen)
    point, c = jnp.asarray(x[0], jnp.float32), jnp.asarray(seen[0], jnp.float32)
    for t in (0.0, 0.5, 1.0):
        assert np.isfinite(known(t, point, c)).all()
    sizes = np.sort(np.asarray(known.sizes[...]))
    np.testing.assert_allclose(sizes[0], 1e-6 * sizes[-1], rtol=1e-5)
    after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(plain)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert not np.array_equal(known.mean[...], plain.mean[...])


def test_what_does_not_fit_beside_a_normal_law(unchecked):
    x, seen, *_ = a_normal_law(20)
    network = networks.BesideNormal(Nothing((2, 2)), 2)
    for call, message in (
        (lambda: network.given(x[:, 0], seen), "x and condition must have shapes"),
        (lambda: network.given(x), "x and condition must have shapes"),
        (lambda: network.given(x[:3], seen[:3]), "more than 3 samples, got 3"),
        (lambda: network(0.5, x[0, 0], seen[0]), "x must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_start_as_in_pytorch():
    network = networks.MLP(2, 400, 2, 16, rngs=rngs())
    flax_offset = float(jnp.abs(network.hidden[0].bias[...]).max())
    assert networks.as_pytorch(network, rngs(3)) is network
    for layer in (network.hidden[0], network.hidden[1], network.t_in, network.out):
        bound = 1 / np.sqrt(layer.in_features)
        for values in (layer.kernel[...], layer.bias[...]):
            inside = np.asarray(values, float).ravel() / bound
            assert np.abs(inside).max() <= 1
            # a uniform law's second and fourth moment; a normal law has another fourth
            for power, moment, variance in ((2, 1 / 3, 4 / 45), (4, 1 / 5, 16 / 225)):
                z = (np.mean(inside**power) - moment) / np.sqrt(variance / inside.size)
                assert abs(z) < 4, (layer, power, z)
    assert not np.array_equal(network.hidden[0].kernel[...], network.hidden[1].kernel[...])
    assert flax_offset == 0  # flax's own start would fail the moments of the offsets
    networks.as_pytorch(nnx.Linear(3, 2, use_bias=False, rngs=rngs()), rngs())
    with pytest.raises(ValueError, match="PlainModule has no linear layer"):
        networks.as_pytorch(PlainModule(), rngs())


class PlainModule(nnx.Module):
    pass


def test_patches_are_folded_and_unfolded():
    x = jnp.arange(1 * 6 * 4 * 2.0).reshape(1, 6, 4, 2)
    folded = networks.space_to_depth(x, 2)
    assert folded.shape == (1, 3, 2, 8)
    np.testing.assert_array_equal(folded[0, 1, 1], np.asarray(x)[0, 2:4, 2:4].ravel())
    np.testing.assert_array_equal(networks.depth_to_space(folded, 2), x)


def test_upsample_interpolates_between_corners():
    x = np.random.default_rng(0).normal(size=(1, 3, 5, 2))
    rows = np.apply_along_axis(lambda line: np.interp(np.linspace(0, 2, 6), range(3), line), 1, x)
    both = np.apply_along_axis(
        lambda line: np.interp(np.linspace(0, 4, 10), range(5), line), 2, rows
    )
    np.testing.assert_allclose(networks.upsample(jnp.asarray(x)), both, rtol=0, atol=1e-12)
    one = networks.upsample(jnp.ones((1, 1, 1, 1)))
    np.testing.assert_array_equal(one, np.ones((1, 2, 2, 1)))


@pytest.mark.parametrize(("reduce", "expected"), [(jnp.max, np.max), (jnp.mean, np.mean)])
def test_pool(reduce, expected):
    x = np.random.default_rng(0).normal(size=(1, 5, 4, 3))
    by_hand = [
        [expected(x[0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2], (0, 1)) for j in range(2)]
        for i in range(2)
    ]
    np.testing.assert_allclose(
        networks.pool(jnp.asarray(x), reduce)[0], by_hand, rtol=0, atol=1e-14
    )


def test_attention_is_a_weighted_mean_of_values():
    layer = filled(lambda: networks.Attention(8, rngs=rngs()))
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 8))
    weights = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(layer)))
    flat = x.reshape(6, 8)  # one channel a group: each channel is normalised over the pixels
    h = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-6) * weights["norm"]["scale"] + weights[
        "norm"
    ]["bias"]
    q, k, v = np.split(h @ weights["inward"]["kernel"] + weights["inward"]["bias"], 3, axis=1)
    expected = np.empty_like(flat)
    for i in range(6):
        w = np.exp([q[i] @ k[j] / np.sqrt(8) for j in range(6)])
        expected[i] = (
            flat[i] + (w / w.sum()) @ v @ weights["outward"]["kernel"] + weights["outward"]["bias"]
        )
    np.testing.assert_allclose(layer(jnp.asarray(x)).reshape(6, 8), expected, atol=1e-6)


# ---------------------------------------------------------------------------------------------- MLP


@pytest.mark.parametrize("time", [0, 6])
def test_mlp_is_its_formula(time):
    network = networks.MLP((2, 3), width=5, layers=2, time=time, rngs=rngs())
    w = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(network)))
    x, t = np.random.default_rng(1).normal(size=(2, 3)), 0.3

    def linear(name, h):
        layer = w[name] if isinstance(name, str) else w["hidden"][name]
        return h @ layer["kernel"] + layer["bias"]

    def silu(h):
        return h / (1 + np.exp(-h))

    frequencies = 1e4 ** np.array([1, 0.5, 0])
    features = np.concatenate([np.sin(frequencies * t), np.cos(frequencies * t)])
    h = linear("x_in", x.ravel()) + (
        linear("t_in", features) if time else linear("t_out", silu(linear("t_in", [t])))
    )
    h = silu(linear(1, silu(linear(0, h))))
    np.testing.assert_allclose(network(t, x), linear("out", h).reshape(2, 3), atol=1e-6)


def test_mlp_in_both_precisions():
    network = networks.MLP(2, width=8, rngs=rngs())
    for dtype in (jnp.float32, jnp.float64):
        assert network(jnp.linspace(0, 1, 3)[1], jnp.ones(2, dtype)).dtype == dtype


# --------------------------------------------------------------------------------------------- UNet


def convolution(a, b, side):
    return side * side * a * b + b


def test_paper_unet_has_14_million_parameters():
    # two convolutions with two batch norms, and the projection of the time embedding
    def block(a, b):
        return convolution(a, b, 3) + convolution(b, b, 3) + 2 * 2 * b + (256 * b + b)

    down = block(1, 64) + block(64, 128) + block(128, 256) + block(256, 512) + block(512, 512)
    up = block(512 + 512, 256) + block(256 + 256, 128) + block(128 + 128, 64) + block(64 + 64, 64)
    by_hand = 2 * (256 * 256 + 256) + down + up + convolution(64, 1, 1)
    network = nnx.eval_shape(lambda: networks.UNet.paper((28, 28), rngs=rngs()))
    assert networks.parameter_count(network) == by_hand
    assert round(by_hand / 1e6, 1) == 14.0


TINY = {
    "small": lambda: networks.UNet((8, 8), (4, 8), patch=2, time=8, highest=30.0, rngs=rngs()),
    "odd": lambda: networks.UNet((14, 14), (4, 4, 8), time=8, rngs=rngs()),
    "colour": lambda: networks.UNet((8, 12, 3), (4, 8), patch=2, blocks=2, time=8, rngs=rngs()),
    "plain": lambda: networks.UNet((14, 14), (4, 4, 8), residual=False, time=8, rngs=rngs()),
}


@pytest.mark.parametrize("name", TINY)
def test_unet_shapes_batches_and_derivatives(name):
    network = filled(TINY[name])
    x, dx, dv = np.random.default_rng(0).normal(size=(3, *network.shape))

    @jax.jit
    def products(network, t, x, dx, dv):
        v, jvp = jax.jvp(lambda x: network(t, x), (x,), (dx,))
        (vjp,) = jax.vjp(lambda x: network(t, x), x)[1](dv)
        return v, jvp, vjp

    v, jvp, vjp = products(network, 0.4, x, dx, dv)
    assert v.shape == x.shape and v.dtype == jnp.float64
    size = float(jnp.linalg.norm(jvp) * np.linalg.norm(dv))
    # forward is the transpose of reverse
    assert abs(float(jnp.vdot(dv, jvp) - jnp.vdot(vjp, dx))) < 1e-13 * size
    if name != "plain":  # max pooling has kinks
        ends = [products(network, 0.4, x + step * dx, dx, dv)[0] for step in (1e-5, -1e-5)]
        central = (ends[0] - ends[1]) / 2e-5
        assert float(jnp.linalg.norm(central - jvp) / jnp.linalg.norm(jvp)) < 1e-8
    batch = jax.jit(lambda n, t, x: jax.vmap(n)(t, x))(
        network, jnp.array([0.9, 0.4]), jnp.stack([dx, x])
    )
    np.testing.assert_allclose(batch[1], v, rtol=0, atol=1e-12 * float(jnp.abs(v).max()))


def test_unet_sees_time_and_the_whole_image():
    network = filled(TINY["small"])
    x = np.random.default_rng(0).normal(size=(8, 8))
    early, late = (jax.jit(network.__call__)(t, x) for t in (0.1, 0.2))
    assert float(jnp.abs(early - late).max()) > 1e-3
    jacobian = jax.jit(jax.jacfwd(lambda x: network(0.5, x)))(x)
    assert float(jnp.abs(jacobian[0, 0, 7, 7])) > 1e-6  # from corner to corner


def test_a_target_with_a_condition_is_a_velocity_with_it():
    """(g(t, x, c) - x) / (1 - t); a network that needs a condition says so."""
    x, c = jnp.array([0.3, -1.0]), jnp.array([2.0, 0.5])
    velocity = networks.VelocityFromTarget(lambda t, x, c: t * x + c)
    np.testing.assert_allclose(velocity(0.6, x, c), (0.6 * x + c - x) / 0.4, rtol=1e-6)
    with pytest.raises(ValueError, match="condition must be a vector of 3"):
        network = networks.UNet.small((4, 4), (4, 8), condition=3, rngs=rngs())
        networks.VelocityFromTarget(network)(0.6, jnp.ones((4, 4)))


@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_a_condition_is_added_to_the_features_of_time(name):
    def make(condition=0):
        if name == "mlp":
            return networks.MLP((4, 4), 6, 2, condition=condition, rngs=rngs())
        return networks.UNet((4, 4), (4, 6), time=8, condition=condition, rngs=rngs())

    plain, given = filled(make), make(3)
    rest = nnx.split(plain, nnx.Param, ...)
    nnx.update(given, rest[1])  # the same weights, and those of the condition
    x, condition = (
        jnp.asarray(part, jnp.float32)
        for part in (np.linspace(-1, 1, 16).reshape(4, 4), [0.3, -1.0, 2.0])
    )
    found = given(0.4, x, condition)
    assert np.abs(np.asarray(found - plain(0.4, x))).max() > 1e-2
    # a condition is another offset of the layer that takes time in
    plain.t_in.bias[...] = plain.t_in.bias[...] + given.c_in(condition)
    np.testing.assert_allclose(found, plain(0.4, x), atol=1e-5)
    for network, wrong in ((plain, (condition,)), (given, ()), (given, (condition[:2],))):
        with pytest.raises(ValueError, match="condition must"):
            network(0.4, x, *wrong)
    with pytest.raises(ValueError, match="condition must be the count"):
        make(-1)


def test_frequencies_of_the_ready_unets():
    """The paper's are from 1e4 on, which a UNet has unless told; the small one's from 30."""
    shapes = nnx.eval_shape(lambda: networks.UNet.paper((8, 8), rngs=rngs()))
    small = nnx.eval_shape(lambda: networks.UNet.small((8, 8), rngs=rngs()))
    assert (shapes.time, shapes.highest) == (256, 1e4)
    assert (small.time, small.highest, small.patch) == (64, 30.0, 2)
    assert [len(level) for level in small.down] == [2, 2] and small.t_in.in_features == 64
    assert small.down[1][0].first.out_features == 96


def test_small_unet_starts_as_the_zero_velocity():
    v = jax.jit(lambda: networks.UNet.small((8, 8), (4, 8), rngs=rngs())(0.5, jnp.ones((8, 8))))()
    assert v.shape == (8, 8) and float(jnp.abs(v).max()) == 0


# ----------------------------------------------------------------- blocks and networks, written out


def silu(h):
    return h / (1 + np.exp(-h))


def convolved(x, layer, stride=1, pad=None):
    """A convolution of ``x`` [h, w, a], pixel by pixel; padded to the same size unless told."""
    kernel = np.asarray(layer.kernel[...])
    side, stride = kernel.shape[0], int(np.ravel(stride)[0])  # flax keeps a number or a pair

    def margins(n):
        total = max((-(-n // stride) - 1) * stride + side - n, 0)
        return (total // 2, total - total // 2) if pad is None else (pad, pad)

    x = np.pad(x, (*map(margins, x.shape[:2]), (0, 0)))
    rows, columns = (range(0, n - side + 1, stride) for n in x.shape[:2])
    out = np.array(
        [[np.tensordot(x[i : i + side, j : j + side], kernel, 3) for j in columns] for i in rows]
    )
    return out + (0 if layer.bias is None else np.asarray(layer.bias[...]))


def normed(x, layer):
    """Batch normalisation by its running averages, or group normalisation with at most 8 groups."""
    scale, bias = np.asarray(layer.scale[...]), np.asarray(layer.bias[...])
    if isinstance(layer, nnx.BatchNorm):
        return (x - layer.mean[...]) / np.sqrt(layer.var[...] + 1e-5) * scale + bias
    groups = max(g for g in range(1, 9) if x.shape[-1] % g == 0)
    parts = x.reshape(*x.shape[:2], groups, -1)
    mean, var = (f(parts, axis=(0, 1, 3), keepdims=True) for f in (np.mean, np.var))
    return ((parts - mean) / np.sqrt(var + 1e-6)).reshape(x.shape) * scale + bias


def dense(x, layer):
    return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])


def block_by_hand(h, block, embedded=None):
    """The paper's block, the residual one, and ResNet's bottleneck."""
    if isinstance(block, networks.PlainBlock):
        h = silu(normed(convolved(h, block.first), block.norm_first) + dense(embedded, block.t))
        return silu(normed(convolved(h, block.second), block.norm_second))
    if isinstance(block, networks.Bottleneck):
        stride = block.middle.strides
        inner = np.maximum(normed(convolved(h, block.reduce), block.norm_reduce), 0)
        inner = convolved(inner, block.middle, stride, 1)
        inner = np.maximum(normed(inner, block.norm_middle), 0)
        inner = normed(convolved(inner, block.expand), block.norm_expand)
        if block.shortcut is not None:
            h = normed(convolved(h, block.shortcut, stride), block.norm_shortcut)
        return np.maximum(h + inner, 0)
    stride = block.first.strides
    inner = convolved(silu(normed(h, block.norm_first)), block.first, stride)
    inner = normed(inner, block.norm_second)
    if block.t is not None:
        scale, shift = np.split(dense(silu(embedded), block.t), 2)
        inner = inner * (1 + scale) + shift
    if block.shortcut is not None:
        h = convolved(h, block.shortcut, stride)
    return h + convolved(silu(inner), block.second)


@pytest.mark.parametrize("wide", [4, 24])
def test_a_plain_block_is_its_formula(wide):
    """Time is added after the norm: before it, a running average would be taken off again."""
    block = filled(lambda: networks.PlainBlock(3, wide, 6, rngs=rngs()))
    h, embedded = np.random.default_rng(2).normal(size=(5, 4, 3)), np.linspace(-2, 1, 6)
    np.testing.assert_allclose(
        block(jnp.asarray(h)[None], jnp.asarray(embedded))[0],
        block_by_hand(h, block, embedded),
        atol=1e-5,
    )


@pytest.mark.parametrize(("wide_in", "wide", "stride"), [(24, 24, 1), (4, 6, 2)])
@pytest.mark.parametrize("time", [0, 6])
def test_a_residual_block_is_its_formula(wide_in, wide, stride, time):
    block = filled(lambda: networks.ResidualBlock(wide_in, wide, time, stride, rngs=rngs()))
    h = np.random.default_rng(3).normal(size=(6, 5, wide_in))
    embedded = np.linspace(-2, 1, 6) if time else None
    found = block(jnp.asarray(h)[None], None if embedded is None else jnp.asarray(embedded))[0]
    np.testing.assert_allclose(found, block_by_hand(h, block, embedded), atol=1e-5)


def pooled(h, reduce):
    n, m = (size // 2 for size in h.shape[:2])
    return reduce(h[: 2 * n, : 2 * m].reshape(n, 2, m, 2, -1), axis=(1, 3))


def doubled(h):
    for axis in (0, 1):
        n = h.shape[axis]
        places = np.linspace(0, n - 1, 2 * n)
        h = np.apply_along_axis(
            lambda line, p=places: np.interp(p, np.arange(len(line)), line), axis, h
        )
    return h


@pytest.mark.parametrize(("name", "shape"), [("small", (8, 8, 1)), ("plain", (7, 6, 1))])
def test_a_unet_is_its_parts_in_their_order(name, shape):
    """Down by means or by maxima, what was left on the way in the order of the way back."""
    residual = name == "small"
    network = filled(
        lambda: networks.UNet(
            shape[:2], (4, 6), residual=residual, time=8, highest=30.0, rngs=rngs()
        )
    )
    t, x = 0.3, np.random.default_rng(4).normal(size=shape)
    frequencies = 30.0 ** (1 - np.arange(4) / 3)
    features = np.concatenate([np.sin(frequencies * t), np.cos(frequencies * t)])
    embedded = dense(silu(dense(features, network.t_in)), network.t_out)
    h = convolved(x, network.x_in) if residual else x
    h = block_by_hand(h, network.down[0][0], embedded)
    skip = h
    h = pooled(h, np.mean if residual else np.max)
    h = block_by_hand(h, network.down[1][0], embedded)
    if residual:
        h = np.asarray(network.attention(jnp.asarray(h)[None])[0])
    h = doubled(h)
    h = np.pad(h, [(0, n - m) for n, m in zip(skip.shape[:2], h.shape[:2], strict=True)] + [(0, 0)])
    h = block_by_hand(np.concatenate([skip, h], -1), network.up[0][0], embedded)
    if residual:
        h = silu(normed(h, network.norm))
    found = network(t, jnp.asarray(x[..., 0]))
    np.testing.assert_allclose(found, convolved(h, network.out)[..., 0], atol=2e-5)


def test_batch_norm_in_training_keeps_nine_tenths_of_its_averages():
    """And those are of the batch, which flax takes over the axis that the loss names."""
    from cdelta import training

    class Normed(nnx.Module):
        def __init__(self):
            self.norm = networks._batch_norm(1, rngs())
            self.w = nnx.Param(jnp.zeros(()))

        def __call__(self, x):
            return self.norm(x[None])[0] * self.w[...]

    data = np.random.default_rng(0).normal(3.0, 2.0, (16, 1)).astype(np.float32)
    result = training.fit(
        Normed(), data, jax.random.key(0), steps=2, batch=16, progress=False,
        objective=lambda n, k, x: training.batched(n)(x).sum(),
    )  # fmt: skip
    kept = 0.9**2
    norm = result.network.norm
    np.testing.assert_allclose(norm.mean[...], (1 - kept) * data.mean(), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], kept + (1 - kept) * data.var(), rtol=1e-5)


# --------------------------------------------------------------------------------------- classifier


def test_resnet50_has_its_size():
    def bottleneck(a, w, first):
        total = a * w + 9 * w * w + 4 * w * w + 2 * (w + w + 4 * w)
        return total + (a * 4 * w + 2 * 4 * w if first else 0)

    by_hand, below = 49 * 3 * 64 + 2 * 64, 64
    for w, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for i in range(depth):
            by_hand += bottleneck(below, w, i == 0)
            below = 4 * w
    assert by_hand == 23_508_032  # as published, without the last layer
    network = nnx.eval_shape(lambda: networks.Classifier.resnet50((64, 64, 3), 40, rngs=rngs()))
    assert networks.parameter_count(network) == by_hand + 2048 * 40 + 40


@pytest.mark.parametrize("shape", [(8, 8), (8, 12, 3)])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_classifier(shape, bottleneck):
    network = filled(
        lambda: networks.Classifier(shape, 5, (8, 16), (1, 2), bottleneck=bottleneck, rngs=rngs()),
        size=0.1,
    )
    x, dx = np.random.default_rng(0).normal(size=(2, *shape))

    @jax.jit
    def products(network, x, dx):
        logits, jvp = jax.jvp(network, (x,), (dx,))
        return logits, jvp, jax.jacrev(network)(x), jax.vmap(network)(jnp.stack([dx, x]))

    logits, jvp, rows, batch = products(network, x, dx)
    assert logits.shape == (5,) and float(jnp.abs(jvp).min()) > 1e-6
    np.testing.assert_allclose(jnp.einsum("k...,...->k", rows, dx), jvp, rtol=0, atol=1e-12)
    np.testing.assert_allclose(batch[1], logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_classifier_is_its_parts_in_their_order(bottleneck):
    network = filled(
        lambda: networks.Classifier((8, 8), 3, (4, 6), (1, 1), 1, bottleneck, rngs=rngs())
    )
    x = np.random.default_rng(5).normal(size=(8, 8))
    if bottleneck:
        h = np.maximum(normed(convolved(x[..., None], network.x_in, 2, 3), network.norm), 0)
        h = np.pad(h, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        h = np.array(
            [[h[i : i + 3, j : j + 3].max((0, 1)) for j in range(0, 4, 2)] for i in range(0, 4, 2)]
        )
    else:
        h = convolved(x[..., None], network.x_in)
    for block in network.blocks:
        h = block_by_hand(h, block)
    if not bottleneck:
        h = silu(normed(h, network.norm))
    expected = dense(h.mean((0, 1)), network.out)
    np.testing.assert_allclose(network(jnp.asarray(x)), expected, atol=2e-5)


def test_the_velocity_beyond_the_last_time_is_that_at_it():
    velocity = networks.VelocityFromTarget(lambda t, x: jnp.sin(5 * t) * x, last=0.8)
    x = jnp.array([1.0, -2.0])
    for t in (0.8, 0.9, 1.0):
        np.testing.assert_allclose(velocity(t, x), (np.sin(4.0) - 1) * x / 0.2, rtol=1e-12)
    usual = networks.VelocityFromTarget(lambda t, x: jnp.sin(5 * t) * x)  # the last time is .95
    for t in (0.95, 0.98):
        np.testing.assert_allclose(usual(t, x), (np.sin(4.75) - 1) * x / 0.05, rtol=1e-12)


# ------------------------------------------------------------------------------------ x1 prediction


def two_gaussians():
    source = Gaussian(jnp.array([0.3, -0.2]), jnp.array([[1.0, 0.2], [0.2, 0.8]]))
    return source, Gaussian(jnp.array([1.0, 0.5]), jnp.array([[1.0, 0.55], [0.55, 1.0]]))


def test_velocity_from_the_exact_target_is_the_exact_velocity():
    source, target = two_gaussians()
    velocity = networks.VelocityFromTarget(
        lambda t, x: gaussian.conditional_mean(t, x, source, target), last=0.99
    )
    x = jnp.array([0.7, -1.1])
    for t in (0.0, 0.3, 0.9, 0.99):
        np.testing.assert_allclose(
            velocity(t, x), gaussian.velocity(t, x, source, target), rtol=0, atol=1e-12
        )


def test_velocity_from_target_is_finite_at_the_end_and_off_by_the_order_it_says():
    source, target = two_gaussians()
    x, exact = (
        jnp.array([0.7, -1.1]),
        gaussian.velocity(1.0, jnp.array([0.7, -1.1]), source, target),
    )
    errors = []
    for last in (0.99, 0.999, 0.9999):
        v = networks.VelocityFromTarget(
            lambda t, x: gaussian.conditional_mean(t, x, source, target), last
        )
        errors.append(float(jnp.linalg.norm(v(1.0, x) - exact)))
    slopes = -np.diff(np.log10(errors))
    assert np.abs(slopes - 1).max() < 0.05, errors  # first order in 1 - last
    assert np.isfinite(jax.jacfwd(lambda x: v(1.0, x))(x)).all()


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: networks.MLP(0, rngs=rngs()), "shape"),
        (lambda: networks.MLP(2, width=0, rngs=rngs()), "width"),
        (
            lambda: networks.MLP(2, rngs=rngs())(0.5, jnp.ones(3)),
            r"x must have shape \(2,\).*got \(3,\)",
        ),
        (
            lambda: networks.MLP(2, rngs=rngs())(1.5, jnp.ones(2)),
            r"t must lie in \[0, 1\], got 1.5",
        ),
        (lambda: networks.MLP(2, rngs=rngs())(jnp.zeros(4), jnp.ones(2)), "t must be a scalar"),
        (lambda: networks.UNet((9, 9), (4, 8), patch=2, rngs=rngs()), "patch"),
        (lambda: networks.UNet((8, 8), (4,), rngs=rngs()), "channels"),
        (lambda: networks.UNet((8,), (4, 8), rngs=rngs()), "shape must be"),
        (
            lambda: networks.UNet((8, 8), (4, 8), time=8, rngs=rngs())(0.5, jnp.ones((2, 8, 8))),
            "x must have shape",
        ),
        (lambda: networks.Classifier((8, 8), 0, rngs=rngs()), "outputs"),
        (lambda: networks.Classifier((8, 8), 2, (4, 8), (1,), rngs=rngs()), "depths"),
        (
            lambda: networks.Classifier((8, 8), 2, rngs=rngs())(jnp.ones((8, 7))),
            "x must have shape",
        ),
        (lambda: networks.VelocityFromTarget(lambda t, x: x, last=1.0), "last"),
        (
            lambda: networks.VelocityFromTarget(lambda t, x: x[:1])(0.5, jnp.ones(2)),
            "prediction must have shape",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
