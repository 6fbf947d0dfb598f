"""What a kernel runs first: a warning of NumPy's about numbers, in the chapter or in cdelta,
becomes an error, which stops the build. At its end the kernel writes the seconds that XLA compiled
into the file that ``CDELTA_COMPILING`` names. Programs that are kept from earlier runs count with
the time it takes to read them."""


def _listen(shell):
    import atexit
    import os
    import sys
    import warnings
    from pathlib import Path

    warnings.filterwarnings("error", category=RuntimeWarning, module=r"(cdelta|__main__)\b")
    seconds = []

    def heard(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration)

    def look(*_):  # JAX is imported by the notebook and not here: settings come before it
        if "jax" in sys.modules:
            shell.events.unregister("post_run_cell", look)
            sys.modules["jax"].monitoring.register_event_duration_secs_listener(heard)

    shell.events.register("post_run_cell", look)
    atexit.register(lambda: Path(os.environ["CDELTA_COMPILING"]).write_text(f"{sum(seconds):.2f}"))


_listen(get_ipython())  # noqa: F821
del _listen  # a notebook sees nothing of it
