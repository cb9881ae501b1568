"""The certificate of the server, and the authority that signs those of its clients."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from livefactor_server.access.grants import AccessFileError, check_private

logger = logging.getLogger(__name__)


class CertificateError(ValueError):
    """A certificate, a key or an authority cannot be used. The text names the file."""


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """The PEM files of a server.

    Attributes:
        certificate: the chain of the server, its own certificate first.
        key: the private key, without a password.
        client_authority: certificates of the authorities that sign those of clients. With it, each
            client must have a certificate. None asks clients for none.
    """

    certificate: Path
    key: Path
    client_authority: Path | None = None

    def check(self) -> None:
        """Checks that the files can be used now.

        Raises:
            CertificateError: a file is missing or malformed, the key does not fit, the certificate
                is not valid now, or others can read the key.
        """
        self._checked()

    def credentials(self) -> grpc.ServerCredentials:
        """The credentials of a gRPC server. Changed files are taken up by the next handshake.

        Raises:
            CertificateError: as `check`.
        """
        given = [self._checked()]

        def changed() -> grpc.ServerCertificateConfiguration | None:
            stamp = self._stamp()
            if stamp == given[0][0]:
                return None
            try:
                given[0] = self._checked()
            except CertificateError as error:
                # The stamp is kept, so the fault is logged once and not at each handshake.
                given[0] = (stamp, given[0][1])
                logger.error("%s; the certificate before the change stays in use", error)
                return None
            logger.info("the certificate %s has changed and was read again", self.certificate)
            return given[0][1]

        return grpc.dynamic_ssl_server_credentials(
            given[0][1],
            # None stands for no change, which the stubs do not know.
            changed,  # type: ignore[arg-type]
            require_client_authentication=self.client_authority is not None,
        )

    def context(self) -> ssl.SSLContext:
        """The context of an HTTPS server, for the metrics. A change of the files needs a restart.

        Raises:
            CertificateError: as `check`.
        """
        self.check()
        made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        made.load_cert_chain(self.certificate, self.key)
        if self.client_authority is not None:
            made.load_verify_locations(self.client_authority)
            made.verify_mode = ssl.CERT_REQUIRED
        return made

    def _files(self) -> list[Path]:
        return [path for path in (self.certificate, self.key, self.client_authority) if path is not None]

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        stamps = []
        for path in self._files():
            try:
                found = path.stat()
                stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
            except OSError:
                stamps.append((0, 0, 0))
        return tuple(stamps)

    def _checked(self) -> tuple[tuple[tuple[int, int, int], ...], grpc.ServerCertificateConfiguration]:
        stamp = self._stamp()
        chain, key = _bytes(self.certificate), _bytes(self.key)
        own = _certificates(self.certificate, chain)[0]
        _check_key(self.key, key, own)
        _check_time(self.certificate, own)
        try:
            check_private(self.key)
        except AccessFileError as error:
            raise CertificateError(str(error)) from None
        authority = None
        if self.client_authority is not None:
            authority = _bytes(self.client_authority)
            for certificate in _certificates(self.client_authority, authority):
                _check_time(self.client_authority, certificate)
        return stamp, grpc.ssl_server_certificate_configuration([(key, chain)], authority)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{path}: {error.strerror}") from None


def _certificates(path: Path, raw: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(raw)
    except ValueError:
        raise CertificateError(f"{path}: it holds no certificate in PEM form") from None


def _check_key(path: Path, raw: bytes, certificate: x509.Certificate) -> None:
    try:
        key = load_pem_private_key(raw, None)
    except TypeError:
        raise CertificateError(f"{path}: the key has a password; store it without one") from None
    except ValueError:
        raise CertificateError(f"{path}: it holds no private key in PEM form") from None
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise CertificateError(f"{path}: the key does not belong to the certificate")


def _check_time(path: Path, certificate: x509.Certificate) -> None:
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise CertificateError(
            f"{path}: the certificate expired at {certificate.not_valid_after_utc:%F %T} UTC"
        )
    if now < certificate.not_valid_before_utc:
        raise CertificateError(
            f"{path}: the certificate is valid from {certificate.not_valid_before_utc:%F %T} UTC on;"
            " is the clock right?"
        )
