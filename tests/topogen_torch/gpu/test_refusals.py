"""What the launch functions refuse before Triton or the card would: each sentence as it is read."""

from __future__ import annotations

import pytest
import torch

from topogen.errors import SpecError
from topogen_torch._gpu import _launch
from topogen_torch._gpu._config import Config, checked_config
from topogen_torch._gpu._index import BlockIndex

pytest.importorskip("triton", reason="Triton has no package for this platform")

from topogen_torch._gpu._circulant import (
    circulant_forward,
    circulant_input_gradient,
    circulant_value_gradient,
)
from topogen_torch._gpu._forward import block_forward
from topogen_torch._gpu._input_gradient import block_input_gradient
from topogen_torch._gpu._value_gradient import block_value_gradient


def int32(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


def index_of(block):
    """Of two inputs blocks and one output block, the first of them stored."""
    return BlockIndex.from_buffers(int32(0, 1, 1), int32(0), int32(0, 1), int32(0), int32(0), block=block)


@pytest.fixture
def interpreted(monkeypatch):
    """The checks believe that Triton interprets, so that operands on the CPU come as far as those on a card."""
    monkeypatch.setattr(_launch, "is_interpreted", lambda: True)


def sentence(function, *arguments, **options):
    with pytest.raises(SpecError) as refused:
        function(*arguments, **options)
    return str(refused.value)


X, GRAD, VALUES, BIAS = torch.zeros(3, 32), torch.zeros(3, 16), torch.zeros(1, 16, 16), torch.zeros(16)


def test_the_cpu_without_the_interpreter():
    assert not _launch.is_interpreted()
    assert sentence(block_forward, X, VALUES, index_of(16)) == (
        "The 'index' parameter of block_forward must be on a CUDA device, or Triton in its interpreter. Got 'cpu'."
    )


FORWARD = [
    (
        (X, torch.zeros(1, 48, 48), index_of(48)),
        {},
        "The 'index' parameter of block_forward must be of blocks of 16, 32, 64 or 128 neurons. Got 48.",
    ),
    (
        (X, VALUES.double(), index_of(16)),
        {},
        "The 'values' parameter of block_forward must be float32, float16 or bfloat16. Got torch.float64.",
    ),
    (
        (X, torch.zeros(2, 16, 16), index_of(16)),
        {},
        "The 'values' parameter of block_forward must have shape (1, 16, 16), (blocks, block, block). Got (2, 16, 16).",
    ),
    (
        (X, VALUES.to("meta"), index_of(16)),
        {},
        "The 'values' parameter of block_forward must be on cpu as the index is. Got 'meta'.",
    ),
    (
        (GRAD, VALUES, index_of(16)),
        {},
        "The 'x_TI' parameter of block_forward must have shape (tokens, 32). Got (3, 16).",
    ),
    (
        (X[0], VALUES, index_of(16)),
        {},
        "The 'x_TI' parameter of block_forward must have shape (tokens, 32). Got (32,).",
    ),
    (
        (X.half(), VALUES, index_of(16)),
        {},
        "The 'x_TI' parameter of block_forward must be torch.float32 as the other operands are. Got torch.float16.",
    ),
    (
        (X.to("meta"), VALUES, index_of(16)),
        {},
        "The 'x_TI' parameter of block_forward must be on cpu as the index is. Got 'meta'.",
    ),
    (
        (X, VALUES, index_of(16), BIAS[:8]),
        {},
        "The 'bias' parameter of block_forward must have shape (16,). Got (8,).",
    ),
    (
        (X, VALUES, index_of(16), BIAS.half()),
        {},
        "The 'bias' parameter of block_forward must be torch.float32 on cpu as the values are. "
        "Got 'torch.float16 on cpu'.",
    ),
    (
        (X, VALUES, index_of(16), BIAS, "tanh"),
        {},
        "The 'activation' parameter of block_forward must be None or 'relu' or 'gelu'. Got 'tanh'.",
    ),
    (
        (X, VALUES, index_of(16)),
        {"precision": "tf32x3"},
        "The 'precision' parameter of block_forward must be 'tf32' or 'ieee'. Got 'tf32x3'.",
    ),
    (
        (X, VALUES, index_of(16)),
        {"precision": "tf32x3", "config": Config(tokens=16)},
        "The 'precision' parameter of block_forward must be 'tf32' or 'ieee'. Got 'tf32x3'.",
    ),
]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("arguments", "options", "expected"), FORWARD)
def test_operands_of_the_forward_pass(arguments, options, expected):
    assert sentence(block_forward, *arguments, **options) == expected


@pytest.mark.usefixtures("interpreted")
def test_operands_of_the_gradients():
    assert sentence(block_input_gradient, X, VALUES, index_of(16)) == (
        "The 'grad_TO' parameter of block_input_gradient must have shape (tokens, 16). Got (3, 32)."
    )
    assert sentence(block_value_gradient, X, GRAD[:2], index_of(16)) == (
        "The 'grad_TO' parameter of block_value_gradient must be of 3 tokens as x_TI is. Got 2."
    )
    assert sentence(block_value_gradient, X.double(), GRAD.double(), index_of(16)) == (
        "The 'x_TI' parameter of block_value_gradient must be float32, float16 or bfloat16. Got torch.float64."
    )


@pytest.mark.usefixtures("interpreted")
def test_more_features_than_offsets_reach():
    wide = BlockIndex(
        block=128, n_in=2**21, n_out=128, indptr=int32(0), indices=int32(), order=int32(), indptr_t=int32(0, 0),
        indices_t=int32(), permutation=int32(), order_t=int32(0), most=0,
    )  # fmt: skip
    assert sentence(block_forward, X, VALUES, wide) == (
        "The 'index' parameter of block_forward must be of fewer than 2097152 inputs and outputs. Got (2097152, 128)."
    )


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("function", [circulant_forward, circulant_input_gradient, circulant_value_gradient])
def test_other_patterns_as_circulant_ones(function):
    operands = {
        circulant_forward: (X, VALUES, index_of(16)),
        circulant_input_gradient: (GRAD, VALUES, index_of(16)),
        circulant_value_gradient: (X, GRAD, index_of(16)),
    }
    assert sentence(function, *operands[function]) == (
        f"The 'index' parameter of {function.__name__} must be of a RadiX layer with square blocks (block_* takes any "
        "pattern). Got '1 blocks of another pattern'."
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"tokens": 24}, "'config.tokens' parameter of f must be a power of two in [16, 1024]. Got 24. {} 16 and 32."),
        ({"tokens": 8}, "'config.tokens' parameter of f must be an int in [16, 1024]. Got 8."),
        ({"depth": 8}, "'config.depth' parameter of f must be an int in [16, 512]. Got 8."),
        ({"depth": 48}, "'config.depth' parameter of f must be a power of two in [16, 512]. Got 48. {} 32 and 64."),
        ({"blocks": 16}, "'config.blocks' parameter of f must be an int in [1, 8]. Got 16."),
        ({"blocks": 3}, "'config.blocks' parameter of f must be a power of two in [1, 8]. Got 3. {} 2 and 4."),
        ({"group": 0}, "'config.group' parameter of f must be an int in [1, 1024]. Got 0."),
        ({"warps": 64}, "'config.warps' parameter of f must be an int in [1, 32]. Got 64."),
        ({"split_k": 0}, "'config.split_k' parameter of f must be an int in [1, 1024]. Got 0."),
        ({"stages": 17}, "'config.stages' parameter of f must be an int in [1, 16]. Got 17."),
    ],
)  # fmt: skip
def test_tiles(change, expected):
    assert sentence(checked_config, Config(**({"tokens": 16} | change)), "f", 64) == f"The {expected}".replace(
        "{}", "The nearest are"
    )


def test_a_view_is_taken_as_it_is_where_its_rows_line_up():
    frame = torch.zeros(5, 64, dtype=torch.float16)
    assert _launch.in_rows(frame[:, 8:40]).data_ptr() == frame[:, 8:40].data_ptr()
    for other in (frame[:, 1:33], frame[:, ::2], frame.t(), frame[:1].expand(5, 64), frame.flatten()[:63].view(9, 7)):
        copy = _launch.in_rows(other)
        assert torch.equal(copy, other)
        assert copy.is_contiguous()
        assert copy.data_ptr() != other.data_ptr()
