"""The published experiments, measured again: ``topogen study``.

A study is an ordered list of rows, each a frozen description of one training, and a function that measures a row. What
was measured stands in a table, one line a row, so that a study can be computed in pieces, by several processes, on
several days.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from topogen import checks

if TYPE_CHECKING:
    from topogen_torch.studies._study import Study

__all__ = ["STUDIES", "study_named"]

# name -> what it measures; the module is the name with underscores, and has the study as STUDY
STUDIES = {
    "alford-2019": "pruned, random and RadiX topologies on LeNet-300-100 and LeNet-5 (Alford et al., 2019)",
    "mnist-methods": "SET, RigL and gradual pruning beside dense and static nets on MNIST",
    "mnist-methods-tuning": "how the settings of mnist-methods were chosen, on images held out of the training set",
}


def study_named(name: str) -> Study:
    """Return a study; SpecError where there is none of that name."""
    checks.one_of(name, "NAME", "topogen study", tuple(STUDIES))
    return import_module(f"{__name__}._{name.replace('-', '_')}").STUDY
