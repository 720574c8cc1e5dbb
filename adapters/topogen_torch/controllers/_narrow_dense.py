"""The dense network that a sparse one has to beat: as many parameters, in narrower layers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from topogen import checks
from topogen.errors import SpecError

__all__ = ["narrow_dense", "narrow_sizes"]


def narrow_dense(
    sizes: Sequence[int],
    *,
    parameters: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    bias: bool = True,
    dtype: torch.dtype | None = None,
    device: torch.device | str | int | None = None,
) -> nn.Sequential:
    """Return a dense multilayer perceptron with a given number of parameters: the same network, but narrower.

    Parameters
    ----------
    sizes : sequence of at least 2 ints >= 1
        Neurons of each layer of nodes of the wide network. Inputs and outputs stay, hidden layers shrink together.
    parameters : int
        Weights and biases wanted, those of the sparse network say: ``sum(p.numel() for p in model.parameters())``.
    activation : callable
        Called without arguments for a module to stand between two layers.
    bias : bool
        Whether layers have biases; they count.
    dtype, device
        As for `torch.nn.Linear`.

    Returns
    -------
    nn.Sequential
        Of `torch.nn.Linear` and activations, with the hidden sizes of `narrow_sizes`, whose number of parameters is the
        nearest to what was asked for.

    Raises
    ------
    SpecError
        If a parameter is none of these, or `parameters` is more than the wide network has, or fewer than with one
        neuron in each hidden layer.

    References
    ----------
    "Small-dense" in U. Evci et al., arXiv:1911.11134, section 4.1.

    Examples
    --------
    >>> import topogen_torch as tt
    >>> model = tt.narrow_dense([784, 300, 100, 10], parameters=26_620)
    >>> [layer.out_features for layer in model[::2]], sum(p.numel() for p in model.parameters())
    ([33, 11, 10], 26399)
    """
    if not callable(activation):
        checks.refuse("activation", "narrow_dense", "a callable that returns a module", activation)
    widths, _ = narrow_sizes(sizes, parameters=parameters, bias=bias)
    modules: list[nn.Module] = []
    for n_in, n_out in zip(widths, widths[1:], strict=False):
        if modules:
            modules.append(activation())
        modules.append(nn.Linear(n_in, n_out, bias=bias, dtype=dtype, device=device))
    return nn.Sequential(*modules)


def narrow_sizes(sizes: Sequence[int], *, parameters: int, bias: bool = True) -> tuple[tuple[int, ...], int]:
    """Return the sizes of the narrower dense network that has nearly a given number of parameters, and that number.

    Every hidden layer of n neurons gets ``max(1, round(s n))``, with the one s in (0, 1] whose network has the number
    of parameters nearest to what is asked for; of two that are as near the smaller.

    Parameters
    ----------
    sizes : sequence of at least 2 ints >= 1
        Neurons of each layer of nodes of the wide network.
    parameters : int
        Weights and biases wanted.
    bias : bool
        Whether biases count.

    Returns
    -------
    sizes : tuple of int
    parameters : int
        What a dense network of these sizes has, exactly.

    Raises
    ------
    SpecError
        As `narrow_dense`.

    Examples
    --------
    >>> import topogen_torch as tt
    >>> tt.narrow_sizes([784, 300, 100, 10], parameters=26_620)
    ((784, 33, 11, 10), 26399)
    """
    owner = "narrow_dense"
    wide = checks.integers(sizes, "sizes", owner, low=1, at_least=2)
    wanted = checks.integer(parameters, "parameters", owner, low=1)
    checks.instance(bias, "bias", owner, bool)
    # every factor at which a hidden layer gets one neuron more, and the widths from there on
    steps = sorted({Fraction(2 * k + 1, 2 * n) for n in wide[1:-1] for k in range(1, n)} | {Fraction(0)})
    least, most = _count(_scaled(wide, steps[0]), bias), _count(wide, bias)
    if not least <= wanted <= most:
        nearest = least if wanted < least else most
        raise SpecError(
            f"The 'parameters' parameter of narrow_dense must be in [{least}, {most}] for the sizes {list(wide)}. "
            f"Got {wanted}; the nearest is {nearest}."
        )
    above = bisect_right(steps, wanted, key=lambda factor: _count(_scaled(wide, factor), bias))
    near = [_scaled(wide, factor) for factor in steps[max(0, above - 1) : above + 1]]
    best = min(near, key=lambda widths: abs(_count(widths, bias) - wanted))
    return best, _count(best, bias)


def _scaled(sizes: tuple[int, ...], factor: Fraction) -> tuple[int, ...]:
    """Return the sizes with hidden layers scaled and rounded, halves up."""
    hidden: list[int] = [max(1, int(factor * n + Fraction(1, 2))) for n in sizes[1:-1]]
    return (sizes[0], *hidden, sizes[-1])


def _count(sizes: Sequence[Any], bias: bool) -> int:
    return sum((n_in + bias) * n_out for n_in, n_out in zip(sizes, sizes[1:], strict=False))
