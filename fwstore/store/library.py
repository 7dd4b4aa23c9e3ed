"""The obstore library, usable in forked processes.

Invariant: `load_obstore` returns a library whose threads run in this process. obstore keeps one Rust
runtime for the life of the shared library, and its threads do not follow a fork: in the child every call
would wait for ever. A child of a process that used it therefore loads the shared library a second time
(15 MB, about 15 ms), which brings a runtime of its own.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

from fwstore.base.errors import InternalError, Unsupported
from fwstore.sched.locks import Lock

_NATIVE = "obstore._obstore"

_home = os.getpid()
_loading = Lock()
_loaded: dict[int, Any] = {}


def load_obstore() -> Any:
    """Return the package `obstore`, with `store` and `exceptions`, for use in this process.

    Raises:
        Unsupported: This is a forked process on a platform where the library loads only once.
    """
    process = os.getpid()
    with _loading:
        if process not in _loaded:
            inherited = process != _home and _NATIVE in sys.modules
            _loaded[process] = _second_copy() if inherited else _import()
        return _loaded[process]


def _import() -> Any:
    importlib.import_module("obstore.exceptions")
    importlib.import_module("obstore.store")
    return importlib.import_module("obstore")


def _second_copy() -> Any:
    native = sys.modules[_NATIVE].__file__
    if native is None or not hasattr(os, "memfd_create"):
        raise Unsupported(
            "a process that used an object store cannot be forked on this platform; start workers "
            'with multiprocessing.get_context("spawn")'
        )
    # The loader knows a library by file and name, so the copy needs both anew.
    descriptor = os.memfd_create("obstore")
    try:
        with Path(native).open("rb") as source, os.fdopen(os.dup(descriptor), "wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
        with _forgotten():
            sys.modules[_NATIVE] = _load_native(f"/proc/{os.getpid()}/fd/{descriptor}")
            return _import()
    finally:
        os.close(descriptor)


@contextmanager
def _forgotten() -> Iterator[None]:
    """Let obstore be imported anew in the block, and restore what others imported before."""
    before = _pop_modules()
    try:
        yield
    finally:
        _pop_modules()
        sys.modules.update(before)


def _pop_modules() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] == "obstore"]
    return {name: sys.modules.pop(name) for name in names}


def _load_native(path: str) -> ModuleType:
    loader = ExtensionFileLoader(_NATIVE, path)
    spec = spec_from_loader(_NATIVE, loader)
    if spec is None:
        raise InternalError(f"no import specification for {path}")
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module
