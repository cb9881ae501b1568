"""Prints the root hashes of models, replayed in this process: `python replay_roots.py DATA BACKEND MODEL...`

JSON: by model, the root of the whole log's replay, and (of the CPU) that of a restart: newest snapshot, then the rest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from livefactor_server.log.store import Log
from livefactor_server.snapshots.audit import root_of
from livefactor_server.snapshots.replay import log_folder, recover, replay


def roots_of(folder: Path, backend: str) -> list[str]:
    with Log.open(log_folder(folder), read_only=True) as log:
        roots = [root_of(replay(folder, log, backend)).hex()]
        if backend == "cpu":
            roots.append(root_of(recover(folder, log, backend)).hex())
    return roots


if __name__ == "__main__":
    data, backend, *models = sys.argv[1:]
    print(json.dumps({model: roots_of(Path(data) / "models" / model, backend) for model in models}))
