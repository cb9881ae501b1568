"""Gives a model the dimension of the first vectors that are pushed to it.

So nobody has to know the dimension when a model is created. The new spec learns the log beside the
live state (`promotion.py`), and the vectors follow the SWITCH record. So a replay has both at the
same revisions. A batch that is not valid changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from livefactor.wire import columns as wire
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import Loss, ModelSpec, SpecError
from livefactor_server.statuses import invalid


def lacks_dimension(spec: ModelSpec, field: str) -> bool:
    """Whether a change in `field` of a request would be the model's first vectors."""
    return field == wire.EMBEDDINGS and not spec.embeddings.dimension and spec.loss == Loss.IMPLICIT


def spec_for(spec: ModelSpec, body: bytes) -> ModelSpec:
    """`spec` with the dimension of the encoded vectors `body`.

    Raises:
        ColumnError: the message is malformed.
        Refused: INVALID_ARGUMENT if the dimension is above the limit.
    """
    dimension = wire.decode_embeddings(body).vectors.shape[1]
    try:
        return check(replace(spec, embeddings=replace(spec.embeddings, dimension=dimension)))
    except SpecError as error:
        raise invalid(f"spec: {error}") from None


class Recogniser:
    """Switches one model to the spec of its first vectors. Any thread may call `recognise`."""

    def __init__(self, spec: Callable[[], ModelSpec], promote: Callable[[ModelSpec], int]) -> None:
        """`spec` gives the spec in force, and `promote` switches to another one."""
        self._spec, self._promote = spec, promote
        self._lock = threading.Lock()

    def recognise(self, body: bytes) -> None:
        """Waits until the model has the dimension of the vectors `body`, or already another one.

        Raises:
            Refused: as `Engine.promote`.
        """
        with self._lock:
            spec = self._spec()
            if lacks_dimension(spec, wire.EMBEDDINGS):
                self._promote(spec_for(spec, body))
