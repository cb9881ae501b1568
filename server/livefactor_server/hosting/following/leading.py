"""A follower becomes the leader, and the leader before is fenced.

threads of the follower end ─▶ a record TERM in each log ─▶ updates are taken
                                                  └─▶ Fence calls to the leader before, until it
                                                      answers or this server ends
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import NamedTuple

import grpc

from livefactor.v1 import following_pb2
from livefactor_server.changes.history.term import TermChange
from livefactor_server.hosting.following.leader import Leader
from livefactor_server.hosting.hosted import Hosted
from livefactor_server.hosting.identity import UNKNOWN_LEADER, Terms
from livefactor_server.statuses import precondition

FENCE_EVERY_S = 1.0
"""Seconds between two tries to fence the leader before."""

_FINAL = (
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
)
"""Statuses of a Fence call after which no further try can help."""

logger = logging.getLogger(__name__)


class Lead(NamedTuple):
    """A model that this server leads since `revision`, where `term` begins."""

    model: str
    revision: int
    term: int


def begin_terms(models: Iterable[Hosted], before: str) -> list[Lead]:
    """Logs a new term in each model, which takes updates from then on.

    `before` is the address of the leader before.

    Raises:
        Refused: a record cannot be logged.
        OSError: the term cannot be written to the model's folder.
    """
    leads = []
    for hosted in models:
        term = max(hosted.term, hosted.terms.newer) + 1
        hosted.engine.lead()
        revision = hosted.engine.append(TermChange.of(term, before))
        hosted.terms = Terms(term)
        hosted.terms.save(hosted.folder)
        leads.append(Lead(hosted.name, revision, term))
        logger.warning(
            "model %s: this server leads it since revision %d, in term %d", hosted.name, revision, term
        )
    return leads


def fence(hosted: Hosted, lineage: bytes, term: int, leader: str) -> None:
    """Keeps updates from a model that the server `leader` leads in a newer term.

    Raises:
        Refused: FAILED_PRECONDITION if the lineage is another one, or the term is not newer.
        OSError: the fence cannot be written to the model's folder.
    """
    if lineage != hosted.engine.log.lineage.bytes:
        raise precondition("fence: the model has another lineage")
    if term == hosted.term and hosted.engine.leader:
        # It follows already.
        return
    if term <= hosted.term:
        raise precondition(f"fence: the model is in term {hosted.term} already")
    hosted.terms = Terms(hosted.term, term, leader)
    hosted.terms.save(hosted.folder)
    hosted.engine.leader = hosted.engine.leader or leader or UNKNOWN_LEADER
    logger.warning(
        "model %s: it takes no updates any more; %s leads it in term %d",
        hosted.name, hosted.engine.leader, term,
    )  # fmt: skip


class Fencing:
    """Tells the leader before, again and again, that it is no leader any more."""

    def __init__(self, leader: Leader, models: Iterable[Hosted], address: str) -> None:
        """`address` is where this server can be reached."""
        self._leader = leader
        self._requests = [
            following_pb2.FenceRequest(
                model=hosted.name, lineage=hosted.engine.log.lineage.bytes, term=hosted.term, address=address
            )
            for hosted in models
        ]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fence", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the tries."""
        self._stopped.set()
        self._leader.close()
        self._thread.join()

    def _run(self) -> None:
        while self._requests and not self._stopped.is_set():
            self._requests = [each for each in self._requests if not self._is_done(each)]
            if self._requests and self._stopped.wait(FENCE_EVERY_S):
                return

    def _is_done(self, request: following_pb2.FenceRequest) -> bool:
        try:
            self._leader.fence(request)
        except grpc.RpcError as error:
            if error.code() not in _FINAL:
                return False
            logger.warning(
                "model %s: %s was not fenced: %s", request.model, self._leader.target, error.details()
            )
            return True
        except ValueError:
            # The channel is closed.
            return False
        logger.warning("model %s: %s takes no updates any more", request.model, self._leader.target)
        return True
