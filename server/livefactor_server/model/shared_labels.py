"""Labels of one side, as other processes read them in an arena (`simd/arena.py`).

    map    key → place (`tables/keymap.py`)
    words  uint64 by place: address of the text * 2**11 + its bytes, or 0 without a label
    text   UTF-8 in blocks, end to end; the text of a replaced label stays until most of it is such

The version of the head is odd while labels change. A reader looks at it afterwards.
"""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

from livefactor_kernels.numbers.lanes import address_of
from livefactor_kernels.simd.arena import is_shared
from livefactor_kernels.simd.memory import reserve_shared
from livefactor_kernels.tables.head import Changed, Head, HeadReader
from livefactor_kernels.tables.keymap import NO_ROW, KeyMap
from livefactor_kernels.tables.shared import SharedMap

LABELS_MAX = 1 << 28
"""Maximum number of ids that ever had a label. Beyond it other processes read none."""

BLOCK_BYTES = 1 << 20
_LENGTH_BITS = 11
_LENGTHS = (1 << _LENGTH_BITS) - 1


class SharingLabels:
    """The labels that other processes read. The APPLY stage calls `put`."""

    def __init__(self) -> None:
        self._head, self._words = Head(), reserve_shared((LABELS_MAX,), np.uint64)
        self._map, self._places = KeyMap(secrets.randbits(64), shared=True), 0
        self._blocks: list[np.ndarray] = []
        self._free = self._written = self._used = 0
        self._is_lost = False

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What `SharedLabels` reads, by name; nothing if the arena has no addresses left."""
        if self._map.shared is None:
            return {}
        return {"head": self._head.words, "words": self._words, "map": self._map.shared}

    def put(self, names: Mapping[int, str]) -> None:
        """Sets the labels of ids. An empty one removes it."""
        if self._is_lost:
            return
        keys = np.fromiter(names, np.uint64, len(names))
        self._head.open()
        places, new = self._map.insert_missing(keys, self._places)
        self._places += len(new)
        if self._places > LABELS_MAX:
            self._lose()
            return
        for place, text in zip(places.tolist(), names.values(), strict=True):
            self._used -= int(self._words[place]) & _LENGTHS
            word = self._write(text.encode())
            if word is None:
                self._lose()
                return
            self._words[place] = word
        if self._written > 2 * self._used + BLOCK_BYTES:
            self._compact()
        self._head.close(0, 0, 0)

    def _write(self, text: bytes) -> int | None:
        """Writes a text. Returns its word, or None if the arena has no addresses left."""
        if not text:
            return 0
        if len(text) > self._free:
            block = reserve_shared((BLOCK_BYTES,), np.uint8)
            if not is_shared(block):
                # Others would follow an address that they do not have.
                return None
            self._blocks.append(block)
            self._free = BLOCK_BYTES
        block, at = self._blocks[-1], BLOCK_BYTES - self._free
        block[at : at + len(text)] = np.frombuffer(text, np.uint8)
        self._free -= len(text)
        self._written += len(text)
        self._used += len(text)
        return int(address_of(block)) + at << _LENGTH_BITS | len(text)

    def _lose(self) -> None:
        """Ends the reads of other processes."""
        self._is_lost = True
        self._head.withdraw()

    def _compact(self) -> None:
        old, self._blocks = self._blocks, []
        self._free = self._written = self._used = 0
        for place in np.flatnonzero(self._words[: self._places]).tolist():
            word = self._write(_text_at(self._words[place]))
            if word is None:
                self._lose()
                return
            self._words[place] = word
        # Until here the texts were read from the old blocks.
        del old


class SharedLabels:
    """The labels of one side of a model of another process. Any thread may call it."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        """`arrays` are those of `SharingLabels.arrays`."""
        self._head, self._words, self._map = (
            HeadReader(arrays["head"]),
            arrays["words"],
            SharedMap(arrays["map"]),
        )

    def of(self, keys: np.ndarray) -> list[str]:
        """The labels of ids uint64[n], "" where there is none.

        Raises:
            Changed: labels have changed meanwhile, or cannot be read here.
        """
        version = self._head.version()
        places = self._map.find(keys)
        words = np.zeros(len(keys), np.uint64)
        words[places != NO_ROW] = self._words[places[places != NO_ROW]]
        texts = [_text_at(word) if word else b"" for word in words.tolist()]
        self._head.check(version)
        if not self._head.is_in_force:
            raise Changed
        return [text.decode() for text in texts]


def _text_at(word: Any) -> bytes:
    return ctypes.string_at(int(word) >> _LENGTH_BITS, int(word) & _LENGTHS)
