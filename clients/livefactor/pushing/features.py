"""Bags of features of users or items, as the bodies of batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from livefactor.errors import ColumnError
from livefactor.pushing.batching import PREFIX_BYTES_MAX, BatchSettings
from livefactor.wire.arrays import is_missing
from livefactor.wire.columns import encode_features
from livefactor.wire.limits import FEATURE_NAME_BYTES_MAX, FEATURE_WEIGHT_MAX, FEATURES_OF_BATCH_MAX

Bag = Mapping[str, float] | Sequence[str]
_ROW_BYTES, _FEATURE_BYTES = 12, 11
"""Bytes in a message of an id with the size of its bag, and of a feature beside its name."""


def as_bags(features: Any, n: int) -> list[dict[str, float]]:
    """Convert the features of n ids, or those of the one id, to bags.

    features: n bags, each a dict of names with weights or a list of names; or columns of n values,
    as a DataFrame or a dict of sequences (`bags_of_columns`). Raises ColumnError with the row of
    the first bag that cannot be one.
    """
    if hasattr(features, "columns") or _are_columns(features):
        bags = bags_of_columns({str(name): list(features[name]) for name in _names(features)})
    elif n == 1 and _is_one_bag(features):
        bags = [features]
    else:
        bags = list(features)
    if len(bags) != n:
        raise ColumnError(f"features has {len(bags)} rows, expected {n} (ids)")
    return [_bag(row, bag) for row, bag in enumerate(bags)]


def _names(features: Any) -> list[Any]:
    return list(features.columns if hasattr(features, "columns") else features)


def _are_columns(features: Any) -> bool:
    """Whether this is a dict of columns, and not one bag, which is a dict of weights."""
    return isinstance(features, Mapping) and any(
        not isinstance(value, str | int | float | np.number) for value in features.values()
    )


def _is_one_bag(features: Any) -> bool:
    return isinstance(features, Mapping) or all(isinstance(each, str) for each in features)


def bags_of_columns(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, float]]:
    """The bags of columns, one feature a column.

    A number is the weight of the feature that the column names. A text t of a column c is the
    feature "c:t", and texts of a list are one each. True is the column's feature, and False, a
    missing value and an empty text are no feature.
    """
    rows = max((len(column) for column in columns.values()), default=0)
    bags: list[dict[str, float]] = [{} for _ in range(rows)]
    for name, column in columns.items():
        if len(column) != rows:
            raise ColumnError(f"features[{name!r}] has {len(column)} rows, expected {rows}")
        for bag, value in zip(bags, column, strict=True):
            for each in value if isinstance(value, list | tuple | np.ndarray) else (value,):
                _add(bag, name, each)
    return bags


def _add(bag: dict[str, float], name: str, value: Any) -> None:
    if isinstance(value, str):
        if value:
            bag[f"{name}:{value}"] = 1.0
    elif not is_missing(value) and value:
        bag[name] = value


def _bag(row: int, bag: Bag) -> dict[str, float]:
    """A checked bag. Raises ColumnError."""
    if isinstance(bag, str) or not isinstance(bag, Mapping | Iterable):
        raise ColumnError.at("features", row, "expected a dict of names with weights, or a list of names")
    if isinstance(bag, Mapping):
        weighted = dict(bag)
    else:
        names = list(bag)
        weighted = dict.fromkeys(names, 1.0)
        if len(weighted) != len(names):
            raise ColumnError.at("features", row, "a feature occurs twice")
    for name, weight in weighted.items():
        if not isinstance(name, str) or not 1 <= len(name.encode(errors="replace")) <= FEATURE_NAME_BYTES_MAX:
            reason = f"expected names of 1..{FEATURE_NAME_BYTES_MAX} bytes, got {name!r}"
            raise ColumnError.at("features", row, reason)
        try:
            number = float(weight)
        except (TypeError, ValueError):
            number = math.nan
        if not abs(number) <= FEATURE_WEIGHT_MAX:
            reason = f"{name!r}: expected a weight of at most {FEATURE_WEIGHT_MAX:g}, got {weight!r}"
            raise ColumnError.at("features", row, reason)
    # A weight of 0 says nothing. So does one that float32 rounds to 0.
    return {name: float(weight) for name, weight in weighted.items() if np.float32(weight)}


def feature_bodies(
    side: int, keys: npt.NDArray[np.uint64], bags: Sequence[Mapping[str, float]], batch: BatchSettings
) -> list[tuple[int, bytes]]:
    """The rows and the body of each batch. keys: uint64[n], of the ids of the n bags."""
    bytes_max = batch.bytes_max - PREFIX_BYTES_MAX
    bodies, start, features, size = [], 0, 0, 0
    for row, bag in enumerate(bags):
        row_bytes = _ROW_BYTES + sum(len(name.encode()) + _FEATURE_BYTES for name in bag)
        is_full = row - start == batch.events_max or size + row_bytes > bytes_max
        if row > start and (is_full or features + len(bag) > FEATURES_OF_BATCH_MAX):
            bodies.append((row - start, _body(side, keys[start:row], bags[start:row])))
            start, features, size = row, 0, 0
        features, size = features + len(bag), size + row_bytes
    if len(bags) > start:
        bodies.append((len(bags) - start, _body(side, keys[start:], bags[start:])))
    return bodies


def _body(side: int, keys: npt.NDArray[np.uint64], bags: Sequence[Mapping[str, float]]) -> bytes:
    names: dict[str, int] = {}
    features = [names.setdefault(name, len(names)) for bag in bags for name in bag]
    weights = np.array([weight for bag in bags for weight in bag.values()], np.float32)
    counts = np.array([len(bag) for bag in bags], np.uint32)
    told = weights if (weights != 1).any() else None
    return encode_features(side, keys, counts, list(names), np.array(features, np.uint32), told)
