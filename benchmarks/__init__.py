"""Benchmarks of speed and quality.

`make bench` runs them all; `python -m benchmarks.speed.kernels` runs one part.
"""
