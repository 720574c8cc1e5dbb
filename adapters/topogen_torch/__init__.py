"""Topologies as PyTorch layers that really are sparse.

``import topogen as tg``, ``import topogen_torch as tt``. PyTorch is loaded when the first name is used, so that the
``topogen`` command can offer ``train`` and still answer at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topogen_torch import data, init
    from topogen_torch._layers import SparseLinear, sparse_mlp
    from topogen_torch._ranks import check_ranks
    from topogen_torch._report import LayerReport, Memory, ModelReport, report
    from topogen_torch._timing import Seconds

__all__ = [
    "LayerReport",
    "Memory",
    "ModelReport",
    "Seconds",
    "SparseLinear",
    "check_ranks",
    "data",
    "init",
    "report",
    "sparse_mlp",
]

_HOMES = {
    "LayerReport": "_report",
    "Memory": "_report",
    "ModelReport": "_report",
    "Seconds": "_timing",
    "SparseLinear": "_layers",
    "check_ranks": "_ranks",
    "report": "_report",
    "sparse_mlp": "_layers",
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
