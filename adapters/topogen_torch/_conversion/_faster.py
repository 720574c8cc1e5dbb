"""Which layers are faster sparse than dense, measured on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from topogen import checks
from topogen_torch._conversion._globs import quoted
from topogen_torch._conversion._kinds import kind_of
from topogen_torch._reports._sample import inputs_of_layers, random_state_kept, sample_inputs
from topogen_torch._reports._timing import Inputs, beside_dense, random_inputs

__all__ = ["not_faster"]

_BATCH = 64


def not_faster(model: nn.Module, twins: Mapping[str, tuple[nn.Module, nn.Module]], sample: Any) -> dict[str, str]:
    """Return those of the layers, by name (dense, sparse), that are not faster sparse, with what was measured.

    Forward and backward count in training mode, the forward pass in evaluation mode.
    """
    given = None if sample is None else sample_inputs(sample, "sparsify")
    slow: dict[str, str] = {}
    with random_state_kept(next(model.parameters()).device):
        reached = {} if given is None else inputs_of_layers(model, given, lambda module: kind_of(module) is not None)
        for name, (dense, sparse) in twins.items():
            inputs = reached.get(name) or _batch(sparse, name)
            seconds, beside = beside_dense(sparse, inputs)
            if seconds is None or beside is None:
                continue  # no data to compute with, or no room for the dense layer: nothing to choose from
            what = "forward_backward" if dense.training else "forward"
            own, other = getattr(seconds, what), getattr(beside, what)
            if own >= other:
                passes = what.replace("_", " + ")
                slow[name] = f"not faster, {passes} {own * 1e3:.3g} ms sparse and {other * 1e3:.3g} ms dense"
    return slow


def _batch(layer: nn.Module, name: str) -> Inputs:
    """Return a batch for a layer that no sample reaches; only of a linear layer is its shape known."""
    n_in: Any = getattr(layer, "in_features", None)
    if n_in is None:
        checks.refuse(
            "sample", "sparsify", "model inputs that reach every layer but linear ones, with only_if_faster=True", None,
            hint=f"{quoted(name)} is not reached.",
        )  # fmt: skip
    return random_inputs(layer, (_BATCH, n_in))
