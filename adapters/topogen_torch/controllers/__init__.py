"""Methods that change which connections a model has while it trains: prune, and drop and grow.

One object a method; `Controller` owns all state. Scores (`criteria`) and rules of growth (`growth`) are plain callables
that a caller may replace.
"""

from topogen_torch.controllers._at_init import grasp_scores, snip_scores, synflow_scores
from topogen_torch.controllers._base import Controller
from topogen_torch.controllers._baselines import inverted, shuffled
from topogen_torch.controllers._dynamic import SET, RigL
from topogen_torch.controllers._movement import Movement
from topogen_torch.controllers._obd import obd_diagonal
from topogen_torch.controllers._proximal import ProximalL1
from topogen_torch.controllers._prune import GradualMagnitude, OneShot
from topogen_torch.controllers._saliency import fisher_diagonal, hutchinson_diagonal, saliency_scores
from topogen_torch.controllers._synflow import SynFlow

__all__ = [
    "SET",
    "Controller",
    "GradualMagnitude",
    "Movement",
    "OneShot",
    "ProximalL1",
    "RigL",
    "SynFlow",
    "fisher_diagonal",
    "grasp_scores",
    "hutchinson_diagonal",
    "inverted",
    "obd_diagonal",
    "saliency_scores",
    "shuffled",
    "snip_scores",
    "synflow_scores",
]
