"""The id of a request: the client's, or one that the server makes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from itertools import count

KEY = "x-request-id"
"""The metadata that carries the id, in both directions."""

CHARACTERS_MAX = 64

_GOOD = re.compile(rf"[A-Za-z0-9._:/+=@-]{{1,{CHARACTERS_MAX}}}")


def _new_prefix() -> str:
    return os.urandom(6).hex()


_prefix, _numbers = _new_prefix(), count(1)


def _begin_anew() -> None:
    global _prefix
    _prefix = _new_prefix()


# A process that forks must not make an id twice.
os.register_at_fork(after_in_child=_begin_anew)


def request_id(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The id of a call with this metadata.

    An id is replaced if it has more than CHARACTERS_MAX characters, or others than letters, digits
    and `._:/+=@-`. So no id can forge a part of a line.
    """
    for name, value in metadata or ():
        if name == KEY and isinstance(value, str) and _GOOD.fullmatch(value):
            return value
    return f"{_prefix}-{next(_numbers):x}"
