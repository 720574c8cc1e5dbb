"""Which neurons reach which: reachability, dead neurons, components."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse import csgraph

from topogen import checks
from topogen._topology import Topology, as_topology
from topogen.measures._twins import Groups, distinct_inputs, merge_twins, singletons

__all__ = ["dead_neurons", "is_path_connected", "n_components", "path_connected_depth", "reachability"]

_BLOCK_BYTES = 2**28  # of flags at once: where all inputs need more, the chain is swept several times
_WORTH_MERGING = 128  # words a neuron: where there are fewer, looking for twins costs more than carrying them


def is_path_connected(x: Any) -> bool:
    """Return whether a path leads from every input to every output.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    bool

    Notes
    -----
    Exact. 64 inputs share a word, and a layer is one bitwise or over the predecessors of every neuron: at most
    ``nnz * n_0 / 64`` word operations a layer. Twins are carried once, and so are all inputs as soon as they reach the
    same neurons. At most two layers of flags are held, 256 MiB each.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.measures.is_path_connected([[[1, 0], [1, 1]], [[1, 1], [1, 1]]])
    True
    >>> tg.measures.is_path_connected([[1, 0], [1, 1]])
    False
    """
    topology = as_topology(x)
    return all(
        bool((_reached_from(topology, block) == _all_of(len(block))).all())
        for block in _blocks(topology, _inputs(topology).first)
    )


def path_connected_depth(x: Any) -> int | None:
    """Return after how many layers everything reaches everything.

    That is the smallest k such that ``layers[:k]`` is path-connected: a path leads from every input to every neuron of
    layer k of nodes.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    int or None
        In [1, L]; None if there is no such k.

    Notes
    -----
    Exact, by the algorithm of `is_path_connected`, which is run once; the layers behind the answer are not visited. It
    is no promise about them: a neuron without predecessors cuts the paths again.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.generate(tg.RadixNet(systems=[[2, 2, 2], [8]]))
    >>> tg.measures.path_connected_depth(net), tg.measures.path_connected_depth(net.layers[:2])
    (3, None)
    """
    topology = as_topology(x)
    depth = 0
    for block in _blocks(topology, _inputs(topology).first):
        everyone = _all_of(len(block))
        swept = enumerate(_sweep(topology, block), start=1)
        first = next((k for k, (words, _) in swept if (words == everyone[: words.shape[1]]).all()), None)
        if first is None:
            return None
        # where a later block is everywhere every neuron has predecessors, so that an earlier one is everywhere too
        depth = max(depth, first)
    return depth


def reachability(x: Any) -> npt.NDArray[np.bool_]:
    """Return which outputs each input reaches.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    ndarray, shape (n_0, n_L), bool
        True where a path leads from the input to the output.

    Raises
    ------
    SpecError
        If the result would not fit in memory.

    Notes
    -----
    Exact, by the algorithm of `is_path_connected`.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.measures.reachability([[[1, 0], [1, 1]], [[1, 0], [0, 1]]]).astype(int).tolist()
    [[1, 0], [1, 1]]
    """
    topology = as_topology(x)
    n_in, n_out = topology.sizes[0], topology.sizes[-1]
    checks.fits_in_memory(2 * n_in * n_out, "x", "reachability")
    inputs = _inputs(topology)
    reached = np.empty((len(inputs.first), n_out), np.bool_)
    done = 0
    for block in _blocks(topology, inputs.first):
        octets = _reached_from(topology, block).astype("<u8").view(np.uint8)
        reached[done : done + len(block)] = np.unpackbits(octets, axis=1, count=len(block), bitorder="little").T
        done += len(block)
    return reached if inputs.trivial else reached[inputs.of]


def dead_neurons(x: Any) -> tuple[npt.NDArray[np.int64], ...]:
    """Return the neurons that lie on no path from an input to an output.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    tuple of ndarray, length L + 1, int64
        For each layer of nodes, inputs and outputs included, the indices of its dead neurons, ascending.

    Notes
    -----
    A neuron lives if some input reaches it and it reaches some output: two sweeps over the chain, linear in the number
    of connections; one layer and one flag a neuron are held.

    Examples
    --------
    >>> import topogen as tg
    >>> [dead.tolist() for dead in tg.measures.dead_neurons([[[1, 1], [1, 1]], [[1, 0], [0, 0]]])]
    [[], [1], [1]]
    """
    topology = as_topology(x)
    alive: list[npt.NDArray[np.bool_]] = [np.ones(n, np.bool_) for n in topology.sizes]
    for k, layer in enumerate(topology.layers):
        alive[k + 1] = np.asarray(layer.T @ alive[k])  # of bools: the sum is an or
    for k in reversed(range(len(topology))):
        alive[k] &= np.asarray(topology.layers[k] @ alive[k + 1])
    return tuple(np.flatnonzero(~flags).astype(np.int64) for flags in alive)


def n_components(x: Any) -> int:
    """Return the number of connected components of the layered graph, its edges taken without direction.

    Parameters
    ----------
    x : Topology, sequence of matrices, or matrix
        What to measure; see `topogen.measures`.

    Returns
    -------
    int
        Every neuron is a vertex; one without connections is a component of its own.

    Notes
    -----
    Components are grown layer by layer. Only those that reach the newest layer of nodes are kept, the others are
    counted and forgotten, so one layer is held at a time. Linear in the number of connections.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.measures.n_components([[1, 0, 0], [0, 1, 0]])
    3
    """
    topology = as_topology(x)
    finished, open_, component = 0, topology.sizes[0], np.arange(topology.sizes[0])
    for layer in topology.layers:
        found, labels = csgraph.connected_components(_joined(layer, component, open_), directed=False)
        going_on, component = np.unique(labels[open_:], return_inverse=True)
        open_ = len(going_on)
        finished += int(found) - open_
    return finished + open_


def _joined(layer: sp.csr_array, component: npt.NDArray[np.intp], n_components: int) -> sp.csr_array:
    """Return the graph of the layer's outputs, numbered from `n_components` on, and the components of its inputs."""
    size = n_components + layer.shape[1]
    outputs, data = layer.indices + n_components, np.ones(layer.nnz)
    if n_components == layer.shape[0]:  # no two inputs in one component: which is which does not matter
        indptr = np.append(layer.indptr, np.full(layer.shape[1], layer.nnz, layer.indptr.dtype))
        return sp.csr_array((data, outputs, indptr), shape=(size, size))
    return sp.csr_array((data, (np.repeat(component, np.diff(layer.indptr)), outputs)), shape=(size, size))


def _inputs(topology: Topology) -> Groups:
    """Return the groups of inputs of which one is carried for all."""
    n_in = topology.sizes[0]
    return distinct_inputs(topology) if n_in > 64 * _WORTH_MERGING else singletons(n_in)


def _blocks(topology: Topology, inputs: npt.NDArray[np.intp]) -> Iterator[npt.NDArray[np.intp]]:
    """Yield runs of inputs whose flags fit in `_BLOCK_BYTES`, whole words of them."""
    step = 64 * max(1, _BLOCK_BYTES // (8 * max(topology.sizes)))
    for start in range(0, len(inputs), step):
        yield inputs[start : start + step]


def _all_of(count: int) -> npt.NDArray[np.uint64]:
    """Return the words whose first `count` bits are set."""
    words = np.full(-(-count // 64), 2**64 - 1, np.uint64)
    if count % 64:
        words[-1] = 2 ** (count % 64) - 1
    return words


def _reached_from(topology: Topology, inputs: npt.NDArray[np.intp]) -> npt.NDArray[np.uint64]:
    """Return which of `inputs` reach each output: shape (n_L, words), the b-th of them bit b % 64 of word b // 64."""
    everyone = _all_of(len(inputs))
    words, groups = deque(_sweep(topology, inputs), maxlen=1)[-1]
    if words.shape[1] < len(everyone):
        return np.where(words[groups.of] != 0, everyone, np.uint64(0))
    return words[groups.of]


def _sweep(topology: Topology, inputs: npt.NDArray[np.intp]) -> Iterator[tuple[npt.NDArray[np.uint64], Groups]]:
    """Yield which of `inputs` reach the neurons behind each layer: words of shape (groups, words), and the groups.

    Only the first word of each group is left as soon as every neuron is reached by all of `inputs` or by none.
    """
    from topogen.kernels import predecessor_unions, successor_unions

    number = np.arange(len(inputs))
    everyone = _all_of(len(inputs))
    words = np.zeros((topology.sizes[0], len(everyone)), np.uint64)
    words[inputs, number // 64] = np.uint64(1) << (number % 64).astype(np.uint64)
    groups = singletons(topology.sizes[0])
    alike = False
    for layer in topology.layers:
        if len(everyone) > _WORTH_MERGING:
            columns, groups = merge_twins(layer, groups)
            words, sources = np.empty((columns.shape[1], words.shape[1]), np.uint64), words
            predecessor_unions(columns.indptr, columns.indices, sources, words)
        else:
            groups = singletons(layer.shape[1])
            words, sources = np.empty((layer.shape[1], words.shape[1]), np.uint64), words
            successor_unions(layer.indptr, layer.indices, sources, words)
        if not alike and ((words == everyone).all(axis=1) | ~words.any(axis=1)).all():
            alike, words = True, words[:, :1].copy()  # one word tells where all of them have come
        yield words, groups
