"""What a record of deltas must have made of the item rows, computed from two snapshots.

The formula is that of the server (docs/privacy.md, "A contribution"), with its order of additions
and its roundings, so equal means equal bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from livefactor.federated.rounds import Contribution, Floats, rows_of
from livefactor.snapshots.loaded import LoadedSnapshot


def unexplained_rows(
    before: LoadedSnapshot, merged: Contribution, after: LoadedSnapshot, weight: float = 1.0
) -> npt.NDArray[np.uint64]:
    """The ids of the item rows of `after` that are not those of `before` plus the record `merged`.

    weight: of the record. No id is the proof that the record was applied, and that nothing else
    changed an item row: the rows agree to the bit. Raises ValueError if `after` is not the next
    revision of the same model, and for a spec with narrow factors, `regularization.row_norm_max`
    or `merge.optimizer_step`. A replay (`livefactor verify`) proves these.
    """
    spec = after.spec
    if before.lineage != after.lineage or after.revision != before.revision + 1:
        raise ValueError(f"after: expected revision {before.revision + 1}, got {after.revision}")
    if spec.regularization.row_norm_max > 0:
        raise ValueError("regularization.row_norm_max: rows with a limit of their norm have no proof")
    if spec.merge.optimizer_step:
        raise ValueError("merge.optimizer_step: steps of an optimizer have no proof from snapshots")
    old, new = rows_of(before), rows_of(after)
    if not np.array_equal(old.keys, new.keys) or not np.isin(merged.keys, old.keys).all():
        raise ValueError("merged: expected items that have a row before the record")
    expected, limit = old.numbers.copy(), np.float32(spec.limits.factor_max)
    numbers = merged.numbers.astype(np.float32)
    rate = np.float32(spec.merge.learning_rate)
    rate = np.float32(float(rate) * float(np.float32(weight)) * _scale(numbers, spec.merge.norm_max))
    at = np.searchsorted(old.keys, merged.keys)
    expected[at] = np.clip(expected[at] + rate * numbers, -limit, limit)
    differ: npt.NDArray[np.bool_] = (expected.view(np.uint32) != new.numbers.view(np.uint32)).any(axis=1)
    return old.keys[differ]


def _scale(numbers: Floats, norm_max: float) -> float:
    """What the server multiplies a contribution by, so that it keeps the limit of the norm."""
    most = float(np.float32(norm_max))
    ordered = np.append(numbers[:, :-1].ravel(), numbers[:, -1])
    # A running sum goes from left to right, as the server's does.
    norm = float(np.sqrt(np.add.accumulate(ordered.astype(np.float64) ** 2)[-1]))
    return most / norm if norm > most else 1.0
