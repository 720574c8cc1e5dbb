"""Passes over connections, compiled and by numpy: what loops over sets, and scipy, say."""

import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
import topogen_torch as tt
from topogen import kernels
from topogen.kernels import exchange
from topogen_torch import _passes, _rewire
from topogen_torch._rewire import Rewiring, places_of, rewire

COMPILED = _passes._compiled
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(params=["compiled", "numpy"], scope="module")
def way(request):
    """Compiled, or as if there were no numba; for the whole module, since hypothesis asks for that."""
    if request.param == "compiled":
        assert _passes._compiled() is not None
        yield request.param
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_passes, "_compiled", lambda: None)
        yield request.param


kinds = st.sampled_from([np.int32, np.int64])


def some(rng, population, kind=np.int64):
    return np.flatnonzero(rng.random(population) < rng.random()).astype(kind)


@given(seeds, st.integers(0, 12), st.integers(1, 12))
def test_an_index_is_what_scipy_makes(way, seed, rows, columns):
    check_index(np.random.default_rng(seed).random((rows, columns)) < 0.4)


@pytest.mark.parametrize("columns", [512, 513, 1024, 1100])
@pytest.mark.parametrize("density", [0.02, 0.5, 1.0])
def test_an_index_of_many_columns_is_what_scipy_makes(way, columns, density):
    """Where rows are long, columns are taken a strip at a time; one row is empty, and one strip."""
    mask = np.random.default_rng(columns).random((9, columns)) < density
    mask[4], mask[:, 100:700] = False, False
    check_index(mask)


def check_index(mask):
    rows, columns = mask.shape
    expected = sp.csr_array(mask)
    indptr, indices = _passes.csr_index(np.flatnonzero(mask), rows, columns)
    assert indptr.dtype == indices.dtype == np.int32
    np.testing.assert_array_equal(indptr, expected.indptr)
    np.testing.assert_array_equal(indices, expected.indices)
    np.testing.assert_array_equal(_passes.flat_places(indptr, indices, columns), np.flatnonzero(mask))
    by_output = sp.csc_array(mask)
    numbers = np.zeros(mask.shape, int)
    numbers[mask] = np.arange(len(indices))
    starts, inputs, permutation = _passes.csc_index(indptr, indices, columns)
    assert starts.dtype == inputs.dtype == permutation.dtype == np.int32
    np.testing.assert_array_equal(starts, by_output.indptr)
    np.testing.assert_array_equal(inputs, by_output.indices)
    np.testing.assert_array_equal(permutation, numbers.T[mask.T])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 100_001])
@pytest.mark.parametrize("threads", [1, 3])
def test_gradients_above_a_bound_are_those_that_a_loop_finds(way, dtype, length, threads):
    """Of both signs and NaN, in several pieces; kept places reach beyond the run at both ends."""
    rng = np.random.default_rng(length)
    gradients = rng.standard_normal(length).astype(dtype)
    gradients[5::97] = np.nan
    first = 1000
    kept = np.flatnonzero(rng.random(length + 2 * first) < 0.3)
    for least in (-1.0, 0.0, 0.4, 2.5, 100.0):
        own = {int(place) - first for place in kept}
        expected = [k for k in range(length) if k not in own and not abs(gradients[k]) <= least]
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            scores, places = _passes.above(first, gradients.copy(), kept, least)
        finally:
            torch.set_num_threads(before)
        assert places.tolist() == [first + k for k in expected]
        assert scores.dtype == dtype
        np.testing.assert_array_equal(scores, np.abs(gradients[expected]))


@given(seeds, st.integers(1, 60), kinds)
def test_an_exchange_is_one_of_sets(way, seed, possible, kind):
    """Some of what grows was just dropped, and keeps where it came from."""
    rng = np.random.default_rng(seed)
    now = some(rng, possible, kind)
    gone = rng.random(len(now)) < rng.random()
    kept = _passes.left(now, gone)
    assert kept.dtype == kind
    assert kept.tolist() == [place for place, is_gone in zip(now, gone, strict=True) if not is_gone]
    grown = np.array(sorted(set(some(rng, possible).tolist()) - set(kept.tolist())), kind)
    places, origins, taken = _passes.exchanged(now, gone, grown)
    assert taken == 0
    assert _passes.exchanged(now, gone, some(rng, 0, kind) if len(kept) == 0 else kept[::2])[2] == -(-len(kept) // 2)
    expected = sorted({*kept.tolist(), *grown.tolist()})
    number = {place: k for k, place in enumerate(now.tolist())}
    assert (places.dtype, origins.dtype) == (kind, np.int32)
    assert places.tolist() == expected
    assert origins.tolist() == [number.get(place, -1) for place in expected]


@given(seeds, st.integers(1, 300), kinds)
def test_places_that_are_marked_and_empty_ones_that_are_counted(way, seed, possible, kind):
    rng = np.random.default_rng(seed)
    occupied, already = some(rng, possible, kind), some(rng, possible)
    bits = np.packbits(np.isin(np.arange(possible), already), bitorder="little")
    _passes.mark(bits, occupied)
    found = np.unpackbits(bits, count=possible, bitorder="little")
    assert set(np.flatnonzero(found).tolist()) == {*occupied.tolist(), *already.tolist()}
    empty = [place for place in range(possible) if place not in set(occupied.tolist())]
    ranks = some(rng, len(empty), kind)
    assert _passes.nth_empty(ranks, occupied).dtype == kind
    assert _passes.nth_empty(ranks, occupied).tolist() == [empty[rank] for rank in ranks]


@given(seeds, st.integers(1, 500), st.floats(0, 1))
def test_the_first_different_numbers_of_a_stream(way, seed, population, share):
    """However many are asked for at a time: the set of those that a loop meets until it has enough."""
    count = int(share * population)
    rng = np.random.default_rng(seed)
    found = _passes.first_distinct(lambda size: rng.integers(population, size=size), population, count)
    stream = np.random.default_rng(seed)
    met: set[int] = set()
    while len(met) < count:
        met.add(int(stream.integers(population)))
    assert found.tolist() == sorted(met)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_numbers_follow_bit_for_bit(way, dtype):
    source = np.frombuffer(np.random.default_rng(0).bytes(40 * np.dtype(dtype).itemsize), dtype)
    origins = np.random.default_rng(1).integers(-1, 40, 100, dtype=np.int32)
    target = np.ones(100, dtype)
    _passes.follow(source, origins, target)
    assert target.tolist() == [source[k] if k >= 0 else 0 for k in origins]
    _passes.follow(source[:0], np.full(100, -1, np.int32), target)
    assert not target.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_of_every_type_follow_even_those_that_are_no_numbers(way, dtype):
    layer = tt.SparseLinear(sp.csr_array(np.eye(4)), dtype=dtype)
    with torch.no_grad():
        layer.values.copy_(torch.tensor([torch.nan, -0.0, torch.inf, 3.0]))
    layer.values.grad = layer.values.detach().clone()
    rewire([Rewiring(layer, np.array([0, 1, 5, 10, 11, 15]))])
    for tensor in (layer.values.detach(), layer.values.grad):
        torch.testing.assert_close(tensor.float(), torch.tensor([torch.nan, 0, -0.0, torch.inf, 0, 3]), equal_nan=True)
        assert torch.signbit(tensor).tolist()[1:] == [False, True, False, False, False]


def test_what_is_computed_in_threads_is_what_one_computes(monkeypatch):
    """The same layers after the same SET and RigL, bit for bit."""
    monkeypatch.setattr(_passes, "_compiled", COMPILED)
    found = []
    for least in (0, 1 << 60):
        monkeypatch.setattr("topogen_torch._together._WORTH_THREADS", least)
        torch.manual_seed(0)
        model = torch.nn.Sequential(*(tt.SparseLinear(sp.csr_array(np.tri(20, 20, k))) for k in (-3, 0, 3)))
        optimizer = torch.optim.Adam(model.parameters())
        for make in (
            lambda: tt.SET(model, optimizer, rng=0, update_every=1),  # noqa: B023
            lambda: tt.RigL(model, optimizer, end_step=9, update_every=1),  # noqa: B023
        ):
            ctl = make()
            model(torch.ones(5, 20)).square().sum().backward()
            optimizer.step()
            assert ctl.step()
        found.append([*model.state_dict().values(), *(optimizer.state[m.values]["exp_avg"] for m in model)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_without_numba_the_passes_are_numpys(monkeypatch):
    monkeypatch.delitem(sys.modules, "topogen.kernels.exchange", raising=False)
    monkeypatch.delattr("topogen.kernels.exchange", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "topogen.kernels._compile", raising=False)
    COMPILED.cache_clear()
    try:
        assert COMPILED() is None
    finally:
        COMPILED.cache_clear()


def test_an_exchange_that_forgets_is_caught(monkeypatch):
    """The law of `test_rewire` can fail: here whoever grows again is taken for a newcomer."""
    layer = tt.SparseLinear(sp.csr_array(np.eye(3)))
    now = places_of(layer)

    def forgetful(now, gone, grown):
        places, origins, taken = _passes.exchanged(now, gone, grown)
        return places, np.where(np.isin(places, grown), -1, origins), taken

    again = Rewiring.exchanging(layer, now, np.array([1]), now[1:2])
    assert again.origins.tolist() == [0, 1, 2]
    monkeypatch.setattr(_rewire, "exchanged", forgetful)
    assert Rewiring.exchanging(layer, now, np.array([1]), now[1:2]).origins.tolist() == [0, -1, 2]


def test_warm_up_leaves_nothing_to_compile():
    """Not for either way of growing, nor for drawing few or many."""
    kernels.warm_up()
    routines = [getattr(exchange, name) for name in exchange.__all__ if name != "above"] + [exchange._above]
    before = [len(routine.signatures) for routine in routines]
    assert min(before) > 0
    net = tg.generate(tg.ErdosRenyi(sizes=(60, 50, 40), density=0.2), rng=0)
    for dtype in (torch.float32, torch.float64):
        model = tt.sparse_mlp(net).to(dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        ways = [
            tt.SET(model, optimizer, rng=0, update_every=1, drop_fraction=0.4, layers="0"),
            tt.RigL(model, optimizer, end_step=9, update_every=1, layers="2"),
        ]
        model(torch.randn(5, 60, dtype=dtype)).square().sum().backward()
        optimizer.step()
        assert all(way.step() for way in ways)
    _passes.first_distinct(lambda count: np.arange(count), 10**6, 5)
    _passes.above(0, np.ones(9, np.float32), np.arange(3), 0.0)
    assert [len(routine.signatures) for routine in routines] == before
