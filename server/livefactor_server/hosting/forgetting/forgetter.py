"""Carries out the erasures of one model, one at a time, in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from livefactor.snapshots.format import Manifest
from livefactor_server.changes import EraseChange, EvidenceChange
from livefactor_server.changes.history.erase import Erased, Evidence, Subjects
from livefactor_server.engine.engine import Engine
from livefactor_server.engine.promotion import Erasing
from livefactor_server.hosting.forgetting import archive as archives
from livefactor_server.hosting.forgetting import job as jobs
from livefactor_server.hosting.forgetting import survey as surveys
from livefactor_server.hosting.forgetting.archive import Archived
from livefactor_server.hosting.forgetting.beginning import beginning_without
from livefactor_server.hosting.forgetting.job import Job
from livefactor_server.hosting.forgetting.survey import Cost
from livefactor_server.hosting.keeper import Keeper
from livefactor_server.log import erasing
from livefactor_server.log.disk import FileIO
from livefactor_server.log.store import LogError
from livefactor_server.model.state import ModelState
from livefactor_server.snapshots import erasures as reports
from livefactor_server.snapshots import replay
from livefactor_server.snapshots.erasures import Report
from livefactor_server.statuses import Refused, later, precondition, unavailable

RETRY_S = 30.0
"""Seconds after which a stage that failed is tried again."""

REST_S = 0.2
"""Seconds after which it is tried again if something else was in progress."""

logger = logging.getLogger(__name__)


class Standing(NamedTuple):
    """How far a job is: the name of a stage, and done of total in it."""

    stage: str
    done: int
    total: int


class Way(NamedTuple):
    """How the replay begins: with a snapshot, with archived segments, or with the log alone."""

    snapshot: Manifest | None = None
    archived: Archived | None = None


class Unstarted(Exception):
    """The work cannot begin. The text says why."""


class Stopped(Exception):
    """The server stops. The next start goes on with the job."""


@dataclass(slots=True)
class Running:
    """A job in progress. `outcome` gets the report, or the first failure."""

    subjects: Subjects
    standing: Standing = field(default_factory=lambda: Standing("erase", 0, 1))
    outcome: Future[Report] = field(default_factory=Future)


class Forgetter:
    """The erasures of one model. Any thread may call the methods.

    Attributes:
        is_sharing: whether a challenger answers a share of the users.
        is_contesting: whether a contest reads the log. It ends soon after a job has begun.
    """

    def __init__(self, folder: Path, engine: Engine, keeper: Keeper, io: FileIO | None = None) -> None:
        """`io` is the disk of the log; None means the files of the operating system."""
        self._folder, self._engine, self._keeper, self._io = folder, engine, keeper, io or FileIO()
        keeper.is_forgetting = lambda: self._running is not None or (folder / jobs.FILE).exists()
        self.is_sharing: Callable[[], bool] = lambda: False
        self.is_contesting: Callable[[], bool] = lambda: False
        self._lock = threading.Lock()
        self._running: Running | None = None
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    @property
    def running(self) -> Running | None:
        """The job in progress, or None."""
        return self._running

    def cost(self, subjects: Subjects, check: Callable[[], None] = lambda: None) -> Cost:
        """What it costs to forget. It changes nothing. `check` is called again and again.

        Raises:
            Refused: FAILED_PRECONDITION if the model cannot forget.
        """
        self._check(subjects)
        log = self._engine.log
        way = self._way(subjects, check)
        try:
            found = surveys.survey(log, subjects, log.last_revision, check, way.archived)
        except LogError as error:
            raise precondition(f"forget: {error}") from None
        count = len(self._keeper.store.ids())
        since = way.snapshot.revision if way.snapshot is not None else 0
        return surveys.cost(self._engine, found, count, since, way.archived)

    def _way(self, subjects: Subjects, check: Callable[[], None] = lambda: None) -> Way:
        """With what the replay would begin.

        Raises:
            Refused: FAILED_PRECONDITION if the state without the subjects cannot be computed.
        """
        log = self._engine.log
        if not log.lacks:
            return Way()
        try:
            snapshot, known = beginning_without(
                self._folder, log, self._engine.state.spec_body, subjects, check
            )
            if snapshot is not None:
                return Way(snapshot)
            archived, missing = archives.lacking(log, self._keeper.archive, self._folder)
        except (LogError, OSError) as error:
            raise precondition(f"forget: {error}") from None
        if archived is not None:
            return Way(None, archived)
        raise precondition(
            f"forget: {log.lacks}, so the state without the subjects cannot be computed: {known}; and {missing}. "
            "Push the events without them to a new model, or put the missing segments back"
        )

    def _check(self, subjects: Subjects) -> None:
        log, state = self._engine.log, self._engine.state
        if log.switches_from:
            raise later("log: the server is still reading its earlier part after the start")
        if state.backend_name == "cuda":
            raise precondition("forget: backend cuda cannot forget (docs/gpu.md)")
        if self.is_sharing():
            raise precondition("forget: a challenger answers a share of the users; settle the model first")
        if subjects.items and state.spec.privacy.epsilon:
            # Every release names all items, and without a row of it the sum is another one.
            raise precondition("forget: a model with privacy cannot forget items, only users")
        if not subjects:
            raise precondition("forget: nobody is named")

    def begin(self, subjects: Subjects) -> Running:
        """Begins to forget, or gives the job in progress if it has the same subjects.

        Raises:
            Refused: as `cost`, or RESOURCE_EXHAUSTED if another job is in progress. If the replay
                has no beginning, the outcome says so, and nothing was changed.
        """
        self._check(subjects)
        with self._lock:
            if self._running is not None:
                if self._running.subjects == subjects:
                    return self._running
                raise later("forget: another erasure is in progress")
            job = Job(subjects, self._engine.log.last_revision)
            job.save(self._folder)
            return self._start(job)

    def resume(self) -> None:
        """Goes on with a job that an earlier process left.

        Raises:
            ValueError: its file is damaged.
        """
        job = Job.load(self._folder)
        if job is not None:
            logger.warning("model %s: an erasure goes on after a restart", self._engine.name)
            with self._lock:
                self._start(job)

    def follow(self) -> None:
        """Takes subjects out of this server's files that the leader has erased already."""
        log = self._engine.log
        for body in log.acts.erased.values():
            erase = Erased.from_body(body).erase
            if (named := log.acts.erases.get(erase)) and self._running is None:
                segments = tuple(each.path.name for each in log.segments if each.first <= erase)
                job = Job(EraseChange.from_log(named).subjects, erase - 1, segments)
                job.save(self._folder)
                with self._lock:
                    self._start(job)

    def stop(self) -> None:
        """Ends the thread. A job goes on at the next start."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _start(self, job: Job) -> Running:
        self._running = running = Running(job.subjects)
        self._thread = threading.Thread(
            target=self._work, args=(job, running), name=f"forget-{self._engine.name}", daemon=True
        )
        self._thread.start()
        return running

    # ------------------------------------------------------------------ the thread of the job

    def _work(self, job: Job, running: Running) -> None:
        while True:
            try:
                made = self._carry_out(job, running)
                break
            except Unstarted as error:
                # Nothing was logged or changed.
                jobs.end(self._folder)
                with self._lock:
                    self._running = None
                self._fail(running, precondition(f"forget: {error}"))
                return
            except Stopped:
                self._fail(running, unavailable("server: draining; the erasure goes on at the next start"))
                return
            except Exception as error:
                if self._stopped.is_set():
                    self._fail(
                        running, unavailable("server: draining; the erasure goes on at the next start")
                    )
                    return
                self._note(error)
                self._fail(running, error if isinstance(error, Refused) else later(_FAILED))
            if self._stopped.wait(RETRY_S):
                return
        with self._lock:
            self._running = None
        if not running.outcome.done():
            running.outcome.set_result(made)

    @staticmethod
    def _fail(running: Running, refusal: Refused) -> None:
        if not running.outcome.done():
            running.outcome.set_exception(refusal)

    def _note(self, error: Exception) -> None:
        text = error.text if isinstance(error, Refused) else error
        logger.warning(
            "model %s: the erasure is not finished; the next try is in %d s: %s",
            self._engine.name, RETRY_S, text, exc_info=not isinstance(error, Refused),
        )  # fmt: skip

    def _tick(self) -> None:
        if self._stopped.is_set():
            raise Stopped

    def _carry_out(self, job: Job, running: Running) -> Report:
        log = self._engine.log
        # After a restart the earlier part tells what was done.
        for _ in log.check_earlier() if log.switches_from else ():
            self._tick()
        erase = next((at for at in sorted(log.acts.erases) if at > job.after), None)
        if erase is None:
            job = self._with_archive(job, running)
            erase = self._engine.append(EraseChange.of(job.subjects))
        erased = self._erased(erase) or self._replayed(job, running, erase)
        job = Job.load(self._folder) or job
        job = self._without_snapshots(job, running, erased)
        self._rewrite(job, running, erase)
        return self._reported(job, running, erase, erased)

    def _with_archive(self, job: Job, running: Running) -> Job:
        """Puts archived segments back, if the replay needs them.

        Raises:
            Unstarted: they cannot be put back. The log is as it was.
        """
        log = self._engine.log
        archives.clean(replay.log_folder(self._folder))
        # A retention that began before the job ends first.
        with self._alone():
            try:
                archived = self._way(job.subjects, self._tick).archived
                if archived is None:
                    return job
                running.standing = Standing("archive", 0, len(archived.segments))
                names = archives.put_back(log, archived)
            except (LogError, OSError) as error:
                raise Unstarted(f"the archived segments cannot be put back: {error}") from error
            except Refused as refusal:
                raise Unstarted(refusal.text.removeprefix("forget: ")) from None
        job = replace(job, put_back=names)
        job.save(self._folder)
        return job

    def _erased(self, erase: int) -> int | None:
        erased = self._engine.log.acts.erased.items()
        return next((at for at, body in erased if Erased.from_body(body).erase == erase), None)

    def _replayed(self, job: Job, running: Running, erase: int) -> int:
        """Swaps in the state without the subjects. Returns the revision of the ERASED record."""
        engine, log = self._engine, self._engine.log
        found = surveys.survey(log, job.subjects, erase - 1, self._tick)
        # The one before the ERASE record ended early, and needs less room.
        before = max(each.first for each in log.segments if each.first < erase)
        firsts = {*found.segments, before, erase}
        names = [each.path.name for each in log.segments if each.first in firsts]
        job = replace(job, segments=tuple(names))
        job.save(self._folder)

        def tell(done: int, total: int) -> None:
            self._tick()
            running.standing = Standing("replay", done, total)

        erasures = (*replay.erasures_at(log, log.last_revision), (erase, job.subjects))

        def start(body: bytes) -> ModelState:
            state = replay.start_of(self._folder, log, engine.state.backend_name, body, erasures=erasures)
            stores = (replay.base_store(self._folder), self._keeper.store) if log.lacks else ()
            begun = [each for store in stores for each in store.ids() if int(each[:20]) == state.revision]
            replace(job, began_with="".join(begun[-1:])).save(self._folder)
            return state

        act = Erasing(Erased(erase, found.records, found.rows), erasures)
        with self._alone():
            pass
        return engine.promote(engine.state.spec, start, tell, act)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Waits until no promotion is in progress, and keeps others from starting."""
        while True:
            self._tick()
            with self._engine.no_promotion() as alone:
                if alone:
                    yield
                    return
            time.sleep(REST_S)

    def _without_snapshots(self, job: Job, running: Running, erased: int) -> Job:
        """Removes the snapshots that are older than the state without the subjects."""
        running.standing = Standing("snapshot", 0, 1)
        while self.is_contesting():
            self._tick()
            time.sleep(REST_S)
        stores = [self._keeper.store, replay.challenger_store(self._folder)]
        older = {each for store in stores for each in store.ids() if int(each[:20]) < erased}
        older.discard(job.began_with)
        job = replace(job, snapshots=tuple(sorted({*job.snapshots, *older})))
        job.save(self._folder)
        self._keeper.renew(erased, {job.began_with})
        stores[1].remove_before(erased)
        tails = erasing.destroy_broken(self._io, replay.log_folder(self._folder))
        job = replace(job, tails=(*job.tails, *tails))
        job.save(self._folder)
        return job

    def _rewrite(self, job: Job, running: Running, erase: int) -> None:
        """Takes the subjects out of the segments, and at last out of the ERASE record."""
        log, folder = self._engine.log, replay.log_folder(self._folder)
        erasing.clean(self._io, folder)
        segments = [each for each in log.segments if each.path.name in job.segments]
        take = partial(surveys.left_of, subjects=job.subjects, erased_at=erase)
        for number, segment in enumerate(segments):
            running.standing = Standing("rewrite", number, len(segments))

            with self._alone():
                erasing.rewrite(log, self._io, segment, take, erase)
        log.forget(erase)

    def _reported(self, job: Job, running: Running, erase: int, erased: int) -> Report:
        """Writes the report, logs its hash, and ends the job."""
        running.standing = Standing("report", 0, 1)
        log, path = self._engine.log, reports.path_of(self._folder, erase)
        if reports.evidence(log).get(erase) and path.exists():
            jobs.end(self._folder)
            return Report.from_json(path.read_bytes())
        taken_over, left = self._rewrite_archive(job, erase)
        said = Erased.from_body(log.acts.erased[erased])
        manifest = self._keeper.store.list()[-1]
        made = Report(
            str(log.lineage), erase, erased, said.records, said.rows, manifest.revision,
            manifest.log_hash.hex(), manifest.root_hash.hex(),
            reports.learned_root(manifest.revision, manifest.tensors).hex(), job.segments, job.snapshots,
            job.tails, left, time.time_ns() // 1000, job.began_with, job.put_back, taken_over,
        )  # fmt: skip
        if self._engine.leader:
            # The report is the leader's, and so is the record of its hash.
            jobs.end(self._folder)
            return made
        digest = reports.write(self._folder, made)
        self._engine.append(EvidenceChange(Evidence(erase, digest).to_body()))
        jobs.end(self._folder)
        logger.info(
            "model %s: the erasure at revision %d is finished; %d rows of %d records are gone",
            self._engine.name, erase, made.rows, made.records,
        )  # fmt: skip
        return made

    def _rewrite_archive(self, job: Job, erase: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Takes the subjects out of archived segments that the log has.

        Returns the names of those that were rewritten, and the places of those that the log lacks
        and that name a subject, or cannot be read.
        """
        archive, log = self._keeper.archive, self._engine.log
        if archive is None:
            return (), ()
        changed = archives.take_over(log, archive)
        return changed, tuple(archives.naming(log, archive, job.subjects, erase, self._tick))


_FAILED = "forget: a stage failed; see the server's log; it is tried again"
