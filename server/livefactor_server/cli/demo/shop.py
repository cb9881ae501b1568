"""The purchases of a real shop, which the package ships."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

import numpy as np

from livefactor.wire.keys import keys_of


@dataclass(frozen=True, slots=True)
class Shop:
    """A year of purchases in the order of time.

    Attributes:
        users, items: keys, uint64[n].
        times_us: microseconds since 1970, int64[n].
        labels: the description of each item, by its key.
    """

    users: np.ndarray
    items: np.ndarray
    times_us: np.ndarray
    labels: dict[int, str]


def load_shop() -> Shop:
    """Reads the shipped UCI Online Retail purchases (CC BY 4.0; data/online_retail/README.md)."""
    events = list(_rows("events.csv.gz"))
    names = list(_rows("items.csv.gz"))
    labels = dict(
        zip(
            keys_of([row["stock_code"] for row in names]).tolist(),
            [row["description"] for row in names],
            strict=True,
        )
    )
    return Shop(
        np.array([int(row["customer_id"]) for row in events], np.uint64),
        keys_of([row["stock_code"] for row in events]),
        np.array([int(row["timestamp"]) for row in events], np.int64) * 1_000_000,
        labels,
    )


def _rows(name: str) -> Iterator[dict[str, str]]:
    file = resources.files("livefactor_server") / "data" / "online_retail" / name
    text = gzip.decompress(file.read_bytes()).decode()
    return csv.DictReader(io.StringIO(text))
