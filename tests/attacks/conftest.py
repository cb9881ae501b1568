"""Fixtures that start the servers which the tests attack."""

from __future__ import annotations

from serving import serve, warm

__all__ = ["serve", "warm"]
