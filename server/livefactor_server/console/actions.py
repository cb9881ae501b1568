"""What administrators do in the console. Actions run in the background, one a model at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from livefactor.errors import LivefactorError
from livefactor_server.console.sessions import Session

ACTIONS_MAX = 1_000
"""Models whose last action is remembered. The one that began longest ago makes room."""

DIGITS_MAX = 20
"""A revision has fewer digits."""

Progress = Callable[[str], None]
Work = Callable[[Progress], Awaitable[str]]


@dataclass
class Action:
    """An action on a model.

    Attributes:
        text: what it does, in words.
        outcome: progress while it runs, then what came of it.
        failed: it ended with an error, which is its outcome.
    """

    text: str
    outcome: str = "begins"
    failed: bool = False
    began: float = field(default_factory=time.time)
    task: asyncio.Task[None] | None = None

    @property
    def runs(self) -> bool:
        """Whether it goes on."""
        return self.task is not None and not self.task.done()


class Actions:
    """The last action on each model, by the model's lineage."""

    def __init__(self) -> None:
        self._actions: dict[str, Action] = {}

    def of(self, lineage: str) -> Action | None:
        """The last action on a model."""
        return self._actions.get(lineage)

    def start(self, lineage: str, text: str, work: Work) -> Action:
        """Start an action.

        Raises:
            ValueError: another one runs.
        """
        before = self._actions.pop(lineage, None)
        if before is not None and before.runs:
            self._actions[lineage] = before
            raise ValueError(f"wait for the end of: {before.text}")
        while len(self._actions) >= ACTIONS_MAX:
            _end(self._actions.pop(next(iter(self._actions))))
        action = self._actions[lineage] = Action(text)

        async def run() -> None:
            try:
                action.outcome = await work(lambda progress: setattr(action, "outcome", progress))
            except (LivefactorError, ValueError, TypeError) as error:
                action.failed, action.outcome = True, str(error)

        action.task = asyncio.create_task(run())
        return action

    def end(self) -> None:
        """End all actions. A promotion or a rollback that is not finished changes nothing."""
        for action in self._actions.values():
            _end(action)


def _end(action: Action) -> None:
    if action.task is not None:
        action.task.cancel()


def work_of(session: Session, model: str, form: Mapping[str, str]) -> tuple[str, Work]:
    """What a form asks for: in words, and as work.

    Raises:
        ValueError: a field is missing, or the person did not confirm.
    """
    kind = form.get("action", "")
    if kind not in _WORKS:
        raise ValueError(f"action: expected one of {', '.join(_WORKS)}, got {kind!r}")
    if kind != "snapshot" and form.get("confirm", "").strip() != model:
        raise ValueError(f"confirm: type the name of the model, {model}, to confirm")
    return _WORKS[kind](session, model, form)


def _snapshot(session: Session, model: str, _: Mapping[str, str]) -> tuple[str, Work]:
    async def work(progress: Progress) -> str:
        taken = await session.auditor(model).snapshot(
            on_progress=lambda done: progress(f"{done.bytes_done:,} of {done.bytes_total:,} bytes")
        )
        return f"snapshot {taken.snapshot_id} at revision {taken.position.revision:,}"

    return "Take a snapshot", work


def _promote(session: Session, model: str, form: Mapping[str, str]) -> tuple[str, Work]:
    preset = form.get("preset", "").strip()
    if not preset:
        raise ValueError("preset: type the name of a preset")

    async def work(progress: Progress) -> str:
        made = await session.models.promote(
            model, preset, on_progress=lambda at, last: progress(f"revision {at:,} of {last:,}")
        )
        return f"in force since revision {made.spec_revision or made.position.revision:,}"

    return f"Promote the preset {preset}", work


def _roll_back(session: Session, model: str, form: Mapping[str, str]) -> tuple[str, Work]:
    typed = form.get("revision", "").strip().replace(",", "")
    if not (typed.isascii() and typed.isdigit() and len(typed) < DIGITS_MAX):
        raise ValueError(f"revision: expected a number, got {typed!r}")

    async def work(progress: Progress) -> str:
        made = await session.models.roll_back(
            model,
            to_revision=int(typed),
            on_progress=lambda at, last: progress(f"revision {at:,} of {last:,}"),
        )
        return f"done at revision {made.position.revision:,}"

    return f"Roll back to revision {int(typed):,}", work


def _settle(session: Session, model: str, form: Mapping[str, str]) -> tuple[str, Work]:
    challenger = form.get("challenger", "").strip()

    async def work(_: Progress) -> str:
        await session.models.settle(model, challenger)
        return "the contest has ended"

    return f"Settle the contest with {challenger or 'the spec in force'}", work


def _release(session: Session, model: str, _: Mapping[str, str]) -> tuple[str, Work]:
    async def work(_: Progress) -> str:
        await session.models.release(model)
        return "updates are taken again"

    return "Release the hold of updates", work


_WORKS: dict[str, Callable[[Session, str, Mapping[str, str]], tuple[str, Work]]] = {
    "snapshot": _snapshot,
    "promote": _promote,
    "rollback": _roll_back,
    "settle": _settle,
    "release": _release,
}
