"""A sparse matrix plus one of low rank: what the pattern lacks, in a few dense directions."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from topogen import as_pattern, checks
from topogen_torch import init
from topogen_torch._layers import SparseLinear

__all__ = ["LowRankPlusSparse"]


class LowRankPlusSparse(nn.Module):
    r"""Linear layer with a sparse and a low-rank part: :math:`y = x S + (x U) V + b`.

    S, (in, out), has one weight for each connection of a pattern; U, (in, rank), and V, (rank, out), are dense. The
    pattern carries what is particular to single connections, the low rank what many connections share.

    Parameters
    ----------
    pattern : scipy sparse array or matrix, shape (in, out)
        The connections of S. None at all is legal.
    rank : int
        In [0, min(in, out)].
    bias : bool
        Whether to add a learned bias.
    dtype, device
        As for `SparseLinear`.

    Attributes
    ----------
    sparse : SparseLinear
        S and b.
    U, V : Parameter, shapes (in, rank) and (rank, out)
    in_features, out_features, rank, nnz : int
    density : float
        Stored weights / possible connections: (nnz + rank (in + out)) / (in * out).

    Raises
    ------
    SpecError
        If `rank` is out of range, or as `SparseLinear`.

    Notes
    -----
    New weights give an output the variance that `SparseLinear` gives it, half of it from each part: the low rank
    supplies all of it where an output has no connection, the connections all of it where the rank is 0. Biases start
    at 0.

    Memory: nnz + rank (in + out) values and 12 nnz bytes of indices; work 2 of the former for each sample.

    References
    ----------
    The form is that of Dao et al., "Pixelated Butterfly", arXiv 2112.00029, section 3.3, with its fixed sparse pattern.
    That real matrices are near such sums: Candes, Li, Ma and Wright, "Robust Principal Component Analysis?", JACM 58
    (2011), where the sparse part's places are unknown.

    Examples
    --------
    >>> import numpy as np, torch, topogen_torch as tt
    >>> layer = tt.LowRankPlusSparse(np.eye(100), rank=3)
    >>> layer(torch.randn(7, 100)).shape, layer.density
    (torch.Size([7, 100]), 0.07)
    """

    U: nn.Parameter
    V: nn.Parameter

    def __init__(
        self,
        pattern: Any,
        rank: int,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | int | None = None,
    ) -> None:
        super().__init__()
        self._build(SparseLinear(pattern, bias=bias, dtype=dtype, device=device), rank)
        self.reset_parameters()

    def _build(self, sparse: SparseLinear, rank: int) -> None:
        """Take the sparse part and allocate the other, uninitialised."""
        self.in_features, self.out_features = sparse.in_features, sparse.out_features
        self.rank = _checked_rank(rank, self.in_features, self.out_features, "LowRankPlusSparse")
        self.sparse = sparse
        self.U = nn.Parameter(sparse.values.new_empty(self.in_features, self.rank))
        self.V = nn.Parameter(sparse.values.new_empty(self.rank, self.out_features))

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias of the sparse part."""
        return self.sparse.bias

    @property
    def nnz(self) -> int:
        """Connections of the sparse part."""
        return self.sparse.nnz

    @property
    def density(self) -> float:
        """Stored weights / possible connections, which may exceed 1."""
        stored = self.nnz + self.rank * (self.in_features + self.out_features)
        return stored / (self.in_features * self.out_features)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights, half of each output's variance from each part, and set the bias to 0."""
        share = 0.5 if self.rank else 1.0
        self.sparse.reset_parameters()
        self.sparse.values.mul_(math.sqrt(share))
        if not self.rank:
            return
        lone = self.sparse.fan_in().to(self.V.device) == 0
        deviation = torch.where(lone, 1.0, 1 - share).mul(init.RELU_GAIN**2 / self.rank).sqrt()
        self.U.normal_(std=1 / math.sqrt(self.in_features))
        self.V.normal_().mul_(deviation.to(self.V.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        y = self.sparse(x)
        return y if self.rank == 0 else y + linear(linear(x, self.U.t()), self.V.t())

    def to_linear(self) -> nn.Linear:
        """Return a `torch.nn.Linear` with the weight (S + U V)^T: both parts merged into a dense matrix."""
        merged = self.sparse.to_linear()
        with torch.no_grad():
            merged.weight.add_((self.U @ self.V).t())
        return merged.train(self.training)

    @classmethod
    def from_linear(cls, linear: nn.Linear, pattern: Any, rank: int, *, iterations: int = 10) -> Self:
        r"""Return a layer that is close to `linear`: :math:`\min \|W - (S + U V)\|_F` over S on the pattern, U and V.

        On the pattern the sum equals W whatever U V is, since S makes up for it. So U V is fitted to W off the pattern:
        in turns, the gaps on the pattern are filled with U V itself and the whole is cut to `rank` singular values.
        The error never grows from one turn to the next; the first turn fills the gaps with W.

        Parameters
        ----------
        linear : nn.Linear
        pattern : matrix, shape (in, out)
        rank : int
            In [0, min(in, out)].
        iterations : int
            Turns, at least 1.

        Raises
        ------
        SpecError
            If `linear` is no `torch.nn.Linear`, `pattern` has another shape, or a number is out of range.

        Notes
        -----
        Each turn is a singular value decomposition of the dense W in float64, of order in * out * min(in, out).
        U and V share the singular values evenly, each sqrt(s).

        References
        ----------
        Srebro and Jaakkola, "Weighted Low-Rank Approximations", ICML 2003, section 3 (the turns are its EM steps, with
        weight 0 on the pattern); Zhou and Tao, "GoDec", ICML 2011 (the same turns with the pattern sought too).
        """
        sparse = SparseLinear.from_linear(linear, pattern)
        n_in, n_out = sparse.in_features, sparse.out_features
        _checked_rank(rank, n_in, n_out, "from_linear")
        iterations = checks.integer(iterations, "iterations", "from_linear", low=1)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._build(sparse, rank)
        kept = as_pattern(pattern).tocoo()
        rows, columns = (torch.from_numpy(part).to(linear.weight.device).long() for part in (kept.row, kept.col))
        with torch.no_grad():
            weight = linear.weight.detach().t().double()
            filled = weight.clone()
            u, v = weight.new_zeros(n_in, rank), weight.new_zeros(rank, n_out)
            for _ in range(iterations if rank else 0):
                left, scale, right = torch.linalg.svd(filled, full_matrices=False)
                u = left[:, :rank] * scale[:rank].sqrt()
                v = scale[:rank, None].sqrt() * right[:rank]
                filled[rows, columns] = (u @ v)[rows, columns]
            layer.U.copy_(u)
            layer.V.copy_(v)
            rounded = layer.U.double() @ layer.V.double()
            sparse.values.copy_((weight - rounded)[rows, columns])
        return layer.train(linear.training)

    def extra_repr(self) -> str:
        """Sizes, rank and density."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"density={self.density:.4g}"
        )


def _checked_rank(rank: Any, n_in: int, n_out: int, owner: str) -> int:
    return checks.integer(rank, "rank", owner, low=0, high=min(n_in, n_out))
