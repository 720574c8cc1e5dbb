"""Sparse LSTM and GRU beside torch's, with the same weights and zeros where there is no connection."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import topogen_torch as tt
from topogen.errors import SpecError
from topogen_torch.testing import DROP_IN_LAWS, assert_drop_in_contract

N, G = 5, 6
KINDS = {"lstm": (nn.LSTM, tt.SparseLSTM, 4), "gru": (nn.GRU, tt.SparseGRU, 3)}


@pytest.fixture(autouse=True)
def one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def patterns(rng, gates, layers=1, bidirectional=False, proj=0, density=0.5):
    """A cell for each layer and direction, with one pattern for each gate."""
    n_out = proj or G

    def cell(n_in):
        shapes = [(n_in, gates * G), (n_out, gates * G)] + [(G, proj)] * bool(proj)
        return tuple(rng.random(shape) < density for shape in shapes)

    sizes = [N] + [(1 + bidirectional) * n_out] * (layers - 1)
    return [(cell(n), cell(n)) if bidirectional else cell(n) for n in sizes]


def pair(kind, *, layers=1, bidirectional=False, proj=0, density=0.5, seed=0, **options):
    """A sparse layer and the dense one with its weights."""
    dense_kind, sparse_kind, gates = KINDS[kind]
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    options |= {"proj_size": proj} if proj else {}
    dense = dense_kind(N, G, layers, bidirectional=bidirectional, dtype=torch.float64, **options)
    for parameter in dense.parameters():
        nn.init.normal_(parameter)
    chosen = patterns(rng, gates, layers, bidirectional, proj, density)
    sparse = getattr(sparse_kind, f"from_{kind}")(dense, chosen)
    return sparse, getattr(sparse, f"to_{kind}")()


def numbers(outputs):
    """Every tensor of numbers; of a packed sequence its data."""
    flat = [part.data if isinstance(part, PackedSequence) else part for part in (outputs[0], *tree_leaves(outputs[1:]))]
    return [part for part in flat if isinstance(part, torch.Tensor)]


def state(layer, batch, seed=7):
    """An initial state that wants gradients."""
    torch.manual_seed(seed)
    rows = layer.num_layers * (1 + layer.bidirectional)
    sizes = [layer.proj_size or layer.hidden_size, layer.hidden_size][: 2 if isinstance(layer, tt.SparseLSTM) else 1]
    shape = (rows,) if batch is None else (rows, batch)
    parts = tuple(torch.randn(*shape, size, dtype=torch.float64, requires_grad=True) for size in sizes)
    return parts if len(parts) == 2 else parts[0]


def assert_same(sparse, dense, make_input, x, begin=None):
    """Compare outputs, final states, and the gradients of input, initial state and every weight."""
    results = []
    for module in (sparse, dense):
        outputs = numbers(module(make_input(x), begin))
        torch.manual_seed(11)
        d_outputs = [torch.randn_like(part) for part in outputs]
        wanted = [x, *tree_leaves(begin)] if begin is not None else [x]
        found = torch.autograd.grad(outputs, [*wanted, *module.parameters()], d_outputs, allow_unused=True)
        results.append(
            (
                outputs,
                found[: len(wanted)],
                dict(zip(dict(module.named_parameters()), found[len(wanted) :], strict=True)),
            )
        )
    (mine, my_inputs, my_weights), (true, true_inputs, true_weights) = results
    torch.testing.assert_close(mine, true, rtol=0, atol=1e-12)
    torch.testing.assert_close(my_inputs, true_inputs, rtol=0, atol=1e-10)
    for name, layer in sparse.named_children():
        rows, columns = layer.pattern.nonzero()
        weight = true_weights[f"weight_{name}"].t()[rows, columns]
        torch.testing.assert_close(my_weights[f"{name}.values"], weight, rtol=0, atol=1e-10)
        if layer.bias is not None:
            torch.testing.assert_close(my_weights[f"{name}.bias"], true_weights[f"bias_{name}"], rtol=0, atol=1e-10)


def sequence(length, batch, seed=3, batch_first=False):
    torch.manual_seed(seed)
    shape = (length,) if batch is None else (batch, length) if batch_first else (length, batch)
    return torch.randn(*shape, N, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("kind", KINDS)
class TestBesideDense:
    @given(
        st.integers(1, 4), st.one_of(st.none(), st.integers(0, 3)), st.integers(1, 2), st.booleans(), st.booleans(),
        st.booleans(), st.sampled_from([0, 1, 3]), st.sampled_from([0.0, 0.3, 1.0]), st.booleans(),
        st.integers(0, 2**16),
    )  # fmt: skip
    def test_any_shape(self, kind, length, batch, layers, both, bias, batch_first, proj, density, begin, seed):
        proj = proj if kind == "lstm" else 0
        sparse, dense = pair(
            kind, layers=layers, bidirectional=both, bias=bias, batch_first=batch_first, proj=proj, density=density,
            seed=seed,
        )  # fmt: skip
        x = sequence(length, batch, seed, batch_first)
        assert_same(sparse, dense, lambda x: x, x, state(sparse, batch) if begin else None)

    @given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.booleans(), st.booleans(), st.integers(0, 2**16))
    def test_packed_sequences(self, kind, lengths, both, begin, seed):
        sparse, dense = pair(kind, layers=2, bidirectional=both, seed=seed)
        x = sequence(max(lengths), len(lengths), seed)

        def packed(x):
            return pack_padded_sequence(x, lengths, enforce_sorted=False)

        assert_same(sparse, dense, packed, x, state(sparse, len(lengths)) if begin else None)
        found, true = (pad_packed_sequence(module(packed(x))[0]) for module in (sparse, dense))
        torch.testing.assert_close(found, true)

    @pytest.mark.parametrize("batch", [2, 20])
    def test_narrow_and_wide_steps(self, kind, batch):
        """Their gradients are computed in two ways."""
        for proj in (0, 2) if kind == "lstm" else (0,):
            for bias in (True, False):
                sparse, dense = pair(kind, bidirectional=True, proj=proj, bias=bias)
                assert_same(sparse, dense, lambda x: x, sequence(3, batch), state(sparse, batch))
                lengths = [1 + k % 3 for k in range(batch)]
                assert_same(
                    sparse,
                    dense,
                    lambda x, lengths=lengths: pack_padded_sequence(x, lengths, enforce_sorted=False),
                    sequence(3, batch),
                )

    def test_packed_sequences_that_are_sorted_already(self, kind):
        sparse, dense = pair(kind)
        x = sequence(4, 3)
        assert_same(sparse, dense, lambda x: pack_padded_sequence(x, [4, 2, 1]), x)

    def test_the_drop_in_contract(self, kind):
        sparse, dense = pair(kind, bidirectional=True)
        assert_drop_in_contract(sparse, dense, sequence(3, 2).detach())

    def test_two_layers_and_a_projection_train_and_compile(self, kind):
        sparse, dense = pair(kind, layers=2, proj=2 if kind == "lstm" else 0)
        chosen = [law for law in DROP_IN_LAWS if law.__name__ in ("trains_alike", "compiled", "reset")]
        assert_drop_in_contract(sparse, dense, sequence(2, 2).detach(), laws=chosen)

    def test_gradcheck(self, kind):
        sparse, _ = pair(kind, bidirectional=True, proj=2 if kind == "lstm" else 0)
        x, begin = sequence(3, 2), state(sparse, 2)
        names, parameters = zip(*sparse.named_parameters(), strict=True)

        def call(x, *rest):
            parts = rest[: len(tree_leaves(begin))]
            weights = dict(zip(names, rest[len(parts) :], strict=True))
            return tuple(
                tree_leaves(torch.func.functional_call(sparse, weights, (x, parts if len(parts) > 1 else parts[0])))
            )

        assert torch.autograd.gradcheck(call, (x, *tree_leaves(begin), *parameters))

    def test_dropout_between_layers_in_training_alone(self, kind):
        sparse, dense = pair(kind, layers=2, dropout=1.0)
        x = sequence(3, 2)
        torch.testing.assert_close(sparse(x)[0], dense(x)[0], rtol=0, atol=1e-12)  # everything dropped
        sparse.eval(), dense.eval()
        torch.testing.assert_close(sparse(x)[0], dense(x)[0], rtol=0, atol=1e-12)
        one, _ = pair(kind, dropout=0.0)
        one.dropout = 1.0
        assert one(x)[0].any()  # none after the last layer

    def test_short_floats_are_computed_in_float32(self, kind):
        sparse, _ = pair(kind, layers=1)
        x = sequence(20, 2).detach()
        sparse.bfloat16()
        found = sparse(x.bfloat16())
        assert all(part.dtype == torch.bfloat16 for part in tree_leaves(found))
        wide = copy.deepcopy(sparse).float()
        with torch.no_grad():
            gates = wide.ih_l0(x.bfloat16().float()).bfloat16().float()  # the one rounding inside
            wide.ih_l0.forward = lambda _: gates.flatten(0, 1)
            true = wide(x.bfloat16().float())
        for mine, other in zip(tree_leaves(found), tree_leaves(true), strict=True):
            assert torch.equal(mine, other.bfloat16())
        tree_leaves(found)[0].sum().backward()
        assert {p.grad.dtype for p in sparse.parameters()} == {torch.bfloat16}

    def test_a_state_goes_from_layer_to_layer_with_its_patterns(self, kind):
        sparse, _ = pair(kind)
        other, _ = pair(kind, density=0.9, seed=1)
        other.load_state_dict(sparse.state_dict())
        x = sequence(3, 2)
        assert torch.equal(other(x)[0], sparse(x)[0])

    def test_planted_faults_are_found(self, kind):
        x = sequence(4, 3)
        faults = {
            "gates in another order": lambda p: p["weight_hh_l0"].copy_(p["weight_hh_l0"].roll(G, 0)),
            "one recurrent weight": lambda p: p["weight_hh_l0"].view(-1)[7].add_(1e-6),
        }
        if kind == "gru":  # the hidden bias of the new gate belongs inside r * (...)
            faults["a bias on the wrong side of r"] = lambda p: (
                p["bias_ih_l0"][2 * G :].add_(p["bias_hh_l0"][2 * G :]), p["bias_hh_l0"][2 * G :].zero_()
            )  # fmt: skip
        for plant in faults.values():
            sparse, dense = pair(kind)
            with torch.no_grad():
                plant(dict(dense.named_parameters()))
            with pytest.raises(AssertionError, match="not close"):
                assert_same(sparse, dense, lambda x: x, x)


@pytest.mark.parametrize("kind", KINDS)
class TestPatterns:
    def test_one_pattern_serves_all_gates(self, kind):
        _, sparse_kind, gates = KINDS[kind]
        rng = np.random.default_rng(2)
        inputs, hidden = rng.random((N, G)) < 0.5, rng.random((G, G)) < 0.5
        layer = sparse_kind([(inputs, hidden)], dtype=torch.float64)
        assert np.array_equal(layer.ih_l0.pattern.toarray(), np.hstack([inputs] * gates))
        assert np.array_equal(layer.hh_l0.pattern.toarray(), np.hstack([hidden] * gates))
        assert layer(sequence(3, 2))[0].shape == (3, 2, G)

    def test_one_tuple_serves_both_directions(self, kind):
        _, sparse_kind, _ = KINDS[kind]
        layer = sparse_kind([(np.ones((N, G)), np.eye(G)), (np.ones((2 * G, G)), np.eye(G))], bidirectional=True)
        assert [name for name, _ in layer.named_children()] == [
            f"{part}_l{k}{suffix}" for k in (0, 1) for suffix in ("", "_reverse") for part in ("ih", "hh")
        ]
        assert not torch.equal(layer.hh_l0.values, layer.hh_l0_reverse.values)

    def test_new_weights_are_as_large_as_the_dense_layers_gates(self, kind):
        dense_kind, sparse_kind, _ = KINDS[kind]
        rng = np.random.default_rng(0)
        torch.manual_seed(0)
        full = sparse_kind([(np.ones((40, 50)), np.ones((50, 50)))])
        bound = 1 / math.sqrt(50)
        for parameter, true in zip(full.parameters(), dense_kind(40, 50).parameters(), strict=True):
            assert 0.95 * bound < parameter.abs().max() <= bound
            assert abs(parameter.std() / true.std() - 1) < 0.1
        thin = sparse_kind([(rng.random((400, 50)) < 0.1, rng.random((50, 50)) < 0.5)])
        x = torch.randn(200, 400)
        with torch.no_grad():
            thin.ih_l0.bias.zero_()
            assert abs(thin.ih_l0(x).std() / math.sqrt(400 / (3 * 50)) - 1) < 0.1

    def test_what_a_layer_says_of_itself(self, kind):
        _, sparse_kind, gates = KINDS[kind]
        layer = sparse_kind([(np.ones((N, G)), np.eye(G)), (np.ones((G, G)), np.eye(G))], dropout=0.5, batch_first=True)
        assert f"{N}, {G}, num_layers=2, batch_first=True, dropout=0.5" in repr(layer)
        assert layer.flatten_parameters() is None
        assert sum(p.numel() for p in layer.parameters()) == gates * (N * G + G * G + 2 * G + 4 * G)


def test_a_projected_layer_says_so():
    sparse, _ = pair("lstm", proj=2, bidirectional=True, bias=False)
    assert f"{N}, {G}, proj_size=2, bias=False, bidirectional=True" in repr(sparse)


EYE, WIDE = np.eye(G), np.ones((N, G))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: tt.SparseGRU([]),
            "The 'patterns' parameter of SparseGRU must be a non-empty sequence with one tuple (ih, hh) of matrices "
            "for each layer. Got [].",
        ),
        (
            lambda: tt.SparseLSTM(3),
            "The 'patterns' parameter of SparseLSTM must be a non-empty sequence with one tuple (ih, hh) or (ih, hh, "
            "hr) of matrices for each layer. Got 3.",
        ),
        (
            lambda: tt.SparseGRU([7], bidirectional=True),
            "The 'patterns[0]' parameter of SparseGRU must be a tuple (ih, hh) of matrices. Got 7.",
        ),
        (
            lambda: tt.SparseGRU([(WIDE, np.ones((G, 7)))]),
            "The pattern 'hh_l0' of SparseGRU must have shape (6, 6) or (6, 18). Got (6, 7).",
        ),
        (
            lambda: tt.SparseGRU([(WIDE, EYE), (WIDE, EYE)]),
            "The pattern 'ih_l1' of SparseGRU must have shape (6, 6) or (6, 18). Got (5, 6).",
        ),
        (
            lambda: tt.SparseLSTM([(WIDE, EYE), (np.ones((G, G)), EYE, np.ones((G, 2)))]),
            "The 'patterns' parameter of SparseLSTM must project in every cell or in none.",
        ),
        (
            lambda: tt.SparseLSTM([(WIDE, np.ones((2, G)), np.ones((G, 2)), EYE)]),
            "The 'patterns[0]' parameter of SparseLSTM must be a tuple (ih, hh) or (ih, hh, hr) of matrices. Got "
            "(array([[1., 1., 1., 1., 1., 1.],\n       [1., 1., 1., 1., 1., 1.],\n       [1., 1., 1., 1., 1., 1.],\n"
            "       [1., 1., 1....",
        ),
        (
            lambda: tt.SparseGRU([((WIDE, EYE), (np.ones((4, G)), EYE))], bidirectional=True),
            "The patterns 'ih_l0' of SparseGRU must have equally many inputs. Got [4, 5].",
        ),
        (lambda: tt.SparseGRU([(WIDE, EYE)], bias=1), "The 'bias' parameter of SparseGRU must be a bool. Got 1."),
        (
            lambda: tt.SparseGRU([(WIDE, EYE)], bidirectional="yes"),
            "The 'bidirectional' parameter of SparseGRU must be a bool. Got 'yes'.",
        ),
        (
            lambda: tt.SparseGRU([(WIDE, EYE)], batch_first=None),
            "The 'batch_first' parameter of SparseGRU must be a bool. Got None.",
        ),
        (
            lambda: tt.SparseGRU([(WIDE, EYE)], dropout=-1),
            "The 'dropout' parameter of SparseGRU must be a finite number in [0, 1]. Got -1.",
        ),
        (
            lambda: tt.SparseLSTM.from_lstm(nn.GRU(N, G), [(WIDE, EYE)]),
            "The 'lstm' parameter of from_lstm must be an LSTM. Got GRU(5, 6).",
        ),
        (
            lambda: tt.SparseGRU.from_gru(nn.GRU(N, G, 2), [(WIDE, EYE)]),
            "The 'patterns' parameter of from_gru must have patterns for hh_l0, hh_l1, ih_l0, ih_l1. Got hh_l0, ih_l0.",
        ),
        (
            lambda: tt.SparseGRU.from_gru(nn.GRU(4, G), [(WIDE, EYE)]),
            "The pattern 'ih_l0' of from_gru must have the shape (inputs, outputs) of 'weight_ih_l0', (4, 18). "
            "Got (5, 18).",
        ),
    ],
)
def test_bad_arguments_are_named(call, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        call()


@pytest.mark.parametrize(
    ("kind", "arguments", "sentence"),
    [
        (
            "gru", (torch.zeros(3, 2, 4),),
            "The input of SparseGRU must be a PackedSequence or have 2 or 3 dimensions, the last of size 5. "
            "Got shape (3, 2, 4).",
        ),
        (
            "lstm", ([1.0],),
            "The input of SparseLSTM must be a PackedSequence or have 2 or 3 dimensions, the last of size 5. "
            "Got a list.",
        ),
        (
            "gru", (torch.zeros(0, 2, N),),
            "The input of SparseGRU must have at least one step. Got a sequence of length 0.",
        ),
        (
            "lstm", (torch.zeros(3, 2, N), torch.zeros(1, 2, G)),
            "The state of SparseLSTM must be a pair (h_0, c_0). Got a Tensor.",
        ),
        (
            "gru", (torch.zeros(3, 2, N), (torch.zeros(1, 2, G),)),
            "The state of SparseGRU must be a Tensor h_0. Got a tuple.",
        ),
        (
            "lstm", (torch.zeros(3, 2, N), (torch.zeros(1, 2, G), torch.zeros(1, 3, G))),
            "The state 'c_0' of SparseLSTM must have shape (1, 2, 6). Got (1, 3, 6).",
        ),
    ],
)  # fmt: skip
def test_bad_inputs_are_named(kind, arguments, sentence):
    layer = KINDS[kind][1]([(WIDE, EYE)])
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        layer(*arguments)


def test_an_empty_batch_has_zero_gradients():
    layer = tt.SparseGRU([(WIDE, EYE)])
    layer(torch.zeros(3, 0, N))[0].sum().backward()
    assert not any(parameter.grad.any() for parameter in layer.parameters())
