"""Combinators: specs made of specs, which promise what can be derived from the promises inside."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from topogen import checks
from topogen._claims import CONNECTIONS, DENSITY, FAN_IN, FAN_OUT, SIZES, Claim
from topogen._spec import AbstractSpec, child
from topogen.errors import SpecError
from topogen.specs._promises import Claims, degrees, density, in_a_row, is_about_all_pairs, promised

__all__ = ["Chain", "Repeat", "Trim"]


@dataclass(frozen=True, slots=True)
class Trim(AbstractSpec):
    """The part of a topology that lies between the first, or the last, neurons of each of its layers of nodes.

    Parameters
    ----------
    spec : AbstractSpec
        What is trimmed.
    sizes : sequence of int
        (m_0, ..., m_L) with 1 <= m_k <= n_k: how many neurons are kept.
    keep : {"first", "last"}
        Which end of every layer of nodes is kept.

    Raises
    ------
    SpecError
        If the number of sizes differs from that of `spec`, or one is out of range.

    Notes
    -----
    Dropping inputs or outputs leaves every path between the kept ones, so what `spec` promises of all pairs
    (path-connectedness, symmetry, the number of paths) is still promised, and so are the degrees on a side whose
    partners are all kept. Dropping hidden neurons can break all of it, and can leave dead neurons: `verify` tells.

    Examples
    --------
    >>> import topogen as tg
    >>> radix = tg.RadixNet(systems=[[10, 10]], widths=[8, 3, 1])
    >>> net = tg.generate(tg.Trim(radix, [784, 300, 100], keep="last"))
    >>> [layer.nnz for layer in net], tg.verify(net).holds
    ([23520, 3000], True)
    """

    spec: AbstractSpec
    sizes: tuple[int, ...]
    _: KW_ONLY
    keep: str = "first"

    def __post_init__(self) -> None:
        checks.instance(self.spec, "spec", "Trim", AbstractSpec, "an")
        sizes = checks.integers(self.sizes, "sizes", "Trim", low=1)
        inner = self.spec.sizes
        if len(sizes) != len(inner):
            checks.refuse("sizes", "Trim", f"a sequence of {len(inner)} ints, as many as {list(inner)}", self.sizes)
        for k, (kept, size) in enumerate(zip(sizes, inner, strict=True)):
            checks.integer(kept, f"sizes[{k}]", "Trim", low=1, high=size)
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "keep", checks.one_of(self.keep, "keep", "Trim", ("first", "last")))

    @property
    def is_random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the spec inside is."""
        return self.spec.is_random

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build layer k of the spec inside and cut it."""
        n_in, n_out = self.shape(k)
        whole = self.spec.layer(k, seed)
        if whole.shape == (n_in, n_out):
            return whole
        return whole[:n_in, :n_out] if self.keep == "first" else whole[-n_in:, -n_out:]

    def layer_bytes(self) -> tuple[int, ...]:
        """Return the bytes of the whole layers, which are built before they are cut."""
        return self.spec.layer_bytes()

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, and of the promises inside those that the cut cannot break."""
        whole, cut = self.spec.sizes, self.sizes
        kept = [Claim(measure=SIZES, bound=cut, source="definition of Trim")]
        inside = self.spec.claims()
        connections = self._connections(inside)
        if connections is not None:
            source = "degrees on the side whose partners are all kept"
            kept.append(Claim(measure=CONNECTIONS, bound=connections, source=source))
            kept.append(Claim(measure=DENSITY, bound=density(connections, cut), source=source))
        untouched = {FAN_OUT: whole[1:] == cut[1:], FAN_IN: whole[:-1] == cut[:-1]}
        for claim in inside:
            regular = claim.relation == "==" and claim.measure in untouched and degrees(claim.bound) is not None
            if (whole[1:-1] == cut[1:-1] and is_about_all_pairs(claim)) or (regular and untouched[claim.measure]):
                kept.append(claim)
        return tuple(kept)

    def _connections(self, inside: Claims) -> tuple[int, ...] | None:
        """Count the connections of each layer, where regular degrees or an untouched layer tell."""
        whole, cut = self.spec.sizes, self.sizes
        inner = promised(inside, CONNECTIONS)
        fan_out, fan_in = degrees(promised(inside, FAN_OUT)), degrees(promised(inside, FAN_IN))
        counts: list[int] = []
        for k in range(self.depth):
            if whole[k : k + 2] == cut[k : k + 2] and inner is not None:
                counts.append(inner[k])
            elif whole[k + 1] == cut[k + 1] and fan_out is not None:
                counts.append(cut[k] * fan_out[k])
            elif whole[k] == cut[k] and fan_in is not None:
                counts.append(cut[k + 1] * fan_in[k])
            else:
                return None
        return tuple(counts)


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Chain(AbstractSpec):
    """Topologies one after the other: the outputs of each are the inputs of the next.

    Parameters
    ----------
    *specs : AbstractSpec
        At least one; the last size of each equals the first size of the next.

    Raises
    ------
    SpecError
        If there is no spec, or two neighbours do not match.

    Notes
    -----
    Promised where it follows from the members' promises: sizes, degrees, connections and density; path-connectedness
    (one member connected, every neuron before it with a way on, every neuron after it with a way back); symmetry and
    the number of paths (one member symmetric, constant fan-out before it, constant fan-in after it: J A = d J for
    constant fan-in d). Member i draws from the seed that ("member", i) names, so equal members differ.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.Chain(tg.RadixNet(systems=[[10, 10]], widths=[8, 3, 1]), tg.Dense(sizes=[100, 10])))
    >>> net.sizes, print(tg.measures.path_counts(net))
    300
    ((800, 300, 100, 10), None)
    """

    specs: tuple[AbstractSpec, ...]

    def __init__(self, *specs: AbstractSpec) -> None:
        if not specs:
            checks.refuse("specs", "Chain", "at least one spec", specs)
        for i, spec in enumerate(specs):
            checks.instance(spec, f"specs[{i}]", "Chain", AbstractSpec, "an")
        for i, (left, right) in enumerate(zip(specs[:-1], specs[1:], strict=True)):
            if left.sizes[-1] != right.sizes[0]:
                raise SpecError(
                    f"The 'specs' parameter of Chain must be specs whose widths match. Got {left.sizes[-1]} outputs of "
                    f"specs[{i}] and {right.sizes[0]} inputs of specs[{i + 1}]."
                )
        object.__setattr__(self, "specs", specs)

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.specs))})"

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The members' sizes, shared ends once."""
        return self.specs[0].sizes[:1] + tuple(size for spec in self.specs for size in spec.sizes[1:])

    @property
    def is_random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether a member is."""
        return any(spec.is_random for spec in self.specs)

    @classmethod
    def from_fields(cls, values: dict[str, Any]) -> Chain:
        """Build the chain from ``{"specs": (...)}``."""
        if set(values) != {"specs"}:
            raise SpecError(f"Chain has the field 'specs' and no other. Got {sorted(values)}.")
        return cls(*values["specs"])

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build layer k: the layer of the member that it falls in, from that member's seed."""
        self.shape(k)
        for i, spec in enumerate(self.specs):
            if k < spec.depth:
                return spec.layer(k, None if seed is None else child(seed, "member", i))
            k -= spec.depth
        raise AssertionError("unreachable: shape(k) has checked k")

    def layer_bytes(self) -> tuple[int, ...]:
        """Return the bytes of the members' layers in a row."""
        return tuple(needed for spec in self.specs for needed in spec.layer_bytes())

    def claims(self) -> tuple[Claim, ...]:
        """Promise what follows from the members' promises."""
        ends = [(spec.sizes[0], spec.sizes[-1]) for spec in self.specs]
        return (
            Claim(measure=SIZES, bound=self.sizes, source="definition of Chain"),
            *in_a_row(self.sizes, [spec.claims() for spec in self.specs], ends),
        )


@dataclass(frozen=True, slots=True)
class Repeat(AbstractSpec):
    """The same layers again and again: the short form of a chain of equal members.

    Parameters
    ----------
    spec : AbstractSpec
        What is repeated; it has as many outputs as inputs.
    times : int
        At least 1.

    Raises
    ------
    SpecError
        If the outputs of `spec` are not as many as its inputs, or `times` is out of range.

    Notes
    -----
    Bit for bit ``Chain(spec, ..., spec)``, and the same promises. So repetition i of a random spec is a draw of its
    own, from the seed that ("member", i) names: its layers are alike, not equal.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.Repeat(tg.RadixNet(systems=[[2, 2, 2]]), 3))
    >>> len(net), print(tg.measures.path_counts(net))
    64
    (9, None)
    """

    spec: AbstractSpec
    times: int

    def __post_init__(self) -> None:
        checks.instance(self.spec, "spec", "Repeat", AbstractSpec, "an")
        first, last = self.spec.sizes[0], self.spec.sizes[-1]
        if first != last:
            raise SpecError(
                f"The 'spec' parameter of Repeat must have as many outputs as inputs. Got {first} inputs and {last} "
                f"outputs."
            )
        object.__setattr__(self, "times", checks.integer(self.times, "times", "Repeat", low=1))

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of the spec inside, again and again, shared ends once."""
        return self.spec.sizes[:1] + self.spec.sizes[1:] * self.times

    @property
    def is_random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the spec inside is."""
        return self.spec.is_random

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build layer k: a layer of the spec inside, from the seed of the repetition that it falls in."""
        self.shape(k)
        i, inner = divmod(k, self.spec.depth)
        return self.spec.layer(inner, None if seed is None else child(seed, "member", i))

    def layer_bytes(self) -> tuple[int, ...]:
        """Return the bytes of the layers inside, again and again."""
        return self.spec.layer_bytes() * self.times

    def claims(self) -> tuple[Claim, ...]:
        """Promise what follows from the promises inside."""
        ends = (self.spec.sizes[0], self.spec.sizes[-1])
        return (
            Claim(measure=SIZES, bound=self.sizes, source="definition of Repeat"),
            *in_a_row(self.sizes, [self.spec.claims()] * self.times, [ends] * self.times),
        )
