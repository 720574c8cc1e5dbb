"""Planted liars, at least one for each law of the contract: each is caught, by the law that is meant for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import scipy.sparse as sp

from topogen import AbstractSpec, Claim, _spec, measures, stream
from topogen._claims import CONNECTIONS, FAN_OUT
from topogen._contract import LAWS
from topogen.errors import SpecError
from topogen.testing import assert_spec_contract

_HONEST_FAMILIES = dict(_spec._FAMILIES)


@dataclass(frozen=True, slots=True)
class Honest(AbstractSpec):
    """Three layers, n to n: input i is joined to output i and to output i + t mod n, with t drawn for each layer."""

    is_random: ClassVar[bool] = True

    n: int = 5

    @property
    def sizes(self):
        return (self.n,) * 4

    def layer(self, k, seed):
        self.shape(k)
        return two_diagonals(self.n, stream(seed, "layer", k))

    def claims(self):
        return (
            Claim(measure=CONNECTIONS, bound=(2 * self.n,) * 3, source="definition of Honest"),
            Claim(measure=FAN_OUT, bound=(measures.Range(2, 2),) * 3, source="definition of Honest"),
        )


def two_diagonals(n, rng, dtype=np.bool_, index=np.int32):
    columns = np.sort(np.add.outer(np.arange(n), [0, rng.integers(1, n)]) % n, axis=1).ravel().astype(index)
    return sp.csr_array((np.ones(2 * n, dtype), columns, (2 * np.arange(n + 1)).astype(index)), shape=(n, n))


def remade(layer, *, data=None, indices=None, indptr=None):
    """A csr_array from other arrays, without any of scipy's checks."""
    made = sp.csr_array(layer.shape, dtype=np.bool_)
    made.data = layer.data if data is None else data
    made.indices = layer.indices if indices is None else indices
    made.indptr = layer.indptr if indptr is None else indptr
    return made


@dataclass(slots=True, unsafe_hash=True)
class Mutable(AbstractSpec):
    is_random: ClassVar[bool] = True
    n: int = 5
    sizes = Honest.sizes
    layer = Honest.layer
    claims = Honest.claims


class NoDataclass(AbstractSpec):
    is_random = True
    n = 5
    sizes = Honest.sizes
    layer = Honest.layer
    claims = Honest.claims


class Unhashable(Honest):
    __hash__ = None


class Nameless(Honest):
    def __repr__(self):
        return "<spec>"


class ForgetsWhenPickled(Honest):
    def __reduce__(self):
        return type(self), ()


class EqualToItselfOnly(Honest):
    def __eq__(self, other):
        return self is other

    __hash__ = object.__hash__


class LossyJson(Honest):
    def to_fields(self):
        return {}


class NoJson(Honest):
    def to_fields(self):
        return {"n": {5}}


class ListOfSizes(Honest):
    @property
    def sizes(self):
        return [self.n] * 4


class NumpySizes(Honest):
    @property
    def sizes(self):
        return tuple(np.full(4, self.n))


class ASizeOfZero(Honest):
    @property
    def sizes(self):
        return (self.n, self.n, self.n, 0)


class WrongShape(Honest):
    def layer(self, k, seed):
        layer = Honest.layer(self, k, seed)
        return sp.csr_array((layer.data, layer.indices, layer.indptr), shape=(self.n, self.n + 1)) if k == 2 else layer


class Floats(Honest):
    def layer(self, k, seed):
        self.shape(k)
        return two_diagonals(self.n, stream(seed, "layer", k), dtype=np.float64)


class OldMatrix(Honest):
    def layer(self, k, seed):
        return sp.csr_matrix(Honest.layer(self, k, seed))


class Unsorted(Honest):
    def layer(self, k, seed):
        layer = Honest.layer(self, k, seed)
        return remade(layer, indices=layer.indices.reshape(-1, 2)[:, ::-1].ravel().copy())


class UnsortedBehindTheFlag(Honest):
    """Says that it is canonical, as scipy lets anyone say."""

    def layer(self, k, seed):
        layer = Unsorted.layer(self, k, seed)
        layer.has_canonical_format = True
        return layer


class Duplicate(Honest):
    def layer(self, k, seed):
        layer = Honest.layer(self, k, seed)
        return remade(layer, indices=np.repeat(layer.indices[::2], 2))


class ExplicitZero(Honest):
    def layer(self, k, seed):
        layer = Honest.layer(self, k, seed)
        layer.data[3] = False
        return layer


class WideIndices(Honest):
    def layer(self, k, seed):
        self.shape(k)
        layer = two_diagonals(self.n, stream(seed, "layer", k))
        return remade(layer, indices=layer.indices.astype(np.int64), indptr=layer.indptr.astype(np.int64))


class SlackArrays(Honest):
    def layer(self, k, seed):
        layer = Honest.layer(self, k, seed)
        return remade(layer, data=np.ones(layer.nnz + 1, np.bool_))


class ColumnOutOfRange(Honest):
    def layer(self, k, seed):
        layer = Honest.layer(self, k, seed)
        columns = layer.indices.copy()
        columns[-1] = self.n
        return remade(layer, indices=columns)


class CountsFromTheEnd(Honest):
    def layer(self, k, seed):
        return Honest.layer(self, range(3)[k], seed)


class NeverEnds(Honest):
    def layer(self, k, seed):
        return two_diagonals(self.n, stream(seed, "layer", abs(k)))


class CarriesAGenerator(Honest):
    """Draws the layers one after the other from one generator."""

    generator = np.random.default_rng(0)

    def layer(self, k, seed):
        self.shape(k)
        stream(seed)
        return two_diagonals(self.n, self.generator)


class DrawsFromTheSeedItself(Honest):
    """SeedSequence.spawn has a state: the k-th layer that is built gets the k-th child, whichever layer it is."""

    def layer(self, k, seed):
        self.shape(k)
        stream(seed)
        return two_diagonals(self.n, np.random.default_rng(seed.spawn(1)[0]))


class SharesItsArrays(Honest):
    built: ClassVar[dict] = {}

    def layer(self, k, seed):
        self.shape(k)
        key = (k, stream(seed, "layer", k).integers(2**62))
        if key not in self.built:
            self.built[key] = Honest.layer(self, k, seed)
        return self.built[key]


class SpawnsFromTheSeed(Honest):
    def layer(self, k, seed):
        if seed is not None:
            seed.spawn(1)
        return Honest.layer(self, k, seed)


class IgnoresTheSeed(Honest):
    def layer(self, k, seed):
        return Honest.layer(self, k, np.random.SeedSequence(7))


class HidesASeed(Honest):
    def layer(self, k, seed):
        return Honest.layer(self, k, np.random.SeedSequence(0) if seed is None else seed)


class SecretlyRandom(Honest):
    is_random = False


class OneLayerHidesASeed(Honest):
    def layer(self, k, seed):
        return Honest.layer(self, k, np.random.SeedSequence(0) if seed is None and k == 1 else seed)


class ReadsTheSeedAndIgnoresIt(Honest):
    def layer(self, k, seed):
        self.shape(k)
        stream(seed, "layer", k)
        return Honest.layer(self, k, np.random.SeedSequence(7))


class OneDrawForAllLayers(Honest):
    def layer(self, k, seed):
        self.shape(k)
        return Honest.layer(self, 0, seed)


class ListOfClaims(Honest):
    def claims(self):
        return list(Honest.claims(self))


class ClaimsThatAreNone(Honest):
    def claims(self):
        return (("connections", 30),)


class ClaimWithoutSource(Honest):
    def claims(self):
        return (Claim(measure=CONNECTIONS, bound=(10, 10, 10), source=" "),)


class ClaimOfAFloat(Honest):
    def claims(self):
        return (Claim(measure=CONNECTIONS, bound=(10, 10.0, 10), source="definition of Honest"),)


class ClaimOfANumpyNumber(Honest):
    def claims(self):
        return (Claim(measure=CONNECTIONS, bound=(10, np.int64(10), 10), source="definition of Honest"),)


class ClaimsTwice(Honest):
    def claims(self):
        return Honest.claims(self) * 2


class FickleClaims(Honest):
    calls: ClassVar[list] = []

    def claims(self):
        self.calls.append(0)
        return Honest.claims(self)[: 1 + len(self.calls) % 2]


class ClaimOffByOne(Honest):
    def claims(self):
        return (Claim(measure=CONNECTIONS, bound=(10, 10, 11), source="definition of Honest"),)


class BoundOffByOne(Honest):
    def claims(self):
        return (Claim(measure=CONNECTIONS, bound=(9, 10, 10), relation="<=", source="definition of Honest"),)


class WrongDegree(Honest):
    def layer(self, k, seed):
        layer = Honest.layer(self, k, seed).toarray()
        layer[1] = True
        return sp.csr_array(layer)


class NeverAsLikely(Honest):
    def claims(self):
        return (
            Claim(measure=CONNECTIONS, bound=(0, 0, 0), source="definition of Honest", relation="<=", probability=0.5),
        )


_LIARS = {
    name: family for name, family in _spec._FAMILIES.items() if name not in _HONEST_FAMILIES and family is not Honest
}
_MEANT_FOR = {
    "specs are frozen": [Mutable, NoDataclass],
    "specs are hashable": [Unhashable],
    "the repr names the family": [Nameless],
    "copies are equal": [ForgetsWhenPickled, EqualToItselfOnly],
    "the json form reads back equal": [LossyJson, NoJson],
    "sizes are known": [ListOfSizes, NumpySizes, ASizeOfZero],
    "claims are well formed": [
        ListOfClaims, ClaimsThatAreNone, ClaimWithoutSource, ClaimOfAFloat, ClaimOfANumpyNumber, ClaimsTwice,
        FickleClaims,
    ],
    "layers have the shapes of the sizes": [WrongShape],
    "layers are csr arrays of bools": [Floats, OldMatrix],
    "layers have sorted indices": [Unsorted, UnsortedBehindTheFlag],
    "layers have no duplicates": [Duplicate],
    "layers store no zeros": [ExplicitZero],
    "layers have tight index arrays": [WideIndices, SlackArrays, ColumnOutOfRange],
    "there is no layer outside the depth": [CountsFromTheEnd, NeverEnds],
    "layers are built alone bit for bit": [CarriesAGenerator, DrawsFromTheSeedItself, SharesItsArrays],
    "the seed is left as it was": [SpawnsFromTheSeed],
    "what is built without a seed ignores it": [IgnoresTheSeed, HidesASeed, SecretlyRandom, OneLayerHidesASeed],
    "what refuses none depends on the seed": [ReadsTheSeedAndIgnoresIt],
    "layers are separate draws": [OneDrawForAllLayers],
    "claims are kept": [ClaimOffByOne, BoundOffByOne, WrongDegree, NeverAsLikely],
}  # fmt: skip

# the liars are known to their own tests alone
_SPECS_OF_THIS_FILE = {name: _spec._FAMILIES.pop(name) for name in [*_LIARS, "Honest"]}


@pytest.fixture(autouse=True)
def known(families):
    families.update(_SPECS_OF_THIS_FILE)
    SharesItsArrays.built.clear()


def test_the_honest_family_keeps_every_law():
    assert_spec_contract(Honest(6), rng=0)


@pytest.mark.parametrize(("law", "liar"), [(law, liar) for law, liars in _MEANT_FOR.items() for liar in liars])
def test_a_liar_is_caught_by_the_law_meant_for_it(law, liar):
    spec = liar() if liar in (NoDataclass, NeverEnds) else liar(5 if "Claim" in liar.__name__ else 6)
    with pytest.raises(AssertionError) as caught:
        assert_spec_contract(spec, rng=0)
    message = str(caught.value)
    assert message.startswith(f"{spec!r} breaks the law that {law}: ")


def test_every_law_has_its_liar():
    assert [law.__name__.replace("_", " ") for law in LAWS] == list(_MEANT_FOR)
    assert {liar for liars in _MEANT_FOR.values() for liar in liars} == set(_LIARS.values())


@pytest.mark.parametrize(
    ("liar", "values"),
    [
        (WrongShape, "layer 2 has shape (5, 6), sizes say (5, 5)"),
        (Floats, "layer 0 is a csr_array of float64"),
        (ExplicitZero, "layer 0 stores 10 entries, 1 of them False"),
        (WideIndices, "layer 0 has indices of int64 and int64, where int32 suffices"),
        (SlackArrays, "layer 0 has 10 connections in arrays of 10 and 11"),
        (CountsFromTheEnd, "layer(-1) must raise IndexError, and returns shape (5, 5)"),
        (SharesItsArrays, "layer 2 differs once the arrays returned before have been written to"),
        (SecretlyRandom, "is_random is False, and the layers that refuse None as a seed are [0, 1, 2]"),
        (OneLayerHidesASeed, "layer 1 is built with None as a seed, and differs with another"),
        (OneDrawForAllLayers, "layers 0 and 1 are the same for 32 seeds"),
        (ClaimsTwice, "'connections' is claimed 2 times with '=='"),
        (ClaimOffByOne, "connections == (10, 10, 11) is promised, (10, 10, 10) measured"),
        (NoJson, "TypeError: Object of type set is not JSON serializable"),
    ],
)
def test_the_message_tells_the_values(liar, values):
    with pytest.raises(AssertionError) as caught:
        assert_spec_contract(liar(5), rng=0)
    assert values in str(caught.value)


def test_what_is_no_spec_or_no_seed_is_refused():
    with pytest.raises(
        SpecError, match=r"^The 'spec' parameter of assert_spec_contract must be an AbstractSpec\. Got 5\.$"
    ):
        assert_spec_contract(5)
    with pytest.raises(SpecError, match=r"^The 'rng' parameter of assert_spec_contract must be .* Got None\.$"):
        assert_spec_contract(Honest(), rng=None)
