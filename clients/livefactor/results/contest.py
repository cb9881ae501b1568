"""How the challengers of a model stand, as plain values. `Models.challengers` returns it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from livefactor.results.tables import Table, rows_as_columns


@dataclass(frozen=True, slots=True)
class Contestant:
    """A contestant's figures over the judged events of a round, which are the same for all.

    standing: champion, running, dropped or won. mean: the mean gain, which is the NDCG@100 of the
    event's item among all items, or minus the squared error of ratings. difference: mean difference
    to the champion's gains. error: its standard error, clustered by user; None if too few users
    were judged. events, users: what was judged.
    """

    name: str
    standing: str
    mean: float
    difference: float
    error: float | None
    events: int
    users: int


@dataclass(frozen=True, slots=True)
class Variant:
    """What users did with the lists of the champion or of a challenger since the server started.

    spec_id: 16 hex digits that name its spec, also in answers of a Scorer. lists: lists that it
    gave. events: later events of users whose last list is its own. hits: those whose item was among
    the first 100 of that list.
    """

    name: str
    spec_id: str
    lists: int
    events: int
    hits: int

    @property
    def hit_rate(self) -> float:
        """hits / events, 0 without events."""
        return self.hits / self.events if self.events else 0.0


@dataclass(frozen=True, slots=True)
class Share:
    """A challenger that answers a share of the users.

    is_ready: it answers. Otherwise the champion answers all users. records_behind: records that it
    has not learned yet. ended: why it has ended, "" if it has not. variants: the champion and the
    challenger.
    """

    challenger: str
    share: float
    is_ready: bool
    records_behind: int
    ended: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Contest(Table):
    """The contest that runs, or else the last one.

    automatic: whether the model looks for a better spec by itself. contestants: the champion comes
    first. waiting: names of challengers that wait for the next contest. revision: the last one that
    the contestants have learned. learned_events: events of the log up to it. events_behind: events
    that it has not learned yet. rounds: complete ones. round_end: learned events at which the
    present round ends. winner: "" if no challenger won. contests: complete ones. cpu_seconds: of
    all contests. share: the challenger that answers a share of the users, or None. resumes_at: a
    contest that has paused begins again at this number of events of the log; 0 if none has paused.
    """

    automatic: bool
    is_running: bool
    contestants: tuple[Contestant, ...]
    waiting: tuple[str, ...]
    revision: int
    learned_events: int
    events_behind: int
    judged_events: int
    rounds: int
    round_end: int
    winner: str
    contests: int
    cpu_seconds: float
    share: Share | None = None
    resumes_at: int = 0

    def columns(self) -> dict[str, Any]:
        """One row for each contestant, with the fields of `Contestant`."""
        return rows_as_columns(Contestant, self.contestants)

    def __repr__(self) -> str:
        what = (
            "runs"
            if self.is_running
            else "has paused"
            if self.resumes_at
            else f"won by {self.winner}"
            if self.winner
            else "nobody won"
        )
        names = ", ".join(each.name for each in self.contestants)
        return f"Contest({what}, {names or 'no contestants'}, {self.judged_events} judged events)"


def contest_of(message: Any) -> Contest:
    """Convert a `livefactor.v1.Contest` message to plain values."""
    return Contest(
        automatic=message.automatic,
        is_running=message.is_running,
        contestants=tuple(
            Contestant(
                name=one.name,
                standing=one.standing,
                mean=one.mean,
                difference=one.difference,
                error=one.error if one.HasField("error") else None,
                events=one.events,
                users=one.users,
            )
            for one in message.contestants
        ),
        waiting=tuple(message.waiting),
        revision=message.revision,
        learned_events=message.learned_events,
        events_behind=message.events_behind,
        judged_events=message.judged_events,
        rounds=message.rounds,
        round_end=message.round_end,
        winner=message.winner,
        contests=message.contests,
        cpu_seconds=message.cpu_seconds,
        share=_share_of(message.share) if message.HasField("share") else None,
        resumes_at=message.resumes_at,
    )


def _share_of(message: Any) -> Share:
    return Share(
        challenger=message.challenger,
        share=message.share,
        is_ready=message.is_ready,
        records_behind=message.records_behind,
        ended=message.ended,
        variants=tuple(
            Variant(one.name, one.spec_id, one.lists, one.events, one.hits) for one in message.variants
        ),
    )
