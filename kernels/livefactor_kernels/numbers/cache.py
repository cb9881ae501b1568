"""The compiled code of kernels on disk.

Numba's own cache has two faults. Numba inlines functions of other modules into a kernel, but its
cache looks only at the file of the kernel. After an edit of an inlined function it returns the old
code. Its index of a function's code is read, changed and written back. If two processes compile
variants of one kernel at the same time, the code of one variant can be stored under the key of the
other. The cache here has neither fault:

- The stamp of a kernel is a digest of its module and of all modules of the project that this module
  imports, directly or through others. The list is read from their import statements. The two
  modules that find code on disk do not count, because they decide no code.
- Each compiled variant has a file of its own. Its name is made of the stamp and of Numba's key for
  the variant (types, processor, bytecode, values of the closure). A file is written under another
  name and then renamed, so a reader sees all of it or none. Processes that compile one variant at
  the same time write the same file.

The folder is `NUMBA_CACHE_DIR` if this variable is set. Names there do not depend on where the
sources lie, so several copies of the project share the code. Else it is the folder that Numba would
take: `__pycache__` beside the source, or the user's cache folder. If none can be written, the cache
uses a folder below the system's temporary folder and warns once. If there is no such folder either,
every process compiles anew. Code that is in none of these folders may have come with the package
(`shipped.py`).
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numba
from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    InTreeCacheLocator,
    UserProvidedCacheLocator,
)
from numba.core.serialize import dumps

from livefactor_kernels.numbers import shipped

_IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+)?import[ \t]+(\([^)]*\)|[^\n]*)", re.M)
_NAME = re.compile(r"[\w.]+")
_SHARED_DAYS = 7
"""Days for which a shared folder keeps code of other sources."""


class NotCompiled(Exception):
    """The code of a kernel is not on disk."""


_loading = threading.local()


@contextmanager
def only_loading() -> Iterator[None]:
    """Calls of kernels in this thread raise `NotCompiled` where they would compile."""
    _loading.only = True
    try:
        yield
    finally:
        _loading.only = False


def source_files(module: str, file: str) -> list[Path]:
    """The file of a module, and the files of all modules of the project that it imports.

    Modules that are imported through others count, too.
    """
    package = module.partition(".")[0]
    roots = {package: Path(file).parents[module.count(".") + (Path(file).name == "__init__.py")]}
    own = __name__.partition(".")[0]
    roots.setdefault(own, Path(__file__).parents[__name__.count(".")])
    found, waiting = {Path(file)}, [Path(file)]
    while waiting:
        for name in _imports(waiting.pop()):
            root = roots.get(name.partition(".")[0])
            path = None if root is None else _file_of(root, name)
            if path is not None and path not in found:
                found.add(path)
                waiting.append(path)
    return sorted(found)


@cache
def _imports(file: Path) -> tuple[str, ...]:
    """The names in a file's import statements that can be modules.

    For `from a import b` these are a and a.b.
    """
    names: list[str] = []
    for parent, imported in _IMPORT.findall(_content(file).decode()):
        names += [parent, *(f"{parent}.{name}" for name in _NAME.findall(imported))] if parent else []
        names += [] if parent else _NAME.findall(imported)
    return tuple(names)


@cache
def _file_of(root: Path, module: str) -> Path | None:
    path = root.joinpath(*module.split("."))
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)


@cache
def _content(file: Path) -> bytes:
    return file.read_bytes()


@cache
def _stamp(module: str, file: str) -> str:
    """The hexadecimal digest of all sources of a module's code and of the version of Numba."""
    digest = hashlib.sha256(numba.__version__.encode())
    without_code = {Path(__file__), Path(shipped.__file__)}
    for path in source_files(module, file):
        if path in without_code:
            continue
        digest.update(hashlib.sha256(_content(path)).digest())
    return digest.hexdigest()


class NoFolder(Exception):
    """Compiled code can be kept nowhere."""


@cache
def _temporary_folder() -> str | None:
    """A folder that only this user can write, and that the user's next process finds again.

    It warns that this folder is used. None means that there is no temporary folder.
    """
    try:
        folder = _own_folder()
    except OSError as error:
        _warn(f"compiled kernels are not kept, since no folder can be written ({error})")
        return None
    _warn(f"compiled kernels are kept in {folder}, since no cache folder can be written")
    return str(folder)


def _warn(text: str) -> None:
    # A warning shows the line of code that it names. No line of code is of use here.
    text = f"{text}; set NUMBA_CACHE_DIR to a folder that lasts"
    warnings.warn_explicit(text, RuntimeWarning, "livefactor", 0)


def _own_folder() -> Path:
    folder = Path(tempfile.gettempdir(), f"livefactor-kernels-{os.getuid() if hasattr(os, 'getuid') else 0}")
    folder.mkdir(mode=0o700, exist_ok=True)
    # Code is loaded from this folder, so nobody else may have made it.
    status = folder.lstat()
    if folder.is_symlink() or (
        hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o077)
    ):
        folder = Path(tempfile.mkdtemp(prefix="livefactor-kernels-"))
    return folder


class _TemporaryLocator(InTreeCacheLocator):  # type: ignore[misc]
    """Finds the folder of a kernel where no cache folder can be written."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        super().__init__(py_func, py_file)
        folder = _temporary_folder()
        if folder is None:
            raise NoFolder
        self._cache_path = os.path.join(folder, self.get_suitable_cache_subpath(py_file))


class _SharedLocator(UserProvidedCacheLocator):  # type: ignore[misc]
    """Finds the folder of a kernel below `NUMBA_CACHE_DIR`."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        super().__init__(py_func, py_file)
        self._cache_path = os.path.join(numba.config.CACHE_DIR, py_func.__module__)


class _Impl(CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes: ClassVar = [
        _SharedLocator,
        *CompileResultCacheImpl._locator_classes,
        _TemporaryLocator,
    ]


class _Files:
    """The compiled variants of a kernel on disk, one file each.

    Numba's cache reads and writes them.
    """

    def __init__(self, folder: str, name: str, stamp: str) -> None:
        self._folder, self._name, self._stamp = Path(folder), name, stamp[:16]

    def load(self, key: Any) -> Any:
        """The code that was saved under a key, or that came with the package, or None.

        Raises:
            NotCompiled: there is none, and this thread only loads.
        """
        data = _read(self._folder / self._file_name(key), key)
        if data is None and (its_key := shipped.key_of(key)) is not None:
            data = _read(shipped.FOLDER / self._file_name(its_key), its_key)
            if data is not None:
                shipped.note_use()
        if data is None and getattr(_loading, "only", False):
            raise NotCompiled(self._name)
        return data

    def save(self, key: Any, data: Any) -> None:
        """Stores code under a key and removes what was compiled from other sources.

        In a shared folder the latter is removed when it is a week old. An error of the disk is
        ignored.
        """
        path = self._folder / self._file_name(key)
        draft = path.with_suffix(f".{uuid.uuid4().hex[:16]}")
        try:
            draft.write_bytes(dumps((key, data)))
            draft.replace(path)
            kept_since = time.time() - (_SHARED_DAYS * 86400 if numba.config.CACHE_DIR else 0)
            for other in self._folder.glob(f"{self._name}.*.livefactor"):
                is_own = other.name.startswith(f"{self._name}.{self._stamp}.")
                if not is_own and other.stat().st_mtime <= kept_since:
                    other.unlink(missing_ok=True)
        except OSError:
            draft.unlink(missing_ok=True)

    def flush(self) -> None:
        """Removes all variants."""
        for path in self._folder.glob(f"{self._name}.*.livefactor"):
            path.unlink(missing_ok=True)

    def _file_name(self, key: Any) -> str:
        # The types and settings of a key have the same names in all processes. Their pickles may
        # differ.
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        return f"{self._name}.{self._stamp}.{digest}.livefactor"


def _read(path: Path, key: Any) -> Any:
    """The code in a file, or None if the file is missing, damaged, or of another key."""
    try:
        saved_key, data = pickle.loads(path.read_bytes())
    except (OSError, EOFError, pickle.UnpicklingError):
        return None
    return data if saved_key == key else None


class KernelCache(FunctionCache):  # type: ignore[misc]
    """The code of one kernel. Raises NoFolder if there is no folder for it."""

    _impl_class = _Impl

    def __init__(self, py_func: Any) -> None:
        super().__init__(py_func)
        stamp = _stamp(py_func.__module__, py_func.__code__.co_filename)
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, stamp)
