"""The data sets on which preset `auto` is measured.

The folder has a folder for each data set, with the public files that the functions below name.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.progressive.data import Stream
from benchmarks.quality.data import Division, Events, cut, numbered

SECOND = 1_000_000


def _events(
    users: Iterable[object],
    items: Iterable[object],
    times: Iterable[int] | None = None,
    values: Iterable[float] | None = None,
) -> Events:
    """Each pair once, in the given order, or by time if there are times (seconds).

    Values are 1 where none are given.
    """
    keys = [
        np.unique(np.array(list(column)), return_inverse=True)[1].astype(np.uint64)
        for column in (users, items)
    ]
    order, moments = np.arange(keys[0].size), None
    if times is not None:
        moments = np.array(list(times), np.int64) * SECOND
        order = np.argsort(moments, kind="stable")
        moments = moments[order]
    numbers = np.ones(order.size, np.float32) if values is None else np.array(list(values), np.float32)
    return numbered(Stream(keys[0][order], keys[1][order], numbers[order], times=moments), once=True)


def _lines(file: Path, separator: str) -> list[list[str]]:
    with gzip.open(file, "rt", encoding="latin-1") as lines:
        return list(csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE))


def ml100k(folder: Path) -> Division:
    """MovieLens-100k: the last 20 % of each user's ratings, in time."""
    rows = _lines(folder / "ml-100k" / "ml-100k.inter.tsv.gz", "\t")[1:]
    users, items, stars, times = zip(*rows, strict=True)
    return cut(_events(users, items, (int(float(t)) for t in times), map(float, stars)), True, 0.8, 1.0)


def ml1m(folder: Path) -> Division:
    """MovieLens-1M: the last 20 % of the ratings of 2,000 users whose ratings have times."""
    rows = np.loadtxt(folder / "ml-1m" / "ratings.csv.gz", skiprows=1, delimiter=",", dtype=np.int64)
    rows = rows[rows[:, 3] > 0]
    rows = rows[np.isin(rows[:, 0], _some(np.unique(rows[:, 0]), 2000))]
    return cut(_events(rows[:, 0], rows[:, 1], rows[:, 3], rows[:, 2]), True, 0.8, 1.0)


def lastfm(folder: Path) -> Division:
    """Last.fm: a random 20 % of each user's artists, without times."""
    rows = _lines(folder / "lastfm-2k" / "user_artists.dat.gz", "\t")[1:]
    order = np.random.default_rng(7).permutation(len(rows)).tolist()
    return cut(_events((rows[n][0] for n in order), (rows[n][1] for n in order)), True, 0.8, 1.0)


def games(folder: Path) -> Division:
    """Video games: the last item of each user, in the order of each user, without times.

    It is the half of the users on which nothing was chosen.
    """
    pairs = np.array(
        [line[0].split() for line in _lines(folder / "sasrec-games" / "Video.txt.gz", "\t")], int
    )
    # Random numbers that ascend within each user interleave the users.
    draws = np.random.default_rng(5).random(len(pairs))
    draws = draws[np.lexsort((draws, pairs[:, 0]))]
    last = np.append(pairs[1:, 0] != pairs[:-1, 0], True)
    events = _events(pairs[:, 0], pairs[:, 1])
    # The other half shaped the settings.
    judged = np.random.default_rng(9).random(events.user_count)[events.users] >= 0.5
    learned = np.flatnonzero(judged & ~last)
    return Division(
        events.take(learned[np.argsort(draws[learned], kind="stable")]),
        events.take(np.flatnonzero(judged & last)),
    )


def instruments(folder: Path) -> Division:
    """Musical instruments: the last 20 % of each user's reviews, by day."""
    with gzip.open(folder / "amazon-musical-instruments" / "reviews_5core.json.gz", "rt") as lines:
        reviews = [json.loads(line) for line in lines]
    names = "reviewerID", "asin", "unixReviewTime", "overall"
    columns = [[review[name] for review in reviews] for name in names]
    return cut(_events(*columns), True, 0.8, 1.0)


class Sessions(NamedTuple):
    """Anonymous sessions of a shop: sessions, items and periods, int[n].

    Sessions come as a whole, in the order of their last clicks.
    """

    sessions: np.ndarray
    items: np.ndarray
    periods: np.ndarray


def diginetica(folder: Path) -> Sessions:
    """Diginetica in the form of ADER (Mi, Lin, Faltings, RecSys 2020): 17 periods."""
    columns = np.load(folder / "ader-diginetica" / "events.npz")
    sessions = columns["session"]
    ends = np.zeros(int(sessions.max()) + 1, np.int64)
    ends[sessions] = np.arange(sessions.size)
    order = np.argsort(ends[sessions], kind="stable")
    return Sessions(sessions[order], columns["item"][order], columns["period"][order])


def _some(names: np.ndarray, count: int) -> np.ndarray:
    return np.random.default_rng(1).choice(names, min(count, len(names)), replace=False)


def retail(folder: Path) -> Division:
    """Online Retail: the last 20 % of all first purchases, in time."""
    rows = _lines(folder / "online-retail" / "events.csv.gz", ",")[1:]
    return cut(
        _events((r[1] for r in rows), (r[2] for r in rows), (int(r[0]) for r in rows)), False, 0.8, 1.0
    )


SETS: dict[str, Callable[[Path], Division]] = {
    "ml100k": ml100k,
    "ml1m": ml1m,
    "lastfm": lastfm,
    "games": games,
    "instruments": instruments,
    "retail": retail,
}
RATED = ("ml100k", "instruments")
"""The sets whose ratings are predicted. docs/quality.md has MovieLens-1M."""
SHAPED = ("ml100k", "ml1m", "lastfm", "games", "instruments", "retail")
"""The sets on which the settings of `auto` were chosen.

Of `retail` it was the first half, and of `games` the half of the users that it leaves out.
Instruments and a third of the users of `ml1m` were only looked at.
"""
