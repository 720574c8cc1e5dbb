"""The passes of an unstructured layer through cuSPARSE, which torch calls for CSR tensors.

The forward pass is the input gradient of the transposed layer, whose index the layer holds. The same calls run on a
CPU, through MKL. Legend: T = tokens, I = inputs, O = outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topogen_torch._gpu._index import BlockIndex

__all__ = ["csr_input_gradient", "csr_value_gradient"]

_SHORT = (torch.float16, torch.bfloat16)  # which the sampled product of torch does not have


def csr_input_gradient(grad_TO: Tensor, values: Tensor, index: BlockIndex) -> Tensor:
    """Return ``grad @ W.T``, (tokens, in), contiguous.

    Parameters
    ----------
    grad_TO : Tensor, shape (tokens, out)
    values : Tensor, shape (nnz,)
        In value ordering.
    index : BlockIndex
        Of blocks of 1; its csr half alone is read.

    Notes
    -----
    ``2 T nnz`` FLOP; ``e (T (I + O) + nnz) + 4 nnz`` bytes of memory at least, and ``e T nnz`` through L2, since each
    connection reads its output of every token.
    """
    return _product(_csr(index.indptr, index.indices, values, (index.n_in, index.n_out)), grad_TO)


def csr_value_gradient(x_TI: Tensor, grad_TO: Tensor, index: BlockIndex) -> Tensor:
    """Return the entries of ``x.T @ grad`` at the connections, (nnz,); float16 and bfloat16 are computed in float32.

    Parameters
    ----------
    x_TI : Tensor, shape (tokens, in)
    grad_TO : Tensor, shape (tokens, out)
    index : BlockIndex
        Of blocks of 1.

    Notes
    -----
    ``2 T nnz`` FLOP; ``e T (I + O) + 8 nnz`` bytes of memory at least, ``2 e T nnz`` through L2.
    """
    if not index.blocks or not x_TI.shape[0]:
        return x_TI.new_zeros(index.blocks)
    x, grad = (rows.float() if rows.dtype in _SHORT else rows for rows in (x_TI, grad_TO))
    zeros = _csr(index.indptr, index.indices, x.new_zeros(index.blocks), (index.n_in, index.n_out))
    return torch.sparse.sampled_addmm(zeros, x.t(), grad, beta=0.0).values().to(x_TI.dtype)


def _csr(indptr: Tensor, indices: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return a CSR tensor that shares the buffers; they are canonical, so that nothing is looked through."""
    return torch.sparse_csr_tensor(indptr, indices, values, shape, check_invariants=False)


def _product(matrix: Tensor, rows: Tensor) -> Tensor:
    """Return ``(matrix @ rows.T).T``, written where it belongs: (tokens, features), contiguous."""
    found = rows.new_empty(rows.shape[0], matrix.shape[0])
    if found.numel():
        torch.mm(matrix, rows.t(), out=found.t())
    return found
