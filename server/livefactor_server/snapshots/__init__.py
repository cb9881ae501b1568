"""Snapshots of a model, and the proof that its log gives them.

`views` freezes a state at one revision, `store` writes, lists and verifies snapshots, `replay` builds a state from a
snapshot and the log behind it, and `audit` builds it from the log alone and compares root hashes.
"""
