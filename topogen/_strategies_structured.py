"""Hypothesis strategies of the structured families and of the random ones beside them; `topogen.testing` holds them."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import strategies as st

from topogen._spec import AbstractSpec
from topogen.specs import (
    Banded,
    BarabasiAlbert,
    BipartiteReceptiveField,
    BipartiteScaleFree,
    BipartiteSmallWorld,
    BlockDiagonal,
    Butterfly,
    ConstantFanIn,
    Diagonal,
    FlatButterfly,
    Monarch,
    NOfM,
    WattsStrogatz,
    XNet,
)

__all__ = ["STRATEGIES"]

_ORDERS = st.sampled_from(["increasing", "decreasing"])


@st.composite
def _flat_butterflies(draw: st.DrawFn) -> FlatButterfly:
    digits = draw(st.integers(1, 6))
    return FlatButterfly(n=2**digits, strides=draw(st.integers(1, digits)), layers=draw(st.integers(1, 4)))


def _sizes() -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(1, 10), min_size=2, max_size=4)


def _one_or_each(values: list[int]) -> int | tuple[int, ...]:
    return values[0] if len(set(values)) == 1 else tuple(values)


@st.composite
def _x_nets(draw: st.DrawFn) -> XNet:
    sizes, rule = draw(_sizes()), draw(st.sampled_from(["paper", "code"]))
    highest = [n_in if rule == "paper" else max(n_in, n_out) for n_in, n_out in pairwise(sizes)]
    degrees = [draw(st.integers(1, high)) for high in highest]
    return XNet(sizes=tuple(sizes), degree=_one_or_each(degrees), rule=rule)


@st.composite
def _constant_fan_ins(draw: st.DrawFn) -> ConstantFanIn:
    sizes = draw(_sizes())
    fan_ins = [draw(st.integers(1, n_in)) for n_in in sizes[:-1]]
    return ConstantFanIn(sizes=tuple(sizes), fan_in=_one_or_each(fan_ins))


@st.composite
def _block_diagonals(draw: st.DrawFn) -> BlockDiagonal:
    unit = draw(st.sampled_from([1, 2, 4, 6, 12]))
    sizes = [unit * draw(st.integers(1, 4)) for _ in range(draw(st.integers(2, 4)))]
    blocks = [draw(st.sampled_from([g for g in range(1, unit + 1) if unit % g == 0])) for _ in sizes[1:]]
    return BlockDiagonal(sizes=tuple(sizes), blocks=_one_or_each(blocks))


@st.composite
def _n_of_ms(draw: st.DrawFn) -> NOfM:
    m = draw(st.integers(1, 8))
    sizes = [m * draw(st.integers(1, 3)) for _ in range(draw(st.integers(1, 3)))]
    return NOfM(sizes=(*sizes, draw(st.integers(1, 10))), n=draw(st.integers(1, m)), m=m)


@st.composite
def _diagonals(draw: st.DrawFn) -> Diagonal:
    sizes = draw(st.just([draw(st.integers(1, 12))] * draw(st.integers(2, 4))) | _sizes())
    offsets = [draw(st.sets(st.integers(0, max(pair) - 1), min_size=1)) for pair in pairwise(sizes)]
    return Diagonal(sizes=tuple(sizes), offsets=tuple(tuple(row) for row in offsets))


@st.composite
def _bands(draw: st.DrawFn) -> Banded:
    n = draw(st.integers(1, 12))
    reach = st.integers(0, n - 1)
    return Banded(n=n, lower=draw(reach), upper=draw(reach), layers=draw(st.integers(1, 4)))


_SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]) | st.floats(0, 1)


# a spread near 0 draws the nearest partners nearly always: two draws would hardly ever differ
_FIELDS = st.builds(
    BipartiteReceptiveField,
    sizes=_sizes().map(tuple),
    density=_SHARES,
    spread=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    centres=st.sampled_from(["even", "code"]),
)


@st.composite
def _barabasi_albert(draw: st.DrawFn) -> BarabasiAlbert:
    n = draw(st.integers(2, 14))
    m = draw(st.integers(1, n - 1))
    room = (n * n - m * m - (n - m) * (1 + 2 * m)) // 2
    return BarabasiAlbert(n=n, m=m, layers=draw(st.integers(1, 3)), extra=draw(st.integers(0, min(room, 5))))


@st.composite
def _watts_strogatz(draw: st.DrawFn) -> WattsStrogatz:
    n = draw(st.integers(1, 14))
    neighbours = draw(st.integers(0, (n - 1) // 2))
    extra = draw(st.integers(0, min(n * (n - 1 - 2 * neighbours) // 2, 5)))
    return WattsStrogatz(n=n, neighbours=neighbours, rewire=draw(_SHARES), layers=draw(st.integers(1, 3)), extra=extra)


STRATEGIES: dict[type[AbstractSpec], st.SearchStrategy[AbstractSpec]] = {
    Butterfly: st.builds(Butterfly, n=st.integers(1, 6).map(lambda digits: 2**digits), strides=_ORDERS),
    FlatButterfly: _flat_butterflies(),
    XNet: _x_nets(),
    ConstantFanIn: _constant_fan_ins(),
    Diagonal: _diagonals(),
    Banded: _bands(),
    BipartiteSmallWorld: st.builds(BipartiteSmallWorld, sizes=_sizes().map(tuple), density=_SHARES, rewire=_SHARES),
    BipartiteReceptiveField: _FIELDS,
    WattsStrogatz: _watts_strogatz(),
    BarabasiAlbert: _barabasi_albert(),
    BipartiteScaleFree: st.builds(BipartiteScaleFree, sizes=_sizes().map(tuple), density=_SHARES),
    BlockDiagonal: _block_diagonals(),
    NOfM: _n_of_ms(),
    Monarch: st.builds(
        Monarch,
        radices=st.lists(st.integers(2, 6), min_size=1, max_size=3).filter(lambda r: math.prod(r) <= 100).map(tuple),
    ),
}
