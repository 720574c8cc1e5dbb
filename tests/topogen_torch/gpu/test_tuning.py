"""The table of launch settings: its keys, its file, and how it is filled, without a card."""

import json
import logging
import re

import pytest
import torch

from topogen_torch._gpu import _tuning
from topogen_torch._gpu._cases import Case, index_of
from topogen_torch._gpu._config import Config
from topogen_torch._gpu._tuning import cache_file, config_for, keep, key_of, tuned

KEY = "forward block=64 bfloat16 density<=0.1 size<=4096 tokens<=8192"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """A user who has tuned nothing."""
    monkeypatch.setenv("TOPOGEN_CACHE", str(tmp_path / "new"))
    for cached in (_tuning._kept, _tuning._found):
        cached.cache_clear()
    monkeypatch.setattr(_tuning, "_noticed", set())
    yield
    for cached in (_tuning._kept, _tuning._found):
        cached.cache_clear()


def test_a_key_names_all_that_the_best_setting_depends_on():
    base = ("forward", 64, torch.bfloat16, 0.1, 4096, 4096, 8192)
    assert key_of(*base) == KEY
    changes = {0: "value_gradient", 1: 32, 2: torch.float16, 3: 0.11, 5: 9000, 6: 8193}
    others = {key_of(*base[:k], change, *base[k + 1 :]) for k, change in changes.items()}
    assert len(others) == len(changes)
    assert KEY not in others


@pytest.mark.parametrize(
    ("density", "bound"), [(0.001, "0.01"), (0.05, "0.05"), (0.051, "0.1"), (0.9, "1"), (1.0, "1")]
)
def test_densities_share_the_bucket_that_ends_above_them(density, bound):
    assert f"density<={bound} " in key_of("forward", 16, torch.float32, density, 16, 16, 1)


def test_float32_on_tensor_cores_is_tuned_for_itself():
    ieee, tf32 = (key_of("forward", 16, torch.float32, 0.1, 64, 64, 7, precision) for precision in ("ieee", "tf32"))
    assert "float32" in ieee
    assert "tf32" in tf32
    assert "tokens<=8" in ieee


def test_what_was_measured_is_kept_card_by_card_and_found_again():
    first, second = Config(tokens=64), Config(tokens=128, split_k=3)
    path = keep("card A", {KEY: first})
    keep("card B", {KEY: second})
    keep("card A", {"other": second})
    assert path == cache_file()
    assert tuned("card A") == {KEY: first, "other": second}
    assert tuned("card B") == {KEY: second}
    assert tuned("card C") == {}
    assert [name.name for name in path.parent.iterdir()] == ["gpu_tuning.json"]  # no temporary file stays behind


def test_a_table_that_cannot_be_written_leaves_the_old_one(monkeypatch):
    keep("card", {KEY: Config(tokens=64)})
    monkeypatch.setattr(_tuning, "asdict", lambda config: object())
    with pytest.raises(TypeError):
        keep("card", {KEY: Config(tokens=32)})
    assert tuned("card") == {KEY: Config(tokens=64)}


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"card": {"key": {"tokens": -1}}}', '{"card": {"key": {"tokens": 16, "colour": 1}}}']
)
def test_a_damaged_table_is_not_used_and_said_to_be_damaged(text, caplog):
    path = cache_file()
    path.parent.mkdir()
    path.write_text(text)
    with caplog.at_level(logging.WARNING, "topogen"):
        assert tuned("card") == {}
    assert re.fullmatch(r"The tuning table .*gpu_tuning.json cannot be read and is not used: .+\.", caplog.messages[0])
    keep("card", {KEY: Config(tokens=64)})
    assert json.loads(path.read_text())["card"][KEY]["tokens"] == 64


def test_the_shipped_table_can_be_read():
    for entries in _tuning._shipped().values():
        assert all(isinstance(config, Config) for config in entries.values())


def test_the_cache_lies_where_the_system_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.delenv("TOPOGEN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = {}
    for platform in ("linux", "darwin", "win32"):
        monkeypatch.setattr(_tuning.sys, "platform", platform)
        found[platform] = cache_file()
    assert found == {
        "linux": tmp_path / "topogen" / "gpu_tuning.json",
        "darwin": tmp_path / "home" / "Library" / "Caches" / "topogen" / "gpu_tuning.json",
        "win32": tmp_path / "local" / "topogen" / "gpu_tuning.json",
    }


def test_an_untuned_card_is_noticed_once_and_a_tuned_one_never(caplog):
    asked = (132, "forward", 64, torch.bfloat16, 0.1, 4096, 4096, 8192, "ieee")
    with caplog.at_level(logging.WARNING, "topogen"):
        assert _tuning._found("card", *asked) is None
        assert _tuning._found("card", 132, "forward", 32, *asked[3:]) is None
    assert caplog.messages == [
        "The block-sparse kernels have not been tuned for card and run with general settings; 'topogen bench --tune' "
        "measures better ones on it and keeps them."
    ]
    keep("other", {KEY: Config(tokens=64)})
    assert _tuning._found("other", *asked) == Config(tokens=64)
    assert _tuning._found("other", 132, "forward", 32, *asked[3:]) is None
    assert len(caplog.messages) == 1


def test_what_was_not_measured_itself_takes_the_nearest_setting_cut_to_its_size():
    near = "value_gradient block=64 bfloat16 density<=0.1 size<=4096 tokens<=8192"
    far = "value_gradient block=64 bfloat16 density<=0.5 size<=1024 tokens<=8192"
    mine = {near: Config(tokens=64, blocks=4, split_k=5), far: Config(tokens=32, blocks=2), KEY: Config(tokens=256)}
    keep("card", mine)

    def found(kind, density, size, tokens=8192, dtype=torch.bfloat16):
        return _tuning._found("card", 132, kind, 64, dtype, density, size, size, tokens, "ieee")

    assert found("value_gradient", 0.1, 4096) == mine[near]
    assert found("value_gradient", 0.4, 1024) == mine[far]
    assert found("value_gradient", 0.01, 4096) == Config(tokens=64, split_k=7)  # 41 programs, and 264 are wanted
    assert found("forward", 0.5, 8192) == Config(tokens=256, group=2)
    assert found("forward", 0.1, 4096, tokens=100) == Config(tokens=128, group=8)
    assert found("forward", 0.1, 4096, dtype=torch.float16) is None


def test_only_cards_are_looked_up(caplog):
    index = index_of(Case(64, 16, "random", 0.5).blocks(), 16, torch.device("cpu"))
    assert config_for("forward", index, torch.float32, 8, "ieee") is None
    assert caplog.messages == []


def test_tuning_keeps_the_fastest_of_each_pass_case_by_case(monkeypatch):
    pytest.importorskip("triton")
    from topogen_torch._gpu import _tune

    def seconds(call, batches, device):
        """As if 32 tokens were twice as fast as any other number, and 512 more than the card can do."""
        config = call.__defaults__[0].args[2]
        return None if config.tokens >= 512 else 1.0 if config.tokens == 32 else 2.0

    monkeypatch.setattr(_tune, "_seconds", seconds)
    said = []
    cases = [(Case(64, 16, "random", 0.5), "triton"), (Case(64, 16, "RadiX", 0.5, (2, 2)), "circulant")]
    path = _tune.tune(cases, torch.device("cpu"), "card", said.append, tokens=64, dtype=torch.float32)
    assert path == cache_file()
    found = tuned("card")
    assert len(found) == 6
    assert {config.tokens for config in found.values()} == {32}
    assert len(said) == 2
    assert said[0].startswith("64 neurons, blocks of 16, random 50 %: ")


@pytest.mark.parametrize("kind", ["forward", "value_gradient", "circulant_forward", "circulant_value_gradient"])
def test_what_is_tried_differs_in_few_fields_and_is_legal(kind):
    pytest.importorskip("triton")
    from topogen_torch._gpu._config import checked_config
    from topogen_torch._gpu._tune import candidates

    start = Config(tokens=64, depth=32, blocks=2, split_k=2)
    found = candidates(start, kind)
    assert len(found) == len(set(found)) > 6
    for config in found:
        fields = [name for name in Config.__dataclass_fields__ if getattr(config, name) != getattr(start, name)]
        assert 1 <= len(fields) <= 3
        checked_config(config, "test", 16)


def test_every_case_that_is_tuned_has_whole_blocks():
    pytest.importorskip("triton")
    from topogen_torch._gpu._tune import tuning_cases

    for case, kernel in tuning_cases(sizes=(512,), blocks=(64, 16), sparsities=(0.9,)):
        index = index_of(case.blocks(), case.block, torch.device("cpu"))
        assert (index.circulant is not None) == (kernel == "circulant")
