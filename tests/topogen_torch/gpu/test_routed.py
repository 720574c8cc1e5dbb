"""Whole layers by the kernels of a card, interpreted, against the same layers by the kernels of the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

LAYERS = [
    "blocks", "blocks, 3 dimensions, no bias", "circulant", "circulant, last radix", "connections",
    "connections, one sample", "connections, many shared", "no connections", "no blocks", "images",
    "images, offset by offset", "signals", "attention", "lstm",
]  # fmt: skip


@pytest.fixture(scope="module")
def results():
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("routed.py")
    process = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", LAYERS)
def test_forward_and_gradients_are_those_of_the_cpu(results, name):
    assert results[name] < 1e-5


@pytest.mark.parametrize("kind", ["blocks", "connections"])
def test_twenty_training_steps_are_those_of_the_cpu(results, kind):
    assert results[f"training, {kind}"] < 1e-4


@pytest.mark.parametrize("name", ["dense above the break-even", "batched", "compiled", "ddp", "rewired"])
def test_every_way_to_call_it_gives_the_same(results, name):
    assert results[name] < 1e-5


def test_every_kernel_was_really_used(results):
    chosen = results["kernels"]
    assert chosen["blocks"] == chosen["images"] == chosen["signals"] == ["triton"]
    assert chosen["circulant"] == ["circulant"]
    assert chosen["dense above the break-even"] == ["dense"]
    assert chosen["batched"] == ["batched"]


def test_autocast_multiplies_in_16_bits_and_returns_gradients_in_32(results):
    dtype, gradient, error = results["autocast"]
    assert (dtype, gradient) == ("torch.float16", "torch.float32")
    assert 1e-6 < error < 5e-3


def test_a_dtype_without_a_kernel_is_dense_and_says_so_once(results):
    assert results["float64"] == [
        "BlockSparseLinear multiplies densely on this card, because blocks of torch.float64 have no kernel there; "
        "float32, float16 and bfloat16 have: every call builds the 48 x 48 matrix, 18,432 bytes, and saves no time."
    ]
    assert results["float64, error"] < 1e-5


def test_what_a_card_needs_beside_the_pattern_is_no_part_of_the_state(results):
    assert results["state"] == ["bias", "indices", "indptr", "pattern_hash", "sizes", "values"]
    assert results["facts"] == [2, 0, 0, 0, 0]  # two blocks in the longest row, and no RadiX layer


def test_rewiring_moves_blocks(results):
    assert results["rewired, moved"]
