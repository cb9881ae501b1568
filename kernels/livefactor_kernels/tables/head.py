"""The head of a model in host memory: its version, its revision and its published counts.

Readers use it to read rows without a lock while one writer changes them (a sequence lock; Lameter,
Effective synchronization on Linux/NUMA systems, 2005). The writer makes the version odd before it
changes rows, and even afterwards. A reader takes the version, reads what it needs, and takes the
version again. If both are the same even number, then everything that it read is of one revision.
Otherwise it may have read anything and tries again. So a reader must not trust what it has read,
and must not follow a pointer in it, before it has looked at the version for the second time.

    word 0      version
    word 1      revision
    words 2, 3  numbers of published rows of users and of items
    word 4      1 while the model is in force, see `Head.withdraw`

The words lie in one cache line. The fences order them with the rows on every processor. On x86 they
cost nothing, because it keeps the order of loads and that of stores.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.entries import entry_of
from livefactor_kernels.numbers.lanes import address_of
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.simd.atomics import (
    acquire_fence,
    load_acquire,
    load_relaxed,
    relax,
    release_fence,
    store_relaxed,
    store_release,
)
from livefactor_kernels.simd.memory import reserve_shared

WORDS = 8
REVISION, USER_COUNT, ITEM_COUNT = np.uint64(8), np.uint64(16), np.uint64(24)
"""Offsets of the words in bytes."""

_IN_FORCE = np.uint64(32)
_0, _1 = np.uint64(0), np.uint64(1)
_LOOKS = np.uint64(512)
"""Number of times that `Head.wait` looks at the version: about 20 microseconds."""


class Changed(Exception):
    """Rows have changed while they were read."""


class HeadReader:
    """The head of a model as readers see it, also those of another process. Any thread may call its
    methods.

    Attributes:
        words: uint64[WORDS]; only compiled code may read them while a writer runs.
        address: the address of the words.
    """

    def __init__(self, words: np.ndarray) -> None:
        self.words = words
        self.address = address_of(words)

    @property
    def revision(self) -> int:
        """The published revision."""
        return int(_load_kernel(self.address + REVISION))

    @property
    def counts(self) -> tuple[int, int]:
        """The numbers of published rows of users and of items."""
        return int(_load_kernel(self.address + USER_COUNT)), int(_load_kernel(self.address + ITEM_COUNT))

    def version(self) -> int:
        """The version at the begin of a read.

        Raises:
            Changed: rows are being changed.
        """
        version = int(_load_kernel(self.address))
        if version & 1:
            raise Changed
        return version

    def check(self, version: int) -> None:
        """Ends a read that began at a version.

        Raises:
            Changed: rows have changed since then, so what was read may be anything.
        """
        if not _check_kernel(self.address, np.uint64(version)):
            raise Changed

    @property
    def is_in_force(self) -> bool:
        """Whether answers that were read before this look may be given."""
        return int(_load_kernel(self.address + _IN_FORCE)) == 1

    def wait(self) -> None:
        """Waits for a short time while the version is odd. It releases the GIL."""
        _wait_kernel(self.address)


class Head(HeadReader):
    """The head of one model.

    One thread at a time may call `open` and `close`. Any thread may call the other methods.
    """

    def __init__(self) -> None:
        """The head at revision 0. It compiles the kernels, or loads them from the cache."""
        super().__init__(reserve_shared((WORDS,), np.uint64))
        _store_kernel(self.address + _IN_FORCE, _1)
        self._open = entry_of(_open_kernel, self.address)
        self._close = entry_of(_close_kernel, self.address, _0, _0, _0)
        self.wait()

    def open(self) -> None:
        """Makes the version odd. The caller then changes rows."""
        self._open(self.address)

    def close(self, revision: int, user_count: int, item_count: int) -> None:
        """Publishes a revision with its counts, and makes the version even.

        Without `open` before it, it publishes a revision that changes no rows.
        """
        self._close(self.address, revision, user_count, item_count)

    def withdraw(self) -> None:
        """Ends the answers that other processes give. The caller does this before another state
        answers in place of this one, or none does. Freed memory reads as withdrawn, too.
        """
        _store_kernel(self.address + _IN_FORCE, _0)


@inlined
def version_before(head: Any) -> Any:
    """The version at the begin of a read."""
    return load_acquire(head)


@inlined
def is_unchanged(head: Any, version: Any) -> Any:
    """Whether no row has changed since `version_before`."""
    acquire_fence()
    return (version & _1) == _0 and load_relaxed(head) == version


@compiled(nogil=False)
def _open_kernel(head: Any) -> None:
    store_relaxed(head, load_relaxed(head) | _1)
    release_fence()


@compiled(nogil=False)
def _close_kernel(head: Any, revision: Any, user_count: Any, item_count: Any) -> None:
    version = load_relaxed(head) | _1
    store_relaxed(head, version)
    release_fence()
    store_relaxed(head + REVISION, revision)
    store_relaxed(head + USER_COUNT, user_count)
    store_relaxed(head + ITEM_COUNT, item_count)
    store_release(head, version + _1)


@compiled(nogil=False)
def _load_kernel(address: Any) -> Any:
    return load_acquire(address)


@compiled(nogil=False)
def _check_kernel(address: Any, version: Any) -> Any:
    return is_unchanged(address, version)


@compiled(nogil=False)
def _store_kernel(address: Any, value: Any) -> None:
    store_release(address, value)


@compiled
def _wait_kernel(head: Any) -> None:
    for _look in range(_LOOKS):
        if load_acquire(head) & _1 == _0:
            return
        relax()
