"""The fixture of this folder."""

from __future__ import annotations

from following_nodes import node as node
