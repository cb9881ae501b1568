"""A model that replays past events, on a server.

The test creates, snapshots, restarts and restores it, and replays its log.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import livefactor
from livefactor.in_process import local
from livefactor.models import Models
from livefactor.v1 import models_pb2
from livefactor_kernels.spec.model import Replay
from livefactor_kernels.spec.presets import preset
from livefactor_server.files.specs import read_spec, write_spec
from livefactor_server.model import spec_codec
from livefactor_server.snapshots.audit import replay_model

REPLAY: dict[str, Any] = {
    "k": 16,
    "replay": {"size": 300, "per_event": 0.75},
    "event_types": [{"type": 7, "weight": 2.0}],
    "limits": {"users_max": 1000, "items_max": 1000},
}
SPECS: dict[str, dict[str, Any]] = {
    "clicks_sgd": REPLAY | {"loss": "bpr", "negatives": 2},
    "clicks": REPLAY | {"history": {"users": 16, "items": 32}, "counts": {"neighbors": 16, "span": 8}},
}
"""By the preset that they begin with."""


def test_logged_specs_and_files_name_replay_only_if_it_is_set(tmp_path: Path) -> None:
    assert not models_pb2.ModelSpec.FromString(spec_codec.encode(preset("clicks_sgd"))).HasField("replay")
    spec = preset("clicks_sgd", replay=Replay(1000, 0.5))
    assert spec_codec.decode(spec_codec.encode(spec)).replay == spec.replay
    write_spec(tmp_path / "spec.toml", spec, "clicks_sgd", [])
    assert read_spec(tmp_path / "spec.toml", "clicks_sgd").replay == spec.replay


def _push(server: Any, model: str, producer_id: str, start: int, stop: int) -> None:
    numbers = np.arange(start, stop)
    with livefactor.Producer(producer_id=producer_id, channel=server.channel, model=model) as producer:
        for part in np.array_split(numbers, 8):
            producer.push(part * 7919 % 50, part * 104729 % 97, event_types=part % 8)
        producer.flush()


@pytest.mark.parametrize("preset_name", SPECS)
def test_it_is_served_snapshotted_replayed_and_restored(preset_name: str, tmp_path: Path) -> None:
    with local(None, tmp_path) as server, Models(channel=server.channel) as models:
        created = models.create("m", preset_name, **SPECS[preset_name])
        assert created.spec["replay"] == REPLAY["replay"]
        _push(server, "m", "p", 0, 900)
        with livefactor.Auditor(channel=server.channel, model="m") as auditor:
            auditor.snapshot()
            auditor.fetch(tmp_path / "copy")
        kept = livefactor.load(tmp_path / "copy").tensors
        assert len(set(kept["replay.item_rows"].tolist())) > 50
        assert set(kept["replay.weights"].tolist()) == {1.0, 2.0}
        models.restore("again", "m")
        for model in ("m", "again"):
            _push(server, model, "q", 900, 1700)
        before = [models.describe(model, with_root_hash=True).root_hash for model in ("m", "again")]
        for model, root in zip(("m", "again"), before, strict=True):
            for backend in ("cpu", "reference"):
                assert replay_model(tmp_path / "models" / model, backend).root_hash == root
    # The restarted server loads snapshots and logs.
    with local(None, tmp_path) as server, Models(channel=server.channel) as models:
        after = [models.describe(model, with_root_hash=True).root_hash for model in ("m", "again")]
        assert after == before
