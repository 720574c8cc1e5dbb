"""Methods that change which connections a model has while it trains: prune, and drop and grow.

One object a method; `Controller` owns all state. Scores (`criteria`) and rules of growth (`growth`) are plain callables
that a caller may replace.
"""

from topogen_torch.controllers._base import Controller
from topogen_torch.controllers._dynamic import SET, RigL
from topogen_torch.controllers._prune import GradualMagnitude, OneShot

__all__ = ["SET", "Controller", "GradualMagnitude", "OneShot", "RigL"]
