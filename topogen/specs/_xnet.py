"""Random layers that are regular on one side: X-Nets by both their rules, and constant fan-in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp

from topogen import checks
from topogen._claims import DEAD_NEURONS, Claim
from topogen._spec import AbstractSpec, stream
from topogen._topology import as_pattern
from topogen.measures import Range
from topogen.specs._layerwise import SMALLER_SIDE, degree_claims, each_layer, layer_ints
from topogen.specs._patterns import full
from topogen.specs._stubs import shuffled_stubs, without_doubles
from topogen.specs._subsets import random_columns, random_rows

__all__ = ["ConstantFanIn", "XNet"]

_PAPER = "Prabhu, Varma & Namboodiri, Deep Expander Networks (arXiv:1711.08757), X-Linear from a D-regular graph"
_CODE = "the authors' program of Deep Expander Networks, layer ExpanderLinear"
_SRIGL = "Lasby et al., Dynamic sparse training with structured sparsity (arXiv:2305.02299), constant fan-in"


@dataclass(frozen=True, slots=True, kw_only=True)
class XNet(AbstractSpec):
    r"""X-Net: random layers of degree D, expanders with high probability, by the paper's rule or by its program's.

    ``rule="paper"``: every output has exactly D inputs, and every input :math:`\lfloor n_k D / n_{k-1} \rfloor` or one
    more outputs, so that a square layer is D-regular on both sides. ``rule="code"``: every neuron of the smaller side
    (the outputs where n_k < n_{k-1}, the inputs otherwise) picks D partners at random, independently of the others.

    Parameters
    ----------
    sizes : sequence of at least 2 ints >= 1
        (n_0, ..., n_L).
    degree : int or sequence of int
        D, one for all layers or one a layer; in [1, n_{k-1}] by the paper's rule, in [1, max(n_{k-1}, n_k)] by the
        program's.
    rule : {"paper", "code"}
        Published accuracies come from the program, the theorems are about the paper's graphs.

    Raises
    ------
    SpecError
        If a value is out of range.
    GenerationError
        (from `layer`) If double connections are left after a bounded number of rounds; not seen in practice.

    Notes
    -----
    Certain: the degrees above, distinct connections and, by the paper's rule with at least as many connections as
    inputs, that no neuron is dead. The expansion is a statement about large random graphs, hence no claim; measure the
    second singular value. O(nnz log nnz) time, O(nnz) memory.

    References
    ----------
    A. Prabhu, G. Varma, A. Namboodiri, "Deep Expander Networks: Efficient Deep Networks from Graph Theory", ECCV 2018,
    arXiv:1711.08757.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.XNet(sizes=[784, 300], degree=8), rng=0)
    >>> str(tg.measures.fan_in(net)[0]), str(tg.measures.fan_out(net)[0])
    ('8', '3..4')
    """

    is_random: ClassVar[bool] = True

    sizes: tuple[int, ...]
    degree: int | tuple[int, ...]
    rule: Any = "paper"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", checks.integers(self.sizes, "sizes", "XNet", low=1, at_least=2))
        object.__setattr__(self, "rule", checks.one_of(self.rule, "rule", "XNet", ("paper", "code")))
        degree = layer_ints(self.degree, "degree", "XNet", self.sizes, high=_n_inputs if self.rule == "paper" else max)
        object.__setattr__(self, "degree", degree)

    @property
    def degrees(self) -> tuple[int, ...]:
        """D of each layer."""
        return each_layer(self.degree, self.depth)

    def layer(self, k: int, seed: np.random.SeedSequence | None) -> sp.csr_array:
        """Build layer k from the stream ("layer", k)."""
        n_in, n_out = self.shape(k)
        rng = stream(seed, "layer", k)
        if self.rule == "paper":
            return _balanced(n_in, n_out, self.degrees[k], rng)
        draw = random_columns if n_out < n_in else random_rows
        return draw(n_in, n_out, self.degrees[k], rng)

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, connections, density and the degrees that the rule fixes, all certain."""
        shapes = tuple(zip(self.degrees, self.sizes[:-1], self.sizes[1:], strict=True))
        if self.rule == "code":
            connections = tuple(degree * min(n_in, n_out) for degree, n_in, n_out in shapes)
            regular = tuple(Range(degree, degree) for degree in self.degrees)
            return (
                *degree_claims(self.sizes, connections=connections, source=_CODE),
                Claim(measure=SMALLER_SIDE, bound=regular, source=_CODE),
            )
        connections = tuple(degree * n_out for degree, _, n_out in shapes)
        fan_out = tuple(
            Range(count // n_in, -(-count // n_in)) for count, n_in in zip(connections, self.sizes[:-1], strict=True)
        )
        claims = degree_claims(self.sizes, connections=connections, fan_out=fan_out, fan_in=self.degrees, source=_PAPER)
        if all(degree.min for degree in fan_out):
            source = "every neuron has fan-in and fan-out >= 1"
            claims += (Claim(measure=DEAD_NEURONS, bound=(0,) * len(self.sizes), source=source),)
        return claims


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantFanIn(AbstractSpec):
    """Every output joined to the same number of inputs, a random set of them, independently of the other outputs.

    Parameters
    ----------
    sizes : sequence of at least 2 ints >= 1
        (n_0, ..., n_L).
    fan_in : int or sequence of int
        One for all layers, or one a layer; in [1, n_{k-1}].

    Raises
    ------
    SpecError
        If a value is out of range.

    Notes
    -----
    The fan-in is certain, connections are distinct, every set of inputs is equally likely for every output. The
    fan-out of an input is free: hypergeometric, with mean n_k * fan_in / n_{k-1}, so that inputs may be dead;
    `RandomBiregular` fixes both. O(nnz log nnz) time, O(nnz) memory.

    References
    ----------
    M. Lasby, A. Golubeva, U. Evci, M. Nica, Y. Ioannou, "Dynamic Sparse Training with Structured Sparsity", ICLR 2024,
    arXiv:2305.02299.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.ConstantFanIn(sizes=[784, 300], fan_in=78), rng=0)
    >>> net.nnz, str(tg.measures.fan_in(net)[0])
    (23400, '78')
    """

    is_random: ClassVar[bool] = True

    sizes: tuple[int, ...]
    fan_in: int | tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", checks.integers(self.sizes, "sizes", "ConstantFanIn", low=1, at_least=2))
        fan_in = layer_ints(self.fan_in, "fan_in", "ConstantFanIn", self.sizes, high=_n_inputs)
        object.__setattr__(self, "fan_in", fan_in)

    @property
    def fan_ins(self) -> tuple[int, ...]:
        """The fan-in of each layer."""
        return each_layer(self.fan_in, self.depth)

    def layer(self, k: int, seed: np.random.SeedSequence | None) -> sp.csr_array:
        """Build layer k from the stream ("layer", k)."""
        n_in, n_out = self.shape(k)
        return random_columns(n_in, n_out, self.fan_ins[k], stream(seed, "layer", k))

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, connections, density and fan-in, all certain."""
        connections = tuple(fan_in * n_out for fan_in, n_out in zip(self.fan_ins, self.sizes[1:], strict=True))
        return degree_claims(self.sizes, connections=connections, fan_in=self.fan_ins, source=_SRIGL)


def _n_inputs(n_in: int, n_out: int) -> int:
    return n_in


def _balanced(n_in: int, n_out: int, fan_in: int, rng: np.random.Generator) -> sp.csr_array:
    """Return a random pattern with `fan_in` inputs for each output, shared out among the inputs as evenly as can be.

    As `biregular`, but the inputs that get one connection more are drawn too. Above density 1/2 the complement is
    drawn, whose degrees are as even; below, a swap succeeds with a probability bounded away from 0.
    """
    if fan_in == n_in:
        return full(n_in, n_out)
    if 2 * fan_in > n_in:
        return as_pattern(~_balanced(n_in, n_out, n_in - fan_in, rng).toarray())
    each, extra = divmod(n_out * fan_in, n_in)
    fan_out = np.full(n_in, each)
    fan_out[rng.choice(n_in, extra, replace=False, shuffle=False)] += 1
    indptr = np.append(0, np.cumsum(fan_out))
    return without_doubles(indptr, shuffled_stubs(n_out, fan_in, rng), (n_in, n_out), rng)
