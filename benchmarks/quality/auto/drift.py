"""`auto` when everything changes: one set is learned after the other, as one stream.

`python -m benchmarks.quality.auto.drift FOLDER` measures it (`sets` describes FOLDER). It
writes the table of docs/auto.md, and its figures to benchmarks/results/auto.json.

The sets share no users and no items. A second model learns the second set alone. Both are judged on
the same events of the second set, which are ranked among all items that the model knows: test-then-
learn after a fifth of the second set, and by the events that were held back at its end.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.pages import write_between
from benchmarks.quality.auto.benchmark import PAGE, RESULTS, FewUsers
from benchmarks.quality.auto.sets import SETS
from benchmarks.quality.auto.streams import gain
from benchmarks.quality.data import Division, Events
from benchmarks.quality.streamed import RECORD_EVENTS, Learner
from livefactor_kernels.spec.presets import preset

PAIRS = (("ml100k", "retail"), ("retail", "ml100k"))
EVENTS = 80_000
"""Events of each set at most, its first ones."""
FROM, UNTIL, JUDGED = 0.2, 0.4, 1000
"""The part of the second set that is judged test-then-learn, and its number of judged events."""


def glued(first: Events, second: Events) -> Events:
    """The events of one set after those of another, as one stream. `first` may be empty."""
    return Events(
        np.concatenate([first.users, second.users + first.user_count]).astype(np.int32),
        np.concatenate([first.items, second.items + first.item_count]).astype(np.int32),
        np.ones(len(first) + len(second), np.float32),
        first.user_count + second.user_count,
        first.item_count + second.item_count,
    )


def nobody(events: Events) -> Events:
    """No events, users or items."""
    empty = events.take(slice(0, 0))
    return Events(empty.users, empty.items, empty.values, 0, 0)


def measure(first: Events, division: Division) -> tuple[float, float]:
    """NDCG@10 of `auto` for the second set: test-then-learn after a fifth of it, and at its end."""
    second = division.learned
    stream, judged = glued(first, second), glued(first.take(slice(0, 0)), division.judged)
    learner, judge = Learner(preset("auto"), stream), FewUsers(Division(stream, judged))
    draws, place = np.random.default_rng(3).random(len(second)), np.arange(len(second)) / len(second)
    asked = (place >= FROM) & (place < UNTIL) & (draws * len(second) * (UNTIL - FROM) < JUDGED)
    had: list[set[int]] = [set() for _ in range(stream.user_count)]
    known, gains = np.zeros(stream.item_count, bool), []
    for start in learner.learn_before():
        part = slice(start, min(start + RECORD_EVENTS, len(stream)))
        users, items = stream.users[part], stream.items[part]
        inside = np.arange(part.start, part.stop) - len(first)
        chosen = np.flatnonzero((inside >= 0) & asked[np.maximum(inside, 0)] & known[items])
        every = learner.scores(users[chosen]) if chosen.size else []
        for at, scores in zip(chosen.tolist(), every, strict=True):
            left_out = ~known
            left_out[list(had[users[at]])] = True
            gains.append(gain(scores, items[at], left_out))
        known[items] = True
        for user, item in zip(users.tolist(), items.tolist(), strict=True):
            had[user].add(item)
    return float(np.mean(gains)), judge.figures(learner.scores)["ndcg10"]


def main() -> None:
    """Measures all pairs, and writes the table and the figures."""
    folder = Path(sys.argv[1])
    figures = json.loads(RESULTS.read_text(encoding="utf-8"))
    lines = [
        "| first set | second set | after a fifth, of a new model | at the end, of a new model |",
        "|---" * 4 + "|",
    ]
    for names in PAIRS:
        first, second = (SETS[name](folder) for name in names)
        head = first.learned.take(slice(0, EVENTS))
        division = Division(second.learned.take(slice(0, EVENTS)), second.judged)
        old, new = measure(head, division), measure(nobody(head), division)
        key = f"drift_{names[0]}_{names[1]}"
        for part, mine, fresh in zip(("after_a_fifth", "at_the_end"), old, new, strict=True):
            figures[f"{key}_{part}"], figures[f"{key}_{part}_to_new"] = mine, mine / fresh
        quotients = [mine / fresh for mine, fresh in zip(old, new, strict=True)]
        lines.append(f"| {names[0]} | {names[1]} | " + " | ".join(f"{each:.3f}" for each in quotients) + " |")
        print(lines[-1], old, new, flush=True)
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    write_between(PAGE, "benchmarks.quality.auto.drift", "\n".join(lines))


if __name__ == "__main__":
    main()
