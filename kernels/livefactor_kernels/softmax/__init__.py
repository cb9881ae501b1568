"""Rule SOFTMAX: sampled softmax with logQ correction, the negatives shared by a group of events. Its semantics.

A micro-batch is cut into groups of `group_events` events, in their order (0: it is one group). An event (user x,
item y_p, weight w) is told from the negatives y_1 .. y_m of its group (Bengio, Senecal, IEEE Trans.
Neural Networks 19(4), 2008; shared and corrected as Yi et al., RecSys 2019). With s = b + (x . y) and Q what an item is
proposed with,

    loss = w log(1 + sum_n exp((s_n - log Q_n) - (s_p - log Q_p))) + l2/2 (|x|^2 + |y_p|^2) + bias_l2/2 b_p^2

over the n whose item is not the event's own (an accidental hit). Events are taken one after the other: each one's gradient is
taken where its user is by then and where items were at the start of the micro-batch; its user steps at once, items
when the micro-batch is over, by the sum over its events. So a basket or a sitting, many events of one user in a row,
moves its user as often. Groups are small because few negatives repeated are a poor sample; micro-batches are large
because each item then steps once for many groups. A user's bias has no part in the loss and stays as it is. Events whose value is
not above 0 are recorded in histories and change nothing else.

Negatives (`proposal.py`), from Philox with counter (revision low, revision high, number of the group within its
record, draw):

    UNIFORM     every item after the record's allocation alike
    POPULARITY  in proportion to 1 + c, c an item's events before the group: of c_1 + .. + c_N + N tickets those
                below c_1 + .. + c_N are events, counted item by item, and the rest are the items
    IN_BATCH    none are drawn: the items of all of the group's events, one an event, taken as if by POPULARITY

The rarity of an item is v = 1 / float32(1 + c), with UNIFORM 1: it is 1 / Q but for a factor that all items share, so
exp(s - log Q) is exp(s) v, and no logarithm is taken.

Arithmetic: float32, one rounding each, in this order; dots have 16 lanes.
    s = b + dot;  z_n = exp(clamp(s_n - s_p, 40)) v_n, 0 where n is a hit
    S: 16 lanes, lane l adds z_n of n = l, l + 16, .. in this order, then the tree of a dot (absent n are 0)
    a = w / (v_p + S);  e_n = clamp(z_n a, e_max);  e_p = -clamp(S a, e_max)
    a user's gradient: e_p y_p + e_1 y_1 + .. + e_m y_m + l2 x, left to right
    of an event on its item: (e_p x) + (l2 y_p), and on the bias e_p + (bias_l2 b_p)
    of the events on negative n: e_n x, and on the bias e_n
An item's gradient: its events in order, in chunks of 32 as everywhere, then the negatives that it is, group by group in
their order, each the sum over all events of its group, in chunks of 32. A group of which no event counts
has none. It is scaled down if it is the item of more than `hot_row_events` events.
"""

from __future__ import annotations

import numpy as np

GAP_MAX = np.float32(40.0)
"""Scores that differ by more are taken to differ by just so much: exp of it, a million times over, is far from infinite."""
