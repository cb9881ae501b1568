"""Changes of what the log means: the spec, the records without effect, and those that are gone.

They change no table step by step. Each file says what the state is from its record on.
"""
