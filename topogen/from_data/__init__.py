"""Topologies that come from data: they have connections, and no spec."""

from topogen.from_data._correlation import from_correlation
from topogen.from_data._layering import Layering
from topogen.from_data._ontology import from_ontology, ontology_layering
from topogen.from_data._weights import from_weights

__all__ = ["Layering", "from_correlation", "from_ontology", "from_weights", "ontology_layering"]
