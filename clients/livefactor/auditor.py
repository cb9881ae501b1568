"""The class `Auditor` takes, lists, fetches and verifies snapshots, and explains scores."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from livefactor.access import Access
from livefactor.calling.blocking import BlockingClient, blocking
from livefactor.calling.plans import Next, Plan, Work
from livefactor.calling.routes import Route
from livefactor.channel import CONNECT_S, DEADLINE_S, READ_RETRY_S
from livefactor.errors import LivefactorError, SnapshotInvalid
from livefactor.position import Position, position_of
from livefactor.results.explanation import ScoreExplanation, explanation_of
from livefactor.results.served import ServedAnswer, served_of
from livefactor.snapshots.files import Saving, Verification, verify
from livefactor.snapshots.format import is_snapshot_id
from livefactor.v1 import scoring_pb2, snapshots_pb2
from livefactor.wire.ids import as_keys
from livefactor.wire.keys import keys_of
from livefactor.wire.limits import EXPLAINED_MAX, check_model, check_most

_SERVICE = "/livefactor.v1.SnapshotService/"
_EXPLAIN = "/livefactor.v1.ScoringService/Explain"
_SERVED = "/livefactor.v1.ScoringService/FetchServed"


@dataclass(frozen=True, slots=True, repr=False)
class SnapshotInfo:
    """A snapshot that a server holds.

    root_hash, log_hash: 32 bytes each. size_bytes: size of all its files. created_us: microseconds
    since 1970 UTC. users, items: numbers of the model's rows. checkpoint: a signed statement of the
    position and both hashes, as JSON; empty if the server signed none.
    """

    snapshot_id: str
    position: Position
    root_hash: bytes
    log_hash: bytes
    size_bytes: int
    created_us: int
    users: int
    items: int
    checkpoint: bytes = b""

    def __repr__(self) -> str:
        rows = f"{self.users} users, {self.items} items"
        return f"SnapshotInfo({self.snapshot_id}, {rows}, {self.size_bytes:,} bytes)"


@dataclass(frozen=True, slots=True)
class SnapshotProgress:
    """How far the server has written a snapshot.

    bytes_done, bytes_total: bytes. position: the position that the snapshot has.
    """

    bytes_done: int
    bytes_total: int
    position: Position


class AuditorBase:
    """What `Auditor` and its asyncio twin share: the settings, and how a call is made."""

    _connects: type[Route]
    _connection: Any

    def __init__(
        self,
        target: str | Sequence[str] | Any | None = None,
        *,
        model: str = "default",
        connect_s: float = CONNECT_S,
        access: Access | None = None,
        channel: Any | None = None,
    ) -> None:
        self.model = check_model(model)
        self._connection = self._connects(target, channel, connect_s, access)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.target!r}, model={self.model!r})"

    @property
    def _doing(self) -> str:
        return f"model {self.model!r}"

    def _stream(self, method: str, request: Any, timeout: float | None) -> Plan[tuple[Any, bytes | None]]:
        path, message = _SERVICE + method, request.SerializeToString()
        plan: Plan[tuple[Any, bytes | None]] = self._connection.stream(path, message, timeout, self._doing)
        return plan


class Auditor(AuditorBase, BlockingClient):
    """Takes, lists, fetches and verifies snapshots of one model, and explains its scores.

    target: "host:port" or "unix:/path", or several of them (`Scorer`), or a channel. model: the
    model's name. connect_s: how long a call waits for a server that cannot be reached, seconds.
    access: TLS and token; None takes them from the environment. channel: the caller's own
    transport.
    """

    @blocking
    def snapshot(
        self,
        *,
        min_position: Position | None = None,
        on_progress: Callable[[SnapshotProgress], None] | None = None,
        timeout: float | None = None,
    ) -> Plan[SnapshotInfo]:
        """Take a snapshot of the visible revision and return when it is complete.

        Updates go on meanwhile. min_position: the snapshot has at least this position. on_progress:
        called with each progress message. timeout: seconds; None waits for ever. Raises NotFound,
        FailedPrecondition, Unavailable, DeadlineExceeded, and ResourceExhausted if the disk is full
        or another snapshot is in progress.
        """
        request = snapshots_pb2.SnapshotRequest(model=self.model)
        if min_position is not None:
            request.min_position.lineage = min_position.lineage
            request.min_position.revision = min_position.revision
        info = None
        stream, data = yield from self._stream("Snapshot", request, timeout)
        while data is not None:
            event = snapshots_pb2.SnapshotResponse.FromString(data)
            if event.WhichOneof("event") == "manifest":
                info = snapshot_info(event.manifest.info)
            elif on_progress is not None:
                on_progress(_progress(event.progress))
            data = yield Next(stream, self._doing)
        if info is None:
            raise LivefactorError(f"{self._doing}: the server ended the snapshot without a manifest")
        return info

    @blocking
    def list(self, *, timeout: float = DEADLINE_S) -> Plan[tuple[SnapshotInfo, ...]]:
        """The model's snapshots, the oldest first.

        timeout: seconds. Raises NotFound, Unavailable, DeadlineExceeded.
        """
        request = snapshots_pb2.ListSnapshotsRequest(model=self.model).SerializeToString()
        data = yield from self._connection.unary(
            _SERVICE + "ListSnapshots", request, timeout, self._doing, READ_RETRY_S
        )
        return tuple(
            snapshot_info(info) for info in snapshots_pb2.ListSnapshotsResponse.FromString(data).snapshots
        )

    @blocking
    def fetch(
        self,
        path: str | os.PathLike[str],
        snapshot_id: str = "",
        *,
        on_bytes: Callable[[int], None] | None = None,
        timeout: float | None = None,
    ) -> Plan[Verification]:
        """Fetch a snapshot into the new folder `path`.

        The folder appears only once the snapshot is verified. snapshot_id: one from `list`; empty
        for the newest. on_bytes: called with the number of bytes fetched so far. timeout: seconds;
        None waits for ever. Raises FileExistsError, NotFound, SnapshotInvalid, DeadlineExceeded and
        Unavailable. After an error no file is left.
        """
        if snapshot_id and not is_snapshot_id(snapshot_id):
            raise ValueError(f"snapshot_id: expected 20 digits, a dash and 8 hex digits, got {snapshot_id!r}")
        request = snapshots_pb2.FetchSnapshotRequest(model=self.model, snapshot_id=snapshot_id)
        fetched = 0
        with Saving(path) as saving:
            stream, data = yield from self._stream("FetchSnapshot", request, timeout)
            while data is not None:
                chunk = snapshots_pb2.FetchSnapshotResponse.FromString(data)
                piece = chunk.file_name, chunk.offset, chunk.file_size, chunk.data
                yield Work(partial(saving.add, *piece))
                fetched += len(chunk.data)
                if on_bytes is not None:
                    on_bytes(fetched)
                data = yield Next(stream, self._doing)
            verification: Verification = yield Work(saving.finish)
        got = verification.manifest.snapshot_id
        # A valid snapshot may still be another one than the caller asked for.
        if snapshot_id and got != snapshot_id:
            shutil.rmtree(path)
            raise SnapshotInvalid("manifest.json", f"the server sent snapshot {got}, expected {snapshot_id}")
        return verification

    @blocking
    def explain(
        self,
        user: int | str,
        item: int | str,
        *,
        revision: int | None = None,
        events_max: int = 64,
        updates_max: int = 10,
        secret: bytes = b"",
        timeout: float | None = None,
    ) -> Plan[ScoreExplanation]:
        """Explain the score of one user and one item.

        revision: an earlier one, which the server computes from the nearest snapshot and the log;
        None explains the score of now. events_max: the most events of the user whose effects are
        computed, the newest ones. updates_max: the most updates to name. secret: the key for string
        ids that the producers use. timeout: seconds; None waits for ever. Raises ColumnError for an
        id of a wrong type, InvalidArgument, NotFound, FailedPrecondition (the revision was not
        reached yet, or the log lacks its records), ResourceExhausted and Unavailable.
        """
        for name, most in (("events_max", events_max), ("updates_max", updates_max)):
            check_most(name, EXPLAINED_MAX, most)
        hashed = partial(keys_of, secret=secret)
        request = scoring_pb2.ExplainRequest(
            model=self.model,
            user_id=int(as_keys("user", [user], hashed)[0]),
            item_id=int(as_keys("item", [item], hashed)[0]),
            revision=revision,
            events_max=events_max,
            updates_max=updates_max,
        )
        data = yield from self._connection.unary(
            _EXPLAIN, request.SerializeToString(), timeout, self._doing, READ_RETRY_S
        )
        return explanation_of(scoring_pb2.ExplainResponse.FromString(data))

    @blocking
    def served(self, score_id: int, *, timeout: float = DEADLINE_S) -> Plan[ServedAnswer]:
        """Return what a Score call with `keep` was answered.

        score_id: `Answers.score_ids` has it. Raises NotFound if the server does not keep the answer
        any more.
        """
        request = scoring_pb2.FetchServedRequest(model=self.model, score_id=score_id)
        data = yield from self._connection.unary(
            _SERVED, request.SerializeToString(), timeout, self._doing, READ_RETRY_S
        )
        return served_of(data)

    @blocking
    def verify(self, path: str | os.PathLike[str]) -> Plan[Verification]:
        """Verify a fetched snapshot without a server.

        SnapshotInvalid names the bad file and tensor.
        """
        verification: Verification = yield Work(partial(verify, path))
        return verification


def snapshot_info(message: Any) -> SnapshotInfo:
    """Convert a `livefactor.v1.SnapshotInfo` message to a SnapshotInfo."""
    return SnapshotInfo(
        message.snapshot_id, position_of(message.position), message.root_hash, message.log_hash,
        message.size_bytes, message.created_us, message.users, message.items, message.checkpoint,
    )  # fmt: skip


def _progress(message: Any) -> SnapshotProgress:
    return SnapshotProgress(message.bytes_done, message.bytes_total, position_of(message.position))
