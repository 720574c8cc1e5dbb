"""Recipes: a file in YAML or Python that describes an experiment completely.

Its keys are the options of ``topogen train``, with underscores. A recipe in Python assigns a dict to `recipe`; there
the spec may be a spec, and the method a function that `train` takes.
"""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

import topogen as tg
from topogen.errors import FormatError, SpecError
from topogen_torch._training._given import unknown
from topogen_torch._training._method_text import method_from_text
from topogen_torch._training._settings import Settings

__all__ = ["KEYS", "read_recipe", "recipe_text"]

KEYS = tuple(field.name for field in fields(Settings) if field.name != "start")


class _Loader(yaml.SafeLoader):
    """YAML whose numbers are those that people write, 1e-4 among them, and where no key comes twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # pyright: ignore[reportUnknownMemberType]
        for key in keys:
            if keys.count(key) > 1:
                raise FormatError(f"it has the key {key!r} twice, in line {node.start_mark.line + 1} and below.")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the settings that a recipe gives: the spec as a spec, nothing filled in.

    Raises
    ------
    OSError
        If the file cannot be read.
    FormatError
        If it is no YAML, or no Python that assigns a dict to `recipe`.
    SpecError
        If it has a key that no recipe has, naming the nearest one.
    """
    if path.suffix not in (".yaml", ".yml", ".py"):
        raise SpecError(f"The '--recipe' parameter of topogen train must end with .yaml, .yml or .py. Got '{path}'.")
    given = _from_python(path) if path.suffix == ".py" else _from_yaml(path)
    if not isinstance(given, Mapping):
        raise FormatError(f"The recipe {path} must be a mapping of settings. Got {type(given).__name__}.")
    for key in given:
        if key not in KEYS:
            raise SpecError(f"The recipe {path} must have known keys only ({unknown(key, KEYS)}). Got {key!r}.")
    values: dict[str, Any] = dict(given)
    spec = values.get("spec")
    try:
        if isinstance(spec, str):
            values["spec"] = tg.spec_from_text(spec)
        elif isinstance(spec, Mapping):
            values["spec"] = tg.spec_from_json(json.dumps(spec))
        if isinstance(values.get("method"), str):
            values["method"] = method_from_text(values["method"])
    except ValueError as error:  # FormatError and SpecError are ValueErrors
        raise SpecError(f"The recipe {path} is refused: {error}") from None
    return values


def recipe_text(settings: Settings) -> str:
    """Return a recipe in YAML that gives these settings."""
    values = {key: value for key, value in settings.to_dict().items() if key in KEYS}
    return yaml.safe_dump(values | {"spec": repr(settings.spec)}, sort_keys=False, width=110)


def _from_yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError, FormatError) as error:
        raise FormatError(f"The recipe {path} is no YAML of a recipe: {' '.join(str(error).split())}") from None


def _from_python(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    try:
        names = runpy.run_path(str(path))
    except SyntaxError as error:
        raise FormatError(f"The recipe {path} is no Python: {error.msg} in line {error.lineno}.") from None
    if "recipe" not in names:
        raise FormatError(f"The recipe {path} must assign a dict to 'recipe'. It assigns nothing to that name.")
    return names["recipe"]
