"""The metric that says which server runs."""

from __future__ import annotations

import platform
from importlib.metadata import version

from prometheus_client import Gauge

BUILD = Gauge(
    "livefactor_build_info",
    "Always 1. The labels name the versions of the server and its backend.",
    ["version", "kernel_semantics", "backend", "python", "numba", "grpc"],
)


def report_build(kernel_semantics: int, backend: str) -> None:
    """Sets the metric for this process."""
    BUILD.labels(
        version("livefactor"),
        str(kernel_semantics),
        backend,
        platform.python_version(),
        version("numba"),
        version("grpcio"),
    ).set(1)
