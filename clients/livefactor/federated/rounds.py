"""A federated round in plain functions: pull rows, train at home, give back what changed.

    rows = rows_of(livefactor.load(path))               the item rows of the server's model
    adopt(producer, present, rows)                      a participant's model takes them
    ... the participant pushes its events to its model, and takes a snapshot of it ...
    given = difference(rows, rows_of(after), events)    what its training changed
    merged = weighted_mean([given, ...])                or another mean (`merging`)
    give(producer, merged)                              one record of the server's model

A participant's model is a model of its own, such as one of `livefactor.local()`, with the spec of
the server's and with `merge = LOCAL_MERGE`. User rows stay in it. Secure aggregation takes
`vector_of` of each participant and gives `merged_from` their sum (`masking`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from livefactor.federated.fixed import FixedPoint
from livefactor.position import Position
from livefactor.pushing.producer import Producer
from livefactor.snapshots.loaded import LoadedSnapshot
from livefactor.wire.limits import DELTA_NUMBERS_MAX

LOCAL_MERGE = {"learning_rate": 1.0, "norm_max": 1e20}
"""`merge` of a participant's own model: it takes the server's rows as they are."""

Floats = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Rows:
    """Item rows: keys uint64[n], ascending, and numbers float32[n, k + 1], the bias last."""

    keys: npt.NDArray[np.uint64]
    numbers: Floats


@dataclass(frozen=True, slots=True)
class Contribution:
    """What training changed in the rows `keys`: float64[n, k + 1], and the events behind it."""

    keys: npt.NDArray[np.uint64]
    numbers: Floats
    events: float

    @property
    def norm(self) -> float:
        """The Euclidean norm of all numbers."""
        return float(np.linalg.norm(self.numbers))

    def within(self, norm_max: float) -> Contribution:
        """The same, scaled down to a norm of `norm_max` if the norm is above it. 0: no limit."""
        if not 0.0 < norm_max < self.norm:
            return self
        return Contribution(self.keys, self.numbers * (norm_max / self.norm), self.events)


def rows_of(snapshot: LoadedSnapshot) -> Rows:
    """The item rows of a snapshot."""
    keys = np.asarray(snapshot.tensors["items.keys"], np.uint64)
    order = np.argsort(keys)
    factors, bias = (snapshot.tensors[f"items.{name}"] for name in ("factors", "bias"))
    if factors.dtype != np.float32:
        raise ValueError(f"factors: expected float32, got {factors.dtype}")
    return Rows(keys[order], np.column_stack([factors, bias])[order])


def adopt(producer: Producer, present: Rows, rows: Rows) -> Position | None:
    """Give a participant's model the rows of the server's. `present` are its own of now.

    Returns the position of its last record, or None if there was nothing to do.
    """
    own = numbers_at(rows.keys, present.keys, present.numbers)
    deltas, position = rows.numbers.astype(np.float64) - own, None
    differs = deltas.any(axis=1) | ~np.isin(rows.keys, present.keys)
    keys, deltas = rows.keys[differs], deltas[differs]
    step = max(1, DELTA_NUMBERS_MAX // deltas.shape[1])
    for start in range(0, len(keys), step):
        part = slice(start, start + step)
        position = give(producer, Contribution(keys[part], deltas[part], 0.0))
    return position


def register(producer: Producer, keys: npt.NDArray[np.uint64], k: int) -> Position | None:
    """Give items their initial rows, functions of the spec and the id, by deltas of zeros.

    Items that have a row keep it. Returns the position of the last record, None without keys.
    """
    position, step = None, max(1, DELTA_NUMBERS_MAX // (k + 1))
    for start in range(0, len(keys), step):
        part = keys[start : start + step]
        position = give(producer, Contribution(part, np.zeros((len(part), k + 1)), 0.0))
    return position


def difference(before: Rows, after: Rows, events: float, norm_max: float = 0.0) -> Contribution:
    """What changed in the rows of `before`, scaled down to a norm of `norm_max` if it is above 0.

    Rows that `before` lacks are left out: `register` all items first.
    """
    found = numbers_at(before.keys, after.keys, after.numbers, before.numbers)
    changed = found - before.numbers.astype(np.float64)
    return Contribution(before.keys, changed, events).within(norm_max)


def give(producer: Producer, merged: Contribution, weight: float = 1.0) -> Position:
    """Push a contribution as one record, and wait for it. Returns its position."""
    numbers = merged.numbers
    biases = numbers[:, -1] if np.any(numbers[:, -1]) else None
    receipt = producer.push_deltas("item", merged.keys, numbers[:, :-1], biases, weight=weight)
    return receipt.result().position


# ---------------------------------------------------------------------------- secure aggregation


def vector_of(given: Contribution, code: FixedPoint, events_max: float) -> npt.NDArray[np.uint32]:
    """A contribution as the vector of a secure sum: uint32[n * (k + 1) + 1].

    Each number times events / events_max, and that share at the end. All participants need the same
    keys. Raises ColumnError for a number beyond the bound of the code.
    """
    share = given.events / events_max
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"events: expected 0..{events_max:g}, got {given.events:g}")
    return code.encode(np.append(given.numbers.ravel() * share, share * code.bound))


def merged_from(
    total: npt.NDArray[np.uint32], keys: npt.NDArray[np.uint64], code: FixedPoint, events_max: float
) -> Contribution:
    """The weighted mean from the sum of the vectors. Raises ValueError for a sum of no events."""
    numbers = code.decode(total)
    share = float(numbers[-1]) / code.bound
    if not share > 0:
        raise ValueError("events: expected more than 0 in all contributions together")
    return Contribution(keys, numbers[:-1].reshape(len(keys), -1) / share, share * events_max)


def numbers_at(
    wanted: npt.NDArray[np.uint64],
    keys: npt.NDArray[np.uint64],
    numbers: Floats,
    otherwise: Floats | None = None,
) -> Floats:
    """The numbers of the wanted keys, and 0 or `otherwise` for those that are not in `keys`."""
    out = np.zeros((len(wanted), numbers.shape[1]))
    if otherwise is not None:
        out[:] = otherwise
    if len(keys):
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        is_there = keys[at] == wanted
        out[is_there] = numbers[at[is_there]]
    return out
