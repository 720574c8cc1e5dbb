"""What LSTM and GRU share: sparse weights by name, and sequences run layer by layer, in one direction or both."""

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
from topogen_torch._ops._recurrent import Step, Weights
from topogen_torch._wrapped import as_linear

__all__ = ["Recurrent"]

_PARTS = ("ih", "hh", "hr")
_SHORT = (torch.float16, torch.bfloat16)


class Recurrent(nn.Module):
    """Base of `SparseLSTM` and `SparseGRU`: everything but a step."""

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
    return Weights(layer.values, layer.bias, index, layer.out_features, layer._observer)
