"""Operands of more than 2^31 entries, of which the kernels touch a few: offsets that int32 cannot hold.

The memory is asked for and hardly any of it used, which takes an operating system that gives out pages on first touch.
"""

from __future__ import annotations

import pytest
import torch

from topogen_torch._gpu._config import Config
from topogen_torch._gpu._forward import block_forward
from topogen_torch._gpu._index import BlockIndex
from topogen_torch._gpu._input_gradient import block_input_gradient
from topogen_torch._gpu._value_gradient import block_value_gradient

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def leave_memory_untouched(unwritten_memory_is_nan, monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)


def int32(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


def one_block(block):
    return BlockIndex.from_buffers(int32(0, 1), int32(0), int32(0, 1), int32(0), int32(0), block=block)


def assert_near(found, true):
    torch.testing.assert_close(found.double(), true, rtol=2e-3, atol=2e-3)


def test_rows_far_apart():
    stride, tokens = 2**21 - 16, 1056
    assert (tokens - 16) * stride > 2**31  # where the last tile begins
    x = torch.empty_strided((tokens, 16), (stride, 1), dtype=torch.float16)
    x.copy_(torch.randn(tokens, 16))
    values, grad = torch.randn(1, 16, 16).half(), torch.randn(tokens, 16).half() / 32
    config, index = Config(tokens=16, depth=16, split_k=66), one_block(16)
    weights = values[0].double()
    assert_near(block_forward(x, values, index, config=config), x.double() @ weights)
    assert_near(block_input_gradient(x, values, index, config=config), x.double() @ weights.T)
    assert_near(block_value_gradient(x, grad, index, config=config)[0], x.double().T @ grad.double())


@pytest.mark.parametrize(("block", "depth"), [(16, 32), (128, 64)])
def test_values_far_apart(block, depth):
    """The last of so many blocks, reached through either index; the others belong to nobody."""
    blocks = 2**31 // block**2 + 2
    values = torch.empty(blocks, block, block, dtype=torch.float16)
    values[-2:] = torch.randn(2, block, block) / 8
    only_last = torch.zeros(blocks, dtype=torch.int32)
    index = BlockIndex(
        block=block, n_in=block, n_out=block, most=2,
        indptr=int32(blocks - 2, blocks), indices=only_last, order=int32(0),
        indptr_t=int32(0, 2), indices_t=int32(0, 0), permutation=int32(blocks - 2, blocks - 1), order_t=int32(0),
    )  # fmt: skip
    x, config = torch.randn(16, block).half(), Config(tokens=16, depth=depth)
    weights = values[-2:].double().sum(0)
    assert_near(block_forward(x, values, index, config=config), x.double() @ weights)
    assert_near(block_input_gradient(x, values, index, config=config), x.double() @ weights.T)
