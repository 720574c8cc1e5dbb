"""What a layer holds on a card and off it, with devices of this machine standing in for cards."""

import copy
import io
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import topogen as tg
import topogen_torch as tt
from topogen_torch._gpu import _choose, _clock
from topogen_torch._ops import _card_blocks
from topogen_torch._reports import _advice, _timing

BLOCKS = np.array([[1, 0, 1], [0, 1, 0]], bool)


@pytest.fixture
def cards(monkeypatch):
    """Choose which kinds of device count as cards."""
    return lambda *kinds: monkeypatch.setattr(_choose, "_cards", set(kinds))


def buffers(layer):
    return {name for name, _ in layer.named_buffers()}


def test_blocks_get_their_orders_when_they_move_to_a_card_and_lose_them_there_again(cards):
    cards("meta")
    layer = tt.BlockSparseLinear(BLOCKS, 16)
    assert layer._facts == ()
    before = buffers(layer)
    values = layer.values
    layer.to("meta")
    assert buffers(layer) - before == {"order", "order_t"}
    assert layer.order.tolist() == [0, 1]
    assert layer.order_t.tolist() == [0, 1, 2]
    assert layer._facts == (2, 0, 0, 0, 0)
    layer.to_empty(device="cpu")
    assert buffers(layer) == before
    assert layer._facts == ()
    assert layer.values.shape == values.shape


def test_a_layer_that_is_made_or_loaded_on_a_card_has_them_at_once(cards):
    cards("cpu")
    layer = tt.BlockSparseLinear(BLOCKS, 16)
    assert layer.order_t.dtype == torch.int32
    other = tt.BlockSparseLinear(BLOCKS[:, ::-1], 16)
    other.load_state_dict(layer.state_dict())
    assert other._facts == layer._facts
    assert torch.equal(other.order_t, layer.order_t)
    assert copy.deepcopy(layer)._facts == layer._facts
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    assert not {"order", "order_t"} & set(layer.state_dict())


def test_the_longest_rows_come_first_and_radix_layers_are_recognised(cards):
    cards("cpu")
    layer = tt.BlockSparseLinear(np.array([[1, 0, 0], [1, 1, 1], [0, 1, 1]]), 16)
    assert layer.order.tolist() == [1, 2, 0]
    assert layer.order_t.tolist() == [0, 1, 2]
    assert layer._facts[0] == 3
    first, last = tg.generate(tg.RadixNet(systems=[[3, 2]]))
    assert tt.BlockSparseLinear(first, 16)._facts == (3, 6, 3, 1, -1)
    assert tt.BlockSparseLinear(last, 16)._facts == (2, 6, 2, 3, -1)


def test_what_kind_a_radix_layer_is_depends_on_how_large_its_matrices_are():
    first, last = (_card_blocks.facts_of(layer) for layer in tg.generate(tg.RadixNet(systems=[[4, 16]])))
    assert _card_blocks.kind_of(first, 64) == "circulant"
    assert _card_blocks.kind_of(last, 64) == "batched"
    assert _card_blocks.kind_of(last, 16) == "circulant"
    assert _card_blocks.kind_of((1, 0, 0, 0, 0), 64) == "blocks"


def test_panels_are_for_the_processor(cards):
    cards("meta")
    layer = tt.SparseLinear(1 - np.eye(300))
    assert layer._by_panels
    layer.to("meta")
    assert not layer._by_panels
    assert layer.indptr_t.tolist()[:3] == [0, 299, 598]
    layer.to_empty(device="cpu")
    assert layer._by_panels


@pytest.mark.parametrize(
    ("pattern", "size", "block"),
    [
        (np.kron([[1, 0], [0, 1]], np.ones((32, 32))), 3, 32),
        (np.kron([[1, 0], [1, 1]], np.ones((16, 48))), 1, 16),
        ([np.kron([[1, 0], [0, 1]], np.ones((16, 16)))] * 4, 2, 16),
        (np.eye(64), 3, None),
        (np.kron(np.eye(2), np.ones((8, 8))), 3, None),
        (np.ones((32, 32)), 3, None),  # dense
    ],
)
def test_convolutions_find_the_largest_full_blocks_of_channels(cards, pattern, size, block):
    pytest.importorskip("triton")
    cards("cpu")
    layer = tt.SparseConv2d(pattern, size)
    assert bool(layer._channel_facts) == (block is not None)
    if block is not None:
        assert layer.channel_runs.shape[1] == block


def test_a_convolution_is_refused_no_device(cards):
    pytest.importorskip("triton")
    cards("meta")
    layer = tt.SparseConv2d(np.kron(np.eye(2), np.ones((16, 16))), 3)
    assert not layer._channel_facts
    layer.to("meta")
    assert layer(torch.empty(2, 32, 5, 5, device="meta")).shape == (2, 32, 3, 3)


def test_the_report_names_what_multiplies_on_a_card(cards):
    pytest.importorskip("triton")
    cards("cpu")
    radix = tg.generate(tg.RadixNet(systems=[[4, 16]]))
    layers = {
        "triton, blocks of 64": tt.BlockSparseLinear(np.eye(4, k=1), 64),
        "circulant, blocks of 16": tt.BlockSparseLinear(radix[0], 16),
        "batched, blocks of 64": tt.BlockSparseLinear(radix[1], 64),
        "dense": tt.BlockSparseLinear(np.eye(4), 8),
        "cusparse": tt.SparseLinear(np.eye(64)),
    }
    assert [_advice.kernel_of(layer, 64) for layer in layers.values()] == list(layers)
    assert _advice.kernel_of(tt.SparseLinear(np.ones((4, 4))), 64) == "dense"


class Event:
    """A card's event, of which each comes 30 ms after the one before."""

    recorded = 0

    def __init__(self, *, enable_timing):
        assert enable_timing

    def record(self):
        Event.recorded += 1
        self.time = 30.0 * Event.recorded

    def synchronize(self):
        assert self.time

    def elapsed_time(self, other):
        return other.time - self.time


def test_on_a_card_events_measure(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    calls = []
    assert _timing._lap(lambda: calls.append(1), 3, torch.device("cuda", 0)) == pytest.approx(0.01)
    assert len(calls) == 3


def test_elsewhere_the_clock_of_the_host_does():
    assert 0 < _clock.median_seconds(lambda: sum(range(1000)), torch.device("cpu"), budget=1e-3) < 1
    assert _clock.graphed(lambda: None, torch.device("cpu")) is None
