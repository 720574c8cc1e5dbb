"""verify: finds a single moved connection, judges what topogen did not make, and tells it in a table."""

from __future__ import annotations

import json
import re
import threading
from fractions import Fraction
from functools import reduce

import joblib
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen._claims import COMPONENTS, CONNECTIONS, DEFAULT_MEASURES, PATHS, Claim
from topogen.errors import ClaimError, SpecError
from topogen.testing import seeds, specs, topologies

NETS = [
    tg.RadixNet(systems=[[2, 2, 2]]),
    tg.RadixNet(systems=[[3, 3, 4], [4, 3, 3]]),
    tg.RadixNet(systems=[[2, 3], [3]], widths=[1, 2, 2, 3], shift=1),
    tg.RadixNet(systems=[[3, 2], [6]], widths=[2, 1, 2, 2], order="blocks"),
    tg.RadixNet(systems=[[10, 10]], widths=[8, 3, 1]),
]


def tampered(net, k, layer):
    layers = list(net.layers)
    layers[k] = layer
    return tg.Topology(layers, spec=net.spec)


@pytest.mark.parametrize("spec", NETS, ids=str)
@given(data=st.data())
def test_a_single_moved_connection_is_found(spec, data):
    net = tg.generate(spec)
    assert tg.verify(net).holds is True
    k = data.draw(st.integers(0, len(net) - 1))
    layer = net[k].toarray()
    taken, free = np.argwhere(layer), np.argwhere(~layer)
    if not free.size:  # a radix of N' is a dense layer: nowhere to move to
        return
    layer[tuple(taken[data.draw(st.integers(0, len(taken) - 1))])] = False
    layer[tuple(free[data.draw(st.integers(0, len(free) - 1))])] = True
    report = tg.verify(tampered(net, k, layer))
    assert report.holds is False
    assert report["connections"].holds is True
    with pytest.raises(ClaimError, match=r"was promised \(Robinett & Kepner"):
        report.raise_if_broken()


@pytest.mark.parametrize("spec", NETS, ids=str)
@given(data=st.data())
def test_a_connection_more_or_less_is_found(spec, data):
    net = tg.generate(spec)
    k = data.draw(st.integers(0, len(net) - 1))
    layer = net[k].toarray()
    i, j = (data.draw(st.integers(0, size - 1)) for size in layer.shape)
    layer[i, j] = not layer[i, j]
    assert tg.verify(tampered(net, k, layer)).holds is False


@pytest.mark.parametrize("spec", NETS[:4], ids=str)
@given(data=st.data())
def test_swapped_ends_that_keep_all_degrees_are_judged_by_the_paths(spec, data):
    """Degrees cannot tell here; the verdict must be that of the exact integer product."""
    net = tg.generate(spec)
    k = data.draw(st.integers(0, len(net) - 1))
    layer = net[k].toarray()
    edges = st.sampled_from(np.argwhere(layer).tolist())
    (a, b), (c, d) = data.draw(edges), data.draw(edges)
    if layer[a, d] or layer[c, b]:
        return
    layer[a, b] = layer[c, d] = False
    layer[a, d] = layer[c, b] = True
    swapped = tampered(net, k, layer)
    product = reduce(np.dot, [pattern.toarray().astype(object) for pattern in swapped])
    report = tg.verify(swapped)
    assert report["fan-in"].holds is report["fan-out"].holds is True
    assert report["paths per pair"].measured == tg.measures.PathCounts(product.min(), product.max())
    assert report["symmetric"].measured is bool(product.min() == product.max())
    assert report["path-connected"].measured is bool(product.min() > 0)
    assert report.holds is bool((product == net.spec.claims()[-1].bound.min).all())


@given(specs(), seeds())
def test_every_spec_keeps_what_it_claims(spec, seed):
    net = tg.generate(spec, rng=seed)
    report = tg.verify(net)
    assert report.holds is True
    assert [row.name for row in report if row.holds is not None] == [claim.name for claim in spec.claims()]
    report.raise_if_broken()


@given(topologies())
def test_foreign_matrices_are_measured_and_nothing_is_promised(net):
    report = tg.verify([layer.astype(float) * -2.5 for layer in net])
    assert report.holds is None
    assert [row.name for row in report] == [measure.name for measure in DEFAULT_MEASURES]
    assert all(row.holds is None and row.promised is None for row in report)
    dense = [layer.toarray().astype(object) for layer in net]
    product = reduce(np.dot, dense)
    assert report["sizes"].measured == net.sizes
    assert report["connections"].measured == tuple(int(layer.sum()) for layer in dense)
    assert report["density"].measured == Fraction(sum(int(x.sum()) for x in dense), sum(x.size for x in dense))
    assert report["paths per pair"].measured == tg.measures.PathCounts(int(product.min()), int(product.max()))
    assert report["path-connected"].measured is bool(product.min() > 0)
    report.raise_if_broken()  # nothing promised, nothing broken


def test_one_matrix_is_a_topology_and_is_left_as_it_was():
    matrix = sp.csr_array((np.array([2.0, 0.0, 1.0]), np.array([2, 0, 1]), np.array([0, 2, 3])), shape=(2, 3))
    before = [part.copy() for part in (matrix.data, matrix.indices, matrix.indptr)]
    report = tg.verify(matrix)
    assert report["connections"].measured == (2,)
    for part, copy in zip((matrix.data, matrix.indices, matrix.indptr), before, strict=True):
        np.testing.assert_array_equal(part, copy)


def test_claims_can_be_brought_along():
    two = Claim(measure=CONNECTIONS, bound=(2,), source="counted by hand")
    three = Claim(measure=CONNECTIONS, bound=(3,), source="counted wrongly")
    at_most = Claim(measure=COMPONENTS, bound=2, relation="<=", source="two inputs")
    assert tg.verify([[1, 0], [0, 1]], claims=[two, at_most]).holds is True
    assert tg.verify([[1, 0], [0, 1]], claims=[two, three]).holds is False
    assert tg.verify(tg.generate(NETS[0]), claims=[]).holds is None


def test_the_report_is_a_table():
    net = tg.generate(tg.RadixNet(systems=[[10, 10]], widths=[8, 3, 1]))
    layer = net[1].toarray()
    layer[0, 0], layer[0, 1] = False, True
    assert str(tg.verify(tampered(net, 1, layer))).splitlines() == [
        "claim           promised         measured         held",
        "--------------  ---------------  ---------------  ----",
        "sizes           (800, 300, 100)  (800, 300, 100)  yes",
        "connections     (24000, 3000)    (24000, 3000)    yes",
        "fan-out         (30, 10)         (30, 10)         yes",
        "fan-in          (80, 30)         (80, 29..31)     NO",
        "density         1/10 = 0.1       1/10 = 0.1       yes",
        "path-connected  yes              yes              yes",
        "symmetric       yes              no               NO",
        "paths per pair  3                2..4             NO",
        "dead neurons                     (0, 0, 0)",
        "components                       1",
    ]


def test_a_broken_report_says_what_was_promised_and_what_was_measured():
    claims = [
        Claim(measure=CONNECTIONS, bound=(3,), source="counted wrongly"),
        Claim(measure=COMPONENTS, bound=2, relation="<", source="guessed"),
        Claim(measure=PATHS, bound=tg.measures.PathCounts(0, 1), source="the identity"),
    ]
    sentence = (
        "connections == (3) was promised (counted wrongly), measured (2); "
        "components < 2 was promised (guessed), measured 2."
    )
    with pytest.raises(ClaimError, match=f"^{re.escape(sentence)}$"):
        tg.verify([[1, 0], [0, 1]], claims=claims).raise_if_broken()


def test_the_report_in_json():
    report = tg.verify(tg.generate(NETS[0]))
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["holds"] is True
    rows = {row["name"]: row for row in plain["rows"]}
    assert len(rows) == len(report)
    assert rows["density"]["promised"] == rows["density"]["measured"] == "1/4"
    assert rows["components"]["promised"] is rows["components"]["holds"] is None
    assert rows["paths per pair"]["source"].startswith("Robinett & Kepner")


@pytest.mark.parametrize("x", [5, None, "net"])
def test_what_is_no_topology_is_refused(x):
    with pytest.raises(SpecError, match=r"^The 'x' parameter of topogen must be a Topology, a sequence of matrices or"):
        tg.verify(x)


@pytest.mark.parametrize(
    ("claims", "sentence"),
    [
        ([5], "The 'claims[0]' parameter of verify must be a Claim. Got 5."),
        (5, "The 'claims' parameter of verify must be a sequence of Claims. Got 5."),
        ("no", "The 'claims' parameter of verify must be a sequence of Claims. Got 'no'."),
    ],
)
def test_what_is_no_claim_is_refused(claims, sentence):
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.verify([[1]], claims=claims)


def test_measures_taken_at_once_give_the_same_report():
    net = tg.generate(tg.RadixNet(systems=[[2, 3]], widths=[1, 2, 1]))
    with joblib.parallel_config(backend="threading", n_jobs=3):
        assert tg.verify(net) == tg.verify(net.layers, claims=net.spec.claims())
        together = tg.verify(net)
    assert together == tg.verify(net)


def test_measures_are_taken_at_once_where_joblib_is_told_so_and_only_there():
    barrier = threading.Barrier(2, timeout=1)
    claims = [
        tg.Claim(measure=tg.Measure(name, lambda net, name=name: barrier.wait() >= 0), bound=True, source="an example")
        for name in ("one", "the other")
    ]
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert tg.verify([[1]], claims=claims).holds
    with pytest.raises(threading.BrokenBarrierError):
        tg.verify([[1]], claims=claims)
