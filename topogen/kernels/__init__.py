"""CPU kernels on numpy arrays, compiled by numba on first use.

`import topogen` does not import this package; whoever needs a kernel does. numba is loaded with the first kernel that
is asked for, so that what runs on a graphics card alone can do without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topogen.kernels._blocks import gradients_blocks, multiply_blocks
    from topogen.kernels._columns import gradients_columns, multiply_columns
    from topogen.kernels._convolution import convolution_gradients, convolve
    from topogen.kernels._graphs import carry, predecessor_sums, predecessor_unions, successor_unions
    from topogen.kernels._openmp import join_openmp
    from topogen.kernels._packing import pack, samples_per_group, unpack
    from topogen.kernels._panels import (
        gradients_panels,
        gradients_panels_columns,
        multiply_panels,
        multiply_panels_columns,
        plan_panels,
    )
    from topogen.kernels._peak import fma_peak
    from topogen.kernels._products import gradients, multiply, multiply_vector
    from topogen.kernels._scatter import scatter
    from topogen.kernels._warm_up import warm_up
    from topogen.kernels._window import Window

__all__ = [
    "Window",
    "carry",
    "convolution_gradients",
    "convolve",
    "fma_peak",
    "gradients",
    "gradients_blocks",
    "gradients_columns",
    "gradients_panels",
    "gradients_panels_columns",
    "join_openmp",
    "multiply",
    "multiply_blocks",
    "multiply_columns",
    "multiply_panels",
    "multiply_panels_columns",
    "multiply_vector",
    "pack",
    "plan_panels",
    "predecessor_sums",
    "predecessor_unions",
    "samples_per_group",
    "scatter",
    "successor_unions",
    "unpack",
    "warm_up",
]

_HOMES = {
    "Window": "_window",
    "carry": "_graphs",
    "convolution_gradients": "_convolution",
    "convolve": "_convolution",
    "fma_peak": "_peak",
    "gradients": "_products",
    "gradients_blocks": "_blocks",
    "gradients_columns": "_columns",
    "gradients_panels": "_panels",
    "gradients_panels_columns": "_panels",
    "join_openmp": "_openmp",
    "multiply": "_products",
    "multiply_blocks": "_blocks",
    "multiply_columns": "_columns",
    "multiply_panels": "_panels",
    "multiply_panels_columns": "_panels",
    "multiply_vector": "_products",
    "pack": "_packing",
    "plan_panels": "_panels",
    "predecessor_sums": "_graphs",
    "predecessor_unions": "_graphs",
    "samples_per_group": "_packing",
    "scatter": "_scatter",
    "successor_unions": "_graphs",
    "unpack": "_packing",
    "warm_up": "_warm_up",
}


def __getattr__(name: str) -> Any:
    """Load the module that a public name lives in, on its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if error.name not in ("numba", "llvmlite"):
            raise
        raise ModuleNotFoundError(
            f"{__name__}.{name} needs numba, as everything that runs on the CPU: pip install numba.", name=error.name
        ) from None
    globals()[name] = value = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
