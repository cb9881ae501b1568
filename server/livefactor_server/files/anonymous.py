"""An export of events with pseudonyms for users, and the report of what it still says.

The users of the file get pseudonyms of a key and of the period of their events. Items may be
randomised, and events of items with few users may be left out. The events come out in the order of
their pseudonyms, so that their order says nothing about time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from livefactor.federated.anonymity import Anonymity, anonymity, pseudonyms, randomised, users_of_items
from livefactor_server.files.events import Rows

DAY_US = 86_400 * 1_000_000


@dataclass(frozen=True, slots=True)
class Settings:
    """How an export is made.

    period_days: users get new pseudonyms after so many days; 0: never. epsilon: of each randomised
    event; 0: items stay. k: what the report counts. drop_rare: whether events of items with fewer
    than k users are left out.
    """

    period_days: int = 0
    epsilon: float = 0.0
    k: int = 5
    drop_rare: bool = False


@dataclass(frozen=True, slots=True)
class Export:
    """The events that come out: pseudonyms and items of n events, and the report about them.

    left_out: events that were left out. most_events: events of the user with most of them.
    """

    users: list[str]
    items: list[Any]
    report: Anonymity
    left_out: int
    most_events: int


def anonymised(rows: Iterable[Rows], key: bytes, settings: Settings) -> Export:
    """The export of events with the fields user_ids, item_ids and, with periods, times.

    Raises ValueError for a bad setting, for no events, and if no event is left.
    """
    users, items, periods = _columns(rows, settings.period_days)
    if not users:
        raise ValueError("there are no events")
    names, item = np.unique(np.array(items, object), return_inverse=True)
    item = item.astype(np.int64)
    hidden = np.array(pseudonyms(users, periods, key))
    if settings.epsilon:
        item = randomised(item, len(names), settings.epsilon)
    pseudonym, user = np.unique(hidden, return_inverse=True)
    kept = np.ones(len(user), bool)
    if settings.drop_rare:
        kept = users_of_items(user, item)[item] >= settings.k
        if not kept.any():
            raise ValueError(f"no item has {settings.k} users, so no event is left")
    user, item = user[kept], item[kept]
    order = np.lexsort((item, user))
    report = anonymity(user, item, settings.k)
    most = int(np.bincount(user).max())
    left_out = int(np.count_nonzero(~kept))
    return Export(pseudonym[user[order]].tolist(), names[item[order]].tolist(), report, left_out, most)


def write_export(path: Path, export: Export) -> None:
    """Writes the columns user_id and item_id as csv, or as parquet if the name ends with .parquet.

    Raises FileExistsError if the file exists, and OSError if it cannot be written.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists")
    table = pa.table({"user_id": export.users, "item_id": pa.array(export.items)})
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        arrow_csv.write_csv(table, path)


def _columns(rows: Iterable[Rows], period_days: int) -> tuple[list[Any], list[Any], np.ndarray]:
    users: list[Any] = []
    items: list[Any] = []
    periods: list[np.ndarray] = [np.empty(0, np.int64)]
    for block in rows:
        users += _values(block.columns["user_ids"])
        items += _values(block.columns["item_ids"])
        if period_days:
            times = np.asarray(block.columns["times"]).astype(np.int64)
            periods.append(times // (period_days * DAY_US))
    found = np.concatenate(periods)
    return users, items, found if period_days else np.zeros(len(users), np.int64)


def _values(column: Any) -> list[Any]:
    values: list[Any] = column.to_pylist() if hasattr(column, "to_pylist") else column.tolist()
    return values
