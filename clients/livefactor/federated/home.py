"""A participant: its own model and events at home, and what it gives to a round."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from livefactor.auditor import Auditor
from livefactor.errors import AlreadyExists, SnapshotInvalid
from livefactor.federated.rounds import LOCAL_MERGE, Contribution, Rows, adopt, difference, rows_of
from livefactor.in_process import Local
from livefactor.snapshots.files import load

Events = Mapping[str, Any]
"""The arguments of `Producer.push`: user_ids, item_ids, and perhaps values, weights,
event_types and times."""


@dataclass
class Home:
    """What a participant has, and what it does in a round.

    server: the participant's own, such as `livefactor.local(data=...)`, which keeps its user rows
    from round to round. common: an auditor of the common model. events: the events of a round, by
    its number. preset, spec: of the common model, but for `merge`. norm_max: a contribution is
    scaled down to it if it is above 0. padding: so many items that did not change are in a
    contribution, so that whoever merges does not learn which items changed; all others if negative.
    name: of the participant's own model.
    """

    server: Local
    common: Auditor
    events: Callable[[int], Events]
    preset: str = ""
    spec: Mapping[str, Any] | None = None
    norm_max: float = 0.0
    padding: int = 0
    name: str = "home"
    _last: Rows | None = field(default=None, init=False, repr=False)

    def learn(self, number: int, snapshot_id: str, root_hash: bytes) -> Contribution:
        """Take the item rows of the common model, learn the events of round `number`, and return
        what that changed.

        The participant fetches the whole snapshot, so nobody learns which rows it needs. Raises
        SnapshotInvalid if the snapshot has another root hash, and the errors of the clients.
        """
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "common"
            self.common.fetch(path, snapshot_id)
            snapshot = load(path)
            if snapshot.root_hash != root_hash:
                text = f"expected root hash {root_hash.hex()}, got {snapshot.root_hash.hex()}"
                raise SnapshotInvalid("manifest.json", text)
            rows = rows_of(snapshot)
            rows = Rows(rows.keys.copy(), rows.numbers.copy())
        self._create()
        with self.server.producer("rows", model=self.name, labels=False) as producer:
            adopt(producer, self._last or self.rows(), rows)
            # The rows are those of the common model, but for the rounding of their differences.
            before = self.rows()
            events = dict(self.events(number))
            size = len(events["user_ids"])
            if size:
                producer.push(**events).result()
        self._last = self.rows()
        found = difference(before, self._last, float(size), self.norm_max)
        return _padded(found, self.padding)

    def rows(self) -> Rows:
        """The item rows of the participant's own model."""
        with (
            tempfile.TemporaryDirectory() as scratch,
            self.server.auditor(model=self.name) as auditor,
        ):
            taken = auditor.snapshot()
            auditor.fetch(Path(scratch) / "own", taken.snapshot_id)
            rows = rows_of(load(Path(scratch) / "own"))
            return Rows(rows.keys.copy(), rows.numbers.copy())

    def _create(self) -> None:
        with self.server.models() as models:
            try:
                models.create(self.name, self.preset, **{**(self.spec or {}), "merge": LOCAL_MERGE})
            except AlreadyExists:
                return


def _padded(found: Contribution, padding: int) -> Contribution:
    """The rows that changed, and `padding` others, drawn at random."""
    changed: npt.NDArray[np.bool_] = np.asarray(found.numbers.any(axis=1))
    others = np.flatnonzero(~changed)
    if 0 <= padding < len(others):
        others = np.random.default_rng().choice(others, padding, replace=False)
    changed[others] = True
    return Contribution(found.keys[changed], found.numbers[changed], found.events)
