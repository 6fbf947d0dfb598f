r"""Flows and features that are PyTorch modules, differentiated by PyTorch, used from jax.

:func:`velocity` and :func:`features` wrap a module, :func:`torch_map` any function of tensors, for
instance a whole solver. What they return takes **one sample**, is differentiated in forward mode
(``torch.func.jvp``) and in reverse mode (``torch.func.vjp``), and works under ``jax.vmap`` and
``jax.jit``: whatever batch jax makes of it reaches PyTorch as one batch. Every call leaves the
compiled program for Python (some 0.1 ms): a flow whose steps are jax's crosses once a step, a
:func:`torch_map` of the whole solution once.

Weights are read when the program runs, so that one which was compiled before sees them change.
Second derivatives are refused. Needs the extra ``torch``.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped

from cdelta import _check, _roles, adapters
from cdelta._extras import optional


def torch_map(
    f: Callable[[Any], Any], *, device: Any = None, dtype: Any = None
) -> Callable[[Array], Array]:
    r"""A function of a batch of tensors, as a map of one sample for jax.

    ``f`` takes a tensor ``[B, *shape]`` and returns one ``[B, ...]``, each row of which depends on
    the same row of its argument alone (that it does is looked at once, with two rows); for a
    function of one sample give ``torch.func.vmap(f)``. It may hold the whole solution of a flow,
    which then crosses between jax and PyTorch once a batch. ``device`` and ``dtype`` are those in
    which it is called, by default the CPU and the dtype of x; the result has the dtype of x.

    Both modes of differentiation are PyTorch's; with several probes or several rows at one latent
    the forward pass is shared. Fused attention kernels have no forward mode: the kernels that are
    plain mathematics are chosen inside.

    Shapes: one sample ``[*shape]`` to what f makes of it. Raises ValueError for a result that is no
    batch of real numbers, or whose rows are not independent; ImportError without PyTorch.
    """
    torch = optional("torch", "torch")
    if not callable(f):
        raise ValueError(f"f must be a function of a batch of tensors, got {type(f).__name__}")
    host = _Host(f, device, dtype, torch)

    def mapped(x: Float[ArrayLike, "*shape"]) -> Float[Array, "..."]:
        x = _check.as_float("x", x)
        out = jax.ShapeDtypeStruct(host.shape(x.shape, x.dtype.name), x.dtype)

        def call(what: Callable, result: Any, *arguments: Array) -> Array:
            ranks = tuple(argument.ndim for argument in arguments)
            return jax.pure_callback(
                functools.partial(what, ranks), result, *arguments, vmap_method="expand_dims"
            )

        return adapters.from_products(
            lambda x: call(host.value, out, x),
            lambda x, d: call(host.jvp, out, x, d),
            lambda x, c: call(host.vjp, jax.ShapeDtypeStruct(x.shape, x.dtype), x, c),
        )(x)

    return mapped


def features(module: Any) -> Callable[[Array], Array]:
    r"""A module that takes a batch ``[B, *shape]`` and returns features ``[B, n]``, as features of
    one latent: a classifier's logits, of which ``lambda x0: logits(flow(x0))`` are a flow's.

    The module must be in eval mode; it is called in the dtype and on the device of its weights.
    Everything else as :func:`torch_map`.
    """
    torch = optional("torch", "torch")
    _refuse_training(module, torch)
    return torch_map(_Watched(module, torch), **_place(module))


def velocity(
    module: Any, *, time_last: bool | None = None
) -> Callable[[Shaped[ArrayLike, ""], Float[ArrayLike, "*shape"]], Array]:
    r"""A module that takes a batch and its times, as a velocity of one sample.

    The module is called with x ``[B, *shape]`` and t ``[B]`` (or ``[B, 1]``, where it only takes
    that), in the order that the names of its ``forward`` tell: (x, t) or (t, x); ``time_last`` says
    it where they do not. It must be in eval mode, and is called in the dtype and on the device of
    its weights. Derivatives in t are taken too. For a velocity of another convention (a label,
    noise at t = 1) wrap it in a module, or in what :mod:`cdelta.adapters` has for the result.

    Shapes: t a scalar, x and the result ``[*shape]``. Raises ValueError for a module in training
    mode, an order that is not told, and a result that has not x's shape. Otherwise as
    :func:`torch_map`.
    """
    torch = optional("torch", "torch")
    _refuse_training(module, torch)
    last = _time_is_last(module) if time_last is None else time_last
    watched = _Watched(module, torch)
    maps: dict[tuple[int, ...], Callable] = {}

    def joint(shape: tuple[int, ...]) -> Callable:
        """The map of [t, *x] in one vector, so that both are differentiated."""

        def call(packed):
            t, x = packed[:, 0], packed[:, 1:].reshape(-1, *shape)
            failures = []
            for time in (t, t[:, None]):
                try:
                    out = watched(x, time) if last else watched(time, x)
                except (RuntimeError, IndexError, TypeError, ValueError) as error:
                    failures.append(error)
                    continue
                if getattr(out, "shape", None) == x.shape:
                    return out.reshape(len(x), -1)
                got = tuple(getattr(out, "shape", ())) or type(out).__name__
                failures.append(ValueError(f"it returned {got}{_within(out, torch)}"))
            raise ValueError(
                f"module must return x's shape {tuple(x.shape)} for a batch x and its times "
                f"[{len(x)}] or [{len(x)}, 1], called "
                f"{'(x, t)' if last else '(t, x)'} it did not: {failures[0]}"
            ) from failures[0]

        return torch_map(call, **_place(module))

    def at(t: Shaped[ArrayLike, ""], x: Float[ArrayLike, "*shape"]) -> Array:
        x = _check.as_float("x", x)
        t = jnp.asarray(t, x.dtype)
        _check.shape("t", t, (), "; batch with jax.vmap")
        if x.shape not in maps:
            maps[x.shape] = joint(x.shape)
        return maps[x.shape](jnp.concatenate([t[None], x.reshape(-1)])).reshape(x.shape)

    return at


# Between PyTorch and NumPy; bfloat16, which NumPy has from jax alone, crosses as float32, exactly.
_SHARED = ("float16", "float32", "float64")


class _Host:
    """What runs in PyTorch: arrays of any leading axes come in, are one batch, and go out again."""

    def __init__(self, f: Callable, device: Any, dtype: Any, torch: Any):
        self.f, self.device, self.dtype, self.torch = f, device, dtype, torch
        self.shape = functools.lru_cache(64)(self._shape)  # one forward pass for each kind

    def _shape(self, shape: tuple[int, ...], dtype: str) -> tuple[int, ...]:
        """The shape of one result; two different rows tell whether they are independent."""
        rows = np.random.default_rng(0).standard_normal((2, *shape))
        x = self._tensor(rows.astype(dtype), 1)
        with self._plain():
            both = self.f(x)
        tensor = isinstance(both, self.torch.Tensor) and both.is_floating_point()
        if not tensor or both.ndim < 1 or both.shape[0] != 2:
            got = tuple(both.shape) if tensor else type(both).__name__
            within = "" if tensor else _within(both, self.torch)
            raise ValueError(
                f"f must return a batch of real numbers [2, ...] for a batch {[2, *shape]}, got "
                f"{got}{within or '; of a function of one sample: torch.func.vmap(f)'}"
            )
        dependent = (
            "f must treat the rows of a batch independently and draw nothing, but the first row's "
            "result changed when the second was left out (batch normalisation or dropout in "
            "training mode? call module.eval())"
        )
        try:
            with self._plain():
                alone = self.f(x[:1])
        except (RuntimeError, ValueError) as error:
            raise ValueError(dependent) from error
        if alone.shape != both[:1].shape:
            raise ValueError(dependent)
        # a batch of another size is rounded otherwise; in half precision by so much, after many
        # layers, that single entries say nothing
        half = self.torch.finfo(both.dtype).bits < 32
        bound = 0.05 if half else 1e3 * self.torch.finfo(both.dtype).eps
        apart = (both[:1] - alone).double()
        apart = apart.square().mean().sqrt() if half else apart.abs().max()
        if apart > bound * (1 + both.abs().max()):
            raise ValueError(dependent)
        return tuple(both.shape[1:])

    def value(self, ranks: tuple[int, ...], x: Any) -> np.ndarray:
        lead = x.shape[: x.ndim - ranks[0]]
        with self._plain():
            return self._array(self.f(self._tensor(x, len(lead))), lead, x.dtype)

    def jvp(self, ranks: tuple[int, ...], x: Any, d: Any) -> np.ndarray:
        """J(x) d; where several d share an x, so does the forward pass."""
        x, d, undo = self._shared(ranks, x, d)
        with self._plain():
            if len(d) == 1:
                return undo(self.torch.func.jvp(self.f, (x,), (d[0],))[1][None])
            return undo(
                self.torch.func.vmap(lambda d: self.torch.func.jvp(self.f, (x,), (d,))[1])(d)
            )

    def vjp(self, ranks: tuple[int, ...], x: Any, c: Any) -> np.ndarray:
        """J(x)ᵀ c; where several c share an x, so does the forward pass."""
        x, c, undo = self._shared(ranks, x, c)
        with self._plain():
            values, pullback = self.torch.func.vjp(self.f, x)
            c = c.to(values.dtype)
            if len(c) == 1:
                return undo(pullback(c[0])[0][None])
            return undo(self.torch.func.vmap(lambda c: pullback(c)[0])(c))

    def _shared(self, ranks: tuple[int, int], x: Any, d: Any) -> tuple[Any, Any, Callable]:
        """x as a batch ``[B, *shape]``, the directions as ``[S, B, ...]`` with S of them at every
        x, and what puts a result ``[S, B, ...]`` back in order."""
        rank, dtype = d.ndim - ranks[1], x.dtype
        lead = d.shape[:rank]
        shared = [axis for axis in range(rank) if x.shape[axis] == 1 and lead[axis] > 1]
        own = [axis for axis in range(rank) if axis not in shared]
        order = [*shared, *own]
        many = math.prod(lead[axis] for axis in shared)
        x = np.asarray(x)
        x = x.transpose(*order, *range(rank, x.ndim))
        d = np.asarray(d).transpose(*order, *range(rank, d.ndim))
        x, d = self._tensor(x, rank), self._tensor(d, rank)

        def undo(result: Any) -> np.ndarray:
            array = self._numpy(result, dtype)
            array = array.reshape((*(lead[axis] for axis in order), *array.shape[2:]))
            return array.transpose(*np.argsort(order), *range(rank, array.ndim))

        return x, d.reshape(many, -1, *d.shape[1:]), undo

    def _tensor(self, array: Any, rank: int) -> Any:
        """With the leading axes as one."""
        array = np.array(array)  # a copy, which PyTorch may write into
        array = array.reshape(-1, *array.shape[rank:])
        dtype = self.dtype or getattr(self.torch, array.dtype.name)
        if array.dtype.name not in _SHARED:
            array = array.astype(np.float32)
        return self.torch.from_numpy(array).to(device=self.device, dtype=dtype)

    def _array(self, tensor: Any, lead: tuple[int, ...], dtype: Any) -> np.ndarray:
        return self._numpy(tensor, dtype).reshape((*lead, *tensor.shape[1:]))

    def _numpy(self, tensor: Any, dtype: Any) -> np.ndarray:
        tensor = tensor.detach().cpu()
        if tensor.dtype not in [getattr(self.torch, name) for name in _SHARED]:
            tensor = tensor.float()
        return tensor.numpy().astype(dtype, copy=False)

    @contextlib.contextmanager
    def _plain(self) -> Iterator[None]:
        """Without graphs of the weights, and with attention that has a forward mode."""
        torch = self.torch
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with (
                torch.no_grad(),
                torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
            ):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


class _Watched:
    """A module that is refused once it is in training mode, also later on."""

    def __init__(self, module: Any, torch: Any):
        self.module, self.torch = module, torch

    def __call__(self, *arguments: Any) -> Any:
        _refuse_training(self.module, self.torch)
        return self.module(*arguments)


def _refuse_training(module: Any, torch: Any) -> None:
    if not isinstance(module, torch.nn.Module):
        raise ValueError(
            f"module must be a torch.nn.Module, got {type(module).__name__}; any other function "
            "of tensors: torch_map"
        )
    if module.training or any(part.training for part in module.modules()):
        raise ValueError(
            "module is in training mode, where dropout draws and batch normalisation mixes the "
            "samples of a batch: call module.eval() first"
        )


def _within(out: Any, torch: Any) -> str:
    """Where in what a module returns its tensor is, as in the outputs of diffusers."""
    tensor = torch.Tensor
    parts = list(out) if isinstance(out, list | tuple) else []
    found = [f"[{i}]" for i, part in enumerate(parts) if isinstance(part, tensor)]
    named = vars(out) if hasattr(out, "__dict__") else {}
    found += [f".{name}" for name in named if isinstance(named[name], tensor)]
    if isinstance(out, tensor) or not found:
        return ""
    return (
        f", whose {found[0]} is a tensor: wrap the module in one whose forward returns "
        f"module(...){found[0]}"
    )


def _place(module: Any) -> dict[str, Any]:
    """Where a module's weights are, and in which dtype."""
    for weight in (*module.parameters(), *module.buffers()):
        if weight.is_floating_point():
            return {"device": weight.device, "dtype": weight.dtype}
    return {}


def _time_is_last(module: Any) -> bool:
    """By the names of its parameters."""
    names = _roles.parameters(module.forward)[:2]
    if len(_roles.state_first(module.forward, vague=True)) == 2:
        return True
    if len(_roles.time_first(module.forward, vague=True)) == 2:
        return False
    raise ValueError(
        f"module.forward({', '.join(names)}) does not tell which argument is the time: give "
        "time_last=True for (x, t), False for (t, x)"
    )
