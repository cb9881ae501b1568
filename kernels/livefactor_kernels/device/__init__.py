"""The GPU backend's machine: memory, launches, warps, and the order of gradients.

`machine.open_device` gives the GPU, or Numba's simulator where there is none; both have the verbs
of `machine.Device`, and nothing else in the backend knows which of them it runs on. All kernels of
a model take one stream, in the order of the calls; copies to the host take a second one. What a
record needs crosses in a slot of pinned memory (`staging`). Memory for a record is held before the
record begins (`scratch`), so that no record stops half-way. `plan` sorts a record's occurrences by
row, which fixes the order of every sum. `warp` holds what kernels are made of: 16 threads (a
half-warp) work on a row as the 16 lanes of a vector do on the CPU, and give the same bits.
"""
