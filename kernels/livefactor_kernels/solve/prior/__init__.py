"""The semantics of embeddings with rule SOLVE: the prior of an item's row is a linear map of its
vector.

An item may have a vector e of d numbers, such as an embedding of its description. The model
learns a map W from vectors to factors by ridge regression of solved rows on their vectors, in one
pass and from exact sums. W'e is what the vector says of the item. It is the row of an item
without events, so a cold item is ranked by its vector. It is also the prior of an item with few
events.

A row with a start (`solve/__init__.py`) is not mapped: where this text says "without events", read
"without events and start".

Rows. A table of items has two more sections: `embedding` float16[d], and `described` uint8, which
is 0 without a vector, 1 with one, and 2 if the row is in the sums below. A vector of zeros stands
for no vector. e is widened to float64, and a 1 is appended, so that W has d + 1 rows. The last
one is an intercept.

Sums. A, float64[d + 1, d + 1], is the sum of e e' over the items that are described with 2, and
B, float64[d + 1, k], is the sum of e y' for their rows y. An item joins the sums when it is
solved, or gets a vector, with at least s = `embeddings.prior_events` events. From then on B
changes with each solve. A change is B[p, q] + e_p new_q - e_p old_q from left to right, for the
rows of a micro-batch in the order of their solves. A change of a vector is A - e e' for the old
one, then A + e e' for the new one.

Map. W = (A + lambda I)^-1 B without lambda in the last row, where lambda is `RIDGE` times the
mean squared norm of the vectors: the sum of A[p, p] for p below d from left to right, divided by
A[d, d]. U'U is the Cholesky factorisation of that matrix, with steps from the first row to the
last. Forward and backward substitution subtract in the order of these steps (`reference.py`). W'e
is the sum over p from 0 of e_p W[p, q] in float64, rounded to float32 and clamped to factor_max.

When. Before a record of interactions, W is computed again if B has changed at least `REFRESH_MIN`
times since the last time, and at least half as often as items are in the sums. After the vectors
of a record of embeddings are set, it is computed again if B has changed half as often, at least
once. Then the rows of items without events are mapped again, in row order. Each record visits the
next rows, `SWEEP_ROWS` for each `SWEEP_ROWS` rows of the record or a part of them, until all rows
below the record's item count have been visited. A record of embeddings also maps its own items
without events. Without a vector such a row is 0.

Prior. A described item with n events is solved towards z = share W'e, where share = s / (s + n)
in float32, and 0 if n is above `EVENTS_MAX` s. With M = a0 G + ridge I, the system of
`solve/__init__.py` gets the right side b + M z: pairs without an event pull towards what the
vector says, and less so with every event. Without events z = W'e is the solution. In float32, M z
is added from 0 as G[q, :] z_q for q from 0, then + ridge z, and the result is added to b.

Users. With `embeddings.user_dimension` a user may have a vector, too, and users have a map of their
own. All of the above holds for them with "user" in place of "item", with three differences. B
changes once for each record of events: after it, for its distinct users in ascending order, where
old_q is the factor before the record. Rows are mapped from the first map on, and stay as they are
before it. And what the map says is the start of the row, with -s events, as that of a bag is
(`solve/features/__init__.py`). So a user is solved and folded in towards share W'e with share = s /
(s + sum).

State. The sections are prior.gram (A), prior.rows (B), prior.map (W), and prior.progress
int64[3]: changes since the last map, the next row to visit, and the items in the sums.
"""

from __future__ import annotations

import numpy as np

from livefactor_kernels.spec.model import ITEMS, ModelSpec

RIDGE = 3.0
REFRESH_MIN = 256
SWEEP_ROWS = 64
EVENTS_MAX = 63.0

NONE, DESCRIBED, SUMMED = 0, 1, 2
"""The values of the section `described`."""

SECTIONS = GRAM, ROWS, MAP, PROGRESS = "prior.gram", "prior.rows", "prior.map", "prior.progress"
OF_USERS = "user_"
"""The first word of the sections of users."""
CHANGES, NEXT, COUNTED = 0, 1, 2
"""Places in the section `prior.progress`."""


def with_one(vectors: np.ndarray) -> np.ndarray:
    """Vectors float16[n, d] as float64[n, d + 1], with a 1 at the end."""
    wide = np.ones((len(vectors), vectors.shape[1] + 1))
    wide[:, :-1] = vectors
    return wide


def dimension_of(spec: ModelSpec, side: int) -> int:
    """Numbers of a vector of a side."""
    return spec.embeddings.dimension if side == ITEMS else spec.embeddings.user_dimension
