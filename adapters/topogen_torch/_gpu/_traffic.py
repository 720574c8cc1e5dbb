"""How many bytes a pass moves between the L2 cache and the processors: arithmetic, to set beside what is measured."""

from __future__ import annotations

from topogen_torch._gpu._config import Config, Pass
from topogen_torch._gpu._index import BlockIndex

__all__ = ["through_l2"]


def through_l2(kind: Pass, config: Config, index: BlockIndex, tokens: int, itemsize: int) -> int:
    """Return the bytes that all programs of a pass read and write, the index left out.

    Parameters
    ----------
    kind : str
        One of `Pass`.
    config : Config
    index : BlockIndex
    tokens : int
    itemsize : int
        Bytes of an activation, and of a value.
    """
    block, entries, circulant = index.block, index.blocks * index.block**2, index.circulant
    side = config.blocks
    if circulant is not None and kind.startswith("circulant"):
        groups = circulant.place * -(-circulant.ring // side)
        reach = min(side + circulant.radix - 1, circulant.ring)
        bands = -(-reach // side)
        seen, sampled = groups * reach, groups * (reach + bands * min(side, circulant.ring))
    else:  # of the rows only the mean length is known without asking the card
        programs = max(index.blocks // side, min(index.blocks, index.n_in // block))
        seen, sampled = index.blocks, index.blocks + programs
    if kind.endswith("value_gradient"):
        parts = 2 * 4 * config.split_k * entries if config.split_k > 1 else 0  # written and read again
        return itemsize * (tokens * sampled * block + entries) + parts
    written = index.n_in if kind.endswith("input_gradient") else index.n_out
    tiles = -(-tokens // config.tokens)
    return itemsize * (tokens * (seen * block + written) + tiles * entries)
