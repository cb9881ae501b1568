"""What the GPU backend is measured against, and how; `benchmarks/gpu_check.py` runs it. Needs a GPU, or the simulator."""
