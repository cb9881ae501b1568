"""Speed and quality, measured: `make bench`, or one part alone, as in `python -m benchmarks.speed.kernels`."""
