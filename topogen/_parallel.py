"""Several calls at once, where joblib has been told so."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

__all__ = ["each"]

T = TypeVar("T")


def each(function: Callable[[Any], T], arguments: Sequence[Any]) -> list[T]:
    """Return ``function(argument)`` for each argument, in their order.

    One after the other, or inside ``with joblib.parallel_config(...)`` as many at once as it says, on its backend.
    """
    joblib: Any = sys.modules.get("joblib")  # who has not imported it has told it nothing
    if joblib is None or len(arguments) < 2 or joblib.effective_n_jobs(None) == 1:
        return [function(argument) for argument in arguments]
    return joblib.Parallel()(joblib.delayed(function)(argument) for argument in arguments)
