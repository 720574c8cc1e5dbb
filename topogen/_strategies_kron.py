"""Hypothesis strategies of Kronecker products, relabellings and the Graph Challenge, for `topogen.testing`."""

from __future__ import annotations

from hypothesis import strategies as st

from topogen._spec import AbstractSpec
from topogen.errors import SpecError
from topogen.specs import (
    Block,
    Chain,
    Dense,
    GraphChallenge,
    Kron,
    Permute,
    RadixNet,
    RandomBiregular,
    Repeat,
    Transpose,
)

__all__ = ["combinators", "graph_challenges", "permutes", "relabelled_radix_nets"]

Specs = st.SearchStrategy[AbstractSpec]

_WIDEST = 64  # of what products are drawn: what is wider already stays as it is
_DEEPEST = 8  # of what is repeated


def combinators(members: Specs) -> dict[type[AbstractSpec], Specs]:
    """Return strategies for the combinators that may hold any of `members` and be held by any other."""
    return {
        Kron: _krons(members),
        Block: _blocks(members),
        Transpose: st.builds(Transpose, members),
        Repeat: _repeats(members),
    }


@st.composite
def graph_challenges(draw: st.DrawFn) -> GraphChallenge:
    """Return a strategy for networks of 32 to 128 neurons and up to three blocks, given, shuffled and drawn."""
    depth, blocks = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    neurons, classes = 16 * 2**depth, None
    if draw(st.booleans()):
        in_order = list(range(2**depth)) * 16
        orders = [in_order if draw(st.booleans()) else draw(st.permutations(in_order)) for _ in range(blocks)]
        classes = tuple(map(tuple, orders))
    return GraphChallenge(neurons=neurons, layers=blocks * depth, row_classes=classes)


def relabelled_radix_nets(radix_nets: st.SearchStrategy[RadixNet]) -> st.SearchStrategy[Permute]:
    """Return a strategy for the relabellings that other combinators may hold.

    Cut or multiplied, any other could come to look the same whatever is drawn, with neither all connections nor none.
    """
    return st.builds(Permute, radix_nets, inputs=st.booleans(), outputs=st.booleans())


def permutes(members: Specs) -> st.SearchStrategy[Permute]:
    """Return a strategy for relabellings that can be seen: see `_shows`."""
    return st.builds(Permute, members, inputs=st.booleans(), outputs=st.booleans()).filter(_shows)


def _shows(spec: Permute) -> bool:
    """Whether no layer looks the same under all relabellings, and no two of them always alike.

    Relabelling one side alone changes nothing where all neurons of that side are twins, and two layers of two neurons
    that share one relabelling may be equal whatever it is. The contract cannot tell either from a seed that is ignored.
    """
    if spec.sizes == (2, 2, 2) and not (spec.inputs or spec.outputs):
        return False
    for k in range(spec.depth):
        try:
            layer = spec.spec.layer(k, None).toarray()
        except SpecError:  # it is drawn inside, so that it varies in any case
            continue
        twins = (layer == layer[:1]).all(), (layer == layer[:, :1]).all()
        if not all(twins) and (
            (twins[0] and spec.moves(k) and not spec.moves(k + 1))
            or (twins[1] and spec.moves(k + 1) and not spec.moves(k))
        ):
            return False
    return True


@st.composite
def _krons(draw: st.DrawFn, members: Specs) -> Kron:
    spec, order = draw(members), draw(st.sampled_from(["reference", "blocks"]))
    largest = 3 if 3 * max(spec.sizes) <= _WIDEST else 1
    widths = tuple(draw(st.integers(1, largest)) for _ in spec.sizes)
    kinds = ["widths", "dense"]
    if not spec.is_random and largest > 1:
        kinds += ["member", "drawn"]  # a drawn layer without a choice, times one that is not drawn, would not vary
    match draw(st.sampled_from(kinds)):
        case "widths":
            return Kron(spec, widths, order=order)
        case "dense":
            return Kron(spec, Dense(sizes=widths), order=order)
        case "drawn":
            return Kron(spec, RandomBiregular(sizes=(3,) * len(spec.sizes), fan_in=1), order=order)
        case _:
            radix = Repeat(RadixNet(systems=((3,),)), spec.depth)
            other = draw(members)
            fits = other.depth == spec.depth and not other.is_random and max(other.sizes) * max(spec.sizes) <= _WIDEST
            return Kron(spec, other if fits else radix, order=order)


@st.composite
def _blocks(draw: st.DrawFn, members: Specs) -> Block:
    spec = draw(members)
    return Block(spec, draw(st.integers(1, 3 if 3 * max(spec.sizes) <= _WIDEST else 1)))


@st.composite
def _repeats(draw: st.DrawFn, members: Specs) -> Repeat:
    spec = draw(members)
    if spec.sizes[0] != spec.sizes[-1]:
        spec = Chain(spec, Transpose(spec))
    return Repeat(spec, draw(st.integers(1, 3 if 3 * spec.depth <= _DEEPEST else 1)))
