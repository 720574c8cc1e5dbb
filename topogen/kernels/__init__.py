"""CPU kernels on numpy arrays, compiled by numba on first use.

`import topogen` does not import this package; whoever needs a kernel does.
"""

from topogen.kernels._blocks import gradients_blocks, multiply_blocks
from topogen.kernels._columns import gradients_columns, multiply_columns
from topogen.kernels._convolution import Window, convolution_gradients, convolve
from topogen.kernels._graphs import carry, predecessor_sums, predecessor_unions, successor_unions
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
