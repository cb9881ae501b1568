"""How a client proves who it is: TLS files and a bearer token.

Commands, and clients without `access=`, take them from the environment:

    LIVEFACTOR_CA           file of the authorities that sign the server's certificate, or "system"
    LIVEFACTOR_CERTIFICATE  file of the client's own certificate chain
    LIVEFACTOR_KEY          file of its private key
    LIVEFACTOR_TOKEN        bearer token
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from livefactor.errors import InvalidArgument

SYSTEM = "system"


@dataclass(frozen=True)
class Access:
    """How a client proves who it is. All files are in PEM form.

    ca: file of the authorities that sign the server's certificate; "system" for those that gRPC
    brings along; None for plain text. certificate, key: the client's own certificate chain and its
    private key, where the server asks for them. token: bearer token (`livefactor token create`). It
    is sent with TLS, to loopback addresses and to Unix-domain sockets only.
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    token: str = field(default="", repr=False)

    @classmethod
    def from_environment(cls) -> Access:
        """The access that the environment variables name."""

        def text(name: str) -> str | None:
            return os.environ.get(f"LIVEFACTOR_{name}") or None

        return cls(text("CA"), text("CERTIFICATE"), text("KEY"), text("TOKEN") or "")

    def credentials(self) -> grpc.ChannelCredentials | None:
        """gRPC's credentials of a channel; None for plain text.

        Raises InvalidArgument for an option without its other half, and for an unreadable file.
        """
        if (self.certificate is None) != (self.key is None):
            raise InvalidArgument("access: certificate and key need each other")
        if self.ca is None:
            if self.certificate is not None:
                raise InvalidArgument("access: a certificate needs ca, the authorities of the server")
            return None
        roots = None if self.ca == SYSTEM else _read("ca", self.ca)
        chain = None if self.certificate is None else _read("certificate", self.certificate)
        key = None if self.key is None else _read("key", self.key)
        return grpc.ssl_channel_credentials(roots, key, chain)

    def metadata(self, is_private: bool) -> tuple[tuple[str, str], ...]:
        """The metadata of each call. is_private: whether nobody can read it on the way.

        Raises InvalidArgument for a token that could be read on the way.
        """
        if not self.token:
            return ()
        if not is_private:
            raise InvalidArgument(
                "access: a token must not be sent in plain text to another machine; set ca (LIVEFACTOR_CA)"
            )
        return (("authorization", f"Bearer {self.token}"),)


def _read(name: str, path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"access: {name}: {path}: {error.strerror}") from None
