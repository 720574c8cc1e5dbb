"""Sparse attention beside nn.MultiheadAttention, and beside the softmax written out where a topology is the mask."""

import itertools
import math
import re
import shutil
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention.flex_attention import create_mask, flex_attention

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError
from topogen_torch import _attention
from topogen_torch.testing import DROP_IN_LAWS, assert_drop_in_contract

E, HEADS = 8, 2
RNG = np.random.default_rng(0)
PATTERNS = {name: RNG.random(shape) < 0.5 for name, shape in zip(
    ("q", "k", "v", "out"), ((E, E), (5, E), (7, E), (E, E)), strict=True
)}  # fmt: skip
SQUARE = RNG.random((E, E)) < 0.5
CAUSAL = np.triu(np.ones((6, 6), bool))


@pytest.fixture(autouse=True)
def one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair(patterns=SQUARE, *, seed=0, dropout=0.0, bias=True, **options):
    """A sparse layer and the dense one with its weights, none of them 0."""
    torch.manual_seed(seed)
    dims = (patterns["k"].shape[0], patterns["v"].shape[0]) if isinstance(patterns, dict) else (None, None)
    dense = nn.MultiheadAttention(
        E, HEADS, dropout=dropout, bias=bias, kdim=dims[0], vdim=dims[1], dtype=torch.float64, **options
    )
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.normal_()
    sparse = tt.SparseMultiheadAttention.from_attention(dense, patterns)
    return sparse, sparse.to_attention()


def inputs(layer, n_queries, n_keys, batch, seed=1):
    torch.manual_seed(seed)
    shapes = [(n_queries, E), (n_keys, layer.kdim), (n_keys, layer.vdim)]
    if batch is not None:
        shapes = [(batch, *s) if layer.batch_first else (s[0], batch, s[1]) for s in shapes]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def masks(kind, batch, n_queries, n_keys, seed=2):
    """A padding mask and an attention mask; every query keeps key 0 unless the kind says otherwise."""
    torch.manual_seed(seed)
    shape = (n_queries, n_keys) if "2" in kind else ((batch or 1) * HEADS, n_queries, n_keys)
    attn = torch.rand(shape) < 0.4
    padding = torch.rand((batch, n_keys) if batch is not None else (n_keys,)) < 0.4
    attn[..., 0] = padding[..., 0] = False
    if "float" in kind:
        attn, padding = (torch.where(m, -torch.inf, torch.randn(m.shape, dtype=torch.float64)) for m in (attn, padding))
    return {"key_padding_mask": padding if "p" in kind else None, "attn_mask": attn if "a" in kind else None}


KINDS = [" ".join(parts) for parts in itertools.product(("bool", "flt float"), ("p", "2 a", "3 a", "p 2 a", "p 3 a"))]


class TestBesideDense:
    @pytest.mark.parametrize("batch", [None, 3])
    @pytest.mark.parametrize("need", [False, True])
    @pytest.mark.parametrize("kind", ["none", *KINDS])
    def test_outputs_and_gradients(self, kind, need, batch):
        layer, dense = pair(PATTERNS, batch_first=need)
        x = inputs(layer, 4, 6, batch)
        given = masks(kind, batch, 4, 6) | {"need_weights": need, "average_attn_weights": batch is None}
        found, true = layer(*x, **given), dense(*x, **given)
        torch.testing.assert_close(found, true, rtol=0, atol=1e-12)
        dy = torch.randn_like(found[0])
        gradients = [torch.autograd.grad(y[0], x, dy) for y in (found, true)]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)

    @pytest.mark.parametrize("need", [False, True])
    def test_the_causal_hint(self, need):
        layer, dense = pair()
        x = inputs(layer, 6, 6, 2)
        mask = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
        given = {"attn_mask": mask, "is_causal": True, "need_weights": need}
        torch.testing.assert_close(layer(*x, **given), dense(*x, **given), rtol=0, atol=1e-12)
        given["key_padding_mask"] = torch.arange(6).expand(2, 6) > 3
        given["attn_mask"] = mask.isinf()
        torch.testing.assert_close(layer(*x, **given), dense(*x, **given), rtol=0, atol=1e-12)

    def test_a_query_that_a_mask_leaves_without_keys(self):
        layer, dense = pair()
        x, mask = inputs(layer, 4, 6, 2), torch.zeros(4, 6, dtype=torch.bool)
        mask[1] = True
        for need in (False, True):
            found, true = (module(*x, attn_mask=mask, need_weights=need)[0] for module in (layer, dense))
            torch.testing.assert_close(found, true, rtol=0, atol=1e-12, equal_nan=True)

    def test_dropout_drops_in_training_alone(self):
        layer, dense = pair(dropout=0.5)
        x = inputs(layer, 4, 6, 2)
        for need in (False, True):
            results = []
            for module in (layer, dense):
                torch.manual_seed(5)
                results.append(module(*x, need_weights=need))
            if need:
                torch.testing.assert_close(*results, rtol=0, atol=1e-12)
            assert not torch.equal(layer(*x, need_weights=need)[0], results[0][0])
            layer.eval(), dense.eval()
            torch.testing.assert_close(layer(*x, need_weights=need), dense(*x, need_weights=need), rtol=0, atol=1e-12)
            layer.train(), dense.train()

    @given(
        st.integers(0, 5),
        st.integers(1, 5),
        st.integers(0, 3),
        st.floats(0, 1),
        st.booleans(),
        st.integers(0, 2**32 - 1),
    )
    def test_any_shape_and_density(self, n_queries, n_keys, batch, density, bias, seed):
        pattern = np.random.default_rng(seed).random((E, E)) < density
        layer, dense = pair(pattern, seed=seed, bias=bias)
        x = inputs(layer, n_queries, n_keys, batch)
        for need in (False, True):
            found, true = layer(*x, need_weights=need), dense(*x, need_weights=need)
            torch.testing.assert_close(found, true, rtol=0, atol=1e-12)
        found[0].sum().backward()
        assert all(p.grad.shape == p.shape for p in layer.parameters())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_other_number_types(self, dtype):
        layer, dense = (module.to(dtype) for module in pair())
        x = [part.detach().to(dtype) for part in inputs(layer, 4, 6, 2)]
        found, true = (module(*x, need_weights=False)[0] for module in (layer, dense))
        assert found.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 0.3
        torch.testing.assert_close(found, true, rtol=tolerance, atol=tolerance)

    def test_the_drop_in_contract(self):
        layer, dense = pair(batch_first=True)
        x = tuple(part.detach() for part in inputs(layer, 4, 6, 2))
        assert_drop_in_contract(layer, dense, x)

    def test_gradcheck(self):
        layer, _ = pair()
        x = inputs(layer, 3, 3, 1)
        assert torch.autograd.gradcheck(lambda *parts: layer(*parts)[0], x)
        names, values = zip(*layer.named_parameters(), strict=True)

        def call(*parameters):
            return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), tuple(x))[0]

        assert torch.autograd.gradcheck(call, values)

    def test_a_forgotten_scale_would_show(self):
        layer, dense = pair()
        layer.head_dim, layer.num_heads = E, 1
        x = inputs(layer, 4, 6, 2)
        assert (layer(*x)[0] - dense(*x)[0]).abs().max() > 1e-3


class TestConversion:
    @pytest.mark.parametrize("patterns", [SQUARE, PATTERNS], ids=["one", "four"])
    @pytest.mark.parametrize("bias", [True, False])
    def test_what_the_patterns_keep_survives(self, patterns, bias):
        layer, dense = pair(patterns, bias=bias, batch_first=True)
        again = tt.SparseMultiheadAttention.from_attention(dense.eval(), patterns)
        assert not again.training
        assert again.batch_first
        for name, parameter in layer.named_parameters():
            assert torch.equal(again.get_parameter(name), parameter), name
        for name in ("q", "k", "v", "out"):
            pattern = patterns[name] if isinstance(patterns, dict) else patterns
            assert np.array_equal(getattr(layer, f"{name}_proj").pattern.toarray(), pattern)

    def test_a_state_goes_from_layer_to_layer_with_its_patterns(self):
        layer, _ = pair()
        other, _ = pair(RNG.random((E, E)) < 0.8)
        other.load_state_dict(layer.state_dict())
        x = inputs(layer, 4, 6, 2)
        assert torch.equal(other(*x)[0], layer(*x)[0])

    def test_what_a_layer_says_of_itself(self):
        layer = tt.SparseMultiheadAttention(PATTERNS, HEADS, dropout=0.25)
        text = repr(layer)
        assert "embed_dim=8, num_heads=2, kdim=5, vdim=7, dropout=0.25, batch_first=False" in text
        assert "(out_proj): SparseLinear" in text
        assert not layer.out_proj.bias.any()
        bound = math.sqrt(6 / (layer.q_proj.fan_in().min() + layer.q_proj.indptr.diff().min()))
        assert 0 < layer.q_proj.values.abs().max() <= bound


class TestInsideTransformers:
    def encoders(self):
        """Two encoders with the same weights; one of them is dense."""
        torch.manual_seed(0)
        make = lambda: nn.TransformerEncoderLayer(E, HEADS, 12, dropout=0.0, batch_first=True, dtype=torch.float64)  # noqa: E731
        encoder = nn.TransformerEncoder(make(), 2, enable_nested_tensor=False)
        dense = nn.TransformerEncoder(make(), 2, enable_nested_tensor=False)
        dense.load_state_dict(encoder.state_dict())
        for mine, true in zip(encoder.layers, dense.layers, strict=True):
            mine.self_attn = tt.SparseMultiheadAttention.from_attention(mine.self_attn, SQUARE)
            true.self_attn = mine.self_attn.to_attention()
        return encoder, dense

    @pytest.mark.parametrize("training", [True, False])
    def test_an_encoder_computes_the_same_with_and_without_its_fast_path(self, training):
        encoder, dense = (module.train(training) for module in self.encoders())
        x = torch.randn(3, 5, E, dtype=torch.float64)
        padding = torch.arange(5).expand(3, 5) >= torch.tensor([[5], [3], [4]])
        with torch.set_grad_enabled(training):
            found, true = (module(x, src_key_padding_mask=padding) for module in (encoder, dense))
        torch.testing.assert_close(found[~padding], true[~padding], rtol=0, atol=1e-11)

    def test_a_decoder_layer(self):
        torch.manual_seed(0)
        decoder = nn.TransformerDecoderLayer(E, HEADS, 12, dropout=0.0, dtype=torch.float64)
        x, memory = torch.randn(4, 2, E, dtype=torch.float64), torch.randn(6, 2, E, dtype=torch.float64)
        sparse = [
            tt.SparseMultiheadAttention.from_attention(m, SQUARE) for m in (decoder.self_attn, decoder.multihead_attn)
        ]
        decoder.self_attn, decoder.multihead_attn = (module.to_attention() for module in sparse)
        true = decoder(
            x, memory, tgt_is_causal=True, tgt_mask=nn.Transformer.generate_square_subsequent_mask(4).double()
        )
        decoder.self_attn, decoder.multihead_attn = sparse
        found = decoder(
            x, memory, tgt_is_causal=True, tgt_mask=nn.Transformer.generate_square_subsequent_mask(4).double()
        )
        torch.testing.assert_close(found, true, rtol=0, atol=1e-11)

    def test_nested_tensors_are_named(self):
        layer = tt.SparseMultiheadAttention(SQUARE, HEADS)
        with pytest.raises(AttributeError, match="build it with enable_nested_tensor=False"):
            _ = layer.in_proj_weight
        assert not hasattr(layer, "in_proj_weight")
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = layer.nothing
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's: nested tensors are a prototype
            x = torch.nested.nested_tensor([torch.zeros(2, E), torch.zeros(3, E)])
        with pytest.raises(SpecError, match=r"must be dense tensors, padded and masked. Got a nested tensor.$"):
            layer(x, x, x)


def written_out(layer, mask, x, padding=None):
    """The truth: every pair of a query and a key, the forbidden ones left out of the softmax, in float64."""
    q, k, v = (
        p(t).unflatten(-1, (layer.num_heads, -1))
        for p, t in zip((layer.q_proj, layer.k_proj, layer.v_proj), x, strict=True)
    )
    scores = torch.einsum("nlhe,nshe->nhls", q, k) / math.sqrt(layer.head_dim)
    open_pairs = torch.from_numpy(mask).t().expand(scores.shape)
    if padding is not None:
        open_pairs = open_pairs & ~padding[:, None, None]
    powers = torch.where(open_pairs, scores.exp(), 0)
    weights = powers / powers.sum(-1, keepdim=True).clamp(min=1e-300)
    y = torch.einsum("nhls,nshe->nlhe", weights, v).flatten(2)
    return layer.out_proj(y), weights


def masked(mask, block_size=4, dtype=torch.float64, pattern=SQUARE):
    torch.manual_seed(3)
    layer = tt.SparseMultiheadAttention(pattern, HEADS, batch_first=True, mask=mask, block_size=block_size, dtype=dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


class TestMask:
    @given(
        st.integers(1, 20), st.integers(1, 20), st.integers(1, 7), st.floats(0, 1), st.integers(0, 3), st.booleans(),
        st.integers(0, 2**32 - 1),
    )  # fmt: skip
    def test_any_mask_is_the_softmax_written_out(self, n_keys, n_queries, block, density, batch, padded, seed):
        rng = np.random.default_rng(seed)
        mask = rng.random((n_keys, n_queries)) < density * rng.random(n_queries)
        layer = masked(mask, block)
        x = inputs(layer, n_queries, n_keys, batch, seed)
        padding = torch.from_numpy(rng.random((batch, n_keys)) < 0.3) if padded else None
        found = layer(*x, key_padding_mask=padding, need_weights=False)[0]
        true = written_out(layer, mask, x, padding)[0]
        torch.testing.assert_close(found, true, rtol=0, atol=1e-11)
        dy = torch.randn_like(true)
        wanted = [*x, *(p for p in layer.parameters() if p.numel())]
        gradients = [torch.autograd.grad(y, wanted, dy, retain_graph=True) for y in (found, true)]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)

    def test_weights_and_an_attn_mask_are_dense_and_say_so_once(self, monkeypatch):
        monkeypatch.setattr(_attention, "_announced", set())
        mask = RNG.random((9, 7)) < 0.4
        mask[:, 2] = False
        layer = masked(mask)
        x = inputs(layer, 7, 9, 2)
        true = written_out(layer, mask, x)
        with pytest.warns(UserWarning, match=rf"computes all 7 x 9 pairs of its mask, of which {mask.sum()} are"):
            found = layer(*x, average_attn_weights=False)
        torch.testing.assert_close(found, true, rtol=0, atol=1e-12)
        zeros = torch.zeros(7, 9, dtype=torch.float64)
        torch.testing.assert_close(layer(*x, attn_mask=zeros, need_weights=False)[0], true[0], rtol=0, atol=1e-12)
        padding = torch.zeros(2, 9, dtype=torch.bool)
        padding[1, 4:] = True
        true = written_out(layer, mask & (np.arange(9) < 6)[:, None], x, padding)[0]
        attn_mask = (torch.arange(9) >= 6).expand(7, 9)
        found = layer(*x, attn_mask=attn_mask, key_padding_mask=padding, need_weights=False)[0]
        torch.testing.assert_close(found, true, rtol=0, atol=1e-12)

    def test_the_causal_topology_is_the_causal_mask(self):
        layer, (plain, _) = masked(CAUSAL), pair(batch_first=True)
        plain.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("mask")})
        x = inputs(layer, 6, 6, 2)
        forbidden = torch.ones(6, 6).triu(1).bool()
        torch.testing.assert_close(
            layer(*x, need_weights=False), plain(*x, attn_mask=forbidden, need_weights=False), rtol=0, atol=1e-12
        )

    def test_a_topology_of_one_layer_is_a_mask(self):
        net = tg.generate(tg.RandomBiregular(sizes=[12, 6], fan_in=4), rng=0)
        layer = masked(net)
        x = inputs(layer, 6, 12, 2)
        true = written_out(layer, net[0].toarray(), x)[0]
        torch.testing.assert_close(layer(*x, need_weights=False)[0], true, rtol=0, atol=1e-12)

    def test_only_blocks_with_connections_are_gathered(self):
        mask = np.zeros((64, 64), bool)
        mask[:8, :] = True  # keys that every query reads
        mask[:, :8] = True  # queries that read every key
        layer = masked(mask, 8)
        assert layer.mask.n_gathered == 8 + 7 * 1  # one row of all, seven of one
        assert "keys=64, queries=64, nnz=960, block_size=8, blocks=15 of 64" in repr(layer)

    def test_no_array_of_all_pairs(self):
        n = 1 << 17  # 2^34 pairs
        band = tg.generate(tg.Banded(n=n, lower=1, upper=1, layers=1))[0]
        layer = tt.SparseMultiheadAttention(np.eye(2), 1, mask=band, block_size=16)
        x = torch.ones(n, 2)
        layer(x, x, x, need_weights=False)[0].sum().backward()
        band = band[: 1 << 15, : 1 << 15]
        tracemalloc.start()
        mask = tt.attention_mask(band)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert mask.shape == (1, 1, 1 << 15, 1 << 15)
        assert peak < 1 << 25  # of 2^30 pairs

    def test_it_trains_and_moves_as_a_module(self):
        layer = masked(CAUSAL)
        assert {name for name in layer.state_dict() if name.startswith("mask")} == {"mask.pattern_hash"}
        x = tuple(part.detach() for part in inputs(layer, 6, 6, 2))
        call = (*x, None, False)
        twin = masked(CAUSAL)
        assert_drop_in_contract(layer, twin, call, laws=[
            law for law in DROP_IN_LAWS if law.__name__ not in ("trains_alike", "reset")
        ])  # fmt: skip
        moved = masked(CAUSAL).to("meta").to_empty(device="cpu")
        moved.load_state_dict(layer.state_dict())
        assert torch.equal(moved(*call)[0], layer(*call)[0])
        assert torch.equal(
            masked(CAUSAL, dtype=torch.float32)(*(t.float() for t in x), None, False)[0].isnan().any(),
            torch.tensor(False),
        )

    def test_a_state_of_another_mask_is_refused(self):
        layer, other = masked(CAUSAL), masked(CAUSAL.T)
        with pytest.raises(
            RuntimeError, match=r"mask 'mask' is refused: 'pattern_hash' must be that of the layer's mask"
        ):
            layer.load_state_dict(other.state_dict())

    def test_a_state_with_a_hash_of_the_first_version_is_taken(self):
        layer = masked(CAUSAL)
        state = layer.state_dict()
        first = bytearray.fromhex(tg.pattern_hash(tg.as_pattern(CAUSAL), 1))
        layer.load_state_dict({**state, "mask.pattern_hash": torch.frombuffer(first, dtype=torch.uint8)})
        assert torch.equal(layer.state_dict()["mask.pattern_hash"], masked(CAUSAL).state_dict()["mask.pattern_hash"])

    def test_dropout_acts_on_the_weights(self):
        layer = masked(CAUSAL)
        layer.dropout = 1.0
        x = inputs(layer, 6, 6, 2)
        found = layer(*x, need_weights=False)[0]
        torch.testing.assert_close(found, layer.out_proj.bias.expand_as(found), rtol=0, atol=1e-12)


class TestBlockMask:
    @given(
        st.integers(1, 20), st.integers(1, 20), st.integers(1, 7), st.sampled_from([0.0, 0.2, 0.7, 1.0]),
        st.integers(0, 2**32 - 1),
    )  # fmt: skip
    def test_it_allows_the_pairs_of_the_pattern_and_no_others(self, n_keys, n_queries, size, density, seed):
        pattern = np.random.default_rng(seed).random((n_keys, n_queries)) < density
        mask = tt.attention_mask(pattern, block_size=size)
        assert mask.shape == (1, 1, n_queries, n_keys)
        allowed = create_mask(mask.mask_mod, 1, 1, n_queries, n_keys, device="cpu")[0, 0]
        assert np.array_equal(allowed.numpy(), pattern.T)
        shape = (-(-n_queries // size), -(-n_keys // size))
        padded = np.zeros((shape[0] * size, shape[1] * size), bool)
        padded[:n_queries, :n_keys] = pattern.T
        counts = padded.reshape(shape[0], size, shape[1], size).sum((1, 3))
        assert np.array_equal(mask.to_dense()[0, 0].numpy(), counts > 0)
        for numbers, columns, blocks in (
            (mask.kv_num_blocks, mask.kv_indices, (counts > 0) & (counts < size**2)),
            (mask.full_kv_num_blocks, mask.full_kv_indices, counts == size**2),
            (mask.q_num_blocks, mask.q_indices, ((counts > 0) & (counts < size**2)).T),
            (mask.full_q_num_blocks, mask.full_q_indices, (counts == size**2).T),
        ):
            for row, number, some in zip(blocks, numbers[0, 0], columns[0, 0], strict=True):
                assert sorted(some[:number].tolist()) == np.flatnonzero(row).tolist()

    @pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
    def test_flex_attention_computes_with_it(self):
        pattern = RNG.random((23, 17)) < 0.3
        pattern[:, 4] = False
        assert_same_attention(flex_attention, pattern, 4, torch.float64, 1e-12)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_compiled_flex_attention_computes_with_it(self):
        if shutil.which("g++") is None:
            pytest.skip("needs a C++ compiler, which torch.compile calls")
        pattern = RNG.random((256, 256)) < 0.02
        pattern[:128, 128:] = True
        assert_same_attention(torch.compile(flex_attention), pattern, 128, torch.float32, 1e-5)


def assert_same_attention(attend, pattern, block_size, dtype, tolerance):
    torch.manual_seed(0)
    n_keys, n_queries = pattern.shape
    q, k, v = (torch.randn(2, 3, n, 16, dtype=dtype) for n in (n_queries, n_keys, n_keys))
    found = attend(q, k, v, block_mask=tt.attention_mask(pattern, block_size=block_size))
    scores = (q.double() @ k.double().transpose(-2, -1) / 4).exp() * torch.from_numpy(pattern.T)
    true = scores / scores.sum(-1, keepdim=True).clamp(min=1e-300) @ v.double()
    torch.testing.assert_close(found.double(), true, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: tt.SparseMultiheadAttention({"q": SQUARE}, HEADS),
            "The 'patterns' parameter of SparseMultiheadAttention must be a matrix or a mapping of 'q', 'k', 'v' and "
            "'out'. Got ['q'].",
        ),
        (
            lambda: tt.SparseMultiheadAttention(PATTERNS | {"out": np.ones((7, 8))}, HEADS),
            "The 'patterns['out']' parameter of SparseMultiheadAttention must be a pattern of shape (8, 8). "
            "Got (7, 8).",
        ),
        (
            lambda: tt.SparseMultiheadAttention(PATTERNS | {"v": np.ones((7, 9))}, HEADS),
            "The 'patterns['v']' parameter of SparseMultiheadAttention must be a pattern of shape (vdim, 8). "
            "Got (7, 9).",
        ),
        (
            lambda: tt.SparseMultiheadAttention(SQUARE, 3),
            "The 'num_heads' parameter of SparseMultiheadAttention must be a divisor of embed_dim = 8. Got 3. The "
            "nearest is 2.",
        ),
        (
            lambda: tt.SparseMultiheadAttention(SQUARE, 0),
            "The 'num_heads' parameter of SparseMultiheadAttention must be an int >= 1. Got 0.",
        ),
        (
            lambda: tt.SparseMultiheadAttention(SQUARE, 2, dropout=1.5),
            "The 'dropout' parameter of SparseMultiheadAttention must be a finite number in [0, 1]. Got 1.5.",
        ),
        (
            lambda: tt.SparseMultiheadAttention(SQUARE, 2, batch_first=1),
            "The 'batch_first' parameter of SparseMultiheadAttention must be a bool. Got 1.",
        ),
        (
            lambda: tt.SparseMultiheadAttention(SQUARE, 2, mask=SQUARE, block_size=0),
            "The 'block_size' parameter of SparseMultiheadAttention must be an int >= 1. Got 0.",
        ),
        (
            lambda: tt.attention_mask(SQUARE, block_size=0),
            "The 'block_size' parameter of attention_mask must be an int >= 1. Got 0.",
        ),
        (
            lambda: tt.attention_mask(tg.Topology([SQUARE, SQUARE])),
            "The 'pattern' parameter of attention_mask must be a matrix or a topology of one layer, since a mask joins "
            "keys to queries directly. Got 2 layers; one of them, topology[k], is a mask.",
        ),
        (
            lambda: masked(CAUSAL).to_attention(),
            "to_attention needs a SparseMultiheadAttention without a mask, since nn.MultiheadAttention takes it in "
            "each call as attn_mask. Got one of 6 keys and 6 queries.",
        ),
        (
            lambda: tt.SparseMultiheadAttention.from_attention(nn.Linear(8, 8), SQUARE),
            "The 'attention' parameter of from_attention must be a MultiheadAttention. Got Linear(in_features=8, "
            "out_features=8, bias=True).",
        ),
        (
            lambda: tt.SparseMultiheadAttention.from_attention(nn.MultiheadAttention(8, 2, add_bias_kv=True), SQUARE),
            "The 'attention' parameter of from_attention must be without add_bias_kv=True.",
        ),
        (
            lambda: tt.SparseMultiheadAttention.from_attention(nn.MultiheadAttention(8, 2, add_zero_attn=True), SQUARE),
            "The 'attention' parameter of from_attention must be without add_zero_attn=True.",
        ),
    ],
)
def test_bad_arguments_are_named(call, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        call()


ONE = torch.zeros(4, 2, E)


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        (
            (torch.zeros(4, 2, 3), ONE, ONE), {},
            "The 'query' of SparseMultiheadAttention must have 2 or 3 dimensions, the last of size 8. "
            "Got shape (4, 2, 3).",
        ),
        (
            (ONE, torch.zeros(4, 3, E), ONE), {},
            "The 'key' of SparseMultiheadAttention must have shape (4, 2, 8). Got (4, 3, 8).",
        ),
        (
            (ONE, ONE, torch.zeros(3, 2, E)), {},
            "The 'value' of SparseMultiheadAttention must have shape (4, 2, 8). Got (3, 2, 8).",
        ),
        (
            (ONE[0], ONE[0], ONE), {},
            "The 'value' of SparseMultiheadAttention must have shape (2, 8). Got (4, 2, 8).",
        ),
        (
            (ONE, ONE, ONE), {"key_padding_mask": torch.zeros(4, 2, dtype=torch.bool)},
            "The 'key_padding_mask' of SparseMultiheadAttention must have shape (2, 4). Got (4, 2).",
        ),
        (
            (ONE, ONE, ONE), {"attn_mask": torch.zeros(3, 3)},
            "The 'attn_mask' of SparseMultiheadAttention must have shape (4, 4) or (4, 4, 4). Got (3, 3).",
        ),
        (
            (ONE, ONE, ONE), {"attn_mask": torch.zeros(4, 4, dtype=torch.int8)},
            "The 'attn_mask' of SparseMultiheadAttention must be bool or float. Got torch.int8.",
        ),
        (
            (ONE, ONE, ONE), {"is_causal": True},
            "The 'attn_mask' of SparseMultiheadAttention must be given with is_causal=True, which is a hint about it.",
        ),
    ],
)  # fmt: skip
def test_bad_inputs_are_named(arguments, options, sentence):
    layer = tt.SparseMultiheadAttention(SQUARE, HEADS)
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        layer(*arguments, **options)


def test_a_mask_of_other_lengths_is_named():
    x = torch.zeros(2, 5, E)
    sentence = "The mask of SparseMultiheadAttention joins 6 keys to 6 queries. Got 5 keys and 5 queries."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        masked(CAUSAL, dtype=torch.float32)(x, x, x)
