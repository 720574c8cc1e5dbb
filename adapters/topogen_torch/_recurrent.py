"""LSTM and GRU whose weights are sparse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn

from topogen.errors import SpecError
from topogen_torch._ops._recurrent import sparse_gru, sparse_lstm
from topogen_torch._recurrence import Recurrent

__all__ = ["SparseGRU", "SparseLSTM"]


class SparseLSTM(Recurrent):
    r"""Long short-term memory with sparse weights: `torch.nn.LSTM`, one weight for each connection.

    .. math::
        (i, f, g, o) &= x_t W_{ih} + b_{ih} + h_{t-1} W_{hh} + b_{hh} \\
        c_t &= \sigma(f)\, c_{t-1} + \sigma(i) \tanh(g), \qquad h_t = \sigma(o) \tanh(c_t)\, [W_{hr}]

    Parameters
    ----------
    patterns : sequence of tuples (ih, hh) or (ih, hh, hr)
        One for each layer. Rows are inputs, columns are outputs. `ih` has shape (inputs, 4 hidden_size) and `hh`
        (hidden_size, 4 hidden_size), with the gates in torch's order i, f, g, o; or a quarter of the columns, and then
        every gate has that pattern. `hr`, shape (hidden_size, proj_size), projects the output (torch's `proj_size`),
        which `hh` and the next layer then read. With `bidirectional` an entry may be a pair of such tuples, forward
        and reverse; one tuple alone serves both, and every layer but the first has 2 * proj_size or 2 * hidden_size
        inputs.
    bias : bool
        Whether the gates have the two biases b_ih and b_hh.
    batch_first : bool
        Whether input and output are (batch, step, feature) rather than (step, batch, feature).
    dropout : float
        Probability that an output of a layer but the last is dropped in training.
    bidirectional : bool
        Whether every layer also runs backward.
    dtype, device
        As for `SparseLinear`.

    Attributes
    ----------
    ih_l0, hh_l0, hr_l0, ih_l0_reverse, ... : SparseLinear
        Named as the weights of `torch.nn.LSTM`.
    input_size, hidden_size, proj_size, num_layers : int

    Raises
    ------
    SpecError
        If a pattern has a shape that does not fit, or an argument is out of range.

    Notes
    -----
    Inputs and outputs are those of `torch.nn.LSTM`, packed sequences, initial states and inputs without a batch
    included. The input's products of all steps are one product. float16 and bfloat16 are computed in float32 and each
    layer's output is rounded once.

    ``torch.compile(fullgraph=True)`` unrolls the steps into its graph, and captures no packed sequence.

    References
    ----------
    Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9 (1997). Projection: Sak et al.,
    arXiv 1402.1128, equations 8 to 14 without peepholes.

    Examples
    --------
    >>> import torch, topogen as tg, topogen_torch as tt
    >>> net = tg.generate(tg.RandomBiregular(sizes=[8, 16, 16], fan_in=4), rng=0)
    >>> lstm = tt.SparseLSTM([(net[0], net[1])])  # one pattern for all four gates
    >>> outputs, (h, c) = lstm(torch.randn(5, 3, 8))
    >>> outputs.shape, h.shape, lstm.hh_l0.nnz
    (torch.Size([5, 3, 16]), torch.Size([1, 3, 16]), 256)
    """

    _gates = 4
    _parts = ("ih", "hh", "hr")
    _states = ("h_0", "c_0")
    _recurrence = staticmethod(sparse_lstm)
    _dense = nn.LSTM
    _keeps_autocast_dtype = True

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Any, tuple[Tensor, Tensor]]:
        """Run over a sequence.

        Parameters
        ----------
        input : Tensor, shape (T, B, input_size), (B, T, input_size) or (T, input_size), or PackedSequence
        hx : pair of Tensor, optional
            h_0, shape (layers * directions, B, output size), and c_0, (layers * directions, B, hidden_size); without B
            for an input without a batch. Zeros by default.

        Returns
        -------
        output : Tensor or PackedSequence
            h_t of the last layer, as long as the input.
        hx : pair of Tensor
            h and c after each sequence's last step.
        """
        if hx is not None and (not isinstance(hx, tuple | list) or len(hx) != 2):
            raise SpecError(f"The state of SparseLSTM must be a pair (h_0, c_0). Got a {type(hx).__name__}.")
        output, (h, c) = self._forward(input, None if hx is None else tuple(hx))
        return output, (h, c)

    def to_lstm(self) -> nn.LSTM:
        """Return a `torch.nn.LSTM` that computes the same, with zeros where there is no connection."""
        return self._to_dense()

    @classmethod
    def from_lstm(cls, lstm: nn.LSTM, patterns: Sequence[Any]) -> Self:
        """Return a layer with those weights of `lstm` that `patterns`, as in the constructor, keep.

        Raises
        ------
        SpecError
            If `lstm` is no `torch.nn.LSTM` or a pattern does not have the shape of its weight.
        """
        return cls._from_dense(lstm, patterns, "lstm")


class SparseGRU(Recurrent):
    r"""Gated recurrent unit with sparse weights: `torch.nn.GRU`, one weight for each connection.

    .. math::
        (x_r, x_z, x_n) &= x_t W_{ih} + b_{ih}, \qquad (h_r, h_z, h_n) = h_{t-1} W_{hh} + b_{hh} \\
        h_t &= (1 - z)\, n + z\, h_{t-1}, \qquad r = \sigma(x_r + h_r),\ z = \sigma(x_z + h_z),\
        n = \tanh(x_n + r\, h_n)

    Parameters
    ----------
    patterns : sequence of tuples (ih, hh)
        One for each layer, as for `SparseLSTM`, with three gates in torch's order r, z, n: shapes
        (inputs, 3 hidden_size) and (hidden_size, 3 hidden_size), or a third of the columns for all gates alike.
    bias, batch_first, dropout, bidirectional, dtype, device
        As for `SparseLSTM`.

    Attributes
    ----------
    ih_l0, hh_l0, ih_l0_reverse, ... : SparseLinear
        Named as the weights of `torch.nn.GRU`.
    input_size, hidden_size, num_layers : int

    Raises
    ------
    SpecError
        If a pattern has a shape that does not fit, or an argument is out of range.

    Notes
    -----
    As for `SparseLSTM`.

    References
    ----------
    Cho et al., arXiv 1406.1078, section 2.3, in torch's form, where r multiplies h_n with its bias.

    Examples
    --------
    >>> import torch, topogen as tg, topogen_torch as tt
    >>> net = tg.generate(tg.RandomBiregular(sizes=[8, 16, 16], fan_in=4), rng=0)
    >>> outputs, h = tt.SparseGRU([(net[0], net[1])])(torch.randn(5, 3, 8))
    >>> outputs.shape, bool((outputs[-1] == h[0]).all())
    (torch.Size([5, 3, 16]), True)
    """

    _gates = 3
    _parts = ("ih", "hh")
    _states = ("h_0",)
    _recurrence = staticmethod(sparse_gru)
    _dense = nn.GRU
    _keeps_autocast_dtype = False

    def forward(self, input: Any, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        """Run over a sequence.

        Parameters
        ----------
        input : Tensor, shape (T, B, input_size), (B, T, input_size) or (T, input_size), or PackedSequence
        hx : Tensor, shape (layers * directions, B, hidden_size), optional
            h_0; without B for an input without a batch. Zeros by default.

        Returns
        -------
        output : Tensor or PackedSequence
            h_t of the last layer, as long as the input.
        hx : Tensor
            h after each sequence's last step.
        """
        if hx is not None and not isinstance(hx, Tensor):
            raise SpecError(f"The state of SparseGRU must be a Tensor h_0. Got a {type(hx).__name__}.")
        output, (h,) = self._forward(input, None if hx is None else (hx,))
        return output, h

    def to_gru(self) -> nn.GRU:
        """Return a `torch.nn.GRU` that computes the same, with zeros where there is no connection."""
        return self._to_dense()

    @classmethod
    def from_gru(cls, gru: nn.GRU, patterns: Sequence[Any]) -> Self:
        """Return a layer with those weights of `gru` that `patterns`, as in the constructor, keep.

        Raises
        ------
        SpecError
            If `gru` is no `torch.nn.GRU` or a pattern does not have the shape of its weight.
        """
        return cls._from_dense(gru, patterns, "gru")
