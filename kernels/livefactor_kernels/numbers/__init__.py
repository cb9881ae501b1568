"""Numbers whose bits are fixed, on every machine and every backend.

`scalar` has the arithmetic of losses and steps, written once: multiply, then add, each rounded to
float32, never fused. exp and sigmoid are polynomials. `sums` fixes the order of additions: a dot
product has 16 lanes and a fixed tree, a gradient is summed in chunks of 32. `lanes` has the same
on vectors of 16 float32. `random` draws by counter (Philox4x32-10): a draw is a function of its
counter and of the seed, and no generator has a state. `narrow` stores factors as float16 or
bfloat16: it widens them exactly and rounds stochastically.
"""
