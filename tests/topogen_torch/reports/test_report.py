"""The report on a model: what it counts, what it times, and that it leaves the model alone."""

import copy
import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn

import topogen as tg
from topogen import kernels
from topogen_torch import BlockSparseLinear, Memory, SparseLinear, report, sparse_mlp
from topogen_torch._conversion import _swap
from topogen_torch._conversion._swap import densified
from topogen_torch._reports import _advice, _memory, _report_table, _timing
from topogen_torch._reports._advice import (
    Blocks,
    BreakEven,
    best_block,
    break_even_of,
    density_text,
    kernel_of,
    recommendation,
)
from topogen_torch._reports._timing import Inputs, Seconds
from topogen_torch._reports._whole import measure_whole


@pytest.fixture(autouse=True)
def short_laps(monkeypatch):
    """One call a lap, the fewest rounds, one thread: the tests look at what is timed, never at how long it took."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(_timing, "_LAP", 0.0)
    monkeypatch.setattr(_timing, "_ROUNDS", (1, 1))
    monkeypatch.setattr(_advice, "DENSITIES", (0.1, 0.5))
    monkeypatch.setattr(_advice, "_known", {})
    yield
    torch.set_num_threads(threads)


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
    assert report(model, torch.zeros(4, 3)).rows[0].kind == "dense Noisy"
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
    assert result.rows[0].break_even is None
    assert " / - " in str(result)
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
    result = report(lenet(), torch.zeros(32, 784))
    text = str(result)
    lines = text.splitlines()
    assert lines[0].split()[:2] == ["layer", "kind"]
    assert max(len(line) for line in lines) <= 200
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
    stored, measured = 1 + 1 + 4 + 1 + 1, 1 + 1 + 3 + 1 + 1  # header, rule, rows, rule, total
    notes = 8 - (result.rows[0].peak is None)
    assert len(lines) == stored + 1 + measured + 1 + notes


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
    assert _report_table.figures(value) == shown


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


# ---- step times, states, peaks


def test_a_step_is_timed_with_the_optimizer_that_is_named(monkeypatch):
    taken = []
    for name, kind in (("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)):
        step = kind.step
        monkeypatch.setattr(kind, "step", lambda self, *rest, step=step, name=name: taken.append(name) or step(self))
    (row,) = report(SparseLinear(np.eye(5)), optimizer="adam", break_even=False).rows
    assert set(taken) == {"adam"}
    assert row.seconds.step > 0
    taken.clear()
    report(SparseLinear(np.eye(5)), optimizer="momentum", break_even=False)
    assert set(taken) == {"sgd"}


@pytest.mark.parametrize("bias", [True, False])
def test_state_bytes_are_those_of_the_state_dict(bias):
    layer = SparseLinear(sp.random_array((40, 30), density=0.2, rng=np.random.default_rng(0)), bias=bias)
    (row,) = report(layer, break_even=False).rows
    assert row.state == sum(tensor.nbytes for tensor in layer.state_dict().values())
    assert row.dense_state == sum(tensor.nbytes for tensor in layer.to_linear().state_dict().values())


@pytest.mark.skipif(not _memory._CLEAR.exists(), reason="the system keeps no account of peak memory")
def test_the_peak_is_what_a_step_really_takes():
    kernels.warm_up()  # a compiler's memory is not a step's
    n = 2000
    layer = SparseLinear(sp.random_array((n, n), density=0.1, rng=np.random.default_rng(0)), bias=False)
    (row,) = report(layer, torch.zeros(8, n), break_even=False).rows
    assert 4 * 4 * layer.nnz < row.peak < 2 * row.memory.total
    assert 0.9 * 4 * 4 * n * n < row.dense_peak < 3 * row.dense_memory.total


def test_without_the_systems_account_there_is_no_peak(monkeypatch, tmp_path):
    monkeypatch.setattr(_memory, "_CLEAR", tmp_path / "no" / "such" / "file")
    result = report(lenet(), torch.zeros(4, 784), break_even=False)
    assert {row.peak for row in result.rows} == {None}
    assert result.whole.seconds is not None
    assert result.whole.peak is None
    assert "peak:" not in str(result)
    assert "peak of two training steps [MB]: -." in str(result)


# ---- the whole model


def test_the_whole_model_is_timed_beside_a_densified_copy():
    model = lenet()
    result = report(model, torch.randn(16, 784), break_even=False)
    assert min(*result.whole.seconds, *result.whole.dense_seconds) > 0
    assert "whole model beside its densified copy, in turns [ms]: forward " in str(result)
    dense = densified(model)
    assert [type(module) for module in dense.modules() if isinstance(module, SparseLinear)] == []
    assert isinstance(model[0][0], SparseLinear)
    x = torch.randn(8, 784)
    torch.testing.assert_close(dense.eval()(x), model.eval()(x))


def test_a_layer_that_is_used_twice_stays_one_layer_when_densified():
    layer = SparseLinear(np.eye(4))
    dense = densified(nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)}))
    assert dense["a"] is dense["b"][0]


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = SparseLinear(np.eye(3))

    def forward(self, x):
        if self.training:
            raise ValueError("two of a kind\nare needed.")
        return self.layer(x)


@pytest.mark.parametrize(
    ("model", "sample", "reason"),
    [
        (nn.Linear(3, 2), torch.zeros(2, 3), "it has no sparse layer"),
        (SparseLinear(np.eye(3)), None, "it needs a sample"),
        (SparseLinear(np.eye(3), device="meta"), torch.zeros(2, 3, device="meta"), "it holds no data"),
        (Fails(), torch.zeros(2, 3), "two of a kind are needed"),
    ],
)
def test_why_the_whole_model_was_not_measured_is_said(model, sample, reason):
    result = report(model, sample, break_even=False)
    assert (result.whole.seconds, result.whole.not_measured) == (None, reason)
    assert f"whole model: not measured, {reason}." in str(result)


# ---- other layers


def test_a_convolution_is_timed_on_the_sample_and_said_to_be_unmeasured_without():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, groups=1), nn.ReLU(), nn.Conv1d(4, 4, 1, groups=2, bias=False))
    rows = report(model[:2], torch.zeros(2, 3, 8, 8)).rows
    assert (rows[0].kind, rows[0].shape, rows[0].connections) == ("dense nn.Conv2d", (3, 4, 3, 3), 108)
    assert rows[0].inputs == (2, 3, 8, 8)
    assert rows[0].seconds.step > 0
    result = report(model)
    assert [row.seconds for row in result.rows] == [None, None]
    assert result.rows[1].shape == (2, 4, 1)
    assert "not measured: 0, 2." in str(result)


class Pair(nn.Module):
    """Stands for a composed sparse layer: two sparse layers, and a dense namesake."""

    def __init__(self):
        super().__init__()
        self.a, self.b = SparseLinear(np.eye(4)), SparseLinear(np.eye(4))
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x, *, twice=False):
        return self.b(self.a(x)) * self.scale * (1 + twice)


@pytest.fixture
def composed(monkeypatch):
    def to_dense(pair):
        return nn.Sequential(pair.a.to_linear(), pair.b.to_linear())

    is_sparse = _timing.is_sparse
    from topogen_torch._reports import _report, _whole

    for module in (_timing, _report, _whole, _advice, _swap):
        monkeypatch.setattr(module, "is_sparse", lambda part: isinstance(part, Pair) or is_sparse(part))
    true = _swap.to_dense
    monkeypatch.setattr(_swap, "to_dense", lambda part: to_dense(part) if isinstance(part, Pair) else true(part))


def test_a_composed_layer_reports_in_total_and_through_its_parts(composed):
    model = nn.Sequential(Pair(), nn.Linear(4, 2))
    result = report(model, torch.zeros(3, 4), break_even=False)
    rows = {row.name: row for row in result.rows}
    assert list(rows) == ["0", "0.a", "0.b", "1"]
    assert [row.part_of for row in result.rows] == [None, "0", "0", None]
    assert rows["0"].kind == "Pair"
    assert rows["0"].memory.values == 16  # its own parameter; the parts have theirs
    assert rows["0"].seconds.forward > 0
    assert result.total.seconds.forward == pytest.approx(rows["0"].seconds.forward + rows["1"].seconds.forward)
    assert result.total.memory.total == sum(row.memory.total for row in result.rows)
    without = report(model, break_even=False)
    assert without.rows[0].seconds is None
    parts = [row.seconds.forward for row in without.rows[1:]]
    assert without.total.seconds.forward == pytest.approx(sum(parts))


def test_what_sparsify_left_dense_is_said_with_its_reason():
    model = nn.Sequential(SparseLinear(np.eye(3)), nn.Linear(3, 2))
    model._topogen_left_dense = {"1": "excluded by 'exclude'"}
    result = report(model, break_even=False)
    assert result.left_dense == {"1": "excluded by 'exclude'"}
    assert "left dense: 1: excluded by 'exclude'" in str(result)
    assert result.to_dict()["left_dense"] == {"1": "excluded by 'exclude'"}


# ---- break-even and advice


def planted(monkeypatch, seconds_of):
    """Let times be a function of density: of a dense layer None."""
    seen = []

    def medians(calls, device, budget=None):
        density = seen.pop()
        return [*seconds_of(None), *seconds_of(density)]

    at_density = _advice._at_density

    def spy(base, density):
        seen.append(density)
        return at_density(base, density)

    monkeypatch.setattr(_advice, "medians", medians)
    monkeypatch.setattr(_advice, "_at_density", spy)
    monkeypatch.setattr(_advice, "DENSITIES", (0.1, 0.2, 0.4, 0.8))


@pytest.mark.parametrize("layer", [SparseLinear(np.eye(20)), nn.Linear(20, 20)], ids=["sparse", "dense"])
def test_break_even_is_found_between_the_densities_that_were_measured(monkeypatch, layer):
    planted(monkeypatch, lambda d: (1.0, 3.0) if d is None else (2 * d, 10 * d))
    found = break_even_of(layer, Inputs((torch.zeros(2, 20),)))
    assert found == pytest.approx((0.5, 0.3))
    monkeypatch.setattr(_advice, "_bisect", None)  # what is known is not measured again
    assert break_even_of(layer, Inputs((torch.ones(2, 20),))) is found
    with pytest.raises(TypeError):
        break_even_of(layer, Inputs((torch.ones(3, 20),)))


def test_break_even_claims_no_more_than_was_measured(monkeypatch):
    planted(monkeypatch, lambda d: (1.0, 3.0) if d is None else (2.0, 2.9))
    found = break_even_of(SparseLinear(np.eye(6)), Inputs((torch.zeros(2, 6),)))
    assert found == (0.0, 1.0)
    assert [density_text(density) for density in found] == ["< 10 %", "> 80 %"]
    assert density_text(0.123) == "12 %"


def test_break_even_is_only_looked_for_where_it_has_a_meaning():
    assert break_even_of(nn.Conv2d(1, 1, 1), Inputs((torch.zeros(1, 1, 2, 2),))) is None
    assert break_even_of(SparseLinear(np.eye(3), device="meta"), Inputs((torch.zeros(1, 3),))) is None


def test_kernels_are_named():
    crowded = SparseLinear(np.random.default_rng(0).random((600, 600)) < 0.95)
    assert kernel_of(crowded, 64) == "dense forward, rows"
    assert kernel_of(crowded, 1) == kernel_of(SparseLinear(np.eye(3)), 64) == "rows"
    assert kernel_of(SparseLinear(np.kron(np.eye(2), np.ones((192, 8)))), 64) == "panels"
    assert kernel_of(BlockSparseLinear(np.eye(3), 4), 64) == "blocks of 4"
    assert kernel_of(SparseLinear(np.ones((3, 2))), 64) == kernel_of(nn.Linear(2, 2), 64) == "dense"


@pytest.mark.parametrize(
    ("sparse", "step", "saved", "found", "sentence"),
    [
        (True, 0.5, 5.0, None, "sparse as it is: steps 2x as fast"),
        (True, 1.05, 5.0, None, "sparse: steps as fast as dense"),
        (True, 4.0, 5.0, None, "keep dense: sparse steps take 4x as long; sparse takes 5x less memory"),
        (True, 4.0, 0.5, None, "keep dense: sparse steps take 4x as long"),
        (False, 1.0, 1.0, BreakEven(0.5, 0.25), "dense; sparse pays below 25 %"),
        (False, 1.0, 1.0, BreakEven(0.0, 0.0), "keep dense"),
        (False, 1.0, 1.0, BreakEven(1.0, 1.0), "dense; sparse pays at any density that was tried"),
        (False, 1.0, 1.0, None, "dense"),
    ],
)
def test_recommendations_follow_from_what_was_measured(sparse, step, saved, found, sentence):
    layer = SparseLinear(np.eye(3)) if sparse else nn.Linear(3, 3)
    assert recommendation(layer, Seconds(0, 0, step), Seconds(0, 0, 1.0), saved, found) == sentence
    assert recommendation(layer, None, None, saved, found) == ""


def test_blocks_are_recommended_where_they_are_measured_faster(monkeypatch):
    layer = SparseLinear(sp.random_array((64, 96), density=0.3, rng=np.random.default_rng(0)))
    tried = []
    in_blocks = _advice._in_blocks

    def spy(layer, block):
        tried.append(in_blocks(layer, block))
        return tried[-1]

    monkeypatch.setattr(_advice, "_in_blocks", spy)
    monkeypatch.setattr(_advice, "medians", lambda calls, device, budget: [6.0, 5.0, 2.0])
    assert best_block(layer, Inputs((torch.zeros(2, 64),)), "sgd") == (32, 3.0)  # 64 does not divide 96
    assert [(each.block, each.pattern.shape) for each in tried] == [(16, (64, 96)), (32, (64, 96))]
    assert all(abs(each.density - 0.3) < 0.1 for each in tried)
    monkeypatch.setattr(_advice, "medians", lambda calls, device, budget: [6.0, 5.0, 5.0])
    assert best_block(layer, Inputs((torch.zeros(2, 64),)), "sgd") is None
    assert best_block(nn.Linear(64, 64), Inputs((torch.zeros(2, 64),)), "sgd") is None
    blocks, dense = Blocks(32, 3.0), Seconds(0, 0, 1.0)
    assert [recommendation(layer, Seconds(0, 0, step), dense, 5.0, None, blocks) for step in (0.5, 2.0, 4.0)] == [
        "sparse as it is: steps 2x as fast; blocks of 32 3x as fast again",
        "blocks of 32: steps 1.5x as fast as dense, single connections 0.5x",
        "keep dense: sparse steps take 4x as long; sparse takes 5x less memory",
    ]


def test_break_even_must_be_a_bool():
    with pytest.raises(tg.errors.SpecError, match=r"'break_even' parameter of report must be a bool. Got 1\."):
        report(nn.Linear(2, 1), break_even=1)


def test_whole_models_are_measured_in_their_own_mode():
    class Seen(Fails):
        def forward(self, x):
            modes.add(self.training)
            return self.layer(x)

    modes = set()
    measure_whole(Seen().eval(), Inputs((torch.zeros(2, 3),)), "sgd")
    assert modes == {False}


def test_the_peak_counts_what_is_stored_once(monkeypatch):
    monkeypatch.setattr(_memory, "_resident_rise", lambda work: 1000)
    layer = SparseLinear(np.eye(30), bias=False)
    stored = sum(tensor.nbytes for tensor in (*layer.parameters(), *layer.buffers()))
    assert _memory.peak_of_a_step(layer, Inputs((torch.zeros(2, 30),)), "sgd") == (stored + 1000, 4 * 30 * 30 + 1000)
