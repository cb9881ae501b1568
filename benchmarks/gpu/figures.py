"""Speed of the GPU backend, contrasted with memory bandwidth and rivals; digests; exact top-k
lists.

k is 64. Items have a Zipf distribution (exponent 1), and users a uniform one. Rates are events per
second of wall time, from the first record until the device has finished the last one. They include
copies, sorting and launches. Candidates take turns in one process, and figures are medians. Every
function takes its sizes, so that the simulator can run it.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from benchmarks.gpu.rivals import HogwildModel, RowBlockModel
from livefactor_kernels.backend import Backend, Update, create_backend, state_sections
from livefactor_kernels.cuda import CudaModel
from livefactor_kernels.device import machine as devices
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import (
    FactorDtype,
    Limits,
    Loss,
    ModelSpec,
    Optimizer,
    OptimizerKind,
    Proposal,
    Rule,
    Softmax,
)
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables import USERS

K, TOP = 64, 100
Figures = dict[str, float | str | None]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of the benchmark. The goals hold for the defaults."""

    users: int = 10_000_000
    items: int = 1_000_000
    events: int = 1 << 20
    records: int = 8
    rounds: int = 3
    batches: tuple[int, ...] = (1 << 14, 1 << 16)
    copy_bytes: int = 1 << 31
    cpu_users: int = 1_000_000
    cpu_items: int = 100_000
    digest_events: int = 200_000
    queries: int = 64
    softmax_batch: int = 1 << 14
    group_events: int = 16
    solve_batch: int = 1 << 12
    solve_k: int = K


def spec_of(sizes: Sizes, **changes: Any) -> ModelSpec:
    """A spec with squared loss and SGD, and with all parts of the arithmetic enabled."""
    fields: dict[str, Any] = {
        "k": K,
        "loss": Loss.SQUARED,
        "optimizer": Optimizer(OptimizerKind.SGD, 0.01, 0.01),
        "l2": 0.02,
        "bias_l2": 0.005,
        "seed": 1,
        "limits": Limits(users_max=sizes.users, items_max=sizes.items, value_abs_max=1e3, error_max=1e3),
    }
    return check(ModelSpec(**{**fields, **changes}))


def zipf_rows(generator: np.random.Generator, count: int, distinct: int) -> np.ndarray:
    """Random rows below `distinct`, uint32[count].

    Popularity is proportional to 1 / rank; ranks are assigned at random.
    """
    weights = 1.0 / np.arange(1, distinct + 1)
    ranks = np.searchsorted(np.cumsum(weights) / weights.sum(), generator.random(count))
    return generator.permutation(distinct).astype(np.uint32)[np.minimum(ranks, distinct - 1)]


def records_of(
    users: int, items: int, events: int, count: int, seed: int = 7
) -> list[tuple[np.ndarray, ...]]:
    """Makes `count` records, each with user rows, item rows and values of `events` events."""
    generator = np.random.default_rng(seed)
    return [
        (
            generator.integers(0, users, events).astype(np.uint32),
            zipf_rows(generator, events, items),
            generator.normal(3.5, 1.0, events).astype(np.float32),
        )
        for _ in range(count)
    ]


def filled(model: Backend, users: int, items: int) -> Any:
    """Allocates and initialises all rows of the model, and returns it."""
    model.users.allocate(np.arange(users, dtype=np.uint64))
    model.items.allocate(np.arange(items, dtype=np.uint64))
    model.advance(model.revision, users, items)
    return model


def learn(model: Any, records: Sequence[tuple[np.ndarray, ...]]) -> float:
    """Seconds until the device has finished the records."""
    started = time.perf_counter()
    for users, items, values in records:
        model.apply(Update(model.revision + 1, users, items, values, None, *model.published))
    if hasattr(model, "device"):
        model.device.mark()()
    return time.perf_counter() - started


def copy_rate(sizes: Sizes) -> Figures:
    """Bytes per second, read and written, of a copy within the device memory."""
    device = devices.open_device()
    source, target = (device.empty(sizes.copy_bytes // 4, np.float32).array for _ in range(2))
    seconds = []
    with device.working():
        source.fill(1.0)
        for _ in range(sizes.rounds + 1):
            device.mark()()
            started = time.perf_counter()
            target[:] = source
            device.mark()()
            seconds.append(time.perf_counter() - started)
    return {"gpu_copy_gb_per_s": 2 * source.nbytes / median(seconds[1:]) / 1e9}


def update_rates(sizes: Sizes) -> Figures:
    """Events per second of the update kernels.

    Measured are the ordered kernels at each micro-batch size (three launches per micro-batch;
    "together": one launch per span), Hogwild with float32 and float16, and one block per row.
    """
    records = records_of(sizes.users, sizes.items, sizes.events, sizes.records)
    largest = max(sizes.batches)
    kinds: dict[str, Callable[[], CudaModel]] = {
        "gpu_hogwild": lambda: HogwildModel(spec_of(sizes)),
        "gpu_hogwild_float16": lambda: HogwildModel(spec_of(sizes, factor_dtype=FactorDtype.FLOAT16)),
    }
    for batch in sizes.batches:
        spec = spec_of(sizes, micro_batch=batch)
        kinds[f"gpu_ordered_{batch}"] = lambda spec=spec: CudaModel(spec)  # type: ignore[misc]
        kinds[f"gpu_together_{batch}"] = lambda spec=spec: CudaModel(spec, together=True)  # type: ignore[misc]
    kinds[f"gpu_block_a_row_{largest}"] = lambda: RowBlockModel(spec_of(sizes, micro_batch=largest))
    rates: Figures = {}
    for name, make in kinds.items():
        model = filled(make(), sizes.users, sizes.items)
        learn(model, records[:1])
        seconds = [learn(model, records) for _ in range(sizes.rounds)]
        rates[f"{name}_events_per_s"] = sizes.records * sizes.events / median(seconds)
        before = model.device.launches
        learn(model, records[:1])
        rates[f"{name}_launches_a_record"] = float(model.device.launches - before)
        del model
    return rates


def rule_rates(sizes: Sizes) -> Figures:
    """Events per second of rules SOFTMAX and SOLVE, with a million users and a hundred thousand
    items.

    Rule SOFTMAX draws 64 negatives uniformly for each group of events. Rule SOLVE uses the preset
    `clicks` with another micro-batch.
    """
    records = records_of(sizes.cpu_users, sizes.cpu_items, sizes.events, 1)
    limits = Limits(users_max=sizes.cpu_users, items_max=sizes.cpu_items)
    softmax = spec_of(
        sizes,
        loss=Loss.SOFTMAX,
        rule=Rule.SOFTMAX,
        softmax=Softmax(Proposal.UNIFORM, sizes.group_events),
        negatives=64,
        micro_batch=sizes.softmax_batch,
        optimizer=Optimizer(OptimizerKind.ADAGRAD, 0.2, 0.1, 0.1),
        limits=limits,
    )
    solve = preset("clicks", k=sizes.solve_k, micro_batch=sizes.solve_batch, limits=limits)
    rates: Figures = {}
    for name, spec in (("gpu_softmax", softmax), ("gpu_solve", solve)):
        model = filled(CudaModel(spec), sizes.cpu_users, sizes.cpu_items)
        learn(model, records)
        seconds = [learn(model, records) for _ in range(sizes.rounds)]
        rates[f"{name}_events_per_s"] = sizes.events / median(seconds)
        before = model.device.launches
        learn(model, records)
        rates[f"{name}_launches_a_record"] = float(model.device.launches - before)
        del model
    return rates


def cpu_rate(sizes: Sizes) -> Figures:
    """Events per second of the CPU backend with one model per core, all at once.

    Its smaller tables favour it.
    """
    cores = len(os.sched_getaffinity(0))
    records = records_of(sizes.cpu_users, sizes.cpu_items, sizes.events, 1)
    limits = Limits(users_max=sizes.cpu_users, items_max=sizes.cpu_items, value_abs_max=1e3, error_max=1e3)
    spec = spec_of(sizes, limits=limits)
    models = [filled(create_backend("cpu", spec), sizes.cpu_users, sizes.cpu_items) for _ in range(cores)]
    threads = [threading.Thread(target=learn, args=(model, records)) for model in models]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = cores * sizes.events / (time.perf_counter() - started)
    return {"gpu_cpu_all_cores_events_per_s": rate, "machine_cores": float(cores)}


def digest(model: Any) -> str:
    """SHA-256 of the model's state."""
    sha = hashlib.sha256()
    for view in state_sections(model).values():
        sha.update(np.ascontiguousarray(view).tobytes())
    return sha.hexdigest()


def digests(sizes: Sizes) -> Figures:
    """Whether all runs, launch shapes and the CPU give the same digest (1 or 0), and the number of
    variants.
    """
    users, items = min(sizes.users, 50_000), min(sizes.items, 20_000)
    records = records_of(users, items, sizes.digest_events // 2, 2)
    found = []
    usual = devices.BLOCK_THREADS
    shapes = (usual,) if devices.SIMULATED else (usual, usual, 64, 512)
    try:
        for threads in shapes:
            devices.BLOCK_THREADS = threads
            model = filled(CudaModel(spec_of(sizes, micro_batch=1 << 12)), users, items)
            learn(model, records)
            found.append(digest(model))
    finally:
        devices.BLOCK_THREADS = usual
    judge = filled(create_backend("cpu", spec_of(sizes, micro_batch=1 << 12)), users, items)
    learn(judge, records)
    found.append(digest(judge))
    return {"gpu_digests_equal": float(len(set(found)) == 1), "gpu_digest_ways": float(len(found))}


def top_k_times(sizes: Sizes) -> Figures:
    """Milliseconds of an exact top-k list over all items.

    Measured are one user, many users, one read of the table, and torch's matrix product and top-k
    for the many users (None without torch).
    """
    model = filled(CudaModel(spec_of(sizes, micro_batch=1 << 12)), min(sizes.users, 1000), sizes.items)
    device = model.device
    rows = np.arange(sizes.queries, dtype=np.uint32) % model.published[USERS]
    with model.pin() as pin:
        users = pin.gather(USERS, rows)
        one = tuple(part[:1] for part in users)
        table = model.items.matrix("factors", 0, sizes.items)

        def read() -> None:
            with device.working():
                table.sum()
            device.mark()()

        times = {
            f"gpu_topk_{TOP}_ms": _milliseconds(lambda: pin.top_k(*one, TOP), sizes.rounds),
            f"gpu_topk_{TOP}_of_{sizes.queries}_users_ms": _milliseconds(
                lambda: pin.top_k(*users, TOP), sizes.rounds
            ),
            "gpu_table_read_ms": _milliseconds(read, sizes.rounds),
        }
        return {**times, "gpu_torch_topk_ms": _torch_ms(users[0], table, sizes)}


def _milliseconds(action: Callable[[], object], rounds: int) -> float:
    action()
    times = []
    for _ in range(max(3, 3 * rounds)):
        started = time.perf_counter()
        action()
        times.append((time.perf_counter() - started) * 1e3)
    return median(times)


def _torch_ms(users: np.ndarray, table: Any, sizes: Sizes) -> float | None:
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    torch.backends.cuda.matmul.allow_tf32 = False
    items = torch.as_tensor(table, device="cuda")
    queries = torch.from_numpy(users.copy()).cuda()

    def search() -> None:
        scores, rows = torch.topk(torch.matmul(queries, items.T), min(TOP, sizes.items), dim=1)
        scores.cpu(), rows.cpu()

    return _milliseconds(search, sizes.rounds)
