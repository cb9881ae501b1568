"""A synthetic stream of news, since no real one may be redistributed. Items appear constantly and
are read for hours.

There are 2,000 readers with a taste for each of 24 topics. Each of 200 hours has 20 new items and
500 reads. An item has one topic and a quality. The reader of an event is drawn from a power law.
The item is drawn in proportion to

    exp(taste + quality) * 0.5 ** (age / 6 hours)

from the items of the last 48 hours. An item can be read again. Tastes are normal with standard
deviation 1.5, qualities with 1. The reads of a reader within an hour form one visit.
"""

from __future__ import annotations

import numpy as np

from livefactor_server.tuning.progressive import Stream

READERS, TOPICS, HOURS, ITEMS_AN_HOUR, READS_AN_HOUR = 2000, 24, 200, 20, 500
HALF_LIFE_HOURS, TASTE, ALIVE_HOURS = 6.0, 1.5, 48
SEED = 1969


def news_stream() -> Stream:
    """The 100,000 reads in time order, always the same.

    Keys are the numbers of readers and items.
    """
    rng = np.random.default_rng(SEED)
    taste = rng.normal(0.0, TASTE, (READERS, TOPICS))
    topics = rng.integers(0, TOPICS, HOURS * ITEMS_AN_HOUR)
    quality = rng.normal(0.0, 1.0, topics.size)
    busy = 1.0 / (1.0 + np.arange(READERS)) ** 0.5
    readers, items = np.empty((2, HOURS, READS_AN_HOUR), np.int64)
    for hour in range(HOURS):
        out = np.arange(max(0, hour + 1 - ALIVE_HOURS) * ITEMS_AN_HOUR, (hour + 1) * ITEMS_AN_HOUR)
        worth = quality[out] - (hour - out // ITEMS_AN_HOUR) / HALF_LIFE_HOURS * np.log(2.0)
        readers[hour] = rng.choice(READERS, READS_AN_HOUR, p=busy / busy.sum())
        # The maximum of log weights plus Gumbel noise is a draw in proportion to the weights
        # (Yellott, J. Math. Psychol. 15, 1977).
        noise = rng.gumbel(size=(READS_AN_HOUR, out.size))
        items[hour] = out[np.argmax(taste[readers[hour]][:, topics[out]] + worth + noise, axis=1)]
    times = np.repeat(np.arange(1, HOURS + 1) * 3_600_000_000, READS_AN_HOUR)
    keys = readers.ravel().astype(np.uint64), items.ravel().astype(np.uint64)
    return Stream(*keys, np.ones(times.size, np.float32), times=times)
