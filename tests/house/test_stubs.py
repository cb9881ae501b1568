"""The committed stubs and the baseline match protos/.

`make check` compares the text of the stubs.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.internal import api_implementation

from repository import ROOT, STUBS, bare, compiled_contract, contract_files

PROTOS = sorted(path.relative_to(ROOT / "protos").as_posix() for path in (ROOT / "protos").rglob("*.proto"))


@pytest.mark.parametrize("name", PROTOS)
def test_the_stub_of_every_proto_file_has_its_descriptors(name: str) -> None:
    stub = importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
    generated = FileDescriptorProto()
    stub.DESCRIPTOR.CopyToProto(generated)
    assert bare(generated) == contract_files(compiled_contract())[name]


def test_every_stub_belongs_to_a_proto_file() -> None:
    endings = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
    expected = {Path(name).stem + ending for name in PROTOS for ending in endings} | {"__init__.py"}
    assert {path.name for path in STUBS.iterdir() if path.is_file()} == expected


def test_the_baseline_for_breaking_changes_is_up_to_date() -> None:
    """The check for breaking changes covers only fields in the baseline.

    `make proto-baseline` adds new ones.
    """
    baseline = (ROOT / "protos" / "baseline.binpb").read_bytes()
    assert contract_files(baseline) == contract_files(compiled_contract())


def test_stubs_load_on_the_oldest_protobuf() -> None:
    """Generated code refuses a protobuf older than its own, and pyproject.toml promises 6.30."""
    for path in STUBS.glob("*_pb2.py"):
        assert "# Protobuf Python Version: 6.30.0\n" in path.read_text()


def test_protobuf_is_the_compiled_one() -> None:
    """A peer can send the pure-Python parser into endless recursion.

    It is also a hundred times slower.
    """
    assert api_implementation.Type() == "upb"
