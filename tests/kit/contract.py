"""Every RPC of the contract, read from the generated stubs."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from livefactor import v1

METHODS = {
    f"{service.full_name}/{method.name}": method
    for module in iter_modules(v1.__path__)
    if module.name.endswith("_pb2")
    for service in import_module(f"{v1.__name__}.{module.name}").DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Every RPC by its path without the first slash."""
STREAMING_IN = {path for path, method in METHODS.items() if method.client_streaming}
STREAMING_OUT = {path for path, method in METHODS.items() if method.server_streaming}
