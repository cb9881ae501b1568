"""SVG pictures in the project's style.

The same figures give the same bytes. It needs Matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

STYLE = {
    "svg.hashsalt": "livefactor",
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
}


def grid(rows: int, columns: int) -> tuple[Any, Any]:
    """A figure and its axes, as [rows][columns]. Call it inside `write_svg`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def write_svg(path: Path, picture: Callable[[], Any]) -> None:
    """Writes the figure that `picture` returns. Raises ImportError without Matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        picture().savefig(path, metadata={"Date": None})
    # Matplotlib writes spaces at the ends of lines.
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")
