"""Layers that store and compute only the connections that exist."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from topogen import as_pattern, checks
from topogen.errors import SpecError
from topogen_torch import init
from topogen_torch._gpu._choose import on_card
from topogen_torch._layout import derived_index, linear_index
from topogen_torch._ops import Index, PanelIndex, panel_linear, sparse_linear, to_dense
from topogen_torch._patterned import Patterned

__all__ = ["SparseLinear"]


class SparseLinear(Patterned):
    r"""Linear layer with one weight for each connection of a pattern: :math:`y = x W + b`.

    W has shape (in, out), rows = inputs, as every topogen matrix; `torch.nn.Linear` stores the transpose, (out, in).
    `from_linear` and `to_linear` are the places where it is turned.

    Parameters
    ----------
    pattern : scipy sparse array or matrix, shape (in, out)
        A connection i -> j wherever the entry is not zero. No connections at all is legal.
    bias : bool
        Whether to add a learned bias.
    dtype : torch.dtype, optional
        float32 and float64 are computed as they are; float16 and bfloat16 in float32, rounded once.
    device : torch.device, optional
        On ``meta`` only the values and the bias are: the index buffers always hold data.

    Attributes
    ----------
    values : Parameter, shape (nnz,)
        The weights in value ordering: row-major over (input, output). The same object for the layer's whole life.
    bias : Parameter, shape (out,), or None
    in_features, out_features, nnz : int
    density : float
        Stored connections / possible connections.
    pattern : csr_array, shape (in, out), dtype bool
        A copy, in canonical form.

    Raises
    ------
    SpecError
        If `pattern` is no matrix, holds NaN or needs more than int32 indices, or `dtype` is no float type.

    Notes
    -----
    Weights start as `init.kaiming_uniform_` draws them, for the fan-in that each output really has and a rectifier
    behind the layer, so that activations keep their size at any density; `torch.nn.Linear` starts them smaller by a
    factor sqrt(6). Biases start at 0. An output neuron with no connection gives its bias alone, and learns it.

    Memory: nnz values, 12 nnz bytes of indices, and no array of size in * out, forward or backward. A full pattern
    multiplies densely, since its values are the dense matrix. Where neurons share most of their connections (as in
    RadiX-Nets, circulants, bands, Kronecker products), the layer sees it and computes four of them at a time: faster,
    and with 7 to 10 nnz bytes of indices.

    Loading a state dict restores pattern and values together, whatever their number: `values` is resized in place and
    its gradient dropped. A state that cannot belong to the layer (other sizes, indices that are not canonical or do not
    match their hash, another number of values, a key that is missing) is refused and leaves the whole layer as it was.

    Examples
    --------
    >>> import scipy.sparse as sp, torch, topogen_torch as tt
    >>> layer = tt.SparseLinear(sp.eye_array(3), bias=False)
    >>> _ = layer.values.data.copy_(torch.tensor([1.0, 2.0, 3.0]))
    >>> layer(torch.ones(2, 3)).tolist()
    [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
    """

    indptr_t: Tensor
    indices_t: Tensor
    permutation: Tensor
    panels: Tensor
    panels_t: Tensor

    _may_use_panels = True

    def __init__(
        self,
        pattern: Any,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | int | None = None,
    ) -> None:
        super().__init__()
        self._build(as_pattern(pattern), bias, dtype, device)
        self.reset_parameters()

    def _build(self, pattern: sp.csr_array, bias: bool, dtype: torch.dtype | None, device: Any) -> None:
        """Allocate everything; parameters are left uninitialised."""
        checks.instance(bias, "bias", "SparseLinear", bool)
        self.in_features, self.out_features = pattern.shape
        self._allocate(pattern, bias=self.out_features if bias else None, dtype=dtype, device=device)

    def _derived(self, stored: sp.csr_array) -> dict[str, Tensor]:
        may_use_panels = self._may_use_panels and not on_card(self.values.device)
        return linear_index(stored) if may_use_panels else derived_index(stored)

    @property
    def _by_panels(self) -> bool:
        """Whether outputs share their connections, so that the derived buffers are plans."""
        return "panels" in self._derived_names

    @property
    def _panel_index(self) -> PanelIndex:
        return PanelIndex(self.indptr, self.indices, self.panels, self.panels_t)

    def _give_up_panels(self) -> None:
        """Keep the csc index, whatever the pattern, for a module that reads it."""
        self._may_use_panels = False
        if self._by_panels:
            self._install(*self._buffers_of(self._stored_pattern))

    def reset_parameters(self) -> None:
        """Draw new weights with `init.kaiming_uniform_` and set the bias to 0."""
        init.kaiming_uniform_(self)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def pattern(self) -> sp.csr_array:
        """The connections: a copy, canonical, bool, shape (in, out)."""
        return self._stored_pattern

    def fan_in(self) -> Tensor:
        """Return the connections of each output, int64, shape (out,)."""
        return torch.bincount(self.indices, minlength=self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        if self._by_panels:
            return panel_linear(x, self.values, self.bias, self._panel_index, self.out_features)
        buffers = self._buffers  # attribute access to a module costs a microsecond each
        index = Index._make(buffers[name] for name in Index._fields)
        return sparse_linear(x, self.values, self.bias, index, self.out_features)  # pyright: ignore[reportArgumentType]

    def to_scipy(self) -> sp.csr_array:
        """Return the weights as a (in, out) csr_array; every stored connection is kept, zeros included.

        float32 or float64; float16 and bfloat16, which scipy cannot store, become float32.
        """
        values = self.values.detach().cpu()
        values = values if values.dtype in (torch.float32, torch.float64) else values.float()
        pattern = self.pattern
        weights = sp.csr_array((values.numpy().copy(), pattern.indices, pattern.indptr), shape=pattern.shape)
        weights.has_canonical_format = True
        return weights

    def to_linear(self) -> nn.Linear:
        """Return a `torch.nn.Linear` that computes the same, with zeros where there is no connection."""
        linear = nn.utils.skip_init(
            nn.Linear, self.in_features, self.out_features, bias=self.bias is not None,
            dtype=self.values.dtype, device=self.values.device,
        )  # fmt: skip
        assert isinstance(linear, nn.Linear)
        with torch.no_grad():
            linear.weight.copy_(to_dense(self.values, self.indptr, self.indices, self.out_features).t())
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.train(self.training)

    @classmethod
    def from_linear(cls, linear: nn.Linear, pattern: Any) -> Self:
        """Return a layer with those weights of `linear` that `pattern`, shape (in, out), keeps.

        Raises
        ------
        SpecError
            If `linear` is no `torch.nn.Linear` or `pattern` has another shape.
        """
        checks.instance(linear, "linear", "from_linear", nn.Linear)
        pattern = as_pattern(pattern)
        if pattern.shape != (linear.in_features, linear.out_features):
            raise SpecError(
                "The 'pattern' parameter of from_linear must have the shape (inputs, outputs) of the layer, "
                f"({linear.in_features}, {linear.out_features}). Got {pattern.shape}."
            )
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._build(pattern, linear.bias is not None, linear.weight.dtype, linear.weight.device)
        with torch.no_grad():
            rows, columns = (torch.from_numpy(part.astype(np.int64)) for part in pattern.nonzero())
            layer.values.copy_(linear.weight[columns, rows])
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
        return layer.train(linear.training)

    def extra_repr(self) -> str:
        """Sizes, connections and density."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, nnz={self.nnz}, "
            f"density={self.density:.4g}, bias={self.bias is not None}"
        )
