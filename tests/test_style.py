"""What can be checked of the house style by a machine: public names exist, and documents name every parameter."""

from __future__ import annotations

import inspect
import re

import pytest

import topogen
from topogen import checks, errors, io, measures, testing

MODULES = (topogen, checks, errors, io, io.graph_challenge, measures, testing)
DOCUMENTED = sorted(
    {
        (f"{module.__name__}.{name}", getattr(module, name))
        for module in (topogen, io, io.graph_challenge, measures, testing)
        for name in module.__all__
        if inspect.isfunction(getattr(module, name)) or inspect.isclass(getattr(module, name))
    },
    key=lambda pair: pair[0],
)


def undocumented(thing):
    """Parameters of a function or a class that its docstring does not describe."""
    document = inspect.getdoc(thing) or ""
    names = [name for name in inspect.signature(thing).parameters if name not in ("self", "draw", "kwargs")]
    return [name for name in names if not re.search(rf"^\*?([\w]+, )*{name}(, [\w]+)* :|^\*{name} :", document, re.M)]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_all_public_names_exist_once(module):
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None, name


@pytest.mark.parametrize("thing", [thing for _, thing in DOCUMENTED], ids=[name for name, _ in DOCUMENTED])
def test_public_names_are_documented(thing):
    summary = (inspect.getdoc(thing) or "").partition("\n")[0]
    assert summary.endswith((".", ":")), summary


FUNCTIONS = {
    name: thing
    for name, thing in DOCUMENTED
    if inspect.isfunction(thing) and len(inspect.signature(thing).parameters) > 1
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_is_described(name):
    assert undocumented(FUNCTIONS[name]) == []


def test_the_check_finds_what_is_missing():
    def function(a, b, *, c=0):
        """Do it.

        Parameters
        ----------
        a : int
        """

    assert undocumented(function) == ["b", "c"]
