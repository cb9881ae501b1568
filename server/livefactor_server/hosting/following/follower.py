"""The threads of a server that follows a leader: one a model, and one that looks for new models."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import grpc
from prometheus_client import Gauge

from livefactor.v1 import following_pb2
from livefactor_server.engine.engine import Engine
from livefactor_server.engine.following import Applier, Mismatch
from livefactor_server.hosting.following import copying
from livefactor_server.hosting.following.leader import Leader
from livefactor_server.log.errors import LogError, LogGap
from livefactor_server.log.format import Entry, Kind
from livefactor_server.log.store import Log
from livefactor_server.snapshots.replay import BeginningLost, ReplayError, log_folder
from livefactor_server.statuses import Refused

REST_S, REST_S_MAX = 0.05, 1.0
"""Seconds after which a follower tries again: the first time, and at most. The time doubles."""

REFUSED_REST_S = 10.0
"""Seconds after which it tries again if the leader refused its log, which an operator must mend."""

LOOK_S = 5.0
"""Seconds between two looks for new models of the leader."""

CONNECTED = Gauge("livefactor_follower_connected", "1 while the leader sends its log.", ["model"])
LAG = Gauge(
    "livefactor_follower_lag_revisions",
    "Revisions that the leader has published and this server not yet.",
    ["model"],
)
LAG_S = Gauge(
    "livefactor_follower_lag_seconds",
    "Seconds since this server last had all that the leader had published.",
    ["model"],
)

_COPY_ERRORS = (copying.CopyFailed, LogError, OSError, Refused, ReplayError)

logger = logging.getLogger(__name__)


class Models(Protocol):
    """What a follower does with the models of its server."""

    def names(self) -> list[str]:
        """The names of all models, also of those that cannot be opened."""

    def followed(self, name: str) -> tuple[Engine, Path]:
        """The engine of a model, and the model's folder."""

    def lost(self) -> list[str]:
        """The models that cannot be opened, because their log lacks its beginning."""

    def replace_with_copy(self, name: str, fill: Callable[[Path], None], keeps: bool = True) -> Path:
        """Puts a copy of the leader's model in place of a model. Returns the folder that keeps what
        was there; without `keeps` that is removed. `fill` writes the files; until it is done the
        model answers.
        """

    def reopen(self, name: str) -> None:
        """Opens a model again, which computes its state from the log."""

    def note_term(self, name: str) -> int:
        """Keeps the newest term of a model's log durably, and returns it."""

    def add_copy(self, name: str, fill: Callable[[Path], None]) -> None:
        """Makes a model whose files `fill` writes, and opens it."""


class ModelFollower:
    """Follows the log of one model.

    Attributes:
        leader_revision: what the leader had published when it was last heard.
        is_connected: whether the leader sends its log.
        error: why it does not; "" if it does.
    """

    def __init__(self, name: str, models: Models, leader: Leader) -> None:
        self.name, self._models, self._leader = name, models, leader
        self.leader_revision, self.is_connected, self.error = 0, False, ""
        self._equal_at = time.monotonic()
        # After a first refusal it sends more of its log, so that the second one says more.
        self._is_refused = False
        self._stopped = threading.Event()
        self._stream: Any = None
        self._thread = threading.Thread(target=self._run, name=f"follow-{name}", daemon=True)

    def start(self) -> None:
        """Starts to follow."""
        CONNECTED.labels(self.name).set_function(lambda: float(self.is_connected))
        LAG.labels(self.name).set_function(lambda: float(self.lag))
        LAG_S.labels(self.name).set_function(lambda: self.lag_s)
        self._thread.start()

    def end(self) -> None:
        """Tells the thread to end."""
        self._stopped.set()
        stream = self._stream
        if stream is not None:
            stream.cancel()

    def stop(self) -> None:
        """Ends the thread. What it has taken is whole."""
        self.end()
        self._thread.join()
        for gauge in (CONNECTED, LAG, LAG_S):
            gauge.remove(self.name)

    @property
    def lag(self) -> int:
        """Revisions that the leader had published, as far as is known, and this server has not."""
        return max(0, self.leader_revision - self._models.followed(self.name)[0].revision)

    @property
    def lag_s(self) -> float:
        """Seconds since this server last had all that the leader had published."""
        return time.monotonic() - self._equal_at

    def _run(self) -> None:
        rest_s = REST_S
        while not self._stopped.wait(rest_s if self.error else 0.0):
            before = self._models.followed(self.name)[0].revision
            try:
                if self._follow():
                    self._note("the leader ended the stream")
            except grpc.RpcError as error:
                self._note(f"{error.code().name}: {error.details()}")
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    if self._is_refused and self._set_aside():
                        continue
                    rest_s = REFUSED_REST_S if self._is_refused else REST_S
                    self._is_refused = True
                    continue
            except BeginningLost as error:
                rest_s = REST_S if self._copy_again(error) else REFUSED_REST_S
                continue
            except (Mismatch, LogError, Refused, ReplayError) as error:
                self._note(str(error))
            except Exception:
                self._note("an unexpected error; see the server's log")
                logger.exception("model %s: following the leader", self.name)
            finally:
                self.is_connected = False
            got_on = self._models.followed(self.name)[0].revision > before
            rest_s = REST_S if got_on else min(2 * rest_s, REST_S_MAX)

    def _set_aside(self) -> bool:
        """Sets the log aside for a copy of the leader's, if the leader leads in a newer term.

        Such a leader took the place of another one, which had records that it never sent. In one
        term an operator must find out what is wrong. Returns whether the copy is in place.
        """
        engine, _ = self._models.followed(self.name)
        try:
            lineage, term = self._leader.term(self.name)
            if lineage != engine.log.lineage.bytes or term <= self._models.note_term(self.name):
                return False
            aside = self._models.replace_with_copy(
                self.name, lambda folder: copying.receive(self._leader.copy(self.name), folder)
            )
        except (*_COPY_ERRORS, grpc.RpcError) as error:
            logger.warning("model %s: it cannot be copied from the leader yet: %s", self.name, error)
            return False
        logger.warning(
            "model %s: its log has records that %s, the leader in term %d, never had; it is kept in %s, and the"
            " model is a copy of the leader's now", self.name, self._leader.target, term, aside,
        )  # fmt: skip
        self._is_refused, self.error = False, ""
        return True

    def _copy_again(self, lost: BeginningLost) -> bool:
        """Takes a new copy of the leader's model, because the present state is unknown."""
        try:
            copy_over(self.name, self._models, self._leader)
        except (*_COPY_ERRORS, grpc.RpcError) as error:
            text = error.details() if isinstance(error, grpc.RpcError) else error
            self._note(f"{lost}; it cannot be copied from the leader yet: {text}")
            return False
        self._is_refused, self.error = False, ""
        return True

    def _note(self, error: str) -> None:
        if not self._stopped.is_set() and error != self.error:
            logger.warning("model %s: it does not follow %s: %s", self.name, self._leader.target, error)
        self.error = error

    def _follow(self) -> bool:
        """Follows until the stream ends. Returns False if the model was opened again."""
        engine, folder = self._models.followed(self.name)
        log = engine.log
        request = following_pb2.FollowLogRequest(
            model=self.name, lineage=log.lineage.bytes, revision=log.last_revision, hash=log.last_hash,
            term=self._models.note_term(self.name), follower=uuid.uuid4().hex,
        )  # fmt: skip
        if engine.revision != log.last_revision:
            # The state after the last record was not computed.
            self._models.reopen(self.name)
            return False
        if self._is_refused:
            request.earlier.extend(_marks(log))
        applier = Applier(engine, log_folder(folder))
        self._stream = stream = self._leader.follow(request)
        if self._stopped.is_set():
            stream.cancel()
        try:
            for message in stream:
                self.leader_revision = message.revision
                self._take(applier, message)
                if message.confirm and not applier.is_restated:
                    self._leader.confirm(
                        following_pb2.ConfirmLogRequest(
                            model=self.name,
                            lineage=request.lineage,
                            follower=request.follower,
                            revision=log.last_revision,
                        )
                    )
                if any(each.kind == Kind.TERM for each in message.records):
                    self._models.note_term(self.name)
                if applier.is_restated:
                    break
                if engine.revision >= self.leader_revision:
                    self._equal_at = time.monotonic()
                if not self.is_connected:
                    logger.info("model %s: it follows %s", self.name, self._leader.target)
                self.is_connected, self._is_refused, self.error = True, False, ""
        finally:
            stream.cancel()
        if applier.is_restated:
            self._models.reopen(self.name)
        return not applier.is_restated

    @staticmethod
    def _take(applier: Applier, message: following_pb2.FollowLogResponse) -> None:
        if not message.records:
            return
        entries = [
            Entry(
                each.kind, each.revision, each.producer, each.epoch, each.sequence, each.time_us, each.count,
                each.rejects, each.body, each.salt, each.commitment, each.erasure,
            )
            for each in message.records
        ]  # fmt: skip
        applier.take(entries, message.hash)


def _marks(log: Log) -> Iterator[following_pb2.Mark]:
    """Records before the last one, each twice as far back as the one before it."""
    back = 1
    while (revision := log.last_revision - back) >= log.first_revision:
        try:
            yield following_pb2.Mark(revision=revision, hash=next(log.read(revision)).hash)
        except LogGap:
            return
        back *= 2


def copy_over(name: str, models: Models, leader: Leader) -> None:
    """Puts a copy of the leader's model in place of one whose state cannot be computed.

    An erasure came, and the log lacks its beginning. The files have who was erased, so they are
    removed. The copy has all of their records.

    Raises:
        grpc.RpcError, CopyFailed, LogError, OSError, Refused, ReplayError: it cannot be copied yet.
            The model is as it was, or the copy stands there and cannot be opened.
    """

    def fill(folder: Path) -> None:
        copying.receive_after(leader.copy(name), folder, folder.with_name(name))

    models.replace_with_copy(name, fill, keeps=False)
    logger.warning(
        "model %s: its log lacked its beginning, so the state after an erasure could not be computed; the model"
        " is a copy of %s now, and its old files are removed", name, leader.target,
    )  # fmt: skip


class Following:
    """All models of a server that follows a leader. Thread-safe.

    Attributes:
        leader: the leader's address.
        calls: the connection to it.
        error: why its models are not known or copied; "" if they are.
    """

    def __init__(self, models: Models, leader: Leader) -> None:
        self.leader = leader.target
        self.calls = leader
        self._models = models
        self._followers: dict[str, ModelFollower] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.error = ""
        # When a model that could not be copied is tried again.
        self._lost_at = 0.0
        self._thread = threading.Thread(target=self._look, name="follow", daemon=True)

    def start(self) -> None:
        """Follows the models that are there, and looks for others."""
        for name in self._models.names():
            self._add(name)
        self._thread.start()

    def stop(self) -> None:
        """Ends all threads. The connection stays open."""
        self._stopped.set()
        for follower in self._followers.values():
            follower.end()
        self._thread.join()
        for follower in self._followers.values():
            follower.stop()

    def of(self, name: str) -> ModelFollower | None:
        """Who follows a model. None if it is not followed."""
        return self._followers.get(name)

    def _add(self, name: str) -> None:
        try:
            self._models.followed(name)
        except Refused as refusal:
            logger.warning("model %s: it follows nobody: %s", name, refusal.text)
            return
        with self._lock:
            follower = self._followers[name] = ModelFollower(name, self._models, self.calls)
            follower.start()

    def _look(self) -> None:
        while True:
            rest_s = LOOK_S
            try:
                self._copy_lost()
                self._copy_new(self.calls.models())
                self.error = ""
            except grpc.RpcError as error:
                self._note(f"{error.code().name}: {error.details()}")
                rest_s = REST_S_MAX
            except _COPY_ERRORS as error:
                self._note(str(error))
            except Exception:
                if not self._stopped.is_set():
                    logger.exception("a model of the leader could not be copied")
            if self._stopped.wait(rest_s):
                return

    def _copy_lost(self) -> None:
        if time.monotonic() < self._lost_at:
            return
        for name in self._models.lost():
            try:
                copy_over(name, self._models, self.calls)
            except _COPY_ERRORS as error:
                logger.warning("model %s: it cannot be copied from %s yet: %s", name, self.leader, error)
                self._lost_at = time.monotonic() + REFUSED_REST_S
            else:
                self._add(name)

    def _copy_new(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._models.names() and not self._stopped.is_set():
                logger.info("model %s: it is copied from %s", name, self.leader)
                self._models.add_copy(
                    name,
                    lambda folder, name=name: copying.receive(self.calls.copy(name), folder),  # type: ignore[misc]
                )
                self._add(name)

    def _note(self, error: str) -> None:
        if error != self.error and not self._stopped.is_set():
            logger.warning("the models of %s are not known: %s", self.leader, error)
        self.error = error
