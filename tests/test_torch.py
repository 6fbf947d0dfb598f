"""PyTorch modules used from jax, against PyTorch's own derivatives. `make torch` runs this where
PyTorch is installed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import cdelta  # noqa: E402
import cdelta.torch as bridge  # noqa: E402
from cdelta import adapters, dependence, jacobian  # noqa: E402
from tests import ROOT  # noqa: E402

SHAPE = (1, 6, 6)
MATH = torch.nn.attention.SDPBackend.MATH


class Attention(nn.Module):
    """One head, by the function that fuses its kernels."""

    def __init__(self, wide):
        super().__init__()
        self.norm, self.inward = nn.GroupNorm(2, wide), nn.Conv2d(wide, 3 * wide, 1)

    def forward(self, x):
        n, c, h, w = x.shape
        parts = self.inward(self.norm(x)).reshape(n, 3, 1, c, h * w).mT.contiguous()
        out = nn.functional.scaled_dot_product_attention(*parts.unbind(1))
        return x + out.transpose(-1, -2).reshape(x.shape)


class UNet(nn.Module):
    """A level down and up, with a skip, attention and batch normalisation."""

    def __init__(self):
        super().__init__()
        self.first, self.time = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(1, 4)
        self.down, self.attention = nn.Conv2d(4, 8, 3, 2, padding=1), Attention(8)
        self.norm, self.up = nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 2, 2)
        self.last = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x, t):
        h = self.first(x) + self.time(t[:, None])[..., None, None]
        below = self.norm(self.attention(nn.functional.silu(self.down(h))))
        return self.last(torch.cat([h, self.up(below)], 1))


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    network = UNet()
    network.norm.running_mean.normal_()
    return network.eval()


@pytest.fixture(scope="module")
def single():
    """One flow in single precision, as most of PyTorch is."""
    xs = jax.random.normal(jax.random.key(0), (3, *SHAPE), jnp.float32)
    return xs, jax.random.normal(jax.random.key(1), (3, *SHAPE), jnp.float32)


def theirs(network, t, x, d):
    """PyTorch's own product, of a batch."""
    x, d = (torch.from_numpy(np.array(a)) for a in (x, d))
    times = torch.full((len(x),), t, dtype=x.dtype)
    with torch.nn.attention.sdpa_kernel(MATH):
        return torch.func.jvp(lambda x: network(x, times), (x,), (d,))[1].detach().numpy()


def test_fused_attention_has_no_forward_mode_and_ours_has(unet, single):
    """The null: what the adapter chooses inside is needed. (When this fails, it no longer is.)"""
    xs, d = (torch.from_numpy(np.array(a)) for a in single)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.jvp(lambda x: unet(x, torch.full((3,), 0.3)), (xs,), (d,))
    v = bridge.velocity(unet)
    jax.jit(jax.vmap(lambda x, d: jacobian.jvp(lambda x: v(0.3, x), x, d)))(*single)
    assert torch.backends.cuda.flash_sdp_enabled()  # and is put back


def test_products_are_pytorchs_own(unet, single):
    v, (xs, ds) = bridge.velocity(unet), single
    product = jax.vmap(lambda x, d: jax.jvp(lambda x: v(0.3, x), (x,), (d,)))
    values, found = jax.jit(product)(xs, ds)
    with torch.no_grad():
        want = unet(torch.from_numpy(np.array(xs)), torch.full((3,), 0.3)).numpy()
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, want, atol=1e-5)
    np.testing.assert_allclose(found, theirs(unet, 0.3, xs, ds), rtol=1e-5, atol=1e-5)
    # alone, and as several probes at one latent, which share the forward pass
    np.testing.assert_allclose(
        jacobian.jvp(lambda x: v(0.3, x), xs[0], ds), theirs(unet, 0.3, [xs[0]] * 3, ds),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip


def test_rows_and_products_are_of_one_matrix(unet):
    """In double precision: rows by vjp, columns by jvp, of a whole flow, in t as well."""
    network = bridge.velocity(unet.double())
    flow = cdelta.Flow(network, "midpoint", 2)
    xs = jax.random.normal(jax.random.key(0), (2, *SHAPE))
    d = jnp.ones(SHAPE)

    def some(x):
        return flow(x).reshape(-1)[:5]

    rows = jax.jit(jax.vmap(lambda x: jacobian.rows(some, x)))(xs)
    products = jax.jit(jax.vmap(lambda x: jacobian.jvp(some, x, d)))(xs)
    np.testing.assert_allclose(rows.sum((2, 3, 4)), products, rtol=1e-12)
    eps = 1e-6
    step = (network(0.3 + eps, xs[0]) - network(0.3 - eps, xs[0])) / (2 * eps)
    np.testing.assert_allclose(jax.jvp(network, (0.3, xs[0]), (1.0, 0 * d))[1], step, atol=1e-7)
    unet.float()


def test_a_batch_is_one_crossing(unet, single):
    sizes = []

    class Counted(nn.Module):
        def forward(self, x, t):
            sizes.append(len(x))
            return unet(x, t)

    v, (xs, ds) = bridge.velocity(Counted().eval()), single

    def f(x):
        return v(0.3, x)

    v(0.3, xs[0])  # looks at the module
    for program, batch in (
        (lambda: jax.vmap(f)(xs), 3),
        (lambda: jax.jit(jax.vmap(lambda x, d: jax.jvp(f, (x,), (d,))[1]))(xs, ds), 3),
        (lambda: jax.jit(lambda x: jax.vjp(f, x)[1](ds[0]))(xs[0]), 1),
        (lambda: jax.jit(jax.vmap(lambda d: jax.jvp(f, (xs[0],), (d,))[1]))(ds), 1),
    ):
        jax.block_until_ready(program())
        sizes.clear()
        jax.block_until_ready(program())
        assert sizes and set(sizes) == {batch} and len(sizes) <= 2


class Readout(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x):
        return torch.tanh(self.layer(x))


def test_estimators_agree_with_the_same_map_in_jax():
    torch.manual_seed(1)
    readout = Readout().eval()
    weight, bias = (jnp.asarray(p.detach().numpy()) for p in readout.parameters())

    def same(x):
        return jnp.tanh(weight @ x + bias)

    f, key = bridge.features(readout), jax.random.key(0)
    options = dict(dtype=jnp.float32)
    for method in ("rows", "jvp"):
        found, want = (
            dependence.wiggle_moment(g, key, (2,), 40, method=method, **options) for g in (f, same)
        )
        np.testing.assert_allclose(found.matrix, want.matrix, rtol=1e-4)
    for estimate in (
        lambda g: dependence.feature_covariance(g, key, (2,), 40, **options),
        lambda g: dependence.held_moment(g, key, (2,), 40, 1, **options),
    ):
        np.testing.assert_allclose(estimate(f).matrix, estimate(same).matrix, rtol=1e-3, atol=1e-5)


KINDS = ["float16", "bfloat16", "float32", "float64"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asked", KINDS)
def test_modules_and_latents_in_every_precision(kind, asked):
    """Values and both products against the closed form of the rounded weights, in double."""
    torch.manual_seed(1)
    readout = Readout().to(getattr(torch, kind)).eval()

    class Velocity(nn.Module):
        def __init__(self):
            super().__init__()
            self.readout = readout

        def forward(self, x, t):
            return self.readout(x)[:, :2] * t[:, None]

    weight, bias = (p.detach().double().numpy() for p in readout.parameters())
    x, d, c = (jnp.asarray(values, asked) for values in ([0.3, -0.7], [1.0, 0.25], [1.0, -2.0]))
    exact = np.tanh(weight @ np.asarray(x, float) + bias)
    slopes = (1 - exact**2)[:, None] * weight
    eps = float(max(jnp.finfo(kind).eps, jnp.finfo(asked).eps))
    f, v = bridge.features(readout), bridge.velocity(Velocity().eval())
    for got, wanted in (
        (jax.jvp(f, (x,), (d,)), (exact, slopes @ np.asarray(d, float))),
        (jax.vjp(f, x)[1](jnp.append(c, 0)), (np.asarray(c, float) @ slopes[:2],)),
        (
            jax.jvp(lambda x: v(0.5, x), (x,), (d,)),
            (exact[:2] / 2, slopes[:2] @ np.asarray(d, float) / 2),
        ),
        ((jax.vmap(f)(jnp.stack([x, d, x])),), (np.stack([exact, plain(weight, bias, d), exact]),)),
    ):
        for mine, theirs in zip(got, wanted, strict=True):
            assert mine.dtype == np.dtype(asked)
            np.testing.assert_allclose(np.asarray(mine, float), theirs, rtol=0, atol=6 * eps)
    whole = cdelta.Flow(v, "midpoint", 2)(x)
    assert whole.dtype == np.dtype(asked) and jnp.abs(whole - x).max() > 0.05


def plain(weight, bias, x):
    return np.tanh(weight @ np.asarray(x, float) + bias)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_not_independent_are_seen_in_every_precision(kind):
    x = jnp.arange(6, dtype=kind)
    with pytest.raises(ValueError, match="treat the rows of a batch independently"):
        bridge.torch_map(lambda x: x - x.mean(0))(x)
    np.testing.assert_array_equal(bridge.torch_map(lambda x: 2 * x)(x), 2 * x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_is_called_in_the_precision_of_x(kind):
    seen = set()

    def doubled(x):
        seen.add(x.dtype)
        return 2 * x

    jax.block_until_ready(bridge.torch_map(doubled)(jnp.ones(2, kind)))
    assert seen == {getattr(torch, kind)}


def test_directions_in_any_order_of_axes():
    """Three axes of a batch, of which the latent has one, the directions all, in every order."""
    f = bridge.torch_map(lambda x: torch.stack([x[:, 0] * x[:, 1], x[:, 1] ** 2, x.sum(1)], 1))
    xs, ds = jax.random.normal(jax.random.key(0), (3, 2)), jnp.zeros((2, 3, 4, 2))
    ds = jax.random.normal(jax.random.key(1), ds.shape)
    slopes = np.array([[[x[1], x[0]], [0, 2 * x[1]], [1, 1]] for x in np.asarray(xs)])

    def product(x, d):
        return jax.jvp(f, (x,), (d,))[1]

    def over(axes, xs_axis):  # innermost first
        mapped = product
        for axis in axes:
            mapped = jax.vmap(mapped, in_axes=(0 if axis == xs_axis else None, 0))
        return mapped

    found = over((2, 1, 0), 1)(xs, ds)
    np.testing.assert_allclose(found, np.einsum("bij,sbkj->sbki", slopes, ds), rtol=1e-12)
    found = over((1, 0, 2), 1)(xs, jnp.transpose(ds, (2, 0, 1, 3)))
    np.testing.assert_allclose(found, np.einsum("bij,sbkj->ksbi", slopes, ds), rtol=1e-12)
    found = over((2, 0, 1), 1)(xs, jnp.transpose(ds, (1, 0, 2, 3)))  # not its own inverse
    np.testing.assert_allclose(found, np.einsum("bij,sbkj->bski", slopes, ds), rtol=1e-12)


def test_the_tensor_in_what_a_module_returns_is_named():
    class Output:
        def __init__(self, sample):
            self.sample = sample

    class Denoiser(nn.Module):
        def forward(self, sample, timestep):
            return Output(sample)

    class Pair(nn.Module):
        def forward(self, x):
            return x, None

    x = jnp.ones(2)
    with pytest.raises(ValueError, match=r"returned Output, whose \.sample is a tensor: wrap .*"):
        bridge.velocity(Denoiser().eval())(0.5, x)
    with pytest.raises(ValueError, match=r"got tuple, whose \[0\] is a tensor: wrap"):
        bridge.features(Pair().eval())(x)


def test_a_solution_that_stays_in_pytorch(unet):
    """All steps inside one crossing give what jax's steps give."""
    v = bridge.velocity(unet)

    def solve(x):
        for i in range(3):
            t = torch.full((len(x),), (i + 0.5) / 3)
            x = x + unet(x + unet(x, t - 0.5 / 3) / 6, t) / 3
        return x

    inside = bridge.torch_map(solve)
    outside = cdelta.Flow(v, "midpoint", 3)
    x, d = jax.random.normal(jax.random.key(0), (2, *SHAPE), jnp.float32)
    for of in (lambda f: f(x), lambda f: jacobian.jvp(f, x, d), lambda f: jax.vjp(f, x)[1](d)[0]):
        np.testing.assert_allclose(of(inside), of(outside), rtol=1e-4, atol=1e-5)


def test_weights_are_read_when_the_program_runs():
    readout = Readout().eval()
    f = jax.jit(bridge.features(readout))
    before = f(jnp.ones(2))
    with torch.no_grad():
        readout.layer.weight.mul_(2)
        readout.layer.bias.mul_(2)
    np.testing.assert_allclose(jnp.arctanh(f(jnp.ones(2))), 2 * jnp.arctanh(before), rtol=1e-4)


def test_other_orders_and_shapes_of_the_time():
    class TimeFirst(nn.Module):
        def forward(self, t, x):
            return x * torch.cat([t, t], 1)  # wants [B, 1]

    class Unnamed(nn.Module):
        def forward(self, a, b):
            return a * b[:, None]

    x = jnp.array([1.0, -2.0])
    assert bridge.velocity(TimeFirst().eval())(0.5, x) == pytest.approx(0.5 * x)
    assert bridge.velocity(Unnamed().eval(), time_last=True)(0.5, x) == pytest.approx(0.5 * x)
    with pytest.raises(ValueError, match=r"forward\(a, b\) does not tell"):
        bridge.velocity(Unnamed().eval())
    noise = adapters.reversed_time(bridge.velocity(TimeFirst().eval()))
    assert noise(0.25, x) == pytest.approx(-0.75 * x)


@pytest.mark.parametrize("layer", [nn.Dropout(), nn.BatchNorm1d(2)])
def test_training_mode_is_refused(layer):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x)

    net = Net().train()
    with pytest.raises(ValueError, match=r"training mode.*call module.eval\(\)"):
        bridge.features(net)
    f = bridge.features(net.eval())
    f(jnp.ones(2))
    net.train()  # later on
    with pytest.raises(Exception, match=r"call module.eval\(\)"):
        jax.block_until_ready(f(jnp.ones(2)))
    # and where it cannot be seen from outside
    with pytest.raises(ValueError, match="treat the rows of a batch independently"):
        bridge.torch_map(lambda x: net(x), dtype=torch.float32)(jnp.ones(2))
    net.eval()


def test_maps_that_are_none(unchecked):
    x = jnp.ones(2)
    with pytest.raises(ValueError, match="f must be a function of a batch"):
        bridge.torch_map(3)
    with pytest.raises(ValueError, match=r"torch.func.vmap\(f\)"):
        bridge.torch_map(lambda x: x.sum())(x)
    with pytest.raises(ValueError, match="got tuple"):
        bridge.torch_map(lambda x: (x, x))(x)
    with pytest.raises(ValueError, match=r"must be a torch.nn.Module, got function"):
        bridge.features(lambda x: x)

    class Short(nn.Module):
        def forward(self, x, t):
            return x[:, :1]

    with pytest.raises(ValueError, match=r"must return x's shape .*it returned \(2, 1\)"):
        bridge.velocity(Short().eval())(0.1, x)
    with pytest.raises(ValueError, match="second derivatives"):
        jax.hessian(bridge.torch_map(lambda x: (x**3).sum(1)))(x)
    vmapped = bridge.torch_map(torch.func.vmap(lambda x: x.sum()))
    assert vmapped(x) == 2.0


def test_without_pytorch_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=re.escape('pip install "cdelta[torch]"')):
        bridge.torch_map(lambda x: x)


def test_the_recording_in_chapter_19_is_true(capsys):
    """Its lines, run: the numbers agree to what float32 leaves on another machine."""
    text = (ROOT / "notebooks" / "19_your_own_flow.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(import torch.*?)```", text, re.DOTALL)
    (recorded,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    with jax.enable_x64(False):
        exec(code, {"__name__": "chapter"})
    printed, told = (
        [float(number) for number in re.findall(r"-?\d+\.\d*", out)]
        for out in (capsys.readouterr().out, recorded)
    )
    assert len(told) == 4
    np.testing.assert_allclose(printed, told, atol=3e-3)
