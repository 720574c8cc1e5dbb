"""Operators of the sparse layers: what torch calls, on every device."""

from topogen_torch._ops._dense import dense_linear, to_dense
from topogen_torch._ops._linear import Index, sparse_linear

__all__ = ["Index", "dense_linear", "sparse_linear", "to_dense"]
