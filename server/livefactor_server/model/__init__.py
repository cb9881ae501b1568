"""A model's state, and what a log record does to it."""
