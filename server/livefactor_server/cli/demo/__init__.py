"""`livefactor demo`: the command, and what the demo does."""
