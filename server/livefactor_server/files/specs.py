"""Reads and writes model specs in TOML files.

`livefactor tune` writes them; `serve --spec` and `models create --spec` read them. The fields are
those of `livefactor.v1.ModelSpec`, with the short names of enums. `preset` names the preset that
supplies all missing fields:

    preset = "purchases_sgd"
    k = 32
    loss = "bpr"

    [optimizer]
    kind = "adagrad"
    learning_rate = 0.12

An unknown field is an error.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from livefactor.models import fill, plain
from livefactor.v1 import models_pb2
from livefactor_kernels.spec.model import ModelSpec, SpecError
from livefactor_kernels.spec.presets import PRESET_NAMES
from livefactor_server.model import spec_codec

LEFT_OUT = ("kernel_semantics",)
"""Fields that a spec file does not set.

The server that makes the model sets the version of the arithmetic.
"""


class SpecFileError(ValueError):
    """The spec file is invalid. The text names the file and, if possible, the field."""


def read_changes(file: Path) -> tuple[str, dict[str, Any]]:
    """Reads a spec file as the preset and the fields that `Models.create` accepts.

    Returns:
        The name of the preset ("" if the file names none), and the fields.

    Raises:
        SpecFileError: the file cannot be read, is not TOML, or has an unknown field or a field of a
            wrong type.
    """
    try:
        changes = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecFileError(f"{file}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecFileError(f"{file}: {error}") from None
    preset = changes.pop("preset", "")
    if preset and preset not in PRESET_NAMES:
        raise SpecFileError(f"{file}: preset: expected one of {', '.join(PRESET_NAMES)}, got {preset!r}")
    _message(file, changes)
    return preset, changes


def read_spec(file: Path, preset: str) -> ModelSpec:
    """Reads a spec. Its numbers are rounded as in the log of a model.

    Args:
        file: the file.
        preset: the preset to use if the file names none.

    Raises:
        SpecFileError: the file cannot be read, is not TOML, or has an unknown or invalid field.
    """
    named, changes = read_changes(file)
    try:
        spec = spec_codec.from_message(_message(file, changes), named or preset)
    except SpecError as error:
        raise SpecFileError(f"{file}: {error}") from None
    return spec_codec.decode(spec_codec.encode(spec))


def _message(file: Path, changes: dict[str, Any]) -> models_pb2.ModelSpec:
    message = models_pb2.ModelSpec()
    try:
        fill(message, changes, "spec")
    except (TypeError, ValueError) as error:
        raise SpecFileError(f"{file}: {error}") from None
    return message


def write_spec(file: Path, spec: ModelSpec, preset: str, notes: list[str]) -> None:
    """Writes all fields of a spec, so that a later change of the preset does not matter.

    The file appears atomically.



    Args:
        file: the file.
        spec: the spec.
        preset: the preset that it was made from.
        notes: comment lines at the top of the file.

    Numbers are written with the digits that float32 can hold.
    """
    values = plain(spec_codec.to_message(spec))
    tables = {name: value for name, value in values.items() if isinstance(value, dict)}
    top = {name: value for name, value in values.items() if name not in tables and name not in LEFT_OUT}
    lines = [*(f"# {note}" for note in notes), *_fields({"preset": preset, **top})]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *_fields(table)]
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.replace(file)


def _fields(values: dict[str, Any]) -> list[str]:
    return [f"{name} = {_literal(value)}" for name, value in values.items()]


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    # A list holds dicts, which become inline tables.
    if isinstance(value, list):
        return f"[{', '.join('{ ' + ', '.join(_fields(each)) + ' }' for each in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    # The floats of the message are float32 values in double precision: 0.12 would become
    # 0.11999999731779099.
    return str(np.float32(value)) if isinstance(value, float) else str(value)
