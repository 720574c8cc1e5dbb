"""What a run has to beat, by name: narrow dense, random, and the method with its scores shuffled or inverted."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import rows, topogen, without_timing
from small_run import DATA
from torch import nn

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError
from topogen_torch._training import _run
from topogen_torch._training._members import Member, members, method_of, model_of
from topogen_torch._training._methods import METHODS, apply_once, checked_method, make_method, score_baselines, takes
from topogen_torch._training._settings import BASELINES, Settings, read_settings
from topogen_torch.controllers.growth import at_random

SIZES = [8, 16, 12, 4]
NEEDED: dict[str, dict[str, Any]] = {
    "l1": {"strength": 0.01}, "threshold": {"quality": 1}, "lottery": {"rounds": 2}, "synflow": {"rounds": 5}
}  # fmt: skip


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    without_timing(monkeypatch)


def method(name: str, **settings: Any) -> dict[str, Any]:
    density = {"density": 0.25} if takes(name, "density") else {}
    return checked_method({"name": name, **density, **NEEDED.get(name, {}), **settings}, "the test")


def settings(name: str | None, *baselines: str, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "data": "digits", "spec": tg.Dense(sizes=SIZES), "epochs": 1, "batch_size": 10, "lr": 0.1, "threads": 1,
        "twins": False, "method": method(name) if name else None, "baselines": baselines,
    }  # fmt: skip
    return Settings(**{**values, **changes})


def sparse_layers(model: nn.Module) -> list[tt.SparseLinear]:
    return [layer for layer in model.modules() if isinstance(layer, tt.SparseLinear)]


def counts(model: nn.Module) -> list[int]:
    return [layer.nnz for layer in sparse_layers(model)]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def models(name: str, **changes: Any) -> dict[str, nn.Module]:
    """The models that begin a run of a method that prunes before training, by kind."""
    chosen = settings(name, **changes)
    return {
        kind: model_of(chosen, Member(kind, 3), DATA) for kind in ("sparse", "random", *score_baselines(chosen.method))
    }


# ---- which there are


def test_they_are_trained_after_the_twins_each_once() -> None:
    kinds = [str(member) for member in members(settings(None, "narrow", "dense", "narrow", twins=True, repeats=2))]
    assert kinds == [f"{kind}, seed {seed}" for seed in (0, 1) for kind in ("sparse", "dense", "random", "narrow")]
    only = settings("cubic", "inverted", "random")
    assert [member.kind for member in members(only)] == ["sparse", "inverted", "random"]


@pytest.mark.parametrize("name", METHODS)
def test_every_baseline_that_a_method_has_can_be_built(name: str) -> None:
    chosen = settings(name, *score_baselines(method(name)))
    for kind in chosen.baselines:
        model, own = model_of(chosen, Member(kind, 0), DATA), method_of(chosen, Member(kind, 0), DATA)
        assert 0 < sum(counts(model)) <= sum(counts(model_of(settings(None), Member("sparse", 0), DATA)))
        if own is not None:
            controller = own(model, torch.optim.SGD(model.parameters(), lr=0.1), 60)
            assert [target.layer for target in controller.targets] == sparse_layers(model)


def test_the_page_tells_which_method_has_which() -> None:
    page = (Path(__file__).parents[3] / "docs/howto/train_and_prune.md").read_text().partition("\n## What")[2]
    told = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|$", page, re.M))
    assert sorted(told) == sorted(BASELINES)
    for baseline in ("shuffled", "inverted", "static"):
        able = [name for name in METHODS if baseline in settings(name).possible_baselines]
        assert sorted(re.findall(r"`(\w+)`", told[baseline])) == sorted(able)


# ---- what they are


@pytest.mark.parametrize("name", ["oneshot", "snip", "grasp"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_inverted_keeps_what_the_method_prunes_first(name: str, scope: str) -> None:
    found = models(name, method=method(name, scope=scope, density=0.5))
    dense = model_of(settings(None), Member("sparse", 3), DATA)
    kept = {kind: np.concatenate([w.pattern.toarray().ravel() for w in sparse_layers(m)]) for kind, m in found.items()}
    assert not (kept["sparse"] & kept["inverted"]).any()  # of half of them the other half
    assert kept["sparse"].sum() == kept["inverted"].sum() == sum(counts(dense)) / 2
    for model in (found["sparse"], found["inverted"], found["shuffled"]):  # what stays is what was drawn
        for layer, whole in zip(sparse_layers(model), sparse_layers(dense), strict=True):
            assert (
                layer.to_scipy().toarray()[layer.pattern.toarray()]
                == whole.to_scipy().toarray()[layer.pattern.toarray()]
            ).all()


@pytest.mark.parametrize("name", ["oneshot", "snip", "grasp", "synflow"])
def test_shuffled_keeps_as_many_in_each_layer_in_places_that_the_seed_draws(name: str) -> None:
    changes = {} if name == "synflow" else {"method": method(name, scope="global")}
    found, again = models(name, **changes), models(name, **changes)
    assert counts(found["shuffled"]) == counts(found["sparse"]) == counts(found["random"])
    hashes = {kind: [layer.pattern_hash.tolist() for layer in sparse_layers(model)] for kind, model in found.items()}
    assert hashes["shuffled"] == [layer.pattern_hash.tolist() for layer in sparse_layers(again["shuffled"])]
    assert all(a != b for a, b in zip(hashes["shuffled"], hashes["sparse"], strict=True))
    other = model_of(settings(name, **changes), Member("shuffled", 4), DATA)
    assert hashes["shuffled"] != [layer.pattern_hash.tolist() for layer in sparse_layers(other)]


def test_neurons_go_by_the_opposite_of_their_norm_or_at_random() -> None:
    found = models("neurons", method=method("neurons", density=0.5))
    dense = sparse_layers(model_of(settings(None), Member("sparse", 3), DATA))
    alive = {
        kind: [layer.pattern.toarray().any(0) for layer in sparse_layers(found[kind])[:-1]]
        for kind in ("sparse", "shuffled", "inverted")
    }
    for k, (before, behind) in enumerate(zip(dense, dense[1:], strict=False)):
        norms = (before.to_scipy().toarray() ** 2).sum(0) + (behind.to_scipy().toarray() ** 2).sum(1)
        n = before.out_features
        assert (alive["inverted"][k] == (norms.argsort().argsort() < n // 2)).all()
        assert (alive["sparse"][k] == (norms.argsort().argsort() >= n // 2)).all()
        assert alive["shuffled"][k].sum() == n // 2
    assert any((a != b).any() for a, b in zip(alive["shuffled"], alive["sparse"], strict=True))
    assert any((a != b).any() for a, b in zip(alive["shuffled"], alive["inverted"], strict=True))


@pytest.mark.parametrize("name", ["cubic", "movement"])
def test_gradual_pruning_follows_the_baseline_s_score(name: str) -> None:
    chosen = method(name, update_every=1, end=1.0)
    kept: dict[str | None, Any] = {}
    for baseline in (None, "inverted", "shuffled"):
        torch.manual_seed(0)
        model = tt.sparse_mlp(tg.generate(tg.Dense(sizes=[8, 4])))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        controller = make_method(chosen, DATA, epochs=1, seed=0, baseline=baseline)(model, optimizer, 1)
        model(torch.from_numpy(DATA.train_x[:9])).square().mean().backward()
        optimizer.step()
        assert controller.step()
        kept[baseline] = model[0].pattern.toarray()
        assert kept[baseline].sum() == 8
    assert not (kept[None] & kept["inverted"]).any()
    assert (kept["shuffled"] != kept[None]).any()
    assert (kept["shuffled"] != kept["inverted"]).any()


@pytest.mark.parametrize("name", ["rigl", "snfs"])
def test_shuffled_growth_is_a_draw(name: str) -> None:
    model = model_of(settings(None), Member("sparse", 0), DATA)
    build = make_method(method(name), DATA, epochs=1, seed=0, baseline="shuffled")
    controller = build(model, torch.optim.SGD(model.parameters(), lr=0.1), 60)
    assert all(target.setting("grow") is at_random for target in controller.targets)


def test_narrow_has_as_many_parameters_as_what_became_of_the_sparse_one() -> None:
    chosen = settings(None, "narrow", spec=tg.Dense(sizes=[64, 120, 60, 10]))
    trained = model_of(chosen, Member("sparse", 0), DATA)
    apply_once(method("oneshot", density=0.1), trained, DATA, seed=0)
    narrow = model_of(chosen, Member("narrow", 0), DATA, trained=trained)
    widths = [layer.out_features for layer in narrow[::2]]
    assert [type(module) for module in narrow] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert widths[0] == pytest.approx(2 * widths[1], abs=1)
    # one neuron more in the first hidden layer is more than twice as far as the nearest can be
    assert 2 * abs(parameters(narrow) - parameters(trained)) <= 64 + 1 + widths[1] + (widths[0] + 1 + 10)
    assert not any(layer.bias.any() for layer in narrow[::2])
    again = model_of(chosen, Member("narrow", 0), DATA, trained=trained)
    assert torch.equal(narrow[0].weight, again[0].weight)


def test_nothing_is_narrower_than_one_neuron() -> None:
    chosen = settings(None, "narrow", spec=tg.Dense(sizes=[64, 6, 4, 10]))
    trained = model_of(chosen, Member("sparse", 0), DATA)
    apply_once(method("oneshot", density=0.01), trained, DATA, seed=0)
    narrow = model_of(chosen, Member("narrow", 0), DATA, trained=trained)
    assert [layer.out_features for layer in narrow[::2]] == [1, 1, 10]


# ---- a run


def test_a_run_with_baselines_can_be_stopped_in_any_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = ["sparse", "narrow", "random", "shuffled"]
    options = ["train", "--no-twins", "--epochs", "2", "--batch-size", "500", "--spec", "Dense(sizes=[64, 20, 10])"]
    options += ["--method", "cubic(density=0.2, update_every=1)", *(f"--baseline={kind}" for kind in kinds[1:])]
    monkeypatch.setattr(_run, "draw_curves", lambda *_, **__: None)  # takes longer than all of the training
    assert topogen(*options, "--out", "whole") == 0
    printed = capsys.readouterr().out
    original = _run.train

    def stopped(*arguments: Any, **given: Any) -> Any:
        def on_step(step: int, *_: object) -> None:
            if step == 5 and "narrow-seed0" in str(given["checkpoint"]):
                raise KeyboardInterrupt

        return original(*arguments, **{**given, "on_step": on_step})

    with monkeypatch.context() as patch:
        patch.setattr(_run, "train", stopped)
        assert topogen(*options, "--out", "stopped") == 130
    assert topogen("train", "--resume", "stopped", *(f"--baseline={kind}" for kind in kinds[1:])) == 0
    assert rows("stopped", "metrics.csv") == rows("whole", "metrics.csv")
    assert rows("stopped", "layers.csv") == rows("whole", "layers.csv")

    assert [row["model"] for row in rows("whole", "metrics.csv")] == [kind for kind in kinds for _ in range(2)]
    stored = {
        kind: [int(r["stored"]) for r in rows("whole", "layers.csv") if (r["model"], r["epoch"]) == (kind, "2")]
        for kind in kinds
    }
    assert stored["sparse"] == stored["random"] == stored["shuffled"] == [256, 40]
    assert stored["narrow"] == []  # a dense net has no row for its layers
    state = torch.load("whole/checkpoints/narrow-seed0.pt", weights_only=True)["state"]["model"]
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == {
        "0.weight": (4, 64), "0.bias": (4,), "2.weight": (10, 4), "2.bias": (10,)
    }  # fmt: skip
    line = next(line for line in printed.splitlines() if line.startswith("narrow twin"))
    assert line.split()[2] == "296"  # 310 parameters, the sparse one 296 connections and 30 biases
    assert read_settings(Path("whole")).baselines == tuple(kinds[1:])
    assert topogen("train", "--resume", "stopped", "--baseline", "narrow") == 2
    assert (
        "The '--baseline' option of a run cannot change when it is resumed: it is ('narrow'," in capsys.readouterr().err
    )


def test_pruning_has_baselines_that_begin_with_the_same_weights() -> None:
    quick = ["--epochs", "1", "--batch-size", "300"]
    assert topogen("train", *quick, "--no-twins", "--spec", "Dense(sizes=[64, 20, 10])", "--out", "run") == 0
    kinds = ["narrow", "random", "shuffled", "inverted"]
    chosen = [f"--baseline={kind}" for kind in kinds]
    assert topogen("prune", "run", "--density", "0.25", *quick, *chosen, "--out", "pruned") == 0
    assert [row["model"] for row in rows("pruned", "metrics.csv")] == ["sparse", *kinds]
    stored = {
        kind: [int(row["stored"]) for row in rows("pruned", "layers.csv") if row["model"] == kind] for kind in kinds
    }
    assert stored["random"] == stored["shuffled"]
    assert sum(stored["inverted"]) == sum(stored["shuffled"]) == round(0.25 * 1480)
    start = replace(read_settings(Path("pruned")), baselines=())
    whole = load_start("run")
    inverted = model_of(
        replace(start, baselines=("inverted",)), Member("inverted", 0), DATA, Path("pruned/start.safetensors")
    )
    for layer, before in zip(sparse_layers(inverted), whole, strict=True):
        kept = layer.pattern.toarray()
        assert (layer.to_scipy().toarray()[kept] == before[kept]).all()


def load_start(folder: str) -> list[np.ndarray]:
    from topogen_torch._training._members import model_from_weights

    return [
        layer.to_scipy().toarray() for layer in sparse_layers(model_from_weights(Path(folder) / "weights.safetensors"))
    ]


# ---- bad input


@pytest.mark.parametrize(
    ("name", "baseline", "message"),
    [
        (None, "narow", "must be a baseline (the nearest is 'narrow'). Got 'narow'."),
        (None, "shuffled", "must be 'dense' or 'narrow' or 'random' without a method. Got 'shuffled'."),
        ("l1", "inverted", "must be 'dense' or 'narrow' or 'random' for the method 'l1'. Got 'inverted'."),
        ("synflow", "inverted", "must be 'dense' or 'narrow' or 'random' or 'shuffled' for the method 'synflow'. Got"),
        ("cubic", "static", "'random' or 'shuffled' or 'inverted' for the method 'cubic'. Got 'static'."),
    ],
)
def test_a_baseline_that_a_run_cannot_have(name: str | None, baseline: str, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        settings(name, baseline)
    assert str(refused.value).startswith("The '--baseline' parameter of topogen train must be ")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "oneshot(density=0.1, score=random)", "--baseline", "shuffled"],
         "The 'baseline' parameter of the method 'oneshot' must be None where the score is 'random'. Got 'shuffled'."),
        (["--method", "oneshot(density=0.1, baseline=inverted)", "--baseline", "shuffled"],
         "must be None where the baseline 'shuffled' is trained beside it. Got 'inverted'."),
        (["--spec", "Dense(sizes=[64, 10])", "--baseline", "narrow"],
         "must be another one for a network without hidden layers, which cannot be narrower. Got 'narrow'."),
    ],
)  # fmt: skip
def test_what_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert topogen("train", "--epochs", "1", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()
