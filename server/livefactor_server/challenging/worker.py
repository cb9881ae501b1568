"""The process of a contest: `python -m livefactor_server.challenging.worker`.

It reads the model's log beside the server, learns every running contestant, judges the chosen
events before they are learned, and reports. It shares no GIL with the server, has the lowest
priority, and rests after each piece of work. It writes nothing but snapshots (`keeping.py`). It
ends with its task, or when its standard input closes, for example because the server died.

A contest is a function of the log and its task. So a contest that was interrupted begins again.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from livefactor_kernels.simd import sparing
from livefactor_kernels.spec.model import Loss
from livefactor_server.challenging import contestants, keeping, steps
from livefactor_server.challenging.contest import Contest, Evidence, Standing
from livefactor_server.challenging.messages import Figures, Go, Report, Task
from livefactor_server.challenging.pace import Pace
from livefactor_server.challenging.schedule import ALLOWED_S_LEAST
from livefactor_server.log import sealing
from livefactor_server.log.acts import Acts
from livefactor_server.log.errors import LogError
from livefactor_server.log.following import Follower
from livefactor_server.log.format import Record, hash_name_of
from livefactor_server.log.sealing import Key
from livefactor_server.snapshots.replay import compile_kernels, log_folder

NICE = 19
REPORT_S = 1.0
KEPT_EVENTS_LEAST = 8_000
"""A challenger that learned fewer events by the beginning of judging is not kept there."""


class Worker:
    """Runs one contest."""

    def __init__(self, task: Task, orders: queue.SimpleQueue[Go], out: TextIO) -> None:
        """Opens the contestants, which compiles or loads their kernels.

        Raises:
            LogError: the log cannot be read.
            SpecError: a spec is invalid.
        """
        self._task, self._orders, self._out = task, orders, out
        self._go = orders.get()
        self._pace = Pace(task.cpu_share)
        compile_kernels()
        follower = Follower(log_folder(Path(task.folder)))
        first = next(follower.read(0))[0]
        self._learners = [
            contestants.open_learner(each.name, each.spec_body, Path(task.folder), first, task.judge_from)
            for each in task.entries
        ]
        self._follower, self._steps = follower, steps.Steps(task.judge_from)
        self._contest = Contest.of([each.name for each in task.entries], task.judge_from)
        self._revision = self._learned = self._judged = 0
        self._judges = False
        self._reported_s = -REPORT_S
        self._pace.start()

    def run(self) -> None:
        """Follows the log until the contest is over.

        Raises:
            LogError: the log is damaged.
            MemoryError: the contestants need more memory than they may.
        """
        while not self._follow():
            self._report(is_waiting=True, at_once=True)
            self._listen()
        self._keep(0)
        self._report(at_once=True)

    def _follow(self) -> bool:
        """Reads as far as it may. Returns whether the contest is over."""
        for records in self._follower.read(self._go.until):
            if _has_rollback(records):
                raise LogError("records were rolled back, and a contest would learn them")
            for step in self._steps.add(records):
                self._take(step)
                if self._contest.over:
                    return True
        return False

    def _listen(self) -> None:
        """Waits for the next order, and takes the newest."""
        self._go = self._orders.get()
        while not self._orders.empty():
            self._go = self._orders.get()

    def _take(self, step: steps.Step) -> None:
        """Judges a step and learns it."""
        contest, running = self._contest, self._contest.running
        if step.before >= self._task.judge_from:
            if not self._judges:
                # A large record can pass `judge_from`. The first round is whole all the same.
                self._judges, contest.judge_from = True, step.before
                self._keep(KEPT_EVENTS_LEAST)
            champion = self._learners[0].state
            spec = champion.spec
            ranks = spec.loss != Loss.SQUARED
            judged = steps.judged_events(step, spec.seed, contest.share, champion.meanings, ranks)
            if judged.users.size:
                gains = np.empty((judged.users.size, len(running)))
                for column, number in enumerate(running):
                    gains[:, column] = self._learners[number].judge(judged)
                    self._pace.keep()
                contest.add(gains, judged.users)
                self._judged += judged.users.size
        for number in running:
            self._learners[number].learn(step)
            self._pace.keep()
        self._revision, self._learned = step.revision, step.after
        if contest.advance(step.after):
            self._release()
        self._check_memory()
        self._report()
        while not contest.over and self._is_too_dear():
            self._report(is_waiting=True, at_once=True)
            self._listen()

    def _release(self) -> None:
        """Frees the models of the contestants that were dropped."""
        for number, each in enumerate(self._contest.contestants):
            if each.standing == Standing.DROPPED:
                self._learners[number].release()

    def _check_memory(self) -> None:
        held = sum(self._learners[number].memory_bytes for number in self._contest.running)
        if held > self._task.memory_bytes_max:
            raise MemoryError(
                f"the contestants hold {held} bytes, and may hold {self._task.memory_bytes_max}"
            )

    def _is_too_dear(self) -> bool:
        """Whether the contest has taken more CPU time than it may have by now."""
        allowed, champion_s = self._go.allowed, self._learners[0].event_s
        return allowed is not None and self._pace.cpu_s > max(ALLOWED_S_LEAST, allowed * champion_s)

    def _keep(self, learned_least: int) -> None:
        """Keeps the challengers that are in the contest and learned so many events here."""
        stays = Standing.RUNNING, Standing.WON
        pairs = zip(self._contest.contestants, self._learners, strict=True)
        kept = [
            learner.state
            for each, learner in pairs
            if each.standing in stays and learner.learned >= learned_least
        ]
        if kept:
            hash_name = hash_name_of(self._follower.hash_id)
            keeping.keep(Path(self._task.folder), self._task.model, kept, hash_name)

    def _report(self, is_waiting: bool = False, at_once: bool = False) -> None:
        now_s = time.monotonic()
        if now_s - self._reported_s < REPORT_S and not at_once:
            return
        self._reported_s = now_s
        contest, winner = self._contest, self._contest.winner
        running = dict(zip(contest.running, contest.current(), strict=True))
        figures = tuple(
            self._figures(number, running.get(number)) for number in range(len(contest.contestants))
        )
        report = Report(
            revision=self._revision, learned=self._learned, judged=self._judged, round=contest.round,
            round_end=contest.round_end, cpu_s=self._pace.cpu_s, is_waiting=is_waiting,
            is_too_dear=is_waiting and not contest.over and self._is_too_dear(), over=contest.over,
            winner="" if winner is None else winner.name, figures=figures,
        )  # fmt: skip
        self._out.write(report.to_line())
        self._out.flush()

    def _figures(self, number: int, current: Evidence | None) -> Figures:
        """A contestant's figures: those of the running round once it has events, else the last."""
        each, learner = self._contest.contestants[number], self._learners[number]
        shown = current if current is not None and current.events else each.figures
        error = shown.error if np.isfinite(shown.error) else None
        return Figures(
            each.name, each.standing, shown.mean, shown.difference, error, shown.events, shown.users,
            learner.event_s if number == 0 else learner.judged_event_s,
        )  # fmt: skip


def _has_rollback(records: Sequence[Record]) -> bool:
    acts = Acts()
    acts.note(records)
    return bool(acts.rollbacks)


def _listen(orders: queue.SimpleQueue[Go]) -> None:
    """Passes on the server's orders. Ends the process when they end."""
    for line in sys.stdin:
        orders.put(Go.from_line(line))
    os._exit(0)


def main() -> None:
    """Runs the contest of the task on standard input."""
    os.nice(NICE)
    sparing.spare()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)-8s %(name)s: %(message)s")
    task, orders = Task.from_line(sys.stdin.readline()), queue.SimpleQueue[Go]()
    sealing.use(Key(bytes.fromhex(task.key)) if task.key else None)
    threading.Thread(target=_listen, args=(orders,), name="orders", daemon=True).start()
    Worker(task, orders, sys.stdout).run()


if __name__ == "__main__":
    main()
