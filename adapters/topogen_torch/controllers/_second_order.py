"""Second derivatives, exactly: for the time of a call sparse layers compute by dense products, as torch differentiates.

The kernels of the sparse layers yield first derivatives only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import conv1d, conv2d, pad

from topogen_torch._block import BlockSparseLinear
from topogen_torch._conv import SparseConv1d, SparseConv2d
from topogen_torch._layers import SparseLinear
from topogen_torch._ops import Index, dense_linear, to_dense
from topogen_torch._ops._blocks import dense_block_linear
from topogen_torch._ops._convolution import dense_kernel
from topogen_torch._recurrent import SparseGRU, SparseLSTM

__all__ = ["twice_differentiable"]


@contextmanager
def twice_differentiable(model: nn.Module) -> Generator[None]:
    """Let the results of the model's sparse layers be differentiable any number of times, in their values and inputs.

    A hook gives each layer the result of a dense product in place of its own, which takes memory for the dense matrices
    of all layers as long as the graph lives. Layers with hooks pack no activations.
    """
    with ExitStack() as stack:
        for module in model.modules():
            for kind, dense in _DENSE.items():
                if isinstance(module, kind):
                    handle = module.register_forward_hook(_instead(dense), with_kwargs=True)
                    stack.callback(handle.remove)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # fused attention has a first derivative only
        if "torch._dynamo" in sys.modules:  # what is compiled has a first derivative only, and does not see the hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _instead(dense: Callable[..., Any]) -> Callable[..., Any]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
        return dense(module, *arguments, **options)

    return hook


def _linear(layer: SparseLinear, x: Tensor) -> Tensor:
    return dense_linear(x, layer.values, layer.bias, layer.indptr, layer.indices, layer.out_features)


def _blocks(layer: BlockSparseLinear, x: Tensor) -> Tensor:
    return dense_block_linear(x, layer.values, layer.bias, layer.indptr, layer.indices, layer.out_features)


def _convolution(layer: SparseConv1d | SparseConv2d, x: Tensor) -> Tensor:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = pad(x, layer._torch_padding(layer._around()), mode=mode)
    size = layer._window((0, 0) * layer.dimensions).size
    values = layer.values if layer._listed else layer.values.reshape(-1, *size)
    index = Index(layer.indptr, layer.indices, layer.indptr_t, layer.indices_t, layer.permutation)
    kernel = dense_kernel(values, index, size, layer.out_channels).reshape(
        layer.out_channels, layer.in_channels, *layer.kernel_size
    )
    convolve: Any = conv1d if layer.dimensions == 1 else conv2d
    return convolve(x, kernel, layer.bias, stride=layer.stride, dilation=layer.dilation)


def _recurrent(layer: SparseLSTM | SparseGRU, *arguments: Any, **options: Any) -> Any:
    weights: dict[str, Tensor] = {}
    for name, part in layer.named_children():
        assert isinstance(part, SparseLinear)
        weights[f"weight_{name}"] = to_dense(part.values, part.indptr, part.indices, part.out_features).t()
        weights |= {} if part.bias is None else {f"bias_{name}": part.bias}
    with _without_onednn():  # whose recurrent layers have a first derivative only
        return torch.func.functional_call(layer._to_dense(), weights, arguments, options)


@contextmanager
def _without_onednn() -> Generator[None]:
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


_DENSE: dict[type[nn.Module], Callable[..., Any]] = {
    SparseLinear: _linear,
    BlockSparseLinear: _blocks,
    SparseConv1d: _convolution,
    SparseConv2d: _convolution,
    SparseLSTM: _recurrent,
    SparseGRU: _recurrent,
}
