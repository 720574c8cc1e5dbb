"""Change which connections layers have: pattern, values, gradients and optimizer state together, or nothing.

A *place* is a position in the dense matrix of a layer's stored pattern, counted row-major: input * outputs + output.
The places of the stored connections rise in value ordering.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from topogen_torch._passes import Places, can_follow, csr_index, exchanged, flat_places, follow
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
    changes, moves = _prepared(rewirings, optimizers)
    on_cpu = all(rewiring.layer.values.is_cpu for rewiring in rewirings)
    size = sum(len(rewiring.places) for rewiring in rewirings) if on_cpu else 0
    assignments = _computed(changes, size)
    movers = _movers(moves)
    with undisturbed():
        for assign in assignments:
            assign()
        together([mover.move for mover in movers], size=size)


def refuse_sharded(layer: Patterned, name: str = "") -> None:
    """Raise `SpecError` for a layer whose values are spread over processes, as FSDP does."""
    if hasattr(layer.values, "device_mesh"):
        raise SpecError(
            f"{type(layer).__name__}{name and ' ' + name} is sharded over processes and cannot be rewired: prune and "
            "regrow before sharding, or train it replicated, as DistributedDataParallel does."
        )


class _Change(NamedTuple):
    """Something that is computed first and put in place afterwards.

    Attributes
    ----------
    parts : tuple of callable
        What computes and allocates everything; none depends on another.
    put : callable
        Takes their results in their order and puts them in place; it cannot fail.
    """

    parts: tuple[Callable[[], Any], ...]
    put: Callable[..., Any]


class _Follower(NamedTuple):
    """A tensor with one entry for each value, whose entries follow the connections.

    Attributes
    ----------
    tensor : Tensor
    origins : ndarray of int32
        Which entry is to stand at each place, -1 for a new one.
    put : callable
        Makes another tensor take its place.
    may_stay : bool
        Whether the entries may take their new places in the tensor's own memory.
    newcomers : Tensor, optional
        The new entries; 0 without it.
    """

    tensor: Tensor
    origins: Origins
    put: Callable[[Tensor], Any]
    may_stay: bool = True
    newcomers: Tensor | None = None

    @property
    def can_stay(self) -> bool:
        """Whether they may, and can."""
        fits = _is_plain(self.tensor) and self.tensor.is_contiguous() and len(self.tensor) == len(self.origins)
        return self.may_stay and fits

    def changed(self) -> _Change:
        """Return the change to a new tensor."""
        return _Change((partial(_followed, self.tensor.detach(), self.origins, self.newcomers),), self.put)


class _Mover:
    """Lets the entries of tensors take other places in their own memory; that cannot fail.

    One scratch buffer serves all of them: new memory for each tensor takes longer than moving its entries.
    """

    def __init__(self, followers: Sequence[_Follower]) -> None:
        self._moves = [(_as_ints(one.tensor), one.origins) for one in followers]
        self._scratch = np.empty(max(entries.nbytes for entries, _ in self._moves), np.uint8)

    def move(self) -> None:
        for entries, origins in self._moves:
            moved = self._scratch[: entries.nbytes].view(entries.dtype)
            follow(entries, origins, moved)
            entries[:] = moved


def _prepared(rewirings: Sequence[Rewiring], optimizers: Sequence[Optimizer]) -> tuple[list[_Change], list[_Follower]]:
    """Return what is computed anew, and the tensors whose entries move within their memory."""
    followers = [one for rewiring in rewirings for one in _followers(rewiring, optimizers)]
    # What shares memory must not be moved twice: a state tensor may be the gradient, or another layer's.
    held = Counter(_memory(one.tensor) for one in followers)
    moves = [one for one in followers if one.can_stay and held[_memory(one.tensor)] == 1]
    if not can_follow(_as_ints(one.tensor).dtype for one in moves):
        moves = []
    moving = set(map(id, moves))
    changes = [_installed(rewiring) for rewiring in rewirings]
    return changes + [one.changed() for one in followers if id(one) not in moving], moves


def _computed(changes: Sequence[_Change], size: int) -> list[Callable[[], Any]]:
    """Compute all parts of all changes; return what puts them in place."""
    # What takes longest first, so that threads end together: the second part of an index. Both parts of a layer's begin
    # with one pattern, which is there by the time another thread asks for it.
    order = sorted(((k, n) for k, one in enumerate(changes) for n in range(len(one.parts))), key=lambda part: -part[1])
    results = dict(zip(order, together([changes[k].parts[n] for k, n in order], size=size), strict=True))
    return [partial(one.put, *(results[k, n] for n in range(len(one.parts)))) for k, one in enumerate(changes)]


def _movers(moves: Sequence[_Follower]) -> list[_Mover]:
    """Share the moves out among as many movers as there are threads."""
    count = min(torch.get_num_threads(), len(moves))
    return [_Mover(moves[k::count]) for k in range(count)]


def _installed(rewiring: Rewiring) -> _Change:
    """Return the change of a layer's buffers."""
    layer = rewiring.layer
    pattern = cache(lambda: _pattern(rewiring.places, *layer._stored_sizes))
    return _Change(
        (lambda: layer._stored_buffers(pattern()), lambda: layer._derived_buffers(pattern())), layer._install
    )


def _followers(rewiring: Rewiring, optimizers: Sequence[Optimizer]) -> Iterator[_Follower]:
    """Yield what follows the connections of a layer, in the order in which it is put in place.

    First the state in optimizers, which may share the values' memory, then the values, then their gradient, which must
    have their shape.
    """
    values, newcomers = rewiring.layer.values, rewiring.newcomers
    origins = rewiring.origins_in(places_of(rewiring.layer) if rewiring.origins is None else rewiring.places[:0])
    for optimizer in optimizers:
        state = optimizer.state.get(values, {})
        for name in _following(state, values, optimizer):
            yield _Follower(state[name], origins, partial(_replace_in, state, name))
    yield _Follower(values, origins, partial(_replace, values), may_stay=newcomers is None, newcomers=newcomers)
    if (gradient := values.grad) is not None:  # autograd may have given its memory to another parameter too
        yield _Follower(gradient, origins, partial(setattr, values, "grad"), may_stay=False)


def _memory(tensor: Tensor) -> int:
    """Return where a tensor's memory begins; 0 for tensors of other kinds, which are never moved."""
    return tensor.untyped_storage().data_ptr() if type(tensor) in (Tensor, nn.Parameter) else 0


def _followed(tensor: Tensor, origins: Origins, newcomers: Tensor | None = None) -> Tensor:
    """Return a tensor's entries in the order of `origins`; where these are negative, newcomers or 0."""
    if _is_plain(tensor):
        result = torch.empty(len(origins), dtype=tensor.dtype, device="cpu")
        follow(_as_ints(tensor), origins, _as_ints(result))
        if newcomers is not None:
            result[torch.from_numpy(np.flatnonzero(origins < 0))] = newcomers.to(result)
        return result
    new = torch.from_numpy(np.flatnonzero(origins < 0)).to(tensor.device)
    if len(new) == len(origins):
        result = tensor.new_zeros(len(origins), *tensor.shape[1:])
    else:
        source = torch.from_numpy(np.maximum(origins, 0) if len(new) else origins).to(tensor.device)
        result = tensor.index_select(0, source).index_fill_(0, new, 0)
    if newcomers is not None:
        result[new] = newcomers.to(result)
    return result


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
