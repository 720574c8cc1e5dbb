"""CPU kernels on numpy arrays, compiled by numba on first use.

`import topogen` does not import this package; whoever needs a kernel does.
"""

from topogen.kernels._graphs import carry, predecessor_sums, predecessor_unions, successor_unions
from topogen.kernels._products import gradients, multiply
from topogen.kernels._warm_up import warm_up

__all__ = [
    "carry",
    "gradients",
    "multiply",
    "predecessor_sums",
    "predecessor_unions",
    "successor_unions",
    "warm_up",
]
