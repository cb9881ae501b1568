"""Servers to attack."""

from __future__ import annotations

from serving import serve, warm

__all__ = ["serve", "warm"]
