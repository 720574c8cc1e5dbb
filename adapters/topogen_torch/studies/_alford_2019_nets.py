"""LeNet-300-100 and LeNet-5 with the connections of a topology, and with the initial weights of a recipe.

Both are as in the authors' programs: 784-300-100-10; and two convolutions of 5x5 with 20 and 50 channels and padding,
each behind it a rectifier and a halving by maximum pooling, then 384 neurons and the logits. Of CIFAR-10's images
squares of 24 x 24 are seen, at random places and mirrored at random in training, in the middle in the test.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

import topogen as tg
from topogen_torch._conv import SparseConv2d
from topogen_torch._layers import SparseLinear
from topogen_torch._patterned import Patterned
from topogen_torch._stack import SparseSequential
from topogen_torch.studies._alford_2019_rows import Row

__all__ = ["Distorted", "network_of", "patterns_in", "patterns_of"]

Patterns = Mapping[str, Any]
"""Name of a layer -> its pattern: a matrix, or the list of a convolution's offsets."""

# What draws below a row's seed belong to; 100 to 102 are the training loop's. Part of every result: never change.
_INITIAL, _STRUCTURE = 110, 111

_KERNEL, _OFFSETS = 5, 25
_CHANNELS = (20, 50)
_HIDDEN = 384
_SEEN = {"mnist": (1, 28), "cifar10": (3, 24)}  # channels, and side of the square that a net sees
_DEVIATION = {"conv1": 0.05, "conv2": 0.05}  # of published initial weights; 0.04 in linear layers


# ---- patterns


def patterns_of(row: Row) -> Patterns:
    """Return the connections that a row's net begins with: all of them, where pruning is to choose."""
    rng = np.random.SeedSequence(row.structure, spawn_key=(_STRUCTURE,))
    return _lenet_5(row, rng) if row.network == "lenet-5" else _lenet_300_100(row, rng)


def patterns_in(model: nn.Module) -> Patterns:
    """Return the connections that a net has."""
    return {name: layer.pattern for name, layer in model.named_modules() if isinstance(layer, Patterned)}


def _lenet_300_100(row: Row, rng: Any) -> Patterns:
    sizes = (784, 300 * row.factor, 100)
    if row.topology == "random":
        spec: tg.AbstractSpec = tg.ErdosRenyi(sizes=sizes, density=row.density)
    elif row.topology == "radix":
        radix = round(1 / row.density)
        modulus = radix * radix
        widths = tuple(ceil(size / modulus) for size in sizes)
        spec = tg.Trim(tg.RadixNet(systems=((radix, radix),), widths=widths), sizes, keep="last")
    else:
        spec = tg.Dense(sizes=sizes)
    chain = tg.generate(tg.Chain(spec, tg.Dense(sizes=(100, 10))), rng=rng)
    return dict(zip(("dense1", "dense2", "logits"), chain, strict=True))


def _lenet_5(row: Row, rng: Any) -> Patterns:
    colours, side = _SEEN[row.data]
    places = (side // 4) ** 2
    first, second = _CHANNELS[0], _CHANNELS[1] * row.factor
    shapes = {"conv2": (_OFFSETS * first, second), "dense1": (second * places, _HIDDEN)}
    if row.topology in ("radix", "random twin"):
        found = _convolutional_radix(places)
        if row.topology == "random twin":
            counts = {name: found[name].nnz / (a * b) for name, (a, b) in shapes.items()}
            found = _random(shapes, counts, rng)
    elif row.topology == "random":
        found = _random(shapes, dict.fromkeys(shapes, row.density), rng)
    else:
        found = {name: _full(*shape) for name, shape in shapes.items()}
    return {
        "conv1": _by_offset(_full(_OFFSETS * colours, first)),
        "conv2": _by_offset(found["conv2"]),
        "dense1": found["dense1"],
        "logits": _full(_HIDDEN, 10),
    }


def _convolutional_radix(places: int) -> dict[str, sp.csr_array]:
    """Return both sparse layers of LeNet-5 as one RadiX-Net.

    Its nodes are the 500 weights' inputs (offset, channel) of a place, then each channel at each place, then the
    neurons. The first layer is the same at every place, as a convolution is; the second one joins each channel, at each
    of its places, to the neurons. Every input therefore reaches every neuron, by one path for each place.
    """
    channels = _CHANNELS[1]
    inputs = _OFFSETS * _CHANNELS[0]
    widths = (inputs // channels, places, ceil(_HIDDEN / channels))
    spec = tg.Trim(tg.RadixNet(systems=((10, 5),), widths=widths), (inputs, channels * places, _HIDDEN))
    convolution, behind = tg.generate(spec)
    by_channel = np.arange(channels * places).reshape(places, channels).T.ravel()  # images are flattened by channel
    return {"conv2": sp.csr_array(convolution[:, :channels]), "dense1": sp.csr_array(behind[by_channel])}


def _random(
    shapes: Mapping[str, tuple[int, int]], densities: Mapping[str, float], rng: np.random.SeedSequence
) -> dict[str, sp.csr_array]:
    drawn: dict[str, sp.csr_array] = {}
    for k, (name, shape) in enumerate(shapes.items()):
        own = np.random.SeedSequence(rng.entropy, spawn_key=(*rng.spawn_key, k))
        drawn[name] = tg.generate(tg.ErdosRenyi(sizes=shape, density=densities[name]), rng=own)[0]
    return drawn


def _full(n_in: int, n_out: int) -> sp.csr_array:
    return tg.generate(tg.Dense(sizes=(n_in, n_out)))[0]


def _by_offset(pattern: sp.csr_array) -> list[sp.csr_array]:
    """Cut a matrix over (offset, channel) into one for each offset."""
    channels = pattern.shape[0] // _OFFSETS
    return [sp.csr_array(pattern[k * channels : (k + 1) * channels]) for k in range(_OFFSETS)]


# ---- networks


def network_of(row: Row, patterns: Patterns) -> nn.Module:
    """Return a net with these connections and the initial weights that belong to the row's seed."""
    seed = int(tg.stream(np.random.SeedSequence(row.seed), _INITIAL).integers(2**62))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SparseSequential(OrderedDict(_modules(row, patterns)))
        if row.initial == "published":
            _initialise_as_published(model)
    return model


def _modules(row: Row, patterns: Patterns) -> dict[str, nn.Module]:
    modules: dict[str, nn.Module] = {}
    if row.network == "lenet-5":
        colours, side = _SEEN[row.data]
        modules["image"] = Distorted(side) if row.data == "cifar10" else nn.Unflatten(1, (colours, side, side))
        for k in (1, 2):
            modules[f"conv{k}"] = SparseConv2d(patterns[f"conv{k}"], _KERNEL, padding="same")
            modules[f"relu{k}"] = nn.ReLU()
            modules[f"pool{k}"] = nn.MaxPool2d(3, stride=2, padding=1) if row.data == "cifar10" else nn.MaxPool2d(2)
        modules["flat"] = nn.Flatten()
    for name in [name for name in patterns if name.startswith("dense")]:
        modules[name] = SparseLinear(patterns[name])
        modules[f"rectified {name}"] = nn.ReLU()
    modules["logits"] = SparseLinear(patterns["logits"])
    if row.rectified:
        modules["rectified logits"] = nn.ReLU()
    return modules


@torch.no_grad()
def _initialise_as_published(model: nn.Module) -> None:
    """Draw weights from a normal distribution cut off at two deviations; biases of linear layers start at 0.1."""
    for name, layer in model.named_modules():
        if isinstance(layer, Patterned):
            deviation = _DEVIATION.get(name, 0.04)
            nn.init.trunc_normal_(layer.values, std=deviation, a=-2 * deviation, b=2 * deviation)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, 0.0 if isinstance(layer, SparseConv2d) else 0.1)


class Distorted(nn.Module):
    """Squares of flat colour images of 32 x 32: anywhere and mirrored half the time in training, else the middle."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x_BF: Tensor) -> Tensor:
        """Map (B, 3072) to (B, 3, side, side)."""
        images, room = x_BF.view(-1, 3, 32, 32), 32 - self.side
        if not self.training:
            return images[:, :, room // 2 : room // 2 + self.side, room // 2 : room // 2 + self.side].contiguous()
        along = torch.arange(self.side)
        top, left = torch.randint(room + 1, (2, len(images), 1))
        mirrored = torch.rand(len(images), 1) < 0.5
        rows, columns = top + along, left + torch.where(mirrored, self.side - 1 - along, along)
        image, colour = torch.arange(len(images)), torch.arange(3)
        return images[image[:, None, None, None], colour[:, None, None], rows[:, None, :, None], columns[:, None, None]]
