"""Which models shrinking can follow, what it leaves as it is, and what it refuses."""

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import topogen_torch as tt
from topogen.errors import SpecError

PATTERN = np.random.default_rng(0).random((8, 8)) < 0.2
PATTERN[:, :2] = PATTERN[-2:] = False  # two constants and two dead ends at least, wherever two of it follow each other


def linear(n_in=8, n_out=8):
    return tt.SparseLinear(np.resize(PATTERN, (n_in, n_out)) if (n_in, n_out) != (8, 8) else PATTERN)


class Net(nn.Module):
    """Three layers and whatever a test does with them."""

    def __init__(self, forward=None):
        super().__init__()
        self.a, self.b, self.c = linear(), linear(), linear()
        self.act = nn.Tanh()
        self.way = forward

    def forward(self, x):
        return self.way(self, x)


def plain(net, x):
    return net.c(net.act(net.b(torch.sigmoid(net.a(x)))))


def functions(net, x):
    x = functional.dropout(functional.relu(net.a(x)), 0.5, net.training)
    x = functional.leaky_relu(net.b(x).tanh(), 0.1).view(x.size(0), -1)
    return net.c(x.reshape(x.shape[0], -1))


def residual(net, x):
    y = net.a(x)
    return net.c(net.act(net.b(y))) + y


def twice(net, x):
    return net.c(net.act(net.c(net.act(net.b(net.a(x))))))


def read(net, x):
    return net.c(net.act(net.b(net.a(x)))) + net.b.values.sum()


def constant_size(net, x):
    return net.c(net.b(net.a(x)).view(-1, 8))


def other_size(net, x):
    return net.c(net.b(net.a(x)).view(x.t().size(0), -1))


def added(net, x):
    return net.c(net.b(net.a(x) + 1))


def mixed(net, x):
    return net.c(net.b(net.a(x)).softmax(-1))


SHRINKS = {  # which of the inner widths may become smaller
    plain: (True, True), functions: (True, True), residual: (False, True), twice: (True, False), read: (False, False),
    constant_size: (True, False), other_size: (True, False), added: (False, True), mixed: (True, False),
}  # fmt: skip


def drawn(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.normal_()
    return model.eval()


def assert_same(model, x=None):
    small = tt.shrink(model)
    x = x if x is not None else torch.randn(8, 8, dtype=torch.float64)
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)
    return small


@pytest.mark.parametrize("way", SHRINKS, ids=lambda way: way.__name__)
def test_only_what_one_layer_alone_reads_is_followed(way):
    small = assert_same(drawn(Net(way)))
    assert (small.a.out_features < 8, small.b.out_features < 8) == SHRINKS[way]
    assert (small.a.in_features, small.c.out_features) == (8, 8)


def test_layers_that_must_stay_are_named(caplog):
    assert_same(drawn(Net(twice)))
    assert caplog.messages == ["shrink leaves 1 as they are: 'c': is called more than once."]
    caplog.clear()
    assert_same(drawn(Net(read)))
    assert caplog.messages == ["shrink leaves 1 as they are: 'b': has its weight read from outside."]
    tied = drawn(Net(plain))
    tied.c.bias = tied.b.bias
    caplog.clear()
    assert_same(tied)
    assert caplog.messages == ["shrink leaves 2 as they are: 'b', 'c': shares its weight with another module."]


def test_a_hook_sees_what_it_always_saw(caplog):
    model = drawn(nn.Sequential(linear(), nn.Tanh(), linear(), nn.Tanh(), linear(), nn.Tanh(), linear()))
    seen = []
    model[4].register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    small = assert_same(model)
    assert [(layer.in_features, layer.out_features) for layer in small[::2]][2] == (8, 8)
    assert small[0].out_features < 8
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b)
    assert "'4': has hooks or a forward of its own, which expect the sizes that it has" in caplog.messages[0]


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(linear(), nn.Tanh(), linear())

    def forward(self, x):
        return self.inner(x) if x.sum() > 0 else x


def test_a_module_that_cannot_be_followed_is_left_and_what_is_around_it_shrinks(caplog):
    model = drawn(
        nn.Sequential(linear(), nn.Tanh(), linear(), nn.Sequential(Branching()), linear(), nn.Tanh(), linear())
    )
    small = assert_same(model)
    assert small[3][0].inner[0].out_features == 8
    assert max(small[0].out_features, small[4].out_features) < 8
    assert re.match(
        r"^shrink leaves 1 as they are: '3\.0': its forward cannot be followed \(.*\)\.$", caplog.messages[0]
    )


def test_shared_normalisations_and_groups_stay():
    norm = nn.BatchNorm1d(8)
    small = assert_same(drawn(nn.Sequential(linear(), norm, linear(), norm, linear(), nn.Softmax(-1))))
    assert small[1].num_features == small[0].out_features == 8
    conv = nn.Conv2d(8, 8, 1, groups=2)
    model = drawn(nn.Sequential(tt.SparseConv2d(PATTERN, 1), nn.ReLU(), conv, nn.ReLU(), tt.SparseConv2d(PATTERN, 1)))
    assert assert_same(model, torch.randn(2, 8, 3, 3, dtype=torch.float64))[2].weight.shape == conv.weight.shape


def test_blocks_go_whole():
    pattern = np.array([[1, 0, 0, 1], [1, 0, 1, 0], [0, 0, 1, 1], [1, 0, 1, 0]])  # output block 1 is constant
    second = np.ones((8, 3), bool)
    second[4] = second[6:] = False  # block 2 is read by its second neuron alone, block 3 by none
    model = drawn(nn.Sequential(tt.BlockSparseLinear(pattern, 2), nn.Tanh(), tt.SparseLinear(second)))
    small = assert_same(model)
    assert (small[0].out_features, small[2].in_features) == (4, 4)


def test_images_of_one_and_two_dimensions_flattened_and_pooled():
    class Flat(nn.Module):
        def __init__(self, *modules):
            super().__init__()
            self.body, self.head = nn.Sequential(*modules), linear(24, 3)

        def forward(self, x):
            x = self.body(x)
            return self.head(x.reshape(x.shape[0], -1))

    model = drawn(Flat(tt.SparseConv1d(PATTERN, 2), nn.ReLU(), nn.MaxPool1d(2), tt.SparseConv1d(PATTERN, 1)))
    small = assert_same(model, torch.randn(4, 8, 7, dtype=torch.float64))
    assert small.body[0].out_channels < 8 > small.body[3].out_channels
    assert small.head.in_features == 3 * small.body[3].out_channels
    across = nn.MaxPool2d((3, 1), stride=1, padding=(1, 0))  # the largest of three channels
    wrong = drawn(nn.Sequential(tt.SparseConv1d(PATTERN, 1), across, tt.SparseConv1d(PATTERN, 1)))
    assert assert_same(wrong, torch.randn(4, 8, 8, dtype=torch.float64))[0].out_channels == 8


def test_tokens_are_flattened_in_another_order():
    model = drawn(nn.Sequential(linear(), nn.Tanh(), nn.Flatten(), linear(24, 4)))
    assert assert_same(model, torch.randn(5, 3, 8, dtype=torch.float64))[0].out_features == 8


def test_the_shrunk_model_is_a_model():
    """It trains, is copied, saved and loaded, packs its activations and shrinks its twin of other numbers alike."""
    model = drawn(tt.SparseSequential(linear(), nn.ReLU(), linear(), nn.ReLU(), linear()))
    small = tt.shrink(model).train()
    optimizer = torch.optim.Adam(small.parameters())
    before = small(torch.ones(20, 8, dtype=torch.float64))
    before.sum().backward()
    optimizer.step()
    twin = copy.deepcopy(small)
    twin.load_state_dict(small.state_dict())
    x = torch.randn(32, 8, dtype=torch.float64)
    torch.testing.assert_close(twin(x), nn.Sequential(*small)(x))
    assert not torch.equal(before, small(torch.ones(20, 8, dtype=torch.float64)))


def test_tracing_leaves_no_trace():
    class Counting(Net):
        def forward(self, x):
            self.count = getattr(self, "count", 0) + 1
            self.last = x
            return plain(self, x)

    model = Counting().train()
    model.a.eval()
    tt.shrink(model, inplace=True)
    assert not hasattr(model, "count")
    assert (model.training, model.a.training, model.b.training) == (True, False, True)


class Optional(Net):
    def forward(self, x, mask=None):
        return plain(self, x) if mask is None else x


class TwoWays(Net):
    def forward(self, x):
        return plain(self, x) if self.training else self.c(x)


def replaced():
    model = Net(plain)
    model.forward = lambda x: x
    return model


class DistributedDataParallel(nn.Sequential):
    """Called as the real one is."""


FOLLOWED = "The 'model' parameter of shrink must have a forward that can be followed. "
REFUSED = {
    "model": (lambda: tt.shrink(3), "The 'model' parameter of shrink must be a Module. Got 3."),
    "inplace": (lambda: tt.shrink(linear(), inplace=1), "The 'inplace' parameter of shrink must be a bool. Got 1."),
    "drop_zeros": (
        lambda: tt.shrink(linear(), drop_zeros="yes"),
        "The 'drop_zeros' parameter of shrink must be a bool. Got 'yes'.",
    ),
    "wrapped": (
        lambda: tt.shrink(DistributedDataParallel(linear())),
        "The 'model' parameter of shrink must not be wrapped yet: convert the model first, then wrap it. Got a Dist",
    ),
    "meta": (
        lambda: tt.shrink(nn.Sequential(linear(), nn.Linear(8, 8, device="meta"))),
        "The 'model' parameter of shrink must hold its data. Got '1.weight' on meta.",
    ),
    "numbers": (lambda: tt.shrink(Branching()), FOLLOWED + "Got a Branching: "),
    "optional": (lambda: tt.shrink(Optional()), FOLLOWED + "Got a Optional, whose parameter 'mask' need not be given."),
    "two ways": (
        lambda: tt.shrink(TwoWays()),
        FOLLOWED + "Got a TwoWays that takes another way in training than in evaluation mode.",
    ),
    "replaced": (lambda: tt.shrink(replaced()), FOLLOWED + "Got a Net with a forward that is not its class's."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    call, sentence = REFUSED[case]
    with pytest.raises(SpecError, match="^" + re.escape(sentence)):
        call()


def test_a_sharded_weight_is_refused():
    model = nn.Sequential(linear(), linear())
    model[1].values.device_mesh = "a mesh"
    with pytest.raises(SpecError, match=r"must hold its data\. Got '1\.values' sharded over processes\.$"):
        tt.shrink(model)


def test_complex_numbers_are_left(caplog):
    model = nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64), nn.Linear(2, 2, dtype=torch.complex64))
    tt.shrink(model, drop_zeros=True)
    assert caplog.messages == ["shrink leaves 2 as they are: '0', '1': has weights that are not plain floats."]


def test_layers_of_other_kinds_are_named(caplog):
    model = nn.Sequential(linear(), nn.TransformerEncoderLayer(8, 2, 16), nn.Conv1d(8, 8, 1, groups=8))
    tt.shrink(model)
    assert caplog.messages == [
        "shrink leaves 2 as they are: '1': a TransformerEncoderLayer, whose forward is not followed; "
        "'2': has its channels in groups."
    ]
    caplog.clear()
    tt.shrink(nn.TransformerEncoderLayer(8, 2, 16))
    assert caplog.messages == [
        "shrink leaves 1 as they are: the model: a TransformerEncoderLayer, whose forward is not followed."
    ]
