"""Files: exact round trips of every family, and what cannot be saved."""

from __future__ import annotations

import json
import math
import re
import weakref
import zipfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen.errors import SpecError
from topogen.io import _npz
from topogen.testing import seeds, specs, topologies


def assert_same(loaded: tg.Topology, net: tg.Topology) -> None:
    assert loaded == net
    assert loaded.sizes == net.sizes
    assert loaded.spec == net.spec
    assert (loaded.seed is None) == (net.seed is None)
    if loaded.seed is not None and net.seed is not None:
        assert loaded.seed.entropy == net.seed.entropy
        assert loaded.seed.spawn_key == net.seed.spawn_key
        assert loaded.seed.pool_size == net.seed.pool_size
    for a, b in zip(loaded, net, strict=True):
        assert a.dtype == np.bool_
        assert a.indices.dtype == b.indices.dtype
        assert a.has_canonical_format
        assert a.data.all()


# ---- round trips


@pytest.mark.parametrize("family", tg.ALL_SPECS, ids=lambda family: family.__name__)
@given(data=st.data(), seed=seeds())
def test_round_trip_of_every_family(family, data, seed, tmp_path_factory):
    net = tg.generate(data.draw(specs(family)), rng=seed)
    path = tmp_path_factory.getbasetemp() / f"{family.__name__}.npz"
    tg.save(net, path)
    loaded = tg.load(path)
    assert_same(loaded, net)
    assert_same(tg.generate(loaded.spec, rng=loaded.seed), net)


@given(topologies())
def test_round_trip_without_spec_and_seed(tmp_path_factory, net):
    path = tmp_path_factory.getbasetemp() / "foreign.npz"
    tg.save(net, path)
    assert_same(tg.load(path), net)


_SPEC = tg.ErdosRenyi(sizes=[6, 9, 3], density=0.3)


@pytest.mark.parametrize(
    "seed",
    [
        np.random.SeedSequence(np.int64(5)),
        np.random.SeedSequence(),
        np.random.SeedSequence([1, 2**70], pool_size=8),
        np.random.SeedSequence(np.array([4, 5], np.uint32)),  # pyright: ignore[reportArgumentType]
        np.random.SeedSequence(2).spawn(3)[2],
    ],
    ids=["numpy int", "drawn", "row and pool", "array", "spawned"],
)
def test_round_trip_of_a_seed(seed, tmp_path):
    net = tg.generate(_SPEC, rng=seed)
    tg.save(net, tmp_path / "net.npz")
    loaded = tg.load(tmp_path / "net.npz")
    assert loaded.seed is not None
    assert (loaded.seed.generate_state(8) == seed.generate_state(8)).all()
    assert tg.generate(_SPEC, rng=loaded.seed) == net


def test_numpy_reads_the_file_alone(saved, net):
    with np.load(saved, allow_pickle=False) as file:
        header = json.loads(str(file["header"]))
        for k, layer in enumerate(net):
            csr = (np.ones(layer.nnz, bool), file[f"layer_{k}_indices"], file[f"layer_{k}_indptr"])
            assert (sp.csr_array(csr, shape=file[f"layer_{k}_shape"]) != layer).nnz == 0
    assert header["sizes"] == [6, 9, 3]
    assert header["topogen"] == tg.__version__
    assert header["spec"]["family"] == "ErdosRenyi"


def test_a_file_with_hashes_of_the_first_version_is_read(net, saved, monkeypatch, tmp_path):
    monkeypatch.setattr(_npz, "pattern_hash", lambda pattern: tg.pattern_hash(pattern, 1))
    tg.save(net, tmp_path / "old.npz")
    monkeypatch.undo()
    assert (tmp_path / "old.npz").read_bytes() != saved.read_bytes()
    assert tg.load(tmp_path / "old.npz") == net


def test_equal_topologies_give_equal_bytes(net, saved, tmp_path):
    tg.save(tg.generate(net.spec, rng=net.seed, lazy=True), tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == saved.read_bytes()
    with zipfile.ZipFile(saved) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}  # not the time of writing


def test_loaded_arrays_can_be_written_to(saved):
    assert all(layer.indices.flags.writeable for layer in tg.load(saved))


def test_a_lazy_topology_is_read_one_layer_at_a_time(tmp_path):
    alive: list[Any] = []
    most = 0

    def build(k: int) -> sp.csr_array:
        nonlocal most
        layer = tg.as_pattern(np.eye(4))
        alive.append(weakref.ref(layer.indices))
        most = max(most, sum(reference() is not None for reference in alive))
        return layer

    tg.save(tg.Topology(tg.LazyLayers((4,) * 21, build)), tmp_path / "deep.npz")
    assert len(alive) == 20
    assert most <= 2  # the one that is being built, and the one before it, not yet let go


def test_matrices_are_saved_as_their_topology(tmp_path):
    tg.save([np.eye(3), np.ones((3, 2))], str(tmp_path / "net.npz"))
    assert tg.load(str(tmp_path / "net.npz")).sizes == (3, 3, 2)


# ---- what save refuses


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (3, "The 'net' parameter of topogen must be a Topology, a sequence of matrices or one matrix. Got 3."),
        (None, "must be a Topology, a sequence of matrices or one matrix. Got None."),
        ([], "The 'layers' parameter of Topology must be a sequence of at least one matrix. Got"),
        (
            tg.Topology([np.eye(3)], spec=tg.Dense(sizes=[2, 2])),
            "The 'net' parameter of save must have a spec of its own sizes. Got (3, 3) and Dense(sizes=(2, 2)).",
        ),
    ],
    ids=["int", "None", "empty", "other sizes"],
)
def test_save_refuses(thing, message, tmp_path):
    with pytest.raises(SpecError, match=re.escape(message)):
        tg.save(thing, tmp_path / "net.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("families")
def test_save_refuses_a_spec_that_would_not_come_back(tmp_path):
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Odd(tg.AbstractSpec):
        sizes: tuple[int, ...] = (2, 2)
        odd: Any = None

        def layer(self, k, seed):
            raise NotImplementedError

        def claims(self):
            return ()

    messages = {
        1j: "The spec of 'net' must have a JSON form. Got {spec}: Object of type complex is not JSON serializable",
        math.nan: "The spec of 'net' must have a JSON form. Got {spec}: Out of range float values",
        Fraction(1, 2): "The spec of 'net' must have a JSON form. Got {spec}: Object of type Fraction",
        frozenset(): "The spec of 'net' must have a JSON form. Got {spec}: Object of type frozenset",
    }
    for odd, message in messages.items():
        spec = Odd(odd=odd)
        with pytest.raises(SpecError, match=re.escape(message.format(spec=spec))):
            tg.save(tg.Topology([np.eye(2)], spec=spec), tmp_path / "net.npz")
    message = f"must equal what is read from its JSON form. Got {Odd(odd=[1])} and " + '{"family": "Odd", '
    with pytest.raises(SpecError, match=re.escape(message)):
        tg.save(tg.Topology([np.eye(2)], spec=Odd(odd=[1])), tmp_path / "net.npz")
    assert list(tmp_path.iterdir()) == []
    tg.save(tg.Topology([np.eye(2)], spec=Odd(odd=(1,))), tmp_path / "net.npz")
    assert tg.load(tmp_path / "net.npz").spec == Odd(odd=(1,))


@pytest.mark.parametrize("path", ["net.txt", "net", "net.npz.gz", ".npz", 3, None, b"net.npz", Path("net.NPZ")])
@pytest.mark.parametrize("function", [lambda path: tg.save(np.eye(2), path), tg.load], ids=["save", "load"])
def test_paths_end_in_npz(function, path):
    with pytest.raises(
        SpecError, match=r"The 'path' parameter of (save|load) must be a path that ends in '\.npz'\. Got"
    ):
        function(path)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothere\.npz"):
        tg.load(tmp_path / "nothere.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.npz"):
        tg.load(tmp_path / "folder.npz")
    with pytest.raises(IsADirectoryError, match=r"folder\.npz"):
        tg.save(np.eye(2), tmp_path / "folder.npz")


def test_a_file_larger_than_memory_is_refused(saved, monkeypatch):
    monkeypatch.setattr(tg.checks, "_available_bytes", lambda: 1000)
    size = f"{saved.stat().st_size:,}"
    message = (
        f"The 'path' parameter of load must describe something that fits in memory. It needs {size} bytes and 1,000"
    )
    with pytest.raises(SpecError, match=re.escape(message)):
        tg.load(saved)
