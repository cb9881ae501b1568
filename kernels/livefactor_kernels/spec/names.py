"""The names of the presets, for those who must not wait until NumPy is imported."""

from __future__ import annotations

PRESET_NAMES = ("ratings_sgd", "clicks_sgd", "purchases_sgd", "ratings", "clicks", "purchases", "news")

DEFAULT_PRESET = "clicks"
"""The preset of a server, and of `livefactor.local()`, for which nobody names another one."""
