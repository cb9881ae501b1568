"""Files of tests/data."""

from __future__ import annotations

from pathlib import Path

OLDER_FOLDER = Path(__file__).resolve().parents[1] / "data" / "older_folder.tar.gz"
