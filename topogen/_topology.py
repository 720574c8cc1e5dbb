"""Layer patterns in canonical form, and the chain of them: Topology."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen import checks
from topogen._relays import Relays, checked_relays
from topogen.errors import SpecError

if TYPE_CHECKING:
    from topogen._spec import AbstractSpec

__all__ = ["LazyLayers", "Topology", "as_pattern", "as_topology", "pattern_bytes", "pattern_hash"]


def as_pattern(x: Any, *, name: str = "pattern") -> sp.csr_array:
    """Return the layer pattern of a matrix, in canonical form.

    A connection i -> j exists where ``x[i, j]`` is not zero. Unsorted indices, other formats and other number types
    are brought into canonical form and stored zeros are dropped, since none of that changes the graph. Entries stored
    twice are merged, unless they cancel: whether that is a connection cannot be told.

    Parameters
    ----------
    x : scipy sparse array or matrix, or 2-D array_like, shape (n_in, n_out)
        Rows are inputs, columns are outputs. It is never changed.
    name : str
        What error messages call it.

    Returns
    -------
    csr_array, shape (n_in, n_out), dtype bool
        Sorted indices, no duplicates, no stored zeros; int32 indices where they suffice. It shares the arrays of `x`
        if `x` is already canonical.

    Raises
    ------
    SpecError
        If `x` is not a two-dimensional numeric matrix with at least one row and one column, holds a NaN, has
        indices that are out of range, or stores entries twice that cancel.

    Notes
    -----
    O(nnz) time and memory for canonical and for sorted input, O(nnz log nnz) otherwise.

    Examples
    --------
    >>> import scipy.sparse as sp, topogen as tg
    >>> weights = sp.csr_array(([0.5, 0.0, -2.0], [2, 0, 1], [0, 2, 3]), shape=(2, 3))  # unsorted, one stored zero
    >>> pattern = tg.as_pattern(weights)
    >>> pattern.indices.tolist(), pattern.dtype
    ([2, 1], dtype('bool'))
    """
    if _is_pattern(x):
        return sp.csr_array(x)
    matrix = _as_sparse(x, name)
    if min(matrix.shape) < 1:
        raise SpecError(f"{_subject(name)} must have at least one row and one column. Got shape {matrix.shape}.")
    _check_indices(matrix, name)
    if np.isnan(matrix.data).any():
        raise SpecError(f"{_subject(name)} must not hold NaN. Got {int(np.isnan(matrix.data).sum())} of them.")
    if not _increases(matrix.indptr, matrix.indices):
        matrix = _merged(matrix, name)
    if not matrix.data.all():
        matrix = matrix.copy()
        matrix.eliminate_zeros()
    index = sp.get_index_dtype(maxval=max(matrix.nnz, *matrix.shape))
    pattern = sp.csr_array(
        (np.ones(matrix.nnz, np.bool_), matrix.indices.astype(index), matrix.indptr.astype(index)), shape=matrix.shape
    )
    pattern.has_canonical_format = True
    return pattern


def pattern_hash(pattern: sp.csr_array, version: int = 2) -> str:
    """Return the SHA-256 of a canonical pattern's shape, row pointers and indices, whatever their int type.

    Hashed are a name and little-endian ints: the shape and the row pointers in 8 bytes each, the indices in as many of
    2, 4 or 8 as every column number of the shape has room in.

    Parameters
    ----------
    pattern : csr_array, shape (n_in, n_out)
        In canonical form, as `as_pattern` returns it.
    version : {1, 2}
        1 is what patterns had at first, with 8 bytes an index; what carries it is still read.

    Returns
    -------
    str
        64 hexadecimal digits, equal for equal patterns on every machine.

    Raises
    ------
    SpecError
        If there is no such version.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.pattern_hash(tg.as_pattern([[1, 0], [0, 1]]))[:12]
    '7212820b301e'
    """
    checks.one_of(version, "version", "pattern_hash", (1, 2))
    # Of the whole, making the hash is what takes longest when a layer is rewired: as few bytes as any index can have.
    narrow = next(kind for kind in ("<u2", "<u4", "<u8") if pattern.shape[1] - 1 <= np.iinfo(kind).max)
    digest = hashlib.sha256(f"topogen layer pattern {version}".encode())
    digest.update(np.array(pattern.shape, "<i8").data)
    for part, kind in ((pattern.indptr, "<i8"), (pattern.indices, narrow if version > 1 else "<i8")):
        for start in range(0, len(part), _HASHED):  # a copy that stays in the cache
            digest.update(np.ascontiguousarray(part[start : start + _HASHED], dtype=kind).data)
    return digest.hexdigest()


_HASHED = 1 << 16


def pattern_bytes(n_in: int, n_out: int, nnz: int) -> int:
    """Return the bytes that a canonical pattern of these sizes takes: indices, row pointers and one bool each."""
    index = 4 if max(n_in, n_out, nnz) < 2**31 else 8
    return nnz * (index + 1) + (n_in + 1) * index


class LazyLayers(Sequence[sp.csr_array]):
    """Layers that are built or read on access and not kept.

    Parameters
    ----------
    sizes : sequence of int
        (n_0, ..., n_L), known without building.
    build : callable
        ``build(k)`` returns layer k, of shape (sizes[k], sizes[k + 1]); it is brought into canonical form.

    Raises
    ------
    SpecError
        (on access) If a built layer is no matrix or has another shape.

    Examples
    --------
    >>> import numpy as np, topogen as tg
    >>> layers = tg.LazyLayers((4, 4, 4), lambda k: np.roll(np.eye(4), k, axis=1))
    >>> len(layers), layers[1].indices.tolist()
    (2, [1, 2, 3, 0])
    >>> tg.Topology(layers).nnz
    8
    """

    def __init__(self, sizes: Sequence[int], build: Callable[[int], sp.csr_array]) -> None:
        self.sizes = checks.integers(sizes, "sizes", "LazyLayers", low=1, at_least=2)
        self._build = build

    def __len__(self) -> int:
        return len(self.sizes) - 1

    @overload
    def __getitem__(self, k: int) -> sp.csr_array: ...
    @overload
    def __getitem__(self, k: slice) -> Sequence[sp.csr_array]: ...
    def __getitem__(self, k: int | slice) -> sp.csr_array | Sequence[sp.csr_array]:
        if isinstance(k, slice):
            chosen = range(len(self))[k]
            if chosen.step != 1 or not chosen:
                return [self[i] for i in chosen]
            return LazyLayers(self.sizes[chosen.start : chosen.stop + 1], lambda i: self._build(chosen[i]))
        k = range(len(self))[k]
        pattern = as_pattern(self._build(k), name=f"layer {k}")
        if pattern.shape != (self.sizes[k], self.sizes[k + 1]):
            raise SpecError(f"Layer {k} must have shape {(self.sizes[k], self.sizes[k + 1])}. Got {pattern.shape}.")
        return pattern

    def __iter__(self) -> Iterator[sp.csr_array]:
        # not Sequence's own, which takes an IndexError out of `build` for the end
        return (self[k] for k in range(len(self)))

    def __repr__(self) -> str:
        return f"LazyLayers(sizes={self.sizes})"


class Topology(Sequence[sp.csr_array]):
    """A layered feedforward graph: a chain of layer patterns whose widths match.

    Parameters
    ----------
    layers : sequence of matrices, or LazyLayers
        Layer k has shape (n_k, n_{k+1}); each is brought into canonical form as by `as_pattern`.
    spec : AbstractSpec, optional
        What the topology was generated from; its claims are what `verify` checks. None for graphs that come from
        data.
    seed : numpy.random.SeedSequence, optional
        The seed it was generated with.
    relays : sequence of int sequences, optional
        The neurons of each layer of nodes, L + 1 rows of increasing indices, that only pass their one input on. They
        come with graphs from data, whose edges may skip layers. None: there are none.

    Attributes
    ----------
    sizes : tuple of int
        (n_0, ..., n_L): neurons in each layer of nodes.
    layers : sequence of csr_array
        L canonical patterns of dtype bool, rows = inputs, columns = outputs. Treat them as read-only.
    nnz : int
        Stored connections.
    density : float
        Stored connections / possible connections.
    spec, seed
        As given.
    relays : tuple of int64 arrays
        L + 1 rows, empty where a layer of nodes has none. Their connections have the weight 1 for good: they are
        stored and measured as any other, but are nothing to train.

    Raises
    ------
    SpecError
        If there is no layer, a layer is no matrix, the widths of two neighbours differ, or a relay is no neuron, an
        input, or (looked up unless the layers are lazy) a neuron whose number of incoming connections is not 1.

    Examples
    --------
    >>> import topogen as tg
    >>> net = tg.Topology([[[1, 0], [1, 1]], [[1], [1]]])
    >>> net.sizes, net.nnz, net.density
    ((2, 2, 1), 5, 0.8333333333333334)
    """

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        layers: Sequence[Any],
        *,
        spec: AbstractSpec | None = None,
        seed: np.random.SeedSequence | None = None,
        relays: Sequence[Any] | None = None,
    ) -> None:
        if isinstance(layers, LazyLayers):
            self.layers: Sequence[sp.csr_array] = layers
            self.sizes: tuple[int, ...] = layers.sizes
        else:
            given = checks.row(layers, "layers", "Topology", "a sequence of matrices")
            if not given:
                checks.refuse("layers", "Topology", "a sequence of at least one matrix", layers)
            patterns = [as_pattern(layer, name=f"layers[{k}]") for k, layer in enumerate(given)]
            for k, (left, right) in enumerate(zip(patterns[:-1], patterns[1:], strict=True)):
                if left.shape[1] != right.shape[0]:
                    raise SpecError(
                        f"The 'layers' parameter of Topology must be a chain whose widths match. Got {left.shape[1]} "
                        f"columns in layers[{k}] and {right.shape[0]} rows in layers[{k + 1}]."
                    )
            self.layers = patterns
            self.sizes = (patterns[0].shape[0], *(pattern.shape[1] for pattern in patterns))
        self.spec = spec
        self.seed = seed
        self.relays: Relays = checked_relays(
            relays, self.sizes, None if isinstance(self.layers, LazyLayers) else self.layers
        )

    @property
    def nnz(self) -> int:
        """Stored connections of all layers."""
        return sum(layer.nnz for layer in self.layers)

    @property
    def density(self) -> float:
        """Stored connections / possible connections."""
        possible = sum(n_in * n_out for n_in, n_out in zip(self.sizes[:-1], self.sizes[1:], strict=True))
        return self.nnz / possible

    def __len__(self) -> int:
        return len(self.sizes) - 1

    @overload
    def __getitem__(self, k: int) -> sp.csr_array: ...
    @overload
    def __getitem__(self, k: slice) -> Sequence[sp.csr_array]: ...
    def __getitem__(self, k: int | slice) -> sp.csr_array | Sequence[sp.csr_array]:
        return self.layers[k]

    def __iter__(self) -> Iterator[sp.csr_array]:
        return iter(self.layers)

    def __eq__(self, other: object) -> bool:
        """Two topologies are equal when sizes, relays and all connections are; spec and seed do not matter."""
        if not isinstance(other, Topology):
            return NotImplemented
        if self.sizes != other.sizes or not all(map(np.array_equal, self.relays, other.relays)):
            return False
        return all(
            np.array_equal(a.indptr, b.indptr) and np.array_equal(a.indices, b.indices)
            for a, b in zip(self, other, strict=True)
        )

    def __repr__(self) -> str:
        origin = "" if self.spec is None else f", spec={self.spec!r}"
        n_relays = sum(row.size for row in self.relays)
        return f"Topology(sizes={self.sizes}{f', n_relays={n_relays}' if n_relays else ''}{origin})"


def as_topology(x: Any, *, name: str = "x") -> Topology:
    """Return `x` as a Topology: itself, a chain of matrices, or one matrix.

    Parameters
    ----------
    x : Topology, LazyLayers, sequence of matrices, or one matrix
        A list of lists of numbers is one matrix; a list of two-dimensional things is a chain.
    name : str
        What error messages call it.

    Returns
    -------
    Topology
        `x` itself if it is one; otherwise of the canonical patterns of its matrices, without spec and seed.

    Raises
    ------
    SpecError
        If `x` is none of these, or the widths of two neighbours differ.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.as_topology([[1, 0, 1], [0, 1, 1]]).sizes, tg.as_topology([[[1, 1]], [[1], [0]]]).sizes
    ((2, 3), (1, 2, 1))
    """
    if isinstance(x, Topology):
        return x
    if isinstance(x, LazyLayers):
        return Topology(x)
    if sp.issparse(x) or (isinstance(x, np.ndarray) and x.ndim == 2):
        return Topology([as_pattern(x, name=name)])
    entries = checks.row(x, name, "topogen", "a Topology, a sequence of matrices or one matrix")
    if entries and all(map(_is_row_of_numbers, entries)):
        return Topology([as_pattern(x, name=name)])
    return Topology(entries)


def _is_row_of_numbers(entry: Any) -> bool:
    try:
        return not sp.issparse(entry) and np.ndim(entry) == 1
    except ValueError:  # ragged
        return False


def _subject(name: str) -> str:
    return f"The matrix '{name}'"


def _as_sparse(x: Any, name: str) -> sp.csr_array:
    """Return `x` as a csr_array of numbers that may not be canonical yet; the arrays may be those of `x`."""
    given: Any = x
    if not sp.issparse(x):
        try:
            given = np.asarray(x)
        except ValueError:  # ragged
            raise SpecError(f"{_subject(name)} must be a two-dimensional matrix of numbers. Got ragged rows.") from None
    if given.ndim != 2 or not (given.dtype == np.bool_ or np.issubdtype(given.dtype, np.number)):
        raise SpecError(
            f"{_subject(name)} must be a two-dimensional matrix of numbers. "
            f"Got {given.ndim} dimensions of {given.dtype}."
        )
    if given.dtype == np.float16:
        given = given.astype(np.float32)  # scipy.sparse knows no half floats
    try:
        matrix = sp.csr_array(_rebuilt(given))
    except (ValueError, IndexError) as error:
        raise SpecError(f"{_subject(name)} must be a valid scipy sparse array: {error}.") from None
    if getattr(given, "format", "") == "coo" and matrix.nnz < given.nnz:  # the conversion has merged duplicates
        touched = sp.coo_array((given.data != 0, (given.row, given.col)), shape=given.shape)
        _check_merged(matrix, touched.tocsr(), name)
    return matrix


def _rebuilt(x: Any) -> Any:
    """Return a sparse matrix made anew on the same arrays: its constructor checks what a conversion to csr trusts."""
    form = getattr(x, "format", "")
    if form in ("csc", "bsr"):
        made = type(x)((x.data, x.indices, x.indptr), shape=x.shape)
        made.check_format(full_check=True)
        return made
    if form == "coo":
        return type(x)((x.data, x.coords), shape=x.shape)
    return type(x)((x.data, x.offsets), shape=x.shape) if form == "dia" else x


def _check_indices(matrix: sp.csr_array, name: str) -> None:
    """Refuse indices that would make compiled code read outside its arrays."""
    try:
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise SpecError(f"{_subject(name)} must be a valid scipy sparse array: {error}.") from None
    if (np.diff(matrix.indptr) < 0).any():  # scipy does not look where the last row pointer is 0
        raise SpecError(f"{_subject(name)} must be a valid scipy sparse array: its row pointers must not decrease.")


def _is_pattern(x: Any) -> bool:
    """Whether `x` is a canonical pattern as it stands, which is looked up in its arrays, whatever scipy's flags say.

    What families build nearly always is: no more than four passes over the indices, and few calls for a small layer.
    """
    if type(x) is not sp.csr_array or x.dtype != np.bool_ or x.ndim != 2 or min(x.shape) < 1:
        return False
    indptr, indices, (n_in, n_out) = x.indptr, x.indices, x.shape
    index = np.int32 if max(indices.size, n_in, n_out) < 2**31 else np.int64
    if indptr.dtype != index or indices.dtype != index or indptr.shape != (n_in + 1,):
        return False
    if indptr[0] != 0 or not x.data.shape == indices.shape == (indptr[-1],) or (indptr[1:] < indptr[:-1]).any():
        return False
    # a negative index is a large one without its sign
    within = not indices.size or indices.view(f"u{indices.itemsize}").max() < n_out
    return bool(within and x.data.all() and _increases(indptr, indices))


def _increases(indptr: npt.NDArray[Any], indices: npt.NDArray[Any]) -> bool:
    """Whether the columns of every row increase; looked up, since scipy's flag outlives changes made in place."""
    increases = indices[1:] > indices[:-1]
    starts = indptr[1:-1]
    if starts.size and not (starts[0] > 0 and starts[-1] < indices.size):  # rows without connections at an end
        starts = starts[(starts > 0) & (starts < indices.size)]
    increases[starts - 1] = True
    return bool(increases.all())


def _merged(matrix: sp.csr_array, name: str) -> sp.csr_array:
    """Return a copy with sorted indices and duplicates merged; refuse duplicates that cancel."""
    merged = matrix.copy()
    merged.has_canonical_format = merged.has_sorted_indices = False
    merged.sum_duplicates()
    if merged.nnz < matrix.nnz:
        touched = sp.csr_array((matrix.data != 0, matrix.indices, matrix.indptr), shape=matrix.shape, copy=True)
        touched.has_canonical_format = touched.has_sorted_indices = False
        touched.sum_duplicates()
        _check_merged(merged, touched, name)
    return merged


def _check_merged(merged: sp.csr_array, touched: sp.csr_array, name: str) -> None:
    """Refuse a merge in which some position held a value that is not zero and now holds zero."""
    cancelled = int(np.count_nonzero(touched.data & (merged.data == 0)))
    if cancelled:
        raise SpecError(f"{_subject(name)} must not store entries twice that cancel. Got {cancelled} such positions.")
