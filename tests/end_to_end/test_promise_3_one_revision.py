"""Promise 3: every score names its revision and is computed at exactly this revision, never in the
middle of a batch.

Every batch changes all the users and items that the readers ask for. An answer that mixes two
revisions therefore fits neither of them. Afterwards the log is replayed to each revision in an
answer. Plain NumPy computes every score again, and the bits must be equal.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from livefactor.auditor import Auditor
from livefactor.pushing.batching import BatchSettings
from livefactor.pushing.producer import Producer
from livefactor.results.answers import Answers
from livefactor.scorer import Scorer
from livefactor_kernels.tables import NO_ROW
from livefactor_server.model.state import ModelState
from load import MODEL, Follower, create_model
from server_process import Server
from tally import Tally

Serve = Callable[..., Server]

SEED = 20_261_127
USERS, ITEMS, READERS = 24, 40, 8
# The number of events in a batch. The server needs milliseconds to apply it.
EVENTS = 4096
RUN_S = 2.5
RUN_LONG_S = 60.0
REVISIONS_CHECKED_MAX = 400
SPARE_ITEMS = 6000
"""The number of items in a long read.

It exceeds the rows that the gate reads at once, so the read takes a pin.
"""


@dataclass
class Read:
    """A request and its answer."""

    kind: str
    users: list[int]
    answer: Answers


class Readers:
    """Threads that ask in four ways and record the answers."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.reads: list[Read] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(READERS)]
        self.errors: list[Exception] = []

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, number: int) -> None:
        chance = random.Random(f"{SEED}/{number}")
        try:
            with self._server.channel() as channel:
                scorer = Scorer(channel, model=MODEL, timeout=30)
                while not self._stop.is_set():
                    self._ask(scorer, chance)
        except Exception as error:
            self.errors.append(error)

    def _ask(self, scorer: Scorer, chance: random.Random) -> None:
        kind = chance.choices(("one", "few", "many", "best"), (4, 3, 1, 3))[0]
        users = chance.sample(range(USERS), 1 if kind in ("one", "many") else 4)
        if kind == "best":
            answer: Answers = scorer.recommend(users, ITEMS)
        else:
            answer = scorer.score(users, list(range(SPARE_ITEMS if kind == "many" else ITEMS)))
        self.reads.append(Read(kind, users, answer))


def write_and_snapshot(server: Server, seconds: float) -> tuple[int, int]:
    """Push batches that change every user and item, and take snapshots.

    Returns the numbers of both.
    """
    rng = np.random.default_rng(SEED)
    stop = threading.Event()
    taken: list[int] = []

    def take() -> None:
        with server.channel() as channel:
            auditor = Auditor(channel, model=MODEL)
            while not stop.is_set():
                taken.append(auditor.snapshot().position.revision)

    snapshots = threading.Thread(target=take)
    snapshots.start()
    batches, end = 0, time.monotonic() + seconds
    settings = BatchSettings(latency_ms_max=0)
    with server.channel() as channel, Producer(channel, "writer", model=MODEL, batch=settings) as producer:
        while time.monotonic() < end:
            receipts = [
                producer.push(
                    rng.integers(0, USERS, EVENTS, np.uint64), rng.integers(0, ITEMS, EVENTS, np.uint64)
                )
                for _ in range(4)
            ]
            batches += len([receipt.result(60) for receipt in receipts])
    stop.set()
    snapshots.join(60)
    return batches, len(taken)


def expected_scores(state: ModelState, users: list[int], items: np.ndarray) -> np.ndarray:
    """float32[users, items]: ((mu + b_u) + b_i) + dot, with 16 lanes that a tree adds up, in plain
    NumPy.
    """
    backend = state.backend

    def rows_of(side: int, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        table = (backend.users, backend.items)[side]
        rows = table.find(keys.astype(np.uint64), backend.published[side])
        known = rows != NO_ROW
        sections = backend.sections(side, backend.published[side])
        factors = np.zeros((len(keys), 16), np.float32)
        bias = np.zeros(len(keys), np.float32)
        factors[known, : sections["factors"].shape[1]] = sections["factors"][rows[known]]
        bias[known] = sections["bias"][rows[known]]
        return factors, bias

    x, user_bias = rows_of(0, np.array(users))
    y, item_bias = rows_of(1, items)
    lanes = x[:, None, :] * y[None, :, :]
    for width in (8, 4, 2, 1):
        lanes = lanes[..., :width] + lanes[..., width : 2 * width]
    return ((np.float32(backend.mean) + user_bias[:, None]) + item_bias[None, :]) + lanes[..., 0]


def differences(read: Read, state: ModelState) -> int:
    """The number of users whose answer differs from the state."""
    every = np.arange(ITEMS if read.kind != "many" else SPARE_ITEMS, dtype=np.uint64)
    expected = expected_scores(state, read.users, every)
    wrong = 0
    for user, answer in enumerate(read.answer):
        order = np.lexsort((every, -expected[user])) if read.kind == "best" else np.arange(len(every))
        same_items = np.array_equal(answer.item_ids, every[order])
        wrong += not (same_items and answer.scores.tobytes() == expected[user][order].tobytes())
    return wrong


def torn_reads(server: Server, seconds: float) -> tuple[int, str]:
    """The number of reads that differ from the replayed state at their revision, and a report."""
    with Readers(server) as readers:
        batches, snapshots = write_and_snapshot(server, seconds)
    assert not readers.errors, readers.errors
    by_revision: dict[int, list[Read]] = defaultdict(list)
    for read in readers.reads:
        by_revision[read.answer.position.revision].append(read)
    checked = sorted(
        random.Random(SEED).sample(sorted(by_revision), min(len(by_revision), REVISIONS_CHECKED_MAX))
    )
    follower = Follower(server.model_folder(MODEL))
    torn = 0
    for revision in checked:
        state = follower.state_at(revision)
        torn += sum(differences(read, state) > 0 for read in by_revision[revision])
    reads = [read for revision in checked for read in by_revision[revision]]
    kinds = {kind: sum(read.kind == kind for read in reads) for kind in ("one", "few", "many", "best")}
    return (
        torn,
        f"{batches} batches, {snapshots} snapshots, {len(checked)} revisions, {kinds} reads checked, {torn} torn",
    )


def prepared(server: Server) -> Server:
    """Create a model that knows every id of the readers, so that a top-k list holds all items."""
    create_model(server, "purchases_sgd", limits={"users_max": 100, "items_max": 100}, negatives=2)
    with server.channel() as channel, Producer(channel, "first", model=MODEL) as producer:
        producer.push(np.arange(ITEMS) % USERS, np.arange(ITEMS)).result(30)
    return server


@pytest.mark.parametrize("flags", [(), ("--score-workers", "2")])
def test_every_answer_is_the_replayed_state_at_the_revision_it_names(
    serve: Serve, flags: tuple[str, ...]
) -> None:
    torn, report = torn_reads(prepared(serve(*flags)), RUN_S)
    print(f"seed {SEED}: {report}")
    assert torn == 0


@pytest.mark.long
def test_every_answer_is_the_replayed_state_at_the_revision_it_names_for_minutes(serve: Serve) -> None:
    torn, report = torn_reads(prepared(serve()), RUN_LONG_S)
    print(f"seed {SEED}: {report}")
    assert torn == 0


@pytest.mark.torture
@pytest.mark.parametrize("plant", ["no_turns", "no_version"])
def test_a_planted_bug_in_the_turns_of_readers_is_caught(serve: Serve, plant: str, tally: Tally) -> None:
    torn, report = torn_reads(prepared(serve(plants=(plant,))), RUN_S)
    print(f"{plant}: {report}")
    assert torn > 0
    tally.catch("rows changed under readers")
