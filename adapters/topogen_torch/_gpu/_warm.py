"""Compile a card's kernels in several processes at once, before they are needed one after the other.

Triton keeps what it compiles on disk, where the process that measures finds it. Nothing depends on it: what a worker
does not get done, or fails at, is compiled later.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from multiprocessing import get_context

import torch

from topogen_torch._gpu._accuracy import accuracies
from topogen_torch._gpu._cases import Case, operands_of
from topogen_torch._gpu._timed import pass_calls

__all__ = ["Job", "compile_ahead", "jobs_of"]

Job = tuple[Case, str, str, int] | tuple[int, str, int]
"""A case, its kernel, dtype and tokens; or a block, an arithmetic and the tokens for its check against float64."""

_MOST = 8


def jobs_of(
    blocks: Sequence[int], arithmetics: Sequence[str], cases: Sequence[Case], dtype: str, tokens: int, checked: int
) -> list[Job]:
    """Return the jobs of a benchmark: checks with `checked` tokens first, as it takes them."""
    checks: list[Job] = [(block, arithmetic, checked) for block in blocks for arithmetic in arithmetics]
    return checks + [(case, kernel, dtype, tokens) for case in cases for kernel in case.kernels if kernel != "batched"]


def compile_ahead(jobs: Sequence[Job], device: torch.device, seconds: float) -> int:
    """Run the jobs in processes of their own, begin none after so many seconds; return how many were done by then."""
    processes = max(1, min(_MOST, (os.cpu_count() or 1) // 2, len(jobs)))
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    try:
        started = [pool.submit(_run, job, str(device)) for job in jobs]
        done, _ = wait(started, timeout=seconds)
        return sum(each.exception() is None for each in done if not each.cancelled())
    finally:
        pool.shutdown(cancel_futures=True)  # whatever runs is waited for: it would be measured otherwise


def _run(job: Job, name: str) -> None:
    """Launch every kernel of a job once."""
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if len(job) == 3:
        block, arithmetic, tokens = job
        for _ in accuracies([block], device, tokens=tokens, arithmetics=[arithmetic]):
            pass
    else:
        case, kernel, dtype, tokens = job
        for call in pass_calls(kernel, operands_of(case, tokens, getattr(torch, dtype), device)):
            call(0)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
