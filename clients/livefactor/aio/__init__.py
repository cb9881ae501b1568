"""The clients for asyncio: AsyncProducer, AsyncScorer, AsyncAuditor and AsyncModels.

    async with livefactor.aio.AsyncScorer("127.0.0.1:50051") as scorer:
        best = await scorer.recommend("ann", k=10)

Each has the methods of the client without `Async` in its name, with the same arguments, results and
errors, as coroutines. Any number of calls may be in flight. A client belongs to the event loop that
makes its first call. If a task is cancelled, its call is cancelled too; rows that a producer took
are delivered nevertheless.
"""

from __future__ import annotations

from livefactor.aio.clients import AsyncAuditor, AsyncModels, AsyncScorer
from livefactor.aio.producer import AsyncProducer

__all__ = ["AsyncAuditor", "AsyncModels", "AsyncProducer", "AsyncScorer"]
