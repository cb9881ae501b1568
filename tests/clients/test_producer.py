"""The Producer against a server with planted faults: exactly once, in order, within limits, with
clear errors.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_server import LINEAGE, FakeServer, Fault
from livefactor.channel import open_channel
from livefactor.errors import (
    BufferFull,
    ColumnError,
    DeadlineExceeded,
    FlushTimeout,
    InvalidArgument,
    NotFound,
    ProducerClosed,
    ProducerFenced,
    Unavailable,
)
from livefactor.pushing.batching import PREFIX_BYTES_MAX, BatchSettings, RowReject
from livefactor.pushing.producer import Producer
from livefactor.pushing.sending import ProducerStatus

EACH = BatchSettings(latency_ms_max=0)
BY_COUNT = BatchSettings(events_max=100, latency_ms_max=None)
WAIT_S = 20.0


def users(fake: FakeServer) -> list[int]:
    return [user for user, _ in fake.applied]


def test_rows_arrive_in_order_and_the_ack_has_their_position(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    with make(batch=BY_COUNT) as producer:
        first = producer.push(range(150), [7] * 150, values=1.5, times=1_500_000_012)
        second = producer.push(
            np.arange(150, 310, dtype=np.uint64),
            np.full(160, 8, np.uint64),
            values=[2.0] * 160,
            times=1_500_000_013,
        )
        assert first.result(WAIT_S).position.revision == 2
        ack = second.result(WAIT_S)
        assert (ack.accepted, ack.rejected_count, ack.position.lineage) == (160, 0, LINEAGE)
        assert producer.flush(WAIT_S) == ack.position
        assert producer.last_sequence == fake.revision == ack.position.revision
    assert users(fake) == list(range(310))
    assert fake.batch_rows == [100, 100, 100, 10]
    assert fake.changes[1][1].values.tolist() == [1.5] * 50 + [2.0] * 50
    assert fake.changes[1][1].times_us.tolist() == [1_500_000_012_000_000] * 50 + [1_500_000_013_000_000] * 50
    assert fake.changes[1][1].weights is None


def test_one_large_push_and_many_small_ones_make_the_same_batches(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    with make("a", batch=BY_COUNT) as producer:
        producer.push(np.arange(250), np.arange(250))
    cuts, fake.batch_rows = fake.batch_rows, []
    with make("b", batch=BY_COUNT) as producer:
        for row in range(250):
            producer.push(row, row)
    assert cuts == fake.batch_rows == [100, 100, 50]
    assert users(fake) == [*range(250), *range(250)]


def test_the_callers_arrays_may_change_after_a_push(fake: FakeServer, make: Callable[..., Producer]) -> None:
    fake.gate.clear()
    ids = np.arange(150, dtype=np.uint64)
    with make(batch=BY_COUNT) as producer:
        producer.push(ids, ids)
        ids[:] = 0
        fake.gate.set()
    assert users(fake) == list(range(150))


def test_a_batch_is_sent_after_its_maximum_latency(fake: FakeServer, make: Callable[..., Producer]) -> None:
    producer = make(batch=BatchSettings(latency_ms_max=1.0))
    producer.push([1, 2], [3, 4])
    fake.await_requests(1)
    assert producer.flush(WAIT_S).revision == 1


def test_other_columns_begin_another_batch(fake: FakeServer, make: Callable[..., Producer]) -> None:
    with make(batch=BY_COUNT) as producer:
        producer.push([1], [1])
        producer.push([2], [2], values=[1.0])
    assert fake.batch_rows == [1, 1]
    assert fake.changes[0][1].values is None


def test_labels_and_availability_keep_their_place_among_rows(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    with make(batch=BY_COUNT) as producer:
        producer.push([1], [2])
        labels = producer.push_labels("item", [2, 3], ["milk", ""])
        away = producer.set_available([3], False)
        producer.push([1], [3])
        assert labels.result(WAIT_S).accepted == 2
        assert away.result(WAIT_S).position.revision == 3
    assert [kind for kind, _ in fake.changes] == ["interactions", "labels", "availability", "interactions"]
    assert (fake.changes[1][1].labels, fake.changes[1][1].side) == (["milk", ""], 2)
    assert (fake.changes[2][1].item_ids.tolist(), fake.changes[2][1].available) == ([3], False)


def test_labels_are_divided_to_fit_messages(fake: FakeServer, make: Callable[..., Producer]) -> None:
    texts = ["x" * (row % 900) for row in range(300)]
    with make(batch=BatchSettings(bytes_max=8192)) as producer:
        assert producer.push_labels("user", range(300), texts).result(WAIT_S).accepted == 300
    assert [text for _, change in fake.changes for text in change.labels] == texts
    assert len(fake.changes) > 5
    assert max(len(change.body) for _, change in fake.changes) <= 8192 - PREFIX_BYTES_MAX


def test_a_producer_resumes_behind_its_last_sequence(fake: FakeServer, make: Callable[..., Producer]) -> None:
    with make(batch=EACH) as producer:
        producer.push([1], [1])
        producer.push([2], [2])
    with make(batch=EACH) as producer:
        assert producer.last_sequence == 2
        producer.push([3], [3])
    assert users(fake) == [1, 2, 3]
    assert fake.producers["p"].last == 3


FAULTS = st.lists(st.sampled_from(list(Fault)), max_size=12)


@settings(max_examples=25, deadline=None)
@given(FAULTS, st.sets(st.integers(0, 29), max_size=4), st.lists(st.integers(1, 4), min_size=1, max_size=12))
def test_every_row_is_applied_once_and_in_order_over_all_faults(
    faults: list[Fault], refused: set[int], sizes: list[int]
) -> None:
    with TemporaryDirectory(prefix="lf") as folder:
        fake = FakeServer(Path(folder)).start()
        try:
            fake.script.extend(faults)
            fake.refuse_users = refused
            producer = Producer(fake.target, "p", batch=EACH)
            start, receipts = 0, []
            for size in sizes:
                rows = range(start, start + size)
                receipts.append((rows, producer.push(rows, rows)))
                start += size
            good: list[int] = []
            for rows, receipt in receipts:
                error = receipt.exception(WAIT_S)
                assert isinstance(error, InvalidArgument) == bool(refused & set(rows))
                good += rows if error is None else ()
            producer.close(WAIT_S)
        finally:
            fake.stop()
    assert users(fake) == good
    assert fake.producers["p"].last == fake.revision == producer.last_sequence


def test_a_refused_batch_in_the_middle_of_a_window(fake: FakeServer, make: Callable[..., Producer]) -> None:
    fake.refuse_users = {20}
    fake.gate.clear()
    producer = make(batch=EACH)
    receipts = [producer.push([user], [1]) for user in range(50)]
    fake.await_requests(1)
    fake.gate.set()
    outcomes = [receipt.exception(WAIT_S) for receipt in receipts]
    assert [user for user, error in enumerate(outcomes) if error is not None] == [20]
    assert isinstance(outcomes[20], InvalidArgument)
    assert "refused, as ordered" in str(outcomes[20])
    assert users(fake) == [user for user in range(50) if user != 20]
    assert producer.flush(WAIT_S).revision == 49, "a refusal that a receipt told is not told again"


def test_flush_raises_a_refusal_that_no_receipt_has_raised(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    fake.refuse_users = {1}
    producer = make(batch=EACH)
    producer.push([1], [1])
    producer.push([2], [1])
    with pytest.raises(InvalidArgument, match="refused, as ordered"):
        producer.flush(WAIT_S)
    assert producer.flush(WAIT_S).revision == 1


def test_rejected_rows_come_back_with_the_rows_of_their_push(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    fake.reject_users = {5, 120, 160}
    told: list[tuple[RowReject, ...]] = []
    with make(batch=BY_COUNT, on_reject=told.append) as producer:
        first = producer.push(range(90), range(90))
        second = producer.push(range(90, 190), range(90, 190))
    ack = second.result(0)
    assert [(reject.row, reject.reason) for reject in ack.rejects] == [(30, "NOT_FINITE"), (70, "NOT_FINITE")]
    assert (ack.accepted, ack.rejected_count, ack.complete) == (98, 2, True)
    assert [reject.row for reject in first.result(0).rejects] == [5]
    assert [[reject.row for reject in rejects] for rejects in told] == [[5], [30, 70]]


def test_rejects_beyond_the_listed_ones_are_counted_if_possible(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    fake.reject_users = set(range(1000, 1150))
    with make(batch=BatchSettings(events_max=200, latency_ms_max=None)) as producer:
        alone = producer.push(range(1000, 1200), range(200))
        shared = producer.push(range(1000, 1199), range(199)), producer.push(7, 7)
    assert (alone.result(0).rejected_count, alone.result(0).accepted, alone.result(0).complete) == (
        150,
        50,
        True,
    )
    assert [receipt.result(0).complete for receipt in shared] == [False, False]
    assert shared[0].result(0).rejected_count == len(shared[0].result(0).rejects) == 100


def test_without_a_callback_rejects_are_logged_once(
    fake: FakeServer, make: Callable[..., Producer], caplog: pytest.LogCaptureFixture
) -> None:
    fake.reject_users = {1, 2}
    with make() as producer:
        producer.push([1, 2, 3], [1, 1, 1])
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "2 of the 3 rows of batch 1 were rejected, the first for: row 0: not finite" in record.getMessage()


def test_a_full_buffer_blocks_then_raises_and_takes_nothing(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    fake.gate.clear()
    producer = make(batch=EACH, buffer_events_max=10)
    producer.push(range(6), range(6))
    with pytest.raises(BufferFull, match=r"no room for 5 rows within 0\.01 s: 6 of 10"):
        producer.push(range(6, 11), range(5), timeout=0.01)
    assert producer.status.buffered_events == 6
    late = threading.Thread(target=producer.push, args=(range(6, 11), range(5)))
    late.start()
    fake.gate.set()
    late.join(WAIT_S)
    producer.flush(WAIT_S)
    assert users(fake) == list(range(11))


def test_a_push_larger_than_the_buffer_waits_until_it_is_empty(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    with make(batch=EACH, buffer_events_max=10) as producer:
        producer.push(range(10), range(10))
        producer.push(range(10, 40), range(30), timeout=WAIT_S)
    assert users(fake) == list(range(40))


def test_a_buffer_smaller_than_a_batch_does_not_wait_for_itself(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    with make(batch=BY_COUNT, buffer_events_max=10) as producer:
        for start in range(0, 250, 5):
            producer.push(range(start, start + 5), 1 + np.arange(5), timeout=WAIT_S)
    assert users(fake) == list(range(250))
    assert fake.batch_rows == [100, 100, 50], "cut by count alone, whatever the buffer"


def test_a_producer_waits_for_a_server_logs_it_and_loses_nothing(
    fake: FakeServer, make: Callable[..., Producer], caplog: pytest.LogCaptureFixture
) -> None:
    waited = threading.Event()
    seen: list[ProducerStatus] = []

    def on_wait(status: ProducerStatus) -> None:
        seen.append(status)
        if status.buffered_events == 3:
            waited.set()

    producer = make(batch=EACH, on_wait=on_wait)
    producer.push([0], [0]).result(WAIT_S)
    fake.stop()
    for user in (1, 2, 3):
        producer.push([user], [0])
    assert waited.wait(WAIT_S)
    with pytest.raises(
        FlushTimeout, match=r"3 events are not acknowledged after 0\.01 s \(waiting for UNAVAILABLE"
    ):
        producer.flush(0.01)
    assert producer.status.waiting_for.startswith("UNAVAILABLE")
    fake.start()
    assert producer.flush(WAIT_S).revision == 4
    assert producer.status.waiting_for == ""
    assert users(fake) == [0, 1, 2, 3]
    said = [record for record in caplog.records if "waiting for the server" in record.getMessage()]
    assert len(said) == 1, "said once, not at every try"
    assert seen[-1].last_sequence == 1


def test_a_restart_under_load_loses_and_repeats_nothing(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    producer = make(batch=BatchSettings(events_max=7, latency_ms_max=0.5))
    for round_ in range(4):
        for user in range(200 * round_, 200 * round_ + 200):
            producer.push([user], [0])
        fake.await_requests(fake.requests + 1)
        fake.stop()
        fake.start()
    producer.close(WAIT_S)
    assert users(fake) == list(range(800))


def test_a_fenced_producer_raises_at_the_next_push_and_flush(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    old = make(batch=EACH)
    old.push([1], [1]).result(WAIT_S)
    make(batch=EACH)
    receipt = old.push([2], [2])
    with pytest.raises(ProducerFenced, match="fenced"):
        receipt.result(WAIT_S)
    with pytest.raises(ProducerFenced):
        old.push([3], [3])
    with pytest.raises(ProducerFenced):
        old.flush(WAIT_S)
    assert users(fake) == [1]


def test_opening_waits_for_a_server_that_starts(fake: FakeServer, make: Callable[..., Producer]) -> None:
    fake.open_status.extend([grpc.StatusCode.UNAVAILABLE] * 3)
    assert make().status.epoch == 1


def test_opening_times_out_and_raises_permanent_errors_at_once(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    fake.open_status.append(grpc.StatusCode.NOT_FOUND)
    with pytest.raises(NotFound, match="as ordered"):
        make(model="none")
    fake.stop()
    with pytest.raises(Unavailable):
        make(open_timeout=0.01)


def test_a_closed_producer_takes_nothing(fake: FakeServer, make: Callable[..., Producer]) -> None:
    producer = make()
    producer.close()
    producer.close()
    with pytest.raises(ProducerClosed):
        producer.push([1], [1])
    with pytest.raises(ProducerClosed):
        producer.flush()


def test_closing_without_a_server_ends_in_time_and_fails_what_is_left(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    producer = make(batch=EACH)
    fake.stop()
    receipt = producer.push([1], [1])
    with pytest.raises(FlushTimeout):
        producer.close(0.05)
    with pytest.raises(ProducerClosed):
        receipt.result(WAIT_S)
    assert "livefactor-producer-p" not in {thread.name for thread in threading.enumerate()}


def test_leaving_a_with_block_by_an_error_still_sends_pushed_rows(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    def fail_after_a_push() -> None:
        with make(batch=BY_COUNT) as producer:
            producer.push([1], [1])
            raise KeyError

    with pytest.raises(KeyError):
        fail_after_a_push()
    assert users(fake) == [1]


def test_a_bad_push_takes_nothing(fake: FakeServer, make: Callable[..., Producer]) -> None:
    with make() as producer:
        with pytest.raises(ColumnError, match=r"item_ids has 3 rows, expected 4 \(user_ids\)"):
            producer.push([1, 2, 3, 4], [1, 2, 3])
        with pytest.raises(ColumnError, match=r"user_ids\[1\]: expected 0\.\."):
            producer.push([1, -2], [1, 2])
        with pytest.raises(ColumnError, match="labels has 1 rows, expected 2"):
            producer.push_labels("user", [1, 2], ["x"])
        assert producer.push([], []).result(0).accepted == 0
    assert fake.applied == []


def test_waiting_for_a_result_ends_in_time(fake: FakeServer, make: Callable[..., Producer]) -> None:
    fake.gate.clear()
    receipt = make(batch=EACH).push([1], [1])
    with pytest.raises(DeadlineExceeded):
        receipt.result(0.01)
    with pytest.raises(DeadlineExceeded):
        receipt.exception(0.01)
    assert not receipt.done()


def test_a_failing_callback_does_not_stop_the_stream(
    fake: FakeServer, make: Callable[..., Producer], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(rejects: object) -> None:
        raise RuntimeError("mine")

    fake.reject_users = {1}
    with make(batch=EACH, on_reject=fail) as producer:
        producer.push([1], [1])
        producer.push([2], [2])
    assert users(fake) == [2]
    assert "a producer's callback failed" in caplog.text


def test_the_transport_is_a_parameter_and_stays_open(fake: FakeServer) -> None:
    channel = open_channel(fake.target)
    for _ in range(2):
        with Producer(channel=channel, producer_id="p") as producer:
            producer.push(["ann"], ["milk"])
    channel.close()
    assert len(fake.applied) == 2


@pytest.mark.parametrize("producer_id", ["", "x" * 65, "ü" * 33])
def test_an_invalid_producer_id_is_refused(producer_id: str) -> None:
    with pytest.raises(ValueError, match="producer_id"):
        Producer("127.0.0.1:1", producer_id)


@pytest.mark.parametrize(
    "bad", [{"events_max": 0}, {"bytes_max": 10}, {"bytes_max": (4 << 20) + 1}, {"latency_ms_max": -1.0}]
)
def test_settings_outside_their_domain_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        BatchSettings(**bad)


def test_a_note_is_kept_behind_what_was_pushed_and_found_again(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    with make() as producer:
        assert producer.note == b""
        for number in range(3):
            producer.push([number], [7])
            producer.keep(b"after %d" % number)
            assert (producer.last_sequence, producer.note) == (number + 1, b"after %d" % number)
        for note, said in ((b"", "note: expected at least 1 byte"), (b"x" * 257, "note: at most 256 bytes")):
            with pytest.raises(ValueError, match=said):
                producer.keep(note)
        producer.push([9], [7]).result(WAIT_S)
    assert fake.applied == [(0, 7), (1, 7), (2, 7), (9, 7)]
    with make() as again:
        assert (again.note, again.last_sequence) == (b"after 2", 4)
        with pytest.raises(ValueError, match="sequence: expected one of the last 64 up to 4, got 5"):
            again.has_applied(5, [1], [1])


def test_a_note_of_a_producer_that_was_replaced_is_refused(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    first = make()
    with make() as second:
        second.push([1], [2]).result(WAIT_S)
        with pytest.raises(ProducerFenced, match="another process uses this id"):
            first.keep(b"note")
