"""A model with an adaptive learning rate on a server.

The test creates, describes, restarts, replays and restores it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import livefactor
from livefactor.in_process import local
from livefactor.models import Models
from livefactor.v1 import models_pb2
from livefactor_kernels.spec.model import AdaptiveRate
from livefactor_kernels.spec.presets import preset
from livefactor_server.files.specs import read_spec, write_spec
from livefactor_server.model import spec_codec
from livefactor_server.snapshots.audit import replay_model

SPEC: dict[str, Any] = {
    "k": 20,
    "optimizer": {"kind": "sgd", "learning_rate": 0.003, "bias_learning_rate": 0.003},
    "adaptive_rate": {"window": 100},
    "limits": {"users_max": 1000, "items_max": 1000},
}


def test_logged_specs_and_files_name_an_adaptive_rate_only_if_it_is_set(tmp_path: Path) -> None:
    assert not models_pb2.ModelSpec.FromString(spec_codec.encode(preset("ratings_sgd"))).HasField(
        "adaptive_rate"
    )
    spec = preset("ratings_sgd", adaptive_rate=AdaptiveRate(5000))
    assert spec_codec.decode(spec_codec.encode(spec)).adaptive_rate == spec.adaptive_rate
    write_spec(tmp_path / "spec.toml", spec, "ratings_sgd", [])
    assert read_spec(tmp_path / "spec.toml", "ratings_sgd").adaptive_rate == spec.adaptive_rate


def _push(server: Any, model: str, producer_id: str, start: int, stop: int) -> None:
    numbers = np.arange(start, stop)
    with livefactor.Producer(producer_id=producer_id, channel=server.channel, model=model) as producer:
        for part in np.array_split(numbers, 8):
            users, items = part * 7919 % 50, part * 104729 % 97
            producer.push(users, items, users % 3 + items % 2)
            # Each flush makes a record.
            producer.flush()


def test_it_is_served_described_snapshotted_replayed_and_restored(tmp_path: Path) -> None:
    with local(None, tmp_path) as server, Models(channel=server.channel) as models:
        created = models.create("m", "ratings_sgd", **SPEC)
        assert created.spec["adaptive_rate"] == SPEC["adaptive_rate"]
        assert created.adapted_rate == 1.0
        assert models.create("plain", "ratings_sgd").adapted_rate is None
        _push(server, "m", "p", 0, 1990)
        with livefactor.Auditor(channel=server.channel, model="m") as auditor:
            auditor.snapshot()
            auditor.fetch(tmp_path / "copy")
        step = livefactor.load(tmp_path / "copy").tensors["rates"][0]
        assert step >= 2
        rate = models.describe("m").adapted_rate
        assert rate == np.float32(2 ** (step / 4))
        models.restore("again", "m")
        for model in ("m", "again"):
            _push(server, model, "q", 1990, 2200)
        before = [models.describe(model, with_root_hash=True) for model in ("m", "again")]
        assert before[0].adapted_rate == before[1].adapted_rate
        for model, live in zip(("m", "again"), before, strict=True):
            for backend in ("cpu", "reference"):
                assert replay_model(tmp_path / "models" / model, backend).root_hash == live.root_hash
    # The restarted server loads snapshots and logs.
    with local(None, tmp_path) as server, Models(channel=server.channel) as models:
        for model, live in zip(("m", "again"), before, strict=True):
            assert models.describe(model, with_root_hash=True).root_hash == live.root_hash
