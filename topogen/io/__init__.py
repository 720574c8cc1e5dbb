"""Topologies in files."""

from topogen.io._atomic import replacing
from topogen.io._npz import load, save

__all__ = ["load", "replacing", "save"]
