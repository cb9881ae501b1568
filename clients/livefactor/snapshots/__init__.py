"""Snapshot files: their format, how they are loaded, checked and hashed."""
