"""What is seen while models train: on a terminal, and in a file."""

from __future__ import annotations

import io

from rich.console import Console

from topogen_torch._training._epoch import Epoch, LayerState
from topogen_torch._training._live import Board
from topogen_torch._training._show import Show

LAYER = LayerState(
    name="fc[0]", stored=20, possible=100, wanted=25, fan_in_min=0, fan_in_mean=2.0, fan_in_max=5, dead=3, unread=4,
    explored=0.6, survival=0.5,
)  # fmt: skip
ROW = Epoch(2, 0.1, 0.5, 0.8, 0.4567, 0.875, 1.0, (LAYER,))


def shown(*, terminal: bool, layers: bool) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=140, color_system=None, legacy_windows=False)
    with Board(console, 4) as board:
        on_step = board.start("sparse, seed 0", layers=layers)
        on_step(1, 40, 0.7, 0.5)
        board.epoch(ROW)
    return text.getvalue()


def test_a_file_gets_a_line_an_epoch() -> None:
    lines = shown(terminal=False, layers=True).splitlines()
    assert lines == [
        "sparse, seed 0: epoch 2/4  test loss 0.4567  accuracy 87.50 %  density 20 %",
        "  fc[0]: density 20 % (target 25 %), fan-in 0/2/5, dead 3, unread 4, explored 60 %, survival 50 %",
    ]
    assert shown(terminal=False, layers=False).splitlines() == lines[:1]


def test_a_model_may_have_more_epochs_than_the_others() -> None:
    text = io.StringIO()
    with Board(Console(file=text, width=140), 4) as board:
        board.start("sparse, seed 0", layers=False, epochs=11)
        board.epoch(ROW)
        board.start("dense, seed 0", layers=False)
        board.epoch(ROW)
    assert [line.partition(": ")[2].partition("  ")[0] for line in text.getvalue().splitlines()] == [
        "epoch 2/11",
        "epoch 2/4",
    ]


def test_a_terminal_gets_a_bar_and_a_table() -> None:
    text = shown(terminal=True, layers=True)
    assert "epoch 2/4" in text
    assert "loss 0.4567  accuracy 87.50 %" in text
    header = next(line for line in text.splitlines() if "fan-in min" in line)
    line = next(line for line in text.splitlines() if "fc[0]" in line)
    names = ["layer", "target", "density", "fan-in min", "mean", "max", "dead", "unread", "explored", "survival"]
    assert [name for name in names if name in header] == names
    assert line.split() == ["fc[0]", "25", "%", "20", "%", "0", "2", "5", "3", "4", "60", "%", "50", "%"]
    assert "fan-in" not in shown(terminal=True, layers=False)


def test_a_silent_process_says_nothing(capsys: object) -> None:
    show = Show(silent=True)
    show.heading("nobody reads this")
    with show.progress(4) as board:
        board.start("dense", layers=False)
        board.epoch(ROW)
    captured = capsys.readouterr()  # type: ignore[attr-defined]
    assert (captured.out, captured.err) == ("", "")
