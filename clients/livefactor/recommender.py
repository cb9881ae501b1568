"""`Recommender`: a model in this process with the methods of scikit-learn.

It pushes events to a server of its own (`local`), so it learns as a served model does: in the order
of the events, test-then-learn.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from time import monotonic
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from livefactor.errors import ColumnError, NotFitted
from livefactor.in_process import Local, local
from livefactor.pushing.batching import BatchSettings
from livefactor.pushing.rows import row_columns
from livefactor.results.answers import Recommendations
from livefactor.wire.arrays import to_numpy
from livefactor.wire.ids import Ids, as_keys, original_ids
from livefactor.wire.keys import keys_of

PARTS = 10
"""How often the callbacks are called during `fit` or `partial_fit`."""

BATCH_MIN = 512
RECORDS = 32
BATCH_MAX = 8_192
"""Without a `batch`, events are learned in about RECORDS records of at least BATCH_MIN and
at most BATCH_MAX events. Larger records are faster, because each record is read, judged and
acknowledged as a whole.
"""

SCORED = 10
"""Length of the lists that `score` judges."""

TIMEOUT_S = 600.0
"""How long `recommend` waits for its lists, seconds."""

Callback = Callable[[dict[str, float], int], object]
"""Called with (figures by name, number of events so far)."""


class Recommender:
    """Learns from events and recommends items, in this process.

    Events are a table (pandas, Arrow, or a dict of columns), in the order in which they happened;
    or pairs of a user and an item, as a sequence or an array [n, 2]. It keeps the conventions of
    scikit-learn's estimators without needing scikit-learn: `clone`, `get_params`, `set_params` and
    `cross_val_score` work. A fitted recommender cannot be pickled: give it a folder instead.

    preset: as in `local`. user, item, value, time: the names of a table's columns. A table may lack
    the columns of values and times. batch: number of events that are learned as one record; smaller
    ones are judged and learned more like a live stream, and take longer. None: a 32nd of the events
    of the call, but at least 512 and at most 8,192. data: a folder that keeps
    the model; None for a temporary one. callbacks: each is called ten times a fit with a dict of
    figures and the number of events so far, such as `mlflow.log_metrics` and the `log` of a run of
    W&B.

    After `fit`: `server_` is the `Local` server, for everything that a client can do.
    `n_events_` counts the events that were learned, and `users_` holds the users, in the order of
    their first events. `close` ends the server; it also ends with the last reference.
    """

    def __init__(
        self,
        preset: str = "auto",
        *,
        user: str = "user",
        item: str = "item",
        value: str = "value",
        time: str = "time",
        batch: int | None = None,
        data: str | os.PathLike[str] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.preset = preset
        self.user, self.item, self.value, self.time = user, item, value, time
        self.batch, self.data, self.callbacks = batch, data, callbacks

    def fit(self, X: Any, y: Any = None) -> Self:
        """Forget what was learned, and learn the events X.

        y: a value for each event, instead of the column of values. Raises ColumnError, which names
        the column and the row, and then nothing of X is learned.
        """
        columns = self._checked(X, y)
        self.close()
        self.server_ = local(self.preset, self.data)
        with self.server_.models() as models:
            if models.describe("default").position.revision:
                models.delete("default")
                models.create("default", self.preset)
        self._users: dict[int | str, None] = {}
        self.n_events_, self.n_features_in_ = 0, 2
        return self._learn(columns)

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Learn the events X, after those that were learned before. The arguments are those of
        `fit`.
        """
        if not self._is_fitted():
            return self.fit(X, y)
        return self._learn(self._checked(X, y))

    def recommend(
        self, users: Ids | None = None, k: int = 10, *, exclude_seen: bool = False, **options: Any
    ) -> Recommendations:
        """The k best items of each of n users; None for all users that were learned.

        An unknown user gets what a new user would get. options: those of `Scorer.recommend`. Raises
        NotFitted.
        """
        server = self._fitted()
        asked = self.users_ if users is None else users
        # Lists of all users take longer than the call of a service may.
        options.setdefault("timeout", TIMEOUT_S)
        with server.scorer() as scorer:
            return scorer.recommend(asked, k, exclude_seen=exclude_seen, **options)

    def similar(self, items: Ids, k: int = 10, **options: Any) -> Recommendations:
        """The k most similar items of each of n items. options: those of `Scorer.similar`."""
        server = self._fitted()
        with server.scorer() as scorer:
            return scorer.similar(items, k, **options)

    def predict(self, X: Any) -> npt.NDArray[np.float32]:
        """The score of each event's item for its user, float32[n]; a rating with preset
        `ratings`.
        """
        server = self._fitted()
        columns = self._columns(X, None)
        items = _listed(columns["item_ids"])
        with server.scorer() as scorer:
            return scorer.score(columns["user_ids"], [[item] for item in items]).scores

    def score(self, X: Any, y: Any = None) -> float:
        """The mean NDCG@10 of the users of X: how well their lists hold the items of X. 1 is best.

        X is not learned. An item that the user has had before may be in the list. y is ignored.
        """
        columns = self._columns(X, None)
        users, items = as_keys("user", columns["user_ids"]), as_keys("item", columns["item_ids"])
        if not len(users):
            raise ColumnError(f"{self.user}: expected at least one event to score")
        asked, first, owner = np.unique(users, return_index=True, return_inverse=True)
        names = original_ids(columns["user_ids"], users)[np.sort(first)]
        # The users keep their order, since `unique` sorts them by key.
        place = np.argsort(np.argsort(first))
        wanted = set(zip(place[owner].tolist(), items.tolist(), strict=True))
        got = self.recommend(names, SCORED)
        sizes = np.bincount([owner for owner, _ in wanted], minlength=len(asked))
        gains = 1.0 / np.log2(np.arange(2, SCORED + 2))
        best = np.concatenate([[0.0], np.cumsum(gains)])[np.minimum(sizes, SCORED)]
        reached = np.zeros(len(asked))
        offsets = got.offsets.astype(np.int64)
        for row in range(len(asked)):
            keys = got.item_keys[offsets[row] : offsets[row + 1]].tolist()
            reached[row] = sum(gains[rank] for rank, key in enumerate(keys) if (row, key) in wanted)
        return float(np.mean(reached / best))

    @property
    def users_(self) -> npt.NDArray[Any]:
        """The users of the events that were learned, in the order of their first events."""
        self._fitted()
        users = np.empty(len(self._users), object)
        users[:] = list(self._users)
        return users

    def close(self) -> None:
        """End the server of this recommender. A model without a folder is lost."""
        if self._is_fitted():
            self.server_.close()
            del self.server_

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor and their values."""
        return {name: getattr(self, name) for name in _parameters(type(self))}

    def set_params(self, **params: Any) -> Self:
        """Change arguments of the constructor. They count at the next `fit`."""
        known = _parameters(type(self))
        for name, value in params.items():
            if name not in known:
                raise ValueError(f"{name}: no parameter of {type(self).__name__}; it has {', '.join(known)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = {
            name: parameter.default for name, parameter in inspect.signature(type(self)).parameters.items()
        }
        changed = [
            f"{name}={value!r}" for name, value in self.get_params().items() if value != defaults[name]
        ]
        state = f" of {self.n_events_:,} events" if self._is_fitted() else ""
        return f"{type(self).__name__}({', '.join(changed)}){state}"

    def __sklearn_is_fitted__(self) -> bool:
        return self._is_fitted()

    def __sklearn_tags__(self) -> Any:
        # Only scikit-learn asks for tags, so it is there.
        utils = import_module("sklearn.utils")
        return utils.Tags(estimator_type=None, target_tags=utils.TargetTags(required=False))

    def __getstate__(self) -> dict[str, Any]:
        if self._is_fitted():
            raise TypeError(
                "a fitted Recommender cannot be pickled; Recommender(data=FOLDER) keeps the model"
            )
        return self.__dict__

    def _is_fitted(self) -> bool:
        return "server_" in self.__dict__ and not self.server_.closed

    def _fitted(self) -> Local:
        if not self._is_fitted():
            raise _not_fitted()(
                f"this {type(self).__name__} has learned nothing yet: call fit or partial_fit"
            )
        return self.server_

    def _learn(self, columns: dict[str, Any]) -> Self:
        n, began = len(columns["user_ids"]), monotonic()
        ends = [n * part // PARTS for part in range(1, PARTS + 1)] if self.callbacks else [n]
        batch = _batch_of(n) if self.batch is None else self.batch
        settings = BatchSettings(events_max=batch, latency_ms_max=None)
        start = 0
        with self.server_.producer("recommender", batch=settings) as producer:
            for end in ends:
                part = {name: _rows(column, start, end) for name, column in columns.items()}
                ack = producer.push(**part).result()
                self.n_events_ += ack.accepted
                if ack.rejected_count:
                    first = ack.rejects[0]
                    text = f"{ack.rejected_count} events were refused; row {start + first.row}: {first.text}"
                    warnings.warn(text, stacklevel=3)
                start = end
                self._report(start, began)
        self._users.update(dict.fromkeys(_listed(columns["user_ids"])))
        return self

    def _report(self, events: int, began: float) -> None:
        if not self.callbacks:
            return
        figures = {"events_per_s": events / max(monotonic() - began, 1e-9)}
        with self.server_.models() as models:
            judgement = models.describe("default").judgement
        for figure in judgement.figures if judgement else ():
            if figure.event_type is None and np.isfinite(figure.windowed):
                # `@` is no character of a metric's name in MLflow.
                name = figure.metric.replace("@", "_at_")
                figures[name if figure.scorer == "model" else f"{name}_{figure.scorer}"] = figure.windowed
        for callback in self.callbacks:
            callback(figures, self.n_events_)

    def _checked(self, X: Any, y: Any) -> dict[str, Any]:
        """The columns of X. All rows are checked before any is learned."""
        columns = self._columns(X, y)
        users, items = columns["user_ids"], columns["item_ids"]
        row_columns(users, items, columns.get("values"), None, None, columns.get("times"), keys_of, keys_of)
        return columns

    def _columns(self, X: Any, y: Any) -> dict[str, Any]:
        """The columns that `Producer.push` takes."""
        # Some sparse matrices are dicts too.
        if hasattr(X, "tocoo"):
            raise ColumnError(
                "X: expected events in the order in which they happened, got a sparse matrix, which has no "
                "order; its pairs are numpy.column_stack(X.nonzero())"
            )
        found = self._table(X) if hasattr(X, "columns") or isinstance(X, Mapping) else self._pairs(X)
        if y is not None:
            found["values"] = y
        rows = len(found["user_ids"])
        for name, column in found.items():
            if len(column) != rows:
                raise ColumnError(f"{name}: expected {rows} rows, got {len(column)}")
        return found

    def _table(self, X: Any) -> dict[str, Any]:
        # A table of Arrow has its names elsewhere, and a dict is a list of names.
        names = list(getattr(X, "column_names", getattr(X, "columns", X)))
        for name in (self.user, self.item):
            if name not in names:
                raise ColumnError(
                    f"{name}: the table has no such column; it has {', '.join(map(str, names))}"
                )
        columns = {"user_ids": X[self.user], "item_ids": X[self.item]}
        columns |= {"values": X[self.value]} if self.value in names else {}
        return columns | ({"times": X[self.time]} if self.time in names else {})

    def _pairs(self, X: Any) -> dict[str, Any]:
        if isinstance(X, np.ndarray):
            if X.ndim != 2 or X.shape[1] != 2:
                raise ColumnError(f"X: expected pairs of a user and an item, [n, 2], got shape {X.shape}")
            return {"user_ids": X[:, 0], "item_ids": X[:, 1]}
        for row, pair in enumerate(X):
            if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
                raise ColumnError.at("X", row, f"expected a user and an item, got {pair!r}")
        return {"user_ids": [user for user, _ in X], "item_ids": [item for _, item in X]}


def _batch_of(events: int) -> int:
    """The events of a record, a multiple of 512, so that it has whole micro-batches of each
    preset.
    """
    return min(max(events // RECORDS // BATCH_MIN, 1) * BATCH_MIN, BATCH_MAX)


def _not_fitted() -> type[NotFitted]:
    """The error, which is also that of scikit-learn where a program has loaded scikit-learn."""
    theirs = sys.modules.get("sklearn.exceptions")
    if theirs is None:
        return NotFitted
    # A class made here cannot be pickled by its name, and a worker of joblib pickles its error.
    pickled = {"__doc__": NotFitted.__doc__, "__reduce__": lambda error: (NotFitted, error.args)}
    return type("NotFitted", (NotFitted, theirs.NotFittedError), pickled)


def _rows(column: Any, start: int, end: int) -> Any:
    # A Series of pandas slices by position with `iloc` alone.
    return getattr(column, "iloc", column)[start:end]


def _parameters(kind: type) -> list[str]:
    return list(inspect.signature(kind).parameters)


def _listed(ids: Ids) -> list[int | str]:
    values = ids if isinstance(ids, list) else to_numpy("ids", ids).tolist()
    return list(values)
