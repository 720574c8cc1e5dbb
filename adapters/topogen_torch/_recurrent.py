"""LSTM and GRU whose weights are sparse."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from topogen import as_pattern, checks
from topogen.errors import SpecError
from topogen_torch import init
from topogen_torch._layers import SparseLinear
from topogen_torch._ops import Index
from topogen_torch._ops._recurrent import Step, Weights, sparse_gru, sparse_lstm
from topogen_torch._wrapped import as_linear

__all__ = ["SparseGRU", "SparseLSTM"]

_PARTS = ("ih", "hh", "hr")
_SHORT = (torch.float16, torch.bfloat16)


class _SparseRecurrent(nn.Module):
    """What `SparseLSTM` and `SparseGRU` share: everything but a step."""

    _gates: ClassVar[int]
    _parts: ClassVar[tuple[str, ...]]  # the matrices that a cell may have
    _states: ClassVar[tuple[str, ...]]
    _recurrence: ClassVar[Callable[..., tuple[Tensor, ...]]]
    _dense: ClassVar[type[nn.LSTM] | type[nn.GRU]]
    _keeps_autocast_dtype: ClassVar[bool]  # as the dense namesake does on the CPU

    def __init__(
        self,
        patterns: Sequence[Any],
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | int | None = None,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        checks.instance(bias, "bias", owner, bool)
        checks.instance(bidirectional, "bidirectional", owner, bool)
        made = {
            name: SparseLinear(pattern, bias=bias and not name.startswith("hr"), dtype=dtype, device=device)
            for name, pattern in self._named(patterns, bidirectional, owner).items()
        }
        self._build(made, batch_first, dropout)
        self.reset_parameters()

    def _build(self, made: dict[str, SparseLinear], batch_first: bool, dropout: float) -> None:
        owner = type(self).__name__
        self.bidirectional = "ih_l0_reverse" in made
        self.num_layers = sum(name.startswith("ih") for name in made) // (1 + self.bidirectional)
        self.input_size = made["ih_l0"].in_features
        self.hidden_size = made["ih_l0"].out_features // self._gates
        self.proj_size = made["hr_l0"].out_features if "hr_l0" in made else 0
        self.bias = made["ih_l0"].bias is not None
        self.batch_first = checks.instance(batch_first, "batch_first", owner, bool)
        self.dropout = checks.real(dropout, "dropout", owner, high=1.0)
        for name, layer in made.items():
            layer._give_up_panels()  # a step multiplies a few rows of samples, with an operator for all gates
            self.add_module(name, layer)

    @classmethod
    def _named(cls, patterns: Any, bidirectional: bool, owner: str) -> dict[str, sp.csr_array]:
        """Return every matrix's whole pattern by the name of its submodule; all sizes fit."""
        kinds = " or ".join(f"({', '.join(cls._parts[:n])})" for n in range(2, len(cls._parts) + 1))
        wanted = f"a non-empty sequence with one tuple {kinds} of matrices for each layer"
        if bidirectional:
            wanted += ", or one pair of such tuples, forward and reverse,"
        rows = checks.row(patterns, "patterns", owner, wanted)
        if not rows:
            checks.refuse("patterns", owner, wanted, patterns)
        named: dict[str, sp.csr_array] = {}
        for k, row in enumerate(rows):
            cells = row if bidirectional and _is_pair_of_cells(row) else (row,) * (1 + bidirectional)
            for suffix, cell in zip(("", "_reverse"), cells, strict=False):
                if not isinstance(cell, tuple | list) or not 2 <= len(cell) <= len(cls._parts):
                    checks.refuse(f"patterns[{k}]", owner, f"a tuple {kinds} of matrices", cell)
                for part, pattern in zip(_PARTS, cell, strict=False):
                    named[f"{part}_l{k}{suffix}"] = as_pattern(pattern, name=f"{part}_l{k}{suffix}")
        return cls._whole(named, owner, 1 + bidirectional)

    @classmethod
    def _whole(cls, named: dict[str, sp.csr_array], owner: str, directions: int) -> dict[str, sp.csr_array]:
        """Repeat the patterns of one gate for all gates, and refuse sizes that do not fit together."""
        projected = "hr_l0" in named
        n_hidden = named["hr_l0"].shape[0] if projected else named["hh_l0"].shape[0]
        n_out = named["hr_l0"].shape[1] if projected else n_hidden
        for name, pattern in named.items():
            part, _, place = name.partition("_l")
            if projected != (f"hr_l{place}" in named):
                raise SpecError(f"The 'patterns' parameter of {owner} must project in every cell or in none.")
            rows = n_out if part == "hh" else n_hidden if part == "hr" else directions * n_out
            rows = pattern.shape[0] if name in ("ih_l0", "ih_l0_reverse") else rows
            columns = (n_out,) if part == "hr" else (n_hidden, cls._gates * n_hidden)
            if pattern.shape[0] != rows or pattern.shape[1] not in columns:
                shapes = " or ".join(str((rows, n)) for n in columns)
                raise SpecError(f"The pattern '{name}' of {owner} must have shape {shapes}. Got {pattern.shape}.")
            if part != "hr" and pattern.shape[1] == n_hidden:
                named[name] = as_pattern(sp.hstack([pattern] * cls._gates, format="csr"))
        inputs = {pattern.shape[0] for name, pattern in named.items() if name.startswith("ih_l0")}
        if len(inputs) > 1:
            raise SpecError(f"The patterns 'ih_l0' of {owner} must have equally many inputs. Got {sorted(inputs)}.")
        return named

    def reset_parameters(self) -> None:
        """Draw weights and biases uniformly, as large as the dense namesake's gates are.

        A full pattern gets numbers of [-1 / sqrt(hidden_size), 1 / sqrt(hidden_size)], as in torch; with fewer
        connections the weights grow like sqrt(inputs / fan-in), so that the gates keep their variance.
        """
        bound = 1 / math.sqrt(self.hidden_size)
        for layer in self.children():
            assert isinstance(layer, SparseLinear)
            init.kaiming_uniform_(layer, gain=bound * math.sqrt(layer.in_features / 3))
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -bound, bound)

    def flatten_parameters(self) -> None:
        """Do nothing: there is no flat copy of the weights. Here because callers of torch's layers call it."""

    def _run(self, x: Tensor, sizes: Sequence[int], state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run all layers over rows x (R, inputs), sorted by step; states have shape (layers * directions, B, ...)."""
        ends: list[tuple[Tensor, ...]] = []
        steps: list[Step] = []
        for rows in sizes:
            steps.append((sum(steps[-1]) if steps else 0, rows))
        for k in range(self.num_layers):
            if k and self.training:
                x = dropout(x, self.dropout)
            found: list[Tensor] = []
            for suffix in ("", "_reverse")[: 1 + self.bidirectional]:
                cell = [getattr(self, f"{part}_l{k}{suffix}", None) for part in _PARTS]
                begin = tuple(part[len(ends)] for part in state)
                outputs, end = self._cell(x, steps[::-1] if suffix else steps, begin, *cell)
                found.append(outputs)
                ends.append(end)
            x = found[0] if len(found) == 1 else torch.cat(found, 1)
        return x, tuple(torch.stack(parts) for parts in zip(*ends, strict=True))

    def _cell(
        self, x: Tensor, steps: list[Step], state: tuple[Tensor, ...], ih: Any, hh: Any, hr: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run one layer in one direction, float16 and bfloat16 in float32."""
        gates: Tensor = ih(x)
        dtype = hh.values.dtype
        wide = torch.float32 if dtype in _SHORT else dtype
        if gates.dtype != dtype and self._keeps_autocast_dtype:
            dtype = gates.dtype
        weights = [_weights(layer).usable(wide) for layer in (hh, hr) if layer is not None]
        outputs, *ends = self._recurrence(steps, gates.to(wide), [part.to(wide) for part in state], *weights)
        return outputs.to(dtype), tuple(end.to(dtype) for end in ends)

    def _forward(self, x: Any, state: tuple[Tensor, ...] | None) -> tuple[Any, tuple[Tensor, ...]]:
        if isinstance(x, PackedSequence):
            data, sizes, order, back = x
            outputs, ends = self._run(data, sizes.tolist(), self._begin(state, data, int(sizes[0]), order))
            ends = ends if back is None else tuple(end.index_select(1, back) for end in ends)
            return x._replace(data=outputs), ends
        owner = type(self).__name__
        if not isinstance(x, Tensor) or x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise SpecError(
                f"The input of {owner} must be a PackedSequence or have 2 or 3 dimensions, the last of size "
                f"{self.input_size}. Got {got}."
            )
        batched, turned = x.ndim == 3, x.ndim == 3 and self.batch_first
        x = x.transpose(0, 1) if turned else x if batched else x.unsqueeze(1)
        length, n_batch = x.shape[:2]
        if length == 0:
            raise SpecError(f"The input of {owner} must have at least one step. Got a sequence of length 0.")
        state = state if batched or state is None else tuple(part.unsqueeze(1) for part in state)
        outputs, ends = self._run(x.flatten(0, 1), [n_batch] * length, self._begin(state, x, n_batch, None))
        outputs = outputs.unflatten(0, (length, n_batch))
        if not batched:
            return outputs.squeeze(1), tuple(end.squeeze(1) for end in ends)
        return outputs.transpose(0, 1) if turned else outputs, ends

    def _begin(
        self, state: tuple[Tensor, ...] | None, x: Tensor, n_batch: int, order: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the state before the first step, zeros by default, in the order of the packed samples."""
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)[: len(self._states)]
        shapes = [(self.num_layers * (1 + self.bidirectional), n_batch, size) for size in sizes]
        if state is None:
            return tuple(x.new_zeros(shape) for shape in shapes)
        for name, part, shape in zip(self._states, state, shapes, strict=True):
            if tuple(part.shape) != shape:
                owner = type(self).__name__
                raise SpecError(f"The state '{name}' of {owner} must have shape {shape}. Got {tuple(part.shape)}.")
        return state if order is None else tuple(part.index_select(1, order) for part in state)

    def _to_dense(self) -> Any:
        values = next(self.parameters())
        options = {"proj_size": self.proj_size} if self.proj_size else {}
        dense: Any = self._dense(
            self.input_size, self.hidden_size, num_layers=self.num_layers, bias=self.bias,
            batch_first=self.batch_first, dropout=self.dropout, bidirectional=self.bidirectional,
            dtype=values.dtype, device="meta", **options,
        )  # fmt: skip
        dense.to_empty(device=values.device)
        with torch.no_grad():
            for name, layer in self.named_children():
                assert isinstance(layer, SparseLinear)
                linear = layer.to_linear()
                getattr(dense, f"weight_{name}").copy_(linear.weight)
                if linear.bias is not None:
                    getattr(dense, f"bias_{name}").copy_(linear.bias)
        return dense.train(self.training)

    @classmethod
    def _from_dense(cls, dense: Any, patterns: Any, parameter: str) -> Self:
        owner = f"from_{parameter}"
        checks.instance(dense, parameter, owner, cls._dense, "an")
        named = cls._named(patterns, dense.bidirectional, owner)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        wanted = {name.removeprefix("weight_") for name, _ in dense.named_parameters() if name.startswith("weight_")}
        if wanted != set(named):
            raise SpecError(
                f"The 'patterns' parameter of {owner} must have patterns for {', '.join(sorted(wanted))}. "
                f"Got {', '.join(sorted(named))}."
            )
        made: dict[str, SparseLinear] = {}
        for name, pattern in named.items():
            weight, bias = getattr(dense, f"weight_{name}"), getattr(dense, f"bias_{name}", None)
            if pattern.shape != tuple(weight.shape[::-1]):
                raise SpecError(
                    f"The pattern '{name}' of {owner} must have the shape (inputs, outputs) of 'weight_{name}', "
                    f"{tuple(weight.shape[::-1])}. Got {pattern.shape}."
                )
            made[name] = SparseLinear.from_linear(as_linear(weight, bias), pattern)
        layer._build(made, dense.batch_first, dense.dropout)
        return layer.train(dense.training)

    def extra_repr(self) -> str:
        """Sizes, and the options that differ from torch's defaults."""
        shown = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0}
        for name, default in (defaults | {"bidirectional": False}).items():
            if getattr(self, name) != default:
                shown.append(f"{name}={getattr(self, name)}")
        return ", ".join(shown)


def _is_pair_of_cells(row: Any) -> bool:
    return isinstance(row, tuple) and len(row) == 2 and all(isinstance(cell, tuple) for cell in row)


def _weights(layer: SparseLinear) -> Weights:
    index = Index(layer.indptr, layer.indices, layer.indptr_t, layer.indices_t, layer.permutation)
    return Weights(layer.values, layer.bias, index, layer.out_features)


class SparseLSTM(_SparseRecurrent):
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


class SparseGRU(_SparseRecurrent):
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
