"""Text of peers: cut where it stands in a status, escaped where it reaches a terminal or a log.

A peer chooses labels, producer ids, names and the texts of its errors. On a terminal, control
characters in them could move the cursor, and a line break could forge a line.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

NAME_CHARACTERS_MAX = 64
"""Characters of a peer's text that the text of a status quotes."""


def plain(text: str) -> str:
    """The text with every character escaped that is not printable, such as ESC, BEL or a newline.

    An escaped character looks as in Python: `\\x1b`. So the result is one line.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def plain_lines(lines: Iterable[str]) -> str:
    """The lines as one text, each of them escaped. All lines after the first one are indented."""
    return "\n    ".join(map(plain, lines))


def quoted(name: str) -> str:
    """The name in quotes, cut to NAME_CHARACTERS_MAX characters, for the text of a status."""
    cut = f"{name[:NAME_CHARACTERS_MAX]}..." if len(name) > NAME_CHARACTERS_MAX else name
    return f"'{plain(cut)}'"


class PlainFormatter(logging.Formatter):
    """Formats log records, so that no text in them can forge a line or control a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The first line of a record."""
        record.message = plain(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        """A traceback, indented."""
        lines = super().formatException(ei).splitlines()  # type: ignore[arg-type]
        return plain_lines(["", *lines]).removeprefix("\n")
