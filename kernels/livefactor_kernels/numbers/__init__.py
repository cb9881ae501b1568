"""Arithmetic with reproducible bits: scalar formulas, random draws, narrow floats, sums and vector
lanes.
"""
