"""How many connections each layer of a model gets, where the model as a whole has a density."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

from topogen import checks

__all__ = ["connection_counts", "erdos_renyi_kernel", "erdos_renyi_kernel_counts"]

# the density of a layer of this shape, up to the factor epsilon that all layers share
_RAW: dict[str, Callable[[tuple[int, ...]], Fraction]] = {
    "uniform": lambda shape: Fraction(1),
    "er": lambda shape: Fraction(shape[0] + shape[1], shape[0] * shape[1]),
    "erk": lambda shape: Fraction(sum(shape), math.prod(shape)),
}

_SHAPES = "a sequence of at least one weight shape, (out, in) or (out, in, kernel...), for example [(300, 784)]"


def erdos_renyi_kernel(shapes: Iterable[Any], *, density: float) -> list[float]:
    r"""Return the density of each layer under the Erdos-Renyi-kernel rule, which spares small layers.

    Layer l with shape :math:`s_1, s_2, ...` and :math:`N_l = \prod_i s_i` weights gets the density

    .. math:: d_l = \min(1, \varepsilon \, r_l), \qquad r_l = \sum_i s_i / \prod_i s_i,

    with the :math:`\varepsilon` for which :math:`\sum_l d_l N_l = d \sum_l N_l`. It is found as the rule's authors do:
    while a layer would exceed density 1, all layers of the largest r become dense and the rest share what is left.

    Parameters
    ----------
    shapes : sequence of sequences of at least 2 ints >= 1
        Shapes of the weights, in torch's order: (out, in) of a linear layer, (out, in, height, width) of a
        convolution. Their order within a shape does not matter.
    density : float, in [0, 1]
        Of the whole model: the share of all weights that exist.

    Returns
    -------
    list of float, in [0, 1]
        One a shape.

    Raises
    ------
    SpecError
        If a shape has fewer than two dimensions or one below 1, if there is none, or if `density` is out of range.

    Notes
    -----
    Computed in exact rationals, with the density as the decimal that was written (0.1 means 1/10), and rounded to
    floats once, at the end. Whole connections that add up exactly: `erdos_renyi_kernel_counts`. O(L^2) for L layers.

    References
    ----------
    U. Evci, T. Gale, J. Menick, P. S. Castro, E. Elsen, "Rigging the Lottery: Making All Tickets Winners", ICML 2020,
    arXiv:1911.11134, section 3 (1).

    Examples
    --------
    >>> import topogen as tg
    >>> [round(d, 4) for d in tg.erdos_renyi_kernel([(300, 784), (100, 300), (10, 100)], density=0.1)]
    [0.0796, 0.2302, 1.0]
    """
    return [float(d) for d in _densities(_checked(shapes, "erdos_renyi_kernel"), density, "erk", "erdos_renyi_kernel")]


def erdos_renyi_kernel_counts(shapes: Iterable[Any], *, density: float) -> list[int]:
    """Return the number of connections of each layer under the Erdos-Renyi-kernel rule; they add up exactly.

    Layer l has :math:`d_l N_l` connections, rounded down, and those with the largest remainders one more (the earlier
    on a tie), until the model has round(density * number of weights), halves to even.

    Parameters
    ----------
    shapes, density : as for `erdos_renyi_kernel`

    Returns
    -------
    list of int
        One a shape.

    Raises
    ------
    SpecError
        As `erdos_renyi_kernel`.

    Examples
    --------
    >>> import topogen as tg
    >>> counts = tg.erdos_renyi_kernel_counts([(300, 784), (100, 300), (10, 100)], density=0.05)
    >>> counts, sum(counts)
    ([9051, 3340, 919], 13310)
    """
    owner = "erdos_renyi_kernel_counts"
    return _counts(_checked(shapes, owner), density, "erk", owner)


def connection_counts(shapes: Iterable[Any], *, density: float, distribution: str = "erk") -> list[int]:
    r"""Return the number of connections of each layer of a model with a given density; they add up exactly.

    Layer l with shape :math:`s_1, s_2, ...` gets the density :math:`\min(1, \varepsilon \, r_l)`, with one
    :math:`\varepsilon` for all layers, rounded as `erdos_renyi_kernel_counts` says, and

    .. math:: r_l = 1, \qquad r_l = \frac{s_1 + s_2}{s_1 s_2} \qquad \text{or} \qquad
        r_l = \frac{\sum_i s_i}{\prod_i s_i}

    for "uniform", "er" and "erk".

    Parameters
    ----------
    shapes : sequence of sequences of at least 2 ints >= 1
        Shapes of the weights, in torch's order: (out, in) of a linear layer, (out, in, height, width) of a
        convolution. "er" reads the first two dimensions, "erk" all of them.
    density : float, in [0, 1]
        Of the whole model: the share of all weights that exist.
    distribution : {"erk", "er", "uniform"}

    Returns
    -------
    list of int
        One a shape; their sum is round(density * number of weights), halves to even.

    Raises
    ------
    SpecError
        As `erdos_renyi_kernel`, or if `distribution` is none of the three.

    References
    ----------
    "er": D. C. Mocanu et al., Nature Communications 2018, equation 1. "erk": U. Evci et al., ICML 2020, section 3 (1).

    Examples
    --------
    >>> import topogen as tg
    >>> shapes = [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)]
    >>> for name in ("uniform", "er", "erk"):
    ...     tg.connection_counts(shapes, density=0.05, distribution=name)
    [25, 1250, 20000, 250]
    [500, 10335, 7678, 3012]
    [363, 937, 15225, 5000]
    """
    owner = "connection_counts"
    distribution = checks.one_of(distribution, "distribution", owner, tuple(_RAW))
    return _counts(_checked(shapes, owner), density, distribution, owner)


def _counts(shapes: list[tuple[int, ...]], density: Any, distribution: str, owner: str) -> list[int]:
    """Share the density out, whole connections by largest remainders."""
    sizes = [math.prod(shape) for shape in shapes]
    shares = [d * size for d, size in zip(_densities(shapes, density, distribution, owner), sizes, strict=True)]
    counts = [math.floor(share) for share in shares]
    missing = round(sum(shares, Fraction(0))) - sum(counts)
    for k in sorted(range(len(shares)), key=lambda k: counts[k] - shares[k])[:missing]:
        counts[k] += 1
    return counts


def _checked(shapes: Any, owner: str) -> list[tuple[int, ...]]:
    given = checks.row(shapes, "shapes", owner, _SHAPES)
    if not given:
        checks.refuse("shapes", owner, _SHAPES, shapes)
    return [checks.integers(shape, f"shapes[{k}]", owner, low=1, at_least=2) for k, shape in enumerate(given)]


def _densities(shapes: list[tuple[int, ...]], density: Any, distribution: str, owner: str) -> list[Fraction]:
    wanted = Fraction(repr(checks.real(density, "density", owner, high=1.0)))
    sizes = [math.prod(shape) for shape in shapes]
    raw = [_RAW[distribution](shape) for shape in shapes]
    left = wanted * sum(sizes)
    open_layers = set(range(len(shapes)))
    while True:
        epsilon = left / sum(raw[k] * sizes[k] for k in open_layers)
        largest = max(raw[k] for k in open_layers)
        if epsilon * largest <= 1:
            return [epsilon * raw[k] if k in open_layers else Fraction(1) for k in range(len(shapes))]
        full = {k for k in open_layers if raw[k] == largest}
        left -= sum(sizes[k] for k in full)
        open_layers -= full
