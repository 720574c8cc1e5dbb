"""Operators of the sparse layers: what torch calls, on every device."""

import torch

from topogen.kernels import join_openmp
from topogen_torch._ops._columns import sparse_columns
from topogen_torch._ops._dense import dense_linear, to_dense
from topogen_torch._ops._linear import Index, sparse_linear
from topogen_torch._ops._packing import pack, unpack
from topogen_torch._ops._panels import PanelIndex, panel_columns, panel_linear

__all__ = [
    "Index",
    "PanelIndex",
    "dense_linear",
    "pack",
    "panel_columns",
    "panel_linear",
    "sparse_columns",
    "sparse_linear",
    "to_dense",
    "unpack",
]

join_openmp(torch._C.__file__)  # torch's threads, which would take the cores from others
