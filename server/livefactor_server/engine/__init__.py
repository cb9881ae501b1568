"""The engine: the only writer of a model, and the readers beside it.

Handler threads submit batches. Two threads, the LOG stage and the APPLY stage, take each group of batches through the
steps of `commit.Commit`: admit, seal, append, place, apply, publish, acknowledge. `admission` decides what may enter the
log, so that every logged record can be applied. `readers` answer Score at one published revision while the writer goes on.
"""
