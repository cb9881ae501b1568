"""Contributions as steps of the optimiser, in compiled code (semantics: `tables/deltas.py`)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.random import ROUNDING_DOMAIN, domain_key
from livefactor_kernels.optimizers import Method
from livefactor_kernels.optimizers.cpu import Model, StepRows, step_row
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.simd.steps import ONE, ZERO, Rounding, RowArrays, row_bytes
from livefactor_kernels.spec.model import LANES, ModelSpec
from livefactor_kernels.tables.deltas import Deltas, pseudo_gradients, step_rates

_NO_ROWS = np.empty(0, np.uint32)


class CpuSteps:
    """Steps the rows of a model by the gradients of a contribution."""

    def __init__(self, spec: ModelSpec, users: RowArrays, items: RowArrays) -> None:
        """Compiles the kernel, or loads it from Numba's cache."""
        self._spec, self._rates = spec, step_rates(spec)
        self._tables = StepRows.of(users), StepRows.of(items)
        self._key = domain_key(spec.seed, ROUNDING_DOMAIN)
        self._kernel = _kernel(spec.k_padded // LANES, Method.of(spec))
        nothing = np.empty((0, spec.k), np.float32)
        self.step(Deltas(0, _NO_ROWS, nothing, None, 1.0, 0, 0, 0))

    def step(self, deltas: Deltas) -> None:
        """Steps each row, in order, and its bias if the contribution has biases."""
        n, k = deltas.factors.shape
        bias = deltas.bias
        # The kernel reads whole vectors from addresses that are multiples of 64 bytes.
        rows = reserve((n + 1, self._spec.k_padded + LANES), np.float32, huge=False)
        if n:
            rows[:n, :k], biases = pseudo_gradients(self._spec, deltas)
            if biases is not None:
                rows[:n, self._spec.k_padded] = biases
        rounding = Rounding(self._key, np.uint64(deltas.revision), np.uint64(0))
        address = np.uint64(rows.ctypes.data)
        table = self._tables[deltas.side]
        self._kernel(table, deltas.rows, address, bias is not None, self._rates, rounding)


@cache
def _kernel(blocks: int, method: Method) -> Any:
    """A kernel for rows of `blocks` vectors. `gradients` is the address of gradient rows, which
    have the gradient of the bias behind those of the factors.
    """
    BLOCKS, METHOD = np.uint64(blocks), method

    @compiled
    def livefactor_step_rows_kernel(
        table: Any, rows: Any, gradients: Any, with_bias: Any, rates: Any, rounding: Any
    ) -> None:
        model, stride = Model(table, table, BLOCKS, METHOD, rates), row_bytes(BLOCKS + ONE)
        for q in range(ZERO, np.uint64(rows.size)):
            step_row(model, table, np.uint64(rows[q]), gradients + q * stride, with_bias, rounding)

    return livefactor_step_rows_kernel
