"""Applies many logged records of interactions at once, from the columns in which they were read.

`apply.py` takes records one by one. Both ways place keys and learn with the same functions.
"""

from __future__ import annotations

import numpy as np

from livefactor_server.changes.apply import place_keys
from livefactor_server.changes.bodies import decode_bodies
from livefactor_server.changes.events import learn
from livefactor_server.changes.rejects import decode_rejects
from livefactor_server.log.columns import COUNT, PRODUCER, REJECTS, REJECTS_AT, SALT_AT, SEQUENCE, Columns
from livefactor_server.log.format import SALT_BYTES
from livefactor_server.model.producers import RING, Outcome
from livefactor_server.model.state import ModelState


def apply_columns(state: ModelState, records: Columns) -> int:
    """Places and applies interactions records, which continue the revision and the hash chain.

    Returns the number of records that were applied, from the first one on. It is smaller than the
    number of records if the body of one is unusual. `apply.apply` takes that one.
    """
    assert records.revision == state.revision + 1, (records.revision, state.revision)
    assert records.previous == state.log_hash, (records.revision, records.previous, state.log_hash)
    events, user_ids, item_ids = decode_bodies(records)
    count = len(events.ends)
    if not count:
        return 0
    done = records[:count]
    learn(
        state, records.revision, events, place_keys(state, user_ids, item_ids, events.ends, events.ends, True)
    )
    state.marks.publish()
    _settle(state, done)
    state.revision, state.log_hash = records.revision + count - 1, done.hashes[-1].tobytes()
    return count


def skip_columns(state: ModelState, records: Columns) -> None:
    """Passes interactions records that the state skips (`history/rollback.py`)."""
    last = records.revision + len(records) - 1
    state.backend.advance(last)
    state.marks.publish()
    _settle(state, records)
    state.revision, state.log_hash = last, records.hashes[-1].tobytes()


def _settle(state: ModelState, records: Columns) -> None:
    """Stores the outcomes for retries. Only the last ones of each producer are kept."""
    numbers: dict[bytes, int] = {}
    of_row = np.array([numbers.setdefault(name, len(numbers)) for name, _ in records.producers])
    of_record = of_row[records.fields[:, PRODUCER].astype(np.int64)]
    for name, number in numbers.items():
        own = np.flatnonzero(of_record == number) if len(numbers) > 1 else np.arange(len(records))
        if name and own.size:
            outcomes = [_outcome(records, index) for index in own[-RING:].tolist()]
            state.producers.record_all(name, records.fields[own, SEQUENCE], outcomes)


def _outcome(records: Columns, index: int) -> Outcome:
    row = records.fields[index]
    salt_at, rejects_at = int(row[SALT_AT]), int(row[REJECTS_AT])
    summary = records.memory[rejects_at : rejects_at + int(row[REJECTS])].tobytes()
    rejects, received_hash = decode_rejects(summary, records.commitments[index].tobytes())
    return Outcome(
        sequence=int(row[SEQUENCE]),
        revision=records.revision + index,
        accepted=int(row[COUNT]),
        rejected_count=rejects.count,
        rejects=rejects.listed,
        salt=records.memory[salt_at : salt_at + SALT_BYTES].tobytes(),
        received_hash=received_hash,
    )
