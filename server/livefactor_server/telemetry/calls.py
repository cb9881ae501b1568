"""The figures and the log lines of calls."""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from livefactor_server.telemetry.durations import CALL_SECONDS
from livefactor_server.telemetry.lines import FIELDS

REFUSED_A_SECOND_MAX = 20
"""Maximum number of lines a second about refused calls."""

TEXT_CHARACTERS_MAX = 64
"""Characters that a line shows of a name that a caller chose."""

logger = logging.getLogger("livefactor_server.calls")


def is_verbose() -> bool:
    """Whether every call has a line."""
    return logger.isEnabledFor(logging.DEBUG)


class Report(Protocol):
    """A call, as far as it is reported. Empty texts and 0 are unknown.

    Attributes:
        rpc: name of the RPC, "Service.Method".
        is_change: whether the RPC creates, changes or deletes models.
        request_id: the id of the request.
        caller: name of the grant.
        model: the model that the call named.
        has_model: whether this model exists. Only then is its name a label of figures, so that no
            caller can make labels.
        producer: the producer's id.
        revision: the revision of the answer.
    """

    rpc: str
    is_change: bool
    request_id: str
    model: str
    has_model: bool
    producer: bytes
    revision: int

    @property
    def caller(self) -> str:
        """Name of the grant."""


class CallLog:
    """Counts calls that have ended, and writes their lines. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._second, self._lines, self._silent = 0.0, 0, 0

    def ended(self, call: Report, code: str, seconds: float, text: str = "") -> None:
        """A call has ended with the status `code` after `seconds`. `text` is that of its status."""
        CALL_SECONDS.observe((call.rpc, call.model if call.has_model else "", code), seconds)
        if code != "OK":
            if self._may_speak() or is_verbose():
                self._write(logging.INFO, call, code, seconds, text)
        elif call.is_change:
            self._write(logging.INFO, call, code, seconds, text)
        elif is_verbose():
            self._write(logging.DEBUG, call, code, seconds, text)

    def _may_speak(self) -> bool:
        now = time.monotonic()
        with self._lock:
            if now - self._second >= 1:
                self._second, self._lines = now, 0
            self._lines += 1
            if self._lines <= REFUSED_A_SECOND_MAX:
                return True
            self._silent += 1
            return False

    def _write(self, level: int, call: Report, code: str, seconds: float, text: str) -> None:
        fields = {
            "request_id": call.request_id,
            "rpc": call.rpc,
            "status": code,
            "duration_ms": round(1000 * seconds, 3),
            "caller": call.caller,
            "model": call.model[:TEXT_CHARACTERS_MAX],
            "producer": call.producer[:TEXT_CHARACTERS_MAX].decode(errors="replace"),
            "revision": call.revision,
        }
        if code != "OK":
            with self._lock:
                silent, self._silent = self._silent, 0
            if silent:
                fields["refused_without_a_line"] = silent
        known = {name: value for name, value in fields.items() if value not in ("", 0)}
        logger.log(level, "%s", text or "call", extra={FIELDS: known})
