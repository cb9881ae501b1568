"""The parts that kernels of the CPU are made of.

`steps` loads, scores and steps a row, 16 factors at a time. `gradients` sums a row's occurrences
in a micro-batch in the order of `numbers.sums`. `packs` takes sixteen dot products at once.
`atomics` loads and stores words that two threads share. `memory` reserves large arrays. Arrays are
given to kernels by address, and never move.
"""
