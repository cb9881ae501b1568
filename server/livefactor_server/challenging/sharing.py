"""A/B on the live model: a challenger answers a share of the users.

A hash of the user's id and of a salt decides, so a user always gets the same variant, and another
share has other users. The challenger's state is in the server, and a thread learns the log into it
behind the champion. So it costs what a second model costs: its memory, and the CPU time of its
learning. Acknowledgements do not wait for it. An answer is the champion's if the challenger has not
reached the position that the caller asks for, or while it learns the log from the beginning.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from livefactor.wire.scoring import ScoreColumns, ScoreQuery
from livefactor_server.challenging.keeping import keep
from livefactor_server.challenging.metrics import ShareMetrics
from livefactor_server.challenging.outcomes import Outcomes, Variant
from livefactor_server.challenging.steps import Step, judged_events
from livefactor_server.engine.engine import Engine
from livefactor_server.engine.readers import Reader
from livefactor_server.model import spec_codec
from livefactor_server.model.gate import Gate
from livefactor_server.model.state import ModelState
from livefactor_server.snapshots.records import between
from livefactor_server.snapshots.replay import apply_groups

CHAMPION, CHALLENGER = 0, 1
SHARE_MAX = 0.5
RECORDS_AT_ONCE = 64
"""Records that are learned under one hold of the gate, once the challenger answers."""
POLL_S = 0.01
"""Seconds between two looks at the champion's revision."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Terms:
    """A share: the challenger's name and spec, its share of the users, and the salt in hex."""

    name: str
    spec_body: bytes
    share: float
    salt: str

    def includes(self, user: int) -> bool:
        """Whether the user with this key gets the challenger."""
        digest = blake2b(user.to_bytes(8, "little"), digest_size=8, key=bytes.fromhex(self.salt)).digest()
        return int.from_bytes(digest, "little") < self.share * 2.0**64


@dataclass(frozen=True, slots=True)
class Standing:
    """How a share stands.

    Attributes:
        name, share: of its terms.
        is_ready: whether the challenger answers.
        behind: records of the log that it has not learned yet.
        ended: why it has ended, "" if it has not.
        variants: the champion's figures and the challenger's.
        spec_ids: the ids of their specs.
    """

    name: str
    share: float
    is_ready: bool
    behind: int
    ended: str
    variants: tuple[Variant, Variant]
    spec_ids: tuple[str, str]


class Sharing:
    """The state of a challenger that answers a share of the users, for a `Reader`.

    Attributes:
        terms: the share.
        state: the challenger's state, once `is_ready`.
        gate: the thread holds it while it learns.
        torn: always False: the thread ends at an error, and then the champion answers.
    """

    torn = False

    def __init__(
        self, live: Engine, terms: Terms, start: Callable[[bytes], ModelState], memory_bytes_max: int
    ) -> None:
        """Starts the thread. `start` gives an early state with a spec (`replay.start_of`)."""
        self.terms, self.gate = terms, Gate()
        self.state: ModelState
        self._live, self._start, self._memory_bytes_max = live, start, memory_bytes_max
        self._outcomes = Outcomes("champion", terms.name)
        self._reader: Reader | None = None
        self._ended, self._has_failed, self._stopped = "", False, threading.Event()
        self._metrics = ShareMetrics(live.name)
        self._thread = threading.Thread(target=self._run, name=f"share-{live.name}", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ calls

    def reader_for(self, query: ScoreQuery) -> Reader | None:
        """The challenger's reader for a query of its users alone, or None."""
        reader = self._reader
        if reader is None or query.target not in ("candidates", "top_k") or not self._are_in(query.user_ids):
            return None
        behind = query.min_lineage is not None and self.state.revision < query.min_revision
        return None if behind else reader

    def _are_in(self, users: np.ndarray) -> bool:
        return all(map(self.terms.includes, users.tolist()))

    def answered(self, query: ScoreQuery, answer: ScoreColumns, is_challenger: bool) -> None:
        """Counts an answer. The champion's lists for users of the challenger count for nobody."""
        if query.target != "top_k":
            return
        if is_challenger:
            self._count(CHALLENGER, query.user_ids, answer)
        elif not any(map(self.terms.includes, query.user_ids.tolist())):
            self._count(CHAMPION, query.user_ids, answer)

    def _count(self, variant: int, users: np.ndarray, answer: ScoreColumns) -> None:
        self._outcomes.answered(variant, users, answer.item_ids, answer.offsets)
        self._metrics.answered(variant, len(users))

    def standing(self) -> Standing:
        """How the share stands."""
        is_ready, live = self._reader is not None, self._live.state
        behind = live.revision - self.state.revision if is_ready else live.revision
        ids = live.spec_id, spec_codec.id_of(self.terms.spec_body)
        variants, terms = self._outcomes.variants, self.terms
        return Standing(terms.name, terms.share, is_ready, max(0, behind), self._ended, variants, ids)

    def close(self) -> None:
        """Ends the thread. From then on the champion answers."""
        self._reader = None
        self._stopped.set()
        self._thread.join()

    def keep(self, folder: Path) -> None:
        """Keeps the challenger's state, if any, in the folder of the model. Call `close` first."""
        if hasattr(self, "state") and not self._has_failed:
            keep(folder, self._live.name, [self.state], self._live.log.hash_name)

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            self._ended = self._follow()
        except Exception as error:
            self._ended, self._has_failed = f"an error: {error}", True
            logger.exception("model %s: the share of %s has ended", self._live.name, self.terms.name)
        self._reader = None
        if self._ended and not self._stopped.is_set():
            logger.warning("model %s: the share of %s: %s", self._live.name, self.terms.name, self._ended)

    def _follow(self) -> str:
        """Learns the log until it is told to stop. Returns why it has ended."""
        self.state = self._start(self.terms.spec_body)
        while not self._stopped.is_set():
            if self._live.state.spec_body == self.terms.spec_body:
                return "the model has its spec"
            last = self._live.state.revision
            if self.state.revision < last:
                self._learn(last)
                if self._held() > self._memory_bytes_max:
                    return f"both models need more than {self._memory_bytes_max} bytes of memory"
            else:
                if self._reader is None:
                    self._reader = Reader(self)
                self._stopped.wait(POLL_S)
        return "it was stopped"

    def _held(self) -> int:
        states = self.state, self._live.state
        return sum(sum(state.memory_bytes.values()) for state in states)

    def _learn(self, last: int) -> None:
        log, state = self._live.log, self.state
        most = last if self._reader is None else min(last, state.revision + RECORDS_AT_ONCE)
        for records in between(log, state.revision, most):
            if self._stopped.is_set():
                return
            if self._reader is not None:
                found = judged_events(Step([records], 0, 0), 0, 2.0, state.meanings, True)
                for variant, counts in enumerate(self._outcomes.happened(found.users, found.items)):
                    self._metrics.happened(variant, *counts)
            with self.gate.writing():
                backend = state.backend
                apply_groups(state, [records])
                if self._reader is not None and state.backend is not backend:
                    # After an eviction the reader would go on with the old tables.
                    self._reader = Reader(self)
