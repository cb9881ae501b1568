"""`livefactor log`: look inside a model's log. Read-only; a server may be at work on it."""

from __future__ import annotations
