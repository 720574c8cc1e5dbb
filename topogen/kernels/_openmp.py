"""An OpenMP runtime that the process has loaded, whose threads may run the kernels."""

from __future__ import annotations

import ctypes
import os

__all__ = ["ALONE", "Team", "join_openmp"]

# The addresses of GOMP_parallel and of omp_get_thread_num, and how many threads; where a thread is already one of
# these, 0 and its number among them.
Team = tuple[int, int, int]
ALONE: Team = (0, 0, 1)

runtime: tuple[int, int] = 0, 0  # the two addresses; none unless a runtime was joined


def join_openmp(library: str) -> bool:
    """Run the kernels, from now on, on the threads of the OpenMP runtime that a loaded library uses.

    Such a runtime keeps its threads awake for a while after each use, and where they are as many as the cores, threads
    of anybody else find none that is free. After a fork the child's kernels have threads of their own again: those of
    the runtime do not live on in it.

    Parameters
    ----------
    library : str
        The path of a shared library that this process has loaded, such as an extension module's.

    Returns
    -------
    bool
        Whether it uses a runtime with GCC's interface; LLVM's and Intel's have it too. If not, nothing changes.

    Examples
    --------
    >>> from topogen import kernels
    >>> kernels.join_openmp("no_such_library.so")
    False
    """
    global runtime
    try:
        loaded = ctypes.CDLL(library)
        functions = loaded.GOMP_parallel, loaded.omp_get_thread_num  # looked for in all that the library depends on
    except (AttributeError, OSError):
        return False
    parallel, number = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions)
    runtime = parallel, number
    return True


def _leave() -> None:
    """Forget the runtime: waiting for threads that a fork has left behind, it would wait for ever."""
    global runtime
    runtime = 0, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave)
