"""Several processes that train one model must have one topology."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from topogen.errors import TopogenError
from topogen_torch._patterned import Patterned

__all__ = ["check_ranks"]


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


def _gathered(mine: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """Return the tensors of all ranks, one row each."""
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, mine.contiguous(), group=group)
    return torch.stack(parts)


def _agree(what: str, found: Sequence[object]) -> None:
    for rank, value in enumerate(found):
        if value != found[0]:
            raise TopogenError(f"Every rank must have the same {what}. Rank 0 has {found[0]}, rank {rank} has {value}.")
