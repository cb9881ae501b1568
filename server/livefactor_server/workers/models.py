"""The models that a worker answers from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields

from livefactor.errors import ColumnError
from livefactor.wire.scoring import ScoreColumns, ScoreQuery, encode_score_response
from livefactor_kernels.scoring.cpu_candidates import CandidateReader, compile_kernels
from livefactor_kernels.tables.shared import model_at
from livefactor_server.engine.readers import AT_ONCE_MAX, listed
from livefactor_server.engine.short_reads import ShortReader, model_of
from livefactor_server.hosting.host import DEFAULT_MODEL
from livefactor_server.rpc import decode
from livefactor_server.rpc.calls import ServiceSettings
from livefactor_server.rpc.guards import Call
from livefactor_server.rpc.lanes import Lane
from livefactor_server.statuses import Refused
from livefactor_server.workers.messages import ModelEntry

_FIELDS = (
    "model", "min_lineage", "min_revision", "user_ids", "target", "item_ids", "offsets", "k",
    "include_unavailable", "query_weight", "context_weight",
)  # fmt: skip
"""What workers know of a query for candidates, and what means nothing in one."""

_HEADS_FIELDS = {
    field.name: False if field.default is MISSING else field.default
    for field in fields(ScoreQuery)
    if field.name not in _FIELDS
}
"""All other fields, also later ones, with the values that say nothing."""


class SharedReader:
    """Reads one state of a model in the arena."""

    def __init__(self, entry: ModelEntry) -> None:
        """Compiles the kernels or loads them, so that no call waits for it."""
        self.entry = entry
        self.lineage, self._spec_id = bytes.fromhex(entry.lineage), int(entry.spec_id, 16)
        self._model = model_at(entry.places)
        self._reader = CandidateReader(*self._model)
        compile_kernels(self._reader)
        self._short = ShortReader(self._reader, self.lineage, self._spec_id) if entry.is_short else None
        if self._short is not None:
            self._short.answer(b"", 0, 1)

    @property
    def revision(self) -> int:
        """The published revision."""
        return self._model.head.revision

    def answer(self, raw: bytes, at: int, rows_max: int) -> bytes | None:
        """See `ShortReader.answer`."""
        found = None if self._short is None else self._short.answer(raw, at, rows_max)
        return found if found is not None and self._model.head.is_in_force else None

    def score(self, query: ScoreQuery) -> ScoreColumns | None:
        """The answer to a checked query for candidates. None if rows changed again and again, or if
        this state is not in force any more.
        """
        found = self._reader.read(query.user_ids, query.item_ids, query.offsets)
        if found is None or not self._model.head.is_in_force:
            return None
        return listed(query, found, self.lineage, self._spec_id)


class Models:
    """The readers of all models. Only one thread calls `replace`."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._readers: dict[str, SharedReader] = {}

    def replace(self, entries: Sequence[ModelEntry]) -> None:
        """Answers from these models alone from now on."""
        before = {reader.entry: reader for reader in self._readers.values()}
        self._readers = {entry.name: before.get(entry) or SharedReader(entry) for entry in entries}

    async def answer(self, raw: bytes, call: Call, lane: Lane) -> bytes | None:
        """The answer to a Score message, or None: then the head answers it, or words its error.

        `lane` is for reads that take longer.

        Raises:
            Refused: RESOURCE_EXHAUSTED if too many reads run and wait.
        """
        if (short := model_of(raw)) is not None:
            reader = self._reader_for(call, short[0])
            answer = None if reader is None else reader.answer(raw, short[1], self._settings.score_rows_max)
            if answer is not None:
                return answer
        try:
            query = decode.score_query(raw, self._settings.score_users_max, self._settings.score_rows_max)
        except (Refused, ColumnError):
            return None
        reader = self._reader_for(call, query.model)
        if reader is None or not _is_plain(query) or not _is_reached(query, reader):
            return None
        users, items = len(query.user_ids), len(query.item_ids)
        if users * items <= AT_ONCE_MAX:
            return _encoded(reader, query)
        return await lane.run(len(raw), _encoded, reader, query, model=reader.entry.name)

    def _reader_for(self, call: Call, name: str) -> SharedReader | None:
        try:
            call.allow(name or DEFAULT_MODEL)
        except Refused:
            return None
        reader = self._readers.get(name or DEFAULT_MODEL)
        call.has_model = reader is not None
        return reader


def _is_plain(query: ScoreQuery) -> bool:
    return query.target == "candidates" and all(
        getattr(query, name) is default for name, default in _HEADS_FIELDS.items()
    )


def _is_reached(query: ScoreQuery, reader: SharedReader) -> bool:
    """Whether the model has published the position for which the query waits. Otherwise it waits in
    the head.
    """
    if query.min_lineage is None:
        return True
    return query.min_lineage in (b"", reader.lineage) and reader.revision >= query.min_revision


def _encoded(reader: SharedReader, query: ScoreQuery) -> bytes | None:
    try:
        found = reader.score(query)
    except MemoryError:
        return None
    return None if found is None else encode_score_response(found)
