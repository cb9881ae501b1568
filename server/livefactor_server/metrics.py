"""What Prometheus reads. Each room defines its own; docs/guides/monitoring.md explains all."""

from __future__ import annotations

from prometheus_client import REGISTRY, Counter

PREFIX = "livefactor_"

REFUSED = Counter("livefactor_refused_calls", "Calls answered with a status other than OK.", ["code"])


def metric_names() -> list[str]:
    """Names of the metrics of all imported modules.

    In the exposition format, counters have the suffix _total.
    """
    return sorted({family.name for family in REGISTRY.collect() if family.name.startswith(PREFIX)})
