"""Which kernel computes a layer: the whole decision, which needs no card to be looked at."""

import re
import warnings

import pytest
import torch

import topogen_torch as tt
from topogen.errors import SpecError
from topogen_torch._gpu import _choose, _interpreted
from topogen_torch._gpu._choose import BLOCKS, BREAK_EVEN, Choice, announce, choose

NEW = (9, 0)


def kernel(kind, block=64, dtype=torch.bfloat16, *, device="cuda", capability=NEW, triton=True, density=0.1):
    return choose(device, capability, kind, block, dtype, triton=triton, density=density)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_blocks_go_to_triton_and_radix_layers_to_the_kernel_that_knows_them(block, dtype):
    assert kernel("blocks", block, dtype) == Choice("triton")
    assert kernel("circulant", block, dtype) == Choice("circulant")
    assert kernel("blocks", block, dtype, capability=None) == Choice("triton")  # the interpreter
    assert kernel("blocks", block, dtype, capability=(8, 0)) == Choice("triton")


def test_a_batch_of_large_matrices_goes_to_torch_whatever_the_card():
    assert kernel("batched", 48, torch.float64, capability=(7, 0), triton=False) == Choice("batched")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_connections_go_to_cusparse(dtype):
    assert kernel("connections", 1, dtype, capability=(7, 5), triton=False) == Choice("cusparse")


@pytest.mark.parametrize(("kind", "block"), [("connections", 1), *(("blocks", block) for block in BLOCKS)])
def test_above_the_break_even_it_is_dense_without_a_complaint(kind, block):
    assert kernel(kind, block, density=BREAK_EVEN[block] - 0.01).kernel != "dense"
    assert kernel(kind, block, density=BREAK_EVEN[block] + 0.01) == Choice("dense")
    assert kernel("circulant", 16, density=0.44).kernel == "circulant"
    assert kernel("circulant", 16, density=0.46) == Choice("dense")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_processor_keeps_its_own_kernels(device):
    for kind in ("blocks", "circulant", "connections"):
        assert kernel(kind, device=device, triton=False) == Choice("cpu")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"device": "mps"}, "there is no kernel for device 'mps', only for 'cpu' and 'cuda'"),
        (
            {"dtype": torch.float64},
            "blocks of torch.float64 have no kernel there; float32, float16 and bfloat16 have",
        ),
        ({"block": 8}, "blocks of 8 have no kernel there; 16, 32, 64 and 128 have, 16 nearest"),
        ({"block": 100}, "blocks of 100 have no kernel there; 16, 32, 64 and 128 have, 128 nearest"),
        ({"capability": (7, 5)}, "its compute capability is 7.5 and the kernels need 8.0 (Ampere) or newer"),
        ({"triton": False}, "Triton is not installed; 'pip install triton' brings the kernels"),
    ],
)
def test_what_has_no_kernel_is_dense_for_a_reason(given, reason):
    assert kernel("blocks", **given) == Choice("dense", reason)


def test_a_dense_fallback_is_said_once_for_each_reason(monkeypatch):
    monkeypatch.setattr(_choose, "_announced", set())
    sentence = (
        "BlockSparseLinear multiplies densely on this card, because of this: every call builds the 64 x 32 matrix, "
        "8,192 bytes, and saves no time."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(sentence)}$"):
        announce("BlockSparseLinear", "of this", 64, 32, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        announce("BlockSparseLinear", "of this", 64, 32, 4)
        announce("BlockSparseLinear", "", 64, 32, 4)
    with pytest.warns(UserWarning, match="because of that"):
        announce("BlockSparseLinear", "of that", 64, 32, 4)


def test_operands_on_different_devices_are_refused():
    layer = tt.BlockSparseLinear([[1]], 16)
    with pytest.raises(
        SpecError, match=r"^The input of BlockSparseLinear must be on cpu as its values are. Got meta.$"
    ):
        layer(torch.zeros(2, 16, device="meta"))


def test_sizes_that_blocks_do_not_divide_are_refused_with_the_nearest_that_do():
    with pytest.raises(SpecError, match=r"divides both sizes of the layer, 96 and 64. Got 64. The nearest is 32.$"):
        tt.BlockSparseLinear.from_linear(torch.nn.Linear(96, 64), [[1]], 64)


def test_the_cpu_is_a_card_in_the_interpreter_alone():
    pytest.importorskip("triton")
    sentence = "The kernels of a card run on the CPU in Triton's interpreter alone: set TRITON_INTERPRET=1."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        _interpreted.take_cpu_as_card()
    assert not _choose.on_card(torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_the_option_is_refused():
    sentence = "The '--tune' option of topogen bench needs a CUDA device, and PyTorch finds none here."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        _choose.refuse_without_card("--tune", "topogen bench")


def test_a_card_that_is_too_old_or_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(_choose, "_capability", lambda device: (7, 0))
    with pytest.raises(SpecError, match=r"^The '--device' option of bench needs a CUDA device below 1. Got cuda:3.$"):
        _choose.refuse_without_card("--device", "bench", "cuda:3")
    sentence = (
        "The '--device' option of bench needs a card that has the kernels, but its compute capability is 7.0 and the "
        "kernels need 8.0 (Ampere) or newer."
    )
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        _choose.refuse_without_card("--device", "bench")
    monkeypatch.setattr(_choose, "_capability", lambda device: (8, 6))
    assert _choose.refuse_without_card("--device", "bench") == torch.device("cuda", 0)
