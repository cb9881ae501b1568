"""Bags of features in messages: those of ids, and the context of events and calls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from livefactor.wire.columns import BagColumns, FeatureColumns
from livefactor.wire.keys import keys_of
from livefactor.wire.limits import FEATURE_NAME_BYTES_MAX, FEATURE_WEIGHT_MAX, FEATURES_OF_BATCH_MAX, over
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.spec.model import MAX_FEATURES_PER_ID, ModelSpec
from livefactor_server.statuses import invalid


def check_context(columns: BagColumns, spec: ModelSpec) -> None:
    """Checks the context of events or of a call.

    Raises:
        Refused: INVALID_ARGUMENT if the model has no context, or with the first bad row.
    """
    require_context(spec)
    check_bags("context", columns, MAX_FEATURES_PER_ID)
    check_names("context", columns, keys_of(columns.names))


def require_context(spec: ModelSpec) -> None:
    """Checks that a model has context.

    Raises:
        Refused: INVALID_ARGUMENT if it has none.
    """
    if not spec.context.size:
        raise invalid("context: this model has no context (spec: context.size)")


def context_bags(columns: BagColumns) -> Bags:
    """The checked bags by keys."""
    ends = np.cumsum(columns.counts, dtype=np.int64)
    return Bags(ends, keys_of(columns.names)[columns.features], columns.weights)


def joined_bags(parts: Sequence[Bags]) -> Bags:
    """The bags of all parts, end to end."""
    sizes = np.concatenate([np.diff(part.ends, prepend=0) for part in parts])
    keys, weights = (np.concatenate([part[column] for part in parts]) for column in (1, 2))
    return Bags(np.cumsum(sizes), keys, weights)


def check_bags(field: str, columns: FeatureColumns | BagColumns, per_id: int) -> None:
    """Checks the bags of a message, which errors call `field`.

    Raises:
        Refused: INVALID_ARGUMENT with the first bad row.
    """
    if len(columns.features) > FEATURES_OF_BATCH_MAX:
        raise invalid(over(field, FEATURES_OF_BATCH_MAX, len(columns.features), "features a batch"))
    long = np.flatnonzero(columns.counts > per_id)
    if long.size:
        got = columns.counts[long[0]]
        raise invalid(f"{field}: row {long[0]}: at most {per_id} features a bag, got {got}")
    rows = np.repeat(np.arange(len(columns)), columns.counts)
    weights = columns.weights
    bad = np.flatnonzero(~(np.abs(weights) <= FEATURE_WEIGHT_MAX) | (weights == 0))
    if bad.size:
        name, more = columns.names[columns.features[bad[0]]], bad.size - 1
        others = f" and {more} further weights" if more else ""
        raise invalid(
            f"weights: row {rows[bad[0]]}, feature {name!r}{others}: expected a number other than 0 of at "
            f"most {FEATURE_WEIGHT_MAX:g}, got {weights[bad[0]]:g}"
        )


def check_names(field: str, columns: FeatureColumns | BagColumns, keys: np.ndarray) -> None:
    """Checks the names of a message and their keys, and that no bag has one of them twice.

    Raises:
        Refused: INVALID_ARGUMENT.
    """
    sizes = np.array([len(name.encode()) for name in columns.names], np.int64)
    bad = np.flatnonzero((sizes < 1) | (sizes > FEATURE_NAME_BYTES_MAX))
    if bad.size:
        raise invalid(
            f"names: name {bad[0]}: expected 1..{FEATURE_NAME_BYTES_MAX} bytes, got {sizes[bad[0]]}"
        )
    # Two names with one key would make a bag that has a feature twice.
    if len(set(keys.tolist())) != len(keys):
        raise invalid("names: two names are equal, or have the same key")
    unused = np.flatnonzero(np.bincount(columns.features, minlength=len(keys)) == 0)
    if unused.size:
        raise invalid(f"names: no bag has name {unused[0]}")
    rows = np.repeat(np.arange(len(columns)), columns.counts)
    order = np.lexsort((columns.features, rows))
    again = np.flatnonzero(
        (np.diff(rows[order]) == 0) & (np.diff(columns.features[order].astype(np.int64)) == 0)
    )
    if again.size:
        at = order[again[0] + 1]
        raise invalid(f"{field}: row {rows[at]} has {columns.names[columns.features[at]]!r} twice")
