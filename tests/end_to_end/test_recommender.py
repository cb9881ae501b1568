"""`livefactor.Recommender`: the methods of scikit-learn over a server in this process."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from livefactor import ColumnError, NotFitted, Recommender

PAIRS = [(f"user {u}", f"item {u % 3 * 5 + i}") for i in range(5) for u in range(30)]
"""Three groups of ten users. Each group has five items of its own."""


@pytest.fixture(scope="module")
def fitted() -> Iterator[Recommender]:
    recommender = Recommender("clicks", batch=16).fit(PAIRS)
    yield recommender
    recommender.close()


def test_lists_hold_the_items_of_the_group(fitted: Recommender) -> None:
    lists = fitted.recommend(["user 4"], k=5)
    assert set(lists[0].item_ids.tolist()) == {f"item {item}" for item in range(5, 10)}
    assert (fitted.n_events_, fitted.n_features_in_) == (150, 2)
    assert fitted.users_.tolist() == [f"user {user}" for user in range(30)]
    assert len(fitted.recommend(k=2)) == 30
    assert list(fitted.recommend().to_pandas().columns[:3]) == ["user", "item", "score"]
    assert fitted.similar("item 0", k=1)[0].item_ids[0] in {f"item {item}" for item in range(1, 5)}


def test_predictions_are_the_scores_of_the_pairs(fitted: Recommender) -> None:
    own, other = fitted.predict([("user 0", "item 0"), ("user 0", "item 5")])
    assert own > other
    assert fitted.recommend("user 0", k=5).scores.min() >= own - 1e-6


def test_the_score_is_ndcg(fitted: Recommender) -> None:
    best = fitted.recommend("user 7", k=2)[0].item_ids.tolist()
    assert fitted.score([("user 7", best[0])]) == 1.0
    assert fitted.score([("user 7", best[1])]) == pytest.approx(1 / np.log2(3))
    assert fitted.score([("user 7", "item of nobody"), ("user 8", "item 10")]) == pytest.approx(
        fitted.score([("user 8", "item 10")]) / 2
    )


def test_tables_arrays_and_pairs_give_one_model(tmp_path: Path) -> None:
    import pyarrow as pa

    users, items = [1, 2, 1, 3], [10, 11, 11, 10]
    values, times = [1.0, 0.0, 1.0, 1.0], [1_700_000_000 + second for second in range(4)]
    frame = pd.DataFrame({"who": users, "what": items, "value": values, "time": times}, index=[9, 8, 7, 6])
    names: dict[str, Any] = {"user": "who", "item": "what"}
    tables = (frame, pa.Table.from_pandas(frame), {name: frame[name].tolist() for name in frame})
    roots = set()
    for table in tables:
        recommender = Recommender("clicks_sgd", batch=2, **names).fit(table)
        roots.add(recommender.predict(np.array([[1, 10], [3, 11]])).tobytes())
        recommender.close()
    assert len(roots) == 1
    with pytest.warns(UserWarning, match="1 events were refused; row 2: value is outside"):
        refused = Recommender("clicks_sgd", **names).fit(frame, y=[1, 0, 7, 1])
    assert refused.n_events_ == 3
    refused.close()


def test_a_fit_forgets_and_a_partial_fit_goes_on_in_the_folder(tmp_path: Path) -> None:
    data = tmp_path / "model"
    recommender = Recommender("clicks_sgd", data=data).partial_fit([(1, 1), (2, 2)])
    recommender.partial_fit(np.array([[3, 1]]))
    assert recommender.n_events_ == 3 and recommender.users_.tolist() == [1, 2, 3]
    recommender.close()
    with pytest.raises(NotFitted):
        recommender.recommend(1)
    recommender.fit([(7, 7)])
    assert recommender.n_events_ == 1
    assert recommender.recommend([1, 7], k=3).user_known.tolist() == [False, True]
    recommender.close()


def test_a_record_has_more_events_in_a_larger_fit() -> None:
    def records(events: int) -> int:
        recommender = Recommender("clicks_sgd").fit(np.arange(2 * events).reshape(events, 2) % 97)
        with recommender.server_.models() as models:
            revision = models.describe("default").position.revision
        recommender.close()
        return revision

    # The first record of a log holds the spec.
    assert [records(events) - 1 for events in (1, 512, 513, 40_000)] == [1, 1, 2, 40]


def test_callbacks_get_figures_ten_times() -> None:
    seen: list[tuple[dict[str, float], int]] = []
    recommender = Recommender(
        "clicks_sgd", batch=8, callbacks=[lambda figures, step: seen.append((figures, step))]
    )
    recommender.fit(PAIRS)
    recommender.close()
    assert [step for _, step in seen] == [15 * part for part in range(1, 11)]
    assert all(figures["events_per_s"] > 0 for figures, _ in seen)


@pytest.mark.parametrize(
    ("events", "text"),
    [
        (
            pd.DataFrame({"user": [1], "article": [2]}),
            "item: the table has no such column; it has user, article",
        ),
        ([(1, 2), (3,)], r"X\[1\]: expected a user and an item"),
        ([(1, 2), ("a", 3)], "user_ids"),
        (np.zeros((2, 3)), r"got shape \(2, 3\)"),
        (sparse.dok_array((2, 3)), "got a sparse matrix, which has no order"),
        ({"user": [1, 2], "item": [1]}, "expected 2 rows, got 1"),
    ],
)
def test_events_of_another_form_are_refused_and_the_model_stays(
    fitted: Recommender, events: Any, text: str
) -> None:
    for learn in (fitted.fit, fitted.partial_fit):
        with pytest.raises(ColumnError, match=text):
            learn(events)
    assert fitted.n_events_ == 150 and fitted.recommend("user 0", k=1).user_known.all()


def test_the_page_shows_code_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[2] / "docs" / "guides" / "recommender.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    exec(compile(code, str(page), "exec"), {})
    shown = capsys.readouterr().out
    assert "user  item" in shown and "tent" in shown


def test_it_keeps_the_conventions_of_scikit_learn(fitted: Recommender) -> None:
    base = pytest.importorskip("sklearn.base")
    exceptions = pytest.importorskip("sklearn.exceptions")
    model_selection = pytest.importorskip("sklearn.model_selection")
    copy = base.clone(fitted.set_params(batch=16))
    assert copy.get_params() == fitted.get_params() and copy is not fitted
    with pytest.raises(NotFitted, match="call fit or partial_fit") as caught:
        copy.recommend(1)
    assert isinstance(caught.value, exceptions.NotFittedError)
    assert type(pickle.loads(pickle.dumps(caught.value))) is NotFitted
    with pytest.raises(ValueError, match="flavour: no parameter of Recommender; it has preset, user"):
        copy.set_params(flavour="mint")
    assert repr(copy) == "Recommender(preset='clicks', batch=16)"
    assert pickle.loads(pickle.dumps(copy)).get_params() == copy.get_params()
    with pytest.raises(TypeError, match="data=FOLDER"):
        pickle.dumps(fitted)
    folds = model_selection.TimeSeriesSplit(n_splits=2)
    scores = model_selection.cross_val_score(copy, np.array(PAIRS, object), cv=folds)
    assert len(scores) == 2 and (scores > 0).all()
