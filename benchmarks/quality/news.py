"""A stream of news made by rule, since none may be shipped: items come all the time and are read for hours.

2,000 readers, each with a taste for each of 24 topics; 20 items an hour for 200 hours, each of one topic and of a
quality of its own; 500 reads an hour. Who reads is drawn by a power law; what is read in proportion to

    exp(taste + quality) * 0.5 ** (age / 6 hours)

of the items that came out within the last 48 hours; a story that goes on may be read again. Tastes are normal with deviation
1.5, qualities with 1. A reader's reads within an hour are one visit.
"""

from __future__ import annotations

import numpy as np

from livefactor_server.tuning.progressive import Stream

READERS, TOPICS, HOURS, ITEMS_AN_HOUR, READS_AN_HOUR = 2000, 24, 200, 20, 500
HALF_LIFE_HOURS, TASTE, ALIVE_HOURS = 6.0, 1.5, 48
SEED = 1969


def news_stream() -> Stream:
    """100,000 reads in the order of time, always the same ones; keys are numbers of readers and items."""
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
        # The largest of logarithms with Gumbel noise is a draw in proportion (Yellott, J. Math. Psychol. 15, 1977).
        noise = rng.gumbel(size=(READS_AN_HOUR, out.size))
        items[hour] = out[np.argmax(taste[readers[hour]][:, topics[out]] + worth + noise, axis=1)]
    times = np.repeat(np.arange(1, HOURS + 1) * 3_600_000_000, READS_AN_HOUR)
    keys = readers.ravel().astype(np.uint64), items.ravel().astype(np.uint64)
    return Stream(*keys, np.ones(times.size, np.float32), times=times)
