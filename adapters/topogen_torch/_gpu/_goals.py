"""What the kernels are meant to reach on an H200 in bfloat16, beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from topogen_torch._gpu._ceilings import Ceilings
from topogen_torch._gpu._timed import Row

__all__ = ["SIZE", "SPARSITIES", "goal_lines"]

SIZE = 4096
SPARSITIES = {128: {0.75: 2.0, 0.9: 5.0}, 64: {0.9: 3.2, 0.95: 6.0}, 32: {0.9: 1.8}, 16: {0.95: 1.9}}
"""How many times as fast as the dense layer of `SIZE` neurons, all three passes, by block and sparsity."""

_RADIX_SHARE = 0.45  # of the dense rate, for RadiX layers with blocks of 16
_OVER_BSR = 1.5  # times as fast as torch's block-sparse product, forward
_COPY_SHARE = 0.6  # of the copy rate, where memory is the limit


class _Goal(NamedTuple):
    name: str
    rows: list[Row]
    least: float
    reached: Callable[[Row], float]


def goal_lines(rows: Sequence[Row], ceilings: Ceilings | None) -> Iterator[str]:
    """Yield the lines of a table: what is asked, the least that was measured of it, and whether that is enough."""
    yield "| goal | at least | measured |"
    yield "|---|---|---|"
    for name, found, least, reached in _goals(rows, ceilings):
        if not found:
            yield f"| {name} | {least:.3g} | not measured |"
            continue
        worst = min(map(reached, found))
        yield f"| {name} | {least:.3g} | {worst:.3g}, {'reached' if worst >= least else 'missed'} |"


def _goals(rows: Sequence[Row], ceilings: Ceilings | None) -> Iterator[_Goal]:
    mine = [row for row in rows if row.case.n == SIZE]
    random = [row for row in mine if row.case.pattern == "random"]
    for block, ratios in SPARSITIES.items():
        for sparsity, least in ratios.items():
            found = [row for row in random if (row.case.block, row.case.sparsity) == (block, sparsity)]
            yield _Goal(f"blocks of {block}, {100 * sparsity:g} %: times as fast as dense, both", found, least, _times)
    radix = [row for row in mine if (row.case.block, row.kernel) == (16, "circulant")]
    name = "RadiX, blocks of 16: share of the dense rate, both"
    yield _Goal(name, radix, _RADIX_SHARE, lambda row: _times(row) * row.density)
    beside = [row for row in mine if row.bsr is not None]
    yield _Goal("all: times as fast as torch BSR, forward", beside, _OVER_BSR, _times_bsr)
    if ceilings is not None:
        rate, product = ceilings.copy, ceilings.products[rows[0].dtype] if rows else 1.0
        wide = [row for row in random if row.case.block == 128]
        by_memory = [row for row in wide if row.bytes / rate > row.rate * row.both / product]
        name = "blocks of 128, bound by memory: share of the copy rate"
        yield _Goal(name, by_memory, _COPY_SHARE, lambda row: row.bytes / row.both / rate)


def _times(row: Row) -> float:
    return row.dense.both / row.both


def _times_bsr(row: Row) -> float:
    return 0.0 if row.bsr is None else row.bsr.forward / row.forward
