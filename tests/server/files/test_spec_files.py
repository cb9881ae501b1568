"""Spec files.

A written file reads back to the bit. A name that is not a field is refused. Servers accept them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livefactor.channel import open_channel
from livefactor.models import Models
from livefactor_kernels.spec.model import (
    Counts,
    EventType,
    FactorDtype,
    History,
    Limits,
    Loss,
    ModelSpec,
    Optimizer,
    OptimizerKind,
    Regularization,
    Rule,
)
from livefactor_kernels.spec.presets import PRESET_NAMES, preset
from livefactor_server.cli.serve.settings import ServerSettings
from livefactor_server.engine.engine import EngineSettings
from livefactor_server.files.specs import SpecFileError, read_changes, read_spec, write_spec
from livefactor_server.hosting import host as hosting
from livefactor_server.model import spec_codec
from livefactor_server.rpc import embedded

RATES = st.floats(0.0, 100.0, width=32)


def specs() -> st.SearchStrategy[ModelSpec]:
    return st.builds(
        lambda name, k, rate, bias, l2, g, seed, dtype: replace(
            preset(name),
            k=k,
            optimizer=replace(
                preset(name).optimizer, learning_rate=rate, bias_learning_rate=bias, initial_g=g
            ),
            l2=l2,
            seed=seed,
            factor_dtype=dtype,
        ),
        st.sampled_from([name for name in PRESET_NAMES if preset(name).rule == Rule.SGD]),
        st.integers(1, 256),
        RATES,
        RATES,
        RATES,
        RATES,
        st.integers(0, (1 << 64) - 1),
        st.sampled_from(FactorDtype),
    )


@given(specs(), st.sampled_from(PRESET_NAMES))
def test_a_written_spec_is_read_back_to_the_bit(tmp_path_factory, spec: ModelSpec, other: str) -> None:
    """The file holds every field, so later changes of the preset do not matter."""
    spec = spec_codec.decode(spec_codec.encode(spec))
    file = tmp_path_factory.mktemp("spec") / "spec.toml"
    write_spec(file, spec, other, ["a note = with [signs]"])
    assert read_spec(file, "clicks_sgd") == spec
    assert spec_codec.encode(read_spec(file, "ratings_sgd")) == spec_codec.encode(spec)


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_histories_and_event_types_are_read_back_to_the_bit(tmp_path: Path, name: str) -> None:
    types = (EventType(3, 0.1), EventType(7, 2.0, True))
    # A mix has its own half-lives.
    half_life = 0.0 if preset(name).mix.learning_rate else 0.7
    spec = preset(name, history=History(32, 64, half_life), counts=Counts(16, 8, 3.3), event_types=types)
    write_spec(tmp_path / "spec.toml", spec, "ratings_sgd", [])
    assert read_spec(tmp_path / "spec.toml", "clicks_sgd") == spec_codec.decode(spec_codec.encode(spec))


@pytest.mark.parametrize("kind", OptimizerKind)
def test_optimizers_and_regularization_are_read_back_to_the_bit(tmp_path: Path, kind: OptimizerKind) -> None:
    optimizer = Optimizer(kind, 0.1, 0.2, 0.3, 0.4, beta1=0.7, beta2=0.99, l1=0.6, beta=0.8)
    spec = preset(
        "purchases_sgd",
        optimizer=optimizer,
        regularization=Regularization(0.1, 0.2, 0.5, 0.3),
        history=History(16),
    )
    write_spec(tmp_path / "spec.toml", spec, "ratings_sgd", [])
    assert read_spec(tmp_path / "spec.toml", "clicks_sgd") == spec_codec.decode(spec_codec.encode(spec))
    assert spec_codec.decode(spec_codec.encode(spec)).optimizer.beta1 == np.float32(0.7)


def test_missing_fields_take_the_values_of_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "spec.toml"
    file.write_text('k = 8\nloss = "squared"\n[optimizer]\nlearning_rate = 0.5\n')
    spec = read_spec(file, "ratings_sgd")
    rate = replace(preset("ratings_sgd").optimizer, learning_rate=0.5)
    assert spec == spec_codec.decode(spec_codec.encode(replace(preset("ratings_sgd"), k=8, optimizer=rate)))
    file.write_text('preset = "purchases_sgd"\n')
    assert read_spec(file, "ratings_sgd").loss == Loss.BPR
    assert read_changes(file) == ("purchases_sgd", {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("k = 8\nfactors = 3\n", r"spec\.factors: no such field; the fields are k, loss"),
        ("[optimizer]\nmomentum = 0.9\n", r"spec\.optimizer\.momentum: no such field"),
        ("optimizer = 3\n", r"spec\.optimizer: expected a dict"),
        ('k = "many"\n', r"spec\.k"),
        ("k = 1.5\n", r"spec\.k"),
        ('loss = "hinge"\n', r"spec\.loss: expected one of squared, logistic, bpr"),
        ("k = 9999\n", r"k: expected 1\.\.1024, got 9999"),
        ("l2 = nan\n", "l2: expected"),
        ('preset = "best"\n', "preset: expected one of"),
        ("k = \n", "line 1"),
    ],
)
def test_a_bad_file_is_refused_by_field_and_file(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "spec.toml"
    file.write_text(text)
    with pytest.raises(SpecFileError, match=said) as refused:
        read_spec(file, "clicks_sgd")
    assert str(file) in str(refused.value)
    with pytest.raises(SpecFileError):
        read_spec(tmp_path / "missing.toml", "clicks_sgd")


def test_models_from_a_file_have_its_spec(tmp_path: Path) -> None:
    """This holds for `serve --spec` and for a request. A model that exists keeps its spec."""
    spec = spec_codec.decode(
        spec_codec.encode(
            ModelSpec(k=7, loss=Loss.BPR, negatives=3, optimizer=Optimizer(), limits=Limits(1000, 100))
        )
    )
    file = tmp_path / "spec.toml"
    write_spec(file, spec, "purchases_sgd", [])
    settings = ServerSettings(spec=file, data=tmp_path / "data").hosting()
    assert settings.default_spec == spec
    for default in (settings, replace(settings, default_spec=preset("clicks_sgd"))):
        hosted = hosting.Hosting(tmp_path / "data", replace(default, engine=EngineSettings()))
        hosted.open_all()
        assert hosted.get("default").engine.state.spec == spec
        hosted.drain()
    server = embedded.start(preset="clicks_sgd", data=tmp_path / "served")
    try:
        with open_channel(server.target) as channel, Models(channel=channel) as models:
            named, changes = read_changes(file)
            models.create("tuned", named, **changes)
    finally:
        server.stop()
    hosted = hosting.Hosting(tmp_path / "served", replace(settings, engine=EngineSettings()))
    hosted.open_all()
    assert hosted.get("tuned").engine.state.spec == spec
    hosted.drain()
    with pytest.raises(SpecFileError, match="missing"):
        ServerSettings(spec=tmp_path / "missing.toml").hosting()
