"""Between PyTorch's sparse tensors and topogen layers.

PyTorch's weights have shape (out, in), sparse ones too; compressed by columns they are in value ordering.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from topogen import checks
from topogen.errors import SpecError
from topogen_torch._block import BlockSparseLinear, elements_of
from topogen_torch._layers import SparseLinear

__all__ = ["from_torch_sparse", "to_torch_sparse"]

_BY_COLUMN = (torch.sparse_csc, torch.sparse_bsc)
_IN_BLOCKS = (torch.sparse_bsr, torch.sparse_bsc)
_LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, *_IN_BLOCKS)


def from_torch_sparse(weight: Tensor, *, bias: Tensor | None = None) -> SparseLinear | BlockSparseLinear:
    """Return the layer whose weight is a sparse tensor of PyTorch.

    Parameters
    ----------
    weight : Tensor, shape (out, in), of layout COO, CSR, CSC, BSR or BSC and a float dtype
        Every stored entry is a connection, zeros included. Entries that COO stores twice are summed.
    bias : Tensor, shape (out,), optional

    Returns
    -------
    SparseLinear, or BlockSparseLinear for BSR and BSC with square blocks
        On the device of `weight` and with its dtype. The numbers are copied.

    Raises
    ------
    SpecError
        If `weight` is no such tensor, has indices that are out of range or, compressed, stored twice, or `bias` has
        another shape.

    Examples
    --------
    >>> import torch, topogen_torch as tt
    >>> weight = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]])          # (outputs, inputs)
    >>> layer = tt.from_torch_sparse(weight.to_sparse())
    >>> layer.to_scipy().toarray().tolist()                                # (inputs, outputs)
    [[0.0, 1.0], [2.0, 0.0], [0.0, 3.0]]
    """
    n_out, n_in = _checked_shape(weight)
    if bias is not None and not (isinstance(bias, Tensor) and tuple(bias.shape) == (n_out,)):
        shown = tuple(bias.shape) if isinstance(bias, Tensor) else bias
        checks.refuse("bias", "from_torch_sparse", f"a tensor of shape ({n_out},)", shown)
    outputs, inputs, values = _entries(weight.detach())
    high, wide = (*values.shape[1:], 1, 1)[:2]
    options = {"bias": bias is not None, "dtype": weight.dtype, "device": weight.device}
    if weight.layout in _IN_BLOCKS and high == wide:
        pattern, order = _in_value_ordering(inputs, outputs, (n_in // wide, n_out // high))
        layer: Any = nn.utils.skip_init(BlockSparseLinear, pattern, high, **options)  # which draws no random numbers
        values = values.transpose(1, 2)
    else:
        outputs = (outputs[:, None, None] * high + torch.arange(high)[:, None]).expand(-1, high, wide).flatten()
        inputs = (inputs[:, None, None] * wide + torch.arange(wide)).expand(-1, high, wide).flatten()
        pattern, order = _in_value_ordering(inputs, outputs, (n_in, n_out))
        layer = nn.utils.skip_init(SparseLinear, pattern, **options)
        values = values.flatten()
    with torch.no_grad():
        layer.values.copy_(values[order.to(values.device)])
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def to_torch_sparse(
    layer: SparseLinear | BlockSparseLinear, *, layout: torch.layout | None = None, block: int | None = None
) -> Tensor:
    """Return the weight of a layer as a sparse tensor of PyTorch.

    Parameters
    ----------
    layer : SparseLinear or BlockSparseLinear
    layout : torch.layout, optional
        ``torch.sparse_coo``, ``sparse_csr``, ``sparse_csc``, ``sparse_bsr`` or ``sparse_bsc``. By default CSR, and BSR
        for a layer in blocks.
    block : int, optional
        Side of the square blocks, a divisor of both sizes. Required for the layouts in blocks unless the layer has
        blocks itself, and for them only. Blocks that hold a connection are stored whole.

    Returns
    -------
    Tensor, shape (out, in)
        A detached copy of the weights, every connection stored, zeros included. Indices are int32, which PyTorch's
        products otherwise make of them in each call; in COO, which takes no other, int64.

    Raises
    ------
    SpecError
        If an argument is none of the above.

    Examples
    --------
    >>> import numpy as np, torch, topogen_torch as tt
    >>> layer = tt.SparseLinear(np.array([[1, 0, 1], [0, 1, 1]]))
    >>> weight = tt.to_torch_sparse(layer)
    >>> weight.layout, tuple(weight.shape), torch.equal(weight.to_dense(), layer.to_linear().weight)
    (torch.sparse_csr, (3, 2), True)
    """
    owner = "to_torch_sparse"
    if not isinstance(layer, (SparseLinear, BlockSparseLinear)):
        checks.refuse("layer", owner, "a SparseLinear or a BlockSparseLinear", layer)
    own = layer.block if isinstance(layer, BlockSparseLinear) else None
    if layout is None:
        layout = torch.sparse_csr if own is None else torch.sparse_bsr
    checks.one_of(layout, "layout", owner, _LAYOUTS)
    if block is None and layout in _IN_BLOCKS:
        block = own
    _check_block(block, layout, (layer.out_features, layer.in_features))
    if block is not None and block == own:
        assert isinstance(layer, BlockSparseLinear)
        return _compressed(layer, layer.block_pattern, layer.values.detach().transpose(1, 2), layout)
    values, pattern = layer.values.detach(), layer.pattern
    if isinstance(layer, BlockSparseLinear):  # one by one
        places = np.arange(values.numel()).reshape(values.shape)
        values = values.flatten()[torch.from_numpy(elements_of(layer.block_pattern, places).data).to(values.device)]
    single = torch.sparse_csc if layout in _BY_COLUMN else torch.sparse_csr
    weight = _compressed(layer, pattern, values, single)
    with _beta_accepted():
        if layout == torch.sparse_coo:
            return weight.to_sparse_coo()
        if block is None:
            return weight
        return (weight.to_sparse_bsc if layout in _BY_COLUMN else weight.to_sparse_bsr)((block, block))


def _compressed(layer: Any, by_input: sp.csr_array, values: Tensor, layout: torch.layout) -> Tensor:
    """Return the compressed tensor whose entries, numbers or blocks, are `values` in value ordering."""
    indptr, indices = by_input.indptr, by_input.indices
    if layout not in _BY_COLUMN:
        by_output = sp.csr_array((np.arange(by_input.nnz), indices, indptr), shape=by_input.shape).tocsc()
        indptr, indices = by_output.indptr, by_output.indices
        values = values[torch.from_numpy(by_output.data).to(values.device)]
    pointers, minor = (torch.from_numpy(part.astype(np.int32)).to(values.device) for part in (indptr, indices))
    shape = (layer.out_features, layer.in_features)
    with _beta_accepted():
        return torch.sparse_compressed_tensor(
            pointers, minor, values.contiguous().clone(), shape, layout=layout, check_invariants=False
        )


def _checked_shape(weight: Any) -> tuple[int, int]:
    wanted = "a sparse float tensor of PyTorch of shape (out, in)"
    if not isinstance(weight, Tensor) or weight.layout not in _LAYOUTS:
        kind = str(weight.layout) if isinstance(weight, Tensor) else type(weight).__name__
        hint = "A dense weight becomes a layer by SparseLinear.from_linear." if isinstance(weight, Tensor) else ""
        checks.refuse("weight", "from_torch_sparse", wanted, kind, hint=hint)
    if weight.ndim != 2 or weight.dense_dim() or not weight.is_floating_point() or min(weight.shape) < 1:
        checks.refuse("weight", "from_torch_sparse", wanted, (weight.dtype, tuple(weight.shape)))
    n_out, n_in = weight.shape
    return n_out, n_in


def _entries(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs and inputs, int64 on the CPU, of all stored entries, numbers or blocks, and these."""
    with _beta_accepted():
        if weight.layout == torch.sparse_coo:
            outputs, inputs = weight._indices()
            _check_range(outputs, inputs, weight.shape)  # before torch counts on them
            weight = weight.coalesce()
            outputs, inputs = weight.indices().cpu()
            return outputs, inputs, weight.values()
        by_column = weight.layout in _BY_COLUMN
        pointers = (weight.ccol_indices() if by_column else weight.crow_indices()).cpu().long()
        minor = (weight.row_indices() if by_column else weight.col_indices()).cpu().long()
        values = weight.values()
    high, wide = (*values.shape[1:], 1, 1)[:2]
    sizes = (weight.shape[0] // high, weight.shape[1] // wide)
    counts = pointers.diff()
    if len(counts) != sizes[by_column] or pointers[0] != 0 or pointers[-1] != len(minor) or (counts < 0).any():
        _refuse_indices("row or column pointers that do not rise from 0 to the number of entries")
    major = torch.repeat_interleave(counts)
    outputs, inputs = (minor, major) if by_column else (major, minor)
    _check_range(outputs, inputs, sizes)
    return outputs, inputs, values


def _check_range(outputs: Tensor, inputs: Tensor, sizes: Sequence[int]) -> None:
    for index, size in zip((outputs, inputs), sizes, strict=True):
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
            _refuse_indices(f"an index outside [0, {size - 1}]")


def _refuse_indices(found: str) -> NoReturn:
    raise SpecError(f"The 'weight' parameter of from_torch_sparse must have valid indices. Got {found}.")


def _in_value_ordering(inputs: Tensor, outputs: Tensor, shape: tuple[int, int]) -> tuple[sp.csr_array, Tensor]:
    """Return the pattern of these connections, and the order that brings them into value ordering."""
    keys, order = (inputs * shape[1] + outputs).sort()
    if (keys.diff() == 0).any():
        _refuse_indices("an entry that is stored twice")
    indptr = np.concatenate([[0], torch.bincount(inputs, minlength=shape[0]).cumsum(0).numpy()])
    parts = (np.ones(len(keys), np.bool_), outputs[order].numpy(), indptr)
    return sp.csr_array(parts, shape=shape), order


def _check_block(block: int | None, layout: torch.layout, shape: tuple[int, int]) -> None:
    owner = "to_torch_sparse"
    if (block is None) == (layout in _IN_BLOCKS):
        needed = "given for a layout in blocks" if block is None else "None for a layout without blocks"
        checks.refuse("block", owner, needed, block)
    if block is None:
        return
    checks.integer(block, "block", owner, low=1)
    if shape[0] % block or shape[1] % block:
        divisors = [side for side in range(1, min(shape) + 1) if shape[0] % side == shape[1] % side == 0]
        nearest = min(divisors, key=lambda side: (abs(side - block), side))
        requirement = f"a divisor of {shape[0]} and {shape[1]}"
        checks.refuse("block", owner, requirement, block, hint=f"The nearest is {nearest}.")


@contextmanager
def _beta_accepted() -> Iterator[None]:
    """Pass by PyTorch's warnings that its sparse tensors are in beta, and that it does not check their indices."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse (.* tensor support is in beta|invariant checks)", UserWarning)
        yield
