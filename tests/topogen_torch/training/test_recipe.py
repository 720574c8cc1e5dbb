"""Recipes: what they say is what runs, every run has one, and what is wrong with one is said by name."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import topogen as tg
from topogen.errors import FormatError, SpecError
from topogen_torch._training._recipe import KEYS, read_recipe, recipe_text
from topogen_torch._training._settings import Settings, read_settings

SPEC = tg.Chain(tg.RadixNet(systems=[[8, 8]]), tg.Dense(sizes=[64, 10]))
SETTINGS = Settings(
    data="digits", spec=SPEC, epochs=3, batch_size=32, accumulate=2, optimizer="adam", lr=1e-4, schedule={2: 0.1},
    method={"name": "set", "drop_fraction": {"initial": 0.5}}, seed=7, repeats=2, twins=False, threads=1,
    loggers=("tensorboard",),
)  # fmt: skip


def written(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_settings_come_back_from_their_recipe(tmp_path: Path) -> None:
    assert Settings(**read_recipe(written(tmp_path, recipe_text(SETTINGS)))) == SETTINGS


def test_a_recipe_can_set_all_that_a_command_can() -> None:
    assert set(KEYS) == {field.name for field in fields(Settings)} - {"start"}


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    text = "lr: 1e-4\nweight_decay: 1.e-3\nmomentum: 0.9\nschedule: {30: 0.1, 60: 1E-1}\ntwins: no\n"
    assert read_recipe(written(tmp_path, text)) == {
        "lr": 1e-4, "weight_decay": 1e-3, "momentum": 0.9, "schedule": {30: 0.1, 60: 0.1}, "twins": False
    }  # fmt: skip


@pytest.mark.parametrize("spec", [f'"{SPEC!r}"', tg.spec_to_json(SPEC)])
@pytest.mark.parametrize("method", ["rigl(end=0.5)", "\n  name: rigl\n  end: 0.5"])
def test_spec_and_method_may_be_text_or_mappings(tmp_path: Path, spec: str, method: str) -> None:
    found = read_recipe(written(tmp_path, f"spec: {spec}\nmethod: {method}\n"))
    assert found == {"spec": SPEC, "method": {"name": "rigl", "end": 0.5}}


PYTHON = """
import topogen as tg, topogen_torch as tt

def method(model, optimizer, steps):
    return tt.RigL(model, optimizer, end_step=steps, update_every=2)

recipe = dict(
    data="digits", spec=tg.Dense(sizes=[64, 10]), epochs=2, batch_size=32, lr=2 * 0.05, threads=1, method=method
)
"""


def test_a_recipe_in_python_may_hold_objects_and_functions(tmp_path: Path) -> None:
    path = written(tmp_path, PYTHON, "recipe.py")
    found = read_recipe(path)
    assert (found["spec"], found["lr"], found["method"].__name__) == (tg.Dense(sizes=[64, 10]), 0.1, "method")
    settings = Settings(**found)
    (tmp_path / "settings.json").write_text(settings.to_json())
    again = read_settings(tmp_path)
    assert again.method is not settings.method
    assert again.method.__name__ == "method"  # type: ignore[union-attr]
    assert replace(again, method=None) == replace(settings, method=None)


def test_settings_come_back_from_json(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(SETTINGS.to_json())
    assert read_settings(tmp_path) == SETTINGS


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("recipe.yaml", "epoch: 3", SpecError, "must have known keys only (the nearest is 'epochs'). Got 'epoch'."),
        ("recipe.yaml", "start: 3", SpecError, "must have known keys only (known: 'data'"),
        ("recipe.yaml", "3: 3", SpecError, "must have known keys only (known: 'data', 'spec'"),
        ("recipe.yaml", "- epochs", FormatError, "must be a mapping of settings. Got list."),
        ("recipe.yaml", "", FormatError, "must be a mapping of settings. Got NoneType."),
        ("recipe.yaml", "lr: 1\nlr: 2", FormatError, "is no YAML of a recipe: it has the key 'lr' twice, in line 1"),
        ("recipe.yaml", "lr: [1", FormatError, "is no YAML of a recipe: while parsing a flow sequence"),
        ("recipe.yaml", "lr: !!python/name:os.system", FormatError, "could not determine a constructor"),
        ("recipe.yaml", "spec: Dens(sizes=[2])", SpecError, "the nearest is Dense"),
        ("recipe.yaml", "method: rigl(", SpecError, "A method must be an expression. Got 'rigl('."),
        ("recipe.py", "recipes = {}", FormatError, "must assign a dict to 'recipe'. It assigns nothing to that name."),
        ("recipe.py", "recipe = 3", FormatError, "must be a mapping of settings. Got int."),
        ("recipe.py", "recipe = {\n'lr' 1}", FormatError, "is no Python: "),
        ("recipe.toml", "lr = 1", SpecError, "must end with .yaml, .yml or .py. Got "),
    ],
)
def test_bad_recipes(tmp_path: Path, name: str, text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as refused:
        read_recipe(written(tmp_path, text, name))
    assert message in str(refused.value)
    assert name in str(refused.value)


@pytest.mark.parametrize("name", ["no.yaml", "no.py"])
def test_a_recipe_that_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        read_recipe(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "sdg"}, "The '--optimizer' parameter of topogen train must be 'sgd' or"),
        ({"schedule": "cosin"}, "The '--schedule' parameter of topogen train must be 'cosine', 'linear'"),
        ({"method": "rigel"}, "The 'method' parameter of topogen train must be a method (the nearest is 'rigl')"),
        ({"devices": 0}, "The '--devices' parameter of topogen train must be an int >= 1. Got 0."),
        ({"nodes": 0}, "The '--nodes' parameter of topogen train must be an int >= 1. Got 0."),
        ({"accumulate": 0}, "The '--accumulate' parameter of topogen train must be an int >= 1. Got 0."),
        ({"loggers": "tensorboard"}, "The '--logger' parameter of topogen train must be a sequence of names. Got"),
        ({"loggers": ["neptune"]}, "The '--logger' parameter of topogen train must be 'tensorboard' or 'wandb'."),
        ({"twins": 1}, "The '--twins' parameter of topogen train must be a bool. Got 1."),
        ({"spec": None}, "The '--spec' parameter of topogen train must be an AbstractSpec. Got None."),
    ],
)
def test_bad_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as refused:
        replace(SETTINGS, **change)
    assert str(refused.value).startswith(message)
