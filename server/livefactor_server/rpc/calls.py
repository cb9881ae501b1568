"""The state that the handlers of all services share: the models, the limits and the lanes."""

from __future__ import annotations

import os
from dataclasses import dataclass

from livefactor.wire import limits
from livefactor_kernels.spec.presets import DEFAULT_PRESET
from livefactor_server.engine.answering.served import Served
from livefactor_server.hosting.forgetting.job import is_unfinished
from livefactor_server.hosting.host import DEFAULT_MODEL, Hosted, Hosting
from livefactor_server.rpc.guards import Call
from livefactor_server.rpc.lanes import Lane
from livefactor_server.rpc.loop import Loop
from livefactor_server.rpc.positions import Positions
from livefactor_server.rpc.streaming.streams import Streams
from livefactor_server.statuses import unavailable

WAITING_BYTES_MAX = 64 << 20
"""Maximum bytes of the messages of the calls that wait for a slot of a lane."""

OVERLOAD_SCORES_A_CORE = 2
"""Maximum number of Score calls that run at a time under overload, a core. They compute all the
time, so with more of them each ends later, and not more of them end.
"""

CONTROL_THREADS = 8
"""Threads of calls that describe or list something."""

MODEL_THREADS = 2
"""Threads of calls that create, restore or delete models, or that hash all rows of one."""

FOLLOWERS_MAX = 16
"""Maximum number of calls that copy or follow a model, and of their threads. Further ones are
refused.
"""

PROMOTION_THREADS = 2
"""Threads of calls that promote a spec. Each learns a whole log."""


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """Limits of calls. They do not affect the state of a model.

    Attributes:
        batch_events_max: maximum number of rows per batch.
        streams_max: maximum number of open update streams.
        update_slots: maximum number of unary calls of the update service at a time.
        score_slots: maximum number of Score calls at a time.
        snapshot_slots: maximum number of Snapshot calls at a time.
        fetch_slots: maximum number of FetchSnapshot calls at a time.
        score_users_max: maximum number of users per Score call.
        score_rows_max: maximum number of scores per Score call, and of ids in each of its lists.
        score_pairs_max: maximum number of pairs of a user and an item that a top-k call compares. A
            call for one user is not limited.
        waiting_max: maximum number of calls of a kind that wait for a slot, and of calls that wait
            for a `min_position`.
        open_calls_max: maximum number of open calls of a server. Health and administration have as
            many of their own.
        message_wait_s: seconds that a call may wait for its message. An update stream may be idle.
        write_wait_s: seconds that a peer may leave a message of a stream unread.
        stream_idle_s: an update stream without a batch for so many seconds may be ended to make
            room for another one.
        default_preset: preset of new models without a spec.
        served_bytes_max: maximum bytes of kept answers to Score calls; 0 keeps none.
        served_s: seconds for which they are kept.
    """

    batch_events_max: int = limits.BATCH_ROWS_MAX
    streams_max: int = 256
    update_slots: int = 64
    score_slots: int = 16
    snapshot_slots: int = 4
    fetch_slots: int = 16
    score_users_max: int = limits.SCORE_USERS_MAX
    score_rows_max: int = limits.SCORE_ROWS_MAX
    score_pairs_max: int = limits.SCORE_PAIRS_MAX
    waiting_max: int = 1024
    open_calls_max: int = 4096
    message_wait_s: float = 10.0
    write_wait_s: float = 30.0
    stream_idle_s: float = 10.0
    default_preset: str = DEFAULT_PRESET
    served_bytes_max: int = 64 << 20
    served_s: float = 3600.0


class Calls:
    """The state that handlers share. Only the loop's thread may use the lanes, `positions` and
    `streams`, but for what they say otherwise.
    """

    def __init__(self, hosting: Hosting, settings: ServiceSettings, loop: Loop) -> None:
        self.hosting = hosting
        self.settings = settings
        self.loop = loop
        self.served = Served(
            settings.served_bytes_max,
            settings.served_s,
            folder=hosting.data / "served",
            is_lost=lambda model: is_unfinished(hosting.data / "models" / model),
        )
        self.updates = self._lane("updates", settings.update_slots)
        self.scores = self._lane("scores", settings.score_slots, OVERLOAD_SCORES_A_CORE * _cores())
        self.snapshots = self._lane("snapshots", settings.snapshot_slots)
        self.fetches = self._lane("fetches", settings.fetch_slots)
        self.models = self._lane("models", MODEL_THREADS)
        self.promotions = self._lane("promotions", PROMOTION_THREADS)
        self.control = self._lane("control", CONTROL_THREADS)
        self.follows = Lane(loop, "followers", FOLLOWERS_MAX, 0, 0)
        self.positions = Positions(loop, settings.waiting_max)
        self.streams = Streams(settings.streams_max, settings.stream_idle_s, loop)
        # It runs what would block the loop: large batches, and waits for room in a queue.
        self.stream_threads = self._lane("streams", settings.streams_max)

    def forget_served(self, model: str) -> None:
        """Drops the kept answers of a model. Any thread may call it.

        Raises:
            Refused: UNAVAILABLE if their file could not be overwritten.
        """
        try:
            self.served.forget(model)
        except OSError as error:
            raise unavailable("disk: kept answers could not be removed; send the call again") from error

    def model(self, call: Call, name: str) -> Hosted:
        """The model with this name, which the call may use. "" means "default".

        Raises:
            Refused: PERMISSION_DENIED if the grant of the call does not cover it, and as
                `Hosting.get`.
        """
        call.allow(name or DEFAULT_MODEL)
        hosted = self.hosting.get(name, call.grant.covers)
        call.has_model = True
        return hosted

    def _lane(self, name: str, slots: int, overload_slots: int | None = None) -> Lane:
        waiting_max = self.settings.waiting_max
        return Lane(self.loop, name, slots, waiting_max, WAITING_BYTES_MAX, overload_slots)


def _cores() -> int:
    return len(os.sched_getaffinity(0))
