"""The names of the presets. This module does not import NumPy, so that the command line starts
fast.
"""

from __future__ import annotations

PRESET_NAMES = (
    "auto",
    "clicks",
    "purchases",
    "news",
    "ratings",
    "clicks_sgd",
    "purchases_sgd",
    "ratings_sgd",
)

DEFAULT_PRESET = "auto"
"""The preset of a server and of `livefactor.local()` without a setting."""
