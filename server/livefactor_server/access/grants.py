"""Grants: the role and the models of a caller, and the file that lists them.

The access file is TOML:

    [[grant]]
    name = "shop back end"
    role = "consumer"
    models = ["shop"]                     # without it: all models
    token_sha256 = "9f86d081884c7d65..."  # or: certificate = "shop.example.org"
    expires = 2027-12-31T00:00:00Z        # may be absent
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import threading
import time
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from livefactor_server.access.clock import CLOCK
from livefactor_server.text import quoted

BYTES_MAX = 1 << 20
"""Maximum size of an access file."""

TOKEN_PREFIX = "lf_"
"""Tokens begin with this, so that scanners for secrets find them."""

_BEARER = "Bearer "

RELOAD_S = 1.0
"""Seconds between two looks at whether the file has changed."""

logger = logging.getLogger(__name__)


class AccessFileError(ValueError):
    """The access file is missing, can be read by others, or has a fault."""


class Role(StrEnum):
    """What a caller may do. The docstring of the package explains the roles."""

    PRODUCER = "producer"
    CONSUMER = "consumer"
    AUDITOR = "auditor"
    ADMIN = "admin"


ANY = frozenset(Role)


@dataclass(frozen=True, slots=True)
class Grant:
    """What one caller may do.

    Attributes:
        name: name of the caller, for the log.
        role: the role.
        models: names of the models that it covers. None covers all.
        expires: Unix time from which the grant is void, seconds. None never voids it.
    """

    name: str
    role: Role
    models: frozenset[str] | None = None
    expires: float | None = None

    def covers(self, model: str) -> bool:
        """Whether the grant covers a model."""
        return self.models is None or model in self.models

    @property
    def is_valid(self) -> bool:
        """Whether the grant has not expired."""
        return self.expires is None or CLOCK.now() < self.expires


EVERYTHING = Grant("everybody", Role.ADMIN)
"""The grant of every caller of a server without an access file."""


def digest(token: str) -> str:
    """The SHA-256 hash of a token, in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def new_token() -> str:
    """A random token of 256 bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


class Grants:
    """The grants of an access file. The file is read again when it changes. Thread-safe.

    While a changed file has a fault, the grants before the change stay in force, and the fault is
    logged once.
    """

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Raises:
            AccessFileError: the file has a fault, or the clock is not set. The text names it.
        """
        self._path = path
        if (fault := CLOCK.fault()) is not None:
            raise AccessFileError(f"{path}: {fault}, so no grant can be checked; set the clock")
        self._lock = threading.Lock()
        self._stamp = _stamp(path)
        self._by_token, self._by_certificate = _read(path)
        self._look_at = time.monotonic() + RELOAD_S

    def of_token(self, token: str) -> Grant | None:
        """The valid grant of a bearer token."""
        self._refresh()
        return _valid(self._by_token.get(digest(token)))

    def of_authorization(self, header: str) -> Grant | None:
        """The valid grant of the bearer token in an authorization header."""
        return self.of_token(header.removeprefix(_BEARER)) if header.startswith(_BEARER) else None

    def of_certificate(self, names: Iterable[str]) -> Grant | None:
        """The valid grant of a verified client certificate with these names."""
        self._refresh()
        found = (self._by_certificate.get(name) for name in names)
        return next((grant for grant in map(_valid, found) if grant is not None), None)

    def _refresh(self) -> None:
        now = time.monotonic()
        if now < self._look_at or not self._lock.acquire(blocking=False):
            return
        try:
            self._look_at = now + RELOAD_S
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._by_token, self._by_certificate = _read(self._path)
            logger.info("the access file %s has changed and was read again", self._path)
        except AccessFileError as error:
            logger.error("%s; the grants before the change stay in force", error)
        finally:
            self._lock.release()


def _valid(grant: Grant | None) -> Grant | None:
    return grant if grant is not None and grant.is_valid else None


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode


def _read(path: Path) -> tuple[dict[str, Grant], dict[str, Grant]]:
    check_private(path)
    try:
        raw = path.read_bytes()
        if len(raw) > BYTES_MAX:
            raise AccessFileError(f"{path}: at most {BYTES_MAX:,} bytes, got {len(raw):,}")
        table = tomllib.loads(raw.decode())
    except OSError as error:
        raise AccessFileError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        if isinstance(error, AccessFileError):
            raise
        # The text of the parser could hold a part of the file.
        raise AccessFileError(f"{path}: it is not a TOML file") from None
    entries = table.pop("grant", [])
    if table or not isinstance(entries, list):
        raise AccessFileError(f"{path}: expected only [[grant]] tables, got {', '.join(map(quoted, table))}")
    by_token: dict[str, Grant] = {}
    by_certificate: dict[str, Grant] = {}
    for number, entry in enumerate(entries, 1):
        try:
            key, grant, found = _grant(entry, by_token, by_certificate)
        except ValueError as error:
            raise AccessFileError(f"{path}: grant {number}: {error}") from None
        if key in found:
            raise AccessFileError(
                f"{path}: grant {number}: an earlier grant has the same token or certificate"
            )
        found[key] = grant
    return by_token, by_certificate


_FIELDS = ("name", "role", "models", "token_sha256", "certificate", "expires")


def _grant(
    entry: Mapping[str, Any], by_token: dict[str, Grant], by_certificate: dict[str, Grant]
) -> tuple[str, Grant, dict[str, Grant]]:
    unknown = [field for field in entry if field not in _FIELDS]
    if unknown:
        raise ValueError(f"there is no field {quoted(unknown[0])}; the fields are {', '.join(_FIELDS)}")
    name = _text(entry, "name")
    role_name = _text(entry, "role")
    if role_name not in ANY:
        raise ValueError(f"role: expected one of {', '.join(Role)}, got {quoted(role_name)}")
    models = entry.get("models")
    if models is not None and not (isinstance(models, list) and all(isinstance(m, str) for m in models)):
        raise ValueError("models: expected a list of names")
    expires = entry.get("expires")
    if expires is not None and not (isinstance(expires, datetime) and expires.tzinfo is not None):
        raise ValueError("expires: expected a time with a zone, such as 2027-12-31T00:00:00Z")
    if ("token_sha256" in entry) == ("certificate" in entry):
        raise ValueError("expected token_sha256 or certificate, and not both")
    grant = Grant(
        name,
        Role(role_name),
        None if models is None else frozenset(models),
        None if expires is None else expires.timestamp(),
    )
    if "certificate" in entry:
        return _text(entry, "certificate"), grant, by_certificate
    hashed = _text(entry, "token_sha256").lower()
    if len(hashed) != 64 or any(character not in "0123456789abcdef" for character in hashed):
        raise ValueError("token_sha256: expected 64 hex digits; `livefactor token create` writes them")
    return hashed, grant, by_token


def _text(entry: Mapping[str, Any], field: str) -> str:
    value = entry.get(field)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{field}: expected a text")
    return value


def check_private(path: Path) -> None:
    """Checks that other users of the machine can neither read nor change a file with secrets.

    Raises:
        AccessFileError: they can, or the file does not exist.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise AccessFileError(f"{path}: {error.strerror}") from None
    if mode & 0o007 or mode & 0o020:
        raise AccessFileError(
            f"{path}: others can read or change it (mode {mode & 0o777:o}); `chmod 600` or `chmod 640` it"
        )


def add_grant(path: Path, grant: Grant, token: str) -> None:
    """Appends the grant of a token to an access file, which is made with mode 600 if there is none.

    Raises:
        AccessFileError: the file has a fault, or it has a grant of this name.
        OSError: the file cannot be written.
    """
    if path.exists():
        by_token, by_certificate = _read(path)
        if grant.name in {known.name for known in (*by_token.values(), *by_certificate.values())}:
            raise AccessFileError(f"{path}: it has a grant named {quoted(grant.name)}")
    lines = ["[[grant]]", f"name = {_toml(grant.name)}", f'role = "{grant.role}"']
    if grant.models is not None:
        lines.append(f"models = [{', '.join(map(_toml, sorted(grant.models)))}]")
    lines.append(f'token_sha256 = "{digest(token)}"')
    if grant.expires is not None:
        lines.append(f"expires = {datetime.fromtimestamp(grant.expires, UTC):%Y-%m-%dT%H:%M:%SZ}")
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(handle, "a") as file:
        file.write("\n".join(lines) + "\n\n")
        file.flush()
        os.fsync(file.fileno())


def _toml(text: str) -> str:
    if not text.isprintable() or '"' in text or "\\" in text:
        raise AccessFileError(
            f"expected printable characters without quotes and backslashes, got {quoted(text)}"
        )
    return f'"{text}"'
