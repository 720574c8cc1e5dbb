"""A topology with a spec and a seed, and the file that it was saved to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import topogen as tg

SPEC = tg.ErdosRenyi(sizes=[6, 9, 3], epsilon=0.5)  # 8 and 6 connections, in layers of shape (6, 9) and (9, 3)


@pytest.fixture
def net() -> tg.Topology:
    return tg.generate(SPEC, rng=np.random.SeedSequence([7, 2**100], spawn_key=(3, 1)))


@pytest.fixture
def saved(net: tg.Topology, tmp_path: Path) -> Path:
    path = tmp_path / "net.npz"
    tg.save(net, path)
    return path
