"""Topologies in files."""

from topogen.io import graph_challenge
from topogen.io._atomic import replacing
from topogen.io._networkx import from_networkx, layering, to_networkx
from topogen.io._npz import load, save

__all__ = ["from_networkx", "graph_challenge", "layering", "load", "replacing", "save", "to_networkx"]
