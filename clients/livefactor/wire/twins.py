"""Twin message classes: the contract's messages with `bytes` in place of packed columns.

A packed column and a `bytes` field are the same on the wire (tag, length, content), so a twin reads and
writes the contract's messages while its columns go to and from NumPy without a Python object an element. The
twins are made at import from the public descriptors, under another package name in a pool of their own, so
they cannot drift from the contract.

One difference remains: where a peer split a column into two fields, sent it unpacked, or sent a sub-message
twice, the public class concatenates and merges, the twin keeps the last. `parse` notices (bytes are missing
from the canonical size) and lets the public class read the message.
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
    """The twin class of one of the contract's message classes (updates and scoring)."""
    name = public.DESCRIPTOR.full_name.replace(_PUBLIC_PACKAGE, _TWIN_PACKAGE)
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


def malformed(public: type[message.Message]) -> ColumnError:
    """The error for bytes that are no message of this class (without the parser's text)."""
    return ColumnError(f"malformed {public.DESCRIPTOR.name} message")


def varint(number: int) -> bytes:
    """`number` (0 or above) as protobuf writes it: 7 bits a byte, lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


@lru_cache(maxsize=1024)  # Batches are mostly of one size.
def field_prefix(number: int, content: int) -> bytes:
    """Tag and length in front of `content` bytes of the length-delimited field `number`."""
    return varint(number << 3 | 2) + varint(content)


def parse_twin(twin: type[Any], public: type[message.Message], data: bytes) -> Any:
    """Parse `data`, a `public` message, into its `twin`, falling back to the public class where the two would
    differ.

    The twin's columns are the last of their kind, so a message is taken as it is only if it has no unknown or
    unpacked fields and nothing was dropped. Raises ColumnError if the bytes are no such message.
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
    """`data` read by the public class and written again: packed, merged, without unknown fields. Raises
    ColumnError.
    """
    try:
        parsed = public.FromString(data)
    except message.DecodeError as error:
        raise malformed(public) from error
    parsed.DiscardUnknownFields()
    return bytes(parsed.SerializeToString())


def column_view(name: str, dtype: np.dtype[Any], data: bytes, start: int, stop: int) -> npt.NDArray[Any]:
    """The column in data[start:stop], aligned: a view where it happens to be, else a copy (kernels need
    aligned columns).

    Raises ColumnError if the bytes are no multiple of the dtype's.
    """
    if (stop - start) % dtype.itemsize:
        raise ColumnError(f"{name}: {stop - start} bytes are no multiple of {dtype.itemsize}")
    view = (
        np.frombuffer(data, dtype, (stop - start) // dtype.itemsize, start)
        if stop > start
        else np.empty(0, dtype)
    )
    return view if view.flags.aligned else view.copy()


def twin_column(twin: Any, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """`column_view` of one of a twin message's columns."""
    data = getattr(twin, name)
    return column_view(name, dtype, data, 0, len(data))
