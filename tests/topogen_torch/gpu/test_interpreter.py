"""The kernels in Triton's interpreter: a process of its own, since the choice falls when Triton is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has no package for this platform")

FOLDER = Path(__file__).parent / "interpreted"


def run_interpreted(*arguments):
    """The outcome of the tests in `interpreted`: exit code, number passed, output."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER), *arguments]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    passed = re.search(r"(\d+) passed", process.stdout)
    return process.returncode, int(passed[1]) if passed else 0, process.stdout + process.stderr


def test_every_kernel_agrees_with_float64():
    code, passed, output = run_interpreted()
    assert code == 0, output
    assert passed > 30


@pytest.mark.slow
def test_every_kernel_agrees_with_float64_over_many_more_shapes():
    code, passed, output = run_interpreted("-m", "slow")
    assert code == 0, output
    assert passed >= 1


@pytest.mark.slow
def test_no_test_found_is_no_success():
    code, passed, _ = run_interpreted("-k", "no_such_test")
    assert code != 0
    assert passed == 0
