"""What is left of a topology when all that lies on no path is taken away."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen._topology import LazyLayers, Topology, as_topology
from topogen.measures._connectivity import dead_neurons

__all__ = ["effective_topology"]


def effective_topology(x: Any) -> Topology:
    """Return the topology reduced to the connections that lie on some path from an input to an output.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to reduce; see `topogen.measures`.

    Returns
    -------
    Topology
        Of the same sizes: a dead neuron stays, without connections, so that neurons keep their numbers. It has no spec,
        since it need not keep the claims of the one that it comes from, and those of the relays that live. Lazy where
        `x` is.

    Notes
    -----
    Every path is kept, and with it whatever depends on paths alone: reachability, path counts, structural rank.
    ``effective_density(x)`` is its number of connections divided by that of `x`. Linear in the number of connections.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.measures.effective_topology([[[1, 1], [1, 1]], [[1, 0], [0, 0]]])  # hidden neuron 1 leads nowhere
    >>> [layer.astype(int).toarray().tolist() for layer in net]
    [[[1, 0], [1, 0]], [[1, 0], [0, 0]]]
    """
    topology = as_topology(x)
    alive = [np.ones(n, np.bool_) for n in topology.sizes]
    for flags, dead in zip(alive, dead_neurons(topology), strict=True):
        flags[dead] = False

    def build(k: int) -> sp.csr_array:
        return _between(topology.layers[k], alive[k], alive[k + 1])

    lazy = LazyLayers(topology.sizes, build)
    relays = [row[flags[row]] for row, flags in zip(topology.relays, alive, strict=True)]
    return Topology(lazy if isinstance(topology.layers, LazyLayers) else list(lazy), relays=relays)


def _between(layer: sp.csr_array, inputs: npt.NDArray[np.bool_], outputs: npt.NDArray[np.bool_]) -> sp.csr_array:
    """Return the layer without the connections that touch an input or an output whose flag is not set."""
    kept = np.repeat(inputs, np.diff(layer.indptr)) & outputs[layer.indices]
    before = np.concatenate(([0], np.cumsum(kept)))
    indptr = before[layer.indptr]
    return sp.csr_array((np.ones(indptr[-1], np.bool_), layer.indices[kept], indptr), shape=layer.shape)
