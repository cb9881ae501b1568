"""The answers of a Scorer: scores of candidates, and recommendations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from livefactor.position import Position
from livefactor.results.tables import Table

_SHOWN = 5


def spec_name(spec_id: int) -> str:
    """The id of a spec as 16 hex digits, "" for 0."""
    return f"{spec_id:016x}" if spec_id else ""


@dataclass(frozen=True, slots=True, repr=False)
class UserAnswer(Table):
    """The answer to one user: m items.

    user_id: as it was given. known: whether the model knows the user; if not, the mean and the item
    biases alone give the scores. item_ids: m ids as they were given, see `Answers`. scores:
    float32[m]. item_known: bool[m]. labels: m str if they were asked for, else empty. revision:
    every score is of exactly this revision. seen_truncated: True if `exclude_seen` was asked for
    and the user has had more events than the model remembers, so that the items may be among those
    that the user has had. spec_id: the spec that made the scores (`ModelDescription.spec_id`).
    score_id: names the answer if `keep` was asked for (`Producer.push`), else 0.
    """

    user_id: int | str
    known: bool
    item_ids: npt.NDArray[Any]
    scores: npt.NDArray[np.float32]
    item_known: npt.NDArray[np.bool_]
    labels: Sequence[str]
    revision: int
    seen_truncated: bool = False
    spec_id: str = ""
    score_id: int = 0

    def __len__(self) -> int:
        return len(self.item_ids)

    def columns(self) -> dict[str, Any]:
        """One row for each item: item, score, known, and label if labels were asked for."""
        columns = {"item": self.item_ids, "score": self.scores, "known": self.item_known}
        return columns | ({"label": list(self.labels)} if len(self.labels) else {})

    def __repr__(self) -> str:
        items = zip(self.item_ids.tolist()[:_SHOWN], self.scores[:_SHOWN].tolist(), strict=True)
        shown = [f"{item!r}: {score:.4g}" for item, score in items]
        more = [f"... {len(self) - _SHOWN} more"] if len(self) > _SHOWN else []
        flags = "" if self.known else ", unknown"
        flags += ", seen_truncated" if self.seen_truncated else ""
        return f"UserAnswer({self.user_id!r}{flags}, {{{', '.join(shown + more)}}})"


@dataclass(frozen=True, slots=True, repr=False)
class Answers(Table):
    """Answers to n users, m items in all. Iterate or index for one `UserAnswer` per user.

    position: every score is of exactly this revision, if one call answered all users. More users
    than a call takes are several calls (`Scorer`). Then this is the position of the first call, and
    later users may have later revisions of the same lineage. revisions: uint64[n], the exact
    revision of each user's scores. user_ids: n ids, item_ids: m ids of all users end to end, both
    as they were given: uint64 arrays where all ids are integers, else object arrays of str and int.
    An id that was pushed as a string and has no label comes back as its 64-bit key. scores:
    float32[m]. offsets: uint32[n + 1]; user u's items are [offsets[u] .. offsets[u + 1]).
    user_known: bool[n]. item_known: bool[m]. labels: m str if they were asked for, else empty.
    item_keys: uint64[m], the 64-bit keys that the model knows the items by. seen_truncated:
    bool[n], for which users `exclude_seen` may have left items in that they have had, because they
    have had more events than the model remembers; empty without `exclude_seen`. spec_ids:
    uint64[n], the spec that made each user's scores; 0 from a server that does not name it.
    score_ids: uint64[n], the name of each user's answer, if `keep` was asked for; else 0.
    """

    position: Position
    user_ids: npt.NDArray[Any]
    item_ids: npt.NDArray[Any]
    scores: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.uint32]
    user_known: npt.NDArray[np.bool_]
    item_known: npt.NDArray[np.bool_]
    labels: Sequence[str]
    item_keys: npt.NDArray[np.uint64] = field(repr=False)
    revisions: npt.NDArray[np.uint64] = field(repr=False)
    seen_truncated: npt.NDArray[np.bool_] = field(repr=False, default_factory=lambda: np.empty(0, np.bool_))
    spec_ids: npt.NDArray[np.uint64] = field(repr=False, default_factory=lambda: np.empty(0, np.uint64))
    score_ids: npt.NDArray[np.uint64] = field(repr=False, default_factory=lambda: np.empty(0, np.uint64))

    def __len__(self) -> int:
        return len(self.user_known)

    def columns(self) -> dict[str, Any]:
        """One row for each item of each user: user, item, score, known (whether the model knows the
        item), revision, and label if labels were asked for.
        """
        ends = self.offsets.astype(np.int64)
        counts = ends[1:] - ends[:-1]
        columns = {
            "user": np.repeat(self.user_ids, counts),
            "item": self.item_ids,
            "score": self.scores,
            "known": self.item_known,
            "revision": np.repeat(self.revisions, counts),
        }
        return columns | ({"label": list(self.labels)} if len(self.labels) else {})

    def __getitem__(self, user: int) -> UserAnswer:
        if not -len(self) <= user < len(self):
            raise IndexError(f"user {user} of {len(self)}")
        user %= len(self)
        rows = slice(int(self.offsets[user]), int(self.offsets[user + 1]))
        return UserAnswer(
            self.user_ids[user : user + 1].tolist()[0],
            bool(self.user_known[user]),
            self.item_ids[rows],
            self.scores[rows],
            self.item_known[rows],
            self.labels[rows],
            int(self.revisions[user]),
            bool(self.seen_truncated[user : user + 1].any()),
            "".join(spec_name(spec) for spec in self.spec_ids[user : user + 1].tolist()),
            sum(self.score_ids[user : user + 1].tolist()),
        )

    def __iter__(self) -> Iterator[UserAnswer]:
        return (self[user] for user in range(len(self)))

    def __repr__(self) -> str:
        first = f": {self[0]!r}" if len(self) == 1 else ""
        users = "1 user" if len(self) == 1 else f"{len(self)} users"
        revision = self.position.revision
        return f"{type(self).__name__}({users}, {len(self.item_ids)} items, revision {revision}{first})"


class Scores(Answers):
    """Scores of candidates, in the order in which they were given."""

    __slots__ = ()


class Recommendations(Answers):
    """The best items of each user, best first.

    Equal scores stand in ascending order of the 64-bit keys.
    """

    __slots__ = ()
