"""Writes docs/api.md from the comments of the contract.

`--check` writes nothing and fails if the page differs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"
INTRODUCTION = """# The contract: `livefactor.v1`

This page lists every call, message and field of the gRPC contract. Use it when you write a client in a language without a
livefactor package, or when you want to know exactly what a call promises. [clients.md](clients.md) shows how to make the calls.
Python users need only [the package](../README.md).

`make docs` writes this page from the comments in `protos/livefactor/v1/`. Do not edit it.
"""

# Field numbers in descriptor.proto, from which the paths of comments are made.
FILE_SYNTAX, FILE_MESSAGE, FILE_ENUM, FILE_SERVICE = 12, 4, 5, 6
# A message's field, an enum's value and a service's method have the same number.
MEMBER = 2
PACKAGE = ".livefactor.v1."


class Comments:
    """The comments of one file by path."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._locations = {tuple(location.path): location for location in file.source_code_info.location}

    def at(self, *path: int) -> str:
        """The comment above or behind the element at `path`; "" if there is none."""
        location = self._locations.get(path)
        if location is None:
            return ""
        text = location.leading_comments or location.trailing_comments
        return "\n".join(line.removeprefix(" ").rstrip() for line in text.strip("\n").split("\n"))


def contract() -> list[FileDescriptorProto]:
    """The files of protos/ with comments, in reading order."""
    buf = Path(sys.executable).with_name("buf")
    image = subprocess.run(
        [buf, "build", "protos", "-o", "-"], cwd=ROOT, check=True, stdout=subprocess.PIPE
    ).stdout
    first = ["updates", "scoring", "snapshots", "models"]
    files = {Path(file.name).stem: file for file in FileDescriptorSet.FromString(image).file}
    return [files[name] for name in first + sorted(files.keys() - set(first))]


def short(type_name: str) -> str:
    """A link to a type of the contract."""
    name = type_name.removeprefix(PACKAGE)
    return f"[{name}](#{name.lower()})"


def type_of(field: FieldDescriptorProto) -> str:
    """The type of a field in words."""
    label = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
    label = "optional " if field.proto3_optional else label
    name = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    return label + (short(field.type_name) if field.type_name else name)


def in_cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")


def message_lines(message: DescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    yield f"\n### {message.name}\n"
    if comment := comments.at(*path):
        yield comment + "\n"
    if not message.field:
        yield "No fields."
        return
    yield "| field | number | type | |\n|---|---|---|---|"
    for number, field in enumerate(message.field):
        comment = in_cell(comments.at(*path, MEMBER, number))
        if field.HasField("oneof_index") and not field.proto3_optional:
            comment = f"One of `{message.oneof_decl[field.oneof_index].name}`. {comment}".rstrip()
        yield f"| `{field.name}` | {field.number} | {type_of(field)} | {comment} |"


def enum_lines(enum: EnumDescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    yield f"\n### {enum.name}\n"
    if comment := comments.at(*path):
        yield comment + "\n"
    yield "| value | number | |\n|---|---|---|"
    for number, value in enumerate(enum.value):
        yield f"| `{value.name}` | {value.number} | {in_cell(comments.at(*path, MEMBER, number))} |"


def service_lines(
    service: ServiceDescriptorProto, comments: Comments, path: tuple[int, ...]
) -> Iterator[str]:
    if comment := comments.at(*path):
        yield comment + "\n"
    for number, method in enumerate(service.method):
        asks = ("stream of " if method.client_streaming else "") + short(method.input_type)
        answers = ("stream of " if method.server_streaming else "") + short(method.output_type)
        yield f"**`{method.name}`**: {asks} → {answers}\n"
        if comment := comments.at(*path, MEMBER, number):
            yield comment + "\n"


def file_lines(file: FileDescriptorProto) -> Iterator[str]:
    """The lines of one file: its introduction, its services, then its messages and enums."""
    comments = Comments(file)
    names = [service.name for service in file.service] or [f"Messages of `{Path(file.name).name}`"]
    yield f"\n## {', '.join(names)}\n"
    if comment := comments.at(FILE_SYNTAX):
        yield comment + "\n"
    for number, service in enumerate(file.service):
        yield from service_lines(service, comments, (FILE_SERVICE, number))
    for number, message in enumerate(file.message_type):
        yield from message_lines(message, comments, (FILE_MESSAGE, number))
    for number, enum in enumerate(file.enum_type):
        yield from enum_lines(enum, comments, (FILE_ENUM, number))


def page() -> str:
    """The whole page."""
    return INTRODUCTION + "\n".join(line for file in contract() for line in file_lines(file)) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the page is not up to date")
    text = page()
    if not parser.parse_args().check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit("docs/api.md differs from the comments of protos/: run `make docs` and commit the result")


if __name__ == "__main__":
    main()
