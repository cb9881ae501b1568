"""Functions that only kernels call. They become machine code only inside their kernels.

For each function that a kernel calls, Numba makes a library of its own: it optimises the function,
generates machine code for it, and adds entries for Python and for C. Then it does the same work
again for every caller, because the caller contains the function. A part leaves all of this to the
kernel, so that a kernel compiles in three quarters of the time. Every operation rounds as before,
so the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import LoweringPass, register_pass
from numba.core.typed_passes import AnnotateTypes
from numba.extending import overload, register_jitable


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a function that kernels call. LLVM decides where it is inlined.

    In Python it stays a plain function.
    """
    return _registered(function, error_model="numpy")


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a function that is inlined into kernels. LLVM often would not do it.

    In Python it stays a plain function.
    """
    return _registered(function, forceinline=True)


class _PartLibrary(JITCodeLibrary):  # type: ignore[misc]
    """The code of a part before it is optimised. Only other libraries use it."""

    def finalize(self) -> None:
        """Adds the libraries of the functions that the part calls."""
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """0: the part has no address."""
        self._ensure_finalized()
        return 0

    @property
    def codegen(self) -> Any:
        """What Numba asks to set the environment of a function, which a part does not have."""
        return _NoEnvironment


class _NoEnvironment:
    @staticmethod
    def set_env(name: str, environment: Any) -> None:
        """Does nothing. A kernel that is loaded from the cache has no environment of its parts,
        either.
        """


@register_pass(mutates_CFG=False, analysis_only=False)
class _TakePartLibrary(LoweringPass):  # type: ignore[misc]
    _name = "livefactor_take_part_library"

    def __init__(self) -> None:
        LoweringPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        """Gives the compiler the library that it fills."""
        state.library = _PartLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        return True


class _PartCompiler(CompilerBase):  # type: ignore[misc]
    def define_pipelines(self) -> list[Any]:
        """Numba's usual passes, with the library of a part."""
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.add_pass_after(_TakePartLibrary, AnnotateTypes)
        passes.finalize()
        return [passes]


def _registered(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Lets compiled code call a function. Other targets than the CPU compile it as usual."""
    options |= {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    register_jitable(**options)(function)
    overload(function, jit_options={**options, "pipeline_class": _PartCompiler}, strict=False, target="cpu")(
        lambda *arguments: function
    )
    return function
