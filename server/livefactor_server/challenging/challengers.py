"""The challengers of one model: adds them, runs their contests, and acts on the verdicts."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from livefactor_kernels.spec.model import ModelSpec
from livefactor_server.challenging import notes as notes_file
from livefactor_server.challenging import schedule, sharing
from livefactor_server.challenging.candidates import candidates, fits, in_place_of
from livefactor_server.challenging.contest import Standing
from livefactor_server.challenging.messages import Entry, Figures, Go, Report, Task
from livefactor_server.challenging.metrics import ContestMetrics
from livefactor_server.challenging.notes import Added, Notes, Plan
from livefactor_server.challenging.process import Process
from livefactor_server.challenging.sharing import SHARE_MAX, Sharing, Terms
from livefactor_server.engine.engine import Engine
from livefactor_server.log import sealing
from livefactor_server.model import spec_codec
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import exhausted, exists, invalid, not_found, precondition
from livefactor_server.text import quoted

ADDED_MAX = 8
"""Maximum number of challengers of a model that were added by hand."""

WAIT_S = 60.0
"""Seconds that a process waits for further events or CPU time. Then it ends, to free its memory."""

RESTART_S, RESTART_S_MAX = 1.0, 600.0
"""Seconds until a process that died is started again. They double each time."""

CHAMPION, FIRST = "champion", "first"
"""The names of a champion whose spec is no candidate, and of the first spec if it is none."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is challenged.

    Attributes:
        folder: its folder.
        engine: its engine.
        snapshot: takes a snapshot of it.
        promote: gives it another spec, and returns the revision of the switch.
        start: gives an early state of its log with another spec, of logged bytes.
    """

    folder: Path
    engine: Engine
    snapshot: Callable[[], object]
    promote: Callable[[ModelSpec], int]
    start: Callable[[bytes], ModelState]


@dataclass(frozen=True, slots=True)
class Listing:
    """What a model's challengers are and how they stand.

    Attributes:
        automatic: whether the model looks for a better spec by itself, and switches to it.
        is_running: whether a contest runs now.
        report: of the running contest, or else of the last one; None before the first report.
        waiting: the names of challengers that no contest has judged yet.
        contests: number of complete contests.
        resumes_at: number of events of the log at which a contest that has paused begins again.
        behind: events of the log that the running contest has not learned.
        spent_s: CPU seconds of all contests.
        sharing: the challenger that answers a share of the users, or None.
    """

    automatic: bool
    is_running: bool
    report: Report | None
    waiting: tuple[str, ...]
    contests: int
    resumes_at: int
    behind: int
    spent_s: float
    sharing: sharing.Standing | None


class Challengers:
    """The challengers of one model.

    One thread calls `wants_process`, `start` and `poll`. Any thread may call the rest.

    Attributes:
        is_erasing: whether the log is being rewritten (`hosting/forgetting`).
    """

    def __init__(self, subject: Subject, cpu_share: float, memory_bytes_max: int) -> None:
        """Reads the notes in the model's folder. A damaged file counts as a missing one."""
        self.is_erasing: Callable[[], bool] = lambda: False
        self._subject, self._cpu_share, self._memory_bytes_max = subject, cpu_share, memory_bytes_max
        self._name = subject.engine.name
        try:
            self._notes = notes_file.load(subject.folder)
        except ValueError as error:
            logger.warning("model %s: its contests begin again: %s", self._name, error)
            self._notes = Notes()
        log = subject.engine.log
        self._log = log
        self._first_spec = spec_codec.decode(log.spec_body)
        self._lock = threading.RLock()
        self._process: Process | None = None
        self._closed = False
        self._champion = b""
        self._report: Report | None = None
        self._counted_s = 0.0
        self._waiting_since_s = 0.0
        self._rest_s, self._start_at_s = RESTART_S, 0.0
        self._drift_seen = 0
        self._sent: Go | None = None
        self._metrics = ContestMetrics(self._name)
        self._sharing: Sharing | None = None
        subject.engine.dimension.may_return = lambda: not self._notes.settled
        for each in self._notes.added:
            if each.share:
                self._share(each)

    # ------------------------------------------------------------------ any thread

    @property
    def automatic(self) -> bool:
        """Whether the model looks for a better spec by itself: it began with a mix of experts."""
        is_auto = self._first_spec.mix.learning_rate > 0
        # Backend cuda cannot switch the spec of a model.
        can_switch = not self._lacking and self._subject.engine.state.backend_name != "cuda"
        return is_auto and can_switch and not self._notes.settled

    @property
    def _lacking(self) -> str:
        """Why a contest cannot learn what the model learned, "" if it can."""
        if self.is_erasing():
            return "an erasure is in progress"
        return self._log.lacks or ("some of its records were rolled back" if self._log.rollbacks else "")

    @property
    def sharing(self) -> Sharing | None:
        """The challenger that answers a share of the users."""
        return self._sharing

    def _share(self, added: Added) -> None:
        terms = Terms(added.entry.name, added.entry.spec_body, added.share, added.salt)
        subject = self._subject
        self._sharing = Sharing(subject.engine, terms, subject.start, self._memory_bytes_max)

    def add(self, name: str, spec: ModelSpec, share: float = 0.0) -> None:
        """Adds a challenger. `share` is the share of the users that it answers, up to `SHARE_MAX`.

        Raises:
            Refused: FAILED_PRECONDITION if the spec could reject what the model accepts, if it
                serves already, or if the log lacks events. ALREADY_EXISTS if the name or
                the spec is there, or another challenger has a share. RESOURCE_EXHAUSTED if there
                are `ADDED_MAX`. INVALID_ARGUMENT if the share is out of range.
        """
        if not 0.0 <= share <= SHARE_MAX:
            raise invalid(f"share: expected 0..{SHARE_MAX}, got {share}")
        if lacking := self._lacking:
            raise precondition(f"model: {lacking}, and a challenger cannot learn the rest")
        made = in_place_of(spec, self._subject.engine.state.spec)
        if not fits(made, self._subject.engine.state.spec):
            raise precondition("spec: it could reject events that the model accepts, or has another task")
        body = spec_codec.encode(made)
        if body == self._subject.engine.state.spec_body:
            raise precondition("spec: it is the model's own")
        with self._lock:
            added = self._notes.added
            if any(each.entry.name == name or each.entry.spec_body == body for each in added):
                raise exists(f"challenger: {quoted(name)} or its spec is there already")
            if len(added) >= ADDED_MAX:
                raise exhausted(f"challengers: a model has at most {ADDED_MAX} that were added")
            if share and self._sharing is not None:
                raise exists(
                    f"challenger: {quoted(self._sharing.terms.name)} has a share of the users already"
                )
            salt = os.urandom(16).hex() if share else ""
            new = Added(Entry(name, body.hex()), share=share, salt=salt)
            self._save(replace(self._notes, added=(*added, new)))
            if share:
                self._share(new)

    def free_name(self, name: str) -> str:
        """The name, with a number behind it if a challenger has it already."""
        taken = {each.entry.name for each in self._notes.added} | set(self._tried())
        numbered = (f"{name}-{number}" for number in count(2))
        return name if name not in taken else next(each for each in numbered if each not in taken)

    def _tried(self) -> dict[str, bytes]:
        """The specs that the model tries by itself: logged bytes by name."""
        champion = self._subject.engine.state.spec
        tried = {name: spec_codec.encode(spec) for name, spec in candidates(champion).items()}
        if self._log.spec_body not in tried.values() and fits(self._first_spec, champion):
            tried[FIRST] = self._log.spec_body
        return tried

    def settle(self) -> None:
        """Ends the search: the running contest, the challengers, and contests that come back."""
        with self._lock:
            self._end_process()
            self._end_sharing()
            self._save(replace(self._notes, settled=True, added=(), plan=None))

    def spec_of(self, name: str) -> ModelSpec:
        """The spec of a challenger or a candidate.

        Raises:
            Refused: NOT_FOUND if there is none with this name.
        """
        with self._lock:
            found = {each.entry.name: each.entry.spec_body for each in self._notes.added} | self._tried()
        if name not in found:
            raise not_found(f"challenger: {quoted(name)} does not exist; there are {', '.join(found)}")
        return spec_codec.decode(found[name])

    def listing(self) -> Listing:
        """How the challengers stand."""
        with self._lock:
            notes, running = self._notes, self._process is not None
            report = self._report if self._report is not None and notes.plan is not None else notes.last
            learned = self._report.learned if running and self._report is not None else 0
            return Listing(
                automatic=self.automatic,
                is_running=running,
                report=report,
                waiting=tuple(each.entry.name for each in notes.added if not each.judged),
                contests=notes.contests,
                resumes_at=notes.plan.resume_at if notes.plan is not None and not running else 0,
                behind=max(0, self._subject.engine.state.events - learned) if running else 0,
                spent_s=notes.spent_s,
                sharing=None if self._sharing is None else self._sharing.standing(),
            )

    @property
    def pid(self) -> int | None:
        """The id of the running process, or None."""
        process = self._process
        return None if process is None else process.pid

    def close(self, keeps: bool = False) -> None:
        """Ends the process for good. The contest begins again after a restart.

        With `keeps` the challenger with a share is kept for the next start.
        """
        with self._lock:
            self._closed, sharing = True, self._sharing
            self._end_process()
            self._end_sharing()
        if sharing is not None and keeps:
            sharing.keep(self._subject.folder)
        self._metrics.close()

    # ------------------------------------------------------------------ the contests' thread

    def wants_process(self) -> bool:
        """Whether a process should start. It begins the next contest if one is due."""
        if self._closed or self._process is not None or time.monotonic() < self._start_at_s:
            return False
        if self._lacking:
            # A contest learns every event again.
            return False
        if self._notes.plan is None:
            self._begin()
        plan = self._notes.plan
        return plan is not None and schedule.is_ready(plan, self._subject.engine.state.events)

    def _begin(self) -> None:
        """Begins a contest if one is due."""
        engine = self._subject.engine
        drift = engine.observer.drift_revision
        notes, has_drifted = self._notes, drift > self._drift_seen
        plan = schedule.next_plan(notes, engine.state.events, self.automatic, has_drifted)
        if plan is None:
            return
        self._drift_seen = drift
        if plan.follows:
            self._take_snapshot()
            plan = replace(plan, judge_from=engine.state.events)
        with self._lock:
            self._save(replace(self._notes, plan=plan))
        why = ", because drift was found" if has_drifted else ""
        logger.info("model %s: a contest judges from event %d on%s", self._name, plan.judge_from, why)

    def _take_snapshot(self) -> None:
        """Takes a snapshot of the champion, from which a contest can start."""
        try:
            self._subject.snapshot()
        except Exception as error:
            # The contest learns the champion from an earlier one.
            logger.info("model %s: no snapshot for the contest: %s", self._name, error)

    def start(self) -> None:
        """Starts the process of the contest."""
        with self._lock:
            plan = self._notes.plan
            if self._closed or plan is None:
                # The model was deleted, or its search was settled.
                return
            assert self._process is None
            state = self._subject.engine.state
            if not plan.entries or plan.entries[0].spec_body != state.spec_body:
                plan = replace(plan, entries=self._entries(plan))
                self._save(replace(self._notes, plan=plan))
            if len(plan.entries) == 1:
                # Nothing is affordable, or the spec has been switched to the only challenger.
                added = tuple(replace(each, judged=True) for each in self._notes.added)
                self._save(replace(self._notes, added=added, plan=None, last_events=state.events))
                return
            task = Task(
                self._name, str(self._subject.folder), plan.entries, plan.judge_from, self._cpu_share,
                self._memory_bytes_max, key.secret.hex() if (key := sealing.present()) else "",
            )  # fmt: skip
            self._champion, self._report, self._sent = state.spec_body, None, None
            self._counted_s, self._waiting_since_s = 0.0, 0.0
            try:
                self._process = Process(task)
            except OSError as error:
                self._rest(str(error))
                return
            self._metrics.contestants(len(plan.entries))
            self._go()

    def _entries(self, plan: Plan) -> tuple[Entry, ...]:
        """The contestants of a contest that begins, the champion first."""
        notes, champion = self._notes, self._subject.engine.state.spec_body
        tried = {each.entry.name: each.entry.spec_body for each in notes.added}
        known = self._tried()
        own = next((name for name, body in {**known, **tried}.items() if body == champion), CHAMPION)
        if self.automatic:
            left_s = self._allowed() * self._event_s(own)
            costs = {name: notes.event_s.get(name, 0.0) for name in known}
            some = schedule.affordable(costs, plan, self._event_s(own), left_s)
            # A candidate that was added by hand, too, is in the contest once.
            fresh = [name for name in some if known[name] not in tried.values()]
            tried |= {name: known[name] for name in fresh}
        others = [Entry(name, body.hex()) for name, body in tried.items() if body != champion]
        return (Entry(own, champion.hex()), *others)

    def _event_s(self, name: str) -> float:
        return self._notes.event_s.get(name, 0.0)

    def _allowed(self) -> float:
        """What is left of the allowance, in events that the champion learns."""
        plan, events = self._notes.plan, self._subject.engine.state.events
        name = plan.entries[0].name if plan is not None and plan.entries else CHAMPION
        event_s = self._event_s(name)
        spent = self._notes.spent_s - self._counted_s
        return schedule.allowance(events) - (spent / event_s if event_s else 0.0)

    def _go(self) -> None:
        plan, process = self._notes.plan, self._process
        assert plan is not None and process is not None
        order = Go(self._subject.engine.state.revision, None if plan.by_hand else self._allowed())
        if order != self._sent:
            process.go(order)
            self._sent = order

    def poll(self) -> None:
        """Reads the reports of the running process, and acts on them."""
        verdict = None
        with self._lock:
            process = self._process
            if process is None:
                return
            has_ended = process.has_ended
            try:
                for report in process.reports():
                    self._note(report)
            except ValueError as error:
                self._end_process()
                self._rest(f"its report is malformed: {error}")
                return
            if self._report is not None and self._report.over:
                verdict = self._conclude(self._report)
            elif lacking := self._lacking:
                self._end_process()
                logger.warning("model %s: its contest ends: %s", self._name, lacking)
            elif has_ended:
                self._end_process()
                self._rest("it ended too early")
            elif self._subject.engine.state.spec_body != self._champion:
                # The spec was switched by hand: the contest has another champion.
                self._end_process()
            elif self._has_waited():
                self._pause()
            else:
                self._go()
        if verdict is not None:
            self._promote(*verdict)

    def _note(self, report: Report) -> None:
        """Takes a report in."""
        seconds = report.cpu_s - self._counted_s
        self._counted_s = report.cpu_s
        self._notes = self._notes.with_cost(report, seconds)
        self._report, self._rest_s = report, RESTART_S
        running = Standing.CHAMPION, Standing.RUNNING
        left = sum(each.standing in running for each in report.figures)
        behind = self._subject.engine.state.events - report.learned
        self._metrics.observe(0 if report.over else left, behind, seconds)
        self._metrics.figures(report.figures)
        if not report.is_waiting:
            self._waiting_since_s = 0.0
        elif not self._waiting_since_s:
            self._waiting_since_s = time.monotonic()

    def _has_waited(self) -> bool:
        since_s = self._waiting_since_s
        return since_s > 0 and time.monotonic() - since_s > WAIT_S

    def _pause(self) -> None:
        """Ends a process that waits for events. It starts again when its round can end.

        If it waits for its allowance, it starts again when that is enough for the whole contest,
        which begins again.
        """
        report, plan = self._report, self._notes.plan
        assert report is not None and plan is not None
        resume_at = report.round_end
        if report.is_too_dear:
            own_s = report.figures[0].event_s
            resume_at = max(resume_at, schedule.affordable_at(plan, report, self._notes.spent_s, own_s))
        plan = replace(plan, resume_at=resume_at)
        self._end_process()
        self._save(replace(self._notes, plan=plan))

    def _conclude(self, report: Report) -> tuple[Entry, Figures] | None:
        """Ends a contest. Returns the winner if the model is to be switched to it."""
        plan, events = self._notes.plan, self._subject.engine.state.events
        assert plan is not None
        self._end_process()
        self._save(self._notes.with_end(report, events))
        self._report = None
        self._metrics.verdict("won" if report.winner else "stayed")
        if not report.winner:
            logger.info("model %s: the contest ended, and the spec stays", self._name)
            return None
        winner = next(each for each in plan.entries if each.name == report.winner)
        figures = next(each for each in report.figures if each.name == report.winner)
        logger.warning(
            "model %s: challenger %s is better by %.4g (standard error %.4g; champion %.4g) on %d events",
            self._name, winner.name, figures.difference, figures.error or 0.0, report.figures[0].mean,
            figures.events,
        )  # fmt: skip
        return (winner, figures) if self.automatic else None

    def _promote(self, winner: Entry, figures: Figures) -> None:
        try:
            revision = self._subject.promote(spec_codec.decode(winner.spec_body))
        except Exception:
            logger.exception("model %s: the switch to %s failed; its spec stays", self._name, winner.name)
            self._metrics.verdict("failed")
            return
        logger.warning("model %s: it has the spec of %s since revision %d", self._name, winner.name, revision)

    def _end_sharing(self) -> None:
        if self._sharing is not None:
            self._sharing.close()
            self._sharing = None

    def _end_process(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None
            self._metrics.observe(0, 0, 0.0)

    def _rest(self, reason: str) -> None:
        """Waits before the process is started again."""
        logger.warning(
            "model %s: the process of its contest: %s; it starts again in %.0f s",
            self._name,
            reason,
            self._rest_s,
        )
        self._start_at_s = time.monotonic() + self._rest_s
        self._rest_s = min(2 * self._rest_s, RESTART_S_MAX)

    def _save(self, notes: Notes) -> None:
        """Takes new notes over. If the disk refuses them, they are in memory only."""
        self._notes = notes
        try:
            notes_file.save(self._subject.folder, notes)
        except OSError as error:
            logger.warning("model %s: the notes of its contests were not written: %s", self._name, error)
