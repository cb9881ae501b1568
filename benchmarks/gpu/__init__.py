"""Benchmarks of the GPU backend and its opponents.

`benchmarks/gpu_check.py` runs them on a GPU or on the simulator.
"""
