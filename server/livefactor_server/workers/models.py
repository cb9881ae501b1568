"""The models that a worker answers from."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from livefactor.errors import ColumnError
from livefactor.wire.limits import MESSAGE_BYTES_MAX
from livefactor.wire.scoring import ScoreQuery, encode_score_response
from livefactor_server.engine.answering.answers import Allowance
from livefactor_server.engine.short_reads import model_of
from livefactor_server.hosting.host import DEFAULT_MODEL
from livefactor_server.rpc import decode
from livefactor_server.rpc.calls import ServiceSettings
from livefactor_server.rpc.guards import Call
from livefactor_server.rpc.lanes import Lane
from livefactor_server.statuses import Refused
from livefactor_server.workers.messages import ModelEntry
from livefactor_server.workers.reader import SharedReader

LOOKS, LOOK_S = 50, 0.001
"""How often a call looks for its `min_position` here, and the seconds between two looks. Then it
waits in the head.
"""


class Models:
    """The readers of all models. Only one thread calls `replace`."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._readers: dict[str, SharedReader] = {}

    def replace(self, entries: Sequence[ModelEntry]) -> None:
        """Answers from these models alone from now on."""
        before = {reader.entry: reader for reader in self._readers.values()}
        self._readers = {entry.name: before.get(entry) or SharedReader(entry) for entry in entries}

    def answer_at_once(self, raw: bytes, call: Call) -> bytes | None:
        """The answer to a usual small Score message, or None. Any thread may call it."""
        if (short := model_of(raw)) is None:
            return None
        reader = self._reader_for(call, short[0])
        return None if reader is None else reader.answer(raw, short[1], self._settings.score_rows_max)

    async def answer(self, raw: bytes, call: Call, lane: Lane) -> bytes | None:
        """The answer to a Score message, or None: then the head answers it, or words its error.

        `lane` is for reads that take longer.

        Raises:
            Refused: RESOURCE_EXHAUSTED if too many reads run and wait.
        """
        settings = self._settings
        if (answer := self.answer_at_once(raw, call)) is not None:
            return answer
        try:
            query = decode.score_query(raw, settings.score_users_max, settings.score_rows_max)
        except (Refused, ColumnError):
            return None
        reader = self._reader_for(call, query.model)
        if reader is None or not await _is_reached(query, reader):
            return None
        allowance = Allowance(settings.score_pairs_max, MESSAGE_BYTES_MAX, call.check)
        if reader.is_quick(query):
            return _encoded(reader, query, allowance)
        return await lane.run(len(raw), _encoded, reader, query, allowance, model=reader.entry.name)

    def _reader_for(self, call: Call, name: str) -> SharedReader | None:
        try:
            call.allow(name or DEFAULT_MODEL)
        except Refused:
            return None
        reader = self._readers.get(name or DEFAULT_MODEL)
        call.has_model = reader is not None
        return reader


async def _is_reached(query: ScoreQuery, reader: SharedReader) -> bool:
    """Whether the model has published the position for which the query waits, or does so soon."""
    if query.min_lineage is None:
        return True
    if query.min_lineage not in (b"", reader.lineage):
        return False
    for _look in range(LOOKS):
        if reader.revision >= query.min_revision:
            return True
        await asyncio.sleep(LOOK_S)
    return reader.revision >= query.min_revision


def _encoded(reader: SharedReader, query: ScoreQuery, allowance: Allowance) -> bytes | None:
    try:
        found = reader.score(query, allowance)
    except (MemoryError, Refused):
        return None
    return None if found is None else encode_score_response(found)
