"""Reproducible arithmetic: scalar formulas, random draws, narrow floats, sums, vector lanes."""
