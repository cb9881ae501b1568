"""Files of features: csv or parquet, with a column of ids and one feature in each other column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from livefactor.wire.ids import ids_of_texts
from livefactor_server.files.vectors import PARQUET


class FeatureFileError(ValueError):
    """A file of features cannot be read. The text has the reason."""


def read_features(
    file: Path, key: str, texts: list[str], separator: str, string_ids: bool
) -> tuple[list[Any], dict[str, list[Any]]]:
    """(ids, the other columns by name) of a file.

    Args:
        file: the file.
        key: the name of the column of ids.
        texts: columns of numbers that are read as texts.
        separator: divides the texts of a field; empty for none.
        string_ids: whether ids are strings, also those that are written as integers.

    Raises:
        FeatureFileError: the file has another form, or an id is missing.
        OSError: the file cannot be opened.
    """
    try:
        table = parquet.read_table(file) if file.suffix.lower() in PARQUET else _of_csv(file, [key, *texts])
        missing = [name for name in (key, *texts) if name not in table.column_names]
        if missing:
            raise FeatureFileError(f"it has no column {missing[0]}; it has {', '.join(table.column_names)}")
    except pa.ArrowException as error:
        raise FeatureFileError(str(error)) from error
    ids = table[key].to_pylist()
    if None in ids or "" in ids:
        row = next(row for row, each in enumerate(ids) if each in (None, ""))
        raise FeatureFileError(f"column {key}: row {row} has no id")
    if string_ids:
        ids = [str(each) for each in ids]
    elif ids and isinstance(ids[0], str):
        ids = ids_of_texts(ids)
    columns = {name: table[name].to_pylist() for name in table.column_names if name != key}
    for name in texts:
        columns[name] = [None if each is None else str(each) for each in columns[name]]
    if separator:
        columns = {name: [divided(each, separator) for each in column] for name, column in columns.items()}
    return ids, columns


def _of_csv(file: Path, texts: list[str]) -> pa.Table:
    kinds = arrow_csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string()))
    return arrow_csv.read_csv(
        file, parse_options=arrow_csv.ParseOptions(newlines_in_values=True), convert_options=kinds
    )


def divided(value: Any, separator: str) -> Any:
    """The distinct parts of a text. Another value stays as it is."""
    if not isinstance(value, str):
        return value
    # A text that occurs twice is one feature.
    return list(dict.fromkeys(part for part in value.split(separator) if part))
