"""The engine: the only writer of a model, and its readers.

Threads of calls submit batches. Two threads, the LOG stage and the APPLY stage, take each group of
batches through the steps of `commit.Commit`: admit, seal, append, place, apply, publish,
acknowledge. `admission` decides which batches enter the log, so that every logged record can be
applied. `readers` answer Score calls at one published revision while the writer continues.
"""
