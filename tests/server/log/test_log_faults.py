"""Damage to the log's files.

The log never returns a record that was not written. After damage only two results are correct. The
log may read back as it was written, up to a revision at or past the last that a mark covers. Or it
raises LogDamaged with the file and an offset in it.
"""

from __future__ import annotations

import errno
import random
import shutil
from pathlib import Path

import pytest

from crash_io import CrashIO
from livefactor_server.log import parsing as log_parsing
from livefactor_server.log import tail as log_tail
from livefactor_server.log.disk import BLOCK_BYTES
from livefactor_server.log.format import DATA_START
from livefactor_server.log.store import (
    Entry,
    Kind,
    Log,
    LogDamaged,
    LogError,
    LogFull,
    LogMissing,
    Record,
)
from livefactor_server.log.tail import place_of, read_slots
from logs import FOLDER, ROOT, append, check_clean, new_log
from tally import Tally

SEED = 7


class Damage:
    """A log whose bytes the tests damage.

    It has five groups of three records in one segment. The last group ends in a tail slot. A mark
    follows it if `marked` is true.
    """

    def __init__(self, marked: bool) -> None:
        self.io = CrashIO(ROOT)
        log = new_log(self.io)
        for _ in range(5):
            append(log, 3)
        if marked:
            log.mark()
        log.close()
        self.marked, self.end = marked, log.size_bytes
        self.records = {record.revision: record for record in log.read()}
        self.path = self.records[0].path
        self.number = self.io.live.names[self.path]
        self.bytes = bytes(self.io.live.contents[self.number])
        self.slots = read_slots(memoryview(self.bytes))

    def span(self, revision: int) -> tuple[int, int]:
        """Return the start and the end of the record's group in the stream."""
        group = self.records[revision].group
        return group.place, group.place + group.size

    def undetected(self, data: bytes) -> bool:
        """Return whether a log whose file is `data` gives a wrong result.

        A wrong result is a record that was not written, or the loss of a record that a mark covers.
        """
        self.io.live.contents[self.number] = bytearray(data)
        try:
            log = Log.open(FOLDER, self.io, read_only=True)
        except LogDamaged as damage:
            return damage.path != self.path or not 0 <= damage.offset <= len(self.bytes)
        except LogMissing:
            return True
        except LogError:
            return False
        if log.last_revision < (15 if self.marked else 12):
            return True
        if log.last_revision < 15 and log.tail is None:
            return True
        return any(not same(record, self.records[record.revision]) for record in log.read())


def same(a: Record, b: Record) -> bool:
    return (a.group, bytes(a.body), a.hash, a.offset) == (b.group, bytes(b.body), b.hash, b.offset)


def bits_of_interest(damage: Damage) -> list[int]:
    """Return the bits that the tests flip.

    They are all bits in the headers of one group and of both slots, and some bits of the rest.
    """
    start, end = damage.span(8)
    assert end <= damage.slots[0].base
    heads = [*range(start * 8, (start + 152 + 160) * 8)]
    slots = [*range(64 * 8), *range(BLOCK_BYTES * 8, (BLOCK_BYTES + 64) * 8)]
    return [*heads, *slots, *range(0, damage.end * 8, 61)]


@pytest.mark.torture
@pytest.mark.parametrize("marked", [True, False])
def test_a_flipped_bit_is_noticed(marked: bool, tally: Tally) -> None:
    damage = Damage(marked)
    bits = bits_of_interest(damage)[:: 3 if marked else 7]
    missed = undetected_flips(damage, bits)
    tally.add("changed bits of a log", len(bits), undetected=len(missed))
    assert not missed
    assert len(bits) > 700


def undetected_flips(damage: Damage, bits: list[int]) -> list[int]:
    missed = []
    for bit in bits:
        data = bytearray(damage.bytes)
        data[bit // 8] ^= 1 << bit % 8
        if damage.undetected(data):
            missed.append(bit)
    return missed


@pytest.mark.torture
def test_the_check_catches_unchecked_headers(monkeypatch: pytest.MonkeyPatch, tally: Tally) -> None:
    damage = Damage(marked=True)
    for module in (log_parsing, log_tail):
        monkeypatch.setattr(module, "crc32c", lambda _: AnyNumber())
    assert undetected_flips(damage, bits_of_interest(damage)[::3])
    tally.catch("checksums not checked")


class AnyNumber(int):
    """A checksum that is equal to every other checksum."""

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        return True


@pytest.mark.parametrize("marked", [True, False])
def test_a_file_cut_short_is_refused(marked: bool) -> None:
    damage = Damage(marked)
    ends = range(damage.span(8)[0], damage.span(8)[0] + 700)
    for size in [
        *ends,
        0,
        1,
        BLOCK_BYTES - 1,
        BLOCK_BYTES,
        2 * BLOCK_BYTES,
        len(damage.bytes) - 1,
        len(damage.bytes) - BLOCK_BYTES,
    ]:
        damage.io.live.contents[damage.number] = bytearray(damage.bytes[:size])
        with pytest.raises(LogDamaged, match="cut short") as caught:
            Log.open(FOLDER, damage.io, read_only=True)
        assert caught.value.offset == size


@pytest.mark.parametrize("marked", [True, False])
def test_zeros_and_noise_are_noticed(marked: bool) -> None:
    damage = Damage(marked)
    chance = random.Random(SEED)
    for trial in range(800):
        at = chance.randrange(damage.end)
        size = min(chance.choice([1, 8, 64, 512, BLOCK_BYTES, 3 * BLOCK_BYTES]), damage.end - at)
        if size > 8 and trial % 2:
            at, size = at // 512 * 512, (size + 511) // 512 * 512
        data = bytearray(damage.bytes)
        data[at : at + size] = bytes(size) if trial % 3 else chance.randbytes(size)
        assert not damage.undetected(data[: len(damage.bytes)]), (at, size, trial)


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(("one", "other"), [(1, 4), (4, 7), (1, 9)])
def test_groups_that_are_swapped_are_refused(one: int, other: int, marked: bool) -> None:
    damage = Damage(marked)
    (a, a_end), (b, b_end) = damage.span(one), damage.span(other)
    size = max(a_end - a, b_end - b)
    data = bytearray(damage.bytes)
    data[a : a + size], data[b : b + size] = damage.bytes[b : b + size], damage.bytes[a : a + size]
    damage.io.live.contents[damage.number] = data
    with pytest.raises(LogDamaged) as caught:
        Log.open(FOLDER, damage.io, read_only=True)
    assert caught.value.path == damage.path


def test_damage_names_file_and_offset_and_changes_nothing() -> None:
    damage = Damage(marked=True)
    start, end = damage.span(8)
    data = bytearray(damage.bytes)
    data[end - 50] ^= 4
    damage.io.live.contents[damage.number] = data
    done = len(damage.io.events)
    with pytest.raises(LogDamaged, match="payloads of the group do not match its hash") as caught:
        Log.open(FOLDER, damage.io)
    assert (caught.value.path, caught.value.offset) == (damage.path, start)
    assert len(damage.io.events) == done


@pytest.mark.parametrize("slots", [(0,), (1,), (0, 1)])
def test_one_damaged_slot_is_repaired_and_two_are_refused(slots: tuple[int, ...]) -> None:
    damage = Damage(marked=True)
    data = bytearray(damage.bytes)
    for slot in slots:
        data[slot * BLOCK_BYTES + 1000] ^= 4
    damage.io.live.contents[damage.number] = data
    if len(slots) == 2:
        with pytest.raises(LogDamaged, match="both tail slots") as caught:
            Log.open(FOLDER, damage.io)
        assert caught.value.path == damage.path
        return
    log = Log.open(FOLDER, damage.io)
    append(log, 1)
    log.close()
    assert len(read_slots(damage.io.map(damage.path))) == 2
    check_clean(damage.io, 16)


def test_a_payload_cannot_pass_for_a_group() -> None:
    """A payload that holds a copy of a group must not make the log look damaged.

    In the test, the group with this payload is torn.
    """
    io = CrashIO(ROOT)
    log = new_log(io)
    append(log, 1)
    log_id = next(log.read()).group.log_id
    whole = bytes(io.map(FOLDER / f"{0:020d}.log"))[DATA_START : DATA_START + BLOCK_BYTES]
    forged = b"".join(bytes(n) + whole.replace(log_id, log.lineage.bytes) for n in range(8))
    salt = bytes(16)
    log.append([Entry(Kind.INTERACTIONS, 2, body=forged, salt=salt, commitment=log.seal(salt, b"", forged))])
    start = next(log.read(2)).offset
    log.close()
    data = io.live.contents[io.live.names[FOLDER / f"{0:020d}.log"]]
    assert data[start:].count(b"lvfgroup") > 5
    data[start : start + 512] = bytes(512)
    assert Log.open(FOLDER, io, read_only=True).last_revision == 1


def test_a_tail_without_room_for_its_copy_stays_as_it_is() -> None:
    damage = Damage(marked=False)
    data = bytearray(damage.bytes)
    start = place_of(damage.slots[0].counter)
    data[start : start + 64] = bytes(64)
    damage.io.live.contents[damage.number] = data
    damage.io.write_errors = [errno.ENOSPC]
    with pytest.raises(LogFull):
        Log.open(FOLDER, damage.io)
    assert damage.io.map(damage.path) == data
    assert not any(".broken" in n for n in damage.io.names(FOLDER))
    assert Log.open(FOLDER, damage.io).last_revision == 12


# ------------------------------------------------------------------------------------------------
# Several segments.


@pytest.fixture
def segments(tmp_path: Path) -> tuple[Path, list[Path]]:
    """Return the folder of a log on the real disk, and the paths of its segments."""
    log = new_log(folder=tmp_path / "log", segment_bytes=16 * 1024)
    for _ in range(30):
        append(log, 3)
    log.close()
    paths = [segment.path for segment in log.segments]
    assert len(paths) >= 5
    return tmp_path / "log", paths


def test_a_missing_segment_is_refused(segments: tuple[Path, list[Path]]) -> None:
    folder, paths = segments
    paths[2].unlink()
    with pytest.raises(LogDamaged, match="missing") as caught:
        Log.open(folder)
    assert caught.value.path == paths[3]


def test_a_missing_first_segment_is_refused(segments: tuple[Path, list[Path]]) -> None:
    folder, paths = segments
    paths[0].unlink()
    with pytest.raises(LogDamaged, match="does not start with a spec"):
        Log.open(folder)


@pytest.mark.parametrize(("old", "place"), [(1, 2), (3, 1), (0, 1)])
def test_a_segment_under_the_name_of_another_is_refused(
    segments: tuple[Path, list[Path]], old: int, place: int
) -> None:
    folder, paths = segments
    shutil.copy(paths[old], paths[place])
    with pytest.raises(LogDamaged) as caught:
        Log.open(folder)
    assert caught.value.path == paths[place]


def test_a_segment_of_another_log_is_refused(segments: tuple[Path, list[Path]], tmp_path: Path) -> None:
    folder, paths = segments
    other = new_log(folder=tmp_path / "other", segment_bytes=16 * 1024)
    for _ in range(30):
        append(other, 3)
    other.close()
    shutil.copy(other.segments[2].path, paths[2])
    with pytest.raises(LogDamaged, match="another log") as caught:
        Log.open(folder)
    assert caught.value.path == paths[2]


def test_a_segment_from_before_the_tail_was_trimmed_is_refused(tmp_path: Path) -> None:
    """The old segment holds revisions that recovery dropped. Other records have them now."""
    folder = tmp_path / "log"
    log = new_log(folder=folder, segment_bytes=16 * 1024)
    append(log, 3)
    append(log, 3)
    log.close()
    path = log.segments[-1].path
    whole = path.read_bytes()
    torn = bytearray(whole)
    start = place_of(read_slots(memoryview(whole))[0].counter)
    torn[start : start + 512] = bytes(512)
    path.write_bytes(torn)
    log = Log.open(folder, segment_bytes=16 * 1024, ahead=False)
    assert log.last_revision == 3
    for revision in range(4, 40):
        salt = bytes(16)
        log.append(
            [
                Entry(
                    Kind.LABELS,
                    revision,
                    body=b"x" * 900,
                    salt=salt,
                    commitment=log.seal(salt, b"", b"x" * 900),
                )
            ]
        )
    log.close()
    path.write_bytes(whole)
    with pytest.raises(LogDamaged) as caught:
        Log.open(folder)
    paths = [segment.path for segment in log.segments]
    assert caught.value.path in (path, paths[paths.index(path) + 1])


def test_damage_found_while_reading_is_refused(segments: tuple[Path, list[Path]]) -> None:
    folder, paths = segments
    log = Log.open(folder, read_only=True)
    with paths[3].open("r+b") as file:
        file.seek(DATA_START + 1000)
        file.write(b"????")
    with pytest.raises(LogDamaged) as caught:
        list(log.read())
    assert (caught.value.path, caught.value.offset) == (paths[3], DATA_START)
