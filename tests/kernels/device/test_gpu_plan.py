"""The host's part of the GPU backend: the spans of a record, and the buffers that carry its
columns.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from livefactor_kernels.device import plan as cuda_plan
from livefactor_kernels.device.machine import SimulatedDevice
from livefactor_kernels.device.plan import KEY_BITS, spans_of
from livefactor_kernels.device.staging import Staging
from livefactor_kernels.history.cuda import PIECE_EVENTS, pieces_of
from livefactor_kernels.solve.cuda import element
from livefactor_kernels.spec.model import Loss, ModelSpec
from synthetic import make_spec

OFFSETS = {f"{name}_at": at for at, name in enumerate(("users", "items", "values", "weights", "means"))}


def spans(spec: ModelSpec, events: int, width: int = 0, rows: int = 100) -> list[cuda_plan.Span]:
    return spans_of(spec, events, width, rows, OFFSETS)


def test_spans_are_whole_micro_batches_and_cover_a_record(monkeypatch) -> None:
    monkeypatch.setattr(cuda_plan, "SPAN_ENTRIES", 100)
    found = spans(make_spec(Loss.LOGISTIC, negatives=1, micro_batch=8), 50, 1)
    assert [(span.first, span.events, span.batches) for span in found] == [
        (0, 24, 3),
        (24, 24, 3),
        (48, 2, 1),
    ]
    assert {(span.user_entries, span.item_entries, span.width, span.batch) for span in found} == {
        (2, 2, 1, 8)
    }
    assert [(span.users_at, span.means_at) for span in found] == [(0, 4)] * 3
    (only,) = spans(make_spec(Loss.SQUARED, micro_batch=1000), 300)
    # A micro-batch is never cut.
    assert (only.events, only.batches) == (300, 1)


@pytest.mark.parametrize(
    ("loss", "negatives", "batch", "events", "rows"),
    [
        (Loss.SQUARED, 0, 1, 65_536, 1 << 10),
        (Loss.SQUARED, 0, 1, 65_536, (1 << 32) - 1),
        (Loss.BPR, 1024, 65_536, 65_536, (1 << 32) - 1),
        (Loss.BPR, 1024, 1, 64, 1 << 31),
        (Loss.LOGISTIC, 8, 16, 20_000, 1 << 30),
    ],
)
def test_keys_have_room_for_every_group_row_and_entry(loss, negatives, batch, events, rows) -> None:
    spec = ModelSpec(k=16, loss=loss, negatives=negatives, micro_batch=batch)
    found = spans(spec, events, negatives, rows)
    assert sum(span.events for span in found) == events
    for span in found:
        assert rows - 1 < 1 << span.row_bits
        assert span.events * max(span.user_entries, span.item_entries) <= 1 << span.entry_bits
        groups = 2 * span.batches
        assert (groups << (span.row_bits + span.entry_bits)) - 1 < int(cuda_plan.UNUSED)
        assert (groups - 1).bit_length() + span.row_bits + span.entry_bits <= KEY_BITS


def test_a_record_that_can_change_nothing_has_no_span() -> None:
    assert spans(make_spec(Loss.BPR, negatives=3), 10, 0) == []
    assert spans(make_spec(Loss.SQUARED), 0) == []


class CountingDevice(SimulatedDevice):
    """If at most two records are in flight, a third one waits for the first."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[int] = []


def test_a_buffer_is_written_again_only_when_its_record_is_done() -> None:
    device = CountingDevice()
    staging = Staging(device)
    for record in range(4):
        staging.wait_for_turn()
        slot, offsets = staging.send(
            {"a": np.arange(3, dtype=np.uint32), "b": np.array([2.5, record], np.float32)}
        )
        assert offsets == {"a": 0, "b": 16}
        assert slot.words[:3].tolist() == [0, 1, 2] and slot.floats[4:6].tolist() == [2.5, record]
        slot.done = lambda record=record: device.waited.append(record)
    assert device.waited[-1] == 1 and set(device.waited) == {0, 1}


def test_buffers_grow_with_the_records() -> None:
    staging = Staging(SimulatedDevice())
    for size in (0, 10, 100_000, 5):
        slot, offsets = staging.send(
            {"keys": np.arange(size, dtype=np.uint64), "none": np.empty(0, np.float32)}
        )
        assert offsets == {"keys": 0, "none": size * 8}
        if size:
            assert slot.keys[:size].tolist() == list(range(size))


@given(events=st.integers(0, 200_000), batch=st.integers(1, PIECE_EVENTS))
@example(events=PIECE_EVENTS, batch=1)
@example(events=2 * PIECE_EVENTS, batch=PIECE_EVENTS)
def test_pieces_are_whole_micro_batches_and_their_keys_fit(events, batch) -> None:
    pieces = list(pieces_of(events, batch, {**OFFSETS, "times_at": -1}))
    assert [piece.first for piece in pieces] == np.cumsum([0, *(p.events for p in pieces)])[:-1].tolist()
    assert sum(piece.events for piece in pieces) == events
    assert all(piece.events % batch == 0 for piece in pieces[:-1])
    # A key has the micro-batch, 32 bits of row, and the event.
    for piece in pieces:
        assert 0 < piece.events <= 1 << 16
        assert -(-piece.events // batch) << (32 + 16) <= 1 << 63


@given(size=st.integers(1, 60))
def test_every_element_of_a_lower_triangle_is_one_threads(size) -> None:
    found = [element(number, size) for number in range((size + 1) // 2 * (size + 1))]
    assert sorted(at for at in found if at[1] >= 0) == [(p, q) for p in range(size) for q in range(p + 1)]
