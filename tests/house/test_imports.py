"""Packages import only what their contracts allow, and the client has few dependencies."""

from __future__ import annotations

import subprocess
import sys

from repository import ROOT, imports, modules, tool

THIN = {"livefactor", "grpc", "google", "numpy"}
EXTRAS = {
    "livefactor.federated.flower": {"flwr"},
    "livefactor.federated.masking": {"cryptography"},
    "livefactor.ingest.sources.kafka": {"confluent_kafka", "faststream"},
    "livefactor.ingest.sources.nats": {"faststream", "nats"},
    "livefactor.ingest.sources.redis": {"faststream", "redis"},
    "livefactor.ingest.sources.webhook": {"starlette", "uvicorn"},
}
"""Packages of an extra, by the only module that may import them."""


def test_contracts_between_rooms_hold() -> None:
    result = subprocess.run(
        [tool("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_client_names_nothing_but_its_three_dependencies() -> None:
    """The rule covers lazy imports inside functions.

    The client must not need a package that the base dependencies do not install.
    """
    allowed = THIN | sys.stdlib_module_names
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for module, path in modules()
        if module.split(".")[0] == "livefactor"
        for line, name in imports(path, type_checking=False)
        if name.split(".")[0] not in allowed | EXTRAS.get(module, set())
    ]
    assert found == []


def test_importing_the_client_loads_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import livefactor; print(*set(sys.modules) - before)"
    command = [sys.executable, "-c", code]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    loaded = {name.split(".")[0] for name in names}
    assert "livefactor" in loaded
    extra = {name for name in loaded if not name.startswith("_")} - THIN - sys.stdlib_module_names
    # grpc tries to import these itself, and works without them.
    assert (
        extra - {"grpc_tools", "grpc_health", "grpc_reflection", "typing_extensions", "cython_runtime"}
        == set()
    )
