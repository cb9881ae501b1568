"""The engine: the only writer of a model, and the readers beside it."""
