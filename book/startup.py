"""What a kernel runs first: a warning of NumPy's about numbers, in the chapter or in cdelta,
becomes an error, which stops the build. After each cell the kernel writes the seconds that XLA has
compiled into the file that ``CDELTA_COMPILING`` names (not at its end: a kernel that takes long to
end is killed). Programs that are kept from earlier runs count with the time it takes to read
them."""


def _listen(shell):
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

    def tell(*_):
        Path(os.environ["CDELTA_COMPILING"]).write_text(f"{sum(seconds):.2f}")

    shell.events.register("post_run_cell", look)
    shell.events.register("post_run_cell", tell)


_listen(get_ipython())  # noqa: F821
del _listen  # a notebook sees nothing of it
