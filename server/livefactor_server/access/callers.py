"""Whom a call comes from: its token or its client certificate, and the grant of either."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from livefactor_server.access.grants import Grant, Grants, Role
from livefactor_server.statuses import denied, unauthenticated
from livefactor_server.text import quoted

AUTHORIZATION = "authorization"
RELAYED_NAMES = "livefactor-certificate-bin"
"""The metadata from a score worker to the head. A worker passes none on that a client sent."""

_NAMES = ("x509_common_name", "x509_subject_alternative_name")


class Context(Protocol):
    """What a call says of its caller. Contexts of grpcio have these methods."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """The metadata that the client sent."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What TLS knows of the client."""

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, None without one."""


def certificate_names(context: Context) -> list[str]:
    """The names in the verified client certificate of a call."""
    return [text.decode(errors="replace") for kind in _NAMES for text in context.auth_context().get(kind, ())]


def relayed_names(context: Context) -> list[str]:
    """The names that a score worker read from the client certificate of a call."""
    for name, value in context.invocation_metadata() or ():
        if name == RELAYED_NAMES and isinstance(value, bytes) and value:
            return value.decode().split("\0")
    return []


def relayed_identity(context: Context) -> list[tuple[str, str | bytes]]:
    """The metadata with which a score worker passes on whom a call comes from."""
    given: list[tuple[str, str | bytes]] = [
        (name, value) for name, value in context.invocation_metadata() or () if name == AUTHORIZATION
    ]
    names = certificate_names(context)
    return [*given, (RELAYED_NAMES, "\0".join(names).encode())] if names else given


def grant_of(
    context: Context, grants: Grants, names_of: Callable[[Context], list[str]] = certificate_names
) -> Grant:
    """The grant of a call. A token counts before a certificate.

    Args:
        context: the context of the call.
        grants: the grants of the access file.
        names_of: the names in the client certificate of a call.

    Raises:
        Refused: UNAUTHENTICATED if the call has no valid grant.
    """
    for name, value in context.invocation_metadata() or ():
        if name == AUTHORIZATION:
            found = grants.of_authorization(value if isinstance(value, str) else "")
            if found is None:
                raise unauthenticated("authorization: the bearer token is unknown, or it has expired")
            return found
    names = names_of(context)
    found = grants.of_certificate(names)
    if found is None:
        what = f"no grant for the client certificate {quoted(names[0])}" if names else "no bearer token"
        raise unauthenticated(f"authorization: the call has {what}")
    return found


def check_role(grant: Grant, roles: frozenset[Role], what: str) -> None:
    """Checks that a grant may call an RPC.

    Raises:
        Refused: PERMISSION_DENIED.
    """
    if grant.role not in roles and grant.role is not Role.ADMIN:
        allowed = ", ".join(sorted(roles | {Role.ADMIN}))
        raise denied(f"{what}: the role {grant.role} may not call it (roles that may: {allowed})")


def check_model(grant: Grant, model: str) -> None:
    """Checks that a grant covers a model.

    Raises:
        Refused: PERMISSION_DENIED. It does not tell whether the model exists.
    """
    if not grant.covers(model):
        raise denied(f"model: the grant {quoted(grant.name)} does not cover {quoted(model)}")
