"""What a family says of itself in its signature and its docstring, for `topogen list`.

Nothing is written down for the list alone: whoever adds a family writes the docstring that every family has, with its
sections Parameters, Raises and Examples, and the tests fail where one is missing.
"""

from __future__ import annotations

import ast
import doctest
import inspect
import re
from dataclasses import dataclass

from topogen._parse import nearest, parameters, spec_from_text
from topogen._spec import AbstractSpec
from topogen.errors import SpecError
from topogen.specs import ALL_SPECS

__all__ = ["Entry", "entry_of", "family_named"]

_SECTION = re.compile(r"^(\w+)\n-+\n", re.M)
_ITEM = re.compile(r"^\*?(\w[\w, ]*?) : (.+)\n?((?: .*\n?)*)", re.M)
_RANGE = re.compile(r"[\[{\d]")
_MARKUP = re.compile(r":\w+:`([^`]*)`|``?([^`]*)``?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One family of the catalogue.

    Attributes
    ----------
    call : str
        The family with its parameters, as a spec is written.
    summary : str
        The docstring's first sentence.
    takes : str
        Each parameter with its type and range, in one line.
    refused : str
        When a spec is impossible, in one line: what the docstring says of SpecError.
    parameters : str
        The docstring's section without its markup, several lines.
    example : AbstractSpec or None
        The first spec of the family in the docstring's examples.
    """

    call: str
    summary: str
    takes: str
    refused: str
    parameters: str
    example: AbstractSpec | None

    def __str__(self) -> str:
        return "\n    ".join(line for line in (self.call, self.summary, self.takes, self.refused) if line)


def family_named(name: str) -> type[AbstractSpec]:
    """Return the family of `ALL_SPECS` with that name; SpecError with the nearest name if there is none."""
    families = {family.__name__: family for family in ALL_SPECS}
    if name not in families:
        raise SpecError(f"The argument of list must be a family ({nearest(name, families)}). Got {name!r}.")
    return families[name]


def entry_of(family: type[AbstractSpec]) -> Entry:
    """Return what `family` says of itself; what its docstring does not tell stays empty."""
    document = inspect.getdoc(family) or ""
    summary, *rest = _SECTION.split(document)
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    described = sections.get("Parameters", "")
    causes = re.search(r"^SpecError\n((?: .*\n?)+)", sections.get("Raises", ""), re.M)
    return Entry(
        call=f"{family.__name__}({parameters(inspect.signature(family))})",
        summary=_plain(summary.partition("\n\n")[0]),
        takes="; ".join(_taken(*item) for item in _ITEM.findall(described)),
        refused=_plain(f"Refused {causes[1].strip().replace('If ', 'if ', 1)}") if causes else "",
        parameters=_without_markup(described.rstrip()),
        example=_example(family.__name__, sections.get("Examples", "")),
    )


def _plain(text: str) -> str:
    return " ".join(_without_markup(text).split())


def _without_markup(text: str) -> str:
    return _MARKUP.sub(lambda match: match[1] or match[2], text)


def _taken(names: str, kind: str, meaning: str) -> str:
    """Return a parameter with its type and, where that states no range, what the docstring goes on to say."""
    clause = _plain(meaning).partition(". ")[0].rstrip(".")
    return _plain(f"{names}: {kind}" if _RANGE.search(kind) or not clause else f"{names}: {kind} ({clause})")


def _example(family: str, text: str) -> AbstractSpec | None:
    """Return the first spec of `family` in doctest examples, which are read and not run."""
    source = "".join(example.source for example in doctest.DocTestParser().get_examples(text))
    reader = _Inliner()
    tree = reader.visit(ast.parse(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == family:
            return spec_from_text(ast.unparse(node))
    return None


class _Inliner(ast.NodeTransformer):
    """Puts what names stand for in their place, and drops the ``tg.`` before topogen's own."""

    def __init__(self) -> None:
        self._values: dict[str, ast.expr] = {}

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        """Remember what one name is assigned."""
        node.value = self.visit(node.value)
        if isinstance(node.targets[0], ast.Name):
            self._values[node.targets[0].id] = node.value
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Replace a name by what it was assigned."""
        return self._values.get(node.id, node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """Turn ``tg.Dense`` into ``Dense``."""
        if isinstance(node.value, ast.Name) and node.value.id == "tg":
            return ast.Name(node.attr)
        return self.generic_visit(node)
