"""Reads the two streams of `benchmarks.progressive.suite` from files.

MovieLens-1M may not be redistributed and is not part of the project (Harper and Konstan, "The
MovieLens Datasets", ACM TiiS 5(4), 2015). Online Retail is part of the project; its source and its
licence are in its folder.
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
    """Reads the ratings with a known time (timestamp > 0) from ratings.csv.gz, with a stable sort
    by time.

    The columns are user, item, rating and timestamp (Unix seconds; 0 means unknown). Raises
    OSError.
    """
    with gzip.open(path, "rt", encoding="ascii") as file:
        table = np.loadtxt(file, dtype=np.int64, delimiter=",", skiprows=1, ndmin=2)
    table = table[table[:, 3] > 0]
    users, items, ratings, seconds = table[np.argsort(table[:, 3], kind="stable")].T
    keys = users.astype(np.uint64), items.astype(np.uint64)
    return Stream(*keys, ratings.astype(np.float32), times=seconds * MICROSECONDS)


def read_purchases(path: Path = RETAIL_SHIPPED) -> Stream:
    """Reads all purchases from events.csv.gz. Each line is an event, and the file is ordered by
    time.

    The six stock codes for charges such as postage (1,554 lines) are included. Quantities are
    ignored. Raises OSError.
    """
    with gzip.open(path, "rt", encoding="ascii", newline="") as file:
        rows = [(row["customer_id"], row["stock_code"], row["timestamp"]) for row in csv.DictReader(file)]
    customers, stock_codes, seconds = zip(*rows, strict=True)
    keys = keys_of(customers), keys_of(stock_codes)
    return Stream(*keys, np.ones(len(rows), np.float32), times=np.array(seconds, np.int64) * MICROSECONDS)
