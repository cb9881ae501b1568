"""Compilation of every kernel of the GPU backend to PTX and to machine code.

It needs no GPU, no driver and no nvcc.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from cuda.core import Linker, LinkerOptions, ObjectCode
from cuda.pathfinder import find_static_lib
from numba import types

# No installed package contains the benchmarks.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.gpu import rivals

from kept import kept
from livefactor_kernels.device import plan as cuda_plan
from livefactor_kernels.device.factors import DeviceRows, StateRows
from livefactor_kernels.device.plan import Plan, Span
from livefactor_kernels.device.scratch import Sums
from livefactor_kernels.device.warp import cuda
from livefactor_kernels.history import cuda as history
from livefactor_kernels.optimizers import Method, StepRates
from livefactor_kernels.scoring import cuda_reads
from livefactor_kernels.scoring.cuda_reads import Saved
from livefactor_kernels.sgd import cuda_adaptive as adaptive
from livefactor_kernels.sgd.cuda_micro_batch import micro_batch_kernels
from livefactor_kernels.softmax import cuda_kernels as softmax
from livefactor_kernels.softmax.cuda_shared import livefactor_order_negatives_kernel
from livefactor_kernels.solve import SolveRates
from livefactor_kernels.solve import cuda as solve
from livefactor_kernels.spec.model import LANES, FactorDtype, Loss, OptimizerKind
from livefactor_kernels.tables import cuda as cuda_rows
from livefactor_kernels.update import Rates

TARGETS = ((8, 0), (9, 0), (10, 0))
"""Compute capabilities: A100, H100, B200."""

I64, U64, F32 = types.int64, types.uint64, types.float32
FLOATS, WORDS, INTS, LONGS, KEYS, DOUBLES = (
    types.Array(kind, 1, "C") for kind in (F32, types.uint32, types.int32, I64, U64, types.float64)
)


def _named(kind: type, **others: Any) -> types.BaseTuple:
    """Return Numba's type of a named tuple. Fields are int64 unless `others` names their type."""
    members = [others.get(name, I64) for name in kind._fields]
    if len(set(members)) == 1:
        return types.NamedUniTuple(members[0], len(members), kind)
    return types.NamedTuple(members, kind)


SPAN = _named(Span)
PLAN = _named(
    Plan,
    **dict.fromkeys(Plan._fields, LONGS)
    | {"negatives": WORDS, "errors": FLOATS, "segment_word": WORDS, "dropout_words": WORDS},
)
STORED = {
    dtype: types.Array(kind, 1, "C")
    for dtype, kind in (
        (FactorDtype.FLOAT32, F32),
        (FactorDtype.FLOAT16, types.float16),
        (FactorDtype.BFLOAT16, types.uint16),
    )
}
ROWS_OF = {
    dtype: _named(DeviceRows, **dict.fromkeys(DeviceRows._fields, FLOATS) | {"factors": array})
    for dtype, array in STORED.items()
}
ROWS = ROWS_OF[FactorDtype.FLOAT32]
SUMS = _named(Sums, gradients=FLOATS, events=INTS)
ADAGRAD = Method(int(OptimizerKind.ADAGRAD), 0, 0, 0, 0)
RATES = _named(Rates, **dict.fromkeys(Rates._fields, F32))
STATE_ROWS = _named(StateRows, **dict.fromkeys(StateRows._fields, FLOATS) | {"seen": WORDS})
STEP_RATES = _named(
    StepRates, **dict.fromkeys(StepRates._fields, F32) | {"keep_below": U64, "dropout_key": U64}
)
NEW = _named(cuda_rows.NewRows)
PIECE = _named(history.Piece)
_OF_TYPE = {np.uint32: WORDS, np.float32: FLOATS, np.int64: LONGS}
HISTORY = _named(history.HistoryRows, **{name: _OF_TYPE[element] for name, element in history.TYPES.items()})
ADDITIONS = _named(history.Additions, keys=LONGS, followers=WORDS, amounts=FLOATS, decay=FLOATS)


class Case(NamedTuple):
    """A kernel and the types of the arguments in its launch."""

    name: str
    kernel: Any
    arguments: tuple[Any, ...]


def cases() -> Iterator[Case]:
    """Yield every kernel with its types.

    Kernels that depend on the row length use k = 64. Each loss comes with the costlier optimiser.
    Kernels that read or write factors come again for each narrow type, with a loss that has both
    kinds of entries.
    """
    for loss in (Loss.SQUARED, Loss.LOGISTIC, Loss.BPR):
        name = f"{loss.name.lower()}_"
        yield Case(
            name + "entries",
            cuda_plan.entries_kernel(int(loss)),
            (SPAN, PLAN, WORDS, FLOATS, U64, U64, U64),
        )
        yield from _of_a_micro_batch(name, loss, ROWS)
    for kind in (OptimizerKind.ROWWISE_ADAGRAD, OptimizerKind.LAZY_ADAM, OptimizerKind.FTRL):
        yield from _of_whole_rows(kind)
    yield from _of_regularization()
    yield from _of_adaptive_rates()
    yield from _rivals()
    yield Case("mark", cuda_plan.livefactor_mark_kernel, (SPAN, PLAN, I64))
    yield Case("list", cuda_plan.livefactor_list_kernel, (SPAN, PLAN, I64))
    yield Case("words", cuda_plan.livefactor_words_kernel, (SPAN, PLAN, U64, U64))
    yield Case("dropout", cuda_plan.livefactor_dropout_kernel, (SPAN, PLAN, U64, U64))
    yield from _of_rows("", FactorDtype.FLOAT32)
    yield from _of_histories()
    yield from _of_solves()
    yield from _of_softmax()
    for dtype in (FactorDtype.FLOAT16, FactorDtype.BFLOAT16):
        name = f"{dtype.name.lower()}_"
        yield from _of_a_micro_batch(name, Loss.LOGISTIC, ROWS_OF[dtype])
        yield from _of_rows(name, dtype)


def _of_a_micro_batch(name: str, loss: Loss, rows: types.BaseTuple) -> Iterator[Case]:
    kernels = micro_batch_kernels(64 // LANES, int(loss), ADAGRAD)
    yield Case(name + "users", kernels.users, (SPAN, PLAN, WORDS, FLOATS, rows, rows, SUMS, RATES, I64))
    yield Case(name + "items", kernels.items, (SPAN, PLAN, WORDS, rows, rows, SUMS, RATES, I64))
    yield Case(name + "step", kernels.step, (SPAN, PLAN, rows, rows, SUMS, RATES, I64))
    walk = (SPAN, PLAN, WORDS, FLOATS, rows, rows, SUMS, RATES)
    yield Case(name + "walk", kernels.walk, walk)
    yield Case(name + "walk_together", kernels.walk_together, walk)


def _of_whole_rows(kind: OptimizerKind) -> Iterator[Case]:
    """Yield kernels in which half-warps step a row, with bounds on gradients and rows."""
    name = kind.name.lower().removeprefix("lazy_").removesuffix("_adagrad")
    kernels = micro_batch_kernels(64 // LANES, int(Loss.BPR), Method(int(kind), 1, 1, 0, 0))
    yield Case(name + "_lanes", kernels.step, (SPAN, PLAN, STATE_ROWS, STATE_ROWS, SUMS, STEP_RATES, I64))
    walk = (SPAN, PLAN, WORDS, FLOATS, STATE_ROWS, STATE_ROWS, SUMS, STEP_RATES)
    yield Case(name + "_walk", kernels.walk, walk)


def _of_regularization() -> Iterator[Case]:
    """Yield kernels for events without columns and for rows whose L2 is scaled."""
    for loss in (Loss.LOGISTIC, Loss.BPR):
        name, method = f"dropped_{loss.name.lower()}_", Method(int(OptimizerKind.SGD), 0, 0, 1, 1)
        kernels = micro_batch_kernels(64 // LANES, int(loss), method)
        columns, rows = (SPAN, PLAN, WORDS), (STATE_ROWS, STATE_ROWS)
        yield Case(name + "users", kernels.users, (*columns, FLOATS, *rows, SUMS, STEP_RATES, I64))
        yield Case(name + "items", kernels.items, (*columns, *rows, SUMS, STEP_RATES, I64))
        yield Case(name + "walk", kernels.walk, (*columns, FLOATS, *rows, SUMS, STEP_RATES))


def _of_adaptive_rates() -> Iterator[Case]:
    """Yield the kernels that a probe needs beside the learning kernels."""
    rows = _named(adaptive.ProbedRows, **dict.fromkeys(adaptive.ProbedRows._fields, FLOATS))
    for loss in (Loss.SQUARED, Loss.LOGISTIC, Loss.BPR):
        columns, draws = (PIECE, WORDS, FLOATS, rows, rows, F32), (U64, U64, U64, I64)
        kernel = adaptive.evidence_kernel(64 // LANES, int(loss))
        yield Case(f"{loss.name.lower()}_evidence", kernel, (*columns, *draws, F32, DOUBLES))
    yield Case("evidence_sums", adaptive.livefactor_evidence_sums_kernel, (DOUBLES, I64, DOUBLES))
    named = (WORDS, I64, I64, WORDS, I64, I64)
    yield Case("probe_begin", adaptive.livefactor_begin_kernel, (*named, rows, rows, F32, I64))


def _of_rows(name: str, dtype: FactorDtype) -> Iterator[Case]:
    rows, stored = ROWS_OF[dtype], STORED[dtype]
    saved = _named(Saved, place=INTS, rows=WORDS, counter=INTS, arrays=rows)
    yield Case(name + "init", cuda_rows.livefactor_init_kernel, (NEW, rows, KEYS, F32, F32, U64, U64))
    yield Case(name + "start", cuda_rows.livefactor_start_kernel, (NEW, stored, FLOATS, F32, F32))
    gather = (WORDS, stored, stored, saved, I64, I64, I64, stored)
    yield Case(name + "gather", cuda_reads.livefactor_gather_kernel, gather)
    yield Case(
        name + "save", cuda_reads.livefactor_save_kernel, (WORDS, I64, I64, I64, rows, saved, I64, I64)
    )
    scan = (FLOATS, FLOATS, I64, rows, saved, I64, I64, I64, I64, FLOATS)
    yield Case(name + "scan", cuda_reads.livefactor_scan_kernel, scan)
    rescore = (FLOATS, FLOATS, rows, saved, LONGS, LONGS, I64, I64, FLOATS)
    yield Case(name + "rescore", cuda_reads.livefactor_rescore_kernel, rescore)
    yield Case(name + "norms", cuda_reads.livefactor_norms_kernel, (rows, I64, I64, FLOATS))


def _of_histories() -> Iterator[Case]:
    yield Case("order", history.livefactor_order_kernel, (PIECE, WORDS, LONGS, LONGS))
    columns, slices = (PIECE, LONGS, WORDS, FLOATS), (I64,) * 4
    users = (*columns, LONGS, HISTORY, ADDITIONS, I64, *slices)
    yield Case("users_record", history.livefactor_record_users_kernel, users)
    yield Case("items_record", history.livefactor_record_items_kernel, (*columns, HISTORY, I64, I64, I64))
    yield Case("add", history.livefactor_add_kernel, (HISTORY, ADDITIONS, I64))
    saved = _named(Saved, place=INTS, rows=WORDS, counter=INTS, arrays=ROWS)
    followed = (WORDS, I64, HISTORY, I64, I64, I64, ROWS, saved, I64, I64)
    yield Case("followed_save", cuda_reads.livefactor_save_followed_kernel, followed)
    for name, kind in (("words", WORDS), ("floats", FLOATS), ("longs", LONGS)):
        yield Case(f"{name}_copy", cuda_reads.livefactor_copy_kernel, (kind, saved, kind, I64))
        gather = (WORDS, kind, kind, saved, I64, I64, I64, kind)
        # The gather of floats is the gather of float32 factors, which another case covers.
        if kind != FLOATS:
            yield Case(f"{name}_gather", cuda_reads.livefactor_gather_kernel, gather)


def _of_solves() -> Iterator[Case]:
    rates = _named(
        SolveRates, **dict.fromkeys(("unobserved", "l2", "bias_l2", "factor_max", "ridge_events"), F32)
    )
    batch = _named(solve.Batch, counts=WORDS, old=FLOATS)
    yield Case("named", solve.livefactor_named_kernel, (LONGS, LONGS, HISTORY, batch, I64, I64, I64, I64))
    named = (WORDS, I64, ROWS, HISTORY)
    numbers = (FLOATS, I64, F32, I64, I64, I64)
    for k, has_bias in ((64, False), (64, True), (128, False)):
        name, kernel = f"solve_{k}" + "_bias" * has_bias, solve.solve_kernel(k, has_bias)
        yield Case(name, kernel, (*named, ROWS, batch, DOUBLES, FLOATS, rates, *numbers))
    yield Case("gram", solve.livefactor_gram_kernel, (*named, batch, DOUBLES, I64, I64, I64, I64))


def _of_softmax() -> Iterator[Case]:
    kernels = softmax.softmax_kernels(64 // LANES, ADAGRAD)
    batch, results = (
        _named(softmax.Batch),
        _named(softmax.Results, **dict.fromkeys(softmax.Results._fields, FLOATS)),
    )
    columns = (PIECE, batch, LONGS, WORDS, FLOATS)
    yield Case("softmax_order", livefactor_order_negatives_kernel, (WORDS, I64, I64, I64, I64, LONGS))
    yield Case("softmax_users", kernels.users, (*columns, ROWS, ROWS, results, RATES))
    yield Case("softmax_negatives", kernels.negatives, (PIECE, batch, FLOATS, results))
    sorted_columns = (PIECE, batch, LONGS, LONGS, FLOATS)
    yield Case("softmax_items", kernels.items, (*sorted_columns, ROWS, results, RATES))
    kernels = softmax.softmax_kernels(64 // LANES, Method(int(OptimizerKind.LAZY_ADAM), 1, 1, 0, 0))
    yield Case("softmax_adam_users", kernels.users, (*columns, STATE_ROWS, STATE_ROWS, results, STEP_RATES))
    yield Case("softmax_adam_lanes", kernels.items, (*sorted_columns, STATE_ROWS, results, STEP_RATES))


def _rivals() -> Iterator[Case]:
    for name, dtype in (
        ("rival_hogwild", FactorDtype.FLOAT32),
        ("rival_float16_hogwild", FactorDtype.FLOAT16),
    ):
        rows = ROWS_OF[dtype]
        yield Case(
            name,
            rivals.livefactor_hogwild_kernel,
            (WORDS, FLOATS, I64, I64, I64, I64, rows, rows, F32, RATES),
        )
    shared = (ROWS, ROWS, RATES, I64)
    yield Case("rival_errors", rivals.livefactor_errors_kernel, (SPAN, PLAN, WORDS, FLOATS, *shared))
    totals = (ROWS, ROWS, FLOATS, RATES, I64)
    yield Case("rival_row_block", rivals.livefactor_row_block_kernel, (SPAN, PLAN, WORDS, *totals))
    yield Case("rival_row_step", rivals.livefactor_row_step_kernel, (SPAN, PLAN, *totals))


def device_of(target: tuple[int, int]) -> Any:
    """Return a device that answers the questions that Numba asks the driver."""
    return SimpleNamespace(compute_capability=target)


@contextmanager
def _compiling_for(target: tuple[int, int]) -> Iterator[None]:
    with mock.patch("numba.cuda.dispatcher.get_current_device", return_value=device_of(target)):
        yield


def ptx_of(case: Case, target: tuple[int, int]) -> str:
    """Compile the kernel and return its PTX."""
    with _compiling_for(target):
        ptx, _ = cuda.compile(
            case.kernel.py_func,
            types.void(*case.arguments),
            device=False,
            abi="numba",
            cc=target,
            output="ptx",
        )
    return str(ptx)


class Machine(NamedTuple):
    """The resources that a kernel uses, as ptxas reports them."""

    registers: int
    stack_bytes: int
    spill_bytes: int


def machine_code_of(ptx: str, target: tuple[int, int]) -> Machine:
    """Assemble PTX, and return its register count and the bytes that spill to memory."""
    options = LinkerOptions(arch="sm_{}{}".format(*target), ptxas_options=["-v"])
    parts = [ObjectCode.from_ptx(ptx.encode())]
    # CUDA's device runtime contains the barrier over a grid.
    if "cudaCGSynchronize" in ptx:
        parts.append(ObjectCode.from_library(find_static_lib("cudadevrt")))
    linker = Linker(*parts, options=options)
    assert len(linker.link("cubin").code) > 0
    log = linker.get_info_log()
    numbers = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    registers = re.search(r"Used (\d+) registers", log)
    assert numbers is not None and registers is not None, log
    return Machine(int(registers[1]), int(numbers[1]), int(numbers[2]) + int(numbers[3]))


class Built(NamedTuple):
    """The code of a kernel for one GPU."""

    ptx: str
    machine: Machine


def built(case: Case, target: tuple[int, int]) -> Built:
    """Compile the kernel, or take its code from an earlier run with the same sources."""

    def make() -> Built:
        ptx = ptx_of(case, target)
        return Built(ptx, machine_code_of(ptx, target))

    ptx, machine = kept(f"{case.name} of {target}", make)
    return Built(ptx, Machine(*machine))
