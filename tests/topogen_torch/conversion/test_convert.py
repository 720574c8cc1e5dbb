"""sparsify and densify: what is kept, exactly how much, where it stands, and that errors change nothing."""

import copy
import io
import math
import pickle
import re
from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError

DENSITIES = st.sampled_from([0.01, 0.1, 0.5, 0.9, 1.0]) | st.floats(0.02, 1)


@pytest.fixture(autouse=True)
def one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Net(nn.Module):
    """Layers of every kind but convolutions, one of them used twice, and some that have no weights."""

    def __init__(self, n=6):
        super().__init__()
        self.inner = nn.ModuleDict({"first": nn.Linear(n, 8), "norm": nn.LayerNorm(8), "second": nn.Linear(8, 8)})
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.memory = nn.GRU(8, 5, batch_first=True)
        self.head = nn.Linear(5, 3, bias=False)
        self.again = self.inner["second"]

    def forward(self, x):
        y = self.again(self.inner["norm"](self.inner["first"](x)).relu())
        y = self.again(y + self.attention(y, y, y, need_weights=False)[0])
        return self.head(self.memory(y)[0])


def make(n=6, seed=0, dtype=torch.float64):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Net(n).to(dtype)


def sample(n=6):
    return torch.from_numpy(np.random.default_rng(7).standard_normal((4, 3, n)))


def matrices(model):
    """The dense weights, (inputs, outputs), by the names of what they become."""
    q, k, v = (part.detach().numpy().T for part in model.attention.in_proj_weight.chunk(3))
    named = {"inner.first": model.inner["first"].weight, "inner.second": model.inner["second"].weight}
    named |= {"attention.out_proj": model.attention.out_proj.weight, "head": model.head.weight}
    named |= {"memory.ih_l0": model.memory.weight_ih_l0, "memory.hh_l0": model.memory.weight_hh_l0}
    found = {name: weight.detach().numpy().T for name, weight in named.items()}
    return found | {"attention.q_proj": q, "attention.k_proj": k, "attention.v_proj": v}


def layers(model):
    return {name: module for name, module in model.named_modules() if type(module) is tt.SparseLinear}


def same_state(one, other):
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def snapshot(model):
    """All that an error must leave alone."""
    modules = [(name, id(module), module.training) for name, module in model.named_modules(remove_duplicate=False)]
    state = {name: value.clone() for name, value in model.state_dict(keep_vars=False).items()}
    parameters = [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]
    return modules, parameters, state, sorted(vars(model)), torch.get_rng_state()


def assert_unchanged(model, before):
    after = snapshot(model)
    assert (after[0], after[1], after[3]) == (before[0], before[1], before[3])
    assert all(torch.equal(after[2][name], value) for name, value in before[2].items())
    assert torch.equal(after[4], before[4])


class TestBudgets:
    @given(DENSITIES, st.sampled_from(["erk", "er", "uniform", "global"]), st.integers(1, 9), st.integers(0, 5))
    @settings(max_examples=40)
    def test_every_distribution_meets_the_budget_exactly_with_the_values_of_the_dense_model(
        self, density, distribution, n, seed
    ):
        dense = make(n, seed)
        sparse = tt.sparsify(dense, density=density, distribution=distribution)
        weights, found = matrices(dense), layers(sparse)
        assert set(found) == set(weights)
        total = sum(weight.size for weight in weights.values())
        assert sum(layer.nnz for layer in found.values()) == round(Fraction(repr(density)) * total)
        for name, layer in found.items():
            mask = layer.pattern.toarray()
            assert np.array_equal(layer.values.detach().numpy(), weights[name][mask])
        if distribution != "global":
            shapes = [weight.shape[::-1] for weight in weights.values()]
            counts = tg.connection_counts(shapes, density=density, distribution=distribution)
            # equal remainders go to the earlier layer, in the model's order, which is not that of `weights`
            in_order = sorted(weights, key=list(found).index)
            again = tg.connection_counts([weights[name].shape[::-1] for name in in_order], density=density,
                                         distribution=distribution)  # fmt: skip
            assert sum(counts) == sum(again)
            assert [found[name].nnz for name in in_order] == again

    @given(DENSITIES, st.integers(0, 5))
    @settings(max_examples=25)
    def test_the_largest_stay_and_the_earlier_among_equals(self, density, seed):
        dense = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 6)).double()
        rng = np.random.default_rng(seed)
        with torch.no_grad():  # few different numbers, so that there are many equals, zeros among them
            for layer in dense:
                layer.weight.copy_(torch.from_numpy(rng.integers(-2, 3, layer.weight.shape).astype(float)))
        for layer, twin in zip(dense, tt.sparsify(dense, density=density), strict=True):
            flat = layer.weight.detach().numpy().T.flatten()
            best = sorted(range(flat.size), key=lambda i: (-abs(flat[i]), i))[: twin.nnz]
            assert np.flatnonzero(twin.pattern.toarray().flatten()).tolist() == sorted(best)
        everything = tt.sparsify(dense, density=density, distribution="global")
        flat = np.concatenate([layer.weight.detach().numpy().T.flatten() for layer in dense])
        best = sorted(range(flat.size), key=lambda i: (-abs(flat[i]), i))[: sum(layer.nnz for layer in everything)]
        mask = np.concatenate([layer.pattern.toarray().flatten() for layer in everything])
        assert np.flatnonzero(mask).tolist() == sorted(best)

    def test_a_callable_decides_and_sees_the_layers_own_weight(self):
        dense, seen = make(), {}

        def score(name, weight):
            seen[name] = weight.clone()
            return -weight.abs()

        sparse = tt.sparsify(dense, density=0.3, score=score)
        assert torch.equal(seen["head"], dense.head.weight)
        assert torch.equal(seen["memory.hh_l0"], dense.memory.weight_hh_l0)
        assert torch.equal(seen["attention.k"], dense.attention.in_proj_weight[8:16])
        assert not any(weight.requires_grad for weight in seen.values())
        kept = sparse.head.values.detach().abs()
        assert kept.max() <= dense.head.weight.detach().abs().flatten().kthvalue(kept.numel()).values

    def test_scores_may_be_of_any_real_type(self):
        dense = make()
        for cast in (torch.Tensor.float, torch.Tensor.half, lambda t: (1e6 * t).long(), lambda t: t > 0):
            sparse = tt.sparsify(dense, density=0.2, score=lambda name, w, cast=cast: cast(w.abs()))
            assert sum(layer.nnz for layer in layers(sparse).values()) == round(0.2 * 578)

    def test_random_scores_follow_the_seed_layer_by_layer(self):
        dense = make()
        one, same, other = (tt.sparsify(dense, density=0.3, score="random", rng=rng) for rng in (1, 1, 2))
        assert same_state(one, same)
        assert not np.array_equal(one.head.indices, other.head.indices)
        alone = tt.sparsify(dense, density=0.3, distribution="uniform", score="random", rng=1, include="head")
        among = tt.sparsify(dense, density=0.3, distribution="uniform", score="random", rng=1)
        few, many = (set(zip(*model.head.pattern.nonzero(), strict=True)) for model in (alone, among))
        assert few <= many or many <= few  # the same draws, whatever else is converted
        assert np.array_equal(
            one.head.to_scipy().data, dense.head.weight.detach().numpy().T[one.head.pattern.toarray()]
        )

    def test_a_generator_is_drawn_from_once(self):
        for arguments in ({"density": 0.5}, {"patterns": {"head": np.ones((5, 3))}, "density": 0.5}):
            rng, twin = np.random.default_rng(0), np.random.default_rng(0)
            tt.sparsify(make(), score="random", rng=rng, **arguments)
            twin.integers(0, 2**32, size=4, dtype=np.uint64)
            assert rng.integers(2**62) == twin.integers(2**62)

    def test_random_scores_are_uniform(self):
        counts = np.zeros((6, 5))
        linear = nn.Linear(6, 5)
        for seed in range(400):
            counts += tt.sparsify(linear, density=0.2, score="random", rng=seed).pattern.toarray()
        assert counts.sum() == 400 * 6
        assert (abs(counts - 80) < 5 * math.sqrt(400 * 0.2 * 0.8)).all()

    def test_short_floats_are_scored_as_they_are(self):
        linear = nn.Linear(9, 7).bfloat16()
        layer = tt.sparsify(linear, density=0.4)
        assert layer.values.dtype == torch.bfloat16
        assert layer.values.abs().min() >= linear.weight.abs().flatten().sort().values[-layer.nnz]

    def test_density_one_keeps_everything_even_what_cannot_be_ranked(self):
        linear = nn.Linear(3, 2)
        linear.weight.data[0, 0] = torch.nan
        layer = tt.sparsify(linear, density=1.0)
        assert layer.nnz == 6
        assert layer.values.isnan().sum() == 1


class TestTheModelIsTheSame:
    @given(DENSITIES, st.sampled_from(["erk", "global"]), st.booleans())
    @settings(max_examples=15)
    def test_it_computes_what_the_dense_model_with_masked_weights_does(self, density, distribution, inplace):
        dense = make()
        masked, before = copy.deepcopy(dense), copy.deepcopy(dense)
        sparse = tt.sparsify(dense, density=density, distribution=distribution, inplace=inplace)
        patterns = {name: torch.from_numpy(layer.pattern.toarray().T) for name, layer in layers(sparse).items()}
        with torch.no_grad():
            masked.inner["first"].weight.mul_(patterns["inner.first"])
            masked.inner["second"].weight.mul_(patterns["inner.second"])
            names = [f"attention.{name}_proj" for name in "qkv"]
            masked.attention.in_proj_weight.mul_(torch.cat([patterns[name] for name in names]))
            masked.attention.out_proj.weight.mul_(patterns["attention.out_proj"])
            masked.memory.weight_ih_l0.mul_(patterns["memory.ih_l0"])
            masked.memory.weight_hh_l0.mul_(patterns["memory.hh_l0"])
            masked.head.weight.mul_(patterns["head"])
        torch.testing.assert_close(sparse(sample()), masked(sample()), rtol=1e-12, atol=1e-12)
        back = tt.densify(sparse)
        assert same_state(back, masked)
        assert repr(back) == repr(before)
        assert (sparse is dense) == inplace
        if not inplace:
            assert same_state(dense, before)
            assert not {p.data_ptr() for p in sparse.parameters()} & {p.data_ptr() for p in dense.parameters()}

    @pytest.mark.parametrize("inplace", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_there_and_back_changes_nothing(self, inplace, dtype):
        dense = make(dtype=dtype)
        dense.head.weight.requires_grad_(False)
        dense.memory.bias_hh_l0.requires_grad_(False)
        dense.attention.in_proj_bias.requires_grad_(False)
        dense.inner["first"].eval()
        before = copy.deepcopy(dense)
        back = tt.densify(tt.sparsify(dense, density=1.0, inplace=inplace), inplace=inplace)
        assert same_state(back, before)
        assert repr(back) == repr(before)
        assert [(n, p.requires_grad, p.dtype) for n, p in back.named_parameters()] == [
            (n, p.requires_grad, p.dtype) for n, p in before.named_parameters()
        ]
        assert [(n, m.training) for n, m in back.named_modules()] == [
            (n, m.training) for n, m in before.named_modules()
        ]
        assert sorted(vars(back)) == sorted(vars(before))
        assert back.again is back.inner["second"]
        x = sample().to(dtype)
        assert torch.equal(back(x), before(x))

    def test_order_modes_and_requires_grad_stay(self):
        dense = make().eval()
        dense.inner.train()
        dense.inner["first"].weight.requires_grad_(False)
        dense.inner["second"].bias.requires_grad_(False)
        sparse = tt.sparsify(dense, density=0.5)
        frozen = [name for name, p in sparse.named_parameters() if not p.requires_grad]
        assert frozen == ["inner.first.values", "inner.second.bias"]
        assert (sparse.training, sparse.head.training, sparse.inner["first"].training) == (False, False, True)
        assert list(sparse._modules) == list(dense._modules)
        names = [name for name, _ in sparse.named_parameters()]
        assert names[:4] == ["inner.first.values", "inner.first.bias", "inner.norm.weight", "inner.norm.bias"]

    def test_shared_modules_stay_shared(self):
        sparse = tt.sparsify(make(), density=0.5)
        assert sparse.again is sparse.inner["second"]
        assert isinstance(sparse.again, tt.SparseLinear)

    @pytest.mark.parametrize("inplace", [False, True])
    def test_references_that_are_no_children_follow(self, inplace):
        model = nn.Module()
        model.fc = nn.Linear(3, 3)
        model.plain = [model.fc, "text"]
        model.named = {"fc": model.fc}
        object.__setattr__(model, "alias", model.fc)
        sparse = tt.sparsify(model, density=0.5, inplace=inplace)
        assert isinstance(sparse.fc, tt.SparseLinear)
        assert sparse.plain[0] is sparse.named["fc"] is sparse.alias is sparse.fc
        assert sparse.plain[1] == "text"

    def test_in_place_the_biases_are_the_same_parameters(self):
        model = make()
        biases = [model.inner["first"].bias, model.memory.bias_ih_l0, model.attention.out_proj.bias]
        biases[0].grad = torch.ones(8, dtype=torch.float64)
        tt.sparsify(model, density=0.5, inplace=True)
        now = [model.inner["first"].bias, model.memory.ih_l0.bias, model.attention.out_proj.bias]
        assert all(map(lambda a, b: a is b, biases, now))
        tt.densify(model, inplace=True)
        now = [model.inner["first"].bias, model.memory.bias_ih_l0, model.attention.out_proj.bias]
        assert all(map(lambda a, b: a is b, biases, now))
        model(sample()).sum().backward()
        assert model.memory.bias_ih_l0.grad is not None  # and it is the one that the dense layer computes with

    def test_a_bias_that_two_layers_share_stays_shared(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
        model[1].bias = model[0].bias
        for inplace in (False, True):
            sparse = tt.sparsify(model, density=0.5, inplace=inplace)
            assert sparse[0].bias is sparse[1].bias
            assert sum(1 for _ in sparse.parameters()) == 3

    @pytest.mark.parametrize("inplace", [False, True])
    def test_hooks_move_with_their_layer_and_can_be_removed_in_place(self, inplace):
        model, calls = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), []
        handle = model[0].register_forward_hook(lambda module, args, y: calls.append(type(module).__name__))
        model[0].register_forward_pre_hook(lambda module, args, kwargs: calls.append("before"), with_kwargs=True)
        model[0].register_full_backward_hook(lambda module, dx, dy: calls.append("backward"))
        sparse = tt.sparsify(model, density=0.5, inplace=inplace)
        sparse(torch.ones(2, 4, requires_grad=True)).sum().backward()
        assert calls == ["before", "SparseLinear", "backward"]
        if inplace:
            handle.remove()
            sparse(torch.ones(2, 4))
            assert calls[3:] == ["before"]

    def test_the_layer_itself_may_be_the_model(self, caplog):
        linear = nn.Linear(6, 4)
        layer = tt.sparsify(linear, density=0.5)
        assert (type(layer), layer.nnz) == (tt.SparseLinear, 12)
        assert not caplog.records
        layer = tt.sparsify(linear, density=0.5, inplace=True)
        assert type(layer) is tt.SparseLinear
        assert [record.message for record in caplog.records] == [
            "A module cannot change its class in place: use the layer that sparsify returns."
        ]
        assert type(tt.densify(layer, inplace=True)) is nn.Linear
        assert caplog.records[1].message.endswith("use the layer that densify returns.")

    def test_it_trains(self):
        sparse = tt.sparsify(make(), density=0.3)
        x, steps = sample(), torch.optim.Adam(sparse.parameters(), lr=0.02)
        losses = []
        for _ in range(30):
            steps.zero_grad()
            loss = (sparse(x) - 1).square().mean()
            loss.backward()
            steps.step()
            losses.append(loss.item())
        assert losses[-1] < 0.3 * losses[0]

    def test_copies_and_states_go_round(self):
        sparse = tt.sparsify(make(), density=0.3, exclude="head")
        file = io.BytesIO()
        torch.save(sparse.state_dict(), file)
        file.seek(0)
        other = tt.sparsify(make(seed=5), density=0.6, exclude="head")
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(other(sample()), sparse(sample()))
        for twin in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
            assert torch.equal(twin(sample()), sparse(sample()))
            assert twin._topogen_left_dense == {"head": "matched by 'exclude'"}
        assert not any("left" in name for name in sparse.state_dict())

    def test_a_model_on_meta_takes_patterns_and_keeps_all(self):
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
        assert tt.sparsify(model, density=1.0)[0].values.is_meta
        assert tt.sparsify(model, density=0.5, score="random", rng=0)[1].values.is_meta
        donor = tt.sparsify(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)), density=0.5)
        empty = tt.sparsify(model, patterns={"0": donor[0].pattern, "1": donor[1].pattern}).to_empty(device="cpu")
        empty.load_state_dict(donor.state_dict())
        assert torch.equal(empty(torch.ones(6)), donor(torch.ones(6)))

    def test_densify_takes_only_topogen_layers_and_leaves_the_rest(self):
        model = nn.Sequential(nn.Linear(3, 3), tt.SparseLinear(np.eye(3)), nn.ReLU())
        back = tt.densify(model)
        assert [type(module) for module in back] == [nn.Linear, nn.Linear, nn.ReLU]
        assert torch.equal(back(torch.eye(3)), model(torch.eye(3)))
        assert [type(module) for module in model] == [nn.Linear, tt.SparseLinear, nn.ReLU]
        assert same_state(tt.densify(back), back)
        stack = tt.SparseSequential(tt.SparseLinear(np.eye(3)), nn.ReLU(), tt.SparseLinear(np.eye(3)))
        assert torch.equal(tt.densify(stack)(torch.eye(3)), stack(torch.eye(3)))


def test_a_layer_without_a_dense_form_leaves_the_model_as_it_is():
    mask = np.triu(np.ones((4, 4)))
    model = nn.ModuleList([tt.SparseLinear(np.eye(4)), tt.SparseMultiheadAttention(np.eye(4), 2, mask=mask)])
    before = snapshot(model)
    with pytest.raises(SpecError, match=r"to_attention needs a SparseMultiheadAttention without a mask"):
        tt.densify(model, inplace=True)
    assert_unchanged(model, before)


def test_densify_knows_every_topogen_layer():
    eye = np.eye(4)
    cases = [
        (tt.SparseLinear(eye), nn.Linear), (tt.BlockSparseLinear(eye, 2), nn.Linear),
        (tt.LowRankPlusSparse(eye, 1), nn.Linear), (tt.SparseConv1d(eye, 3), nn.Conv1d),
        (tt.SparseConv2d(eye, 3), nn.Conv2d), (tt.SparseMultiheadAttention(eye, 2), nn.MultiheadAttention),
        (tt.SparseLSTM([(eye, eye)]), nn.LSTM), (tt.SparseGRU([(eye, eye)]), nn.GRU),
    ]  # fmt: skip
    for layer, kind in cases:
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
        dense = tt.densify(nn.Sequential(layer))[0]
        assert type(dense) is kind
        assert not any(parameter.requires_grad for parameter in dense.parameters())
    public = [getattr(tt, name) for name in tt.__all__ if isinstance(getattr(tt, name), type)]
    layers = {kind.__name__ for kind in public if issubclass(kind, nn.Module)}
    assert layers - {"SparseSequential"} == {type(layer).__name__ for layer, _ in cases}


class TestPatterns:
    def test_matrices_and_specs_by_glob_and_by_type(self):
        eye, spec = sp.eye_array(8), tg.RandomBiregular(sizes=[8, 8], fan_in=2)
        sparse = tt.sparsify(make(), patterns={"*.second": eye, nn.MultiheadAttention: spec}, rng=4)
        assert np.array_equal(sparse.inner["second"].pattern.toarray(), np.eye(8, dtype=bool))
        projections = [sparse.attention.q_proj, sparse.attention.k_proj, sparse.attention.v_proj]
        assert all((layer.fan_in() == 2).all() for layer in [*projections, sparse.attention.out_proj])
        assert not np.array_equal(projections[0].indices, projections[1].indices)  # each a draw of its own
        assert type(sparse.head) is nn.Linear
        assert sparse._topogen_left_dense["head"] == "named by no pattern"
        assert same_state(sparse, tt.sparsify(make(), patterns={"*.second": eye, nn.MultiheadAttention: spec}, rng=4))

    def test_a_topology_has_one_layer_for_each_match_in_their_order(self):
        model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 2))
        spec = tg.ErdosRenyi(sizes=[8, 6, 4, 2], density=0.5)
        net = tg.generate(spec, rng=tg.child(tg.as_seed(3), "member", 0))
        for given_ in (net, spec):
            sparse = tt.sparsify(model, patterns={"*": given_}, rng=3)
            for layer, pattern in zip((sparse[0], sparse[2], sparse[3]), net, strict=True):
                assert (layer.pattern != pattern).nnz == 0

    def test_the_first_entry_counts_and_density_takes_the_rest(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 5))
        sparse = tt.sparsify(model, patterns={"1": np.eye(4), "[01]": np.ones((4, 4))}, density=0.5)
        assert [layer.nnz for layer in sparse] == [16, 4, 10]

    def test_what_no_entry_names_of_a_layer_with_several_weights_stays_whole(self):
        model = nn.Sequential(nn.GRU(4, 3))
        sparse = tt.sparsify(model, patterns={"0.hh_l0": tg.Dense(sizes=[3, 9])})
        assert (sparse[0].ih_l0.nnz, sparse[0].hh_l0.nnz) == (36, 27)
        sparse = tt.sparsify(model, patterns={"0.hh_l0": np.eye(3, 9)}, density=0.5)
        assert (sparse[0].ih_l0.nnz, sparse[0].hh_l0.nnz) == (18, 3)

    def test_the_model_itself(self):
        layer = tt.sparsify(nn.Linear(3, 2), patterns={"*": np.array([[1, 0], [0, 1], [1, 1]])})
        assert layer.pattern.toarray().astype(int).tolist() == [[1, 0], [0, 1], [1, 1]]


BAD = [
    ({}, "sparsify needs 'density', 'patterns' or both. Got neither; density=0.1 would do."),
    *[
        ({"density": d}, f"The 'density' parameter of sparsify must be a finite number in (0, 1]. Got {d!r}.")
        for d in (0, -0.5, 1.5, math.nan, "0.1", True)
    ],
    (
        {"density": 1e-4},
        "The 'density' parameter of sparsify must leave at least 1 of the 578 weights. Got 0.0001; the nearest that "
        "does is 0.00173.",
    ),
    (
        {"density": 0.1, "distribution": "erks"},
        "The 'distribution' parameter of sparsify must be 'erk' or 'er' or 'uniform' or 'global'. Got 'erks'.",
    ),
    (
        {"density": 0.1, "score": "largest"},
        "The 'score' parameter of sparsify must be 'magnitude', 'random' or a callable (name, weight) -> scores. "
        "Got 'largest'.",
    ),
    (
        {"density": 0.1, "score": "random"},
        "The 'rng' parameter of sparsify must be given for score='random'. Got None. rng=0 would do.",
    ),
    (
        {"density": 0.1, "rng": 0.5},
        "The 'rng' parameter of sparsify must be an int >= 0, a numpy SeedSequence or a numpy Generator. Got 0.5.",
    ),
    (
        {"density": 0.1, "score": lambda name, weight: 3},
        "The 'score' parameter of sparsify must be a callable whose scores for 'inner.first' are a real tensor of "
        "shape (8, 6). Got 'int'.",
    ),
    (
        {"density": 0.1, "score": lambda name, weight: weight.abs() if name == "inner.first" else weight[0]},
        "The 'score' parameter of sparsify must be a callable whose scores for 'inner.second' are a real tensor of "
        "shape (8, 8). Got 'torch.float64 (8,)'.",
    ),
    (
        {"density": 0.1, "score": lambda name, weight: weight / 0 * 0},
        "The scores of the weights of 'inner.first' must not be NaN, which is neither large nor small. Got 48 of them.",
    ),
    *[
        ({"density": 0.1, name: 1}, f"The '{name}' parameter of sparsify must be a bool. Got 1.")
        for name in ("strict", "only_if_faster", "inplace", "whole_kernels")
    ],
    (
        {"density": 0.1, "include": "inner.frist"},
        "The 'include' parameter of sparsify must match a module of the model. Got 'inner.frist'; the nearest name is "
        "'inner.first'.",
    ),
    (
        {"density": 0.1, "exclude": ["head", nn.LSTM]},
        "The 'exclude' parameter of sparsify must match a module of the model. Got LSTM.",
    ),
    (
        {"density": 0.1, "exclude": nn.LazyLinear},
        "The 'exclude' parameter of sparsify must match a module of the model. Got LazyLinear; the nearest type "
        "is Linear.",
    ),
    (
        {"density": 0.1, "include": [3]},
        "The 'include' parameter of sparsify must be a name glob, a type of module, or a sequence of them. Got [3].",
    ),
    (
        {"density": 0.1, "include": "inner.norm"},
        "The 'model' parameter of sparsify must have something to make sparse. Got none: 'inner.first', "
        "'inner.second', 'attention', 'memory', 'head': not matched by 'include'.",
    ),
    (
        {"patterns": {}},
        "The 'patterns' parameter of sparsify must be a mapping of name globs or types to matrices, topologies or "
        "specs. Got {}.",
    ),
    (
        {"patterns": [np.eye(3)]},
        "The 'patterns' parameter of sparsify must be a mapping of name globs or types to matrices, topologies or "
        "specs. Got [array(",
    ),
    (
        {"patterns": {("head", "memory"): np.eye(3)}},
        "The 'patterns' parameter of sparsify must be a mapping of name globs or types to matrices, topologies or "
        "specs. Got {('head', 'memory'): array(",
    ),
    (
        {"patterns": {"heads": np.eye(3)}},
        "The 'patterns' parameter of sparsify must match a module of the model. Got 'heads'; the nearest name is "
        "'head'.",
    ),
    (
        {"patterns": {"head": np.ones((3, 5))}},
        "The pattern 'patterns['head']' must have the shape (inputs, outputs) of 'head', (5, 3). Got (3, 5). "
        "Transpose it.",
    ),
    (
        {"patterns": {"inner.first": np.ones((6, 8)), "head": np.ones((5, 4))}},
        "The pattern 'patterns['head']' must have the shape (inputs, outputs) of 'head', (5, 3). Got (5, 4).",
    ),
    ({"patterns": {"head": "dense"}}, "The matrix 'patterns['head']' must be a two-dimensional matrix of numbers."),
    (
        {"patterns": {"head": [np.ones((5, 3))] * 9}},
        "The pattern 'patterns['head']' for 'head' must be one matrix. Got 9.",
    ),
    (
        {"patterns": {"inner.norm": np.eye(8)}},
        "The 'patterns' parameter of sparsify must match layers that 'include', 'exclude' and earlier patterns leave. "
        "Got 'inner.norm', which matches none.",
    ),
    (
        {"patterns": {"head": np.ones((5, 3)), "h*": np.ones((5, 3))}},
        "The 'patterns' parameter of sparsify must match layers that 'include', 'exclude' and earlier patterns leave. "
        "Got 'h*', which matches none.",
    ),
    (
        {"patterns": {"inner": tg.ErdosRenyi(sizes=[6, 8, 8], density=0.5)}},
        "The 'rng' parameter of sparsify must be given for the random ErdosRenyi. Got None. rng=0 would do.",
    ),
    (
        {"patterns": {"inner": tg.Dense(sizes=[6, 8, 8, 8])}},
        "The topology 'patterns['inner']' must have one layer, or as many as layers of the model match: 2. Got 3.",
    ),
    (
        {"patterns": {"inner.second": tg.Topology([np.eye(8)], relays=[[], [1]])}},
        "The topology 'patterns['inner.second']' must have no relays, since a layer trains all its weights.",
    ),
    (
        {"patterns": {"*": np.eye(8)}, "include": "inner.second", "density": 0.5},
        "The 'density' parameter of sparsify must be None where 'patterns' names every layer. Got 0.5.",
    ),
    (
        {"density": 0.5, "only_if_faster": True},
        "The 'sample' parameter of sparsify must be model inputs that reach every layer but linear ones, with "
        "only_if_faster=True. Got None. 'attention' is not reached.",
    ),
    (
        {"density": 0.5, "only_if_faster": True, "sample": 3},
        "The 'sample' parameter of sparsify must be a tensor, or a tuple, a list or a mapping of model inputs. Got 3.",
    ),
]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("arguments", "sentence"), BAD)
def test_bad_requests_are_named_and_change_nothing(arguments, sentence, inplace, monkeypatch):
    monkeypatch.setattr("topogen_torch._conversion._faster.beside_dense", lambda layer, inputs: (None, None))
    model = make()
    before = snapshot(model)
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}"):
        tt.sparsify(model, **{"inplace": inplace} | arguments)
    assert_unchanged(model, before)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_score_that_fails_on_the_way_changes_nothing(inplace):
    model = make()
    before = snapshot(model)

    def score(name, weight):
        if name == "head":
            raise KeyError(name)
        return weight

    with pytest.raises(KeyError):
        tt.sparsify(model, density=0.5, score=score, inplace=inplace)
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: tt.sparsify("net", density=0.1), "The 'model' parameter of sparsify must be a Module. Got 'net'."),
        (lambda: tt.densify(3), "The 'model' parameter of densify must be a Module. Got 3."),
        (
            lambda: tt.densify(nn.Linear(2, 2), inplace="yes"),
            "The 'inplace' parameter of densify must be a bool. Got 'yes'.",
        ),
        (
            lambda: tt.sparsify(nn.Sequential(nn.ReLU(), nn.LayerNorm((3, 3))), density=0.1),
            "The 'model' parameter of sparsify must have something to make sparse. Got none: it has no weights.",
        ),
        (
            lambda: tt.sparsify(nn.Linear(3, 2, device="meta"), density=0.5),
            "The weights of the model must hold data to be scored. Got a tensor on meta.",
        ),
    ],
)
def test_other_models_are_refused(call, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        call()


class TestOnlyIfFaster:
    """With seconds that are made up: what is measured is another matter than what is done with it."""

    @pytest.fixture
    def timed(self, monkeypatch):
        seen = []

        def beside_dense(layer, inputs):
            seen.append((type(layer).__name__, [tuple(x.shape) for x in inputs.args]))
            own = 2.0 if type(layer) is tt.SparseLinear and layer.in_features > 5 else 0.5
            return tt.Seconds(own, 1 / own, own), tt.Seconds(1.0, 1.0, 1.0)

        monkeypatch.setattr("topogen_torch._conversion._faster.beside_dense", beside_dense)
        return seen

    def test_what_is_not_faster_stays_dense_and_is_named(self, timed, caplog):
        model = make().eval()
        sparse = tt.sparsify(model, density=0.2, only_if_faster=True, sample=sample())
        kinds = {name: type(module).__name__ for name, module in sparse.named_children()}
        assert kinds["again"] == "Linear"
        assert kinds["head"] == "SparseLinear"
        assert kinds["attention"] == "SparseMultiheadAttention"
        reason = "not faster, forward 2e+03 ms sparse and 1e+03 ms dense"
        assert sparse._topogen_left_dense == {"inner.first": reason, "inner.second": reason}
        assert caplog.records[0].message == (f"sparsify leaves 2 as they are: 'inner.first', 'inner.second': {reason}.")
        assert ("SparseMultiheadAttention", [(4, 3, 8)] * 3) in timed
        assert ("SparseLinear", [(4, 3, 6)]) in timed
        assert torch.equal(sparse.inner["first"].weight, model.inner["first"].weight)

    def test_in_training_the_backward_pass_counts(self, timed):
        sparse = tt.sparsify(make().train(), density=0.2, only_if_faster=True, sample=(sample(),))
        assert type(sparse.again) is tt.SparseLinear
        assert type(sparse.head) is nn.Linear  # 0.5 s forward, 2 s with the backward pass

    def test_a_linear_layer_needs_no_sample(self, timed):
        linear = nn.Linear(5, 3)
        assert type(tt.sparsify(linear.eval(), density=0.5, only_if_faster=True)) is tt.SparseLinear
        assert timed == [("SparseLinear", [(64, 5)])]
        kept = tt.sparsify(nn.Linear(8, 3).eval(), density=0.5, only_if_faster=True)
        assert type(kept) is nn.Linear
        assert list(kept._topogen_left_dense) == [""]

    def test_it_really_measures(self):
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(3, 3))
        sparse = tt.sparsify(model, density=0.05, only_if_faster=True)
        for layer, name in zip(sparse, "01", strict=True):
            assert (type(layer) is nn.Linear) == (name in sparse._topogen_left_dense)
