"""A map from 64-bit keys to rows, for one writer and any number of readers without locks.

    directory  uint64[258], one entry per sub-table: the address of its block, a multiple of 64,
               + log2 of its number of buckets (6 bits); then the two seeds of the hash
    block      buckets, a power of two of them, 64 bytes each (one cache line, four slots),
               with linear probing
    slot       16 bytes: key uint64 | row + 1 uint64 (0 for an empty slot); a bucket is filled
               from its first slot on

The top 8 bits of a key's hash select the sub-table, and the low bits select its first bucket. A
directory never changes. When a sub-table is too full, the writer copies it to a larger block, and
publishes a new directory by one Python assignment. A reader takes the directory once per call. The
directory object owns all its blocks. So reference counting frees a retired block only when no
reader uses it.

Readers in other processes have the same map at the same addresses (`tables/shared.py`). They read a
directory in the arena that is never freed, whose entries the writer changes in place, with one more
word that counts the changes. A retired block reads as zeros in the arena, in which every key is
absent. So such a reader looks at the count before and after it, and drops what it has read if the
count has changed.

In a block, the writer first stores the key and then row + 1 with release. Readers load row + 1 with
acquire and then the key. So a look-up finds every key that was inserted before it began. It finds a
key that is inserted meanwhile with the correct row, or not at all.

The hash affects only the place of a slot. It affects no row, no digest and nothing in the log,
because rows are allocated in order of first appearance. The hash has a secret seed, so that clients
cannot choose keys that collide.

A look-up compares all slots of a bucket without a branch per slot, because one misprediction costs
more than four comparisons. Hashes are computed `_WINDOW` keys ahead, and their buckets are
prefetched (`benchmarks/speed/keymap.py`).
"""

from __future__ import annotations

import secrets

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import prefetch
from livefactor_kernels.simd.arena import is_shared
from livefactor_kernels.simd.atomics import load_acquire, load_relaxed, store_relaxed, store_release
from livefactor_kernels.simd.memory import is_sharing, reserve_shared

NO_ROW = 0xFFFFFFFF
"""The row of a key that is not in the map. So the largest row is 2**32 - 2."""

SUB_TABLES = 256
SHARED_WORDS = SUB_TABLES + 3
"""Words of a directory in the arena: the entries, the seeds, and the number of changes, from 1 on.
0 says that the map has left the arena.
"""
SLOTS_PER_BUCKET = 4
_BUCKET_BYTES = 64
_BUCKET_WORDS = 8
_BITS_MIN = 3
_BITS_QUADRUPLE = 6
"""A block with fewer than 64 buckets grows fourfold.

For such blocks the Python code costs more than the copy.
"""
_LOAD_MIN = 0.60
_LOAD_SPREAD = 0.15
"""Spread of the load at which sub-tables grow.

A sub-table grows when it is 60 to 75 % full, depending on its number. Hashes fill all sub-tables
evenly. With one limit all 256 would grow within a few batches.
"""

# Numba converts a mix of uint64 and int to float64 or int64. So every constant of the kernels is a
# uint64.
_0, _1, _3, _6 = np.uint64(0), np.uint64(1), np.uint64(3), np.uint64(6)
_8, _16, _32, _48, _56 = np.uint64(8), np.uint64(16), np.uint64(32), np.uint64(48), np.uint64(56)
_ADDRESS_BITS = np.uint64(2**64 - _BUCKET_BYTES)
_SIZE_BITS = np.uint64(_BUCKET_BYTES - 1)
_SEEDS = np.uint64(8 * SUB_TABLES)
"""Offset of the seeds in a directory, in bytes."""
_WINDOW = np.uint64(16)
_RING_MASK = np.uint64(31)
_MIX_1, _MIX_2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_33, _29 = np.uint64(33), np.uint64(29)


@compiled(inline="always")
def _hash(key, seed_a, seed_b):
    """MurmurHash3's 64-bit finaliser with secret words before and between its steps.

    It is a bijection.
    """
    h = key ^ seed_a
    h = (h ^ (h >> _33)) * _MIX_1 + seed_b
    h = (h ^ (h >> _29)) * _MIX_2
    return h ^ (h >> _32)


@compiled(inline="always")
def _locate(directory, h):
    """(address of the block, mask of bucket numbers, number of the first bucket) of the hash
    `h`.
    """
    entry = load_relaxed(directory + ((h >> _56) << _3))
    mask = (_1 << (entry & _SIZE_BITS)) - _1
    return entry & _ADDRESS_BITS, mask, h & mask


@compiled(inline="always")
def _hash_ahead(directory, seed_a, seed_b, keys, i, hashes):
    """Hashes key number `i`, stores the hash in the ring, and prefetches its first bucket."""
    h = _hash(load_relaxed(keys + (i << _3)), seed_a, seed_b)
    hashes[i & _RING_MASK] = h
    block, _, bucket = _locate(directory, h)
    prefetch(block + (bucket << _6))


@compiled(inline="always")
def _slot_row(slot, key):
    """row + 1 if the slot at this address has `key`, else 0. An empty slot has row + 1 = 0."""
    row = load_acquire(slot + _8)
    return row if load_relaxed(slot) == key else _0


@compiled(inline="always")
def _probe(directory, h, key):
    """(row + 1, address of the last bucket of the look-up).

    If row + 1 is 0, the key is absent, and the bucket has an empty slot.
    """
    block, mask, bucket = _locate(directory, h)
    while True:
        slot = block + (bucket << _6)
        row = _slot_row(slot, key) | _slot_row(slot + _16, key)
        row |= _slot_row(slot + _32, key) | _slot_row(slot + _48, key)
        if row != _0 or load_acquire(slot + _56) == _0:
            return row, slot
        bucket = (bucket + _1) & mask


@compiled(inline="always")
def _put(bucket, key, row_plus_1):
    """Writes to the first empty slot of the bucket at this address.

    A reader that sees the row also sees the key.
    """
    while load_relaxed(bucket + _8) != _0:
        bucket += _16
    store_relaxed(bucket, key)
    store_release(bucket + _8, row_plus_1)


@compiled
def find_kernel(directory, keys, rows):
    """Writes the rows of `keys` to `rows`, uint32[n], or `NO_ROW`.

    `directory` and `keys` are addresses.
    """
    seed_a, seed_b = load_relaxed(directory + _SEEDS), load_relaxed(directory + _SEEDS + _8)
    count = np.uint64(rows.size)
    hashes = np.empty(_RING_MASK + _1, np.uint64)
    for i in range(min(_WINDOW, count)):
        _hash_ahead(directory, seed_a, seed_b, keys, i, hashes)
    for start in range(_0, count, _WINDOW):
        middle = min(start + _WINDOW, count)
        for i in range(middle, min(middle + _WINDOW, count)):
            _hash_ahead(directory, seed_a, seed_b, keys, i, hashes)
        for i in range(start, middle):
            row, _bucket = _probe(directory, hashes[i & _RING_MASK], load_relaxed(keys + (i << _3)))
            rows[i] = np.uint32(row - _1)


@compiled
def _insert_kernel(directory, seed_a, seed_b, counts, limits, keys, rows, new_keys, begin, made, next_row):
    """Maps keys from number `begin` on.

    Returns (first key that is not mapped, number of new keys so far, sub-table to grow).
    """
    count = np.uint64(rows.size)
    hashes = np.empty(_RING_MASK + _1, np.uint64)
    for i in range(begin, min(begin + _WINDOW, count)):
        _hash_ahead(directory, seed_a, seed_b, keys, i, hashes)
    for start in range(begin, count, _WINDOW):
        middle = min(start + _WINDOW, count)
        for i in range(middle, min(middle + _WINDOW, count)):
            _hash_ahead(directory, seed_a, seed_b, keys, i, hashes)
        for i in range(start, middle):
            h, key = hashes[i & _RING_MASK], load_relaxed(keys + (i << _3))
            row_plus_1, bucket = _probe(directory, h, key)
            if row_plus_1 == _0:
                sub = h >> _56
                if counts[sub] >= limits[sub]:
                    return i, made, sub
                row_plus_1 = next_row + made + _1
                _put(bucket, key, row_plus_1)
                counts[sub] += _1
                new_keys[made] = key
                made += _1
            rows[i] = np.uint32(row_plus_1 - _1)
    return count, made, _0


@compiled
def _count_kernel(seed_a, seed_b, keys, counts):
    """Adds to counts[s] the number of keys in sub-table s."""
    for i in range(np.uint64(keys.size)):
        counts[_hash(keys[i], seed_a, seed_b) >> _56] += _1


@compiled
def _move_kernel(directory, seed_a, seed_b, old_entry):
    """Copies every used slot of the block `old_entry` to the blocks of `directory`."""
    block = old_entry & _ADDRESS_BITS
    for i in range((_1 << (old_entry & _SIZE_BITS)) << np.uint64(2)):
        slot = block + (i << np.uint64(4))
        row_plus_1 = load_relaxed(slot + _8)
        if row_plus_1 != _0:
            key = load_relaxed(slot)
            _row, bucket = _probe(directory, _hash(key, seed_a, seed_b), key)
            _put(bucket, key, row_plus_1)


@compiled
def _distinct_kernel(seed_a, seed_b, keys, rows, scratch):
    """Number of distinct keys among those without a row.

    `scratch` has zeros. Its size is a power of two and exceeds the number of such keys.
    """
    mask = np.uint64(scratch.size) - _1
    distinct, zero_seen = _0, _0
    for i in range(np.uint64(rows.size)):
        if rows[i] == np.uint32(NO_ROW):
            key = load_relaxed(keys + (i << _3))
            if key == _0:
                # 0 marks an empty place of the scratch.
                zero_seen = _1
                continue
            place = _hash(key, seed_a, seed_b) & mask
            while scratch[place] != _0 and scratch[place] != key:
                place = (place + _1) & mask
            if scratch[place] == _0:
                scratch[place] = key
                distinct += _1
    return distinct + zero_seen


@compiled
def _share_kernel(entry_address, entry, changes_address, changes):
    """Changes one entry of a directory that other processes read."""
    store_release(entry_address, entry)
    store_release(changes_address, changes)


class Blocks:
    """A directory, which never changes, and the memory of all its blocks.

    Whoever calls `find_kernel` keeps them alive until it returns.
    """

    __slots__ = ("address", "directory", "memory")

    def __init__(self, directory: np.ndarray, memory: list[np.ndarray]) -> None:
        self.directory = directory
        self.memory = memory
        self.address = _address(directory)


def _address(array: np.ndarray) -> np.uint64:
    return np.uint64(array.__array_interface__["data"][0])


def _new_block(bits: int, shared: bool) -> tuple[np.ndarray, int]:
    """(memory, directory entry) of an empty block of 2**bits buckets."""
    if shared:
        memory = reserve_shared((_BUCKET_WORDS << bits,), np.uint64)
        return memory, int(_address(memory)) + bits
    memory = np.zeros((_BUCKET_WORDS << bits) + _BUCKET_WORDS, np.uint64)
    start = int(_address(memory))
    return memory, start + -start % _BUCKET_BYTES + bits


def _slot_limit(sub: int, bits: int) -> int:
    """Number of used slots at which sub-table `sub` grows, with 2**bits buckets."""
    return int((SLOTS_PER_BUCKET << bits) * (_LOAD_MIN + _LOAD_SPREAD * sub / SUB_TABLES))


def _bits_for(sub: int, count: int) -> int:
    bits = _BITS_MIN
    while _slot_limit(sub, bits) < count:
        bits += 1
    return bits


def _as_keys(keys: np.ndarray) -> np.ndarray:
    if keys.dtype != np.uint64 or keys.ndim != 1:
        raise TypeError(f"keys: expected uint64[n], got {keys.dtype}{list(keys.shape)}")
    if keys.flags.c_contiguous and keys.flags.aligned:
        return keys
    return np.require(keys, requirements=("C", "A"))


class KeyMap:
    """A map from 64-bit keys (all values are valid) to rows below 2**32 - 1. It never removes a
    key.

    One thread at a time may call `insert_missing` and `rebuild`. Any thread may call `find`,
    `count_new`, `len` and `nbytes` at any time, without a lock. All of them release the GIL in
    their loops.
    """

    def __init__(self, seed: int | None = None, shared: bool = False) -> None:
        """An empty map.

        `seed` is the seed of the hash, 0 or more. None draws one. It changes no result. Keep it
        secret from clients. With `shared` the map lies in the arena, if there is one.
        """
        self.shared: np.ndarray | None = None
        if shared and is_sharing():
            # A late reader must not take a zero for the address of a block.
            self.shared = reserve_shared((SHARED_WORDS,), np.uint64, is_kept=True)
        seed = secrets.randbits(128) if seed is None else seed
        self._seed_a, self._seed_b = np.random.SeedSequence(seed).generate_state(2, np.uint64)
        self._start_empty(np.zeros(SUB_TABLES, np.uint64))

    def _start_empty(self, expected: np.ndarray) -> None:
        """Publishes empty blocks with room for `expected[s]` keys in sub-table s."""
        bits = [_bits_for(sub, int(count)) for sub, count in enumerate(expected)]
        shared = self.shared
        memory, entries = zip(*(_new_block(b, shared is not None) for b in bits), strict=True)
        self._counts = np.zeros(SUB_TABLES, np.uint64)
        self._limits = np.array([_slot_limit(sub, b) for sub, b in enumerate(bits)], np.uint64)
        self._size = 0
        directory = np.array([*entries, self._seed_a, self._seed_b], np.uint64)
        if shared is not None:
            shared[: len(directory)] = directory
            shared[-1] = all(map(is_shared, memory))
        self._blocks = Blocks(directory, list(memory))

    def __len__(self) -> int:
        """Number of keys."""
        return self._size

    @property
    def blocks(self) -> Blocks:
        """The present blocks."""
        return self._blocks

    @property
    def nbytes(self) -> int:
        """Bytes of memory of the present blocks and their directory."""
        blocks = self._blocks
        return blocks.directory.nbytes + sum(memory.nbytes for memory in blocks.memory)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Rows uint32[n] of keys uint64[n]. `NO_ROW` if a key is not in the map.

        Raises:
            TypeError: the keys are not uint64[n].
        """
        keys = _as_keys(keys)
        rows = np.empty(keys.size, np.uint32)
        # The reference keeps all blocks alive until the kernel returns.
        blocks = self._blocks
        find_kernel(blocks.address, _address(keys), rows)
        return rows

    def count_new(self, keys: np.ndarray) -> int:
        """Number of distinct keys of uint64[n] that are not in the map.

        Raises:
            TypeError: the keys are not uint64[n].
        """
        keys = _as_keys(keys)
        rows = self.find(keys)
        missing = int(np.count_nonzero(rows == NO_ROW))
        if missing == 0:
            return 0
        scratch = np.zeros(1 << (2 * missing).bit_length(), np.uint64)
        return int(_distinct_kernel(self._seed_a, self._seed_b, _address(keys), rows, scratch))

    def insert_missing(self, keys: np.ndarray, next_row: int) -> tuple[np.ndarray, np.ndarray]:
        """Maps keys uint64[n]. New keys get next_row, next_row + 1, ... in order of first
        appearance.

        Returns (rows uint32[n], new keys uint64[m] in the order of their rows).

        Raises:
            TypeError: the keys are not uint64[n].
            ValueError: a row could be `NO_ROW`.
        """
        keys = _as_keys(keys)
        if not 0 <= next_row <= NO_ROW - keys.size:
            raise ValueError(f"next_row: expected 0..{NO_ROW - keys.size}, got {next_row} ({keys.size} keys)")
        rows, new_keys = np.empty(keys.size, np.uint32), np.empty(keys.size, np.uint64)
        position, made, sub = 0, 0, -1
        while position < keys.size:
            if sub >= 0:
                self._grow(sub)
            position, made, sub = _insert_kernel(
                self._blocks.address, self._seed_a, self._seed_b, self._counts, self._limits, _address(keys),
                rows, new_keys, np.uint64(position), np.uint64(made), np.uint64(next_row),
            )  # fmt: skip
        self._size += made
        return rows, new_keys[:made].copy()

    def _grow(self, sub: int) -> None:
        """Publishes a larger copy of a sub-table. Active readers keep the old one alive."""
        blocks = self._blocks
        old_entry = blocks.directory[sub]
        old_bits = int(old_entry) & int(_SIZE_BITS)
        bits = old_bits + (2 if old_bits < _BITS_QUADRUPLE else 1)
        directory, memory = blocks.directory.copy(), blocks.memory.copy()
        memory[sub], directory[sub] = _new_block(bits, self.shared is not None)
        grown = Blocks(directory, memory)
        _move_kernel(grown.address, self._seed_a, self._seed_b, old_entry)
        self._limits[sub] = _slot_limit(sub, bits)
        if self.shared is not None:
            self._share(sub, directory[sub], memory[sub])
        self._blocks = grown

    def _share(self, sub: int, entry: np.uint64, memory: np.ndarray) -> None:
        assert self.shared is not None
        base, changes = _address(self.shared), self.shared[-1]
        if changes and is_shared(memory):
            changes += _1
        else:
            # The arena has no addresses left. Others keep the old entry, which reads as zeros soon.
            entry, changes = self.shared[sub], _0
        last = np.uint64(8 * (SHARED_WORDS - 1))
        _share_kernel(base + np.uint64(8 * sub), entry, base + last, changes)

    def rebuild(self, keys: np.ndarray) -> None:
        """Removes all keys, and maps keys uint64[n] to the rows 0..n-1.

        Readers meanwhile find some of the keys.

        Raises:
            TypeError: the keys are not uint64[n].
            ValueError: a key repeats. The map is then empty.
        """
        keys = _as_keys(keys)
        expected = np.zeros(SUB_TABLES, np.uint64)
        _count_kernel(self._seed_a, self._seed_b, keys, expected)
        self._start_empty(expected)
        _, new_keys = self.insert_missing(keys, 0)
        if new_keys.size != keys.size:
            self._start_empty(np.zeros(SUB_TABLES, np.uint64))
            raise ValueError(f"keys: expected {keys.size} distinct keys, got {new_keys.size}")


def compile_kernels() -> None:
    """Compiles the kernels of this module, or loads them from Numba's cache.

    So no later call waits for the compiler.
    """
    keys = np.arange(64 * SUB_TABLES, dtype=np.uint64)
    keymap = KeyMap(0)
    keymap.count_new(keys)
    keymap.insert_missing(keys, 0)
    keymap.rebuild(keys)
