"""The two streams of `benchmarks.progressive`, read from files given at run time.

MovieLens-1M may not be redistributed, so it never is part of the project: Harper & Konstan, "The MovieLens Datasets", ACM TiiS 5(4), 2015.
Online Retail is shipped (server/livefactor_server/data/online_retail/README.md has its source and licence).
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from livefactor.keys import keys_of

RETAIL_SHIPPED = Path(__file__).resolve().parent.parent / "server/livefactor_server/data/online_retail/events.csv.gz"


@dataclass(frozen=True, slots=True)
class Stream:
    """Events in time order: user_keys, item_keys uint64[n]; values float32[n], or None where an event has none."""

    user_keys: np.ndarray
    item_keys: np.ndarray
    values: np.ndarray | None

    def __len__(self) -> int:
        return self.user_keys.size

    def head(self, fraction: float) -> Stream:
        """The first `fraction` of the events: presets were chosen on such a part alone."""
        stop = int(len(self) * fraction)
        return Stream(self.user_keys[:stop], self.item_keys[:stop], None if self.values is None else self.values[:stop])


def read_ratings(path: Path) -> Stream:
    """The ratings whose time is known (timestamp > 0), by a stable sort in time, from ratings.csv.gz.

    Columns user, item, rating, timestamp (Unix seconds; 0 = unknown). FileNotFoundError if there is no such file.
    """
    with gzip.open(path, "rt", encoding="ascii") as file:
        table = np.loadtxt(file, dtype=np.int64, delimiter=",", skiprows=1, ndmin=2)
    table = table[table[:, 3] > 0]
    table = table[np.argsort(table[:, 3], kind="stable")]
    return Stream(table[:, 0].astype(np.uint64), table[:, 1].astype(np.uint64), table[:, 2].astype(np.float32))


def read_purchases(path: Path = RETAIL_SHIPPED) -> Stream:
    """All purchases in the file's order, which is time's, from events.csv.gz: one event a line, whatever its quantity.

    The six stock codes that are charges and not goods (postage and the like, 1,554 lines) stay in.
    """
    with gzip.open(path, "rt", encoding="ascii", newline="") as file:
        rows = [(row["customer_id"], row["stock_code"]) for row in csv.DictReader(file)]
    customers, stock_codes = zip(*rows, strict=True)
    return Stream(keys_of(customers), keys_of(stock_codes), None)
