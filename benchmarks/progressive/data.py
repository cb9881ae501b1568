"""The two streams of `benchmarks.progressive.suite`, read from files given at run time.

MovieLens-1M may not be redistributed and is never part of the project (Harper & Konstan, "The MovieLens
Datasets", ACM TiiS 5(4), 2015). Online Retail is shipped; its source and licence stand beside it.
"""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np

from livefactor.wire.keys import keys_of
from livefactor_server.tuning.progressive import Stream

_SHIPPED = "server/livefactor_server/data/online_retail/events.csv.gz"
MICROSECONDS = 1_000_000
RETAIL_SHIPPED = Path(__file__).resolve().parents[2] / _SHIPPED


def read_ratings(path: Path) -> Stream:
    """The ratings whose time is known (timestamp > 0), by a stable sort in time, from ratings.csv.gz.

    Columns user, item, rating, timestamp (Unix seconds; 0 = unknown). OSError if the file cannot be read.
    """
    with gzip.open(path, "rt", encoding="ascii") as file:
        table = np.loadtxt(file, dtype=np.int64, delimiter=",", skiprows=1, ndmin=2)
    table = table[table[:, 3] > 0]
    users, items, ratings, seconds = table[np.argsort(table[:, 3], kind="stable")].T
    keys = users.astype(np.uint64), items.astype(np.uint64)
    return Stream(*keys, ratings.astype(np.float32), times=seconds * MICROSECONDS)


def read_purchases(path: Path = RETAIL_SHIPPED) -> Stream:
    """All purchases in the file's order, which is time's, from events.csv.gz: a line is an event.

    The six stock codes that are charges and not goods (postage and the like, 1,554 lines) stay in; quantities
    are ignored. OSError if the file cannot be read.
    """
    with gzip.open(path, "rt", encoding="ascii", newline="") as file:
        rows = [(row["customer_id"], row["stock_code"], row["timestamp"]) for row in csv.DictReader(file)]
    customers, stock_codes, seconds = zip(*rows, strict=True)
    keys = keys_of(customers), keys_of(stock_codes)
    return Stream(*keys, np.ones(len(rows), np.float32), times=np.array(seconds, np.int64) * MICROSECONDS)
