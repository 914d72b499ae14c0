"""Timings. Never run by the tests; results are committed with hardware, versions and command."""
