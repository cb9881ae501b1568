"""The bytes that name the fields of messages on the wire, for the compiled readers of messages."""

from __future__ import annotations

from typing import Any

VARINT, FIXED64, BYTES = 0, 1, 2
"""The wire types of fields (Protocol Buffers, Encoding, Message Structure)."""


def tag_of(message: Any, field: str, wire_type: int) -> int:
    """The tag of a field of a message class. It is one byte if the field's number is below 16."""
    number: int = message.DESCRIPTOR.fields_by_name[field].number
    return number << 3 | wire_type
