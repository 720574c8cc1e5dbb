"""What may stand between two layers and treats every channel by itself: activations, norms, pools, flattening.

The words are those of `_narrow`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from topogen_torch._shrinking._narrow import Change, Mask, indices_of, numbers_of, replaced
from topogen_torch._stack import ELEMENTWISE

__all__ = ["Between", "Channelwise", "Constants", "Flattened", "Norm", "Pool", "between", "unchanged"]

_NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_UNCHANGED: tuple[type[nn.Module], ...] = (  # in evaluation mode
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
_POOLS = tuple(
    getattr(nn, f"{kind}Pool{n}d") for n in (1, 2, 3) for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg")
)


class Constants(NamedTuple):
    """Which channels, or features, have the same value for every sample and everywhere, and which value."""

    known: Mask
    values: NDArray[np.float64]


class Between:
    """What stands between two layers and treats every channel by itself: an elementwise function, if nothing else.

    Parameters
    ----------
    function : callable
        Maps numbers to numbers.
    """

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        self._function = function

    def fits(self, width: int, dimensions: int) -> bool:
        """Whether it treats so what has this many channels, in images of so many dimensions."""
        return True

    @torch.no_grad()
    def passed(self, constants: Constants) -> Constants:
        """Return the constants that come out of it in evaluation mode."""
        known, values = constants
        values = values.copy()
        values[known] = np.asarray(self._function(torch.from_numpy(values[known])))
        return Constants(known, values)

    def widened(self, channels: Mask) -> Mask:
        """Return the mask of what comes out for one of what goes in."""
        return channels

    def narrowed(self, channels: Mask, offset: NDArray[np.float64] | None) -> list[Change]:
        """Return what leaves only these channels of what goes in, which lacks `offset` from now on."""
        return []


class Flattened(Between):
    """Makes features of channels: each becomes `times` neighbours, as many as its image has numbers."""

    times = 1

    def __init__(self) -> None:
        super().__init__(unchanged)

    def passed(self, constants: Constants) -> Constants:
        return Constants(np.repeat(constants.known, self.times), np.repeat(constants.values, self.times))

    def widened(self, channels: Mask) -> Mask:
        return np.repeat(channels, self.times)


class Pool(Between):
    """Takes the largest number of each window, or the mean; `exact` says whether constants stay what they are."""

    def __init__(self, name: str, exact: bool) -> None:
        super().__init__(unchanged)
        self._dimensions, self._exact = int(name[-2]), exact

    def fits(self, width: int, dimensions: int) -> bool:
        return dimensions == self._dimensions

    def passed(self, constants: Constants) -> Constants:
        return constants if self._exact else Constants(constants.known & (constants.values == 0), constants.values)


class Channelwise(Between):
    """A module with one parameter, or several, for each channel."""

    _vectors: tuple[str, ...] = ("weight",)

    def __init__(self, module: Any) -> None:
        super().__init__(unchanged)
        self.module = module

    def fits(self, width: int, dimensions: int) -> bool:
        return self._width == width

    @property
    def _width(self) -> int:
        return self.module.num_parameters

    def narrowed(self, channels: Mask, offset: NDArray[np.float64] | None) -> list[Change]:
        if channels.all() and offset is None:
            return []
        module, changes = self.module, []
        for name in self._vectors:
            vector = getattr(module, name)
            if vector is not None:
                data, places = vector.data, indices_of(channels, vector)
                if name == "running_mean" and offset is not None:
                    data = (data.double() - torch.from_numpy(offset).to(data.device)).to(data.dtype)
                changes.append(replaced(vector, data[places], lambda gradient, places=places: gradient[places]))
        return changes


class _PReLU(Channelwise):
    """Has one slope for each channel, or one for all."""

    def fits(self, width: int, dimensions: int) -> bool:
        return self._width in (1, width)

    def passed(self, constants: Constants) -> Constants:
        known, values = constants
        return Constants(known, np.where(values >= 0, values, numbers_of(self.module.weight) * values))

    def narrowed(self, channels: Mask, offset: NDArray[np.float64] | None) -> list[Change]:
        if self._width == 1:
            return []
        count = int(channels.sum())
        return [*super().narrowed(channels, offset), lambda: setattr(self.module, "num_parameters", count)]


class Norm(Channelwise):
    """Batch normalisation. It can do without a constant that was added to what comes in: its running mean takes it."""

    _vectors = ("weight", "bias", "running_mean", "running_var")

    def __init__(self, module: Any, drop_zeros: bool) -> None:
        super().__init__(module)
        self._drop_zeros = drop_zeros

    @property
    def _width(self) -> int:
        return self.module.num_features

    def passed(self, constants: Constants) -> Constants:
        module, (known, values) = self.module, constants
        scale = np.ones(self._width) if module.weight is None else numbers_of(module.weight)
        shift = np.zeros(self._width) if module.bias is None else numbers_of(module.bias)
        if self._drop_zeros:
            known = known | (scale == 0)
        if module.running_mean is None:  # a constant is its own mean
            return Constants(known, shift)
        mean, variance = numbers_of(module.running_mean), numbers_of(module.running_var)
        values = (np.where(constants.known, values, mean) - mean) / np.sqrt(variance + module.eps) * scale + shift
        return Constants(known, values)

    def narrowed(self, channels: Mask, offset: NDArray[np.float64] | None) -> list[Change]:
        count = int(channels.sum())
        return [*super().narrowed(channels, offset), lambda: setattr(self.module, "num_features", count)]


def between(module: nn.Module, drop_zeros: bool) -> Between | None:
    """Return what a module does to channels; None if that is not known, or not to each by itself."""
    kind, given = type(module), vars(module)
    if kind in ELEMENTWISE:
        return Between(module)
    if kind in _UNCHANGED:
        return Between(unchanged)
    if kind in _NORMS:
        return Norm(module, drop_zeros)
    if kind is nn.PReLU:
        return _PReLU(module)
    if kind is nn.Flatten and (given["start_dim"], given["end_dim"]) == (1, -1):
        return Flattened()
    if kind in _POOLS:
        exact = not kind.__name__.startswith("Avg") or _averages_inside(given)
        return Pool(kind.__name__, exact)
    return None


def _averages_inside(options: dict[str, Any]) -> bool:
    """Whether every window of an average lies inside the image and is divided by its size."""
    padding = options["padding"]
    inside = not any(padding if isinstance(padding, tuple) else (padding,)) and not options["ceil_mode"]
    return inside and options.get("divisor_override") is None


def unchanged(numbers: Tensor) -> Tensor:
    """Return what it gets, as dropout does in evaluation mode."""
    return numbers
