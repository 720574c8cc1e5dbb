"""What families share: random streams without state, the JSON form, the registry."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given

import topogen as tg
from topogen._spec import as_seed
from topogen.errors import FormatError, SpecError
from topogen.testing import seeds, specs


@given(seeds())
def test_a_child_is_named_by_its_key_and_leaves_no_trace(seed):
    before = seed.state
    child = tg.child(seed, "layer", 3)
    assert (child.entropy, child.spawn_key) == (seed.entropy, (*seed.spawn_key, 0, 3))
    assert tg.child(tg.child(seed, "member", 1), "layer", 3).spawn_key == (*seed.spawn_key, 3, 1, 0, 3)
    first, again, other = (tg.stream(seed, "layer", k).integers(2**62, size=4).tolist() for k in (3, 3, 4))
    assert first == again
    assert first != other
    assert seed.state == before


def test_the_words_of_a_key_keep_their_numbers():
    """They are part of every seeded result that anyone has kept."""
    words = ("layer", "block", "permutation", "member", "attempt")
    seed = np.random.SeedSequence(0)
    assert [tg.child(seed, word).spawn_key for word in words] == [(0,), (1,), (2,), (3,), (4,)]
    assert tg.stream(seed, "layer", 0).integers(2**62) == 2606210261808985375


def test_a_stream_without_a_seed_is_refused():
    sentence = "A random family needs a seed: pass rng= to generate, an int for example. Got None."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.stream(None, "layer", 0)


def test_as_seed_keeps_a_seed_sequence_and_none():
    seed = np.random.SeedSequence(3)
    assert as_seed(seed) is seed
    assert as_seed(None) is None
    assert as_seed(2**200).entropy == 2**200


def test_as_seed_names_whose_parameter_it_is():
    sentence = "The 'rng' parameter of sparsify must be an int >= 0, a numpy SeedSequence or a numpy Generator. Got -1."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.as_seed(-1, owner="sparsify")


@given(specs())
def test_json_reads_back_to_an_equal_spec(spec):
    text = tg.spec_to_json(spec)
    assert "\n" not in text
    assert json.loads(text)["family"] == type(spec).__name__
    twin = tg.spec_from_json(text)
    assert twin == spec
    assert type(twin) is type(spec)
    assert tg.spec_to_json(twin) == text


@given(specs())
def test_a_spec_prints_as_the_code_that_makes_it(spec):
    assert eval(repr(spec), {family.__name__: family for family in tg.ALL_SPECS}) == spec


def test_the_json_form_stays_what_it_is():
    spec = tg.Trim(tg.RadixNet(systems=[[10, 10]], widths=[8, 3, 1]), [784, 300, 100], keep="last")
    assert json.loads(tg.spec_to_json(tg.Chain(spec, tg.ErdosRenyi(sizes=[100, 10], density=0.5)))) == {
        "family": "Chain",
        "specs": [
            {
                "family": "Trim",
                "spec": {
                    "family": "RadixNet",
                    "systems": [[10, 10]],
                    "widths": [8, 3, 1],
                    "shift": -1,
                    "order": "reference",
                },
                "sizes": [784, 300, 100],
                "keep": "last",
            },
            {"family": "ErdosRenyi", "sizes": [100, 10], "density": 0.5, "epsilon": None},
        ],
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "The spec is not JSON: Expecting value: line 1 column 1 (char 0)."),
        ("{", "The spec is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)."),
        (None, "The spec is not JSON: the JSON object must be str, bytes or bytearray, not NoneType."),
        ("5", "The spec must be a JSON object with a 'family'. Got '5'."),
        ("[]", "The spec must be a JSON object with a 'family'. Got '[]'."),
        (
            '{"family": "Nope"}',
            "The spec's family must be known (import the module that defines it). Got 'Nope'.",
        ),
        (
            '{"sizes": [2, 2]}',
            "The spec's family must be known (import the module that defines it). Got None.",
        ),
        (
            '{"family": ["Dense"]}',
            "The spec's family must be known (import the module that defines it). Got ('Dense',); "
            "the nearest is 'Dense'.",
        ),
        (
            '{"family": "Dense", "sizes": [2, "a"]}',
            "The spec of family Dense is impossible: The 'sizes[1]' parameter of Dense must be an int >= 1. Got 'a'.",
        ),
        (
            '{"family": "ErdosRenyi", "sizes": [2, 2], "density": NaN}',
            "The spec of family ErdosRenyi is impossible: The 'density' parameter of ErdosRenyi must be a finite "
            "number in [0, 1]. Got nan.",
        ),
        (
            '{"family": "Trim", "spec": 5, "sizes": [2]}',
            "The spec of family Trim is impossible: The 'spec' parameter of Trim must be an AbstractSpec. Got 5.",
        ),
        (
            '{"family": "Chain"}',
            "The spec of family Chain is impossible: Chain has the field 'specs' and no other. Got [].",
        ),
        (
            '{"family": "Chain", "specs": [], "x": 1}',
            "The spec of family Chain is impossible: Chain has the field 'specs' and no other. Got ['specs', 'x'].",
        ),
    ],
)
def test_what_is_no_spec_is_a_format_error(text, sentence, families):
    for name in set(families) - {family.__name__ for family in tg.ALL_SPECS}:
        del families[name]
    with pytest.raises(FormatError, match=f"^{re.escape(sentence)}$"):
        tg.spec_from_json(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"family": "Dense"}', "missing 1 required keyword-only argument: 'sizes'"),
        ('{"family": "Dense", "sizes": [2, 2], "x": 1}', "unexpected keyword argument 'x'"),
        ('{"family": "Chain", "specs": 5}', "must be an iterable, not int"),
        ("[" * 100_000, "recursion"),
        (
            '{"family": "ErdosRenyi", "sizes": [2, 2], "density": 1' + "0" * 400 + "}",
            r"must be a finite number in \[0, 1\]",
        ),
        ('{"family": "Dense", "sizes": [2, 1' + "0" * 5000 + "]}", "4300 digits"),
    ],
    ids=["missing", "unknown", "no list", "nested", "huge", "more than huge"],
)
def test_damaged_texts_are_format_errors_too(text, reason):
    with pytest.raises(FormatError, match=rf"^The spec .*{reason}.*$"):
        tg.spec_from_json(text)


@pytest.mark.parametrize("thing", [5, None, "Dense", tg.Dense])
def test_only_specs_have_a_json_form(thing):
    sentence = f"The 'spec' parameter of spec_to_json must be an AbstractSpec. Got {thing!r}."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.spec_to_json(thing)


@pytest.mark.usefixtures("families")
def test_a_family_of_ones_own_is_known_by_its_name():
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Ring(tg.AbstractSpec):
        n: int

        @property
        def sizes(self):
            return (self.n, self.n)

        def layer(self, k, seed=None):
            self.shape(k)
            return tg.as_pattern(np.roll(np.eye(self.n, dtype=bool), 1, axis=1))

        def claims(self):
            return ()

    spec = Ring(n=5)
    assert tg.spec_from_json(tg.spec_to_json(spec)) == spec
    assert spec.depth == 1
    assert spec.layer_bytes() == (0,)  # nothing is claimed of its connections
    assert tg.verify(tg.generate(spec)).holds is None
    with pytest.raises(IndexError, match=r"^Ring has layers 0\.\.0\. Got -1\.$"):
        spec.layer(-1)


@pytest.mark.usefixtures("families")
def test_two_families_of_one_name_are_refused():
    with pytest.raises(TypeError, match=r"^A family named Dense exists already, in topogen\.specs\._dense\.$"):

        class Dense(tg.AbstractSpec):
            pass


def test_an_abstract_spec_is_not_made():
    with pytest.raises(TypeError, match="abstract"):
        tg.AbstractSpec()
