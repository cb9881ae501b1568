"""Faults: models that cannot be opened. The server serves the others and says why.

An operator repairs the folder and starts the server again, or restores the model from a snapshot.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Gauge

from livefactor.errors import SnapshotInvalid
from livefactor_kernels.spec.model import SpecError
from livefactor_server.hosting.identity import ForeignFolder
from livefactor_server.log.store import LogError
from livefactor_server.snapshots.replay import BeginningLost, ReplayError
from livefactor_server.statuses import Refused, precondition
from livefactor_server.text import plain

FAULT = Gauge("livefactor_fault", "1 for a model that cannot be opened and is not served.", ["model"])

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fault:
    """A model that cannot be opened. `reason` is one line for the operator.

    `lost` says that a follower needs a new copy of the leader's model.
    """

    name: str
    reason: str
    lost: bool = False

    def refusal(self) -> Refused:
        """The answer to calls for the model."""
        return precondition(
            f"model: {self.name!r} is not served: {self.reason}; `livefactor models restore {self.name} "
            f"{self.name}` restores it from a snapshot"
        )


class Faults:
    """The faults of a server, by the name of the model."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._faults: dict[str, Fault] = {}

    def note(self, name: str, error: Exception) -> None:
        """Notes why a model cannot be opened, and logs it."""
        reason = self._reason(error)
        if reason is None:
            logger.error("model %s: an unexpected error at its opening", name, exc_info=error)
            reason = "an unexpected error; the server's log has it"
        self._faults[name] = Fault(name, reason, isinstance(error, BeginningLost))
        FAULT.labels(name).set(1)
        logger.error("model %s is not served: %s", name, reason)

    def _reason(self, error: Exception) -> str | None:
        if isinstance(error, MemoryError):
            return "the memory is not sufficient to open it"
        if isinstance(error, OSError) and error.filename is not None:
            text = f"{error.strerror}: {error.filename}"
        elif isinstance(
            error, LogError | ReplayError | SpecError | SnapshotInvalid | ForeignFolder | OSError
        ):
            text = str(error)
        else:
            return None
        # Clients see the text, and need no path of the server's machine.
        return plain(text.replace(f"{self._data}/", ""))

    def forget(self, name: str) -> None:
        """Ends the fault of a model that was restored or deleted."""
        if self._faults.pop(name, None) is not None:
            FAULT.remove(name)

    def get(self, name: str) -> Fault | None:
        """The fault of a model, or None."""
        return self._faults.get(name)

    def all(self) -> list[Fault]:
        """All faults, in order of the names."""
        return [self._faults[name] for name in sorted(self._faults)]

    def close(self) -> None:
        """Ends all faults."""
        for fault in self.all():
            self.forget(fault.name)
