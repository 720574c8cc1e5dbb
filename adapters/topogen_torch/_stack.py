"""Neighbouring sparse layers that pass their activations on as the kernels want them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook  # pyright: ignore[reportPrivateUsage]

from topogen import Topology, checks, kernels
from topogen.errors import SpecError
from topogen_torch._break_even import may_be_dense
from topogen_torch._hooks import has_hooks
from topogen_torch._layers import SparseLinear
from topogen_torch._ops import Index, pack, panel_columns, sparse_columns, unpack

__all__ = ["SparseSequential", "sparse_mlp"]

# They map every number on its own, whatever the shape. Exactly these types: a subclass may do anything.
ELEMENTWISE: frozenset[type[nn.Module]] = frozenset({
    nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.LogSigmoid,
    nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh,
})  # fmt: skip

_LEAST_BATCH = 16  # samples in a vector of float32


class SparseSequential(nn.Sequential):
    """`torch.nn.Sequential` whose neighbouring `SparseLinear` layers exchange packed activations.

    The kernels want the samples of a neuron side by side, where torch has the features of a sample: a layer by itself
    rearranges its input and its output, and both their gradients. Here that happens once at each end of every *run*:
    two or more `SparseLinear` layers with nothing but elementwise activations between them. Children, state dict and
    results (to rounding) are those of `torch.nn.Sequential`.

    Notes
    -----
    Elementwise are, by exact type: CELU, ELU, GELU, Hardsigmoid, Hardswish, Hardtanh, Identity, LeakyReLU, LogSigmoid,
    Mish, ReLU, ReLU6, SELU, SiLU, Sigmoid, Softplus, Softsign and Tanh.

    Called one after the other, as `torch.nn.Sequential` does, are all children if any of them has hooks, under
    autocast or `torch.compile`, for a batch of fewer than 16 samples, or on another device than the CPU or in another
    dtype than float32 and float64. Subclasses and parametrised layers belong to no run.

    Examples
    --------
    >>> import scipy.sparse as sp, torch, topogen_torch as tt
    >>> eye = sp.eye_array(3)
    >>> model = tt.SparseSequential(tt.SparseLinear(eye), torch.nn.ReLU(), tt.SparseLinear(eye))
    >>> model(torch.ones(100, 3)).shape
    torch.Size([100, 3])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        if not self._may_pack(input):
            return super().forward(input)
        x = input
        for segment in _segments(self):
            x = _run(segment, x) if len(segment) > 1 else segment[0](x)
        return x

    def _may_pack(self, x: Tensor) -> bool:
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return False
        if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or x.ndim == 0:
            return False
        if x.shape[-1] == 0 or x.numel() < _LEAST_BATCH * x.shape[-1]:
            return False
        return not (_has_any_global_hook() or any(has_hooks(module) for module in self))


def _segments(modules: Iterable[nn.Module]) -> list[list[nn.Module]]:
    """Cut a sequence into runs, which begin and end with a sparse layer, and single modules."""
    segments: list[list[nn.Module]] = []
    activations: list[nn.Module] = []  # behind the last layer of the run that is open
    is_open = False
    for module in modules:
        if is_open and type(module) in ELEMENTWISE:
            activations.append(module)
            continue
        joins = _joins_runs(module)
        if joins and is_open:
            segments[-1] += [*activations, module]
        else:
            segments += [*([one] for one in activations), [module]]
        activations, is_open = [], joins
    return segments + [[one] for one in activations]


def _joins_runs(module: nn.Module) -> bool:
    if type(module) is not SparseLinear:
        return False
    return not may_be_dense(module.nnz, module.in_features, module.out_features)


def _run(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Apply the modules of one run to x (..., in)."""
    layers = [module for module in modules if isinstance(module, SparseLinear)]
    if x.shape[-1] != layers[0].in_features or x.dtype != layers[0].values.dtype:
        return layers[0](x)  # which says what is wrong
    rows = x.reshape(-1, x.shape[-1])
    batch = rows.shape[0]
    widest = max(max(layer.in_features, layer.out_features) for layer in layers)
    packed = pack(rows, kernels.samples_per_group(batch, widest, x.itemsize))
    for module in modules:
        if isinstance(module, SparseLinear):
            if module._by_panels:
                index = module._panel_index
                packed = panel_columns(packed, module.values, module.bias, index, module.out_features, batch=batch)
                continue
            index = Index(module.indptr, module.indices, module.indptr_t, module.indices_t, module.permutation)
            packed = sparse_columns(packed, module.values, module.bias, index, module.out_features, batch=batch)
        else:
            packed = module(packed)
    return unpack(packed, batch).view(*x.shape[:-1], layers[-1].out_features)


def sparse_mlp(
    topology: Topology,
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
    bias: bool = True,
    dtype: torch.dtype | None = None,
    device: torch.device | str | int | None = None,
) -> SparseSequential:
    """Return a multilayer perceptron with one `SparseLinear` for each layer of a topology.

    Parameters
    ----------
    topology : Topology, or a sequence of matrices
        Its patterns, in order.
    activation : callable
        Called without arguments for a module to stand between two layers. None follows the last layer: its outputs
        are logits, and a rectifier on them would cut the gradient of every negative one.
    bias, dtype, device
        As for `SparseLinear`.

    Returns
    -------
    SparseSequential
        A `torch.nn.Sequential` whose layers exchange packed activations.

    Raises
    ------
    SpecError
        If `topology` is no chain of matrices or has relays, or `activation` cannot be called.

    Examples
    --------
    >>> import topogen as tg, topogen_torch as tt
    >>> [type(module).__name__ for module in tt.sparse_mlp(tg.generate(tg.Dense(sizes=[4, 3, 2])))]
    ['SparseLinear', 'ReLU', 'SparseLinear']
    """
    if not callable(activation):
        checks.refuse("activation", "sparse_mlp", "a callable that returns a module", activation)
    chain = topology if isinstance(topology, Topology) else Topology(topology)
    n_relays = sum(row.size for row in chain.relays)
    if n_relays:
        raise SpecError(
            "The 'topology' parameter of sparse_mlp must have no relays, since the weight of a relay is 1 for good and "
            f"every SparseLinear trains all its weights. Got {n_relays} relays."
        )
    modules: list[nn.Module] = []
    for pattern in chain:
        if modules:
            modules.append(activation())
        modules.append(SparseLinear(pattern, bias=bias, dtype=dtype, device=device))
    return SparseSequential(*modules)
