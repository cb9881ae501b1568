"""When new users and items get rows. The server decides it, and the kernels see only rows."""

from __future__ import annotations

from dataclasses import dataclass

MAX_SIGHTINGS = 64
"""Maximum of `admission.sightings`."""


@dataclass(frozen=True, slots=True)
class Admission:
    """When a new user or item gets a row.

    Attributes:
        sightings: number of the event at which it gets one, 2 to `MAX_SIGHTINGS`. With 0 or 1 it
            gets one at its first event.
    """

    sightings: int = 0
