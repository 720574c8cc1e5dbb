"""PyTorch's sparse tensors and topogen layers: there and back, against the dense matrix."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import topogen_torch as tt
from topogen.errors import SpecError

COO, CSR, CSC, BSR, BSC = LAYOUTS = (
    torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc,
)  # fmt: skip

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


# The tests make sparse tensors themselves; that topogen does not warn has a test of its own.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse :UserWarning")


def draw_layer(shape, density, seed, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    layer = tt.SparseLinear(rng.random(shape) < density, dtype=dtype)
    with torch.no_grad():
        layer.values.copy_(torch.from_numpy(rng.integers(-2, 3, layer.nnz)))  # zeros among them
        layer.bias.normal_()
    return layer


@settings(max_examples=40)
@given(shapes, st.floats(0, 1), st.integers(0, 99), st.sampled_from([COO, CSR, CSC]))
def test_there_and_back_keeps_every_connection(shape, density, seed, layout):
    layer = draw_layer(shape, density, seed)
    weight = tt.to_torch_sparse(layer, layout=layout)
    assert weight.layout == layout
    assert tuple(weight.shape) == shape[::-1]
    assert weight.values().numel() == layer.nnz
    assert torch.equal(weight.to_dense(), layer.to_linear().weight)
    assert not weight.requires_grad
    back = tt.from_torch_sparse(weight, bias=layer.bias)
    assert all(torch.equal(tensor, layer.state_dict()[name]) for name, tensor in back.state_dict().items())
    assert back.values.requires_grad
    assert not {back.values.data_ptr()} & {layer.values.data_ptr(), weight.values().data_ptr()} or not layer.nnz
    assert tt.from_torch_sparse(weight).bias is None


@settings(max_examples=30)
@given(shapes, st.integers(1, 4), st.floats(0, 1), st.integers(0, 99), st.sampled_from([BSR, BSC]))
def test_blocks_hold_whatever_has_a_connection(shape, block, density, seed, layout):
    layer = draw_layer((shape[0] * block, shape[1] * block), density, seed)
    weight = tt.to_torch_sparse(layer, layout=layout, block=block)
    assert weight.layout == layout
    assert torch.equal(weight.to_dense(), layer.to_linear().weight)
    touched = layer.pattern.toarray().reshape(shape[0], block, shape[1], block).any(axis=(1, 3))
    assert weight.values().shape == (touched.sum(), block, block)
    back = tt.from_torch_sparse(weight, bias=layer.bias)
    assert type(back) is tt.BlockSparseLinear
    assert np.array_equal(back.block_pattern.toarray(), touched)
    assert torch.equal(back.to_linear().weight, layer.to_linear().weight)
    assert torch.equal(back.bias, layer.bias)


@settings(max_examples=30)
@given(shapes, st.integers(1, 4), st.floats(0, 1), st.integers(0, 99))
def test_layers_in_blocks(shape, block, density, seed):
    rng = np.random.default_rng(seed)
    layer = tt.BlockSparseLinear(rng.random(shape) < density, block, dtype=torch.float64)
    dense = layer.to_linear().weight
    for layout in (None, *LAYOUTS):
        weight = tt.to_torch_sparse(layer, layout=layout)
        assert weight.layout == (layout or BSR)
        assert torch.equal(weight.to_dense(), dense)
        assert weight.values().numel() == layer.nnz
        back = tt.from_torch_sparse(weight)
        assert torch.equal(back.to_linear().weight, dense)
        if layout in (None, BSR, BSC):
            assert torch.equal(back.values, layer.values)
    if block == 4:
        halves = tt.to_torch_sparse(layer, layout=BSR, block=2)
        assert halves.values().shape[1:] == (2, 2)
        assert torch.equal(halves.to_dense(), dense)


@pytest.mark.parametrize("layout", [BSR, BSC])
def test_blocks_that_are_not_square_are_taken_apart(layout):
    dense = torch.kron(torch.tensor([[1.0, 0, 1], [0, 0, 1]]), torch.ones(2, 3)) * torch.arange(36.0).view(4, 9)
    weight = dense.to_sparse_bsr((2, 3)) if layout == BSR else dense.to_sparse_bsc((2, 3))
    layer = tt.from_torch_sparse(weight)
    assert type(layer) is tt.SparseLinear
    assert layer.nnz == 18  # a zero among them
    assert torch.equal(layer.to_linear().weight, dense)


def test_duplicates_in_coo_are_summed_and_explicit_zeros_kept():
    weight = torch.sparse_coo_tensor([[0, 1, 0], [2, 0, 2]], [1.0, 0.0, 3.0], (2, 3))
    layer = tt.from_torch_sparse(weight)
    assert layer.pattern.toarray().astype(int).tolist() == [[0, 1], [0, 0], [1, 0]]
    assert layer.values.tolist() == [0.0, 4.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_stay(dtype):
    layer = draw_layer((4, 6), 0.5, 0, dtype)
    for layout in LAYOUTS:
        weight = tt.to_torch_sparse(layer, layout=layout, block=2 if layout in (BSR, BSC) else None)
        assert weight.dtype == dtype
        assert tt.from_torch_sparse(weight).values.dtype == dtype
    assert tt.to_torch_sparse(layer).col_indices().dtype == torch.int32


def test_no_random_numbers_are_drawn_and_nothing_is_warned():
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "import numpy as np, torch, topogen_torch as tt\n"
        "layer = tt.SparseLinear(np.eye(4)); state = torch.get_rng_state()\n"
        "for layout in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc):\n"
        "    tt.from_torch_sparse(tt.to_torch_sparse(layer, layout=layout))\n"
        "tt.from_torch_sparse(tt.to_torch_sparse(layer, layout=torch.sparse_bsr, block=2))\n"
        "print(torch.equal(state, torch.get_rng_state()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


def csr(crow, col, values, size, layout=CSR):
    return torch.sparse_compressed_tensor(
        torch.tensor(crow), torch.tensor(col), torch.tensor(values), size, layout=layout, check_invariants=False
    )


INDICES = "The 'weight' parameter of from_torch_sparse must have valid indices. Got "
SPARSE = "The 'weight' parameter of from_torch_sparse must be a sparse float tensor of PyTorch of shape (out, in). Got "
LAYER = tt.SparseLinear(np.ones((6, 4)))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: tt.from_torch_sparse(torch.eye(2)),
            f"{SPARSE}'torch.strided'. A dense weight becomes a layer by SparseLinear.from_linear.",
        ),
        (lambda: tt.from_torch_sparse(np.eye(2)), f"{SPARSE}'ndarray'."),
        (lambda: tt.from_torch_sparse(torch.eye(2).long().to_sparse()), f"{SPARSE}(torch.int64, (2, 2))."),
        (lambda: tt.from_torch_sparse(torch.ones(2, 2, 2).to_sparse()), f"{SPARSE}(torch.float32, (2, 2, 2))."),
        (lambda: tt.from_torch_sparse(torch.ones(2, 2, 2).to_sparse(2)), f"{SPARSE}(torch.float32, (2, 2, 2))."),
        (lambda: tt.from_torch_sparse(torch.ones(0, 2).to_sparse()), f"{SPARSE}(torch.float32, (0, 2))."),
        (
            lambda: tt.from_torch_sparse(torch.eye(2).to_sparse(), bias=torch.ones(3)),
            "The 'bias' parameter of from_torch_sparse must be a tensor of shape (2,). Got (3,).",
        ),
        (
            lambda: tt.from_torch_sparse(torch.eye(2).to_sparse(), bias=True),
            "The 'bias' parameter of from_torch_sparse must be a tensor of shape (2,). Got True.",
        ),
        (
            lambda: tt.from_torch_sparse(csr([0, 1, 2], [0, 5], [1.0, 2.0], (2, 3))),
            f"{INDICES}an index outside [0, 2].",
        ),
        (
            lambda: tt.from_torch_sparse(csr([0, 1, 2], [0, -1], [1.0, 2.0], (3, 2), CSC)),
            f"{INDICES}an index outside [0, 2].",
        ),
        (
            lambda: tt.from_torch_sparse(csr([0, 2, 2], [1, 1], [1.0, 2.0], (2, 3))),
            f"{INDICES}an entry that is stored twice.",
        ),
        (
            lambda: tt.from_torch_sparse(csr([0, 3, 2], [1, 1], [1.0, 2.0], (2, 3))),
            f"{INDICES}row or column pointers that do not rise from 0 to the number of entries.",
        ),
        (
            lambda: tt.from_torch_sparse(
                torch.sparse_coo_tensor([[0, 7], [0, 1]], [1.0, 2.0], (2, 3), check_invariants=False)
            ),
            f"{INDICES}an index outside [0, 1].",
        ),
        (
            lambda: tt.to_torch_sparse(torch.nn.Linear(2, 2)),
            "The 'layer' parameter of to_torch_sparse must be a SparseLinear or a BlockSparseLinear. "
            "Got Linear(in_features=2, out_features=2, bias=True).",
        ),
        (
            lambda: tt.to_torch_sparse(LAYER, layout=torch.strided),
            "The 'layout' parameter of to_torch_sparse must be torch.sparse_coo or torch.sparse_csr or "
            "torch.sparse_csc or torch.sparse_bsr or torch.sparse_bsc. Got torch.strided.",
        ),
        (
            lambda: tt.to_torch_sparse(LAYER, layout=BSR),
            "The 'block' parameter of to_torch_sparse must be given for a layout in blocks. Got None.",
        ),
        (
            lambda: tt.to_torch_sparse(LAYER, block=2),
            "The 'block' parameter of to_torch_sparse must be None for a layout without blocks. Got 2.",
        ),
        (
            lambda: tt.to_torch_sparse(LAYER, layout=BSR, block=4),
            "The 'block' parameter of to_torch_sparse must be a divisor of 4 and 6. Got 4. The nearest is 2.",
        ),
        (
            lambda: tt.to_torch_sparse(LAYER, layout=BSR, block=0),
            "The 'block' parameter of to_torch_sparse must be an int >= 1. Got 0.",
        ),
    ],
)
def test_bad_arguments_are_named(call, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        call()
