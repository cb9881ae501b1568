"""The key map against a dict: rows, order, hostile keys, readers during writes, memory."""

from __future__ import annotations

import re
import threading
import tracemalloc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from livefactor_kernels.tables import keymap as keymap_module
from livefactor_kernels.tables.keymap import NO_ROW, KeyMap

TOP = 2**64 - 1
_M = 2**64
keys_64 = st.one_of(
    st.integers(0, 20),
    st.integers(TOP - 3, TOP),
    st.integers(0, TOP),
    st.integers(0, 255).map(lambda n: n << 56),
)


def u64(values) -> np.ndarray:
    return np.array(list(values), np.uint64)


def distinct_keys(count: int, seed: int) -> np.ndarray:
    """`count` different keys in random order. An odd multiplier permutes the 64-bit numbers."""
    return np.random.default_rng(seed).permutation(count).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def unhash(keymap: KeyMap, h: int) -> int:
    """The key with the hash `h`. Only someone who knows the map's secret words can compute it."""
    h ^= h >> 32
    h = h * pow(int(keymap_module._MIX_2), -1, _M) % _M
    h ^= (h >> 29) ^ (h >> 58)
    h = (h - int(keymap._seed_b)) * pow(int(keymap_module._MIX_1), -1, _M) % _M
    return h ^ (h >> 33) ^ int(keymap._seed_a)


@settings(max_examples=150, deadline=None)
@given(
    batches=st.lists(st.lists(keys_64, max_size=60), max_size=8),
    gap=st.integers(0, 3),
    seed=st.integers(0, TOP),
)
def test_batches_equal_a_dict(batches, gap, seed):
    keymap, model, next_row = KeyMap(seed), {}, 0
    for batch in batches:
        keys = u64(batch)
        new = list(dict.fromkeys(key for key in batch if key not in model))
        assert keymap.count_new(keys) == len(new)
        rows, new_keys = keymap.insert_missing(keys, next_row)
        model.update({key: next_row + i for i, key in enumerate(new)})
        assert new_keys.tolist() == new
        assert rows.tolist() == [model[key] for key in batch]
        assert (rows.dtype, new_keys.dtype) == (np.uint32, np.uint64)
        assert len(keymap) == len(model)
        next_row += len(new) + gap
    probes = sorted({key for batch in batches for key in batch} | {0, 1, TOP, 1 << 56})
    assert keymap.find(u64(probes)).tolist() == [model.get(key, NO_ROW) for key in probes]


@pytest.mark.parametrize("batch", [1, 15, 16, 17, 1000, 70_000])
def test_growth_keeps_every_row(batch):
    count = min(70_000, 200 * batch)
    keys, keymap = distinct_keys(count, 1), KeyMap(5)
    for start in range(0, count, batch):
        rows, new_keys = keymap.insert_missing(keys[start : start + batch], start)
        assert np.array_equal(new_keys, keys[start : start + batch])
        assert np.array_equal(rows, np.arange(start, min(start + batch, count)))
    order = np.random.default_rng(0).permutation(count)
    assert np.array_equal(keymap.find(keys[order]), order)
    assert (keymap.find(keys + np.uint64(1)) == NO_ROW).all()


def test_duplicates_and_known_keys_in_one_large_batch():
    rng = np.random.default_rng(3)
    keys = distinct_keys(5000, 3)
    keymap = KeyMap(0)
    keymap.insert_missing(keys[:1000], 0)
    batch = keys[rng.integers(0, 5000, 40_000)]
    unknown = list(dict.fromkeys(batch[~np.isin(batch, keys[:1000])].tolist()))
    assert keymap.count_new(batch) == len(unknown)
    rows, new_keys = keymap.insert_missing(batch, 7000)
    assert new_keys.tolist() == unknown
    expected = {key: i for i, key in enumerate(keys[:1000].tolist())}
    expected |= {key: 7000 + i for i, key in enumerate(unknown)}
    assert rows.tolist() == [expected[key] for key in batch.tolist()]


def test_unhash_inverts_the_hash():
    keymap = KeyMap(11)
    hashes = np.random.default_rng(1).integers(0, TOP, 100, dtype=np.uint64, endpoint=True)
    for h in hashes:
        key = np.uint64(unhash(keymap, int(h)))
        assert keymap_module._hash(key, keymap._seed_a, keymap._seed_b) == h


@pytest.mark.parametrize("fixed_low_bits", [0, 40])
def test_keys_that_all_fall_into_one_sub_table(fixed_low_bits):
    """Even with the secret, hostile keys cannot give wrong results. One sub-table grows, and
    buckets overflow.
    """
    keymap = KeyMap(11)
    random = np.random.default_rng(2).integers(0, 1 << 50, 3000).tolist()
    low = [r % (1 << 15) << fixed_low_bits if fixed_low_bits else r for r in random]
    keys = u64(dict.fromkeys(unhash(keymap, 37 << 56 | bits) for bits in low))
    rows, _ = keymap.insert_missing(keys, 0)
    assert np.array_equal(rows, np.arange(keys.size))
    assert np.array_equal(keymap.find(keys[::-1]), np.arange(keys.size)[::-1])
    absent = u64(unhash(keymap, 37 << 56 | 1 << 55 | bits) for bits in low)
    assert (keymap.find(absent) == NO_ROW).all()


def test_the_seed_decides_the_slots_and_nothing_else():
    keys = distinct_keys(3000, 4)
    maps = [KeyMap(seed) for seed in (1, 2, None, None)]
    rows = [keymap.insert_missing(keys, 10)[0] for keymap in maps]
    assert all(np.array_equal(rows[0], other) for other in rows[1:])
    words = {(int(keymap._seed_a), int(keymap._seed_b)) for keymap in maps}
    assert len(words) == len(maps)


def test_rebuild_gives_rows_in_order_and_refuses_duplicates():
    keys = distinct_keys(100_000, 5)
    keymap = KeyMap(3)
    keymap.insert_missing(keys[::-1], 0)
    keymap.rebuild(keys)
    assert len(keymap) == keys.size
    assert np.array_equal(keymap.find(keys), np.arange(keys.size))
    rows, new_keys = keymap.insert_missing(u64([*keys[:2].tolist(), 12345]), keys.size)
    assert rows.tolist() == [0, 1, keys.size]
    assert new_keys.tolist() == [12345]
    with pytest.raises(ValueError, match="expected 3 distinct keys, got 2"):
        keymap.rebuild(u64([9, 8, 9]))
    assert len(keymap) == 0
    assert keymap.find(u64([8, 9])).tolist() == [NO_ROW, NO_ROW]
    keymap.rebuild(u64([]))
    assert len(keymap) == 0


def test_read_only_strided_and_unaligned_columns():
    keys = distinct_keys(64, 6)
    keymap = KeyMap(3)
    keymap.insert_missing(keys, 0)
    wire = b"\0" + keys.tobytes()
    assert np.array_equal(keymap.find(np.frombuffer(wire, np.uint64, offset=1)), np.arange(64))
    assert np.array_equal(keymap.find(np.repeat(keys, 2)[::2]), np.arange(64))


def test_wrong_keys_and_rows_are_refused():
    keymap = KeyMap(0)
    for wrong in (np.zeros(3, np.int64), np.zeros(3, ">u8"), np.zeros((2, 2), np.uint64)):
        with pytest.raises(TypeError, match="keys: expected uint64"):
            keymap.find(wrong)
    assert keymap.insert_missing(u64([5]), NO_ROW - 1)[0].tolist() == [NO_ROW - 1]
    for next_row in (NO_ROW, -1):
        with pytest.raises(ValueError, match="next_row: expected"):
            keymap.insert_missing(u64([6]), next_row)
    assert len(keymap) == 1


def _read_while_written(keymap, keys, inserted, stop, failures, seed):
    """Looks up random keys until `stop` is set, and collects wrong results."""
    rng = np.random.default_rng(seed)
    finds = 0
    while not stop.is_set() or finds == 0:
        before = inserted[0]
        wanted = rng.integers(0, keys.size, 4096)
        rows = keymap.find(keys[wanted])
        wrong = (rows != wanted) & ((rows != NO_ROW) | (wanted < before))
        finds += int((rows == wanted).any())
        if wrong.any():
            failures.append((before, wanted[wrong][:5], rows[wrong][:5]))


def test_readers_beside_the_writer_see_every_earlier_key_and_no_wrong_row():
    keys = distinct_keys(1_000_000, 7)
    keymap, inserted, stop, failures = KeyMap(9), [0], threading.Event(), []
    readers = [
        threading.Thread(target=_read_while_written, args=(keymap, keys, inserted, stop, failures, seed))
        for seed in range(3)
    ]
    for reader in readers:
        reader.start()
    for start in range(0, keys.size, 5000):
        keymap.insert_missing(keys[start : start + 5000], start)
        inserted[0] = start + 5000
    stop.set()
    for reader in readers:
        reader.join()
    assert not failures, failures[:3]
    assert np.array_equal(keymap.find(keys), np.arange(keys.size))


def test_the_writer_publishes_a_slot_by_its_row_with_release():
    """A race would rarely show the order of two stores. So the test reads the compiled code."""
    bucket = np.zeros(24, np.uint64)
    address = np.uint64(bucket.ctypes.data + -bucket.ctypes.data % 64)
    # Numba does not show code from its cache.
    put = njit(keymap_module._put.py_func)
    for key in (7, 8):
        put(address, np.uint64(key), np.uint64(key + 1))
    assert [n for n in bucket.tolist() if n] == [7, 8, 8, 9]
    (code,) = put.inspect_llvm().values()
    stores = re.findall(r"store atomic i64 .* (monotonic|release), align 8", code)
    assert stores[:2] == ["monotonic", "release"]


def test_look_ups_are_compiled_with_prefetch_and_acquire():
    find = njit(keymap_module.find_kernel.py_func)
    keys, keymap = distinct_keys(40, 1), KeyMap(0)
    rows = np.empty(40, np.uint32)
    find(keymap.blocks.address, np.uint64(keys.ctypes.data), rows)
    assert (rows == NO_ROW).all()
    (code,) = find.inspect_llvm().values()
    assert len(re.findall(r"load atomic i64.* acquire, align 8", code)) >= 4
    (assembly,) = find.inspect_asm().values()
    assert assembly.count("prefetcht0") >= 2


def test_a_retired_block_lives_as_long_as_a_reader_that_may_be_inside():
    keymap = KeyMap(1)
    keys = distinct_keys(20_000, 8)
    keymap.insert_missing(keys[:100], 0)
    reader_inside = keymap._blocks
    retired = [weakref.ref(memory) for memory in reader_inside.memory]
    keymap.insert_missing(keys[100:], 100)
    assert all(block() is not None for block in retired)
    rows = np.empty(100, np.uint32)
    address = np.uint64(keys.ctypes.data)
    keymap_module.find_kernel(reader_inside.address, address, rows)
    assert np.array_equal(rows, np.arange(100))
    del reader_inside
    assert all(block() is None for block in retired)


def test_growth_leaves_no_memory_behind_and_nbytes_is_true():
    keys = distinct_keys(400_000, 9)
    # The first call compiles the kernels.
    KeyMap(2).insert_missing(keys[:50_000], 0)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        keymap = KeyMap(2)
        for start in range(0, keys.size, 8192):
            keymap.insert_missing(keys[start : start + 8192], start)
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    # With the retired blocks it would be twice as much.
    assert keymap.nbytes <= used <= 1.3 * keymap.nbytes
    assert keymap.nbytes < 45 * keys.size
