"""The semantics of replay: past events are learned again, against forgetting.

`spec.Replay` configures it. Replay of past examples goes back to rehearsal (Ratcliff 1990). A
reservoir keeps `size` events (rows of both sides, values and weights). Each past event is in it
with equal probability (algorithm
R: Vitter, ACM Trans. Math. Softw. 11(1), 1985). Events are numbered from 0 over all records of a
model.

Let a record have n fresh events, c events before it, and m = min(c, size) of them in the reservoir.

1. After its fresh events, the record gets exactly floor((c + n) r) - floor(c r) replayed ones, with
   r = float32(`per_event`); none if m = 0. Replays are numbered over all records, so the first one
   of this record is floor(c r). Replay number j is the event in place draw(1, j, m) of the
   reservoir.
2. The rule learns from the longer record as from any other. Micro-batches are cut over all of it,
   and replayed events draw negatives by their positions in it. But only fresh events are recorded
   in histories and counts, and only they enter the global mean and popularity, at their positions.
   So each event is counted once.
3. Then the fresh events enter the reservoir in order. Event number e goes to place e if e < size.
   Otherwise it goes to place draw(0, e, e + 1) if that is below size.

draw(purpose, number, count) is mulhi64 of Philox's first 64 bits and count. The counter is (number
low, number high, purpose, 0), and the key is that of `random.REPLAY_DOMAIN` (`random.draw_below`).
No generator has a state: all draws follow from the number of events and from the contents of the
reservoir. The columns of the reservoir are state, and unused places are 0.
"""

from __future__ import annotations

import numpy as np

from livefactor_kernels.spec.model import ModelSpec

COLUMNS = {"user_rows": "uint32", "item_rows": "uint32", "values": "float32", "weights": "float32"}
"""The columns of an event in the reservoir."""
KEEP, REPLAY = 0, 1
"""The purposes of a draw."""


def replay_count(spec: ModelSpec, events: int) -> int:
    """floor(events * per_event), exact: the replays for the first `events` events of a model."""
    numerator, denominator = float(np.float32(spec.replay.per_event)).as_integer_ratio()
    return events * numerator // denominator


def most_events(spec: ModelSpec, events: int) -> int:
    """The maximum number of events of a record with `events` fresh ones, with its replays."""
    return events + (replay_count(spec, events) + 1 if spec.replay.size else 0)
