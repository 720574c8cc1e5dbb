"""Change which connections layers have: pattern, values, gradients and optimizer state together, or nothing.

A *place* is a position in the dense matrix of a layer's stored pattern, counted row-major: input * outputs + output.
The places of the stored connections rise in value ordering.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from topogen.errors import SpecError
from topogen_torch._patterned import Patterned

__all__ = ["Places", "Rewiring", "places_of", "rewire"]

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rewiring:
    """What one layer is to become.

    Attributes
    ----------
    layer : Patterned
    places : ndarray of int64
        Where the layer will have connections: rising, each once. A place that is occupied now keeps its value and the
        optimizer's state bit for bit, whatever else happens; every other one is a newcomer.
    newcomers : Tensor, shape (number of newcomers, *unit), optional
        Their values, in the order of their places; 0 without it. Their optimizer state is 0 in any case.
    """

    layer: Patterned
    places: Places
    newcomers: Tensor | None = None


def places_of(layer: Patterned) -> Places:
    """Return where the layer has connections, rising."""
    indptr, indices = layer.indptr.cpu().numpy(), layer.indices.cpu().numpy().astype(np.int64)
    rows = np.repeat(np.arange(len(indptr) - 1, dtype=np.int64), np.diff(indptr))
    return rows * layer._stored_sizes[1] + indices


def rewire(rewirings: Iterable[Rewiring], optimizers: Sequence[Optimizer] = ()) -> None:
    """Carry out several rewirings as one transaction.

    Everything is computed and allocated first; then it is put in place without interruption, by Ctrl-C either. An
    optimizer keeps its parameters: `values` stays the same Parameter, resized in place where the number changes, and
    every state tensor that has its shape follows the connections. Numbers that are kept are kept bit for bit.

    Parameters
    ----------
    rewirings : iterable of Rewiring
        At most one a layer.
    optimizers : sequence of torch.optim.Optimizer
        All that hold the layers' values.

    Raises
    ------
    SpecError
        If an optimizer holds state of another shape for one of the values, which could not follow, or a layer is
        sharded over processes. Nothing has been changed.
    """
    changes = [change for rewiring in rewirings for change in _prepared(rewiring, optimizers)]
    with _undisturbed():
        for change in changes:
            change()


def _prepared(rewiring: Rewiring, optimizers: Sequence[Optimizer]) -> list[Callable[[], Any]]:
    """Return the assignments that carry a rewiring out; none of them can fail."""
    layer, values = rewiring.layer, rewiring.layer.values
    if hasattr(values, "device_mesh"):
        raise SpecError(
            f"{type(layer).__name__} is sharded over processes and cannot be rewired: prune and regrow before sharding."
        )
    now, rows = places_of(layer), layer._stored_sizes[1]
    source = np.searchsorted(now, rewiring.places)
    known = source < len(now)
    known[known] = now[source[known]] == rewiring.places[known]
    origin = torch.from_numpy(source[known]).to(values.device)
    target = torch.from_numpy(np.flatnonzero(known)).to(values.device)

    def followed(tensor: Tensor) -> Tensor:
        moved = tensor.new_zeros(len(rewiring.places), *tensor.shape[1:])
        moved[target] = tensor[origin]
        return moved

    next_values = followed(values.data)
    if rewiring.newcomers is not None:
        next_values[torch.from_numpy(np.flatnonzero(~known)).to(values.device)] = rewiring.newcomers.to(next_values)
    buffers = layer._buffers_of(_pattern(rewiring.places, layer._stored_sizes[0], rows))
    changes: list[Callable[[], Any]] = [lambda: layer._install(*buffers), _replaced(values, next_values)]
    if values.grad is not None:
        gradient = followed(values.grad)
        changes.append(lambda: setattr(values, "grad", gradient))
    for optimizer in optimizers:
        state = optimizer.state.get(values, {})
        for name in _following(state, values, optimizer):
            changes.append(_replaced_in(state, name, followed(state[name])))
    return changes


def _pattern(places: Places, n_in: int, n_out: int) -> sp.csr_array:
    """Return the canonical pattern that has its connections at rising places."""
    rows, columns = np.divmod(places, n_out)
    indptr = np.zeros(n_in + 1, np.int32)
    np.cumsum(np.bincount(rows, minlength=n_in), out=indptr[1:])
    pattern = sp.csr_array((np.ones(len(places), np.bool_), columns.astype(np.int32), indptr), shape=(n_in, n_out))
    pattern.has_canonical_format = True
    return pattern


def _replaced(parameter: Tensor, data: Tensor) -> Callable[[], Any]:
    """Give a parameter new data: in its own memory where it fits, so that graphs which know the address stay right."""
    if parameter.shape == data.shape:
        return lambda: parameter.data.copy_(data)

    def resize() -> None:
        parameter.grad = None  # of the old shape; what follows it is set afterwards
        parameter.data = data

    return resize


def _replaced_in(state: dict[str, Any], name: str, data: Tensor) -> Callable[[], Any]:
    if state[name].shape == data.shape:
        return lambda: state[name].copy_(data)
    return lambda: state.__setitem__(name, data)


def _following(state: dict[str, Any], values: Tensor, optimizer: Optimizer) -> list[str]:
    """Return the names of the state tensors that have one entry for each value; refuse what could not follow."""
    names = []
    for name, entry in state.items():
        if isinstance(entry, Tensor) and entry.shape == values.shape:
            names.append(name)
        elif (isinstance(entry, Tensor) and entry.numel() > 1) or isinstance(entry, (list, tuple, dict)):
            shape = f"shape {tuple(entry.shape)}" if isinstance(entry, Tensor) else f"a {type(entry).__name__}"
            raise SpecError(
                f"The optimizer of a rewired layer must keep state of the shape of its values, {tuple(values.shape)}, "
                f"or single numbers. {type(optimizer).__name__} keeps '{name}', {shape}."
            )
    return names


@contextmanager
def _undisturbed() -> Generator[None]:
    """Let Ctrl-C wait until the block is through; only the main thread receives it, so others need no such care."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: arrived.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
        if arrived and callable(before):
            before(*arrived[-1])
