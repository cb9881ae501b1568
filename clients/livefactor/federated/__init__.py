"""Learning with participants that keep their events (docs/privacy.md).

    rounds    a round: pull rows, train at home, give back what changed
    merging   means of contributions, also such that a few wrong ones change little
    proof     that a record was applied, computed from two snapshots
    map_sums  sums over users at home, from which a model learns what a user's vector says
    home      a participant: its model, its events, and what it gives to a round
    flower    rounds with Flower: an app for participants, and a strategy for the server
    masking   secure aggregation: a server gets the sum of vectors, and no vector
    fixed     numbers as whole numbers modulo 2**32, so that their sum does not depend on an order
    shamir    a secret in shares, of which a threshold gives it back

`Participant`, `addressed_to`, `unmask`, and the names of `flower` need the extra `federated`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from livefactor.errors import MissingPackage
from livefactor.federated.fixed import FixedPoint
from livefactor.federated.home import Home
from livefactor.federated.map_sums import MapSums, map_sums, map_sums_of, rows_at_home
from livefactor.federated.merging import krum, trimmed_mean, weighted_mean
from livefactor.federated.proof import unexplained_rows
from livefactor.federated.rounds import (
    LOCAL_MERGE,
    Contribution,
    Rows,
    adopt,
    difference,
    give,
    merged_from,
    register,
    rows_of,
    vector_of,
)

if TYPE_CHECKING:
    from livefactor.federated.flower import OneRecord, Round, client_app
    from livefactor.federated.masking import Participant, ProtocolError, addressed_to, unmask

__all__ = [
    "LOCAL_MERGE",
    "Contribution",
    "FixedPoint",
    "Home",
    "MapSums",
    "OneRecord",
    "Participant",
    "ProtocolError",
    "Round",
    "Rows",
    "addressed_to",
    "adopt",
    "client_app",
    "difference",
    "give",
    "krum",
    "map_sums",
    "map_sums_of",
    "merged_from",
    "register",
    "rows_at_home",
    "rows_of",
    "trimmed_mean",
    "unexplained_rows",
    "unmask",
    "vector_of",
    "weighted_mean",
]


_OF_FLOWER = ("OneRecord", "Round", "client_app")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home: Any
    try:
        if name in _OF_FLOWER:
            from livefactor.federated import flower as home
        else:
            from livefactor.federated import masking as home
    except ModuleNotFoundError as error:
        text = f'{name} needs {error.name}: pip install "livefactor[federated]"'
        raise MissingPackage(text) from error
    return getattr(home, name)
