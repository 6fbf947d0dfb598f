"""Which argument of a function is the time and which the state, as far as their names tell: where
shapes broadcast, as in ``lambda x, t: -t * x``, nothing else shows roles that are swapped."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax

from cdelta._pytree import Traceable

STATES = {"x", "xs", "xt", "x_t", "y", "z", "zt", "z_t", "state", "sample", "latent", "image"}
TIMES = {"t", "ts", "time", "times", "timestep", "timesteps", "sigma", "sigmas", "sigma_t"}
TIMES |= {"s", "k", "step", "steps", "noise_level", "log_snr"}
# letters that some call a state and some a time: two of them together tell nothing of a velocity
_VAGUE = {"y", "z", "s", "k"}
# wrappers of these hand their arguments on as they are; a user's own may have put the roles right
_TRANSPARENT = {"jax", "jaxlib", "equinox", "flax", "jaxtyping", "beartype", "typeguard"}


def parameters(function: Any) -> list[str]:
    """The names of the positional parameters that are left to give; none where they cannot be
    known."""
    function = _bare(function)
    if isinstance(function, functools.partial):
        names = parameters(function.func)[len(function.args) :]
        bound = [place for place, name in enumerate(names) if name in function.keywords]
        return names[: bound[0]] if bound else names  # those after it go by name from now on
    if inspect.ismethod(function):
        return parameters(function.__func__)[1:]
    if not inspect.isroutine(function) and not isinstance(function, type):
        call = _bare(type(function).__call__) if callable(function) else None
        if inspect.isfunction(call):
            return parameters(call)[1:]
    try:
        found = inspect.signature(function, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):  # built in
        return []
    return [p.name for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _bare(function: Any) -> Any:
    """What is inside the wrappers that leave arguments alone."""
    while True:
        if isinstance(function, Traceable):
            function = function.function
            continue
        inner = getattr(function, "__wrapped__", None)
        if inner is None or not (
            isinstance(function, jax.stages.Wrapped) or _home(function) in _TRANSPARENT
        ):
            return function
        function = inner


def _home(function: Any) -> str:
    """The package whose code it is: ``__module__`` would be that of what is wrapped."""
    code = getattr(function, "__globals__", None)
    module = type(function).__module__ if code is None else code.get("__name__", "")
    return module.split(".")[0]


def state_first(function: Any, vague: bool = False) -> list[str]:
    """The parameters' names, from the state to the time, of a function that takes the state before
    the time; empty where they do not say so. ``vague``: also where each is a letter that stands for
    either, as y and s."""
    return _ordered(parameters(function), STATES, TIMES, vague)


def time_first(function: Any, vague: bool = False) -> list[str]:
    """The same of a function that takes the time before the state."""
    return _ordered(parameters(function), TIMES, STATES, vague)


def _ordered(names: list[str], first: set[str], later: set[str], vague: bool) -> list[str]:
    low = [name.lower() for name in names]
    if not low or low[0] not in first:
        return []
    for place, name in enumerate(low[1:], 2):
        if name in later and (vague or not {low[0], name} <= _VAGUE):
            return names[:place]
    return []


def refuse_state_first(name: str, function: Callable, advice: str) -> None:
    """Refuse a function whose parameters are called (x, t), or (x, label, t), where it is called
    with the time first. ``advice`` is for the two of them alone."""
    names = state_first(function)
    if names:
        wrong = ", ".join(names)
        if len(names) > 2:
            advice = f"pass a function (t, x, …) that calls it as ({wrong})"
        raise ValueError(f"{name} must take the time first, got parameters ({wrong}): {advice}")


def refuse_time_first(name: str, function: Callable, advice: str) -> None:
    """Refuse a function whose parameters are called (t, x) where it is called with the time
    last."""
    names = time_first(function)
    if names:
        raise ValueError(
            f"{name} must take the time last, got parameters ({', '.join(names)}): {advice}"
        )


def refuse_more(name: str, function: Any, what: str) -> None:
    """Refuse a function that cannot be called with one argument."""
    if not callable(function):
        return
    try:
        signature = inspect.signature(_bare(function), follow_wrapped=False)
    except (TypeError, ValueError):  # built in
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise ValueError(
            f"{name} must take one {what} and nothing else, got a function of {signature}"
        ) from error
