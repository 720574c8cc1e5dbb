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
    parts = ["ceilings measured", "kernels of 1 layers and checks compiled", "33 kernels checked against float64"]
    places = [process.stdout.index(part) for part in parts]
    assert places == sorted(places)
    assert "card none: Triton's interpreter, whose times mean nothing" in tables
    assert tables.count("| 64 | 16 |") == len(figures["rows"])
    assert "not checked" in tables
    widths = [line.count("|") for line in tables.splitlines() if line.startswith(("| 64 |", "| n |"))]
    assert set(widths) == {13}


def test_what_the_budget_cuts_is_not_measured(monkeypatch, capsys):
    from topogen_torch._gpu import _accuracy, _ceilings, _warm
    from topogen_torch._gpu._results import Results

    monkeypatch.setattr(_ceilings, "measure_ceilings", lambda *args, **options: None)
    monkeypatch.setattr(_warm, "compile_ahead", lambda jobs, device, seconds: 0)
    monkeypatch.setattr(_accuracy, "accuracies", lambda *args, **options: iter(()))
    settings = {"sizes": [64], "blocks": [16], "sparsities": [0.5], "tokens": 16, "dtype": "float32", "budget": -1.0}
    results = Results(facts={}, settings=settings)
    bench._measure(results, torch.device("cpu"))
    tables = results.to_markdown()
    lines = [line for line in tables.splitlines() if line.startswith("| 64 | 16 |")]
    assert lines[0] == "| 64 | 16 | random 50 % | triton |" + " not measured |" * 8
    assert len(lines) == len(results.to_dict()["not measured"]) == 6
    assert "| all models | not measured |" in tables
    assert tables.endswith("Stopped before everything was measured.\n")
    assert "0 kernels checked" in capsys.readouterr().out


def test_a_case_that_fails_does_not_stop_the_others(monkeypatch, capsys):
    from topogen_torch._gpu import _accuracy, _ceilings, _timed, _training_steps, _warm
    from topogen_torch._gpu._results import Results

    def fail(case, *others):
        raise RuntimeError("no memory")

    monkeypatch.setattr(_ceilings, "measure_ceilings", lambda *args, **options: None)
    monkeypatch.setattr(_warm, "compile_ahead", lambda jobs, device, seconds: 0)
    monkeypatch.setattr(_accuracy, "accuracies", lambda *args, **options: iter(()))
    monkeypatch.setattr(_timed, "dense_seconds", fail)
    monkeypatch.setattr(_training_steps, "training_steps", lambda *args, **options: iter(()))
    settings = {"sizes": [64], "blocks": [16], "sparsities": [0.5], "tokens": 16, "dtype": "float32", "budget": 60.0}
    results = Results(facts={}, settings=settings)
    bench._measure(results, torch.device("cpu"))
    assert len(results.missing) == 6
    assert capsys.readouterr().out.count("RuntimeError: no memory") == 6
    assert not results.complete


def test_a_kernel_that_cannot_run_is_wrong(monkeypatch, caplog):
    from topogen_torch._gpu import _accuracy

    monkeypatch.setattr(_accuracy, "is_interpreted", lambda: False)
    found = list(_accuracy.accuracies([16], torch.device("cpu"), tokens=16, arithmetics=["float32"]))
    by_torch = [each for each in found if each.kernel.startswith("batched")]
    assert all(each.holds for each in by_torch)
    assert [each.holds for each in found].count(False) == 6  # Triton's kernels refuse the CPU
    assert caplog.messages[0].startswith("forward, blocks of 16, float32: SpecError: ")


def test_a_kernel_that_errs_is_shown_and_fails_the_run():
    from topogen_torch._gpu._accuracy import Accuracy
    from topogen_torch._gpu._results import Results

    wrong = [Accuracy("forward", 16, "float32", 0.5), Accuracy("value_gradient", 16, "float32", float("nan"))]
    assert [each.holds for each in wrong] == [False, False]
    settings = {"dtype": "float32", "tokens": 1}
    tables = Results(facts={}, settings=settings, accuracies=wrong).to_markdown()
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
