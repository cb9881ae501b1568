"""Files of features: every column beside that of ids is a feature."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from livefactor.wire.bags import bags_of_columns
from livefactor_server.files.features import FeatureFileError, read_features

CSV = "item_id,genres,zip,price,stock\n7,Action|Comedy,012,0.5,true\n8,,,,false\n9,Drama|Drama,34,2,true\n"


def test_columns_of_a_csv_file_become_bags(tmp_path: Path) -> None:
    file = tmp_path / "items.csv"
    file.write_text(CSV)
    ids, columns = read_features(file, "item_id", ["zip"], "|", False)
    assert ids == [7, 8, 9]
    assert bags_of_columns(columns) == [
        {"genres:Action": 1.0, "genres:Comedy": 1.0, "zip:012": 1.0, "price": 0.5, "stock": True},
        {},
        {"genres:Drama": 1.0, "zip:34": 1.0, "price": 2.0, "stock": True},
    ]
    assert read_features(file, "item_id", [], "", True)[0] == ["7", "8", "9"]


def test_a_parquet_file_may_have_lists(tmp_path: Path) -> None:
    file = tmp_path / "users.parquet"
    parquet.write_table(pa.table({"user_id": ["ann", "bob"], "tags": [["a", "b"], []], "age": [3, 4]}), file)
    ids, columns = read_features(file, "user_id", ["age"], "", False)
    assert ids == ["ann", "bob"]
    assert bags_of_columns(columns) == [{"tags:a": 1.0, "tags:b": 1.0, "age:3": 1.0}, {"age:4": 1.0}]


def test_bad_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "items.csv"
    file.write_text(CSV.replace("8,", ",", 1))
    with pytest.raises(FeatureFileError, match="column item_id: row 1 has no id"):
        read_features(file, "item_id", [], "", False)
    with pytest.raises(FeatureFileError, match="it has no column key; it has item_id, genres"):
        read_features(file, "key", [], "", False)
