"""Pruning: exact numbers, the largest weights, schedules, and what is refused."""

import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError, TopogenError
from topogen_torch._rewire import places_of


def dense_model(sizes=(12, 9, 5), seed=0):
    torch.manual_seed(seed)
    return tt.sparse_mlp(tg.generate(tg.Dense(sizes=sizes)), dtype=torch.float64)


def layers_of(model):
    return [module for module in model if isinstance(module, tt.SparseLinear)]


def weights_of(model):
    return [layer.to_scipy().toarray() for layer in layers_of(model)]


@given(st.integers(1, 100).map(lambda percent: percent / 100), st.integers(0, 99))
def test_a_layer_keeps_its_largest_weights(density, seed):
    model = dense_model(seed=seed)
    before = weights_of(model)
    prune = tt.OneShot(model, density=density)
    assert prune.step()
    assert not prune.step()
    for weight, layer in zip(before, layers_of(model), strict=True):
        kept = np.argsort(-np.abs(weight).ravel(), kind="stable")[: layer.nnz]
        expected = np.zeros(weight.size)
        expected[kept] = weight.ravel()[kept]
        np.testing.assert_array_equal(layer.to_scipy().toarray().ravel(), expected)
        assert layer.nnz == round(round(density * 100) * weight.size / 100)


@given(st.integers(1, 100).map(lambda percent: percent / 100), st.integers(0, 99))
def test_all_layers_together_keep_the_largest(density, seed):
    model = dense_model(seed=seed)
    before = np.concatenate([weight.ravel() for weight in weights_of(model)])
    possible = [layer.nnz for layer in layers_of(model)]
    tt.OneShot(model, density=density, scope="global").step()
    after = np.concatenate([weight.ravel() for weight in weights_of(model)])
    count = sum(layer.nnz for layer in layers_of(model))
    assert count == round(Fraction(round(density * 100), 100) * sum(possible))
    kept = np.argsort(-np.abs(before), kind="stable")[:count]
    assert np.array_equal(np.flatnonzero(after), np.sort(kept))
    assert np.array_equal(after[kept], before[kept])


def test_of_equal_weights_the_first_stay():
    model = dense_model()
    with torch.no_grad():
        for layer in layers_of(model):
            layer.values.fill_(0.5)
    tt.OneShot(model, density=0.1).step()
    for layer in layers_of(model):
        np.testing.assert_array_equal(np.flatnonzero(layer.pattern.toarray()), np.arange(layer.nnz))


def test_scores_may_be_a_function_or_given():
    model, twin = dense_model(), dense_model()
    tt.OneShot(model, density=0.2, score=lambda layer: -layer.values.detach().abs()).step()
    scores = {name: -module.values.detach().abs() for name, module in twin.named_modules() if hasattr(module, "values")}
    tt.OneShot(twin, density=0.2, score=scores).step()
    for a, b in zip(weights_of(model), weights_of(twin), strict=True):
        np.testing.assert_array_equal(a, b)
    small = dense_model()
    for layer, weight in zip(layers_of(model), weights_of(small), strict=True):
        assert layer.values.abs().max() <= np.sort(np.abs(weight).ravel())[layer.nnz - 1]


def test_random_scores_are_drawn_by_name():
    patterns = []
    for seed in (0, 0, 1):
        model = dense_model()
        tt.OneShot(model, density=0.3, score="random", rng=seed).step()
        patterns.append([layer.pattern.toarray() for layer in layers_of(model)])
    assert all(map(np.array_equal, patterns[0], patterns[1]))
    assert not any(map(np.array_equal, patterns[0], patterns[2]))


def run_gradual(steps=14, **settings):
    model = dense_model(sizes=(20, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    defaults = {"density": 0.1, "begin_step": 2, "end_step": 12, "update_every": 2}
    prune = tt.GradualMagnitude(model, optimizer, **defaults | settings)
    counts = []
    for _ in range(steps):
        model(torch.randn(4, 20, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        prune.step()
        counts.append(model[0].nnz)
    return counts


def test_the_cubic_schedule_is_followed_exactly():
    """200 (0.1 + 0.9 (1 - p)^3), p = 0, 0.2, ... 1, by hand."""
    assert run_gradual() == [200, 200, 200, 112, 112, 59, 59, 32, 32, 21, 21, 20, 20, 20]


def test_the_last_update_is_the_first_one_at_the_end_or_after():
    """Updates at 5, 10 and 15, where p is 0.3, 0.8 and 1."""
    assert run_gradual(update_every=5)[3:] == [200, 82, 82, 82, 82, 82, 21, 21, 21, 21, 21]
    assert run_gradual(update_every=5, steps=16)[-3:] == [21, 20, 20]


def test_a_straight_line_is_another_shape():
    assert run_gradual(shape="linear")[3::2] == [164, 128, 92, 56, 20, 20]


@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
def test_a_distribution_meets_the_budget(distribution):
    model = dense_model(sizes=(40, 30, 10))
    prune = tt.GradualMagnitude(
        model, None, density=0.2, begin_step=0, end_step=1, update_every=1, distribution=distribution
    )
    prune.step()
    shapes = [(layer.out_features, layer.in_features) for layer in layers_of(model)]
    expected = tg.connection_counts(shapes, density=0.2, distribution=distribution)
    assert [layer.nnz for layer in layers_of(model)] == expected


@pytest.mark.parametrize("distribution", ["uniform", "er", "erk", "global"])
def test_every_distribution_at_once_and_little_by_little(distribution):
    at_once, little = dense_model(sizes=(40, 30, 10)), dense_model(sizes=(40, 30, 10))
    tt.OneShot(at_once, density=0.2, distribution=distribution).step()
    settings = {"density": 0.2, "begin_step": 0, "end_step": 1, "update_every": 1}
    tt.GradualMagnitude(little, None, distribution=distribution, **settings).step()
    for a, b in zip(layers_of(at_once), layers_of(little), strict=True):
        assert torch.equal(a.pattern_hash, b.pattern_hash)
    counts = [layer.nnz for layer in layers_of(at_once)]
    assert sum(counts) == 300
    if distribution == "global":
        largest = np.concatenate([np.abs(w).ravel() for w in weights_of(dense_model(sizes=(40, 30, 10)))])
        assert sum(np.abs(w[w != 0]).sum() for w in weights_of(at_once)) == pytest.approx(np.sort(largest)[-300:].sum())
    else:
        assert counts == tg.connection_counts([(30, 40), (10, 30)], density=0.2, distribution=distribution)


def test_a_budget_of_kernels_and_connections_is_met():
    """An ERK budget in weights, in units of 9 and of 1: exact where kernels allow, within half a kernel otherwise."""
    model = torch.nn.Sequential(
        tt.SparseConv2d(np.ones((4, 6)), 3), torch.nn.Flatten(), tt.SparseLinear(np.ones((6, 5)))
    )
    tt.OneShot(model, density=0.4, distribution="erk").step()
    wanted = tg.connection_counts([(6, 4, 3, 3), (5, 6)], density=0.4)
    assert abs(model[0].nnz - wanted[0]) < 9
    assert abs(model[2].nnz - wanted[1]) <= 1
    assert model[0].nnz % 9 == 0


def mixed_model():
    """Kernels of 9, connections, and blocks of 25: 216, 120 and 25 weights."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        tt.SparseConv2d(np.ones((4, 6)), 3),
        torch.nn.Flatten(),
        tt.SparseLinear(np.ones((24, 5))),
        tt.BlockSparseLinear(np.ones((1, 1)), 5),
    ).double()


def worth_of(layer, score):
    """What each unit is worth a weight, by hand."""
    values = layer.values.detach().reshape(len(layer.values), -1).numpy()
    return {
        "magnitude": np.sqrt((values**2).mean(1)),
        "sum": values.mean(1),
        "inverted": -np.sqrt((values**2).mean(1)),
    }[score]


def units_sum(layer):
    return layer.values.detach().reshape(len(layer.values), -1).sum(1)


@pytest.mark.parametrize("score", ["magnitude", "sum", "inverted"])
@pytest.mark.parametrize("percent", [1, 7, 10, 30, 50, 90, 100])
def test_units_of_several_sizes_share_one_budget_of_connections(percent, score):
    """One after the other, the worthiest first, as long as they fit: single connections make the number exact."""
    model = mixed_model()
    layers = [model[k] for k in (0, 2, 3)]
    units = [
        (-worth, number, unit, len(layer.values[unit].reshape(-1)))
        for number, layer in enumerate(layers)
        for unit, worth in enumerate(worth_of(layer, score))
    ]
    left = round(Fraction(percent, 100) * 361)
    kept = [set(), set(), set()]
    for _, number, unit, size in sorted(units):
        if size <= left:
            kept[number].add(unit)
            left -= size
    assert left == 0
    before = [places_of(layer) for layer in layers]
    given_score = {"magnitude": "magnitude", "sum": units_sum, "inverted": tt.inverted("magnitude")}[score]
    tt.OneShot(model, density=percent / 100, scope="global", score=given_score).step()
    assert sum(layer.nnz for layer in layers) == round(Fraction(percent, 100) * 361)
    for layer, places, own in zip(layers, before, kept, strict=True):
        assert places_of(layer).tolist() == places[sorted(own)].tolist()


def test_little_by_little_too():
    model = mixed_model()
    prune = tt.GradualMagnitude(
        model, None, density=0.1, begin_step=0, end_step=4, update_every=1, distribution="global"
    )
    counts = []
    for _ in range(5):
        prune.step()
        counts.append(sum(model[k].nnz for k in (0, 2, 3)))
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 36


@pytest.mark.parametrize("distribution", ["er", "erk"])
def test_a_rule_of_budgets_reads_weights_and_not_units(distribution):
    """Blocks are those of a linear layer, and a list of offsets is one kernel."""
    blocks = torch.nn.Sequential(tt.BlockSparseLinear(np.ones((6, 4)), 4), tt.SparseLinear(np.ones((16, 6))))
    tt.OneShot(blocks, density=0.4, distribution=distribution).step()
    wanted = tg.connection_counts([(16, 24), (6, 16)], density=0.4, distribution=distribution)
    assert blocks[0].indices.numel() == round(wanted[0] / 16)
    assert abs(blocks[1].nnz - wanted[1]) <= 1
    listed = torch.nn.Sequential(tt.SparseConv2d([np.ones((4, 6))] * 9, 3), tt.SparseConv2d(np.ones((6, 5)), 1))
    tt.OneShot(listed, density=0.4, distribution=distribution).step()
    wanted = tg.connection_counts([(6, 4, 3, 3), (5, 6, 1, 1)], density=0.4, distribution=distribution)
    assert [layer.nnz for layer in listed] == wanted


@pytest.mark.parametrize("distribution", ["uniform", "er", "erk", "global"])
@given(st.integers(0, 99))
def test_the_density_that_is_named_can_be_had(distribution, seed):
    net = tg.generate(tg.ErdosRenyi(sizes=[13, 11, 7], density=[0.1 + seed % 7 / 10, 0.9 - seed % 5 / 10]), rng=seed)
    model = tt.sparse_mlp(net)
    with pytest.raises(SpecError, match=r"must be at most .* since pruning adds nothing. Got 0.99.$") as refusal:
        tt.OneShot(model, density=0.99, distribution=distribution)
    named = float(re.search(r"0\.\d+", str(refusal.value)).group())
    stored = [layer.nnz for layer in layers_of(model)]
    assert tt.OneShot(model, density=named, distribution=distribution).step()
    assert all(layer.nnz <= count for layer, count in zip(layers_of(model), stored, strict=True))
    assert sum(layer.nnz for layer in layers_of(model)) in (round(named * 220), round(named * 220) + 1)


def test_groups_may_have_scores_of_their_own():
    model, twin = dense_model(), dense_model()
    inverse = lambda layer: -layer.values.detach().abs()  # noqa: E731
    tt.OneShot(model, density=0.2, groups=[{"layers": "2", "score": inverse}]).step()
    for name, score in (("0", "magnitude"), ("2", inverse)):
        tt.OneShot(twin, density=0.2, score=score, layers=name).step()
    assert torch.equal(model[0].pattern_hash, twin[0].pattern_hash)
    assert torch.equal(model[2].pattern_hash, twin[2].pattern_hash)


def test_what_is_pruned_little_by_little_can_be_resumed():
    def fresh():
        model = dense_model(sizes=(20, 10))
        return model, tt.GradualMagnitude(model, None, density=0.1, begin_step=0, end_step=8, update_every=2)

    model, prune = fresh()
    for _ in range(5):
        prune.step()
    other, again = fresh()
    other.load_state_dict(model.state_dict())
    again.load_state_dict(prune.state_dict())
    for _ in range(9):
        prune.step()
        again.step()
        assert torch.equal(model[0].pattern_hash, other[0].pattern_hash)
    assert model[0].nnz == 20


def test_nan_weights_change_nothing():
    model = dense_model()
    with torch.no_grad():
        model[0].values[7] = float("nan")
    with pytest.raises(
        TopogenError, match=r"^OneShot changes nothing at step 1: 1 of 108 scores by magnitude in layer '0'"
    ):
        tt.OneShot(model, density=0.5).step()
    assert model[0].nnz == 108


REFUSED = {
    "density": (lambda: tt.OneShot(dense_model(), density=0), "The 'density' parameter of OneShot must be a finite"),
    "above": (
        lambda: tt.OneShot(tt.sparse_mlp(tg.generate(tg.RadixNet(systems=[[2, 2]]))), density=0.9),
        "The 'density' parameter of OneShot must be at most the layer's own, 0.5 for '0', since pruning adds nothing. "
        "Got 0.9.",
    ),
    "score": (
        lambda: tt.OneShot(dense_model(), density=0.5, score="size"),
        "The 'score' parameter of OneShot must be 'magnitude' or 'random'. Got 'size'.",
    ),
    "rng": (
        lambda: tt.OneShot(dense_model(), density=0.5, score="random"),
        "The 'rng' parameter of OneShot must be an int, a SeedSequence or a Generator where score='random'. Got None.",
    ),
    "scope": (
        lambda: tt.OneShot(dense_model(), density=0.5, scope="model"),
        "The 'scope' parameter of OneShot must be 'layer' or 'global'. Got 'model'.",
    ),
    "above, together": (
        lambda: tt.OneShot(tt.sparse_mlp(tg.generate(tg.RadixNet(systems=[[2, 2]]))), density=0.9, scope="global"),
        "The 'density' parameter of OneShot must be at most that of the layers, 0.5, since pruning adds nothing. "
        "Got 0.9.",
    ),
    "above, in a group": (
        lambda: tt.OneShot(
            tt.sparse_mlp(tg.generate(tg.RadixNet(systems=[[2, 2]]))),
            density=0.1,
            groups=[{"layers": "2", "density": 0.75}],
        ),
        "The 'density' parameter of OneShot must be at most the layer's own, 0.5 for '2', since pruning adds nothing. "
        "Got 0.75.",
    ),
    "above, by a rule": (
        lambda: tt.OneShot(tt.sparse_mlp(tg.generate(tg.RadixNet(systems=[[2, 2]]))), density=0.9, distribution="erk"),
        "The 'density' parameter of OneShot must be at most 0.5 with distribution='erk', for the connections that '0' "
        "has, since pruning adds nothing. Got 0.9.",
    ),
    "density of a group": (
        lambda: tt.OneShot(dense_model(), density=0.5, groups=[{"layers": "0", "density": -1.0}]),
        "The 'density' parameter of OneShot must be a finite number in (0, 1]. Got -1.0.",
    ),
    "score of a group": (
        lambda: tt.OneShot(dense_model(), density=0.5, groups=[{"layers": "0", "score": "size"}]),
        "The 'score' parameter of OneShot must be 'magnitude' or 'random'. Got 'size'.",
    ),
    "rng of a group": (
        lambda: tt.OneShot(dense_model(), density=0.5, groups=[{"layers": "0", "score": "random"}]),
        "The 'rng' parameter of OneShot must be an int, a SeedSequence or a Generator where score='random'. Got None.",
    ),
    "no score": (
        lambda: tt.OneShot(dense_model(), density=0.5, score=3),
        "The 'score' parameter of OneShot must be 'magnitude', 'random', a callable or a mapping. Got 3.",
    ),
    "scope and distribution": (
        lambda: tt.OneShot(dense_model(), density=0.5, scope="global", distribution="erk"),
        "The 'scope' parameter of OneShot must be 'layer' with distribution='erk', which shares the density out among "
        "the layers. Got 'global'.",
    ),
    "groups": (
        lambda: tt.OneShot(dense_model(), density=0.5, scope="global", groups=[{"layers": "0", "density": 0.1}]),
        "The 'groups' parameter of OneShot must be empty with scope='global'.",
    ),
    "distribution": (
        lambda: tt.OneShot(dense_model(), density=0.5, distribution="even"),
        "The 'distribution' parameter of OneShot must be 'uniform' or 'er' or 'erk' or 'global'. Got 'even'.",
    ),
    "densities of groups": (
        lambda: tt.OneShot(dense_model(), density=0.5, distribution="erk", groups=[{"layers": "0", "density": 0.1}]),
        "The 'groups' parameter of OneShot must set no density with distribution='erk', which shares one out. Got [{'",
    ),
    "groups of all": (
        lambda: tt.OneShot(dense_model(), density=0.5, distribution="global", groups=[{"layers": "0", "density": 0.1}]),
        "The 'groups' parameter of OneShot must be empty with distribution='global'.",
    ),
    "scores of a layer": (
        lambda: tt.OneShot(dense_model(), density=0.5, score={"0": torch.ones(108)}).step(),
        "The 'score' parameter must have scores for layer '2'. Got ['0'].",
    ),
    "shape of scores": (
        lambda: tt.OneShot(dense_model(), density=0.5, score=lambda layer: torch.ones(3)).step(),
        "The 'score' parameter must give a tensor of one number for each unit of '0', shape (108,). Got shape (3,).",
    ),
    "scores of numpy": (
        lambda: tt.OneShot(dense_model(), density=0.5, score=lambda layer: np.ones(108)).step(),
        "The 'score' parameter must give a tensor of one number for each unit of '0', shape (108,). Got a ndarray.",
    ),
    "schedule": (
        lambda: tt.GradualMagnitude(dense_model(), None, density=0.5, begin_step=5, end_step=4, update_every=1),
        "The 'end_step' parameter of Schedule must be at least begin_step, 5. Got 4.",
    ),
    "update_every": (
        lambda: tt.GradualMagnitude(dense_model(), None, density=0.5, begin_step=0, end_step=4, update_every=0),
        "The 'update_every' parameter of GradualMagnitude must be an int >= 1. Got 0.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    call, sentence = REFUSED[case]
    with pytest.raises(SpecError, match="^" + re.escape(sentence)):
        call()
