"""What a second singular value certifies: mixing, vertex expansion, conductance, uniform paths.

Exact expansion is NP-hard to compute; each function here returns a proven bound of it instead, and refuses where the
hypotheses of the proof do not hold. Cutting a few neurons off a biregular layer already voids all but Cheeger's.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from topogen import checks
from topogen._topology import as_topology
from topogen.errors import SpecError
from topogen.measures._spectral import (
    is_biregular,
    one_biregular_layer,
    required_biregular,
    second_singular_value,
    second_singular_values,
)

__all__ = ["Interval", "cheeger_bounds", "mixing_bound", "path_deviation_bound", "vertex_expansion_bound"]


class Interval(NamedTuple):
    """The least and the greatest value that a quantity can have."""

    low: float
    high: float


def mixing_bound(x: Any, n_inputs: int, n_outputs: int) -> float:
    r"""Return by how much the connections between two sets of neurons can differ from their expected number.

    For any S of s inputs and any T of t outputs of a biregular layer the number e(S, T) of connections keeps

    .. math::
        \left|e(S, T) - \frac{d_l s t}{n_r}\right| \le \sigma_2 \sqrt{s t (1 - s / n_l)(1 - t / n_r)}.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        One biregular layer.
    n_inputs : int, in [0, n_l]
        The number s of inputs.
    n_outputs : int, in [0, n_r]
        The number t of outputs.

    Returns
    -------
    float
        The right-hand side.

    Raises
    ------
    SpecError
        If `x` is not one biregular layer, or a set is larger than its side.

    References
    ----------
    The expander mixing lemma: N. Alon and F. Chung, "Explicit construction of linear sized tolerant networks", Discrete
    Mathematics 1988; for biregular graphs W. Haemers, "Interlacing eigenvalues and graphs", 1995, theorem 5.1.

    Examples
    --------
    >>> import topogen as tg
    >>> triangle = [[1, 1, 0], [0, 1, 1], [1, 0, 1]]
    >>> round(tg.measures.mixing_bound(triangle, 1, 1), 3)  # 2/3 expected, 0 or 1 are there
    0.667
    """
    degrees = one_biregular_layer(x, "mixing_bound")
    s = checks.integer(n_inputs, "n_inputs", "mixing_bound", low=0, high=degrees.n_in)
    t = checks.integer(n_outputs, "n_outputs", "mixing_bound", low=0, high=degrees.n_out)
    spread = s * t * (1 - s / degrees.n_in) * (1 - t / degrees.n_out)
    return second_singular_value(x) * math.sqrt(spread)


def vertex_expansion_bound(x: Any, n_inputs: int) -> float:
    r"""Return a lower bound of the number of outputs that any set of so many inputs reaches.

    Tanner's theorem: any set of s inputs of a biregular layer has at least

    .. math:: \frac{d_l^2 s}{\sigma_2^2 + (d_l d_r - \sigma_2^2) s / n_l}

    neighbours. Transpose the layer for sets of outputs.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        One biregular layer.
    n_inputs : int, in [1, n_l]
        The number s of inputs.

    Returns
    -------
    float

    Raises
    ------
    SpecError
        If `x` is not one biregular layer, or `n_inputs` is out of range.

    References
    ----------
    R. M. Tanner, "Explicit concentrators from generalized N-gons", SIAM Journal on Algebraic and Discrete Methods 1984,
    theorem 2.1.

    Examples
    --------
    >>> import topogen as tg
    >>> triangle = [[1, 1, 0], [0, 1, 1], [1, 0, 1]]
    >>> print(*(f"{tg.measures.vertex_expansion_bound(triangle, s):.3f}" for s in (1, 2, 3)))
    2.000 2.667 3.000
    """
    degrees = one_biregular_layer(x, "vertex_expansion_bound")
    s = checks.integer(n_inputs, "n_inputs", "vertex_expansion_bound", low=1, high=degrees.n_in)
    square = second_singular_value(x) ** 2
    largest = degrees.fan_out * degrees.fan_in
    return degrees.fan_out**2 * s / (square + (largest - square) * s / degrees.n_in)


def cheeger_bounds(x: Any) -> Interval:
    r"""Return between which values the conductance of a layer lies: Cheeger's inequality, both ways.

    The conductance is the least of e(S, rest) / vol(S) over sets S of neurons, inputs and outputs together, that hold
    at most half of all connection ends; vol counts the ends in S. With the second singular value s of the *normalised*
    biadjacency matrix it lies in :math:`[(1 - s) / 2, \sqrt{2 (1 - s)}]`.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        One layer in which every neuron has a connection; it need not be biregular.

    Returns
    -------
    Interval
        (0, 0) for a layer that is not connected.

    Raises
    ------
    SpecError
        If `x` has more than one layer, or a neuron without connections.

    Notes
    -----
    For layers of degree d on both sides, d times the conductance is the edge expansion h, and these are the classical
    :math:`(d - \sigma_2) / 2 \le h \le \sqrt{2 d (d - \sigma_2)}`.

    References
    ----------
    F. Chung, "Spectral Graph Theory", 1997, chapter 2 (theorems 2.1 and 2.3, 2 h_G >= lambda_1 >= h_G^2 / 2).

    Examples
    --------
    >>> import topogen as tg
    >>> low, high = tg.measures.cheeger_bounds([[1, 1, 0], [0, 1, 1], [1, 0, 1]])
    >>> round(low, 3), round(high, 3)  # a ring of six: 2 of 6 ends of three neighbours lead out, 1/3
    (0.25, 1.0)
    """
    topology = as_topology(x)
    if len(topology) != 1:
        checks.refuse("x", "cheeger_bounds", "one layer", topology.sizes)
    layer = topology.layers[0]
    alone_in = int((np.diff(layer.indptr) == 0).sum())
    alone_out = layer.shape[1] - len(np.unique(layer.indices))
    if alone_in or alone_out:
        raise SpecError(
            "The 'x' parameter of cheeger_bounds must be a layer in which every neuron has a connection. "
            f"Got {alone_in} inputs and {alone_out} outputs without."
        )
    second = second_singular_value(topology)
    if is_biregular(topology):
        second /= one_biregular_layer(topology, "cheeger_bounds").largest
    return Interval((1 - second) / 2, math.sqrt(2 * (1 - second)))


def path_deviation_bound(x: Any) -> float:
    r"""Return how far from uniform the paths through a chain of biregular layers can be.

    With all W_k biregular, the leading singular vectors of neighbours agree, and so

    .. math::
        \left\lVert \prod_k \frac{W_k}{\sigma_1^k} - \frac{1}{\sqrt{n_0 n_L}} \mathbf{1} \mathbf{1}^T \right\rVert_2
        \le \prod_k \frac{\sigma_2^k}{\sigma_1^k}.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        Every layer biregular.

    Returns
    -------
    float
        In [0, 1]: the right-hand side. Below :math:`1 / \sqrt{n_0 n_L}` every pair is connected by a path.

    Raises
    ------
    SpecError
        If a layer is not biregular: there the leading vectors differ, and no such bound holds.

    Notes
    -----
    Sufficient, far from necessary: a RadiX-Net has a bound close to 1 and deviates by 0. `is_path_connected` decides.

    Examples
    --------
    >>> import topogen as tg
    >>> triangle = [[1, 1, 0], [0, 1, 1], [1, 0, 1]]
    >>> round(tg.measures.path_deviation_bound([triangle, triangle]), 3)  # below 1/3: every pair is connected
    0.25
    """
    topology = as_topology(x)
    largest = [required_biregular(layer, k, "path_deviation_bound").largest for k, layer in enumerate(topology.layers)]
    return math.prod(s / top for s, top in zip(second_singular_values(topology), largest, strict=True))
