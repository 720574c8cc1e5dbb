"""Methods and schedules as text: ``rigl(update_every=50, drop_fraction=cosine(0.5, 0.1))``, ``{30: 0.1}``."""

from __future__ import annotations

import ast
import re
from typing import Any, NoReturn

from topogen.errors import SpecError

__all__ = ["method_from_text", "schedule_from_text"]

_KEYWORD = re.compile(r"(?<==)\s*global\b")  # the one setting that Python would not take without quotes
_SHAPES = ("cubic", "linear", "cosine", "sigmoid")


def method_from_text(text: str) -> dict[str, Any]:
    """Return the settings that a method's name, with or without arguments by name, describes; nothing is evaluated."""
    node = _parsed(text, "method")
    if isinstance(node, ast.Name):
        return {"name": node.id}
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        _refuse(text, "method", "be a name, or a name with arguments by name, as rigl(update_every=50)")
    return {"name": node.func.id, **{str(part.arg): _read(part.value, text) for part in node.keywords}}


def schedule_from_text(text: str) -> Any:
    """Return a schedule's name as it is, or the mapping that ``{30: 0.1, 60: 0.1}`` describes."""
    return _read(_parsed(text, "schedule"), text) if text.lstrip().startswith("{") else text


def _parsed(text: str, what: str) -> ast.expr:
    try:
        return ast.parse(_KEYWORD.sub("'global'", text.strip()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        _refuse(text, what, "be an expression")


def _read(node: ast.expr, text: str) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None):
            return node.value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=entries) | ast.Tuple(elts=entries):
            return [_read(entry, text) for entry in entries]
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {_read(key, text): _read(value, text) for key, value in zip(keys, values, strict=True) if key}
        case ast.Name(id=word):
            return word
        case ast.Call(func=ast.Name(id=shape), args=args, keywords=named) if shape in _SHAPES and len(args) <= 2:
            ends = dict(zip(("initial", "final"), (_read(entry, text) for entry in args), strict=False))
            return {"shape": shape, **ends, **{str(part.arg): _read(part.value, text) for part in named}}
        case _:
            shapes = ", ".join(f"{shape}(0.5, 0.1)" for shape in _SHAPES)
            return _refuse(
                text, "method", f"hold numbers, strings, lists, mappings and schedules such as {shapes} only"
            )


def _refuse(text: str, what: str, requirement: str) -> NoReturn:
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    raise SpecError(f"A {what} must {requirement}. Got {shown!r}.")
