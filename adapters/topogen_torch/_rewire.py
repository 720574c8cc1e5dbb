"""Change which connections layers have: pattern, values, gradients and optimizer state together, or nothing.

A *place* is a position in the dense matrix of a layer's stored pattern, counted row-major: input * outputs + output.
The places of the stored connections rise in value ordering.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from topogen.errors import SpecError
from topogen_torch._passes import Places, csr_index, exchanged, flat_places, follow
from topogen_torch._patterned import Patterned, resize
from topogen_torch._signals import undisturbed
from topogen_torch._together import together

__all__ = ["Places", "Rewiring", "places_of", "refuse_sharded", "rewire"]

Origins = NDArray[np.int32]

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # what numbers of so many bytes are moved as


@dataclass(frozen=True, slots=True)
class Rewiring:
    """What one layer is to become.

    Attributes
    ----------
    layer : Patterned
    places : ndarray of int32 or int64
        Where the layer will have connections: rising, each once. A place that is occupied now keeps its value and the
        optimizer's state bit for bit, whatever else happens; every other one is a newcomer.
    newcomers : Tensor, shape (number of newcomers, *unit), optional
        Their values, in the order of their places; 0 without it. Their optimizer state is 0 in any case.
    origins : ndarray of int32, shape of `places`, optional
        Which unit of the layer each place has now, -1 for newcomers; found by search where the caller does not know.
    grown : ndarray of int32 or int64, optional
        Some of the places, all newcomers among them, where the caller knows.
    """

    layer: Patterned
    places: Places
    newcomers: Tensor | None = None
    origins: Origins | None = None
    grown: Places | None = None

    @classmethod
    def keeping(cls, layer: Patterned, kept: NDArray[Any]) -> Rewiring:
        """Return the rewiring that leaves the units of these rising indices, or of a mask, and no others."""
        kept = np.flatnonzero(kept) if kept.dtype == np.bool_ else kept
        return cls(layer, places_of(layer)[kept], origins=kept.astype(np.int32), grown=np.empty(0, np.int32))

    @classmethod
    def exchanging(cls, layer: Patterned, now: Places, dropped: NDArray[Any], grown: Places) -> Rewiring | None:
        """Return the rewiring that drops units of a layer and grows others; None if these are no places for that.

        Parameters
        ----------
        layer : Patterned
        now : ndarray of int32 or int64
            `places_of` the layer.
        dropped : ndarray of int64 or of bool
            Indices of units, each once, or a mask of them.
        grown : ndarray of int32 or int64
            Rising places, each once, that are empty once the dropped ones are gone.
        """
        n_in, n_out = layer._stored_sizes
        if len(grown) and not (grown[0] >= 0 and grown[-1] < n_in * n_out and (grown[1:] > grown[:-1]).all()):
            return None
        gone = dropped
        if dropped.dtype != np.bool_:
            gone = np.zeros(len(now), np.bool_)
            gone[dropped] = True
        places, origins, taken = exchanged(now, gone, grown.astype(now.dtype, copy=False))
        return None if taken else cls(layer, places, origins=origins, grown=grown)

    def origins_in(self, now: Places) -> Origins:
        """Return `origins`, found by search if need be."""
        if self.origins is not None:
            return self.origins
        source = np.searchsorted(now, self.places)
        known = source < len(now)
        known[known] = now[source[known]] == self.places[known]
        return np.where(known, source, -1).astype(np.int32)


def places_of(layer: Patterned) -> Places:
    """Return where the layer has connections, rising: int32 where that can number every place of it, else int64."""
    return flat_places(layer.indptr.cpu().numpy(), layer.indices.cpu().numpy(), layer._stored_sizes[1])


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
    rewirings = list(rewirings)
    for rewiring in rewirings:
        refuse_sharded(rewiring.layer)
    changes = [_installed(rewiring) for rewiring in rewirings]
    moves: list[_Move] = []
    for rewiring in rewirings:
        further, own = _followed_by(rewiring, optimizers)
        changes += further
        moves += own
    on_cpu = all(rewiring.layer.values.is_cpu for rewiring in rewirings)
    size = sum(len(rewiring.places) for rewiring in rewirings) if on_cpu else 0
    # What takes longest first, so that threads end together: the second part of an index. Both parts of a layer's begin
    # with one pattern, which is there by the time another thread asks for it.
    parts = sorted(
        ((k, n) for k, change in enumerate(changes) for n in range(len(change.parts))), key=lambda part: -part[1]
    )
    results = dict(zip(parts, together([changes[k].parts[n] for k, n in parts], size=size), strict=True))
    assignments = [
        partial(change.put, *(results[k, n] for n in range(len(change.parts)))) for k, change in enumerate(changes)
    ]
    count = min(torch.get_num_threads(), len(moves))
    hands = [_Hand(moves[k::count]) for k in range(count)]
    with undisturbed():
        for assign in assignments:
            assign()
        together([hand.move for hand in hands], size=size)


def refuse_sharded(layer: Patterned, name: str = "") -> None:
    """Raise `SpecError` for a layer whose values are spread over processes, as FSDP does."""
    if hasattr(layer.values, "device_mesh"):
        raise SpecError(
            f"{type(layer).__name__}{name and ' ' + name} is sharded over processes and cannot be rewired: prune and "
            "regrow before sharding, or train it replicated, as DistributedDataParallel does."
        )


class _Change(NamedTuple):
    """A part of a rewiring.

    Attributes
    ----------
    parts : tuple of callable
        What computes and allocates everything; they depend on nothing.
    put : callable
        Takes their results and puts them in place; it cannot fail. Of one layer's, in the order they are given in.
    """

    parts: tuple[Callable[[], Any], ...]
    put: Callable[..., Any]


class _Move(NamedTuple):
    """Entries of a tensor that are to take other places in it.

    Attributes
    ----------
    entries : ndarray of ints
        The tensor's memory.
    origins : ndarray of int32
        Of its new entries.
    """

    entries: NDArray[np.signedinteger]
    origins: Origins


class _Hand:
    """Carries moves out, which cannot fail: one room for all of them, since new memory for each would take longer."""

    def __init__(self, moves: Sequence[_Move]) -> None:
        self.moves = moves
        self._room = np.empty(max(move.entries.nbytes for move in moves), np.uint8)

    def move(self) -> None:
        for entries, origins in self.moves:
            moved = self._room[: entries.nbytes].view(entries.dtype)
            follow(entries, origins, moved)
            entries[:] = moved


def _installed(rewiring: Rewiring) -> _Change:
    """Return the change of a layer's buffers."""
    layer = rewiring.layer
    pattern = cache(lambda: _pattern(rewiring.places, *layer._stored_sizes))
    return _Change(
        (lambda: layer._stored_buffers(pattern()), lambda: layer._derived_buffers(pattern())), layer._install
    )


def _followed_by(rewiring: Rewiring, optimizers: Sequence[Optimizer]) -> tuple[list[_Change], list[_Move]]:
    """Return what happens to the values, their gradient and their state in optimizers."""
    values = rewiring.layer.values
    origins = rewiring.origins_in(places_of(rewiring.layer) if rewiring.origins is None else rewiring.places[:0])
    changes: list[_Change] = []
    moves: list[_Move] = []

    def follows(tensor: Tensor, put: Callable[[Tensor], None]) -> None:
        if _is_plain(tensor) and tensor.is_contiguous() and len(tensor) == len(origins):
            moves.append(_Move(_as_ints(tensor), origins))
        else:
            changes.append(_Change((partial(_followed, tensor, origins),), put))

    def valued() -> Tensor:
        next_values = _followed(values.data, origins)
        if rewiring.newcomers is not None:
            new = torch.from_numpy(np.flatnonzero(origins < 0)).to(values.device)
            next_values[new] = rewiring.newcomers.to(next_values)
        return next_values

    if rewiring.newcomers is None:
        follows(values, partial(_replace, values))
    else:
        changes.append(_Change((valued,), partial(_replace, values)))
    if (gradient := values.grad) is not None:
        follows(gradient, partial(setattr, values, "grad"))
    for optimizer in optimizers:
        state = optimizer.state.get(values, {})
        for name in _following(state, values, optimizer):
            follows(state[name], partial(_replace_in, state, name))
    return changes, moves


def _followed(tensor: Tensor, origins: Origins) -> Tensor:
    """Return a tensor's entries in the order of `origins`, 0 where these are negative."""
    if _is_plain(tensor):
        result = torch.empty(len(origins), dtype=tensor.dtype, device="cpu")
        follow(_as_ints(tensor), origins, _as_ints(result))
        return result
    new = np.flatnonzero(origins < 0)
    if len(new) == len(origins):
        return tensor.new_zeros(len(origins), *tensor.shape[1:])
    source = torch.from_numpy(np.maximum(origins, 0) if len(new) else origins).to(tensor.device)
    return tensor.index_select(0, source).index_fill_(0, torch.from_numpy(new).to(tensor.device), 0)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.ndim == 1 and type(tensor) in (Tensor, nn.Parameter)


def _as_ints(tensor: Tensor) -> NDArray[np.signedinteger]:
    """Return a plain tensor's entries as ints of their size, in its own memory if that is contiguous."""
    return tensor.detach().contiguous().view(_BITS[tensor.itemsize]).numpy()


def _pattern(places: Places, n_in: int, n_out: int) -> sp.csr_array:
    """Return the canonical pattern that has its connections at rising places."""
    indptr, indices = csr_index(places, n_in, n_out)
    pattern = sp.csr_array((np.ones(len(places), np.bool_), indices, indptr), shape=(n_in, n_out))
    pattern.has_canonical_format = True
    return pattern


def _replace(parameter: nn.Parameter, data: Tensor) -> None:
    """Give a parameter new data: in its own memory where it fits, so that graphs which know the address stay right."""
    if parameter.shape == data.shape:
        parameter.data.copy_(data)
    else:
        resize(parameter, data)  # without a gradient; what follows it is set afterwards


def _replace_in(state: dict[str, Any], name: str, data: Tensor) -> None:
    if state[name].shape == data.shape:
        state[name].copy_(data)
    else:
        state[name] = data


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
