"""Benchmarks of whole runs: the real processes, read by their own logs."""
