"""Whether degrees have the tail of a power law: the fit of Clauset, Shalizi and Newman, and its p-value."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from scipy import special

from topogen import checks
from topogen._topology import Topology, as_topology
from topogen.errors import SpecError
from topogen.measures._degrees import degrees

__all__ = ["DegreeTail", "degree_tail"]

Of = Literal["degree", "fan_in", "fan_out"]

_LOWEST, _HIGHEST = 1.01, 50.0  # exponents between which is searched
_GOLDEN = (5**0.5 - 1) / 2
_STEPS = 48  # golden sections: the exponent is located to 5e-9, finer than a maximum can be told apart in float64
_TABLE = (
    2**14
)  # values whose probabilities are tabulated; from there on zeta is an integral, to a relative 4e-7 or less


class DegreeTail(NamedTuple):
    """The power law that fits the tail of some degrees best.

    Attributes
    ----------
    exponent : float
        The alpha of ``P(d) = d^-alpha / zeta(alpha, minimum)`` for d >= minimum.
    minimum : int
        The degree at which the tail begins.
    distance : float
        The Kolmogorov-Smirnov distance of the degrees in the tail from that law, in [0, 1].
    n_tail : int
        How many neurons have a degree of at least `minimum`.
    p_value : float
        The share of synthetic samples that lie at least as far from their own best fit, in [0, 1]. Where it is small
        the degrees are no power law; where it is not, a power law is not ruled out, which proves nothing for few
        neurons.
    """

    exponent: float
    minimum: int
    distance: float
    n_tail: int
    p_value: float


def degree_tail(x: Any, *, rng: Any, of: Of = "degree", samples: int = 1000) -> DegreeTail:
    r"""Fit a power law to the tail of the degrees and say how plausible it is.

    For every degree :math:`d_{min}` that occurs, but the largest, the exponent is the one of greatest likelihood,

    .. math::
        \hat\alpha = \arg\max_\alpha \; -\ln \zeta(\alpha, d_{min}) - \alpha \,\overline{\ln d}

    with the Hurwitz zeta function and the mean over the degrees :math:`d \ge d_{min}`. Chosen is the :math:`d_{min}`
    whose law has the smallest Kolmogorov-Smirnov distance from these degrees. The p-value comes from synthetic samples
    of the same size, each fitted in the same way: a value is drawn from the fitted law with the probability n_tail / n,
    and else from the degrees below the tail.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.
    rng : int >= 0, numpy.random.SeedSequence or numpy.random.Generator
        What the synthetic samples are drawn from; a Generator moves on.
    of : {"degree", "fan_in", "fan_out"}
        Which degrees: of every neuron its fan-in plus its fan-out, or the fan-ins of all outputs of a layer, or the
        fan-outs of all inputs of a layer, put together over the layers. Those that are 0 are left out.
    samples : int >= 1
        How many synthetic samples; p-values are right to about ``1 / (2 sqrt(samples))``.

    Returns
    -------
    DegreeTail

    Raises
    ------
    SpecError
        If a parameter is none of these, or fewer than two different positive degrees occur.

    Notes
    -----
    Exponents are searched in [1.01, 50]: one at the upper end says that the degrees fall off faster than any power
    that could be told from an exponential. The p-value judges the tail alone, and the far tail of almost anything is
    near some steep power law: read it beside `n_tail` and the exponent. O(m^2) zeta functions a fit for m different
    degrees, a few milliseconds for 30 of them; deterministic for a given `rng` up to the rounding of scipy's zeta
    function.

    References
    ----------
    A. Clauset, C. R. Shalizi, M. E. J. Newman, "Power-law distributions in empirical data", SIAM Review 2009:
    sections 3.1 (exponent), 3.3 (minimum) and 4.1 (p-value).

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.BipartiteScaleFree(sizes=[1000, 1000], density=0.01), rng=0)
    >>> tail = tg.measures.degree_tail(net, rng=0, of="fan_out", samples=100)
    >>> round(tail.exponent, 2), tail.minimum, tail.n_tail, tail.p_value > 0.1
    (2.88, 10, 331, True)
    """
    topology = as_topology(x)
    which = checks.one_of(of, "of", "degree_tail", ("degree", "fan_in", "fan_out"))
    draws = checks.integer(samples, "samples", "degree_tail", low=1)
    generator = _generator(rng)
    values = _degrees(topology, which)
    values = values[values > 0].astype(np.float64)
    if len(np.unique(values)) < 2:
        raise SpecError(
            "The 'x' parameter of degree_tail must have at least two different positive degrees. "
            f"Got {len(np.unique(values))}: a regular network has no tail."
        )
    fit = _fit(values)
    farther = sum(_fit(_synthetic(values, fit, generator)).distance >= fit.distance for _ in range(draws))
    return fit._replace(p_value=farther / draws)


def _generator(rng: Any) -> np.random.Generator:
    if isinstance(rng, (np.random.SeedSequence, np.random.Generator)):
        return np.random.default_rng(rng)
    if isinstance(rng, (int, np.integer)) and not isinstance(rng, bool) and rng >= 0:
        return np.random.default_rng(int(cast(int, rng)))
    requirement = "an int >= 0, a numpy SeedSequence or a numpy Generator"
    return checks.refuse("rng", "degree_tail", requirement, cast(object, rng))


def _degrees(topology: Topology, of: Of) -> npt.NDArray[np.int64]:
    layers = degrees(topology)
    if of == "fan_in":
        return np.concatenate([layer.fan_in for layer in layers])
    if of == "fan_out":
        return np.concatenate([layer.fan_out for layer in layers])
    both = [np.zeros(n, np.int64) for n in topology.sizes]
    for k, layer in enumerate(layers):
        both[k] += layer.fan_out
        both[k + 1] += layer.fan_in
    return np.concatenate(both)


def _fit(values: npt.NDArray[np.float64]) -> DegreeTail:
    """Return the best fit to positive integers, its p-value left open (NaN)."""
    found, counts = np.unique(values, return_counts=True)
    if len(found) < 2:  # of one value any steep enough law is the limit
        return DegreeTail(_HIGHEST, int(found[0]), 0.0, len(values), np.nan)
    sizes = counts[::-1].cumsum()[::-1]  # of the tail that begins at each value
    logs = (counts * np.log(found))[::-1].cumsum()[::-1]
    minima, n = found[:-1], sizes[:-1]
    exponents = _likeliest(minima, logs[:-1] / n)
    apart = _distances(found, sizes, exponents)
    best = int(apart.argmin())
    return DegreeTail(float(exponents[best]), int(minima[best]), float(apart[best]), int(n[best]), np.nan)


def _likeliest(minima: npt.NDArray[np.float64], mean_logs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the exponent of greatest likelihood for each minimum: a golden-section search, since it is concave."""

    def cost(alpha: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return _log_zeta(alpha, minima) + alpha * mean_logs

    low, high = np.full(len(minima), _LOWEST), np.full(len(minima), _HIGHEST)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = cost(left), cost(right)
    for _ in range(_STEPS):
        down = at_left <= at_right
        low, high = np.where(down, low, left), np.where(down, right, high)
        kept, at_kept = np.where(down, left, right), np.where(down, at_left, at_right)
        new = np.where(down, high - _GOLDEN * (high - low), low + _GOLDEN * (high - low))
        at_new = cost(new)
        left, right = np.where(down, new, kept), np.where(down, kept, new)
        at_left, at_right = np.where(down, at_new, at_kept), np.where(down, at_kept, at_new)
    return (low + high) / 2


def _distances(
    found: npt.NDArray[np.float64], sizes: npt.NDArray[np.int64], exponents: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the Kolmogorov-Smirnov distance over all integers of each tail from its law.

    Between two values that occur, the share of the tail that lies higher stays, and the law's only falls: the extremes
    are right behind a value and right before the next one.
    """
    apart = np.empty(len(exponents))
    for i, alpha in enumerate(exponents):
        higher = np.append(sizes[i + 1 :], 0) / sizes[i]
        whole = _log_zeta(alpha, found[i : i + 1])
        behind = np.abs(np.exp(_log_zeta(alpha, found[i:] + 1) - whole) - higher)
        before = np.abs(np.exp(_log_zeta(alpha, found[i + 1 :]) - whole) - higher[:-1])
        apart[i] = max(behind.max(), before.max())
    return apart


def _synthetic(
    values: npt.NDArray[np.float64], fit: DegreeTail, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Return as many values as there are: each from the law or, as often as there are any, from below its minimum."""
    below = values[values < fit.minimum]
    n_tail = int(generator.binomial(len(values), fit.n_tail / len(values)))
    bulk = generator.choice(below, len(values) - n_tail) if n_tail < len(values) else below[:0]
    return np.concatenate([bulk, _power_law(fit.exponent, fit.minimum, n_tail, generator)])


def _power_law(alpha: float, minimum: int, n: int, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw n values with ``P(d) = d^-alpha / zeta(alpha, minimum)``, as floats since they may exceed any int.

    A value is the largest d whose log P(at least d) is not below log u for a u uniform in (0, 1]. Behind the table that
    is solved for d with the integral in place of the zeta function.
    """
    log_u = np.log1p(-generator.random(n))
    table = _log_zeta(alpha, minimum + np.arange(_TABLE, dtype=np.float64))
    drawn = (minimum + np.searchsorted(table[0] - table, -log_u, side="right") - 1).astype(np.float64)
    far = log_u < table[-1] - table[0]
    log_d = -(log_u[far] + table[0] + np.log(alpha - 1)) / (alpha - 1)
    drawn[far] = np.floor(0.5 + np.exp(np.minimum(log_d, 690.0)))  # e^690 is close below the largest float
    return drawn


def _log_zeta(alpha: npt.NDArray[np.float64] | float, d: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the logarithm of the Hurwitz zeta function, also where the function itself is too small for a float.

    For large d the sum over all integers from d on is ``(d - 1/2)^(1 - alpha) / (alpha - 1)``, the integral from
    d - 1/2 on.
    """
    power = np.asarray(alpha, np.float64)
    sums = np.log(special.zeta(power, np.minimum(d, _TABLE)))
    integrals = (1 - power) * np.log(d - 0.5) - np.log(power - 1)
    return np.where(d < _TABLE, sums, integrals).astype(np.float64)
