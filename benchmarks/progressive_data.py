"""The two streams of `benchmarks.progressive`, read from files given at run time.

MovieLens-1M may not be redistributed and is never part of the project (Harper & Konstan, "The MovieLens
Datasets", ACM TiiS 5(4), 2015). Online Retail is shipped; its source and licence stand beside it.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from livefactor.keys import keys_of

_SHIPPED = "server/livefactor_server/data/online_retail/events.csv.gz"
RETAIL_SHIPPED = Path(__file__).resolve().parent.parent / _SHIPPED


@dataclass(frozen=True, slots=True)
class Stream:
    """Events in time order: user_keys, item_keys uint64[n]; values float32[n], ones if they have none."""

    user_keys: np.ndarray
    item_keys: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return self.user_keys.size

    def head(self, events: int) -> Stream:
        """The first `events` events."""
        return Stream(self.user_keys[:events], self.item_keys[:events], self.values[:events])


def read_ratings(path: Path) -> Stream:
    """The ratings whose time is known (timestamp > 0), by a stable sort in time, from ratings.csv.gz.

    Columns user, item, rating, timestamp (Unix seconds; 0 = unknown). OSError if the file cannot be read.
    """
    with gzip.open(path, "rt", encoding="ascii") as file:
        table = np.loadtxt(file, dtype=np.int64, delimiter=",", skiprows=1, ndmin=2)
    table = table[table[:, 3] > 0]
    users, items, ratings, _ = table[np.argsort(table[:, 3], kind="stable")].T
    return Stream(users.astype(np.uint64), items.astype(np.uint64), ratings.astype(np.float32))


def read_purchases(path: Path = RETAIL_SHIPPED) -> Stream:
    """All purchases in the file's order, which is time's, from events.csv.gz: a line is an event.

    The six stock codes that are charges and not goods (postage and the like, 1,554 lines) stay in; quantities
    are ignored. OSError if the file cannot be read.
    """
    with gzip.open(path, "rt", encoding="ascii", newline="") as file:
        rows = [(row["customer_id"], row["stock_code"]) for row in csv.DictReader(file)]
    customers, stock_codes = zip(*rows, strict=True)
    return Stream(keys_of(customers), keys_of(stock_codes), np.ones(len(rows), np.float32))
