"""The benchmarks run without optional libraries, and the pages show the measured figures."""

from __future__ import annotations

import importlib
import json
import re
import sys

import numpy as np
import pytest

from repository import ROOT

# No installed package contains the benchmarks.
sys.path.insert(0, str(ROOT))
from benchmarks import report
from benchmarks.pages import between_marks, is_reached, with_verdict

MODULES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__")
RESULTS = ROOT / "benchmarks" / "results" / "cpu.json"
measured = pytest.mark.skipif(not RESULTS.exists(), reason="`make bench` has not been run here")


def results() -> report.Figures:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MODULES)
def test_every_benchmark_loads_without_the_libraries_it_compares_with(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for opponent in ("faiss", "implicit", "implicit.bpr", "river", "scipy.sparse"):
        monkeypatch.setitem(sys.modules, opponent, None)
    monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.__doc__


def test_a_missing_opponent_is_reported_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.speed import opponents

    monkeypatch.setattr(opponents, "BayesianPersonalizedRanking", None)
    monkeypatch.setattr(opponents, "reco", None)
    assert opponents.implicit_bpr(100) is None
    assert opponents.river_mf(100) is None
    figures = report.completed({"kernel_events_per_s": 4e7, "kernel_plain_events_per_s": 1e7}, whole=True)
    assert figures["ratio_kernel_to_plain"] == 4.0
    assert figures["ratio_ingest_to_implicit_bpr"] is None
    assert report.shown("ratio_ingest_to_implicit_bpr", None) == "missing"
    assert set(report.REQUIRED) <= figures.keys()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("kernel_events_per_s", 41_230_000.0, "41.23 M events/s"),
        ("river_mf_events_per_s", 34_220.0, "34.2 k events/s"),
        ("freshness_p50_ms", 1.234, "1.23 ms"),
        ("memory_read_1m_gb_per_s", 12.34, "12.3 GB/s"),
        ("kernel_event_bytes", 1052, "1,052 bytes"),
        ("progressive_recall10_retail", 0.06789, "0.0679"),
        ("ratio_kernel_to_plain", 2.345, "2.35"),
    ],
)
def test_figures_are_shown_with_their_units(name: str, value: float, text: str) -> None:
    assert report.shown(name, value) == text


@pytest.mark.parametrize(
    ("goal", "reached", "missed"),
    [
        ("at least 0.70", 0.7, 0.69),
        ("at most 1.02", 1.02, 1.021),
        ("under 8", 7.9, 8.0),
        ("over 1", 1.01, 1.0),
        ("0.999 to 1.001", 1.001, 0.998),
        ("at least 150 k", 150_000.0, 149_999.0),
        ("at least 2 M", 2e6, 1.9e6),
    ],
)
def test_a_goal_in_words_is_compared_with_the_figure(goal: str, reached: float, missed: float) -> None:
    assert is_reached(goal, reached) and not is_reached(goal, missed)
    assert with_verdict(goal, reached) == goal
    assert with_verdict(goal, missed) == f"{goal} (not reached)"


def test_every_goal_can_be_compared_with_its_figure() -> None:
    goals = {row.goal for rows in report.SECTIONS.values() for row in rows if row.goal}
    assert goals and all(is_reached(goal, 1.0) in (True, False) for goal in goals)


def test_labels_name_every_figure_once() -> None:
    names = [row.name for rows in report.SECTIONS.values() for row in rows]
    assert len(names) == len(set(names))
    assert set(report.CHOSEN) | set(report.REQUIRED) <= set(names)


@measured
def test_results_are_flat_and_hold_every_required_figure() -> None:
    figures = results()
    nested = {name: value for name, value in figures.items() if isinstance(value, dict | list)}
    assert nested == {}
    assert set(report.REQUIRED) - figures.keys() == set()
    assert [name for name in report.REQUIRED if not isinstance(figures[name], float | int | None)] == []
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", str(figures["run_date"]))
    assert {
        "machine_cpu",
        "machine_cores",
        "version_python",
        "version_numpy",
        "version_numba",
    } <= figures.keys()


@measured
def test_ratios_follow_from_the_figures_beside_them() -> None:
    figures = results()
    from benchmarks.speed.side_by_side import RATIOS

    for name, (over, under) in (RATIOS | report.QUOTIENTS).items():
        if figures[name] is not None:
            assert figures[name] == pytest.approx(figures[over] / figures[under], rel=1e-4), name


@measured
@pytest.mark.parametrize("page", report.PAGES, ids=lambda path: path.name)
def test_pages_show_the_figures_that_were_measured(page) -> None:
    _, shown, _ = between_marks(page.read_text(encoding="utf-8"), report.COMMAND)
    assert shown == report.PAGES[page](results())


def test_the_worked_example_of_tuning_shows_what_was_measured() -> None:
    from benchmarks import tuned

    figures = json.loads(tuned.RESULTS.read_text(encoding="utf-8"))
    _, shown, _ = between_marks(tuned.PAGE.read_text(encoding="utf-8"), tuned.COMMAND)
    assert shown == tuned.page(figures)


def test_the_readme_shows_the_pictures_that_make_pictures_draws() -> None:
    from benchmarks import pictures

    change = json.loads(pictures.DEMO.read_text(encoding="utf-8"))
    assert len(change["before"]) == len(change["after"])
    assert set(change["before"]) != set(change["after"])
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("demo-list.svg", "quality-retrains.svg", "demo-terminal.svg", "top.svg"):
        assert (pictures.IMAGES / name).is_file()
        assert f"(docs/images/{name})" in shown


@pytest.mark.parametrize("name", ["demo-terminal.svg", "top.svg"])
def test_pictures_of_terminals_fetch_nothing(name: str) -> None:
    from benchmarks import pictures

    svg = (pictures.IMAGES / name).read_text(encoding="utf-8")
    assert "<svg" in svg and "url(" not in svg.replace("url(#", "")


def test_the_table_of_challengers_shows_both_servers_and_their_quotients() -> None:
    from benchmarks.speed.background.challengers import Turn, figures_of

    acks = np.linspace(0.001, 0.101, 101)
    alone = Turn({"200k": 5.0, "1m": 40.0, "end": 60.0}, 61.0, acks, 200_000_000, 100_000_000, 0)
    beside = Turn({"200k": 9.0, "1m": 60.0, "end": 90.0}, 91.0, 2 * acks, 500_000_000, 110_000_000, 3)
    figures = report.completed(figures_of({"alone": [alone], "beside": [beside, beside]}), whole=False)
    assert {row.name for row in report.SECTIONS["Challengers"]} <= figures.keys()
    assert figures["ratio_challengers_200k_cpu"] == 1.8
    # 31 s for 21 s.
    assert figures["ratio_challengers_beyond_1m_cpu"] == pytest.approx(31 / 21, rel=1e-4)
    assert figures["ratio_challengers_peak"] == 2.5 and figures["challengers_contests"] == 3
    machine = results() | figures | {"later_challengers": "2030-01-01 00:00 UTC"}
    page = report.full_page(machine)
    for line in (
        "| CPU time up to 1 million events, beside ÷ alone | `ratio_challengers_1m_cpu` | 1.50 | at most 2 |",
        "| acknowledgement p99, beside ÷ alone | `ratio_challengers_ack_p99` | 2.00 | at most 1.1 (not reached) |",
        "| acknowledgement p99, alone | `challengers_alone_ack_p99_ms` | 100.00 ms |  |",
        "| largest memory, beside | `challengers_beside_peak_mb` | 500 MB |  |",
    ):
        assert line in page
    assert re.search(r"Measured later: .*challengers: 2030-01-01 00:00 UTC\.", page)


def test_the_table_of_calls_compares_each_call_with_the_empty_one() -> None:
    from benchmarks import call_table
    from benchmarks.speed.callers import CALLS

    assert tuple(call_table.LABELS) == CALLS
    assert call_table.page({"kernel_events_per_s": 1.0}) == [] and call_table.table({}) is None
    figures = {
        f"call_update_1_8_{unit}": value
        for unit, value in (("per_s", 614.2), ("p50_ms", 12.24), ("p99_ms", 24.95), ("cpu_us", 1186.0))
    }
    line = call_table.page(figures | {"ratio_call_update_1_8_to_plain": 0.304})[-1]
    assert line == (
        "| `ApplyUpdates`, 1 event | 8 | 614 | 0.30 | at least 0.50 (not reached) "
        "| 12.24 ms | 24.95 ms | 1,186 µs |"
    )
    shares = {
        f"call_update_1_8_{step}_share": share
        for step, share in (("append", 0.5), ("place", 0.25), ("apply", 0.5))
    }
    assert call_table.page(figures | shares)[-1] == (
        "| `ApplyUpdates`, 1 event | 8 | 0.50 | 0.25 | 0.50 | 1.25 |"
    )
