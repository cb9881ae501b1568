"""Pushing events exactly once: rows, batches, the stream, and the outcomes."""
