"""The parts that CPU kernels are made of: vector steps of rows, gradient sums, packed dots, atomics."""
