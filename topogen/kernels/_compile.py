"""How the kernels are compiled: once, without the interpreter lock, cached on disk, and never in silence."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba  # pyright: ignore[reportMissingTypeStubs]
from numba.core import event  # pyright: ignore[reportMissingTypeStubs]

__all__ = ["kernel"]

F = TypeVar("F", bound=Callable[..., Any])
_PACKAGE = __name__.rpartition(".")[0]
_OPTIONS: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy"}


def kernel(function: F) -> F:
    """Compile `function` with numba on its first call, releasing the interpreter lock, and keep the code on disk.

    numba renews a cached kernel when the kernel's own file changes, not when a file that it uses does. The name under
    which it is cached therefore carries a hash of all files of this package.
    """
    function.__qualname__ = f"{function.__qualname__}.{_REVISION}"
    try:
        return cast(F, numba.njit(cache=True, **_OPTIONS)(function))
    except RuntimeError:  # neither the package's folder nor the user's cache can be written: compile in every process
        return cast(F, numba.njit(**_OPTIONS)(function))


def _revision() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class _Announcer(event.Listener):
    """Says once in a process that a kernel is being compiled; loading one from the cache is no event."""

    def __init__(self) -> None:
        self.announced = False

    def on_start(self, event: Any) -> None:
        dispatcher = event.data["dispatcher"]
        if self.announced or not (dispatcher.py_func.__module__ or "").startswith(_PACKAGE):
            return
        self.announced = True
        folder = dispatcher.stats.cache_path
        kept = f"the result is kept in {folder}" if folder else "the result cannot be kept: set NUMBA_CACHE_DIR"
        log = logging.getLogger("topogen")
        log.warning("Compiling the CPU kernels, 5 to 20 seconds for each kind of layer, once; %s.", kept)

    def on_end(self, event: Any) -> None:
        pass


_REVISION = _revision()
event.register("numba:compile", _Announcer())  # pyright: ignore[reportUnknownMemberType]
