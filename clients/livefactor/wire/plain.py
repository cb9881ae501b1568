"""Messages as nested plain values, and back. Enums are lower-case names without their prefix."""

from __future__ import annotations

from typing import Any

import numpy as np


def fill(message: Any, values: dict[str, Any], where: str) -> None:
    """Set the fields of a message from nested plain values. where: the error text begins with it.

    An enum is a name ("bpr") or a number. Raises TypeError or ValueError, whose text names the
    field.
    """
    fields = message.DESCRIPTOR.fields_by_name
    for name, value in values.items():
        field = fields.get(name)
        if field is None:
            raise TypeError(f"{where}.{name}: no such field; the fields are {', '.join(fields)}")
        # Only a repeated field has `add`.
        if field.message_type is not None and hasattr(getattr(message, name), "add"):
            if not isinstance(value, list | tuple):
                raise TypeError(f"{where}.{name}: expected a list of dicts, got {value!r}")
            for number, each in enumerate(value):
                fill(getattr(message, name).add(), each, f"{where}.{name}[{number}]")
        elif field.message_type is not None:
            if not isinstance(value, dict):
                raise TypeError(f"{where}.{name}: expected a dict, got {value!r}")
            fill(getattr(message, name), value, f"{where}.{name}")
            getattr(message, name).SetInParent()
        else:
            _set(message, field, _enum_number(field, value, where), where)


def _set(message: Any, field: Any, value: Any, where: str) -> None:
    try:
        setattr(message, field.name, value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}.{field.name}: {error}") from None


def _enum_number(field: Any, value: Any, where: str) -> Any:
    if field.enum_type is None or not isinstance(value, str):
        return value
    numbers = {
        _short_name(field.enum_type, one.name): one.number for one in field.enum_type.values if one.number
    }
    if value.lower() not in numbers:
        raise ValueError(f"{where}.{field.name}: expected one of {', '.join(numbers)}, got {value!r}")
    return numbers[value.lower()]


def _short_name(enum: Any, name: str) -> str:
    """The name without its prefix: "bpr" for LOSS_BPR.

    Protobuf asks for the enum's name as a prefix.
    """
    prefix = "".join(f"_{letter}" if letter.isupper() else letter for letter in enum.name).strip("_").upper()
    return name.removeprefix(f"{prefix}_").lower()


def plain(message: Any) -> dict[str, Any]:
    """The fields of a message as nested plain values. `fill` accepts them.

    Enums become lower-case names. A float32 becomes the shortest number that rounds to it.
    """
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None:
            value = [plain(each) for each in value] if hasattr(value, "add") else plain(value)
        elif field.cpp_type == field.CPPTYPE_FLOAT:
            value = shortest(value)
        elif field.enum_type is not None:
            known = field.enum_type.values_by_number.get(value)
            value = value if known is None else _short_name(field.enum_type, known.name)
        values[field.name] = value
    return values


def shortest(value: float) -> float:
    """The shortest decimal number that rounds to this float32: 0.1 instead of
    0.10000000149011612.
    """
    return float(str(np.float32(value)))
