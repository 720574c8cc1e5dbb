"""Panels of rows: plans that hold every connection once, products equal to dense float64, whatever the pattern."""

import re
from contextlib import nullcontext

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import topogen as tg
from topogen import kernels
from topogen.errors import SpecError
from topogen.kernels import _panel_plan, _panels, _team
from topogen.kernels._panel_passes import STRIPE
from topogen.kernels._panel_vector import LOOKAHEAD, MEMBERS, PLACED
from topogen.testing import specs

DTYPES = (np.float32, np.float64)
TOLERANCE = {np.float32: 2e-4, np.float64: 1e-12}


def circulant(n, fan, gap=1):
    starts = np.repeat(np.arange(n), fan)
    return sp.csr_array((np.ones(n * fan, bool), (starts, (starts + np.tile(np.arange(fan), n) * gap) % n)), (n, n))


def kron(a, b):
    return sp.csr_array(sp.kron(a, b, format="csr"))


def base(n, density=0.3, seed=0):
    return np.random.default_rng(seed).random((n, n)) < density


def shuffled_twins(n=24):
    """Every row and every column four times, in random order."""
    rng = np.random.default_rng(5)
    return kron(np.ones((4, 4)), base(n)).toarray().astype(bool)[rng.permutation(4 * n)][:, rng.permutation(4 * n)]


STRUCTURED = {
    "circulant": circulant(96, 24),
    "circulant with a stride": circulant(128, 32, 4),
    "radix, last layer": tg.generate(tg.RadixNet(systems=[[16, 16]]))[1],
    "radix times dense": tg.generate(tg.RadixNet(systems=[[5, 4]], widths=[8, 8, 4]))[1],
    "radix times dense, blocks": tg.generate(tg.RadixNet(systems=[[5, 4]], widths=[8, 8, 4], order="blocks"))[0],
    "band": sp.diags_array([np.ones(80)] * 21, offsets=range(-10, 11), shape=(80, 80)),
    "copies": kron(np.ones((4, 8)), base(12)),
    "blocks": kron(base(12), np.ones((8, 4))),
}
RANDOM = {
    "random": base(100, 0.1),
    "denser": base(100, 0.5),
    "diagonal": np.eye(50, dtype=bool),
    "narrow": np.random.default_rng(1).random((300, 9)) < 0.2,
}


class Problem:
    """Plans of a pattern, forced if need be, data, and the dense truth."""

    def __init__(self, pattern, batch, dtype, seed=0):
        csr = sp.csr_array(pattern).astype(bool)
        csr.eliminate_zeros()
        csr.sort_indices()
        places = sp.csr_array((np.arange(csr.nnz), csr.indices, csr.indptr), csr.shape).tocsc()
        self.rows = csr.indptr.astype(np.int32), csr.indices.astype(np.int32)
        self.columns = tuple(part.astype(np.int32) for part in (places.indptr, places.indices, places.data))
        self.plan, self.plan_t = kernels.plan_panels(*self.rows), kernels.plan_panels(*self.columns)
        self.mask, self.nnz, self.tolerance = csr.toarray(), csr.nnz, TOLERANCE[dtype]
        rng = np.random.default_rng(seed)
        n_in, self.n_out = csr.shape
        self.x, self.dy, self.values, self.bias = (
            rng.standard_normal(size).astype(dtype)
            for size in ((batch, n_in), (batch, self.n_out), csr.nnz, self.n_out)
        )

    def forward(self, threads=1):
        out = np.full_like(self.dy, np.nan)
        kernels.multiply_panels(self.x, self.values, self.plan_t, self.n_out, self.bias, out=out, threads=threads)
        return out

    def backward(self, threads=1, wanted=("dx", "dvalues", "dbias")):
        like = {"dx": self.x, "dvalues": self.values, "dbias": self.bias}
        found = {name: np.full_like(like[name], np.nan) for name in wanted}
        kernels.gradients_panels(self.dy, self.x, self.values, self.rows[0], self.plan, **found, threads=threads)
        return found

    def truth(self):
        weights = np.zeros(self.mask.shape)
        weights[self.mask] = self.values
        x, dy = self.x.astype(float), self.dy.astype(float)
        gradients = {"dx": dy @ weights.T, "dvalues": (x.T @ dy)[self.mask], "dbias": dy.sum(axis=0)}
        return x @ weights + self.bias, gradients

    def agree(self, mine, true):
        np.testing.assert_allclose(mine, true, rtol=0, atol=self.tolerance * (1 + np.abs(true).max(initial=0)))

    def check(self, threads=1):
        y, gradients = self.truth()
        self.agree(self.forward(threads), y)
        for name, found in self.backward(threads).items():
            self.agree(found, gradients[name])


def _force(patch):
    patch.setattr(_panel_plan, "_SHARED", {"product": -1.0, "gradients": -1.0})
    patch.setattr(_panel_plan, "_SHORTEST", {"neighbours": 0, "apart": 0})


@pytest.fixture
def even_short(monkeypatch):
    """Short rows are worth a plan for gradients too."""
    monkeypatch.setattr(_panel_plan, "_SHORTEST", {"neighbours": 0, "apart": 0})


@pytest.fixture
def forced(monkeypatch):
    """Every pattern with a connection has a plan, however little its rows share."""
    _force(monkeypatch)


def unpacked(plan, rows, placed):
    """Read a plan back: the members, and (row, column, place) of every connection in the order of the plan."""
    panels = -(-rows // MEMBERS)
    members = plan[: MEMBERS * panels].reshape(panels, MEMBERS)
    bounds = plan[MEMBERS * panels : (MEMBERS + 1) * panels + 1]
    size, connections = PLACED if placed else 1, []
    for panel, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        for at in range(begin, end, size):
            taken = [i for i in range(MEMBERS) if plan[at] >> i & 1]
            for k, i in enumerate(taken):
                place = plan[at + 1] + k * plan[at + 2] if placed else None
                connections.append((int(members[panel, i]), int(plan[at]) >> MEMBERS, place))
    assert len(plan) == bounds[-1] + LOOKAHEAD
    return members, connections


@settings(deadline=None, max_examples=60)
@given(mask=hnp.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_a_plan_holds_every_connection_once_and_every_row_once(mask):
    with pytest.MonkeyPatch.context() as patch:
        _force(patch)
        problem = Problem(mask, 1, np.float64)
    if not mask.any():
        assert problem.plan is None
        assert problem.plan_t is None
        return
    members, connections = unpacked(problem.plan, len(mask), placed=False)
    assert sorted(members.ravel()[members.ravel() < len(mask)]) == list(range(len(mask)))
    assert sorted((row, column) for row, column, _ in connections) == [tuple(pair) for pair in np.argwhere(mask)]
    for row in range(len(mask)):  # the values of a row follow from the order of its columns
        own = [column for other, column, _ in connections if other == row]
        assert own == sorted(own)

    members, connections = unpacked(problem.plan_t, mask.shape[1], placed=True)
    order = np.full(mask.shape, -1)
    order[mask] = np.arange(mask.sum())
    assert len(connections) == mask.sum()
    assert all(order[row, column] == place for column, row, place in connections)
    assert len({place for _, _, place in connections}) == mask.sum()


@pytest.mark.usefixtures("even_short")
@pytest.mark.parametrize("name", STRUCTURED)
def test_rows_that_share_their_columns_are_recognised(name):
    problem = Problem(STRUCTURED[name], 70, np.float32)
    assert problem.plan is not None
    assert problem.plan_t is not None
    panels = -(-len(problem.mask) // MEMBERS)
    entries = len(problem.plan) - LOOKAHEAD - (MEMBERS + 1) * panels - 1
    assert problem.nnz > 0.7 * MEMBERS * entries
    problem.check(threads=2)


@pytest.mark.usefixtures("even_short")
@pytest.mark.parametrize("name", RANDOM)
def test_rows_that_share_little_get_no_plan(name):
    problem = Problem(RANDOM[name], 1, np.float32)
    assert problem.plan is None
    assert problem.plan_t is None


@pytest.mark.usefixtures("even_short")
def test_a_sample_that_promises_too_much_is_found_out(monkeypatch):
    """The panels that are looked at are whole, all others share nothing."""
    monkeypatch.setattr(_panel_plan, "_JUDGED", 0)
    n = 8 * MEMBERS * 10
    mask = base(n, 0.1)
    panels = np.linspace(0, n // MEMBERS - 1, 8).astype(int)
    for panel in panels:
        mask[MEMBERS * panel : MEMBERS * (panel + 1), :] = mask[MEMBERS * panel]
    csr = sp.csr_array(mask)
    assert kernels.plan_panels(csr.indptr.astype(np.int32), csr.indices.astype(np.int32)) is None


def test_gradients_of_short_rows_get_no_plan_unless_these_lie_apart():
    for pattern, planned in ((circulant(512, 100), False), (circulant(512, 140), True), (circulant(512, 64, 8), True)):
        problem = Problem(pattern, 1, np.float32)
        assert problem.plan_t is not None
        assert (problem.plan is not None) == planned


@pytest.mark.usefixtures("even_short")
def test_equal_rows_are_found_wherever_they_are_unless_their_values_lie_unevenly():
    problem, again = (Problem(shuffled_twins(), 20, np.float32) for _ in range(2))
    members, _ = unpacked(problem.plan, len(problem.mask), placed=False)
    assert all((problem.mask[four] == problem.mask[four[0]]).all() for four in members)
    assert np.array_equal(problem.plan, again.plan)  # and nothing is drawn at random
    assert problem.plan_t is None


@settings(deadline=None, max_examples=25)
@given(
    spec=specs(),
    batch=st.one_of(st.integers(0, 40), st.sampled_from([64, 95, 96, 97, 200])),
    dtype=st.sampled_from(DTYPES),
    threads=st.integers(1, 3),
)
def test_products_of_every_family_equal_dense_float64(spec, batch, dtype, threads):
    with pytest.MonkeyPatch.context() as patch:
        _force(patch)
        for pattern in tg.generate(spec, rng=1):
            if pattern.nnz:
                Problem(pattern, batch, dtype).check(threads)


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 16, 50, 96, 300])
def test_products_of_any_pattern_equal_dense_float64(batch, dtype):
    for pattern in RANDOM.values():
        Problem(pattern, batch, dtype).check()


@pytest.mark.usefixtures("even_short")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 30, 48, 75])
@pytest.mark.parametrize("samples", [16, 48])
def test_packed_activations_give_the_same_and_padding_plays_no_part(samples, batch, dtype):
    problem = Problem(STRUCTURED["circulant with a stride"], batch, dtype)
    x, dy = kernels.pack(problem.x, samples), kernels.pack(problem.dy, samples)
    padding = slice(batch - (len(x) - 1) * samples, None)
    x[-1, :, padding] = dy[-1, :, padding] = np.nan
    operands = x, problem.values, problem.plan_t, problem.n_out, problem.bias
    y = kernels.multiply_panels_columns(*operands, batch=batch, threads=2)
    dx, dvalues, dbias = (
        np.full_like(x, np.nan),
        np.full_like(problem.values, np.nan),
        np.full_like(problem.bias, np.nan),
    )
    kernels.gradients_panels_columns(
        dy,
        x,
        problem.values,
        problem.rows[0],
        problem.plan,
        dx=dx,
        dvalues=dvalues,
        dbias=dbias,
        batch=batch,
        threads=2,
    )
    assert not y[-1, :, padding].any()
    assert not dx[-1, :, padding].any()
    true, gradients = problem.truth()
    problem.agree(kernels.unpack(y, batch), true)
    found = {"dx": kernels.unpack(dx, batch), "dvalues": dvalues, "dbias": dbias}
    for name, mine in found.items():
        problem.agree(mine, gradients[name])


@pytest.mark.usefixtures("even_short")
@pytest.mark.parametrize("wanted", [("dx",), ("dvalues",), ("dbias",), ("dx", "dbias"), ("dvalues", "dbias"), ()])
def test_each_gradient_can_be_had_alone(wanted):
    problem = Problem(STRUCTURED["band"], 50, np.float64)
    _, gradients = problem.truth()
    for name, found in problem.backward(wanted=wanted).items():
        problem.agree(found, gradients[name])


@pytest.mark.usefixtures("even_short")
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_bit_identical_for_any_number_of_threads(dtype, monkeypatch):
    """Scratch and results start as NaN, so that whatever is read too early or left out shows."""
    monkeypatch.setattr(_team, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(_panels, "borrowed", lambda count, dtype: nullcontext(np.full(count, np.nan, dtype)))
    monkeypatch.setattr(_panels, "_CHUNK_BYTES", 1 << 17)  # several chunks of several tiles
    problem = Problem(circulant(3 * STRIPE * MEMBERS, 20), 500, dtype)
    reference = problem.forward(), problem.backward()
    problem.check()
    for threads in (2, 3, 8):
        for _ in range(5):
            assert np.array_equal(problem.forward(threads), reference[0])
            for name, found in problem.backward(threads).items():
                assert np.array_equal(found, reference[1][name])


@pytest.mark.usefixtures("forced")
def test_value_gradients_add_up_tile_by_tile(monkeypatch):
    """One stripe of inputs and many tiles: two threads would work on the same value gradients if they did not wait."""
    monkeypatch.setattr(_team, "_WORTH_A_THREAD", 1)
    problem = Problem(kron(np.ones((8, 1)), base(8, 0.5)).toarray()[:, np.arange(1500) % 8], 500, np.float32)
    reference = problem.backward()
    for _ in range(40):
        assert np.array_equal(problem.backward(threads=3, wanted=("dvalues",))["dvalues"], reference["dvalues"])


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("pattern", [np.eye(20, 24, dtype=bool), circulant(24, 5)], ids=["diagonal", "circulant"])
def test_infinities_and_nans_stay_where_they_belong(pattern):
    """No multiplication by a padding zero spreads them over a panel."""
    problem = Problem(pattern, 18, np.float32)
    problem.x[3, 5], problem.dy[4, 6] = np.inf, np.nan
    y, found = problem.forward(), problem.backward()
    outputs, inputs = np.flatnonzero(problem.mask[5]), np.flatnonzero(problem.mask[:, 6])
    assert np.argwhere(~np.isfinite(y)).tolist() == [[3, output] for output in outputs]
    assert np.argwhere(~np.isfinite(found["dx"])).tolist() == [[4, i] for i in inputs]
    touched = np.argwhere(problem.mask)
    wrong = (touched[:, 0] == 5) | (touched[:, 1] == 6)
    assert np.array_equal(~np.isfinite(found["dvalues"]), wrong)


@pytest.mark.usefixtures("forced")
def test_a_planted_fault_in_a_plan_is_seen():
    problem = Problem(base(40), 20, np.float64)
    y, _ = problem.truth()
    panels = -(-problem.n_out // MEMBERS)
    problem.plan_t[problem.plan_t[MEMBERS * panels]] ^= 1  # one member more, or one less, at the first column
    with pytest.raises(AssertionError):
        problem.agree(problem.forward(), y)


@pytest.mark.usefixtures("even_short")
def test_bad_arguments_are_named():
    problem = Problem(circulant(64, 32), 3, np.float32)
    packed = kernels.pack(problem.x, 16)

    def columns(x, **options):
        return kernels.multiply_panels_columns(x, problem.values, problem.plan_t, 64, **options)

    cases = {
        "The 'plan' parameter of multiply_panels must be a C-contiguous array of int32. Got int64.": lambda: (
            kernels.multiply_panels(problem.x, problem.values, problem.plan_t.astype(int), 64)
        ),
        "The 'bias' parameter of multiply_panels must have 64 elements. Got 2.": lambda: kernels.multiply_panels(
            problem.x, problem.values, problem.plan_t, 64, problem.bias[:2]
        ),
        "The 'dy' parameter of gradients_panels must be a C-contiguous array of float32. Got float64.": lambda: (
            kernels.gradients_panels(problem.dy.astype(float), problem.x, problem.values, problem.rows[0], problem.plan)
        ),
        "The 'x' parameter of multiply_panels_columns must have a multiple of 16 samples in a group, at most 96. "
        "Got 12.": lambda: columns(np.ones((1, 64, 12), np.float32)),
        "The 'batch' parameter of multiply_panels_columns must be an int in [1, 16]. Got 17.": lambda: columns(
            packed, batch=17
        ),
    }
    for sentence, call in cases.items():
        with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
            call()
