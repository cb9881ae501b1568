"""Numbers whose bits are fixed: scalar arithmetic, random draws, narrow floats, sums and vector lanes."""
