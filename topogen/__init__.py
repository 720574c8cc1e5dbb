"""Sparse neural-network topologies: generated exactly, verified by measuring.

A topology is a mathematical object with a theorem. topogen builds it (`generate`), checks the theorem by measuring
(`verify`), and hands it on as plain scipy matrices; ``topogen_torch`` turns them into layers that really are sparse.
"""

from topogen import checks, errors, io, measures
from topogen._claims import Claim, Measure, Report
from topogen._draw import draw
from topogen._generate import generate
from topogen._parse import spec_from_text
from topogen._spec import AbstractSpec, child, spec_from_json, spec_to_json, stream
from topogen._topology import LazyLayers, Topology, as_pattern, as_topology, pattern_hash
from topogen._verify import verify
from topogen._version import __version__
from topogen.io import load, save
from topogen.specs import ALL_SPECS, Chain, Dense, ErdosRenyi, RadixNet, RandomBiregular, Trim

__all__ = [
    "ALL_SPECS",
    "AbstractSpec",
    "Chain",
    "Claim",
    "Dense",
    "ErdosRenyi",
    "LazyLayers",
    "Measure",
    "RadixNet",
    "RandomBiregular",
    "Report",
    "Topology",
    "Trim",
    "__version__",
    "as_pattern",
    "as_topology",
    "checks",
    "child",
    "draw",
    "errors",
    "generate",
    "io",
    "load",
    "measures",
    "pattern_hash",
    "save",
    "spec_from_json",
    "spec_from_text",
    "spec_to_json",
    "stream",
    "verify",
]
