"""Labels of ids. The last label of an id replaces earlier ones, and an empty label removes it.

The entries are an append-only list, so that a snapshot freezes it by its length. The list is
compacted when most of its entries are obsolete.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from livefactor_kernels.simd.memory import is_sharing
from livefactor_server.model.shared_labels import SharingLabels

ENTRY_BYTES = 200
"""Approximate memory of an entry without its text, in bytes.

It has the key, the string object, and the places in the list and the map.
"""


@dataclass(frozen=True, slots=True)
class FrozenLabels:
    """The first `count` entries of an append-only list."""

    entries: list[tuple[int, str]]
    count: int

    def arrays(self) -> dict[str, np.ndarray]:
        """The labels as arrays.

        The arrays are keys uint64[n], ascending; offsets uint64[n + 1] into the text; and text
        uint8[bytes], which is UTF-8.
        """
        current = dict(self.entries[: self.count])
        names = sorted((key, text.encode()) for key, text in current.items() if text)
        keys = np.array([key for key, _ in names], np.uint64)
        offsets = np.zeros(len(names) + 1, np.uint64)
        np.cumsum([len(text) for _, text in names], out=offsets[1:])
        return {
            "keys": keys,
            "offsets": offsets,
            "text": np.frombuffer(b"".join(t for _, t in names), np.uint8),
        }


class Labels:
    """Labels of one side. The APPLY stage writes them. Any thread may call `get`."""

    def __init__(self, shared: bool = False) -> None:
        """No labels. With `shared` other processes read them, if this process has an arena."""
        self._sharing = SharingLabels() if shared and is_sharing() else None
        self._names: dict[int, str] = {}
        self._entries: list[tuple[int, str]] = []
        # Approximate memory.
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, key: int) -> bool:
        return key in self._names

    def get(self, key: int) -> str:
        """The label of `key`, "" if it has none."""
        return self._names.get(key, "")

    def put(self, keys: np.ndarray, labels: list[str]) -> None:
        """Sets labels in order."""
        for key, text in zip(keys.tolist(), labels, strict=True):
            self._entries.append((key, text))
            self.nbytes += ENTRY_BYTES + len(text.encode())
            if text:
                self._names[key] = text
            else:
                self._names.pop(key, None)
        if self._sharing is not None:
            self._sharing.put(dict(zip(keys.tolist(), labels, strict=True)))
        if len(self._entries) > 2 * len(self._names) + 1024:
            self._compact()

    def drop(self, keys: np.ndarray) -> None:
        """Removes the labels of keys uint64[n]. Keys without a label cost little."""
        gone = [key for key in keys.tolist() if key in self._names]
        self.put(np.array(gone, np.uint64), [""] * len(gone))

    @property
    def shared(self) -> dict[str, np.ndarray]:
        """What `shared_labels.SharedLabels` reads, by name; nothing if it can read nothing."""
        return {} if self._sharing is None else self._sharing.arrays

    def _compact(self) -> None:
        # It makes another list, because frozen labels use the present one.
        self._entries = list(self._names.items())
        self.nbytes = sum(ENTRY_BYTES + len(text.encode()) for text in self._names.values())

    def freeze(self) -> FrozenLabels:
        """The present labels, which later calls of `put` do not change."""
        return FrozenLabels(self._entries, len(self._entries))

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Replaces all labels by those of a snapshot. The arrays are those of
        `FrozenLabels.arrays`.
        """
        text = arrays["text"].tobytes()
        ends = arrays["offsets"].tolist()
        names = [text[start:end].decode() for start, end in pairwise(ends)]
        self._names = dict(zip(arrays["keys"].tolist(), names, strict=True))
        if self._sharing is not None:
            self._sharing.put(self._names)
        self._compact()
