"""Training steps of a whole model beside its densified copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from topogen.errors import SpecError
from topogen_torch._conversion._kinds import is_sparse
from topogen_torch._conversion._swap import densified
from topogen_torch._reports._memory import peak_of_a_step
from topogen_torch._reports._report_table import compared
from topogen_torch._reports._timing import Inputs, Seconds, calls_of, check_room, medians

__all__ = ["Whole", "measure_whole"]


class Whole(NamedTuple):
    """What one call of the whole model takes, beside a copy whose topogen layers are dense.

    Attributes
    ----------
    seconds, dense_seconds : Seconds or None
        Medians; the inputs get no gradient, as in training.
    peak, dense_peak : int or None
        Bytes by which resident memory rises for two training steps of a fresh copy.
    not_measured : str
        Why there is nothing, if so.
    """

    seconds: Seconds | None = None
    dense_seconds: Seconds | None = None
    peak: int | None = None
    dense_peak: int | None = None
    not_measured: str = ""

    def lines(self, optimizer: str) -> Iterator[str]:
        """Say it in words."""
        if self.seconds is None or self.dense_seconds is None:
            yield f"whole model: not measured, {self.not_measured}."
            return
        pairs = zip(("forward", "+ backward", f"step with {optimizer}"), self.seconds, self.dense_seconds, strict=True)
        times = ", ".join(f"{name} {compared(own, dense, 1e-3)}" for name, own, dense in pairs)
        yield f"whole model beside its densified copy, in turns [ms]: {times};"
        yield f"       peak of two training steps [MB]: {compared(self.peak, self.dense_peak, 1e6)}."


def measure_whole(model: nn.Module, sample: Inputs | None, optimizer: str) -> Whole:
    """Time a copy of the model and its densified copy in turns, on the sample, in the mode that the model is in."""
    if not any(is_sparse(module) for module in model.modules()):
        return Whole(not_measured="it has no sparse layer")
    if sample is None:
        return Whole(not_measured="it needs a sample")
    first = next(model.parameters())
    if first.is_meta:
        return Whole(not_measured="it holds no data")
    try:
        with torch.inference_mode(False), torch.enable_grad():
            calls = calls_of(copy.deepcopy(model), sample, optimizer, input_gradients=False)
            check_room(model)
            calls += calls_of(densified(model), sample, optimizer, input_gradients=False)
            found = medians(calls, first.device)
            del calls
        peak, dense_peak = peak_of_a_step(model, sample, optimizer, input_gradients=False)
    except (SpecError, RuntimeError, ValueError) as error:  # the model's own, or the dense one does not fit
        return Whole(not_measured=" ".join(str(error).split()).rstrip("."))
    return Whole(Seconds(*found[:3]), Seconds(*found[3:]), peak, dense_peak)
