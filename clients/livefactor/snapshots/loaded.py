"""A loaded snapshot: its arrays by their names, its labels and its scores."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from livefactor.errors import InvalidArgument
from livefactor.snapshots.format import Manifest
from livefactor.snapshots.scores import SnapshotScores
from livefactor.snapshots.sections import SIDES, optimizer_state, parse_spec
from livefactor.v1 import models_pb2
from livefactor.wire.ids import Ids, as_keys
from livefactor.wire.keys import keys_of

_FIXED_POINT_ONE = float(1 << 20)


class Labels(Mapping[int, str]):
    """The labels of one side's ids: a mapping from id to text over the arrays of the snapshot."""

    def __init__(self, keys: np.ndarray, offsets: np.ndarray, text: np.ndarray) -> None:
        self._keys, self._offsets, self._text = keys, offsets, text

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[int]:
        return iter(self._keys.tolist())

    def __getitem__(self, key: int) -> str:
        row = int(np.searchsorted(self._keys, np.uint64(key)))
        if row == len(self._keys) or self._keys[row] != key:
            raise KeyError(key)
        return self._text[int(self._offsets[row]) : int(self._offsets[row + 1])].tobytes().decode()


class _Index:
    """Finds the rows of one side's ids. An unknown id has the row `missing`."""

    def __init__(self, keys: np.ndarray) -> None:
        self._order = np.argsort(keys)
        self._keys = keys[self._order]
        self.missing = len(keys)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        if not self.missing:
            return np.zeros(len(ids), np.int64)
        at = np.minimum(np.searchsorted(self._keys, ids), self.missing - 1)
        return np.where(self._keys[at] == ids, self._order[at], self.missing)


@dataclass(frozen=True, repr=False)
class LoadedSnapshot:
    """A verified snapshot.

    Its arrays are read-only views of the mapped files, in the model's row order. tensors: every
    section by name, such as "users.keys" and "mean" (sections.py lists them). A bfloat16 section is
    a uint16 array.
    """

    path: Path
    manifest: Manifest
    tensors: Mapping[str, np.ndarray]

    def __repr__(self) -> str:
        return f"LoadedSnapshot({str(self.path)!r}, {self.manifest.summary})"

    @property
    def lineage(self) -> uuid.UUID:
        """The model's lineage. Lineage and `revision` are the position of the snapshot."""
        return self.manifest.lineage

    @property
    def revision(self) -> int:
        """The revision of the state."""
        return self.manifest.revision

    @property
    def log_hash(self) -> bytes:
        """The chain hash of the log at this revision, 32 bytes."""
        return self.manifest.log_hash

    @property
    def root_hash(self) -> bytes:
        """The root hash of the state, 32 bytes."""
        return self.manifest.root_hash

    @cached_property
    def spec(self) -> models_pb2.ModelSpec:
        """The complete spec of the model."""
        return parse_spec(self.manifest.spec)

    @property
    def user_ids(self) -> np.ndarray:
        """The ids of the user rows, uint64[users]."""
        return self.tensors["users.keys"]

    @property
    def item_ids(self) -> np.ndarray:
        """The ids of the item rows, uint64[items]."""
        return self.tensors["items.keys"]

    @cached_property
    def user_factors(self) -> np.ndarray:
        """The factors of the user rows, [users, k]: float16, or float32, also for a model of
        bfloat16.
        """
        return without_bfloat16(self.tensors["users.factors"])

    @cached_property
    def item_factors(self) -> np.ndarray:
        """The factors of the item rows, [items, k], with the dtype of `user_factors`."""
        return without_bfloat16(self.tensors["items.factors"])

    @property
    def user_biases(self) -> np.ndarray:
        """The biases of the user rows, float32[users]."""
        return self.tensors["users.bias"]

    @property
    def item_biases(self) -> np.ndarray:
        """The biases of the item rows, float32[items]."""
        return self.tensors["items.bias"]

    @property
    def accumulators(self) -> dict[str, np.ndarray]:
        """The optimizer's state by section name; empty with SGD.

        `snapshots.sections` lists all names. AdaGrad, for example, has "users.factor_g"
        float32[users, k] and "users.bias_g" float32[users].
        """
        sections = [f"{side}.{name}" for side in SIDES for name in optimizer_state(self.spec)]
        return {name: self.tensors[name] for name in sections}

    @property
    def mean(self) -> np.float32:
        """The global mean.

        Its sum and count are exact integers, and one float64 division gives it.
        """
        total, count = (int(number) for number in self.tensors["mean"])
        return np.float32(float(total) / (float(count) * _FIXED_POINT_ONE)) if count else np.float32(0.0)

    @property
    def events(self) -> int:
        """The number of interactions accepted since the model was created."""
        return int(self.tensors["events"][0])

    @property
    def unavailable_ids(self) -> np.ndarray:
        """The ids of the m unavailable items, uint64[m], in ascending order."""
        return self.tensors["unavailable"]

    @cached_property
    def user_labels(self) -> Labels:
        """The labels of user ids."""
        return self._labels("user")

    @cached_property
    def item_labels(self) -> Labels:
        """The labels of item ids."""
        return self._labels("item")

    def _labels(self, side: str) -> Labels:
        return Labels(*(self.tensors[f"labels.{side}.{name}"] for name in ("keys", "offsets", "text")))

    @cached_property
    def _user_index(self) -> _Index:
        return _Index(self.user_ids)

    @cached_property
    def _item_index(self) -> _Index:
        return _Index(self.item_ids)

    @cached_property
    def _scores(self) -> SnapshotScores:
        return SnapshotScores(self.spec, self.tensors, self.mean, self.user_factors, self.item_factors)

    def score(
        self,
        user_id: int | str,
        item_ids: Ids,
        *,
        events: Ids = None,
        secret: bytes = b"",
    ) -> np.ndarray:
        """Score n items for a user: float32[n], bit for bit the server's scores at this revision.

        user_id, item_ids: ids as in `Scorer.score`. An unknown user or item counts as a row of
        zeros. events: m items that the user has just had, oldest first; they replace the user's
        history as in `Scorer.score`. None or an empty list uses the history. secret: the key for
        string ids that the producers use.

        Raises ColumnError for ids of a wrong type. Raises UnknownSpec, which is a ValueError and
        names the part, if the model's scores have a part that this version of the package does not
        know. Raises InvalidArgument for events if the model has no histories.
        """
        hash_texts = partial(keys_of, secret=secret)
        given = np.empty(0, np.uint64) if events is None else as_keys("events", events, hash_texts)
        if len(given) and not self.spec.history.users:
            raise InvalidArgument("events: this model has no histories (spec: history.users)")
        user = self._user_index.rows(as_keys("user_id", user_id, hash_texts))
        rows = self._item_index.rows(as_keys("item_ids", item_ids, hash_texts))
        replaced = self._item_index.rows(given) if len(given) else None
        return self._scores.score(int(user[0]), rows, replaced)


def without_bfloat16(factors: np.ndarray) -> np.ndarray:
    """Widen bfloat16 bits (uint16) to float32. Arrays of another dtype are returned unchanged."""
    if factors.dtype != np.uint16:
        return factors
    wide = (factors.astype(np.uint32) << 16).view(np.float32)
    wide.flags.writeable = False
    return wide
