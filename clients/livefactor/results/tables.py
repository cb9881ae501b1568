"""Results as tables: for notebooks, and as pandas or Arrow tables where these are installed."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib import import_module
from typing import Any

import numpy as np

from livefactor.errors import MissingPackage

HTML_ROWS_MAX = 20
"""Rows of a table that a notebook shows."""

INSTALL_HINT = 'pip install "livefactor[tables]"'


class Table:
    """A result that has rows. Its class gives the columns."""

    __slots__ = ()

    def columns(self) -> dict[str, Any]:
        """The columns by name: arrays or lists of equal length."""
        raise AssertionError(type(self))

    def to_pandas(self) -> Any:
        """The rows as a `pandas.DataFrame`. Raises MissingPackage without pandas."""
        return _package("pandas", "to_pandas").DataFrame(self.columns())

    def to_arrow(self) -> Any:
        """The rows as a `pyarrow.Table`. Raises MissingPackage without pyarrow.

        A column of Arrow has one type. So ids that are partly strings and partly 64-bit keys are
        all strings here.
        """
        arrow = _package("pyarrow", "to_arrow")
        return arrow.table({name: _of_one_type(column) for name, column in self.columns().items()})

    def _repr_html_(self) -> str:
        columns = self.columns()
        rows = len(next(iter(columns.values())))
        shown = {name: list(column[:HTML_ROWS_MAX]) for name, column in columns.items()}
        head = "".join(f"<th>{escape(name)}</th>" for name in columns)
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(_text(value))}</td>' for value in row)}</tr>"
            for row in zip(*shown.values(), strict=True)
        )
        more = f"<p>... {rows - HTML_ROWS_MAX} more rows</p>" if rows > HTML_ROWS_MAX else ""
        return (
            f"<p><code>{escape(repr(self))}</code></p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"
        )


def rows_as_columns(kind: Any, rows: Any) -> dict[str, list[Any]]:
    """The columns of a sequence of dataclasses of one kind."""
    names: Mapping[str, Any] = kind.__dataclass_fields__
    return {name: [getattr(row, name) for row in rows] for name in names}


def _package(name: str, method: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingPackage(f"{method} needs {error.name}: {INSTALL_HINT}") from error


def _of_one_type(column: Any) -> Any:
    if isinstance(column, np.ndarray) and column.dtype == object and len(set(map(type, column))) > 1:
        return [str(value) for value in column]
    return column


def _text(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return "" if value is None else str(value)
