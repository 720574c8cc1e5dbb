"""How much of the growth each layer gets: rules of redistribution.

A rule is any callable ``rule(layer, optimizer) -> number``, finite and not negative: what is dropped in all layers
together grows again in proportion to these numbers, as far as a layer has empty places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from topogen.errors import SpecError
from topogen_torch._patterned import Patterned
from topogen_torch.controllers._places import largest_remainders
from topogen_torch.controllers._probe import mean_over_processes

__all__ = ["Redistribution", "mean_gradient", "mean_momentum", "shared_out"]

Redistribution = Callable[[Patterned, Any], float]


def mean_momentum(layer: Patterned, optimizer: Optimizer | None) -> float:
    """Return the mean absolute momentum of a layer's weights; 0 for a layer without connections.

    The momentum is the optimizer's: ``momentum_buffer`` of SGD and its kin, ``exp_avg`` of Adam and its kin, divided by
    ``sqrt(exp_avg_sq) + 1e-8`` where the optimizer keeps that, as the authors' program does.

    Parameters
    ----------
    layer : Patterned
    optimizer : torch.optim.Optimizer or None

    Returns
    -------
    float

    Raises
    ------
    SpecError
        If the optimizer keeps no momentum, or there is none.

    References
    ----------
    T. Dettmers and L. Zettlemoyer, "Sparse networks from scratch: faster training without losing performance",
    arXiv:1907.04840, section 3.
    """
    state: dict[str, Any] = {} if optimizer is None else optimizer.state.get(layer.values, {})
    first, second = state.get("momentum_buffer", state.get("exp_avg")), state.get("exp_avg_sq")
    if not isinstance(first, Tensor):
        got = "None" if optimizer is None else f"{type(optimizer).__name__}, with state {sorted(state)}"
        raise SpecError(
            "Redistribution by momentum needs an optimizer that keeps some, as SGD(momentum=0.9) and Adam do, and has "
            f"made a step. Got {got}: mean_gradient does without."
        )
    if "momentum_buffer" not in state and second is not None:
        first = first / (second.sqrt() + 1e-8)
    return _mean(first)


def mean_gradient(layer: Patterned, optimizer: Optimizer | None) -> float:
    """Return the mean absolute gradient of a layer's weights in this step; 0 for a layer without connections.

    In a process group the gradient is averaged over the processes first.

    Parameters
    ----------
    layer : Patterned
    optimizer : torch.optim.Optimizer or None
        Not looked at.

    Returns
    -------
    float

    Raises
    ------
    SpecError
        If the layer's values hold no gradient.
    """
    gradient = layer.values.grad
    if gradient is None:
        raise SpecError(
            "Redistribution by gradient needs the gradients of all controlled layers' values. Got none: call step() "
            "before optimizer.zero_grad(), and leave layers out that the loss does not reach."
        )
    return _mean(mean_over_processes([gradient])[0])


def shared_out(total: int, shares: Sequence[float], capacities: Sequence[int]) -> list[int]:
    """Share a number out in proportion, as far as capacities reach; what does not fit goes to the others.

    Parameters
    ----------
    total : int >= 0
        At most the sum of the capacities.
    shares : sequence of float >= 0
        Where all that have room left are 0, their room counts.
    capacities : sequence of int >= 0

    Returns
    -------
    list of int
        Their sum is `total`: rounded down, then the largest remainders, the first of equal ones, up.
    """
    exact = [Fraction(0)] * len(shares)
    weights = [Fraction(share) for share in shares]
    left, open_ones = Fraction(total), set(range(len(shares)))
    while left and open_ones:
        whole = sum(weights[k] for k in open_ones)
        if not whole:
            for k in open_ones:
                weights[k] = Fraction(capacities[k])
            whole = sum(weights[k] for k in open_ones)
        full = {k for k in open_ones if left * weights[k] >= whole * capacities[k]}
        if not full:
            for k in open_ones:
                exact[k] = left * weights[k] / whole
            break
        for k in full:
            exact[k] = Fraction(capacities[k])
        left -= sum(exact[k] for k in full)
        open_ones -= full
    return largest_remainders(exact)


def _mean(entries: Tensor) -> float:
    return float(entries.detach().double().abs().mean()) if entries.numel() else 0.0
