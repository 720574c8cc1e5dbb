"""Methods that change which connections a model has while it trains: prune, and drop and grow.

One object a method; `Controller` owns all state. Scores (`criteria`), rules of growth (`growth`) and of redistribution
(`redistribution`) are plain callables that a caller may replace.
"""

from topogen_torch.controllers._at_init import grasp_scores, snip_scores, synflow_scores
from topogen_torch.controllers._base import Controller
from topogen_torch.controllers._baselines import inverted, shuffled
from topogen_torch.controllers._dynamic import SET, RigL
from topogen_torch.controllers._lottery import LotteryTicket
from topogen_torch.controllers._movement import Movement
from topogen_torch.controllers._narrow_dense import narrow_dense, narrow_sizes
from topogen_torch.controllers._obd import obd_diagonal
from topogen_torch.controllers._proximal import ProximalL1
from topogen_torch.controllers._prune import GradualMagnitude, OneShot
from topogen_torch.controllers._rewind import rewind
from topogen_torch.controllers._saliency import fisher_diagonal, hutchinson_diagonal, saliency_scores
from topogen_torch.controllers._snfs import SNFS
from topogen_torch.controllers._synflow import SynFlow
from topogen_torch.controllers._threshold import Threshold

__all__ = [
    "SET",
    "SNFS",
    "Controller",
    "GradualMagnitude",
    "LotteryTicket",
    "Movement",
    "OneShot",
    "ProximalL1",
    "RigL",
    "SynFlow",
    "Threshold",
    "fisher_diagonal",
    "grasp_scores",
    "hutchinson_diagonal",
    "inverted",
    "narrow_dense",
    "narrow_sizes",
    "obd_diagonal",
    "rewind",
    "saliency_scores",
    "shuffled",
    "snip_scores",
    "synflow_scores",
]
