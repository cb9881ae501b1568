"""The settings of an engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from livefactor_server.engine.quotas import QuotaSettings
from livefactor_server.judging.observer import ObserverSettings


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings of an engine.

    Attributes:
        queue_bytes_max: limit of the bytes of queued batches.
        memory_bytes_max: limit of the memory of the model (`Engine.memory_bytes`), in bytes.
        backend: "cpu" or "cuda".
        quotas: what a producer may send in a time.
        observer: settings of the judge.
        ack_after_followers: followers that have a batch on disk before it is acknowledged.
        ack_wait_s: seconds after which a batch that too few have gets UNAVAILABLE.
    """

    queue_bytes_max: int = 64 << 20
    memory_bytes_max: int = 8 << 30
    backend: str = "cpu"
    observer: ObserverSettings = field(default_factory=ObserverSettings)
    quotas: QuotaSettings = field(default_factory=QuotaSettings)
    ack_after_followers: int = 0
    ack_wait_s: float = 10.0
