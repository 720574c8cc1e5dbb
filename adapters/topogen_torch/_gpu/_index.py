"""One set of index buffers for the three passes of a block-sparse layer on a GPU.

Legend: K = stored blocks, b = block; `values[k, i, j]` joins input i to output j of block k, and the blocks stand
row-major over (input block, output block).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from torch import Tensor

__all__ = ["BlockIndex", "Circulant", "find_circulant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Circulant:
    r"""The blocks of one RadiX layer, :math:`\sum_{j < r} P^{s j \nu}` on n nodes, known without an index.

    Node I is joined to :math:`(I + s j \nu) \bmod n`. The nodes of a residue class modulo :math:`\nu` see one another
    alone: each class is a ring of :math:`n / \nu` nodes on which a node is joined to r neighbours in a row.

    Parameters
    ----------
    nodes : int
        n, blocks of inputs, and of outputs.
    radix : int
        r >= 1, blocks of each node.
    place : int
        :math:`\nu`, a divisor of n with :math:`r \nu \le n`.
    shift : {-1, +1}
        s. A layer that both would build is given -1.
    """

    nodes: int
    radix: int
    place: int
    shift: int

    @property
    def ring(self) -> int:
        """Nodes of a residue class."""
        return self.nodes // self.place

    @property
    def is_block_diagonal(self) -> bool:
        """Whether every node of a class is joined to every other: the last radix of a system."""
        return self.radix == self.ring


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockIndex:
    """Where the blocks of a layer stand, by outputs and by inputs: int32 tensors on the device of its values.

    All three passes read the same values, stored once: by outputs through `permutation`, by inputs as they stand.
    ``4 (3 K + 2 n_in / b + 2 n_out / b + 2)`` bytes, of which `order` and `order_t` alone are not the layer's own.

    Parameters
    ----------
    block : int
        b, neurons on one side of a block.
    n_in, n_out : int
        Neurons, multiples of b.
    indptr : Tensor, shape (n_in / b + 1,)
        ``indptr[I] : indptr[I + 1]`` are the blocks of input block I.
    indices : Tensor, shape (K,)
        The output block of each stored block.
    order : Tensor, shape (n_in / b,)
        The input blocks, those with the most blocks first, so that no long row is left for the end.
    indptr_t : Tensor, shape (n_out / b + 1,)
        ``indptr_t[J] : indptr_t[J + 1]`` are the entries of output block J in the next two.
    indices_t : Tensor, shape (K,)
        The input block of each.
    permutation : Tensor, shape (K,)
        The place of each in `values`.
    order_t : Tensor, shape (n_out / b,)
        The output blocks, those with the most blocks first.
    most : int
        Blocks of the input block that has the most: a number on the host, so that no launch waits for the device.
    circulant : Circulant, optional
        What the pattern is, where it is a layer of a RadiX-Net.
    """

    block: int
    n_in: int
    n_out: int
    indptr: Tensor = field(repr=False)
    indices: Tensor = field(repr=False)
    order: Tensor = field(repr=False)
    indptr_t: Tensor = field(repr=False)
    indices_t: Tensor = field(repr=False)
    permutation: Tensor = field(repr=False)
    order_t: Tensor = field(repr=False)
    most: int
    circulant: Circulant | None = None

    @classmethod
    def from_buffers(
        cls,
        indptr: Tensor,
        indices: Tensor,
        indptr_t: Tensor,
        indices_t: Tensor,
        permutation: Tensor,
        *,
        block: int,
    ) -> Self:
        """Return the index of a layer from its own buffers: ``BlockIndex.from_buffers(*index, block=layer.block)``.

        Once a pattern, not once a call: the pattern is read on the host. The buffers are shared, not copied; where a
        layer rewires them in place, build a new index.

        Parameters
        ----------
        indptr, indices, indptr_t, indices_t, permutation : Tensor, int32
            As `BlockSparseLinear` holds them, on one device.
        block : int
            b.
        """
        on_host = indptr.cpu().numpy(), indices.cpu().numpy()
        n_out = indptr_t.numel() - 1
        return cls(
            block=block,
            n_in=(indptr.numel() - 1) * block,
            n_out=n_out * block,
            indptr=indptr,
            indices=indices,
            order=_longest_first(indptr),
            indptr_t=indptr_t,
            indices_t=indices_t,
            permutation=permutation,
            order_t=_longest_first(indptr_t),
            most=int(np.diff(on_host[0]).max(initial=0)),
            circulant=find_circulant(*on_host, n_out),
        )

    @property
    def blocks(self) -> int:
        """Stored blocks."""
        return self.indices.numel()

    @property
    def density(self) -> float:
        """Stored blocks / possible blocks."""
        return self.blocks * self.block**2 / (self.n_in * self.n_out)

    @property
    def device(self) -> torch.device:
        """Where the buffers are."""
        return self.indices.device


def find_circulant(indptr: np.ndarray, indices: np.ndarray, n_out: int) -> Circulant | None:
    """Return which RadiX layer a canonical pattern is, None for any other. O(K) time and memory.

    Parameters
    ----------
    indptr, indices : ndarray of int
        The pattern as csr, indices rising within each row.
    n_out : int
        Columns.
    """
    nodes, radix = indptr.size - 1, int(indptr[1])
    if nodes != n_out or not radix or indices.size != nodes * radix or (np.diff(indptr) != radix).any():
        return None
    first = indices[:radix].astype(np.int64)  # of node 0, which is joined to itself
    for shift, place in ((-1, nodes - int(first[-1])), (1, int(first[1 % radix]))):
        if radix == 1:
            place = nodes  # a node alone in its class
        if place < 1 or nodes % place or radix * place > nodes:
            continue
        found = Circulant(nodes=nodes, radix=radix, place=place, shift=shift)
        if np.array_equal(_neighbours(found), indices.reshape(nodes, radix)):
            return found
    return None


def _neighbours(circulant: Circulant) -> np.ndarray:
    """Return the output nodes of every input node, rising."""
    steps = circulant.shift * circulant.place * np.arange(circulant.radix, dtype=np.int64)
    return np.sort(np.add.outer(np.arange(circulant.nodes), steps) % circulant.nodes, axis=1)


def _longest_first(indptr: Tensor) -> Tensor:
    """Return the rows by falling number of entries, equal ones in their own order, int32."""
    return torch.argsort(indptr.diff(), descending=True, stable=True).to(torch.int32)
