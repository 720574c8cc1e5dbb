"""What the benchmark of a card measures: layers by size, block and density, and RadiX layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

import topogen as tg
from topogen_torch._gpu._index import BlockIndex
from topogen_torch._layout import stored_index, transposed_index

__all__ = ["Case", "Operands", "cases", "index_of", "operands_of"]


@dataclass(frozen=True, slots=True)
class Case:
    """A square layer.

    `pattern` is "random", or "RadiX" with the radices of a system of two, of which `layer` is the layer that is
    measured: the last one is block-diagonal up to an order of the neurons.
    """

    n: int
    block: int
    pattern: str
    sparsity: float
    radices: tuple[int, int] = (0, 0)
    layer: int = 0

    @property
    def name(self) -> str:
        """The pattern in words."""
        if self.pattern == "random":
            return f"random {100 * self.sparsity:g} %"
        return f"RadiX {self.radices[0]} x {self.radices[1]}, layer {self.layer + 1}"

    @property
    def kernels(self) -> tuple[str, ...]:
        """The ways to compute it, best first as far as is known without measuring."""
        if self.pattern == "random":
            return ("triton",)
        return ("circulant", "triton") + (("batched",) if self.layer else ())

    def blocks(self) -> sp.csr_array:
        """Return the pattern of blocks."""
        nodes = self.n // self.block
        if self.pattern == "random":
            count = max(1, round((1 - self.sparsity) * nodes**2))
            chosen = np.random.default_rng(0).choice(nodes**2, count, replace=False)
            return tg.as_pattern(sp.coo_array((np.ones(count, np.bool_), np.divmod(chosen, nodes)), (nodes, nodes)))
        return tg.generate(tg.RadixNet(systems=(self.radices,)))[self.layer]


@dataclass(frozen=True, slots=True)
class Operands:
    """A layer's index and values, and so many batches that none is in the L2 cache when its turn comes again."""

    index: BlockIndex
    values: Tensor
    xs: list[Tensor]
    grads: list[Tensor]


def cases(sizes: Sequence[int], blocks: Sequence[int], sparsities: Sequence[float]) -> Iterator[Case]:
    """Yield the cases, those of 4096 neurons first: a budget may end before the others."""
    for n in sorted(sizes, key=lambda size: abs(size - 4096)):
        for block in sorted(blocks, reverse=True):
            if n % block == 0:
                for sparsity in sparsities:
                    yield Case(n, block, "random", sparsity)
        for block in sorted(blocks):
            nodes = n // block
            if n % block or block > 64 or nodes < 4 or nodes & (nodes - 1):
                continue
            first = 1 << nodes.bit_length() // 2
            radices = first, nodes // first
            for layer, radix in enumerate(radices):
                yield Case(n, block, "RadiX", 1 - radix / nodes, radices, layer)


def index_of(stored: sp.csr_array, block: int, device: torch.device) -> BlockIndex:
    """Return the index of a pattern of blocks on a device."""
    parts: dict[str, Any] = stored_index(stored, "bench") | transposed_index(stored)
    names = ("indptr", "indices", "indptr_t", "indices_t", "permutation")
    return BlockIndex.from_buffers(*(parts[name].to(device) for name in names), block=block)


def operands_of(case: Case, tokens: int, dtype: torch.dtype, device: torch.device) -> Operands:
    """Return random operands of a case; products have about the size of their factors."""
    index = index_of(case.blocks(), case.block, device)
    seeded = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=seeded, device=device) * scale).to(dtype)

    l2 = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    sets = 1 + 2 * l2 // (tokens * case.n * dtype.itemsize)
    values = draw(index.blocks, case.block, case.block, scale=(case.n * max(index.density, 1e-6)) ** -0.5)
    xs, grads = ([draw(tokens, case.n) for _ in range(sets)] for _ in range(2))
    return Operands(index, values, xs, grads)
