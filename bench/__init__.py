"""Benchmarks: each is a module to run, ``python -m bench.<name>``, and prints one table."""
