"""What the head and a worker tell each other: lines of JSON over a socket."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from livefactor_kernels.tables.shared import Place, Places
from livefactor_server.access.entry import Entry
from livefactor_server.rpc.calls import ServiceSettings
from livefactor_server.telemetry.durations import Series


@dataclass(frozen=True, slots=True)
class EntryFiles:
    """The files of TLS and access of a server, "" for none (`cli.serve.settings`)."""

    certificate: str = ""
    key: str = ""
    client_authority: str = ""
    access: str = ""

    def entry(self) -> Entry:
        """How calls come in.

        Raises:
            ValueError: a file has a fault.
        """
        from livefactor_server.access.grants import Grants

        certificate = None
        if self.certificate:
            from livefactor_server.access.certificates import CertificateFiles

            authority = Path(self.client_authority) if self.client_authority else None
            certificate = CertificateFiles(Path(self.certificate), Path(self.key), authority)
        return Entry(certificate, Grants(Path(self.access)) if self.access else None)


@dataclass(frozen=True, slots=True)
class Setup:
    """The first line to a worker.

    Attributes:
        address: where it listens, "host:port".
        head: address of the head, "unix:/path".
        service: limits of calls.
        files: TLS and access.
        log_level, log_format: see `telemetry.lines.set_up_logging`.
    """

    address: str
    head: str
    service: ServiceSettings
    files: EntryFiles
    log_level: str = "info"
    log_format: Literal["text", "json"] = "text"

    def to_line(self) -> bytes:
        """The line."""
        return _line(asdict(self))

    @staticmethod
    def from_line(line: bytes) -> Setup:
        """The setup of a line."""
        given = json.loads(line)
        given["service"] = ServiceSettings(**given["service"])
        given["files"] = EntryFiles(**given["files"])
        return Setup(**given)


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model that workers may answer from.

    Attributes:
        name: its name.
        lineage: 32 hex digits.
        spec_id: the spec in force, 16 hex digits.
        spec: the logged bytes of the spec, in hex digits.
        places: where it lies in the arena.
    """

    name: str
    lineage: str
    spec_id: str
    spec: str
    places: Places


@dataclass(frozen=True, slots=True)
class Order:
    """A later line to a worker.

    Attributes:
        models: all models that it may answer from, or None: as before.
        stop_s: with a number it ends its calls within so many seconds, and then itself.
    """

    models: tuple[ModelEntry, ...] | None = None
    stop_s: float | None = None

    def to_line(self) -> bytes:
        """The line."""
        return _line(asdict(self))

    @staticmethod
    def from_line(line: bytes) -> Order:
        """The order of a line."""
        given = json.loads(line)
        models = given["models"]
        return Order(None if models is None else tuple(map(_model, models)), given["stop_s"])


@dataclass(frozen=True, slots=True)
class Report:
    """A line from a worker. The first one says that it listens.

    Attributes:
        calls: durations of the calls that it answered since the last report.
        counts: what the counters in `metrics.COUNTED` have counted since then, by label.
    """

    calls: Sequence[Series] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def to_line(self) -> bytes:
        """The line."""
        return _line({"calls": list(self.calls), "counts": self.counts})

    @staticmethod
    def from_line(line: bytes) -> Report:
        """The report of a line."""
        given = json.loads(line)
        calls = [Series((rpc, model, code), counts, s) for (rpc, model, code), counts, s in given["calls"]]
        return Report(calls, given["counts"])


def _model(given: dict[str, Any]) -> ModelEntry:
    places = [
        Place(name, address, tuple(shape), dtype) for name, address, shape, dtype in given.pop("places")
    ]
    return ModelEntry(**given, places=tuple(places))


def _line(content: Any) -> bytes:
    return json.dumps(content).encode() + b"\n"
