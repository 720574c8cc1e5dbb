"""The drop-in contract holds for the linear layer, and bites: one planted liar for each of its laws."""

import copy
import re

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from topogen_torch import SparseLinear
from topogen_torch.testing import DROP_IN_LAWS, assert_drop_in_contract

PATTERN = sp.csr_array(np.random.default_rng(0).random((9, 7)) < 0.5)
SAMPLE = torch.from_numpy(np.random.default_rng(1).standard_normal((5, 9)))


@pytest.fixture(autouse=True)
def one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(kind=SparseLinear):
    torch.manual_seed(0)
    layer = kind(PATTERN, dtype=torch.float64)
    with torch.no_grad():
        layer.bias.normal_()
    return layer


def test_sparse_linear_is_a_drop_in():
    layer = make()
    assert_drop_in_contract(layer, layer.to_linear(), SAMPLE)


class OtherNumbers(SparseLinear):
    def forward(self, x):
        return super().forward(x) * (1 + 1e-6)


class NoInputGradient(SparseLinear):
    def forward(self, x):
        return super().forward(x.detach())


class DoubledValueGradient(SparseLinear):
    def forward(self, x):
        y = super().forward(x)
        return 2 * y - (x.detach() @ self.to_linear().weight.detach().t() + self.bias.detach())


class OverwritesGradients(SparseLinear):
    def forward(self, x):
        self.values.grad = None
        return super().forward(x)


class DependsOnThreads(SparseLinear):
    def forward(self, x):
        return super().forward(x) * (1 + 1e-15 * torch.get_num_threads())


class SharedCopy(SparseLinear):
    def __deepcopy__(self, memo):
        twin = copy.copy(self)
        twin._parameters, twin._buffers = dict(self._parameters), dict(self._buffers)
        return twin


class ForgetsState(SparseLinear):
    def load_state_dict(self, state_dict, strict=True, assign=False):
        return super().load_state_dict(self.state_dict(), strict, assign)


class ResetsToAConstant(SparseLinear):
    def reset_parameters(self):
        torch.nn.init.ones_(self.values)
        torch.nn.init.zeros_(self.bias)


class LeavesTheGraph(SparseLinear):
    def forward(self, x):
        scale = 2 if float(self.values.detach().sum()) == 12345 else 1
        return scale * super().forward(x)


class ReadsNumbers(LeavesTheGraph):
    """As little as its parent can it be captured whole."""


class KeepsOwnParameters(SparseLinear):
    """Reads its values through a list, where functional_call does not reach."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._own = [self.values]

    def forward(self, x):
        rows, columns = (torch.from_numpy(part) for part in PATTERN.nonzero())
        weights = torch.zeros(PATTERN.shape, dtype=x.dtype).index_put((rows, columns), self._own[0])
        return x @ weights + self.bias


class CountsCalls(SparseLinear):
    calls = 0

    def forward(self, x):
        CountsCalls.calls += 1
        return super().forward(x) * (1 + 1e-9 * CountsCalls.calls)


class IgnoresAutocast(SparseLinear):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return super().forward(x)


class HandsOutCopies(SparseLinear):
    def parameters(self, recurse=True):
        return (parameter.detach().clone() for parameter in super().parameters(recurse))


class MovesItself(SparseLinear):
    def forward(self, x):
        self.bias.data.add_(1e-3)
        return super().forward(x)


LIARS = {
    OtherNumbers: "same_outputs: the output in torch.float64 is off",
    NoInputGradient: "same_input_gradients: input 0 must have a gradient",
    DoubledValueGradient: "trains_alike: the output after 50 steps of SGD",
    OverwritesGradients: "every_parameter_learns: the gradient of values after two backward passes",
    DependsOnThreads: "thread_count: results must not depend",
    SharedCopy: "copies: a copy by deepcopy must share no memory",
    ForgetsState: "state_round_trip: a loaded layer must compute",
    ResetsToAConstant: "reset: another seed must give others",
    LeavesTheGraph: "compiled: ",
    ReadsNumbers: "exported: ",
    KeepsOwnParameters: "functional: the loss with other parameters",
    CountsCalls: "checkpointed: checkpointing must change nothing",
    IgnoresAutocast: "autocast: output of torch.bfloat16 under autocast. Got torch.float32",
    HandsOutCopies: "averaged: an averaged parameter",
    MovesItself: "parameter_groups: the step of bias",
}


@pytest.mark.parametrize("liar", LIARS, ids=lambda liar: liar.__name__)
def test_a_liar_is_caught(liar):
    layer, named = make(liar), LIARS[liar]
    laws = [law for law in DROP_IN_LAWS if law.__name__ == named.partition(":")[0]]
    with pytest.raises(AssertionError, match=f"^{re.escape(named)}"):
        assert_drop_in_contract(layer, layer.to_linear(), SAMPLE, laws=laws)


def test_every_law_has_a_liar():
    named = {name.partition(":")[0] for name in LIARS.values()}
    assert named == {law.__name__ for law in DROP_IN_LAWS}
