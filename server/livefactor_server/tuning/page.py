"""The report of an evaluation: one HTML file that needs no other one."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

import numpy as np

from livefactor_kernels.spec.model import ModelSpec, spec_fields
from livefactor_server.files.settings import settings
from livefactor_server.tuning.evaluation import Evaluation, Result
from livefactor_server.tuning.pictures import tenths_svg

GROUP_EVENTS_MIN = 20
"""A group with fewer judged events is left out: its figures would be chance."""

TYPES_MAX = 20
KNOWN = ((0, 0, "the user's first event"), (1, 9, "1 to 9 events before"), (10, None, "10 or more before"))

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2rem }
.scroll { overflow-x: auto } table { border-collapse: collapse }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child { text-align: left } svg { max-width: 100%; height: auto }
pre { background: #f5f5f5; padding: .8rem; white-space: pre-wrap; columns: 18rem } .verdict { font-weight: 600 }
"""


def groups(evaluation: Evaluation, types: np.ndarray | None) -> dict[str, dict[str, np.ndarray]]:
    """Groups of the judged events, bool[judged], by kind and name. Small groups are left out.

    types: the event type of each event of the stream; None if it is unknown.
    """
    stream, sample = evaluation.stream, evaluation.sample
    before = _earlier_events(stream.user_keys)[sample]
    found = {
        "users": {
            name: (before >= first) & (True if last is None else before <= last)
            for first, last, name in KNOWN
        }
    }
    if types is not None:
        judged = types[sample]
        names, counts = np.unique(judged, return_counts=True)
        frequent = names[np.argsort(-counts, kind="stable")][:TYPES_MAX]
        found["event types"] = {f"type {name}": judged == name for name in frequent}
    kept = {
        kind: {name: chosen for name, chosen in each.items() if chosen.sum() >= GROUP_EVENTS_MIN}
        for kind, each in found.items()
    }
    return {kind: each for kind, each in kept.items() if each}


def _earlier_events(users: np.ndarray) -> np.ndarray:
    """How many earlier events the user of each event has, int64[n]."""
    order = np.argsort(users, kind="stable")
    ordered = users[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, users.size])
    earlier = np.empty(users.size, np.int64)
    earlier[order] = np.arange(users.size) - np.repeat(starts, lengths)
    return earlier


def write_page(
    path: Path,
    name: str,
    evaluation: Evaluation,
    models: list[Result],
    others: list[Result],
    verdict: str,
    types: np.ndarray | None,
    specs: dict[str, ModelSpec],
) -> None:
    """Writes the report. name: of the file of events. Raises ImportError without Matplotlib."""
    everybody, metric = [*models, *others], evaluation.metrics[0]
    held_out = evaluation.protocol.held_out
    mode = "a part that was held out" if held_out else "each event before it was learned"
    heads = ["method", *(part for each in evaluation.metrics for part in (each, "±")), "seconds"]
    rows = [
        [
            one.name,
            *(f"{n:.4f}" for each in evaluation.metrics for n in one.figures[each]),
            f"{one.seconds:.1f}",
        ]
        for one in everybody
    ]
    parts = [
        f"<h1>{escape(name)}: is it good?</h1>",
        f'<p class="verdict">{escape(verdict)}</p>',
        f"<p>{int(evaluation.sample.sum()):,} of {len(evaluation.stream):,} events are judged: {mode}.</p>",
        _table("Figures", heads, rows),
        "<h2>Over time</h2>",
        tenths_svg(everybody, metric),
    ]
    for kind, each in groups(evaluation, types).items():
        heads = [f"{metric} by {kind}", "events", *(one.name for one in everybody)]
        rows = [
            [group, f"{int(chosen.sum()):,}", *(f"{one.of_events(chosen):.4f}" for one in everybody)]
            for group, chosen in each.items()
        ]
        parts += [f"<h2>By {kind}</h2>", _table(f"By {kind}", heads, rows)]
    best = models[0].name
    lines = "\n".join(f"{name} = {value}" for name, value in settings(spec_fields(specs[best])))
    parts += [f"<h2>Settings of {escape(best)}</h2>", f"<pre>{escape(lines)}</pre>"]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
    title = f"<title>{escape(name)}: is it good?</title>"
    page = f'<!doctype html><html lang="en"><head>{head}{title}</head><body>{"".join(parts)}</body></html>\n'
    path.write_text(page, encoding="utf-8")


def _table(name: str, heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in a part that scrolls, which the keyboard can do, too."""
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    region = f'class="scroll" tabindex="0" role="region" aria-label="{escape(name)}"'
    return f"<div {region}><table><tr>{top}</tr>{lines}</table></div>"
