"""The semantics of rule SOFTMAX: sampled softmax with logQ correction and shared negatives.

A micro-batch is divided into groups of `group_events` events, in order (with 0 it is one group). An
event (user x, item y_p, weight w) is contrasted with the negatives y_1 .. y_m of its group (Bengio,
Senecal, IEEE Trans. Neural Networks 19(4), 2008; shared and corrected as in Yi et al., RecSys
2019). Let s = b + (x . y), and let Q be the probability of an item in the proposal. Then

    loss = w log(1 + sum_n exp((s_n - log Q_n) - (s_p - log Q_p)))
           + l2/2 (|x|^2 + |y_p|^2) + bias_l2/2 b_p^2

over the negatives n whose item is not the event's own item (an accidental hit). Events are
processed in order. The gradient of an event uses the present factors of its user, and the factors
of items at the start of the micro-batch. The user takes a step at each event. An item takes one
step at the end of the micro-batch, by the sum over its events. So a basket or a session, which is
many consecutive events of one user, moves the user as often. Groups are small, because a repeated
small sample of negatives is a poor sample. Micro-batches are large, because each item then takes
one step for many groups. A user's bias is not part of the loss and does not change. Events with a
value of 0 or less are recorded in histories and have no other effect.

The negatives (`proposal.py`) come from Philox with the counter (low half of the revision, high
half, number of the group in its record, draw):

    UNIFORM     every item after the record's allocation, with equal probability
    POPULARITY  in proportion to 1 + c, where c is the number of an item's events before the
                group. Of c_1 + .. + c_N + N tickets, those below c_1 + .. + c_N are events, in
                the order of the items. The others are the items themselves.
    IN_BATCH    the items of all events of the group, one per event, with the probabilities of
                POPULARITY. Nothing is drawn.

The rarity of an item is v = 1 / float32(1 + c), and with UNIFORM it is 1. It equals 1 / Q times a
factor that all items share. So exp(s - log Q) is computed as exp(s) v, without a logarithm.

The arithmetic is float32 with one rounding per operation, in this order. Dot products have 16
lanes.

    s = b + dot;  z_n = exp(clamp(s_n - s_p, 40)) v_n, and 0 if n is a hit
    S: 16 lanes; lane l adds z_n of n = l, l + 16, .. in this order, and then the tree of a dot
       product (absent n are 0)
    a = w / (v_p + S);  e_n = clamp(z_n a, e_max);  e_p = -clamp(S a, e_max)
    gradient of a user: e_p y_p + e_1 y_1 + .. + e_m y_m + l2 x, from left to right
    gradient of an event's item: (e_p x) + (l2 y_p), and for the bias e_p + (bias_l2 b_p)
    gradient of negative n for an event: e_n x, and for the bias e_n

The gradient of an item has two parts. First come its events in order, in chunks of 32. Then come
its occurrences as a negative, group by group in order. Each of these is the sum over all events of
its group, in chunks of 32. A group without events that count adds nothing. The gradient is scaled
down if the item has more than `hot_row_events` events.
"""

from __future__ import annotations

import numpy as np

GAP_MAX = np.float32(40.0)
"""Limit of the magnitude of a difference of scores.

exp of it, times a million, is far below the largest float32.
"""
