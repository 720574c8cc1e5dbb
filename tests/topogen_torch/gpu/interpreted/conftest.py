"""Tests of this folder run in a process of their own, in which Triton interprets: `test_interpreter.py` starts it."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["*"]


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan():
    """What a kernel leaves out shows: `torch.empty` is filled with NaN."""
    import torch

    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
