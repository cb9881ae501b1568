"""The forms of the server's log: text for people, JSON for machines."""

from __future__ import annotations

import json
import logging
import time
from typing import Any, Literal

from livefactor_server.text import PlainFormatter

LogFormat = Literal["text", "json"]

FIELDS = "fields"
"""The attribute of a log record that holds further fields, a dict. JSON lines show all of them."""


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON, in ASCII.

    Its keys are `time` (UTC, ISO 8601, microseconds), `level`, `logger`, `message`, `exception`
    (a traceback, if there is one), and the keys of the record's FIELDS.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        seconds = time.gmtime(record.created)
        line: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', seconds)}.{int(record.created % 1 * 1e6):06d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line | getattr(record, FIELDS, {}), default=str)


class TextFormatter(PlainFormatter):
    """Formats a record as one line of text, which ends with the record's FIELDS."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The first line of a record."""
        fields = getattr(record, FIELDS, {})
        if fields:
            record.message += "".join(f" {name}={value}" for name, value in fields.items())
        return super().formatMessage(record)


def set_up_logging(level: str, form: LogFormat) -> None:
    """Sends the log of this process to standard error in one form."""
    lines = logging.StreamHandler()
    text = TextFormatter("%(asctime)s %(levelname)-8s %(name)s: %(message)s")
    lines.setFormatter(JsonFormatter() if form == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[lines])
