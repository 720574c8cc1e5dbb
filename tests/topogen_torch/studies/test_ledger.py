"""The table of a study: exact, never half written, and shared by several processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import STUDY, Row

from topogen.errors import FormatError
from topogen_torch.studies._ledger import ABOUT, Ledger
from topogen_torch.studies._study import Measured

ABOUT_IT = {name: f"the {name}, as it is" for name in ABOUT}
RESULTS = {"test_accuracy": 0.1 + 0.2, "connections": 12, "note": 'a, "b"\nc', "curve": (0.5, 1 / 3)}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "toy.csv", STUDY)
    yield ledger
    ledger.close()


def test_what_is_read_is_what_was_appended(ledger: Ledger) -> None:
    first = Measured(Row(method="set", density=1 / 3, bias=False, seed=2), RESULTS, ABOUT_IT)
    second = Measured(Row(method="rigl", density=1e-17), RESULTS | {"curve": ()}, ABOUT_IT)
    assert ledger.read() == []
    ledger.append(first)
    ledger.append(second)
    assert ledger.read() == [first, second]
    assert type(ledger.read()[0].results["connections"]) is int


@given(
    st.floats(allow_nan=False), st.lists(st.floats(allow_nan=False)), st.text(st.characters(exclude_categories=["Cs"]))
)
def test_every_number_and_every_text_comes_back(tmp_path_factory, number, curve, note) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("table") / "toy.csv", STUDY)
    results = {"test_accuracy": number, "connections": 1, "note": note, "curve": tuple(curve)}
    measured = Measured(Row(method=note, density=number), results, ABOUT_IT)
    ledger.append(measured)
    assert ledger.read() == [measured]
    ledger.close()


def test_a_table_of_another_study_is_refused(ledger: Ledger) -> None:
    ledger.append(Measured(Row(method="set", density=0.1), RESULTS, ABOUT_IT))
    other = replace(STUDY, results={"test_accuracy": float, "error": float})
    message = (
        f"The table {ledger.path} must have the columns of the study 'toy'. "
        "They differ in connections, curve, error, note."
    )
    with pytest.raises(FormatError, match=re.escape(message)):
        Ledger(ledger.path, other).read()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (",0.1,", ",much,", "could not convert string to float: 'much'"),
        (",True,", ",yes,", "True or False must stand where 'yes' does."),
        (",12,", ",", "it must have 17 entries. Got 16."),
        (",12,", ",1.5,", "invalid literal for int"),
    ],
)
def test_a_damaged_line_is_named(ledger: Ledger, old: str, new: str, reason: str) -> None:
    ledger.append(Measured(Row(method="set", density=0.1), RESULTS | {"note": ""}, ABOUT_IT))
    text = ledger.path.read_text()
    assert old in text
    ledger.path.write_text(text.replace(old, new))
    with pytest.raises(FormatError, match=rf"The table .*toy\.csv is damaged in line 2: .*{reason}"):
        ledger.read()


OTHER = """
import sys
from pathlib import Path
from toy import STUDY, Row
from topogen_torch.studies._ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), STUDY)
with ledger.claimed(Row(method="set", density=0.1, seed=int(sys.argv[2]))) as is_mine:
    print(is_mine, flush=True)
    if len(sys.argv) > 3:
        sys.stdin.readline()
"""


def other(ledger: Ledger, seed: int, *stays: str) -> subprocess.Popen[str]:
    """Start a process that claims a row, and says whether it could."""
    return subprocess.Popen(
        [sys.executable, "-c", OTHER, str(ledger.path), str(seed), *stays],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_row_belongs_to_one_process_and_is_free_when_that_is_killed(ledger: Ledger) -> None:
    with other(ledger, 0, "stays") as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with ledger.claimed(Row(method="set", density=0.1, seed=0)) as is_mine:
            assert not is_mine
        with ledger.claimed(Row(method="set", density=0.1, seed=1)) as is_mine:
            assert is_mine
            with other(ledger, 1) as late:
                assert late.communicate()[0] == "False\n"
        holder.kill()
    with ledger.claimed(Row(method="set", density=0.1, seed=0)) as is_mine:
        assert is_mine
