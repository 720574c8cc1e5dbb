"""The layers keep the contract, and the contract bites: one planted liar for each way to break it."""

import copy
import re

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn

from topogen import as_pattern
from topogen_torch import SparseLinear
from topogen_torch._layout import stored_index
from topogen_torch.testing import LAWS, assert_layer_contract


@pytest.fixture(autouse=True)
def one_torch_thread():
    """Dense layers as small as these gain nothing from two, and on a busy machine their waiting costs seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_sparse_linear_keeps_the_contract():
    assert_layer_contract(SparseLinear)


class WrongTranspose(SparseLinear):
    def to_scipy(self):
        return super().to_scipy().T.tocsr()


class ColumnMajorValues(SparseLinear):
    """Values in the order of outputs: the forward pass is consistent with itself, only not with the promise."""

    def to_scipy(self):
        weights = super().to_scipy()
        order = np.lexsort(weights.nonzero())
        weights.data[order] = weights.data.copy()
        return weights

    def forward(self, x):
        order = torch.from_numpy(np.lexsort(self.pattern.nonzero()))
        shuffled = torch.empty_like(self.values).index_put((order,), self.values)
        return densely(self, x, shuffled)


class DroppedZeros(SparseLinear):
    def to_scipy(self):
        weights = super().to_scipy()
        weights.eliminate_zeros()
        return weights


class ForgottenBias(SparseLinear):
    def forward(self, x):
        y = super().forward(x)
        return y if self.bias is None else y - self.bias.detach()


class LowPrecision(SparseLinear):
    def forward(self, x):
        return super().forward(x).float().to(x.dtype)


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dx):
        return dx * 1.01


class ValueGradientOff(SparseLinear):
    def forward(self, x):
        return densely(self, x, Scaled.apply(self.values))


class InputGradientOff(SparseLinear):
    def forward(self, x):
        return super().forward(Scaled.apply(x))


class BiasGradientForgotten(SparseLinear):
    def forward(self, x):
        y = super().forward(x)
        return y if self.bias is None else y - self.bias + self.bias.detach()


class FrozenInputForgotten(SparseLinear):
    """Leaves the value gradient out where the input wants none, as if both came from one call."""

    def forward(self, x):
        if x.requires_grad or not self.values.requires_grad:
            return super().forward(x)
        return densely(self, x, Scaled.apply(self.values))


class OneLeadingDimension(SparseLinear):
    def forward(self, x):
        return super().forward(x.reshape(-1, self.in_features))


class NoEmptyBatch(SparseLinear):
    def forward(self, x):
        y = super().forward(x)
        return y + 1 / x.shape[0] if x.ndim == 1 else y


class CountsThreads(SparseLinear):
    def forward(self, x):
        return super().forward(x) * (1 + 1e-6 * (torch.get_num_threads() == 3))


class DenseInside(SparseLinear):
    def forward(self, x):
        return densely(self, x, self.values)


class NewParameterOnLoad(SparseLinear):
    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self.values = nn.Parameter(self.values.detach().clone())


class KeepsItsPattern(SparseLinear):
    """Loads values of the same number only, into the pattern that it has."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        own = {name: buffer for name, buffer in self.named_buffers() if prefix + name in state_dict}
        nn.Module._load_from_state_dict(self, state_dict | {prefix + name: own[name] for name in own}, prefix, *args)


class LosesBias(SparseLinear):
    def _load_from_state_dict(self, state_dict, prefix, *args):
        own = {} if self.bias is None else {prefix + "bias": self.bias.detach()}
        super()._load_from_state_dict(state_dict | own, prefix, *args)


class HalfLoaded(SparseLinear):
    def _load_from_state_dict(self, state_dict, prefix, *args):
        bias = state_dict.get(prefix + "bias")
        if bias is not None and self.bias is not None and bias.shape == self.bias.shape:
            self.bias.data.copy_(bias)
        super()._load_from_state_dict(state_dict, prefix, *args)


class BelievesTheHash(SparseLinear):
    def _load_from_state_dict(self, state_dict, prefix, *args):
        parts = {name: state_dict[prefix + name].numpy() for name in ("indices", "indptr")}
        try:
            pattern = sp.csr_array(
                (np.ones(len(parts["indices"])), *parts.values()), shape=(self.in_features, self.out_features)
            )
            right = stored_index(as_pattern(pattern), "SparseLinear")["pattern_hash"]
        except ValueError:
            right = self.pattern_hash
        super()._load_from_state_dict(state_dict | {prefix + "pattern_hash": right}, prefix, *args)


class SharedCopy(SparseLinear):
    def __deepcopy__(self, memo):
        twin = copy.copy(self)
        twin._parameters, twin._buffers = dict(self._parameters), dict(self._buffers)
        return twin


def densely(layer, x, values):
    rows, columns = (torch.from_numpy(part.astype(np.int64)) for part in layer.pattern.nonzero())
    y = x @ values.new_zeros(layer.in_features, layer.out_features).index_put((rows, columns), values)
    return y if layer.bias is None else y + layer.bias


LIARS = {
    WrongTranspose: "value_ordering: to_scipy must have shape",
    ColumnMajorValues: "value_ordering: to_scipy must hold the values",
    DroppedZeros: "value_ordering: to_scipy must keep connections whose weight is 0",
    ForgottenBias: "forward_equals_dense: output in torch.float32, bias=True is off by",
    LowPrecision: "forward_equals_dense: output in torch.float64, bias=True is off by",
    ValueGradientOff: "gradients_equal_dense: gradient of values is off by",
    InputGradientOff: "gradients_equal_dense: gradient of input is off by",
    BiasGradientForgotten: "gradients_equal_dense: gradient of bias is off by",
    FrozenInputForgotten: "each_gradient_alone: gradient 1 when only it is wanted is off by",
    OneLeadingDimension: "leading_dimensions: output for leading dimensions ()",
    CountsThreads: "thread_count: results must not depend on the number of threads",
    DenseInside: "no_dense_temporary: a 2^20 x 2^20 layer of 50 connections must work",
    NewParameterOnLoad: "one_parameter_for_life: values must stay the same Parameter",
    KeepsItsPattern: "one_parameter_for_life: RuntimeError: ",
    LosesBias: "state_round_trip: output after loading is off by",
    HalfLoaded: "refused_state: a refused state (a missing value, strict=True) must leave the layer unchanged",
    BelievesTheHash: "refused_state: a state with one bit of indices changed must be refused, strict=True",
    SharedCopy: "deepcopy: a copy must share no memory",
}


@pytest.mark.parametrize("liar", LIARS, ids=lambda liar: liar.__name__)
def test_a_liar_is_caught(liar):
    with pytest.raises(AssertionError, match=f"^{re.escape(LIARS[liar])}"):
        assert_layer_contract(liar)


def test_every_law_is_broken_by_some_liar():
    caught = {sentence.partition(":")[0] for sentence in LIARS.values()}
    assert caught | {"gradcheck"} == {law.__name__ for law in LAWS}


def test_gradcheck_finds_a_wrong_gradient_by_itself():
    """The comparison with dense comes first, so that this law is tried alone."""
    law = next(law for law in LAWS if law.__name__ == "gradcheck")
    with pytest.raises(AssertionError, match="Jacobian mismatch"):
        law(ValueGradientOff, np.random.default_rng(0))
