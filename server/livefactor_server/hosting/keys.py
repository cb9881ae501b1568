"""The key for data at rest: 32 random bytes in hex, from a file or from the output of a command."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from livefactor_server.access.grants import AccessFileError, check_private
from livefactor_server.log.sealing import KEY_BYTES, Key

COMMAND_S = 30.0
"""Seconds that the command may take."""

OUTPUT_BYTES_MAX = 4096


class BadKey(ValueError):
    """There is no usable key. The text says why, and shows nothing of the key."""


def read_key(file: Path | None, command: str) -> Key | None:
    """The key that a file holds or a command prints. None if neither is given.

    Args:
        file: the file, which others must not be able to read. None for none.
        command: the command with its arguments, as a shell splits them. It runs without a shell.
            "" for none.

    Raises:
        BadKey: both are given, or neither gives a key.
    """
    if file is not None and command:
        raise BadKey("--encryption-key-file and --encryption-key-command exclude each other")
    if file is not None:
        return _key(_from_file(file), str(file))
    if command:
        return _key(_from_command(command), "the output of --encryption-key-command")
    return None


def _from_file(file: Path) -> bytes:
    try:
        check_private(file)
        with file.open("rb") as opened:
            return opened.read(OUTPUT_BYTES_MAX)
    except (AccessFileError, OSError) as error:
        raise BadKey(str(error)) from None


def _from_command(command: str) -> bytes:
    try:
        ran = subprocess.run(
            shlex.split(command),
            stdout=subprocess.PIPE,
            timeout=COMMAND_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, ValueError, IndexError) as error:
        raise BadKey(f"--encryption-key-command: it cannot be run: {error}") from None
    except subprocess.TimeoutExpired:
        raise BadKey(f"--encryption-key-command: it took more than {COMMAND_S:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise BadKey(f"--encryption-key-command: it ended with code {error.returncode}") from None
    return ran.stdout[:OUTPUT_BYTES_MAX]


def _key(text: bytes, where: str) -> Key:
    try:
        secret = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES:
        raise BadKey(
            f"{where}: expected {2 * KEY_BYTES} hexadecimal digits (`openssl rand -hex {KEY_BYTES}` makes a key)"
        )
    return Key(secret)
