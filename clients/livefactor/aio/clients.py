"""`AsyncScorer`, `AsyncAuditor` and `AsyncModels`: the clients of reads, as coroutines."""

from __future__ import annotations

from livefactor.aio.connection import AsyncClient, awaited
from livefactor.auditor import Auditor, AuditorBase
from livefactor.models import Models, ModelsBase
from livefactor.scorer import Scorer, ScorerBase


class AsyncScorer(ScorerBase, AsyncClient):
    """Asks one model for scores. It takes the arguments of `livefactor.Scorer`.

    channel: a `grpc.aio.Channel` of the caller.
    """

    score = awaited(Scorer.score)
    recommend = awaited(Scorer.recommend)
    similar = awaited(Scorer.similar)


class AsyncAuditor(AuditorBase, AsyncClient):
    """Handles snapshots and explains scores. It takes the arguments of `livefactor.Auditor`.

    Files are written and verified in a thread. channel: a `grpc.aio.Channel` of the caller.
    """

    snapshot = awaited(Auditor.snapshot)
    list = awaited(Auditor.list)
    fetch = awaited(Auditor.fetch)
    verify = awaited(Auditor.verify)
    explain = awaited(Auditor.explain)
    served = awaited(Auditor.served)


class AsyncModels(ModelsBase, AsyncClient):
    """The models of one server. It takes the arguments of `livefactor.Models`.

    channel: a `grpc.aio.Channel` of the caller.
    """

    create = awaited(Models.create)
    describe = awaited(Models.describe)
    features = awaited(Models.features)
    producers = awaited(Models.producers)
    list = awaited(Models.list)
    delete = awaited(Models.delete)
    restore = awaited(Models.restore)
    promote = awaited(Models.promote)
    roll_back = awaited(Models.roll_back)
    forget_cost = awaited(Models.forget_cost)
    forget = awaited(Models.forget)
    privacy = awaited(Models.privacy)
    contribute = awaited(Models.contribute)
    make_release = awaited(Models.make_release)
    challenge = awaited(Models.challenge)
    challengers = awaited(Models.challengers)
    settle = awaited(Models.settle)
    release = awaited(Models.release)
    quarantine = awaited(Models.quarantine)
    decide = awaited(Models.decide)
    take_lead = awaited(Models.take_lead)
