"""Rewinding: a pruned model goes back to the numbers that its connections had before."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from topogen import checks
from topogen.errors import SpecError
from topogen_torch._layout import to_pattern
from topogen_torch._patterned import Patterned
from topogen_torch._rewire import Places, places_of

__all__ = ["followed", "rewind"]


def rewind(
    model: nn.Module,
    state: Mapping[str, Any],
    *,
    optimizer: Optimizer | None = None,
    optimizer_state: Mapping[str, Any] | None = None,
    buffers: bool = True,
) -> None:
    """Give a pruned model the numbers that an earlier state has for the connections that are left.

    Parameters
    ----------
    model : nn.Module
        Its patterns stay as they are.
    state : mapping
        A ``state_dict()`` of the same model when it had these connections, and perhaps more: a copy, since a state
        dict shares its tensors with the model.
    optimizer : torch.optim.Optimizer, optional
        Goes back as well.
    optimizer_state : mapping, optional
        Its ``state_dict()`` of the same time, a copy: learning rates and the like are taken over, and the state of
        every connection that is left. Without it `optimizer` loses its state, as if it were new, and keeps its
        settings.
    buffers : bool
        Whether running statistics and other buffers go back too.

    Raises
    ------
    SpecError
        If a state is not one of this model or optimizer, or lacks a connection. Nothing is changed.

    Notes
    -----
    Parameters keep their identity. A learning-rate schedule has a state of its own: load it after this call,
    ``scheduler.load_state_dict(...)``. `LotteryTicket` does all of it.

    Examples
    --------
    >>> import copy, torch, topogen as tg, topogen_torch as tt
    >>> model = tt.sparse_mlp(tg.generate(tg.Dense(sizes=[20, 10])))
    >>> first = copy.deepcopy(model.state_dict())
    >>> _ = model[0].values.data.mul_(torch.rand(200))     # training
    >>> changed = tt.OneShot(model, density=0.1).step()
    >>> tt.rewind(model, first)
    >>> model[0].nnz, torch.isin(model[0].values, first["0.values"]).all().item()
    (20, True)
    """
    checks.instance(model, "model", "rewind", nn.Module)
    origins = _origins(model, state)
    sources = _sources(model, state, origins, buffers)
    packed: dict[str, Any] | None = None
    if optimizer is not None and optimizer_state is None:
        packed = {"state": {}, "param_groups": optimizer.state_dict()["param_groups"]}
    elif optimizer is not None and optimizer_state is not None:
        settings = copy.deepcopy(optimizer_state["param_groups"])
        packed = {"state": followed(model, state, optimizer, optimizer_state), "param_groups": settings}
    with torch.no_grad():
        for tensor, source in sources:
            tensor.copy_(source)
    if optimizer is not None and packed is not None:
        optimizer.load_state_dict(packed)


def _origins(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return for each layer's values, by name, where they stand among those of the state."""
    found: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, Patterned):
            continue
        prefix = f"{name}." if name else ""
        if not {f"{prefix}{key}" for key in ("values", "indptr", "indices")} <= set(state):
            raise SpecError(f"The 'state' parameter of rewind must be of the same model. Got nothing for '{name}'.")
        had, now = _places(layer, state, prefix), places_of(layer)
        origin = np.searchsorted(had, now)
        lacking = int((origin == len(had)).sum() + (had[origin[origin < len(had)]] != now[origin < len(had)]).sum())
        if lacking:
            raise SpecError(
                f"The 'state' parameter of rewind must have every connection that the model has. It lacks {lacking} of "
                f"the {len(now)} of '{name}'."
            )
        found[f"{prefix}values"] = torch.from_numpy(origin)
    return found


def _places(layer: Patterned, state: Mapping[str, Any], prefix: str) -> Places:
    n_out = layer._stored_sizes[1]
    pattern = to_pattern(state[f"{prefix}indptr"], state[f"{prefix}indices"], n_out)
    rows = np.repeat(np.arange(pattern.shape[0], dtype=np.int64), np.diff(pattern.indptr))
    return rows * n_out + pattern.indices


def _sources(
    model: nn.Module, state: Mapping[str, Any], origins: Mapping[str, Tensor], buffers: bool
) -> list[tuple[Tensor, Tensor]]:
    """Return what is to be overwritten, each with what it is overwritten by."""
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    if buffers:
        for name, module in model.named_modules():
            if not isinstance(module, Patterned):
                own = {f"{name}.{key}" if name else key: entry for key, entry in module.named_buffers(recurse=False)}
                tensors |= {key: entry for key, entry in own.items() if key in state}
    found: list[tuple[Tensor, Tensor]] = []
    for name, tensor in tensors.items():
        source = state.get(name)
        if isinstance(source, Tensor) and name in origins:
            source = source[origins[name].to(source.device)]
        if not isinstance(source, Tensor) or source.shape != tensor.shape:
            got = "nothing" if source is None else f"shape {tuple(source.shape)}"
            raise SpecError(
                f"The 'state' parameter of rewind must be of the same model, with shape {tuple(tensor.shape)} for "
                f"'{name}'. Got {got}."
            )
        found.append((tensor, source))
    return found


def followed(
    model: nn.Module, state: Mapping[str, Any], optimizer: Optimizer, optimizer_state: Mapping[str, Any]
) -> dict[Any, dict[str, Any]]:
    """Return an earlier state of the optimizer, without its settings, for the connections that are left.

    Parameters are as for `rewind`.
    """
    now, earlier = optimizer.state_dict()["param_groups"], optimizer_state["param_groups"]
    if [len(group["params"]) for group in earlier] != [len(group["params"]) for group in now]:
        raise SpecError(
            "The 'optimizer_state' parameter of rewind must be of the same optimizer. Got one of other parameters."
        )
    origins = _origins(model, state)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    found: dict[Any, dict[str, Any]] = {}
    for key, entries in optimizer_state["state"].items():
        name = names.get(id(held[key]), "")
        found[key] = {
            label: entry[origins[name].to(entry.device)]
            if name in origins and isinstance(entry, Tensor) and entry.shape == state[name].shape
            else copy.deepcopy(entry)
            for label, entry in entries.items()
        }
    return found
