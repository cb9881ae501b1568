"""A CPU replays and verifies the log of a GPU and goes on from its snapshot. A GPU does the same
with a CPU's.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from livefactor import Models, Producer, Scorer
from livefactor.channel import open_channel
from livefactor_kernels.device.warp import SIMULATED
from livefactor_server.rpc.embedded import EmbeddedServer
from livefactor_server.snapshots.audit import replay_model

pytestmark = [] if SIMULATED else [pytest.mark.gpu]
MODEL = "small"
LIMITS = {"users_max": 1024, "items_max": 1024}
SMALL = {
    "clicks_sgd": {"k": 16, "negatives": 1, "micro_batch": 2, "limits": LIMITS},
    "clicks": {"k": 4, "micro_batch": 2, "limits": LIMITS},
    "ratings_sgd": {"k": 16, "micro_batch": 2, "limits": LIMITS, "adaptive_rate": {"window": 16}},
}
"""Presets with small tables, because the simulator copies whole tables, also reserved addresses."""


def serve(
    folder: Path, preset: str, backend: str, users: list[int], items: list[int]
) -> tuple[bytes, list[float], str]:
    """Starts a server, learns, and stops with a snapshot.

    Returns the root hash, scores, and the backend in the model's description.
    """
    server = EmbeddedServer("clicks_sgd", folder, backend=backend)
    channel = open_channel(server.target)
    try:
        models = Models(channel=channel)
        if MODEL not in {description.name for description in models.list()}:
            models.create(MODEL, preset=preset, **SMALL[preset])
        with Producer(model=MODEL, producer_id=f"by {backend}", channel=channel) as producer:
            producer.push(users, items, items if preset == "ratings_sgd" else None)
            position = producer.flush()
        scorer = Scorer(model=MODEL, channel=channel)
        scores = scorer.score(users[0], [3, 4, 99], min_position=position, timeout=60.0).scores.tolist()
        described = models.describe(MODEL, with_root_hash=True)
        return described.root_hash, scores, described.backend
    finally:
        channel.close()
        server.stop()


@pytest.mark.parametrize("preset", SMALL)
def test_a_log_of_one_backend_is_the_others_state(tmp_path, preset) -> None:
    first, _, name = serve(tmp_path, preset, "cuda", [1, 2, 1, 3], [3, 4, 5, 3])
    assert name == "cuda"
    for backend in ("cpu", "reference"):
        report = replay_model(tmp_path / "models" / MODEL, backend)
        assert report.root_hash == first and report.good and report.snapshots, backend
    second, _, name = serve(tmp_path, preset, "cpu", [1, 9], [4, 8])
    assert name == "cpu" and second != first
    # It starts from the snapshot of the CPU.
    third, scores, _ = serve(tmp_path, preset, "cuda", [2, 9], [4, 8])
    report = replay_model(tmp_path / "models" / MODEL, "cpu")
    assert report.root_hash == third and report.good
    assert len(scores) == 3 and scores[0] != scores[1]
