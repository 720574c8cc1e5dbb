"""Several processes that train one model must have one topology."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from topogen.errors import TopogenError
from topogen_torch._patterned import Patterned

__all__ = ["check_ranks", "check_same", "retire_wrappers"]


def check_ranks(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Raise on every rank if the pattern of any layer differs between the ranks.

    DDP and FSDP average values place by place: where a pattern differs, weights of different connections are mixed,
    and nothing else would ever say so.

    Parameters
    ----------
    model : nn.Module
        The same model on every rank, wrapped or not. Every rank of the group must call.
    group : ProcessGroup, optional
        The default group if None. Without an initialised group there is one rank, which agrees with itself.

    Raises
    ------
    TopogenError
        Naming the first layer that differs, and the hashes of its pattern on two ranks that disagree.

    Notes
    -----
    One exchange of 32 bytes a layer. Hashes are those of `topogen.pattern_hash`.
    """
    if not dist.is_available() or not dist.is_initialized():
        return
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Patterned)}
    device = next((layer.pattern_hash.device for layer in layers.values()), torch.device("cpu"))
    counts = _gathered(torch.tensor([len(layers)], device=device), group)
    _agree("number of sparse layers", counts.flatten().tolist())
    if not layers:
        return
    hashes = torch.stack([layer.pattern_hash for layer in layers.values()])
    every = _gathered(hashes, group).tolist()
    for k, name in enumerate(layers):
        _agree(f"pattern in layer '{name or '(model)'}'", [bytes(row[k]).hex()[:12] for row in every])


def check_same(what: str, text: str, device: torch.device) -> None:
    """Raise on every rank if a text differs between the ranks; in the message stand the beginnings of its hashes."""
    if dist.is_available() and dist.is_initialized():
        mine = torch.frombuffer(bytearray(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8).to(device)
        _agree(what, [bytes(row).hex()[:12] for row in _gathered(mine, None).tolist()])


def retire_wrappers(layers: Sequence[Patterned]) -> None:
    """Let every DistributedDataParallel that holds one of these layers refuse to be called from now on.

    It reduces gradients by the shapes and the autograd nodes that parameters had when it was made. Where the number of
    connections has changed since, it would leave a layer's gradient out, and train the ranks apart, before it notices.
    """
    if not layers or not dist.is_available() or not dist.is_initialized():
        return
    held = {id(layer) for layer in layers}
    for wrapper in [thing for thing in gc.get_objects() if issubclass(type(thing), DistributedDataParallel)]:
        if any(id(module) in held for module in wrapper.module.modules()):
            wrapper.register_forward_pre_hook(_refuse_call, prepend=True)


def _refuse_call(wrapper: nn.Module, inputs: tuple[Any, ...]) -> None:
    raise TopogenError(
        "A DistributedDataParallel must be made anew when the number of connections of a layer has changed. Got a call "
        "of one that was made before: wrap the model again after every controller's step() that returns True."
    )


def _gathered(mine: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """Return the tensors of all ranks, one row each."""
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, mine.contiguous(), group=group)
    return torch.stack(parts)


def _agree(what: str, found: Sequence[object]) -> None:
    for rank, value in enumerate(found):
        if value != found[0]:
            raise TopogenError(f"Every rank must have the same {what}. Rank 0 has {found[0]}, rank {rank} has {value}.")
