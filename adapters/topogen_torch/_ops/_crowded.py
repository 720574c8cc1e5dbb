"""The forward product of patterns that are nearly full: sparse or dense, whichever the batch makes faster."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from topogen import kernels
from topogen_torch import _break_even
from topogen_torch._ops import _cpu
from topogen_torch._ops._arrays import array

__all__ = ["crowded_forward"]

_ROWS = 128  # of the dense matrix at a time: they stay in the cache, and the whole of it never exists

torch.library.define(
    "topogen::crowded_linear",
    "(Tensor x, Tensor values, Tensor? bias, Tensor indptr, Tensor indices, Tensor indptr_t, Tensor indices_t, "
    "Tensor permutation) -> Tensor",
)


def crowded_forward(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, indptr_t: Tensor,
    indices_t: Tensor, permutation: Tensor,
) -> Tensor:  # fmt: skip
    """Return ``x @ W + bias`` for x of shape (batch, in).

    The batch decides here, inside the operator, so that a captured graph holds for every batch.
    """
    (batch, n_in), n_out = x.shape, indptr_t.shape[0] - 1
    if not _break_even.multiplies_densely(batch, values.shape[0], n_in, n_out):
        return _cpu.forward(x, values, bias, indptr_t, indices_t, permutation)
    rows = min(_ROWS, n_in)
    _break_even.announce(values.shape[0], n_in, n_out, rows, values.itemsize)
    values = values.contiguous()
    data, starts, columns = array(values), array(indptr), array(indices)
    panel = np.empty((rows, n_out), data.dtype)
    y = x.new_zeros(batch, n_out) if bias is None else bias.expand(batch, n_out).clone()
    for start in range(0, n_in, rows):
        stop = min(start + rows, n_in)
        part = panel[: stop - start]
        kernels.scatter(data, starts[start : stop + 1], columns, out=part, threads=torch.get_num_threads())
        y.addmm_(x[:, start:stop], torch.from_numpy(part))
    return y


@torch.library.register_fake("topogen::crowded_linear")
def _fake_forward(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, indptr_t: Tensor,
    indices_t: Tensor, permutation: Tensor,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], indptr_t.shape[0] - 1)


torch.library.impl("topogen::crowded_linear", "cpu")(crowded_forward)
