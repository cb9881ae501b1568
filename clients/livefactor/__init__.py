"""The client of livefactor: push user-item events into a factorization model and ask it for scores.

A snapshot proves later which model gave an answer.

    with livefactor.Producer("127.0.0.1:50051", "shop") as producer:
        ack = producer.push(["ann", "bob"], ["milk", "bread"]).result()
    with livefactor.Scorer("127.0.0.1:50051") as scorer:
        best = scorer.recommend("ann", k=10, min_position=ack.position)

`Producer` delivers rows, none of them twice. `Scorer` scores and recommends items. `Auditor` takes,
fetches and verifies snapshots. `Models` creates and deletes models. `load` reads a fetched snapshot
into NumPy arrays. `local()` runs a server in this process. `livefactor.aio` has the clients for
asyncio. `livefactor.errors` lists every error.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from livefactor.access import Access
    from livefactor.auditor import Auditor, SnapshotInfo, SnapshotProgress
    from livefactor.channel import open_channel
    from livefactor.errors import (
        AlreadyExists,
        BufferFull,
        Cancelled,
        ColumnError,
        DeadlineExceeded,
        FailedPrecondition,
        FlushTimeout,
        ForkError,
        InvalidArgument,
        LivefactorError,
        MissingPackage,
        NotFitted,
        NotFound,
        PermissionDenied,
        ProducerClosed,
        ProducerFenced,
        ResourceExhausted,
        ServerMissing,
        SnapshotInvalid,
        Unauthenticated,
        Unavailable,
        UnexpectedStatus,
        Unimplemented,
        UnknownSpec,
    )
    from livefactor.in_process import Local, local
    from livefactor.models import ModelDescription, Models
    from livefactor.position import Position
    from livefactor.pushing.batching import Ack, BatchSettings, Receipt, RowReject
    from livefactor.pushing.producer import Producer
    from livefactor.pushing.sending import ProducerStatus
    from livefactor.recommender import Recommender
    from livefactor.results.answers import Recommendations, Scores, UserAnswer
    from livefactor.results.judgement import Hold, JudgeEvent, JudgeFigure, Judgement
    from livefactor.scorer import Scorer
    from livefactor.snapshots.files import Verification, load, verify
    from livefactor.snapshots.loaded import LoadedSnapshot
    from livefactor.wire.keys import key_of, keys_of

__version__ = "0.1.0"

__all__ = [
    "Access",
    "Ack",
    "AlreadyExists",
    "Auditor",
    "BatchSettings",
    "BufferFull",
    "Cancelled",
    "ColumnError",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FlushTimeout",
    "ForkError",
    "Hold",
    "InvalidArgument",
    "JudgeEvent",
    "JudgeFigure",
    "Judgement",
    "LivefactorError",
    "LoadedSnapshot",
    "Local",
    "MissingPackage",
    "ModelDescription",
    "Models",
    "NotFitted",
    "NotFound",
    "PermissionDenied",
    "Position",
    "Producer",
    "ProducerClosed",
    "ProducerFenced",
    "ProducerStatus",
    "Receipt",
    "Recommendations",
    "Recommender",
    "ResourceExhausted",
    "RowReject",
    "Scorer",
    "Scores",
    "ServerMissing",
    "SnapshotInfo",
    "SnapshotInvalid",
    "SnapshotProgress",
    "Unauthenticated",
    "Unavailable",
    "UnexpectedStatus",
    "Unimplemented",
    "UnknownSpec",
    "UserAnswer",
    "Verification",
    "__version__",
    "key_of",
    "keys_of",
    "load",
    "local",
    "open_channel",
    "verify",
]

_NAMES = {
    "access": ("Access",),
    "results.answers": ("Recommendations", "Scores", "UserAnswer"),
    "auditor": ("Auditor", "SnapshotInfo", "SnapshotProgress"),
    "channel": ("open_channel",),
    "errors": (
        "AlreadyExists",
        "BufferFull",
        "Cancelled",
        "ColumnError",
        "DeadlineExceeded",
        "FailedPrecondition",
        "FlushTimeout",
        "ForkError",
        "InvalidArgument",
        "LivefactorError",
        "MissingPackage",
        "NotFitted",
        "NotFound",
        "PermissionDenied",
        "ProducerClosed",
        "ProducerFenced",
        "ResourceExhausted",
        "ServerMissing",
        "SnapshotInvalid",
        "Unauthenticated",
        "Unavailable",
        "UnexpectedStatus",
        "Unimplemented",
        "UnknownSpec",
    ),
    "results.judgement": ("Hold", "JudgeEvent", "JudgeFigure", "Judgement"),
    "in_process": ("Local", "local"),
    "models": ("ModelDescription", "Models"),
    "position": ("Position",),
    "pushing.batching": ("Ack", "BatchSettings", "Receipt", "RowReject"),
    "pushing.producer": ("Producer",),
    "pushing.sending": ("ProducerStatus",),
    "recommender": ("Recommender",),
    "scorer": ("Scorer",),
    "snapshots.files": ("Verification", "load", "verify"),
    "snapshots.loaded": ("LoadedSnapshot",),
    "wire.keys": ("key_of", "keys_of"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
"""The module of each name. It is imported at the first use of the name, because gRPC and NumPy take
long to import.
"""


def __getattr__(name: str) -> Any:
    home = name if name in ("aio", "errors") else _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{home}")
    # The next use finds the name itself.
    value = globals()[name] = module if name == home else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))
