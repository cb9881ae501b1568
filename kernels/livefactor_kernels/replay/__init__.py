"""Replay of past events, against forgetting (Ratcliff 1990 calls it rehearsal): its semantics. Spec: `spec.model.Replay`.

A reservoir keeps `size` events, each of those so far with equal probability (algorithm R: Vitter, ACM Trans. Math. Softw.
11(1), 1985): of both sides' rows, of values and of weights. Events are numbered from 0 over all of a model's records.

A record of n events, c events before it, m = min(c, size) of them kept:
1. After its own n, or fresh, events it gets replayed ones, floor((c + n) r) - floor(c r) of them, r = float32(`per_event`),
   exactly (none if m = 0). Number j of all that r has ever asked for, the first of this record being floor(c r), is what is in
   place draw(1, j, m) of the reservoir.
2. The rule learns from the longer record as if it had come so: micro-batches are cut over all of it, and replayed events
   draw negatives by their places in it. But only the fresh ones are recorded in histories and counts, and join the global mean
   and popularity, each at its place: what counts events counts each one once.
3. Fresh event number e, in order, is put in place e if e < size, else in place draw(0, e, e + 1) if that is below size.

draw(purpose, number, count) = mulhi64 of Philox's first 64 bits and count, counter (number low, number high, purpose, 0) and
the key of `random.REPLAY_DOMAIN` (`random.draw_below`). No generator has a state, and all follows from how many events there
were and what is kept: the columns of the reservoir are state, places that no event has reached are 0.
"""

from __future__ import annotations

import numpy as np

from livefactor_kernels.spec.model import ModelSpec

COLUMNS = {"user_rows": "uint32", "item_rows": "uint32", "values": "float32", "weights": "float32"}
"""What is kept of an event."""
KEEP, REPLAY = 0, 1
"""Purposes of a draw."""


def asked_for(spec: ModelSpec, events: int) -> int:
    """floor(events * per_event), exactly: how many events are to be replayed beside the first `events` ones."""
    numerator, denominator = float(np.float32(spec.replay.per_event)).as_integer_ratio()
    return events * numerator // denominator


def most_events(spec: ModelSpec, events: int) -> int:
    """Events of a record of `events` fresh ones, at most, with those that are replayed."""
    return events + (asked_for(spec, events) + 1 if spec.replay.size else 0)
