"""livefactor's kernels: models that learn from arrays of events. There are no messages, no files and no clocks in them.

A server creates a model with `backend.create_backend`, which chooses the backend, and speaks to it by the verbs of
`backend.Backend`. All backends give the same bits; `reference` is the semantics in plain NumPy, and the judge of the others.

    reading                  users as scores see them, folded in from what they did last
    backend                  the verbs of every backend, and the choice of one
    cpu, cuda, reference     the three models
    sgd, solve, softmax      how a model learns: a room a rule
    replay                   past events learned again, whatever the rule
    history                  what rows remember of their events; which item follows which
    pins, scoring            reading one revision while updates go on; scores and top-k lists
    tables                   rows of users and items, and state beside them
    optimizers               the step of a row by its gradient
    device, simd, numbers    the GPU, the parts of CPU kernels, arithmetic whose bits are fixed
    update, spec             what a record asks of a model; what a model's state is a function of

In a room the semantics stand in the docstring of its `__init__`; then come `reference`, `cpu` and `cuda`. Rooms import only those
below them; import-linter holds them to it.
"""
