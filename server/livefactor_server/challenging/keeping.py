"""Snapshots of challengers, so that nobody has to learn the log again for them.

A contest keeps its challengers when judging begins, and those that are still running when it
ends. A share keeps its challenger when the server stops. From there a restarted contest, the next
contest, a share and a switch of the spec begin (`contestants.open_learner`,
`snapshots.replay.start_of`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from livefactor_server.model.state import ModelState
from livefactor_server.snapshots.freezing import freeze_idle
from livefactor_server.snapshots.replay import challenger_store

SPECS_MAX = 8
"""Specs that have a snapshot in the folder of a model, the newest one each."""

logger = logging.getLogger(__name__)


def keep(folder: Path, model: str, states: Sequence[ModelState], hash_name: str) -> None:
    """Writes states that learn nothing meanwhile to the folder of a model.

    If the disk refuses them, the log has all their data. One thread or process at a time may call
    it.
    """
    store = challenger_store(folder)
    try:
        store.clean()
        for state in states:
            store.take(freeze_idle(model, state, hash_name))
        newest = {info.spec: info.snapshot_id for info in store.list()}
        store.keep(sorted(newest.values())[-SPECS_MAX:])
    except (OSError, ValueError) as error:
        logger.warning("model %s: its challengers were not kept: %s", model, error)
