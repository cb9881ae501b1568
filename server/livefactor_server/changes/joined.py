"""Interactions that were joined with what was served (`engine/answering/outcomes.py`).

The log has them as any interactions, with the context that they got.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from livefactor_server.changes.interactions import InteractionsChange


@dataclass(slots=True)
class JoinedChange(InteractionsChange):
    """Received events whose logged body is another one."""

    is_wrapped: ClassVar[bool] = True
