"""Random biregular layers: every input and every output has its exact degree."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp

from topogen import checks
from topogen._claims import CONNECTIONS, DEAD_NEURONS, DENSITY, FAN_IN, FAN_OUT, SIZES, Claim
from topogen._spec import AbstractSpec, stream
from topogen.errors import SpecError
from topogen.measures import Range
from topogen.specs._patterns import biregular

__all__ = ["RandomBiregular"]

_MODEL = "configuration model: Bollobas, A probabilistic proof of an asymptotic formula (1980)"


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomBiregular(AbstractSpec):
    r"""Random layers in which every output has the same fan-in and every input the same fan-out.

    With fan-in d the fan-out is :math:`n_{k} d / n_{k-1}`, which must be an integer.

    Parameters
    ----------
    sizes : sequence of at least 2 ints >= 1
        (n_0, ..., n_L).
    fan_in : int or sequence of int
        One for all layers, or one a layer; in [1, n_{k-1}], with n_k * fan_in divisible by n_{k-1}.

    Raises
    ------
    SpecError
        If a degree does not fit, with the violated equation and the nearest fan-in that fits.
    GenerationError
        (from `layer`) If double connections are left after a bounded number of rounds; not seen in practice.

    Notes
    -----
    Degrees are certain, connections are distinct, no neuron is dead. Connectivity and spectra are not promised: see
    `verify`. Stubs are matched at random and double connections swap ends until none is left, so the distribution is
    close to, but not exactly, uniform over all such graphs. O(nnz log nnz) time, O(nnz) memory.

    References
    ----------
    B. Bollobas, "A probabilistic proof of an asymptotic formula for the number of labelled regular graphs", European
    Journal of Combinatorics 1980.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.RandomBiregular(sizes=[784, 294], fan_in=8), rng=0)
    >>> [str(r) for r in tg.measures.fan_out(net)], [str(r) for r in tg.measures.fan_in(net)]
    (['3'], ['8'])
    """

    is_random: ClassVar[bool] = True

    sizes: tuple[int, ...]
    fan_in: int | tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", checks.integers(self.sizes, "sizes", "RandomBiregular", low=1, at_least=2))
        if isinstance(self.fan_in, numbers.Number):
            object.__setattr__(self, "fan_in", checks.integer(self.fan_in, "fan_in", "RandomBiregular", low=1))
        else:
            object.__setattr__(self, "fan_in", self._checked_row(self.fan_in))
        for k, fan_in in enumerate(self.fan_ins):
            self._check_feasible(k, fan_in)

    def _checked_row(self, fan_in: Any) -> tuple[int, ...]:
        requirement = f"an int or a sequence of {self.depth} ints, one a layer"
        given = checks.row(fan_in, "fan_in", "RandomBiregular", requirement)
        if len(given) != self.depth:
            checks.refuse("fan_in", "RandomBiregular", requirement, fan_in)
        return checks.integers(given, "fan_in", "RandomBiregular", low=1)

    def _check_feasible(self, k: int, fan_in: int) -> None:
        n_in, n_out = self.sizes[k], self.sizes[k + 1]
        name = "fan_in" if isinstance(self.fan_in, int) else f"fan_in[{k}]"
        checks.integer(fan_in, name, f"RandomBiregular (layer {k}, {n_in} x {n_out})", low=1, high=n_in)
        if n_out * fan_in % n_in:
            step = n_in // math.gcd(n_in, n_out)
            nearest = min(max(step, round(fan_in / step) * step), n_in)
            raise SpecError(
                f"The '{name}' parameter of RandomBiregular must give every input of layer {k} a whole fan_out: "
                f"n_out * fan_in / n_in = {n_out} * {fan_in} / {n_in} = {n_out * fan_in / n_in:g}. "
                f"Got {fan_in}; the nearest that fits is {nearest}."
            )

    @property
    def fan_ins(self) -> tuple[int, ...]:
        """The fan-in of each layer."""
        return self.fan_in if isinstance(self.fan_in, tuple) else (self.fan_in,) * self.depth

    def layer(self, k: int, seed: np.random.SeedSequence | None) -> sp.csr_array:
        """Build layer k from the stream ("layer", k)."""
        n_in, n_out = self.shape(k)
        return biregular(n_in, n_out, self.fan_ins[k], stream(seed, "layer", k))

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, both degrees, density and that no neuron is dead, all certain."""
        shapes = tuple(zip(self.sizes[:-1], self.sizes[1:], strict=True))
        connections = tuple(n_out * fan_in for fan_in, (_, n_out) in zip(self.fan_ins, shapes, strict=True))
        fan_outs = tuple(count // n_in for count, (n_in, _) in zip(connections, shapes, strict=True))
        possible = sum(n_in * n_out for n_in, n_out in shapes)
        return (
            Claim(measure=SIZES, bound=self.sizes, source=_MODEL),
            Claim(measure=CONNECTIONS, bound=connections, source=_MODEL),
            Claim(measure=FAN_OUT, bound=tuple(Range(d, d) for d in fan_outs), source=_MODEL),
            Claim(measure=FAN_IN, bound=tuple(Range(d, d) for d in self.fan_ins), source=_MODEL),
            Claim(measure=DENSITY, bound=Fraction(sum(connections), possible), source=_MODEL),
            Claim(
                measure=DEAD_NEURONS, bound=(0,) * len(self.sizes), source="every neuron has fan-in and fan-out >= 1"
            ),
        )
