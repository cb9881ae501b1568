"""Changes of what the log means: with which spec it is learned, and which records are still there.

They change no table step by step. Each file says what the state is from its record on.
"""
