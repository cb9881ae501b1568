"""The project's files, for the tests of the house rules."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "livefactor": ROOT / "clients" / "livefactor",
    "livefactor_server": ROOT / "server" / "livefactor_server",
    "livefactor_kernels": ROOT / "kernels" / "livefactor_kernels",
}
STUBS = PACKAGES["livefactor"] / "v1"


@cache
def project_files() -> tuple[Path, ...]:
    """Return every file that is in the repository or that `git add` would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.split(
        "\0"
    )
    return tuple(sorted(path for name in names if name and (path := ROOT / name).is_file()))


def python_files() -> list[Path]:
    """Return every Python file that is not generated."""
    return [path for path in project_files() if path.suffix == ".py" and STUBS not in path.parents]


def modules() -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and the file of every module that is not generated."""
    for package, folder in PACKAGES.items():
        for path in python_files():
            if folder in path.parents:
                parts = path.relative_to(folder).with_suffix("").parts
                yield ".".join((package, *(part for part in parts if part != "__init__"))), path


def imports(path: Path, type_checking: bool = True) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of every import in a file, at any depth.

    `from a import b` gives a and a.b. If `type_checking` is false, imports that only type checkers
    see are left out.
    """
    skipped: set[ast.AST] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if node in skipped or (not type_checking and is_type_checking(node)):
            skipped.update(ast.iter_child_nodes(node))
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = (
                ".".join(filter(None, (*package_of(path)[: -node.level + 1 or None], node.module)))
                if node.level
                else node.module
            )
            yield node.lineno, str(source)
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def package_of(path: Path) -> tuple[str, ...]:
    """Return the names of the packages that lead to a module."""
    for package, folder in PACKAGES.items():
        if folder in path.parents:
            return (package, *path.relative_to(folder).parent.parts)
    return ()


def tool(name: str) -> str:
    """Return the path of a command in the environment that runs the tests."""
    return str(Path(sys.executable).with_name(name))


def contract_files(image: bytes) -> dict[str, FileDescriptorProto]:
    """Return the files of a compiled contract by name, without meaningless differences.

    Such differences come from the compilers.
    """
    files = FileDescriptorSet.FromString(image).file
    return {file.name: bare(file) for file in files}


def bare(file: FileDescriptorProto) -> FileDescriptorProto:
    """Remove comments, JSON names and the compiler's own fields from the file, and return it.

    The JSON names follow from the field names.
    """
    file.ClearField("source_code_info")
    file.DiscardUnknownFields()
    for message in file.message_type:
        assert not message.nested_type, "the contract has no nested messages"
        for field in message.field:
            field.ClearField("json_name")
    return file


@cache
def compiled_contract() -> bytes:
    """Compile protos/ and return the bytes of the file set."""
    command = [tool("buf"), "build", "protos", "--exclude-source-info", "-o", "-"]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
