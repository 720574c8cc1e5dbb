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
from topogen._claims import CONNECTIONS, DEAD_NEURONS, DENSITY, FAN_IN, FAN_OUT, RAMANUJAN_RATIO, SIZES, Claim
from topogen._spec import AbstractSpec, stream
from topogen.errors import GenerationError, SpecError
from topogen.measures import Range, ramanujan_bound, ramanujan_ratios
from topogen.measures._spectral import Biregular, trace_bound_of
from topogen.specs._stubs import biregular

__all__ = ["RandomBiregular"]

_TRIES = 50  # two are enough for 100 of 100 seeds at 784 x 294 with fan-in 8 and within=1
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
    within : float, optional
        Draw every layer until its second singular value is at most this multiple of the Ramanujan bound
        :math:`\sqrt{d_l - 1} + \sqrt{d_r - 1}`: 1 asks for Ramanujan layers, 1.01 for layers within 1 % of it.
    max_tries : int >= 1, optional
        How often each layer is drawn at most; 50 by default. Only with `within`.

    Raises
    ------
    SpecError
        If a degree does not fit, with the violated equation and the nearest fan-in that fits; if `within` is below
        what the trace bound allows, with the least that is not; or if `max_tries` comes alone.
    GenerationError
        (from `layer`) If no draw is within the bound, with the best value seen; or if double connections are left after
        a bounded number of rounds, which has not been seen in practice.

    Notes
    -----
    Degrees are certain, connections are distinct, no neuron is dead. Connectivity and spectra are not promised without
    `within`: see `verify`. For large sizes the second singular value is below :math:`(1 + \epsilon)` times the bound
    with probability tending to 1 (Brito, Dumitriu and Harris); at 784 x 294 with fan-in 8, 90 to 95 of 100 draws are
    Ramanujan. Stubs are matched at random and double connections swap ends until none is left, so the distribution is
    close to, but not exactly, uniform over all such graphs. O(nnz log nnz) time, O(nnz) memory.

    References
    ----------
    B. Bollobas, "A probabilistic proof of an asymptotic formula for the number of labelled regular graphs", European
    Journal of Combinatorics 1980. G. Brito, I. Dumitriu, K. D. Harris, "Spectral gap in random bipartite biregular
    graphs and applications", Combinatorics, Probability and Computing 2022.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.RandomBiregular(sizes=[784, 294], fan_in=8), rng=0)
    >>> [str(r) for r in tg.measures.fan_out(net)], [str(r) for r in tg.measures.fan_in(net)]
    (['3'], ['8'])
    >>> net = tg.generate(tg.RandomBiregular(sizes=[784, 294], fan_in=8, within=1), rng=0)
    >>> tg.measures.is_ramanujan(net)
    True
    """

    is_random: ClassVar[bool] = True

    sizes: tuple[int, ...]
    fan_in: int | tuple[int, ...]
    within: float | None = None
    max_tries: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", checks.integers(self.sizes, "sizes", "RandomBiregular", low=1, at_least=2))
        if isinstance(self.fan_in, numbers.Number):
            object.__setattr__(self, "fan_in", checks.integer(self.fan_in, "fan_in", "RandomBiregular", low=1))
        else:
            object.__setattr__(self, "fan_in", self._checked_row(self.fan_in))
        for k, fan_in in enumerate(self.fan_ins):
            self._check_feasible(k, fan_in)
        if self.within is not None:
            within = checks.real(self.within, "within", "RandomBiregular", open_low=True)
            object.__setattr__(self, "within", within)
            tries = _TRIES if self.max_tries is None else self.max_tries
            object.__setattr__(self, "max_tries", checks.integer(tries, "max_tries", "RandomBiregular", low=1))
            for k, fan_in in enumerate(self.fan_ins):
                self._check_reachable(k, fan_in, within)
        elif self.max_tries is not None:
            checks.refuse("max_tries", "RandomBiregular", "given with 'within' only", self.max_tries)

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

    def _check_reachable(self, k: int, fan_in: int, within: float) -> None:
        n_in, n_out = self.shape(k)
        degrees = Biregular(n_out * fan_in // n_in, fan_in, n_in, n_out)
        least, line = trace_bound_of(degrees), ramanujan_bound(degrees.fan_out, degrees.fan_in)
        if least > within * line * (1 + 1e-12):  # a projective plane attains it; rounding must not exclude one
            possible = f"at least {least / line:.4g}" if line else "None, where fan-in and fan-out are 1"
            raise SpecError(
                f"The 'within' parameter of RandomBiregular must be {possible}: no layer {k}, {n_in} x {n_out} with "
                f"fan-out {degrees.fan_out} and fan-in {fan_in}, has a second singular value below {least:.4g}, and "
                f"the bound is {line:.4g}. Got {within:g}."
            )

    @property
    def fan_ins(self) -> tuple[int, ...]:
        """The fan-in of each layer."""
        return self.fan_in if isinstance(self.fan_in, tuple) else (self.fan_in,) * self.depth

    def layer(self, k: int, seed: np.random.SeedSequence | None) -> sp.csr_array:
        """Build layer k from the stream ("layer", k); with `within`, draw t is from ("layer", k, "attempt", t)."""
        n_in, n_out = self.shape(k)
        if self.within is None or self.max_tries is None:
            return biregular(n_in, n_out, self.fan_ins[k], stream(seed, "layer", k))
        best = math.inf
        for t in range(self.max_tries):
            drawn = biregular(n_in, n_out, self.fan_ins[k], stream(seed, "layer", k, "attempt", t))
            (ratio,) = ramanujan_ratios(drawn)
            if ratio <= self.within:
                return drawn
            best = min(best, ratio)
        raise GenerationError(
            f"No draw of layer {k} of RandomBiregular, {n_in} x {n_out} with fan-in {self.fan_ins[k]}, had a second "
            f"singular value within {self.within:g} times the Ramanujan bound in {self.max_tries} tries; the best had "
            f"{best:.6g} times."
        )

    def claims(self) -> tuple[Claim, ...]:
        """Sizes, both degrees, density, that no neuron is dead, and the spectral bound if asked for, all certain."""
        shapes = tuple(zip(self.sizes[:-1], self.sizes[1:], strict=True))
        connections = tuple(n_out * fan_in for fan_in, (_, n_out) in zip(self.fan_ins, shapes, strict=True))
        fan_outs = tuple(count // n_in for count, (n_in, _) in zip(connections, shapes, strict=True))
        possible = sum(n_in * n_out for n_in, n_out in shapes)
        spectral = () if self.within is None else (_drawn_within(self.within),)
        return (
            Claim(measure=SIZES, bound=self.sizes, source=_MODEL),
            Claim(measure=CONNECTIONS, bound=connections, source=_MODEL),
            Claim(measure=FAN_OUT, bound=tuple(Range(d, d) for d in fan_outs), source=_MODEL),
            Claim(measure=FAN_IN, bound=tuple(Range(d, d) for d in self.fan_ins), source=_MODEL),
            Claim(measure=DENSITY, bound=Fraction(sum(connections), possible), source=_MODEL),
            Claim(
                measure=DEAD_NEURONS, bound=(0,) * len(self.sizes), source="every neuron has fan-in and fan-out >= 1"
            ),
            *spectral,
        )


def _drawn_within(bound: float) -> Claim:
    source = "drawn until it holds"
    return Claim(measure=RAMANUJAN_RATIO, bound=bound, relation="<=", tolerance=1e-8, source=source)
