"""The sparse layer's arithmetic through a dense matrix: the reference of the tests, and the fallback."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

__all__ = ["announce_fallback", "dense_linear", "to_dense"]

_announced: set[tuple[str, str]] = set()


def to_dense(values: Tensor, indptr: Tensor, indices: Tensor, out_features: int) -> Tensor:
    """Return the (in, out) matrix of the weights; differentiable in `values`."""
    in_features = indptr.numel() - 1
    rows = torch.repeat_interleave(torch.arange(in_features, device=indices.device), indptr.diff())
    flat = rows * out_features + indices
    return values.new_zeros(in_features * out_features).scatter(0, flat, values).view(in_features, out_features)


def dense_linear(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, out_features: int
) -> Tensor:
    """Return ``x @ W + bias`` by plain torch operations, on any device."""
    y = x @ to_dense(values, indptr, indices, out_features)
    return y if bias is None else y + bias


def announce_fallback(
    device: torch.device, in_features: int, out_features: int, itemsize: int, owner: str = "SparseLinear"
) -> None:
    """Warn, once for each kind of layer and of device, that it is dense there and what that costs."""
    if (owner, device.type) in _announced:
        return
    _announced.add((owner, device.type))
    warnings.warn(
        f"{owner} has no kernel for device '{device.type}' yet and multiplies densely there: every call builds "
        f"the {in_features} x {out_features} matrix, {in_features * out_features * itemsize:,} bytes, and saves no "
        "time.",
        UserWarning,
        stacklevel=4,
    )
