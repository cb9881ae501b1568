"""String ids become labels: each id has one, it arrives before the id's events, and broken streams
do not change this.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_server import FakeServer, Fault
from livefactor.errors import BufferFull
from livefactor.pushing.batching import BatchSettings
from livefactor.pushing.labels import IdLabels
from livefactor.pushing.producer import Producer
from livefactor.v1 import updates_pb2
from livefactor.wire.columns import decode_labels
from livefactor.wire.keys import key_of, keys_of
from livefactor.wire.limits import LABEL_BYTES_MAX

EACH = BatchSettings(latency_ms_max=0)
WAIT_S = 20.0
SIDES = {updates_pb2.SIDE_USER: "user", updates_pb2.SIDE_ITEM: "item"}


@pytest.fixture
def make(make: Callable[..., Producer]) -> Callable[..., Producer]:
    """A function that makes producers, whose every push is a batch if no other size is given."""
    return lambda **options: make(**{"batch": EACH} | options)


def labels(fake: FakeServer) -> list[tuple[str, str]]:
    """Every label that arrived, as (side, text). Asserts that its id is the key of the text."""
    came = []
    for kind, change in fake.changes:
        if kind == "labels":
            assert change.ids.tolist() == keys_of(change.labels).tolist()
            came += [(SIDES[change.side], text) for text in change.labels]
    return came


def assert_labelled_before_named(fake: FakeServer, texts: list[str]) -> None:
    """Assert that the label of each text arrived before events with its key."""
    known: set[int] = set()
    named = set(keys_of(texts).tolist())
    for kind, change in fake.changes:
        if kind == "labels":
            known.update(change.ids.tolist())
        else:
            assert named & {*change.user_ids.tolist(), *change.item_ids.tolist()} <= known


def test_each_string_id_is_labelled_once_in_front_of_its_events(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    with make() as producer:
        producer.push(["ann", "bob", "ann"], ["mug", "mug", "lamp"]).result(WAIT_S)
        producer.push(["bob", "eve"], ["lamp", "lamp"]).result(WAIT_S)
        assert producer.last_sequence == 2
    assert sorted(labels(fake)) == [
        ("item", "lamp"), ("item", "mug"), ("user", "ann"), ("user", "bob"), ("user", "eve"),
    ]  # fmt: skip
    assert_labelled_before_named(fake, ["ann", "bob", "eve", "mug", "lamp"])
    assert len(fake.applied) == 5


@pytest.mark.parametrize("options", [{"labels": False}, {"secret": b"pepper"}])
def test_labels_can_be_switched_off_and_a_secret_hides_them(
    fake: FakeServer, make: Callable[..., Producer], options: dict[str, Any]
) -> None:
    with make(**options) as producer:
        producer.push(["ann"], ["mug"])
    assert labels(fake) == []
    assert fake.applied == [(key_of("ann", **{"secret": b"", **options} if "secret" in options else {}),
                             key_of("mug", options.get("secret", b"")))]  # fmt: skip


def test_integers_have_no_labels(fake: FakeServer, make: Callable[..., Producer]) -> None:
    with make() as producer:
        producer.push([1, 2], [3, 4])
        producer.push(["7", "7"], ["mug", "mug"])
    assert sorted(labels(fake)) == [("item", "mug"), ("user", "7")]


def test_small_pushes_share_their_batches_of_labels(fake: FakeServer, make: Callable[..., Producer]) -> None:
    with make(batch=BatchSettings(events_max=100, latency_ms_max=None)) as producer:
        for number in range(250):
            producer.push(f"user {number}", "mug")
    assert fake.batch_rows == [100, 100, 50]
    assert [len(change.labels) for kind, change in fake.changes if kind == "labels"] == [100, 1, 100, 50]
    assert_labelled_before_named(fake, [f"user {number}" for number in range(250)])


def test_the_labels_of_large_pushes_fill_several_batches(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    texts = [f"{number:0600}" for number in range(250)]
    with make(batch=BatchSettings(events_max=100, bytes_max=32_768, latency_ms_max=0)) as producer:
        producer.push(texts, [1] * 250).result(WAIT_S)
    assert fake.batch_rows == [100, 100, 50]
    assert max(len(change.labels) for kind, change in fake.changes if kind == "labels") <= 32_768 // 600
    assert sorted(labels(fake)) == [("user", text) for text in texts]
    assert_labelled_before_named(fake, texts)


def test_ids_that_cannot_have_a_label_are_pushed_without_one(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    long, fits = "é" * (LABEL_BYTES_MAX // 2) + "x", "é" * (LABEL_BYTES_MAX // 2)
    with make() as producer:
        ack = producer.push([long, fits, "ann"], [1] * 3).result(WAIT_S)
    assert ack.accepted == 3
    assert sorted(labels(fake)) == [("user", "ann"), ("user", fits)]


def test_a_label_of_the_caller_is_not_replaced(fake: FakeServer, make: Callable[..., Producer]) -> None:
    with make() as producer:
        producer.push_labels("item", ["mug"], ["A red mug"])
        producer.push(["ann"], ["mug"])
    texts = [text for kind, change in fake.changes if kind == "labels" for text in change.labels]
    assert texts == ["A red mug", "ann"]


@pytest.mark.parametrize(
    "script",
    [
        [Fault.DROP_BEFORE],
        [Fault.DROP_AFTER],
        [Fault.EXHAUSTED],
        [Fault.UNKNOWN_APPLIED],
        [Fault.TWICE, Fault.TWICE],
        [Fault.NONE, Fault.DROP_AFTER, Fault.EXHAUSTED, Fault.DROP_BEFORE],
        [Fault.EXHAUSTED, Fault.EXHAUSTED, Fault.UNKNOWN_APPLIED, Fault.DROP_AFTER],
    ],
    ids=lambda script: "-".join(fault.name for fault in script),
)
def test_an_ack_implies_the_labels_over_broken_streams(
    fake: FakeServer, make: Callable[..., Producer], script: list[Fault]
) -> None:
    fake.script.extend(script)
    with make() as producer:
        for number in range(6):
            user, item = f"user {number}", f"item {number % 2}"
            receipt = producer.push([user], [item])
            ack = receipt.result(WAIT_S)
            came = {*labels(fake)}
            assert receipt.done() and ack.position.revision <= fake.revision
            assert {("user", user), ("item", item)} <= came
    assert fake.applied == [(key_of(f"user {n}"), key_of(f"item {n % 2}")) for n in range(6)]
    assert producer.last_sequence == 6


def test_a_refused_batch_of_labels_does_not_fail_events(
    fake: FakeServer, make: Callable[..., Producer], caplog: pytest.LogCaptureFixture
) -> None:
    take = fake.take

    def refuse_labels(request: Any) -> Any:
        if request.change == "labels":
            from fake_server import Refusal

            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "no labels here")
        return take(request)

    fake.take = refuse_labels  # type: ignore[method-assign]
    with make() as producer:
        receipts = [producer.push([f"user {number}"], ["mug"]) for number in range(5)]
        assert [receipt.result(WAIT_S).accepted for receipt in receipts] == [1] * 5
        producer.flush(WAIT_S)
        assert producer.last_sequence == 5
    assert [user for user, _ in fake.applied] == [key_of(f"user {number}") for number in range(5)]
    assert "no labels here" in caplog.text


def test_labels_without_room_are_logged_once_and_events_are_applied(
    fake: FakeServer, make: Callable[..., Producer], caplog: pytest.LogCaptureFixture
) -> None:
    take, seen = fake.take, []

    def reject_labels(request: Any) -> Any:
        answer = take(request)
        if request.change == "labels":
            rows = len(decode_labels(request.body))
            answer.accepted, answer.rejected_count = 0, rows
            for row in range(rows):
                answer.rejects.add(row=row, reason=updates_pb2.REJECT_REASON_LABELS_FULL, text="no room")
        return answer

    fake.take = reject_labels  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, "livefactor"), make(on_reject=seen.append) as producer:
        for number in range(3):
            ack = producer.push([f"user {number}"], ["mug"]).result(WAIT_S)
            assert (ack.accepted, ack.rejected_count, ack.rejects) == (1, 0, ())
    assert caplog.text.count("no room") == 1
    assert seen == []


def test_ids_of_a_push_without_room_are_labelled_by_a_later_push(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    fake.gate.clear()
    with make(buffer_events_max=1) as producer:
        producer.push(["ann"], ["mug"])
        with pytest.raises(BufferFull):
            producer.push(["bob"], ["mug"], timeout=0.0)
        fake.gate.set()
        producer.flush(WAIT_S)
        producer.push(["bob"], ["lamp"]).result(WAIT_S)
    assert sorted(labels(fake)) == [("item", "lamp"), ("item", "mug"), ("user", "ann"), ("user", "bob")]


def test_threads_that_push_the_same_new_ids_label_them_first(
    fake: FakeServer, make: Callable[..., Producer]
) -> None:
    texts = [f"user {number}" for number in range(200)]
    with make() as producer:

        def push_all() -> None:
            for start in range(0, 200, 10):
                producer.push(texts[start : start + 10], ["mug"] * 10)

        threads = [threading.Thread(target=push_all) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        producer.flush(WAIT_S)
    assert sorted(labels(fake)) == sorted([("item", "mug"), *(("user", text) for text in texts)])
    assert_labelled_before_named(fake, texts)
    assert len(fake.applied) == 800


@given(st.lists(st.lists(st.text("abc", max_size=3), max_size=12), max_size=20), st.integers(1, 20))
def test_the_memory_of_texts_is_bounded_and_every_id_stays_labelled(
    pushes: list[list[str]], texts_max: int
) -> None:
    ids, sent = IdLabels("user", texts_max), set()
    for push in pushes:
        reader = ids.reader()
        assert reader(push).tolist() == keys_of(push).tolist()
        ids.take(reader)
        for _, body in ids.batches(EACH):
            sent.update(decode_labels(body).labels)
        assert set(push) - {""} <= sent
        assert len(ids._known) <= max(texts_max, len(set(push)))


def test_the_error_of_an_id_that_cannot_be_hashed_names_its_row() -> None:
    reader = IdLabels("user").reader()
    with pytest.raises(Exception, match=r"ids\[1\]"):
        reader(np.array(["a", None], object).tolist())
