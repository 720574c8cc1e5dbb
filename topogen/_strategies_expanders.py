"""Hypothesis strategies of the expanders; `topogen.testing` holds them all."""

from __future__ import annotations

from hypothesis import strategies as st

from topogen._spec import AbstractSpec
from topogen.specs import (
    LPS,
    ArrayCode,
    CayleyF2,
    ChordalCycle,
    GabberGalil,
    Paley,
    ProjectivePlane,
    RandomLift,
)

__all__ = ["STRATEGIES"]


@st.composite
def _array_codes(draw: st.DrawFn) -> ArrayCode:
    q = draw(st.sampled_from([2, 3, 5, 7]))
    return ArrayCode(q=q, l=draw(st.integers(2, q)))


@st.composite
def _cayley_f2(draw: st.DrawFn) -> CayleyF2:
    n = draw(st.integers(1, 5))
    generators = draw(st.lists(st.integers(0, 2**n - 1), min_size=1, max_size=8, unique=True))
    return CayleyF2(n=n, generators=tuple(generators))


STRATEGIES: dict[type[AbstractSpec], st.SearchStrategy[AbstractSpec]] = {
    ArrayCode: _array_codes(),
    ProjectivePlane: st.builds(ProjectivePlane, q=st.sampled_from([2, 3, 5, 7])),
    LPS: st.builds(LPS, p=st.sampled_from([13, 17]), q=st.just(5)),
    Paley: st.builds(Paley, p=st.sampled_from([5, 13, 17, 29, 37])),
    CayleyF2: _cayley_f2(),
    GabberGalil: st.builds(GabberGalil, m=st.integers(2, 9), maps=st.sampled_from([5, 7, 8])),
    ChordalCycle: st.builds(ChordalCycle, p=st.sampled_from([3, 7, 13, 17, 23, 37, 43])),
    RandomLift: st.builds(
        RandomLift,
        fan_out=st.integers(2, 4),
        fan_in=st.integers(2, 4),
        lifts=st.integers(1, 3),
        tries=st.integers(1, 3),
    ),
}
