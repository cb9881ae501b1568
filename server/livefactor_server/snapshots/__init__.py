"""Snapshots of a model, and the proof that they follow from its log.

`freezing` freezes a state at one revision. `store` writes, lists and verifies snapshots.
`safetensors_writer` writes their files. `scanning` has the pass over a state, `increments` the form
of incremental snapshots, and `chains` reads them. `replay` computes a state from a snapshot and the
rest of the log. `audit` computes it from the log alone and compares root hashes.
"""
