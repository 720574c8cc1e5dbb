"""Carrying out a study: missing rows only, kept whatever happens, shared by processes; the page says what there is."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import toy
from command_line import topogen

from topogen.errors import SpecError, TopogenError
from topogen_torch._training._show import Show
from topogen_torch.studies import STUDIES, _command, study_named
from topogen_torch.studies._carry_out import carry_out
from topogen_torch.studies._ledger import Ledger

NAMES = [str(row) for row in toy.rows(False)]


@pytest.fixture(autouse=True)
def _log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))


def log(folder: Path) -> list[str]:
    """Names of the rows in the order in which they were begun."""
    return (folder / "log").read_text().splitlines() if (folder / "log").exists() else []


def carried_out(folder: Path, **options: object) -> list[str]:
    """Carry the toy study out and return the names of the rows in its table."""
    carry_out(toy.STUDY, folder / "toy.csv", Show(), **options)  # pyright: ignore[reportArgumentType]
    return rows_of(folder / "toy.csv")


def rows_of(path: Path) -> list[str]:
    ledger = Ledger(path, toy.STUDY)
    names = [str(one.row) for one in ledger.read()]
    ledger.close()
    return names


def test_rows_are_measured_once_and_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert carried_out(tmp_path, only="*seed 1") == [name for name in NAMES if name.endswith("seed 1")]
    assert "4 of 8 rows measured" in capsys.readouterr().out
    assert set(carried_out(tmp_path)) == set(NAMES)
    assert "8 of 8 rows measured" in capsys.readouterr().out
    assert log(tmp_path) == sorted(NAMES, key=lambda name: name.endswith("seed 0"))  # the sort is stable
    before = (tmp_path / "toy.csv").read_bytes()
    carried_out(tmp_path)
    assert (tmp_path / "toy.csv").read_bytes() == before


def test_the_page_has_the_figures_and_how_much_was_measured(tmp_path: Path) -> None:
    carried_out(tmp_path, only="set*")
    page = (tmp_path / "toy.md").read_text()
    assert page.startswith("# A toy\n\n**4 of 8 rows measured.** This page is made of [the table](toy.csv)")
    assert "| method | accuracy |\n| --- | ---: |\n| set 0.1 | 91.05 ± 0.07 (2 seeds) |\n" in page
    assert "static" not in page
    assert "threads: " in page
    picture = (tmp_path / "toy-accuracy.svg").read_bytes()
    assert picture.startswith(b"<?xml")
    carried_out(tmp_path, only=NAMES[0])
    assert (tmp_path / "toy-accuracy.svg").read_bytes() == picture  # of the same rows


def test_a_page_shows_the_pictures_beside_it_and_its_own_command(tmp_path: Path) -> None:
    carry_out(toy.STUDY, tmp_path / "short.csv", Show(), quick=True)
    page = (tmp_path / "short.md").read_text()
    assert "![Accuracy](short-accuracy.svg), see [another](toy-other.md)" in page
    assert (tmp_path / "short-accuracy.svg").exists()
    assert "\ntopogen study toy --data-dir DIR --quick\n" in page


def test_a_budget_of_nothing_measures_nothing_and_one_of_little_one_row(tmp_path: Path) -> None:
    assert carried_out(tmp_path, budget=0.0) == []
    assert carried_out(tmp_path, budget=1e-9 + sys.float_info.min, only=NAMES[0]) in ([], [NAMES[0]])
    assert carried_out(tmp_path, budget=60.0) == NAMES


def test_no_row_is_begun_after_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))
    monkeypatch.setattr("topogen_torch.studies._carry_out._clock", lambda: float(next(now)))
    assert carried_out(tmp_path, budget=3.0) == NAMES[:2]  # looked at the clock at 0, then before each row: 1, 2, 3


def test_quick_rows_are_the_study_s_own(tmp_path: Path) -> None:
    assert carried_out(tmp_path, quick=True) == [str(row) for row in toy.rows(True)]


def test_a_row_that_fails_does_not_keep_the_others_from_being_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOY_FAILS", NAMES[0])
    with pytest.raises(TopogenError, match=re.escape("1 rows of toy could not be measured.")):
        carried_out(tmp_path)
    assert f"{NAMES[0]}: the loss is inf." in capsys.readouterr().err
    assert rows_of(tmp_path / "toy.csv") == NAMES[1:]


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_INTERRUPTS", NAMES[2])
    with pytest.raises(KeyboardInterrupt):
        carried_out(tmp_path)
    assert rows_of(tmp_path / "toy.csv") == NAMES[:2]
    assert "**2 of 8 rows measured.**" in (tmp_path / "toy.md").read_text()


def test_a_pattern_that_matches_no_row_is_refused(tmp_path: Path) -> None:
    message = "The '--only' parameter of topogen study must match a row, such as 'set at 0.1, seed 0'. Got 'seed 0'."
    with pytest.raises(SpecError, match=re.escape(message)):
        carried_out(tmp_path, only="seed 0")
    assert not (tmp_path / "toy.csv").exists()


PROCESS = """
import sys
from dataclasses import replace
from pathlib import Path
import toy
from topogen_torch._training._show import Show
from topogen_torch.studies import _carry_out
_carry_out.load_data = lambda name, data_dir: toy.TINY
_carry_out.carry_out(replace(toy.STUDY, figures=lambda measured: {}), Path(sys.argv[1]), Show())
"""


def started(folder: Path, seconds: str) -> subprocess.Popen[bytes]:
    """Start a process that carries the toy study out, so many seconds a row."""
    environment = {"PYTHONPATH": str(Path(__file__).parent), "TOY_SECONDS": seconds}
    command = [sys.executable, "-c", PROCESS, str(folder / "toy.csv")]
    return subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL)


def test_two_processes_share_the_rows_and_one_that_is_killed_loses_only_its_own(tmp_path: Path) -> None:
    with started(tmp_path, "0.3") as one, started(tmp_path, "0.3") as two:
        while len(log(tmp_path)) < 4:
            assert one.poll() is None or two.poll() is None
            time.sleep(0.01)
        one.send_signal(signal.SIGKILL)
        assert two.wait() == 0
    finished, begun = rows_of(tmp_path / "toy.csv"), log(tmp_path)
    assert len(set(finished)) == len(finished) >= 6  # of 8: the killed one's may have been claimed at the time
    assert len(begun) <= 9  # nothing twice, but for the row that was lost
    assert set(carried_out(tmp_path)) == set(NAMES)
    assert not list(tmp_path.glob(".topogen-*"))


COMMITTED = Path(__file__).parents[3] / "docs" / "studies"


def test_every_committed_picture_is_shown() -> None:
    pages = "".join(page.read_text() for page in COMMITTED.glob("*.md"))
    assert sorted(re.findall(r"\(([\w-]+\.svg)\)", pages)) == sorted(path.name for path in COMMITTED.glob("*.svg"))


@pytest.mark.parametrize("name", [name for name in STUDIES if (COMMITTED / f"{name}.csv").exists()])
def test_a_committed_page_is_what_its_table_says(name: str, tmp_path: Path) -> None:
    table = tmp_path / f"{name}.csv"
    shutil.copy(COMMITTED / table.name, table)
    study = study_named(name)
    carry_out(study, table, Show(), budget=0.0)
    again = f"topogen study {name} --budget 0s"
    assert table.with_suffix(".md").read_text() == (COMMITTED / f"{name}.md").read_text(), again
    for picture in tmp_path.glob("*.svg"):
        assert (COMMITTED / picture.name).exists(), again
    ledger = Ledger(table, study)
    foreign = {str(one.row) for one in ledger.read() if one.row not in study.rows(False)}
    ledger.close()
    assert foreign == set()


# ---- the command


def test_the_command_lists_the_studies(capsys: pytest.CaptureFixture[str]) -> None:
    assert topogen("study") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_rows_that_differ_and_a_quick_form(name: str) -> None:
    study = study_named(name)
    assert study.name == name
    for quick in (False, True):
        rows = study.rows(quick)
        assert rows
        assert len({str(row) for row in rows}) == len(set(rows)) == len(rows)
        assert {type(row) for row in rows} == {study.row}
    assert set(study.settings.values()) <= {int, float, str, bool}
    assert set(study.results.values()) <= {int, float, str, tuple}


def test_the_command_measures_and_writes_beside_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_command, "study_named", lambda name: replace(toy.STUDY, name=name))
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    assert topogen("study", "toy", "--budget", "2h", "--only", "*seed 0") == 0
    assert topogen("study", "toy", "--quick") == 0
    assert sorted(path.name for path in Path("runs").iterdir() if path.suffix == ".csv") == ["toy-quick.csv", "toy.csv"]
    Path("docs/studies").mkdir(parents=True)
    assert topogen("study", "toy", "--only", "*seed 1") == 0
    assert rows_of(Path("docs/studies/toy.csv")) == NAMES[4:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("alfort",),
            f"The 'NAME' parameter of topogen study must be {' or '.join(map(repr, STUDIES))}. Got 'alfort'.",
        ),
        (("mnist-methods", "--budget", "60"), "must be a number and one of the units s, m and h, as '60m'. Got '60'."),
        (("mnist-methods", "--threads", "0"), "The '--threads' parameter of topogen study must be an int >= 1. Got 0."),
        (("mnist-methods", "--data-dir", "no"), "The '--data-dir' parameter of topogen study must be a folder that"),
        (("mnist-methods", "--table", "no"), "The '--table' parameter of topogen study must be a file called .csv."),
    ],
)
def test_what_the_command_refuses(arguments, message, capsys: pytest.CaptureFixture[str]) -> None:
    assert topogen("study", *arguments) == 2
    assert message in capsys.readouterr().err


def test_the_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_command.importlib.util, "find_spec", lambda name: None)
    assert topogen("study", "mnist-methods") == 2
    assert "topogen: topogen study needs torch: pip install 'topogen-nn[torch]'." in capsys.readouterr().err
