"""Tests for your own family: hypothesis strategies for specs and patterns, and the contract that every family keeps.

Needs hypothesis, which the ``testing`` extra brings: ``pip install "topogen-nn[testing]"``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from topogen import checks
from topogen._contract import assert_spec_contract
from topogen._spec import AbstractSpec
from topogen._topology import Topology, as_pattern
from topogen.specs import Chain, Dense, ErdosRenyi, GraphChallenge, Permute, RadixNet, RandomBiregular, Trim

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError("topogen.testing needs hypothesis: pip install 'topogen-nn[testing]'.") from error

from topogen._strategies_expanders import STRATEGIES as _EXPANDERS
from topogen._strategies_kron import combinators, graph_challenges, permutes, relabelled_radix_nets
from topogen._strategies_structured import STRATEGIES as _STRUCTURED

__all__ = ["assert_spec_contract", "patterns", "register_strategy", "seeds", "specs", "topologies"]

_MAX_WIDTH = 10  # of the layers of nodes that are drawn freely


def specs(family: type[AbstractSpec] | None = None) -> st.SearchStrategy[AbstractSpec]:
    """Return a strategy for small specs, of one family or of all that have a strategy.

    Parameters
    ----------
    family : type, optional
        One of `topogen.ALL_SPECS`, or a family of your own that `register_strategy` has been told of.

    Returns
    -------
    SearchStrategy of AbstractSpec
        Layers of nodes have from one to about a hundred neurons. Combinators hold members of every family of
        `topogen.ALL_SPECS`, combinators included.

    Raises
    ------
    SpecError
        If `family` has no strategy.

    Examples
    --------
    >>> from hypothesis import given
    >>> import topogen as tg
    >>> from topogen.testing import specs
    >>> @given(specs(tg.RadixNet))
    ... def every_output_is_reached(spec):
    ...     assert tg.measures.is_path_connected(tg.generate(spec))
    >>> every_output_is_reached()
    """
    if family is None:
        return st.one_of(*_STRATEGIES.values())
    if family not in _STRATEGIES:
        checks.refuse("family", "specs", "a family with a strategy; register_strategy adds one", family)
    return _STRATEGIES[family]


def register_strategy(family: type[AbstractSpec], strategy: st.SearchStrategy[AbstractSpec]) -> None:
    """Tell `specs` how to draw a family of your own.

    Parameters
    ----------
    family : type
        A concrete subclass of `topogen.AbstractSpec`. One that has a strategy gets the new one.
    strategy : SearchStrategy
        Draws specs of `family`, small enough to be built and verified in a millisecond or so.

    Raises
    ------
    SpecError
        If `family` is no subclass of `topogen.AbstractSpec`, or `strategy` no strategy.
    """
    if not (isinstance(family, type) and issubclass(family, AbstractSpec)):  # pyright: ignore[reportUnnecessaryIsInstance]
        checks.refuse("family", "register_strategy", "a subclass of AbstractSpec", family)
    if not isinstance(strategy, st.SearchStrategy):  # pyright: ignore[reportUnnecessaryIsInstance]
        checks.refuse("strategy", "register_strategy", "a hypothesis strategy", strategy)
    _STRATEGIES[family] = strategy


@st.composite
def patterns(
    draw: st.DrawFn,
    *,
    max_inputs: int = _MAX_WIDTH,
    max_outputs: int = _MAX_WIDTH,
    shape: tuple[int, int] | None = None,
) -> sp.csr_array:
    """Return a strategy for canonical layer patterns, empty rows and columns, none and all connections among them.

    Parameters
    ----------
    max_inputs, max_outputs : int >= 1
        Bounds of a shape that is drawn too; 1 x N and N x 1 come up.
    shape : (int, int), optional
        (n_in, n_out), where it is not to be drawn.

    Returns
    -------
    SearchStrategy of csr_array, shape (n_in, n_out), dtype bool
    """
    n_in, n_out = shape or (draw(st.integers(1, max_inputs)), draw(st.integers(1, max_outputs)))
    kind = draw(st.sampled_from(["some", "none", "all"]))
    if kind != "some":
        return as_pattern(np.full((n_in, n_out), kind == "all"))
    # one integer a row: bit j is the connection to output j. Few distinct rows make twins; the masks empty whole
    # rows and columns
    rows = st.sampled_from(draw(st.lists(st.integers(0, 2**n_out - 1), min_size=1, max_size=n_in)))
    bits = [draw(rows) for _ in range(n_in)]
    matrix = np.array([[row >> j & 1 for j in range(n_out)] for row in bits], dtype=np.bool_)
    matrix[sorted(draw(st.sets(st.integers(0, n_in - 1), max_size=n_in // 2)))] = False
    matrix[:, sorted(draw(st.sets(st.integers(0, n_out - 1), max_size=n_out // 2)))] = False
    return as_pattern(matrix)


@st.composite
def topologies(draw: st.DrawFn, *, max_layers: int = 3, max_width: int = _MAX_WIDTH) -> Topology:
    """Return a strategy for topologies without a spec: chains of anything that `patterns` draws.

    Parameters
    ----------
    max_layers : int >= 1
        Bound of the number of layer patterns.
    max_width : int >= 1
        Bound of every size.

    Returns
    -------
    SearchStrategy of Topology
    """
    sizes = draw(st.lists(st.integers(1, max_width), min_size=2, max_size=max_layers + 1))
    return Topology([draw(patterns(shape=shape)) for shape in zip(sizes[:-1], sizes[1:], strict=True)])


def seeds() -> st.SearchStrategy[np.random.SeedSequence]:
    """Return a strategy for seeds: small and 128-bit entropy, with and without a spawn key."""
    entropy = st.integers(0, 9) | st.integers(0, 2**128 - 1)
    keys = st.lists(st.integers(0, 2**32 - 1), max_size=2).map(tuple)
    return st.builds(np.random.SeedSequence, entropy, spawn_key=keys)


@st.composite
def _factorisations(draw: st.DrawFn, n: int) -> tuple[int, ...]:
    """Integers >= 2 in a row whose product is n >= 2."""
    factors: list[int] = []
    while n > 1:
        factors.append(draw(st.sampled_from([d for d in range(n, 1, -1) if n % d == 0])))
        n //= factors[-1]
    return tuple(factors)


@st.composite
def _radix_nets(draw: st.DrawFn) -> RadixNet:
    modulus = draw(st.integers(2, 36))
    systems = draw(st.lists(_factorisations(modulus), min_size=1, max_size=2))
    divisors = [d for d in range(2, modulus + 1) if modulus % d == 0]
    systems += draw(st.lists(st.sampled_from(divisors).flatmap(_factorisations), max_size=1))
    n_layers = sum(map(len, systems))
    widths = draw(st.none() | st.tuples(*[st.integers(1, 3)] * (n_layers + 1)))
    shift, order = draw(st.sampled_from([-1, 1])), draw(st.sampled_from(["reference", "blocks"]))
    return RadixNet(systems=tuple(systems), widths=widths, shift=shift, order=order)


def _sizes() -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(1, _MAX_WIDTH), min_size=2, max_size=4)


@st.composite
def _erdos_renyi(draw: st.DrawFn, sizes: Sequence[int] | None = None) -> ErdosRenyi:
    sizes = tuple(sizes or draw(_sizes()))
    if draw(st.booleans()):
        return ErdosRenyi(sizes=sizes, epsilon=draw(st.floats(0, 8)))
    density = st.sampled_from([0.1, 0.5, 0.0, 1.0]) | st.floats(0, 1)
    return ErdosRenyi(sizes=sizes, density=draw(density | st.tuples(*[density] * (len(sizes) - 1))))


@st.composite
def _random_biregular(draw: st.DrawFn, sizes: Sequence[int] | None = None) -> RandomBiregular:
    sizes = tuple(sizes or draw(_sizes()))
    steps = [n_in // math.gcd(n_in, n_out) for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True)]
    fan_ins = [draw(st.integers(1, n_in // step)) * step for n_in, step in zip(sizes, steps, strict=False)]
    # degrees up to 10 keep sigma_1 below twice the bound, but for permutations, whose bound is 0
    permutation = any(d == 1 and n_in == n_out for d, n_in, n_out in zip(fan_ins, sizes, sizes[1:], strict=False))
    within = None if permutation else draw(st.sampled_from([None, 2.0]))
    fan_in = fan_ins[0] if len(set(fan_ins)) == 1 else tuple(fan_ins)
    return RandomBiregular(sizes=sizes, fan_in=fan_in, within=within)


@st.composite
def _trims(draw: st.DrawFn, members: st.SearchStrategy[AbstractSpec]) -> Trim:
    spec = draw(members)
    sizes = [draw(st.just(size) | st.integers(1, size)) for size in spec.sizes]
    return Trim(spec, tuple(sizes), keep=draw(st.sampled_from(["first", "last"])))


@st.composite
def _chains(draw: st.DrawFn, members: st.SearchStrategy[AbstractSpec]) -> Chain:
    specs = [draw(members)]
    for _ in range(draw(st.integers(0, 2))):
        specs.append(draw(_starting_with(specs[-1].sizes[-1], members)))
    return Chain(*specs)


@st.composite
def _starting_with(draw: st.DrawFn, n: int, members: st.SearchStrategy[AbstractSpec]) -> AbstractSpec:
    """Draw a spec with n inputs."""
    sizes = (n, draw(st.integers(1, _MAX_WIDTH)))
    radices = [radix for radix in range(2, 7) if n % radix == 0]
    kinds = ["dense", "erdos_renyi", "random_biregular", "any", *(["radix"] if radices else [])]
    match draw(st.sampled_from(kinds)):
        case "dense":
            return Dense(sizes=sizes)
        case "erdos_renyi":
            return draw(_erdos_renyi(sizes))
        case "random_biregular":
            return draw(_random_biregular(sizes))
        case "radix":
            radix = draw(st.sampled_from(radices))
            return RadixNet(systems=((radix,),), widths=(n // radix, draw(st.integers(1, 3))))
        case _:
            spec = draw(members)
            if spec.sizes[0] < n:
                return Chain(Dense(sizes=(n, spec.sizes[0])), spec)
            return spec if spec.sizes[0] == n else Trim(spec, (n, *spec.sizes[1:]))


def _any_of(*strategies: st.SearchStrategy[AbstractSpec]) -> st.SearchStrategy[AbstractSpec]:
    """As one_of, but each of many strategies is drawn equally often; one_of hardly comes to some of them."""
    return st.sampled_from(strategies).flatmap(lambda strategy: strategy)


_LEAVES: dict[type[AbstractSpec], st.SearchStrategy[AbstractSpec]] = {
    RadixNet: _radix_nets(),
    Dense: st.builds(Dense, sizes=_sizes().map(tuple)),
    ErdosRenyi: _erdos_renyi(),
    RandomBiregular: _random_biregular(),
    GraphChallenge: graph_challenges(),
    **_STRUCTURED,
    **_EXPANDERS,
}
_MEMBERS = st.recursive(
    _any_of(*_LEAVES.values(), relabelled_radix_nets(_radix_nets())),
    lambda inner: _any_of(_trims(inner), _chains(inner), *combinators(inner).values()),
    max_leaves=3,
)
_STRATEGIES: dict[type[AbstractSpec], st.SearchStrategy[AbstractSpec]] = {
    **_LEAVES,
    Trim: _trims(_MEMBERS),
    Chain: _chains(_MEMBERS),
    **combinators(_MEMBERS),
    Permute: permutes(_MEMBERS),
}
