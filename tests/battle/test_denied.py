"""Roles × RPCs, no token, wrong and old tokens: every cell that must be denied is denied."""

from __future__ import annotations

from collections.abc import Callable

from contract import METHODS
from livefactor_server.access.grants import Role, new_token
from test_roles import ALLOWED, FOR_ALL, Place, place, status_of

__all__ = ["place"]


def test_every_denied_cell_is_denied(place: Place, record: Callable[..., None]) -> None:
    denied, cells = 0, 0
    for path in sorted(METHODS):
        name = path.rsplit("/", 1)[1]
        wanted = [(token, "UNAUTHENTICATED") for token in (None, new_token(), place.ended)]
        wanted += [
            (place.tokens[role], "PERMISSION_DENIED")
            for role in (Role.PRODUCER, Role.CONSUMER, Role.AUDITOR)
            if name not in ALLOWED[role] | FOR_ALL
        ]
        for token, status in wanted:
            cells += 1
            denied += status_of(place, path, token) == status

    record(denied_cells=cells, denied_cells_denied_share=denied / cells)
    assert denied == cells
