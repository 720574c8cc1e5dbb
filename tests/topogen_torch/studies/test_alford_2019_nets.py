"""The nets of the study of Alford et al.: the connections, the weights and the images that the page says they have."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn

from topogen_torch._conv import SparseConv2d
from topogen_torch._layers import SparseLinear
from topogen_torch.studies._alford_2019_nets import Distorted, network_of, patterns_in, patterns_of
from topogen_torch.studies._alford_2019_rows import Row, all_rows

ROWS = all_rows(False)


def a_row(**wanted: Any) -> Row:
    """Return the first row with these settings."""
    return next(row for row in ROWS if all(getattr(row, name) == value for name, value in wanted.items()))


def joined(pattern: Any) -> sp.csr_array:
    """Return a pattern as one matrix: those of a convolution's offsets on top of each other."""
    return sp.csr_array(sp.vstack(pattern)) if isinstance(pattern, list) else pattern


def mixed_radix(radix: int, copies: tuple[int, ...]) -> list[np.ndarray]:
    """Return the two layers of a RadiX-Net as the authors' program makes them: sums of rolled identities, expanded."""
    identity, layers = np.eye(radix * radix, dtype=int), []
    for k, place in enumerate((1, radix)):
        layer = sum(np.roll(identity, -j * place, axis=1) for j in range(radix))
        layers.append(np.kron(np.ones((copies[k], copies[k + 1]), int), layer))
    return layers


@pytest.mark.parametrize(("factor", "counts"), [(1, (23_520, 3_000)), (10, (235_200, 30_000))])
def test_the_radix_nets_of_lenet_300_100_are_the_authors(factor: int, counts: tuple[int, int]) -> None:
    patterns = patterns_of(a_row(network="lenet-300-100", topology="radix", density=0.1, factor=factor))
    first, second = mixed_radix(10, (8, 3 * factor, 1))
    assert np.array_equal(patterns["dense1"].toarray(), first[16:])
    assert np.array_equal(patterns["dense2"].toarray(), second)
    assert (patterns["dense1"].nnz, patterns["dense2"].nnz, patterns["logits"].nnz) == (*counts, 1000)


def test_half_dense_radix_nets_join_all_pairs() -> None:
    patterns = patterns_of(a_row(network="lenet-300-100", topology="radix", density=0.5, factor=1))
    paths = patterns["dense1"].astype(int) @ patterns["dense2"].astype(int)
    assert np.unique(paths.toarray()).tolist() == [300 // 4]


@pytest.mark.parametrize(("data", "places"), [("mnist", 49), ("cifar10", 36)])
def test_convolution_and_layer_behind_it_are_one_radix_net(data: str, places: int) -> None:
    patterns = patterns_of(a_row(network="lenet-5", data=data, topology="radix"))
    convolution, behind = joined(patterns["conv2"]).astype(int), patterns["dense1"].astype(int)
    assert convolution.nnz == 500 * 50 // 5
    assert behind.nnz == 50 * places * 384 // 10
    for place in range(places):  # images are flattened channel after channel
        paths = convolution @ behind[place::places]
        assert np.array_equal(paths.toarray(), np.ones((500, 384)))


@pytest.mark.parametrize("data", ["mnist", "cifar10"])
def test_the_random_twin_has_as_many_connections_elsewhere(data: str) -> None:
    radix, twin = (patterns_of(a_row(network="lenet-5", data=data, topology=name)) for name in ("radix", "random twin"))
    for name in radix:
        ours, theirs = joined(radix[name]), joined(twin[name])
        assert ours.shape == theirs.shape
        assert ours.nnz == theirs.nnz
        assert (ours != theirs).nnz == 0 or name in ("conv2", "dense1")
    assert (joined(radix["conv2"]) != joined(twin["conv2"])).nnz > 0


def test_random_patterns_have_exact_counts_and_leave_the_ends_dense() -> None:
    seen: set[tuple[Any, ...]] = set()
    for row in ROWS:
        setting = (row.network, row.data, row.density, row.factor)
        if row.topology != "random" or setting in seen:
            continue
        seen.add(setting)
        for name, pattern in patterns_of(row).items():
            matrix = joined(pattern)
            possible = math.prod(matrix.shape)
            sparse = name in (("dense1", "dense2") if row.network == "lenet-300-100" else ("conv2", "dense1"))
            assert matrix.nnz == (round(row.density * possible) if sparse else possible)
    assert len(seen) == 7 + 6 + 6


def test_random_patterns_belong_to_their_seed() -> None:
    row = a_row(network="lenet-5", topology="random", density=0.1)
    first, again, other = (patterns_of(replace(row, structure=seed))["conv2"] for seed in (0, 0, 1))
    assert (joined(first) != joined(again)).nnz == 0
    assert (joined(first) != joined(other)).nnz > 0


@pytest.mark.parametrize("data", ["mnist", "cifar10"])
@pytest.mark.parametrize("recipe", ["published", "unrectified"])
def test_lenet_5_is_the_dense_net_with_holes(data: str, recipe: str) -> None:
    row = a_row(network="lenet-5", data=data, recipe=recipe, topology="random", density=0.1, factor=1)
    model = network_of(row, patterns_of(row)).eval()
    first, second, hidden, logits = (layer for layer in model if isinstance(layer, (SparseConv2d, SparseLinear)))
    colours, side = (3, 24) if data == "cifar10" else (1, 28)
    x = torch.randn(5, 3 * 32 * 32 if data == "cifar10" else 28 * 28)
    images = x.view(5, 3, 32, 32)[:, :, 4:28, 4:28] if data == "cifar10" else x.view(5, colours, side, side)
    pool = nn.MaxPool2d(3, stride=2, padding=1) if data == "cifar10" else nn.MaxPool2d(2)
    y = pool(first.to_conv()(images).relu())
    y = pool(second.to_conv()(y).relu()).flatten(1)
    y = logits.to_linear()(hidden.to_linear()(y).relu())
    torch.testing.assert_close(model(x), y.relu() if recipe == "published" else y, rtol=1e-4, atol=1e-5)
    assert patterns_in(model).keys() == {"conv1", "conv2", "dense1", "logits"}


def test_only_published_settings_rectify_the_logits() -> None:
    outputs = {}
    for recipe in ("published", "unrectified", "modern"):
        row = a_row(network="lenet-300-100", recipe=recipe, topology="radix", density=0.1)
        outputs[recipe] = network_of(row, patterns_of(row))(torch.randn(50, 784))
    assert (outputs["published"] >= 0).all()
    assert (outputs["unrectified"] < 0).any()
    assert (outputs["modern"] < 0).any()


@pytest.mark.parametrize("network", ["lenet-300-100", "lenet-5"])
def test_published_initial_weights(network: str) -> None:
    row = a_row(network=network, recipe="published", topology="dense")
    for name, layer in network_of(row, patterns_of(row)).named_children():
        if not isinstance(layer, (SparseConv2d, SparseLinear)):
            continue
        deviation = 0.05 if name.startswith("conv") else 0.04
        assert layer.values.abs().max() <= 2 * deviation
        # a normal distribution cut off at two deviations has 0.8796 of its deviation
        assert layer.values.std().item() == pytest.approx(0.8796 * deviation, rel=4 / math.sqrt(2 * layer.nnz))
        assert set(layer.bias.tolist()) == {0.0 if name.startswith("conv") else np.float32(0.1).item()}


def test_initial_weights_belong_to_the_seed() -> None:
    row = a_row(network="lenet-300-100", recipe="modern", topology="radix")
    before = torch.random.get_rng_state()
    first, again, other = (
        network_of(replace(row, seed=seed), patterns_of(row)).state_dict()["dense1.values"] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_distorted_images_are_squares_of_them_mirrored_or_not() -> None:
    layer = Distorted(24)
    pixels = torch.arange(3 * 32 * 32, dtype=torch.float32)
    images = pixels.expand(200, -1)
    middle = pixels.view(3, 32, 32)[:, 4:28, 4:28]
    assert torch.equal(layer.eval()(images), middle.expand(200, -1, -1, -1))
    torch.manual_seed(0)
    seen = layer.train()(images)
    corners: set[tuple[int, int, bool]] = set()
    for square in seen:
        is_mirrored = bool(square[0, 0, 0] > square[0, 0, 1])
        upright = square.flip(2) if is_mirrored else square
        top, left = divmod(int(upright[0, 0, 0]), 32)
        assert torch.equal(upright, pixels.view(3, 32, 32)[:, top : top + 24, left : left + 24])
        corners.add((top, left, is_mirrored))
    tops, lefts, mirrored = (set(part) for part in zip(*corners, strict=True))
    assert tops == lefts == set(range(9))
    assert mirrored == {True, False}
