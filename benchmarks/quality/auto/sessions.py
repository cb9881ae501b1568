"""Anonymous sessions of a shop: `auto`, session-kNN and co-occurrence while they learn.

`python -m benchmarks.quality.auto.sessions FOLDER` measures them (`sets` describes FOLDER). It
writes the table of docs/sequences.md, and its figures to benchmarks/results/auto.json.

The protocol is that of Mi, Lin and Faltings, "ADER" (RecSys 2020), with sessions that are learned
when they are over. Every next click of a sample of sessions is predicted, given the session's
clicks so far, among all items seen before. Recall@20 is the mean over the periods from the second
on. Clicks on items that were never seen are left out. The second figure is that of clicks on items
that are new to the session, with the session's own items left out of the lists.

Session-kNN has the weights of VS-kNN (Ludewig, Jannach, User Modeling and User-Adapted Interaction
28, 2018) and, as an option, those of STAN by the distance from the shared item (Garg et al., SIGIR
2019). Its settings are chosen on the first `TUNED_PERIODS` periods.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from math import log
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from benchmarks.pages import ROOT, write_between
from benchmarks.quality.auto.sets import Sessions, diginetica
from benchmarks.quality.data import Events
from benchmarks.quality.search import Settings, grid, pick
from benchmarks.quality.streamed import RECORD_EVENTS, Learner
from livefactor_kernels.reading.persons import PersonReader
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables import ITEMS, NO_ROW

RESULTS, PAGE = ROOT / "benchmarks" / "results" / "auto.json", ROOT / "docs" / "sequences.md"
SESSIONS_A_PERIOD, PREDICTIONS_MAX, TOP = 200, 20, 20
COUNTED_SPAN, TUNED_PERIODS, OWN_MAX, EVENTS_MAX = 5, 4, 8, 32
GRID = grid(sample=(64, 500), neighbors=(100, 300), half_life=(1.5, 3), idf=(0, 1), near=(0, 3, 6))
"""Settings of session-kNN. See `Neighbors`."""
PRESETS = ("auto", "clicks", "purchases")


class Recalls(NamedTuple):
    """Recall@20 for all next clicks, and for those on items that are new to the session."""

    all: float
    new_items: float


class Method(Protocol):
    """What predicts the next click of a session."""

    def ranks(self, before: np.ndarray, target: int) -> tuple[int, int] | None:
        """The places of the target from 0 on: among all items, and without those before.

        `before` int[n] are the session's clicks so far. It is None for an item never seen.
        """

    def learn(self, part: slice) -> None:
        """Learns a record of whole sessions."""


def recalls(method: Method, clicks: Sessions, periods: int = 127) -> Recalls:
    """The recall of a method that learns the clicks, over at most so many periods."""
    asked, sums = _Asked(clicks), np.zeros((2, int(clicks.periods.max()) + 1, 2))
    for part in _records(clicks):
        if clicks.periods[part.start] > periods:
            break
        for period, items in asked.of(part):
            found = method.ranks(items[:-1], int(items[-1]))
            if found is not None:
                sums[0, period] += found[0] < TOP, 1
                if items[-1] not in items[:-1]:
                    sums[1, period] += found[1] < TOP, 1
        method.learn(part)
    judged = sums[:, sums[0, :, 1] > 0]
    return Recalls(*(judged[..., 0] / judged[..., 1]).mean(axis=1).tolist())


class Served:
    """A preset. The session's clicks come with the call."""

    def __init__(self, name: str, clicks: Sessions) -> None:
        events = Events(
            clicks.sessions.astype(np.int32),
            clicks.items.astype(np.int32),
            np.ones(len(clicks.items), np.float32),
            int(clicks.sessions.max()) + 1,
            int(clicks.items.max()) + 1,
        )
        self._learner, self._revision = Learner(preset(name), events), 0
        self._reader = PersonReader(self._learner.model.spec)
        self._at, self._items = -1, (np.empty(0), np.empty(0))

    def ranks(self, before: np.ndarray, target: int) -> tuple[int, int] | None:
        """See `Method.ranks`."""
        model = self._learner.model
        count = model.published[ITEMS]
        rows = model.items.find(np.append(before, target).astype(np.uint64), count)
        if rows[-1] == NO_ROW:
            return None
        known = rows[:-1][rows[:-1] != NO_ROW]
        every = np.arange(count, dtype=np.uint32)
        if self._at != self._revision:
            self._at, self._items = self._revision, model.gather(ITEMS, every)
        own = [self._reader.events_of(known)]
        person = self._reader.read(model, np.array([NO_ROW], np.uint32), count, own)
        scores = self._items[0] @ person.factors[0] + self._items[1] + person.gains(0, every)
        above = scores > scores[rows[-1]]
        return int(np.count_nonzero(above)), int(np.count_nonzero(above) - above[np.unique(known)].sum())

    def learn(self, part: slice) -> None:
        """See `Method.learn`."""
        self._revision += 1
        self._learner.learn_part(self._revision, part)


class Counted:
    """Co-occurrence with the last five clicks, nearer ones first."""

    def __init__(self, clicks: Sessions) -> None:
        self._clicks, self._seen = clicks, set[int]()
        self._follow: defaultdict[int, Counter[int]] = defaultdict(Counter)

    def ranks(self, before: np.ndarray, target: int) -> tuple[int, int] | None:
        """See `Method.ranks`."""
        if target not in self._seen:
            return None
        scores = Counter[int]()
        for age, item in enumerate(before[: -1 - COUNTED_SPAN : -1].tolist(), 1):
            for other, number in self._follow[item].items():
                scores[other] += number / age
        return _ranks(scores, before, target)

    def learn(self, part: slice) -> None:
        """See `Method.learn`."""
        sessions, items = self._clicks.sessions[part], self._clicks.items[part].tolist()
        self._seen.update(items)
        for at in range(len(items)):
            for before in range(max(0, at - COUNTED_SPAN), at):
                if sessions[before] == sessions[at] and items[before] != items[at]:
                    self._follow[items[before]][items[at]] += 1
                    self._follow[items[at]][items[before]] += 1


class Neighbors:
    """Session-kNN.

    Settings: `sample` is the number of newest sessions of an item that are compared, and
    `neighbors` that of the most similar ones that score. A shared item counts less by its place in
    the present session, with the half-life `half_life`, and with `idf` by the logarithm of its
    rarity. An item of a neighbour counts less by its distance from the shared one, with the
    half-life `near`, or equally with 0.
    """

    def __init__(self, clicks: Sessions, settings: Settings) -> None:
        self._clicks, self._settings = clicks, {name: float(each) for name, each in settings.items()}
        size = int(self._settings["sample"])
        self._newest: defaultdict[int, deque[int]] = defaultdict(lambda: deque(maxlen=size))
        self._items: defaultdict[int, list[int]] = defaultdict(list)
        self._seen = Counter[int]()

    def ranks(self, before: np.ndarray, target: int) -> tuple[int, int] | None:
        """See `Method.ranks`."""
        if target not in self._seen:
            return None
        return _ranks(self.scores(before), before, target)

    def scores(self, before: np.ndarray) -> Counter[int]:
        """The scores of items after the clicks `before`, where they are above 0."""
        own, scores, near = before[: -1 - OWN_MAX : -1].tolist(), Counter[int](), self._settings["near"]
        similar = self._similar(own)
        best = sorted(similar.items(), key=lambda pair: -pair[1])[: int(self._settings["neighbors"])]
        for session, similarity in best:
            items = self._items[session][: -1 - EVENTS_MAX : -1]
            shared = next((place for place, item in enumerate(items) if item in own), None)
            first: dict[int, int] = {}
            for place, item in enumerate(items):
                first.setdefault(item, place)
            for item, place in first.items() if shared is not None else ():
                assert shared is not None
                scores[item] += similarity * (0.5 ** (abs(place - shared) / near) if near else 1.0)
        return scores

    def _similar(self, own: list[int]) -> Counter[int]:
        """The sessions that share items with the newest ones `own`."""
        similar, settings = Counter[int](), self._settings
        for age, item in enumerate(own):
            weight = 0.5 ** (age / settings["half_life"])
            if settings["idf"] and item in self._seen:
                weight *= log(1 + len(self._items) / self._seen[item])
            for session in dict.fromkeys(reversed(self._newest[item])):
                similar[session] += weight
        return similar

    def learn(self, part: slice) -> None:
        """See `Method.learn`."""
        items = self._clicks.items[part].tolist()
        for session, item in zip(self._clicks.sessions[part].tolist(), items, strict=True):
            self._items[session].append(item)
            self._newest[item].append(session)
            self._seen[item] += 1


def _ranks(scores: Counter[int], before: np.ndarray, target: int) -> tuple[int, int]:
    """The places of an item by scores. Of equal scores, the smaller item is first."""
    own, mine = set(before.tolist()), (-scores[target], target)
    if target not in scores or not scores[target]:
        return TOP, TOP
    above = [item for item, score in scores.items() if (-score, item) < mine]
    return len(above), sum(item not in own for item in above)


class _Asked:
    """Which predictions are asked for."""

    def __init__(self, clicks: Sessions) -> None:
        self._clicks = clicks
        generator = np.random.default_rng(4)
        self._drawn: set[int] = set()
        for period in range(1, int(clicks.periods.max()) + 1):
            names = np.unique(clicks.sessions[clicks.periods == period])
            self._drawn |= set(generator.choice(names, min(SESSIONS_A_PERIOD, names.size), False).tolist())

    def of(self, part: slice) -> Iterator[tuple[int, np.ndarray]]:
        """The periods and items of the sessions of a record, up to each predicted click."""
        sessions = self._clicks.sessions[part]
        starts = np.flatnonzero(np.append(True, sessions[1:] != sessions[:-1]))
        for start, stop in zip(starts, np.append(starts[1:], len(sessions)), strict=True):
            if int(sessions[start]) in self._drawn:
                items = self._clicks.items[part][start:stop]
                for length in range(2, min(len(items), PREDICTIONS_MAX + 1) + 1):
                    yield int(self._clicks.periods[part][start]), items[:length]


def _records(clicks: Sessions) -> Iterator[slice]:
    """Records of whole sessions, of about `RECORD_EVENTS` events."""
    ends = np.append(np.flatnonzero(clicks.sessions[1:] != clicks.sessions[:-1]) + 1, len(clicks.items))
    start = 0
    for end in ends.tolist():
        if end - start >= RECORD_EVENTS or end == len(clicks.items):
            yield slice(start, end)
            start = end


def head(clicks: Sessions, count: int) -> Sessions:
    """The sessions of about the first `count` clicks, in three periods."""
    last = clicks.sessions[count - 1]
    stop = int(np.flatnonzero(clicks.sessions == last)[-1]) + 1
    return Sessions(clicks.sessions[:stop], clicks.items[:stop], np.arange(stop) * 3 // stop)


def figures(clicks: Sessions, settings: list[Settings] = GRID) -> dict[str, float | str | None]:
    """All figures by name. Tunes session-kNN, and measures all methods."""
    choice = pick(settings, lambda each: recalls(Neighbors(clicks, each), clicks, TUNED_PERIODS).all)
    recall = {
        "sknn": recalls(Neighbors(clicks, choice.settings), clicks),
        "cooccurrence": recalls(Counted(clicks), clicks),
    }
    for name in PRESETS:
        recall[name] = recalls(Served(name, clicks), clicks)
    own = recall["auto"]
    found: dict[str, float | str | None] = {
        "sessions_recall20_to_sknn": own.all / recall["sknn"].all,
        "sessions_new_items_recall20_to_cooccurrence": own.new_items / recall["cooccurrence"].new_items,
        "sessions_sknn_settings": choice.words,
    }
    for name, each in recall.items():
        found |= {
            f"sessions_recall20_{name}": each.all,
            f"sessions_new_items_recall20_{name}": each.new_items,
        }
    return found


def main() -> None:
    """Measures all methods, and writes the table and the figures."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    kept = {key: value for key, value in results.items() if not key.startswith("sessions_")}
    results = kept | figures(diginetica(Path(sys.argv[1])))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_between(PAGE, "benchmarks.quality.auto.sessions", table(results))


def table(figures: dict[str, float | str]) -> str:
    """The table of the page."""
    names = {"auto": "`auto`", "clicks": "`clicks`", "purchases": "`purchases`"}
    names |= {"sknn": "session-kNN, tuned", "cooccurrence": "co-occurrence, last five clicks"}
    lines = ["| | all next clicks | new items alone |", "|---" * 3 + "|"]
    for key, label in names.items():
        cells = [f"{figures[f'sessions_{part}_{key}']:.3f}" for part in ("recall20", "new_items_recall20")]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
