"""The whole: sources in threads, one intake, one producer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from time import monotonic
from typing import Any, NamedTuple

from livefactor.errors import MissingPackage
from livefactor.ingest.config import IngestConfig, SourceConfig
from livefactor.ingest.dead_letters import DeadLetters, replay_done, replay_file
from livefactor.ingest.intake import Counts, Intake, Message, batch_settings
from livefactor.ingest.journal import Journal
from livefactor.ingest.sources import Say, Source, SourceError, Stopped
from livefactor.ingest.sources.files import FileSource, ReplaySource
from livefactor.pushing.producer import Producer
from livefactor.pushing.sending import ProducerStatus

QUEUE_MAX = 16
"""Messages that wait between the sources and the intake."""

WAITING_MAX = 1 << 20
"""Events that may wait for their time or their counterpart. No message is taken while they do."""

LINGER_S = 0.05
"""A batch that is not full is pushed after so many seconds."""

STATUS_S = 10.0
SERVER_S = 86_400.0
SOURCES_END_S = 10.0


class Status(NamedTuple):
    """What an ingester did so far, and what is left. behind: of each source, with its unit."""

    counts: Counts
    waiting: int
    behind: dict[str, tuple[int | None, str]]


class Ingester:
    """Ingests what a configuration says, until it is told to stop.

    state: a folder of this ingester alone, for its journal and its dead letters. replay: read the
    dead letters once, and nothing else. say: gets what an operator should know. on_status: is
    called every few seconds. connection: further arguments of `Producer`. Raises ConfigError,
    JournalError, SourceError, MissingPackage, and the errors of `Producer`.
    """

    def __init__(
        self,
        config: IngestConfig,
        state: Path,
        *,
        replay: bool = False,
        say: Say = print,
        on_status: Callable[[Status], None] | None = None,
        **connection: Any,
    ) -> None:
        self._config, self._say, self._on_status = config, say, on_status
        self._stop = Event()
        self._queue: Queue[Message] = Queue(QUEUE_MAX)
        self._failures: list[Exception] = []
        self._journal = Journal(state)
        self._replayed = replay_file(state) if replay else None
        newest = self._journal.entries[-1].letters if self._journal.entries else []
        journaled = [] if self._replayed else newest
        self._letters = DeadLetters(state, config.dead_letters_mb_max, journaled)
        try:
            self._sources: dict[str, Source] = self._made(config, replay)
            self._producer = Producer(
                config.target,
                config.producer,
                model=config.model,
                batch=batch_settings(config),
                timeout=None,
                # A server that is away is waited for, like a broker.
                connect_s=SERVER_S,
                on_wait=self._server_away,
                # Rejected rows become dead letters, with their origins.
                on_reject=lambda rejects: None,
                **connection,
            )
        except BaseException:
            self._letters.close()
            self._journal.close()
            raise

    def stop(self) -> None:
        """Have `run` push what it has read and return. It may be called from any thread."""
        self._stop.set()

    def run(self, until_idle_s: float | None = None) -> Counts:
        """Ingest until `stop`, or until nothing came for `until_idle_s` seconds."""
        try:
            intake = Intake(self._config, self._journal, self._letters, self._producer)
            threads = [
                Thread(target=self._read, args=(source, intake), name=f"ingest-{name}", daemon=True)
                for name, source in self._sources.items()
            ]
            for thread in threads:
                thread.start()
            try:
                self._loop(intake, until_idle_s)
            finally:
                self._stop.set()
            for thread in threads:
                thread.join(SOURCES_END_S)
            if self._failures:
                raise self._failures[0]
            while not self._queue.empty():
                intake.take(self._queue.get(), monotonic())
            intake.finish()
            self._end_replay(intake)
            return intake.counts
        finally:
            self._stop.set()
            self._producer.close(timeout=5.0)
            self._letters.close()
            self._journal.close()

    def _loop(self, intake: Intake, until_idle_s: float | None) -> None:
        pushed = told = arrived = monotonic()
        while not self._stop.is_set() and not self._failures:
            now = monotonic()
            if intake.waiting < WAITING_MAX:
                try:
                    message = self._queue.get(timeout=LINGER_S)
                except Empty:
                    pass
                else:
                    arrived = now = monotonic()
                    intake.take(message, now)
            else:
                self._stop.wait(LINGER_S)
            whole = now - pushed < LINGER_S
            intake.pump(now, whole=whole)
            if not whole:
                pushed = now
            if now - told >= STATUS_S and self._on_status:
                self._on_status(self.status(intake))
                told = now
            is_quiet = self._queue.empty() and not intake.waiting
            if (
                isinstance(source := self._sources.get("replay"), ReplaySource)
                and source.is_done
                and is_quiet
            ):
                return
            if (
                until_idle_s is not None
                and is_quiet
                and now - arrived >= until_idle_s
                and not self._is_behind()
            ):
                return

    def status(self, intake: Intake) -> Status:
        """What was done and what is left."""
        behind = {name: (source.behind(), source.unit) for name, source in self._sources.items()}
        return Status(intake.counts, intake.waiting, behind)

    def _is_behind(self) -> bool:
        # A source that does not know yet, such as that of a broker which is away, may be behind.
        return any(source.behind() != 0 for source in self._sources.values())

    def _made(self, config: IngestConfig, replay: bool) -> dict[str, Source]:
        if replay:
            return {} if self._replayed is None else {"replay": ReplaySource(self._replayed)}
        return {source.name: make_source(source, config.folder) for source in config.sources}

    def _end_replay(self, intake: Intake) -> None:
        source = self._sources.get("replay")
        if not isinstance(source, ReplaySource) or not source.is_done or self._replayed is None:
            return
        for name in source.sources:
            intake.forget(source.partition(name))
        intake.finish()
        place = replay_done(self._replayed)
        self._say(f"the dead letters were read again; {place} has them as they were")

    def _read(self, source: Source, intake: Intake) -> None:
        try:
            source.run(self._put, intake.resume, self._stop, self._say)
        except Stopped:
            pass
        except ModuleNotFoundError as error:
            self._failures.append(
                MissingPackage(f'this source needs {error.name}: pip install "livefactor[ingest]"')
            )
        except Exception as error:
            self._failures.append(error)

    def _put(self, message: Message, *, wait: bool = True) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(message, timeout=LINGER_S if wait else None, block=wait)
                return True
            except Full:
                if not wait:
                    return False
        raise Stopped

    def _server_away(self, status: ProducerStatus) -> None:
        self._say(f"waits for the server {self._config.target}: {status}")


def make_source(source: SourceConfig, folder: Path) -> Source:
    """The source of a configuration. folder: where relative paths begin. Raises SourceError."""
    if source.kind == "file":
        return FileSource(source, folder)
    if source.kind == "http":
        from livefactor.ingest.sources.webhook import WebhookSource

        return WebhookSource(source)
    if source.kind == "kafka":
        from livefactor.ingest.sources.kafka import KafkaSource

        return KafkaSource(source)
    if source.kind == "nats":
        from livefactor.ingest.sources.nats import NatsSource

        return NatsSource(source)
    if source.kind == "redis":
        from livefactor.ingest.sources.redis import RedisSource

        return RedisSource(source)
    raise SourceError(f"source {source.name!r}: kind {source.kind!r} is not known")
