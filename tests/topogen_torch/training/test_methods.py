"""Methods by name: what may be set, what they do, and how they are written as text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import DATA, KW, STEPS, Stopper, assert_same, plain_network
from torch import nn

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError
from topogen_torch._training import _builders
from topogen_torch._training._method_text import method_from_text, schedule_from_text
from topogen_torch._training._methods import (
    METHODS,
    apply_once,
    checked_method,
    epochs_of,
    is_dynamic,
    is_once,
    make_method,
    prunes,
)
from topogen_torch._training._recipe import read_recipe
from topogen_torch._training._settings import Settings
from topogen_torch._training._train import train

NEEDED = {
    "cubic": {"density": 0.25}, "movement": {"density": 0.25}, "oneshot": {"density": 0.25},
    "synflow": {"density": 0.25, "rounds": 5}, "l1": {"strength": 0.01}, "neurons": {"density": 0.5},
    "threshold": {"quality": 1.0}, "lottery": {"rounds": 2}, "snip": {"density": 0.25}, "grasp": {"density": 0.25},
}  # fmt: skip
WHILE = [name for name in METHODS if not is_once({"name": name})]


def dense_network() -> nn.Module:
    torch.manual_seed(0)
    return tt.sparse_mlp(tg.generate(tg.Dense(sizes=[8, 16, 12, 4])))


def counts(model: nn.Module) -> list[int]:
    return [layer.nnz for layer in model.modules() if isinstance(layer, tt.SparseLinear)]


def settings_of(name: str, **settings: Any) -> dict[str, Any]:
    return checked_method({"name": name, **NEEDED.get(name, {}), **settings}, "the test")


def start_of(name: str) -> nn.Module:
    return dense_network() if prunes({"name": name}) else plain_network()


# ---- what they do


@pytest.mark.parametrize("name", WHILE)
def test_every_method_trains_and_resumes_exactly(name: str, tmp_path: Any) -> None:
    every = {"update_every": 3} if name in ("set", "rigl", "snfs", "l1") else {}
    method = make_method(settings_of(name, **every), DATA, epochs=3, seed=4)
    whole, model = start_of(name), start_of(name)
    history = train(whole, DATA, method=method, **KW)
    before, after = counts(start_of(name)), counts(whole)
    if is_dynamic({"name": name}):
        assert sum(after) == sum(before)
        assert any(layer.explored > layer.density for layer in history[-1].layers)
    elif name in ("l1", "threshold"):
        assert 0 < sum(after) < sum(before)
    elif name == "lottery":
        assert after == [round(0.8**2 * count) for count in before]
        assert len(history) == 3 * 3
    else:
        assert after == [round(0.25 * count) for count in before]
    settings: dict[str, Any] = {**KW, "method": method, "checkpoint": tmp_path / "run.pt"}
    for step in (4, STEPS + 2, *((3 * STEPS, 7 * STEPS + 1) if name == "lottery" else ())):
        with pytest.raises(KeyboardInterrupt):
            train(start_of(name), DATA, on_step=Stopper(step), **settings)
    train(model, DATA, **settings)
    assert_same(model, whole)


@pytest.mark.parametrize("score", ["magnitude", "random", "snip", "grasp", "synflow"])
@pytest.mark.parametrize("baseline", [None, "shuffled", "inverted"])
def test_what_prunes_once_is_exact_and_repeatable(score: str, baseline: str | None) -> None:
    settings = settings_of("oneshot", score=score, baseline=baseline, scope="global")
    first, again = dense_network(), dense_network()
    if (score, baseline) in (("random", "shuffled"), ("random", "inverted")):
        with pytest.raises(SpecError, match="The 'baseline' parameter of the method 'oneshot' must be None where the"):
            apply_once(settings, first, DATA, seed=1)
        return
    for model in (first, again):
        apply_once(settings, model, DATA, seed=1)
    assert sum(counts(first)) == round(0.25 * sum(counts(dense_network())))
    assert_same(first, again)
    other = dense_network()
    apply_once(settings_of("oneshot", scope="global"), other, DATA, seed=1)
    same = first.state_dict()["0.pattern_hash"].tolist() == other.state_dict()["0.pattern_hash"].tolist()
    assert same == (score == "magnitude" and baseline is None)


@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_snip_and_grasp_score_all_layers_together_on_ten_images_a_class(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    original = _builders.cross_entropy

    def watched(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(logits.shape))
        return original(logits, labels)

    monkeypatch.setattr(_builders, "cross_entropy", watched)
    model = dense_network()
    apply_once(settings_of(name), model, DATA, seed=0)
    assert seen == [(40, 4)]
    assert sum(counts(model)) == round(0.25 * sum(counts(dense_network())))
    assert counts(model) != [round(0.25 * count) for count in counts(dense_network())]
    other = dense_network()
    apply_once(settings_of("oneshot", score=name, scope="global"), other, DATA, seed=0)
    same = other.state_dict()["0.pattern_hash"].tolist() == model.state_dict()["0.pattern_hash"].tolist()
    assert same == (name == "snip")  # of GraSP the logits are divided by 200, as its authors do


def test_shares_of_the_schedule() -> None:
    model = dense_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for at, steps in ((0.25, [25]), ([0, 0.5, 1], [1, 50, 100])):
        method = make_method(settings_of("threshold", at=at), DATA, epochs=10, seed=0)
        assert method(model, optimizer, 100).state_dict()["settings"]["steps"] == steps
    fraction = {"shape": "linear", "initial": 0.5, "final": 0.1}
    method = make_method(
        settings_of("lottery", rounds=4, rewind_to=0.05, drop_fraction=fraction), DATA, epochs=1, seed=0
    )
    ticket = method(model, optimizer, 100)
    assert (ticket.round_steps, ticket.total_steps, ticket.position_at(100)) == (100, 100 + 4 * 95, 5)
    for back in (0.0, 0.05, 0.34, 0.999):
        settings = settings_of("lottery", rewind_to=back)
        history = train(dense_network(), DATA, method=make_method(settings, DATA, epochs=3, seed=0), **KW)
        assert len(history) == epochs_of(settings, 3, STEPS)
    assert epochs_of(settings_of("cubic"), 3, STEPS) == 3
    method = make_method(settings_of("lottery", rounds=4, drop_fraction=fraction), DATA, epochs=1, seed=0)
    ticket = method(model, optimizer, 100)
    assert [ticket.targets[0].at("drop_fraction", k) for k in (0, 2, 4)] == pytest.approx([0.5, 0.3, 0.1])


def test_synflow_and_neurons_prune_before_training() -> None:
    model, structured = dense_network(), dense_network()
    apply_once(settings_of("synflow"), model, DATA, seed=0)
    assert sum(counts(model)) == round(0.25 * sum(counts(dense_network())))
    apply_once(settings_of("neurons"), structured, DATA, seed=0)
    assert counts(structured) == [8 * 8, 8 * 6, 6 * 4]


def test_times_are_shares_of_the_run_and_numbers_may_be_schedules() -> None:
    model = plain_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fraction = {"initial": 0.4, "final": 0.1}
    settings = settings_of(
        "rigl",
        end=0.5,
        update_every="epoch",
        drop_fraction=fraction,
        groups=[{"layers": "0", "drop_fraction": fraction}],
    )
    controller = make_method(settings, DATA, epochs=10, seed=0)(model, optimizer, 200)
    state = controller.state_dict()["settings"]
    assert (state["end_step"], state["update_every"]) == (100, 20)
    for target in controller.targets:
        assert [target.at("drop_fraction", step) for step in (0, 100, 200)] == pytest.approx([0.4, 0.25, 0.1])


def test_gradual_pruning_takes_thirty_updates_where_nothing_is_asked_for() -> None:
    model = dense_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = make_method(settings_of("cubic", begin=0.25, end=0.5), DATA, epochs=1, seed=0)
    assert method(model, optimizer, 2400).state_dict()["settings"]["update_every"] == 20


# ---- what is refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("rigel", "The 'method' parameter of me must be a method (the nearest is 'rigl'). Got 'rigel'."),
        (
            "quux",
            "The 'method' parameter of me must be a method (known: 'set', 'rigl', 'snfs', 'cubic', 'movement', 'l1', "
            "'threshold', 'lottery', 'oneshot', 'snip', 'grasp', 'synflow', 'neurons'). Got 'quux'.",
        ),
        (3, "The 'method' parameter of me must be the name of a method, or a mapping with its 'name'. Got 3."),
        (
            {"name": "rigl", "updat_every": 3},
            "The settings of the method 'rigl' must be known ones (the nearest is 'update_every'). Got 'updat_every'.",
        ),
        ({"name": "cubic", "end": 0.5}, "The settings of the method 'cubic' must have 'density'. Got {'end': 0.5}."),
    ],
)
def test_unknown_names_are_refused(given: Any, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        checked_method(given, "me")
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("set", {"update_every": "epochs"}, "'update_every' parameter of the method 'set' must be an int >= 1 or 'epo"),
        ("set", {"update_every": 0}, "'update_every' parameter of the method 'set' must be an int >= 1. Got 0"),
        ("rigl", {"end": 1.5}, r"'end' parameter of the method 'rigl' must be a finite number in \[0, 1\]. Got 1.5"),
        ("cubic", {"begin": 0.8}, "'end' parameter of the method 'cubic' must be at least begin, 0.8. Got 0.75"),
        ("cubic", {"density": 1.5}, r"The 'density' parameter of GradualMagnitude must be a finite number in \(0, 1\]"),
        (
            "threshold",
            {"at": 1.5},
            r"'at' parameter of the method 'threshold' must be a finite number in \[0, 1\]. Got 1.5",
        ),
        ("threshold", {"at": "half"}, "'at' parameter of the method 'threshold' must be shares of the run. Got 'half'"),
        (
            "threshold",
            {"at": [0.5, 0.501]},
            r"must be rising shares of the run that name different ones of 100 steps. Got \[0.5, 0.501\]",
        ),
        ("threshold", {"at": []}, r"must be rising shares of the run that name different ones of 100 steps. Got \[\]"),
        (
            "threshold",
            {"quality": -1},
            r"The 'quality' parameter of Threshold must be a finite number in \[0, inf\). Got",
        ),
        (
            "l1",
            {"strength": "strong"},
            r"'strength' parameter of the method 'l1' must be a number, or a schedule such as cosine\(0.5, 0.1\). Got",
        ),
        (
            "lottery",
            {"drop_fraction": [1]},
            r"'drop_fraction' parameter of the method 'lottery' must be a number, .* \[1\]",
        ),
        ("threshold", {"quality": True}, "'quality' parameter of the method 'threshold' must be a number, .* Got True"),
        (
            "set",
            {"layers": 5},
            "'layers' parameter of the method 'set' must be a pattern of names, or a list of them. Got 5",
        ),
        (
            "set",
            {"groups": [{"layers": [1]}]},
            r"'layers' parameter of the method 'set' must be a pattern .* Got \[1\]",
        ),
        ("set", {"groups": 3}, "'groups' parameter of the method 'set' must be a list of mappings. Got 3"),
        ("set", {"groups": ["0"]}, r"'groups' parameter of the method 'set' must be a list of mappings. Got \['0'\]"),
        ("lottery", {"rounds": 0}, "The 'rounds' parameter of the method 'lottery' must be an int >= 1. Got 0"),
        (
            "lottery",
            {"rewind_to": 1},
            r"'rewind_to' parameter of the method 'lottery' must be a finite number in \[0, 1\)",
        ),
        (
            "lottery",
            {"rewind": "rate"},
            "The 'rewind' parameter of LotteryTicket must be 'weights' or 'learning rate'. Go",
        ),
        ("lottery", {"drop_fraction": 1}, r"The 'drop_fraction' parameter of LotteryTicket must be in \[0, 1\). Got 1"),
        ("set", {"drop_fraction": {"final": 0.1}}, "settings of drop_fraction in the method 'set' must have 'initial'"),
        ("set", {"layers": "conv*"}, "The 'layers' parameter of SET must name sparse layers, .* Got 'conv.', which"),
    ],
)
def test_impossible_settings_are_refused_when_the_method_is_built(
    name: str, settings: dict[str, Any], message: str
) -> None:
    model = start_of(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(SpecError, match=message):
        make_method(settings_of(name, **settings), DATA, epochs=1, seed=0)(model, optimizer, 100)


# ---- as text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("set", {"name": "set"}),
        ("rigl(update_every=50)", {"name": "rigl", "update_every": 50}),
        ("set(drop_fraction=cosine(0.5, 0.1))",
         {"name": "set", "drop_fraction": {"shape": "cosine", "initial": 0.5, "final": 0.1}}),
        ("set(drop_fraction=linear(0.5))", {"name": "set", "drop_fraction": {"shape": "linear", "initial": 0.5}}),
        ("oneshot(density=1e-2, score=snip, scope=global)",
         {"name": "oneshot", "density": 0.01, "score": "snip", "scope": "global"}),
        ("set(layers=['0', \"2\"], groups=[{'layers': '0', 'drop_fraction': -1}])",
         {"name": "set", "layers": ["0", "2"], "groups": [{"layers": "0", "drop_fraction": -1}]}),
        ("oneshot(baseline=None)", {"name": "oneshot", "baseline": None}),
    ],
)  # fmt: skip
def test_methods_as_text(text: str, expected: dict[str, Any]) -> None:
    assert method_from_text(text) == expected


def test_schedules_as_text() -> None:
    assert schedule_from_text("cosine") == "cosine"
    assert schedule_from_text("{30: 0.1, 60: 0.5}") == {30: 0.1, 60: 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("set(", "A method must be an expression. Got 'set('."),
        ("set(0.3)", "A method must be a name, or a name with arguments by name, as rigl(update_every=50). Got"),
        ("3", "A method must be a name, or a name with arguments by name"),
        ("set(drop_fraction=__import__('os'))", "A method must hold numbers, strings, lists, mappings and schedules"),
        ("set(drop_fraction=cosine(1, 2, 3))", "A method must hold numbers, strings, lists, mappings and schedules"),
    ],
)
def test_text_that_is_no_method(text: str, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        method_from_text(text)
    assert str(refused.value).startswith(message)


def test_text_that_is_no_schedule() -> None:
    with pytest.raises(SpecError, match=r"A schedule must be an expression. Got '\{30: '"):
        schedule_from_text("{30: ")


# ---- as documented

PAGE = (Path(__file__).parents[3] / "docs/howto/train_and_prune.md").read_text()


def test_the_page_tells_every_method_with_its_defaults() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", PAGE.partition("\n## What")[0], re.M))
    assert tuple(told) == METHODS
    for name in set(METHODS) - {"movement"}:
        settings = checked_method(
            {"name": name, **{key: 1 for key in NEEDED.get(name, {}) if (name, key) != ("synflow", "rounds")}}, "me"
        )
        expected = [
            f"`{key}`"
            if key in ("density", "strength", "quality") or (name, key) == ("lottery", "rounds")
            else f"`{key}={value!r}`".replace("'", '"')
            for key, value in settings.items()
            if key not in ("name", "layers", "groups")
        ]
        assert told[name].split(", ") == expected
    assert settings_of("movement") == {**settings_of("cubic"), "name": "movement"}


@pytest.mark.parametrize("language", ["yaml", "python"])
def test_the_recipes_of_the_page_can_be_read(language: str, tmp_path: Path) -> None:
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)
    path = tmp_path / f"recipe.{'py' if language == 'python' else 'yaml'}"
    path.write_text(text)
    found = read_recipe(path)
    Settings(**{"data": "digits", "batch_size": 10, "lr": 0.1, "threads": 1, **found})
    assert found["epochs"] == (20 if language == "python" else 100)
