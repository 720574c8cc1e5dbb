"""What cannot become sparse is named with its reason, in the log, in the record, and by strict."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import topogen_torch as tt
from topogen.errors import SpecError

EMBEDDING = "an embedding, whose rows are looked up and not multiplied"


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(4, 3, 5))
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return torch.einsum("bi,eio->beo", x * self.scale, self.up).sum(1)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.body(self.embedding(ids)))


class Reads(nn.Module):
    """Uses the weight of its layer directly, in a method that its forward calls, inside a comprehension."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.other = nn.Linear(3, 3)

    def _mix(self, x):
        return sum(x @ self.fc.weight for _ in range(2))

    def forward(self, x):
        return self._mix(self.other(x)) * self.other.bias


class SubLinear(nn.Linear):
    pass


def linear(change):
    layer = nn.Linear(3, 3)
    changed = change(layer)
    return layer if changed is None else changed


def own_forward(layer):
    layer.forward = lambda x: x


def frozen_to_int(layer):
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)


def complex_weight(layer):
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.complex64))


class Subclass(torch.Tensor):
    pass


def subclass_weight(layer):
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Subclass))


def old_weight_norm(layer):
    with pytest.warns(FutureWarning, match="weight_norm"):
        return torch.nn.utils.weight_norm(layer)


STATE = "has state-dict hooks, which expect the dense weight"
ALONE = {
    "lazy": (lambda: nn.LazyLinear(3), "has no shape before its first batch; run one through the model first"),
    "parametrized": (
        lambda: linear(parametrizations.weight_norm),
        "parametrized; remove the parametrization first (torch.nn.utils.parametrize)",
    ),
    "weight norm": (
        lambda: linear(old_weight_norm),
        "has its weight computed from weight_g, weight_v; make it permanent first",
    ),
    "pruned": (
        lambda: linear(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
        "has its weight computed from weight_orig; make it permanent first",
    ),
    "pruned bias": (
        lambda: linear(lambda layer: prune.l1_unstructured(layer, "bias", 0.5)),
        "holds more than its class does (bias_mask)",
    ),
    "adapter": (
        lambda: linear(lambda layer: layer.register_module("lora", nn.Linear(3, 3))),
        "holds more than its class does (lora)",
    ),
    "scale": (
        lambda: linear(lambda layer: layer.register_parameter("scale", nn.Parameter(torch.ones(3)))),
        "holds more than its class does (scale)",
    ),
    "subclass": (lambda: SubLinear(3, 3), "a SubLinear, a subclass of Linear that may compute something else"),
    "forward": (lambda: linear(own_forward), "has a forward of its own, which the sparse layer would not call"),
    "int": (lambda: linear(frozen_to_int), "has a weight of torch.int8, torch.strided"),
    "complex": (lambda: linear(complex_weight), "has a weight of torch.complex64, torch.strided"),
    "tensor subclass": (lambda: linear(subclass_weight), "has a weight of type Subclass"),
    "empty": (
        lambda: linear(lambda layer: setattr(layer, "weight", nn.Parameter(torch.empty(3, 0)))),
        "has no weights: shape (3, 0)",
    ),
    "gradient hook": (
        lambda: linear(lambda layer: layer.weight.register_hook(lambda grad: grad) and None),
        "has hooks on its weight, which expect the dense gradient",
    ),
    "accumulation hook": (
        lambda: linear(lambda layer: layer.weight.register_post_accumulate_grad_hook(lambda p: None) and None),
        "has hooks on its weight, which expect the dense gradient",
    ),
    "state hook": (lambda: linear(lambda layer: layer.register_state_dict_pre_hook(lambda *a: None) and None), STATE),
    "load hook": (
        lambda: linear(lambda layer: layer.register_load_state_dict_post_hook(lambda *a: None) and None),
        STATE,
    ),
    "keys of its own": (
        lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),
        "has keys that belong to no pattern (add_bias_kv or add_zero_attn)",
    ),
    "zero keys": (
        lambda: nn.MultiheadAttention(4, 2, add_zero_attn=True),
        "has keys that belong to no pattern (add_bias_kv or add_zero_attn)",
    ),
    "embedding": (lambda: nn.Embedding(4, 3), EMBEDDING),
    "no namesake": (lambda: nn.ConvTranspose2d(3, 3, 2), "a ConvTranspose2d, which has no sparse namesake"),
    "recurrent": (lambda: nn.RNN(3, 3), "a RNN, which has no sparse namesake"),
    "bilinear": (lambda: nn.Bilinear(3, 3, 2), "a Bilinear, which has no sparse namesake"),
    "sparse": (lambda: tt.SparseLinear(np.eye(3)), "a topogen layer already"),
}


@pytest.mark.parametrize("kind", ALONE)
def test_each_obstacle_is_named_and_left_alone(kind, caplog):
    make, reason = ALONE[kind]
    model = nn.Sequential(make(), nn.Linear(3, 3))
    before = type(model[0]), {id(p) for p in model[0].parameters()}
    tt.sparsify(model, density=0.5, inplace=True)
    assert (type(model[0]), {id(p) for p in model[0].parameters()}) == before
    assert type(model[1]) is tt.SparseLinear
    assert model._topogen_left_dense == ({} if kind == "sparse" else {"0": reason})
    assert [record.message for record in caplog.records] == [f"sparsify leaves 1 as they are: '0': {reason}."]
    sentence = (
        "The 'model' parameter of sparsify must be convertible as a whole with strict=True. Got 1 that cannot be: "
        f"'0': {reason}. To leave them as they are, name them in 'exclude'."
    )
    model = nn.Sequential(make(), nn.Linear(3, 3))
    for inplace in (False, True):
        with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
            tt.sparsify(model, density=0.5, strict=True, inplace=inplace)
        assert type(model[1]) is nn.Linear
    with pytest.raises(SpecError, match=re.escape(f"must have something to make sparse. Got none: '0': {reason}.")):
        tt.sparsify(nn.Sequential(make()), density=0.5)


def test_a_quantized_layer_is_named():
    """By its class alone: engines that really quantize are not on every machine."""
    quantized = type("Linear", (nn.Module,), {"__module__": "torch.ao.nn.quantized.modules.linear", "weight": print})
    model = nn.Sequential(quantized(), nn.Linear(3, 3))
    assert tt.sparsify(model, density=0.5)._topogen_left_dense == {"0": "a quantized Linear"}


class TestSeveralModules:
    def test_tied_weights(self, caplog):
        sparse = tt.sparsify(Tied(), density=0.5)
        assert sparse._topogen_left_dense == {
            "embedding": EMBEDDING,
            "head": "shares its weight with 'embedding.weight'",
        }
        assert type(sparse.body) is tt.SparseLinear
        assert sparse.head.weight is sparse.embedding.weight
        assert [record.message for record in caplog.records] == [
            f"sparsify leaves 2 as they are: 'embedding': {EMBEDDING}; 'head': shares its weight with "
            "'embedding.weight'."
        ]
        sparse(torch.tensor([1, 2])).sum().backward()

    def test_weights_tied_between_layers_and_by_memory_alone(self):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        model[2].weight.data = model[3].weight.data
        with pytest.raises(SpecError, match=r"'0': shares its weight with '1.weight'"):
            tt.sparsify(model, density=0.5)
        with pytest.raises(SpecError, match=r"'2': shares its weight with '3.weight'"):
            tt.sparsify(model, density=0.5)

    def test_parameters_that_a_module_uses_by_itself(self):
        model = nn.Sequential(nn.Linear(3, 3), Experts())
        sparse = tt.sparsify(model, density=0.5)
        assert sparse._topogen_left_dense == {"1.up": "a parameter of shape (4, 3, 5) that Experts uses by itself"}
        assert tt.sparsify(model, density=0.5, strict=True, exclude="1.up")[0].nnz == 4
        assert tt.sparsify(model, density=0.5, strict=True, exclude=Experts)[0].nnz == 4

    def test_a_weight_that_the_parent_holds_too(self):
        model = Reads()
        model.alias = model.other.weight
        assert tt.sparsify(nn.Sequential(model, nn.Linear(3, 3)), density=0.5)._topogen_left_dense == {
            "0.alias": "a parameter of shape (3, 3) that Reads uses by itself",
            "0.fc": "has its weight read by Reads, from outside",
            "0.other": "shares its weight with '0.alias'",
        }

    def test_a_weight_that_another_forward_reads(self):
        sparse = tt.sparsify(Reads(), density=0.5)
        assert sparse._topogen_left_dense == {"fc": "has its weight read by Reads, from outside"}
        assert type(sparse.other) is tt.SparseLinear  # only its bias is read, which stays
        sparse(torch.ones(2, 3)).sum().backward()

    def test_norms_and_vectors_are_no_news(self, caplog):
        model = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm((2, 3)), nn.BatchNorm1d(6), nn.PReLU(), nn.GroupNorm(2, 6))
        assert tt.sparsify(model, density=0.5, strict=True)._topogen_left_dense == {}
        assert not caplog.records

    def test_what_the_user_leaves_out_is_recorded_and_not_announced(self, caplog):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
        sparse = tt.sparsify(model, density=0.5, include=["0", "1"], exclude="1", strict=True)
        assert sparse._topogen_left_dense == {"1": "matched by 'exclude'", "2": "not matched by 'include'"}
        assert not caplog.records

    def test_excluding_a_container_covers_what_is_in_it(self):
        model = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.Linear(3, 3), Reads())
        sparse = tt.sparsify(model, density=0.5, exclude=("0", Reads), strict=True)
        assert [type(sparse[0][0]), type(sparse[1]), type(sparse[2].other)] == [nn.Linear, tt.SparseLinear, nn.Linear]

    def test_the_notice_names_a_few_and_counts_the_rest(self, caplog):
        model = nn.Sequential(nn.Linear(3, 3), *(nn.Embedding(3, 3) for _ in range(9)))
        assert len(tt.sparsify(model, density=0.5)._topogen_left_dense) == 9
        assert caplog.records[0].message == (
            f"sparsify leaves 9 as they are: '1', '2', '3', '4', '5', '6' and 3 more: {EMBEDDING}."
        )

    def test_a_second_conversion_keeps_the_reasons_of_the_first(self, monkeypatch):
        slow = tt.Seconds(2.0, 2.0, 2.0), tt.Seconds(1.0, 1.0, 1.0)
        monkeypatch.setattr("topogen_torch._conversion._faster.beside_dense", lambda layer, inputs: slow)
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Embedding(3, 3))
        once = tt.sparsify(model, density=0.5, include="0", only_if_faster=True)
        twice = tt.sparsify(once, density=0.5, include="1")
        assert twice._topogen_left_dense == {
            "0": "not faster, forward + backward 2e+03 ms sparse and 1e+03 ms dense",
            "2": EMBEDDING,
        }
        assert not hasattr(tt.densify(twice), "_topogen_left_dense")

    def test_patterns_for_what_cannot_be(self):
        sentence = (
            "The 'patterns' parameter of sparsify must match layers that can become sparse. "
            "Got 'head', but 'head' cannot: shares its weight with 'embedding.weight'."
        )
        with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
            tt.sparsify(Tied(), patterns={"head": np.ones((4, 10))})
        with pytest.raises(SpecError, match=f"Got Embedding, but 'embedding' cannot: {EMBEDDING}"):
            tt.sparsify(Tied(), patterns={nn.Embedding: np.ones((4, 10))})

    @pytest.mark.parametrize("function", [lambda model: tt.sparsify(model, density=0.5), tt.densify])
    def test_a_wrapped_model_is_refused(self, function):
        class DistributedDataParallel(nn.Module):
            def __init__(self, module):
                super().__init__()
                self.module = module

        with pytest.raises(
            SpecError, match=r"must not be wrapped yet: convert the model first, then wrap it. Got a Dis"
        ):
            function(DistributedDataParallel(nn.Linear(3, 3)))
