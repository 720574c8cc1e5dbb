"""A layer pattern as index buffers: what a kernel reads, and what a state dict stores of it.

Value ordering is row-major over (input, output), as csr stores it. The backward pass walks the csr index itself. The
forward pass needs the connections of each output together: the csc index, with a permutation that says where the value
of each of its connections stands in value ordering. Where neurons share most of their connections, plans take the place
of an index, which know the columns of four neurons at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from topogen import kernels, pattern_hash
from topogen.errors import SpecError
from topogen_torch._break_even import may_be_dense
from topogen_torch._passes import csc_index

__all__ = [
    "STORED",
    "checked_pattern",
    "derived_index",
    "is_full",
    "linear_index",
    "stored_index",
    "to_pattern",
    "transposed_index",
]

STORED = ("indptr", "indices", "sizes", "pattern_hash")  # in the state dict
_TRANSPOSED = ("indptr_t", "indices_t", "permutation")  # derived

_LIMIT = 2**31
# Connections an output, on average, from which panels are looked for, where the outputs of a panel lie apart; three
# times as many where they are neighbours. Measured with tests/benchmarks/bench_structured.py on two cores of a Zen 5
# EPYC, 4096 neurons, batch 64 and 256, November 2026. Apart, row by row drives the connections out of the cache: panels
# take 1 times the time of rows with 32 connections, 0.5 to 0.7 with 64 and more. Neighbours: 1.1 to 1.3 with up to 128,
# 0.5 to 0.6 with 256 and more.
LEAST_FAN_IN = 64


def stored_index(pattern: sp.csr_array, owner: str) -> dict[str, Tensor]:
    """Return the buffers that determine a canonical pattern, for the state dict.

    Parameters
    ----------
    pattern : csr_array, shape (n_in, n_out)
        In canonical form, as `topogen.as_pattern` returns it.
    owner : str
        The layer's class, for the error.

    Returns
    -------
    dict of Tensor
        ``indptr`` (n_in + 1,) and ``indices`` (nnz,), int32; ``sizes`` (2,), int64; ``pattern_hash`` (32,), uint8.
        The first two are the pattern's own memory if that has int32.

    Raises
    ------
    SpecError
        If a size or the number of connections does not fit into int32.
    """
    refuse_wide(*pattern.shape, pattern.nnz, owner)
    return {
        "indptr": torch.from_numpy(pattern.indptr.astype(np.int32, copy=False)),
        "indices": torch.from_numpy(pattern.indices.astype(np.int32, copy=False)),
        "sizes": torch.tensor(pattern.shape, dtype=torch.int64, device="cpu"),
        "pattern_hash": torch.frombuffer(bytearray.fromhex(pattern_hash(pattern)), dtype=torch.uint8),
    }


def is_hash_of(pattern: sp.csr_array, promised: str) -> bool:
    """Whether a hash is that of the pattern, in any version."""
    return promised in (pattern_hash(pattern), pattern_hash(pattern, version=1))


def derived_index(pattern: sp.csr_array) -> dict[str, Tensor]:
    """Return `transposed_index`, empty for a full pattern, whose values are a dense matrix."""
    if is_full(pattern):
        return {name: torch.empty(0, dtype=torch.int32, device="cpu") for name in _TRANSPOSED}
    return transposed_index(pattern)


def linear_index(pattern: sp.csr_array) -> dict[str, Tensor]:
    """Return the buffers that a linear layer's kernels read beside the stored ones.

    Where outputs have many connections and share enough of them ``panels_t``, their plan
    (`topogen.kernels.plan_panels`), and ``panels``, that of the inputs, empty where these do not; otherwise
    `derived_index`. The plans take 3 to 6 bytes a
    connection, the csc index and its permutation 8.
    """
    if is_full(pattern) or may_be_dense(pattern.nnz, *pattern.shape):
        return derived_index(pattern)
    transposed = transposed_index(pattern)
    if pattern.nnz < LEAST_FAN_IN * pattern.shape[1]:
        return transposed
    try:
        panels_t = kernels.plan_panels(*(transposed[name].numpy() for name in _TRANSPOSED))
    except ModuleNotFoundError as error:
        if error.name not in ("numba", "llvmlite"):
            raise
        return transposed  # nothing is ever computed by panels here
    if panels_t is None or (panels_t[1] == panels_t[0] + 1 and pattern.nnz < 3 * LEAST_FAN_IN * pattern.shape[1]):
        return transposed
    panels = kernels.plan_panels(pattern.indptr.astype(np.int32), pattern.indices.astype(np.int32))
    panels = np.empty(0, np.int32) if panels is None else panels
    return {"panels": torch.from_numpy(panels), "panels_t": torch.from_numpy(panels_t)}


def transposed_index(pattern: sp.csr_array) -> dict[str, Tensor]:
    """Return the csc index of a canonical pattern, int32, and the place of each connection in value ordering.

    Counting, not sorting: linear in the connections.
    """
    parts = csc_index(
        pattern.indptr.astype(np.int32, copy=False), pattern.indices.astype(np.int32, copy=False), pattern.shape[1]
    )
    return {name: torch.from_numpy(part) for name, part in zip(_TRANSPOSED, parts, strict=True)}


def is_full(pattern: sp.csr_array) -> bool:
    """Whether every possible connection exists, so that the values are the dense (n_in, n_out) matrix itself."""
    return pattern.nnz == pattern.shape[0] * pattern.shape[1]


def to_pattern(indptr: Tensor, indices: Tensor, n_out: int) -> sp.csr_array:
    """Return the canonical pattern of checked buffers; it shares no memory with them."""
    parts = (np.ones(indices.numel(), np.bool_), indices.cpu().numpy().copy(), indptr.cpu().numpy().copy())
    pattern = sp.csr_array(parts, shape=(indptr.numel() - 1, n_out))
    pattern.has_canonical_format = True
    return pattern


def checked_pattern(state: Mapping[str, Any], sizes: tuple[int, int], owner: str) -> sp.csr_array:
    """Return the pattern that a state dict stores for a layer of these sizes, or say in one sentence why it cannot be.

    Kernels trust their indices, so every one of them is looked at. Raises `SpecError`.
    """
    for name in STORED:
        if not isinstance(state[name], Tensor) or state[name].is_floating_point() or state[name].is_meta:
            raise SpecError(f"'{name}' must be a tensor of ints. Got {_kind(state[name])}.")
    stored = tuple(state["sizes"].tolist())
    if stored != sizes:
        raise SpecError(f"'sizes' must be {list(sizes)}, (inputs, outputs). Got {list(stored)}.")
    indptr, indices = state["indptr"].cpu().numpy(), state["indices"].cpu().numpy()
    refuse_wide(*sizes, indices.size, owner)
    _check_canonical(indptr, indices, *sizes)
    parts = (np.ones(indices.size, np.bool_), indices.astype(np.int32), indptr.astype(np.int32))
    pattern = sp.csr_array(parts, shape=sizes)
    pattern.has_canonical_format = True
    promised = bytes(state["pattern_hash"].flatten().tolist()).hex()
    if not is_hash_of(pattern, promised):
        own = pattern_hash(pattern)
        raise SpecError(f"'pattern_hash' must be that of the stored indices, {own[:12]}... Got {promised[:12]}...")
    return pattern


def refuse_wide(n_in: int, n_out: int, nnz: int, owner: str) -> None:
    """Raise `SpecError` where int32 indices do not suffice."""
    if max(n_in, n_out, nnz) >= _LIMIT:
        raise SpecError(
            f"The 'pattern' parameter of {owner} must have fewer than 2^31 inputs, outputs and connections. "
            f"Got {n_in} x {n_out} with {nnz}."
        )


def _check_canonical(indptr: np.ndarray, indices: np.ndarray, n_in: int, n_out: int) -> None:
    if indptr.shape != (n_in + 1,) or indices.ndim != 1:
        shapes = f"{indptr.shape} and {indices.shape}"
        raise SpecError(f"'indptr' and 'indices' must have shapes ({n_in + 1},) and (nnz,). Got {shapes}.")
    steps = np.diff(indptr.astype(np.int64))
    if indptr[0] != 0 or indptr[-1] != indices.size or (steps < 0).any():
        ends = f"{indptr[0]} to {indptr[-1]}"
        raise SpecError(f"'indptr' must rise from 0 to the {indices.size} stored indices. Got {ends}.")
    if indices.size == 0:
        return
    if indices.min() < 0 or indices.max() >= n_out:
        raise SpecError(f"'indices' must lie in [0, {n_out - 1}]. Got [{indices.min()}, {indices.max()}].")
    rising = np.diff(indices.astype(np.int64)) > 0
    starts = indptr[1:-1]
    rising[starts[(starts > 0) & (starts < indices.size)] - 1] = True  # from one input's connections to the next's
    if not rising.all():
        place = int(np.argmin(rising)) + 1
        pair = f"{indices[place]} after {indices[place - 1]}"
        raise SpecError(f"'indices' must rise within each input's connections. Got {pair}.")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.device.type} tensor of {value.dtype}"
    return f"a {type(value).__name__}"
