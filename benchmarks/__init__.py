"""Measurements, run beside their peers in one process: `make bench-quick` and `make bench`."""
