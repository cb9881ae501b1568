"""A `Recommender` logs to TensorBoard, MLflow and W&B by one `callbacks=` argument each.

`make test-trackers` installs MLflow and W&B. Neither needs a server or an account here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from livefactor import Recommender
from server_process import wait_until

PAIRS = [(f"user {u}", f"item {u % 3 * 5 + i}") for i in range(5) for u in range(30)]
STEPS = [15 * part for part in range(1, 11)]


def fit(callback: Any) -> None:
    recommender = Recommender("clicks_sgd", batch=8, callbacks=[callback])
    recommender.fit(PAIRS)
    recommender.close()


def test_tensorboard(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("tensorboardX")
    events = pytest.importorskip("tensorboardX.proto.event_pb2")
    with tensorboard.SummaryWriter(str(tmp_path)) as writer:
        fit(partial(writer.add_scalars, "fit"))
    (file,) = tmp_path.rglob("*events_per_s/*tfevents*")
    steps, data = [], file.read_bytes()
    while data:
        # A record: its length in 8 bytes, a checksum of 4, the event, a checksum of 4.
        size = int.from_bytes(data[:8], "little")
        event = events.Event.FromString(data[12 : 12 + size])
        steps += [event.step for value in event.summary.value if value.simple_value > 0]
        data = data[16 + size :]
    assert steps == STEPS


def test_mlflow_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", reason="`make test-trackers` installs it")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    with mlflow.start_run() as run:
        fit(mlflow.log_metrics)
    client = mlflow.MlflowClient()
    assert [each.step for each in client.get_metric_history(run.info.run_id, "events_per_s")] == STEPS


def test_wandb_offline(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb", reason="`make test-trackers` installs it")
    with wandb.init(mode="offline", dir=str(tmp_path), project="livefactor") as run:
        fit(run.log)
        # Its own process takes the figures, the last ones when the run ends.
        wait_until(lambda: run.summary.get("_step") in STEPS[-2:], "the last figures")
        assert run.summary["events_per_s"] > 0
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert file.stat().st_size > 0
