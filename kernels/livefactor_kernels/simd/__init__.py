"""The parts that kernels of the CPU are made of.

`steps` has the addresses of a table's rows, and loads and scores a row. `gradients` sums a row's
occurrences in a micro-batch in the order of `numbers.sums`. `packs` computes sixteen dot products
at once. `atomics` loads and stores words that two threads share, and `helper` runs the second
thread. `memory` reserves large arrays. `sparing` is for processes that must take little. Kernels
take the addresses of arrays, which never move.
"""
