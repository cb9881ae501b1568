"""livefactor's kernels and tables: arrays in, arrays out; no RPC, no files, no clocks.

spec        what a model's state is a function of
scalar      losses, steps, exp: the mathematics, written once   random   counter-based draws
reference   the semantics in plain NumPy: the judge             backend  the choice of a backend, its verbs
cpu, cuda   the backends; a rule each in sgd, solve, softmax       history  what rows remember, counts
steps       a row's step on the CPU, in lanes (16 float32)
tables      rows of users and items   keymap   key to row   update   one record's work, in rows
pins        reading one revision while updates go on         scoring  candidates and top-k
"""
