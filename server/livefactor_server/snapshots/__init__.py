"""Snapshots: taken, listed, verified, replayed from."""
