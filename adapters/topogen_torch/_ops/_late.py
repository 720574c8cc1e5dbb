"""Modules that are imported when the first of their names is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["Late"]


class Late:
    """Stand for a module until somebody wants something of it: what runs on a card needs neither numba nor the kernels.

    What was asked for once is an ordinary attribute from then on, had as fast as a module's own.
    """

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        try:
            value = getattr(import_module(self._module), name)
        except ModuleNotFoundError as error:
            if error.name not in ("numba", "llvmlite"):
                raise
            raise ModuleNotFoundError(
                "A sparse layer on the CPU needs numba: pip install numba, or move the layer to a card.",
                name=error.name,
            ) from None
        setattr(self, name, value)
        return value
