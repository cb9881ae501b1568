"""Rounds with Flower (`pip install "livefactor[federated]"`): who takes part, when, and how long.

    app = client_app(home)                     a ClientApp; `home(context)` opens the participant
    strategy = OneRecord("127.0.0.1:50051")    FedAvg whose rounds are one record each
    rounds = strategy.run(grid, 10)            in the main function of a ServerApp

Flower carries which snapshot a round begins with, and the contributions. The item rows come from
the server of the common model, so each participant verifies the snapshot that it learns from.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from livefactor.access import Access
from livefactor.auditor import Auditor
from livefactor.federated.home import Home
from livefactor.federated.merging import weighted_mean
from livefactor.federated.proof import unexplained_rows
from livefactor.federated.rounds import Contribution, Rows, give, rows_of
from livefactor.pushing.producer import Producer
from livefactor.snapshots.files import load
from livefactor.snapshots.loaded import LoadedSnapshot

EVENTS = "events"
"""The metric of a contribution that is its weight."""

_CONFIG, _ARRAYS, _METRICS = "config", "arrays", "metrics"

log = logging.getLogger("livefactor.federated")


def client_app(home: Callable[[Context], AbstractContextManager[Home]]) -> ClientApp:
    """An app that takes part in rounds of `OneRecord`.

    home: opens the participant for one message, for example with a data folder of the node's
    config, and closes what it opened.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config = message.content[_CONFIG]
        with home(context) as opened:
            given = opened.learn(config["server-round"], config["snapshot-id"], config["root-hash"])
        arrays = ArrayRecord({"keys": Array(given.keys), "numbers": Array(given.numbers.astype(np.float32))})
        metrics = MetricRecord({EVENTS: given.events})
        return Message(RecordDict({_ARRAYS: arrays, _METRICS: metrics}), reply_to=message)

    return app


@dataclass(frozen=True, slots=True)
class Round:
    """A round of `OneRecord`, and its proof.

    revision: of its record; 0 if too few contributions arrived, and none was pushed. merged: how
    many contributions are in the record. refused: why others are not. root_before, root_after: root
    hashes of the snapshots before and after the record, as hex. deltas_sha256: of the bytes of the
    ids and of the float32 deltas. is_proven: the item rows of the later snapshot are those of the
    earlier one plus the record, to the bit.
    """

    number: int
    revision: int
    merged: int
    refused: tuple[str, ...]
    events: float
    rows: int
    norm: float
    root_before: str
    root_after: str
    deltas_sha256: str
    is_proven: bool


class OneRecord(FedAvg):
    """Flower's FedAvg for a livefactor model: each round becomes one record of deltas.

    target, model, access: of the common model. folder: gets `rounds.jsonl`, a line a round, and the
    snapshots and the merged deltas of the last `keep` rounds. merge: `weighted_mean`, or
    `functools.partial(trimmed_mean, share=0.1)`, or `partial(krum, wrong=2, chosen=10)`. norm_max:
    each contribution is scaled down to it before; 0 leaves it. events_max: a participant counts as
    so many events at most. merged_min: a round with fewer contributions pushes nothing. options: of
    FedAvg; `fraction_evaluate` is 0 here.

    A contribution that is late, or wrong in form, is left out, and the round says why.
    """

    def __init__(
        self,
        target: str | Sequence[str],
        folder: str | PathLike[str],
        *,
        model: str = "default",
        access: Access | None = None,
        merge: Callable[[Sequence[Contribution]], Contribution] = weighted_mean,
        norm_max: float = 0.0,
        events_max: float = 1e6,
        merged_min: int = 2,
        keep: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(weighted_by_key=EVENTS, **{"fraction_evaluate": 0.0, **options})
        self._folder, self._merge, self._keep = Path(folder), merge, keep
        self._norm_max, self._events_max, self._merged_min = norm_max, events_max, merged_min
        self._auditor = Auditor(target, model=model, access=access)
        self._producer = Producer(target, "rounds", model=model, access=access, labels=False)
        self._before: LoadedSnapshot | None = None
        self.rounds: list[Round] = []

    def run(self, grid: Grid, rounds: int, timeout: float = 3600.0) -> list[Round]:
        """Do so many rounds, and return them. timeout: how long a round waits for contributions,
        seconds.

        Raises the errors of the clients, such as Unavailable. Closes the strategy.
        """
        with self._auditor, self._producer:
            self.start(grid, ArrayRecord(), rounds, timeout)
        return self.rounds

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Take the snapshot that the round begins with, and tell it to the participants."""
        self._before = self._snapshot()
        config["snapshot-id"] = self._before.manifest.snapshot_id
        config["root-hash"] = self._before.root_hash
        messages: Iterable[Message] = super().configure_train(server_round, arrays, config, grid)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge the contributions, push them as one record, and prove that it was applied."""
        assert self._before is not None, "configure_train is called before"
        valid, failed = self._check_and_log_replies(list(replies), is_train=True, validate=False)
        refused = [f"{message.metadata.src_node_id}: {message.error.reason}" for message in failed]
        given, rows = [], rows_of(self._before)
        for message in valid:
            try:
                found = contribution_of(message.content, rows, self._events_max)
                given.append(found.within(self._norm_max))
            except ValueError as error:
                refused.append(f"{message.metadata.src_node_id}: {error}")
        for reason in refused:
            log.warning("round %d: contribution of node %s", server_round, reason)
        done = self._record(server_round, given, tuple(refused))
        self.rounds.append(done)
        with (self._folder / "rounds.jsonl").open("a") as file:
            file.write(json.dumps(asdict(done)) + "\n")
        self._prune()
        metrics = {"merged": done.merged, "revision": done.revision, "is_proven": int(done.is_proven)}
        return None, MetricRecord(metrics)

    def _record(self, number: int, given: list[Contribution], refused: tuple[str, ...]) -> Round:
        before = self._before
        assert before is not None
        root = before.root_hash.hex()
        nothing = Round(number, 0, 0, refused, 0.0, 0, 0.0, root, root, "", False)
        if len(given) < self._merged_min:
            log.warning("round %d: %d contributions are too few for a record", number, len(given))
            return nothing
        try:
            merged = self._merge(given)
        except ValueError as error:
            # Too few for this mean, or no events: the next round begins with the same rows.
            log.warning("round %d: no record: %s", number, error)
            return nothing
        merged = Contribution(merged.keys, merged.numbers.astype(np.float32), merged.events)
        position = give(self._producer, merged)
        after = self._snapshot()
        np.savez(self._folder / f"round-{number:06}.npz", keys=merged.keys, deltas=merged.numbers)
        is_proven = False
        try:
            is_proven = not len(unexplained_rows(before, merged, after))
        except ValueError as error:
            log.warning("round %d: no proof: %s", number, error)
        digest = sha256(merged.keys.tobytes() + np.ascontiguousarray(merged.numbers).tobytes())
        return Round(
            number,
            position.revision,
            len(given),
            refused,
            merged.events,
            len(merged.keys),
            merged.norm,
            root,
            after.root_hash.hex(),
            digest.hexdigest(),
            is_proven,
        )

    def _snapshot(self) -> LoadedSnapshot:
        taken = self._auditor.snapshot()
        path = self._folder / taken.snapshot_id
        # A model that has not changed since then has the same snapshot.
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._auditor.fetch(path, taken.snapshot_id)
        return load(path)

    def _prune(self) -> None:
        # A round needs the snapshots before and after it.
        for path in sorted(self._folder.glob("[0-9]*-*"))[: -(self._keep + 1)]:
            shutil.rmtree(path)
        for path in sorted(self._folder.glob("round-*.npz"))[: -self._keep]:
            path.unlink()


def contribution_of(content: RecordDict, rows: Rows, events_max: float) -> Contribution:
    """A contribution from a reply. Raises ValueError, with the reason, for one that is wrong."""
    try:
        arrays, metrics = content[_ARRAYS], content[_METRICS]
        keys, numbers = arrays["keys"].numpy(), arrays["numbers"].numpy()
        events = float(metrics[EVENTS])
    except (KeyError, TypeError, ValueError, AttributeError, EOFError, OSError) as error:
        raise ValueError(f"the reply cannot be read: {type(error).__name__}: {error}") from error
    width = rows.numbers.shape[1]
    if keys.dtype != np.uint64 or keys.ndim != 1 or numbers.dtype != np.float32:
        raise ValueError("expected keys uint64[n] and numbers float32[n, k + 1]")
    if numbers.shape != (len(keys), width):
        raise ValueError(f"numbers: expected [{len(keys)}, {width}], got {list(numbers.shape)}")
    if not 0.0 <= events < np.inf:
        raise ValueError(f"events: expected a number of at least 0, got {events}")
    if len(keys) > 1 and not (keys[1:] > keys[:-1]).all():
        raise ValueError("keys: expected each once, ascending")
    if not np.isin(keys, rows.keys).all():
        raise ValueError("keys: an item has no row in the common model")
    if not np.isfinite(numbers).all():
        raise ValueError("numbers: expected finite ones")
    return Contribution(keys, numbers.astype(np.float64), min(events, events_max))
