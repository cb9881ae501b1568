"""The semantics of features: the prior of a row is a weighted sum of the rows of its features.

This is written for rule SOLVE. The last paragraph but one says what the other rules do.

A user or an item may have a bag: distinct features f with weights w_f, in an order. Each side has
features of its own. The model learns a row r_f for each feature, and a row r_0 that every bag of
the side has with the weight 1. So a bag says

    p = r_0 + sum_f w_f r_f

of its row. It is the row itself while there are no events, so a cold item is ranked by its
features, and a cold user by hers (`reading/__init__.py`). It is also the prior of an item with few
events. Sums of rows of features are those of LightFM (Kula, CBRecSys 2015). There they are learned
by gradient steps. Here they are the ridge regression of solved rows on their bags, of whose exact
residuals block Gauss-Seidel sweeps take a few at a time.

Rows. A table has three more sections: `bag` uint32[m], the numbers of the features, with 0 behind
the last one; `bag_weights` float32[m]; and `bagged` uint8, which is 0 without a bag, 1 with one,
and 2 if the row is fitted. m is `features.per_id`. A feature gets the next number, from 1, when it
first appears in the log. Of an id that has several bags in a record, the last one counts.

Fitted rows. After a record of events, its rows with a bag and at least s =
`embeddings.prior_events` events are fitted from then on. So is such a row that gets a bag. Each of
these rows is a change, and so is a fitted row that gets another bag or none.

Dropped features. Their places in bags close up, a bag without features is none, and the other
features are numbered again in their order. A fitted row that loses a feature is a change.

Fit. Let y_i be the fitted rows of a side, in row order, and n their number. Before a record of
events, the rows r are fitted again if there were at least `REFRESH_MIN` changes since the last
time, and at least half as many as fitted rows; before a record of bags ends, if there were half as
many, at least one. All numbers are float64. The residuals are e_i = y_i - r_0 - w r_f - ... in the
order of the bag, where W'e of a vector is subtracted from y_i first (`solve/prior/__init__.py`).
lambda is `RIDGE` times the mean squared norm of the bags: the sum of w * w over rows and places,
divided by n. It is 0 for r_0. Then for `SWEEPS` sweeps, for each feature f from 0 to the last
number, over its fitted rows i in row order:

    c = sum_i w_if e_i;  q = sum_i w_if w_if;  new = (c + q r_f) / (q + lambda)
    e_i = e_i - w_if (new - r_f) for each i;  r_f = new

A feature without fitted rows has the row 0. After the sweeps r is rounded to float32 and clamped to
factor_max.

Rows without events. p is added in float64 in the order of the bag, from r_0, rounded to float32,
and clamped to factor_max. With a vector, p is float32(W'e) + p, clamped again. After a fit the rows
of bags without events are computed again, in row order. Each record of events visits the next rows
of each side, `SWEEP_ROWS` for each `SWEEP_ROWS` events or a part of them, until all rows below the
record's count have been visited. A record of bags visits rows of its own side, and its own ones. A
row without events that loses its bag is 0. Until the first fit of users, their rows stay as they
are.

Prior. An item with a bag and n events is solved towards share * p, as in `solve/prior/__init__.py`.

With `features.prior_events` above 0, s is that number. Then a user with a bag is solved and folded
in towards share * p, too, with share = s / (s + sum) as for a row with a start
(`solve/__init__.py`). For this the sections of starts of users (`tables/start.py`) have p as
`factors_start` and -s as `start_events`; the sign says that the row is no evidence: it is in no
Gram matrix and in no other group of a mix before its events. Without a bag they are 0. From the
first fit of users on, a record of bags writes them for its own users, and each visit of a row for
that row. And at the end of a record that changes bags (the bag of an item differs from the one
before, or loses a feature), each such item with an event is solved again, in row order, as by a
replayed event with the user of its last event. Items whose last user has no events are left out.

Rules SGD and SOFTMAX. The rows of features have k + 1 numbers: the factors and the bias. So a row
without events has the factors and the bias that its bag says, and the gradient steps of its events
begin there. Draws as a negative also change such a row, until it is computed again. No row with
events is pulled: `features.prior_events` above 0 is s and nothing else, and a bag that changes
moves rows without events alone. Items are fitted and computed before a record as users are.

State. The sections of a side, `features.user.*` or `features.item.*`, are keys uint64[F], rows
float32[(F + 1) k] or [(F + 1) (k + 1)], and progress int64[3]: changes since the last fit, the
next row to visit, and the number of fitted rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SWEEPS = 3

NONE, BAGGED, FITTED = 0, 1, 2
"""The values of the section `bagged`."""

FEATURES, SIDE_NAMES = "features", ("user", "item")
"""The first words of the names of sections."""


class Bags(NamedTuple):
    """The bags of n rows, end to end.

    Attributes:
        ends: numbers of features up to and with each row, int64[n].
        keys: keys of features, uint64[any]; those of a row are distinct.
        weights: float32[any].
    """

    ends: np.ndarray
    keys: np.ndarray
    weights: np.ndarray

    @classmethod
    def empty(cls, count: int) -> Bags:
        """Bags of `count` rows without features."""
        return cls(np.zeros(count, np.int64), np.empty(0, np.uint64), np.empty(0, np.float32))

    def take(self, rows: np.ndarray | slice) -> Bags:
        """The bags of some rows: their numbers, a mask, or a slice."""
        sizes = np.diff(self.ends, prepend=0)
        sizes, starts = sizes[rows], (self.ends - sizes)[rows]
        ends = np.cumsum(sizes)
        at = np.repeat(starts - (ends - sizes), sizes) + np.arange(int(sizes.sum()))
        return Bags(ends, self.keys[at], self.weights[at])
