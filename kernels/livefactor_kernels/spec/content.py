"""The parts of a spec about what users, items and events are: embeddings, features and context."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors of items and users, and learned maps of them into factor space
    (`solve/prior/__init__.py`).

    Attributes:
        dimension: numbers of an item's vector, up to `MAX_DIMENSION`. With 0 there are none.
        prior_events: what the vector says of an item or a user counts as much as this many events.
        user_dimension: numbers of a user's vector. With 0 there are none.
    """

    dimension: int = 0
    prior_events: float = 8.0
    user_dimension: int = 0


@dataclass(frozen=True, slots=True)
class Features:
    """Weighted bags of features of users and items (`solve/features/__init__.py`).

    Attributes:
        size: most distinct features of each side, up to `MAX_FEATURES`. With 0 there are none.
        per_id: most features of a user or an item, up to `MAX_FEATURES_PER_ID`.
        prior_events: with a number above 0, what a bag says of a user or an item counts as much as
            so many events, and a changed bag counts at once. With 0 what it says of an item counts
            as much as `embeddings.prior_events` events, and of a user only until her first event.
    """

    size: int = 0
    per_id: int = 16
    prior_events: float = 0.0


@dataclass(frozen=True, slots=True)
class Context:
    """Features of events and of calls for scores (`reading/context/__init__.py`).

    Attributes:
        size: most distinct features, up to `MAX_FEATURES`. With 0 there is no context.
    """

    size: int = 0
