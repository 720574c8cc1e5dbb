"""Specs written as text: every repr reads back, nothing is evaluated, and errors point at the place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import topogen as tg
from topogen.errors import SpecError
from topogen.testing import specs

_DENSE = "Dense(sizes=[4, 2])"


@pytest.mark.parametrize("family", tg.ALL_SPECS, ids=lambda family: family.__name__)
@given(data=st.data())
def test_every_repr_reads_back(family, data):
    spec = data.draw(specs(family))
    assert tg.spec_from_text(repr(spec)) == spec


def test_what_the_docs_write():
    text = """
        Chain(Trim(RadixNet(systems=[[10, 10]], widths=[8, 3, 1]), [784, 300, 100], keep="last"),
              Dense(sizes=[100, 10]))  # LeNet
    """
    radix = tg.RadixNet(systems=[[10, 10]], widths=[8, 3, 1])
    lenet = tg.Chain(tg.Trim(radix, [784, 300, 100], keep="last"), tg.Dense(sizes=[100, 10]))
    assert tg.spec_from_text(text) == lenet
    assert tg.spec_from_text("RadixNet(systems=[[10,10]],widths=[8,3,1],shift=-1)") == radix
    assert tg.spec_from_text("ErdosRenyi(sizes=(4, 2), density=0.5, epsilon=None)").density == 0.5


@pytest.mark.usefixtures("families")
def test_a_family_of_ones_own_is_known():
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Own(tg.AbstractSpec):
        sizes: tuple[int, ...] = (2, 2)
        anything: Any = None
        note: str = ""

        def layer(self, k, seed):
            raise NotImplementedError

        def claims(self):
            return ()

        def __post_init__(self):
            if self.anything == "type":
                raise TypeError("no such thing")

    Own.__qualname__ = "Own"  # as if it stood at the top of a module; a dataclass's repr starts with this name
    spec = Own(anything=(1, -2.5, None, True, "it's", ()), note="é")
    assert tg.spec_from_text(repr(spec)) == spec
    with pytest.raises(
        SpecError, match=re.escape("A spec must give Own possible arguments (no such thing). Got 'Own(")
    ):
        tg.spec_from_text("Own(anything='type')")
    assert "the nearest is Own)" in message_of("Ownn()")


def test_a_family_of_another_test_is_forgotten():
    assert "Own" not in message_of("Nonesuch()")


def message_of(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        tg.spec_from_text(text)
    return str(caught.value)


_HOLD = "A spec must hold families with arguments, numbers, strings, lists and tuples only."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The spec '' is no expression: invalid syntax (line 1, column 1)."),
        (
            "Dense(sizes=[4, 2)",
            "The spec 'Dense(sizes=[4, 2)' is no expression: closing parenthesis ')' does not match",
        ),
        (f"{_DENSE}; {_DENSE}", "is no expression: invalid syntax (line 1, column 20)."),
        ("Dense(sizes=\n  [4, 2]]", "does not match opening parenthesis '(' on line 1 (line 2, column 9)."),
        ("Dense(\0)", "is no expression: source code string cannot contain null bytes"),
        ("(" * 10_000, "((...' is no expression: too many nested parentheses (line 1, column 201)."),
        ("-" * 100_000 + "1", "--...' is no expression: it is nested too deeply."),
        ("Dense" + "()" * 5000, "()...' is no expression: maximum recursion depth exceeded"),
        (f"Dense(sizes=[{'9' * 5000}, 2])", "is no expression: Exceeds the limit (4300 digits)"),
        ("3", "A spec must be a family with arguments, such as Dense(sizes=[4, 2]). Got '3'."),
        (
            f"[{_DENSE}]",
            "A spec must be a family with arguments, such as Dense(sizes=[4, 2]). Got '[Dense(sizes=[4, 2])]'.",
        ),
        ("Dense", f"{_HOLD} Got 'Dense' (line 1, column 1)."),
        ("Dense(sizes=[4, n])", f"{_HOLD} Got 'n' (line 1, column 17)."),
        ("Dense(sizes=\n  [4,\n   n])", f"{_HOLD} Got 'n' (line 3, column 4)."),
        ("Dense(sizes=['é', n])", f"{_HOLD} Got 'n' (line 1, column 19)."),
        ("Dense(sizes=[2**9, 2])", f"{_HOLD} Got '2**9' (line 1, column 14)."),
        ("Dense(sizes=[--4, 2])", f"{_HOLD} Got '--4'"),
        ("Dense(sizes=[-'4', 2])", f"{_HOLD} Got '-'4''"),
        ("Dense(sizes=[n for n in (4, 2)])", f"{_HOLD} Got '[n for n in (4, 2)]'"),
        ("Dense(sizes={4, 2})", f"{_HOLD} Got '{{4, 2}}'"),
        ("Dense(sizes=b'42')", f"{_HOLD} Got 'b'42''"),
        ("Dense(sizes=f'{4}')", f"{_HOLD} Got 'f'{{4}}''"),
        ("Dense(sizes=4j)", f"{_HOLD} Got '4j'"),
        ("Dense(sizes=...)", f"{_HOLD} Got '...'"),
        ("Dense(*[4, 2])", f"{_HOLD} Got '*[4, 2]' (line 1, column 7)."),
        ("(lambda: 0)()", "A spec must name a known family ('topogen list' shows all). Got 'lambda: 0'"),
        (
            "Dens(sizes=[4, 2])",
            "A spec must name a known family (the nearest is Dense). Got 'Dens' (line 1, column 1).",
        ),
        ("tg.Dense(sizes=[4, 2])", "A spec must name a known family (the nearest is Dense). Got 'tg.Dense' (line 1"),
        ("Trim(radixnet(systems=[[2]]), [2, 2])", "(the nearest is RadixNet). Got 'radixnet' (line 1, column 6)."),
        ("AbstractSpec()", "A spec must name a known family ('topogen list' shows all). Got "),
        ("__import__('os').system('ls')", "Got '__import__('os').system' (line 1, column 1)."),
        ("Dense(sizes=open('x'))", "Got 'open' (line 1, column 13)."),
        (
            "Dense(size=[4, 2])",
            "A spec must give Dense known parameters (the nearest is sizes). Got 'size=[4, 2]' (line 1, c",
        ),
        ("Dense(qqq=1)", "A spec must give Dense known parameters (known: sizes). Got 'qqq=1' (line 1, column 7)."),
        ("Dense(**{})", "A spec must give Dense known parameters (known: sizes). Got '**{}' (line 1, column 7)."),
        (
            "Dense(sizes=[4], sizes=[2])",
            "A spec must give each parameter of Dense once. Got 'sizes=[2]' (line 1, column 18).",
        ),
        (
            "Dense([4, 2])",
            "A spec must fit Dense(sizes=...): too many positional arguments. Got 'Dense([4, 2])' (line 1",
        ),
        ("RadixNet()", "must fit RadixNet(systems=..., widths=None, shift=-1, order='reference'): missing a required"),
        (
            f"Trim({_DENSE})",
            "A spec must fit Trim(spec, sizes, *, keep='first'): missing a required argument: 'sizes'. Got",
        ),
        (f"Chain(specs={_DENSE})", "A spec must fit Chain(*specs): got an unexpected keyword argument 'specs'. Got"),
        (f"Dense(sizes=[0x{'f' * 300}, 2])", "A spec must hold ints below 2**1024 only. Got '0xffff"),
        (f"Dense(sizes=[-0x{'f' * 300}, 2])", "A spec must hold ints below 2**1024 only. Got '0xffff"),
        ("Dense(sizes=[4, -2])", "The 'sizes[1]' parameter of Dense must be an int >= 1. Got -2."),
        ("RadixNet(systems=[[2, 2], [3]])", "The product of systems[1], the last one, must divide N'"),
    ],
)
def test_bad_texts(text, message):
    said = message_of(text)
    assert message in said
    assert len(said) < 400


@pytest.mark.parametrize("thing", [None, 3, b"Dense(sizes=[4, 2])", tg.Dense(sizes=[4, 2])], ids=repr)
def test_only_text_is_text(thing):
    with pytest.raises(SpecError, match=re.escape("The 'text' parameter of spec_from_text must be a str. Got ")):
        tg.spec_from_text(thing)


@given(st.text(alphabet="RadixNetDense(sytm=[0123456789.,-])'\" \n\\éx*{}:#", max_size=60))
@example("Dense(sizes=[10000000000000000000000000, 2])")
@example("ErdosRenyi(sizes=[4, 2], density=1e999)")
def test_any_text_is_a_spec_or_an_error(text):
    try:
        spec = tg.spec_from_text(text)
    except SpecError:
        return
    assert tg.spec_from_text(repr(spec)) == spec
