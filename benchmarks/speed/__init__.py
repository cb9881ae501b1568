"""Benchmarks of speed, contrasted with opponents and with limits of the machine."""
