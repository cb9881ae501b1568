"""Writes the tables and the picture of docs/privacy.md from benchmarks/results/privacy.json:
`python -m benchmarks.privacy.pages`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pages import ROOT, write_between
from benchmarks.privacy.results import RESULTS
from livefactor_server.tuning.drawing import grid, write_svg

PAGE = ROOT / "docs/privacy.md"
PICTURE = ROOT / "docs/images/privacy-curve.svg"


def of_rounds(found: dict[str, Any]) -> str:
    """The table of the federated rounds."""
    about = found["federated_rounds"]
    lines = ["| MovieLens-1M | NDCG@10 |", "|---|---|"]
    lines.append(f"| in one place | {np.mean(about['central_ndcg10']):.4f} |")
    lines.append(
        f"| {about['participants']} participants, {about['participants_a_round']} a round | "
        f"{np.mean(about['federated_ndcg10']):.4f} |"
    )
    lines.append(f"| federated / in one place | {found['federated_ndcg10_to_central']:.3f} |")
    return "\n".join(lines)


def of_curve(curve: dict[str, Any]) -> str:
    """The table of quality for privacy."""
    ndcg, settings = curve["ndcg10"], curve["releases_times_noise"]
    lines = ["| epsilon | releases | noise | NDCG@10 |", "|---|---|---|---|"]
    for name, (releases, _, noise) in settings.items():
        words = "none: neither clipping nor noise" if name == "not_private" else name
        lines.append(f"| {words} | {releases} | {noise:.2f} | {ndcg[name]:.4f} |")
    lines.append(f"| most popular, not private | | | {ndcg['popular']:.4f} |")
    return "\n".join(lines)


def draw(curve: dict[str, Any], path: Path) -> None:
    """Writes the curve."""
    ndcg = curve["ndcg10"]
    names = [name for name in curve["releases_times_noise"] if name != "not_private"]

    def picture() -> object:
        figure, axes = grid(1, 1)
        axis = axes[0][0]
        axis.plot([float(name) for name in names], [ndcg[name] for name in names], "o-", label="private")
        axis.axhline(ndcg["not_private"], color="#2a7f62", linestyle="--", label="the same, not private")
        axis.axhline(ndcg["popular"], color="#9a9a9a", linestyle=":", label="most popular")
        axis.set(xlabel="epsilon (delta is 1e-6)", ylabel="NDCG@10", title="MovieLens-1M, timed half")
        axis.set_ylim(bottom=0)
        axis.legend()
        return figure

    write_svg(path, picture)


def main() -> None:
    found = json.loads(RESULTS.read_text())
    write_between(PAGE, "python -m benchmarks.privacy.rounds", of_rounds(found))
    if "curve" in found:
        write_between(PAGE, "python -m benchmarks.privacy.curve", of_curve(found["curve"]))
        draw(found["curve"], PICTURE)


if __name__ == "__main__":
    main()
