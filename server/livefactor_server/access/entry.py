"""How calls come in: in plain text or with TLS, from everybody or with grants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from livefactor_server.access.grants import Grants

if TYPE_CHECKING:
    # Its import takes long, and a server without TLS does not need it.
    from livefactor_server.access.certificates import CertificateFiles


@dataclass(frozen=True, slots=True)
class Entry:
    """How calls come in.

    Attributes:
        certificate: the files for TLS. None accepts plain text.
        grants: what callers may do. None serves everybody.
    """

    certificate: CertificateFiles | None = None
    grants: Grants | None = None


OPEN = Entry()
"""Plain text and everybody, for loopback and Unix-domain sockets."""
