"""The semantics of context: features of an event, and of a call for scores, have rows of factors.

An event may carry a bag of features: the hour, the device, the words of a query. The model learns
for each feature which items the events with it take more often than other events. Any rule may
learn the items. The features of a call add to its users' factors

    q = weight * sum_f w_f r_f

so the item y gets q . y in addition to its score. r_f is a linear discriminant: it is the ridge
regression of the events' w_f on the factors of their items, divided by the mean of w_f. So
r_f . y is, up to a constant, P(f | item) / P(f) = P(item | f) / P(item), less 1.

Statistics. Only events with at least one feature, a value above 0 and a learned item count. After a
record is learned, they are taken in their order. e is the item's row then, float64, with a 1
behind it. A, float64[k + 1, k + 1], is the sum of e e'. Feature f, in the order of the bag, adds
w_f e to its sum B_f, float64[k + 1], and |w_f| to its count n_f, float64. A is added for all events
of the record first.

Forgetting. Before the events of a record are taken, A, all B_f and all n_f are halved once if A has
`HALVED_EVENTS` events or more, which is its last number. Then features with a count below
`COUNT_MIN` are forgotten, and the others close up in their order. So words that occurred once make
room.

Features get their places in the order in which they first appear. A feature for which there is no
place (`context.size`) is not learned. A dropped feature is forgotten, as by the halving, and an
event that has it later gives it a place anew.

Rows. W_f = (A + lambda I)^-1 B_f as in `solve/prior/__init__.py`, and with n events in A

    r_f = n / (n_f + `PRIOR_EVENTS`) * the first k numbers of W_f

in float64. The sum q is added from 0 in the order of the bag, clamped to `FACTOR_MAX`, and rounded
to float32. It is computed for each call, from the statistics at its revision. Features without
statistics add nothing.

Strength. How far the mean item of the events with a feature is from the mean item of all, in
standard errors: with the mean m and the covariance C of the e of all events, both from A,

    strength = sqrt(n_f r_f' C r_f / k)

Events that have the feature by chance make it about 1, or less if the items vary in fewer than k
directions (Mardia, Kent and Bibby, Multivariate analysis, 1979: Hotelling's one-sample statistic).
It is for reports alone.

State. The sections are context.counts float64[F], context.gram float64[(k + 1)^2] (A), context.keys
uint64[F], and context.sums float64[F (k + 1)].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

HALVED_EVENTS = 65536.0
COUNT_MIN = 0.5
PRIOR_EVENTS = 1.0
FACTOR_MAX = 1e6

COUNTS, GRAM, KEYS, SUMS = "context.counts", "context.gram", "context.keys", "context.sums"


class Moves(NamedTuple):
    """Which features a record gave places, uint64[n], and which it took their places, uint64[m].

    The latter come first: a feature may be in both.
    """

    placed: np.ndarray
    forgotten: np.ndarray


class Statistics(NamedTuple):
    """What a model has learned of m features.

    Attributes:
        gram: A, float64[k + 1, k + 1].
        places: where each of the asked features is in `sums` and `counts`, int64[m]; -1 if nowhere.
        sums: B_f float64[any, k + 1].
        counts: n_f float64[any].
    """

    gram: np.ndarray
    places: np.ndarray
    sums: np.ndarray
    counts: np.ndarray
