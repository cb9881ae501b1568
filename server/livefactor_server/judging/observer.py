"""Runs the judge beside an engine. It logs and counts the findings and, if enabled, holds updates.

An exception in the judge is logged and ends judging until a restart. The engine continues.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from livefactor_server.changes import Record
from livefactor_server.judging import drift
from livefactor_server.judging.hold import Hold, HoldFile
from livefactor_server.judging.judge import DRIFT, Judge, JudgeSettings
from livefactor_server.judging.prometheus import DRIFTS, WARNINGS
from livefactor_server.judging.report import Event, Report
from livefactor_server.judging.scoring import Reading
from livefactor_server.judging.screening import Screen, ScreenSettings
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import Refused, precondition

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ObserverSettings:
    """Settings of an observer.

    Attributes:
        judge: how much is judged.
        hold: stop updates when a bound is violated.
        tensorboard: the folder for event files; None writes none.
        quarantine: which batches wait for a decision; None holds none.
    """

    judge: JudgeSettings = field(default_factory=JudgeSettings)
    hold: bool = False
    tensorboard: Path | None = None
    quarantine: ScreenSettings | None = None


class Observer:
    """Judges one model.

    The APPLY stage calls `before` and `after`. Any thread may call the rest.

    Attributes:
        screen: decides which batches wait in quarantine. None holds none.
    """

    def __init__(
        self, name: str, state: ModelState, settings: ObserverSettings, hold_path: Path | None, reading: Reading
    ) -> None:  # fmt: skip
        self._name = name
        self._may_hold = settings.hold
        self._holds = HoldFile(hold_path)
        self._settings, self._reading = settings.judge, reading
        self._judge = self._judge_of(state)
        self.screen = Screen(name, state, settings.quarantine, reading) if settings.quarantine else None
        if self._judge is not None and not drift.available():
            logger.warning("model %s: drift detection is off, because river is not installed", name)
        if self.hold is not None:
            logger.warning("model %s: updates are on hold since revision %d", name, self.hold.revision)

    def judge(self, state: ModelState) -> None:
        """Judges another state from now on, with new windows. The APPLY stage is idle."""
        self._judge = self._judge_of(state)
        if self.screen is not None:
            self.screen.judge(state)

    def follow(self, state: ModelState, item_rows: np.ndarray) -> None:
        """Judges a state without some of the rows from now on. The APPLY stage is idle.

        `item_rows` uint32[n] are the former numbers of its items.
        """
        if self._judge is not None:
            self._judge.follow(state, item_rows)
        if self.screen is not None:
            self.screen.follow(state)

    def _judge_of(self, state: ModelState) -> Judge | None:
        is_judged = self._settings.record_share > 0
        return Judge(state, self._settings, self._reading) if is_judged else None

    @property
    def hold(self) -> Hold | None:
        """The active hold, or None."""
        return self._holds.current

    def report(self) -> Report | None:
        """The judge's results, or None if nothing is judged."""
        return None if self._judge is None else self._judge.report()

    @property
    def drift_revision(self) -> int:
        """The revision at which drift for the worse was found last, 0 if none was."""
        judge = self._judge
        return 0 if judge is None else judge.drift_revision

    @property
    def nbytes(self) -> int:
        """Bytes of memory of the judge that grow with the items."""
        judge = self._judge
        return 0 if judge is None else judge.nbytes

    @property
    def item_bytes(self) -> int:
        """Bytes of memory that the judge takes for a further item."""
        judge = self._judge
        return 0 if judge is None else judge.item_bytes

    def refusal(self) -> Refused | None:
        """The refusal of interactions during a hold, or None.

        Its code is FAILED_PRECONDITION: the outcome is known (nothing was logged, no sequence was
        consumed), and a retry fails until an operator acts. UNAVAILABLE would promise neither.
        """
        hold = self.hold
        if hold is None:
            return None
        good = hold.good_revision or "not known"
        return precondition(
            f"model: updates are on hold since revision {hold.revision} ({hold.reason}); "
            f"last good revision: {good}; an operator can release them with ReleaseHold"
        )

    def release(self) -> bool:
        """Ends the hold and resets the bounds.

        Returns False if there is no hold. Raises OSError if the file cannot be removed.
        """
        released = self._holds.release()
        if released:
            if self._judge is not None:
                self._judge.restart_bounds()
            logger.warning("model %s: the hold was released", self._name)
        return released

    # ------------------------------------------------------------------ APPLY stage

    def before(self, records: Sequence[Record]) -> None:
        """Reads the judged events of records that are about to be applied."""
        if self._judge is not None:
            try:
                self._judge.before(records)
            except Exception:
                self._give_up()

    def after(self) -> None:
        """Evaluates them after the records were acknowledged."""
        if self._judge is not None:
            try:
                for event in self._judge.after():
                    self._publish(event)
            except Exception:
                self._give_up()

    def _give_up(self) -> None:
        self._judge = None
        logger.exception("model %s: the judge failed; judging is off until a restart", self._name)

    def _publish(self, event: Event) -> None:
        reason = f"{event.kind}: {event.metric} {event.before:.4g} -> {event.after:.4g}"
        level = logging.WARNING if event.worse else logging.INFO
        logger.log(level, "model %s: %s at revision %d", self._name, reason, event.revision)
        if event.kind == DRIFT:
            DRIFTS.labels(self._name, event.metric, "worse" if event.worse else "better").inc()
            return
        WARNINGS.labels(self._name, event.kind).inc()
        if self._may_hold and self._judge is not None:
            self._holds.engage(Hold(reason, event.revision, event.time_us, self._judge.good_revision))
            logger.critical("model %s: updates are on hold until an operator releases them", self._name)
