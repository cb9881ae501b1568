"""The kernels of livefactor: models that learn from arrays of events.

They know no messages, no files and no clocks. A server creates a model with
`backend.create_backend`, and calls the methods of `backend.Backend`. All backends give the same
bits. `reference` defines the semantics in plain NumPy, and the tests compare the other backends
with it.

    reading                  users for scoring, with their recent events folded in
    backend                  the protocol of all backends, and the choice of one
    cpu, cuda, reference     the three backends
    sgd, solve, softmax      the rules by which a model learns, one room each
    replay                   learns past events again, with any rule
    history                  histories of rows, visits, co-occurrence counts
    pins, scoring            reads at one revision during updates; scores and top-k lists
    tables                   rows of users and items, and the state beside them
    optimizers               the step of a row by its gradient
    device, simd, numbers    parts of GPU kernels; parts of CPU kernels; exact arithmetic
    update, spec             the work of one record; the parameters of a model

The docstring of a room's `__init__` has the semantics. The files `reference`, `cpu` and `cuda`
implement them. Rooms import only the rooms below them, which import-linter checks.
"""
