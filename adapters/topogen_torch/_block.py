"""A linear layer of small dense blocks, which the processor multiplies at the pace of a dense matrix.

Legend: K = stored blocks, b = block; `values_Kbb[k, i, j]` joins input i to output j of block k.
"""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from topogen import as_pattern, checks
from topogen.errors import SpecError
from topogen_torch import init
from topogen_torch._gpu._choose import on_card
from topogen_torch._layers import SparseLinear
from topogen_torch._layout import transposed_index
from topogen_torch._ops import Index
from topogen_torch._ops._blocks import block_linear
from topogen_torch._ops._card_blocks import CardIndex, card_block_linear, facts_of, row_orders
from topogen_torch._patterned import Patterned

__all__ = ["BlockSparseLinear", "elements_of", "full_blocks", "runs_of"]


class BlockSparseLinear(Patterned):
    r"""Linear layer whose connections come in dense squares: :math:`y = x W + b`.

    W has shape (in, out), rows = inputs, and connections wherever block pattern :math:`\otimes` ones has.

    Parameters
    ----------
    block_pattern : scipy sparse array or matrix, shape (in / block, out / block)
        A block of connections wherever the entry is not zero: entry (I, J) joins each of the inputs from
        ``I * block`` on to each of the outputs from ``J * block`` on. No blocks at all is legal.
    block : int
        Neurons on one side of a block, at least 1. Powers of two from 4 on are fast, and fastest from 16 on.
    bias : bool
        Whether to add a learned bias.
    dtype : torch.dtype, optional
        float32 and float64 are computed as they are; float16 and bfloat16 in float32, rounded once.
    device : torch.device, optional
        On ``meta`` only the values and the bias are: the index buffers always hold data.

    Attributes
    ----------
    values : Parameter, shape (blocks, block, block)
        ``values[k, i, j]`` joins input i to output j of block k; blocks in the order of the block pattern as csr,
        row-major over (input block, output block). The same object for the layer's whole life.
    bias : Parameter, shape (out,), or None
    in_features, out_features, block, nnz : int
    density : float
        Stored connections / possible connections.
    block_pattern : csr_array, shape (in / block, out / block), dtype bool
        A copy, in canonical form.
    pattern : csr_array, shape (in, out), dtype bool
        The single connections: a copy, in canonical form.

    Raises
    ------
    SpecError
        If `block_pattern` is no matrix, has no rows or columns, holds NaN or needs more than int32 indices, `block` is
        no int >= 1, or `dtype` is no float type.

    Notes
    -----
    On a CPU a block-sparse layer needs one index for block\ :sup:`2` weights, and every weight that is loaded meets as
    many samples as registers hold; see `topogen.kernels.multiply_blocks`. ``tg.RadixNet(..., order="blocks")`` and
    `topogen.Block` build topologies of full blocks: the pattern to give is that of the network inside.

    Weights start as `init.kaiming_uniform_` draws them, for the fan-in that each output really has; biases at 0. An
    output neuron with no connection gives its bias alone, and learns it.

    Memory: nnz values, 12 bytes of indices for each block, and no array of size in * out, forward or backward.

    Loading a state dict restores pattern and values together, as for `SparseLinear`; the block size must agree.

    Examples
    --------
    >>> import scipy.sparse as sp, torch, topogen_torch as tt
    >>> layer = tt.BlockSparseLinear(sp.eye_array(2), 2, bias=False)
    >>> _ = layer.values.data.copy_(torch.tensor([[[1.0, 2.0], [0.0, 1.0]], [[3.0, 0.0], [0.0, 4.0]]]))
    >>> layer(torch.ones(1, 4)).tolist()
    [[1.0, 3.0, 3.0, 4.0]]
    >>> layer
    BlockSparseLinear(in_features=4, out_features=4, block=2, blocks=2, density=0.5, bias=False)
    """

    indptr_t: Tensor
    indices_t: Tensor
    permutation: Tensor
    order: Tensor
    order_t: Tensor

    def __init__(
        self,
        block_pattern: Any,
        block: int,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | int | None = None,
    ) -> None:
        super().__init__()
        self._build(as_pattern(block_pattern, name="block_pattern"), block, bias, dtype, device)
        self.reset_parameters()

    def _build(self, stored: sp.csr_array, block: int, bias: bool, dtype: torch.dtype | None, device: Any) -> None:
        """Allocate everything; parameters are left uninitialised."""
        checks.instance(bias, "bias", "BlockSparseLinear", bool)
        self.block = checks.integer(block, "block", "BlockSparseLinear", low=1)
        self.in_features, self.out_features = (size * self.block for size in stored.shape)
        unit, biases = (self.block, self.block), self.out_features if bias else None
        self._allocate(stored, unit=unit, bias=biases, dtype=dtype, device=device)

    def _derived(self, stored: sp.csr_array) -> dict[str, Tensor]:
        index = transposed_index(stored)  # of a full pattern too: the values of all blocks are no dense matrix
        return index | row_orders(stored) if on_card(self.values.device) else index

    def _install(self, index: dict[str, Tensor], derived: dict[str, Tensor]) -> None:
        super()._install(index, derived)
        self._facts = facts_of(self._stored_pattern) if "order" in derived else ()

    def reset_parameters(self) -> None:
        """Draw new weights with `init.kaiming_uniform_` and set the bias to 0."""
        init.kaiming_uniform_(self)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def block_pattern(self) -> sp.csr_array:
        """The blocks: a copy, canonical, bool, shape (in / block, out / block)."""
        return self._stored_pattern

    @property
    def pattern(self) -> sp.csr_array:
        """The single connections: a copy, canonical, bool, shape (in, out)."""
        return elements_of(self.block_pattern, np.ones((self.indices.numel(), self.block, self.block), np.bool_))

    def fan_in(self) -> Tensor:
        """Return the connections of each output, int64, shape (out,)."""
        blocks = torch.bincount(self.indices, minlength=self.out_features // self.block)
        return torch.repeat_interleave(blocks * self.block, self.block)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        transposed = self.indptr_t, self.indices_t, self.permutation
        if self._facts:
            card = CardIndex(self.indptr, self.indices, self.order, *transposed, self.order_t, self._facts)
            return card_block_linear(x, self.values, self.bias, card, self.out_features)
        index = Index(self.indptr, self.indices, *transposed)
        return block_linear(x, self.values, self.bias, index, self.out_features)

    def to_scipy(self) -> sp.csr_array:
        """Return the weights as a (in, out) csr_array; every stored connection is kept, zeros included.

        float32 or float64; float16 and bfloat16, which scipy cannot store, become float32.
        """
        values = self.values.detach().cpu()
        values = values if values.dtype in (torch.float32, torch.float64) else values.float()
        return elements_of(self.block_pattern, values.numpy())

    def to_linear(self) -> nn.Linear:
        """Return a `torch.nn.Linear` that computes the same, with zeros where there is no connection."""
        linear = nn.utils.skip_init(
            nn.Linear, self.in_features, self.out_features, bias=self.bias is not None,
            dtype=self.values.dtype, device=self.values.device,
        )  # fmt: skip
        assert isinstance(linear, nn.Linear)
        with torch.no_grad():
            linear.weight.zero_()
            rows, columns = _places(self.block_pattern, self.values.device)
            _in_blocks(linear, self.block)[columns, :, rows] = self.values.transpose(1, 2)
            if self.bias is not None and linear.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.train(self.training)

    @classmethod
    def from_linear(cls, linear: nn.Linear, block_pattern: Any, block: int) -> Self:
        """Return a layer with those blocks of `linear` that `block_pattern`, shape (in / block, out / block), keeps.

        Raises
        ------
        SpecError
            If `linear` is no `torch.nn.Linear`, `block` does not divide both of its sizes, or `block_pattern` has
            another shape.
        """
        checks.instance(linear, "linear", "from_linear", nn.Linear)
        n_in, n_out = linear.in_features, linear.out_features
        block = _dividing(block, "from_linear", n_in, n_out)
        stored = as_pattern(block_pattern, name="block_pattern")
        if stored.shape != (n_in // block, n_out // block):
            raise SpecError(
                "The 'block_pattern' parameter of from_linear must have the shape (inputs, outputs) / block of the "
                f"layer, ({n_in // block}, {n_out // block}). Got {stored.shape}."
            )
        layer = cls._like(linear, stored, block, linear.weight)
        with torch.no_grad():
            rows, columns = _places(stored, linear.weight.device)
            layer.values.copy_(_in_blocks(linear, block)[columns, :, rows].transpose(1, 2))
        return layer

    @classmethod
    def from_sparse_linear(cls, linear: SparseLinear, block: int) -> Self:
        """Return a layer with the weights of `linear`, whose pattern must consist of full blocks.

        Raises
        ------
        SpecError
            If `linear` is no `SparseLinear`, `block` does not divide both of its sizes, or a block has some of its
            connections and not others; the first one is named.
        """
        checks.instance(linear, "linear", "from_sparse_linear", SparseLinear)
        block = _dividing(block, "from_sparse_linear", linear.in_features, linear.out_features)
        stored = full_blocks(linear.pattern, block)
        layer = cls._like(linear, stored, block, linear.values)
        with torch.no_grad():
            runs = torch.from_numpy(runs_of(stored, block)).to(linear.values.device)
            layer.values.copy_(linear.values.reshape(-1, block)[runs])
        return layer

    @classmethod
    def _like(cls, linear: nn.Linear | SparseLinear, stored: sp.csr_array, block: int, weights: Tensor) -> Self:
        """Return a layer with the bias, mode, dtype and device of another one, and values yet to be set."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._build(stored, block, linear.bias is not None, weights.dtype, weights.device)
        if layer.bias is not None and linear.bias is not None:
            with torch.no_grad():
                layer.bias.copy_(linear.bias)
        return layer.train(linear.training)

    def extra_repr(self) -> str:
        """Sizes, blocks and density."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, block={self.block}, "
            f"blocks={self.indices.numel()}, density={self.density:.4g}, bias={self.bias is not None}"
        )


def _places(stored: sp.csr_array, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the input block and the output block of every stored block, int64."""
    rows, columns = (torch.from_numpy(part.astype(np.int64)).to(device) for part in stored.nonzero())
    return rows, columns


def _in_blocks(linear: nn.Linear, block: int) -> Tensor:
    """Return the weights, (out, in), as (out / block, block, in / block, block): a view."""
    return linear.weight.unflatten(0, (-1, block)).unflatten(2, (-1, block))


def _dividing(block: Any, owner: str, n_in: int, n_out: int) -> int:
    """Return `block`, an int that divides both sizes of a layer."""
    block = checks.integer(block, "block", owner, low=1)
    common = math.gcd(n_in, n_out)
    if common % block:
        nearest = min((size for size in range(1, common + 1) if common % size == 0), key=lambda size: abs(size - block))
        requirement = f"an int that divides both sizes of the layer, {n_in} and {n_out}"
        checks.refuse("block", owner, requirement, block, hint=f"The nearest is {nearest}.")
    return block


def full_blocks(pattern: sp.csr_array, block: int) -> sp.csr_array:
    """Return the pattern of blocks of a canonical pattern that consists of full ones, or name one that is not."""
    rows, columns = (part // block for part in pattern.nonzero())
    n_in, n_out = (size // block for size in pattern.shape)
    found, counts = np.unique(rows.astype(np.int64) * n_out + columns, return_counts=True)
    partial = np.flatnonzero(counts != block**2)
    if partial.size:
        row, column = divmod(int(found[partial[0]]), n_out)
        raise SpecError(
            f"The 'linear' parameter of from_sparse_linear must have a pattern of full {block} x {block} blocks. "
            f"Got {counts[partial[0]]} of {block**2} connections in block ({row}, {column})."
        )
    return as_pattern(sp.csr_array((np.ones(found.size, np.bool_), np.divmod(found, n_out)), shape=(n_in, n_out)))


def runs_of(stored: sp.csr_array, block: int) -> NDArray[np.int64]:
    """Return where each row of each block stands among the runs of `block` connections in value ordering: (K, b)."""
    counts = np.diff(stored.indptr).astype(np.int64)
    first = np.repeat(stored.indptr[:-1].astype(np.int64), counts)  # of the blocks beside it
    beside, row = np.repeat(counts, counts)[:, None], np.arange(block)
    return (np.arange(stored.nnz) + first * (block - 1))[:, None] + row * beside


def elements_of(stored: sp.csr_array, values_Kbb: NDArray[Any]) -> sp.csr_array:
    """Return the (in, out) matrix of the connections in value ordering; it shares no memory with the values."""
    blocks, block, _ = values_Kbb.shape
    runs = runs_of(stored, block)
    data, indices = np.empty((blocks * block, block), values_Kbb.dtype), np.empty((blocks * block, block), np.int64)
    data[runs] = values_Kbb
    indices[runs] = (stored.indices[:, None].astype(np.int64) * block + np.arange(block))[:, None]
    indptr = np.append(0, np.cumsum(np.repeat(np.diff(stored.indptr).astype(np.int64) * block, block)))
    shape = (stored.shape[0] * block, stored.shape[1] * block)
    weights = sp.csr_array((data.reshape(-1), indices.reshape(-1), indptr), shape=shape)
    weights.has_canonical_format = True
    return weights
