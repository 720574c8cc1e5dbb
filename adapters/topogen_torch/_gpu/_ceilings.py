"""What a card can do at most, measured: the product of dense matrices, a copy in its memory, reading its L2 cache."""

from __future__ import annotations

# triton has no type stubs
# pyright: reportUnknownParameterType=none, reportMissingParameterType=none, reportCallIssue=none
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from topogen_torch._gpu._clock import graphed, median_seconds

__all__ = ["Ceilings", "measure_ceilings", "read_again_and_again"]

_CHUNK = 4096  # numbers that a program reads at a time


class Ceilings(NamedTuple):
    """FLOP/s of the dense product by dtype, bytes/s of a copy (read and written both count) and of reading L2."""

    products: dict[str, float]
    copy: float
    l2: float | None  # where the reading could not be shown to be one


@triton.jit
def read_again_and_again(x, sums, chunks, passes, CHUNK: tl.constexpr):
    """Read all of x `passes` times between all programs, each of which begins elsewhere in every pass.

    A program never meets the same chunk twice in a row, and asks for it past the first-level cache.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    place = tl.arange(0, CHUNK)
    total = tl.zeros((CHUNK,), tl.float32)
    for again in range(passes):
        for chunk in range((program + again * 7) % programs, chunks, programs):
            total += tl.load(x + chunk * CHUNK + place, cache_modifier=".cg")
    tl.store(sums + program * CHUNK + place, total)


def measure_ceilings(device: torch.device, *, size: int = 8192, copied: int = 1 << 32) -> Ceilings:
    """Return the ceilings of a card, by random numbers: zeros multiply faster than data do.

    Parameters
    ----------
    device : torch.device
        A CUDA device, or the CPU under Triton's interpreter, whose figures mean nothing.
    size : int
        Side of the dense matrices.
    copied : int
        Bytes of one side of the copy: several times the L2 cache.
    """
    _product_rate(device, size, torch.bfloat16, False)  # a card that was idle runs slowly at first
    kinds = {"bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32, "float32": torch.float32}
    products = {name: _product_rate(device, size, dtype, name == "tf32") for name, dtype in kinds.items()}
    return Ceilings(products, _copy_rate(device, copied), _l2_rate(device))


def _product_rate(device: torch.device, size: int, dtype: torch.dtype, allow_tf32: bool) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if allow_tf32 else "ieee"
    try:
        seconds = median_seconds(lambda: torch.mm(a, b, out=out), device)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    return 2 * size**3 / seconds


def _copy_rate(device: torch.device, copied: int) -> float:
    if device.type == "cuda":
        copied = min(copied, torch.cuda.get_device_properties(device).total_memory // 8)
    source = torch.randn(copied // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source), device)


def _l2_rate(device: torch.device) -> float | None:
    """Return the bytes/s at which all processors together read a quarter of L2 that stays there.

    None if what they read does not add up: then not all of it was read.
    """
    processors, l2, passes = 1, 1 << 18, 2
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        processors, l2, passes = card.multi_processor_count, card.L2_cache_size, 64
    chunks = max(1, l2 // 4 // (4 * _CHUNK))
    x = torch.randn(chunks * _CHUNK, device=device)
    programs = min(chunks, 4 * processors)
    sums = torch.empty(programs * _CHUNK, device=device)

    def read() -> None:
        read_again_and_again[(programs,)](x, sums, chunks, passes, CHUNK=_CHUNK, num_warps=8)

    seconds = median_seconds(graphed(read, device) or read, device)
    expected = passes * x.view(-1, _CHUNK).sum(0, dtype=torch.float64)
    found = sums.view(-1, _CHUNK).sum(0, dtype=torch.float64)
    return passes * x.nbytes / seconds if torch.allclose(found, expected, rtol=1e-3, atol=1e-2) else None
