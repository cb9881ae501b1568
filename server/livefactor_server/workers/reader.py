"""The reader of one state of a model in the arena."""

from __future__ import annotations

import time

import numpy as np

from livefactor.wire.scoring import ScoreColumns, ScoreQuery
from livefactor_kernels.pins.shared import SharedPin
from livefactor_kernels.scoring.cpu_candidates import CandidateReader, compile_kernels
from livefactor_kernels.tables.head import Changed
from livefactor_kernels.tables.shared import SharedModel, arrays_at
from livefactor_server.engine import short_reads
from livefactor_server.engine.answering.answers import (
    NO_MARKS,
    USUAL,
    Allowance,
    Answers,
    Moment,
    needs_marks,
    with_labels,
)
from livefactor_server.engine.answering.queries import NO_SHIFT
from livefactor_server.engine.readers import AT_ONCE_MAX
from livefactor_server.engine.short_reads import ShortReader
from livefactor_server.model import spec_codec
from livefactor_server.model.availability import SharedMarks
from livefactor_server.model.shared_labels import SharedLabels
from livefactor_server.statuses import Refused
from livefactor_server.workers.messages import ModelEntry

PAUSES_S = (0.0, 0.0005, 0.001, 0.002, 0.004)
"""Seconds after each try of a read. A try fails if rows change before it has read all it needs."""

TRYING_S = 0.01
"""Seconds after which a read is not tried again."""


class SharedReader:
    """Reads one state of a model in the arena. Any thread may call it."""

    def __init__(self, entry: ModelEntry) -> None:
        """Compiles the kernels or loads them, so that no call waits for it."""
        self.entry = entry
        self.lineage, spec_id = bytes.fromhex(entry.lineage), int(entry.spec_id, 16)
        spec, arrays = spec_codec.decode(bytes.fromhex(entry.spec)), arrays_at(entry.places)
        self._model = model = SharedModel(spec, arrays)
        self._marks, self._labels = SharedMarks(_part(arrays, "marks")), SharedLabels(_part(arrays, "labels"))
        self._answers = Answers(spec, self.lineage, spec_id)
        self._candidates = CandidateReader(model.head, model.state["mean"], model.users, model.items)
        self._short: ShortReader | None = None
        if not self._answers.has_histories:
            compile_kernels(self._candidates)
        if short_reads.is_answered(spec):
            self._short = ShortReader(self._candidates, self.lineage, spec_id)
            self._short.answer(b"", 0, 1)
        self._read_once()

    def _read_once(self) -> None:
        """Reads in each way, so that all kernels are loaded."""
        keys = self._model.items.keys[:1].copy()
        events = keys if self._answers.has_histories else None
        for target in ("candidates", "top_k"):
            query = ScoreQuery("", None, 0, keys, target, keys, None, 1, False, True, event_ids=events)
            try:
                self.score(query, USUAL)
            except (Refused, MemoryError):
                # The head will word it.
                return

    @property
    def revision(self) -> int:
        """The published revision."""
        return self._model.head.revision

    def answer(self, raw: bytes, at: int, rows_max: int) -> bytes | None:
        """See `ShortReader.answer`."""
        found = None if self._short is None else self._short.answer(raw, at, rows_max)
        return found if found is not None and self._model.head.is_in_force else None

    def is_quick(self, query: ScoreQuery) -> bool:
        """Whether an answer takes well below a millisecond without a wait."""
        pairs = len(query.user_ids) * len(query.item_ids)
        return self._is_plain(query) and not query.with_labels and pairs <= AT_ONCE_MAX

    def _is_plain(self, query: ScoreQuery) -> bool:
        return query.target == "candidates" and not self._answers.has_histories

    def score(self, query: ScoreQuery, allowance: Allowance) -> ScoreColumns | None:
        """The answer to a checked query. None if rows changed again and again, if this state is not
        in force any more, or if the query has context.

        Raises:
            Refused: as `answers.Answers`.
            MemoryError: this process has too little memory for the read.
        """
        self._answers.check(query)
        if query.context is not None or query.keep:
            # Nothing of it is shared.
            return None
        end = time.monotonic() + TRYING_S
        for pause in PAUSES_S:
            try:
                found = self._try(query, allowance)
            except Changed:
                if self.is_quick(query) or time.monotonic() > end:
                    return None
                self._model.head.wait()
                time.sleep(pause)
            else:
                # What was withdrawn before this look may read as zeros.
                return found if self._model.head.is_in_force else None
        return None

    def _try(self, query: ScoreQuery, allowance: Allowance) -> ScoreColumns:
        if self._is_plain(query):
            read = self._candidates.read(query.user_ids, query.item_ids, query.offsets)
            if read is None:
                raise Changed
            found = self._answers.listed(query, read)
        else:
            model, pin = self._model, SharedPin(self._model)
            marks = self._marks.bits(pin.revision) if needs_marks(query) else NO_MARKS
            found = self._answers.answer(
                query, Moment(pin, model.users, model.items, marks, NO_SHIFT), allowance
            )
        if not query.with_labels:
            return found
        names = dict(zip(found.item_ids.tolist(), self._labels.of(found.item_ids), strict=True))
        return with_labels(found, names.__getitem__, allowance.answer_bytes_max)


def _part(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    prefix = f"{name}."
    return {each.removeprefix(prefix): array for each, array in arrays.items() if each.startswith(prefix)}
