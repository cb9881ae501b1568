"""Twin message classes: the contract's messages with `bytes` fields in place of packed columns.

A packed column and a `bytes` field look the same on the wire: tag, length, content. A twin
therefore reads and writes the contract's messages. Its columns go to and from NumPy without one
Python object for each element. The twins are made at import from the public descriptors, so they
always match the contract. They have another package name and their own descriptor pool.

The two classes differ where a peer split a column into two fields, sent it unpacked, or sent a
sub-message twice. The public class concatenates and merges these, and the twin keeps only the last.
`parse_twin` finds such a message by its size, and lets the public class read it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from livefactor.errors import ColumnError
from livefactor.v1 import scoring_pb2, updates_pb2

_PUBLIC_PACKAGE = "livefactor.v1"
_TWIN_PACKAGE = "livefactor.twin"
_SHORT_BYTES = 64 << 10
_Field = descriptor_pb2.FieldDescriptorProto
_FIXED_WIDTH = frozenset({
    _Field.TYPE_FIXED64, _Field.TYPE_FIXED32, _Field.TYPE_SFIXED64, _Field.TYPE_SFIXED32,
    _Field.TYPE_FLOAT, _Field.TYPE_DOUBLE, _Field.TYPE_BOOL,
})  # fmt: skip


def _make_field_twin(field: Any) -> None:
    if field.label == _Field.LABEL_REPEATED and field.type in _FIXED_WIDTH:
        field.type = _Field.TYPE_BYTES
        field.label = _Field.LABEL_OPTIONAL
        field.ClearField("type_name")
        field.ClearField("options")
    elif field.type_name:
        field.type_name = field.type_name.replace(f".{_PUBLIC_PACKAGE}.", f".{_TWIN_PACKAGE}.")


def _twin_file(public: Any) -> descriptor_pb2.FileDescriptorProto:
    twin = descriptor_pb2.FileDescriptorProto()
    public.CopyToProto(twin)
    twin.name = twin.name.replace("/v1/", "/twin/")
    twin.package = _TWIN_PACKAGE
    twin.dependency[:] = [name.replace("/v1/", "/twin/") for name in twin.dependency]
    twin.ClearField("service")
    for owner in twin.message_type:
        for field in owner.field:
            _make_field_twin(field)
    return twin


_POOL = descriptor_pool.DescriptorPool()
for _public in (updates_pb2.DESCRIPTOR, scoring_pb2.DESCRIPTOR):
    _POOL.AddSerializedFile(_twin_file(_public).SerializeToString())


def twin_of(public: type[message.Message]) -> type[Any]:
    """The twin of a message class of the contract (updates and scoring)."""
    name = public.DESCRIPTOR.full_name.replace(_PUBLIC_PACKAGE, _TWIN_PACKAGE)
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


def malformed(public: type[message.Message]) -> ColumnError:
    """The error for bytes that do not parse as a message of this class.

    It hides the parser's text.
    """
    return ColumnError(f"malformed {public.DESCRIPTOR.name} message")


def varint(number: int) -> bytes:
    """Encode `number` (at least 0) as protobuf does: 7 bits in each byte, the lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


# Most batches have the same size, so most prefixes are in the cache.
@lru_cache(maxsize=1024)
def field_prefix(number: int, content: int) -> bytes:
    """The tag and length in front of a length-delimited field. content: its size in bytes."""
    return varint(number << 3 | 2) + varint(content)


def parse_twin(twin: type[Any], public: type[message.Message], data: bytes) -> Any:
    """Parse `data`, a message of class `public`, into its `twin`.

    The twin keeps only the last part of a column. Where its size differs from that of `data`, the
    twin dropped something, and the public class reads the message instead. Raises ColumnError if
    the bytes do not parse.
    """
    try:
        parsed = twin.FromString(data)
        parsed.DiscardUnknownFields()
        if parsed.ByteSize() == len(data):
            return parsed
        return twin.FromString(canonical(public, data))
    except message.DecodeError as error:
        raise malformed(public) from error


def canonical(public: type[message.Message], data: bytes) -> bytes:
    """Read `data` with the public class and write it again: packed, merged, without unknown fields.

    Raises ColumnError if the bytes do not parse.
    """
    try:
        parsed = public.FromString(data)
    except message.DecodeError as error:
        raise malformed(public) from error
    parsed.DiscardUnknownFields()
    return bytes(parsed.SerializeToString())


def column_view(name: str, dtype: np.dtype[Any], data: bytes, start: int, stop: int) -> npt.NDArray[Any]:
    """The column in data[start:stop]: a view if it is aligned, else an aligned copy. It may be
    read-only.

    Kernels need aligned columns. Raises ColumnError if the number of bytes is not a multiple of the
    dtype's.
    """
    if (stop - start) % dtype.itemsize:
        raise ColumnError(f"{name}: {stop - start} bytes are not a multiple of {dtype.itemsize}")
    if start == stop:
        return np.empty(0, dtype)
    view = np.frombuffer(data, dtype, (stop - start) // dtype.itemsize, start)
    if view.flags.aligned:
        return view
    # NumPy gives up the GIL for a copy, which takes longer than a short copy.
    return np.frombuffer(data[start:stop], dtype) if stop - start <= _SHORT_BYTES else view.copy()


def parse_body(twin: type[Any], public: type[message.Message], body: bytes) -> tuple[Any, bytes]:
    """The twin message that `body` holds, and the body in canonical form.

    Raises ColumnError if the bytes do not parse.
    """
    parsed = parse_twin(twin, public, body)
    if parsed.ByteSize() != len(body):
        body = parsed.SerializeToString()
    return parsed, body


def twin_column(twin: Any, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The column `name` of a twin message, aligned. Raises the errors of `column_view`."""
    data = getattr(twin, name)
    return column_view(name, dtype, data, 0, len(data))
