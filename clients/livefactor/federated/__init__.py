"""Learning with participants that keep their events (docs/privacy.md).

    rounds    a round: pull rows, train at home, merge what changed
    masking   secure aggregation: a server gets the sum of vectors, and no vector
    fixed     numbers as whole numbers modulo 2**32, so that their sum does not depend on an order
    shamir    a secret in shares, of which a threshold gives it back

`Participant`, `addressed_to` and `unmask` need the extra `federated`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from livefactor.errors import MissingPackage
from livefactor.federated.fixed import FixedPoint
from livefactor.federated.rounds import (
    LOCAL_MERGE,
    Contribution,
    Rows,
    adopt,
    difference,
    give,
    merged_from,
    rows_of,
    trimmed_mean,
    vector_of,
    weighted_mean,
)

if TYPE_CHECKING:
    from livefactor.federated.masking import Participant, ProtocolError, addressed_to, unmask

__all__ = [
    "LOCAL_MERGE",
    "Contribution",
    "FixedPoint",
    "Participant",
    "ProtocolError",
    "Rows",
    "addressed_to",
    "adopt",
    "difference",
    "give",
    "merged_from",
    "rows_of",
    "trimmed_mean",
    "unmask",
    "vector_of",
    "weighted_mean",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from livefactor.federated import masking
    except ModuleNotFoundError as error:
        text = f'{name} needs {error.name}: pip install "livefactor[federated]"'
        raise MissingPackage(text) from error
    return getattr(masking, name)
