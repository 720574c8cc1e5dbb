"""What a model stores and how fast it is: one row a layer, each beside the dense layer of the same shape."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import nn

import topogen as tg
from topogen import checks
from topogen_torch._layers import SparseLinear
from topogen_torch._timing import Seconds, beside_dense

__all__ = ["LayerReport", "Memory", "ModelReport", "Seconds", "report"]

DEFAULT_BATCH = 64
_MOMENTS = {"sgd": 0, "momentum": 1, "adam": 2}
_OPTIMIZERS = {
    "sgd": "plain SGD (no state)",
    "momentum": "SGD with momentum (one moment)",
    "adam": "Adam (two moments)",
}

_NOTHING = (0, 0, 0, 0)


class Memory(NamedTuple):
    """Bytes that training a layer takes, activations apart.

    Attributes
    ----------
    values : int
        Weights and bias.
    indices : int
        Index buffers, transposed ones included; in modules that are not linear, all buffers.
    gradients : int
        One number for each trainable value.
    optimizer : int
        The optimizer's moments of each trainable value.
    """

    values: int
    indices: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of them together."""
        return sum(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """One row of a `ModelReport`.

    Attributes
    ----------
    name : str
        As in ``model.named_modules()``; "(model)" if the model itself is the layer.
    kind : str
        "SparseLinear", "dense nn.Linear", or the class of another module that has parameters of its own.
    shape : tuple of int, or None
        (in_features, out_features); None, like every field down to `unconnected_outputs`, where the module is not
        linear.
    connections : int or None
        Stored connections.
    density : float or None
        Stored / possible connections.
    fan_in : tuple of float, or None
        Smallest, mean and largest number of connections that arrive at an output.
    unconnected_inputs, unconnected_outputs : int or None
        Dead neurons: inputs that nothing leaves, outputs that nothing reaches.
    memory, dense_memory : Memory
        Of this layer, and of the dense layer of the same shape.
    inputs : tuple of int, or None
        Shape of the input that was timed.
    ran : bool or None
        Whether `inputs` is what the sample brought to this layer; False if the default batch had to do.
    seconds, dense_seconds : Seconds or None
        Of this layer, and of an ``nn.Linear`` of the same shape, dtype and bias; None where the module is not linear,
        it holds no data (meta), or the dense layer does not fit in memory.
    """

    name: str
    kind: str
    memory: Memory
    dense_memory: Memory
    shape: tuple[int, int] | None = None
    connections: int | None = None
    density: float | None = None
    fan_in: tuple[int, float, int] | None = None
    unconnected_inputs: int | None = None
    unconnected_outputs: int | None = None
    inputs: tuple[int, ...] | None = None
    ran: bool | None = None
    seconds: Seconds | None = None
    dense_seconds: Seconds | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """A model layer by layer; ``print`` shows it as a table.

    Attributes
    ----------
    rows : tuple of LayerReport
        Every module that has parameters of its own, in the order of ``model.named_modules()``.
    optimizer : {"sgd", "momentum", "adam"}
        Whose moments `Memory.optimizer` counts.
    device, dtype : str
        Where and in what numbers the model computes.
    threads : int
        CPU threads that torch was given.
    """

    rows: tuple[LayerReport, ...]
    optimizer: str
    device: str
    dtype: str
    threads: int

    @property
    def total(self) -> LayerReport:
        """All rows together; its times are the sums over the rows in which both layers were timed."""
        linear = [row for row in self.rows if row.shape is not None]
        timed = [(row.seconds, row.dense_seconds) for row in linear if row.seconds and row.dense_seconds]
        connections = sum(row.connections or 0 for row in linear)
        possible = sum(math.prod(row.shape or ()) for row in linear)
        return LayerReport(
            name="total",
            kind="",
            connections=connections,
            density=connections / possible if possible else None,
            unconnected_inputs=sum(row.unconnected_inputs or 0 for row in linear),
            unconnected_outputs=sum(row.unconnected_outputs or 0 for row in linear),
            memory=Memory(*_sums(row.memory for row in self.rows) or _NOTHING),
            dense_memory=Memory(*_sums(row.dense_memory for row in self.rows) or _NOTHING),
            seconds=Seconds(*_sums(own for own, _ in timed)) if timed else None,
            dense_seconds=Seconds(*_sums(dense for _, dense in timed)) if timed else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as numbers, strings, None, lists and dicts, ready for JSON; bytes and seconds."""
        settings = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "rows"}
        return {**settings, "rows": [_plain(row) for row in self.rows], "total": _plain(self.total)}

    def __str__(self) -> str:
        return "\n".join([*_table([*self.rows, self.total]), "", *self._notes()])

    def _notes(self) -> Iterator[str]:
        state = _OPTIMIZERS[self.optimizer]
        yield "dead: inputs that nothing leaves / outputs that nothing reaches."
        yield f"memory: values, indices, gradients and the state of {state}; activations are not counted."
        batches = {row.inputs[:-1] for row in self.rows if row.inputs is not None}
        if batches:
            shown = " and ".join("x".join(map(str, batch)) or "1" for batch in sorted(batches))
            threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
            yield f"times: medians on {self.device}, {threads}, {self.dtype}, batch {shown}, with the input's gradient;"
            yield "       an nn.Linear of the same shape, dtype and bias was timed in turns with each layer."
        idle = [row.name for row in self.rows if row.ran is False]
        if idle:
            yield f"not reached by the sample, timed on a batch of {DEFAULT_BATCH}: {', '.join(idle)}."


def report(model: nn.Module, sample: Any = None, *, optimizer: str = "adam") -> ModelReport:
    """Tabulate what every layer of a model stores and how fast it is, beside the dense layer of the same shape.

    The model is left as it is: parameters, gradients, buffers, training mode and the state of torch's random numbers.
    Modules that are shared count once.

    Parameters
    ----------
    model : nn.Module
        Any module. `SparseLinear` layers are compared with their dense twin; what stayed dense is listed all the
        same, and so is every other module that has parameters of its own.
    sample : Tensor, or tuple, list or mapping of model inputs, optional
        A batch, on the model's device: a copy of the model is run on it once, in evaluation mode, to see what reaches
        each layer. Without it every layer is timed on a batch of 64.
    optimizer : {"adam", "momentum", "sgd"}
        Whose state to count: two moments a trainable value, one, or none.

    Returns
    -------
    ModelReport

    Raises
    ------
    SpecError
        If `model` is no module, has parameters without a shape yet, or an argument is none of the above.

    Notes
    -----
    Medians of 5 to 25 rounds after a warm-up. Every round times the layer and its dense twin one after the other, so
    that whatever else the machine does slows both. A layer takes about a second; the dense twin is allocated for that
    time, and left out where it would not fit in memory.

    Examples
    --------
    >>> import topogen as tg, topogen_torch as tt
    >>> net = tg.generate(tg.RadixNet(systems=[[10, 10]], widths=[8, 3, 1]))
    >>> table = tt.report(tt.sparse_mlp(net))
    >>> [(row.shape, row.connections, row.fan_in) for row in table.rows]
    [((800, 300), 24000, (80, 80.0, 80)), ((300, 100), 3000, (30, 30.0, 30))]
    """
    checks.instance(model, "model", "report", nn.Module)
    moments = _MOMENTS[checks.one_of(optimizer, "optimizer", "report", tuple(_MOMENTS))]
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            checks.refuse(
                "model", "report", "a module whose parameters have shapes", name, hint="Run it on a batch first."
            )
    first = next(model.parameters(), torch.empty(0))
    with _random_state_kept(first.device):
        shapes = {} if sample is None else _input_shapes(model, sample)
        rows = tuple(
            _row(name, module, moments, shapes.get(name), sample is not None)
            for name, module in model.named_modules()
            if isinstance(module, (SparseLinear, nn.Linear)) or any(True for _ in module.parameters(recurse=False))
        )
    return ModelReport(
        rows=rows,
        optimizer=optimizer,
        device=str(first.device),
        dtype=str(first.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
    )


def _row(name: str, module: nn.Module, moments: int, inputs: tuple[int, ...] | None, sampled: bool) -> LayerReport:
    memory = _memory(module, moments)
    named = name or "(model)"
    if not isinstance(module, (SparseLinear, nn.Linear)):
        return LayerReport(name=named, kind=type(module).__name__, memory=memory, dense_memory=memory)
    shape = (module.in_features, module.out_features)
    ran = inputs is not None if sampled else None
    inputs = inputs or (DEFAULT_BATCH, module.in_features)
    seconds, dense_seconds = beside_dense(module, inputs)
    timed: dict[str, Any] = {"inputs": inputs, "ran": ran, "seconds": seconds, "dense_seconds": dense_seconds}
    if isinstance(module, nn.Linear):
        n_in, n_out = shape
        return LayerReport(
            name=named,
            kind="dense nn.Linear",
            memory=memory,
            dense_memory=memory,
            shape=shape,
            connections=n_in * n_out,
            density=1.0,
            fan_in=(n_in, float(n_in), n_in),
            unconnected_inputs=0,
            unconnected_outputs=0,
            **timed,
        )
    (degrees,) = tg.measures.degrees(module.pattern)
    return LayerReport(
        name=named,
        kind="SparseLinear",
        memory=memory,
        dense_memory=_dense_memory(module, moments),
        shape=shape,
        connections=module.nnz,
        density=module.density,
        fan_in=(int(degrees.fan_in.min()), float(degrees.fan_in.mean()), int(degrees.fan_in.max())),
        unconnected_inputs=int((degrees.fan_out == 0).sum()),
        unconnected_outputs=int((degrees.fan_in == 0).sum()),
        **timed,
    )


def _memory(module: nn.Module, moments: int) -> Memory:
    values = list(module.parameters(recurse=False))
    trained = sum(p.nbytes for p in values if p.requires_grad)
    indices = sum(buffer.nbytes for buffer in module.buffers(recurse=False))
    return Memory(sum(p.nbytes for p in values), indices, trained, moments * trained)


def _dense_memory(layer: SparseLinear, moments: int) -> Memory:
    weights = math.prod((layer.in_features, layer.out_features)) * layer.values.itemsize
    bias = 0 if layer.bias is None else layer.bias.nbytes
    trained = weights * layer.values.requires_grad + (
        bias if layer.bias is not None and layer.bias.requires_grad else 0
    )
    return Memory(weights + bias, 0, trained, moments * trained)


def _input_shapes(model: nn.Module, sample: Any) -> dict[str, tuple[int, ...]]:
    """Run a copy of the model and return the shape of the first input of each linear layer that is reached."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            shapes.setdefault(name, tuple(x.shape))

        return see

    twin = copy.deepcopy(model).eval()
    for name, module in twin.named_modules():
        if isinstance(module, (SparseLinear, nn.Linear)):
            module.register_forward_pre_hook(note(name), with_kwargs=True)
    with torch.no_grad():
        if isinstance(sample, torch.Tensor):
            twin(sample)
        elif isinstance(sample, Mapping):
            twin(**sample)
        elif isinstance(sample, (tuple, list)):
            twin(*sample)
        else:
            checks.refuse("sample", "report", "a tensor, or a tuple, a list or a mapping of model inputs", sample)
    return shapes


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    """Put torch's generators back as they were: a model may draw even in evaluation mode."""
    accelerated = device.type != "cpu"
    with torch.random.fork_rng(
        [device.index or 0] if accelerated else [], device_type=device.type if accelerated else "cuda"
    ):
        yield


def _sums(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    return [sum(column) for column in zip(*rows, strict=True)]


def _plain(row: LayerReport) -> dict[str, Any]:
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, (Memory, Seconds)):
        return value._asdict()
    return list(value) if isinstance(value, tuple) else value


def _table(rows: Sequence[LayerReport]) -> list[str]:
    """Return the lines of the table; the last row, the total, stands below a rule."""
    header = (
        "layer", "kind", "in x out", "stored", "density", "fan-in", "dead",
        "memory/dense [kB]", "forward/dense [ms]", "+backward/dense [ms]",
    )  # fmt: skip
    cells = [header, *map(_cells, rows)]
    widths = [max(len(line[c]) for line in cells) for c in range(len(header))]
    left = {0, 1}
    lines = [
        "  ".join(
            cell.ljust(width) if c in left else cell.rjust(width)
            for c, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    rule = "  ".join("-" * width for width in widths)
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]]


def _cells(row: LayerReport) -> tuple[str, ...]:
    own, dense = row.seconds, row.dense_seconds
    return (
        row.name,
        row.kind,
        "" if row.shape is None else f"{row.shape[0]} x {row.shape[1]}",
        "" if row.connections is None else f"{row.connections:,}",
        "" if row.density is None else f"{100 * row.density:.4g} %",
        "" if row.fan_in is None else _fan_in(*row.fan_in),
        "" if row.unconnected_inputs is None else f"{row.unconnected_inputs}/{row.unconnected_outputs}",
        f"{_figures(row.memory.total / 1e3)} / {_figures(row.dense_memory.total / 1e3)}",
        _compared(own and own.forward, dense and dense.forward),
        _compared(own and own.forward_backward, dense and dense.forward_backward),
    )


def _fan_in(least: int, mean: float, most: int) -> str:
    return str(least) if least == most else f"{least}..{mean:.1f}..{most}"


def _compared(own: float | None, dense: float | None) -> str:
    if own is None:
        return ""
    if dense is None:
        return f"{_figures(own * 1e3)} / too large"
    return f"{_figures(own * 1e3)} / {_figures(dense * 1e3)} {_figures(dense / own)}x"


def _figures(value: float) -> str:
    """Three figures, or all those before the point."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
