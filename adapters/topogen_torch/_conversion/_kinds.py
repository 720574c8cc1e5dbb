"""Which dense modules have a sparse namesake, how they become one, and how they come back.

A *part* is one weight of a module that may become sparse: a linear layer has one, a recurrent layer several. Weights
are turned into topogen's order here, (inputs, outputs, *kernel), and nowhere else in the conversion.

The tables are by the full name of the class, exactly: a subclass may compute something else, and a class of a library
that is not installed needs no import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from topogen import as_pattern
from topogen_torch._attention import PROJECTIONS, SparseMultiheadAttention
from topogen_torch._block import BlockSparseLinear
from topogen_torch._conv import SparseConv1d, SparseConv2d
from topogen_torch._layers import SparseLinear
from topogen_torch._low_rank import LowRankPlusSparse
from topogen_torch._recurrent import SparseGRU, SparseLSTM

__all__ = ["Choice", "Kind", "Part", "counterparts", "is_sparse", "kind_of", "namesake", "to_dense"]

Choice = sp.csr_array | list[sp.csr_array]
"""A pattern over (inputs, outputs), or one for each place of a convolution's kernel, row-major."""


class Part(NamedTuple):
    """One weight that may become sparse.

    Attributes
    ----------
    weight : Tensor
        In the module's own order.
    shape : (int, int)
        Of a pattern for it, (inputs, outputs).
    turn : callable
        Brings a tensor like `weight` into the order (inputs, outputs, *kernel); a view.
    source : str
        The parameter of the module that `weight` is, or is a piece of.
    values : str
        The parameter of the sparse layer that takes its place.
    """

    weight: Tensor
    shape: tuple[int, int]
    turn: Callable[[Tensor], Tensor]
    source: str = "weight"
    values: str = "values"


class Kind(NamedTuple):
    """How the modules of one class become sparse.

    Attributes
    ----------
    parts : callable
        Returns the module's parts by their names; "" is the only one.
    build : callable
        Takes the module and one choice for each part, and returns the sparse layer with the weights that those keep.
    obstacle : callable
        Returns why this module cannot be built, or None.
    """

    parts: Callable[[Any], dict[str, Part]]
    build: Callable[[Any, Mapping[str, Choice]], nn.Module]
    obstacle: Callable[[Any], str | None] = lambda module: None


def kind_of(module: nn.Module) -> Kind | None:
    """Return how the module becomes sparse; None if it has no sparse namesake."""
    return _KINDS.get(_full_name(type(module)))


def namesake(module: nn.Module) -> type | None:
    """Return the class above the module's own that has a sparse namesake, if there is one."""
    return next((base for base in type(module).__mro__[1:] if _full_name(base) in _KINDS), None)


def is_sparse(module: nn.Module) -> bool:
    """Whether the module is a topogen layer."""
    return _sparse_name(module) is not None


def to_dense(module: nn.Module) -> nn.Module:
    """Return the dense namesake of a topogen layer, a new module that computes the same."""
    name = _sparse_name(module)
    assert name is not None
    return _ORIGINS.get(vars(module).get(_ORIGIN, ""), _DENSE[name])(module)


def counterparts(parameter: str) -> tuple[str, ...]:
    """Return the names that a parameter which stays as it is may have in the namesake: bias_ih_l0 is ih_l0.bias."""
    return parameter, f"{parameter.removeprefix('bias_')}.bias", f"bias_{parameter.removesuffix('.bias')}"


_ORIGIN = "_topogen_origin"  # on a layer whose dense namesake cannot be told from its class
_GROUPS = "_topogen_groups"  # of the convolution that a layer was made from
_CONV1D = "transformers.pytorch_utils.Conv1D"


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _sparse_name(module: nn.Module) -> str | None:
    return next((name for base in type(module).__mro__ if (name := _full_name(base)) in _DENSE), None)


def _turned(weight: Tensor) -> Tensor:
    return weight.transpose(0, 1)


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


def _linear_parts(module: nn.Linear) -> dict[str, Part]:
    return {"": Part(module.weight, (module.in_features, module.out_features), _turned)}


def _build_linear(module: nn.Linear, choices: Mapping[str, Choice]) -> nn.Module:
    return SparseLinear.from_linear(module, choices[""])


def _conv1d_parts(module: Any) -> dict[str, Part]:
    return {"": Part(module.weight, (module.nx, module.nf), _as_it_is)}


def _build_conv1d(module: Any, choices: Mapping[str, Choice]) -> nn.Module:
    """Convert the linear layer of Hugging Face's GPT models, which holds its weight as (in, out)."""
    linear = nn.Linear(module.nx, module.nf, device="meta")
    linear.weight = nn.Parameter(module.weight.detach().t())
    linear.bias = nn.Parameter(module.bias.detach())
    layer = SparseLinear.from_linear(linear.train(module.training), choices[""])
    setattr(layer, _ORIGIN, _CONV1D)
    return layer


def _to_conv1d(layer: SparseLinear) -> nn.Module:
    from transformers.pytorch_utils import Conv1D  # installed, since the layer was made from one

    linear = layer.to_linear()
    with torch.device("meta"):
        conv = Conv1D(layer.out_features, layer.in_features)
    conv.weight = nn.Parameter(linear.weight.detach().t().contiguous(), layer.values.requires_grad)
    conv.bias = linear.bias
    return conv.train(layer.training)


def _conv_parts(module: nn.Conv1d | nn.Conv2d) -> dict[str, Part]:
    return {"": Part(module.weight, (module.in_channels, module.out_channels), _turned)}


def _build_conv(module: nn.Conv1d | nn.Conv2d, choices: Mapping[str, Choice]) -> nn.Module:
    choice = choices[""]
    pattern = [_over_all(one, module) for one in choice] if isinstance(choice, list) else _over_all(choice, module)
    layer = (SparseConv1d if isinstance(module, nn.Conv1d) else SparseConv2d).from_conv(module, pattern)
    setattr(layer, _GROUPS, module.groups)
    return layer


def _over_all(pattern: sp.csr_array, conv: nn.Conv1d | nn.Conv2d) -> sp.csr_array:
    """Return the pattern over all input channels; a grouped weight counts those of each group anew."""
    inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    if pattern.shape[0] == conv.in_channels:
        return pattern
    rows, columns = pattern.nonzero()
    entries = (np.ones(pattern.nnz, bool), (columns // outputs * inputs + rows, columns))
    return as_pattern(sp.coo_array(entries, shape=(conv.in_channels, conv.out_channels)))


def _to_conv(layer: SparseConv1d | SparseConv2d) -> nn.Module:
    conv = layer.to_conv()
    conv.weight.requires_grad_(layer.values.requires_grad)
    groups = vars(layer).get(_GROUPS, 1)
    return conv if groups == 1 else _grouped(conv, groups)


@torch.no_grad()
def _grouped(conv: Any, groups: int) -> nn.Module:
    """Return the convolution in as many groups as it was made from; as it is, if something joins two groups now."""
    inputs, outputs = conv.in_channels // groups, conv.out_channels // groups
    blocks = conv.weight.view(groups, outputs, groups, inputs, *conv.kernel_size)
    each = torch.arange(groups, device=blocks.device)
    inside = blocks[each, :, each]  # (groups, outputs, inputs, *kernel)
    if not conv.weight.is_meta and inside.count_nonzero() != blocks.count_nonzero():
        return conv
    grouped: Any = nn.utils.skip_init(
        type(conv), conv.in_channels, conv.out_channels, conv.kernel_size, stride=conv.stride, padding=conv.padding,
        dilation=conv.dilation, groups=groups, bias=conv.bias is not None, padding_mode=conv.padding_mode,
        dtype=conv.weight.dtype, device=conv.weight.device,
    )  # fmt: skip
    grouped.weight.copy_(inside.flatten(0, 1)).requires_grad_(conv.weight.requires_grad)
    if conv.bias is not None:
        grouped.bias.copy_(conv.bias)
    return grouped.train(conv.training)


def _attention_parts(module: nn.MultiheadAttention) -> dict[str, Part]:
    n = module.embed_dim
    if module.in_proj_weight is not None:
        projections = [("in_proj_weight", weight) for weight in module.in_proj_weight.chunk(3)]
    else:
        projections = [(f"{name}_proj_weight", getattr(module, f"{name}_proj_weight")) for name in "qkv"]
    projections.append(("out_proj.weight", module.out_proj.weight))
    shapes = [(n, n), (module.kdim, n), (module.vdim, n), (n, n)]
    return {
        name: Part(weight, shape, _turned, source, f"{name}_proj.values")
        for name, (source, weight), shape in zip(PROJECTIONS, projections, shapes, strict=True)
    }


def _attention_obstacle(module: nn.MultiheadAttention) -> str | None:
    if module.bias_k is not None or module.add_zero_attn:
        return "has keys that belong to no pattern (add_bias_kv or add_zero_attn)"
    return None


def _build_attention(module: nn.MultiheadAttention, choices: Mapping[str, Choice]) -> nn.Module:
    layer = SparseMultiheadAttention.from_attention(module, choices)
    if module.in_proj_bias is not None:
        for projection in (layer.q_proj, layer.k_proj, layer.v_proj):
            assert projection.bias is not None
            projection.bias.requires_grad_(module.in_proj_bias.requires_grad)
    return layer


def _to_attention(layer: SparseMultiheadAttention) -> nn.Module:
    """Fuse the projections again; what is fused is trained if any of its pieces was."""
    attention = layer.to_attention()
    pieces = [layer.q_proj, layer.k_proj, layer.v_proj]
    if attention.in_proj_weight is not None:
        attention.in_proj_weight.requires_grad_(any(piece.values.requires_grad for piece in pieces))
    else:
        for name, piece in zip("qkv", pieces, strict=True):
            getattr(attention, f"{name}_proj_weight").requires_grad_(piece.values.requires_grad)
    if attention.in_proj_bias is not None:
        trained = any(piece.bias is not None and piece.bias.requires_grad for piece in pieces)
        attention.in_proj_bias.requires_grad_(trained)
    attention.out_proj.weight.requires_grad_(layer.out_proj.values.requires_grad)
    return attention


def _recurrent_parts(module: nn.RNNBase) -> dict[str, Part]:
    weights = {name: getattr(module, name) for cell in module._all_weights for name in cell if name.startswith("w")}
    return {
        (part := name.removeprefix("weight_")): Part(
            weight, (weight.shape[1], weight.shape[0]), _turned, name, f"{part}.values"
        )
        for name, weight in weights.items()
    }


def _cells(module: nn.RNNBase, choices: Mapping[str, Choice]) -> list[Any]:
    """Return the patterns as the sparse layers take them: a tuple a layer, or a pair of tuples, one a direction."""
    names = ("ih", "hh", "hr") if module.proj_size else ("ih", "hh")
    layers = []
    for k in range(module.num_layers):
        both = [tuple(choices[f"{name}_l{k}{suffix}"] for name in names) for suffix in _directions(module)]
        layers.append(tuple(both) if module.bidirectional else both[0])
    return layers


def _directions(module: nn.RNNBase) -> tuple[str, ...]:
    return ("", "_reverse") if module.bidirectional else ("",)


def _build_lstm(module: nn.LSTM, choices: Mapping[str, Choice]) -> nn.Module:
    return SparseLSTM.from_lstm(module, _cells(module, choices))


def _build_gru(module: nn.GRU, choices: Mapping[str, Choice]) -> nn.Module:
    return SparseGRU.from_gru(module, _cells(module, choices))


def _to_recurrent(layer: SparseLSTM | SparseGRU) -> nn.Module:
    dense = layer.to_lstm() if isinstance(layer, SparseLSTM) else layer.to_gru()
    for name, weight in layer.named_parameters():
        if name.endswith(".values"):
            getattr(dense, f"weight_{name.removesuffix('.values')}").requires_grad_(weight.requires_grad)
    return dense


def _to_linear(layer: SparseLinear | BlockSparseLinear) -> nn.Module:
    linear = layer.to_linear()
    linear.weight.requires_grad_(layer.values.requires_grad)
    return linear


def _merged(layer: LowRankPlusSparse) -> nn.Module:
    """Return both parts as one linear layer; it is trained if any of them was."""
    linear = layer.to_linear()
    trained = any(weight.requires_grad for weight in (layer.sparse.values, layer.U, layer.V))
    linear.weight.requires_grad_(trained)
    if layer.bias is not None:
        linear.bias.requires_grad_(layer.bias.requires_grad)
    return linear


_KINDS: dict[str, Kind] = {
    "torch.nn.modules.linear.Linear": Kind(_linear_parts, _build_linear),
    "torch.nn.modules.conv.Conv1d": Kind(_conv_parts, _build_conv),
    "torch.nn.modules.conv.Conv2d": Kind(_conv_parts, _build_conv),
    "torch.nn.modules.activation.MultiheadAttention": Kind(_attention_parts, _build_attention, _attention_obstacle),
    "torch.nn.modules.rnn.LSTM": Kind(_recurrent_parts, _build_lstm),
    "torch.nn.modules.rnn.GRU": Kind(_recurrent_parts, _build_gru),
    _CONV1D: Kind(_conv1d_parts, _build_conv1d),
}

_DENSE: dict[str, Callable[[Any], nn.Module]] = {
    "topogen_torch._layers.SparseLinear": _to_linear,
    "topogen_torch._block.BlockSparseLinear": _to_linear,
    "topogen_torch._low_rank.LowRankPlusSparse": _merged,
    "topogen_torch._conv.SparseConv1d": _to_conv,
    "topogen_torch._conv.SparseConv2d": _to_conv,
    "topogen_torch._attention.SparseMultiheadAttention": _to_attention,
    "topogen_torch._recurrent.SparseLSTM": _to_recurrent,
    "topogen_torch._recurrent.SparseGRU": _to_recurrent,
}

_ORIGINS: dict[str, Callable[[Any], nn.Module]] = {_CONV1D: _to_conv1d}
