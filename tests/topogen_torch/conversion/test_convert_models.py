"""Whole models: a residual CNN, PyTorch's own transformer, and Hugging Face's, built from configurations."""

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError

EMBEDDING = "an embedding, whose rows are looked up and not multiplied"


@pytest.fixture(autouse=True)
def one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same_state(one, other):
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


class Block(nn.Module):
    """Two convolutions around which the input passes; a 1 x 1 convolution where its size changes."""

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False, groups=2)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.short = nn.Conv2d(n_in, n_out, 1, stride) if (n_in, stride) != (n_out, 1) else nn.Identity()

    def forward(self, x):
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + self.short(x)).relu()


class SmallResNet(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3, padding="same", padding_mode="circular"), Block(8, 8, 1), Block(8, 12, 2),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(2), nn.Conv1d(12, 6, 2, dilation=2), nn.Flatten(), nn.Linear(12, 4),
        )  # fmt: skip


def resnet(seed=0, dtype=torch.float64):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return SmallResNet().to(dtype)


transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
IDS = torch.tensor([[3, 7, 1, 0, 9], [2, 2, 4, 8, 5]])
SIZES = {"vocab_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8}
IMAGES = torch.from_numpy(np.random.default_rng(1).standard_normal((3, 3, 8, 8)))
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Linear)


def dense_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, CONVOLUTIONS)}


class TestConvolutions:
    @given(
        st.floats(0.03, 1) | st.just(1.0), st.sampled_from(["erk", "er", "uniform", "global"]), st.booleans(),
        st.integers(0, 9),
    )  # fmt: skip
    @settings(max_examples=12)
    def test_budget_values_and_outputs(self, density, distribution, whole_kernels, seed):
        dense = resnet(seed).eval()
        sparse = tt.sparsify(dense, density=density, distribution=distribution, whole_kernels=whole_kernels)
        back = tt.densify(sparse)
        stored = {name: module.nnz for name, module in sparse.named_modules() if hasattr(module, "nnz")}
        weights = {name: layer.weight.detach() for name, layer in dense_layers(dense).items()}
        assert set(stored) == set(weights)
        budget = round(Fraction(repr(density)) * sum(weight.numel() for weight in weights.values()))
        if whole_kernels:
            assert budget - 9 < sum(stored.values()) <= budget
        else:
            assert sum(stored.values()) == budget
        for name, layer in dense_layers(back).items():
            kept = layer.weight != 0
            assert torch.equal(layer.weight, torch.where(kept, weights[name], 0))
            assert int(kept.sum()) == stored[name]
            scores = weights[name].abs()
            if whole_kernels:
                assert torch.equal(kept.flatten(2).any(2), kept.flatten(2).all(2)) if kept.ndim > 2 else True
                scores, kept = (scores.flatten(2).mean(2), kept.flatten(2).any(2)) if kept.ndim > 2 else (scores, kept)
            if kept.any() and not kept.all():
                assert scores[kept].min() >= scores[~kept].max()
        if distribution != "global" and not whole_kernels:
            shapes = [weight.shape for weight in weights.values()]
            assert list(stored.values()) == tg.connection_counts(shapes, density=density, distribution=distribution)
        torch.testing.assert_close(sparse(IMAGES), back(IMAGES), rtol=1e-11, atol=1e-11)
        assert repr(back) == repr(dense)

    @pytest.mark.parametrize("inplace", [False, True])
    def test_there_and_back_changes_nothing(self, inplace):
        model = resnet()
        before = copy.deepcopy(model)
        sparse = tt.sparsify(model, density=1.0, inplace=inplace)
        kinds = {type(module).__name__ for module in sparse.modules()}
        assert {"SparseConv1d", "SparseConv2d", "SparseLinear"} <= kinds
        assert not kinds & {"Conv1d", "Conv2d", "Linear"}
        torch.testing.assert_close(copy.deepcopy(sparse)(IMAGES), copy.deepcopy(before)(IMAGES))
        back = tt.densify(sparse, inplace=inplace)
        assert same_state(back, before)
        assert repr(back) == repr(before)

    def test_it_trains_and_its_state_goes_round(self):
        sparse = tt.sparsify(resnet(dtype=torch.float32), density=0.2)
        images, labels = IMAGES.float(), torch.tensor([0, 1, 3])
        steps = torch.optim.Adam(sparse.parameters(), lr=0.01)
        losses = []
        for _ in range(15):
            steps.zero_grad()
            loss = nn.functional.cross_entropy(sparse(images), labels)
            loss.backward()
            steps.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]
        other = tt.sparsify(resnet(3, torch.float32), density=0.4)
        other.load_state_dict(sparse.state_dict())
        assert torch.equal(other.eval()(images), sparse.eval()(images))

    def test_patterns_over_channels_and_over_places(self):
        channels = np.random.default_rng(0).random((3, 8)) < 0.5
        places = [np.random.default_rng(k).random((8, 8)) < 0.3 for k in range(9)]
        sparse = tt.sparsify(resnet(), patterns={"0": channels, "1.conv1": places, nn.Linear: tg.Dense(sizes=[12, 4])})
        assert sparse[0].nnz == 9 * channels.sum()
        assert sparse[1].conv1.nnz == sum(place.sum() for place in places)
        dense = tt.densify(sparse)[1].conv1.weight
        for k, place in enumerate(places):
            assert np.array_equal(dense[:, :, k // 3, k % 3].detach().numpy() != 0, place.T)
        with pytest.raises(
            SpecError, match=r"for '1.conv1' must be one matrix, or 9 for the places of the kernel. Got 4."
        ):
            tt.sparsify(resnet(), patterns={"1.conv1": places[:4]})
        with pytest.raises(SpecError, match=r"inputs, outputs\) of '1.conv1', \(8, 8\). Got \(8, 7\)"):
            tt.sparsify(resnet(), patterns={"1.conv1": [*places[:8], np.ones((8, 7))]})

    def test_a_layer_rewired_across_its_groups_comes_back_without_them(self):
        layer = tt.sparsify(nn.Conv2d(4, 4, 1, groups=2, bias=False), density=1.0)
        layer.load_state_dict(tt.SparseConv2d([np.ones((4, 4))], 1, bias=False).state_dict())
        back = tt.densify(layer)
        assert back.groups == 1
        x = torch.randn(1, 4, 3, 3)
        torch.testing.assert_close(back(x), layer(x))

    def test_at_least_one_whole_kernel_must_stay(self):
        with pytest.raises(
            SpecError, match=r"must leave at least 9 of the 72 weights. Got 0.05; the nearest that does is 0.125."
        ):
            tt.sparsify(nn.Conv2d(2, 4, 3), density=0.05, whole_kernels=True)


class TestTorchTransformer:
    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
    @pytest.mark.parametrize("activation", ["relu", "gelu"])
    def test_the_fast_path_is_off_while_layers_are_sparse(self, activation):
        layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, activation, batch_first=True)
        dense = nn.TransformerEncoder(layer, 2).eval()
        x, padding = torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.bool)
        padding[1, 3:] = True
        for density, arguments in ((1.0, {}), (0.3, {}), (0.3, {"exclude": nn.MultiheadAttention})):
            sparse = tt.sparsify(dense, density=density, **arguments)
            back = tt.densify(sparse)
            for options in ({}, {"src_key_padding_mask": padding}):
                with torch.no_grad():  # where PyTorch would take it
                    torch.testing.assert_close(sparse(x, **options)[~padding], back(x, **options)[~padding])
            for one, other in zip(back.modules(), dense.modules(), strict=True):
                assert vars(one).keys() == vars(other).keys()
            assert (back.use_nested_tensor, back.layers[0].activation_relu_or_gelu) == (
                dense.use_nested_tensor,
                dense.layers[0].activation_relu_or_gelu,
            )
        assert same_state(tt.densify(tt.sparsify(dense, density=1.0)), dense)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
class TestHuggingFace:
    """No weights are downloaded: every model is built from its configuration."""

    def train(self, model):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        assert model(input_ids=IDS, labels=IDS).loss < loss
        return loss

    def gpt2(self):
        config = transformers.GPT2Config(
            n_layer=2, n_embd=8, n_head=2, vocab_size=20, n_positions=16, bos_token_id=0, eos_token_id=1,
            pad_token_id=1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config).eval()

    def test_gpt2_with_its_tied_head_and_conv1d(self, caplog):
        dense = self.gpt2()
        sparse = tt.sparsify(dense, density=0.3)
        assert sparse._topogen_left_dense == {
            "transformer.wte": EMBEDDING,
            "transformer.wpe": EMBEDDING,
            "lm_head": "shares its weight with 'transformer.wte.weight'",
        }
        assert [record.message for record in caplog.records if record.name == "topogen"] == [
            f"sparsify leaves 3 as they are: 'transformer.wte', 'transformer.wpe': {EMBEDDING}; 'lm_head': shares its "
            "weight with 'transformer.wte.weight'."
        ]
        assert sparse.lm_head.weight is sparse.transformer.wte.weight
        kinds = {type(module).__name__ for module in sparse.transformer.h.modules()}
        assert "SparseLinear" in kinds
        assert "Conv1D" not in kinds
        layer, conv = sparse.transformer.h[0].mlp.c_fc, dense.transformer.h[0].mlp.c_fc
        assert np.array_equal(layer.to_scipy().data, conv.weight.detach().numpy()[layer.pattern.toarray()])
        back = tt.densify(sparse)
        assert repr(back) == repr(dense)
        torch.testing.assert_close(sparse(IDS).logits, back(IDS).logits)
        options = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
        assert torch.equal(sparse.generate(IDS, **options), back.generate(IDS, **options))
        self.train(sparse.train())

    def test_gpt2_there_and_back(self):
        dense = self.gpt2()
        dense.transformer.h[0].mlp.c_fc.weight.requires_grad_(False)
        full = tt.sparsify(dense, density=1.0)
        torch.testing.assert_close(full(IDS).logits, dense(IDS).logits)
        back = tt.densify(full)
        assert same_state(back, dense)
        assert repr(back) == repr(dense)
        assert [p.requires_grad for p in back.parameters()] == [p.requires_grad for p in dense.parameters()]
        assert back.lm_head.weight is back.transformer.wte.weight

    def test_llama(self):
        config = transformers.LlamaConfig(**SIZES, intermediate_size=12)
        dense = transformers.LlamaForCausalLM(config)
        sparse = tt.sparsify(dense, density=0.3, distribution="global", exclude="lm_head")
        assert sparse._topogen_left_dense == {"model.embed_tokens": EMBEDDING, "lm_head": "matched by 'exclude'"}
        torch.testing.assert_close(sparse(IDS).logits, tt.densify(sparse)(IDS).logits)
        self.train(sparse)
        with pytest.raises(SpecError, match=r"Got 1 that cannot be: 'model.embed_tokens': an embedding"):
            tt.sparsify(dense, density=0.3, strict=True)
        assert tt.sparsify(dense, density=0.3, strict=True, exclude=nn.Embedding) is not dense

    def test_bert_by_type(self):
        config = transformers.BertConfig(**SIZES, intermediate_size=12)
        dense = transformers.BertModel(config).eval()
        attention = type(dense.encoder.layer[0].attention)
        sparse = tt.sparsify(dense, density=0.3, include=attention)
        found = [name for name, module in sparse.named_modules() if isinstance(module, tt.SparseLinear)]
        assert len(found) == 8
        assert all(".attention." in name for name in found)
        hidden = [model(IDS).last_hidden_state for model in (sparse, tt.densify(sparse))]
        torch.testing.assert_close(*hidden)

    def test_experts_in_three_dimensions_are_named(self):
        config = transformers.MixtralConfig(**SIZES, intermediate_size=12, num_local_experts=2, num_key_value_heads=2)
        sparse = tt.sparsify(transformers.MixtralForCausalLM(config), density=0.5)
        left = sparse._topogen_left_dense
        experts = {name: reason for name, reason in left.items() if "experts" in name}
        assert len(experts) == 4
        assert experts["model.layers.0.mlp.experts.gate_up_proj"] == (
            "a parameter of shape (2, 24, 8) that MixtralExperts uses by itself"
        )
        self.train(sparse)

    def test_weights_that_t5_reads_itself_are_named(self):
        config = transformers.T5Config(
            d_model=8,
            d_ff=12,
            num_layers=1,
            num_heads=2,
            d_kv=4,
            vocab_size=20,
            decoder_start_token_id=0,
            dropout_rate=0.0,
        )
        sparse = tt.sparsify(transformers.T5ForConditionalGeneration(config), density=0.5)
        name = "encoder.block.0.layer.1.DenseReluDense.wo"
        assert sparse._topogen_left_dense[name] == "has its weight read by T5DenseActDense, from outside"
        assert isinstance(sparse.get_submodule(name.replace("wo", "wi")), tt.SparseLinear)
        self.train(sparse)
