"""Kernels for the CPU compile no more than they need."""

from __future__ import annotations

import ast
from pathlib import Path

from repository import ROOT, modules


def compiled_functions(path: Path) -> list[ast.FunctionDef]:
    """Return the functions in a file that Numba compiles on their own."""
    return [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(decorator).startswith("compiled") for decorator in node.decorator_list)
    ]


def test_kernels_call_each_other_without_literal_numbers() -> None:
    """Numba compiles a kernel again for every literal number that another kernel calls it with.

    A number of a NumPy type, such as `np.int64(4)`, is no literal.
    """
    kernels = {path: compiled_functions(path) for _, path in modules()}
    names = {function.name for functions in kernels.values() for function in functions}
    assert len(names) > 50
    calls = [
        f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}"
        for path, functions in kernels.items()
        for function in functions
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in names
        if any(isinstance(value, ast.Constant) and type(value.value) is int for value in call.args)
    ]
    assert calls == []
