"""Benchmarks: each module has a ``main()`` that prints a table. ``make bench``, or
``make bench NAMES=posterior``."""
