"""The judge beside an engine: called around each run of records, it logs, counts and, if asked to, holds updates.

A fault of the judge is logged and ends judging until a restart; the engine goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from livefactor_server.changes import Record
from livefactor_server.judging import drift
from livefactor_server.judging.hold import Hold, HoldFile
from livefactor_server.judging.judge import DRIFT, Judge, JudgeSettings
from livefactor_server.judging.prometheus import DRIFTS, WARNINGS
from livefactor_server.judging.report import Event, Report
from livefactor_server.judging.scoring import Reading
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import Refused, precondition

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ObserverSettings:
    """judge: how much is judged. hold: stop updates when a bound is passed. tensorboard: folder for event files, None writes none."""

    judge: JudgeSettings = field(default_factory=JudgeSettings)
    hold: bool = False
    tensorboard: Path | None = None


class Observer:
    """Judges one model. `before` and `after` are the APPLY stage's; the rest may be called from any thread."""

    def __init__(
        self, name: str, state: ModelState, settings: ObserverSettings, hold_path: Path | None, reading: Reading
    ) -> None:  # fmt: skip
        self._name = name
        self._may_hold = settings.hold
        self._holds = HoldFile(hold_path)
        self._judge = Judge(state, settings.judge, reading) if settings.judge.record_share > 0 else None
        if self._judge is not None and not drift.available():
            logger.warning("model %s: river is not installed: drift detection is off", name)
        if self.hold is not None:
            logger.warning("model %s: updates are on hold since revision %d", name, self.hold.revision)

    @property
    def hold(self) -> Hold | None:
        """The hold that stands."""
        return self._holds.current

    def report(self) -> Report | None:
        """What the judge found; None if nothing is judged."""
        return None if self._judge is None else self._judge.report()

    def refusal(self) -> Refused | None:
        """What interactions are refused with while a hold stands. FAILED_PRECONDITION, since the outcome is known (nothing was logged, no
        sequence consumed) and sending again does not help before somebody acts; UNAVAILABLE would say neither."""
        hold = self.hold
        if hold is None:
            return None
        good = hold.good_revision or "not known"
        return precondition(
            f"model: updates are on hold since revision {hold.revision} ({hold.reason}); "
            f"last good revision: {good}; an operator ends it with ReleaseHold"
        )

    def release(self) -> bool:
        """End the hold; False if there was none. What comes next counts as normal. OSError if the hold's file cannot be removed."""
        released = self._holds.release()
        if released:
            if self._judge is not None:
                self._judge.restart_bounds()
            logger.warning("model %s: the hold was released", self._name)
        return released

    # ------------------------------------------------------------------ APPLY stage

    def before(self, records: Sequence[Record]) -> None:
        """Read what is judged of records that are about to be applied."""
        if self._judge is not None:
            try:
                self._judge.before(records)
            except Exception:
                self._give_up()

    def after(self) -> None:
        """Conclude, once the records are acknowledged."""
        if self._judge is not None:
            try:
                for event in self._judge.after():
                    self._tell(event)
            except Exception:
                self._give_up()

    def _give_up(self) -> None:
        self._judge = None
        logger.exception("model %s: the judge failed; nothing is judged until a restart", self._name)

    def _tell(self, event: Event) -> None:
        told = f"{event.kind}: {event.metric} {event.before:.4g} -> {event.after:.4g}"
        level = logging.WARNING if event.worse else logging.INFO
        logger.log(level, "model %s: %s at revision %d", self._name, told, event.revision)
        if event.kind == DRIFT:
            DRIFTS.labels(self._name, event.metric, "worse" if event.worse else "better").inc()
            return
        WARNINGS.labels(self._name, event.kind).inc()
        if self._may_hold and self._judge is not None:
            self._holds.engage(Hold(told, event.revision, event.time_us, self._judge.good_revision))
            logger.critical("model %s: updates are on hold until an operator releases them", self._name)
