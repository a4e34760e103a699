"""Benchmarks: ``python -m bench`` measures the service, ``python -m bench.storage`` the storage alone."""
