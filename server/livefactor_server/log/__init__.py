"""The log of a model: its bytes, how it is appended, walked and recovered."""
