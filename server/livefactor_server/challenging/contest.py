"""The contest: decides from paired figures which spec serves a model. It is pure and does no I/O.

All contestants are judged on the same events before they learn them. The champion is the first.
Each judged event gives one number for each contestant, its gain, where more is better. So the
differences to the champion are paired, which removes what makes some events harder than others.

Rounds. Round i ends when FIRST_ROUND_EVENTS * 2**i events were learned since judging began. At its
end only the gains of this round count:

- A challenger that is better wins: its mean difference is at least CONFIDENCE standard errors and
  at least USEFUL_GAIN of the champion's mean. If several are, the one with the best mean wins.
- Otherwise the worse half of the challengers, rounded up, are dropped, if they are clearly worse
  than the champion: the difference is at most -CLEARLY standard errors.

The contest ends with a winner, without challengers, or after ROUNDS rounds. This is successive
halving (Jamieson, Talwalkar: Non-stochastic best arm identification, AISTATS 2016) with a test in
place of a fixed share.

Evidence. The standard error is clustered by user (Cameron, Miller: A practitioner's guide to
cluster-robust inference, Journal of Human Resources 50, 2015). The events of a user share a taste,
so their differences are dependent, and many events of a few users are little evidence. Records are
no clusters, because a producer chooses how it groups events.

Why rounds do not share gains: the last half of the events predicts best what follows, and a
challenger that survived by luck must prove itself on other events. With at most 18 tests of a
contest (six challengers, three rounds) a CONFIDENCE of 3.3, one-sided 0.0005, keeps false
promotions below 1 % of contests between equals.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

FIRST_ROUND_EVENTS, ROUNDS = 8_000, 3
CONFIDENCE, CLEARLY = 3.3, 2.0
USEFUL_GAIN = 0.01
USERS_MIN = 50
"""Users below this number are no evidence, because a standard error needs many clusters."""
SHARES = (0.25, 0.25, 0.125)
"""The share of the events that is judged in each round."""


class Standing(StrEnum):
    """Where a contestant stands."""

    CHAMPION = "champion"
    RUNNING = "running"
    DROPPED = "dropped"
    WON = "won"


@dataclass(frozen=True, slots=True)
class Evidence:
    """The figures of a contestant on the same events as the champion's.

    Attributes:
        mean: its mean gain.
        difference: mean difference to the champion's gains.
        error: standard error of the difference, clustered by user; infinite with few users.
        events: judged events.
        users: users of these events.
    """

    mean: float
    difference: float
    error: float
    events: int
    users: int

    def is_better(self, champion_mean: float) -> bool:
        """Whether the difference is certain, and large enough to matter."""
        useful = USEFUL_GAIN * abs(champion_mean)
        return self.difference > 0 and self.difference >= max(CONFIDENCE * self.error, useful)

    @property
    def is_worse(self) -> bool:
        """Whether the contestant is clearly worse than the champion."""
        return self.difference < 0 and self.difference <= -CLEARLY * self.error


NO_EVIDENCE = Evidence(0.0, 0.0, float("inf"), 0, 0)


def evidence(gains: np.ndarray, users: np.ndarray) -> list[Evidence]:
    """The evidence of each column of paired gains float64[n, c]. The first is the champion's.

    The variance of a mean difference d over n events is sum_u (S_u - n_u d)**2 / n**2 * U/(U - 1),
    where S_u is the sum of the n_u differences of user u, and U the number of users.

    Args:
        gains: float64[n, c].
        users: keys of the users, uint64[n].
    """
    n = users.size
    if not n:
        return [NO_EVIDENCE] * gains.shape[1]
    _, place, counts = np.unique(users, return_inverse=True, return_counts=True)
    found = []
    for own in gains.T:
        differences = own - gains[:, 0]
        mean, error = float(differences.mean()), float("inf")
        residues = np.bincount(place, differences) - counts * mean
        if counts.size >= USERS_MIN:
            error = float(np.sqrt((residues**2).sum() * counts.size / (counts.size - 1))) / n
        found.append(Evidence(float(own.mean()), mean, error, n, counts.size))
    return found


@dataclass(slots=True)
class Contestant:
    """A spec in the contest, with its figures in the last complete round."""

    name: str
    standing: Standing
    figures: Evidence = NO_EVIDENCE


@dataclass(slots=True)
class Contest:
    """One contest. The caller gives it gains, and tells it how far learning is.

    Attributes:
        contestants: the champion first.
        judge_from: number of events that are learned before judging begins. The caller raises it if
            a large record passes it.
        round: the running round, from 0.
        over: whether the contest has ended.
    """

    contestants: list[Contestant]
    judge_from: int
    round: int = 0
    over: bool = False
    _gains: list[np.ndarray] = field(default_factory=list)
    _users: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def of(cls, names: list[str], judge_from: int) -> Contest:
        """A contest of the named contestants, of which the first is the champion."""
        standings = [Standing.CHAMPION] + [Standing.RUNNING] * (len(names) - 1)
        return cls([Contestant(*pair) for pair in zip(names, standings, strict=True)], judge_from)

    @property
    def running(self) -> list[int]:
        """The places of the contestants that are judged, the champion's first."""
        judged = Standing.CHAMPION, Standing.RUNNING
        return [n for n, each in enumerate(self.contestants) if each.standing in judged]

    @property
    def winner(self) -> Contestant | None:
        """The contestant that has won."""
        return next((each for each in self.contestants if each.standing == Standing.WON), None)

    @property
    def share(self) -> float:
        """The share of the events that is judged in this round."""
        return SHARES[min(self.round, len(SHARES) - 1)]

    @property
    def round_start(self) -> int:
        """The number of learned events at which the round began."""
        return self.judge_from + (FIRST_ROUND_EVENTS << self.round >> 1 if self.round else 0)

    @property
    def round_end(self) -> int:
        """The number of learned events at which the round ends."""
        return self.judge_from + (FIRST_ROUND_EVENTS << self.round)

    @property
    def judged(self) -> int:
        """Judged events of this round."""
        return sum(len(part) for part in self._users)

    def add(self, gains: np.ndarray, users: np.ndarray) -> None:
        """Adds judged events: gains float64[n, running], and their users uint64[n]."""
        if users.size:
            self._gains.append(gains)
            self._users.append(users)

    def current(self) -> list[Evidence]:
        """The evidence of the round so far, for each running contestant."""
        running = self.running
        if not self._users:
            return [NO_EVIDENCE] * len(running)
        return evidence(np.concatenate(self._gains), np.concatenate(self._users))

    def advance(self, learned: int) -> bool:
        """Ends the round if so many learned events are its end. Returns whether it did."""
        if self.over or learned < self.round_end:
            return False
        found = self.current()
        champion, *challengers = (self.contestants[n] for n in self.running)
        for contestant, figures in zip((champion, *challengers), found, strict=True):
            contestant.figures = figures
        better = [each for each in challengers if each.figures.is_better(champion.figures.mean)]
        if better:
            max(better, key=lambda each: each.figures.mean).standing = Standing.WON
        else:
            worst = sorted(challengers, key=lambda each: each.figures.mean)
            for each in worst[: (len(worst) + 1) // 2]:
                if each.figures.is_worse:
                    each.standing = Standing.DROPPED
        self.round += 1
        self._gains, self._users = [], []
        self.over = bool(better) or len(self.running) == 1 or self.round == ROUNDS
        return True
