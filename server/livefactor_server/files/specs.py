"""Model specs as TOML files, for people: what `livefactor tune` writes, `serve --spec` and `models create --spec` take.

The fields are those of `livefactor.v1.ModelSpec`, enums by their short names; `preset` names the preset that gives
what is left out:

    preset = "purchases_sgd"
    k = 32
    loss = "bpr"

    [optimizer]
    kind = "adagrad"
    learning_rate = 0.12

A field that there is not is refused by name.
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
"""A file is a wish; the version of the arithmetic is that of the server which makes a model of it."""


class SpecFileError(ValueError):
    """A spec file that is refused; the text names the file, and the field where there is one."""


def read_changes(file: Path) -> tuple[str, dict[str, Any]]:
    """(preset, "" if none is named; fields that the file sets) of a spec file, as `Models.create` takes them.

    Raises SpecFileError for what cannot be read, is no TOML, or has a field that there is not or of another type.
    """
    try:
        changes = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecFileError(f"{file}: {error}") from None
    preset = changes.pop("preset", "")
    if preset and preset not in PRESET_NAMES:
        raise SpecFileError(f"{file}: preset: expected one of {', '.join(PRESET_NAMES)}, got {preset!r}")
    _message(file, changes)
    return preset, changes


def read_spec(file: Path, preset: str) -> ModelSpec:
    """The spec of a file, with `preset` where it names none, and numbers as a model's log holds them.

    Raises SpecFileError as `read_changes` does, and for a field outside its domain.
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
    """Write every field of a spec, so that a later change of the preset changes nothing; appears whole.

    notes: lines that stand above it as comments. Numbers are written with the digits that float32 holds.
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
    if isinstance(value, list):  # of dicts: inline tables
        return f"[{', '.join('{ ' + ', '.join(_fields(each)) + ' }' for each in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    # The message's floats are float32 widened: 0.12 would be written 0.11999999731779099.
    return str(np.float32(value)) if isinstance(value, float) else str(value)
