"""Replay models in this process and print their root hashes as JSON.

    python replay_roots.py DATA BACKEND MODEL...

For each model the output holds the root hash after a replay of the whole log. On the CPU it also
holds the root hash after a restart, which loads the newest snapshot and replays the records behind
it.
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
