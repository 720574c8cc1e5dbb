"""Convolutions that store and compute only the connections that exist."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from topogen import as_pattern, checks
from topogen.errors import SpecError
from topogen_torch._channel_blocks import ChannelBlocks, block_convolution, channel_buffers, channel_facts
from topogen_torch._gpu._choose import on_card
from topogen_torch._layout import derived_index, is_full
from topogen_torch._ops import Index
from topogen_torch._ops._convolution import Window, dense_kernel, sparse_convolution
from topogen_torch._patterned import Patterned

__all__ = ["SparseConv1d", "SparseConv2d"]

Size = int | Sequence[int]
Padding = Size | Literal["same", "valid"]

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _SparseConv(Patterned):
    """What both convolutions share; a one-dimensional one is computed as images of one row."""

    dimensions: ClassVar[int]
    _dense_kind: ClassVar[type[nn.Conv1d] | type[nn.Conv2d]]

    indptr_t: Tensor
    indices_t: Tensor
    permutation: Tensor

    def __init__(
        self,
        pattern: Any,
        kernel_size: Size,
        *,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        dtype: torch.dtype | None = None,
        device: torch.device | str | int | None = None,
    ) -> None:
        super().__init__()
        self._build(pattern, kernel_size, stride, padding, dilation, bias, padding_mode, dtype, device)
        self.reset_parameters()

    def _build(
        self, pattern: Any, kernel_size: Size, stride: Size, padding: Padding, dilation: Size, bias: bool,
        padding_mode: str, dtype: torch.dtype | None, device: Any,
    ) -> None:  # fmt: skip
        """Check and allocate everything; parameters are left uninitialised."""
        owner = type(self).__name__
        self.kernel_size = self._numbers(kernel_size, "kernel_size", low=1)
        self.stride = self._numbers(stride, "stride", low=1)
        self.dilation = self._numbers(dilation, "dilation", low=1)
        self.padding = padding if isinstance(padding, str) else self._numbers(padding, "padding", low=0)
        if isinstance(padding, str):
            checks.one_of(padding, "padding", owner, ("same", "valid"))
            if padding == "same" and max(self.stride) > 1:
                checks.refuse("padding", owner, "a number where the stride is not 1", padding)
        self.padding_mode = checks.one_of(padding_mode, "padding_mode", owner, _PADDING_MODES)
        checks.instance(bias, "bias", owner, bool)
        stored = self._stored(pattern)
        self.out_channels = stored.shape[1]
        self.in_channels = stored.shape[0] // (self._offsets if self._listed else 1)
        self._allocate(
            stored, unit=() if self._listed else self.kernel_size, bias=self.out_channels if bias else None,
            dtype=dtype, device=device,
        )  # fmt: skip

    def _stored(self, pattern: Any) -> sp.csr_array:
        """Return the stored pattern: the one over channels, or all of a list on top of each other."""
        owner = type(self).__name__
        self._listed = isinstance(pattern, (list, tuple))
        if not self._listed:
            return as_pattern(pattern)
        if len(pattern) != self._offsets:
            raise SpecError(
                f"The 'pattern' parameter of {owner} must be one matrix, or a list of {self._offsets}, one for each "
                f"offset of the {self._shown(self.kernel_size)} kernel. Got a list of {len(pattern)}."
            )
        patterns = [as_pattern(one, name=f"pattern[{k}]") for k, one in enumerate(pattern)]
        for k, one in enumerate(patterns):
            if one.shape != patterns[0].shape:
                raise SpecError(
                    f"The 'pattern' parameter of {owner} must hold matrices of one shape, "
                    f"{patterns[0].shape} as the first. Got {one.shape} at {k}."
                )
        return as_pattern(sp.vstack(patterns, format="csr"))

    def _numbers(self, value: Any, name: str, *, low: int) -> tuple[int, ...]:
        owner, count = type(self).__name__, self.dimensions
        if not isinstance(value, Sequence):
            return (checks.integer(value, name, owner, low=low),) * count
        if len(value) != count:
            checks.refuse(name, owner, f"an int >= {low} or a sequence of {count}", value)
        return checks.integers(value, name, owner, low=low)

    @staticmethod
    def _shown(sizes: Sequence[int]) -> str:
        return " x ".join(map(str, sizes))

    @property
    def _offsets(self) -> int:
        return math.prod(self.kernel_size)

    def _derived(self, stored: sp.csr_array) -> dict[str, Tensor]:
        """Order the connections of each output by channel, then offset: offsets of a channel read the same samples.

        A card has kernels for blocks of channels alone.
        """
        if on_card(self.values.device) and not is_full(stored):
            return derived_index(stored) | channel_buffers(stored, self._offsets, self._listed, self.values)
        if not self._listed or is_full(stored):
            return derived_index(stored)
        channel_first = np.arange(stored.shape[0], dtype=np.int32).reshape(self._offsets, -1).T.ravel()
        places = sp.csr_array((np.arange(stored.nnz), stored.indices, stored.indptr), shape=stored.shape)
        moved = sp.csc_array(places[channel_first])
        parts = (moved.indptr, channel_first[moved.indices], moved.data)
        names = ("indptr_t", "indices_t", "permutation")
        return {name: torch.from_numpy(part.astype(np.int32)) for name, part in zip(names, parts, strict=True)}

    def _install(self, index: dict[str, Tensor], derived: dict[str, Tensor]) -> None:
        super()._install(index, derived)
        self._channel_facts = channel_facts(derived)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new weights uniformly from [-a, a], a = sqrt(6 / fan-in) of the output channel; set the bias to 0.

        That is He's initialisation, for the weights that each output channel really has.
        """
        bound = (6 / self.fan_in()).sqrt()[self.indices].to(self.values)
        self.values.uniform_(-1, 1).mul_(bound.view(-1, *(1,) * len(self._unit)))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def pattern(self) -> sp.csr_array | list[sp.csr_array]:
        """A copy of what was given, canonical, bool: the pattern over channels, or the list for all offsets."""
        stored = self._stored_pattern
        if not self._listed:
            return stored
        return [stored[k * self.in_channels : (k + 1) * self.in_channels] for k in range(self._offsets)]

    def fan_in(self) -> Tensor:
        """Return the weights of each output channel, int64, shape (out,)."""
        return torch.bincount(self.indices, minlength=self.out_channels) * math.prod(self._unit)

    def _around(self) -> tuple[int, ...]:
        """Return the padding before and after each axis, in order."""
        if self.padding == "valid":
            return (0, 0) * self.dimensions
        if self.padding == "same":
            totals = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True)]
            return tuple(side for total in totals for side in (total // 2, total - total // 2))
        return tuple(int(side) for side in self.padding for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in, *sizes) or (in, *sizes) to (batch, out, *sizes') or (out, *sizes')."""
        owner, n = type(self).__name__, self.dimensions
        if x.ndim not in (n + 1, n + 2) or x.shape[-n - 1] != self.in_channels:
            sizes = ", ".join(("height", "width") if n == 2 else ("length",))
            raise SpecError(
                f"The input of {owner} must have shape (batch, {self.in_channels}, {sizes}) or "
                f"({self.in_channels}, {sizes}). Got {tuple(x.shape)}."
            )
        around = self._around()
        least = [
            max(1, d * (k - 1) + 1 - before - after)
            for k, d, before, after in zip(self.kernel_size, self.dilation, around[::2], around[1::2], strict=True)
        ]
        if any(size < needed for size, needed in zip(x.shape[-n:], least, strict=True)):
            raise SpecError(
                f"The input of {owner} must be at least {self._shown(least)}, or no output is left. "
                f"Got {self._shown(x.shape[-n:])}."
            )
        if self.padding_mode != "zeros" and any(around):
            x = nn.functional.pad(x, self._torch_padding(around), mode=self.padding_mode)
            around = (0, 0) * n
        images = x if x.ndim == n + 2 else x.unsqueeze(0)
        index = Index(self.indptr, self.indices, self.indptr_t, self.indices_t, self.permutation)
        values = self.values
        if n == 1:
            images = images.unsqueeze(2)
            values = values if self._listed else values.unsqueeze(1)
        window = self._window(around)
        if self._channel_facts:
            blocks = ChannelBlocks.of(self._buffers, self._channel_facts)
            y = block_convolution(images, values, self.bias, blocks, window, owner)
        else:
            y = sparse_convolution(images, values, self.bias, index, window, self.out_channels, owner)
        y = y.squeeze(2) if n == 1 else y
        return y if x.ndim == n + 2 else y.squeeze(0)

    @staticmethod
    def _torch_padding(around: tuple[int, ...]) -> list[int]:
        """Return the padding as `torch.nn.functional.pad` takes it: last axis first."""
        return [side for before in range(len(around) - 2, -1, -2) for side in around[before : before + 2]]

    def _window(self, around: tuple[int, ...]) -> Window:
        fill = (1,) * (2 - self.dimensions)
        (high, wide), (down, right), (deep, apart) = (
            (*fill, *numbers) for numbers in (self.kernel_size, self.stride, self.dilation)
        )
        top, bottom, left, after = (*(0, 0) * len(fill), *around)
        return Window((high, wide), (down, right), (top, bottom, left, after), (deep, apart))

    @torch.no_grad()
    def to_conv(self) -> Any:
        """Return the dense PyTorch layer that computes the same, with zeros where there is no connection."""
        options = {"padding_mode": self.padding_mode, "dtype": self.values.dtype, "device": self.values.device}
        conv: Any = nn.utils.skip_init(
            self._dense_kind, self.in_channels, self.out_channels, self.kernel_size, stride=self.stride,
            padding=self.padding, dilation=self.dilation, bias=self.bias is not None, **options,
        )  # fmt: skip
        index = Index(self.indptr, self.indices, self.indptr_t, self.indices_t, self.permutation)
        size = self._window((0, 0) * self.dimensions).size
        values = self.values if self._listed else self.values.reshape(-1, *size)
        kernel = dense_kernel(values, index, size, self.out_channels)
        conv.weight.copy_(kernel.reshape(conv.weight.shape))
        if self.bias is not None:
            conv.bias.copy_(self.bias)
        return conv.train(self.training)

    @classmethod
    @torch.no_grad()
    def from_conv(cls, conv: Any, pattern: Any = None) -> Self:
        """Return a layer with those weights of a dense convolution that `pattern` keeps.

        Parameters
        ----------
        conv : nn.Conv2d, or nn.Conv1d for `SparseConv1d`
            A grouped one is a convolution whose pattern over channels is block-diagonal.
        pattern : matrix or list of matrices, optional
            As for the constructor. By default every connection that `conv` has.

        Raises
        ------
        SpecError
            If `conv` is none, or `pattern` has another shape or connections between groups.
        """
        checks.instance(conv, "conv", "from_conv", cls._dense_kind)
        groups, shape = conv.groups, (conv.in_channels, conv.out_channels)
        inputs, outputs = (size // groups for size in shape)
        if pattern is None:
            pattern = sp.kron(sp.eye_array(groups), np.ones((inputs, outputs)), format="csr")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._build(
            pattern, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.bias is not None,
            conv.padding_mode, conv.weight.dtype, conv.weight.device,
        )  # fmt: skip
        if (layer.in_channels, layer.out_channels) != shape:
            raise SpecError(
                "The 'pattern' parameter of from_conv must have the shape (inputs, outputs) of the layer, "
                f"{shape}. Got {(layer.in_channels, layer.out_channels)}."
            )
        rows, columns = (torch.from_numpy(part.astype(np.int64)) for part in layer._stored_pattern.nonzero())
        offsets, channels = rows // layer.in_channels, rows % layer.in_channels
        between = (channels // inputs != columns // outputs).nonzero()
        if len(between):
            first = int(between[0])
            raise SpecError(
                f"The 'pattern' parameter of from_conv must join channels of the same of the {groups} groups only. "
                f"Got a connection from {int(channels[first])} to {int(columns[first])}."
            )
        kernels = conv.weight[columns, channels % inputs]
        if layer._listed:
            kernels = kernels.flatten(1).gather(1, offsets[:, None].to(kernels.device))[:, 0]
        layer.values.copy_(kernels)
        if layer.bias is not None:
            layer.bias.copy_(conv.bias)
        return layer.train(conv.training)

    def extra_repr(self) -> str:
        """Sizes, connections and density, and what differs from the defaults."""
        shown = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding == "same" or any(self._around()):
            shown += f", padding={self.padding}"
        if max(self.dilation) > 1:
            shown += f", dilation={self.dilation}"
        if self.padding_mode != "zeros":
            shown += f", padding_mode={self.padding_mode}"
        return f"{shown}, nnz={self.nnz}, density={self.density:.4g}, bias={self.bias is not None}"


class SparseConv2d(_SparseConv):
    """Two-dimensional convolution with weights for the connections of a pattern only, a drop-in for `torch.nn.Conv2d`.

    Parameters
    ----------
    pattern : matrix, or list of matrices, shape (in channels, out channels)
        One matrix: every stored pair of channels carries a whole kernel. A list of kh * kw matrices, one for each
        offset of the kernel, row-major: fully unstructured. No connections at all is legal.
    kernel_size, stride, padding, dilation : int or sequence of 2 ints
        As for `torch.nn.Conv2d`; `padding` may also be ``"same"`` or ``"valid"``.
    bias : bool
        Whether to add a learned bias.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        As for `torch.nn.Conv2d`.
    dtype : torch.dtype, optional
        float32 and float64 are computed as they are; float16 and bfloat16 in float32, rounded once.
    device : torch.device, optional
        On ``meta`` only the values and the bias are: the index buffers always hold data.

    Attributes
    ----------
    values : Parameter, shape (connections, kh, kw), or (connections,) for a list
        In value ordering: row-major over (input, output); those of a list offset after offset. The same object for the
        layer's whole life.
    bias : Parameter, shape (out,), or None
    in_channels, out_channels, nnz : int
        `nnz` counts weights.
    density : float
        Stored weights / possible weights.
    pattern : csr_array, or list of csr_array
        A copy, in canonical form.

    Raises
    ------
    SpecError
        If a pattern is no matrix or holds NaN, a list has another length than kh * kw or matrices of several shapes, a
        number is out of range, or `dtype` is no float type. When called: if the input has other channels or is too
        small to leave an output.

    Notes
    -----
    There is no column matrix: shifted images are read where they lie, in strips of about half a MiB that are laid out
    with their margins once (see `topogen.kernels`). Beside the input, which is kept for the backward pass, a call holds
    that for each thread, nothing of size in * out * kh * kw, and another copy of the input only if it is not
    contiguous (``channels_last``, say) or its padding is not by zeros. The result is contiguous. A full pattern
    is computed densely, by torch.

    Memory: the values, and 12 bytes of indices for each stored connection: each kernel, or each number of a list.

    Weights start uniformly in [-a, a], a = sqrt(6 / weights of the output channel): He's initialisation for the fan-in
    that is really there. Biases start at 0. State dicts are loaded as `SparseLinear` does.

    Where a border pixel is infinite or NaN, so may be value gradients that it does not reach in a dense layer.

    Examples
    --------
    >>> import scipy.sparse as sp, torch, topogen_torch as tt
    >>> depthwise = tt.SparseConv2d(sp.eye_array(3), 3, padding="same", bias=False)
    >>> depthwise.values.shape, depthwise(torch.ones(2, 3, 8, 8)).shape
    (torch.Size([3, 3, 3]), torch.Size([2, 3, 8, 8]))
    """

    dimensions = 2
    _dense_kind = nn.Conv2d


class SparseConv1d(_SparseConv):
    """One-dimensional convolution with weights for the connections of a pattern only, a drop-in for `torch.nn.Conv1d`.

    All else is as for `SparseConv2d`, with one axis: `values` has shape (connections, k), or (connections,) where
    `pattern` is a list of k matrices.

    Parameters
    ----------
    pattern : matrix, or list of k matrices, shape (in channels, out channels)
    kernel_size, stride, padding, dilation : int or sequence of 1 int
        As for `torch.nn.Conv1d`; `padding` may also be ``"same"`` or ``"valid"``.
    bias, padding_mode, dtype, device
        As for `SparseConv2d`.

    Raises
    ------
    SpecError
        As `SparseConv2d`.

    Examples
    --------
    >>> import numpy as np, torch, topogen_torch as tt
    >>> layer = tt.SparseConv1d([np.eye(4), np.ones((4, 4))], 2)
    >>> layer.nnz, layer(torch.ones(4, 10)).shape
    (20, torch.Size([4, 9]))
    """

    dimensions = 1
    _dense_kind = nn.Conv1d
