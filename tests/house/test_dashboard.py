"""The dashboard and the alert rules name metrics and labels that a running server has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import REGISTRY

import livefactor
from livefactor_server.telemetry.build import report_build
from repository import ROOT

DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
OF_PROMETHEUS = {"up": {"job", "instance"}}
ADDED = {"instance", "job"}
"""Labels that Prometheus adds."""


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


def expressions() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "1m")
    for rule in rules():
        yield rule["expr"]


def selectors(expression: str) -> Iterator[promql_parser.VectorSelector]:
    """Yield every selector of a metric. Raises ValueError for what is no PromQL."""
    waiting = [promql_parser.parse(expression)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, promql_parser.VectorSelector):
            yield node
        elif isinstance(node, promql_parser.MatrixSelector):
            yield node.vector_selector
        else:
            for name in ("expr", "lhs", "rhs", "param"):
                if (child := getattr(node, name, None)) is not None:
                    waiting.append(child)
            waiting += getattr(node, "args", None) or []


@pytest.fixture(scope="module")
def series() -> dict[str, set[str]]:
    """The labels of every series of a server with a model."""
    with livefactor.local(preset="clicks_sgd") as server:
        # One record in 64 is judged.
        with server.producer(batch=livefactor.BatchSettings(events_max=4)) as producer:
            producer.push([n % 7 for n in range(1600)], [n % 11 for n in range(1600)])
        server.scorer().score(1, [1])
        report_build(1, "cpu")
        found: dict[str, set[str]] = {}
        for family in REGISTRY.collect():
            found.setdefault(family.name, set())
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def declared_labels(name: str) -> set[str] | None:
    """The labels of a metric that has no series yet, from its declaration."""
    for collector, names in REGISTRY._collector_to_names.items():
        if name in names:
            return set(getattr(collector, "_labelnames", ()))
    return None


def test_every_metric_and_label_exists(series: dict[str, set[str]]) -> None:
    checked, wrong = set(), []
    for expression in expressions():
        for selector in selectors(expression):
            name = selector.name
            checked.add(name)
            if name in OF_PROMETHEUS:
                labels: set[str] | None = OF_PROMETHEUS[name]
            else:
                labels = series.get(name) or declared_labels(name)
            if labels is None or (name not in OF_PROMETHEUS and not name.startswith("livefactor_")):
                wrong.append((name, "does not exist"))
                continue
            asked = {matcher.name for matcher in selector.matchers.matchers}
            wrong += [(name, label) for label in asked - labels - ADDED]
    assert checked == set(re.findall(r"\b(?:livefactor_\w+|up\b)", "\n".join(expressions())))
    assert len(checked) > 20
    assert wrong == []


def test_the_check_finds_a_metric_that_does_not_exist(series: dict[str, set[str]]) -> None:
    (selector,) = selectors("rate(livefactor_evnts_total[5m])")
    assert selector.name not in series
    assert declared_labels(selector.name) is None
    with pytest.raises(ValueError, match=r"."):
        list(selectors("sum by (model rate(x[5m])"))


def test_groupings_and_legends_name_labels_that_remain() -> None:
    """A legend shows only labels that the aggregation keeps."""
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            kept = re.search(r"^sum by \(([^)]*)\)", target["expr"])
            if kept:
                shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
                assert shown <= {name.strip() for name in kept[1].split(",")}, panel["title"]


def test_panels_have_distinct_ids_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_every_alert_says_what_to_do() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["alert"] in page
