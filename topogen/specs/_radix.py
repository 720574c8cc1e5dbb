"""RadiX-Nets: mixed-radix topologies, expanded by dense widths."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import scipy.sparse as sp

from topogen import checks
from topogen._claims import (
    CONNECTIONS,
    DENSITY,
    FAN_IN,
    FAN_OUT,
    PATH_CONNECTED,
    PATHS,
    SIZES,
    SYMMETRIC,
    Claim,
)
from topogen._spec import AbstractSpec
from topogen.errors import SpecError
from topogen.measures import PathCounts, Range
from topogen.specs._patterns import circulant, kron_ones

__all__ = ["RadixNet"]

_DEFINITION = "Robinett & Kepner, RadiX-Net (arXiv:1905.00416), definition of the RadiX-Net topology"
_THEOREM = "Robinett & Kepner, RadiX-Net (arXiv:1905.00416), theorem on path-connectedness and symmetry"
_DENSITY = "Robinett & Kepner, RadiX-Net (arXiv:1905.00416), density of a RadiX-Net"


@dataclass(frozen=True, slots=True, kw_only=True)
class RadixNet(AbstractSpec):
    r"""RadiX-Net: one layer a radix, every output reached from every input, all pairs by equally many paths.

    With :math:`N' = \prod_k r^1_k`, the layer of radix :math:`r` and place value :math:`\nu` (1 at the start of every
    system, then multiplied by each radix passed) is :math:`W = \sum_{j=0}^{r-1} P^{s j \nu}`, where :math:`P` joins i
    to i + 1 mod N' and s is the shift: i is joined to :math:`(i + s j \nu) \bmod N'`. Dense widths
    :math:`B_0, ..., B_L` expand layer k to :math:`\mathbf{1}_{B_{k-1} \times B_k} \otimes W_k`.

    Parameters
    ----------
    systems : sequence of sequences of int >= 2
        The mixed-radix systems. All but the last have the product N', the last has a divisor of it; a single system
        defines N'.
    widths : sequence of int >= 1, optional
        (B_0, ..., B_L), one more than there are radices. All ones by default.
    shift : {-1, +1}
        Direction s. -1 is what the authors' programs and the Graph Challenge files have; the two are isomorphic by
        the relabelling i -> -i mod N' of every layer of nodes.
    order : {"reference", "blocks"}
        "reference" puts the ones first, as the authors and the Graph Challenge do: neuron b N' + i is copy b of i.
        "blocks" puts W first, so that every connection of W is one contiguous B_{k-1} x B_k block: neuron i B_k + b.
        The same graph up to relabelling.

    Raises
    ------
    SpecError
        If a radix is below 2, the products violate the equation above, or the number of widths is wrong.

    Notes
    -----
    The claims hold with certainty. Sizes N' B_k; fan-out r_k B_k; fan-in r_k B_{k-1}; layer density r_k / N';
    :math:`\prod_{i \ge 2} \prod_k r^i_k \cdot \prod_{k=1}^{L-1} B_k` paths from every input to every output. A single
    layer has nu connected components: the theorem is about the product. O(nnz) time and memory a layer.

    References
    ----------
    R. A. Robinett, J. Kepner, "RadiX-Net: Structured Sparse Matrices for Deep Neural Networks", IPDPS GrAPL 2019,
    arXiv:1905.00416; "Neural Network Topologies for Sparse Training", arXiv:1809.05242.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.RadixNet(systems=[[3, 3, 4], [4, 3, 3]]))
    >>> print(tg.measures.path_counts(net))
    36
    """

    systems: tuple[tuple[int, ...], ...]
    widths: tuple[int, ...] | None = None
    shift: int = -1
    order: Any = "reference"

    def __post_init__(self) -> None:
        object.__setattr__(self, "systems", _checked_systems(self.systems))
        n_radices = len(self.radices)
        if self.widths is not None:
            widths = checks.integers(self.widths, "widths", "RadixNet", low=1)
            if len(widths) != n_radices + 1:
                checks.refuse(
                    "widths",
                    "RadixNet",
                    f"a sequence of {n_radices + 1} ints, one more than the {n_radices} radices",
                    self.widths,
                )
            # all ones mean what None means: one spec, one form, so that equal topologies have equal specs
            object.__setattr__(self, "widths", None if set(widths) == {1} else widths)
        object.__setattr__(self, "shift", _checked_shift(self.shift))
        object.__setattr__(self, "order", checks.one_of(self.order, "order", "RadixNet", ("reference", "blocks")))

    @classmethod
    def from_degrees(
        cls, *, sizes: Any, fan_out: Any, modulus: int | None = None, shift: int = -1, order: str = "reference"
    ) -> RadixNet:
        """Return the RadiX-Net of given sizes and fan-outs: the "reduced format" of the authors' programs.

        With N' the greatest common divisor of the sizes, the widths are B_k = n_k / N', the radices r_k = d_k / B_k,
        and a system ends where the product of its radices has come to N'.

        Parameters
        ----------
        sizes : sequence of int
            (n_0, ..., n_L), at least two.
        fan_out : int or sequence of int
            (d_1, ..., d_L), or one for all layers: how many connections leave each neuron.
        modulus : int, optional
            N', where it is to be a smaller common divisor of the sizes than the greatest.
        shift, order
            As for the class.

        Returns
        -------
        RadixNet

        Raises
        ------
        SpecError
            If `modulus` does not divide the sizes, a radix would not be an int >= 2 that divides N', a product of
            radices steps over N', or the last one does not divide it.

        Examples
        --------
        >>> import topogen as tg
        >>> tg.RadixNet.from_degrees(sizes=[1000, 2000, 3000, 2000, 1000], fan_out=[20, 30, 20, 10])
        RadixNet(systems=((10, 10, 10), (10,)), widths=(1, 2, 3, 2, 1), shift=-1, order='reference')
        """
        sizes = checks.integers(sizes, "sizes", "RadixNet.from_degrees", low=1, at_least=2)
        depth = len(sizes) - 1
        each = [fan_out] * depth if isinstance(fan_out, numbers.Integral) else fan_out
        degrees = checks.integers(each, "fan_out", "RadixNet.from_degrees", low=1)
        if len(degrees) != depth:
            requirement = f"an int, or a sequence of {depth} ints, one a layer"
            checks.refuse("fan_out", "RadixNet.from_degrees", requirement, list(degrees))
        common = math.gcd(*sizes)
        if common == 1:
            requirement = "a sequence of ints with a common divisor of 2 or more, which is N'"
            checks.refuse("sizes", "RadixNet.from_degrees", requirement, list(sizes))
        if modulus is None:
            modulus = common
        elif common % checks.integer(modulus, "modulus", "RadixNet.from_degrees", low=2):
            requirement = f"a divisor of {common}, the greatest common divisor of the sizes"
            checks.refuse("modulus", "RadixNet.from_degrees", requirement, modulus)
        widths = tuple(size // modulus for size in sizes)
        systems = _systems(_radices(degrees, widths, modulus), modulus)
        return cls(systems=systems, widths=widths, shift=shift, order=order)

    @property
    def radices(self) -> tuple[int, ...]:
        """All radices in a row, one a layer."""
        return tuple(radix for system in self.systems for radix in system)

    @property
    def place_values(self) -> tuple[int, ...]:
        """The place value nu of each layer; it starts at 1 in every system."""
        return tuple(math.prod(system[:k]) for system in self.systems for k in range(len(system)))

    @property
    def modulus(self) -> int:
        """N', the product of the first system."""
        return math.prod(self.systems[0])

    @property
    def dense_widths(self) -> tuple[int, ...]:
        """(B_0, ..., B_L), ones where no widths were given."""
        return self.widths or (1,) * (len(self.radices) + 1)

    @property
    def sizes(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(N' B_0, ..., N' B_L)."""
        modulus = self.modulus
        return tuple(modulus * width for width in self.dense_widths)

    def layer(self, k: int, seed: np.random.SeedSequence | None = None) -> sp.csr_array:
        """Build layer k; the seed is ignored."""
        self.shape(k)
        steps = np.arange(self.radices[k], dtype=np.int64) * self.place_values[k]
        base = circulant(self.modulus, self.shift * steps)
        return base if self.widths is None else kron_ones(base, self.widths[k], self.widths[k + 1], self.order)

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, degrees, density, path-connectedness, symmetry and the number of paths, all exact."""
        radices, widths, modulus = self.radices, self.dense_widths, self.modulus
        pairs = tuple(zip(widths[:-1], widths[1:], strict=True))
        connections = tuple(r * modulus * a * b for r, (a, b) in zip(radices, pairs, strict=True))
        possible = modulus * modulus * sum(a * b for a, b in pairs)
        paths = math.prod(math.prod(system) for system in self.systems[1:]) * math.prod(widths[1:-1])
        return (
            Claim(measure=SIZES, bound=self.sizes, source=_DEFINITION),
            Claim(measure=CONNECTIONS, bound=connections, source=_DEFINITION),
            Claim(
                measure=FAN_OUT,
                bound=_each(r * b for r, (_, b) in zip(radices, pairs, strict=True)),
                source=_DEFINITION,
            ),
            Claim(
                measure=FAN_IN, bound=_each(r * a for r, (a, _) in zip(radices, pairs, strict=True)), source=_DEFINITION
            ),
            Claim(measure=DENSITY, bound=Fraction(sum(connections), possible), source=_DENSITY),
            Claim(measure=PATH_CONNECTED, bound=True, source=_THEOREM),
            Claim(measure=SYMMETRIC, bound=True, source=_THEOREM),
            Claim(measure=PATHS, bound=PathCounts(paths, paths), source=_THEOREM),
        )


def _each(degrees: Any) -> tuple[Range, ...]:
    return tuple(Range(degree, degree) for degree in degrees)


def _checked_shift(shift: Any) -> int:
    number = checks.integer(shift, "shift", "RadixNet", low=-1, high=1)
    if number == 0:
        checks.refuse("shift", "RadixNet", "-1 or +1", shift)
    return number


def _checked_systems(systems: Any) -> tuple[tuple[int, ...], ...]:
    requirement = "a sequence of systems, each a sequence of ints >= 2, for example [[2, 3], [3, 2]]"
    given = checks.row(systems, "systems", "RadixNet", requirement)
    if not given:
        checks.refuse("systems", "RadixNet", requirement, systems)
    checked = tuple(
        checks.integers(system, f"systems[{i}]", "RadixNet", low=2, at_least=1) for i, system in enumerate(given)
    )
    modulus = math.prod(checked[0])
    for i, system in enumerate(checked[1:], 1):
        product, last = math.prod(system), i == len(checked) - 1
        equation = f"{_product(checked[0])}, {_product(system)}"
        if last and modulus % product:
            raise SpecError(
                f"The product of systems[{i}], the last one, must divide N', the product of systems[0]: {equation}, "
                f"and {modulus} mod {product} = {modulus % product}. Got {[list(s) for s in checked]}."
            )
        if not last and product != modulus:
            raise SpecError(
                f"The product of systems[{i}] must equal N', the product of systems[0] (only the last system may have "
                f"a divisor of it): {equation}. Got {[list(s) for s in checked]}."
            )
    return checked


def _radices(fan_out: tuple[int, ...], widths: tuple[int, ...], modulus: int) -> list[int]:
    """Return the radices r_k = d_k / B_k, all of which divide the modulus."""
    radices: list[int] = []
    for k, (degree, width) in enumerate(zip(fan_out, widths[1:], strict=True)):
        radix, rest = divmod(degree, width)
        if rest or radix < 2 or modulus % radix:
            small = [r for r in range(1, math.isqrt(modulus) + 1) if modulus % r == 0]
            fitting = {*small[1:], *(modulus // r for r in small)}
            nearest = min(sorted(fitting), key=lambda r: abs(r * width - degree)) * width
            raise SpecError(
                f"The 'fan_out[{k}]' parameter of RadixNet.from_degrees must be {width}, the width of the neurons that "
                f"it leads to, times a radix >= 2 that divides N' = {modulus}: {degree} / {width} = "
                f"{degree / width:g}. Got {degree}; the nearest that fits is {nearest}."
            )
        radices.append(radix)
    return radices


def _systems(radices: list[int], modulus: int) -> tuple[tuple[int, ...], ...]:
    """Cut the radices into systems wherever their product has come to `modulus`."""
    systems: list[list[int]] = [[]]
    for k, radix in enumerate(radices):
        if math.prod(systems[-1]) == modulus:
            systems.append([])
        systems[-1].append(radix)
        if math.prod(systems[-1]) > modulus:
            raise SpecError(
                f"The radices, fan-outs over widths, must come to a product of exactly N' = {modulus} before a system "
                f"ends. Got {_product(tuple(systems[-1]))} with layer {k}."
            )
    product = math.prod(systems[-1])
    if len(systems) == 1 and product != modulus:
        raise SpecError(
            f"The radices, fan-outs over widths, must come to a product of N' = {modulus} at least once. Got "
            f"{_product(tuple(systems[0]))}."
        )
    if modulus % product:
        raise SpecError(
            f"The radices of the last system, fan-outs over widths, must have a product that divides N' = {modulus}. "
            f"Got {_product(tuple(systems[-1]))}, and {modulus} mod {product} = {modulus % product}."
        )
    return tuple(map(tuple, systems))


def _product(system: tuple[int, ...]) -> str:
    text = " * ".join(map(str, system))
    return f"{text} = {math.prod(system)}" if len(system) > 1 else text
