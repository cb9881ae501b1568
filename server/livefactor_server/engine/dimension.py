"""Gives a model the spec that the first vectors or factors need which are pushed to it.

So nobody has to know the dimension of vectors, or that factors need a field of the spec, when a
model is created. The new spec learns the log beside the live state (`promotion.py`), and the push
follows the SWITCH record. So a replay has both at the same revisions. A batch that is not valid
changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from livefactor.wire import columns as wire
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import Loss, ModelSpec, SpecError
from livefactor_server.statuses import invalid

START_EVENTS = 128.0
"""`solve.start_events` of a model that gets it with first factors (docs/guides/warm_start.md)."""


def lacks_part(spec: ModelSpec, field: str) -> bool:
    """Whether a change in `field` of a request would be the model's first vectors or factors."""
    if spec.loss != Loss.IMPLICIT:
        return False
    lacks_dimension = field == wire.EMBEDDINGS and not spec.embeddings.dimension
    return lacks_dimension or (field == wire.FACTORS and not spec.solve.start_events)


def spec_for(spec: ModelSpec, field: str, body: bytes) -> ModelSpec:
    """`spec` with what the encoded change `body` needs: the dimension of its vectors, or starts.

    Raises:
        ColumnError: the message is malformed.
        Refused: INVALID_ARGUMENT if the dimension is above the limit.
    """
    if field == wire.FACTORS:
        return check(replace(spec, solve=replace(spec.solve, start_events=START_EVENTS)))
    dimension = wire.decode_embeddings(body).vectors.shape[1]
    try:
        return check(replace(spec, embeddings=replace(spec.embeddings, dimension=dimension)))
    except SpecError as error:
        raise invalid(f"spec: {error}") from None


class Recogniser:
    """Switches one model to the spec of its first vectors or factors. Any thread may call
    `recognise`.
    """

    def __init__(self, spec: Callable[[], ModelSpec], promote: Callable[[ModelSpec], int]) -> None:
        """`spec` gives the spec in force, and `promote` switches to another one."""
        self._spec, self._promote = spec, promote
        self._lock = threading.Lock()

    def recognise(self, field: str, body: bytes) -> None:
        """Waits until the model has what the change `body` needs, or already something else.

        Raises:
            Refused: as `Engine.promote`.
        """
        with self._lock:
            spec = self._spec()
            if lacks_part(spec, field):
                self._promote(spec_for(spec, field, body))
