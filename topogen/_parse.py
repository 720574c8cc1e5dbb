"""Specs written as text: what `repr` prints and what the command takes."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Collection
from typing import Any, NoReturn

from topogen import _spec, checks
from topogen._spec import AbstractSpec
from topogen.errors import SpecError

__all__ = ["nearest", "parameters", "spec_from_text"]

_FEW = 10  # names that a sentence can list
_INT_BITS = 1024  # what a float can hold, and what Python still prints


def spec_from_text(text: str) -> AbstractSpec:
    """Return the spec that an expression such as ``RadixNet(systems=[[2, 2, 2]])`` describes.

    The text is parsed, never evaluated: a family's name with arguments, which are numbers, strings, None, True, False,
    lists and tuples of arguments, and other specs. Every spec's `repr` is such a text.

    Parameters
    ----------
    text : str
        The expression. Families are topogen's own and those of any module that has been imported.

    Returns
    -------
    AbstractSpec

    Raises
    ------
    SpecError
        If the text is no such expression, with the line and column at fault; if a family or a parameter is unknown,
        with the nearest name; or if the spec is impossible, with the family's own sentence.

    Examples
    --------
    >>> import topogen as tg
    >>> tg.spec_from_text("Chain(RadixNet(systems=[[2, 2, 2]]), Dense(sizes=[8, 3]))").sizes
    (8, 8, 8, 8, 3)
    """
    checks.instance(text, "text", "spec_from_text", str)
    text = text.strip()
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SpecError(f"The spec '{_short(text)}' is no expression: {_reason(error)}.") from None
    spec = _Reader(text).read(tree.body)
    if isinstance(spec, AbstractSpec):
        return spec
    raise SpecError(f"A spec must be a family with arguments, such as Dense(sizes=[4, 2]). Got '{_short(text)}'.")


class _Reader:
    """Turns the nodes of an expression into values; it knows the text so that errors can point into it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lines = text.splitlines()

    def read(self, node: ast.expr) -> Any:
        """Return the value of `node`."""
        match node:
            case ast.Constant(value=int(number)) if number.bit_length() > _INT_BITS:
                return self._refuse(node, f"must hold ints below 2**{_INT_BITS} only")
            case ast.Constant(value=bool() | int() | float() | str() | None):
                return node.value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
                return -self.read(node.operand)
            case ast.List(elts=entries):
                return [self.read(entry) for entry in entries]
            case ast.Tuple(elts=entries):
                return tuple(self.read(entry) for entry in entries)
            case ast.Call():
                return self._call(node)
            case _:
                return self._refuse(node, "must hold families with arguments, numbers, strings, lists and tuples only")

    def _call(self, node: ast.Call) -> AbstractSpec:
        families = _spec._FAMILIES  # pyright: ignore[reportPrivateUsage]
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        family = families.get(name)
        if family is None:
            hint = nearest(self._source(node.func), families)
            self._refuse(node.func, f"must name a known family ({hint})")
        signature = inspect.signature(family)
        positional = [self.read(argument) for argument in node.args]
        named: dict[str, Any] = {}
        for keyword in node.keywords:
            parameter = keyword.arg or "**"
            if parameter not in signature.parameters:
                hint = nearest(parameter, signature.parameters)
                self._refuse(keyword, f"must give {name} known parameters ({hint})")
            if parameter in named:
                self._refuse(keyword, f"must give each parameter of {name} once")
            named[parameter] = self.read(keyword.value)
        try:
            signature.bind(*positional, **named)
        except TypeError as error:
            self._refuse(node, f"must fit {name}({parameters(signature)}): {error}")
        try:
            return family(*positional, **named)
        except SpecError:
            raise
        except (TypeError, ValueError, ArithmeticError) as error:
            self._refuse(node, f"must give {name} possible arguments ({error})")

    def _source(self, node: ast.expr | ast.keyword) -> str:
        return _short(ast.get_source_segment(self._text, node) or "")

    def _refuse(self, node: ast.expr | ast.keyword, requirement: str) -> NoReturn:
        before = self._lines[node.lineno - 1].encode()[: node.col_offset].decode()  # ast counts bytes
        place = f"line {node.lineno}, column {len(before) + 1}"
        raise SpecError(f"A spec {requirement}. Got '{self._source(node)}' ({place}).")


def _reason(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.msg} (line {error.lineno or 1}, column {max(error.offset or 1, 1)})"
    return str(error) or "it is nested too deeply"


def parameters(signature: inspect.Signature) -> str:
    """Return what can be given: ``spec, sizes, *, keep='first'``, or ``sizes=...`` where all go by name."""
    bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    if all(parameter.kind is parameter.KEYWORD_ONLY for parameter in bare):
        return ", ".join(f"{p.name}=..." if p.default is p.empty else str(p) for p in bare)
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))[1:-1]


def nearest(name: str, known: Collection[str]) -> str:
    """Return a hint for an error: the known name most like `name`; where none is like it, all of them or how to see."""
    found = difflib.get_close_matches(name.rpartition(".")[2], known, n=1)
    if found:
        return f"the nearest is {found[0]}"
    return f"known: {', '.join(sorted(known))}" if len(known) <= _FEW else "'topogen list' shows all"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:77]}..."
