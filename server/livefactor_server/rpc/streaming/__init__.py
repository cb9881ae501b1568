"""Calls with many messages: update streams, and the progress of long calls."""
