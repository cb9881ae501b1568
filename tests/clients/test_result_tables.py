"""Results as tables: in a notebook, in pandas and in Arrow."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from livefactor.errors import MissingPackage
from livefactor.position import Position
from livefactor.results.answers import Recommendations
from livefactor.results.contest import Contest, Contestant
from livefactor.results.judgement import JudgeFigure, Judgement


def answers(item_ids: Any, labels: list[str] | None = None, user: Any = "ann") -> Recommendations:
    m = len(item_ids)
    users = np.array([user, user], object if isinstance(user, str) else np.uint64)
    return Recommendations(
        Position(bytes(16), 7),
        users,
        item_ids,
        np.arange(m, 0, -1, np.float32) if m else np.empty(0, np.float32),
        np.array([0, 1, m], np.uint32),
        np.ones(2, bool),
        np.ones(m, bool),
        labels or [],
        np.arange(m, dtype=np.uint64),
        np.array([7, 8], np.uint64),
    )


TEXTS = np.array(["milk", "bread", "<b>"], object)


def test_answers_are_tables_with_one_row_for_each_item_of_each_user() -> None:
    got = answers(TEXTS, ["Milk", "Bread", "B"])
    frame, table = got.to_pandas(), got.to_arrow()
    assert isinstance(frame, pd.DataFrame) and isinstance(table, pa.Table)
    expected = {
        "user": ["ann"] * 3,
        "item": ["milk", "bread", "<b>"],
        "score": [3.0, 2.0, 1.0],
        "known": [True] * 3,
        "revision": [7, 8, 8],
        "label": ["Milk", "Bread", "B"],
    }
    assert frame.to_dict("list") == table.to_pydict() == expected
    assert got[1].to_pandas()["item"].tolist() == ["bread", "<b>"]
    integers = answers(np.array([1, 2, 2**64 - 1], np.uint64), user=5)
    assert integers.to_pandas()["item"].dtype == np.uint64
    assert integers.to_arrow().schema.field("item").type == pa.uint64()
    assert "label" not in integers.to_arrow().column_names


def test_strings_beside_keys_are_strings_in_arrow_and_mixed_in_pandas() -> None:
    got = answers(np.array(["milk", 7, "bread"], object))
    assert got.to_arrow()["item"].to_pylist() == ["milk", "7", "bread"]
    assert got.to_pandas()["item"].tolist() == ["milk", 7, "bread"]


def test_a_notebook_shows_the_first_rows_and_escapes_them() -> None:
    html = answers(TEXTS)._repr_html_()
    assert html.count("<tr>") == 4
    assert "&lt;b&gt;" in html and "<b>" not in html
    long = answers(np.arange(100, dtype=np.uint64), user=1)._repr_html_()
    assert long.count("<tr>") == 21 and "80 more rows" in long


def test_figures_and_contestants_are_tables_too() -> None:
    figure = JudgeFigure("loss", "model", None, 5, 0.5, 0.25)
    judgement = Judgement(0, 12, 3, 2, 1, (figure, figure), (), 0, 1.0, 0.0, True)
    assert judgement.to_pandas()["windowed"].tolist() == [0.5, 0.5]
    assert "<th>metric</th>" in judgement._repr_html_()
    champion = Contestant("now", "champion", 0.1, 0.0, None, 9, 3)
    contest = Contest(True, True, (champion,), (), 1, 2, 3, 4, 5, 6, "", 7, 8.0)
    assert contest.to_arrow().to_pydict()["name"] == ["now"]


@pytest.mark.parametrize(("name", "method"), [("pandas", "to_pandas"), ("pyarrow", "to_arrow")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, name: str, method: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackage, match=rf'{method} needs {name}: pip install "livefactor\[tables\]"'):
        getattr(answers(TEXTS), method)()
