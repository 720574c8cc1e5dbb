"""Topologies as PyTorch layers that really are sparse.

``import topogen as tg``, ``import topogen_torch as tt``. PyTorch is loaded when the first name is used, so that the
``topogen`` command can offer ``train`` and still answer at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topogen_torch import controllers, data, init
    from topogen_torch._attention import SparseMultiheadAttention
    from topogen_torch._attention_mask import attention_mask
    from topogen_torch._block import BlockSparseLinear
    from topogen_torch._break_even import never_dense
    from topogen_torch._callbacks._public import lightning_callback, transformers_callback
    from topogen_torch._conv import SparseConv1d, SparseConv2d
    from topogen_torch._conversion._convert import densify, sparsify
    from topogen_torch._conversion._torch_sparse import from_torch_sparse, to_torch_sparse
    from topogen_torch._layers import SparseLinear
    from topogen_torch._low_rank import LowRankPlusSparse
    from topogen_torch._ranks import check_ranks
    from topogen_torch._recurrent import SparseGRU, SparseLSTM
    from topogen_torch._reports._advice import BreakEven
    from topogen_torch._reports._memory import Memory
    from topogen_torch._reports._report import LayerReport, ModelReport, report
    from topogen_torch._reports._timing import Seconds
    from topogen_torch._reports._whole import Whole
    from topogen_torch._shrinking._shrink import shrink
    from topogen_torch._stack import SparseSequential, sparse_mlp
    from topogen_torch.controllers import SET, GradualMagnitude, OneShot, RigL
    from topogen_torch.controllers._at_init import grasp_scores, snip_scores, synflow_scores
    from topogen_torch.controllers._baselines import inverted, shuffled
    from topogen_torch.controllers._lottery import LotteryTicket
    from topogen_torch.controllers._movement import Movement
    from topogen_torch.controllers._narrow_dense import narrow_dense, narrow_sizes
    from topogen_torch.controllers._obd import obd_diagonal
    from topogen_torch.controllers._proximal import ProximalL1
    from topogen_torch.controllers._rewind import rewind
    from topogen_torch.controllers._saliency import fisher_diagonal, hutchinson_diagonal, saliency_scores
    from topogen_torch.controllers._snfs import SNFS
    from topogen_torch.controllers._structured import PruneNeurons
    from topogen_torch.controllers._synflow import SynFlow
    from topogen_torch.controllers._threshold import Threshold

__all__ = [
    "SET",
    "SNFS",
    "BlockSparseLinear",
    "BreakEven",
    "GradualMagnitude",
    "LayerReport",
    "LotteryTicket",
    "LowRankPlusSparse",
    "Memory",
    "ModelReport",
    "Movement",
    "OneShot",
    "ProximalL1",
    "PruneNeurons",
    "RigL",
    "Seconds",
    "SparseConv1d",
    "SparseConv2d",
    "SparseGRU",
    "SparseLSTM",
    "SparseLinear",
    "SparseMultiheadAttention",
    "SparseSequential",
    "SynFlow",
    "Threshold",
    "Whole",
    "attention_mask",
    "check_ranks",
    "controllers",
    "data",
    "densify",
    "fisher_diagonal",
    "from_torch_sparse",
    "grasp_scores",
    "hutchinson_diagonal",
    "init",
    "inverted",
    "lightning_callback",
    "narrow_dense",
    "narrow_sizes",
    "never_dense",
    "obd_diagonal",
    "report",
    "rewind",
    "saliency_scores",
    "shrink",
    "shuffled",
    "snip_scores",
    "sparse_mlp",
    "sparsify",
    "synflow_scores",
    "to_torch_sparse",
    "transformers_callback",
]

_HOMES = {
    "SET": "controllers",
    "SNFS": "controllers._snfs",
    "BlockSparseLinear": "_block",
    "BreakEven": "_reports._advice",
    "GradualMagnitude": "controllers",
    "LayerReport": "_reports._report",
    "LotteryTicket": "controllers._lottery",
    "LowRankPlusSparse": "_low_rank",
    "Memory": "_reports._memory",
    "ModelReport": "_reports._report",
    "Movement": "controllers._movement",
    "OneShot": "controllers",
    "ProximalL1": "controllers._proximal",
    "PruneNeurons": "controllers._structured",
    "RigL": "controllers",
    "Seconds": "_reports._timing",
    "SparseConv1d": "_conv",
    "SparseConv2d": "_conv",
    "SparseGRU": "_recurrent",
    "SparseLSTM": "_recurrent",
    "SparseLinear": "_layers",
    "SparseMultiheadAttention": "_attention",
    "SparseSequential": "_stack",
    "SynFlow": "controllers._synflow",
    "Threshold": "controllers._threshold",
    "Whole": "_reports._whole",
    "attention_mask": "_attention_mask",
    "check_ranks": "_ranks",
    "densify": "_conversion._convert",
    "fisher_diagonal": "controllers._saliency",
    "from_torch_sparse": "_conversion._torch_sparse",
    "grasp_scores": "controllers._at_init",
    "hutchinson_diagonal": "controllers._saliency",
    "inverted": "controllers._baselines",
    "lightning_callback": "_callbacks._public",
    "narrow_dense": "controllers._narrow_dense",
    "narrow_sizes": "controllers._narrow_dense",
    "never_dense": "_break_even",
    "obd_diagonal": "controllers._obd",
    "report": "_reports._report",
    "rewind": "controllers._rewind",
    "saliency_scores": "controllers._saliency",
    "shrink": "_shrinking._shrink",
    "shuffled": "controllers._baselines",
    "snip_scores": "controllers._at_init",
    "sparse_mlp": "_stack",
    "sparsify": "_conversion._convert",
    "synflow_scores": "controllers._at_init",
    "to_torch_sparse": "_conversion._torch_sparse",
    "transformers_callback": "_callbacks._public",
}


def __getattr__(name: str) -> Any:
    """Load the module that a public name lives in, on its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_HOMES.get(name, name)}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            f"{__name__}.{name} needs PyTorch: pip install 'topogen-nn[torch]'.", name="torch"
        ) from None
    value = getattr(module, name) if name in _HOMES else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
