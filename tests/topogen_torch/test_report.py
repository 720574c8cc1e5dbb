"""The report on a model: what it counts, what it times, and that it leaves the model alone."""

import copy
import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn

import topogen as tg
from topogen_torch import _report, _timing
from topogen_torch._layers import SparseLinear, sparse_mlp
from topogen_torch._report import Memory, report


@pytest.fixture(autouse=True)
def short_laps(monkeypatch):
    """One call a lap and the fewest rounds: the tests look at what is timed, never at how long it took."""
    monkeypatch.setattr(_timing, "_LAP", 0.0)
    monkeypatch.setattr(_timing, "_ROUNDS", (1, 1))


def lenet():
    radix = tg.Trim(tg.RadixNet(systems=[[10, 10]], widths=[8, 3, 1]), [784, 300, 100], keep="last")
    return nn.Sequential(
        sparse_mlp(tg.generate(radix)), nn.ReLU(), nn.BatchNorm1d(100), nn.Dropout(), nn.Linear(100, 10)
    )


def bytes_of_training(parameters, moments):
    """Bytes of values, gradients and Adam's moments after one real step."""
    optimizer = (
        torch.optim.Adam(parameters) if moments == 2 else torch.optim.SGD(parameters, 0.1, momentum=0.9 * moments)
    )
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = [tensor for entry in optimizer.state.values() for tensor in entry.values() if torch.is_tensor(tensor)]
    return (
        sum(p.nbytes for p in parameters),
        sum(p.grad.nbytes for p in parameters),
        sum(tensor.nbytes for tensor in state if tensor.ndim),  # the step counters are scalars
    )


def test_every_layer_has_a_row_and_what_stayed_dense_is_listed():
    rows = report(lenet()).rows
    assert [(row.name, row.kind, row.shape) for row in rows] == [
        ("0.0", "SparseLinear", (784, 300)),
        ("0.2", "SparseLinear", (300, 100)),
        ("2", "BatchNorm1d", None),
        ("4", "dense nn.Linear", (100, 10)),
    ]
    assert [row.connections for row in rows] == [23520, 3000, None, 1000]
    assert [row.fan_in for row in rows] == [(70, 78.4, 80), (30, 30.0, 30), None, (100, 100.0, 100)]
    assert rows[0].density == pytest.approx(0.1, abs=1e-15)


def test_dead_neurons_are_counted_on_both_sides():
    pattern = np.zeros((5, 4))
    pattern[[0, 0, 3], [1, 2, 1]] = 1
    (row,) = report(SparseLinear(pattern)).rows
    assert (row.name, row.unconnected_inputs, row.unconnected_outputs, row.fan_in) == ("(model)", 3, 2, (0, 0.75, 2))
    assert row.density == 0.15


@pytest.mark.parametrize(("optimizer", "moments"), [("adam", 2), ("momentum", 1), ("sgd", 0)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes_are_those_of_real_tensors(optimizer, moments, bias, dtype):
    layer = SparseLinear(sp.random_array((40, 30), density=0.2, rng=np.random.default_rng(0)), bias=bias, dtype=dtype)
    (row,) = report(layer, optimizer=optimizer).rows
    indices = sum(buffer.nbytes for buffer in layer.buffers())
    assert indices >= 4 * (2 * layer.nnz + 31 + 41)
    for memory, module, index_bytes in ((row.memory, layer, indices), (row.dense_memory, layer.to_linear(), 0)):
        values, gradients, state = bytes_of_training(list(module.parameters()), moments)
        assert memory == Memory(values, index_bytes, gradients, state)


def test_frozen_parameters_have_neither_gradient_nor_moments():
    layer = SparseLinear(np.ones((3, 2)))
    layer.values.requires_grad_(False)
    (row,) = report(layer).rows
    assert row.memory.gradients == row.dense_memory.gradients == layer.bias.nbytes
    layer.bias.requires_grad_(False)
    (row,) = report(layer).rows
    assert row.memory[2:] == row.dense_memory[2:] == (0, 0)
    assert row.seconds.forward_backward > 0


def test_the_sample_decides_what_is_timed():
    rows = report(lenet(), torch.zeros(7, 784)).rows
    assert [row.inputs for row in rows] == [(7, 784), (7, 300), None, (7, 100)]
    assert [row.ran for row in rows] == [True, True, None, True]
    assert [row.inputs for row in report(lenet()).rows] == [(64, 784), (64, 300), None, (64, 100)]
    for row in rows:
        if row.shape is not None:
            assert min(*row.seconds, *row.dense_seconds) > 0


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = SparseLinear(np.ones((4, 3))), SparseLinear(np.eye(5))
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x, extra=0):
        return self.used(x) * self.scale + extra


@pytest.mark.parametrize(
    "sample", [(torch.zeros(2, 6, 4), torch.zeros(3)), [torch.zeros(2, 6, 4)], {"x": torch.zeros(2, 6, 4)}]
)
def test_layers_that_the_sample_does_not_reach_are_said(sample):
    result = report(Branches(), sample)
    assert [(row.name, row.kind, row.inputs, row.ran) for row in result.rows] == [
        ("(model)", "Branches", None, None),
        ("used", "SparseLinear", (2, 6, 4), True),
        ("idle", "SparseLinear", (64, 5), False),
    ]
    assert "not reached by the sample, timed on a batch of 64: idle." in str(result)
    assert "batch 2x6 and 64," in str(result)


def test_shared_modules_count_once():
    layer = SparseLinear(np.eye(4))
    assert len(report(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(2, 4)).rows) == 1


def fingerprint(model):
    tensors = {name: tensor.clone() for name, tensor in model.state_dict(keep_vars=False).items()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    flags = {name: (module.training, len(module._forward_pre_hooks)) for name, module in model.named_modules()}
    wants = {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
    return tensors, gradients, flags, wants


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_the_random_state_are_left_alone(training):
    model = lenet().train(training)
    model[4].eval()
    model(torch.randn(8, 784)).sum().backward()
    seen = []
    model[0][0].values.register_hook(seen.append)
    model[0][0].register_forward_hook(lambda *args: seen.append(args))
    before, drawn = fingerprint(model), torch.get_rng_state()
    report(model, torch.randn(8, 784, generator=torch.Generator().manual_seed(1)))
    after = fingerprint(model)
    for old, new in zip(before[:2], after[:2], strict=True):
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert before[2:] == after[2:]
    assert torch.equal(drawn, torch.get_rng_state())
    # the copy that sees the sample carries the user's hooks along; nothing is timed through them
    assert len(seen) <= 1


def test_a_model_that_draws_does_not_move_the_random_state():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x + torch.randn_like(x))

    model = Noisy(3, 2)
    drawn = torch.get_rng_state()
    assert report(model, torch.zeros(4, 3)).rows[0].kind == "dense nn.Linear"
    assert torch.equal(drawn, torch.get_rng_state())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_backward_is_timed_whatever_mode_the_caller_is_in(mode):
    model = SparseLinear(np.eye(6))
    with mode():
        (row,) = report(model, torch.zeros(3, 6)).rows
    assert row.seconds.forward_backward > 0


def test_a_dense_twin_that_does_not_fit_is_left_out():
    n = 2_000_000
    pattern = sp.coo_array((np.ones(3), ([0, 5, n - 1], [7, 7, 0])), shape=(n, n))
    result = report(SparseLinear(pattern, bias=False), torch.zeros(1, n))
    assert result.rows[0].dense_seconds is None
    assert result.rows[0].dense_memory.values == 16 * 10**12
    assert result.total.seconds is None
    assert "/ too large" in str(result)
    assert "64,000,000,000" in str(result)  # kB


def test_layers_on_meta_are_counted_and_not_timed():
    (row,) = report(SparseLinear(np.eye(3), device="meta")).rows
    assert (row.seconds, row.dense_seconds, row.connections) == (None, None, 3)


def test_the_total_adds_up():
    result = report(lenet())
    total = result.total
    assert total.connections == 27520
    assert total.density == 27520 / (784 * 300 + 300 * 100 + 100 * 10)
    assert total.memory.total == sum(row.memory.total for row in result.rows)
    assert total.dense_memory.total == sum(row.dense_memory.total for row in result.rows)
    timed = [row for row in result.rows if row.seconds is not None]
    assert total.seconds.forward == pytest.approx(sum(row.seconds.forward for row in timed))
    assert total.dense_seconds.forward_backward == pytest.approx(
        sum(row.dense_seconds.forward_backward for row in timed)
    )


def test_a_model_without_parameters_has_an_empty_table():
    result = report(nn.ReLU())
    assert result.rows == ()
    assert result.total.memory == Memory(0, 0, 0, 0)
    assert "total" in str(result)


def test_the_table_says_everything_once():
    text = str(report(lenet(), torch.zeros(32, 784)))
    lines = text.splitlines()
    assert lines[0].split()[:2] == ["layer", "kind"]
    assert max(len(line) for line in lines) <= 160  # about 120, and more where a busy machine makes times long
    for expected in (
        "784 x 300",
        "23,520",
        "70..78.4..80",
        "dense nn.Linear",
        "10.34 %",
        "Adam (two moments)",
        "batch 32,",
    ):
        assert text.count(expected) == 1, expected
    assert len(lines) == 1 + 1 + 4 + 1 + 1 + 1 + 4  # header, rule, rows, rule, total, blank, notes


def test_to_dict_is_json_and_complete():
    result = report(lenet(), torch.zeros(4, 784))
    plain = result.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["optimizer"] == "adam"
    assert plain["device"] == "cpu"
    assert plain["dtype"] == "float32"
    assert plain["threads"] == torch.get_num_threads()
    assert plain["total"]["connections"] == 27520
    assert plain["rows"][0]["memory"] == result.rows[0].memory._asdict()
    assert plain["rows"][0]["seconds"] == result.rows[0].seconds._asdict()


def test_the_result_is_frozen():
    result = report(SparseLinear(np.eye(2)))
    with pytest.raises(AttributeError):
        result.rows = ()
    assert copy.copy(result).rows == result.rows


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.0014, "0.0014"), (78.44, "78.4"), (999.4, "999"), (999.6, "1,000"), (64e9, "64,000,000,000")],
)
def test_figures_are_three_or_all_before_the_point(value, shown):
    assert _report._figures(value) == shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("model",), r"The 'model' parameter of report must be a Module. Got 'model'\."),
        (
            (nn.Linear(2, 1), 3),
            r"The 'sample' parameter of report must be a tensor, or a tuple, a list or a mapping .* Got 3\.",
        ),
        (
            (nn.LazyLinear(2),),
            r"'model' parameter of report must be a module whose parameters have shapes. Got 'weight'. Run it",
        ),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, sentence):
    with pytest.raises(tg.errors.SpecError, match=sentence):
        report(*arguments)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(
        tg.errors.SpecError,
        match=r"'optimizer' parameter of report must be 'sgd' or 'momentum' or 'adam'. Got 'lion'\.",
    ):
        report(nn.Linear(2, 1), optimizer="lion")
