"""Attention masks from topologies: FlexAttention's block masks, and attention over the blocks that hold a connection.

In a mask as in a layer, rows are inputs and columns are outputs: the keys feed the queries, so that a connection
i -> j lets query j attend to key i. A causal mask is upper triangular, diagonal included.

Legend of shapes: N batch, H heads, S keys, L queries, E head size, b block size; nk = ceil(S / b), nq = ceil(L / b).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad, scaled_dot_product_attention

from topogen import Topology, as_pattern, checks, pattern_hash
from topogen.errors import SpecError
from topogen_torch._layout import is_hash_of

__all__ = ["MaskedAttention", "attention_mask", "mask_pattern"]

BLOCK = 128


def attention_mask(
    pattern: Any, *, block_size: int = BLOCK, device: torch.device | str | int | None = None
) -> BlockMask:
    """Return the FlexAttention block mask in which query j attends to key i exactly where i -> j is a connection.

    Parameters
    ----------
    pattern : Topology of one layer, or scipy sparse array or matrix, shape (keys, queries)
        Rows are inputs, which in attention are the keys; columns are outputs, the queries. The transpose of the
        (query, key) masks that PyTorch takes.
    block_size : int
        Keys and queries in a block, at least 1. FlexAttention's compiled kernels want 128 or a multiple of it.
    device : torch.device, optional
        Where the mask is used; the CPU by default.

    Returns
    -------
    torch.nn.attention.flex_attention.BlockMask
        Of shape (1, 1, queries, keys). Blocks without a connection are skipped, full ones are computed without a
        mask, and in all others `mask_mod` looks each pair up.

    Raises
    ------
    SpecError
        If `pattern` is no matrix and no topology of one layer, or `block_size` no int of at least 1.

    Notes
    -----
    Memory: one bit for each pair in the blocks that are partly filled, and 20 bytes for each of the nk * nq pairs of
    blocks, of which a BlockMask itself stores 16; no array of size keys * queries. Looking a pair up takes two reads.

    FlexAttention has no backward pass on the CPU (torch 2.11 to 2.13), and without ``torch.compile`` it computes all
    scores of all pairs. `SparseMultiheadAttention` with `mask` has both, on every device.

    References
    ----------
    Dong et al., "Flex Attention: A Programming Model for Generating Optimized Attention Kernels", arXiv 2412.05496.

    Examples
    --------
    >>> import numpy as np, topogen_torch as tt
    >>> causal = np.triu(np.ones((512, 512)))
    >>> mask = tt.attention_mask(causal, block_size=128)
    >>> mask.shape, int(mask.kv_num_blocks.sum()), int(mask.full_kv_num_blocks.sum())
    ((1, 1, 512, 512), 4, 6)
    """
    block_size = checks.integer(block_size, "block_size", "attention_mask", low=1)
    by_query = _by_query(mask_pattern(pattern, "pattern", "attention_mask"))
    n_queries, n_keys = by_query.shape
    blocks = _blocks(by_query, block_size)
    full = blocks.counts == block_size**2
    shape = -(-n_queries // block_size), -(-n_keys // block_size)
    partial, whole = (
        [part.to(device) for part in _ordered(blocks.rows[chosen], blocks.columns[chosen], shape)]
        for chosen in (~full, full)
    )
    return BlockMask.from_kv_blocks(
        *partial,
        *whole,
        BLOCK_SIZE=block_size,
        mask_mod=_look_up(by_query, blocks, full, block_size, device),
        seq_lengths=(n_queries, n_keys),
    )


def mask_pattern(mask: Any, name: str, owner: str) -> sp.csr_array:
    """Return the (keys, queries) pattern of a mask: a matrix, or the one layer of a topology."""
    if isinstance(mask, Topology):
        if len(mask) != 1:
            raise SpecError(
                f"The '{name}' parameter of {owner} must be a matrix or a topology of one layer, since a mask joins "
                f"keys to queries directly. Got {len(mask)} layers; one of them, topology[k], is a mask."
            )
        mask = mask[0]
    return as_pattern(mask, name=name)


class MaskedAttention(nn.Module):
    """Scaled dot-product attention over the blocks of a mask that hold a connection, and no others.

    Queries are taken block by block. Each block gathers the key blocks that it is joined to, and query blocks with
    about as many of them (up to a factor of two) go through one call of torch's attention together. Time and memory
    are those of the gathered blocks; forward, backward, every device and dtype are torch's own. A query without any
    key yields 0, as in FlexAttention.

    The state dict holds the pattern's hash alone; a state made with another mask is refused.

    Attributes
    ----------
    n_keys, n_queries, nnz : int
    n_gathered : int
        Pairs of blocks that are computed.
    """

    pattern_hash: Tensor
    indptr: Tensor
    indices: Tensor
    order: Tensor

    def __init__(self, pattern: sp.csr_array, block_size: int) -> None:
        super().__init__()
        by_query = _by_query(pattern)
        self.n_keys, self.n_queries = pattern.shape
        self.block_size = block_size
        digest = bytearray.fromhex(pattern_hash(pattern))
        self.register_buffer("pattern_hash", torch.frombuffer(digest, dtype=torch.uint8))
        self.register_buffer("indptr", torch.from_numpy(by_query.indptr.astype(np.int64)), persistent=False)
        self.register_buffer("indices", torch.from_numpy(by_query.indices.astype(np.int64)), persistent=False)
        groups, order = _groups(by_query, block_size)
        self.register_buffer("order", torch.from_numpy(order), persistent=False)
        self.n_groups = len(groups)
        self.n_gathered = sum(group.columns.size for group in groups)
        for k, group in enumerate(groups):
            for name, part in zip(_Group._fields, group, strict=True):
                self.register_buffer(f"{name}_{k}", torch.from_numpy(part), persistent=False)

    @property
    def nnz(self) -> int:
        """Pairs of a key and a query."""
        return self.indices.numel()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_padding: Tensor | None, dropout: float) -> Tensor:
        """Map q (N, H, L, E), k and v (N, H, S, E) to (N, H, L, E); `key_padding` (N, S) is added to the scores."""
        b, n_queries = self.block_size, q.shape[2]
        q, k, v = (_in_blocks(x, b) for x in (q, k, v))
        if key_padding is not None:
            key_padding = _in_blocks(key_padding[:, None, :, None], b)  # (N, 1, nk, b, 1)
        found: list[Tensor] = []
        for group in range(self.n_groups):
            rows, columns, allowed = (getattr(self, f"{name}_{group}") for name in _Group._fields)
            mask: Tensor = allowed[:, None]  # (rows, 1, b, width)
            if key_padding is not None:
                padding = _gathered(key_padding, columns)[..., 0].squeeze(1)  # (N, rows, width)
                mask = padding[:, :, None, None].masked_fill(~mask, -torch.inf).flatten(0, 1)
            elif q.shape[0] != 1:
                mask = mask.repeat(q.shape[0], 1, 1, 1)
            # one "sample" of torch's attention is one block of queries of one sample
            operands = (part.transpose(1, 2).flatten(0, 1) for part in (
                q.index_select(2, rows), _gathered(k, columns), _gathered(v, columns)
            ))  # fmt: skip
            y = scaled_dot_product_attention(*operands, attn_mask=mask, dropout_p=dropout)
            found.append(y.unflatten(0, (q.shape[0], rows.numel())))
        y = torch.cat(found, 1).index_select(1, self.order)  # (N, nq, H, b, E)
        return y.transpose(1, 2).flatten(2, 3)[:, :, :n_queries]

    def allowed(self) -> Tensor:
        """Return the mask as PyTorch writes it: bool, shape (queries, keys), True where a query attends."""
        device = self.indices.device
        queries = torch.repeat_interleave(torch.arange(self.n_queries, device=device), self.indptr.diff())
        flat = torch.zeros(self.n_queries * self.n_keys, dtype=torch.bool, device=device)
        return flat.index_fill(0, queries * self.n_keys + self.indices, True).view(self.n_queries, self.n_keys)

    def _pattern(self) -> sp.csr_array:
        """Return the mask as it was given: canonical, bool, shape (keys, queries)."""
        parts = (np.ones(self.nnz, np.bool_), self.indices.cpu().numpy(), self.indptr.cpu().numpy())
        return as_pattern(sp.csr_array(parts, shape=(self.n_queries, self.n_keys)).T)

    def extra_repr(self) -> str:
        """Sizes, pairs and what is computed of them."""
        possible = -(-self.n_keys // self.block_size) * -(-self.n_queries // self.block_size)
        return (
            f"keys={self.n_keys}, queries={self.n_queries}, nnz={self.nnz}, block_size={self.block_size}, "
            f"blocks={self.n_gathered} of {possible}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move as torch does, but never lose the indices: ``to_empty`` and ``to("meta")`` would."""
        held = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in held.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved is not buffer:
                self._buffers[name] = buffer if moved.is_meta else buffer.to(moved.device)
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        promised = state_dict.get(f"{prefix}pattern_hash")
        if isinstance(promised, Tensor) and not torch.equal(promised.cpu(), self.pattern_hash.cpu()):
            theirs, own = (bytes(part.flatten().tolist()).hex() for part in (promised, self.pattern_hash))
            if not is_hash_of(self._pattern(), theirs):
                error_msgs.append(
                    f"The state of the mask '{prefix.rstrip('.')}' is refused: 'pattern_hash' must be that of the "
                    f"layer's mask, {own[:12]}... Got {theirs[:12]}..."
                )
                return
            state_dict = {**state_dict, f"{prefix}pattern_hash": self.pattern_hash}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )  # fmt: skip


class _Blocks(NamedTuple):
    """The blocks that hold a connection, row-major over (query block, key block)."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    counts: NDArray[np.int64]  # connections in each
    owner: NDArray[np.int64]  # (nnz,): the block of each connection


class _Group(NamedTuple):
    """Query blocks that gather equally many key blocks."""

    rows: NDArray[np.int64]  # (rows,): query blocks
    columns: NDArray[np.int64]  # (rows, m): the key blocks of each, filled up with block 0
    allowed: NDArray[np.bool_]  # (rows, b, m * b)


def _by_query(pattern: sp.csr_array) -> sp.csr_array:
    """Return the (queries, keys) transpose, sorted."""
    by_query = sp.csr_array(pattern.T)
    by_query.sort_indices()
    return by_query


def _blocks(by_query: sp.csr_array, size: int) -> _Blocks:
    width = -(-by_query.shape[1] // size)
    queries = np.repeat(np.arange(by_query.shape[0]), np.diff(by_query.indptr))
    flat = queries // size * width + by_query.indices // size
    found, owner, counts = np.unique(flat, return_inverse=True, return_counts=True)
    return _Blocks(found // width, found % width, counts, owner.reshape(-1))


def _ordered(rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the number of blocks in each row, and their columns filled up with 0: what a BlockMask stores."""
    counts = np.bincount(rows, minlength=shape[0])
    table = np.zeros(shape, np.int32)
    table[rows, _positions(counts)] = columns
    return torch.from_numpy(counts.astype(np.int32))[None, None], torch.from_numpy(table)[None, None]


def _positions(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0, 1, ... within each row, for rows of these lengths."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _groups(by_query: sp.csr_array, size: int) -> tuple[list[_Group], NDArray[np.int64]]:
    """Return the query blocks by how many key blocks they gather, and where each stands among all groups' rows.

    A group is made of the counts in [2^k, 2^(k+1)), filled up to its largest: at most twice what is needed.
    """
    n_rows = -(-by_query.shape[0] // size)
    blocks = _blocks(by_query, size)
    counts = np.bincount(blocks.rows, minlength=n_rows)
    positions = _positions(counts)
    queries = np.repeat(np.arange(by_query.shape[0]), np.diff(by_query.indptr))
    kinds = np.frexp(counts)[1]
    groups: list[_Group] = []
    for kind in np.unique(kinds):
        rows = np.flatnonzero(kinds == kind)
        width = max(1, int(counts[rows].max()))
        place = np.full(n_rows, -1)
        place[rows] = np.arange(rows.size)
        mine = place[blocks.rows] >= 0
        columns = np.zeros((rows.size, width), np.int64)
        columns[place[blocks.rows[mine]], positions[mine]] = blocks.columns[mine]
        allowed = np.zeros((rows.size, size, width * size), np.bool_)
        pairs = mine[blocks.owner]
        block = blocks.owner[pairs]
        key = positions[block] * size + by_query.indices[pairs] % size
        allowed[place[blocks.rows[block]], queries[pairs] % size, key] = True
        groups.append(_Group(rows, columns, allowed))
    return groups, np.argsort(np.concatenate([group.rows for group in groups]))


def _in_blocks(x: Tensor, size: int) -> Tensor:
    """Turn (N, H, T, E) into (N, H, blocks, b, E), filled up with 0."""
    x = pad(x, (0, 0, 0, -x.shape[2] % size))
    return x.unflatten(2, (x.shape[2] // size, size))


def _gathered(x: Tensor, columns: Tensor) -> Tensor:
    """Turn (N, H, nk, b, E) into (N, H, rows, m * b, E): the key blocks of each query block, side by side."""
    return x.index_select(2, columns.flatten()).unflatten(2, tuple(columns.shape)).flatten(3, 4)


def _look_up(
    by_query: sp.csr_array, blocks: _Blocks, full: NDArray[np.bool_], size: int, device: Any
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return a `mask_mod` that finds the bit of a pair: a table of blocks, and the bits of those partly filled.

    Two reads, whatever the pattern: torch compiles the function into its kernels, and what a read depends on is written
    out there again for every use, so that a search, with its chain of reads, would grow without bound.
    """
    empty, whole, first = 0, 1, 2  # the bits of all empty blocks, of all full ones, of the first that is neither
    slots = np.where(full, whole, first + np.cumsum(~full) - 1)
    table = np.full((-(-by_query.shape[0] // size), -(-by_query.shape[1] // size)), empty, np.int32)
    table[blocks.rows, blocks.columns] = slots
    bits = np.zeros((first + np.count_nonzero(~full), size, -(-size // 8)), np.uint8)
    bits[whole] = 255
    queries = np.repeat(np.arange(by_query.shape[0]), np.diff(by_query.indptr)) % size
    keys = by_query.indices % size
    np.bitwise_or.at(bits, (slots[blocks.owner], queries, keys // 8), (1 << keys % 8).astype(np.uint8))
    table_t, bits_t = torch.from_numpy(table).to(device), torch.from_numpy(bits).to(device)

    def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        slot = table_t[q_idx // size, kv_idx // size]
        byte = bits_t[slot, q_idx % size, kv_idx % size // 8].to(torch.int32)
        return ((byte >> (kv_idx % size % 8)) & 1) == 1

    return mask_mod
