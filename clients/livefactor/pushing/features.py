"""Bags of features of users or items, and of context, as the bodies of batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from livefactor.pushing.batching import PREFIX_BYTES_MAX, BatchSettings
from livefactor.pushing.rows import RowColumns
from livefactor.wire.columns import encode_features, encode_interactions
from livefactor.wire.content import bag_columns
from livefactor.wire.ids import Ids, as_keys
from livefactor.wire.limits import FEATURES_OF_BATCH_MAX

_ROW_BYTES, _FEATURE_BYTES, _INTERACTION_BYTES = 12, 11, 36
"""Bytes in a message of an id with the size of its bag, of a feature beside its name, and of an
interaction with all columns.
"""


def feature_bodies(
    side: int, keys: npt.NDArray[np.uint64], bags: Sequence[Mapping[str, float]], batch: BatchSettings
) -> list[tuple[int, bytes]]:
    """The rows and the body of each batch. keys: uint64[n], of the ids of the n bags."""
    bodies = []
    for start, stop in _cuts(bags, batch, _ROW_BYTES):
        part = bag_columns(bags[start:stop])
        told = part.weights if (part.weights != 1).any() else None
        body = encode_features(side, keys[start:stop], part.counts, part.names, part.features, told)
        bodies.append((stop - start, body))
    return bodies


def context_bodies(
    rows: RowColumns,
    bags: Sequence[Mapping[str, float]] | None,
    score_ids: npt.NDArray[np.uint64] | None,
    batch: BatchSettings,
) -> list[tuple[int, bytes]]:
    """The rows and the body of each batch of n interactions with their context, n or 1 bags, and
    with the calls that showed their items, uint64[n].
    """
    spread = _spread([{}] if bags is None else bags, len(rows.user_ids))
    bodies = []
    for start, stop in _cuts(spread, batch, rows.row_bytes + _ROW_BYTES + 8 * (score_ids is not None)):
        part, own = rows.slice(start, stop), None if score_ids is None else score_ids[start:stop]
        context = None if bags is None else bag_columns(spread[start:stop])
        bodies.append((stop - start, encode_interactions(*part, context=context, score_ids=own)))
    return bodies


def is_one_batch(bags: Sequence[Mapping[str, float]], batch: BatchSettings) -> bool:
    """Whether the interactions with these bags of context go into one batch, whatever they have."""
    return len(list(_cuts(bags, batch, _ROW_BYTES + _INTERACTION_BYTES))) == 1


def interactions_body(
    rows: RowColumns,
    bags: Sequence[Mapping[str, float]] | None,
    score_ids: npt.NDArray[np.uint64] | None = None,
) -> bytes:
    """The body of a batch of n interactions, with n or 1 bags of context or without."""
    context = None if bags is None else bag_columns(_spread(bags, len(rows.user_ids)))
    return encode_interactions(*rows, context=context, score_ids=score_ids)


def shown_by(score_ids: Ids, n: int) -> npt.NDArray[np.uint64] | None:
    """The calls that showed n items, uint64[n], of one id for all or n. None without any.

    Raises ColumnError for another type.
    """
    if score_ids is None:
        return None
    keys = as_keys("score_ids", score_ids)
    return np.repeat(keys, n) if len(keys) == 1 else keys


def _spread(bags: Sequence[Mapping[str, float]], n: int) -> Sequence[Mapping[str, float]]:
    return bags if len(bags) == n else [bags[0]] * n


def _cuts(
    bags: Sequence[Mapping[str, float]], batch: BatchSettings, row_bytes: int
) -> Iterator[tuple[int, int]]:
    """The rows [start, stop) of each batch, of which a row has `row_bytes` beside its bag."""
    bytes_max = batch.bytes_max - PREFIX_BYTES_MAX
    start, features, size = 0, 0, 0
    for row, bag in enumerate(bags):
        own = row_bytes + sum(len(name.encode()) + _FEATURE_BYTES for name in bag)
        is_full = row - start == batch.events_max or size + own > bytes_max
        if row > start and (is_full or features + len(bag) > FEATURES_OF_BATCH_MAX):
            yield start, row
            start, features, size = row, 0, 0
        features, size = features + len(bag), size + own
    if len(bags) > start:
        yield start, len(bags)
