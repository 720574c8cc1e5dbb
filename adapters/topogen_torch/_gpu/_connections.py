"""Single connections on a card, as the operators hand them over: each pass with the one index that it reads.

Below the break-even density cuSPARSE multiplies; above it cuBLAS, by a matrix that exists for the call. The forward
pass is the input gradient of the transposed layer, whose csr index the layer holds as its csc index.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch
from torch import Tensor

from topogen_torch._break_even import never_dense_now
from topogen_torch._gpu._choose import choose_for
from topogen_torch._gpu._csr import csr_input_gradient, csr_value_gradient
from topogen_torch._gpu._dense import dense_input_gradient, dense_value_gradient
from topogen_torch._gpu._index import BlockIndex

__all__ = ["backward", "crowded_forward", "forward"]


def forward(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr_t: Tensor, indices_t: Tensor, permutation: Tensor
) -> Tensor:
    """Return ``x @ W + bias`` for x of shape (batch, in), float32 or float64."""
    x, transposed = x.contiguous(), _index(indptr_t, indices_t, x.shape[1])
    product = dense_input_gradient if _is_dense(values, transposed) else csr_input_gradient
    y = product(x, values.index_select(0, permutation), transposed)
    return y if bias is None else y.add_(bias)


def crowded_forward(
    x: Tensor, values: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, indptr_t: Tensor,
    indices_t: Tensor, permutation: Tensor,
) -> Tensor:  # fmt: skip
    """Return the same for a pattern that is nearly full."""
    return forward(x, values, bias, indptr_t, indices_t, permutation)


def backward(
    dy: Tensor, x: Tensor, values: Tensor, indptr: Tensor, indices: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, values and bias; what is not needed is an empty tensor."""
    dy, x = dy.contiguous(), x.contiguous()  # the gradient of a sum is one number, read again and again
    index, nothing = _index(indptr, indices, dy.shape[1]), x.new_empty(0)
    is_dense = _is_dense(values, index)
    of_inputs = dense_input_gradient if is_dense else csr_input_gradient
    of_values = dense_value_gradient if is_dense else csr_value_gradient
    return (
        of_inputs(dy, values, index) if needs[0] else nothing,
        of_values(x, dy, index) if needs[1] else nothing,
        dy.sum(0) if needs[2] else x.new_empty(0),
    )


def _index(indptr: Tensor, indices: Tensor, n_out: int) -> BlockIndex:
    """Return what a pass reads of a csr index; the other half stays empty."""
    _say_beta_once()
    no = indices.new_empty(0)
    return BlockIndex(
        block=1, n_in=indptr.shape[0] - 1, n_out=n_out, indptr=indptr, indices=indices, order=no, indptr_t=no,
        indices_t=no, permutation=no, order_t=no, most=0,
    )  # fmt: skip


def _is_dense(values: Tensor, index: BlockIndex) -> bool:
    if never_dense_now() or not values.shape[0]:
        return False
    return choose_for(values.device, "connections", 1, values.dtype, index.density).kernel == "dense"


@lru_cache(maxsize=1)
def _say_beta_once() -> None:
    """Let torch say that its sparse matrices are in beta where nobody has to hear it: it says so once a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nothing = torch.zeros(1, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)
        torch.sparse_csr_tensor(*nothing, torch.zeros(0), size=(0, 1), check_invariants=False)
