"""generate: from a spec and a seed to a topology, always the same one, and never one that does not fit."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import threading

import joblib
import numpy as np
import pytest
from hypothesis import given

import topogen as tg
from topogen import checks
from topogen._topology import pattern_bytes
from topogen.errors import SpecError
from topogen.testing import seeds, specs

RANDOM = tg.ErdosRenyi(sizes=[20, 30, 10], density=0.1)


@given(specs(), seeds())
def test_lazy_is_eager(spec, seed):
    eager, lazy = tg.generate(spec, rng=seed), tg.generate(spec, rng=seed, lazy=True)
    assert isinstance(lazy.layers, tg.LazyLayers)
    assert eager == lazy
    assert (lazy.sizes, lazy.nnz, lazy.density) == (eager.sizes, eager.nnz, eager.density)
    assert lazy.spec == eager.spec == spec
    assert tg.verify(lazy) == tg.verify(eager)


@given(specs(), seeds())
def test_the_seed_that_is_kept_makes_the_same_net_again(spec, seed):
    net = tg.generate(spec, rng=seed)
    assert net.seed is seed
    assert tg.generate(net.spec, rng=net.seed) == net


def test_an_int_is_its_seed_sequence():
    net = tg.generate(RANDOM, rng=5)
    assert net.seed.entropy == 5
    assert net == tg.generate(RANDOM, rng=np.random.SeedSequence(5))
    assert net == tg.generate(RANDOM, rng=np.uint8(5))
    assert net != tg.generate(RANDOM, rng=6)


def test_a_spawned_seed_draws_for_itself():
    first, second = np.random.SeedSequence(5).spawn(2)
    assert tg.generate(RANDOM, rng=first) != tg.generate(RANDOM, rng=second)
    assert tg.generate(RANDOM, rng=first) != tg.generate(RANDOM, rng=5)


def test_a_generator_gives_128_bits_once():
    rng, twin = np.random.default_rng(1), np.random.default_rng(1)
    net = tg.generate(RANDOM, rng=rng)
    words = twin.integers(0, 2**32, size=4, dtype=np.uint64)
    assert net.seed.entropy == sum(int(word) << 32 * i for i, word in enumerate(words))
    assert rng.bit_generator.state == twin.bit_generator.state
    assert tg.generate(RANDOM, rng=net.seed) == net
    assert tg.generate(RANDOM, rng=rng) != net  # it has moved on


def test_a_random_family_without_rng_is_refused():
    sentence = (
        "The 'rng' parameter of generate must be given for ErdosRenyi, which is random: an int, a SeedSequence or a "
        "Generator. Got None; rng=0 would do."
    )
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.generate(RANDOM)
    with pytest.raises(SpecError, match=r"^The 'rng' parameter of generate must be given for Chain, which is random"):
        tg.generate(tg.Chain(tg.Dense(sizes=[5, 20]), RANDOM), lazy=True)


def test_a_deterministic_family_accepts_rng_and_ignores_it():
    spec = tg.RadixNet(systems=[[2, 3]])
    assert tg.generate(spec) == tg.generate(spec, rng=0) == tg.generate(spec, rng=np.random.default_rng(1))


@pytest.mark.parametrize("rng", [-1, 1.5, "0", True, [1], np.int64(-1)])
def test_what_is_no_seed_is_refused(rng):
    sentence = (
        f"The 'rng' parameter of generate must be an int >= 0, a numpy SeedSequence or a numpy Generator. Got {rng!r}."
    )
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.generate(RANDOM, rng=rng)


@pytest.mark.parametrize("spec", [5, None, [[1]], tg.Dense])
def test_what_is_no_spec_is_refused(spec):
    sentence = f"The 'spec' parameter of generate must be an AbstractSpec. Got {spec!r}."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.generate(spec)


@pytest.mark.parametrize("spec", [tg.RadixNet(systems=[[2, 3]], widths=[1, 2, 1]), RANDOM, tg.Permute(RANDOM)], ids=str)
@pytest.mark.parametrize("n_jobs", [2, 3, -1])
def test_layers_built_at_once_are_the_same(spec, n_jobs):
    alone = tg.generate(spec, rng=5)
    with joblib.parallel_config(backend="threading", n_jobs=n_jobs):
        net = tg.generate(spec, rng=5)
    assert net == alone
    assert type(net.layers) is type(alone.layers) is list


def test_layers_built_in_other_processes_are_the_same():
    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert tg.generate(RANDOM, rng=5) == tg.generate(RANDOM, rng=5, lazy=True)
    joblib.externals.loky.get_reusable_executor().shutdown(wait=True)


@pytest.fixture
def layers_meet(monkeypatch):
    """No layer is built before another one is being built."""
    barrier, dense = threading.Barrier(2, timeout=1), tg.Dense.layer

    def build(self, k, seed=None):
        barrier.wait()
        return dense(self, k, seed)

    monkeypatch.setattr(tg.Dense, "layer", build)


@pytest.mark.usefixtures("layers_meet")
def test_layers_are_built_at_once_where_joblib_is_told_so_and_only_there():
    spec = tg.Dense(sizes=[2, 3, 4])
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert tg.generate(spec).nnz == 18
        lazy = tg.generate(spec, lazy=True)
    with pytest.raises(threading.BrokenBarrierError):
        lazy[0]
    with pytest.raises(threading.BrokenBarrierError):
        tg.generate(spec)


def test_what_goes_wrong_in_one_layer_is_raised(monkeypatch):
    def build(self, k, seed=None):
        return np.ones((2, 2)) if k else np.ones((2, 3))

    monkeypatch.setattr(tg.Dense, "layer", build)
    with (
        joblib.parallel_config(backend="threading", n_jobs=2),
        pytest.raises(SpecError, match=r"^Layer 1 must have shape \(3, 4\)\. Got \(2, 2\)\.$"),
    ):
        tg.generate(tg.Dense(sizes=[2, 3, 4]))


def test_joblib_is_not_loaded_for_one_job():
    script = "import sys, topogen as tg; tg.generate(tg.Dense(sizes=[2, 2, 2])); print('joblib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"


@given(specs(), seeds())
def test_a_lazy_topology_can_be_sent_to_another_process(spec, seed):
    net = tg.generate(spec, rng=seed, lazy=True)
    assert pickle.loads(pickle.dumps(net)) == net


class NotToBeBuiltError(Exception):
    pass


@pytest.fixture
def nothing_is_built(monkeypatch):
    def build(self, k, seed=None):
        raise NotToBeBuiltError

    for family in (tg.Dense, tg.ErdosRenyi, tg.RadixNet, tg.RandomBiregular):
        monkeypatch.setattr(family, "layer", build)
    monkeypatch.setattr(checks, "_available_bytes", lambda: 1000)


@pytest.mark.parametrize(
    ("spec", "needed"),
    [
        (tg.Dense(sizes=[10**6, 10**6]), "9,000,008,000,008"),
        (tg.Dense(sizes=[20, 10]), "1,084"),
        (tg.RadixNet(systems=[[2] * 50]), "1,463,669,878,895,411,600"),
        (tg.ErdosRenyi(sizes=[10**12, 1], density=0.0), "8,000,000,000,008"),
        (tg.RandomBiregular(sizes=[100, 100], fan_in=2), "1,404"),
        # what is cut away is built first
        (tg.Trim(tg.Dense(sizes=[10**6, 10**6]), [1, 1]), "9,000,008,000,008"),
        # each layer alone would fit
        (tg.Dense(sizes=[10, 10, 10]), "1,088"),
        # a member that promises no number of connections hides none of the others
        (tg.Chain(tg.Trim(RANDOM, [9, 9, 9]), tg.Dense(sizes=[9, 100])), "4,540"),
    ],
)
@pytest.mark.usefixtures("nothing_is_built")
def test_what_does_not_fit_is_refused_before_anything_is_built(spec, needed):
    sentence = (
        "The 'spec' parameter of generate must describe something that fits in memory. "
        f"It needs {needed} bytes and 1,000 are available."
    )
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.generate(spec, rng=0)


@pytest.mark.usefixtures("nothing_is_built")
def test_what_fits_is_built():
    with pytest.raises(NotToBeBuiltError):
        tg.generate(tg.Dense(sizes=[10, 10]))


@pytest.mark.usefixtures("nothing_is_built")
def test_a_lazy_topology_needs_room_for_one_layer_only():
    net = tg.generate(tg.Dense(sizes=[10, 10, 100]), lazy=True)
    with pytest.raises(NotToBeBuiltError):
        net[0]
    sentence = (
        "The 'spec' parameter of generate (layer 1) must describe something that fits in memory. "
        "It needs 5,044 bytes and 1,000 are available."
    )
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        net[1]


@given(specs(), seeds())
def test_the_bytes_foretold_are_no_more_than_what_is_built(spec, seed):
    whole = spec.spec if isinstance(spec, tg.Trim) else spec
    for layer, needed in zip(tg.generate(whole, rng=seed), spec.layer_bytes(), strict=True):
        if type(spec).layer_bytes is not tg.AbstractSpec.layer_bytes:  # it builds more than it returns, or cannot tell
            assert needed == 0 or needed >= pattern_bytes(*layer.shape, layer.nnz)
        else:
            assert needed == pattern_bytes(*layer.shape, layer.nnz)
