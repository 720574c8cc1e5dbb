"""LowRankPlusSparse beside its dense matrix, and its approximation of a dense layer beside what theory allows."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import topogen_torch as tt
from topogen.errors import SpecError
from topogen_torch.testing import DROP_IN_LAWS, assert_drop_in_contract

RNG = np.random.default_rng(0)
MASK = RNG.random((9, 7)) < 0.3


@pytest.fixture(autouse=True)
def one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(pattern=MASK, rank=2, bias=True, dtype=torch.float64):
    torch.manual_seed(0)
    layer = tt.LowRankPlusSparse(pattern, rank, bias=bias, dtype=dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def error(layer, linear):
    """Frobenius norm of what the approximation misses, computed densely in float64."""
    return float((layer.to_linear().weight - linear.weight).detach().double().norm())


@given(
    st.integers(1, 8), st.integers(1, 8), st.integers(0, 3), st.floats(0, 1), st.booleans(),
    st.sampled_from([(), (0,), (3,), (2, 0), (2, 3)]), st.integers(0, 2**16),
)  # fmt: skip
def test_it_is_the_dense_matrix_written_out(n_in, n_out, rank, density, bias, leading, seed):
    mask = np.random.default_rng(seed).random((n_in, n_out)) < density
    layer = make(mask, min(rank, n_in, n_out), bias)
    x = torch.randn(*leading, n_in, dtype=torch.float64, requires_grad=True)
    values = layer.sparse.values
    rows, columns = (torch.from_numpy(part) for part in mask.nonzero())
    weight = torch.zeros(n_in, n_out, dtype=torch.float64).index_put((rows, columns), values) + layer.U @ layer.V
    true = x @ weight + (layer.bias if bias else 0)
    found = layer(x)
    torch.testing.assert_close(found, true, rtol=0, atol=1e-12)
    dy = torch.randn_like(found)
    wanted = [p for p in (x, *layer.parameters()) if p.numel()]
    mine, theirs = (
        torch.autograd.grad(y, wanted, dy, allow_unused=True, materialize_grads=True) for y in (found, true)
    )
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)
    torch.testing.assert_close(layer.to_linear()(x), true, rtol=0, atol=1e-12)


def test_the_drop_in_contract():
    """Trained beside a dense layer the two differ, since a product of factors moves otherwise than a matrix."""
    layer = make()
    laws = [law for law in DROP_IN_LAWS if law.__name__ != "trains_alike"]
    assert_drop_in_contract(layer, layer.to_linear(), torch.randn(5, 9, dtype=torch.float64), laws=laws)


def test_fifty_steps_equal_those_of_dense_factors():
    layer = make()
    dense = [torch.nn.Parameter(part.detach().clone()) for part in (layer.U, layer.V, layer.bias)]
    weight = nn.Parameter(torch.from_numpy(layer.sparse.to_scipy().toarray()))
    mask = torch.from_numpy(MASK)
    x, y = torch.randn(20, 9, dtype=torch.float64), torch.randn(20, 7, dtype=torch.float64)
    for parameters, call in (
        (list(layer.parameters()), layer),
        ([*dense, weight], lambda x: x @ (weight * mask + dense[0] @ dense[1]) + dense[2]),
    ):
        optimizer = torch.optim.Adam(parameters, lr=0.01)
        for _ in range(50):
            optimizer.zero_grad()
            (call(x) - y).square().mean().backward()
            optimizer.step()
    for mine, true in zip((layer.U, layer.V, layer.bias), dense, strict=True):
        torch.testing.assert_close(mine, true, rtol=0, atol=1e-10)
    torch.testing.assert_close(layer.sparse.values.detach(), weight.detach()[mask], rtol=0, atol=1e-10)


def test_gradcheck():
    layer = make()
    names, parameters = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)

    def call(x, *weights):
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *parameters))


class TestFromLinear:
    @given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 2), st.floats(0, 0.8), st.integers(0, 2**16))
    def test_what_the_pattern_keeps_is_exact_and_the_error_never_grows(self, n_in, n_out, rank, density, seed):
        torch.manual_seed(seed)
        linear = nn.Linear(n_in, n_out, dtype=torch.float64)
        mask = np.random.default_rng(seed).random((n_in, n_out)) < density
        errors = []
        for iterations in (1, 2, 4, 8):
            layer = tt.LowRankPlusSparse.from_linear(linear, mask, rank, iterations=iterations)
            found = layer.to_linear().weight.t()
            torch.testing.assert_close(found[torch.from_numpy(mask)], linear.weight.t()[torch.from_numpy(mask)])
            assert torch.equal(layer.bias, linear.bias)
            errors.append(error(layer, linear))
        assert all(later <= earlier + 1e-12 for earlier, later in zip(errors, errors[1:], strict=False))
        cut = torch.linalg.svdvals(linear.weight.detach())[rank:].norm()
        assert errors[0] <= float(cut) + 1e-12  # no worse than the best of this rank without the pattern

    def test_an_empty_pattern_gives_the_best_approximation_of_its_rank(self):
        """Eckart and Young: the error is the norm of the singular values that are cut."""
        linear = nn.Linear(9, 7, dtype=torch.float64)
        layer = tt.LowRankPlusSparse.from_linear(linear, np.zeros((9, 7)), 3)
        assert error(layer, linear) == pytest.approx(float(torch.linalg.svdvals(linear.weight.detach())[3:].norm()))

    def test_a_sum_of_both_is_recovered(self):
        """A matrix that is such a sum is found, although its values on the pattern hide the low rank."""
        torch.manual_seed(1)
        linear = nn.Linear(40, 30, dtype=torch.float64)
        mask = RNG.random((40, 30)) < 0.1
        with torch.no_grad():
            low = torch.randn(40, 2, dtype=torch.float64) @ torch.randn(2, 30, dtype=torch.float64)
            linear.weight.copy_((low + 10 * torch.from_numpy(mask) * torch.randn(40, 30, dtype=torch.float64)).t())
        found = tt.LowRankPlusSparse.from_linear(linear, mask, 2, iterations=200)
        once = tt.LowRankPlusSparse.from_linear(linear, mask, 2, iterations=1)
        assert error(found, linear) < 1e-6 < 1 < error(once, linear)
        torch.testing.assert_close((found.U @ found.V).detach(), low, rtol=0, atol=1e-6)

    def test_rank_0_keeps_the_pattern_alone(self):
        linear = nn.Linear(9, 7)
        layer = tt.LowRankPlusSparse.from_linear(linear, MASK, 0)
        assert torch.equal(layer.to_linear().weight, tt.SparseLinear.from_linear(linear, MASK).to_linear().weight)

    def test_mode_and_dtype_are_kept(self):
        layer = tt.LowRankPlusSparse.from_linear(nn.Linear(9, 7, bias=False).bfloat16().eval(), MASK, 2)
        assert not layer.training
        assert layer.bias is None
        assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
        assert layer(torch.ones(9, dtype=torch.bfloat16)).dtype == torch.bfloat16


class TestProperties:
    @pytest.mark.parametrize("rank", [0, 8])
    def test_new_weights_keep_the_variance(self, rank):
        torch.manual_seed(0)
        mask = RNG.random((500, 400)) < 0.05
        if rank:
            mask[:, :100] = False
        layer = tt.LowRankPlusSparse(mask, rank)
        with torch.no_grad():
            y = torch.cat([layer(torch.randn(100, 500)) for _ in range(20) if layer.reset_parameters() is None])
        for part in (y[:, :100], y[:, 100:]):
            assert abs(float(part.std()) / math.sqrt(2) - 1) < 0.1

    def test_what_a_layer_says_of_itself(self):
        layer = make()
        count = int(MASK.sum())
        assert sum(p.numel() for p in layer.parameters()) == count + 2 * 16 + 7
        assert layer.nnz == count
        assert layer.density == (count + 32) / 63
        assert f"in_features=9, out_features=7, rank=2, density={layer.density:.4g}" in repr(layer)
        assert list(layer.state_dict())[:2] == ["U", "V"]

    def test_a_state_brings_its_pattern(self):
        layer, other = make(), make(RNG.random((9, 7)) < 0.8)
        other.load_state_dict(layer.state_dict())
        x = torch.randn(3, 9, dtype=torch.float64)
        assert torch.equal(layer(x), other(x))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: tt.LowRankPlusSparse(MASK, 8),
            "The 'rank' parameter of LowRankPlusSparse must be an int in [0, 7]. Got 8.",
        ),
        (
            lambda: tt.LowRankPlusSparse.from_linear(nn.Linear(9, 7), MASK, -1),
            "The 'rank' parameter of from_linear must be an int in [0, 7]. Got -1.",
        ),
        (
            lambda: tt.LowRankPlusSparse.from_linear(nn.Linear(9, 7), MASK, 2, iterations=0),
            "The 'iterations' parameter of from_linear must be an int >= 1. Got 0.",
        ),
        (
            lambda: tt.LowRankPlusSparse.from_linear(nn.Linear(7, 9), MASK, 2),
            "The 'pattern' parameter of from_linear must have the shape (inputs, outputs) of the layer, (7, 9). "
            "Got (9, 7).",
        ),
    ],
)
def test_bad_arguments_are_named(call, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        call()
