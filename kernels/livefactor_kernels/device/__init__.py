"""The machine of the GPU backend: memory, launches, warps, and the order of a record's gradients.
"""
