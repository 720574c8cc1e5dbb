"""What people do with a controller that no example shows, and what must not be done with one."""

import copy
import io
import pickle
import re
import weakref

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError
from topogen_torch.controllers import _tape


def model_of(sizes=(12, 9, 5), density=0.4, seed=0):
    torch.manual_seed(seed)
    net = tg.generate(tg.ErdosRenyi(sizes=sizes, density=density), rng=seed)
    return tt.sparse_mlp(net, dtype=torch.float64)


def batch(step=0, rows=16, width=12):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def train(model, optimizer, *controllers, steps=range(4), call=None):
    for step in steps:
        optimizer.zero_grad()
        (call or model)(batch(step)).square().sum(1).mean().backward()
        optimizer.step()
        for ctl in controllers:
            ctl.step()


def momentum(model):
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


def rigl(model, optimizer, every=1):
    return tt.RigL(model, optimizer, end_step=99, update_every=every)


def assert_equal(model, other):
    for name, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_two_controllers_share_a_model():
    """Disjoint layers: each does what it would do alone, whichever steps first."""
    found = []
    for turn in (1, -1):
        model = model_of((12, 9, 8, 5))
        optimizer = momentum(model)
        begun = [model[k].nnz for k in (0, 2, 4)]
        own = tt.SET(model, optimizer, rng=3, update_every=2, layers="0")
        other = tt.RigL(model, optimizer, end_step=99, update_every=3, layers=["2", "4"])
        train(model, optimizer, *(own, other)[::turn], steps=range(7))
        assert [model[k].nnz for k in (0, 2, 4)] == begun
        assert {**own.survival(), **other.survival()}.keys() == {"0", "2", "4"}
        assert max(*own.survival().values(), *other.survival().values()) < 1
        found.append(model)
    assert_equal(*found)


def test_two_controllers_of_one_layer_are_noticed():
    model = model_of()
    first, second = tt.SET(model, None, rng=0, update_every=1), tt.SET(model, None, rng=1, update_every=1)
    first.step()
    with pytest.raises(SpecError, match=r"^SET must be the only one to change .* The pattern of '0' was changed since"):
        second.step()


class Tied(nn.Module):
    """One layer under two names, and called by name of its parameter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.a = tt.SparseLinear(sp.random_array((8, 8), density=0.4, rng=1), dtype=torch.float64)
        self.b = self.a

    def forward(self, x):
        return self.b(x=torch.tanh(self.a(x)))


def test_a_layer_that_is_called_twice_grows_by_both_gradients():
    model, x = Tied(), batch(width=8)
    layer = model.a
    dense, bias = torch.from_numpy(layer.to_scipy().toarray()).requires_grad_(), layer.bias.detach()
    (torch.tanh(x @ dense + bias) @ dense + bias).square().sum().backward()
    ctl = rigl(model, torch.optim.SGD(model.parameters(), 0.0))
    assert [target.name for target in ctl.targets] == ["a"]
    model(x).square().sum().backward()
    before = layer.pattern.toarray()
    weights = np.where(before, np.abs(layer.to_scipy().toarray()), np.inf)
    count = int(tg.cosine(initial=0.3, end_step=99)(1) * layer.nnz)
    kept = before.copy().ravel()
    kept[np.argsort(weights.ravel())[:count]] = False
    gradient = np.where(kept, -1, dense.grad.abs().numpy().ravel())
    kept[np.argsort(-gradient)[:count]] = True
    assert ctl.step()
    np.testing.assert_array_equal(layer.pattern.toarray().ravel(), kept)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("method", ["SET", "RigL", "SNFS", "GradualMagnitude", "LotteryTicket"])
def test_a_copied_run_goes_on_as_the_run_does(method, how):
    """Where the next step is an update too, so that the layers are being recorded."""
    make = {
        "SET": lambda m, o: tt.SET(m, o, rng=0, update_every=2),
        "RigL": lambda m, o: rigl(m, o, 2),
        "SNFS": lambda m, o: tt.SNFS(m, o, end_step=99, update_every=3, window=2),
        "GradualMagnitude": lambda m, o: tt.GradualMagnitude(
            m, o, density=0.1, begin_step=0, end_step=6, update_every=2, score=tt.shuffled("magnitude", rng=4)
        ),
        "LotteryTicket": lambda m, o: tt.LotteryTicket(m, o, rounds=2, round_steps=2, score="random", rng=4),
    }[method]
    model = model_of()
    optimizer = momentum(model)
    run = model, optimizer, make(model, optimizer)
    train(*run, steps=range(3))
    copied = copy.deepcopy(run) if how == "deepcopy" else pickle.loads(pickle.dumps(run))
    for one in (run, copied):
        train(*one, steps=range(3, 7))
    assert copied[0][0].values is copied[2].targets[0].layer.values
    assert copied[0][0].nnz == model[0].nnz
    assert_equal(copied[0], model)


def test_a_copy_of_the_model_is_not_recorded():
    model = model_of()
    ctl = rigl(model, momentum(model))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(batch()).sum().backward()
    assert all(not tape.pairs for tape in ctl._tapes.values())
    model(batch()).sum().backward()
    assert all(len(tape.pairs) == 1 for tape in ctl._tapes.values())


@pytest.mark.parametrize("kind", ["linear", "recurrent"])
def test_a_controller_that_is_dropped_lets_go_of_the_layers(kind):
    model = model_of() if kind == "linear" else nn.Sequential(tt.SparseGRU([(np.ones((4, 9)), np.ones((3, 9)))]))
    ctl = rigl(model, momentum(model))
    layers = [target.layer for target in ctl.targets]
    assert all(layer._forward_hooks and layer._observer for layer in layers)
    other = rigl(model, momentum(model))
    del ctl
    assert all(len(layer._forward_hooks) == 1 and layer._observer for layer in layers)
    del other
    assert not any(layer._forward_hooks or layer._observer for layer in layers)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own doing
@pytest.mark.parametrize("method", [pytest.param("SET", marks=pytest.mark.slow), "RigL", "OneShot"])
def test_a_compiled_model_sees_every_change(method):
    """Also where growth needs gradients, in one step of three: hooks made after compiling are seen."""
    make = {
        "SET": lambda m, o: tt.SET(m, o, rng=0, update_every=1),
        "RigL": lambda m, o: rigl(m, o, 3),
        "OneShot": lambda m, o: tt.OneShot(m, o, density=0.2),
    }[method]
    torch.compiler.reset()
    runs = []
    for is_compiled in (False, True):
        model = model_of()
        optimizer = momentum(model)
        ctl = make(model, optimizer)
        call = torch.compile(model, backend="eager", fullgraph=True) if is_compiled else model
        train(model, optimizer, ctl, steps=range(7), call=call)
        torch.testing.assert_close(call(batch(9)), tt.densify(model)(batch(9)))
        runs.append(model)
    assert min(ctl.survival().values()) < 1
    for plain, compiled in zip(*(model.state_dict().values() for model in runs), strict=True):
        torch.testing.assert_close(plain, compiled)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own doing
def test_compiled_models_run_uncompiled_only_while_gradients_are_recorded(monkeypatch):
    monkeypatch.setattr(_tape, "_on", weakref.WeakSet())  # whatever is left of other tests
    monkeypatch.setattr(_tape, "_eager", [])
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    with torch.compiler.set_stance("default"):
        model, call = model_of(), torch.compile(nn.Linear(3, 3), backend=backend)
        ctl = rigl(model, momentum(model), every=2)
        ctl.step()  # the next one is an update
        call(torch.ones(1, 3))
        assert not graphs
        del ctl
        call(torch.ones(1, 3))
        assert len(graphs) == 1


def test_what_surrounds_a_step_does_no_harm():
    """Parameter groups, a schedule of the rate, accumulated and clipped gradients that stay, evaluation mode."""
    net = tg.generate(tg.ErdosRenyi(sizes=[12, 9, 5], density=0.4), rng=0)
    model = nn.Sequential(nn.Linear(12, 12, dtype=torch.float64), *tt.sparse_mlp(net, bias=False, dtype=torch.float64))
    model.eval()
    values = [parameter for name, parameter in model.named_parameters() if name.endswith("values")]
    others = [parameter for name, parameter in model.named_parameters() if not name.endswith("values")]
    optimizer = torch.optim.AdamW([{"params": values, "weight_decay": 0.1}, {"params": others, "lr": 0.01}], lr=0.02)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    ctl, begun = rigl(model, optimizer, 2), [model[k].nnz for k in (1, 3)]
    for step in range(6):
        optimizer.zero_grad(set_to_none=False)
        for part in batch(step).chunk(4):
            (model(part).square().sum() / 16).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if ctl.step():
            for layer in (model[1], model[3]):
                assert layer.values.grad.shape == layer.values.shape
    assert [model[k].nnz for k in (1, 3)] == begun
    assert not model.training
    assert max(ctl.survival().values()) < 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_short_and_long_floats_keep_their_dtype(dtype):
    torch.manual_seed(0)
    for make in (
        lambda m, o: tt.SET(m, o, rng=0, update_every=1),
        rigl,
        lambda m, o: tt.ProximalL1(m, o, strength=0.01, update_every=1),
        lambda m, o: tt.OneShot(m, o, density=0.2),
    ):
        model = model_of().to(dtype)
        optimizer = momentum(model)
        ctl = make(model, optimizer)
        model(batch().to(dtype)).square().mean().backward()
        optimizer.step()
        ctl.step()
        for layer in (model[0], model[2]):
            tensors = layer.values, layer.values.grad, optimizer.state[layer.values]["momentum_buffer"]
            assert {tensor.dtype for tensor in tensors} == {dtype}
            assert {tensor.shape for tensor in tensors} == {layer.values.shape}


def test_autocast_and_a_scaled_loss():
    model = model_of().float()
    optimizer, scaler = torch.optim.Adam(model.parameters(), 0.01), torch.amp.GradScaler("cpu", init_scale=8.0)
    ctl, begun = rigl(model, optimizer, 2), [model[0].nnz, model[2].nnz]
    for step in range(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(batch(step).float()).square().sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        ctl.step()
    assert [model[0].nnz, model[2].nnz] == begun
    assert ctl.survival()["0"] < 1


def test_numbers_of_numpy_are_saved_as_plain_ones():
    model = model_of()
    optimizer, number = momentum(model), np.float64(0.25)
    for make in (
        lambda: tt.SET(
            model,
            optimizer,
            rng=np.random.SeedSequence(np.array([1, 2])),
            update_every=np.int64(2),
            drop_fraction=number,
        ),
        lambda: tt.OneShot(model, density=number, groups=[{"layers": ("0",), "density": np.float32(0.125)}]),
        lambda: tt.Threshold(model, quality=number, steps=np.array([1, 3])),
    ):
        file = io.BytesIO()
        torch.save(make().state_dict(), file)
        file.seek(0)
        again = make()
        again.load_state_dict(torch.load(file, weights_only=True))
        assert again.state_dict()["seed"] == make().state_dict()["seed"]
        if again._seed is not None:
            np.testing.assert_array_equal(again._seed.generate_state(4), make()._seed.generate_state(4))


def test_a_layer_that_left_the_model_is_noticed():
    model = model_of()
    ctl = tt.SET(model, momentum(model), rng=0, update_every=5)
    model[2] = nn.Sequential(model[2])  # put into something else it is still there
    assert not ctl.step()
    model[0] = tt.SparseLinear(model[0].pattern)
    assert not any(ctl.step() for _ in range(3))
    sentence = "SET must control layers of its model. The one that was '0' is in it no more: make a new SET."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        ctl.step()


def test_an_optimizer_with_one_state_for_all_is_refused():
    """L-BFGS keeps its history with the first parameter, which need not be one that is rewired."""
    model = nn.Sequential(nn.Linear(3, 12, dtype=torch.float64), *model_of())
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    ctl = tt.SET(model, optimizer, rng=0, update_every=2)

    def closure():
        optimizer.zero_grad()
        loss = model(batch(width=3)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert not ctl.step()
    before = copy.deepcopy(model.state_dict())
    length = sum(p.numel() for p in model.parameters())
    sentence = (
        "The optimizer of a rewired layer must keep the state of each parameter apart. LBFGS keeps 'd', "
        f"{length} numbers of all of them in a row."
    )
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        ctl.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_state_that_is_not_whole_changes_nothing():
    model = model_of()
    ctl = tt.SET(model, momentum(model), rng=0, update_every=5)
    ctl.step()
    for name in ("ever", "first", "pattern_hash"):
        state = ctl.state_dict()
        state["count"] = 99
        del state["layers"]["2"][name]
        sentence = f"The state of SET must be whole. Got no '{name}' for layer '2'."
        with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
            ctl.load_state_dict(state)
        assert ctl.steps == 1


def test_another_shuffle_is_another_method():
    model = model_of()
    make = lambda score: tt.OneShot(model, density=0.2, score=score)  # noqa: E731
    state = make(tt.shuffled("magnitude", rng=1)).state_dict()
    make(tt.shuffled("magnitude", rng=1)).load_state_dict(state)
    for other in (tt.shuffled("magnitude", rng=2), tt.shuffled(tt.Movement(model), rng=1), tt.inverted("magnitude")):
        with pytest.raises(SpecError, match=r"^The state of OneShot must be of the same settings"):
            make(other).load_state_dict(state)


def test_every_step_and_every_layer_draws_anew():
    """Two equal layers part ways, and so do two runs that are equal up to the step of their update."""
    patterns = []
    for every in (1, 2):
        layer = tt.SparseLinear(sp.random_array((8, 8), density=0.4, rng=1), dtype=torch.float64)
        torch.nn.init.ones_(layer.values)
        model = nn.Sequential(layer, copy.deepcopy(layer))
        ctl = tt.SET(model, None, rng=5, update_every=every)
        assert [ctl.step() for _ in range(every)] == [False] * (every - 1) + [True]
        patterns += [model[k].pattern.toarray().tobytes() for k in (0, 1)]
    assert len(set(patterns)) == 4


def test_the_stored_seed_replaces_the_given_one():
    model, other = model_of(), model_of()
    ctl, again = (tt.SET(m, None, rng=rng, update_every=2) for m, rng in ((model, 1), (other, 2)))
    ctl.step()
    again.load_state_dict(ctl.state_dict())
    assert ctl.step()
    assert again.step()
    assert_equal(other, model)


def test_an_optimizer_that_lost_a_layer_is_noticed():
    model = model_of()
    optimizer = momentum(model)
    ctl = tt.SET(model, optimizer, rng=0, update_every=1)
    del optimizer.param_groups[0]["params"][2]  # the values of layer 2
    sentence = (
        "The 'optimizer' parameter of SET must hold the values of every layer that it controls. It lacks those of '2'."
    )
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        ctl.step()


def test_a_skipped_step_is_forgotten():
    """Its gradients, which a loss scale found infinite, say nothing about where to grow."""
    runs = []
    for skips in (False, True):
        model = model_of()
        optimizer = momentum(model)
        ctl = rigl(model, optimizer)
        if skips:
            (model(batch(5)) * 1e6).square().sum().backward()
            ctl.forget()
        train(model, optimizer, ctl, steps=[1])
        runs.append(model)
    assert_equal(*runs)


def test_gradual_pruning_resumes_in_a_model_that_is_pruned_already():
    """The state knows the density that was there first, and whether the last update is over."""

    def made(model):
        return tt.GradualMagnitude(model, None, density=0.1, begin_step=0, end_step=6, update_every=2)

    for steps, expected in ((2, [False, 27, False, 20, False, False]), (7, [False] * 6)):
        model, other = (tt.sparse_mlp(tg.generate(tg.Dense(sizes=[20, 10]))) for _ in range(2))
        ctl = made(model)
        for _ in range(steps):
            ctl.step()
        other.load_state_dict(model.state_dict())
        again = made(other)
        again.load_state_dict(ctl.state_dict())
        for one, layer in ((ctl, model[0]), (again, other[0])):
            assert [one.step() and layer.nnz for _ in range(6)] == expected
        assert_equal(other, model)
