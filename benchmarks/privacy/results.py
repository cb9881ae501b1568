"""The figures of benchmarks/results/privacy.json: a command writes its own and keeps the rest."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.pages import ROOT

RESULTS = ROOT / "benchmarks/results/privacy.json"


def keep(**figures: Any) -> None:
    """Write figures by name."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(found | figures, indent=2) + "\n")
