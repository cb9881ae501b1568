"""The errors of gRPC as errors of this package."""

from __future__ import annotations

import re

import grpc

from livefactor.errors import InvalidArgument, LivefactorError, ResourceExhausted, from_rpc
from livefactor.wire.limits import over

# gRPC's text for a message above its limit. Its status says "try again", which never helps.
_TOO_LARGE = re.compile(r"(.*)(Received|Sent) message larger than max \((\d+) vs. (\d+)\)")


def translated(error: Exception, doing: str) -> LivefactorError:
    """The error for what a call of gRPC raised, also on a closed channel.

    doing: what was tried; the message begins with it.
    """
    if not isinstance(error, grpc.RpcError):
        return LivefactorError(f"{doing}: {error}")
    failure = from_rpc(error, doing)
    if isinstance(failure, ResourceExhausted) and (large := _TOO_LARGE.match(failure.details)):
        side, verb, got, most = large.groups()
        # Texts without a side are those of the receiver of the answer.
        field = "request" if side.startswith("SERVER") == (verb == "Received") else "answer"
        text = over(field, int(most), int(got), "bytes")
        return InvalidArgument(f"{doing}: {text}", code=failure.code, details=text)
    return failure
