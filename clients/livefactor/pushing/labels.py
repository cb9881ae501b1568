"""Labels of string ids: a producer tells the server the text of every string id that it pushes.

The server knows ids as 64-bit keys. A label gives the text back in answers. `IdLabels` remembers
which texts were labelled. It gathers the labels of new ones, and the producer sends them in front
of the next batch of events. A batch that is acknowledged therefore has its labels.

These label batches carry no sequence number, unlike the batches of `push_labels`. The server may
apply one of them twice after a broken connection, which changes nothing: a key has one text. In
return a producer's sequences count the batches of its pushes alone, so a file resumes by sequence
with labels or without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from livefactor.errors import ColumnError
from livefactor.pushing.batching import PREFIX_BYTES_MAX, Batch, BatchSettings
from livefactor.v1 import updates_pb2
from livefactor.wire.columns import LABELS, encode_labels
from livefactor.wire.ids import HashTexts, Ids, as_keys
from livefactor.wire.keys import keys_of
from livefactor.wire.limits import LABEL_BYTES_MAX

TEXTS_MAX = 1 << 19
"""Texts that are remembered for each side: about 70 MB of memory. Past it the memory is emptied,
and a text that comes again is labelled again.
"""

USERS, ITEMS = "user", "item"
SIDES = {USERS: updates_pb2.SIDE_USER, ITEMS: updates_pb2.SIDE_ITEM}
"""The contract's number of each side."""

FEATURE_SIDES = SIDES | {"context": updates_pb2.SIDE_CONTEXT}
"""Whose features a model can list and drop."""


class IdLabels:
    """The labels of one side's string ids. Not thread-safe, except for `reader` and its calls.

    texts_max: how many texts are remembered.
    """

    def __init__(self, side: str, texts_max: int = TEXTS_MAX) -> None:
        self._side = SIDES[side]
        self._texts_max = texts_max
        self._known: dict[str, int] = {}
        self._unsent: dict[int, str] = {}

    def reader(self) -> TextReader:
        """What turns the texts of one column of one push into keys. Any thread may use it."""
        return TextReader(self._known)

    def take(self, reader: TextReader) -> None:
        """The push was taken: its new texts are labelled in front of the next batch of events."""
        for text, key in self._learn(reader.new):
            label = _label(text)
            if label:
                self._unsent[key] = label

    def leave_out(self, reader: TextReader) -> None:
        """The caller labels these texts itself, so they get no label here."""
        for _ in self._learn(reader.new):
            pass

    def _learn(self, new: Mapping[str, int]) -> Iterator[tuple[str, int]]:
        if len(self._known) + len(new) > self._texts_max:
            # A new dictionary: readers of other threads go on with the one that they have.
            self._known = {}
        for text, key in new.items():
            if text not in self._known:
                self._known[text] = key
                yield text, key

    def batches(self, settings: BatchSettings) -> Iterator[tuple[Batch, bytes]]:
        """The labels that were not sent yet, as batches with their bodies.

        They count as sent from here on.
        """
        if not self._unsent:
            return
        keys = np.fromiter(self._unsent.keys(), np.uint64, len(self._unsent))
        texts = list(self._unsent.values())
        self._unsent = {}
        for start, stop in label_cuts(texts, settings):
            body = encode_labels(self._side, keys[start:stop], texts[start:stop])
            yield Batch(LABELS, numbered=False), body


class TextReader:
    """Turns string ids into keys and notes in `new` the texts that have no label yet, with their
    keys.
    """

    def __init__(self, known: Mapping[str, int]) -> None:
        self._known = known
        self.new: dict[str, int] = {}

    def __call__(self, ids: Sequence[str]) -> npt.NDArray[np.uint64]:
        """uint64[n]: the keys of n ids, as `keys_of` gives them.

        Raises ColumnError as `keys_of` does.
        """
        known = self._known
        try:
            distinct = set(ids)
            new = list(distinct.difference(known))
            if new:
                self.new |= zip(new, keys_of(new).tolist(), strict=True)
                known = {text: known[text] if text in known else self.new[text] for text in distinct}
        except (ColumnError, TypeError):
            # The error must name the row in `ids`.
            return keys_of(ids)
        return np.fromiter(map(known.__getitem__, ids), np.uint64, len(ids))


def read_ids(
    labels: Mapping[str, IdLabels], side: str, ids: Ids, hashed: HashTexts
) -> tuple[npt.NDArray[np.uint64], Callable[[], None] | None]:
    """The keys of a column of ids of one side, and what takes the labels of its string ids.

    The second is None if the producer sends no labels. Raises ColumnError for ids of a wrong type,
    and ValueError for another side than "user" or "item".
    """
    if side not in SIDES:
        raise ValueError(f"side: expected 'user' or 'item', got {side!r}")
    name = f"{side}_ids"
    if side not in labels:
        return as_keys(name, ids, hashed), None
    reader = labels[side].reader()
    return as_keys(name, ids, reader), partial(labels[side].take, reader)


def label_cuts(labels: Sequence[str], settings: BatchSettings) -> list[tuple[int, int]]:
    """Row ranges [start, stop) of labels that each fit one message."""
    cuts: list[tuple[int, int]] = []
    start = size = 0
    for row, label in enumerate(labels):
        row_bytes = 8 + 3 + (len(label.encode(errors="surrogatepass")) if isinstance(label, str) else 0)
        full = row - start == settings.events_max or size + row_bytes > settings.bytes_max - PREFIX_BYTES_MAX
        if full and row > start:
            cuts.append((start, row))
            start, size = row, 0
        size += row_bytes
    if start < len(labels):
        cuts.append((start, len(labels)))
    return cuts


def _label(text: str) -> str:
    """The label of an id; empty where it can have none."""
    fits = len(text) <= LABEL_BYTES_MAX // 4 or len(text.encode()) <= LABEL_BYTES_MAX
    return text if fits else ""
