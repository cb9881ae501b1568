"""Quotas of producers: what a bucket gives, and what a model does without its tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine_rig import SPEC, Rig, replayed_root
from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor_kernels.tables.keymap import compile_kernels
from livefactor_server.engine.engine import EngineSettings
from livefactor_server.engine.quotas import PAYERS_MAX, Quota, Quotas, QuotaSettings
from livefactor_server.statuses import Refused

NEW_IDS = updates_pb2.REJECT_REASON_NEW_IDS


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_gives_what_it_has_and_fills_steadily() -> None:
    clock = Clock()
    quota = Quota(60, 60.0, clock)
    assert (quota.left(b"p"), quota.wait_s(b"p")) == (60, 0)
    quota.take(b"p", 50)
    assert (quota.left(b"p"), quota.wait_s(b"p")) == (pytest.approx(10), 0)
    # A request may take more than there is. The next one waits the longer.
    quota.take(b"p", 40)
    assert (quota.left(b"p"), quota.wait_s(b"p")) == (pytest.approx(-30), pytest.approx(31))
    assert quota.left(b"q") == 60
    clock.now += 31
    assert (quota.left(b"p"), quota.wait_s(b"p")) == (pytest.approx(1), 0)
    clock.now += 1000
    assert quota.left(b"p") == 60


def test_ever_new_producers_share_one_bucket_and_take_bounded_memory() -> None:
    clock = Clock()
    quota = Quota(10, 10.0, clock)
    for number in range(3 * PAYERS_MAX):
        quota.take(f"{number}".encode(), 1)
    assert quota.left(b"another") < -PAYERS_MAX
    assert quota.left(b"0") == pytest.approx(9)
    # Full buckets make room for others.
    clock.now += 1.5
    quota.take(b"late", 4)
    assert quota.left(b"late") == pytest.approx(6)


def test_without_settings_nothing_is_limited() -> None:
    quotas = Quotas("m", QuotaSettings())
    quotas.take(b"p", 1 << 40)
    quotas.check(b"p")
    assert quotas.new_ids is None


def test_beyond_its_rows_a_producer_is_told_when_to_try_again() -> None:
    quotas = Quotas("m", QuotaSettings(rows_per_s=100))
    quotas.check(b"p")
    quotas.take(b"p", 100_000)
    with pytest.raises(Refused, match="more than 100 rows a second; try again in") as refusal:
        quotas.check(b"p")
    assert refusal.value.code.name == "RESOURCE_EXHAUSTED"
    assert 900_000 < refusal.value.retry_ms < 1_100_000
    quotas.check(b"q")


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    compile_kernels()
    return Rig(tmp_path, SPEC, EngineSettings(quotas=QuotaSettings(new_ids_per_minute=50)))


def events(users: list[int], items: list[int]) -> bytes:
    return wire.encode_interactions(users, items)


def test_rows_with_too_many_new_ids_are_rejected_and_known_ones_learned(rig: Rig) -> None:
    # One item and 49 users.
    first = rig.push(events([*range(1, 101)], [1] * 100))
    assert first.accepted == 49 and first.rejects.count == 51
    assert first.rejects.listed[0] == (49, NEW_IDS)
    second = rig.push(events([1, 500, 2, 501], [1, 1, 1, 777]))
    assert {row for row, _ in second.rejects.listed} <= {1, 3} and second.rejects.count
    assert {reason for _, reason in second.rejects.listed} == {NEW_IDS}
    root = rig.root()
    rig.close()
    # The log has what was decided, so a replay needs no clock and no quota.
    assert replayed_root(rig.folder) == root


def test_a_new_id_of_several_batches_in_flight_counts_once(rig: Rig) -> None:
    replies = [rig.push_async(events([1, 2, 3 + number], [1, 2, 3])) for number in range(30)]
    replies += [rig.push_async(events([*range(1000, 1100)], [1] * 100)) for _ in range(3)]
    for reply in replies:
        assert not isinstance(reply.get(timeout=20).result, Refused)
    users, items = rig.engine.state.backend.published
    rig.close()
    # A minute may pass on a busy machine, in which the bucket fills once more.
    assert 50 <= users + items <= 100


def test_a_producer_uses_up_only_its_own_quota(rig: Rig) -> None:
    rig.push(events([*range(1, 101)], [1] * 100))
    admission = rig.engine._parts.admission
    assert admission.new_ids is not None
    assert admission.new_ids.left(b"") < 45 and admission.new_ids.left(b"another") == 50
    rig.close()


def test_a_user_has_so_many_events_a_minute_whoever_sends_them(tmp_path: Path) -> None:
    quotas = QuotaSettings(user_rows_per_minute=5)
    rig, now = Rig(tmp_path, SPEC, EngineSettings(quotas=quotas)), [600.0]
    limits = rig.engine.admission.user_rows
    assert limits is not None
    limits._clock = lambda: now[0]

    def sent(users: list[int]) -> list[tuple[int, int]]:
        return list(rig.push(events(users, [7] * len(users))).rejects.listed)

    rate = updates_pb2.REJECT_REASON_USER_RATE
    # A new user counts within its first batch, and then from its next one on.
    assert sent([1] * 7 + [2]) == [(5, rate), (6, rate)]
    assert sent([1, 2, 1, 2]) == []
    assert sent([2, 1, 1, 2, 1, 1, 3]) == [(5, rate)]
    assert sent([1]) == [(0, rate)] and sent([2]) == []
    assert rig.engine.state.events == 6 + 4 + 6 + 1
    now[0] += 60
    assert sent([1] * 6) == [(5, rate)]
    root = rig.root()
    rig.close()
    assert replayed_root(tmp_path) == root
