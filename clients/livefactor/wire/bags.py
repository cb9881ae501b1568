"""Bags of features as callers give them: dicts, lists of names, or columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from livefactor.errors import ColumnError
from livefactor.wire.arrays import is_missing
from livefactor.wire.limits import FEATURE_NAME_BYTES_MAX, FEATURE_WEIGHT_MAX

Bag = Mapping[str, float] | Sequence[str]


def as_bags(features: Any, n: int, field: str = "features", like: str = "ids") -> list[dict[str, float]]:
    """Convert the features of n ids, or those of the one id, to bags.

    features: n bags, each a dict of names with weights or a list of names; or columns of n values,
    as a DataFrame or a dict of sequences (`bags_of_columns`). Errors call them `field`, and what
    they are of `like`. Raises ColumnError with the row of the first bag that cannot be one.
    """
    if hasattr(features, "columns") or _are_columns(features):
        bags = bags_of_columns({str(name): list(features[name]) for name in _names(features)})
    elif n == 1 and is_one_bag(features):
        bags = [features]
    else:
        bags = list(features)
    if len(bags) != n:
        raise ColumnError(f"{field} has {len(bags)} rows, expected {n} ({like})")
    return [_bag(field, row, bag) for row, bag in enumerate(bags)]


def _names(features: Any) -> list[Any]:
    return list(features.columns if hasattr(features, "columns") else features)


def _are_columns(features: Any) -> bool:
    """Whether this is a dict of columns, and not one bag, which is a dict of weights."""
    return isinstance(features, Mapping) and any(
        not isinstance(value, str | int | float | np.number) for value in features.values()
    )


def is_one_bag(features: Any) -> bool:
    """Whether this is one bag: a dict of weights, or a list of names."""
    if isinstance(features, Mapping):
        return not _are_columns(features)
    return not hasattr(features, "columns") and all(isinstance(each, str) for each in features)


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


def _bag(field: str, row: int, bag: Bag) -> dict[str, float]:
    """A checked bag. Raises ColumnError."""
    if isinstance(bag, str) or not isinstance(bag, Mapping | Iterable):
        raise ColumnError.at(field, row, "expected a dict of names with weights, or a list of names")
    if isinstance(bag, Mapping):
        weighted = dict(bag)
    else:
        names = list(bag)
        weighted = dict.fromkeys(names, 1.0)
        if len(weighted) != len(names):
            raise ColumnError.at(field, row, "a feature occurs twice")
    for name, weight in weighted.items():
        if not isinstance(name, str) or not 1 <= len(name.encode(errors="replace")) <= FEATURE_NAME_BYTES_MAX:
            reason = f"expected names of 1..{FEATURE_NAME_BYTES_MAX} bytes, got {name!r}"
            raise ColumnError.at(field, row, reason)
        try:
            number = float(weight)
        except (TypeError, ValueError):
            number = math.nan
        if not abs(number) <= FEATURE_WEIGHT_MAX:
            reason = f"{name!r}: expected a weight of at most {FEATURE_WEIGHT_MAX:g}, got {weight!r}"
            raise ColumnError.at(field, row, reason)
    # A weight of 0 says nothing. So does one that float32 rounds to 0.
    return {name: float(weight) for name, weight in weighted.items() if np.float32(weight)}


def as_shared_bags(bags: Any, n: int, field: str, like: str) -> list[dict[str, float]]:
    """Convert one bag that n rows share, or n bags, as `as_bags` does. The result has 1 or n."""
    return as_bags(bags, 1 if is_one_bag(bags) else n, field, like)
