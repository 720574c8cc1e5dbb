"""Paley against networkx and dense eigenvalues."""

from __future__ import annotations

import math
import re

import networkx as nx
import numpy as np
import pytest

import topogen as tg
from topogen.errors import SpecError


@pytest.mark.parametrize("p", [5, 13, 17, 29, 37, 101])
def test_it_is_networkxs_paley_graph(p):
    net = tg.generate(tg.Paley(p=p))
    dense = net[0].toarray().astype(int)
    np.testing.assert_array_equal(dense, nx.to_numpy_array(nx.paley_graph(p), nodelist=range(p)))
    np.testing.assert_array_equal(dense, dense.T)
    values = np.linalg.svd(dense.astype(float), compute_uv=False)
    assert values[1] == pytest.approx((1 + math.sqrt(p)) / 2, abs=1e-8)
    assert tg.verify(net).holds is True


@pytest.mark.parametrize(("p", "nearest"), [(9, 5), (7, 5), (2, 5), (25, 29)])
def test_what_has_no_symmetric_paley_graph_modulo_p_is_refused(p, nearest):
    sentence = f"The 'p' parameter of Paley must be a prime that is 1 mod 4. Got {p}. The nearest is {nearest}."
    with pytest.raises(SpecError, match=f"^{re.escape(sentence)}$"):
        tg.Paley(p=p)
