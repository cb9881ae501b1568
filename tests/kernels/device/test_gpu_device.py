"""Tests that need a GPU: golden digests, any launch shape, memory that grows in place, several
models.
"""

from __future__ import annotations

import numpy as np
import pytest

from golden import GOLDEN, SPECS, digest
from livefactor_kernels.backend import create_backend
from livefactor_kernels.device import machine as devices
from livefactor_kernels.device.warp import SIMULATED
from livefactor_kernels.spec.model import Limits, Loss, ModelSpec, OptimizerKind
from livefactor_kernels.tables import ITEMS, USERS
from synthetic import differences, learn_side_by_side, make_spec, push_random, read_pin, unlike

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(SIMULATED, reason="the simulator has no device")]


@pytest.mark.parametrize("name", SPECS)
def test_a_gpu_gives_the_golden_digests(name) -> None:
    assert digest(name, "cuda") == GOLDEN[name]


@pytest.mark.parametrize("threads", [32, 64, 256, 512])
@pytest.mark.parametrize("together", [False, True])
def test_launch_shapes_show_in_no_bit(threads, together, monkeypatch) -> None:
    from livefactor_kernels.cuda import CudaModel

    monkeypatch.setattr(devices, "BLOCK_THREADS", threads)
    spec = make_spec(Loss.LOGISTIC, OptimizerKind.ADAGRAD, k=64, negatives=3, micro_batch=700)
    models = CudaModel(spec, together=together), create_backend("cpu", spec)
    for turn in range(3):
        for model in models:
            push_random(model, np.random.default_rng(turn), 3000, 400, 300)
    assert differences(*models) == []


def test_tables_grow_in_place() -> None:
    spec = ModelSpec(
        k=64, loss=Loss.SQUARED, micro_batch=4096, limits=Limits(users_max=4 << 20, value_abs_max=10.0)
    )
    model, judge = create_backend("cuda", spec), create_backend("cpu", spec)
    address = model.users.arrays["factors"].buffer.array.data.ptr
    for turn in range(4):
        for each in (model, judge):
            push_random(each, np.random.default_rng(turn), 20_000, 10_000 << turn, 1000)
    assert model.users.arrays["factors"].buffer.array.data.ptr == address
    assert differences(model, judge) == []


def test_a_record_takes_no_memory_not_even_to_sort() -> None:
    model = create_backend("cuda", make_spec(Loss.LOGISTIC, negatives=3, micro_batch=4096))
    assert model.reserve(4096, 4096)
    pools = model.device._pool, model.device.xp.get_default_memory_pool()
    before = [pool.total_bytes() for pool in pools]
    for turn, events in enumerate((1, 300, 65_536, 20_000)):
        push_random(model, np.random.default_rng(turn), events, 4000, 4000)
    assert [pool.total_bytes() for pool in pools] == before and before[0] > 0


def test_models_in_many_threads_learn_the_same() -> None:
    spec = make_spec(Loss.BPR, OptimizerKind.ADAGRAD, negatives=3, micro_batch=64)
    models = [create_backend(name, spec) for name in ("cuda", "cuda", "cuda", "cpu")]
    learn_side_by_side(models)
    assert [differences(model, models[-1]) for model in models[:-1]] == [[], [], []]


def test_a_snapshot_is_drained_while_updates_go_on() -> None:
    spec = make_spec(Loss.SQUARED, OptimizerKind.ADAGRAD, k=20, micro_batch=512)
    model, judge = create_backend("cuda", spec), create_backend("reference", spec)
    for each in (model, judge):
        push_random(each, np.random.default_rng(0), 2000, 500, 400)
    with model.pin() as pin, judge.pin() as expected:
        for turn in range(1, 20):
            push_random(model, np.random.default_rng(turn), 2000, 500, 400)
        assert unlike(read_pin(pin, 100), read_pin(expected, 100)) == []
        assert pin.counts[USERS] > 100 and pin.counts[ITEMS] > 100
