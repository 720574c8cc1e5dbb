"""`python -m topogen_torch.bench`, from end to end under Triton's interpreter, and what it refuses."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from topogen.errors import SpecError
from topogen_torch import bench, commands

pytest.importorskip("triton")

NO_CARD = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run on the CPU, of tiny sizes: the process, the figures and the tables."""
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "topogen_torch.bench", "--device", "cpu", "--budget", "10m"]
    command += ["--json", folder / "figures.json", "--markdown", folder / "tables.md"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    process = subprocess.run(
        command, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process, json.loads((folder / "figures.json").read_text()), (folder / "tables.md").read_text()


def test_it_measures_everything_that_it_promises(finished):
    _, figures, _ = finished
    assert figures["complete"]
    assert figures["not measured"] == []
    assert set(figures["ceilings"]) == {"products", "copy", "l2"}
    assert {row["kernel"] for row in figures["rows"]} == {"triton", "circulant", "batched"}
    for row in figures["rows"]:
        assert 0 < row["forward"] < row["both"]
        assert row["rate"] == pytest.approx(6 * 16 * 64**2 * row["density"] / row["both"])
    assert [(each["model"].split(",")[0], each["kind"]) for each in figures["steps"]] == [
        ("MLP", "dense"), ("MLP", "sparse"), ("transformer", "dense"), ("transformer", "sparse"),
    ]  # fmt: skip
    for each in figures["steps"]:
        assert each["loss"][1] < each["loss"][0]


def test_every_kernel_is_checked_in_every_arithmetic_that_the_interpreter_has(finished):
    _, figures, _ = finished
    checked = {(each["kernel"], each["arithmetic"]): each for each in figures["accuracies"]}
    assert len(checked) == 9 * 4 - 3  # torch's own batched product has no tf32 of ours
    for (_, arithmetic), each in checked.items():
        assert each["holds"]
        assert (each["error"] is None) == (arithmetic == "bfloat16")
    assert checked["forward", "float16"]["error"] > 10 * checked["forward", "float32"]["error"] > 0


def test_it_prints_as_it_goes_and_the_tables_last(finished):
    process, figures, tables = finished
    assert process.stdout.endswith(f"\n{tables}\n")
    parts = [f"{stage}: done after" for stage in ("ceilings", "checks and compilation", "layers of 64", "training")]
    places = [process.stdout.index(part) for part in parts]
    assert places == sorted(places)
    assert "card none: Triton's interpreter, whose times mean nothing" in tables
    assert tables.count("| 64 | 16 |") == len(figures["rows"])
    assert "not checked" in tables
    widths = [line.count("|") for line in tables.splitlines() if line.startswith(("| 64 |", "| n |"))]
    assert set(widths) == {16}
    assert "| blocks of 64, 90 %: times as fast as dense, both | 3.2 | not measured |" in tables


SETTINGS = {
    "sizes": [64], "blocks": [16], "sparsities": [0.5], "tokens": 16, "dtype": "float32", "budget": 60.0, "tune": True,
}  # fmt: skip


def measured(outcomes, **changes):
    """The results of a run whose tasks are carried out by `outcomes`, and how often they were saved."""
    from topogen_torch._gpu._results import Results

    results, saved = Results(facts={"card": "a card"}, settings=SETTINGS | changes), []
    bench._measure(results, torch.device("cpu"), outcomes, lambda: saved.append(None))
    return results, len(saved)


def test_what_the_budget_cuts_is_not_measured():
    results, _ = measured(lambda tasks, **limits: [])
    tables = results.to_markdown()
    lines = [line for line in tables.splitlines() if line.startswith("| 64 | 16 |")]
    assert lines[0] == "| 64 | 16 | random 50 % | triton |" + " not measured |" * 11
    assert len(lines) == len(results.to_dict()["not measured"]) == 6
    assert "| all models | not measured |" in tables
    assert tables.endswith("Stopped before everything was measured.\n")


def test_a_task_that_fails_does_not_stop_the_others(capsys):
    from topogen_torch._gpu._workers import Failure

    keys = []

    def outcomes(tasks, **limits):
        for key, _ in tasks:
            keys.append(key)
            yield key, Failure("RuntimeError: no memory")

    results, saves = measured(outcomes)
    assert saves == len(keys) == len(results.failures) > 6
    assert len(results.missing) == 6
    assert capsys.readouterr().out.count("RuntimeError: no memory") == len(keys)
    assert results.to_markdown().count("**Failed:** ") == len(keys)
    assert not results.complete
    assert not results.holds


def test_every_stage_is_given_what_it_may_take(monkeypatch):
    monkeypatch.setattr(bench, "perf_counter", lambda: 1000.0)
    ends = []

    def outcomes(tasks, *, processes, seconds, end):
        assert processes == 1  # on the CPU
        assert all(callable(task) for _, task in tasks)
        ends.append(end)
        return []

    measured(outcomes)
    assert ends == pytest.approx([1012, 1024, 1039, 1048, 1054, 1060])


def test_settings_are_tried_in_other_processes_before_they_are_timed():
    """All that `tune_pass` measures in two rounds has been compiled, up to what needs no code of its own."""
    from topogen_torch._gpu._results import Results
    from topogen_torch._gpu._stages import stages
    from topogen_torch._gpu._tune import candidates

    results = Results(facts={}, settings=SETTINGS)
    named = {stage.name: list(stage.tasks) for stage in stages(results, torch.device("cpu"))}
    trials = [task.args[0] for key, task in named["checks and compilation"] if key.startswith("trial")]
    assert len(named["tuning"]) == 6  # three passes of random blocks and of a RadiX layer

    def code(config):
        return config.tokens, config.depth, config.blocks, config.warps, config.stages

    for kernel in ("triton", "circulant"):
        for place, kind in enumerate(("forward", "input_gradient", "value_gradient")):
            mine = [trial.config for trial in trials if (trial.kernel, trial.place) == (kernel, place)]
            around = candidates(mine[0], kind if kernel == "triton" else f"circulant_{kind}")
            assert {code(each) for each in around} <= {code(each) for each in mine}
            assert len({code(each) for each in mine}) == len(mine) > 6


def row_of_numbers(**changes):
    from topogen_torch._gpu._cases import Case
    from topogen_torch._gpu._timed import Dense, Row

    given = {
        "case": Case(4096, 64, "random", 0.9), "kernel": "triton", "tokens": 16, "density": 0.1, "forward": 1.0,
        "input_gradient": 1.0, "value_gradient": 1.0, "both": 3.0, "dense": Dense(forward=1.0, both=3.0), "bsr": None,
        "bytes": 1, "through_l2": None, "configs": (), "error": 0.0, "dtype": "bfloat16",
    }  # fmt: skip
    return Row(**given | changes)


def test_a_layer_that_errs_at_its_own_size_is_wrong():
    from topogen_torch._gpu import _timed
    from topogen_torch._gpu._cases import Case, operands_of
    from topogen_torch._gpu._results import Results, row_line

    operands = operands_of(Case(64, 16, "random", 0.5), 16, torch.float32, torch.device("cpu"))
    x, grad, values, index = operands.xs[0], operands.grads[0], operands.values, operands.index
    right = [
        lambda batch: _timed.dense_forward(x, values, index),
        lambda batch: _timed.dense_input_gradient(grad, values, index),
        lambda batch: _timed.dense_value_gradient(x, grad, index),
    ]
    assert _timed._largest_error(right, operands) == 0
    for wrong in (
        lambda batch: torch.empty_like(values),
        lambda batch: right[2](0) * 1.1,
    ):  # nothing written; a tenth off
        row = row_of_numbers(error=_timed._largest_error([*right[:2], wrong], operands))
        assert not row.holds
        assert not Results(facts={}, settings={}, rows=[row]).holds
        assert row_line(row, None, None).endswith("| 1x | 1x **WRONG** | not measured |")


@pytest.mark.parametrize("tokens", [64, 100])
def test_traffic_is_what_all_programs_read_and_write(tokens):
    """Program by program: of a product a tile of tokens and one row, of a gradient the blocks of one row."""
    from topogen_torch._gpu._cases import Case, index_of
    from topogen_torch._gpu._config import Config
    from topogen_torch._gpu._traffic import through_l2

    index = index_of(Case(128, 16, "random", 0.5).blocks(), 16, torch.device("cpu"))
    config, values = Config(tokens=64, blocks=1, split_k=3), index.blocks * 256
    tiles = [min(64, tokens - start) for start in range(0, tokens, 64)]
    for kind, pointers in (("forward", index.indptr_t), ("input_gradient", index.indptr)):
        found = 0
        for tile in tiles:
            for entries in pointers.diff().tolist():
                found += entries * (tile * 16 + 256) + tile * 16
        assert through_l2(kind, config, index, tokens, 2) == 2 * found
    found = 2 * (tokens * index.blocks * (16 + 16) + values) + 4 * 2 * 3 * values
    assert through_l2("value_gradient", config, index, tokens, 2) == found


def test_traffic_of_a_ring_is_read_once_by_neighbours():
    from topogen_torch._gpu._cases import Case, index_of
    from topogen_torch._gpu._config import Config
    from topogen_torch._gpu._traffic import through_l2

    index = index_of(Case(256, 16, "RadiX", 0.75, (4, 4)).blocks(), 16, torch.device("cpu"))
    config = Config(tokens=64, blocks=4)  # 4 groups of 4 neighbours, which read 7 blocks
    assert through_l2("circulant_forward", config, index, 64, 2) == 2 * (64 * 16 * (4 * 7 + 16) + 64 * 256)
    assert through_l2("circulant_value_gradient", config, index, 64, 2) == 2 * (64 * 16 * 4 * (7 + 2 * 4) + 64 * 256)


def test_what_a_kernel_leaves_out_is_nan_while_it_is_checked():
    from topogen_torch._gpu._accuracy import unwritten_is_nan

    with unwritten_is_nan():
        assert torch.empty(64).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_could_not_be_captured_is_said():
    from topogen_torch._gpu._results import row_line
    from topogen_torch._gpu._timed import Bsr

    for as_graph, shown in ((True, "2x"), (False, "2x, launched")):
        assert row_line(row_of_numbers(bsr=Bsr(forward=2.0, as_graph=as_graph)), None, None).endswith(f"| {shown} |")


@pytest.mark.parametrize(("seconds", "said"), [(0.5, "6, reached"), (1.5, "2, missed")])
def test_a_goal_is_reached_or_missed(seconds, said):
    from topogen_torch._gpu._goals import goal_lines

    lines = list(goal_lines([row_of_numbers(both=seconds), row_of_numbers(both=0.1, kernel="other")], None))
    assert f"| blocks of 64, 90 %: times as fast as dense, both | 3.2 | {said} |" in lines
    assert sum("not measured" in line for line in lines) == len(lines) - 3


def test_a_kernel_that_cannot_run_is_wrong(monkeypatch, caplog):
    from topogen_torch._gpu import _accuracy

    monkeypatch.setattr(_accuracy, "is_interpreted", lambda: False)
    found = _accuracy.accuracies([16], torch.device("cpu"), tokens=16, arithmetics=["float32"])
    by_torch = [each for each in found if each.kernel.startswith("batched")]
    assert all(each.holds for each in by_torch)
    assert [each.holds for each in found].count(False) == 6  # Triton's kernels refuse the CPU
    assert caplog.messages[0].startswith("forward, blocks of 16, float32: SpecError: ")


def test_a_kernel_that_errs_is_shown_and_fails_the_run():
    from topogen_torch._gpu._accuracy import Accuracy
    from topogen_torch._gpu._results import Results

    wrong = [Accuracy("forward", 16, "float32", 0.5), Accuracy("value_gradient", 16, "float32", float("nan"))]
    assert [each.holds for each in wrong] == [False, False]
    results = Results(facts={}, settings={"dtype": "float32", "tokens": 1}, accuracies=wrong)
    assert not results.holds
    tables = results.to_markdown()
    assert "| forward | 0.5 **WRONG** |" in tables
    assert "| value_gradient | nan **WRONG** |" in tables
    assert "| dense product, copy, L2 | not measured |" in tables


@NO_CARD
def test_without_a_card_it_says_so_and_exits_with_2(capsys):
    assert bench.main(["--quick"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "topogen: The '--device' option of topogen_torch.bench needs a CUDA device, and PyTorch finds none here.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--blocks", "48"], "'--blocks' parameter of topogen_torch.bench must be from 16, 32, 64 and 128. Got 48."),
        (["--sizes", "big"], "'--sizes' parameter of topogen_torch.bench must be numbers with commas between them. "
                             "Got 'big'."),
        (["--sizes", "8"], "'--sizes[0]' parameter of topogen_torch.bench must be an int >= 16. Got 8."),
        (["--sparsities", "101"], "'--sparsities' parameter of topogen_torch.bench must be "),
        (["--tokens", "0"], "'--tokens' parameter of topogen_torch.bench must be an int >= 1. Got 0."),
        (["--budget", "long"], "'--budget' parameter of topogen_torch.bench must be a time such as 90s or 8m. "
                               "Got 'long'."),
        (["--device", "tpu"], "'--device' parameter of topogen_torch.bench must be cuda, cuda:1, ... or cpu. "
                              "Got 'tpu'."),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_sentence(arguments, sentence, capsys):
    assert bench.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"topogen: The {sentence}")


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("8m", 480), ("0.5h", 1800), ("7", 7)])
def test_a_budget_is_read(text, seconds):
    assert bench._seconds(text) == seconds


@NO_CARD
def test_tuning_is_refused_without_a_card():
    sentence = "The '--tune' option of topogen bench needs a CUDA device, and PyTorch finds none here."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        commands.bench(tune=True)


def test_the_cases_cover_blocks_and_radix_layers_those_of_4096_neurons_first():
    from topogen_torch._gpu._cases import cases

    found = list(cases((1024, 4096, 8192), (16, 64, 128), (0.5, 0.9)))
    assert [case.n for case in found[:6]] == [4096] * 6
    assert {case.block for case in found if case.pattern == "RadiX"} == {16, 64}
    for case in found:
        pattern = case.blocks()
        assert pattern.shape == (case.n // case.block,) * 2
        assert 1 - pattern.nnz / pattern.shape[0] ** 2 == pytest.approx(case.sparsity, abs=0.01)


def test_the_l2_ceiling_is_read_past_the_first_cache_sixteen_bytes_at_a_time():
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from topogen_torch._gpu._ceilings import read_again_and_again

    signature = {"x": "*fp32", "sums": "*fp32", "chunks": "i32", "passes": "i32", "CHUNK": "constexpr"}
    aligned = {(argument,): [["tt.divisibility", 16]] for argument in range(2)}
    source = ASTSource(fn=read_again_and_again, signature=signature, constexprs={"CHUNK": 4096}, attrs=aligned)
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}).asm["ptx"]
    assert code.count("ld.global.cg.v4.b32") == code.count("ld.global") > 0
