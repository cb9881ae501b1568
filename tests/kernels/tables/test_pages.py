"""Pages of histories: the places of rings, what they cost, and what a pin reads of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.history.cpu import Recorder
from livefactor_kernels.pins import remembered
from livefactor_kernels.spec.model import Counts, History, Limits, Loss, ModelSpec, OptimizerKind
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.update import Update
from synthetic import assert_same, make_spec, pair, push, read_pin, restore, unlike


def spec(users: int, items: int, rows: int = 512, **options: object) -> ModelSpec:
    limits = Limits(users_max=rows, items_max=rows, value_abs_max=10.0, error_max=10.0)
    return ModelSpec(k=1, limits=limits, history=History(users=users, items=items), **options)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=40), max_size=6),
    st.integers(0, 5),
)
def test_a_pin_reads_the_rings_of_its_revision(records: list, at: int) -> None:
    model = CpuModel(make_spec(Loss.LOGISTIC, OptimizerKind.SGD, history=History(users=16, items=32)))
    pinned, expected, wrapped = None, {}, 0
    names = {USERS: ("seen_rows", "seen_visits", "seen_count"), ITEMS: ("seen_weights", "seen_rows")}
    rings: dict[tuple[int, int], list[int]] = {}
    for number, record in enumerate(records):
        if number == at:
            pinned = model.pin()
            expected = read_pin(pinned)
        if record:
            push(model, [user for user, _ in record], [item for _, item in record])
        for user, item in record:
            rows = (
                int(model.users.find(np.array([user], np.uint64), 99)[0]),
                int(model.items.find(np.array([item], np.uint64), 99)[0]),
            )
            rings.setdefault((USERS, rows[0]), []).append(rows[1])
            rings.setdefault((ITEMS, rows[1]), []).append(rows[0])
        for (side, row), events in rings.items():
            length = (16, 32)[side]
            ring = [0] * length
            for place, other in enumerate(events):
                ring[place % length] = other
            wrapped += len(events) > length
            got = (model.users, model.items)[side].sections(row + 1)
            assert got["seen_rows"][row].tolist() == ring and got["seen_count"][row] == len(events)
        if pinned is not None:
            again = read_pin(pinned)
            assert all(again[name].tobytes() == expected[name].tobytes() for name in expected)
            for side, table in ((USERS, "users"), (ITEMS, "items")):
                rows = np.arange(pinned.counts[side], dtype=np.uint32)[::-1].copy()
                for name, got in pinned.read(side, rows, names[side]).items():
                    whole = expected[f"{table}.{name}"][rows]
                    if got.ndim == 2:
                        # The last places of all rows are left out if they are empty.
                        got = np.pad(got, ((0, 0), (0, whole.shape[1] - got.shape[1])))
                    assert got.tobytes() == whole.tobytes()
    if pinned is not None:
        pinned.release()
        assert model.pins.copied_rows == 0


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=40), max_size=6),
    st.integers(0, 5),
)
def test_sections_hold_the_events_that_are_remembered(records: list, at: int) -> None:
    """With `history.paged`: on both backends, at a pin, and after they are loaded."""
    options = {"history": History(users=16, items=32, paged=True), "counts": Counts(neighbors=16, span=8)}
    models = pair(make_spec(Loss.LOGISTIC, OptimizerKind.SGD, **options))
    pins, events = [], 0
    for number, record in enumerate(records):
        if number == at:
            pins = [model.pin() for model in models]
            expected = read_pin(pins[1])
            assert expected["users.seen_rows"].shape == (remembered(pins[0], models[0].spec)[USERS],)
        if record:
            events += len(record)
            for model in models:
                push(model, *zip(*record, strict=True), weights=np.arange(len(record)) % 3)
        assert_same(*models)
        assert all(unlike(read_pin(pin), expected) == [] for pin in pins)
    loaded = pair(models[0].spec)
    for model, other in zip(loaded, models, strict=True):
        restore(model, other, events)
        push(model, [0, 9], [0, 9])
        push(other, [0, 9], [0, 9])
    assert_same(loaded[0], models[1])
    assert_same(models[0], loaded[1])
    sections, empty = models[0].sections(USERS, 1), CpuModel(models[0].spec)
    sections["seen_rows"] = np.zeros(40, np.uint32)
    with pytest.raises(ValueError, match="load_sections: seen_rows"):
        empty.load_sections(USERS, sections, 1)


@pytest.mark.parametrize("rated", [False, True])
def test_memory_follows_what_is_remembered(rated: bool) -> None:
    """Zipf lengths at a cap of 4,096: at most 1.3 times the bytes of the events, also with values
    that are not 1.
    """
    many = spec(4096, 4096, rows=1 << 16)
    users, items = Table(many, USERS), Table(many, ITEMS)
    recorder = Recorder(many, users, items)
    rng = np.random.default_rng(0)
    events = 1_000_000
    columns = [
        table.allocate(np.minimum(rng.zipf(1.3, events), 10_000_000).astype(np.uint64) % 20_000)
        for table in (users, items)
    ]
    values = rng.integers(1, 6, events).astype(np.float32) if rated else None
    recorder.record(
        Update(1, columns[0], columns[1], values, None, users.allocated, items.allocated), 0, events
    )
    for table, event_bytes in ((users, 16), (items, 12)):
        seen = table.history["seen_count"][: table.allocated]
        remembered = int(np.minimum(seen, 4096).sum()) * event_bytes
        least = remembered if rated else remembered // 2
        ends = 8 * table.allocated
        assert 0.6 * least < table.page_bytes + ends < (1.3 if rated else 0.8) * remembered


def test_rows_that_are_loaded_go_on_as_before() -> None:
    counted = spec(16, 16, counts=Counts(neighbors=16, span=8))
    first, second = CpuModel(counted), CpuModel(counted)
    rng = np.random.default_rng(3)
    push(first, rng.integers(0, 9, 300).tolist(), rng.integers(0, 9, 300).tolist())
    for side in (USERS, ITEMS):
        count = first.published[side]
        second.load_sections(side, {n: v.copy() for n, v in first.sections(side, count).items()}, count)
    second.load_state({**first.state(), "events": np.array([300], np.uint64)})
    second.advance(first.revision, *first.published)
    more = rng.integers(0, 12, (2, 60))
    for model in (first, second):
        push(model, more[0].tolist(), more[1].tolist())
    for side in (USERS, ITEMS):
        one, other = (model.sections(side, model.published[side]) for model in (first, second))
        assert [name for name in one if one[name].tobytes() != other[name].tobytes()] == []
    assert first.users.page_bytes == second.users.page_bytes
