"""What a model stores and how fast it is: one row a layer, each beside its dense twin, and the whole model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import scipy.sparse as sp
import torch
from torch import nn

import topogen as tg
from topogen import checks
from topogen_torch._conversion._kinds import is_sparse
from topogen_torch._patterned import Patterned
from topogen_torch._reports._advice import BreakEven, best_block, break_even_of, kernel_of, recommendation
from topogen_torch._reports._memory import (
    MOMENTS,
    Memory,
    dense_memory_of,
    dense_state_bytes,
    memory_of,
    peak_of_a_step,
    state_bytes,
)  # fmt: skip
from topogen_torch._reports._report_table import measured_table, stored_table
from topogen_torch._reports._sample import first_shape, inputs_of_layers, random_state_kept, sample_inputs
from topogen_torch._reports._timing import Inputs, Seconds, beside_dense, random_inputs
from topogen_torch._reports._whole import Whole, measure_whole

__all__ = ["LayerReport", "Memory", "ModelReport", "Seconds", "report"]

DEFAULT_BATCH = 64
_OPTIMIZERS = {
    "sgd": "plain SGD (no state)",
    "momentum": "SGD with momentum (one moment)",
    "adam": "Adam (two moments)",
}

_LEFT_DENSE = "_topogen_left_dense"  # what `sparsify` leaves on a model: layer -> why
_NOTHING = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """One row of a `ModelReport`.

    Attributes
    ----------
    name : str
        As in ``model.named_modules()``; "(model)" if the model itself is the layer.
    kind : str
        The class; with "dense " before it for a layer that could be sparse and is not.
    part_of : str or None
        The composed sparse layer, an attention or a recurrent one, that this layer is a part of.
    shape : tuple of int, or None
        (in, out), and the kernel's size behind it for a convolution; None for other modules.
    connections : int or None
        Stored connections.
    density : float or None
        Stored / possible connections.
    fan_in : tuple of float, or None
        Smallest, mean and largest number of connections that arrive at an output; linear layers only, like:
    unconnected_inputs, unconnected_outputs : int or None
        Dead neurons: inputs that nothing leaves, outputs that nothing reaches.
    memory, dense_memory : Memory
        Of this layer, and of its dense twin.
    state, dense_state : int
        Bytes of both in a state dict.
    kernel : str
        What multiplies in this layer, for this batch.
    inputs : tuple of int, or None
        Shape of the first input that was timed.
    ran : bool or None
        Whether `inputs` is what the sample brought to this layer; False if the default batch had to do.
    seconds, dense_seconds : Seconds or None
        Of this layer, and of its dense twin: same shape, dtype and bias. None where nothing was measured: the module
        has no dense twin, holds no data (meta), or needs a sample that was not given; the dense one does not fit in
        memory.
    peak, dense_peak : int or None
        Bytes by which resident memory rises for two training steps of a fresh copy; None where it was not measured.
    break_even : BreakEven or None
        Densities at which a random pattern of this shape takes as long as dense, for this batch.
    recommended : str
        What the measurements recommend; empty where there are none.
    """

    name: str
    kind: str
    memory: Memory
    dense_memory: Memory
    state: int
    dense_state: int
    part_of: str | None = None
    shape: tuple[int, ...] | None = None
    connections: int | None = None
    density: float | None = None
    fan_in: tuple[int, float, int] | None = None
    unconnected_inputs: int | None = None
    unconnected_outputs: int | None = None
    kernel: str = ""
    inputs: tuple[int, ...] | None = None
    ran: bool | None = None
    seconds: Seconds | None = None
    dense_seconds: Seconds | None = None
    peak: int | None = None
    dense_peak: int | None = None
    break_even: BreakEven | None = None
    recommended: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """A model layer by layer; ``print`` shows it as two tables and what they mean.

    Attributes
    ----------
    rows : tuple of LayerReport
        Every module that has parameters of its own, and every composed sparse layer before its parts, in the order of
        ``model.named_modules()``.
    whole : Whole
        Steps of the whole model beside its densified copy.
    left_dense : dict of str
        Layers that ``sparsify`` left dense, and why.
    optimizer : {"sgd", "momentum", "adam"}
        Whose moments `Memory.optimizer` counts, and who takes the steps that are timed.
    device, dtype : str
        Where and in what numbers the model computes.
    threads : int
        CPU threads that torch was given.
    """

    rows: tuple[LayerReport, ...]
    whole: Whole
    optimizer: str
    device: str
    dtype: str
    threads: int
    left_dense: dict[str, str] = field(default_factory=dict)

    @property
    def total(self) -> LayerReport:
        """All rows together; its times are the sums over the rows in which both layers were timed.

        Where a composed layer was timed, the times of its parts are left out.
        """
        linear = [row for row in self.rows if row.shape is not None]
        timed = {row.name for row in self.rows if row.seconds and row.dense_seconds}
        pairs = [
            (row.seconds, row.dense_seconds)
            for row in self.rows
            if row.seconds and row.dense_seconds and row.part_of not in timed
        ]
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
            state=sum(row.state for row in self.rows),
            dense_state=sum(row.dense_state for row in self.rows),
            seconds=Seconds(*_sums(own for own, _ in pairs)) if pairs else None,
            dense_seconds=Seconds(*_sums(dense for _, dense in pairs)) if pairs else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as numbers, strings, None, lists and dicts, ready for JSON; bytes and seconds."""
        settings = {field.name: _plain(getattr(self, field.name)) for field in fields(self) if field.name != "rows"}
        return {**settings, "rows": [_plain_row(row) for row in self.rows], "total": _plain_row(self.total)}

    def __str__(self) -> str:
        total = self.total
        lines = stored_table([*self.rows, total])
        timed = [row for row in self.rows if row.seconds is not None]
        if timed:
            lines += ["", *measured_table([*timed, total])]
        return "\n".join([*lines, "", *self._notes()])

    def _notes(self) -> Iterator[str]:
        yield "dead: inputs that nothing leaves / outputs that nothing reaches."
        yield (
            f"training: values, indices, gradients and the state of {_OPTIMIZERS[self.optimizer]}; activations are not "
            "counted."
        )
        batches = {row.inputs[:-1] for row in self.rows if row.inputs is not None}
        if batches:
            shown = " and ".join("x".join(map(str, batch)) or "1" for batch in sorted(batches))
            threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
            yield f"times: medians on {self.device}, {threads}, {self.dtype}, batch {shown}, with the input's gradient;"
            yield "       the dense twin, of the same shape, dtype and bias, was timed in turns with each layer."
        if any(row.peak is not None for row in self.rows):
            yield "peak: what a fresh copy stores, and how far resident memory rises while it takes two training steps."
        if any(row.break_even is not None for row in self.rows):
            yield "break-even: density at which a random pattern takes as long as dense, forward / forward + backward."
        yield from self.whole.lines(self.optimizer)
        idle = [row.name for row in self.rows if row.ran is False]
        if idle:
            yield f"not reached by the sample, timed on a batch of {DEFAULT_BATCH}: {', '.join(idle)}."
        untimed = [row.name for row in self.rows if row.seconds is None and (row.connections is not None or row.kernel)]
        if untimed:
            yield f"not measured: {', '.join(untimed)}."
        for name, reason in self.left_dense.items():
            yield f"left dense: {name}: {reason}"


def report(model: nn.Module, sample: Any = None, *, optimizer: str = "adam", break_even: bool = True) -> ModelReport:
    """Tabulate what every layer of a model stores and how fast it is, beside its dense twin, on this machine.

    The model is left as it is: parameters, gradients, buffers, training mode and the state of torch's random numbers.
    Modules that are shared count once.

    Parameters
    ----------
    model : nn.Module
        Any module. topogen's layers are compared with their dense namesakes; what stayed dense is listed all the same,
        and so is every other module that has parameters of its own.
    sample : Tensor, or tuple, list or mapping of model inputs, optional
        A batch, on the model's device: a copy of the model is run on it once, in evaluation mode, to see what reaches
        each layer. Without it linear layers are timed on a batch of 64; other layers and the whole model are not.
    optimizer : {"adam", "momentum", "sgd"}
        Whose state to count, two moments a trainable value, one, or none; and who takes the steps that are timed.
    break_even : bool
        Whether to look for each linear shape's break-even density, and whether random blocks of the same density
        would be faster; a few seconds for each large shape.

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
    time, and left out where it would not fit in memory. Peak memory is that of the process, as Linux counts it.

    Examples
    --------
    >>> import topogen as tg, topogen_torch as tt
    >>> net = tg.generate(tg.RadixNet(systems=[[10, 10]], widths=[8, 3, 1]))
    >>> table = tt.report(tt.sparse_mlp(net), break_even=False)
    >>> [(row.shape, row.connections, row.fan_in) for row in table.rows]
    [((800, 300), 24000, (80, 80.0, 80)), ((300, 100), 3000, (30, 30.0, 30))]
    """
    checks.instance(model, "model", "report", nn.Module)
    checks.one_of(optimizer, "optimizer", "report", tuple(MOMENTS))
    checks.instance(break_even, "break_even", "report", bool)
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            checks.refuse(
                "model", "report", "a module whose parameters have shapes", name, hint="Run it on a batch first."
            )
    first = next(model.parameters(), torch.empty(0))
    given = None if sample is None else sample_inputs(sample)
    with random_state_kept(first.device):
        seen = {} if given is None else inputs_of_layers(model, given, _has_twin)
        rows, composed = list[LayerReport](), list[str]()
        for name, module in model.named_modules():
            if _has_twin(module) or any(True for _ in module.parameters(recurse=False)):
                part_of = next((outer for outer in composed if name.startswith(f"{outer}." if outer else "")), None)
                row = _row(name, module, optimizer, seen.get(name), given is not None, part_of, break_even)
                rows.append(row)
                composed += [name] * _is_composed(module)
        whole = measure_whole(model, given, optimizer)
    return ModelReport(
        rows=tuple(rows),
        whole=whole,
        left_dense=dict(getattr(model, _LEFT_DENSE, {})),
        optimizer=optimizer,
        device=str(first.device),
        dtype=str(first.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
    )


_DENSE_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def _has_twin(module: nn.Module) -> bool:
    return is_sparse(module) or isinstance(module, _DENSE_KINDS)


def _is_composed(module: nn.Module) -> bool:
    return is_sparse(module) and not isinstance(module, Patterned)


def _row(
    name: str, module: nn.Module, optimizer: str, seen: Inputs | None, sampled: bool, part_of: str | None,
    break_even: bool,
) -> LayerReport:  # fmt: skip
    memory, state = memory_of(module, MOMENTS[optimizer]), state_bytes(module)
    stored: dict[str, Any] = {"memory": memory, "dense_memory": memory, "state": state, "dense_state": state}
    stored |= {"name": name or "(model)", "part_of": (part_of or "(model)") if part_of is not None else None}
    kind = type(module)
    dense = "dense nn." if kind.__module__.startswith("torch.nn") else "dense "
    stored["kind"] = (dense if isinstance(module, _DENSE_KINDS) else "") + kind.__name__
    if not _has_twin(module):
        return LayerReport(**stored)
    if isinstance(module, Patterned):
        stored["dense_memory"] = dense_memory_of(module, MOMENTS[optimizer])
        stored["dense_state"] = dense_state_bytes(module)
    stored |= _connections(module)
    ran = seen is not None if sampled else None
    inputs = seen or _default_inputs(module)
    if inputs is None:
        return LayerReport(**stored, kernel=kernel_of(module, DEFAULT_BATCH), ran=ran)
    shape = first_shape(inputs)
    seconds, dense_seconds = beside_dense(module, inputs, optimizer)
    peak = dense_peak = None
    if seconds is not None and dense_seconds is not None:
        peak, dense_peak = peak_of_a_step(module, inputs, optimizer)
    found = break_even_of(module, inputs) if break_even and len(inputs.args) == 1 and not inputs.kwargs else None
    blocks = best_block(module, inputs, optimizer) if break_even else None
    saved = stored["dense_memory"].total / max(1, memory.total)
    return LayerReport(
        **stored,
        kernel=kernel_of(module, math.prod(shape[:-1])),
        inputs=shape,
        ran=ran,
        seconds=seconds,
        dense_seconds=dense_seconds,
        peak=peak,
        dense_peak=dense_peak,
        break_even=found,
        recommended=recommendation(module, seconds, dense_seconds, saved, found, blocks),
    )


def _default_inputs(module: nn.Module) -> Inputs | None:
    """Return a batch for a linear layer; what else a layer might be called with is not guessed."""
    n_in: Any = getattr(module, "in_features", None) if isinstance(module, (Patterned, nn.Linear)) else None
    return None if n_in is None else random_inputs(module, (DEFAULT_BATCH, n_in))


def _connections(module: nn.Module) -> dict[str, Any]:
    """Return shape and connections of a layer that has them; nothing for a composed one."""
    if not isinstance(module, (Patterned, *_DENSE_KINDS)):
        return {}
    layer: Any = module
    if hasattr(layer, "kernel_size"):
        shape = (layer.in_channels // getattr(layer, "groups", 1), layer.out_channels, *layer.kernel_size)
    else:
        shape = (layer.in_features, layer.out_features)
    if not isinstance(module, Patterned):
        n_in = math.prod((shape[0], *shape[2:]))
        facts: dict[str, Any] = {"shape": shape, "connections": math.prod(shape), "density": 1.0}
        return facts | {"fan_in": (n_in, float(n_in), n_in), "unconnected_inputs": 0, "unconnected_outputs": 0}
    facts = {"shape": shape, "connections": module.nnz, "density": module.density}
    pattern = getattr(module, "pattern", None)
    if not isinstance(pattern, sp.csr_array) or pattern.shape != shape:
        return facts
    (degrees,) = tg.measures.degrees(pattern)
    fan_in = degrees.fan_in
    return facts | {
        "fan_in": (int(fan_in.min()), float(fan_in.mean()), int(fan_in.max())),
        "unconnected_inputs": int((degrees.fan_out == 0).sum()),
        "unconnected_outputs": int((fan_in == 0).sum()),
    }


def _sums(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    return [sum(column) for column in zip(*rows, strict=True)]


def _plain_row(row: LayerReport) -> dict[str, Any]:
    return {field.name: _plain(getattr(row, field.name)) for field in fields(row)}


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    return list(value) if isinstance(value, tuple) else value
