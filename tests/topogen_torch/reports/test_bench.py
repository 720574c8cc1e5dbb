"""`topogen bench`: what it measures, what it prints, Ctrl-C, bad input."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from command_line import topogen, without_timing

from topogen_torch._reports import _advice, _bench
from topogen_torch._reports._advice import BreakEven
from topogen_torch._reports._bench import Bench, BenchSettings, Cell, facts

QUICK = ("bench", "--size", "48", "--batch", "2,32", "--density", "0.1 0.5", "--threads", "1")


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    without_timing(monkeypatch)
    monkeypatch.setattr(_advice, "DENSITIES", (0.1, 0.5))
    monkeypatch.setattr(_advice, "_known", {})
    monkeypatch.setattr(_bench.kernels, "fma_peak", lambda dtype, threads: 2e12)


def test_everything_is_measured_printed_and_written(capsys, tmp_path):
    threads = torch.get_num_threads()
    assert topogen(*QUICK, "--json", "bench.json") == 0
    assert torch.get_num_threads() == threads
    text, found = capsys.readouterr().out, json.loads((tmp_path / "bench.json").read_text())
    assert found["complete"] is True
    assert [(cell["batch"], cell["density"]) for cell in found["cells"]] == [(2, 0.1), (2, 0.5), (32, 0.1), (32, 0.5)]
    assert all(
        min(cell["forward"], cell["both"], cell["dense_forward"], cell["dense_both"]) > 0 for cell in found["cells"]
    )
    assert set(found["break_even"]) == {"2", "32"}
    assert found["settings"]["size"] == 48
    assert found["facts"]["torch"] == torch.__version__
    cell = found["cells"][0]
    assert found["dense_rates"]["2"] >= 2 * 48 * 48 * 2 / cell["dense_forward"]
    for line in ("| multiply-adds in registers, the peak | 2,000 | 100 % |", "| density 10 % | ", "wrote bench.json"):
        assert line in text
    assert "48 x 48, float32, 1 threads, random patterns" in text
    assert "stopped" not in text


def test_ctrl_c_leaves_what_was_measured(capsys, monkeypatch, tmp_path):
    cell = _bench._cell

    def interrupted(settings, density, batch):
        if batch == 32:
            raise KeyboardInterrupt
        return cell(settings, density, batch)

    monkeypatch.setattr(_bench, "_cell", interrupted)
    assert topogen(*QUICK, "--json", "bench.json") == 130
    text, found = capsys.readouterr().out, json.loads((tmp_path / "bench.json").read_text())
    assert (found["complete"], len(found["cells"])) == (False, 2)
    assert "stopped before everything was measured." in text
    assert text.count("not measured |") == 2 * 3  # two densities and the break-even, in both tables


def test_the_tables_say_what_the_figures_are():
    settings = BenchSettings(size=10, batches=(4,), densities=(0.25,), threads=2, dtype="float64", seed=0)
    result = Bench(settings=settings, facts={"cores": "2"}, peak=1e9, complete=True)
    result.cells.append(Cell(0.25, 4, 1e-3, 4e-3, 2e-3, 1e-3, "dense forward, rows"))
    result.break_even[4] = BreakEven(0.4, 1.0)
    assert result.to_markdown().splitlines() == [
        "cores 2",
        "",
        "10 x 10, float64, 2 threads, random patterns, medians of calls in turns with torch.nn.Linear",
        "",
        "|  | GFLOP/s | of the peak |",
        "|---|---:|---:|",
        "| multiply-adds in registers, the peak | 1 | 100 % |",
        "| dense forward, batch 4 | 0.0004 | 0 % |",
        "",
        "| forward, times dense speed | batch 4 |",
        "|---|---:|",
        "| density 25 % | 2x (1 of 2 ms) |",
        "| break-even density | 40 % |",
        "",
        "| forward + backward, times dense speed | batch 4 |",
        "|---|---:|",
        "| density 25 % | 0.25x (4 of 1 ms) |",
        "| break-even density | > 50 % |",
        "",
        "multiplied densely, above the built-in break-even: 25 % at batch 4.",
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--batch", "a"), "The '--batch' parameter of topogen bench must be ints with commas between them. Got 'a'."),
        (("--batch", "0"), "The '--batch[0]' parameter of topogen bench must be an int >= 1. Got 0."),
        (
            ("--density", ""),
            "The '--density' parameter of topogen bench must be numbers with commas between them. Got ''.",
        ),
        (
            ("--density", "1.5"),
            "The '--density' parameter of topogen bench must be a finite number in [0, 1]. Got 1.5.",
        ),
        (("--size", "0"), "The '--size' parameter of topogen bench must be an int >= 1. Got 0."),
        (("--dtype", "int8"), "The '--dtype' parameter of topogen bench must be 'float32' or 'float64'. Got 'int8'."),
        (("--size", "100000000"), "The '--size' parameter of topogen bench must"),
    ],
)
def test_bad_input_is_one_sentence(capsys, arguments, sentence):
    assert topogen("bench", *arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_without_torch_it_says_what_to_install():
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        "from topogen._cli import main; main(['bench'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "topogen: topogen bench needs torch: pip install 'topogen-nn[torch]'.\n"


def test_help_loads_no_torch():
    code = (
        "import sys\nfrom topogen._cli import main\n"
        "try: main(['bench', '--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("False")


def test_facts_name_the_machine():
    assert set(facts()) == {"processor", "cores", "python", "torch", "numba", "topogen"}
    assert all(facts().values())
