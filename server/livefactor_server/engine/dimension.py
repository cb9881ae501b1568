"""Gives a model the spec that the first vectors or factors need which are pushed to it.

So nobody has to know the dimension of vectors, or that factors need a field of the spec, when a
model is created. The new spec learns the log beside the live state (`promotion.py`), and the push
follows the SWITCH record. So a replay has both at the same revisions. A batch that is not valid
changes nothing.

A model that chose its spec by itself may have one that takes no vectors at all. Its first vectors
bring back the newest of its earlier specs that takes them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from livefactor.errors import ColumnError
from livefactor.wire import columns as wire
from livefactor_kernels.solve.prior import dimension_of
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import Loss, ModelSpec, SpecError
from livefactor_kernels.tables import USERS
from livefactor_server.changes.content.embeddings import SIDES
from livefactor_server.log.store import Log
from livefactor_server.model import spec_codec
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import invalid

START_EVENTS = 128.0
"""`solve.start_events` of a model that gets it with first factors (docs/guides/warm_start.md)."""

KEPT_LIMITS = "users_max", "items_max", "producers_max", "value_abs_max", "weight_max"
"""The limits that stay when an earlier spec comes back, so that the model accepts the same."""

logger = logging.getLogger(__name__)


class Recogniser:
    """Switches one model to the spec of its first vectors or factors. Any thread may call it.

    Attributes:
        may_return: whether an earlier spec may come back. A model whose search was settled keeps
            its spec.
    """

    def __init__(
        self,
        name: str,
        state: Callable[[], ModelState],
        log: Log,
        promote: Callable[[ModelSpec], int],
    ) -> None:
        """`state` gives the state in force, and `promote` switches to another spec."""
        self._name, self._state, self._log, self._promote = name, state, log, promote
        self._lock = threading.Lock()
        self.may_return: Callable[[], bool] = lambda: True

    def lacks_part(self, field: str, body: bytes) -> bool:
        """Whether the encoded change `body` in `field` of a request would be the first vectors of
        its side, or the first factors.
        """
        if field not in (wire.EMBEDDINGS, wire.FACTORS):
            return False
        spec = self._state().spec
        if spec.loss != Loss.IMPLICIT:
            return field == wire.EMBEDDINGS and self._earlier(spec) is not None
        if field == wire.FACTORS:
            return not spec.solve.start_events
        if spec.embeddings.dimension and spec.embeddings.user_dimension:
            return False
        try:
            side = SIDES.get(wire.decode_embeddings(body).side)
        except ColumnError:
            # Whoever decodes the change says what is wrong with it.
            return False
        return side is not None and not dimension_of(spec, side)

    def spec_for(self, field: str, body: bytes) -> ModelSpec:
        """The spec with what the encoded change `body` needs: a dimension of vectors, or starts.

        Raises:
            ColumnError: the message is malformed.
            Refused: INVALID_ARGUMENT if the dimension is above the limit.
        """
        spec = self._state().spec
        if field == wire.FACTORS:
            return check(replace(spec, solve=replace(spec.solve, start_events=START_EVENTS)))
        columns = wire.decode_embeddings(body)
        dimension, base = columns.vectors.shape[1], self._earlier(spec) or spec
        changed, features = {"dimension": dimension}, base.features
        if SIDES.get(columns.side) == USERS:
            changed = {"user_dimension": dimension}
            if features.size and not features.prior_events:
                features = replace(features, prior_events=base.embeddings.prior_events)
        embeddings = replace(base.embeddings, **changed)
        try:
            return check(replace(base, embeddings=embeddings, features=features))
        except SpecError as error:
            raise invalid(f"spec: {error}") from None

    def recognise(self, field: str, body: bytes) -> None:
        """Waits until the model has what the change `body` needs, or already something else.

        Raises:
            Refused: as `Engine.promote`.
        """
        with self._lock:
            if not self.lacks_part(field, body):
                return
            spec = self.spec_for(field, body)
            if self._state().spec.loss != Loss.IMPLICIT:
                logger.warning(
                    "model %s: its spec takes no vectors; an earlier one comes back, with dimension %d",
                    self._name,
                    spec.embeddings.dimension,
                )
            self._promote(spec)

    def _earlier(self, spec: ModelSpec) -> ModelSpec | None:
        """The newest earlier spec that takes vectors, if the model left it by itself.

        It keeps what the model accepts. Only specs that a model chose itself have
        `auto.ratings_events` and another loss.
        """
        if spec.loss == Loss.IMPLICIT or not spec.auto.ratings_events or not self.may_return():
            return None
        bodies = (self._log.spec_body, *self._log.switches.values())
        known = [spec_codec.decode(body) for body in bodies]
        found = next((each for each in reversed(known) if each.loss == Loss.IMPLICIT), None)
        if found is None:
            return None
        limits = {name: getattr(spec.limits, name) for name in KEPT_LIMITS}
        return replace(found, context=spec.context, limits=replace(found.limits, **limits))
