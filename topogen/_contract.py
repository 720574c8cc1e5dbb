"""The laws that every family keeps, and `assert_spec_contract`, which tries them on one spec.

A law is a function of a spec and a seed that yields what it finds wrong; its name, read as a sentence, is the law.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import scipy.sparse as sp

from topogen import checks
from topogen._claims import Claim, shown
from topogen._generate import generate
from topogen._spec import AbstractSpec, as_seed, child, spec_from_json, spec_to_json
from topogen._verify import verify
from topogen.errors import SpecError

__all__ = ["LAWS", "assert_spec_contract"]

Complaints = Iterator[str]

# Two independent draws of a layer that has a choice at all agree with probability 1/2 at most, so that all of these
# agree with probability 2^-32. The first difference ends the search.
_N_DRAWS = 32


def assert_spec_contract(spec: AbstractSpec, *, rng: Any = 0) -> None:
    """Assert that a spec keeps every law of a family.

    Parameters
    ----------
    spec : AbstractSpec
        A small member of the family: it is built a few dozen times.
    rng : int, numpy.random.SeedSequence or numpy.random.Generator
        What a random family draws from.

    Raises
    ------
    AssertionError
        Naming the first law that is broken, the spec and the values.
    SpecError
        If `spec` is no spec, or `rng` no seed.

    Notes
    -----
    The laws, in the order in which they are tried: the spec is frozen, hashable and named in its own repr; copies,
    pickles and its JSON form equal it; its sizes and claims are known before anything is built, each claim with a
    source and an exact bound; every layer has its shape, is a csr_array of bools in canonical form (sorted, no
    duplicates, no stored zeros, indices as narrow as they can be), exists for k in [0, depth) only and is built alone,
    in any order, bit for bit; the seed is left as it was; a layer that can be built without a seed is the same with
    any, a layer that cannot depends on it (unless it is empty or full), and layers that depend on it are separate
    draws; the claims are kept.

    Examples
    --------
    >>> import topogen as tg
    >>> from topogen.testing import assert_spec_contract
    >>> assert_spec_contract(tg.RadixNet(systems=[[2, 3], [3, 2]]))
    """
    checks.instance(spec, "spec", "assert_spec_contract", AbstractSpec, "an")
    seed = as_seed(rng)
    if seed is None:
        checks.refuse("rng", "assert_spec_contract", "an int >= 0, a numpy SeedSequence or a numpy Generator", rng)
    for law in LAWS:
        name = law.__name__.replace("_", " ")
        try:
            complaint = next(law(spec, seed), None)
        except Exception as error:
            raise AssertionError(f"{spec!r} breaks the law that {name}: {type(error).__name__}: {error}") from error
        if complaint is not None:
            raise AssertionError(f"{spec!r} breaks the law that {name}: {complaint}.")


def specs_are_frozen(spec: AbstractSpec, seed: np.random.SeedSequence) -> Complaints:
    if not is_dataclass(spec):
        yield "it is no dataclass"
        return
    for field in fields(spec):
        try:
            setattr(spec, field.name, getattr(spec, field.name))
        except AttributeError:
            continue
        yield f"its field {field.name!r} can be assigned to"


def specs_are_hashable(spec: AbstractSpec, seed: np.random.SeedSequence) -> Complaints:
    try:
        hash(spec)
    except TypeError as error:
        yield str(error)


def the_repr_names_the_family(spec: AbstractSpec, seed: np.random.SeedSequence) -> Complaints:
    if type(spec).__name__ not in repr(spec):
        yield f"{type(spec).__name__!r} is not in it"


def copies_are_equal(spec: AbstractSpec, seed: np.random.SeedSequence) -> Complaints:
    for how, twin in (("copy.deepcopy", copy.deepcopy(spec)), ("pickle", pickle.loads(pickle.dumps(spec)))):
        if twin != spec or hash(twin) != hash(spec):
            yield f"{how} gives {twin!r}"


def the_json_form_reads_back_equal(spec: AbstractSpec, seed: np.random.SeedSequence) -> Complaints:
    text = spec_to_json(spec)
    twin = spec_from_json(text)
    if type(twin) is not type(spec) or twin != spec or hash(twin) != hash(spec):
        yield f"{text} reads back as {twin!r}"


def sizes_are_known(spec: AbstractSpec, seed: np.random.SeedSequence) -> Complaints:
    sizes = spec.sizes
    if type(sizes) is not tuple or len(sizes) < 2 or any(type(size) is not int or size < 1 for size in sizes):
        yield f"sizes must be a tuple of at least two ints >= 1, and is {sizes!r}"
    elif spec.depth != len(sizes) - 1 or any(spec.shape(k) != sizes[k : k + 2] for k in range(spec.depth)):
        yield f"depth is {spec.depth} and the shapes are not neighbours in {sizes}"


def claims_are_well_formed(spec: AbstractSpec, seed: np.random.SeedSequence) -> Complaints:
    claims = spec.claims()
    if type(claims) is not tuple or not all(isinstance(claim, Claim) for claim in claims):  # pyright: ignore[reportUnnecessaryIsInstance, reportUnnecessaryComparison]
        yield f"claims() must be a tuple of Claims, and is {claims!r}"
        return
    for claim in claims:
        if not claim.source.strip():
            yield f"the claim {claim} has no source"
        if not _is_exact(claim.bound) and (claim.relation == "==" or not isinstance(claim.bound, float)):
            yield f"the bound of the claim {claim} is a {type(claim.bound).__name__}, not exact"
    for (name, relation), times in Counter((claim.name, claim.relation) for claim in claims).items():
        if times > 1:
            yield f"{name!r} is claimed {times} times with {relation!r}"
    if claims != spec.claims():
        yield "claims() promises something else when it is called again"


def layers_have_the_shapes_of_the_sizes(spec: AbstractSpec, seed: np.random.SeedSequence) -> Complaints:
    for k in range(spec.depth):
        shape = spec.layer(k, seed).shape
        if shape != spec.sizes[k : k + 2]:
            yield f"layer {k} has shape {shape}, sizes say {spec.sizes[k : k + 2]}"


def layers_are_csr_arrays_of_bools(spec: AbstractSpec, seed: np.random.SeedSequence) -> Complaints:
    for k in range(spec.depth):
        layer = spec.layer(k, seed)
        if type(layer) is not sp.csr_array or layer.dtype != np.bool_:
            yield f"layer {k} is a {type(layer).__name__} of {layer.dtype}"


def layers_have_sorted_indices(spec: AbstractSpec, seed: np.random.SeedSequence) -> Complaints:
    for k, row, columns in _rows(spec, seed):
        if (np.diff(columns) < 0).any():
            yield f"row {row} of layer {k} has the columns {columns.tolist()}"


def layers_have_no_duplicates(spec: AbstractSpec, seed: np.random.SeedSequence) -> Complaints:
    for k, row, columns in _rows(spec, seed):
        if (np.diff(columns) == 0).any():
            yield f"row {row} of layer {k} has the columns {columns.tolist()}"


def layers_store_no_zeros(spec: AbstractSpec, seed: np.random.SeedSequence) -> Complaints:
    for k in range(spec.depth):
        stored = spec.layer(k, seed).data
        if not stored.all():
            yield f"layer {k} stores {stored.size} entries, {np.count_nonzero(~stored)} of them False"


def layers_have_tight_index_arrays(spec: AbstractSpec, seed: np.random.SeedSequence) -> Complaints:
    for k in range(spec.depth):
        layer = spec.layer(k, seed)
        if not layer.nnz == layer.indices.size == layer.data.size:
            yield f"layer {k} has {layer.nnz} connections in arrays of {layer.indices.size} and {layer.data.size}"
        layer.check_format(full_check=True)
        narrow = sp.get_index_dtype(maxval=max(layer.nnz, *layer.shape))
        if layer.indices.dtype != narrow or layer.indptr.dtype != narrow:
            found = f"{layer.indices.dtype} and {layer.indptr.dtype}"
            yield f"layer {k} has indices of {found}, where {np.dtype(narrow)} suffices"


def there_is_no_layer_outside_the_depth(spec: AbstractSpec, seed: np.random.SeedSequence) -> Complaints:
    for k in (-1, spec.depth):
        try:
            layer = spec.layer(k, seed)
        except IndexError:
            continue
        yield f"layer({k}) must raise IndexError, and returns shape {layer.shape}"


def layers_are_built_alone_bit_for_bit(spec: AbstractSpec, seed: np.random.SeedSequence) -> Complaints:
    in_order = [_bits(spec.layer(k, seed)) for k in range(spec.depth)]
    for k in reversed(range(spec.depth)):
        layer = spec.layer(k, _fresh(seed))
        if _bits(layer) != in_order[k]:
            yield f"layer {k} differs when it is built again, in reverse order"
        if layer.data.flags.writeable:  # what a caller does to the result must not reach the next one
            layer.data[:] = False
        if _bits(spec.layer(k, _fresh(seed))) != in_order[k]:
            yield f"layer {k} differs once the arrays returned before have been written to"
        if _bits(copy.deepcopy(spec).layer(k, _fresh(seed))) != in_order[k]:
            yield f"layer {k} differs when a copy of the spec builds it alone"
    for lazy in (False, True):
        net = generate(spec, rng=_fresh(seed), lazy=lazy)
        if [_bits(layer) for layer in net] != in_order:
            yield f"generate(lazy={lazy}) builds other layers"


def the_seed_is_left_as_it_was(spec: AbstractSpec, seed: np.random.SeedSequence) -> Complaints:
    ours = _fresh(seed)
    for k in range(spec.depth):
        spec.layer(k, ours)
    if ours.state != _fresh(seed).state:
        yield f"its state was {_fresh(seed).state} and is {ours.state}"


def what_is_built_without_a_seed_ignores_it(spec: AbstractSpec, seed: np.random.SeedSequence) -> Complaints:
    drawn = _drawn_layers(spec)
    if spec.is_random is not bool(drawn):
        yield f"is_random is {spec.is_random}, and the layers that refuse None as a seed are {drawn}"
    for k in set(range(spec.depth)) - set(drawn):
        without = _bits(spec.layer(k, None))
        if any(_bits(spec.layer(k, other)) != without for other in (seed, *_other_seeds(seed, 2))):
            yield f"layer {k} is built with None as a seed, and differs with another"


def what_refuses_none_depends_on_the_seed(spec: AbstractSpec, seed: np.random.SeedSequence) -> Complaints:
    for k in _drawn_layers(spec):
        first = spec.layer(k, seed)
        if _is_trivial(first):  # a layer that must be empty, or full, has no choice
            continue
        if all(_bits(spec.layer(k, other)) == _bits(first) for other in _other_seeds(seed, _N_DRAWS)):
            yield f"layer {k} is the same for {_N_DRAWS + 1} seeds"


def layers_are_separate_draws(spec: AbstractSpec, seed: np.random.SeedSequence) -> Complaints:
    drawn = _drawn_layers(spec)
    pairs = {(i, j) for i in drawn for j in drawn if i < j and spec.shape(i) == spec.shape(j)}
    telling: set[int] = set()  # layers that have a choice: seen neither empty nor full
    for other in _other_seeds(seed, _N_DRAWS):
        if not pairs:
            return
        layers = {k: spec.layer(k, other) for pair in pairs for k in pair}
        telling |= {k for k, layer in layers.items() if not _is_trivial(layer)}
        pairs = {(i, j) for i, j in pairs if _bits(layers[i]) == _bits(layers[j])}
    for i, j in sorted(pairs):
        if i in telling:
            yield f"layers {i} and {j} are the same for {_N_DRAWS} seeds"


def claims_are_kept(spec: AbstractSpec, seed: np.random.SeedSequence) -> Complaints:
    likely: set[str] = set()
    for row in verify(generate(spec, rng=_fresh(seed))):
        if row.holds is False and row.probability == 1:
            yield f"{row.name} {row.relation} {shown(row.promised)} is promised, {shown(row.measured)} measured"
        elif row.holds is False and _draws_that_suffice(row.probability) <= _N_DRAWS:
            likely.add(row.name)
    for name in sorted(likely):
        others = (verify(generate(spec, rng=other))[name] for other in _other_seeds(seed, _N_DRAWS))
        if not any(row.holds for row in others):
            yield f"{name} is promised with some probability, and broken for {_N_DRAWS + 1} seeds"


Law = Callable[[AbstractSpec, np.random.SeedSequence], Complaints]

LAWS: tuple[Law, ...] = (
    specs_are_frozen,
    specs_are_hashable,
    the_repr_names_the_family,
    copies_are_equal,
    the_json_form_reads_back_equal,
    sizes_are_known,
    claims_are_well_formed,
    layers_have_the_shapes_of_the_sizes,
    layers_are_csr_arrays_of_bools,
    layers_have_sorted_indices,
    layers_have_no_duplicates,
    layers_store_no_zeros,
    layers_have_tight_index_arrays,
    there_is_no_layer_outside_the_depth,
    layers_are_built_alone_bit_for_bit,
    the_seed_is_left_as_it_was,
    what_is_built_without_a_seed_ignores_it,
    what_refuses_none_depends_on_the_seed,
    layers_are_separate_draws,
    claims_are_kept,
)


def _drawn_layers(spec: AbstractSpec) -> list[int]:
    """Layers that draw: they refuse None as a seed."""
    drawn: list[int] = []
    for k in range(spec.depth):
        try:
            spec.layer(k, None)
        except SpecError:
            drawn.append(k)
    return drawn


def _fresh(seed: np.random.SeedSequence) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed.entropy, spawn_key=seed.spawn_key, pool_size=seed.pool_size)


def _other_seeds(seed: np.random.SeedSequence, n: int) -> Iterator[np.random.SeedSequence]:
    return (child(seed, "attempt", t) for t in range(n))


def _rows(spec: AbstractSpec, seed: np.random.SeedSequence) -> Iterator[tuple[int, int, Any]]:
    """(layer, row, its columns as stored) for every row of every layer."""
    for k in range(spec.depth):
        layer = spec.layer(k, seed)
        for row, (start, stop) in enumerate(zip(layer.indptr[:-1], layer.indptr[1:], strict=True)):
            yield k, row, layer.indices[start:stop]


def _bits(layer: sp.csr_array) -> tuple[Any, ...]:
    """Everything that a layer consists of; scipy's own == would build a sparse matrix."""
    arrays = (layer.indptr, layer.indices, layer.data)
    return (layer.shape, *((array.dtype.str, array.tobytes()) for array in arrays))


def _is_trivial(layer: sp.csr_array) -> bool:
    return layer.nnz in (0, math.prod(layer.shape))


def _is_exact(bound: Any) -> bool:
    if isinstance(bound, tuple):
        return all(map(_is_exact, bound))  # pyright: ignore[reportUnknownArgumentType]
    if is_dataclass(bound):
        return all(_is_exact(getattr(bound, field.name)) for field in fields(bound))
    return type(bound) in (bool, int, str, Fraction)


def _draws_that_suffice(probability: float) -> int:
    """Draws that all break a promise kept with this probability less often than once in a million."""
    return math.ceil(math.log(1e-6) / math.log1p(-probability)) if probability < 1 else 1
