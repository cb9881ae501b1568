"""Settings of `livefactor serve`: flags, or environment variables LIVEFACTOR_<NAME>. Flags win.

Only the command line uses this module; the engine takes plain dataclasses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from livefactor_kernels.backend import choose_backend
from livefactor_kernels.spec.presets import DEFAULT_PRESET, PRESET_NAMES
from livefactor_server.engine.engine import EngineSettings
from livefactor_server.files.specs import read_spec
from livefactor_server.hosting.host import HostingSettings
from livefactor_server.hosting.keeper import KeeperSettings
from livefactor_server.judging.judge import JudgeSettings
from livefactor_server.judging.observer import ObserverSettings
from livefactor_server.rpc.calls import ServiceSettings


class ServerSettings(BaseSettings):
    """Everything that can be set, with units in the names."""

    model_config = SettingsConfigDict(env_prefix="LIVEFACTOR_", frozen=True)

    data: Path = Field(
        Path("livefactor-data"), description="Folder that holds the models; one server at a time."
    )
    host: str = Field(
        "127.0.0.1", description="Address to bind. Anything but loopback also needs allow_remote."
    )
    port: int = Field(50051, ge=0, le=65535, description="gRPC port; 0 takes a free one.")
    metrics_port: int = Field(
        0, ge=-1, le=65535, description="Prometheus port on the same host; 0 takes a free one, -1 is off."
    )
    allow_remote: bool = Field(
        False, description="Allow a host other than loopback. There is no TLS and no access control yet."
    )
    preset: str = Field(
        DEFAULT_PRESET,
        description="Preset of the model 'default', made if the data folder is empty; '' makes none.",
    )
    spec: Path | None = Field(
        None,
        description="Spec file (TOML) of the model 'default', made if the data folder is empty; what it leaves"
        " out is the preset's.",
    )
    backend: Literal["cpu", "cuda", "reference", "auto"] = Field(
        "cpu",
        description="What computes: cpu, cuda (a GPU), auto (cuda if a GPU answers, else cpu), or reference"
        " (plain NumPy, slow); the bits do not depend on it.",
    )
    batch_events_max: int = Field(65_536, ge=1, le=65_536, description="Most rows of one batch.")
    queue_bytes_max: int = Field(
        64 << 20, ge=1 << 16, description="Bytes of batches that may wait for the log, a model."
    )
    memory_bytes_max: int = Field(
        8 << 30,
        ge=1 << 20,
        description="Bytes of rows, key maps and labels, a model; past it new ones are refused.",
    )
    streams_max: int = Field(32, ge=1, le=512, description="Update streams at once.")
    update_slots: int = Field(64, ge=1, le=512, description="Unary update calls at once.")
    score_slots: int = Field(16, ge=1, le=512, description="Score calls at once.")
    snapshot_every_events: int = Field(
        20_000_000, ge=0, description="Take a snapshot after so many events; 0: only on drain."
    )
    snapshots_kept: int = Field(3, ge=1, description="Newest snapshots to keep, a model.")
    judge_record_share: float = Field(
        0.015625,
        ge=0.0,
        le=1.0,
        description="Share of the records whose events are judged; 0 judges nothing.",
    )
    judge_events_per_record_max: int = Field(
        64, ge=1, le=65_536, description="Most events of a judged record that are judged."
    )
    judge_sampled_share: float = Field(
        0.25, ge=0.0, le=1.0, description="Share of judged events that are ranked among 100 drawn items."
    )
    judge_ranked_share: float = Field(
        0.125,
        ge=0.0,
        le=1.0,
        description="Most of the judged events that are ranked among all items, a share.",
    )
    judge_window_events: int = Field(
        10_000, ge=1, le=1_000_000, description="Last judged events that windowed figures are over."
    )
    judge_half_life_events: int = Field(
        2_000, ge=1, le=125_000, description="Judged events after which one weighs half in decayed figures."
    )
    judge_popularity_half_life_events: int = Field(
        20_000, ge=1, description="Learned events after which one weighs half in decayed most-popular."
    )
    judge_hold: bool = Field(
        False, description="Stop updates when loss or factors run away, until an operator releases them."
    )
    tensorboard: Path | None = Field(
        None,
        description="Folder for TensorBoard event files of the judge's figures; none are written without.",
    )
    drain_s: float = Field(
        30.0, ge=0.0, description="Most seconds that running calls get to end after SIGTERM."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe line of the server's log."
    )

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, value: str) -> str:
        if value and value not in PRESET_NAMES:
            raise ValueError(f"expected one of {', '.join(PRESET_NAMES)}, or ''")
        return value

    def hosting(self) -> HostingSettings:
        """The engine room's part. BackendUnavailable if the backend cannot run here, SpecFileError if the spec is refused."""
        return HostingSettings(
            default_preset=self.preset,
            default_spec=read_spec(self.spec, self.preset or PRESET_NAMES[0]) if self.spec else None,
            engine=EngineSettings(
                self.queue_bytes_max, self.memory_bytes_max, choose_backend(self.backend), self._observer()
            ),
            keeper=KeeperSettings(self.snapshot_every_events, self.snapshots_kept),
        )

    def _observer(self) -> ObserverSettings:
        judge = JudgeSettings(
            self.judge_record_share,
            self.judge_events_per_record_max,
            self.judge_sampled_share,
            self.judge_ranked_share,
            self.judge_window_events,
            self.judge_half_life_events,
            self.judge_popularity_half_life_events,
        )
        return ObserverSettings(judge, self.judge_hold, self.tensorboard)

    def service(self) -> ServiceSettings:
        """The handlers' part."""
        return ServiceSettings(
            batch_events_max=self.batch_events_max,
            streams_max=self.streams_max,
            update_slots=self.update_slots,
            score_slots=self.score_slots,
            default_preset=self.preset,
        )
