"""Multi-head attention whose four projections are sparse, and whose mask may be a topology."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own abbreviation

from topogen import as_pattern, checks
from topogen.errors import SpecError
from topogen_torch import init
from topogen_torch._attention_mask import MaskedAttention, mask_pattern
from topogen_torch._layers import SparseLinear
from topogen_torch._wrapped import as_linear

__all__ = ["SparseMultiheadAttention"]

PROJECTIONS: tuple[str, ...] = ("q", "k", "v", "out")
_NAME = "SparseMultiheadAttention"
_announced: set[str] = set()


class SparseMultiheadAttention(nn.Module):
    r"""Multi-head attention with sparse projections: `torch.nn.MultiheadAttention`, one weight for each connection.

    .. math:: y = \mathrm{concat}_h\bigl(\mathrm{softmax}(q_h k_h^T / \sqrt{E_h} + m)\, v_h\bigr) W_{out} + b_{out}

    with :math:`q = x W_q + b_q`, and k and v likewise; head h takes the h-th run of :math:`E_h` = embed_dim / num_heads
    columns of q, k and v.

    Parameters
    ----------
    patterns : matrix, or mapping of "q", "k", "v" and "out" to matrices
        Rows are inputs, columns are outputs. "q" and "out" have shape (embed_dim, embed_dim), "k" (kdim, embed_dim)
        and "v" (vdim, embed_dim). One matrix alone serves all four.
    num_heads : int
        A divisor of embed_dim.
    dropout : float
        Probability that an attention weight is dropped in training.
    bias : bool
        Whether the four projections add learned biases.
    batch_first : bool
        Whether inputs and output are (batch, sequence, feature) rather than (sequence, batch, feature).
    mask : Topology of one layer, or matrix, shape (keys, queries), optional
        Query j attends to key i only where i -> j is a connection; see `attention_mask`. It fixes both sequence
        lengths. Only the blocks that hold a connection are computed.
    block_size : int
        Keys and queries in a block of `mask`.
    dtype, device
        As for `SparseLinear`.

    Attributes
    ----------
    q_proj, k_proj, v_proj, out_proj : SparseLinear
    mask : module or None
    embed_dim, kdim, vdim, num_heads, head_dim : int

    Raises
    ------
    SpecError
        If a pattern has a shape that does not fit, or an argument is out of range.

    Notes
    -----
    Arguments and outputs of `forward` are those of `torch.nn.MultiheadAttention`, masks included; a boolean mask is
    True where attention is *forbidden*, as there. With ``need_weights=False`` the attention itself is
    `torch.nn.functional.scaled_dot_product_attention`.

    With `mask`, ``need_weights=False`` and no `attn_mask`, time and memory follow the blocks that hold a connection.
    The weights themselves, and an `attn_mask`, are dense matrices: with one of them, all queries times all keys are
    computed, and a warning says so once. A query that may attend to no key of `mask` yields ``out_proj.bias``.

    Blocks pay where connections keep together: a band of 64 among 1024 keys trains 4.7 times as fast as the same dense
    mask in torch's fused attention, a causal mask as fast, and connections scattered over all blocks (``repr`` counts
    them) 2.3 times slower; such a mask is better an `attn_mask`. (One core of a Zen 5 EPYC, float32, November 2026.)

    `add_bias_kv` and `add_zero_attn` do not exist here: they are keys that belong to no pattern.

    In a `torch.nn.TransformerEncoderLayer`, ``encoder_layer.self_attn = SparseMultiheadAttention(...)`` works in
    training and evaluation. PyTorch's fused inference kernel ("fast path") reads dense weights; the layer says that it
    has none (`in_proj_bias` is None), so that it is never taken. A `torch.nn.TransformerEncoder` decides on nested
    tensors when it is built: build it with ``enable_nested_tensor=False`` if its attention is replaced afterwards.

    Weights start as `init.xavier_uniform_` draws them, biases at 0.

    References
    ----------
    Vaswani et al., "Attention Is All You Need", arXiv 1706.03762, section 3.2.2.

    Examples
    --------
    >>> import numpy as np, torch, topogen as tg, topogen_torch as tt
    >>> net = tg.generate(tg.RandomBiregular(sizes=[16, 16], fan_in=4), rng=0)
    >>> attention = tt.SparseMultiheadAttention(net[0], 2, batch_first=True, mask=np.triu(np.ones((5, 5))))
    >>> x = torch.randn(3, 5, 16)
    >>> attention(x, x, x, need_weights=False)[0].shape
    torch.Size([3, 5, 16])
    """

    in_proj_bias = None  # what nn.TransformerEncoderLayer asks before it takes its fast path
    _qkv_same_embed_dim = False
    bias_k = bias_v = None
    add_zero_attn = False
    mask: MaskedAttention | None

    def __init__(
        self,
        patterns: Any,
        num_heads: int,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        batch_first: bool = False,
        mask: Any = None,
        block_size: int = 64,
        dtype: torch.dtype | None = None,
        device: torch.device | str | int | None = None,
    ) -> None:
        super().__init__()
        chosen = _chosen(patterns, _NAME)
        made = {name: SparseLinear(chosen[name], bias=bias, dtype=dtype, device=device) for name in PROJECTIONS}
        self._build(made, num_heads, dropout, batch_first)
        block_size = checks.integer(block_size, "block_size", _NAME, low=1)
        self.mask = None if mask is None else MaskedAttention(mask_pattern(mask, "mask", _NAME), block_size).to(device)
        self.reset_parameters()

    def _build(
        self, projections: Mapping[str, SparseLinear], num_heads: int, dropout: float, batch_first: bool
    ) -> None:
        q, k, v, out = (projections[name] for name in PROJECTIONS)
        self.embed_dim, self.kdim, self.vdim = q.in_features, k.in_features, v.in_features
        self.num_heads = checks.integer(num_heads, "num_heads", _NAME, low=1)
        if self.embed_dim % self.num_heads:
            divisors = [n for n in range(1, self.embed_dim + 1) if self.embed_dim % n == 0]
            nearest = min(divisors, key=lambda n: (abs(n - self.num_heads), n))
            checks.refuse(
                "num_heads", _NAME, f"a divisor of embed_dim = {self.embed_dim}", num_heads,
                hint=f"The nearest is {nearest}.",
            )  # fmt: skip
        self.head_dim = self.embed_dim // self.num_heads
        self.dropout = checks.real(dropout, "dropout", _NAME, high=1.0)
        self.batch_first = checks.instance(batch_first, "batch_first", _NAME, bool)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = q, k, v, out
        self.mask = None

    def reset_parameters(self) -> None:
        """Draw new weights with `init.xavier_uniform_` and set the biases to 0."""
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            init.xavier_uniform_(projection)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    def __getattr__(self, name: str) -> Any:
        if name == "in_proj_weight":
            raise AttributeError(
                f"{_NAME} has no dense 'in_proj_weight'. A TransformerEncoder reads it for nested tensors: build it "
                "with enable_nested_tensor=False."
            )
        return super().__getattr__(name)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from `query` to `key` and return the output, and the attention weights where they are needed.

        Parameters
        ----------
        query : Tensor, shape (L, N, embed_dim), (N, L, embed_dim) with `batch_first`, or (L, embed_dim)
        key : Tensor, shape (S, N, kdim), (N, S, kdim) or (S, kdim)
        value : Tensor, shape (S, N, vdim), (N, S, vdim) or (S, vdim)
        key_padding_mask : Tensor, shape (N, S), or (S,) without a batch, optional
            bool: True where a key is ignored. Float: added to the scores.
        need_weights : bool
            Whether to return the attention weights too, which costs their memory and torch's fused attention.
        attn_mask : Tensor, shape (L, S) or (N * num_heads, L, S), optional
            bool: True where attention is forbidden. Float: added to the scores.
        average_attn_weights : bool
            Whether the weights are averaged over the heads.
        is_causal : bool
            A hint that `attn_mask`, which must be given, is the causal mask.

        Returns
        -------
        output : Tensor, shape of `query`
        weights : Tensor or None
            (N, L, S), or (N, num_heads, L, S) with `average_attn_weights` off; without N for inputs without a batch.
        """
        batched = self._check_inputs(query, key, value, key_padding_mask, attn_mask)
        if is_causal and attn_mask is None:
            raise SpecError(f"The 'attn_mask' of {_NAME} must be given with is_causal=True, which is a hint about it.")
        axis = 0 if self.batch_first or not batched else 1
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        projected = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        q, k, v = ((y.transpose(0, 1) if axis else y).unflatten(2, (self.num_heads, -1)) for y in projected)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))  # (N, H, T, E)

        padding = None if key_padding_mask is None else _added(key_padding_mask, q.dtype)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if self.mask is not None and attn_mask is None and not need_weights:
            y = self.mask(q, k, v, padding, dropout)
        elif need_weights:
            weights = _weights(q, k, self._scores_mask(attn_mask, padding, q), self._forbidden())
            weights = F.dropout(weights, dropout)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            causal = is_causal and padding is None and self.mask is None
            added = None if causal else self._scores_mask(attn_mask, padding, q)
            forbidden = self._forbidden()
            if forbidden is not None:
                added = q.new_zeros(()) if added is None else added
                added = added.masked_fill(forbidden, -torch.inf)
            y = F.scaled_dot_product_attention(q, k, v, added, dropout, causal)

        y = y.transpose(1, 2).flatten(2)  # (N, L, embed_dim)
        y = self.out_proj(y.transpose(0, 1) if axis else y)
        if batched:
            return y, weights
        return y.squeeze(0), None if weights is None else weights.squeeze(0)

    def _scores_mask(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """Return what is added to the scores (N, H, L, S), in a shape that broadcasts."""
        if attn_mask is not None:
            attn_mask = _added(attn_mask, q.dtype)
            if attn_mask.ndim == 3:
                attn_mask = attn_mask.unflatten(0, (q.shape[0], self.num_heads))
        if padding is None:
            return attn_mask
        padding = padding[:, None, None]
        return padding if attn_mask is None else attn_mask + padding

    def _forbidden(self) -> Tensor | None:
        """Return the pairs that `mask` forbids as a dense matrix (L, S), and say once what that costs."""
        if self.mask is None:
            return None
        if "dense mask" not in _announced and not torch.compiler.is_compiling():
            _announced.add("dense mask")
            warnings.warn(
                f"{_NAME} computes all {self.mask.n_queries} x {self.mask.n_keys} pairs of its mask, of which "
                f"{self.mask.nnz} are connections: weights and an attn_mask are dense. Only the mask's blocks are "
                "computed with need_weights=False and no attn_mask.",
                UserWarning,
                stacklevel=4,
            )
        return ~self.mask.allowed()

    def _check_inputs(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None
    ) -> bool:
        """Refuse in one sentence what does not fit; return whether there is a batch dimension."""
        if query.is_nested or key.is_nested or value.is_nested:
            raise SpecError(f"The inputs of {_NAME} must be dense tensors, padded and masked. Got a nested tensor.")
        batched = query.ndim == 3
        if query.ndim not in (2, 3) or query.shape[-1] != self.embed_dim:
            raise SpecError(f"The 'query' of {_NAME} must have 2 or 3 dimensions, the last of size {self.embed_dim}. "
                            f"Got shape {tuple(query.shape)}.")  # fmt: skip
        axis = 0 if self.batch_first or not batched else 1
        n_batch, n_queries = (query.shape[axis], query.shape[1 - axis]) if batched else (1, query.shape[0])
        n_keys = key.shape[1 - axis if batched else 0] if key.ndim else 0
        lead = ((n_batch, n_keys) if axis == 0 else (n_keys, n_batch)) if batched else (n_keys,)
        masks = {(n_queries, n_keys), (n_batch * self.num_heads, n_queries, n_keys)}
        for name, tensor, shapes in (
            ("key", key, {(*lead, self.kdim)}),
            ("value", value, {(*lead, self.vdim)}),
            ("key_padding_mask", key_padding_mask, {(n_batch, n_keys) if batched else (n_keys,)}),
            ("attn_mask", attn_mask, masks),
        ):
            if tensor is not None and tuple(tensor.shape) not in shapes:
                wanted = " or ".join(str(shape) for shape in sorted(shapes, key=len))
                raise SpecError(f"The '{name}' of {_NAME} must have shape {wanted}. Got {tuple(tensor.shape)}.")
        for name, mask in (("key_padding_mask", key_padding_mask), ("attn_mask", attn_mask)):
            if mask is not None and mask.dtype != torch.bool and not mask.is_floating_point():
                raise SpecError(f"The '{name}' of {_NAME} must be bool or float. Got {mask.dtype}.")
        if self.mask is not None and (self.mask.n_keys, self.mask.n_queries) != (n_keys, n_queries):
            raise SpecError(
                f"The mask of {_NAME} joins {self.mask.n_keys} keys to {self.mask.n_queries} queries. Got {n_keys} "
                f"keys and {n_queries} queries."
            )
        return batched

    def to_attention(self) -> nn.MultiheadAttention:
        """Return a `torch.nn.MultiheadAttention` that computes the same, with zeros where there is no connection.

        Raises
        ------
        SpecError
            If the layer has a mask, which there is an argument of each call.
        """
        if self.mask is not None:
            raise SpecError(
                f"to_attention needs a {_NAME} without a mask, since nn.MultiheadAttention takes it in each call as "
                f"attn_mask. Got one of {self.mask.n_keys} keys and {self.mask.n_queries} queries."
            )
        values = self.q_proj.values
        attention: Any = nn.utils.skip_init(
            nn.MultiheadAttention, self.embed_dim, self.num_heads, dropout=self.dropout,
            bias=self.q_proj.bias is not None, kdim=self.kdim, vdim=self.vdim, batch_first=self.batch_first,
            dtype=values.dtype, device=values.device,
        )  # fmt: skip
        with torch.no_grad():
            for name, (weight, bias) in _dense_parts(attention).items():
                linear = getattr(self, f"{name}_proj").to_linear()
                weight.copy_(linear.weight)
                if bias is not None:
                    bias.copy_(linear.bias)
        return attention.train(self.training)

    @classmethod
    def from_attention(cls, attention: nn.MultiheadAttention, patterns: Any) -> Self:
        """Return a layer with those weights of `attention` that `patterns`, as in the constructor, keep.

        Raises
        ------
        SpecError
            If `attention` is no `torch.nn.MultiheadAttention`, has learned or zero keys beside those of its input
            (`add_bias_kv`, `add_zero_attn`), or a pattern has another shape than its projection.
        """
        checks.instance(attention, "attention", "from_attention", nn.MultiheadAttention)
        if attention.bias_k is not None or attention.add_zero_attn:
            option = "add_bias_kv" if attention.bias_k is not None else "add_zero_attn"
            raise SpecError(f"The 'attention' parameter of from_attention must be without {option}=True.")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        chosen, made = _chosen(patterns, "from_attention"), {}
        for name, (weight, bias) in _dense_parts(attention).items():
            made[name] = SparseLinear.from_linear(as_linear(weight, bias), chosen[name])
        layer._build(made, attention.num_heads, attention.dropout, attention.batch_first)
        return layer.train(attention.training)

    def extra_repr(self) -> str:
        """Sizes and options."""
        shown = f"embed_dim={self.embed_dim}, num_heads={self.num_heads}"
        if (self.kdim, self.vdim) != (self.embed_dim, self.embed_dim):
            shown += f", kdim={self.kdim}, vdim={self.vdim}"
        return f"{shown}, dropout={self.dropout:g}, batch_first={self.batch_first}"


def _chosen(patterns: Any, owner: str) -> dict[str, Any]:
    """Return one pattern for each projection, of shapes that fit together."""
    if isinstance(patterns, Mapping):
        if set(patterns) != set(PROJECTIONS):
            checks.refuse(
                "patterns", owner, "a matrix or a mapping of 'q', 'k', 'v' and 'out'", sorted(patterns, key=str)
            )
        chosen = {name: as_pattern(patterns[name], name=f"patterns['{name}']") for name in PROJECTIONS}
    else:
        chosen = dict.fromkeys(PROJECTIONS, as_pattern(patterns, name="patterns"))
    embed_dim = chosen["q"].shape[1]
    for name, pattern in chosen.items():
        square = name in ("q", "out")
        if pattern.shape[1] != embed_dim or (square and pattern.shape[0] != embed_dim):
            wanted = f"({embed_dim}, {embed_dim})" if square else f"({name}dim, {embed_dim})"
            checks.refuse(f"patterns['{name}']", owner, f"a pattern of shape {wanted}", pattern.shape)
    return chosen


def _dense_parts(attention: nn.MultiheadAttention) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Return weight (out, in) and bias of each projection, as views of what torch stores fused."""
    if attention.in_proj_weight is not None:
        weights = attention.in_proj_weight.chunk(3)
    else:
        weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
    biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
    out: Any = attention.out_proj
    return dict(zip(PROJECTIONS, zip((*weights, out.weight), (*biases, out.bias), strict=True), strict=True))


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as what is added to the scores; True forbids."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -torch.inf)
    return mask.to(dtype)


def _weights(q: Tensor, k: Tensor, added: Tensor | None, forbidden: Tensor | None) -> Tensor:
    """Return the attention weights (N, H, L, S). A query that the pattern leaves without a key has weights 0."""
    scores = (q * math.sqrt(1 / q.shape[-1])) @ k.transpose(-2, -1)
    if added is not None:
        scores = scores + added
    if forbidden is None:
        return scores.softmax(-1)
    alone = forbidden.all(-1, keepdim=True)
    return scores.masked_fill(forbidden & ~alone, -torch.inf).softmax(-1).masked_fill(alone, 0)
